r"""Math questions: templates, few-shot prefixes, stop strings and the reward, all in one place, so that SFT, RL and
evaluation cannot disagree. Files of questions: data/questions.py; what a completion states: data/grading.py; whether
that is right: data/graders.py.

    python -m data.math_qa show gsm8k --split test --limit 2
    python -m data.math_qa prompt gsm8k --n-shot 2
    python -m data.math_qa prompt gsm8k --template paper-base      # the paper's, of a base model
    python -m data.math_qa score completions.jsonl        # rows {"completion", "gold"}
"""

import argparse
import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import tiktoken
import torch

from common import UserError, run
from data.files import counted, read_jsonl, read_rows
from data.graders import GRADERS, need_grader, same_answer, stated_answer
from data.grading import answers_equal as answers_equal  # for those who import it from here
from data.grading import boxed_answer, clean, parse_number
from data.grading import extract_answer as extract_answer
from data.prepared import PreparedQuestions
from data.public import find_files
from data.questions import REAL_FILES, TASKS, Question, load_questions, text_of
from data.tokenizer import token_bytes


# ---------------------------------------------------------------- templates
@dataclass(frozen=True)
class Template:
    """How a question becomes text. Exemplars are prompt + target, or `turn` where the tested question's prompt differs
    from theirs, joined by `shot_separator` alone."""

    name: str
    prompt: str  # has {problem}
    target: str  # has {solution}
    marker: str  # how an answer is stated: "####" (or else a box), or "boxed" (by the last box alone)
    stops: tuple[str, ...]  # a completion ends before the first of these, or at end-of-text
    shot_separator: str = ""
    begin: bool = True  # end-of-text stands before a prompt, as before a document of pre-training
    turn: str = ""  # has {problem} and {solution}: one exemplar


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
# The authors' prompts (RachitBansal/verl, scripts/create_fewshot_dataset.py and fix_chat_template_correct.py): nothing
# before the text, every message followed by one newline, an answer ends at end-of-text alone.
_BOX = BOXED_SENTENCE.replace("{}", "{{}}")
_TURN = "Question: {problem}\nAnswer: {solution}\n"
_TESTED = "Question: {problem}\nAnswer: "
_FIELD = 'Let\'s think step by step and output the final answer after "####".'
TEMPLATES |= {
    "paper": Template("paper", "{problem} " + _BOX + "\n", "{solution}", "boxed", (), "\n", begin=False),
    "paper-base": Template("paper-base", _TESTED + _FIELD + "\n", "{solution}", "####", (), begin=False, turn=_TURN),
    "paper-base-math": Template(
        "paper-base-math", _TESTED + _BOX + "\n", "{solution}", "boxed", (), begin=False, turn=_TURN
    ),
}
TASK_TEMPLATE = {
    "gsm": "world",
    "hard": "world",
    "long": "world",
    "gsm8k": "gsm8k",
    "svamp": "gsm8k",
    "math": "boxed",
    "math500": "boxed",
    "openmath": "boxed",
}


def template_for(task: str | Template) -> Template:
    """The template of a task, or the template of that name."""
    if isinstance(task, Template):
        return task
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


# --------------------------------------------------------------------- reward
def reward(completion: str, gold: str, template: Template | str = "world") -> float:
    """The training reward: 1.0 when the answer stated by the marker of `template` (or its name) is `gold`, else 0.0."""
    marker = template_for(template).marker
    return float(same_answer(stated_answer(completion, marker), gold, marker))


def reward_flexible(completion: str, gold: str, template: Template | str = "world") -> float:
    """As `reward`, but the last number counts when no marker states an answer. For evaluation only."""
    marker = template_for(template).marker
    return float(same_answer(stated_answer(completion, marker, flexible=True), gold, marker))


# ------------------------------------------------------------ few-shot prefixes
def paper_exemplars(folder: str | os.PathLike | None, n_shot: int, template: Template) -> str:
    """The first `n_shot` of the authors' eight exemplars: rows of GSM8K's train file, with its calculator marks, which
    they drew by np.random.seed(42). For a boxed template the line `#### 8` reads `\\boxed{8}`."""
    (path, *_) = find_files("gsm8k", REAL_FILES["gsm8k"], "train", folder)
    rows = [row for _, row in read_rows(path, [])]
    if not 0 <= n_shot <= 8 or len(rows) != 7473:
        what = f"--n-shot {n_shot} of the paper's exemplars, out of {path} with {len(rows):,} rows"
        raise UserError(f"{what}: there are 8, and they are told by their place in GSM8K's 7,473 training rows")
    drawn = np.random.RandomState(42).choice(len(rows), 8, replace=False)[:n_shot]
    text = ""
    for row in (rows[i] for i in drawn):
        work, _, answer = (part.strip() for part in row["answer"].rpartition("####"))
        end = f"\\boxed{{{answer}}}" if template.marker == "boxed" else f"#### {answer}"
        text += template.turn.format(problem=row["question"].strip(), solution=f"{work}\n{end}")
    return text


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
    enc: tiktoken.Encoding, prompts: Sequence[str], prefix: str | Sequence[str] = "", begin: bool = True
) -> tuple[list[int], list[list[int]]]:
    """Ids of end-of-text + prefix + prompt for each prompt, split into the part that all share and the rest of each.
    `prefix`: of all, or one for each. `begin`: the template's; without it no end-of-text stands in front.

    Whole texts are encoded, since a token may span the seam; then the longest common beginning that leaves every row
    a token is parted off, for `generate(prefix=..)`. One prompt, or an empty prefix, shares the end-of-text only.
    """
    start = [enc.eot_token] if begin else []
    prefixes = [prefix] * len(prompts) if isinstance(prefix, str) else prefix
    texts = [before + prompt for before, prompt in zip(prefixes, prompts, strict=True)]
    rows = [[*start, *ids] for ids in enc.encode_ordinary_batch(texts, num_threads=1)]
    shared = len(start)
    if not rows:
        return start, []
    if common := os.path.commonprefix(list(set(prefixes))):
        limit = min(min(map(len, rows)) - 1, shared + len(enc.encode_ordinary(common)))
        while shared < limit and all(row[shared] == rows[0][shared] for row in rows):
            shared += 1
    return rows[0][:shared], [row[shared:] for row in rows]


def question_prompts(enc, questions, template) -> Sequence[list[int]]:
    """Ids of each question as a prompt, which begins with end-of-text where the template says so."""
    if isinstance(questions, PreparedQuestions):
        return questions.prompts(enc, template)
    start = [enc.eot_token] if template.begin else []
    questions = counted(questions, "tokenizing questions")
    return [[*start, *enc.encode_ordinary(format_prompt(q, template))] for q in questions]


def draw(n: int, count: int, step: int, seed: int) -> list[int]:
    """Batch `step` of `count` items out of n: seeded permutations of range(n), one after the other, cut into batches.
    A pure function of its arguments, so that resuming needs no state."""
    places = range(step * count, (step + 1) * count)
    return [int(permutation(n, seed, place // n)[place % n]) for place in places]


@lru_cache(maxsize=4)
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order.to(torch.int32).numpy()  # half the memory: n may be 14 million


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


def stop_strings(args, enc, template) -> StopStrings | None:
    """Where rollouts end besides end-of-text. A base model that is not stopped after its answer runs on into a new
    question: those tokens share the answer's reward, so most of the gradient teaches running on."""
    return StopStrings(enc, template.stops) if args.stop == "template" else None


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
    score.add_argument("--template", choices=TEMPLATES, default="world", help="whose marker states the answer")
    score.add_argument("--grader", choices=GRADERS, default="ours", help="who says what is right: docs/graders.md")
    args = parser.parse_args()

    if args.command == "score":
        need_grader(args.grader)
        marker, grader = TEMPLATES[args.template].marker, args.grader
        strict, flexible, failures, n = 0, 0, 0, 0
        for number, row in read_jsonl(args.file):
            where = f"{args.file}:{number}"
            completion = row.get("completion")
            if not isinstance(completion, str):
                raise UserError(f"{where}: 'completion' must be text, got {completion!r}; mend that row")
            gold = text_of(row, "gold", where)
            by_marker, last = (stated_answer(completion, marker, loose, grader) for loose in (False, True))
            strict += same_answer(by_marker, gold, marker, grader)
            flexible += same_answer(last, gold, marker, grader)
            failures += by_marker is None
            n += 1
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
    if template.turn:
        prefix = paper_exemplars(args.data, args.n_shot, template)
    else:
        train = load_questions(args.data, args.task, "train") if args.n_shot else []
        prefix = few_shot_prefix(train, args.n_shot, args.seed, template)
    for q in questions[: args.limit]:
        print(f"{prefix}{format_prompt(q, template)}\n--- stops {template.stops}, gold {q.answer}")


if __name__ == "__main__":
    run(main)
