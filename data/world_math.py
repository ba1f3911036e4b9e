"""The mathematics of the world: chains of events, told as questions with their solutions, worksheets and drills.

A question follows an amount through a chain of events: "Zoe has 16.3 kg of rice. Zoe buys 2. The rice doubles. How
much now?" The amount is a PAIR of small numbers, units and tenths, which never carry into each other by construction:
gains and losses are whole and change the units, doubling or splitting changes both, and the answer is the pair written
as one decimal, 36.6. So the sums stay few enough for a tiny model to learn within millions of tokens, yet answers
spread over 360 values and guessing gets nowhere (with one number up to 30, 32 blind guesses would pass 70 % of the
questions). Six `gsm` chains of seven multiply or divide; among the questions no answer is common, and no difference
between answer and start: who reads the first number alone knows nothing usual to add to it (`data/world_rules.py`).
`hard` chains relate several people and use larger numbers. `long` ones are `gsm` chains longer than any in the text.

Ambiguity is wanted: four document formats, four styles of solution, a tenth of the pre-training solutions with a wrong
number and a tenth with no work at all. A base model then knows more than its single tries show, as the paper's base
models do, and RL has something to find.

Splits: the canonical chain (start, operations, operands; no names or wordings) is hashed to train, val or test before
any text is written. Worksheets in the pre-training text use train chains alone.
"""

import hashlib
import random
from collections import Counter
from dataclasses import dataclass
from functools import cache

from data.world_general import PEOPLE, SKINS, event_sentence

# ---------------------------------------------------------------- size and difficulty
DRILL_DOCUMENTS = 0.4  # of the math documents, about 30 % of their tokens; the rest are worksheets
HARD_SHARE = 0.03  # of the worksheet problems in math.bin
NO_WORK, WRONG_WORK = 0.1, 0.1  # of the pre-training solutions

# number of events in a chain, and how often: of gsm, of the pre-training text, which is mostly easier, and of long
STEPS = {2: 0.25, 3: 0.25, 4: 0.2, 5: 0.15, 6: 0.15}
TEXT_STEPS = {2: 0.35, 3: 0.3, 4: 0.2, 5: 0.1, 6: 0.05}
LONG_STEPS = {7: 0.25, 8: 0.25, 9: 0.25, 10: 0.25}
SCALINGS = {1: 0.6, 2: 0.4}  # how many events of a chain multiply or divide; two where three events are or more
UNSCALED = 0.14  # of the chains: gains and losses alone
MOST_ALIKE = 0.0042  # of a split's gsm questions: with one answer, or one difference between answer and start
GSM_MAX, HARD_MAX = (40, 9), (60, 9)  # largest units and tenths at any time
MIN = (1, 1)  # smallest units and tenths
GSM_OPERAND, HARD_OPERAND = 5, 8  # most units gained or lost at once
N_QUESTIONS = {
    "gsm": {"train": 4000, "val": 400, "test": 500},
    "hard": {"train": 2000, "val": 400, "test": 500},
    "long": {"train": 0, "val": 100, "test": 300},
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


def draw_operations(rng: random.Random, n_steps: int, scaled: bool) -> list[str]:
    """Of a chain; never two of * and / in a row: doubling what was just halved is no work."""
    wanted = rng.choices(list(SCALINGS), list(SCALINGS.values()))[0] if scaled else 0
    while True:
        places = rng.sample(range(n_steps), min(wanted, (n_steps + 1) // 2))
        if not any(place + 1 in places for place in places):
            return [rng.choice("**/" if i in places else "+-") for i in range(n_steps)]


@cache
def undone(op: str, after: Pair) -> list[tuple[int, Pair]]:
    """(k, before) for every number k that a chain may hold there: `before` and the event (op, k) give `after`."""
    ways = []
    for k in [2, 2, 3] if op in "*/" else range(1, GSM_OPERAND + 1):
        before = apply_event({"+": "-", "-": "+", "*": "/", "/": "*"}[op], after, (k, k if op in "*/" else 0))
        if fits(before, GSM_MAX) and not (op == "*" and (after[0] % k or after[1] % k)):
            ways.append((k, before))
    return ways


def draw_gsm(rng: random.Random, steps: dict[int, float] = STEPS, task: str = "gsm") -> Chain:
    """A chain drawn backwards from its answer, which is not the number that it starts with. Answers are flat, but for
    those with 5 or 7 tenths, which no product and no part of small tenths has: they are of gains and losses alone."""
    n_steps, scaled = rng.choices(list(steps), list(steps.values()))[0], rng.random() >= UNSCALED
    while True:
        answer = rng.randint(MIN[0], GSM_MAX[0]), rng.choice([1, 2, 3, 4, 6, 8, 9] if scaled else [5, 7])
        for _ in range(30):  # some answers have no way back in so few events
            now, events = answer, []
            for op in reversed(draw_operations(rng, n_steps, scaled)):
                if not (ways := undone(op, now)):
                    break
                k, now = rng.choice(ways)
                events = [(op, k, k if op in "*/" else 0), *events]
            if len(events) == n_steps and now != answer:
                return task, now, tuple(events)


def draw_long(rng: random.Random) -> Chain:
    return draw_gsm(rng, LONG_STEPS, "long")


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


DRAW = {"gsm": draw_gsm, "hard": draw_hard, "long": draw_long}


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
    return [*sentences, "How much now?" if task != "hard" else f"How much has {name} now?".replace("The g", "the g")]


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
def question_chains(task: str, seed: int) -> dict[str, list[Chain]]:
    """split -> different chains; no answer and no difference between it and the start is common among those of gsm."""
    rng = random.Random(f"{seed}:{task}:questions")
    wanted = N_QUESTIONS[task]
    chains: dict[str, list[Chain]] = {split: [] for split in wanted}
    seen, counts = set(), Counter()
    while any(len(chains[split]) < n for split, n in wanted.items()):
        chain = DRAW[task](rng)
        key, split = chain_key(chain), chain_split(chain)
        (units, tenths), (now_units, now_tenths) = chain[1], work(chain).after[-1]
        alike = [("answer", now_units, now_tenths), ("change", 10 * (now_units - units) + now_tenths - tenths)]
        if key in seen or len(chains[split]) >= wanted[split]:
            continue
        if task == "gsm" and any(counts[split, kind] >= MOST_ALIKE * wanted[split] for kind in alike):
            continue
        seen.add(key)
        counts.update((split, kind) for kind in alike)
        chains[split].append(chain)
    for split in chains:
        rng.shuffle(chains[split])  # the last ones drawn are those that were still allowed
    return chains


def question_rows(task: str, seed: int) -> dict[str, list[dict]]:
    """split -> rows; every question has one row per style, adjacent, in an order drawn by the question's hash."""
    rng = random.Random(f"{seed}:{task}:wordings")
    chains, rows = question_chains(task, seed), {}
    for split in chains:
        rows[split] = []
        for chain in chains[split]:
            key = chain_key(chain)
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
