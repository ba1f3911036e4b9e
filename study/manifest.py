"""runs.json: what was run, where it lies, what made it. The report and `--known` read it."""

import os
import platform
import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np

from common import git_commit
from data.files import UserError, read_json, write_json
from data.math_qa import load_questions, parse_number
from study.runner import Runner
from study.tasks import Plan

KEPT = ("seconds", "commit", "source", "accepted")  # of a finished run
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


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
        primary=[start.tokens for start in plan.primary],
        threads=1,
        jobs=jobs,
        setup=[shlex.join(make_world)],
        copying=copying_of(data, plan.p["test"]["limit"]),
        data=read_json(data / "meta.json"),
    )


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.open() if "model name" in line] if info.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {name}, {platform.system()}"


def copying_of(data: Path, limit: int) -> dict:
    """Of the test questions that are asked, for the report's control of copying."""
    if not (data / "train.jsonl").exists():
        return {}
    train, test = (load_questions(data, "gsm", split) for split in ("train", "test"))
    return copying(train, test[:limit])


def copying(train: list, test: list, ks: tuple[int, ...] = (1, 8, 32)) -> dict:
    """What reading one number of a question gives. "first": of each test question (by qid) its first number; "alone":
    the share of them whose answer it is; "floor": pass@k of it plus a change drawn blindly from what the answers of the
    training questions are beyond theirs."""

    def change(question):
        return parse_number(question.answer) - parse_number(NUMBER.search(question.problem)[0])

    changes, wanted = Counter(map(change, train)), [change(q) for q in test]
    miss = np.array([1 - changes[c] / len(train) for c in wanted])
    first = {q.qid: NUMBER.search(q.problem)[0] for q in test}
    floor = {str(k): float(np.mean(1 - miss**k)) for k in ks}
    return {"first": first, "alone": sum(c == 0 for c in wanted) / len(test), "floor": floor}
