r"""Two published graders of answers beside ours (data/grading.py), written anew. Where they differ: docs/graders.md.

- `math`: equality of LaTeX answers as in the MATH release (Hendrycks et al. 2021, math_equivalence.py), with what
  Minerva (Lewkowycz et al. 2022, appendix D) and the paper's own scorer add. The last complete box states the answer.
- `gsm8k`: the paper's scorer of GSM8K. The first number of what stands behind the first `####`, else in the last box,
  else the last number of the text; right within a ten-thousandth of the gold answer.
- `math-verify`: the package of that name, which compares with a computer algebra system.

`ours` is the training reward's: exact numbers where `####` is the marker, `math` where it is the box.
"""

import math
import re

from data.files import UserError
from data.grading import WINDOW, answers_equal, boxed_answer, extract_answer, parse_number, to_ascii
from data.latex import math_form

GRADERS = ("ours", "math", "gsm8k", "math-verify")


def stated_answer(text: str, marker: str, flexible: bool = False, grader: str = "ours") -> str | None:
    """The answer that `grader` reads in a text. `flexible`: else the last number (not with `math`)."""
    if grader == "math":
        return boxed_answer(text)
    return (gsm8k_answer if grader == "gsm8k" else extract_answer)(text, flexible, marker)


def same_answer(answer: str | None, gold: str | None, marker: str, grader: str = "ours") -> bool:
    """Whether `grader` takes the answer for `gold`. None never equals None."""
    if answer is None or gold is None:
        return False
    if grader == "ours":
        return math_equal(answer, gold) if marker == "boxed" else answers_equal(answer, gold)
    return {"math": math_equal, "gsm8k": gsm8k_equal, "math-verify": verified_equal}[grader](answer, gold)


# -------------------------------------------------------------------------- MATH
def math_equal(a: str, b: str) -> bool:
    """The same number, exactly, or the same spelling."""
    value, other = parse_number(a), parse_number(b)
    if value is not None and other is not None:
        return value == other
    return math_form(a) == math_form(b) != ""


# -------------------------------------------------------------------------- GSM8K
_FIRST = re.compile(r"-?[0-9]+(?:\.[0-9]*)?|-?\.[0-9]+")
_PLAIN = re.compile(r"\{,\}|\\[,!;:]|[,$%]")
_LAST = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?")


def gsm8k_answer(text: str, flexible: bool = False, marker: str = "####") -> str | None:
    """What stands behind the first `####`, on its line. `flexible`: else in the last box, else the last number of the
    text. A task with the marker "boxed" has its strict answer in the last box."""
    stated = text.partition("####")[2].lstrip().split("\n", 1)[0].strip()
    if marker == "boxed" and not flexible:
        return boxed_answer(text)
    if stated or not flexible:
        return stated or None
    return boxed_answer(text) or _last_number(text)


def _last_number(text: str) -> str | None:
    end = 1 + max(text.rfind(digit) for digit in "0123456789")
    numbers = _LAST.findall(to_ascii(text[max(0, end - WINDOW) : end]))
    return numbers[-1] if numbers else None


def _first_number(answer: str) -> float | None:
    found = _FIRST.search(answer)
    value = float(found[0]) if found else math.inf
    return value if math.isfinite(value) else None


def gsm8k_equal(answer: str, gold: str) -> bool:
    """The same text, or first numbers that differ by at most a ten-thousandth of gold's."""
    answer, gold = (_PLAIN.sub("", to_ascii(text[:WINDOW])).strip().lower() for text in (answer, gold))
    value, other = _first_number(answer), _first_number(gold)
    if value is None or other is None:
        return answer == gold != ""
    return abs(value - other) <= 1e-8 + 1e-4 * abs(other)


# -------------------------------------------------------------------------- math-verify
def need_grader(grader: str) -> None:
    """UserError where its package is missing."""
    if grader == "math-verify":
        try:
            import math_verify  # noqa: F401
        except ImportError:
            mend = "pip install 'math-verify[antlr4_13_2]', or choose another grader"
            raise UserError(f"--grader math-verify: the package math-verify is not installed; {mend}") from None


def verified_equal(answer: str, gold: str) -> bool:
    """By math-verify, from the two as LaTeX."""
    from math_verify import parse, verify

    gold, answer = (parse(f"\\boxed{{{text[:WINDOW]}}}") for text in (gold, answer))
    return bool(verify(gold, answer))
