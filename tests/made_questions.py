"""Rows as OpenMathInstruct-2's, and folders prepared from them, for tests."""

import json
from pathlib import Path

from tiny import BYTES

from data.math_qa import template_for
from data.prepare_questions import prepare

BOXED = template_for("boxed")


def made_rows(problems: int = 60) -> list[dict]:
    """1 to 4 solutions a problem, scattered; of some, two are the same. Problem n of 0, 3, 6, .. is of another kind."""
    rows = []
    for way in range(4):
        for n in range(problems):
            if way <= n % 4:
                solution = f"Way {way % 3}: {n} + {n % 7} = \\boxed{{{n + n % 7}}}é"
                source = ("math", "gsm8k", "augmented_gsm8k")[n % 3]
                row = {"problem": f"What is {n} + {n % 7}?", "generated_solution": solution}
                rows.append(row | {"expected_answer": str(n + n % 7), "problem_source": source})
    return rows


def write(path: Path, rows: list) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def prepared(out: Path, files: list[Path], enc=BYTES, **settings) -> dict:
    out.mkdir(exist_ok=True)
    return prepare(files, out, enc, BOXED, **settings)
