"""runs.json: what was run, where it lies, what made it. The report and `--known` read it."""

import os
import platform
import shlex
from pathlib import Path

from common import git_commit
from data.files import UserError, read_json, write_json
from data.math_qa import load_questions
from study.controls import events_in
from study.runner import Runner
from study.tasks import Plan

KEPT = ("seconds", "threads", "commit", "source", "accepted")  # of a finished run


def read_manifest(path: Path, mend: str = "remove it, and it is made anew from the runs") -> dict:
    """With rows that have a name and places inside the folder."""
    manifest = read_json(path, "list of runs", mend=mend)
    check_places(manifest, path, mend)
    return manifest


def check_places(manifest: dict, path: Path, mend: str) -> None:
    """Every run has a place, and it lies inside the folder."""
    rows = manifest.get("runs")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get("out"), str) for row in rows):
        raise UserError(f"{path}: no list of runs with the place of each (`out`); {mend}")
    for place in [row[key] for row in rows for key in ("out", "metrics") if key in row]:
        if Path(str(place)).is_absolute() or ".." in Path(str(place)).parts:
            raise UserError(f"{path}: {place!r} leads out of the study's folder; {mend}")


def kept_of(row: dict) -> dict:
    return {key: row[key] for key in KEPT if key in row}


def write_manifest(runner: Runner, header: dict) -> None:
    rows, folder = [], runner.folder
    for task in folder.tasks:
        row = dict(name=task.name, kind=task.kind, method=task.method, **task.record, out=folder.out(task))
        row["seconds"] = None
        if task.kind != "eval":
            row["seconds"] = folder.last_row(task).get("perf/elapsed_s")  # of a run that was taken over
            metrics = folder.path(task, "metrics.jsonl").relative_to(folder.dir)
            row |= {"metrics": metrics.as_posix(), "config": task.flags}
        row |= {key: value for key, value in kept_of(folder.done.get(row["out"], {})).items() if value is not None}
        row["finished"] = folder.finished(task)
        rows.append({**row, "command": shlex.join(runner.command(task, fresh=True))})
    write_json(folder.dir / "runs.json", {**header, "code": runner.sources, "runs": rows})


def header_of(plan: Plan, jobs: int, device: str, make_world: list[str], data: Path) -> dict:
    """What runs.json says of the study as a whole, but its time."""
    return dict(
        preset=plan.preset,
        seed=plan.seed,
        commit=git_commit()[0],
        machine=machine(),
        device=device,
        trials=plan.p["trials"],
        primary=[step * plan.p["pretrain"]["batch_tokens"] for step in plan.primary],
        **{key: plan.p[key] for key in ("pool", "passes", "start_passes") if key in plan.p},
        threads=1,  # of a run, unless its row says more
        jobs=jobs,
        setup=[shlex.join(make_world)],
        events=events_of(data, plan),
        data=read_json(data / "meta.json"),
    )


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.open() if "model name" in line] if info.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {name}, {platform.system()}"


def events_of(data: Path, plan: Plan) -> dict[str, int]:
    """How many events each of the world's test questions has that are asked."""
    if not (data / "train.jsonl").exists():
        return {}
    asked = [load_questions(data, task, "test") for task in ("gsm", plan.p.get("beyond")) if task]
    return {q.qid: events_in(q.problem) for questions in asked for q in questions[: plan.p["test"]["limit"]]}
