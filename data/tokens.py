"""Token files: weighted mixtures read from disk with an exact position. data/prepare_corpus.py makes them of text.

A data folder holds, at least:
    meta.json            {"format": 1, "kind": "world" | "text", "tokenizer": {"name", "file", "hash", "n_vocab"},
                          "files": {"general.bin": {"dtype": "uint16", "tokens": N}, ...}, "val": "val.bin",
                          "mixes": {"base": {"general.bin": 0.8, "math.bin": 0.2}, ...}, "block_size": T, "seed": 0}
    tokenizer.tiktoken   the ranks
    *.bin                little-endian uint16 (uint32 above 65,536 tokens); every document starts with end-of-text. Raw
                         files of others (data/prepare_ready.py) may lie in folders below, under any name
Token files are memory-mapped: no copy of the corpus is held.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tiktoken
import torch

from common import UserError, run
from data.files import field, inside, read_json, write_json
from data.tokenizer import save_ranks, tokenizer_id

FORMAT = 1
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


# ---------------------------------------------------------------- reading a data folder
def load_meta(folder: str | os.PathLike) -> dict:
    """meta.json of a data folder, checked: format, keys and their kinds, that mixes are of token files of the folder,
    and that every token file is there and whole."""
    path = Path(folder) / "meta.json"
    mend = "make it with `python -m data.world` or `python -m data.prepare corpus`"
    meta = read_json(path, "data folder", mend=mend)
    if meta.get("kind") == "questions":
        raise UserError(
            f"{path}: a folder of questions, without text; give one made by `python -m data.prepare corpus`"
        )
    if meta.get("format") != FORMAT:
        raise UserError(f"{path}: format {meta.get('format')!r:.60}, but this code reads format {FORMAT}; {mend}")
    ident = field(meta, "tokenizer", dict, path)
    for key, kind in (("name", str), ("file", str), ("hash", str), ("n_vocab", int)):
        field(ident, key, kind, path)
    for key, kind in (("kind", str), ("val", str), ("block_size", int)):
        field(meta, key, kind, path)
    for name in field(meta, "files", dict, path):
        open_tokens(Path(folder), meta, name)
    mixes = field(meta, "mixes", dict, path)
    for name in mixes:
        for file in field(mixes, name, dict, path):
            field(mixes[name], file, float, path)
    unknown = {meta["val"], *(file for mix in mixes.values() for file in mix)} - meta["files"].keys()
    if unknown:
        raise UserError(f"{path}: {min(unknown)!r:.60} is none of its files {', '.join(meta['files'])}; {mend}")
    return meta


def open_tokens(folder: Path, meta: dict, name: str) -> np.ndarray:
    """Memory map of one token file, (tokens,) of its dtype."""
    where = folder / "meta.json"
    if name not in meta["files"]:
        raise UserError(f"{where}: no token file {name!r}; it has {', '.join(meta['files'])}")
    info, path = field(meta["files"], name, dict, where), inside(folder, name, where, below=True)
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


def hash64(text: str) -> int:
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
        self.streams = [open_tokens(Path(folder), self.meta, name) for name in self.names]
        for name, stream in zip(self.names, self.streams, strict=True):
            if len(stream) < block_size + 1:
                raise UserError(
                    f"{Path(folder) / name}: {len(stream)} tokens, fewer than a row of {block_size} + 1; "
                    "lower the block size or prepare more text"
                )
        self.mix, self.block_size, self.batch_rows, self.seed = dict(mix), block_size, batch_rows, seed
        self._bounds = np.cumsum(weights[weights > 0] / weights.sum())[:-1]
        self._offset = np.uint64(hash64(f"{seed}"))
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
            rng = np.random.default_rng(hash64(f"{self.seed}:{self.names[file]}:{epoch}"))
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
    stream = open_tokens(folder, meta, meta["val"])
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
    share = {"general.bin": 1.0} | meta["mixes"].get("base", {})  # a world's text is held out in its proportions
    general = share["general.bin"] / (sum(share.values()) or 1.0)
    if meta["kind"] == "text":  # in a prepared folder it is counted
        general = 1 - meta.get("val_math", 0) / meta["files"][meta["val"]]["tokens"]
    return rows[: max(1, round(general * len(rows)))]


# ---------------------------------------------------------------- writing a data folder
def dtype_of(enc: tiktoken.Encoding) -> str:
    return "uint16" if enc.n_vocab <= 65536 else "uint32"


class TokenWriter:
    """Appends documents to a token file, end-of-text first. `close()` gives the file's entry in meta.json."""

    def __init__(self, path: str | os.PathLike, enc: tiktoken.Encoding):
        self.enc, self.tokens = enc, 0
        self.dtype = dtype_of(enc)
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


def main() -> None:
    """`python -m data.tokens ..` is `python -m data.prepare corpus ..`; with --ready LIST, `ready LIST ..`."""
    from data import prepare  # which imports this

    command = "ready" if "--ready" in sys.argv else "corpus"
    sys.argv[1:] = [command, *(word for word in sys.argv[1:] if word != "--ready")]
    prepare.main()


if __name__ == "__main__":
    run(main)
