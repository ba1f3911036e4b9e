"""A study's folder made up from a plan, with effects that are known."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from evaluate import pass_at_k
from study.plan import make_plan
from study.presets import BENCHMARKS, PRESETS
from study.tasks import Task

N = 60
STEPS = PRESETS["lab"]["late"]
LATE = STEPS * PRESETS["lab"]["pretrain"]["batch_tokens"]
# Probability of a right answer: RL above the base everywhere, SFT→RL far above RL, parallel as RL; general: SFT loses.
SKILL = {"base": 0.02, "rl": 0.08, "sft": 0.02, "gold": 0.02, "sft_rl": 0.45, "gold_rl": 0.45, "parallel": 0.08}
GENERAL = {"base": 0.9, "rl": 0.9, "sft": 0.6, "gold": 0.6, "sft_rl": 0.6, "gold_rl": 0.6, "parallel": 0.9}
SPECIAL = {"hard_many": 0.2, "pool250": 0.3, "pool1000": 0.3}  # C9, C3


def result(task: Task) -> dict:
    """What evaluate.py would have written for this task of the plan."""
    method, flags, record = task.method, task.flags, task.record
    rng = np.random.default_rng([flags["seed"] + 100 * flags.get("n_shot", 0), sum(map(ord, task.name))])
    ease = np.random.default_rng(5).uniform(0.2, 1.8, N)  # questions differ, alike for all
    skill = SPECIAL.get(record["variant"], SKILL[method]) * {"heavy": 3, "heavy2": 3}.get(record["base"], 1)
    skill *= 1 + 0.1 * (record["tokens"] == LATE)
    n, ks = flags["n_samples"], flags["k"]
    hits = rng.binomial(n, np.clip(skill * ease, 0, 1))
    scores = {f"pass@{k}": {"value": float(np.mean([pass_at_k(n, c, k) for c in hits])), "stderr": 0.0} for k in ks}
    columns = {"qid": [f"q/{i}" for i in range(N)], "gold": [str(i) for i in range(N)]}
    columns |= {"strict": hits.tolist(), "flexible": hits.tolist()}
    columns |= {name: [n] * N for name in ("n", "formatted", "finished")}
    columns["answers"] = [{str(i): int(c), "-1": int(n - c)} for i, c in enumerate(hits)]
    one = {"n_questions": N, "format_rate": 1.0, "finish_rate": 1.0, "guess_floor": {str(k): 0.01 for k in ks}}
    one |= {"questions": columns, "flexible": scores, "strict": scores}
    known = np.random.default_rng(6).uniform(size=50) < GENERAL[method]
    bench = {"chance": 0.25, "hits": "".join(str(int(k)) for k in known), "facts": [i % 40 for i in range(50)]}
    moved = dict(distance=1.0, relative_distance=0.01 * (1 + flags["seed"]), kl=0.1, loss=1.1, loss_reference=1.0)
    out = {"commit": "abc", "questions": {t: one for t in flags["tasks"] if t in ("gsm", "hard")}}
    out["benchmarks"] = {t: bench for t in flags["tasks"] if t in BENCHMARKS}
    out |= {"movement": moved} if "reference" in task.inputs else {}
    return out | ({"general_average": float(known.mean())} if out["benchmarks"] else {})


def made_up(folder: Path, preset: str, keep: Callable[[Task], bool] = lambda task: True) -> Path:
    """A study's folder as the runner leaves it, with these of its runs finished."""
    plan, rows = make_plan(preset, 1), []
    for task in plan.tasks:
        place = f"evals/{task.name}.json" if task.kind == "eval" else f"runs/{task.name}/{task.out}"
        row = dict(name=task.name, kind=task.kind, method=task.method, **task.record, out=place, finished=keep(task))
        row |= {"command": f"python {task.script} --seed {task.record['seed']}", "seconds": None}
        if task.kind != "eval":
            row |= {"metrics": f"runs/{task.name}/metrics.jsonl", "config": task.flags}
        rows.append(row)
        if row["finished"]:
            row |= {"seconds": 6.0, "commit": "abc", "source": f"hash of {task.script}"}
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            if task.kind == "eval":
                path.write_text(json.dumps(result(task)))
                write_lines(path.with_suffix(".samples.jsonl"), samples(task))
            else:
                write_lines(path.with_name("metrics.jsonl"), log(task))
    first = {f"q/{i}": str(i if i < N // 20 else -1) for i in range(N)}  # is the answer of one question in twenty
    copying = {"first": first, "alone": 1 / 20, "floor": {"1": 0.05, "8": 0.1, "32": 0.2}}
    primary = [start.tokens for start in plan.primary]
    manifest = dict(preset=preset, seed=1, commit="abc", machine="2 x CPU", jobs=2, seconds=60.0, copying=copying)
    manifest |= dict(trials=plan.p["trials"], primary=primary, data={}, runs=rows)
    (folder / "runs.json").write_text(json.dumps(manifest))
    return folder


def undrawn(patch: pytest.MonkeyPatch) -> None:
    """Figures are made and not drawn: drawing takes most of a report's time."""
    patch.setattr(Figure, "savefig", lambda figure, file, **how: Image.new("RGB", (9, 9)).save(file, "PNG"))


def samples(task: Task) -> list[dict]:
    asked = [dict(task="gsm", prompt=f"Q{i}?", gold="7") for i in range(4)]
    return [{**q, "completion": f" {word} by {task.method}"} for q in asked for word in ("first", "second")]


def log(task: Task) -> list[dict]:
    row = {"reward/mean": 0.1, "reward/hits": 9, "completion/tokens": 9, "reward/frac_zero_std_groups": 0.5}
    steps = range(task.flags["steps"] % 16, task.flags["steps"] + 1, 16)  # every one of the pre-training's
    batch = task.flags.get("batch_tokens", 0)
    return [{"step": s, "train/tokens": s * batch, "eval/loss": 3 - s / STEPS, **row} for s in steps]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def changed(whole: Path, folder: Path, change: Callable[[dict], None]) -> Path:
    """A study in `folder` with the files of `whole` and its runs.json after `change`."""
    folder.mkdir(exist_ok=True)
    for name in ("evals", "runs"):
        (folder / name).symlink_to(whole / name)
    manifest = json.loads((whole / "runs.json").read_text())
    change(manifest)
    (folder / "runs.json").write_text(json.dumps(manifest))
    return folder
