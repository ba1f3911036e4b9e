"""A study's folder made up from a plan, with known effects: the paper's, but that pre-trainings differ."""

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
PAIR = [PRESETS["lab"][key] * PRESETS["lab"]["pretrain"]["batch_tokens"] for key in ("early", "late")]
EARLY, LATE = PAIR
# Probability of a right answer, early and late, on questions that the method can do at all, and the share of those.
SKILL = {"base": (0.04, 0.2), "rl": (0.2, 0.7), "sft": (0.1, 0.45), "gold": (0.1, 0.5), "sft_rl": (0.3, 0.7)}
SKILL |= {"parallel": (0.15, 0.6), "start": (0.08, 0.35)}
CAN = {"base": 0.7, "rl": 0.85, "sft": 0.75, "gold": 0.95, "sft_rl": 0.75, "parallel": 0.95, "start": 0.9}
GENERAL = {"base": 0.9, "rl": 0.9, "sft": 0.6, "gold": 0.6, "sft_rl": 0.6, "parallel": 0.9}
BETTER = {1: 1.0, 2: 1.1, 3: 0.9}  # pre-trainings
STYLES = ("equations", "nested", "retold", "running")


def result(task: Task) -> dict:
    """What evaluate.py would have written for this task of the plan."""
    method, flags, record = task.method, task.flags, task.record
    rng = np.random.default_rng([flags["seed"] + 100 * flags.get("n_shot", 0), sum(map(ord, task.name))])
    kind = "start" if record["variant"] == "start" else method
    low, high = SKILL[kind]
    skill = low + (high - low) * np.clip((record["tokens"] - EARLY) / (LATE - EARLY), -1, 1)
    skill = max(skill, 0.01) * BETTER.get(record["pretraining"], 1) + 0.1 * (record["variant"] == "many")
    skill *= 0.9 if flags.get("n_shot") else 1
    n, ks, size = flags["n_samples"], flags["k"], min(N, flags["limit"])
    can = np.random.default_rng(5).permutation(N)[:size] < CAN[kind] * N  # alike for all
    questions = {}
    for name in (t for t in flags["tasks"] if t not in BENCHMARKS):
        hits = rng.binomial(n, np.clip(skill * can * (0.3 if name == "long" else 1), 0, 1))
        scores = {f"pass@{k}": {"value": np.mean([pass_at_k(n, c, k) for c in hits]), "stderr": 0.01} for k in ks}
        columns = {"qid": [f"{name}/{i}" for i in range(size)], "gold": [str(i) for i in range(size)]}
        columns |= {"strict": hits.tolist(), "flexible": hits.tolist(), "bare": [n // 8] * size}
        columns |= {key: [n] * size for key in ("n", "formatted", "finished")}
        columns |= {"answers": [{str(i): int(c), "-1": int(n - c)} for i, c in enumerate(hits)]}
        one = {"n_questions": size, "format_rate": 1.0, "finish_rate": 1.0, "guess_floor": {str(k): 0.01 for k in ks}}
        one |= {"styles": {"none": n // 8 * size, **dict.fromkeys(STYLES, n // 5 * size)}}
        questions[name] = one | {"questions": columns, "flexible": scores, "strict": scores}
    known = np.random.default_rng(6).uniform(size=50) < GENERAL[method]
    bench = {"chance": 0.25, "hits": "".join(str(int(k)) for k in known), "facts": [i % 40 for i in range(50)]}
    moved = dict(distance=1.0, relative_distance=0.01 * (1 + flags["seed"]), kl=0.1, loss=1.1, loss_reference=1.0)
    out = {"commit": "abc", "questions": questions}
    out["benchmarks"] = {t: bench for t in flags["tasks"] if t in BENCHMARKS}
    out |= {"movement": moved} if "reference" in task.inputs else {}
    return out | ({"general_average": float(known.mean())} if out["benchmarks"] else {})


def made_up(folder: Path, preset: str, keep: Callable[[Task], bool] = lambda task: True, seed: int = 1) -> Path:
    """A study's folder as the runner leaves it, with these of its runs finished."""
    plan, rows = make_plan(preset, seed), []
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
    events = {f"{name}/{i}": first + i % 4 for name, first in (("gsm", 2), ("long", 7)) for i in range(N)}
    primary = [step * plan.p["pretrain"]["batch_tokens"] for step in plan.primary]
    manifest = dict(preset=preset, seed=seed, commit="abc", machine="2 x CPU", jobs=2, seconds=60.0)
    blind = {"1": 0.01, "8": 0.04, "32": 0.1}
    manifest |= dict(events=events, data={"mixes": {"base": {"math.bin": 0.2}}, "blind_rules": blind})
    manifest |= {key: plan.p[key] for key in ("pool", "passes", "start_passes")}
    manifest |= dict(trials=plan.p["trials"], primary=primary, runs=rows)
    (folder / "runs.json").write_text(json.dumps(manifest))
    return folder


def undrawn(patch: pytest.MonkeyPatch) -> None:
    """Figures are made and not drawn: drawing takes most of a report's time."""
    patch.setattr(Figure, "savefig", lambda figure, file, **how: Image.new("RGB", (9, 9)).save(file, "PNG"))


def samples(task: Task) -> list[dict]:
    asked = [dict(task="gsm", prompt=f"Q{i}?", gold="7") for i in range(4)]
    return [{**q, "completion": f" {word} by {task.method}"} for q in asked for word in ("first", "second")]


def log(task: Task) -> list[dict]:
    """RL's reward rises and its entropy falls; SFT reads 2,560 tokens of solutions a step."""
    steps = task.flags["steps"]
    rows, batch = [], task.flags.get("batch_tokens", 0)
    for s in range(steps % 4 if task.kind == "train" else 0, steps + 1, 4 if task.kind == "train" else 80):
        row = {"step": s, "perf/tok_per_sec": 2560.0, "perf/step_ms": 1000.0}
        row |= {"train/tokens": s * batch, "eval/loss": 3 - s / steps} if task.kind == "pretrain" else {}
        if task.script in ("train_rl.py", "merge.py"):
            row |= {"reward/mean": s / steps / 2, "reward/hits": 9, "completion/tokens": 2000}
            row |= {"perf/sample_ms": 250.0}
            row |= {"reward/frac_zero_std_groups": 0.5, "policy/entropy": 1 - s / steps / 2}
            row |= {"completion/len_mean": 40.0 - s / steps} | ({"sft/loss": 1.0} if task.script == "merge.py" else {})
        rows.append(row)
    return rows


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
