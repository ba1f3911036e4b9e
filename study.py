"""The grid of the paper on a laptop: pre-train once, post-train from several of its checkpoints, evaluate, report.

From each chosen checkpoint: direct RL, SFT, SFT-Gold, SFT -> RL and parallel averaging; the base is evaluated
few-shot and 0-shot. The study calls the stage scripts as a user would and prints each command. Independent runs share
the cores, one thread each, and start as soon as the checkpoint they need exists. A run's folder is named by a hash of
its settings, its parents and the data, so a second call redoes nothing that is finished and never reuses a run of
other settings.

    python study.py --preset smoke --out runs/smoke        # some minutes: every stage, numbers without meaning
    python study.py --preset laptop --out runs/laptop      # the whole grid, writes runs/laptop/report.md
    python study.py --preset laptop --plan                 # print the runs and the estimated time, run nothing
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import report
from common import UserError, run, writable_dir

HERE = Path(__file__).parent

# Rates: chosen on validation questions at one checkpoint (docs/tuning.md). Steps: what 45 minutes on two cores allow.
PRESETS = {
    "smoke": dict(
        world=["--tokens", "600000"],
        pretrain=dict(steps=60, batch_tokens=2560, micro_batch_size=4, eval_every=20), save_at=[20, 60],
        post=[60], dynamics=60, shots=4,
        rl=dict(steps=4, lr=1e-4, prompts_per_step=8, group_size=8, save_every=2),
        sft=dict(steps=6, lr=3e-4, batch_size=16),
        sft_rl=dict(steps=4, lr=1e-4, prompts_per_step=8, group_size=8, save_every=2),
        parallel=dict(steps=4, lr=2e-4, sft_lr=2e-4, prompts_per_step=8, group_size=8, batch_size=16),
        test=dict(limit=16, n_samples=8, k=[1, 4, 8]), val=dict(limit=8, n_samples=8, k=[1, 8]),
    ),
    "laptop": dict(
        world=[],
        pretrain=dict(steps=6400, batch_tokens=1280, lr=6e-3, micro_batch_size=2, eval_every=200),
        save_at=[400, 800, 1600, 3200, 6400], post=[1600, 3200, 6400], dynamics=6400, shots=8,
        rl=dict(steps=24, lr=3e-4, save_every=4), sft=dict(steps=120, lr=1e-3),
        sft_rl=dict(steps=24, lr=3e-4, save_every=4), parallel=dict(steps=24, lr=6e-4, sft_lr=6e-4),
        test=dict(limit=200, n_samples=32, k=[1, 8, 32]), val=dict(limit=100, n_samples=32, k=[1, 8, 32]),
    ),
}  # fmt: skip


@dataclass
class Task:
    """One command. `inputs`: flag -> (task, file in its folder); `out`: the file whose existence means it is done."""

    name: str
    kind: str  # pretrain | train | eval
    method: str
    script: str
    flags: dict
    out: str
    cost: float  # rough seconds on one core
    inputs: dict = field(default_factory=dict)
    record: dict = field(default_factory=dict)  # what report.py needs to know of it

    def identity(self, data_hash: str) -> str:
        parents = {flag: [task.identity(data_hash), name] for flag, (task, name) in self.inputs.items()}
        text = json.dumps([self.script, self.flags, parents, data_hash], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def words(flags: dict) -> list[str]:
    """{"batch_size": 64, "gold": True, "k": [1, 8]} -> --batch-size 64 --gold --k 1 8"""
    out = []
    for name, value in flags.items():
        out.append("--" + name.replace("_", "-"))
        if value is not True:
            out += [str(v) for v in (value if isinstance(value, list) else [value])]
    return out


class Study:
    def __init__(self, args):
        self.args, self.p, self.dir = args, PRESETS[args.preset], Path(args.out)
        self.data = self.dir / "world" if self.p["world"] else Path("data/world")
        self.data_hash = ""
        self.tasks: list[Task] = []
        self.seconds: dict[str, float] = {}  # of each finished run, by its output
        self.began, self.elapsed = time.time(), 0.0  # elapsed: wall time of earlier calls

    def make_world(self) -> str:
        return " ".join(["python -m data.world --out", str(self.data), *self.p["world"]])

    # ------------------------------------------------------------------------------------------------------- the plan
    def plan(self) -> list[Task]:
        p, seed = self.p, self.args.seed
        tokens_per_step = p["pretrain"]["batch_tokens"]
        base = Task(
            "pretrain", "pretrain", "base", "train_pretrain.py",
            {**p["pretrain"], "save_at": p["save_at"], "seed": seed},
            f"ckpt_{p['pretrain']['steps']:06d}.pt", cost=p["pretrain"]["steps"] * tokens_per_step / 7000,
        )  # fmt: skip
        self.tasks = [base]
        for step in p["save_at"]:
            tokens, ckpt = step * tokens_per_step, (base, f"ckpt_{step:06d}.pt")
            self.evaluate("base", ckpt, tokens, n_shot=p["shots"])
            self.evaluate("base", ckpt, tokens, n_shot=0, tasks=["gsm"])
            if step not in p["post"]:
                continue
            at = dict(tokens=tokens, dynamics=step == p["dynamics"])
            self.train("rl", "train_rl.py", p["rl"], ckpt, **at)
            sft = self.train("sft", "train_sft.py", p["sft"], ckpt, **at)
            self.train("gold", "train_sft.py", {**p["sft"], "gold": True}, ckpt, **at)
            self.train("sft_rl", "train_rl.py", p["sft_rl"], (sft, sft.out), **at)
            self.train("parallel", "merge.py", p["parallel"], ckpt, **at)
        return self.tasks

    def train(self, method, script, flags, ckpt, *, tokens, dynamics) -> Task:
        """One post-training run, its evaluation on the test questions, and for the dynamics figure those on the way."""
        flags = {**flags, "seed": self.args.seed}
        every = flags.pop("save_every", 0)
        if dynamics and every:
            flags["save_every"] = every
        cost = flags["steps"] * {"train_rl.py": 6, "train_sft.py": 1.2, "merge.py": 7}[script]
        task = Task(
            f"{method}-{tokens / 1e6:.1f}M", "train", method, script, flags, f"ckpt_{flags['steps']:06d}.pt", cost,
            {"init": ckpt}, dict(tokens=tokens),
        )  # fmt: skip
        self.tasks.append(task)
        self.evaluate(method, (task, task.out), tokens)
        if dynamics and every:
            self.evaluate("base" if method == "rl" else "sft", ckpt, tokens, on="val", train_step=0, group=method)
            for step in range(every, flags["steps"] + 1, every):
                self.evaluate(method, (task, f"ckpt_{step:06d}.pt"), tokens, on="val", train_step=step, group=method)
        return task

    def evaluate(self, method, ckpt, tokens, n_shot=0, on="test", tasks=None, train_step=None, group=None) -> None:
        flags = {**self.p[on], "split": on, "seed": self.args.seed}
        if n_shot:
            flags["n_shot"] = n_shot
        tasks = tasks or (
            ["gsm"] if on == "val" else ["gsm", "lastword", "events", "facts", "twohop", "tools", "apply"]
        )
        name = f"{method}-{tokens / 1e6:.1f}M-{on}-{n_shot}shot" + (f"-{group}-step{train_step}" if group else "")
        record = dict(
            tokens=tokens, n_shot=n_shot, split=on, group="dynamics" if group else "main", train_step=train_step
        )
        if group:
            record["curve"] = group
        cost = flags["limit"] * flags["n_samples"] / (150 if n_shot else 300)
        self.tasks.append(
            Task(name, "eval", method, "evaluate.py", {**flags, "tasks": tasks}, ".json", cost, {"ckpt": ckpt}, record)
        )

    # ------------------------------------------------------------------------------------------------------- running it
    def path(self, task: Task, name: str | None = None) -> Path:
        ident = f"{task.name}-{task.identity(self.data_hash)}"
        return (
            self.dir / "evals" / f"{ident}.json"
            if task.kind == "eval"
            else self.dir / "runs" / ident / (name or task.out)
        )

    def command(self, task: Task, fresh: bool = False) -> list[str]:
        """The stage's command line; a run that was cut off goes on from its last checkpoint."""
        out = self.path(task) if task.kind == "eval" else self.path(task).parent
        unfinished = [] if fresh or task.kind == "eval" else sorted(out.glob("ckpt_*.pt"))
        if unfinished:
            return ["python", task.script, "--resume", str(unfinished[-1])]
        inputs = {flag: str(self.path(parent, name)) for flag, (parent, name) in task.inputs.items()}
        return [
            "python",
            task.script,
            *words(inputs),
            "--data",
            str(self.data),
            *words(task.flags),
            "--threads",
            "1",
            "--out",
            str(out),
        ]

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
        todo = [t for t in self.tasks if not self.path(t).exists()]
        print(f"{len(self.tasks)} runs, {len(self.tasks) - len(todo)} finished before | {self.args.jobs} side by side")
        running: dict[subprocess.Popen, tuple[Task, float]] = {}
        failed: list[str] = []
        began, done_cost, total = time.time(), 0.0, sum(t.cost for t in todo)
        try:
            while running or any(self.ready(t) for t in todo):
                for task in [t for t in todo if self.ready(t)][: self.args.jobs - len(running)]:
                    todo.remove(task)
                    running[self.start(task)] = (task, time.time())
                time.sleep(0.2)
                for process in [q for q in running if q.poll() is not None]:
                    task, at = running.pop(process)
                    if process.returncode or not self.path(task).exists():
                        failed.append(task.name)
                        print(
                            f"FAILED {task.name} (exit code {process.returncode}), see {self.log_file(task)}",
                            flush=True,
                        )
                        continue
                    out = self.path(task).as_posix()
                    self.seconds[out] = round(self.seconds.get(out, 0.0) + time.time() - at, 1)
                    done_cost += task.cost
                    under_way = sum(min(u.cost, time.time() - start) for u, start in running.values())
                    left = (time.time() - began) / (done_cost + under_way) * (total - done_cost - under_way) / 60
                    ahead = len(todo) + len(running)
                    print(
                        f"done {task.name} in {time.time() - at:.0f} s | {ahead} runs left, about {left:.0f} min",
                        flush=True,
                    )
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
            out = self.path(task)
            row = {
                "name": task.name,
                "kind": task.kind,
                "method": task.method,
                **task.record,
                "out": out.relative_to(self.dir).as_posix(),
            }
            if task.kind != "eval":
                row["metrics"] = (out.parent / "metrics.jsonl").relative_to(self.dir).as_posix()
                row["config"] = task.flags
            row |= {
                "seconds": self.seconds.get(out.as_posix()),
                "finished": out.exists(),
                "command": " ".join(self.command(task, fresh=True)),
            }
            rows.append(row)
        manifest = dict(
            preset=self.args.preset, seed=self.args.seed, commit=git_commit(), machine=machine(), threads=1,
            jobs=self.args.jobs, seconds=round(self.elapsed + time.time() - self.began, 1), setup=[self.make_world()],
            data=json.loads((self.data / "meta.json").read_text()), runs=rows,
        )  # fmt: skip
        temporary = self.dir / ".tmp_runs.json"
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")
        os.replace(temporary, self.dir / "runs.json")


def machine() -> str:
    names = (
        [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line]
        if Path("/proc/cpuinfo").exists()
        else []
    )
    return (
        f"{os.cpu_count()} x {names[0] if names else platform.processor() or platform.machine()}, {platform.system()}"
    )


def git_commit() -> str | None:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return found.stdout.strip() or None


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="laptop", choices=list(PRESETS))
    p.add_argument("--out", metavar="DIR", help="default: runs/PRESET")
    p.add_argument("--seed", type=int, default=0, help="of pre-training, post-training and evaluation")
    p.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    p.add_argument("--plan", action="store_true", help="print the runs and the estimated time, run nothing")
    p.add_argument("--report-only", action="store_true", help="rebuild report.md and the figures from finished runs")
    args = p.parse_args()
    args.out = args.out or f"runs/{args.preset}"
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least one run must be allowed at a time")
    return args


def main():
    args = parse_args()
    os.chdir(HERE)
    study = Study(args)
    tasks = study.plan()
    if args.plan:
        for task in tasks:
            print(f"{task.cost:6.0f} s  {task.name:<32} {task.script} {' '.join(words(task.flags))}")
        minutes = sum(t.cost for t in tasks) / args.jobs / 60
        print(f"{len(tasks)} runs, about {minutes:.0f} minutes with {args.jobs} side by side")
        return
    writable_dir(study.dir)
    if args.report_only:
        print(f"wrote {report.build(study.dir)}")
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
    if (study.dir / "runs.json").exists():
        old = json.loads((study.dir / "runs.json").read_text())
        study.elapsed = old["seconds"]
        study.seconds = {str(study.dir / r["out"]): r["seconds"] for r in old["runs"] if r["seconds"]}
    study.run_all()
    study.write_manifest()
    print(f"wrote {report.build(study.dir)}")


if __name__ == "__main__":
    run(main)
