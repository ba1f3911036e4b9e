"""A study read back: its evaluations by what was evaluated, the logs of its runs, scores of each question and their
paired differences. claims.py judges them; figures.py and tables.py show them.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np

from common import UserError
from data.math_qa import answers_equal, parse_number
from evaluate import pass_at_k
from model import PRESETS as SHAPES
from study.archive import StudyFiles
from study.stats import Difference

NAMES = {"base": "base", "rl": "RL", "sft": "SFT", "gold": "SFT-Gold", "sft_rl": "SFT→RL", "gold_rl": "Gold→RL",
         "parallel": "parallel"}  # fmt: skip
pass_of_counts = cache(pass_at_k)  # few counts, asked for very often


def read_json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def read_jsonl(path: Path) -> list[dict]:
    """Rows of a log; [] if there is none. A row cut off by a crash is left out."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


class Lab:
    """Evaluations of a study by what was evaluated, and the logs of its runs."""

    def __init__(self, path: str | Path):
        """path: a study's folder, its archive, or the folder in which that lies."""
        self.files = StudyFiles(path)
        self.folder, self.manifest = self.files.folder, self.files.manifest
        self.runs = [r for r in self.manifest["runs"] if r["kind"] != "eval"]
        self.evals = [r for r in self.manifest["runs"] if r["kind"] == "eval"]
        self.copying = self.manifest.get("copying", {})  # of the gsm test questions
        self.unreadable: list[str] = []  # evaluations, and why; they count as not run
        for r in self.evals:
            r["result"] = self.evaluation(r["out"])
            if self.copying and r["result"] and r["split"] == "test" and "gsm" in r["result"]["questions"]:
                columns = r["result"]["questions"]["gsm"]["questions"]
                columns["first"] = [self.copying["first"][qid] for qid in columns["qid"]]
        main = [r for r in self.evals if r["base"] == "base" and r["group"] == "main"]
        self.few_shot = max((r["n_shot"] for r in main), default=8)
        self.planned = {m: sorted({r["tokens"] for r in main if r["method"] == m}) for m in NAMES}
        self.primary = self.manifest.get("primary") or self.planned["rl"]
        self.early, self.late = min(self.primary, default=0), max(self.primary, default=0)

    def evaluation(self, name: str) -> dict | None:
        try:
            return self.files.json(name)
        except UserError as error:
            self.unreadable.append(str(error))
            return None

    def find(self, **want) -> list[dict]:
        """Finished evaluations with these fields; unless said, of pre-training "base", group "main", test questions,
        no variant, T 0.6, after the last step. ... leaves a field open."""
        usual = dict(base="base", group="main", split="test", variant="", temperature=0.6, train_step=None)
        want = {k: v for k, v in (usual | want).items() if v is not ...}
        return [r for r in self.evals if r["result"] and all(r.get(k) == v for k, v in want.items())]

    def by_seed(self, method: str, tokens: int, n_shot: int = 0, **want) -> dict[int, dict]:
        return {r["seed"]: r["result"] for r in self.find(method=method, tokens=tokens, n_shot=n_shot, **want)}

    def asked_on_validation(self, tokens: int, base: str = "base") -> list[dict]:
        return self.find(method="base", tokens=tokens, base=base, split="val", group="shots", n_shot=...)

    def shots(self, tokens: int, base: str = "base") -> int | None:
        """The number of shots that validation questions prefer for the base at this checkpoint (pass@1); a study that
        asked only one on validation takes the paper's few-shot base."""
        planned = {r["n_shot"] for r in self.evals if (r["group"], r["tokens"], r["base"]) == ("shots", tokens, base)}
        found = self.asked_on_validation(tokens, base)
        if len(planned) < 2 or len(found) < 2:
            return self.few_shot
        return max(found, key=lambda r: value(r["result"], 1))["n_shot"]

    def base(self, tokens: int, n_shot: int | None | str = "best", **want) -> dict[None, dict]:
        """Its one evaluation, under the key None: a base has no post-training seed and is paired with every one."""
        n_shot = self.shots(tokens) if n_shot == "best" else n_shot
        found = {} if n_shot is None else self.by_seed("base", tokens, n_shot, **want)
        return dict.fromkeys([None], next(iter(found.values()))) if found else {}

    def log(self, method: str, tokens: int, seed: int, group: str = "main", variant: str = "") -> list[dict]:
        """metrics.jsonl of a run from pre-training "base"."""
        key = (method, "base", tokens, seed, group, variant)
        for r in self.runs:
            if (r["method"], r["base"], r.get("tokens"), r["seed"], r.get("group"), r.get("variant")) == key:
                return self.files.rows(r["metrics"])
        return []

    def flops_per_token(self, base: str = "base") -> float:
        """Training FLOPs of a token at the model's whole context; a third of it is one forward pass."""
        model = next((r for r in self.runs if r["kind"] == "pretrain" and r["base"] == base), {})
        shape = SHAPES[model.get("preset", "world")]
        return shape.flops_per_token(shape.block_size)


def value(result: dict, k: int, scoring: str = "flexible", task: str = "gsm") -> float:
    return result["questions"][task][scoring][f"pass@{k}"]["value"]


def per_question(result: dict, k: int, scoring: str = "flexible", task: str = "gsm") -> np.ndarray:
    q = result["questions"][task]["questions"]
    return np.array([pass_of_counts(n, c, k) for n, c in zip(q["n"], q[scoring], strict=True)])


def shuffled(result: dict, k: int, task: str = "gsm", shifts: int = 20) -> np.ndarray:
    """The shuffle control: pass@k of each question when its answers are those that the model gave to another, the one
    s further on; mean over `shifts` different s. Kept with the result, since it takes a while."""
    kept = result.setdefault("shuffled", {})
    if (k, task) in kept:
        return kept[k, task]
    q = result["questions"][task]["questions"]

    @cache
    def key(answer: str):
        number = parse_number(answer)
        return answer.strip() if number is None else number

    counts = []  # of each question: answer -> how often
    for answers in q["answers"]:
        counts.append({})
        for answer, times in answers.items():
            if answer:
                counts[-1][key(answer)] = counts[-1].get(key(answer), 0) + times
    size, gold = len(counts), [key(g) for g in q["gold"]]
    steps = [1 + i * (size - 1) // shifts for i in range(min(shifts, size - 1))]
    dealt = [[pass_of_counts(q["n"][i], counts[(i + s) % size].get(gold[i], 0), k) for s in steps] for i in range(size)]
    kept[k, task] = np.array(dealt).mean(1)
    return kept[k, task]


def copied(result: dict) -> float:
    """Share of a model's answers that are their question's first number."""
    q = result["questions"]["gsm"]["questions"]
    counts = [
        sum(n for answer, n in answers.items() if answers_equal(answer, first))
        for answers, first in zip(q["answers"], q["first"], strict=True)
    ]
    return sum(counts) / sum(q["n"])


def scores(result: dict, metric, task: str) -> np.ndarray:
    """Of each question. metric: k of pass@k; ("beyond", k): pass@k minus the shuffle control; ("uncopied", k): pass@k
    of the questions whose answer is not their first number."""
    if isinstance(metric, int):
        return per_question(result, metric, task=task)
    kind, k = metric
    if kind == "beyond":
        return per_question(result, k, task=task) - shuffled(result, k, task)
    q = result["questions"][task]["questions"]
    return per_question(result, k, task=task)[
        [not answers_equal(*pair) for pair in zip(q["gold"], q["first"], strict=True)]
    ]


def subtract(a: dict[int, dict], b: dict[int, dict], metric, task: str = "gsm") -> Difference | None:
    """a - b over the seeds that both have; a b of one shared result (key None) is taken from each of a's."""
    if None in b:
        b = dict.fromkeys(a, b[None])
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    if metric != "general":
        return of_rows([scores(a[s], metric, task) - scores(b[s], metric, task) for s in seeds])
    parts = []
    for name, bench in a[seeds[0]]["benchmarks"].items():
        facts = np.array(bench["facts"])
        hits = lambda r, name=name: np.array(list(map(int, r["benchmarks"][name]["hits"])))  # noqa: E731
        sums = np.array([np.bincount(facts, hits(a[s]) - hits(b[s])) for s in seeds])
        parts.append((sums, np.bincount(facts)))
    return Difference(parts) if parts else None


def of_rows(rows: list[np.ndarray]) -> Difference:
    return Difference([(np.array(rows), np.ones(len(rows[0])))])


def mean(found: dict, k: int = 1) -> float:
    """pass@k, mean over seeds."""
    return float(np.mean([value(r, k) for r in found.values()]))


def mean_score(found: dict, k: int) -> str:
    return f"{100 * mean(found, k):.1f}"


def pools(lab: Lab) -> list[int]:
    found = {r["variant"].removeprefix("pool") for r in lab.evals if r["group"] == "c3" and r["method"] == "rl"}
    return sorted(map(int, found))


def validation_loss(lab: Lab, base: str, tokens: int) -> float | None:
    """Of the pre-training run when it had read `tokens`."""
    run = next(r for r in lab.runs if r["kind"] == "pretrain" and r["base"] == base)
    for row in lab.files.rows(run["metrics"]):
        if row.get("train/tokens") == tokens and "eval/loss" in row:
            return row["eval/loss"]
    return None
