"""Studies that ran nothing: the files that their runs would have left, small and consistent."""

import json
import zipfile
from functools import cache
from pathlib import Path

from common import source_hash
from evaluate import mean_stderr, parser, pass_at_k
from study.folder import HERE, Folder
from study.plan import make_plan
from study.presets import BENCHMARKS
from study.tasks import Task


@cache
def source_of(script: str) -> str:
    """Hash of its code, which does not change while tests run."""
    return source_hash(HERE / script)


def planned(preset: str, out="runs/x", seed: int = 1, data: str = "d", device: str = "cpu") -> Folder:
    return Folder(Path(out), make_plan(preset, seed).tasks, data, device)


def find(folder: Folder, beginning: str) -> Task:
    return next(task for task in folder.tasks if task.name.startswith(beginning))


def evaluation(task: Task, right: int = 3) -> dict:
    """What evaluate.py would have written of two questions, with `right` samples right on the first."""
    settings = vars(parser().parse_args(["--ckpt", "c"])) | task.flags
    n, counts = settings["n_samples"], [right, 0]
    scores = {f"pass@{k}": mean_stderr([pass_at_k(n, c, k) for c in counts]) for k in settings["k"]}
    columns = dict(qid=["gsm/0", "gsm/1"], n=[n, n], strict=counts, flexible=counts, formatted=[n, 0])
    columns |= dict(finished=[n, n], gold=["1", "2"], answers=[{"1": right, "": n - right}, {"": n}])
    one = dict(n_questions=2, format_rate=0.5, finish_rate=1.0, guess_floor={}, flexible=scores, strict=scores)
    bench = dict(acc=0.75, acc_norm=0.75, chance=0.25, hits="1101", facts=[0, 1, 2, 3])
    result = {"settings": settings, "source": source_of(task.script), "commit": "abc", "benchmarks": {}}
    result["questions"] = {t: one | {"questions": columns} for t in task.flags["tasks"] if t not in BENCHMARKS}
    if benchmarks := [t for t in task.flags["tasks"] if t in BENCHMARKS]:
        result |= {"benchmarks": dict.fromkeys(benchmarks, bench), "general_average": 0.75}
    return result


def write_result(folder: Folder, task: Task, **changes) -> None:
    path = folder.path(task)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evaluation(task) | changes))
    path.with_suffix(".samples.jsonl").write_text("")


def write_run(folder: Folder, task: Task, checkpoints: bool = True, **changes) -> None:
    """A run folder; of its checkpoints those that others start from, each a zip file without weights."""
    place, steps = folder.path(task).parent, task.flags["steps"]
    place.mkdir(parents=True, exist_ok=True)
    config = task.flags | {"source": source_of(task.script), "earlier": []} | changes
    (place / "config.json").write_text(json.dumps(config))
    (place / "metrics.jsonl").write_text(json.dumps({"step": steps, "train/loss": 1.0}) + "\n")
    every = task.flags.get("save_every") or steps
    for step in {steps, *task.flags.get("save_at", []), *range(every, steps + 1, every)} if checkpoints else ():
        with zipfile.ZipFile(place / f"ckpt_{step:06d}.pt", "w") as file:
            file.writestr("data", "")


def write_all(folder: Folder, tasks: list[Task] | None = None, checkpoints: bool = True) -> Folder:
    for task in folder.tasks if tasks is None else tasks:
        write_result(folder, task) if task.kind == "eval" else write_run(folder, task, checkpoints)
    return folder
