"""Text -> token files: named parts, mixed by weight, which train_pretrain.py reads.

    python -m data.prepare corpus notes.txt web.jsonl.gz --tokenizer gpt2 --out data/mine
    python -m data.prepare corpus $REAL_DATA/general --math $REAL_DATA/gsm8k/train.jsonl --out data/real
    python -m data.prepare corpus --part dclm FOLDER --part flan FOLDER --part math FOLDER FILE --out data/mix

DIR gets PART.bin of each part, val.bin (a share of the documents of every part, chosen by hash; mathematics last),
tokenizer.tiktoken, meta.json with the mixes, and manifest.jsonl: settings and sources in its first line, then a line
for each source that is done. A preparation that was killed goes on with the same command, source by source. What is
written does not depend on --workers.
"""

import argparse
import json
import math
import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import tiktoken

from common import UserError, clear_temporaries, lock, writable_dir
from data.documents import check_kind, question_task, read_documents, read_worksheets
from data.files import counted, open_bytes, read_jsonl, suffix, to_json
from data.tokenizer import load_tokenizer, tokenizer_id
from data.tokens import DTYPES, TokenWriter, dtype_of, hash64, load_meta, write_meta
from data.workers import begin_worker, start_method

MANIFEST = "manifest.jsonl"
IN_FOLDERS = (".jsonl", ".json", ".parquet", ".txt")  # what is taken of a folder
# The paper's 50B mix (DOLMino): percent, and the parts that have it together, each by its tokens. They sum to 94, and
# are taken in proportion. `general` stands for all that is not mathematics.
MATH = ("math", "worksheets")
SHARES = [
    (60, ("web", "dclm", "flan")),
    (7, ("wiki",)),
    (5, ("papers", "pes2o")),
    (2, ("stackexchange",)),
    (80, ("general",)),
    (20, MATH),
]


def default_mixes(tokens: dict[str, int], math_weight: float | None = None) -> dict[str, dict[str, float]]:
    """{mix: {part: weight}} of parts with so many tokens each. base: the shares above, or with `math_weight` of it
    mathematics; math-heavy, which is ours: twice as much mathematics. Empty where a part has no share."""
    shares = {}
    for share, group in SHARES:
        total = sum(tokens.get(part, 0) for part in group)
        shares |= {part: share * tokens[part] / total for part in group if part in tokens}
    if shares.keys() != tokens.keys():
        return {}
    of_math = sum(share for part, share in shares.items() if part in MATH)
    rest = sum(shares.values()) - of_math
    if not of_math or not rest:
        return {"base": {part: shares[part] / (of_math + rest) for part in tokens}}
    weight = math_weight or of_math / (of_math + rest)

    def mix(weight: float) -> dict[str, float]:
        scale = {True: weight / of_math, False: (1 - weight) / rest}
        return {part: shares[part] * scale[part in MATH] for part in tokens}

    return {"base": mix(weight), "math-heavy": mix(min(0.9, 2 * weight))}


# ---------------------------------------------------------------- one source, in any process
class Work:
    """Tokenizes sources into `out`, each to files of its own."""

    def __init__(self, out: Path, enc: tiktoken.Encoding, settings: dict):
        self.out, self.enc, self.settings = out, enc, settings

    def __call__(self, number: int) -> tuple[dict, list[Path]]:
        """(line of the manifest, files with the tokens to train on and those held out) of source `number`."""
        part, path, _ = self.settings["sources"][number]
        seed, val_fraction = self.settings["seed"], self.settings["val_fraction"]
        shards = [self.out / f".tmp_{os.getpid()}_{number}.{kind}" for kind in ("train", "val")]
        began, documents = time.process_time(), 0
        try:
            if question_task(path):
                texts = read_worksheets(path, self.enc, self.settings["block_size"], seed)
            else:
                texts = read_documents(path)
            train, val = (TokenWriter(shard, self.enc) for shard in shards)
            for text in counted(texts, f"tokenizing {part}.bin: documents"):
                (val if hash64(f"{seed}:{text}") < val_fraction * 2**64 else train).add(text)
                documents += 1
            made = {"source": path, "documents": documents}
            made |= {"tokens": train.close()["tokens"], "val": val.close()["tokens"]}
        except BaseException:
            for shard in shards:
                shard.unlink(missing_ok=True)
            raise
        return made | {"cpu_seconds": round(time.process_time() - began, 2)}, shards


_work: Work  # of a worker process


def _begin(work: Work) -> None:
    global _work
    _work = work
    begin_worker()


def _tokenize(number: int) -> tuple[dict, list[Path]]:
    return _work(number)


@contextmanager
def spread(work: Work, workers: int) -> Iterator[Callable]:
    """A `map` of `work` over numbers, in their order, in so many processes."""
    if workers == 1:
        yield lambda numbers: map(work, numbers)
        return
    pool = ProcessPoolExecutor(workers, start_method(), _begin, (work,))
    try:
        yield lambda numbers: pool.map(_tokenize, numbers)
    except BrokenProcessPool:
        mend = "lower --workers and give the same command, which goes on"
        raise UserError(f"a process ended without a word (was the memory full?); {mend}") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


# ---------------------------------------------------------------- the folder
def find_sources(parts: dict[str, list]) -> list[list]:
    """[part, path, bytes] of every file, mathematics last; UserError if one cannot be read or a folder holds none."""
    sources = []
    for part in sorted(parts, key=lambda part: part in MATH):  # else in the order given
        if not re.fullmatch(r"\w[\w-]*", part) or part == "val":
            raise UserError(f"--part {part}: give a name of letters, digits, _ and -, other than val")
        for given in map(Path, parts[part]):
            files = [given]
            if given.is_dir():
                files = sorted(f for f in given.rglob("*") if suffix(f) in IN_FOLDERS and f.name[0] != ".")
                if not files:
                    raise UserError(f"{given}: no {', '.join(IN_FOLDERS)} files in this folder; check the path")
            for path in files:
                check_kind(path)
                with open_bytes(path):
                    sources.append([part, str(path), os.path.getsize(path)])
    return sources


def finished_lines(out: Path, settings: dict) -> list[dict]:
    """Lines of the sources that are done in `out`; a new folder is begun. UserError where it holds anything else."""
    path = out / MANIFEST
    rows = [row for _, row in read_jsonl(path, dropped=[])] if path.is_file() else []
    if not rows:
        if (out / "meta.json").exists():
            raise UserError(f"--out {out}: holds a data folder that this command did not make; give another --out")
        rows = [settings]
    for name, value in settings.items():
        if rows[0].get(name) != value:
            was, mend = _in_words(rows[0].get(name)), "give the same again, or another --out"
            raise UserError(f"--out {out}: was begun with {name} {was}, not {_in_words(value)}; {mend}")
    text = "".join(to_json(row) + "\n" for row in rows)
    if not path.is_file() or path.stat().st_size != len(text):  # a crash has torn the last line
        path.write_text(text)
    return rows[1:]


def _in_words(value) -> str:
    """A setting in an error: a tokenizer by its name, sources by their number and bytes."""
    if isinstance(value, dict):
        return f"{value['name']} ({value['n_vocab']} tokens, hash {value['hash'][:8]})"
    return f"{len(value)} files of {sum(s[2] for s in value):,} bytes" if isinstance(value, list) else repr(value)


def _append(path: Path, shard: Path, start: int) -> None:
    """Put a shard at byte `start` of a token file. What lies behind that is of a preparation that was killed."""
    with open(path, "ab") as file, open(shard, "rb") as tokens:
        if file.tell() < start:
            raise UserError(
                f"{path}: {file.tell()} bytes, but {MANIFEST} counts {start}; remove the folder, begin anew"
            )
        file.truncate(start)
        shutil.copyfileobj(tokens, file, 1 << 22)
        file.flush()
        os.fsync(file.fileno())
    shard.unlink()


def _tokenize_missing(work: Work, lines: list[dict], workers: int) -> None:
    """Tokenize the sources that have no line, append their tokens in order, and add their lines."""
    sources, size = work.settings["sources"], DTYPES[dtype_of(work.enc)].itemsize
    missing = range(len(lines), len(sources))
    with spread(work, min(workers, max(1, len(missing)))) as mapped:
        for number, (line, shards) in zip(missing, mapped(missing), strict=True):
            part = sources[number][0]
            before = sum(done["tokens"] for done, source in zip(lines, sources, strict=False) if source[0] == part)
            _append(work.out / f"{part}.bin", shards[0], size * before)
            _append(work.out / "val.bin", shards[1], size * sum(done["val"] for done in lines))
            with open(work.out / MANIFEST, "a", encoding="utf-8") as file:
                file.write(to_json(line) + "\n")
            lines.append(line)


def _meta(out: Path, settings: dict, lines: list[dict], dtype: str, own: dict, math_weight: float | None) -> dict:
    """meta.json of a folder whose sources are all done. `own`: mixes beside the default ones."""
    tokens, val, val_math = {part: 0 for part, _, _ in settings["sources"]}, 0, 0
    for (part, _, _), line in zip(settings["sources"], lines, strict=True):
        tokens[part] += line["tokens"]
        val, val_math = val + line["val"], val_math + line["val"] * (part in MATH)
    block_size, counts = settings["block_size"], {**tokens, "val": val}
    for name, count in counts.items():
        if count < block_size + 1:
            mend = "give more text, a larger --val-fraction or a smaller --block-size, and another --out"
            raise UserError(f"{out / name}.bin: {count} tokens, fewer than a row of {block_size} + 1; {mend}")
    mixes = default_mixes(tokens, math_weight) | own
    return {
        "kind": "text",
        "files": {f"{name}.bin": {"dtype": dtype, "tokens": count} for name, count in counts.items()},
        "mixes": {name: {f"{part}.bin": weight for part, weight in mix.items()} for name, mix in mixes.items()},
        "val": "val.bin",
        "val_math": val_math,  # tokens at its end
        "block_size": block_size,
        "seed": settings["seed"],
        "guess_floor": {},
    }


def check_mixes(parts: dict[str, list], own: dict[str, dict[str, float]]) -> None:
    """UserError for a mix that cannot be drawn from."""
    for name, mix in own.items():
        if unknown := mix.keys() - parts.keys():
            raise UserError(f"--mix: {min(unknown)!r} is no part; the parts are {', '.join(parts)}")
        if not sum(mix.values()):
            raise UserError(f"--mix {name}: no part has a weight above 0; give PART=WEIGHT")
    known = {part for _, group in SHARES for part in group}
    if "base" not in own and (others := [part for part in parts if part not in known]):
        raise UserError(f"--part {' '.join(others)}: no share in the paper's mix; give --mix base as well")


def prepare(
    parts: dict[str, list],
    out: str | os.PathLike,
    enc: tiktoken.Encoding,
    *,
    mixes: dict[str, dict[str, float]] | None = None,
    math_weight: float | None = None,
    val_fraction: float = 0.02,
    block_size: int = 1024,
    seed: int = 0,
    workers: int = 1,
) -> dict:
    """Tokenize the files of each part to PART.bin, but a share of the documents to val.bin. `mixes`: name -> part ->
    weight, beside those of `default_mixes`. Returns meta.json."""
    out, ident = Path(out), tokenizer_id(enc)
    settings = {"tokenizer": ident, "val_fraction": val_fraction, "block_size": block_size, "seed": seed}
    settings["sources"] = find_sources(parts)
    check_mixes(parts, mixes or {})
    try:
        out.mkdir(parents=True, exist_ok=True)
        clear_temporaries(out)
        lines = finished_lines(out, settings)
        _tokenize_missing(Work(out, enc, settings), lines, workers)
        write_meta(out, enc, _meta(out, settings, lines, dtype_of(enc), mixes or {}, math_weight))
    except OSError as error:
        mend = "what is done is kept: give a writable folder with space, and the same command goes on"
        raise UserError(f"--out {out}: cannot write ({error.strerror}); {mend}") from None
    finally:
        clear_temporaries(out)
    return load_meta(out)


# ---------------------------------------------------------------- command line
def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="*", help="the part `general`: .jsonl, .json, .txt, .md, also .gz or .zst, .parquet, or folders")
    add("--math", nargs="+", default=[], metavar="FILE", help="the part `math`: documents, or questions for worksheets")
    named = "another part; known by name: " + " ".join(part for _, group in SHARES for part in group)
    add("--part", nargs="+", action="append", default=[], metavar=("NAME", "FILE"), help=named)
    own = "a mix of the parts by weight, beside base (the paper's shares) and math-heavy (twice its mathematics)"
    add("--mix", nargs="+", action="append", default=[], metavar=("NAME", "PART=WEIGHT"), help=own)
    add("--math-weight", type=float, help="share of mathematics in the mix `base`; default: the paper's")
    add("--tokenizer", default="gpt2", help="world, gpt2, cl100k_base or a file (default gpt2)")
    add("--val-fraction", type=float, default=0.02, help="share of documents held out (default 0.02)")
    add("--block-size", type=int, default=1024, help="training window in tokens; bounds worksheets")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=1, help="processes, each with a source of its own (default 1)")
    add("--out", required=True, metavar="DIR")


def main(args: argparse.Namespace) -> None:
    for name in ("val_fraction", "math_weight"):
        if (value := getattr(args, name)) is not None and not 0 < value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must lie between 0 and 1")
    for name in ("block_size", "workers"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    parts: dict[str, list] = {}
    for name, *files in [["general", *args.files], ["math", *args.math], *args.part]:
        if files:
            parts.setdefault(name, []).extend(files)
    if not parts:
        raise UserError("no files: give some, or --part NAME FILES")
    mixes = {name: dict(map(_weight, weights)) for name, *weights in args.mix}
    enc, out = load_tokenizer(args.tokenizer), Path(args.out)
    find_sources(parts)  # before the folder is made
    check_mixes(parts, mixes)
    writable_dir(out)
    lock(out)
    flags = {name: getattr(args, name) for name in ("math_weight", "val_fraction", "block_size", "seed", "workers")}
    meta = prepare(parts, out, enc, mixes=mixes, **flags)
    for name, entry in meta["files"].items():
        print(f"{out / name}: {entry['tokens']:,} tokens, {entry['dtype']}")
    lines = [row for _, row in read_jsonl(out / MANIFEST)][1:]
    total, seconds = sum(e["tokens"] for e in meta["files"].values()), sum(line["cpu_seconds"] for line in lines)
    print(f"{len(lines)} sources, {seconds:.0f} s of CPU, {total / max(seconds, 0.01):,.0f} tokens a core-second")
    print(f"mixes {json.dumps(meta['mixes'])}, tokenizer {enc.name} ({enc.n_vocab:,} tokens)")


def _weight(text: str) -> tuple[str, float]:
    part, _, number = text.partition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < math.inf:
        raise UserError(f"--mix {text}: give PART=WEIGHT, the weight a number of 0 or more")
    return part, weight
