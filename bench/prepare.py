"""`python -m data.prepare` on made files, and how a stage starts on what it wrote: time and memory.

    python -m bench.prepare rows /tmp/rows --rows 1000000 --kind jsonl       # or jsonl.gz, jsonl.zst, parquet
    python -m data.prepare questions /tmp/rows/* --out /tmp/omi2 --workers 2
    python -m bench.prepare start /tmp/omi2                                  # what RL and SFT-Gold do before step 1
    python -m bench.prepare grow /tmp/omi2 /tmp/omi2_14m --times 14          # the same folder 14 times as long, sparse
    python -m bench.prepare corpus /tmp/corpus --gb 2 --of $REAL_DATA/general/*
    python -m data.prepare corpus /tmp/corpus --val-fraction 0.001 --out /tmp/tokens

The rows are as long as OpenMathInstruct-2's: about 80 tokens of problem and 300 of solution in GPT-2's, 23 solutions a
problem, problems scattered over all files. Their words repeat more than real ones do. The corpus is paragraphs of real
files, dealt anew to documents, gzipped.
"""

import argparse
import gzip
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common import peak_memory
from data.documents import read_documents
from data.files import optional, write_json
from data.math_qa import draw, question_prompts, template_for
from data.pass_at_k import fitting
from data.prepared import AT, DTYPES, Prepared, take
from data.questions import load_questions, questions_hash
from data.tokenizer import folder_tokenizer
from train_sft import fitting_examples, load_examples

WORDS = """the a of and to is in that we have each total number cost dollars hours minutes first second then multiply
add subtract divide both sides equation equals means find how many much does she he they left more less than twice half
apples books tickets students miles per day week month price sold bought spent remaining altogether average speed
distance area rectangle triangle length width height angle circle radius function value sum product difference ratio
percent original increase decrease therefore since because let us denote by so get simplify substitute into expression
solution answer given using formula square root integer positive real numbers possible probability choose""".split()
PARTS = [
    *WORDS,
    *WORDS,
    *map(str, range(2, 60)),
    "\\frac{3}{4}",
    "$x$",
    "=",
    "+",
    "x^2 - 5x",
    "\\times",
    "\n",
    "(a + b)",
]
PROBLEM, SOLUTION, SOLUTIONS = 70, 268, 23  # words of each, and solutions a problem
SOURCES = ("augmented_math",) * 8 + ("augmented_gsm8k",) * 2 + ("math", "gsm8k")


def made_rows(count: int, problems: int, seed: int) -> Iterator[dict]:
    rng = random.Random(seed)
    for _ in range(count):
        number = rng.randrange(problems)
        of_problem = random.Random(number)
        words = of_problem.choices(PARTS, k=max(8, int(of_problem.gauss(PROBLEM, 25))))
        solution = " ".join(rng.choices(PARTS, k=max(20, int(rng.gauss(SOLUTION, 90)))))
        yield {
            "problem": f"Number {number}: {' '.join(words)}?",
            "generated_solution": f"{solution} so the answer is $\\boxed{{{number % 97}}}$.",
            "expected_answer": str(number % 97),
            "problem_source": SOURCES[number % len(SOURCES)],
        }


def write_rows(out: Path, count: int, files: int, kind: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for file in range(files):
        path, rows = out / f"rows-{file:02}.{kind}", made_rows(count // files, max(1, count // SOLUTIONS), file)
        if kind == "parquet":
            arrow, parquet = optional("pyarrow", path), optional("pyarrow.parquet", path)
            parquet.write_table(arrow.Table.from_pylist(list(rows)), path)
            continue
        opened = {"jsonl": open, "jsonl.gz": gzip.open, "jsonl.zst": getattr(optional("zstandard", path), "open", None)}
        with opened[kind](path, "wt") as out_file:
            out_file.writelines(json.dumps(row) + "\n" for row in rows)


def write_corpus(out: Path, of: list[str], gigabytes: float, files: int) -> None:
    """Documents of 2 to 20 paragraphs of these files, until their texts are so many bytes."""
    out.mkdir(parents=True, exist_ok=True)
    paragraphs = [p for path in of for text in read_documents(path) for p in text.split("\n") if p.strip()]
    rng = random.Random(0)
    for file in range(files):
        left, number = gigabytes * 1e9 / files, 0
        with gzip.open(out / f"web-{file:03}.jsonl.gz", "wt", compresslevel=1) as out_file:
            while left > 0:
                text = "\n".join(rng.choices(paragraphs, k=rng.randint(2, 20)))
                out_file.write(json.dumps({"id": f"{file}-{number}", "source": "made", "text": text}) + "\n")
                left, number = left - len(text.encode()), number + 1


def start(folder: Path) -> None:
    """What RL and then SFT-Gold do with their questions before the first step, and in it."""
    began, memory = time.time(), peak_memory()
    enc, template = folder_tokenizer(folder), template_for("paper")
    questions = load_questions(folder, "openmath", "train")
    print(f"identity {questions_hash(questions)[:12]}")
    prompts = question_prompts(enc, questions, template)
    kept = fitting(prompts, 1024, 4096, "questions", False)
    rl_questions, prompts = take(questions, kept), take(prompts, kept)
    batch = [(prompts[i], rl_questions[i].answer) for i in draw(len(prompts), 512, 0, 0)]
    print(f"RL: {len(prompts):,} questions, {sum(len(p) for p, _ in batch) / 512:.0f} tokens each")
    print(f"    ready and a batch of 512 read in {time.time() - began:.1f} s, peak {peak_memory():.2f} GB")
    began = time.time()
    limits = argparse.Namespace(max_prompt_tokens=512, max_target_tokens=512, strict_length=False)
    examples = fitting_examples(load_examples(enc, questions, template, gold=True), 4096, limits)
    batch = [examples[i] for i in draw(len(examples), 512, 0, 1)]
    print(f"SFT-Gold: {len(examples):,} examples, {sum(len(t) for _, t in batch) / 512:.0f} target tokens each")
    print(f"    ready and a batch of 512 read in {time.time() - began:.1f} s, peak {peak_memory():.2f} GB")
    print(f"    of which {memory:.2f} GB are torch and this program")


def grow(folder: Path, out: Path, times: int) -> None:
    """A folder of `times` as many questions and solutions. Its texts and ids are zeros (sparse files): only numbers of
    rows, and where they start, are real."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.data", "*.at", "*.rows"))
    old, meta = Prepared(folder), Prepared(folder).meta
    for name, shape in meta["columns"].items():
        column, data = old.columns[name], out / f"{name}.data"
        shifted = [column.at[1:] + n * shape["size"] for n in range(times)]
        np.concatenate([[0], *shifted]).astype(AT).tofile(out / f"{name}.at")
        shape |= {"rows": shape["rows"] * times, "size": shape["size"] * times}
        with open(data, "wb") as file:
            file.truncate(shape["size"] * DTYPES[shape["dtype"]].itemsize)
    solutions, count = old.columns["solutions"].data, len(old.columns["solution"])
    np.concatenate([solutions + n * count for n in range(times)]).astype("<u4").tofile(out / "solutions.data")
    for split in meta["splits"]:
        rows, count = old.questions(split).rows, len(old.columns["problem"])
        np.concatenate([rows + n * count for n in range(times)]).astype("<u4").tofile(out / f"{split}.rows")
        meta["splits"][split] *= times
    write_json(out / "meta.json", meta)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.prepare", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    made, dealt, started, grown = (commands.add_parser(name) for name in ("rows", "corpus", "start", "grow"))
    made.add_argument("out", type=Path)
    made.add_argument("--rows", type=int, default=100_000)
    made.add_argument("--files", type=int, default=8)
    made.add_argument("--kind", default="jsonl", choices=["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
    dealt.add_argument("out", type=Path)
    dealt.add_argument("--gb", type=float, default=0.1, help="of text, before gzip")
    dealt.add_argument("--files", type=int, default=8)
    dealt.add_argument("--of", nargs="+", required=True, metavar="FILE", help="where the paragraphs are from")
    started.add_argument("folder", type=Path)
    grown.add_argument("folder", type=Path)
    grown.add_argument("out", type=Path)
    grown.add_argument("--times", type=int, default=14)
    args = parser.parse_args()
    if args.command == "rows":
        write_rows(args.out, args.rows, args.files, args.kind)
    elif args.command == "corpus":
        write_corpus(args.out, args.of, args.gb, args.files)
    elif args.command == "start":
        start(args.folder)
    else:
        grow(args.folder, args.out, args.times)


if __name__ == "__main__":
    main()
