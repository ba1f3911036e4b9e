"""The mathematics of the world: chains of events, told as questions with their solutions, worksheets and drills.

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
"""

import hashlib
import random
from dataclasses import dataclass

from data.world_general import PEOPLE, SKINS, event_sentence

# ---------------------------------------------------------------- size and difficulty
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
