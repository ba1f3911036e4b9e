r"""Math questions: loading, templates, few-shot prefixes and stop strings, all in one place, so that SFT, RL and
evaluation cannot disagree. What a completion states and whether it is right: data/grading.py.

| task      | rows                                                         | splits                                    |
|-----------|--------------------------------------------------------------|-------------------------------------------|
| gsm, hard | a world folder's {problem, generated_solution,               | train, val, test                          |
|           | expected_answer, problem_source}                             |                                           |
| gsm8k     | {question, answer}; ends `#### N`, `<<..>>` marks (MIT)      | test 1,319; val: 500 of the 7,473 train   |
| svamp     | array of {Body, Question, Equation, Answer} (MIT)            | test 1,000                                |
| math      | {problem, solution[, answer]} (MIT)                          | test 500; val: 450 of the 4,500 train     |
| openmath  | OpenMathInstruct-2 rows, keys as the world's (CC BY 4.0)     | train; val: a tenth, at most 1,000        |

Real files are looked for under the given folder, then under $REAL_DATA. Validation questions of the real sets are drawn
from train with a fixed seed and are not in the train split that is returned.

    python -m data.math_qa show gsm8k --split test --limit 2
    python -m data.math_qa prompt gsm8k --n-shot 2
    python -m data.math_qa score completions.jsonl        # rows {"completion", "gold"}
"""

import argparse
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

import tiktoken
import torch

from common import UserError, run
from data.files import counted, read_jsonl, read_rows
from data.grading import (
    answers_equal,
    boxed_answer,
    clean,
    extract_answer,
    parse_number,
    reward,
    reward_flexible,
)
from data.tokenizer import token_bytes

WORLD_TASKS = ("gsm", "hard")
REAL_FILES = {  # task -> split -> file below the data folder; "val" is held out of train where it has no file
    "gsm8k": {"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl"},
    "svamp": {"test": "svamp/SVAMP.json"},
    "math": {"train": "math/math_train_4500.jsonl", "test": "math/math500_test.jsonl"},
    "openmath": {"train": "multi_solution/openmathinstruct2_rows.jsonl"},
}
TASKS = WORLD_TASKS + tuple(REAL_FILES)
NUMERIC_TASKS = ("gsm", "hard", "gsm8k", "svamp")  # their gold answers must be numbers
HELD_OUT = {"gsm8k": 500, "math": 500, "openmath": 1000}  # validation questions, at most a tenth of train
HELD_OUT_SEED = 42
ODD_ROWS = 0.01  # share of a file's rows that may be odd: they are left out and counted; more are refused


@dataclass
class Question:
    """One question. `solutions` are correct, in the target form of the task's template; the first is plain SFT's."""

    qid: str
    problem: str
    solutions: list[str]
    answer: str
    source: str


# ---------------------------------------------------------------- templates
@dataclass(frozen=True)
class Template:
    """How a question becomes text. Exemplars are prompt + target, joined by `shot_separator` alone."""

    name: str
    prompt: str  # has {problem}
    target: str  # has {solution}
    marker: str  # how a solution states its answer: "####" or "boxed"
    stops: tuple[str, ...]  # a completion ends before the first of these, or at end-of-text
    shot_separator: str = ""


BOXED_SENTENCE = r"Let's think step by step and output the final answer within \boxed{}."
TEMPLATES = {
    "world": Template("world", "Q: {problem}\nA:", " {solution}\n", "####", ("\n",)),
    "gsm8k": Template("gsm8k", "Question: {problem}\nAnswer:", " {solution}\n", "####", ("Question:",), "\n"),
    # a model that runs on into a new problem is stopped before the box of the instruction's next copy
    "boxed": Template(
        "boxed",
        "{problem} " + BOXED_SENTENCE.replace("{}", "{{}}") + "\n",
        "{solution}",
        "boxed",
        (r"final answer within \boxed{}",),
        "\n\n",
    ),
}
TASK_TEMPLATE = {
    "gsm": "world",
    "hard": "world",
    "gsm8k": "gsm8k",
    "svamp": "gsm8k",
    "math": "boxed",
    "openmath": "boxed",
}


def template_for(task: str) -> Template:
    """The template of a task, or the template of that name."""
    name = TASK_TEMPLATE.get(task, task)
    if name not in TEMPLATES:
        raise UserError(
            f"task {task!r}: unknown; give one of {', '.join(TASKS)} (or a template: {', '.join(TEMPLATES)})"
        )
    return TEMPLATES[name]


def format_prompt(question: Question, template: Template) -> str:
    return template.prompt.format(problem=question.problem)


def format_target(question: Question, solution: str, template: Template) -> str:
    """Text after the prompt, end-of-text not included. A solution with the other marker gets the template's."""
    if template.marker == "boxed" and boxed_answer(solution) is None:
        solution = solution.split("####")[0].rstrip() + f"\nThe answer is \\boxed{{{question.answer}}}."
    elif template.marker == "####" and "####" not in solution:
        gap = " " if "\n" in template.stops else "\n"  # a template that stops at a newline holds one-line solutions
        solution = f"{solution}{gap}#### {question.answer}"
    return template.target.format(solution=solution)


def few_shot_prefix(
    train_questions: Sequence[Question], n_shot: int, seed: int, template: Template, tested: str | None = None
) -> str:
    """`n_shot` worked exemplars drawn once with `seed`, the same for every question; goes before `format_prompt`. The
    problem that is `tested` never stands among them: another takes its place."""
    worked = [q for q in train_questions if q.solutions]
    if not 0 <= n_shot <= len(worked):
        what = f"the train split has {len(worked)} questions with solutions"
        raise UserError(f"--n-shot {n_shot}: {what}; ask for 0 to that many")
    chosen = random.Random(seed).sample(worked, n_shot)
    if any(q.problem == tested for q in chosen):
        shown = {q.problem for q in chosen}
        others = [q for q in worked if q.problem not in shown]
        if not others:
            what = f"the train split has {len(worked)} questions, and the tested one is no exemplar of its own"
            raise UserError(f"--n-shot {n_shot}: {what}; lower it")
        other = random.Random(f"{seed}:{tested}").choice(others)
        chosen = [other if q.problem == tested else q for q in chosen]
    exemplars = (format_prompt(q, template) + format_target(q, q.solutions[0], template) for q in chosen)
    return "".join(text + template.shot_separator for text in exemplars)


def few_shot_prefixes(
    questions: Sequence[Question], train_questions: Sequence[Question], n_shot: int, seed: int, template: Template
) -> list[str]:
    """The prefix of each question: the same for all, but for those that stand in it."""
    common = few_shot_prefix(train_questions, n_shot, seed, template)
    return [
        few_shot_prefix(train_questions, n_shot, seed, template, tested=q.problem)
        if format_prompt(q, template) in common
        else common
        for q in questions
    ]


def encode_prompts(
    enc: tiktoken.Encoding, prompts: Sequence[str], prefix: str | Sequence[str] = ""
) -> tuple[list[int], list[list[int]]]:
    """Ids of end-of-text + prefix + prompt for each prompt, split into the part that all share and the rest of each.
    `prefix`: of all, or one for each.

    Whole texts are encoded, since a token may span the seam; then the longest common beginning that leaves every row
    a token is parted off, for `generate(prefix=..)`. One prompt, or an empty prefix, shares the end-of-text only.
    """
    prefixes = [prefix] * len(prompts) if isinstance(prefix, str) else prefix
    texts = [before + prompt for before, prompt in zip(prefixes, prompts, strict=True)]
    rows = [[enc.eot_token, *ids] for ids in enc.encode_ordinary_batch(texts, num_threads=1)]
    if not rows:
        return [enc.eot_token], []
    shared = 1
    if common := os.path.commonprefix(list(set(prefixes))):
        limit = min(min(map(len, rows)) - 1, 1 + len(enc.encode_ordinary(common)))
        while shared < limit and all(row[shared] == rows[0][shared] for row in rows):
            shared += 1
    return rows[0][:shared], [row[shared:] for row in rows]


def draw(n: int, count: int, step: int, seed: int) -> list[int]:
    """Batch `step` of `count` items out of n: seeded permutations of range(n), one after the other, cut into batches.
    A pure function of its arguments, so that resuming needs no state."""
    return [permutation(n, seed, position // n)[position % n] for position in range(step * count, (step + 1) * count)]


@lru_cache(maxsize=4)
def permutation(n: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()


# ---------------------------------------------------------------- stop strings
def cut(text: str, stops: Iterable[str]) -> str:
    """`text` before the first stop string in it."""
    ends = [end for end in (text.find(stop) for stop in stops) if end >= 0]
    return text[: min(ends)] if ends else text


class StopStrings:
    """Tells a sampler when a row's text holds a stop string.

    candidates (n_vocab,) bool: tokens that hold the last byte of some stop string. Only a row whose newest token is one
    of these needs the call, `stops(ids) -> bool`, which looks at the bytes of the last few ids.
    """

    def __init__(self, tokenizer: tiktoken.Encoding, stops: Iterable[str]):
        self.stops = tuple(stops)
        if "" in self.stops:
            raise UserError("stop string '': empty, it would stop everywhere; leave it out")
        self._table = token_bytes(tokenizer)
        self._needles = [stop.encode() for stop in self.stops]
        self._reach = max(
            map(len, self._needles), default=0
        )  # tokens that a stop string can span: each has a byte at least
        self.candidates = torch.tensor([any(n[-1:] in (t or b"") for n in self._needles) for t in self._table])

    def __call__(self, ids: Sequence[int]) -> bool:
        tail = ids[-self._reach :] if self._reach else []
        text = b"".join((self._table[i] if 0 <= i < len(self._table) else None) or b"" for i in tail)
        return any(needle in text for needle in self._needles)

    def cut(self, text: str) -> str:
        return cut(text, self.stops)


# ---------------------------------------------------------------- loading
def guess_floor(train_answers: Iterable[str], test_answers: Iterable[str], ks: Iterable[int]) -> dict[int, float]:
    """pass@k of answers drawn blindly from the training answers: mean over test of 1 - (1 - share of the answer)^k."""

    def key(answer: str):
        value = parse_number(answer)
        return clean(answer) if value is None else value

    shares, tests = Counter(map(key, train_answers)), [key(answer) for answer in test_answers]
    total = sum(shares.values())
    if not total or not tests:
        raise UserError("guess floor: no training or no test answers; give both")
    return {k: sum(1 - (1 - shares[t] / total) ** k for t in tests) / len(tests) for k in ks}


def find_file(relative: str, folder: str | os.PathLike | None) -> Path:
    """`relative` under `folder`, else under $REAL_DATA; UserError when in neither."""
    roots = [Path(root) for root in (folder, os.environ.get("REAL_DATA")) if root]
    for root in roots:
        if (root / relative).is_file():
            return root / relative
    places = " and ".join(map(str, roots)) or "no folder"
    raise UserError(f"{relative}: not found (looked in {places}); set REAL_DATA to the folder that holds it")


def _text(row: dict, key: str, where: str) -> str:
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
        value = f"{Decimal(repr(value)).normalize():f}" if isinstance(value, float) else str(value)  # never 1e-06
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {key!r} must be text that is not empty, got {value!r:.60}; mend that row")
    return value.strip()


def _read_row(row: dict, where: str) -> tuple[str, str, str, str]:
    """(problem, solution or "", gold, source) of a row of any of the schemas above."""
    if "expected_answer" in row:
        solution = _text(row, "generated_solution", where) if "generated_solution" in row else ""
        problem, gold = _text(row, "problem", where), _text(row, "expected_answer", where)
        return problem, solution, gold, str(row.get("problem_source", ""))
    if "question" in row:
        solution = re.sub(r"<<[^<>\n]*>>", "", _text(row, "answer", where))
        return _text(row, "question", where), solution, extract_answer(solution) or "", "gsm8k"
    if "Body" in row:
        body, gold = _text(row, "Body", where), _text(row, "Answer", where)
        problem = body + (" " if body[-1] in ".,?!" else ". ") + _text(row, "Question", where)
        return problem, f"{row.get('Equation', '')} = {gold}\n#### {gold}", gold, "svamp"
    if "problem" in row and ("solution" in row or "answer" in row):
        solution = _text(row, "solution", where) if "solution" in row else ""
        gold = _text(row, "answer", where) if "answer" in row else boxed_answer(solution) or ""
        return _text(row, "problem", where), solution, gold, "math"
    keys = ", ".join(sorted(map(str, row)))[:80]
    raise UserError(f"{where}: keys {keys!r} are of no known question file; see the table in data/math_qa.py")


def _read_questions(path: Path, task: str) -> list[Question]:
    """Questions of a file, rows of the same problem together. Odd rows (no JSON, no gold answer that the task can use,
    another gold answer than the problem's first) are left out and counted, if there are no more than ODD_ROWS."""
    questions: dict[str, Question] = {}
    rows, refused, odd = 0, 0, []
    for where, row in counted(read_rows(path, odd), f"reading {path.name}: rows"):
        rows += 1
        try:
            problem, solution, gold, source = _read_row(row, where)
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
    if odd:
        rows += len(odd) - refused  # those that are no JSON were not handed on
        count = f"{len(odd):,} of {rows:,} rows are odd"
        if len(odd) > ODD_ROWS * rows:
            raise UserError(f"{odd[0]} ({count}; at most {ODD_ROWS:.0%} may be, and are left out)")
        print(f"note: {count} and left out; the first: {odd[0]}")
    if not questions:
        reason = f"no row has problem_source {task!r}" if rows else "the file is empty"
        raise UserError(f"{path}: no questions ({reason}); make or fetch the file again")
    return list(questions.values())


def load_questions(path_or_folder: str | os.PathLike | None, task: str, split: str) -> list[Question]:
    """Questions of one task and split, in file order. `path_or_folder`: a world folder, a folder that holds the real
    files, or one question file (then `task` says how to read its gold, and `split` is held out of it as above).

    Rows of the same problem become one question with several solutions, or none where the file has only answers.
    UserError: no such file or split, empty file, too many odd rows (not JSON, a gold answer that cannot be parsed).
    """
    if task not in TASKS:
        raise UserError(f"task {task!r}: unknown; give one of {', '.join(TASKS)}")
    given = Path(path_or_folder) if path_or_folder else None
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
    path = path or find_file(files["train" if split == "val" else split], given)

    found = _read_questions(path, task)
    if not has_val or split == "test":
        return found
    n_val = min(HELD_OUT[task], len(found) // 10)
    held = set(random.Random(HELD_OUT_SEED).sample(range(len(found)), n_val))
    found = [q for i, q in enumerate(found) if (i in held) == (split == "val")]
    if not found:
        raise UserError(f"{path}: too few questions to hold out a {split} split; use train, or a larger file")
    return found


# ---------------------------------------------------------------- command line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.math_qa", description="Show, prompt and score math questions."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print questions with their gold answers")
    prompt = commands.add_parser("prompt", help="print a few-shot prompt as the model sees it")
    for command in (show, prompt):
        command.add_argument("task", choices=TASKS)
        command.add_argument("--data", default="data/world", help="folder of the world or of real files")
        command.add_argument("--split", default="val", choices=("train", "val", "test"))
        command.add_argument("--limit", type=int, default=3, help="questions to print (default 3)")
    prompt.add_argument("--n-shot", type=int, default=8, help="worked exemplars from train (0 = none)")
    prompt.add_argument("--seed", type=int, default=0, help="which exemplars")
    prompt.add_argument("--template", choices=TEMPLATES, help="override the task's template")
    score = commands.add_parser("score", help="score a JSONL of {completion, gold}")
    score.add_argument("file")
    args = parser.parse_args()

    if args.command == "score":
        strict, flexible, failures, n = 0.0, 0.0, 0, 0
        for number, row in read_jsonl(args.file):
            where = f"{args.file}:{number}"
            completion = row.get("completion")
            if not isinstance(completion, str):
                raise UserError(f"{where}: 'completion' must be text, got {completion!r}; mend that row")
            gold = _text(row, "gold", where)
            strict, flexible, n = strict + reward(completion, gold), flexible + reward_flexible(completion, gold), n + 1
            failures += extract_answer(completion) is None
        if not n:
            raise UserError(f"{args.file}: no rows; give a JSONL of {{completion, gold}}")
        print(
            f"{n} completions | exact_match_strict {strict / n:.4f} | exact_match_flexible {flexible / n:.4f} | "
            f"parse_failure {failures / n:.4f}"
        )
        return
    questions = load_questions(args.data, args.task, args.split)
    if args.command == "show":
        n_solutions = sum(len(q.solutions) for q in questions)
        print(f"{args.task} {args.split}: {len(questions)} questions, {n_solutions} solutions")
        for q in questions[: args.limit]:
            print(f"\n[{q.qid}] {q.problem}\n  gold {q.answer}; solutions:")
            for solution in q.solutions:
                print("  | " + solution.replace("\n", "\n  | "))
        return
    template = template_for(args.template or args.task)
    train = load_questions(args.data, args.task, "train") if args.n_shot else []
    prefix = few_shot_prefix(train, args.n_shot, args.seed, template)
    for q in questions[: args.limit]:
        print(f"{prefix}{format_prompt(q, template)}\n--- stops {template.stops}, gold {q.answer}")


if __name__ == "__main__":
    run(main)
