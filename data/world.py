"""A small synthetic world on which the whole study runs on a laptop: general text, worked sums, questions.

Everything is invented here and deterministic in `--seed`. Of the pre-training tokens 80 % are general text (facts about
people, stories, daily events, tools, materials: `data/world_general.py`) and 20 % are mathematics (worksheets of worked
problems, and drills), the paper's proportion.

A question follows an amount through a chain of events: "Zoe has 16.3 kg of rice. Zoe buys 2. The rice doubles. How
much now?" The amount is a PAIR of small numbers, units and tenths, which never carry into each other by construction:
gains and losses are whole and change the units, doubling or splitting changes both, and the answer is the pair written
as one decimal, 36.6. So the sums stay few enough for a tiny model to learn within millions of tokens, yet answers
spread evenly over 324 values and guessing gets nowhere (with one number up to 30, 32 blind guesses would pass 70 % of
the questions). `gsm` chains are built backwards from a uniformly drawn answer; `hard` chains relate several people and
use larger numbers.

Ambiguity is wanted: four document formats, four styles of solution, a tenth of the pre-training solutions with a wrong
number and three tenths with no work at all. A base model then knows more than its single tries show, as the paper's
base models do, and RL has something to find.

Splits: the canonical chain (start, operations, operands; no names or wordings) is hashed to train, val or test before
any text is written. Worksheets in the pre-training text use train chains alone.

    python -m data.world --out data/world --seed 0      # under a minute, 12M base-mix tokens
    python -m data.world --out runs/tiny --tokens 50000 # for a quick look
"""

import argparse
import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiktoken

from common import UserError, read_source, run
from data.files import write_json, write_jsonl, write_text
from data.math_qa import guess_floor
from data.tokenizer import EOT, make_encoding, save_ranks, tokenizer_id, train_bpe
from data.world_general import PEOPLE, SKINS, benchmarks, document, event_sentence, people_facts

# ---------------------------------------------------------------- size and difficulty
VOCAB_SIZE = 1280  # enough for every common word and every number the world writes to be one token
BLOCK_SIZE = 640  # the training window: an 8-shot prompt, a long question and its answer
MATH_SHARE = 0.2  # of the base mix's tokens, as in the paper
DRILL_DOCUMENTS = 0.4  # of the math documents, about 30 % of their tokens; the rest are worksheets
HARD_SHARE = 0.03  # of the worksheet problems in math.bin
NO_WORK, WRONG_WORK = 0.3, 0.1  # of the pre-training solutions

# gsm: number of events in a chain, and how often; a tail of long ones, so that no method gets everything right
STEPS = {2: 0.3, 3: 0.25, 4: 0.2, 5: 0.1, 6: 0.05, 7: 0.03, 8: 0.03, 9: 0.02, 10: 0.02}
TEXT_STEPS = {1: 0.35, 2: 0.35, 3: 0.2, 4: 0.1}  # the same in pre-training text: mostly easier
GSM_MAX, HARD_MAX = (36, 9), (60, 9)  # largest units and tenths at any time
MIN = (1, 1)  # smallest units and tenths
GSM_OPERAND, HARD_OPERAND = 5, 8  # most units gained or lost at once
N_QUESTIONS = {"gsm": {"train": 4000, "val": 400, "test": 500}, "hard": {"train": 2000, "val": 400, "test": 500}}

MIXES = {  # token shares; in math-heavy a third of the problems are hard
    "base": {"general.bin": 1 - MATH_SHARE, "math.bin": MATH_SHARE},
    "math-heavy": {"general.bin": 0.68, "math.bin": 0.19, "hard.bin": 0.13},
}

# ---------------------------------------------------------------- questions: chains
# An event is (operation, units, tenths). + and - change the units (tenths 0), * and / both by the same number. In
# `hard`, an operation that starts with "r" makes the next person from the last one ("r+": has more than), and
# ("sum", 0, 0) puts together what all of them have.
Pair = tuple[int, int]
Event = tuple[str, int, int]
Chain = tuple[str, Pair, tuple[Event, ...]]  # (task, start, events)


def apply_event(op: str, x: Pair, y: Pair) -> Pair:
    """x op y, component by component."""
    apply = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}[op]
    return apply(x[0], y[0]), apply(x[1], y[1])


def fits(pair: Pair, largest: Pair) -> bool:
    return all(low <= value <= high for low, value, high in zip(MIN, pair, largest, strict=True))


def draw_gsm(rng: random.Random, steps: dict[int, float] = STEPS) -> Chain:
    """A chain drawn backwards from a uniform answer, so that answers are flat."""
    n_steps = rng.choices(list(steps), list(steps.values()))[0]
    while True:
        now, events = (rng.randint(MIN[0], GSM_MAX[0]), rng.randint(MIN[1], GSM_MAX[1])), []
        for _ in range(20 * n_steps):  # a corner such as 36.1 has no way back: begin again
            calm = events and events[0][0] in "*/"  # never two in a row: doubling what was just halved is no work
            op = rng.choices("+-*/", [0.3, 0.3, 0.25 * (not calm), 0.15 * (not calm)])[0]
            y = (rng.randint(1, GSM_OPERAND), 0) if op in "+-" else (rng.choice([2, 2, 3]),) * 2
            if op == "*" and (now[0] % y[0] or now[1] % y[1]):
                continue
            before = apply_event({"+": "-", "-": "+", "*": "/", "/": "*"}[op], now, y)
            if fits(before, GSM_MAX):
                now, events = before, [(op, *y), *events]
            if len(events) == n_steps:
                return "gsm", now, tuple(events)


def draw_hard(rng: random.Random) -> Chain:
    """Two or three people, each related to the one before, perhaps their sum, then one or two events; drawn
    forwards."""
    while True:
        start = rng.randint(MIN[0], 30), rng.randint(MIN[1], 9)
        ops = ["r" + op for op in rng.choices("+-*/", [0.3, 0.3, 0.25, 0.15], k=rng.choice([1, 2, 2]))]
        ops += ["sum"] * (rng.random() < 0.6) + rng.choices("+-*/", [0.3, 0.3, 0.2, 0.2], k=rng.choice([1, 1, 2]))
        events: list[Event] = []
        for op in ops:
            y = (0, 0) if op == "sum" else (rng.choice([2, 2, 3, 4]),) * 2
            events.append((op, *((rng.randint(1, HARD_OPERAND), 0) if op[-1] in "+-" else y)))
        chain = "hard", start, tuple(events)
        if all(
            fits(z, HARD_MAX) and (op[-1] != "/" or all(a % b == 0 for a, b in zip(x, y, strict=True)))
            for op, x, y, z in work(chain).sums
        ):
            return chain


DRAW = {"gsm": draw_gsm, "hard": draw_hard}


@dataclass
class Work:
    """The sums a chain needs, each (operation, x, y, result), what is there after each event, and the whole as one
    expression."""

    sums: list[tuple[str, Pair, Pair, Pair]]
    after: list[Pair]
    expression: str


def work(chain: Chain, wrong: tuple[int, Pair] | None = None) -> Work:
    """Carry the chain out. wrong = (index of a sum, error added to its result) spoils it and what follows."""
    _, start, events = chain
    sums: list[tuple[str, Pair, Pair, Pair]] = []
    after = []

    def add(op: str, x: tuple[Pair, str], y: tuple[Pair, str]) -> tuple[Pair, str]:
        result = apply_event(op, x[0], y[0])
        if wrong and wrong[0] == len(sums):
            result = result[0] + wrong[1][0], result[1] + wrong[1][1]
        sums.append((op, x[0], y[0], result))
        return result, f"({x[1]}{op}{y[1]})"

    people = [(start, decimal(start))]  # per person: the amount, and the expression that leads to it
    for op, d, c in events:
        if op == "sum":
            now = people[0]
            for other in people[1:]:
                now = add("+", now, other)
            people = [now]
        else:
            now = add(op[-1], people[-1], ((d, c), operand(op, (d, c))))
            people = [*people, now] if op[0] == "r" else [*people[:-1], now]
        after.append(people[-1][0])
    return Work(sums, after, people[-1][1])


def operand(op: str, pair: Pair) -> str:
    """An operand in a sum: an amount, or the plain number that multiplies or divides."""
    return str(pair[0]) if op[-1] in "*/" else decimal(pair)


def decimal(pair: Pair) -> str:
    """16.3, and a gain or loss without tenths as 4."""
    return f"{pair[0]}.{pair[1]}" if pair[1] else str(pair[0])


def chain_key(chain: Chain) -> str:
    """The canonical chain as text: task, start, operations and operands; no skin, names or wordings."""
    task, start, events = chain
    return " ".join([task, decimal(start), *(f"{op}{d}.{c}" for op, d, c in events)])


def chain_split(chain: Chain) -> str:
    """train (80 %), val or test (10 % each), by hash: the same for every seed."""
    bucket = hashlib.sha256(chain_key(chain).encode()).digest()[0] % 10
    return {0: "test", 1: "val"}.get(bucket, "train")


def train_chain(rng: random.Random, task: str) -> Chain:
    while chain_split(chain := draw_hard(rng) if task == "hard" else draw_gsm(rng, TEXT_STEPS)) != "train":
        pass
    return chain


# ---------------------------------------------------------------- questions: words
def question_sentences(chain: Chain, rng: random.Random) -> list[str]:
    """The chain as a word problem, with a random skin, names and wordings: the start, each event, the question."""
    task, start, events = chain
    noun = rng.choice(list(SKINS))
    unit = SKINS[noun][0]
    names = rng.sample(PEOPLE, 4)
    name, sentences = names[0], [f"{names[0]} has {decimal(start)} {unit} of {noun}."]
    for op, d, c in events:
        previous, amount = name, decimal((d, c))
        if op[0] == "r":
            name = names[names.index(name) + 1]
        sentences.append(event_sentence(rng, op, d, noun, n=name, p=previous, y=amount))
        if op == "sum":
            name = "The group"
    return [*sentences, "How much now?" if task == "gsm" else f"How much has {name} now?".replace("The g", "the g")]


OP_NAMES = {"+": "plus", "-": "minus", "*": "times", "/": "over"}
STYLES = ("equations", "retold", "running", "nested")


def solution(chain: Chain, style: str, sentences: list[str], wrong: tuple[int, Pair] | None = None) -> tuple[str, str]:
    """(work in one style, answer), for a question of these sentences. The work has no final marker. A sum that goes on
    from the last one does not repeat it: `equations` reads "16.3+2=18.3*2=36.6"."""
    done = work(chain, wrong)
    answer = decimal(done.sums[-1][3])
    if style == "retold":
        events = [f"{says[:-1]}: {decimal(z)}." for says, z in zip(sentences[1:-1], done.after, strict=True)]
        return " ".join([sentences[0], *events]), answer
    if style == "running":
        return ">".join([decimal(chain[1]), *(decimal(z) for *_, z in done.sums)]), answer
    if style == "nested":
        return done.expression, answer
    text, last = "", None
    for op, x, y, z in done.sums:
        text += "" if x == last else (" " if last else "") + decimal(x)
        text += f"{op}{operand(op, y)}={decimal(z)}"
        last = z
    return text, answer


# ---------------------------------------------------------------- math documents
FORMATS = {  # how a problem, its work and its answer are written, and the share of worksheets in that form
    "Q: {problem}\nA: {work} #### {answer}\n": 0.25,
    "{problem} {work} So {answer}.\n": 0.35,
    "Problem: {problem}\nSolution: {work} The answer is {answer}.\n": 0.25,
    "Q: {problem}\nA: {work} {answer}\n": 0.15,
}


def draw_error(rng: random.Random, chain: Chain) -> tuple[int, Pair]:
    """A slip in one sum, such that what follows from it still looks like amounts."""
    while True:
        wrong = rng.randrange(len(work(chain).sums)), rng.choice([(1, 0), (-1, 0), (2, 0), (0, 1), (0, -1), (0, 2)])
        if all(fits(result, (99, 9)) for *_, result in work(chain, wrong).sums):
            return wrong


def worksheet(rng: random.Random, hard_share: float) -> str:
    """1-10 problems of train chains in one format, joined as few-shot prompts are; some work is wrong or missing."""
    form = rng.choices(list(FORMATS), list(FORMATS.values()))[0]
    problems = []
    for _ in range(rng.randint(1, 10)):
        chain = train_chain(rng, "hard" if rng.random() < hard_share else "gsm")
        wrong = draw_error(rng, chain) if rng.random() < WRONG_WORK else None
        sentences = question_sentences(chain, rng)
        text, answer = solution(chain, rng.choice(STYLES), sentences, wrong)
        text = "" if rng.random() < NO_WORK else text
        problem = form.format(problem=" ".join(sentences), work=text, answer=answer)
        problems.append(problem.replace("  ", " "))  # no work leaves two spaces
    return "".join(problems)


def drill(rng: random.Random, largest: int, most: int) -> str:
    """A line of single sums in the notation of the equations, or in words."""
    sums = []
    while len(sums) < 8:
        op = rng.choice("+++---*/")
        x = rng.randint(1, largest), rng.randint(1, 9)
        y = (rng.randint(1, most), 0) if op in "+-" else (rng.choice([2, 2, 3]),) * 2
        z = apply_event(op, x, y)
        if fits(z, (largest, 9)) and (op != "/" or all(a % b == 0 for a, b in zip(x, y, strict=True))):
            sums.append((decimal(x), op, operand(op, y), decimal(z)))
    if rng.random() < 0.25:
        return " ".join(f"{x} {OP_NAMES[op]} {y} is {z}." for x, op, y, z in sums[:6]) + "\n"
    return " ".join(f"{x}{op}{y}={z}" for x, op, y, z in sums) + "\n"


def math_document(rng: random.Random) -> str:
    return drill(rng, GSM_MAX[0], GSM_OPERAND) if rng.random() < DRILL_DOCUMENTS else worksheet(rng, HARD_SHARE)


def hard_document(rng: random.Random) -> str:
    return drill(rng, HARD_MAX[0], HARD_OPERAND) if rng.random() < DRILL_DOCUMENTS else worksheet(rng, 1.0)


# ---------------------------------------------------------------- question files
def question_rows(task: str, seed: int) -> dict[str, list[dict]]:
    """split -> rows; every question has one row per style, adjacent, in an order drawn by the question's hash."""
    rng = random.Random(f"{seed}:{task}:questions")
    rows: dict[str, list[dict]] = {split: [] for split in N_QUESTIONS[task]}
    seen = set()
    while any(len(rows[split]) < n * len(STYLES) for split, n in N_QUESTIONS[task].items()):
        chain = DRAW[task](rng)
        key, split = chain_key(chain), chain_split(chain)
        if key in seen or len(rows[split]) >= N_QUESTIONS[task][split] * len(STYLES):
            continue
        seen.add(key)
        styles = random.Random(key).sample(STYLES, len(STYLES))  # the first is THE solution of plain SFT
        sentences = question_sentences(chain, rng)
        for style in styles:
            text, answer = solution(chain, style, sentences)
            rows[split].append(
                {
                    "problem": " ".join(sentences),
                    "generated_solution": f"{text} #### {answer}",
                    "expected_answer": answer,
                    "problem_source": task,
                    "chain": key,
                    "style": style,
                }
            )
    return rows


# ---------------------------------------------------------------- files
def token_stream(
    make: Callable[[random.Random], str], rng: random.Random, enc: tiktoken.Encoding, n_tokens: int, name: str = "text"
) -> np.ndarray:
    """Exactly n_tokens of documents, each behind an end-of-text token, (n_tokens,) uint16. Says how far it is."""
    pieces, total, told = [], 0, time.time()
    while total < n_tokens:
        if time.time() - told > 2:
            print(f"writing {name}: {total:,} of {n_tokens:,} tokens", flush=True)
            told = time.time()
        text = "".join(EOT + make(rng) for _ in range(2000))
        pieces.append(enc.encode_to_numpy(text, allowed_special={EOT}).astype(np.uint16))
        total += len(pieces[-1])
    return np.concatenate(pieces)[:n_tokens]


def code_hash() -> str:
    """Of the code that decides what a world holds, not of its comments and layout. A folder's file `made_by` has that
    of the code that made it."""
    files = [Path(__file__), Path(__file__).with_name("world_general.py")]
    return hashlib.sha256(b"".join(read_source(path)[1] for path in files)).hexdigest()


def build(out: Path, seed: int, n_tokens: int) -> tuple:
    """Write the whole data folder; return what `report` prints from: (meta, encoding, question rows, items, makers)."""
    (out / "meta.json").unlink(missing_ok=True)  # no longer whole
    facts = people_facts(seed)
    makers: dict[str, Callable[[random.Random], str]] = {
        "general.bin": lambda rng: document(rng, facts),
        "math.bin": math_document,
        "hard.bin": hard_document,
    }
    sizes = {  # hard.bin: what the math-heavy mix needs for as many tokens
        "general.bin": round(n_tokens * (1 - MATH_SHARE)),
        "math.bin": round(n_tokens * MATH_SHARE),
        "hard.bin": round(n_tokens * MIXES["math-heavy"]["hard.bin"]),
    }
    print("drawing questions, training the tokenizer", flush=True)
    rows = {task: question_rows(task, seed) for task in DRAW}
    items = benchmarks(seed, facts)

    rng = random.Random(f"{seed}:vocabulary")
    sample = [makers["general.bin" if i % 3 else "math.bin"](rng) for i in range(9000)]
    sample += [row["problem"] + " " + row["generated_solution"] for row in rows["hard"]["train"][:2000]]
    forced = [str(n) for n in range(HARD_MAX[0] + 1)] + [f".{n}" for n in range(1, 10)]
    enc = make_encoding("world", train_bpe(sample, VOCAB_SIZE, forced=forced))
    save_ranks(enc._mergeable_ranks, out / "tokenizer.tiktoken")
    for name, make in makers.items():
        token_stream(make, random.Random(f"{seed}:{name}"), enc, sizes[name], name).tofile(out / name)
    rng = random.Random(f"{seed}:val.bin")
    held_out = [token_stream(makers[f], rng, enc, round(n_tokens * share / 60)) for f, share in MIXES["base"].items()]
    sizes["val.bin"] = sum(map(len, held_out))
    np.concatenate(held_out).tofile(out / "val.bin")
    for split in ("train", "val", "test"):
        write_jsonl(out / f"{split}.jsonl", [row for task in rows for row in rows[task][split]])
    for name, bench in items.items():
        write_jsonl(out / f"bench_{name}.jsonl", bench)

    answers = {
        task: {split: [row["expected_answer"] for row in rows[task][split][:: len(STYLES)]] for split in rows[task]}
        for task in rows
    }
    meta = {
        "format": 1,
        "kind": "world",
        "tokenizer": tokenizer_id(enc) | {"file": "tokenizer.tiktoken"},
        "files": {name: {"dtype": "uint16", "tokens": size} for name, size in sizes.items()},
        "mixes": MIXES,
        "val": "val.bin",
        "block_size": BLOCK_SIZE,
        "seed": seed,
        "guess_floor": {
            task: {str(k): floor for k, floor in guess_floor(a["train"], a["test"], (1, 8, 32)).items()}
            for task, a in answers.items()
        },
    }
    write_text(out / "made_by", code_hash() + "\n")
    write_json(out / "meta.json", meta)  # last: a folder that has it is whole
    return meta, enc, rows, items, makers


def report(meta: dict, enc: tiktoken.Encoding, rows: dict, items: dict, makers: dict, seed: int) -> None:
    """Print counts, lengths in tokens, the guess floor and one example of everything."""
    rng = random.Random(f"{seed}:examples")

    def length(text):
        return len(enc.encode_ordinary(text))

    print(f"vocabulary {enc.n_vocab} tokens, hash {meta['tokenizer']['hash'][:12]}")
    for name, entry in meta["files"].items():
        print(f"{name:12s} {entry['tokens']:>11,} tokens")
    for name in makers:
        texts = [makers[name](rng) for _ in range(1000)]
        print(f"\n{name}: {sum(map(length, texts)) / 1000 + 1:.0f} tokens a document, such as")
        print("\n".join("    " + text.strip().replace("\n", "\n    ") for text in texts[:4]))
    for task in rows:
        counts = ", ".join(f"{split} {len(rows[task][split]) // len(STYLES)}" for split in rows[task])
        floor = ", ".join(f"pass@{k} {100 * p:.2f} %" for k, p in meta["guess_floor"][task].items())
        texts = [f"Q: {row['problem']}\nA: {row['generated_solution']}\n" for row in rows[task]["train"]]
        sizes = sorted(map(length, texts))
        print(f"\n{task}: questions {counts}; guess floor {floor}")
        print(
            f"    tokens: mean {sum(sizes) / len(sizes):.0f}, 99 % {sizes[len(sizes) * 99 // 100]}, longest {sizes[-1]}"
        )
        prompts = sorted(sum(length(text) for text in rng.sample(texts, 8)) for _ in range(500))
        print(f"    8 shots: mean {sum(prompts) // 500} tokens, longest of 500 draws {prompts[-1]}")
        print(
            "    " + "    ".join(texts[0].splitlines(True)[:1] + [text.split("\n")[1] + "\n" for text in texts[:4]]),
            end="",
        )
    for name, bench in items.items():
        item = bench[0]
        ending = item.get("choices", item.get("target"))
        print(f"\nbench_{name}: {len(bench)} items, {len({row['fact'] for row in bench})} facts")
        print(f"    {item['context']} ... {ending}")


def make(out: Path, seed: int = 0, n_tokens: int = 12_000_000) -> None:
    """Write the world to the folder `out` and print what it holds."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        report(*build(out, seed, n_tokens), seed)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write ({error.strerror}); give a folder that can be written") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.world", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="data/world", help="folder to write (default data/world)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    parser.add_argument("--tokens", type=int, default=12_000_000, help="base-mix training tokens (default 12000000)")
    args = parser.parse_args()
    if args.tokens < 10_000:
        raise UserError(f"--tokens {args.tokens}: a world needs at least 10000 tokens to hold every kind of document")
    make(Path(args.out), args.seed, args.tokens)


if __name__ == "__main__":
    run(main)
