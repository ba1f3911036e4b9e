"""The grid of the paper on a laptop: pre-train, post-train from several checkpoints of that run, evaluate, report.

From each chosen checkpoint: direct RL, SFT, SFT-Gold, SFT -> RL and parallel averaging; the base is evaluated
few-shot and 0-shot. The study calls the stage scripts as a user would and prints each command. Independent runs share
the cores, one thread each, and start as soon as the checkpoint they need exists. A run's folder is named by a hash of
all its settings (defaults too), its parents and the data, so a second call redoes nothing that is finished and never
reuses a run of other settings; evaluations copied in from elsewhere count as finished.

    python study.py --preset smoke --out runs/smoke        # some minutes: every stage, numbers without meaning
    python study.py --preset laptop --out runs/laptop      # the whole grid, one seed: runs/laptop/report.md
    python study.py --preset lab --out runs/lab            # seeds and controls (docs/analysis_plan.md): hours
    python study.py --preset lab --plan                    # print the runs and the estimated time, run nothing
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import report
import report_lab
from common import UserError, run, writable_dir
from grid import PRESETS, Grid, Task, words

HERE = Path(__file__).parent


class Study(Grid):
    """A grid in a folder: runs/, evals/, logs/, runs.json."""

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
        rows = report.read_jsonl(self.path(task, "metrics.jsonl"))
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

    def start(self, task: Task) -> subprocess.Popen:
        command = self.command(task)
        print(f"$ {' '.join(command)}", flush=True)
        with open(self.log_file(task), "a") as f:
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            return subprocess.Popen(
                [sys.executable, *command[1:]], stdout=f, stderr=subprocess.STDOUT, cwd=HERE, env=env
            )

    def run_all(self) -> None:
        """Run what is missing, `--jobs` at a time. A failed run stops what depends on it, not the rest."""
        todo = self.to_do()
        print(f"{len(self.tasks)} runs, {len(todo)} to do | {self.args.jobs} side by side", flush=True)
        running: dict[subprocess.Popen, tuple[Task, float]] = {}
        failed: list[str] = []
        began, done_cost, total = time.time(), 0.0, sum(t.cost for t in todo)
        try:
            while running or any(self.ready(t) for t in todo):
                for task in [t for t in todo if self.ready(t)][: self.args.jobs - len(running)]:
                    todo.remove(task)
                    running[self.start(task)] = (task, time.time())
                time.sleep(0.5)
                for process in [q for q in running if q.poll() is not None]:
                    task, at = running.pop(process)
                    if process.returncode or not self.path(task).exists():
                        failed.append(task.name)
                        what = f"exit code {process.returncode}, see {self.log_file(task)}"
                        print(f"FAILED {task.name} ({what})", flush=True)
                        continue
                    out = self.path(task).relative_to(self.dir).as_posix()
                    seconds = self.done.get(out, {}).get("seconds") or 0.0
                    seconds = round(seconds + time.time() - at, 1)
                    self.done[out] = {"seconds": seconds, "commit": git_commit(), "source": source_hash()}
                    done_cost += task.cost
                    under_way = sum(min(u.cost, time.time() - start) for u, start in running.values())
                    left = (time.time() - began) / (done_cost + under_way) * (total - done_cost - under_way) / 60
                    ahead = f"{len(todo) + len(running)} runs left, about {left:.0f} min"
                    print(f"done {task.name} in {time.time() - at:.0f} s | {ahead}", flush=True)
                    self.write_manifest()
        finally:
            for process in running:
                process.terminate()
        if failed:
            raise UserError(
                f"{len(failed)} runs failed ({', '.join(failed)}): mend what their logs say, then run this again"
            )

    def log_file(self, task: Task) -> Path:
        out = self.path(task)
        return self.dir / "logs" / f"{out.stem if task.kind == 'eval' else out.parent.name}.log"

    def write_manifest(self) -> None:
        """runs.json: what was run and where it lies, relative to the study's folder."""
        rows = []
        for task in self.tasks:
            out = self.path(task).relative_to(self.dir)
            row = dict(name=task.name, kind=task.kind, method=task.method, **task.record, out=out.as_posix())
            if task.kind != "eval":
                row |= {"metrics": (out.parent / "metrics.jsonl").as_posix(), "config": task.flags}
            row |= {"seconds": None, **self.done.get(out.as_posix(), {}), "finished": self.finished(task)}
            rows.append({**row, "command": " ".join(self.command(task, fresh=True))})
        manifest = dict(
            preset=self.args.preset, seed=self.args.seed, commit=git_commit(), source=source_hash(), machine=machine(),
            threads=1, jobs=self.args.jobs, seconds=round(self.elapsed + time.time() - self.began, 1),
            setup=[self.make_world()], data=json.loads((self.data / "meta.json").read_text()), runs=rows,
        )  # fmt: skip
        temporary = self.dir / ".tmp_runs.json"
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")
        os.replace(temporary, self.dir / "runs.json")


def source_hash() -> str:
    """Of the code that decides a run's numbers: stages, model, data, kernels."""
    files = [p for p in HERE.glob("*.py") if p.stem not in ("study", "grid", "report", "report_lab", "claims")]
    digest = hashlib.sha256()
    for path in sorted([*files, *HERE.glob("data/*.py"), *HERE.glob("kernels/*.py")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:10]


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.open() if "model name" in line] if info.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {name}, {platform.system()}"


def git_commit() -> str | None:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return found.stdout.strip() or None


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="laptop", choices=list(PRESETS))
    p.add_argument("--out", metavar="DIR", help="default: runs/PRESET")
    p.add_argument("--seed", type=int, help="the first one; default: 0, and 1 for lab, since 0 made the rates")
    p.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    p.add_argument("--plan", action="store_true", help="print the runs and the estimated time, run nothing")
    p.add_argument("--report-only", action="store_true", help="rebuild the report and the figures from finished runs")
    args = p.parse_args()
    args.out = args.out or f"runs/{args.preset}"
    args.seed = int(args.preset == "lab") if args.seed is None else args.seed
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least one run must be allowed at a time")
    return args


def main():
    args = parse_args()
    os.chdir(HERE)
    build = report_lab.build if args.preset == "lab" else report.build
    study = Study(args)
    if args.plan:
        for task in study.tasks:
            print(f"{task.cost:6.0f} s  {task.name:<44} {task.script} {' '.join(words(task.flags))}")
        minutes = sum(t.cost for t in study.tasks) / args.jobs / 60
        print(f"{len(study.tasks)} runs, about {minutes:.0f} minutes with {args.jobs} side by side")
        return
    writable_dir(study.dir)
    if args.report_only:
        print(f"wrote {build(study.dir)}")
        return
    (study.dir / "logs").mkdir(exist_ok=True)
    (study.dir / "evals").mkdir(exist_ok=True)
    if not (study.data / "meta.json").exists():
        print(f"$ {study.make_world()}", flush=True)
        with open(study.dir / "logs" / "world.log", "w") as log:
            command = [sys.executable, *study.make_world().split()[1:]]
            if subprocess.run(command, cwd=HERE, stdout=log, stderr=subprocess.STDOUT).returncode:
                raise UserError(f"the world could not be made; see {study.dir / 'logs' / 'world.log'}")
    study.data_hash = hashlib.sha256((study.data / "meta.json").read_bytes()).hexdigest()
    if old := report.read_json(study.dir / "runs.json"):
        study.elapsed = old["seconds"]
        keep = ("seconds", "commit", "source")
        study.done = {r["out"]: {k: r.get(k) for k in keep} for r in old["runs"] if r["finished"]}
    study.run_all()
    study.write_manifest()
    print(f"wrote {build(study.dir)}")


if __name__ == "__main__":
    run(main)
