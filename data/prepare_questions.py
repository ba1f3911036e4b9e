"""OpenMathInstruct-2 files -> a folder of questions whose texts and token ids the stages read from disk. Rows of other
sources are passed over; questions are told apart by their exact text; a part of them is held out for validation.

    python -m data.prepare questions OMI2/train-*.parquet --source gsm8k augmented_gsm8k --out data/omi2
    python train_rl.py --init runs/1b/ckpt_010000.pt --data data/omi2 --task openmath --preset paper

One process reads, filters and finds questions again; --workers others turn text into token ids. What was written is
noted every few seconds: after a kill or a full disk the same command goes on from there, and ends with the same bytes.

Validation questions are the authors': of each kind (problem_source without "augmented_"), in the order in which the
files name them, the first 1,000 of numpy's permutation by seed 42, but at most a tenth.
"""

import argparse
import hashlib
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from common import clear_temporaries, lock, peak_memory, writable_dir
from data.checkpoints import load_checkpoint
from data.files import ODD_ROWS, UserError, open_bytes, parse_json, read_json, read_parquet, suffix, write_json
from data.grading import answers_equal
from data.math_qa import TEMPLATES, Template, format_prompt, format_target, template_for
from data.prepared import FORMAT
from data.prepared_writer import Packed, Writer, finish, pack
from data.questions import Question, text_of
from data.tokenizer import keep, kept_tokenizer, load_tokenizer, made_by_name, save_ranks, tokenizer_id
from data.tokens import DTYPES, dtype_of
from data.workers import begin_worker, start_method

COLUMNS = ("problem", "generated_solution", "expected_answer", "problem_source", "is_correct")
CHUNK = 2000  # rows that go to a worker together
HELD_OUT, SEED = 1000, 42
NOTE_EVERY = 5.0  # seconds between two notes of how far the preparation is


# ---------------------------------------------------------------- reading
def read_chunks(path: Path, skip: int) -> Iterator[list[tuple[str, dict | str]]]:
    """Rows of a file after its first `skip`, CHUNK at a time: (place, row), or (place, what is wrong with it)."""
    if suffix(path) == ".parquet":
        done = 0
        for batch in read_parquet(path, COLUMNS, CHUNK):
            if missing := {"problem", "expected_answer"} - batch.keys():
                what = f"no column {min(missing)!r}, but OpenMathInstruct-2 rows are needed"
                raise UserError(f"{path}: {what}; give files with {', '.join(COLUMNS[:4])}")
            rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            first, done = done, done + len(rows)
            if done > skip:
                yield [(f"{path}: row {first + i + 1}", row) for i, row in enumerate(rows)][max(0, skip - first) :]
        return
    if suffix(path) != ".jsonl":
        raise UserError(f"{path}: unknown kind of file; give .parquet or .jsonl, the latter also with .gz or .zst")
    with open_bytes(path) as lines:
        numbered = islice(enumerate(lines, 1), skip, None)
        while chunk := list(islice(numbered, CHUNK)):
            yield [(f"{path}:{number}", parse_line(line)) for number, line in chunk]


def parse_line(line: bytes) -> dict | str:
    try:
        row = parse_json(line)
    except ValueError as error:
        return str(error)
    return row if isinstance(row, dict) else f"expected a JSON object, got {type(row).__name__}"


def parse_row(row: dict, where: str) -> tuple[str, str, str]:
    """(problem, solution or "", answer): the first two to the letter, since the authors tell questions apart so."""
    if missing := {"problem", "expected_answer"} - row.keys():
        raise UserError(f"{where}: no {min(missing)!r}, which OpenMathInstruct-2's rows have; give such files")
    problem, solution, answer = row["problem"], row.get("generated_solution") or "", row["expected_answer"]
    if not (isinstance(answer, str) and answer.strip()):
        answer = text_of(row, "expected_answer", where)
    if not (isinstance(problem, str) and problem.strip()):
        raise UserError(f"{where}: 'problem' must be text that is not empty, got {problem!r:.60}; mend that row")
    if not isinstance(solution, str):
        raise UserError(f"{where}: 'generated_solution' must be text, got {solution!r:.60}; mend that row")
    return problem, solution if solution.strip() else "", answer.strip()


@dataclass
class Chunk:
    """What is new in some rows: questions, and solutions each with the number and the answer of its question."""

    questions: list[tuple[str, str, str]] = field(default_factory=list)  # problem, answer, source
    solutions: list[tuple[int, str, str]] = field(default_factory=list)  # question, solution, its answer
    note: dict = field(default_factory=dict)  # the place behind these rows, and the counts up to it


class Reader:
    """Chunks of all files from `place` on. Knows every question so far by a digest of its text."""

    def __init__(self, files: list[Path], sources: list[str], note: dict):
        self.files, self.sources = files, set(sources)
        self.file, self.row = note.get("file", 0), note.get("row", 0)
        self.counts = Counter(note.get("counts", {}))
        self.odd_before, self.first_odd = note.get("odd_before", 0), ""
        self.known: dict[bytes, int] = {}
        self.answers: list[str] = []

    def remember(self, problem: bytes, answer: str) -> None:
        self.known[hashlib.blake2b(problem, digest_size=16).digest()] = len(self.answers)
        self.answers.append(answer)

    def __iter__(self) -> Iterator[Chunk]:
        while self.file < len(self.files):
            path = self.files[self.file]
            for rows in read_chunks(path, self.row):
                chunk = Chunk()
                for where, row in rows:
                    self.add(chunk, where, row)
                self.row += len(rows)
                chunk.note = self.note()
                yield chunk
            self.check_odd(path)
            self.file, self.row, self.odd_before = self.file + 1, 0, self.counts["odd"]
        yield Chunk(note=self.note())

    def note(self) -> dict:
        place = {"file": self.file, "row": self.row, "odd_before": self.odd_before}
        return place | {"counts": dict(self.counts)}

    def add(self, chunk: Chunk, where: str, row: dict | str) -> None:
        self.counts["rows"] += 1
        try:
            if isinstance(row, str):
                raise UserError(f"{where}: {row}; mend or remove that line")
            source = str(row.get("problem_source") or "")
            name = f"of source {source or 'unknown'}"
            self.counts[name if name in self.counts or len(self.counts) < 30 else "of further sources"] += 1
            if self.sources and source not in self.sources:
                return
            if row.get("is_correct") is False:  # files of sampled solutions mark the wrong ones
                self.counts["wrong"] += 1
                return
            problem, solution, answer = parse_row(row, where)
            key = problem.encode()
            solution.encode(), answer.encode()
        except (UserError, UnicodeEncodeError) as error:
            self.counts["odd"] += 1
            self.first_odd = self.first_odd or (str(error) if isinstance(error, UserError) else f"{where}: {error}")
            return
        question = self.known.get(hashlib.blake2b(key, digest_size=16).digest())
        if question is None:
            question = len(self.answers)
            self.remember(key, answer)
            chunk.questions.append((problem, answer, source))
        elif answer != (first := self.answers[question]) and not answers_equal(first, answer):
            self.counts["another answer than the question's first"] += 1
            return
        if solution:
            chunk.solutions.append((question, solution, self.answers[question]))

    def check_odd(self, path: Path) -> None:
        """UserError if more of a file's rows are odd than ODD_ROWS."""
        odd = self.counts["odd"] - self.odd_before
        if odd > ODD_ROWS * self.row:
            count = f"{odd:,} of {self.row:,} rows are odd; at most {ODD_ROWS:.0%} may be, and are left out"
            raise UserError(f"{self.first_odd or path} ({count})")
        if odd:
            print(f"note: {path}: {odd:,} of {self.row:,} rows are odd and left out; {self.first_odd}", flush=True)
        self.first_odd = ""


# ---------------------------------------------------------------- token ids
ENCODER: tuple = ()  # (tokenizer, template) of this process


def set_encoder(enc, template: Template, worker: bool = False) -> None:
    global ENCODER
    ENCODER = enc, template
    if worker:
        begin_worker()


def encode(problems: list[str], solutions: list[tuple[str, str]]) -> tuple[Packed, Packed, float]:
    """Token ids of prompts and of targets (solution, answer), and the core-seconds that took."""
    began, (enc, template) = time.process_time(), ENCODER
    dtype = DTYPES[dtype_of(enc)]
    prompts = [format_prompt(Question("", problem, [], "", ""), template) for problem in problems]
    targets = [format_target(Question("", "", [], answer, ""), text, template) for text, answer in solutions]
    parts = [pack([np.array(enc.encode_ordinary(t), dtype).tobytes() for t in texts]) for texts in (prompts, targets)]
    return *[(sizes // dtype.itemsize, data) for sizes, data in parts], time.process_time() - began


class Encoders:
    """`workers` processes that encode chunks, two chunks each on the way; with one worker, this process."""

    def __init__(self, workers: int, enc, template: Template):
        self.workers, self.pool = workers, None
        set_encoder(enc, template)
        if workers > 1:
            self.pool = ProcessPoolExecutor(workers, start_method(), set_encoder, (enc, template, True))

    def __enter__(self) -> "Encoders":
        return self

    def __exit__(self, *_error) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def run(self, chunks: Iterator[Chunk]) -> Iterator[tuple]:
        """(chunk, what encode gives) for each, in order."""
        waiting: deque[tuple[Chunk, Future]] = deque()
        try:
            for chunk in chunks:
                work = [question[0] for question in chunk.questions], [row[1:] for row in chunk.solutions]
                if not self.pool:
                    yield chunk, encode(*work)
                    continue
                waiting.append((chunk, self.pool.submit(encode, *work)))
                if len(waiting) >= 2 * self.workers:
                    yield waiting[0][0], waiting.popleft()[1].result()
            while waiting:
                yield waiting[0][0], waiting.popleft()[1].result()
        except BrokenProcessPool:
            what = "a worker process was ended from outside, as happens where memory runs out"
            raise UserError(f"{what}; lower --workers: the same command goes on") from None


# ---------------------------------------------------------------- the whole preparation
def prepare(
    files: list[Path],
    out: Path,
    enc,
    template: Template,
    *,
    sources: list[str] = (),
    max_prompt: int = 1024,
    max_solution: int = 2048,
    workers: int = 1,
) -> dict:
    """Write the folder `out`, or go on with it; returns its meta.json. sources: () = all. max_prompt, max_solution: in
    tokens, the latter with end-of-text."""
    filters = dict(sources=sorted(sources), max_prompt_tokens=max_prompt, max_solution_tokens=max_solution)
    settings = {
        "format": FORMAT,
        "kind": "questions",
        "tokenizer": tokenizer_id(enc) | {"file": "tokenizer.tiktoken"} if made_by_name(enc) else keep(enc),
        "template": {key: getattr(template, key) for key in ("name", "prompt", "target", "marker")},
        "inputs": [describe(path) for path in files],
        "filters": filters | dict(held_out=HELD_OUT, seed=SEED),
    }
    if (out / "meta.json").exists():
        meta = read_json(out / "meta.json", "data folder")
        check_same(out, meta, settings)
        print(f"{out} is whole already: nothing to do")
        return meta
    progress = {}
    if (out / "progress.json").exists():
        progress = read_json(out / "progress.json", "progress of a preparation", mend=f"delete {out} and begin anew")
        check_same(out, progress.get("settings"), settings)
    try:
        if "file" in settings["tokenizer"]:
            save_ranks(enc._mergeable_ranks, out / "tokenizer.tiktoken")
        writer = Writer(out, dtype_of(enc), progress.get("sizes", {}))
        try:
            counts = read_all(files, sources, writer, settings, progress, Encoders(workers, enc, template))
        finally:
            writer.close()
        if not writer.sizes["problem"][0]:
            (out / "progress.json").unlink(missing_ok=True)
            found = ", ".join(name.removeprefix("of source ") for name in counts if name.startswith("of source"))
            what = f"no question in {counts.get('rows', 0):,} rows of --source {' '.join(sources) or '(all)'}"
            raise UserError(f"{what}; the rows' sources are {found or 'none'}; give --source some of these")
        meta = finish(writer, settings, counts)
    except OSError as error:
        mend = "free some space: the same command goes on from here"
        raise UserError(f"--out {out}: cannot write ({error.strerror}); {mend}") from None
    return meta


def check_same(out: Path, found: dict | None, settings: dict) -> None:
    """UserError where the data in `out` is of other settings than those asked for."""
    for name, wanted in settings.items():
        if not isinstance(found, dict) or found.get(name) != wanted:
            raise UserError(f"--out {out} holds data that differs in its {name}; give the same again, or a new folder")


def describe(path: Path) -> dict:
    """What the manifest keeps of an input."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}); check the path") from None


def read_all(files, sources, writer: Writer, settings: dict, progress: dict, encoders: Encoders) -> dict:
    """Read what is left of `files` into the writer, noting how far it is; returns the counts of rows."""
    reader = Reader(files, sources, progress.get("note", {}))
    for problem, answer in writer.questions() if progress else ():
        reader.remember(problem, answer)
    if progress:
        print(f"going on behind {reader.counts['rows']:,} rows", flush=True)
    rows, began, noted, busy, encoding = reader.counts["rows"], time.process_time(), time.time(), 0.0, 0.0
    tokens, chunk = writer.tokens(), None
    with encoders:
        for chunk, (prompts, targets, seconds) in encoders.run(iter(reader)):
            writer.add_questions(chunk.questions, prompts)
            writer.add_solutions([row[:2] for row in chunk.solutions], targets)
            encoding += seconds
            if time.time() - noted > NOTE_EVERY:
                writer.sync()
                write_json(
                    writer.out / "progress.json", {"settings": settings, "sizes": writer.sizes, "note": chunk.note}
                )
                noted = time.time()
                print(f"{chunk.note['counts']['rows']:,} rows, {writer.sizes['problem'][0]:,} questions", flush=True)
        busy = time.process_time() - began - (0.0 if encoders.pool else encoding)
    writer.sync()
    rows, tokens = reader.counts["rows"] - rows, writer.tokens() - tokens
    for what, count, seconds in (("rows read", rows, busy), ("token ids made", tokens, encoding)):
        print(f"{count:,} {what} in {seconds:.1f} core-seconds, {count / max(seconds, 1e-9):,.0f} a core-second")
    return chunk.note["counts"]


# ---------------------------------------------------------------- command line
def add_arguments(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("files", nargs="+", type=Path, help="OpenMathInstruct-2 rows: .parquet, or .jsonl, also with .gz or .zst")
    add("--out", required=True, type=Path, metavar="DIR", help="a new folder, or one to go on with")
    add("--source", nargs="+", default=[], help="take rows of these problem_source alone; default: all")
    names = "world, gpt2, cl100k_base, a ranks file, a data folder or a converted public checkpoint (default gpt2)"
    add("--tokenizer", default="gpt2", help=names)
    add("--template", default="boxed", choices=list(TEMPLATES), help="the tokens are of this one (default boxed)")
    add("--max-prompt-tokens", type=int, default=1024, help="leave longer questions out (default 1024)")
    add(
        "--max-solution-tokens",
        type=int,
        default=2048,
        help="and longer solutions, end-of-text included (default 2048)",
    )
    add(
        "--workers", type=int, default=min(8, cores()), help="processes that make token ids (default: cores, at most 8)"
    )


def named_or_kept(name: str):
    """The tokenizer of this name or file, or the one that lies in a checkpoint."""
    if not name.endswith(".pt"):
        return load_tokenizer(name)
    ident = load_checkpoint(name)["tokenizer"]
    if "ranks" not in ident:
        raise UserError(
            f"--tokenizer {name}: the checkpoint names {ident.get('name')!r:.60}; give that name or its folder"
        )
    return kept_tokenizer(ident, name)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(args: argparse.Namespace) -> None:
    for name in ("max_prompt_tokens", "max_solution_tokens", "workers"):
        if (got := getattr(args, name)) < 1:
            raise UserError(f"--{name.replace('_', '-')} {got}: at least 1 is needed")
    enc, template = named_or_kept(args.tokenizer), template_for(args.template)
    writable_dir(args.out)
    lock(args.out)
    clear_temporaries(args.out)
    limits = dict(max_prompt=args.max_prompt_tokens, max_solution=args.max_solution_tokens)
    meta = prepare(args.files, args.out, enc, template, sources=args.source, workers=args.workers, **limits)
    for name, count in meta["counts"].items():
        print(f"{count:>14,} {name}")
    splits = ", ".join(f"{count:,} {name}" for name, count in meta["splits"].items())
    print(f"{args.out}: {splits} questions, {enc.name} tokens of the template {template.name}")
    print(f"peak memory of this process {peak_memory():.2f} GB; next: train_rl.py --data {args.out} --task openmath")
