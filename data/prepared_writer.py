"""Writes the folder that data/prepared.py reads: columns that grow, then what puts them in order."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.files import UserError, replacing, write_json
from data.prepared import AT, DTYPES, TEXTS, TOKENS, Column, mapped

Packed = tuple[np.ndarray, bytes]  # rows one behind the other: how many values each has, and their bytes


def pack(rows: list[bytes]) -> Packed:
    return np.fromiter(map(len, rows), AT, len(rows)), b"".join(rows)


class Writer:
    """The growing columns of a folder. `sizes`: of each column, how many rows and values are whole; what lies behind
    them, of a process that was killed, is cut off."""

    def __init__(self, out: Path, dtype: str, sizes: dict):
        self.out, self.files = out, {}
        self.dtypes = dict.fromkeys(TEXTS, "text") | dict.fromkeys(TOKENS, dtype)
        self.sizes = {name: list(sizes.get(name, (0, 0))) for name in self.dtypes}
        for name, (rows, size) in self.sizes.items():
            self.open(f"{name}.data", size * DTYPES[self.dtypes[name]].itemsize)
            self.open(f"{name}.at", (rows + 1) * AT.itemsize if rows else 0)
            if not rows:
                self.files[f"{name}.at"].write(bytes(AT.itemsize))
        self.open("owner.tmp", 4 * self.sizes["solution"][0])  # of each solution: its question,
        self.open("digest.tmp", 8 * self.sizes["solution"][0])  # and 8 bytes that tell its text

    def open(self, name: str, size: int) -> None:
        path = self.out / name
        path.touch()
        file = self.files[name] = open(path, "r+b")
        if os.fstat(file.fileno()).st_size < size:
            raise UserError(f"{path} is shorter than progress.json says; delete {self.out} and prepare it anew")
        file.truncate(size)
        file.seek(size)

    def add(self, name: str, packed: Packed) -> None:
        lengths, data = packed
        rows, size = self.sizes[name]
        at = size + np.cumsum(lengths, dtype=AT)
        self.files[f"{name}.data"].write(data)
        self.files[f"{name}.at"].write(at.tobytes())
        self.sizes[name] = [rows + len(at), int(at[-1]) if len(at) else size]

    def add_questions(self, rows: list[tuple[str, str, str]], prompts: Packed) -> None:
        """rows: (problem, answer, source)."""
        for column, name in enumerate(("problem", "answer", "source")):
            self.add(name, pack([row[column].encode() for row in rows]))
        self.add("prompt", prompts)

    def add_solutions(self, rows: list[tuple[int, str]], targets: Packed) -> None:
        """rows: (number of the question, solution)."""
        texts = [text.encode() for _, text in rows]
        self.add("solution", pack(texts))
        self.add("target", targets)
        self.files["owner.tmp"].write(np.array([owner for owner, _ in rows], "<u4").tobytes())
        self.files["digest.tmp"].write(b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts))

    def sync(self) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in self.files.values():
            with contextlib.suppress(OSError):  # a full disk, which has been told
                file.close()

    def column(self, name: str) -> Column:
        return Column(self.out, name, self.dtypes[name], *self.sizes[name])

    def questions(self) -> Iterator[tuple[bytes, str]]:
        """(problem, answer) of each question so far."""
        problem, answer = self.column("problem"), self.column("answer")
        for row in range(len(problem)):
            yield problem.row(row).tobytes(), answer.text(row)

    def tokens(self) -> int:
        return sum(self.sizes[name][1] for name in TOKENS)


def finish(writer: Writer, settings: dict, counts: dict) -> dict:
    """Sort solutions by question, choose the splits, write meta.json: the folder is whole. Returns meta.json."""
    out, filters = writer.out, settings["filters"]
    at, data = sort_solutions(writer, filters["max_solution_tokens"])
    write_array(out / "solutions.at", at)
    write_array(out / "solutions.data", data)
    prompts = writer.column("prompt")
    fits = prompts.lengths(np.arange(len(prompts))) <= filters["max_prompt_tokens"]
    held = held_out(writer.column("source"), filters["held_out"], filters["seed"])
    train = np.ones(len(fits), bool)
    train[held] = False
    splits = {"train": np.flatnonzero(train & fits), "val": held[fits[held]]}
    for name, rows in splits.items():
        write_array(out / f"{name}.rows", rows.astype("<u4"))
    columns = {name: {"rows": r, "size": n, "dtype": writer.dtypes[name]} for name, (r, n) in writer.sizes.items()}
    columns["solutions"] = {"rows": len(at) - 1, "size": len(data), "dtype": "uint32"}
    counts = counts | {"questions": len(fits), "questions too long": int((~fits).sum()), "solutions": len(data)}
    counts["solutions that repeat or are too long"] = writer.sizes["solution"][0] - len(data)
    made = [file["sha256"] for file in settings["inputs"]], {k: v for k, v in settings.items() if k != "inputs"}
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    splits = {name: len(rows) for name, rows in splits.items()}
    meta = settings | {"counts": counts, "splits": splits, "columns": columns, "hash": digest}
    write_json(out / "meta.json", meta)
    for name in ("progress.json", "owner.tmp", "digest.tmp"):
        (out / name).unlink(missing_ok=True)
    return meta


def sort_solutions(writer: Writer, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Column `solutions` (at, data): of each question its solutions in the order of the files, each text once, of at
    most `longest` tokens with end-of-text."""
    targets = writer.column("target")
    owner = mapped(writer.out / "owner.tmp", np.dtype("<u4"), len(targets))
    digest = mapped(writer.out / "digest.tmp", np.dtype("<u8"), len(targets))
    kept = targets.lengths(np.arange(len(targets))) < longest
    order = np.lexsort((digest, owner))  # equal ones stay in the order of the files
    a, b = order[:-1], order[1:]
    kept[b[(owner[a] == owner[b]) & (digest[a] == digest[b])]] = False
    order = np.argsort(owner, kind="stable").astype("<u4")
    counts = np.bincount(owner[kept], minlength=writer.sizes["problem"][0])
    return np.concatenate([[0], np.cumsum(counts)]).astype(AT), order[kept[order]]


def held_out(sources: Column, most: int, seed: int) -> np.ndarray:
    """Numbers of the validation questions: see data/prepare_questions.py."""
    kinds = np.array([sources.text(row).removeprefix("augmented_") for row in range(len(sources))])
    held = [np.empty(0, np.int64)]
    for kind in dict.fromkeys(kinds.tolist()):
        of_kind = np.flatnonzero(kinds == kind)
        order = np.random.default_rng(seed).permutation(len(of_kind))
        held.append(of_kind[order[: min(most, len(of_kind) // 10)]])
    return np.concatenate(held)


def write_array(path: Path, values: np.ndarray) -> None:
    with replacing(path) as file:
        file.write(values.tobytes())
