"""Turn a finished (or half-finished) study into report.md and figures. `study.py` calls `build`; it also runs alone:

    python report.py runs/laptop          # rebuilds runs/laptop/report.md and runs/laptop/figures/*.png in seconds

Every number comes from DIR/runs.json and the evaluation files that it names; only the paper's own numbers (`PAPER`) are
typed in. What is not there yet is said to be missing. Intervals of differences are paired: the two models' scores are
subtracted question by question (or benchmark item by item), and the questions drawn anew with replacement 4,000 times.
They hold for this one pre-training and this one seed: another seed may move more than they say.
"""

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window: figures are only written
import matplotlib.pyplot as plt
import numpy as np

from common import UserError, run, writable_dir
from evaluate import pass_at_k

# Rows of the tables; colour, line and marker of the figures. Lines and markers tell the methods apart in grey.
METHODS = {  # key: (name, short name, colour, line style, marker, filled)
    "base8": ("base, few-shot", "base few-shot", "#777777", "--", "o", False),
    "base0": ("base, 0-shot", "base 0-shot", "#a0a0a0", ":", "s", False),
    "rl": ("RL", "RL", "#a61c1c", "-", "o", True),
    "sft": ("SFT", "SFT", "#4a90c2", "-", "^", True),
    "gold": ("SFT-Gold", "SFT-Gold", "#d4a017", "-.", "D", True),
    "sft_rl": ("SFT→RL", "SFT→RL", "#7d3c98", "--", "v", True),
    "parallel": ("parallel averaging", "parallel", "#111111", "-", "s", True),
}
BASE, TRAINED = ("base8", "base0"), ("rl", "sft", "gold", "sft_rl", "parallel")

# The paper's numbers on GSM8K for its 1B model (50B tokens), percent: {pre-training tokens in B: {method: (pass@1,
# pass@8, pass@32, average of six benchmarks)}}. Source: pass@k digitised from the paper's figures (RL, SFT, SFT-Gold,
# SFT->RL by checkpoint; parallel averaging; base by number of shots), error about 0.3 points; averages from evaluation
# files that its authors published. None: no such number (the published SFT->RL averages belong to other, earlier runs).
PAPER = {
    4: {
        "base8": (1.75, 10.15, 24.79, 37.37),
        "base0": (1.52, 11.60, 26.76, 37.37),
        "rl": (15.59, 25.26, 35.50, 37.38),
        "sft": (15.36, 35.50, 51.86, 32.92),
        "gold": (34.96, 60.81, 74.75, 32.27),
        "sft_rl": (27.60, 41.25, 49.66, None),
    },
    10: {
        "base8": (3.66, 19.33, 41.02, 41.38),
        "base0": (4.17, 22.29, 42.00, 41.38),
        "rl": (29.77, 49.09, 61.48, 41.49),
        "sft": (24.45, 47.48, 63.76, 36.50),
        "gold": (44.20, 69.33, 81.58, 37.07),
        "sft_rl": (40.66, 53.77, 60.65, None),
        "parallel": (27.25, 54.22, 71.04, None),
    },
    20: {
        "base8": (7.81, 31.26, 54.28, 44.28),
        "base0": (5.91, 29.95, 55.19, 44.28),
        "rl": (47.39, 63.94, 72.80, 44.40),
        "sft": (31.58, 56.07, 70.20, 39.53),
        "gold": (50.17, 74.95, 83.85, 38.50),
        "sft_rl": (48.52, 59.61, 65.28, None),
        "parallel": (36.23, 63.15, 77.48, 44.13),
    },
    44: {
        "base8": (14.81, 46.03, 67.48, 47.25),
        "base0": (4.25, 20.17, 37.38, 47.25),
        "rl": (54.76, 72.05, 80.58, 47.58),
        "sft": (37.75, 60.75, 73.84, 41.13),
        "gold": (54.08, 78.67, 87.79, 40.08),
        "sft_rl": (53.63, 64.85, 70.28, None),
        "parallel": (47.93, 73.24, 84.53, None),
    },
}
PAPER_COLUMN = {1: 0, 8: 1, 32: 2, "general": 3}
# Training dynamics at 14B tokens, digitised likewise: (pass@1, pass@32) at the first and the last step shown.
PAPER_DYNAMICS = {"rl": ((3.79, 45.49), (38.62, 68.76)), "sft_rl": ((33.43, 79.91), (49.13, 74.91))}

# The paper's patterns: (name, checkpoints it is looked for at, parts). A part (a, b, metric, range) says that score(a)
# minus score(b), in points, lies in the range; "base8 first" is the first checkpoint's base.
UP, DOWN, SAME, NOT_BELOW = (0, math.inf), (-math.inf, 0), (-1.5, 1.5), (-3, math.inf)
RANGES = {UP: "above", DOWN: "below", SAME: "within ±1.5", NOT_BELOW: "less than 3 below"}
PATTERNS = [
    ("RL works early", "first", [("rl", "base8", 1, UP)]),
    (
        "Direct RL expands: pass@1 and pass@32 rise above the base",
        "all",
        [("rl", "base8", 1, UP), ("rl", "base0", 1, UP), ("rl", "base8", 32, UP), ("rl", "base0", 32, UP)],
    ),
    ("RL matches SFT→RL (the paper: from 20B on, not before)", "all", [("rl", "sft_rl", 1, NOT_BELOW)]),
    ("RL beats SFT at pass@1", "all", [("rl", "sft", 1, UP)]),
    ("SFT-Gold beats RL at pass@32", "all", [("gold", "rl", 32, UP)]),
    ("RL after SFT sharpens: pass@1 up, pass@32 down", "all", [("sft_rl", "sft", 1, UP), ("sft_rl", "sft", 32, DOWN)]),
    ("RL leaves the general average alone", "all", [("rl", "base8", "general", SAME)]),
    ("SFT lowers the general average", "all", [("sft", "base8", "general", DOWN)]),
    (
        "Parallel averaging has the best pass@32 of the single-demonstration methods",
        "all",
        [("parallel", "rl", 32, UP), ("parallel", "sft", 32, UP), ("parallel", "sft_rl", 32, UP)],
    ),
    ("The base rises with tokens", "all", [("base8", "base8 first", 1, UP), ("base8", "base8 first", 32, UP)]),
]


# ----------------------------------------------------------------------------------------------------- reading a study
@dataclass
class Study:
    """What DIR holds."""

    folder: Path
    manifest: dict
    evals: dict = field(default_factory=dict)  # (method key, tokens) -> results on test, merged over files
    planned: set = field(default_factory=set)  # (method key, tokens) in runs.json, finished or not
    curves: dict = field(default_factory=dict)  # ("rl" or "sft_rl", tokens) -> {RL step: results on validation}
    missing: list[str] = field(default_factory=list)  # names of listed runs without a readable result

    @property
    def ks(self) -> list[int]:
        gsm = [e["questions"]["gsm"] for e in self.evals.values() if "gsm" in e["questions"]]
        return sorted({k for q in gsm for k in ks_of(q)}) or [1, 8, 32]

    def tokens(self, keys=METHODS) -> list[int]:
        return sorted({t for key, t in self.planned if key in keys})

    def task(self, key: str, tokens: int, name: str = "gsm") -> dict | None:
        return self.evals.get((key, tokens), {}).get("questions", {}).get(name)

    def benchmarks(self, key: str, tokens: int) -> dict | None:
        """Benchmarks have no exemplars: those of the base count for its few-shot and for its 0-shot row."""
        for k in (key, *(BASE if key in BASE else ())):
            if found := self.evals.get((k, tokens), {}).get("benchmarks"):
                return found
        return None


def ks_of(task: dict) -> list[int]:
    return sorted(int(name.split("@")[1]) for name in task["flexible"])


def method_key(entry: dict) -> str:
    return entry["method"] if entry["method"] != "base" else "base8" if entry["n_shot"] else "base0"


def read_json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def read_jsonl(path: Path) -> list[dict]:
    """Rows of a log; [] if there is none. A row cut off by a crash is left out."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def load(folder: Path) -> Study:
    """Read runs.json and every evaluation it lists; a run without a readable result goes to `missing`."""
    manifest = read_json(folder / "runs.json")
    if not isinstance(manifest, dict) or "runs" not in manifest:
        raise UserError(f"{folder} holds no readable runs.json; give the folder that study.py --out wrote")
    study = Study(folder, manifest)
    for entry in sorted(manifest["runs"], key=lambda e: e.get("train_step") or 0):  # a run's last step comes last
        if entry["kind"] != "eval":
            if not entry.get("finished", True):
                study.missing.append(entry["name"])
            continue
        place = (method_key(entry), entry["tokens"])
        main = entry["group"] == "main" and entry["split"] == "test"
        if main:
            study.planned.add(place)
        result = read_json(folder / entry["out"])
        if result is None:
            study.missing.append(entry["name"])
        elif main:
            merged = study.evals.setdefault(place, {"questions": {}, "benchmarks": {}, "commits": set(), "samples": []})
            merged["questions"] |= result["questions"]
            merged["benchmarks"] |= result["benchmarks"]
            merged["commits"].add(result.get("commit"))
            merged["samples"] += read_jsonl((folder / entry["out"]).with_suffix(".samples.jsonl"))
        elif entry["group"] == "dynamics":
            curve = entry.get("curve") or entry["method"]
            study.curves.setdefault((curve, entry["tokens"]), {})[entry["train_step"] or 0] = result
    return study


# ---------------------------------------------------------------------------------------------- scores and differences
def score(task: dict | None, k: int, scoring: str = "flexible") -> tuple[float, float] | None:
    """(pass@k, its standard error over questions), both 0-1; None if not measured."""
    entry = (task or {}).get(scoring, {}).get(f"pass@{k}")
    return (entry["value"], entry["stderr"]) if entry else None


def leading(bench: dict) -> tuple[float, float]:
    """acc_norm and its standard error; acc for a last-word task, which has no acc_norm."""
    name = "acc" if bench["acc_norm"] is None else "acc_norm"
    return bench[name], bench["stderr" if name == "acc" else "acc_norm_stderr"]


def general_average(benchmarks: dict | None) -> tuple[float, float] | None:
    """Unweighted mean of the benchmarks, and its standard error sqrt(sum of squared errors) / number of benchmarks."""
    if not benchmarks:
        return None
    values, errors = np.array([leading(b) for b in benchmarks.values()]).T
    return float(values.mean()), float(np.sqrt((errors**2).sum()) / len(errors))


def chance_levels(study: Study) -> dict[str, float]:
    """Accuracy of a uniform guess among each item's choices; 0 where the word itself must be found."""
    found = next((e["benchmarks"] for e in study.evals.values() if e["benchmarks"]), {})
    level = {}
    for name, bench in found.items():
        level[name] = float(np.mean([0 if "greedy" in r else 1 / len(r["logprobs"]) for r in bench["per_item"]]))
    return level


def floors(study: Study, task: str) -> dict[str, float]:
    """pass@k of blind answers: over the questions that were asked, else as the data folder says."""
    found = [q["guess_floor"] for e in study.evals.values() if (q := e["questions"].get(task)) and q["guess_floor"]]
    return found[0] if found else study.manifest.get("data", {}).get("guess_floor", {}).get(task, {})


def unit_scores(study: Study, key: str, tokens: int, metric: int | str) -> dict[str, dict]:
    """{"gsm": {question id: pass@metric}}, or for "general" {benchmark: {item number: hit}}; scores 0-1."""
    if metric != "general":
        rows = (study.task(key, tokens) or {"questions": []})["questions"]
        return {"gsm": {r["qid"]: pass_at_k(r["n"], r["flexible"], metric) for r in rows if r["n"] >= metric}}
    found = {}
    for name, bench in (study.benchmarks(key, tokens) or {}).items():
        hits = [r["greedy"] if "greedy" in r else r["pred_norm"] == r["gold"] for r in bench["per_item"]]
        found[name] = dict(enumerate(map(float, hits)))
    return found


def bootstrap(deltas: list[np.ndarray], draws: int = 4000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of the arrays' means, with the 95 % percentile interval when each array's entries are drawn anew."""
    rng = np.random.default_rng(seed)
    means = np.mean([rng.choice(d, (draws, len(d))).mean(axis=1) for d in deltas], axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean([d.mean() for d in deltas])), float(low), float(high)


def difference(study: Study, a: tuple, b: tuple, metric: int | str) -> tuple[float, float, float] | None:
    """(estimate, low, high) of score(a) - score(b) in points; a, b: (method key, tokens). None if one is missing."""
    left, right = unit_scores(study, *a, metric), unit_scores(study, *b, metric)
    deltas = [np.array([x[i] - right[n][i] for i in x if i in right[n]]) for n, x in left.items() if n in right]
    if not deltas or not all(map(len, deltas)):
        return None
    return tuple(100 * v for v in bootstrap(deltas))


def judge(interval: tuple[float, float, float] | None, claimed: tuple[float, float]) -> str:
    """Does the whole interval lie inside the range that the pattern claims, or wholly outside it?"""
    if interval is None:
        return "not measured"
    _, low, high = interval
    if claimed[0] < low and high < claimed[1]:
        return "appears"
    return "does not appear" if high < claimed[0] or low > claimed[1] else "unclear"


def together(words: list[str]) -> str:
    """A pattern of several parts appears if all do, and does not if one does not."""
    return next((w for w in ("does not appear", "not measured", "unclear") if w in words), "appears")


# -------------------------------------------------------------------------------------------------------------- tables
def amount(tokens: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.0f}"


def cell(pair: tuple[float, float] | None) -> str:
    return "–" if pair is None else f"{100 * pair[0]:.1f} ± {100 * pair[1]:.1f}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def absent(study: Study, key: str, tokens: int) -> str:
    return "missing" if (key, tokens) in study.planned else "not run"


def main_table(study: Study) -> str:
    ks = study.ks
    tasks = ["gsm"] + ["hard"] * any("hard" in e["questions"] for e in study.evals.values())
    rows = []
    for t in study.tokens():
        for key in METHODS if t in study.tokens(TRAINED) else BASE:
            task = study.task(key, t)
            cells = [cell(score(task, k)) for k in ks] if task else [absent(study, key, t), *["–"] * (len(ks) - 1)]
            cells += [cell(score(task, ks[0], "strict")), percent(task and task["format_rate"])]
            cells.append(cell(general_average(study.benchmarks(key, t))))
            cells += [cell(score(study.task(key, t, name), k)) for name in tasks[1:] for k in ks]
            rows.append([amount(t), METHODS[key][0], *cells])
    floor = [[percent(floors(study, name).get(str(k))) for k in ks] for name in tasks]
    rows.append(["", "*guess floor*", *floor[0], "–", "–", "–", *sum(floor[1:], [])])
    head = ["tokens", "method", *(f"pass@{k}" for k in ks), f"strict pass@{ks[0]}", "format", "general average"]
    return table(head + [f"{name} pass@{k}" for name in tasks[1:] for k in ks], rows)


def paper_table(study: Study) -> str:
    """Each of our checkpoints beside the paper's nearest in fraction of training (its last used beside our last)."""
    rows, last = [], max(study.tokens(), default=0)
    for t in study.tokens(TRAINED):
        billions = min(PAPER, key=lambda b: abs(math.log(b / max(PAPER)) - math.log(t / last)))
        for key in METHODS:
            paper = PAPER[billions].get(key, (None,) * 4)
            ours = [*(score(study.task(key, t), k) for k in (1, 8, 32)), general_average(study.benchmarks(key, t))]
            pairs = [f"{percent(p and p / 100)} / {percent(o and o[0])}" for p, o in zip(paper, ours, strict=True)]
            rows.append([f"{billions}B / {amount(t)}", METHODS[key][0], *pairs])
    return table(["tokens", "method", "pass@1", "pass@8", "pass@32", "general average"], rows)


def benchmark_table(study: Study) -> str:
    """The benchmarks at the last post-trained checkpoint, with the level of blind choice."""
    t = max(study.tokens(TRAINED) or study.tokens(), default=0)
    level, rows = chance_levels(study), []
    for key in ("base8", *TRAINED):
        found = study.benchmarks(key, t) or {}
        average = cell(general_average(found)) if found else absent(study, key, t)
        rows.append([METHODS[key][0].split(",")[0], *(cell(leading(found[n])) if n in found else "–" for n in level)])
        rows[-1].append(average)
    if level:
        rows.append(["*chance*", *map(percent, level.values()), percent(np.mean(list(level.values())))])
    return f"At {amount(t)} tokens.\n\n" + table(["method", *level, "average"], rows)


def paper_difference(a: str, b: str, metric: int | str) -> str:
    """The paper's own difference at its first and last checkpoint that has both scores."""
    shown = []
    for billions, rows in PAPER.items():
        ours = rows.get(a)
        other = PAPER[min(PAPER)]["base8"] if b == "base8 first" else rows.get(b)
        if ours and other and ours is not other:
            shown.append(f"{ours[PAPER_COLUMN[metric]] - other[PAPER_COLUMN[metric]]:+.1f} at {billions}B")
    return f"{shown[0]}, {shown[-1]}"


def pattern_table(study: Study) -> str:
    """Rows: the parts of each pattern; columns: checkpoints. Then the patterns by what came out at the last one."""
    checkpoints, first = study.tokens(TRAINED), min(study.tokens(["base8"]), default=None)
    rows, final = [], {}
    for title, where, parts in PATTERNS:
        words: dict[int, list[str]] = {t: [] for t in checkpoints}
        for number, (a, b, metric, claimed) in enumerate(parts):
            k = metric if metric == "general" else min(metric, max(study.ks))
            cells = []
            for t in checkpoints:
                other = ("base8", first) if b == "base8 first" else (b, t)
                if (where == "first" and t != checkpoints[0]) or other == (a, t):
                    cells.append("–")
                    continue
                found = difference(study, (a, t), other, k)
                words[t].append(judge(found, claimed))
                numbers = "{:+.1f} [{:+.1f}, {:+.1f}] ".format(*found) if found else ""
                cells.append(numbers + words[t][-1])
            name = f"base at {amount(first or 0)}" if b == "base8 first" else METHODS[b][1]
            label = f"pass@{k}: {METHODS[a][1]} − {name}" if k != "general" else f"average: {METHODS[a][1]} − base"
            claim = f"{RANGES[claimed]} ({paper_difference(a, b, metric)})"
            rows.append(["" if number else title, label, claim, *cells])
        if len(parts) > 1:
            rows.append(["", "*all of it*", "", *(f"*{together(w)}*" if w else "–" for w in words.values())])
        judged = [w for w in words.values() if w]
        final.setdefault(together(judged[-1]) if judged else "not measured", []).append(title)
    order = [w for w in ("appears", "does not appear", "unclear", "not measured") if w in final]
    summary = [f"- **{word}**: {'; '.join(final[word])}." for word in order]
    return "\n".join([table(["pattern", "difference", "paper", *map(amount, checkpoints)], rows), "", *summary])


def calibration_table(study: Study) -> str:
    """What the world was tuned for against what came out; ranges are 0-1, both ends allowed."""
    base = study.tokens(BASE) or [0]
    level = chance_levels(study)
    near = float(np.mean(list(level.values()))) if level else 0.0

    def few_shot(t: int, k: int):
        return score(study.task("base8", t), k)

    wanted = [
        ("base few-shot pass@1, first checkpoint", few_shot(base[0], 1), "under 1", 0, 0.01),
        ("base few-shot pass@32, first checkpoint", few_shot(base[0], 32), "under 15", 0, 0.15),
        ("base few-shot pass@1, last checkpoint", few_shot(base[-1], 1), "5 to 20", 0.05, 0.2),
        ("base few-shot pass@32, last checkpoint", few_shot(base[-1], 32), "50 to 85", 0.5, 0.85),
        ("SFT-Gold pass@32, last checkpoint", score(study.task("gold", base[-1]), 32), "under 95", 0, 0.95),
    ]
    for t, target, low, high in (
        (base[0], f"near chance ({percent(near)}), within 10", near - 0.1, near + 0.1),
        (base[-1], "over 80", 0.8, 1),
    ):
        name = f"base general average, {'first' if t == base[0] else 'last'} checkpoint"
        wanted.append((name, general_average(study.benchmarks("base8", t)), target, low, high))
    for task in ("gsm", "hard"):
        for k, top in ((1, 0.01), (32, 0.1)):
            floor = study.manifest.get("data", {}).get("guess_floor", {}).get(task, {}).get(str(k))
            wanted.append((f"guess floor of {task} at pass@{k}", floor, f"at most {100 * top:.0f}", 0, top))
    rows = []
    for name, got, target, low, high in wanted:
        value, shown = (got[0], cell(got)) if isinstance(got, tuple) else (got, percent(got))
        holds = "–" if value is None else "yes" if low <= value <= high else "**no**"
        rows.append([name, target, "not measured" if value is None else shown, holds])
    return table(["quantity", "target, %", "came out, %", "holds"], rows)


# ---------------------------------------------------------------------------------------------------------------- text
def what_was_run(study: Study) -> str:
    m, data, entries = study.manifest, study.manifest.get("data", {}), study.manifest["runs"]
    base, trained = study.tokens(BASE), study.tokens(TRAINED)
    asked = {}  # a dictionary keeps the order and drops doubles
    for e in study.evals.values():
        for task, q in e["questions"].items():
            asked[f"{q['n_questions']} {task} test questions with {q['questions'][0]['n']} samples each"] = 0
    commits = {m.get("commit"), *(c for e in study.evals.values() for c in e["commits"])}
    mixed = f" (**mixed sources**: {', '.join(sorted(map(str, commits)))})" if len(commits) > 1 else ""
    folder = next((study.folder / e["out"] for e in entries if e["kind"] == "pretrain"), study.folder).parent
    preset = (read_json(folder / "config.json") or {}).get("preset", "not recorded")
    model = m.get("model") or f"preset `{preset}`"
    vocabulary = f", vocabulary of {data['tokenizer']['n_vocab']:,} tokens" if "tokenizer" in data else ""
    shots = max((e.get("n_shot", 0) for e in entries), default=0)
    return (
        f"Preset `{m.get('preset')}`, seed {m.get('seed')}, commit `{m.get('commit')}`{mixed}, on {m.get('machine')}, "
        f"runs of {m.get('threads')} thread, {m.get('jobs', 1)} at a time: {m.get('seconds', 0) / 60:.0f} minutes. "
        f"Model: {model}{vocabulary}, pre-trained once; evaluated at {', '.join(map(amount, base)) or 'no'} tokens, "
        f"post-trained from {', '.join(map(amount, trained)) or 'no'} tokens. "
        f"Evaluated on {' and '.join(asked) or 'nothing yet'}; few-shot means {shots} exemplars, all else is 0-shot. "
        "**One pre-training and one seed: all numbers are estimates, none is a verdict.** ± is one standard error "
        "over questions (or benchmark items)."
    )


def followed(study: Study) -> int | None:
    """The checkpoint (tokens) whose RL runs were evaluated at the most steps."""
    return max(study.curves, key=lambda place: len(study.curves[place]), default=(None, None))[1]


def dynamics_text(study: Study) -> str:
    t = followed(study)
    out = [f"On validation questions, 0-shot, from the checkpoint at {amount(t)} tokens.\n"] if t else []
    for curve, name in (("rl", "Direct RL"), ("sft_rl", "RL after SFT")):
        steps = {s: r["questions"]["gsm"] for s, r in sorted(study.curves.get((curve, t), {}).items())}
        if len(steps) < 2:
            out.append(f"- {name}: not measured on the way.")
            continue
        first, last, moves = min(steps), max(steps), []
        for k in {1: 0, ks_of(steps[last])[-1]: 0}:
            path = {s: score(q, k) for s, q in steps.items()}
            best = max(path, key=lambda s: path[s][0])
            top = f"highest {percent(path[best][0])} at step {best}"
            moves.append(f"pass@{k} {cell(path[first])} → {cell(path[last])} ({top})")
        (p1, p32), (q1, q32) = PAPER_DYNAMICS[curve]
        asked = f"{steps[last]['n_questions']} questions, steps {first} to {last}"
        out.append(f"- {name} ({asked}): {'; '.join(moves)}. Paper at 14B: pass@1 {p1} → {q1}; pass@32 {p32} → {q32}.")
    return "\n".join(out)


def samples_text(study: Study) -> str:
    """The first two questions that every method was shown at the last post-trained checkpoint, first sample of each."""
    t, shown = max(study.tokens(TRAINED), default=None), {}
    for key in METHODS:
        for row in study.evals.get((key, t), {}).get("samples", []):
            if row["task"] == "gsm":
                shown.setdefault(key, {}).setdefault(row["prompt"], row)
    if not shown:
        return "No sample files were found."
    out = [f"First sample of each method at {amount(t)} tokens, right or wrong, not chosen by hand."]
    for prompt in [p for p in next(iter(shown.values())) if all(p in rows for rows in shown.values())][:2]:
        answers = [f"{METHODS[key][0]:<19}|{rows[prompt]['completion'].rstrip()}" for key, rows in shown.items()]
        gold = next(iter(shown.values()))[prompt]["gold"]
        out.append("\n".join(["```text", prompt, f"{'right answer':<19}| {gold}", *answers, "```"]))
    return "\n\n".join(out)


def commands_text(study: Study) -> str:
    lines = list(study.manifest.get("setup", []))  # what came before the runs, such as making the data
    for entry in study.manifest["runs"]:
        lines.append(f"# {entry['name']}" + (f", {entry['seconds']:.0f} s" if entry.get("seconds") else ""))
        lines.append(entry["command"])
    summary = f"<details>\n<summary>All {len(study.manifest['runs'])} commands</summary>"
    return "\n".join([summary, "", "```sh", *lines, "```", "", "</details>"])


# ------------------------------------------------------------------------------------------------------------- figures
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def label_ends(ax, ends: list[tuple[float, float, str, str]]) -> None:
    """Names at the right edge instead of a legend, spread so that none covers another. ends: (x, y, text, colour).
    To be called when the axis limits are final."""
    to_axes = ax.transData + ax.transAxes.inverted()
    points = sorted((*to_axes.transform((x, y)), text, colour) for x, y, text, colour in ends)
    points.sort(key=lambda p: p[1])
    gap = 13 / (ax.get_window_extent().height * 72 / ax.figure.dpi)  # 13 printer's points, as part of the axis height
    up, down = [p[1] for p in points], [p[1] for p in points]
    for i in range(1, len(points)):
        up[i] = max(up[i], up[i - 1] + gap)
        down[-1 - i] = min(down[-1 - i], down[-i] - gap)
    for (x, y, text, colour), a, b in zip(points, up, down, strict=True):
        place = (a + b) / 2  # both keep the gap, so their mean does
        ax.plot([x + 0.015, 1.03], [y, place], color="#bbbbbb", linewidth=0.6, transform=ax.transAxes, clip_on=False)
        ax.text(1.04, place, text, color=colour, va="center", fontsize=8.5, transform=ax.transAxes)


def token_axis(ax, tokens: list[int]) -> None:
    ax.set_xscale("log")
    ax.set_xticks(tokens, [amount(t) for t in tokens])
    ax.minorticks_off()
    ax.set_xlim(min(tokens, default=1) / 1.2, max(tokens, default=10) * 1.2)
    ax.set_xlabel("pre-training tokens")


def say(ax, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", color="#777777")


def method_lines(ax, study: Study, title: str, keys, value, floor: tuple[float | None, str], base_name: str) -> None:
    """A line for each method against pre-training tokens. value(key, tokens) -> (score 0-1, standard error) or None."""
    ends = []
    for key in keys:
        points = [(t, *found) for t in study.tokens() if (found := value(key, t))]
        if points:
            x, y, error = np.array(points).T
            _, name, colour, line, marker, filled = METHODS[key]
            face = colour if filled else "white"
            ax.errorbar(x, 100 * y, 100 * error, color=colour, ls=line, marker=marker, ms=5, mfc=face, elinewidth=0.8)
            ends.append((x[-1], 100 * y[-1], base_name if key == "base8" else name, colour))
    token_axis(ax, study.tokens())
    if not ends:
        say(ax, "no evaluation yet")
    if floor[0] is not None:
        ax.axhline(100 * floor[0], color="black", linestyle=":", linewidth=1)
        ends.append((ax.get_xlim()[1], 100 * floor[0], floor[1], "black"))
    ax.set_ylim(0, min(104, 1.1 * max((np.max(line.get_ydata()) for line in ax.lines), default=10)))
    label_ends(ax, ends)
    ax.set_title(title)


def passk_panel(ax, study: Study, keys, k: int) -> None:
    floor = (floors(study, "gsm").get(str(k)), "guess floor")
    method_lines(ax, study, f"pass@{k}, %", keys, lambda key, t: score(study.task(key, t), k), floor, "base few-shot")


def general_panel(ax, study: Study, keys) -> None:
    level = list(chance_levels(study).values())
    floor = (float(np.mean(level)) if level else None, "chance")

    def value(key: str, tokens: int):
        return general_average(study.benchmarks(key, tokens))

    method_lines(ax, study, "general average, %", keys, value, floor, "base")


def draw_passk(study: Study):
    figure, axes = plt.subplots(1, len(study.ks), figsize=(4.3 * len(study.ks), 4.2), squeeze=False)
    for ax, k in zip(axes[0], study.ks, strict=True):
        passk_panel(ax, study, METHODS, k)
    return figure


def draw_parallel(study: Study):
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.8))
    keys = ["base8", "rl", "sft", "sft_rl", "parallel"]
    for ax, k in zip(axes.flat, study.ks[:3], strict=False):
        passk_panel(ax, study, keys, k)
    general_panel(axes[1, 1], study, keys)
    return figure


def draw_general(study: Study):
    figure, ax = plt.subplots(figsize=(6.2, 4))
    general_panel(ax, study, ["base8", *TRAINED])
    return figure


def draw_dynamics(study: Study):
    t = followed(study)
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.2), sharex="col", sharey="row", height_ratios=[2, 1])
    logs = {e["method"]: e["metrics"] for e in study.manifest["runs"] if e["kind"] == "train" and e.get("tokens") == t}
    labels = []
    for (top, bottom), curve, name in zip(axes.T, ("rl", "sft_rl"), ("direct RL", "RL after SFT"), strict=True):
        steps = {s: r["questions"]["gsm"] for s, r in sorted(study.curves.get((curve, t), {}).items())}
        ks = sorted({k for q in steps.values() for k in ks_of(q)})
        for k, line, marker in ((ks[0], "-", "o"), (ks[-1], "--", "s")) if ks else ():
            x, y, error = np.array([(s, *score(q, k)) for s, q in steps.items() if score(q, k)]).T
            top.errorbar(x, 100 * y, 100 * error, color="black", ls=line, marker=marker, ms=5, elinewidth=0.8)
            labels.append((top, x[-1], 100 * y[-1], f"pass@{k}", "black"))
        rows = read_jsonl(study.folder / logs[curve]) if curve in logs else []
        reward = np.array([(r["step"], 100 * r["reward/mean"]) for r in rows if "reward/mean" in r]).reshape(-1, 2)
        if len(reward):
            mean = [reward[max(0, i - 4) : i + 1, 1].mean() for i in range(len(reward))]
            bottom.plot(*reward.T, color="#aaaaaa", linewidth=0.9)
            bottom.plot(reward[:, 0], mean, color="black", linewidth=1.5)
            labels.append((bottom, reward[-1, 0], mean[-1], "mean of 5 steps", "black"))
        for ax, found in ((top, ks), (bottom, len(reward))):
            if not found:
                say(ax, "not measured")
        top.set_title(f"{name}, from {amount(t)} tokens" if t else name)
        bottom.set_xlabel("RL step")
    axes[0, 0].set_ylabel("validation pass@k, %")
    axes[1, 0].set_ylabel("training reward, %")
    axes[0, 0].set_ylim(0, 104)
    axes[1, 0].set_ylim(bottom=0)
    for ax in axes.flat:
        label_ends(ax, [label[1:] for label in labels if label[0] is ax])
    return figure


def draw_pretrain(study: Study):
    figure, ax = plt.subplots(figsize=(4.6, 3.2))
    logs = [e["metrics"] for e in study.manifest["runs"] if e["kind"] == "pretrain"]
    rows = [r for log in logs[:1] for r in read_jsonl(study.folder / log) if "eval/loss" in r]
    token_axis(ax, study.tokens(BASE))
    ax.set_title("validation loss, nats a token")
    if not rows:
        say(ax, "no validation loss logged")
        return figure
    x, y = np.array([(r["train/tokens"], r["eval/loss"]) for r in rows]).T
    ax.plot(x, y, color="black", marker="o", ms=3, linewidth=1.2)
    ax.set_xlim(x.min() / 1.2, x.max() * 1.2)
    label_ends(ax, [(x[-1], y[-1], f"{y[-1]:.2f}", "black")])
    return figure


FIGURES = {  # file name: (drawing function, caption)
    "passk": (draw_passk, "pass@k on gsm test questions against pre-training tokens; bars: one standard error"),
    "parallel": (draw_parallel, "Parallel averaging beside the base, its two parts alone and one after the other"),
    "general": (draw_general, "Average of the six general benchmarks against pre-training tokens"),
    "dynamics": (draw_dynamics, "pass@k on validation questions, and training reward, along the two RL runs"),
    "pretrain": (draw_pretrain, "Pre-training: loss on held-out text; the axis is marked at the checkpoints"),
}


# ---------------------------------------------------------------------------------------------------------- the report
TEMPLATE = """# Report of the study, preset {preset}

{what_was_run}{missing}

## Every method from every checkpoint

Percent. pass@k on gsm test questions: flexible scoring (without the final-answer marker, the last number counts).
Strict: only after the marker, which is what RL is rewarded for. Format: completions with the marker. The guess floor is
pass@k of answers drawn blindly from the training answers' distribution.

{main_table}

{passk}

## Beside the paper

Each cell: *paper / ours*, percent, at the paper's checkpoint nearest in fraction of training (its last used one, 44B,
beside our last). The paper's numbers are GSM8K and a 1B model, digitised from its figures with an error of about 0.3
points. Absolute values are **not** comparable, since model, data and questions differ; only the pattern is.

{paper_table}

{parallel}

## General benchmarks

{benchmark_table}

{general}

## Which of the paper's patterns appear

Differences in points with paired 95 % bootstrap intervals over the test questions (average: over benchmark items).
*appears*: the whole interval lies where the paper's pattern puts it; *does not appear*: wholly elsewhere; *unclear*: it
crosses the border (0; -3 for "less than 3 below"; ±1.5 for "within ±1.5"). Estimates conditional on one pre-training
and one seed, and many intervals without correction: no verdicts.{largest_k} The list below the table says what came out
at the last checkpoint ("RL works early": at the first post-trained one).

{pattern_table}

{claims}## Calibration of the world

{calibration_table}

{pretrain}

## Training dynamics

{dynamics_text}

{dynamics}

## Samples

{samples_text}

## Commands

{commands_text}
"""


def claims_section(folder: Path) -> str:
    """The claims that the lab study judges, as far as one seed shows them."""
    from claims import CLAIMS, Lab
    from report_lab import claims_table

    said = "The claims of [the analysis plan](../../analysis_plan.md) from one seed: estimates, never verdicts.\n\n"
    return "## Claims\n\n" + said + claims_table([claim(Lab(folder)) for claim in CLAIMS], links=False) + "\n\n"


def build(folder: str | Path) -> Path:
    """Write FOLDER/report.md and FOLDER/figures/*.png from FOLDER/runs.json; returns the report's path."""
    folder = Path(folder)
    study = load(folder)
    writable_dir(folder / "figures")
    pictures = {}
    with plt.rc_context(STYLE):
        for name, (draw, caption) in FIGURES.items():
            figure = draw(study)
            figure.savefig(folder / "figures" / f"{name}.png", dpi=150)
            plt.close(figure)
            pictures[name] = f"![{caption}](figures/{name}.png)\n\n*{caption}.*"
    parts = [main_table, paper_table, benchmark_table, pattern_table, calibration_table]
    parts += [what_was_run, dynamics_text, samples_text, commands_text]
    missing, top = "", max(study.ks)
    if study.missing:
        count = f"{len(study.missing)} of {len(study.manifest['runs'])} runs have no result"
        missing = f"\n\n**Missing**: {count}: {', '.join(study.missing)}."
    largest_k = f" This preset draws {top} samples a question, so pass@{top} stands for pass@32." if top < 32 else ""
    text = {part.__name__: part(study) for part in parts} | pictures
    text["claims"] = claims_section(folder) if 32 in study.ks else ""
    preset = study.manifest.get("preset")
    (folder / "report.md").write_text(TEMPLATE.format(preset=preset, missing=missing, largest_k=largest_k, **text))
    return folder / "report.md"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", metavar="DIR", help="what study.py --out wrote")
    print(f"wrote {build(p.parse_args().folder)}")


if __name__ == "__main__":
    run(main)
