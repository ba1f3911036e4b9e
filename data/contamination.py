"""Test questions inside prepared data: counted, and left out on request.

    python -m data.prepare contamination data/omi2 --exclude                        # questions: at once
    python -m data.prepare contamination data/mix --exclude --out data/mix_clean    # token files: a new folder
    python -m data.prepare contamination data/omi2 --tests gsm8k math mine.jsonl

Texts are compared as their words in lower case. A test question is found in a text when they share 13 words in a row
(or, of a question with 8 to 12 words, all of it); it is found whole when all such runs of it are there. Shorter
questions count where the text is nothing else. In a folder of questions the texts are its problems, in a folder of
token files its documents. contamination.json in the folder lists what was found.
"""

import argparse
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np

from common import lock, writable_dir
from data import benchmarks
from data.files import UserError, read_json, read_rows, write_json
from data.prepared import Prepared, is_prepared
from data.prepared_writer import write_array
from data.questions import TASKS, WORLD_TASKS, load_questions, read_row
from data.tokenizer import decode, folder_tokenizer
from data.tokens import load_meta, open_tokens
from data.workers import begin_worker, start_method

WORD = re.compile(r"\w+")
RUN, SHORTEST = 13, 8  # words
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word of a run is lost from its hash modulo 2**64
FILTER_BITS = 24
TASK_NAMES = (*(task for task in TASKS if task not in (*WORLD_TASKS, "openmath")), *benchmarks.REAL_TASKS)
PIECE = {"questions": 20_000, "tokens": 2_000_000}  # rows, tokens that a worker looks at together


# ---------------------------------------------------------------- what is looked for
def read_tests(names: list[str]) -> dict[str, list[str]]:
    """{name: questions} of tasks and files; without names, of every task that $REAL_DATA holds."""
    tests = {}
    for name in names or TASK_NAMES:
        try:
            tests[name] = list(dict.fromkeys(questions_of(name)))
        except UserError:
            if names:
                raise
            print(f"note: {name} is not under $REAL_DATA: not looked for", flush=True)
    if not any(tests.values()):
        raise UserError("no test questions; set REAL_DATA to the folder that holds them, or give --tests FILE")
    return tests


def questions_of(name: str) -> list[str]:
    if name in benchmarks.REAL_TASKS:
        contexts = [item.context for item in benchmarks.load_benchmark(name)]
        if name == "hellaswag":
            contexts = [text.partition(": ")[2] for text in contexts]
        return [text.removeprefix("Question: ").removesuffix("\nAnswer:") for text in contexts]
    if name in TASKS:
        return [question.problem for question in load_questions(None, name, "test")]
    if not Path(name).is_file():
        raise UserError(f"--tests {name}: no such task or file; give a file, or some of {' '.join(TASK_NAMES)}")
    rows = [(where, row) for where, row in read_rows(name)]
    return [row["text"] if isinstance(row.get("text"), str) else read_row(row, where)[0] for where, row in rows]


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def runs(ids: np.ndarray, sizes: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(size, hash of every run of so many words) for each of these sizes; ids (N,) uint64 -> (N - size + 1,)."""
    hashes = np.zeros(len(ids) + 1, np.uint64)
    for size in range(1, min(max(sizes, default=0), len(ids)) + 1):
        hashes = hashes[:-1] * BASE + ids[size - 1 :]
        if size in sizes:
            yield size, hashes


class Index:
    """Test questions, by number, found by their runs of words."""

    def __init__(self, texts: list[str]):
        self.ids: dict[str, int] = {}  # of every word of a test question; 0: any other word
        self.alone: dict[str, list[int]] = defaultdict(list)
        self.needed = np.zeros(len(texts), np.int64)  # different runs of each question, 0 of a short one
        found: dict[int, list[tuple[np.ndarray, int]]] = defaultdict(list)
        for number, text in enumerate(texts):
            words = words_of(text)
            self.alone[" ".join(words)].append(number)
            if len(words) >= SHORTEST:
                ids = np.array([self.ids.setdefault(word, len(self.ids) + 1) for word in words], np.uint64)
                size, hashes = next(runs(ids, [min(RUN, len(words))]))
                found[size].append((np.unique(hashes), number))
                self.needed[number] = len(found[size][-1][0])
        self.runs = {}
        self.filter = np.zeros(1 << FILTER_BITS, bool)  # most runs of other texts stop here
        for size in sorted(found):
            hashes = np.concatenate([h for h, _ in found[size]])
            owners = np.concatenate([np.full(len(h), number) for h, number in found[size]])
            order = np.argsort(hashes, kind="stable")
            self.runs[size] = hashes[order], owners[order]
            self.filter[hashes >> np.uint64(64 - FILTER_BITS)] = True

    def find(self, texts: list[str]) -> dict[tuple[int, int], bool]:
        """{(number of the text, number of the test question): found whole?}."""
        ids, starts, result = [], [], {}
        for number, text in enumerate(texts):
            words = words_of(text)
            starts.append(len(ids))
            ids.extend(map(self.ids.get, words, repeat(0)))
            ids.append(0)  # no run goes on into the next text
            if words:
                result |= {(number, test): True for test in self.alone.get(" ".join(words), ())}
        ids = np.array(ids, np.uint64)
        known = np.concatenate([[0], np.cumsum(ids > 0)])
        seen: dict[tuple[int, int], set] = defaultdict(set)
        for size, hashes in runs(ids, list(self.runs)):
            at = np.flatnonzero(known[size:] - known[:-size] == size)
            at = at[self.filter[hashes[at] >> np.uint64(64 - FILTER_BITS)]]
            tests, owners = self.runs[size]
            left, right = (np.searchsorted(tests, hashes[at], side) for side in ("left", "right"))
            for place in np.flatnonzero(right > left):
                text = int(np.searchsorted(starts, at[place], "right")) - 1
                for owner in owners[left[place] : right[place]].tolist():
                    seen[text, owner].add(int(hashes[at[place]]))
        return {pair: len(found) == self.needed[pair[1]] for pair, found in seen.items()} | result


# ---------------------------------------------------------------- where it is looked for
def jobs_of(folder: Path) -> list[tuple]:
    """What the workers do: (kind, folder, file, start, stop) of some rows of a folder of questions, or of some whole
    documents of a token file."""
    if is_prepared(folder):
        count, step = len(Prepared(folder).columns["problem"]), PIECE["questions"]
        return [("questions", folder, "", i, min(i + step, count)) for i in range(0, count, step)]
    meta, eot, jobs = load_meta(folder), folder_tokenizer(folder).eot_token, []
    for name in meta["files"]:
        stream, start = open_tokens(folder, meta, name), 0
        while start < len(stream):
            stop = min(start + PIECE["tokens"], len(stream))
            while stop < len(stream) and stream[stop] != eot:
                ahead = np.flatnonzero(stream[stop : stop + PIECE["tokens"]] == eot)
                stop = stop + int(ahead[0]) if len(ahead) else min(stop + PIECE["tokens"], len(stream))
            jobs.append(("tokens", folder, name, start, stop))
            start = stop
    return jobs


INDEX: Index  # of a worker process


def start_worker(index: Index) -> None:
    global INDEX
    begin_worker()
    INDEX = index


def search(job: tuple, index: Index | None = None) -> tuple[int, list[tuple[int, int, int, bool]]]:
    """(number of texts, (where it starts, where it ends, test question, whole?) of each text found)."""
    kind, folder, name, start, stop = job
    index = index or INDEX
    if kind == "questions":
        bounds = [(row, row + 1) for row in range(start, stop)]
        problems = Prepared(folder).columns["problem"]
        texts = [problems.text(row) for row in range(start, stop)]
    else:
        enc, stream = folder_tokenizer(folder), open_tokens(folder, load_meta(folder), name)[start:stop]
        cuts = [0, *(np.flatnonzero(stream[1:] == enc.eot_token) + 1).tolist(), len(stream)]
        bounds = [(start + a, start + b) for a, b in zip(cuts, cuts[1:], strict=False)]
        texts = [
            decode(enc, [i for i in stream[a - start : b - start].tolist() if i != enc.eot_token]) for a, b in bounds
        ]
    return len(texts), [(*bounds[text], test, whole) for (text, test), whole in index.find(texts).items()]


def search_all(folder: Path, index: Index, workers: int) -> Iterator[tuple[tuple, tuple]]:
    """(job, what `search` gives) of the whole folder, in order."""
    jobs = jobs_of(folder)
    if workers == 1:
        yield from ((job, search(job, index)) for job in jobs)
        return
    with ProcessPoolExecutor(workers, start_method(), start_worker, (index,)) as pool:
        yield from zip(jobs, pool.map(search, jobs), strict=True)


# ---------------------------------------------------------------- counting and leaving out
def check(folder: Path, tests: dict[str, list[str]], workers: int = 1) -> dict:
    """Look for the tests in a folder: what contamination.json holds. `found`: (file, start, end) of each text that
    holds a test question, in tokens, or in rows of a folder of questions, where file is ""."""
    texts, owner = [], []
    for name, questions in tests.items():
        texts += questions
        owner += [(name, number) for number in range(len(questions))]
    of_test = {
        name: {"questions": len(questions), "short": sum(len(words_of(q)) < SHORTEST for q in questions)}
        | {"whole": set(), "in part": set()}
        for name, questions in tests.items()
    }
    looked, found = 0, {}
    for (_, _, file, *_), (count, matches) in search_all(folder, Index(texts), workers):
        looked += count
        for start, stop, test, whole in matches:
            name, number = owner[test]
            of_test[name]["whole" if whole else "in part"].add(number)
            found[file, start, stop] = True
    for entry in of_test.values():
        entry["in part"] -= entry["whole"]
        entry |= {key: sorted(entry[key]) for key in ("whole", "in part")}
    return {"run": RUN, "shortest": SHORTEST, "texts": looked, "found": sorted(found), "tests": of_test}


def exclude_questions(folder: Path, report: dict) -> None:
    """From now on the splits of the folder are without what was found."""
    rows = np.array([start for _, start, _ in report["found"]], "<u4")
    meta = read_json(folder / "meta.json")
    old = meta.get("excluded", {}).get("file")
    name = "excluded_1.rows" if old != "excluded_1.rows" else "excluded_2.rows"  # meta.json names one that is whole
    write_array(folder / name, rows)
    meta["excluded"] = {"file": name, "rows": len(rows), "tests": sorted(report["tests"])}
    write_json(folder / "meta.json", meta)
    if old:
        (folder / old).unlink(missing_ok=True)


def exclude_documents(folder: Path, report: dict, out: Path) -> None:
    """The token files of `folder` without what was found, as the new folder `out`."""
    meta = load_meta(folder)
    shutil.copy(folder / meta["tokenizer"]["file"], out)
    for name, entry in meta["files"].items():
        stream, done, last = open_tokens(folder, meta, name), 0, len(open_tokens(folder, meta, name))
        of_math = last - meta.get("val_math", 0) if name == meta["val"] else last
        with open(out / name, "wb") as file:
            for start, stop in [(a, b) for f, a, b in report["found"] if f == name] + [(last, last)]:
                for i in range(done, start, PIECE["tokens"]):
                    file.write(stream[i : min(start, i + PIECE["tokens"])].tobytes())
                done = stop
                entry["tokens"] -= stop - start
                if stop > start >= of_math:
                    meta["val_math"] -= stop - start
    write_json(
        out / "meta.json", meta | {"excluded": {"tests": sorted(report["tests"]), "texts": len(report["found"])}}
    )
    load_meta(out)


# ---------------------------------------------------------------- command line
def add_arguments(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("folder", type=Path, help="made by data.prepare, of questions or of token files")
    tests = "tasks under $REAL_DATA, or files of questions or of {text}; default: all tasks that are there"
    add("--tests", nargs="+", default=[], metavar="TASK|FILE", help=tests)
    add("--exclude", action="store_true", help="leave out what holds a test question; token files need --out")
    add("--out", type=Path, metavar="DIR", help="with --exclude: a new folder for the token files without it")
    add("--workers", type=int, default=1, help="processes that look side by side (default 1)")


def main(args: argparse.Namespace) -> None:
    of_questions = is_prepared(args.folder)
    if not of_questions:
        load_meta(args.folder)
    if args.exclude and bool(args.out) == of_questions:
        kind, mend = ("questions", "drop --out") if of_questions else ("token files", "give --out DIR")
        raise UserError(f"--exclude on {args.folder}, a folder of {kind}: {mend}")
    if args.out and not args.exclude or args.workers < 1:
        raise UserError(f"--out {args.out} --workers {args.workers}: --out goes with --exclude, workers are 1 or more")
    if args.out and args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"--out {args.out} is not empty; give a new folder")
    tests = read_tests(args.tests)
    writable_dir(args.folder)
    lock(args.folder)
    report = check(args.folder, tests, args.workers)
    write_json(args.folder / "contamination.json", report)
    print(f"{'test':<16}{'questions':>10}{'whole':>8}{'in part':>9}{'too short':>11}")
    for name, entry in report["tests"].items():
        counts = f"{entry['questions']:>10,}{len(entry['whole']):>8,}{len(entry['in part']):>9,}{entry['short']:>11,}"
        print(f"{Path(name).name[:15]:<16}{counts}")
    what = "questions" if of_questions else "documents"
    print(
        f"{len(report['found']):,} of {report['texts']:,} {what} hold a test question: {args.folder}/contamination.json"
    )
    if not args.exclude:
        return
    try:
        if of_questions:
            exclude_questions(args.folder, report)
        else:
            writable_dir(args.out)
            exclude_documents(args.folder, report, args.out)
    except OSError as error:
        raise UserError(f"{args.out or args.folder}: cannot write ({error.strerror}); free some space") from None
    print(f"they are left out of {args.out or args.folder}")
