"""Runs what a plan asks for: independent runs side by side, one thread each, nothing twice. The folder of a study holds
runs/, evals/, logs/ and runs.json."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path

from common import git_commit, source_hash
from data.math_qa import load_questions
from study.archive import StudyFiles, files_of
from study.plan import Plan, Task, words
from study.read import copying, read_jsonl

HERE = Path(__file__).parent.parent  # where the stages lie
KEPT = ("seconds", "commit", "source")  # of a finished run, in runs.json


class Study(Plan):
    """A plan in a folder: runs/, evals/, logs/, runs.json."""

    def __init__(self, args):
        super().__init__(args.preset, args.seed)
        self.args, self.dir = args, Path(args.out)
        self.data = self.dir / "world" if self.p["world"] else Path("data/world")
        self.data_hash = ""
        self.done: dict[str, dict] = {}  # output -> seconds, commit and source of the run that wrote it
        self.began, self.elapsed = time.time(), 0.0  # elapsed: wall time of earlier calls

    def make_world(self) -> str:
        return " ".join(["python -m data.world --out", str(self.data), *self.p["world"]])

    def path(self, task: Task, name: str | None = None) -> Path:
        ident = f"{task.name}-{task.identity(self.data_hash)}"
        if task.kind == "eval":
            return self.dir / "evals" / f"{ident}.json"
        return self.dir / "runs" / ident / (name or task.out)

    def finished(self, task: Task) -> bool:
        """Its output is there; or, of a run brought in without its checkpoints, the log up to the last step."""
        if task.kind == "eval" or self.path(task).exists():
            return self.path(task).exists()
        rows = read_jsonl(self.path(task, "metrics.jsonl"))
        return bool(rows) and rows[-1]["step"] == task.flags["steps"]

    def to_do(self) -> list[Task]:
        """Evaluations that are missing, and what these need: in the plan's order."""
        wanted: list[Task] = []

        def want(task: Task) -> None:
            if not self.path(task).exists() and task not in wanted:
                for parent, name in task.inputs.values():
                    if not self.path(parent, name).exists():
                        want(parent)
                wanted.append(task)

        for task in self.tasks:
            if task.kind == "eval" or not self.finished(task):
                want(task)
        return wanted

    def take_over(self, path: Path) -> int:
        """Finished work of another machine: evaluations, and logs of runs, that this plan has at the same address.
        Returns how many runs."""
        if path.resolve() == self.dir.resolve():
            return 0
        theirs, taken = StudyFiles(path), 0
        rows = {r["out"]: r for r in theirs.manifest["runs"]}
        for task in self.tasks:
            out = self.path(task).relative_to(self.dir).as_posix()
            if self.finished(task) or out not in rows:
                continue
            for name in filter(theirs.has, files_of(rows[out])):
                theirs.copy(name, self.dir)
            if self.finished(task):
                self.done[out] = {k: rows[out].get(k) for k in KEPT}
                taken += 1
        return taken

    def command(self, task: Task, fresh: bool = False) -> list[str]:
        """The stage's command line; a run that was cut off goes on from its last checkpoint."""
        out = self.path(task) if task.kind == "eval" else self.path(task).parent
        unfinished = [] if fresh or task.kind == "eval" else sorted(out.glob("ckpt_*.pt"))
        if unfinished:
            return ["python", task.script, "--resume", str(unfinished[-1])]
        inputs = {flag: str(self.path(parent, name)) for flag, (parent, name) in task.inputs.items()}
        flags = {**inputs, "data": self.data, **task.flags, "threads": 1, "out": out}
        return ["python", task.script, *words(flags)]

    def ready(self, task: Task) -> bool:
        return all(self.path(parent, name).exists() for parent, name in task.inputs.values())

    def next_up(self, todo: list[Task], idle: bool) -> list[Task]:
        """What can begin now, in the plan's order; but a pre-training, which takes long, waits until all that is before
        it in the plan has begun, or nothing else can."""
        ready = [t for t in todo if self.ready(t)]
        return [t for t in ready if t.kind != "pretrain" or t is todo[0]] or ready[: int(idle)]

    def start(self, task: Task) -> subprocess.Popen:
        command = self.command(task)
        print(f"$ {' '.join(command)}", flush=True)
        with open(self.log_file(task), "a") as f:
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            return subprocess.Popen(
                [sys.executable, *command[1:]], stdout=f, stderr=subprocess.STDOUT, cwd=HERE, env=env
            )

    def run_all(self) -> list[str]:
        """Run what is missing, `--jobs` at a time; returns the names of runs that failed. A failed run stops what
        depends on it, not the rest; after `--minutes` nothing new is begun."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `kill` ends the runs too, as Ctrl-C does
        todo = self.to_do()
        print(f"{len(self.tasks)} runs, {len(todo)} to do | {self.args.jobs} side by side", flush=True)
        running: dict[subprocess.Popen, tuple[Task, float]] = {}
        failed: list[str] = []
        began, done_cost, total = time.time(), 0.0, sum(t.cost for t in todo)
        try:
            while running or self.next_up(todo, True):
                if self.args.minutes and time.time() - began > 60 * self.args.minutes:
                    todo = []
                for task in self.next_up(todo, not running)[: self.args.jobs - len(running)]:
                    todo.remove(task)
                    running[self.start(task)] = (task, time.time())
                time.sleep(0.5)
                for process in [q for q in running if q.poll() is not None]:
                    task, at = running.pop(process)
                    if process.returncode or not self.path(task).exists():
                        failed.append(task.name)
                        todo = [t for t in todo if self.ready(t) or not hangs_on(t, task)]
                        what = f"exit code {process.returncode}, see {self.log_file(task)}"
                        print(f"FAILED {task.name} ({what})", flush=True)
                        continue
                    out = self.path(task).relative_to(self.dir).as_posix()
                    seconds = self.done.get(out, {}).get("seconds") or 0.0
                    seconds = round(seconds + time.time() - at, 1)
                    self.done[out] = {"seconds": seconds, "commit": git_commit()[0], "source": self.source(task)}
                    done_cost += task.cost
                    under_way = sum(min(u.cost, time.time() - start) for u, start in running.values())
                    left = (time.time() - began) / (done_cost + under_way) * (total - done_cost - under_way) / 60
                    ahead = f"{len(todo) + len(running)} runs left, about {left:.0f} min"
                    print(f"done {task.name} in {time.time() - at:.0f} s | {ahead}", flush=True)
                    self.write_manifest()
        finally:
            for process in running:
                process.terminate()
        return failed + [f"{t.name} (a checkpoint that it needs was not written)" for t in todo]

    def source(self, task: Task) -> str:
        return source_hash(HERE / task.script)

    def log_file(self, task: Task) -> Path:
        out = self.path(task)
        return self.dir / "logs" / f"{out.stem if task.kind == 'eval' else out.parent.name}.log"

    @cached_property
    def copying(self) -> dict:
        """Of the test questions that are asked, for the report's control of copying."""
        if not (self.data / "train.jsonl").exists():
            return {}
        train, test = (load_questions(self.data, "gsm", split) for split in ("train", "test"))
        return copying(train, test[: self.p["test"]["limit"]])

    def write_manifest(self) -> None:
        """runs.json: what was run and where it lies, relative to the study's folder."""
        rows = []
        for task in self.tasks:
            out = self.path(task).relative_to(self.dir)
            row = dict(name=task.name, kind=task.kind, method=task.method, **task.record, out=out.as_posix())
            row["seconds"] = None
            if task.kind != "eval":
                logged = read_jsonl(self.path(task, "metrics.jsonl"))  # of a run that was taken over
                row["seconds"] = logged[-1].get("perf/elapsed_s") if logged else None
                row |= {"metrics": (out.parent / "metrics.jsonl").as_posix(), "config": task.flags}
            row |= {k: v for k, v in self.done.get(out.as_posix(), {}).items() if v is not None}
            row["finished"] = self.finished(task)
            rows.append({**row, "command": " ".join(self.command(task, fresh=True))})
        manifest = dict(
            preset=self.args.preset, seed=self.args.seed, commit=git_commit()[0], machine=machine(),
            trials=self.p["trials"], primary=[s * self.p["pretrain"]["batch_tokens"] for s in self.primary],
            threads=1, jobs=self.args.jobs, seconds=round(self.elapsed + time.time() - self.began, 1),
            setup=[self.make_world()], copying=self.copying, data=json.loads((self.data / "meta.json").read_text()),
            runs=rows,
        )  # fmt: skip
        temporary = self.dir / ".tmp_runs.json"
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")
        os.replace(temporary, self.dir / "runs.json")


def hangs_on(task: Task, other: Task) -> bool:
    return any(parent is other or hangs_on(parent, other) for parent, _ in task.inputs.values())


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.open() if "model name" in line] if info.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {name}, {platform.system()}"
