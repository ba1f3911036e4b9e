"""How far do blind rules get? They read one number of a question, or none, and add something usual to it.

A rule is a number read from the question (none, the first, the last) and the differences between answer and that number
that are most usual among the training questions: its k guesses are the number plus each of the k most usual ones (of
"none": the k most usual answers; with difference 0: a copy). The wider family reads several numbers, or multiplies the
first: such a rule does a part of the work. Differences are counted on training questions; what passes is counted on
validation and test questions.

    python -m data.world_rules data/world
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

from common import UserError, run
from data.questions import Question, load_questions

Numbers = list[Fraction]
BLIND: dict[str, Callable[[Numbers], Fraction]] = {
    "the most usual answers": lambda n: Fraction(0),
    "first number": lambda n: n[0],
    "last number": lambda n: n[-1],
}
WIDER: dict[str, Callable[[Numbers], Fraction]] = {
    "first + last": lambda n: n[0] + n[-1],
    "first - last": lambda n: n[0] - n[-1],
    "sum of all": lambda n: sum(n, Fraction(0)),
} | {
    f"{factor} x first number": lambda n, factor=factor: factor * n[0]
    for factor in map(Fraction, ("2", "3", "4", "6", "1/2", "1/3", "2/3", "3/2"))
}
KS = (1, 8, 32)


def numbers(problem: str) -> Numbers:
    return [Fraction(text) for text in re.findall(r"\d+(?:\.\d+)?", problem)]


def passes(read: Callable, train: Sequence[Question], held: Sequence[Question], k: int) -> float:
    """Share of `held` that one of the rule's k guesses answers."""

    def difference(q: Question) -> Fraction:
        return Fraction(q.answer) - read(numbers(q.problem))

    usual = {value for value, _ in Counter(map(difference, train)).most_common(k)}
    return sum(difference(q) in usual for q in held) / len(held)


def best(rules: dict, train: Sequence[Question], held: Sequence[Question]) -> dict[int, tuple[str, float]]:
    """k -> (name, share passed) of the best rule."""
    found = {k: {name: passes(read, train, held, k) for name, read in rules.items()} for k in KS}
    return {k: max(rates.items(), key=lambda item: item[1]) for k, rates in found.items()}


def copied(questions: Sequence[Question]) -> int:
    """How many questions are answered by a number that stands in them."""
    return sum(Fraction(q.answer) in numbers(q.problem) for q in questions)


def report(train: Sequence[Question], held: Sequence[Question]) -> None:
    for family, rules in (("best blind rule", BLIND), ("best of the wider family", WIDER)):
        shown = ", ".join(
            f"k = {k} {100 * rate:.1f} % ({name})" for k, (name, rate) in best(rules, train, held).items()
        )
        print(f"    {family}: {shown}")
    print(f"    answered by a number in the question: {copied([*train, *held])} of {len(train) + len(held)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.world_rules", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default="data/world", help="a world's folder (default data/world)")
    parser.add_argument("--task", default="gsm", choices=["gsm", "hard"])
    args = parser.parse_args()
    if not (Path(args.data) / "meta.json").exists():
        raise UserError(f"{args.data}: no world lies there; make it with `python -m data.world --out {args.data}`")
    train, val, test = (load_questions(args.data, args.task, split) for split in ("train", "val", "test"))
    print(f"{args.task}: {len(train)} training questions, {len(val) + len(test)} of validation and test")
    report(train, [*val, *test])


if __name__ == "__main__":
    run(main)
