"""A folder of questions made by `python -m data.prepare questions`, read from disk where it is asked for. It is written
by data/prepared_writer.py.

    meta.json           {"format": 1, "kind": "questions", "tokenizer": .., "template": .., "inputs": .., "filters": ..,
                         "columns": {name: {"rows", "size", "dtype"}}, "splits": {"train": n, "val": n}, "hash": ..}
    tokenizer.tiktoken  the ranks
    NAME.data, NAME.at  a column: rows of different length, one behind the other, and where each starts (int64, one more
                        than there are rows). Of each question: problem, answer, source (UTF-8), prompt (token ids of
                        the problem in the template), solutions (which rows of the next two are its own). Of each
                        solution: solution (UTF-8) and target (token ids)
    train.rows, val.rows  which questions are of that split, uint32; without those of "excluded", a file that
                        `data.prepare contamination --exclude` wrote and named in meta.json
Everything is little-endian and memory-mapped. 14 million solutions start in seconds and take under 1 GB.
"""

import hashlib
from collections.abc import Iterator, Sequence
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from data import tokens
from data.files import UserError, field, inside, read_json
from data.tokenizer import check_tokenizer

FORMAT = 1
MEND = "make it with `python -m data.prepare questions`"
DTYPES = tokens.DTYPES | {"text": np.dtype("u1")}
AT = np.dtype("<i8")
TEXTS, TOKENS = ("problem", "answer", "source", "solution"), ("prompt", "target")
PIECE = 1 << 20  # rows looked at together where all are, so that what lies between stays small


def mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """The `count` values in a file; UserError if it has another size."""
    size = path.stat().st_size if path.is_file() else -1
    if size != count * dtype.itemsize:
        got = "missing" if size < 0 else f"{size} bytes"
        raise UserError(f"{path}: {got}, but meta.json names {count * dtype.itemsize} bytes; {MEND}")
    return np.asarray(np.memmap(path, dtype, "r")) if count else np.empty(0, dtype)  # an empty file cannot be mapped


class Column:
    """Rows of different length in two files. `rows`, `size`: how many rows and values."""

    def __init__(self, folder: Path, name: str, dtype: str, rows: int, size: int):
        self.data = mapped(folder / f"{name}.data", DTYPES[dtype], size)
        self.at = mapped(folder / f"{name}.at", AT, rows + 1)

    def __len__(self) -> int:
        return len(self.at) - 1

    def row(self, i: int) -> np.ndarray:
        return self.data[self.at[i] : self.at[i + 1]]

    def text(self, i: int) -> str:
        return self.row(i).tobytes().decode()

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Values in each of these rows: (len(rows),) int32."""
        out = np.empty(len(rows), np.int32)
        for i in range(0, len(rows), PIECE):
            part = rows[i : i + PIECE].astype(np.int64)
            out[i : i + PIECE] = self.at[part + 1] - self.at[part]
        return out


# ---------------------------------------------------------------- sequences that the stages use as they use lists
class Rows(Sequence):
    """Some `rows` of a folder, by number; item i is made from row rows[i] when it is asked for."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return self.take(i)
        return self.item(int(self.rows[index(i)]))

    def __repr__(self) -> str:
        return repr(list(self))


class Texts(Rows):
    """Texts of a column."""

    def __init__(self, column: Column, rows: np.ndarray):
        super().__init__(rows)
        self.column = column

    def take(self, places) -> "Texts":
        return Texts(self.column, self.rows[places])

    def item(self, row: int) -> str:
        return self.column.text(row)


class TokenRows(Rows):
    """Token ids of a column, each with `begin` before it and `end` behind it: lists of ints."""

    def __init__(self, column: Column, rows: np.ndarray, begin: list[int], end: list[int]):
        super().__init__(rows)
        self.column, self.begin, self.end = column, begin, end

    def take(self, places) -> "TokenRows":
        return TokenRows(self.column, self.rows[places], self.begin, self.end)

    def item(self, row: int) -> list[int]:
        return [*self.begin, *self.column.row(row).tolist(), *self.end]

    def lengths(self) -> np.ndarray:
        return self.column.lengths(self.rows) + len(self.begin) + len(self.end)


class Examples(Sequence):
    """(prompt ids, target ids) of SFT: two TokenRows of equal length."""

    def __init__(self, prompts: TokenRows, targets: TokenRows):
        self.prompts, self.targets = prompts, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[list[int], list[int]]:
        return self.prompts[i], self.targets[i]

    def take(self, places) -> "Examples":
        return Examples(self.prompts.take(places), self.targets.take(places))


def take(items: Sequence, places) -> Sequence:
    """Those of `items` at these places, in this order; or those that a mask (len(items),) names."""
    if isinstance(items, Rows | Examples):
        return items.take(places)
    masked = isinstance(places, np.ndarray) and places.dtype == bool
    return [items[i] for i in (np.flatnonzero(places) if masked else places)]


def lengths(rows: Sequence | np.ndarray) -> np.ndarray:
    """Length of each row: (len(rows),). An array holds lengths already."""
    if isinstance(rows, np.ndarray):
        return rows
    return rows.lengths() if isinstance(rows, TokenRows) else np.fromiter(map(len, rows), np.int64, len(rows))


def example_lengths(examples: Sequence) -> Iterator[tuple[str, np.ndarray]]:
    """Lengths of the "prompts", the "targets" and the whole "examples" of (prompt, target) pairs."""
    prepared = isinstance(examples, Examples)
    prompts, targets = (examples.prompts, examples.targets) if prepared else zip(*examples, strict=True)
    total = lengths(prompts)
    yield "prompts", total
    sizes = lengths(targets)
    yield "targets", sizes
    total += sizes
    yield "examples", total


# ---------------------------------------------------------------- questions
class PreparedQuestion:
    """As data.questions.Question, read from disk."""

    __slots__ = ("folder", "row")

    def __init__(self, folder: "Prepared", row: int):
        self.folder, self.row = folder, row

    @property
    def qid(self) -> str:
        return f"openmath/{self.row}"

    @property
    def problem(self) -> str:
        return self.folder.columns["problem"].text(self.row)

    @property
    def answer(self) -> str:
        return self.folder.columns["answer"].text(self.row)

    @property
    def source(self) -> str:
        return self.folder.columns["source"].text(self.row)

    @property
    def solutions(self) -> Texts:
        return Texts(self.folder.columns["solution"], self.folder.columns["solutions"].row(self.row))


class PreparedQuestions(Rows):
    """Questions of one split of a folder."""

    def __init__(self, folder: "Prepared", rows: np.ndarray):
        super().__init__(rows)
        self.folder = folder

    def take(self, places) -> "PreparedQuestions":
        return PreparedQuestions(self.folder, self.rows[places])

    def item(self, row: int) -> PreparedQuestion:
        return PreparedQuestion(self.folder, row)

    def hash(self) -> str:
        """Of what the folder was made from, and of which of its questions these are."""
        return hashlib.sha256(self.folder.meta["hash"].encode() + self.rows.tobytes()).hexdigest()

    def prompts(self, enc, template) -> TokenRows:
        """As data.math_qa.question_prompts."""
        self.folder.check(enc, template)
        begin = [enc.eot_token] if template.begin else []
        return TokenRows(self.folder.columns["prompt"], self.rows, begin, [])

    def examples(self, enc, template, gold: bool) -> Examples:
        """As train_sft.load_examples: of the first solution of each question, or of all."""
        column, most = self.folder.columns["solutions"], None if gold else 1
        solutions = [column.row(row)[:most] for row in self.rows.tolist()]
        question = np.repeat(np.arange(len(self), dtype=np.uint32), [len(rows) for rows in solutions])
        rows = np.concatenate(solutions) if solutions else np.empty(0, np.uint32)
        targets = TokenRows(self.folder.columns["target"], rows, [], [enc.eot_token])
        return Examples(self.prompts(enc, template).take(question), targets)


class Prepared:
    """An open folder: meta.json and its columns."""

    def __init__(self, path: Path):
        self.path = path
        self.meta = meta = read_json(path / "meta.json", "folder of questions", mend=MEND)
        where = path / "meta.json"
        if (meta.get("kind"), meta.get("format")) != ("questions", FORMAT):
            raise UserError(f"{where}: no folder of questions in format {FORMAT}; {MEND}")
        field(meta, "hash", str, where, MEND)
        shapes = field(meta, "columns", dict, where, MEND)
        self.columns = {}
        for name in (*TEXTS, *TOKENS, "solutions"):
            shape = field(shapes, name, dict, where, MEND)
            rows, size = (field(shape, key, int, where, MEND) for key in ("rows", "size"))
            if shape.get("dtype") not in DTYPES:
                raise UserError(f"{where}: dtype of {name} is {shape.get('dtype')!r:.60}; {MEND}")
            self.columns[name] = Column(path, name, shape["dtype"], rows, size)

    def questions(self, split: str) -> PreparedQuestions:
        where = self.path / "meta.json"
        splits = field(self.meta, "splits", dict, where, MEND)
        if split not in splits:
            raise UserError(f"{self.path} has no {split!r} split; use one of {', '.join(splits)}")
        rows = mapped(self.path / f"{split}.rows", DTYPES["uint32"], field(splits, split, int, where, MEND))
        if "excluded" in self.meta:  # by data/contamination.py
            left_out = field(self.meta, "excluded", dict, where, MEND)
            path = inside(self.path, field(left_out, "file", str, where, MEND), where)
            rows = rows[~np.isin(rows, mapped(path, DTYPES["uint32"], field(left_out, "rows", int, where, MEND)))]
        if not len(rows):
            raise UserError(f"{self.path}: its {split!r} split is empty; prepare it from more questions")
        return PreparedQuestions(self, rows)

    def check(self, enc, template) -> None:
        """Refuse another tokenizer than the one that made the ids, and another template than their texts'."""
        check_tokenizer(enc, field(self.meta, "tokenizer", dict, self.path / "meta.json", MEND), self.path)
        mine = field(self.meta, "template", dict, self.path / "meta.json", MEND)
        if any(mine.get(key) != getattr(template, key) for key in ("prompt", "target", "marker")):
            what = f"holds tokens of the template {mine.get('name')!r}, but {template.name!r} is asked for"
            raise UserError(f"{self.path} {what}; prepare it anew with --template {template.name}")


def is_prepared(folder: Path) -> bool:
    """Does meta.json say that this is a folder of questions?"""
    path = folder / "meta.json"
    return path.is_file() and read_json(path, "data folder").get("kind") == "questions"
