"""Raw token files that others have made -> a data folder. They stay as they are: only meta.json and the tokenizer are
written beside them.

    python -m data.prepare ready LIST --val eval/part-0-00000.npy --tokenizer cl100k_base --out data/dolmino

DIR, the --out folder, holds the files: ids one behind the other, little-endian, 4 bytes each (2 for vocabularies of up
to 65,536), without a header, an end-of-text between documents. LIST names one on a line, by its path below DIR or by
the address from which `wget -x -nH` put it there. Dashes and quotes around it do not count, so a training configuration
that lists its files will do; its comments `#SOURCE: PLACE (3.09BT)` say how many tokens the files below them have, and
that is checked. Each file is a part of the mix by its size; in the mix math-heavy those with math or gsm in their path
have twice their share.
"""

import argparse
import re
from pathlib import Path
from urllib.parse import urlparse

import numpy as np

from common import UserError
from data.files import read_text
from data.tokenizer import load_tokenizer
from data.tokens import DTYPES, dtype_of, load_meta, write_meta

MAGIC = {b"\x93NUMPY": "a NumPy header", b"\x28\xb5\x2f\xfd": "zstd's mark", b"\x1f\x8b": "gzip's mark"}
MENDS = {"a NumPy header": "write np.load(FILE).tofile(NEW)", "zstd's mark": "unpack it", "gzip's mark": "unpack it"}
FILE = re.compile(r"^[\s\-\"']*([^#\s\"']+\.(?:npy|bin))[\s\"',]*$")
SOURCE = re.compile(r"^\s*#\s*SOURCE:.*\(([\d.]+)([MB])T\)")
LOOK = 4096  # ids at the beginning and the end of a file that are looked at


def read_list(path: Path) -> list[tuple[str, list[str]]]:
    """[(tokens that they have together, as told, or "", files)] of the groups in LIST, by their paths below DIR."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    for line in read_text(path).splitlines():
        if told := SOURCE.match(line):
            groups.append(("".join(told.groups()), []))
        elif found := FILE.match(line):
            groups[-1][1].append(urlparse(found[1]).path.lstrip("/"))
    names = [name for _, group in groups for name in group]
    if not names:
        raise UserError(f"{path}: names no .npy or .bin file; give one on a line")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: names {twice} twice; take one out, or its tokens count twice")
    return [group for group in groups if group[1]]


def count_tokens(path: Path, dtype: str, n_vocab: int) -> int:
    """Tokens of a raw file. UserError for what is no such file, or of another vocabulary."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; fetch it, or give the --out folder that holds it")
    size, width = path.stat().st_size, DTYPES[dtype].itemsize
    with open(path, "rb") as file:
        head = file.read(8)
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            raise UserError(f"{path}: begins with {what}, and raw ids are needed; {MENDS[what]}")
    if size % width or not size:
        raise UserError(f"{path}: {size} bytes are no ids of {dtype}, {width} bytes each; fetch it again")
    ids = np.memmap(path, dtype=DTYPES[dtype], mode="r")
    if (most := max(ids[:LOOK].max(), ids[-LOOK:].max())) >= n_vocab:
        raise UserError(f"{path}: holds id {most}, and --tokenizer has {n_vocab}; give the one it was made with")
    return len(ids)


def check_sum(told: str, names: list[str], tokens: dict[str, int]) -> None:
    """UserError unless files have the tokens that LIST tells (191.58M, 3.09B), as far as it tells them."""
    unit, found = {"M": 1e6, "B": 1e9}[told[-1]], sum(tokens[name] for name in names)
    if abs(found - float(told[:-1]) * unit) > 0.006 * unit:  # told to two digits
        what = f"{len(names)} files from {names[0]} on have {found / unit:.2f}{told[-1]} tokens"
        raise UserError(f"{what}, and the list says {told}; fetch those again whose size is wrong")


def prepare(groups: list[tuple[str, list[str]]], val: str, out: Path, enc, block_size: int) -> dict:
    """Write meta.json and the tokenizer to `out`. Returns meta.json."""
    dtype, tokens = dtype_of(enc), {}
    for name in [*(name for _, names in groups for name in names), val]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{name}: leads out of {out}; give a path below it")
        tokens[name] = count_tokens(out / name, dtype, enc.n_vocab)
    for told, names in groups:
        if told:
            check_sum(told, names, tokens)
    total = sum(tokens.values()) - tokens[val]
    base = {name: count / total for name, count in tokens.items() if name != val}
    math = {name: share for name, share in base.items() if "math" in name.lower() or "gsm" in name.lower()}
    share = sum(math.values())
    mixes = {"base": base}
    if 0 < share < 1:
        heavy = min(0.9, 2 * share)
        factor = {True: heavy / share, False: (1 - heavy) / (1 - share)}
        mixes["math-heavy"] = {name: weight * factor[name in math] for name, weight in base.items()}
    files = {name: {"dtype": dtype, "tokens": count} for name, count in tokens.items()}
    meta = {"kind": "text", "files": files, "mixes": mixes, "val": val, "val_math": 0, "block_size": block_size}
    write_meta(out, enc, meta | {"seed": 0, "guess_floor": {}})
    return load_meta(out)


# ---------------------------------------------------------------- command line
def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("list", type=Path, metavar="LIST", help="text that names the files, for instance a training configuration")
    add("--val", required=True, metavar="FILE", help="held-out text: another such file, by its path below DIR")
    add("--tokenizer", default="cl100k_base", help="the files' own: world, gpt2, cl100k_base or a file")
    add("--block-size", type=int, default=4096, help="training window in tokens (default 4096)")
    add("--out", required=True, type=Path, metavar="DIR", help="the folder that holds the files")


def main(args: argparse.Namespace) -> None:
    if args.block_size < 1:
        raise UserError(f"--block-size {args.block_size}: must be at least 1")
    groups = read_list(args.list)
    if any(args.val in names for _, names in groups):
        raise UserError(f"--val {args.val} is also in {args.list}; hold out another file, or take it out there")
    meta = prepare(groups, args.val, args.out, load_tokenizer(args.tokenizer), args.block_size)
    total = sum(entry["tokens"] for entry in meta["files"].values())
    print(f"{args.out}: {len(meta['files'])} files, {total:,} tokens, mixes {' '.join(meta['mixes'])}")
