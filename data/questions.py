r"""Files of math questions: what the data sets look like, and their questions.

| task      | rows                                                         | splits                                    |
|-----------|--------------------------------------------------------------|-------------------------------------------|
| gsm, hard | a world folder's {problem, generated_solution,               | train, val, test                          |
| long      | expected_answer, problem_source}                             | val, test: train on gsm                   |
| gsm8k     | {question, answer}; ends `#### N`, `<<..>>` marks (MIT)      | test 1,319; val: 500 of the 7,473 train   |
| svamp     | array of {Body, Question, Equation, Answer} (MIT)            | test 1,000                                |
| math      | {problem, solution[, answer]} (MIT)                          | test 5,000; val: 500 of the 7,500 train   |
| math500   | MATH-500, rows as those of math                              | test 500                                  |
| openmath  | OpenMathInstruct-2 rows, keys as the world's (CC BY 4.0)     | train; val: a tenth, at most 1,000        |

A row may lack its solution (RL needs the answer alone). Real files are looked for under the given folder, then under
$REAL_DATA, by several names (data/public.py). Where MATH-500 and the other 4,500 test problems are all that is there of
MATH, they serve as its test and train, and this is said. Validation questions of the real sets are drawn from train
with a fixed seed and are not in the train split that is returned.
"""

import hashlib
import math
import os
import random
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from data.files import UserError, counted, leave_out, read_rows
from data.grading import answers_equal, boxed_answer, extract_answer, parse_number
from data.prepared import Prepared, PreparedQuestions, is_prepared
from data.public import find_files

WORLD = "data/world"  # the default of --data, which real sets do without
WORLD_TASKS = ("gsm", "hard", "long")
TRAINS_ON = {"long": "gsm"}  # a set without training questions -> the set whose exemplars and answers stand for them
REAL_FILES = {  # task -> split -> file below the data folder; "val" is held out of train where it has no file
    "gsm8k": {"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl"},
    "svamp": {"test": "svamp/SVAMP.json"},
    "math": {"train": "math/train.jsonl", "test": "math/test.jsonl"},
    "math500": {"test": "math/math500_test.jsonl"},
    "openmath": {"train": "multi_solution/openmathinstruct2_rows.jsonl"},
}
TASKS = WORLD_TASKS + tuple(REAL_FILES)
NUMERIC_TASKS = (*WORLD_TASKS, "gsm8k", "svamp")  # their gold answers must be numbers
HELD_OUT = {"gsm8k": 500, "math": 500, "openmath": 1000}  # validation questions, at most a tenth of train
HELD_OUT_SEED = 42


@dataclass
class Question:
    """One question. `solutions` are correct, in the target form of the task's template; the first is plain SFT's."""

    qid: str
    problem: str
    solutions: list[str]
    answer: str
    source: str


def text_of(row: dict, key: str, where: str) -> str:
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
        value = f"{Decimal(repr(value)).normalize():f}" if isinstance(value, float) else str(value)  # never 1e-06
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {key!r} must be text that is not empty, got {value!r:.60}; mend that row")
    return value.strip()


def read_row(row: dict, where: str) -> tuple[str, str, str, str]:
    """(problem, solution or "", gold, source) of a row of any of the schemas above."""
    if "expected_answer" in row:
        solution = text_of(row, "generated_solution", where) if "generated_solution" in row else ""
        problem, gold = text_of(row, "problem", where), text_of(row, "expected_answer", where)
        return problem, solution, gold, str(row.get("problem_source", ""))
    if "question" in row:
        solution = re.sub(r"<<[^<>\n]*>>", "", text_of(row, "answer", where))
        return text_of(row, "question", where), solution, extract_answer(solution) or "", "gsm8k"
    if "Body" in row:
        body, gold = text_of(row, "Body", where), text_of(row, "Answer", where)
        problem = body + (" " if body[-1] in ".,?!" else ". ") + text_of(row, "Question", where)
        return problem, f"{row.get('Equation', '')} = {gold}\n#### {gold}", gold, "svamp"
    if "problem" in row and ("solution" in row or "answer" in row):
        solution = text_of(row, "solution", where) if "solution" in row else ""
        gold = text_of(row, "answer", where) if "answer" in row else boxed_answer(solution) or ""
        return text_of(row, "problem", where), solution, gold, "math"
    keys = ", ".join(sorted(map(str, row)))[:80]
    raise UserError(f"{where}: keys {keys!r} are of no known question file; see the table in data/questions.py")


def _read_questions(paths: list[Path], task: str) -> list[Question]:
    """Questions of some files, rows of the same problem together. Odd rows (no JSON, no gold answer that the task can
    use, another gold answer than the problem's first) are left out and counted, if they are few."""
    questions: dict[str, Question] = {}
    rows, refused, odd = 0, 0, []
    found = (row for path in paths for row in read_rows(path, odd))
    for where, row in counted(found, f"reading {paths[0].name}: rows"):
        rows += 1
        try:
            problem, solution, gold, source = read_row(row, where)
            if not gold or (task in NUMERIC_TASKS and parse_number(gold) is None):
                raise UserError(f"{where}: gold answer {gold!r:.60} cannot be parsed; mend or remove that row")
            if row.get("is_correct") is False or (task in WORLD_TASKS and source != task):
                continue  # files of sampled solutions mark the wrong ones; a world's file holds both tiers
            known = questions.get(problem) or Question(f"{task}/{len(questions)}", problem, [], gold, source)
            if gold != known.answer and not answers_equal(known.answer, gold):
                earlier = f"but an earlier row of the same problem has {known.answer!r:.60}"
                raise UserError(f"{where}: gold answer {gold!r:.60}, {earlier}; mend one")
        except UserError as error:
            odd.append(str(error))
            refused += 1
            continue
        questions[problem] = known
        if solution and solution not in known.solutions:
            known.solutions.append(solution)
    rows += len(odd) - refused  # those that are no JSON were not handed on
    leave_out(odd, rows)
    if not questions:
        reason = f"no row has problem_source {task!r}" if rows else "the file is empty"
        raise UserError(f"{paths[0]}: no questions ({reason}); make or fetch the file again")
    return list(questions.values())


def questions_hash(questions: list[Question] | PreparedQuestions) -> str:
    """Tells training questions apart: of their texts, or of what a prepared folder was made from."""
    if isinstance(questions, PreparedQuestions):
        return questions.hash()
    rows = repr([(q.problem, q.solutions, q.answer) for q in questions])
    return hashlib.sha256(rows.encode()).hexdigest()


def load_questions(
    path_or_folder: str | os.PathLike | None, task: str, split: str
) -> list[Question] | PreparedQuestions:
    """Questions of one task and split, in file order. `path_or_folder`: a world folder, a folder that holds the real
    files, a folder made by data.prepare questions (task openmath), or one question file (then `task` says how to read
    its gold, and `split` is held out of it as above).

    Rows of the same problem become one question with several solutions, or none where the file has only answers.
    UserError: no such file or split, empty file, too many odd rows (not JSON, a gold answer that cannot be parsed).
    """
    if task not in TASKS:
        raise UserError(f"task {task!r}: unknown; give one of {', '.join(TASKS)}")
    if split == "train" and task in TRAINS_ON:
        raise UserError(f"task {task!r} has no training questions; train on {TRAINS_ON[task]!r}")
    given = Path(path_or_folder) if path_or_folder else None
    if given and task not in WORLD_TASKS and given != Path(WORLD) and not given.exists():  # a slip is not $REAL_DATA's
        raise UserError(f"--data {given}: no such file or folder; check the path")
    if given and task in ("openmath", *WORLD_TASKS) and is_prepared(given):
        if task != "openmath":
            raise UserError(f"{given} holds prepared questions, and none of the task {task!r}; give --task openmath")
        return Prepared(given).questions(split)
    files = {s: f"{s}.jsonl" for s in ("train", "val", "test")} if task in WORLD_TASKS else REAL_FILES[task]
    has_val = task in HELD_OUT  # its validation questions come out of the train file
    if split not in files and not (split == "val" and has_val):
        raise UserError(
            f"task {task!r} has no {split!r} split; use one of {', '.join([*files, 'val'] if has_val else files)}"
        )
    path = given if given and given.is_file() else None
    if path is None and task in WORLD_TASKS:
        path = (given or Path(".")) / files[split]
        if not path.is_file():
            raise UserError(f"{path}: no such file; make the world with `python -m data.world`, or give its folder")
    paths = [path] if path else find_files(task, files, "train" if split == "val" else split, given)
    if task == "math" and not path and paths[0].name == "math500_test.jsonl":
        print("note: MATH's 5,000 test questions were not found; these are the 500 of MATH-500", flush=True)

    found = _read_questions(paths, task)
    if not has_val or split == "test":
        return found
    n_val = min(HELD_OUT[task], len(found) // 10)
    held = set(random.Random(HELD_OUT_SEED).sample(range(len(found)), n_val))
    found = [q for i, q in enumerate(found) if (i in held) == (split == "val")]
    if not found:
        raise UserError(f"{paths[0]}: too few questions to hold out a {split} split; use train, or a larger file")
    return found
