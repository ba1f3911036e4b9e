"""A study read back: its evaluations by what was evaluated, the logs of its runs, scores of each question and their
paired differences. The claims judge them; figures and tables show them.
"""

from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from data.files import UserError, field
from model import PRESETS as SHAPES
from study.archive import StudyFiles
from study.controls import pass_of_counts
from study.stats import Difference

NAMES = {
    "base": "base",
    "rl": "RL",
    "sft": "SFT",
    "gold": "SFT-Gold",
    "sft_rl": "SFT→RL",
    "parallel": "parallel",
}
KS = (1, 8, 32)
# What the report reads of runs.json (and of its runs, by kind), and the types that it must have.
MANIFEST = {"preset": str, "seed": int, "machine": str, "jobs": int, "runs": list}
RUN = {"name": str, "kind": str, "method": str, "seed": int, "out": str, "command": str, "finished": bool}
KINDS: dict[str, dict] = {
    "pretrain": {"metrics": str, "config": dict},
    "train": {"metrics": str, "config": dict, "tokens": int, "group": str, "variant": str},
    "eval": {"tokens": int, "n_shot": int, "split": str, "group": str, "variant": str, "temperature": float},
}
CONFIG = {  # settings of a run, by kind and group
    "pretrain": ("steps", "batch_tokens"),
    "train": ("steps",),
    "c9": ("steps", "prompts_per_step", "group_size"),
}
OPTIONAL = {"events": dict, "data": dict, "trials": dict, "primary": list, "seconds": float}
COUNTS = ("n", "strict", "flexible", "formatted")  # of each question's completions
MEND = "run python -m study again, or take back what was changed by hand"


# ---------------------------------------------------------------- what is read in
def check_manifest(manifest: dict, where: Path) -> None:
    for key, kind in MANIFEST.items():
        field(manifest, key, kind, where, MEND)
    for key, kind in OPTIONAL.items():
        if manifest.get(key) is not None:
            field(manifest, key, kind, where, MEND)
    if not all(type(tokens) is int for tokens in manifest.get("primary") or []):
        raise UserError(f"{where}: 'primary' must be numbers of tokens, got {manifest['primary']!r:.60}; {MEND}")
    for qid in manifest.get("events") or {}:
        field(manifest["events"], qid, int, where, MEND)
    rules = (manifest.get("data") or {}).get("blind_rules") or {}
    for k in ("1", "8", "32") if rules else ():
        field(rules, k, float, f"{where}, blind_rules", MEND)
    for i, run in enumerate(manifest["runs"]):
        place = f"{where}, run {i}"
        if not isinstance(run, dict):
            raise UserError(f"{place}: an object is needed, got {run!r:.60}; {MEND}")
        for key, kind in RUN.items():
            field(run, key, kind, place, MEND)
        if run["kind"] not in KINDS or run["method"] not in NAMES:
            raise UserError(f"{place}: kind {run['kind']!r:.30} of {run['method']!r:.30} is no kind of run; {MEND}")
        for key, kind in KINDS[run["kind"]].items():
            field(run, key, kind, place, MEND)
        for key in CONFIG.get("c9" if run.get("group") == "c9" else run["kind"], ()) if "config" in run else ():
            field(run["config"], key, int, place, MEND)
        if run.get("seconds") is not None:
            field(run, "seconds", float, place, MEND)
        if "threads" in run:
            field(run, "threads", int, place, MEND)
        if run.get("preset", "world") not in SHAPES:
            raise UserError(f"{place}: {run['preset']!r:.30} is none of the models {' '.join(SHAPES)}; {MEND}")


def check_evaluation(result: dict, where: str) -> None:
    """UserError if something that the report reads is not there or of another type than evaluate.py writes."""
    for task, found in field(result, "questions", dict, where).items():
        place = f"{where}, {task}"
        columns = field(found if isinstance(found, dict) else {}, "questions", dict, place)
        size = len(field(columns, "n", list, place))
        for name, kind in {**dict.fromkeys(COUNTS, int), "gold": str, "qid": str, "answers": dict}.items():
            if len(field(columns, name, list, place)) != size or not all(type(v) is kind for v in columns[name]):
                raise UserError(f"{place}: {name!r} must be a list of {size} {kind.__name__}; evaluate that run again")
        for scoring in ("flexible", "strict"):
            for k, score in field(found, scoring, dict, place).items():
                field(score if isinstance(score, dict) else {}, "value", float, f"{place} {scoring} {k}")
        field(found, "format_rate", float, place)
        field(found, "guess_floor", dict, place)
    for name, found in field(result, "benchmarks", dict, where).items():
        bench, place = found if isinstance(found, dict) else {}, f"{where}, {name}"
        hits, facts = field(bench, "hits", str, place), field(bench, "facts", list, place)
        if len(hits) != len(facts) or set(hits) - {"0", "1"} or not all(type(f) is int and f >= 0 for f in facts):
            raise UserError(f"{place}: its hits must be 0 or 1 for each of its facts; evaluate that run again")
        field(bench, "chance", float, place)
    if result["benchmarks"]:
        field(result, "general_average", float, where)
    for key in ("relative_distance", "kl", "loss", "loss_reference") if "movement" in result else ():
        field(field(result, "movement", dict, where), key, float, where)


class Lab:
    """Evaluations of a study by what was evaluated, and the logs of its runs."""

    def __init__(self, path: str | Path):
        """path: a study's folder, its archive, or the folder in which that lies."""
        self.files = StudyFiles(path)
        self.folder, self.manifest = self.files.folder, self.files.manifest
        check_manifest(self.manifest, self.files.path)
        self.runs = [r for r in self.manifest["runs"] if r["kind"] != "eval"]
        self.evals = [r for r in self.manifest["runs"] if r["kind"] == "eval"]
        self.events: dict[str, int] = self.manifest.get("events") or {}  # of each test question
        self.blind: dict[str, float] = (self.manifest.get("data") or {}).get("blind_rules") or {}  # "1" -> pass@1, ..
        self.unreadable: list[str] = []  # evaluations, and why; they count as not run
        for r in self.evals:
            r["result"] = self.evaluation(r)
        main = [r for r in self.evals if r["group"] == "main" and not r["variant"]]
        self.few_shot = max((r["n_shot"] for r in main), default=8)
        self.planned = {m: sorted({r["tokens"] for r in main if r["method"] == m}) for m in NAMES}
        self.primary = self.manifest.get("primary") or self.planned["rl"]
        self.early, self.late = min(self.primary, default=0), max(self.primary, default=0)
        self.first, self.viewed = self.manifest["seed"], ""
        self.kept_rows: dict[str, list[dict]] = {}

    def evaluation(self, run: dict) -> dict | None:
        try:
            result = self.files.json(run["out"])
            if result is not None:
                check_evaluation(result, self.files.folder / run["out"])
            return result
        except UserError as error:
            self.unreadable.append(str(error))
            return None

    def viewed_as(self, view: str) -> "Lab":
        """The same study, with other runs in the place of the main ones: "hot", all asked at T 1; "half", direct RL at
        half its rate."""
        other = copy(self)
        other.viewed = view
        return other

    def find(self, **want) -> list[dict]:
        """Finished evaluations with these fields; unless said, of group "main", test questions, no variant, T 0.6,
        after the last step. ... leaves a field open."""
        usual = dict(group="main", split="test", variant="", temperature=0.6, train_step=None)
        want = {k: v for k, v in (usual | want).items() if v is not ...}
        if want.get("group") == "main" and want.get("split") == "test":
            want |= dict(group="hot", temperature=1.0) if self.viewed == "hot" else {}
            half = self.viewed == "half" and want.get("method") == "rl"
            want |= dict(group="half", variant="half") if half else {}
        return [r for r in self.evals if r["result"] and all(r.get(k) == v for k, v in want.items())]

    def by_seed(self, method: str, tokens: int, n_shot: int = 0, **want) -> dict[int, dict]:
        return {r["seed"]: r["result"] for r in self.find(method=method, tokens=tokens, n_shot=n_shot, **want)}

    def asked_on_validation(self, tokens: int, n_shot: int) -> list[dict]:
        """The base's evaluations on validation questions, with so many shots."""
        asked = dict(method="base", tokens=tokens, split="val", group="shots", n_shot=n_shot)
        return [r["result"] for r in self.find(**asked)]

    def shots(self, tokens: int) -> int:
        """The number of shots that validation questions prefer for the base at this checkpoint (pass@1, mean over
        pre-trainings); where only one was asked on validation, the paper's few-shot base."""
        asked = {r["n_shot"] for r in self.evals if (r["group"], r["tokens"]) == ("shots", tokens)}
        found = {n: np.mean([value(r, 1) for r in self.asked_on_validation(tokens, n)] or [0]) for n in sorted(asked)}
        return max(found, key=found.get) if len(found) > 1 and any(found.values()) else self.few_shot

    def base(self, tokens: int, n_shot: int | str = "best") -> dict[int, dict]:
        return self.by_seed("base", tokens, self.shots(tokens) if n_shot == "best" else n_shot)

    def rows(self, run: dict) -> list[dict]:
        """The numbers of each step of a run."""
        if run["metrics"] not in self.kept_rows:
            kept = [{k: v for k, v in r.items() if type(v) in (int, float)} for r in self.files.rows(run["metrics"])]
            self.kept_rows[run["metrics"]] = [row for row in kept if "step" in row]
        return self.kept_rows[run["metrics"]]

    def logs(self, method: str, tokens: int, group: str = "main", variant: str = "") -> dict[int, list[dict]]:
        """metrics.jsonl of each seed's run that has ended; one that broke off would spoil a mean."""
        key, found = (method, tokens, group, variant), {}
        for r in self.runs:
            if (r["method"], r.get("tokens"), r.get("group"), r.get("variant")) == key and (rows := self.rows(r)):
                if rows[-1]["step"] >= r["config"]["steps"]:
                    found[r["seed"]] = rows
        return found

    def config(self, method: str, tokens: int, group: str = "main", variant: str = "") -> dict:
        """What the plan gives such a run."""
        key = (method, tokens, group, variant)
        found = [r for r in self.runs if (r["method"], r.get("tokens"), r.get("group"), r.get("variant")) == key]
        return found[0]["config"] if found else {}

    def flops_per_token(self) -> float:
        """Training FLOPs of a token at the model's whole context; a third of it is one forward pass."""
        model = next((r for r in self.runs if r["kind"] == "pretrain"), {})
        shape = SHAPES[model.get("preset", "world")]
        return shape.flops_per_token(shape.block_size)


# ---------------------------------------------------------------- scores
def value(result: dict, k: int, scoring: str = "flexible", task: str = "gsm") -> float:
    return result["questions"][task][scoring][f"pass@{k}"]["value"]


def general_average(result: dict) -> float | None:
    """Of the six benchmarks, where they were asked."""
    return result.get("general_average") if result["benchmarks"] else None


def floor_of(lab: Lab, k: int) -> float | None:
    """pass@k of answers drawn blindly from those of the training questions."""
    return next((r["result"]["questions"]["gsm"]["guess_floor"].get(str(k)) for r in lab.find()), None)


def per_question(result: dict, k: int, scoring: str = "flexible", task: str = "gsm") -> np.ndarray:
    q = result["questions"][task]["questions"]
    return np.array([pass_of_counts(n, c, k) for n, c in zip(q["n"], q[scoring], strict=True)])


def subtract(a: dict[int, dict], b: dict[int, dict], metric: Any, task: str = "gsm") -> Difference | None:
    """a - b over the seeds that both have. metric: k of pass@k, or "general"."""
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    if metric != "general":
        if not all(task in r["questions"] for s in seeds for r in (a[s], b[s])):
            return None
        return of_rows([per_question(a[s], metric, task=task) - per_question(b[s], metric, task=task) for s in seeds])
    parts = []
    for name, bench in a[seeds[0]]["benchmarks"].items():
        if not all(name in b[s]["benchmarks"] for s in seeds):
            return None
        facts = np.array(bench["facts"])
        sums = [np.bincount(facts, hits(a[s], name) - hits(b[s], name)) for s in seeds]
        parts.append((np.array(sums), np.bincount(facts)))
    return Difference(parts) if parts else None


def hits(result: dict, benchmark: str) -> np.ndarray:
    """0 or 1 of each item."""
    return np.array(list(map(int, result["benchmarks"][benchmark]["hits"])))


def of_rows(rows: list[np.ndarray]) -> Difference:
    return Difference([(np.array(rows), np.ones(len(rows[0])))])


def mean(found: dict, k: int = 1) -> float:
    """pass@k, mean over seeds."""
    return float(np.mean([value(r, k) for r in found.values()]))


def mean_score(found: dict, k: int) -> str:
    return f"{100 * mean(found, k):.1f}"


def validation_loss(lab: Lab, seed: int, tokens: int) -> float | None:
    """Of the pre-training run when it had read `tokens`."""
    run = next(r for r in lab.runs if r["kind"] == "pretrain" and r["seed"] == seed)
    for row in lab.rows(run):
        if row.get("train/tokens") == tokens and "eval/loss" in row:
            return row["eval/loss"]
    return None


def best_blind(lab: Lab, k: int) -> float:
    """The most that answers reach which read one or two numbers of their question (data/world_rules.py)."""
    return max(lab.blind.get(str(k), 0.0), floor_of(lab, k) or 0.0)
