"""Token files: weighted mixtures read from disk with an exact position, and the command that prepares them from text.

A data folder holds, at least:
    meta.json            {"format": 1, "kind": "world" | "text", "tokenizer": {"name", "file", "hash", "n_vocab"},
                          "files": {"general.bin": {"dtype": "uint16", "tokens": N}, ...}, "val": "val.bin",
                          "mixes": {"base": {"general.bin": 0.8, "math.bin": 0.2}, ...}, "block_size": T, "seed": 0}
    tokenizer.tiktoken   the ranks
    *.bin                little-endian uint16 (uint32 above 65,536 tokens); every document starts with end-of-text
Token files are memory-mapped: no copy of the corpus is held.

    python -m data.tokens notes.txt web.jsonl.gz --tokenizer gpt2 --out data/mine
    python -m data.tokens $REAL_DATA/general/* --math $REAL_DATA/gsm8k/train.jsonl --tokenizer gpt2 --out data/real
"""

import argparse
import hashlib
import io
import json
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tiktoken
import torch

from common import UserError, run
from data.files import counted, field, inside, leave_out, open_bytes, read_json, read_rows, suffix, write_json
from data.math_qa import format_prompt, format_target, template_for
from data.questions import load_questions
from data.tokenizer import load_tokenizer, save_ranks, tokenizer_id

FORMAT = 1
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
PIECE = 16_384  # characters of a plain text file that make one document


# ---------------------------------------------------------------- reading a data folder
def load_meta(folder: str | os.PathLike) -> dict:
    """meta.json of a data folder, checked: format, keys and their kinds, that mixes are of token files of the folder,
    and that every token file is there and whole."""
    path = Path(folder) / "meta.json"
    mend = "make it with `python -m data.world` or `python -m data.tokens`"
    meta = read_json(path, "data folder", mend=mend)
    if meta.get("format") != FORMAT:
        raise UserError(f"{path}: format {meta.get('format')!r:.60}, but this code reads format {FORMAT}; {mend}")
    ident = field(meta, "tokenizer", dict, path)
    for key, kind in (("name", str), ("file", str), ("hash", str), ("n_vocab", int)):
        field(ident, key, kind, path)
    for key, kind in (("kind", str), ("val", str), ("block_size", int)):
        field(meta, key, kind, path)
    for name in field(meta, "files", dict, path):
        _open_tokens(Path(folder), meta, name)
    mixes = field(meta, "mixes", dict, path)
    for name in mixes:
        for file in field(mixes, name, dict, path):
            field(mixes[name], file, float, path)
    unknown = {meta["val"], *(file for mix in mixes.values() for file in mix)} - meta["files"].keys()
    if unknown:
        raise UserError(f"{path}: {min(unknown)!r:.60} is none of its files {', '.join(meta['files'])}; {mend}")
    return meta


def _open_tokens(folder: Path, meta: dict, name: str) -> np.ndarray:
    """Memory map of one token file, (tokens,) of its dtype."""
    where = folder / "meta.json"
    if name not in meta["files"]:
        raise UserError(f"{where}: no token file {name!r}; it has {', '.join(meta['files'])}")
    info, path = field(meta["files"], name, dict, where), inside(folder, name, where)
    dtype, tokens = DTYPES.get(field(info, "dtype", str, where)), field(info, "tokens", int, where)
    if dtype is None:
        raise UserError(f"{path}: dtype {info['dtype']!r:.60}, but token files are uint16 or uint32; prepare it again")
    size, needed = (path.stat().st_size if path.is_file() else -1), tokens * dtype.itemsize
    if size != needed or tokens < 1:
        raise UserError(
            f"{path}: {'missing' if size < 0 else f'{size} bytes'}, but meta.json names {tokens} tokens "
            f"({needed} bytes, more than 0); prepare the folder again"
        )
    return np.memmap(path, dtype=dtype, mode="r")


def _check_ids(ids: np.ndarray, meta: dict, names: str) -> None:
    if ids.max() >= meta["tokenizer"]["n_vocab"]:
        what = f"but the vocabulary has {meta['tokenizer']['n_vocab']}"
        raise UserError(f"token id {ids.max()} in {names}, {what}; prepare it again")


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little")


class TokenMix:
    """Training batches from a weighted mixture of token files.

    `batch(step)` is a pure function of (seed, step), so the position is the step and resume is exact. Row r = step *
    batch_rows + b takes its file from a golden-ratio sequence over the weights (any stretch of rows has each file's
    share to within a few rows). Within a file the rows walk its blocks of `block_size` in an order drawn anew for each
    epoch, from a start drawn anew, the stream taken as a ring: no block repeats before all were seen, and block
    borders differ between epochs.

    mix: {file: weight} or the name of a mix in meta.json. UserError for an unknown file or mix, bad weights, a file
    shorter than a block, a damaged file.
    """

    def __init__(
        self, folder: str | os.PathLike, mix: dict[str, float] | str, block_size: int, batch_rows: int, seed: int = 0
    ):
        self.meta = load_meta(folder)
        if isinstance(mix, str):
            if mix not in self.meta["mixes"]:
                raise UserError(f"--mix {mix}: {folder} has the mixes {', '.join(self.meta['mixes'])}; choose one")
            mix = self.meta["mixes"][mix]
        weights = np.array([mix[name] for name in mix], dtype=np.float64)
        if not len(weights) or not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
            raise UserError(f"mix {mix}: weights must be numbers of 0 or more with a sum above 0")
        if block_size < 1 or batch_rows < 1:
            raise UserError(f"block size {block_size}, {batch_rows} rows a batch: both must be at least 1")
        self.names = [name for name in mix if mix[name] > 0]
        self.streams = [_open_tokens(Path(folder), self.meta, name) for name in self.names]
        for name, stream in zip(self.names, self.streams, strict=True):
            if len(stream) < block_size + 1:
                raise UserError(
                    f"{Path(folder) / name}: {len(stream)} tokens, fewer than a row of {block_size} + 1; "
                    "lower the block size or prepare more text"
                )
        self.mix, self.block_size, self.batch_rows, self.seed = dict(mix), block_size, batch_rows, seed
        self._bounds = np.cumsum(weights[weights > 0] / weights.sum())[:-1]
        self._offset = np.uint64(_hash64(f"{seed}"))
        self._orders: dict[tuple[int, int], tuple[int, np.ndarray]] = {}
        self._rows, self._taken = 0, np.zeros(len(self.names), dtype=np.int64)  # rows before self._rows, by file

    def fingerprint(self) -> str:
        """sha256 of 64 stretches of each file, 64 tokens long: tells another text of equal length at any size, but not
        an edit between them."""
        digest = hashlib.sha256()
        for stream in self.streams:
            for start in np.linspace(0, max(0, len(stream) - 64), 64).astype(int):
                digest.update(stream[start : start + 64].tobytes())
        return digest.hexdigest()

    def _files(self, start: int, stop: int) -> np.ndarray:
        """File number of rows start..stop-1."""
        rows = np.arange(start, stop, dtype=np.uint64)
        ring = rows * np.uint64(0x9E3779B97F4A7C15) + self._offset  # multiples of the golden ratio, modulo 1
        return np.searchsorted(self._bounds, (ring >> np.uint64(11)) * 2.0**-53, side="right")

    def _order(self, file: int, epoch: int) -> tuple[int, np.ndarray]:
        """(start in the ring, order of the blocks) of one epoch of a file."""
        if (file, epoch) not in self._orders:
            self._orders.pop((file, epoch - 2), None)  # at most two epochs of a file are alive in one batch sequence
            rng = np.random.default_rng(_hash64(f"{self.seed}:{self.names[file]}:{epoch}"))
            n = len(self.streams[file])
            self._orders[file, epoch] = int(rng.integers(n)), rng.permutation(n // self.block_size)
        return self._orders[file, epoch]

    def batch(self, step: int) -> torch.Tensor:
        """Rows of batch `step`: (batch_rows, block_size + 1) int64; inputs are [:, :-1], targets [:, 1:]."""
        first = step * self.batch_rows
        if first < self._rows:
            self._rows, self._taken = 0, np.zeros_like(self._taken)
        while self._rows < first:  # only after a jump: count the rows passed over, a million at a time
            stop = min(first, self._rows + 1_000_000)
            self._taken += np.bincount(self._files(self._rows, stop), minlength=len(self.names))
            self._rows = stop
        out = np.empty((self.batch_rows, self.block_size + 1), dtype=np.int64)
        for row, file in enumerate(self._files(first, first + self.batch_rows)):
            stream = self.streams[file]
            epoch, block = divmod(int(self._taken[file]), len(stream) // self.block_size)
            start, order = self._order(file, epoch)
            begin = (start + int(order[block]) * self.block_size) % len(stream)
            head = stream[begin : begin + self.block_size + 1]
            out[row, : len(head)] = head
            out[row, len(head) :] = stream[: self.block_size + 1 - len(head)]  # the ring closes
            self._taken[file] += 1
        self._rows += self.batch_rows
        _check_ids(out, self.meta, ", ".join(self.names))
        return torch.from_numpy(out)


def document_starts(idx: torch.Tensor, eot: int) -> torch.Tensor:
    """idx (B, T) -> (B, T) int32: where the document of each token starts, the last end-of-text at or before it. What
    the window cut off at its left edge starts at 0."""
    here = torch.arange(idx.shape[1], device=idx.device, dtype=torch.int32)
    return torch.where(idx == eot, here, 0).cummax(dim=1).values.int()


def val_batches(
    folder: str | os.PathLike, block_size: int, batch_rows: int, max_tokens: int | None = None
) -> Iterator[torch.Tensor]:
    """Held-out text, the same every time: (rows, block_size + 1) int64, the last batch with fewer rows. max_tokens
    bounds the targets (at least one row; None or 0 = all) by taking rows evenly spaced over the file, whose kinds of
    text lie one behind the other. An incomplete last row is left out."""
    folder = Path(folder)
    meta = load_meta(folder)
    stream = _open_tokens(folder, meta, meta["val"])
    n_rows = (len(stream) - 1) // block_size
    if n_rows < 1:
        raise UserError(
            f"{folder / meta['val']}: {len(stream)} tokens, fewer than a row of {block_size} + 1; "
            "lower the block size or prepare more text"
        )
    wanted = min(n_rows, max(1, max_tokens // block_size)) if max_tokens else n_rows
    starts = [i * n_rows // wanted * block_size for i in range(wanted)]
    for begin in starts:  # all now, not in the middle of a run
        _check_ids(stream[begin : begin + block_size + 1], meta, str(folder / meta["val"]))
    return (
        torch.from_numpy(
            np.stack([stream[s : s + block_size + 1] for s in starts[i : i + batch_rows]]).astype(np.int64)
        )
        for i in range(0, wanted, batch_rows)
    )


def general_text(folder: str | os.PathLike, block_size: int, max_tokens: int) -> torch.Tensor:
    """The held-out text without its mathematics, which comes last in val.bin: (rows, block_size + 1)."""
    meta, rows = load_meta(folder), torch.cat(list(val_batches(folder, block_size, 4, max_tokens)))
    share = {"general.bin": 1.0} | meta["mixes"].get("base", {})  # a world's text is held out in its proportions,
    if meta["kind"] == "text":  # a prepared folder's in those of the files
        share = {name: meta["files"][name]["tokens"] for name in ("general.bin", "math.bin") if name in meta["files"]}
    general = share.get("general.bin", 1.0) / (sum(share.values()) or 1.0)
    return rows[: max(1, round(general * len(rows)))]


# ---------------------------------------------------------------- writing a data folder
class TokenWriter:
    """Appends documents to a token file, end-of-text first. `close()` gives the file's entry in meta.json."""

    def __init__(self, path: str | os.PathLike, enc: tiktoken.Encoding):
        self.enc, self.tokens = enc, 0
        self.dtype = "uint16" if enc.n_vocab <= 65536 else "uint32"
        self._file = open(path, "wb")

    def add(self, text: str) -> None:
        ids = np.array([self.enc.eot_token, *self.enc.encode_ordinary(text)], dtype=DTYPES[self.dtype])
        self._file.write(ids.tobytes())
        self.tokens += len(ids)

    def close(self) -> dict:
        self._file.close()
        return {"dtype": self.dtype, "tokens": self.tokens}


def write_meta(folder: str | os.PathLike, enc: tiktoken.Encoding, meta: dict) -> None:
    """Write tokenizer.tiktoken, then meta.json (`meta` + format + tokenizer): a folder that has it is whole."""
    folder = Path(folder)
    save_ranks(enc._mergeable_ranks, folder / "tokenizer.tiktoken")
    meta = {"format": FORMAT, "tokenizer": tokenizer_id(enc) | {"file": "tokenizer.tiktoken"}, **meta}
    write_json(folder / "meta.json", meta)


def read_documents(path: str | os.PathLike) -> Iterator[str]:
    """Documents of a .jsonl or .json file (Dolma form, one {"text"} a line, or an array of them) or of a .txt or .md
    file in UTF-8, which is cut at line ends, and within longer lines, into pieces of about 16,000 characters, so that
    some can be held out. Each may be gzipped. Odd rows are left out, if they are few."""
    if suffix(path) in (".jsonl", ".json"):
        rows, without, odd = 0, 0, []
        for where, row in read_rows(path, odd):
            rows += 1
            if not isinstance(row.get("text"), str):
                odd.append(f'{where}: needs a "text" string, has keys {sorted(row)!r:.80}; mend that row')
                without += 1
            elif row["text"].strip():
                yield row["text"]
        leave_out(odd, rows + len(odd) - without)
        return
    if suffix(path) not in (".txt", ".md"):
        raise UserError(f"{path}: unknown kind of file; give .txt, .md, .jsonl or .json, each also with .gz")
    piece, size = [], 0
    try:
        with open_bytes(path) as file:
            for line in io.TextIOWrapper(file, encoding="utf-8"):
                for start in range(0, len(line), PIECE):
                    piece.append(line[start : start + PIECE])
                    size += len(piece[-1])
                    if size >= PIECE:
                        yield "".join(piece)
                        piece, size = [], 0
        if "".join(piece).strip():
            yield "".join(piece)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; convert the file") from None


def read_worksheets(path: str | os.PathLike, enc: tiktoken.Encoding, max_tokens: int, seed: int) -> Iterator[str]:
    """Documents of 1 to 10 worked problems from a question file, joined exactly as few-shot prompts are and at most
    max_tokens long (a single longer problem stays whole). Only the train part: held-out validation questions
    (data.questions) do not enter pre-training."""
    first = next((row for _, row in read_rows(path)), {})
    kinds = {"question": "gsm8k", "expected_answer": "openmath", "solution": "math"}
    task = next((kinds[key] for key in kinds if key in first), None)
    if task is None:
        raise UserError(f"{path}: not a question file (GSM8K, MATH or OpenMathInstruct-2 rows); see data/questions.py")
    template, rng = template_for(task), random.Random(seed)
    sheet, used, wanted = "", 0, rng.randint(1, 10)
    questions = [question for question in load_questions(path, task, "train") if question.solutions]
    if not questions:
        raise UserError(f"{path}: answers without solutions, which make no worksheets; give a file with solutions")
    for question in questions:
        worked = format_prompt(question, template) + format_target(question, question.solutions[0], template)
        worked += template.shot_separator
        size = len(enc.encode_ordinary(worked))
        if sheet and (wanted == 0 or used + size > max_tokens):
            yield sheet
            sheet, used, wanted = "", 0, rng.randint(1, 10)
        sheet, used, wanted = sheet + worked, used + size, wanted - 1
    yield sheet


def prepare(
    files: Iterable[str | os.PathLike],
    out: str | os.PathLike,
    enc: tiktoken.Encoding,
    *,
    math: Iterable[str | os.PathLike] = (),
    math_weight: float = 0.2,
    val_fraction: float = 0.02,
    block_size: int = 1024,
    seed: int = 0,
) -> dict:
    """Tokenize `files` to general.bin and the questions of `math` to math.bin, but a share of the documents, chosen by
    hash, to val.bin. Mixes: base (math_weight of the tokens are math), math-heavy (twice that). Returns meta.json."""
    out, files, math = Path(out), list(files), list(math)
    for path in [*files, *math]:  # before what is there is touched
        with open_bytes(path):
            pass
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "meta.json").unlink(missing_ok=True)  # no longer whole
        sources = {"general.bin": (doc for path in files for doc in read_documents(path))}
        if math:
            sources["math.bin"] = (d for path in math for d in read_worksheets(path, enc, block_size, seed))
        val = TokenWriter(out / "val.bin", enc)
        entries = {}
        for name, documents in sources.items():
            writer = TokenWriter(out / name, enc)
            for text in counted(documents, f"tokenizing {name}: documents"):
                held_out = _hash64(f"{seed}:{text}") < val_fraction * 2**64
                (val if held_out else writer).add(text)
            entries[name] = writer.close()
        entries["val.bin"] = val.close()
        for name, entry in entries.items():
            if entry["tokens"] < block_size + 1:
                raise UserError(
                    f"{out / name}: {entry['tokens']} tokens, fewer than a row of {block_size} + 1; "
                    "give more text, a larger --val-fraction or a smaller --block-size"
                )
        shares = {"base": math_weight, "math-heavy": min(0.9, 2 * math_weight)} if math else {"base": 0.0}
        mixes = {k: {"general.bin": 1 - w} | ({"math.bin": w} if math else {}) for k, w in shares.items()}
        meta = {"kind": "text", "files": entries, "mixes": mixes, "val": "val.bin", "block_size": block_size}
        write_meta(out, enc, meta | {"seed": seed, "guess_floor": {}})
    except OSError as error:
        raise UserError(f"--out {out}: cannot write ({error.strerror}); give a writable folder with space") from None
    return load_meta(out)


# ---------------------------------------------------------------- command line
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.tokens", description="Prepare a data folder from text.")
    parser.add_argument("files", nargs="+", help=".txt, .md, .jsonl ({text} a line, the Dolma form), also .gz")
    parser.add_argument("--math", nargs="+", default=[], metavar="FILE", help="question files, made into worksheets")
    parser.add_argument("--math-weight", type=float, default=0.2, help="share of math in the mix `base` (default 0.2)")
    parser.add_argument("--tokenizer", default="gpt2", help="world, gpt2, cl100k_base or a file (default gpt2)")
    parser.add_argument("--val-fraction", type=float, default=0.02, help="share of documents held out (default 0.02)")
    parser.add_argument("--block-size", type=int, default=1024, help="training window in tokens; bounds worksheets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, metavar="DIR")
    args = parser.parse_args()
    if not 0 < args.val_fraction < 1 or not 0 < args.math_weight < 1:
        parser.error(
            f"--val-fraction {args.val_fraction}, --math-weight {args.math_weight}: both must lie between 0 and 1"
        )
    if args.block_size < 1:
        parser.error(f"--block-size {args.block_size}: must be at least 1")

    enc = load_tokenizer(args.tokenizer)
    meta = prepare(
        args.files,
        args.out,
        enc,
        math=args.math,
        math_weight=args.math_weight,
        val_fraction=args.val_fraction,
        block_size=args.block_size,
        seed=args.seed,
    )
    for name, entry in meta["files"].items():
        print(f"{args.out}/{name}: {entry['tokens']:,} tokens, {entry['dtype']}")
    print(f"mixes {json.dumps(meta['mixes'])}, tokenizer {enc.name} ({enc.n_vocab:,} tokens)")


if __name__ == "__main__":
    run(main)
