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
import importlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import report
import report_lab
from common import UserError, run, writable_dir
from model import PRESETS as SHAPES

HERE = Path(__file__).parent
BENCHMARKS = ["lastword", "events", "facts", "twohop", "tools", "apply"]

# Rates: chosen on validation questions at one checkpoint (docs/tuning.md). Steps: what 45 minutes on two cores allow.
LAPTOP = dict(
    world=[],
    pretrain=dict(steps=6400, batch_tokens=1280, lr=6e-3, micro_batch_size=2, eval_every=200),
    save_at=[400, 800, 1600, 3200, 6400], post={1600: [1], 3200: [1], 6400: [1]}, dynamics=6400, shots=[8, 0],
    rl=dict(steps=40, lr=2e-4, save_every=8), sft=dict(steps=120, lr=2e-3), gold=dict(steps=120, lr=2e-3),
    sft_rl=dict(steps=40, lr=4e-4, save_every=8), parallel=dict(steps=40, lr=1.2e-3, sft_lr=1.2e-3),
    test=dict(limit=200, n_samples=32, k=[1, 8, 32]), val=dict(limit=100, n_samples=32, k=[1, 8, 32]),
)  # fmt: skip
PRESETS = {
    "smoke": dict(
        world=["--tokens", "600000"],
        pretrain=dict(steps=60, batch_tokens=2560, micro_batch_size=4, eval_every=20), save_at=[20, 60],
        post={60: [1]}, dynamics=60, shots=[4, 0],
        rl=dict(steps=4, lr=1e-4, prompts_per_step=8, group_size=8, save_every=2),
        sft=dict(steps=6, lr=3e-4, batch_size=16), gold=dict(steps=6, lr=3e-4, batch_size=16),
        sft_rl=dict(steps=4, lr=1e-4, prompts_per_step=8, group_size=8, save_every=2),
        parallel=dict(steps=4, lr=2e-4, sft_lr=2e-4, prompts_per_step=8, group_size=8, batch_size=16),
        test=dict(limit=16, n_samples=8, k=[1, 4, 8]), val=dict(limit=8, n_samples=8, k=[1, 8]),
    ),
    "laptop": LAPTOP,
    "lab": {
        **LAPTOP, "post": {6400: [1, 2, 3, 4, 5], 1600: [1, 2, 3, 4, 5], 3200: [1, 2], 800: [1, 2]},
        "shots": [8, 0, 1, 4], "test": dict(limit=400, n_samples=32, k=[1, 8, 32]),
    },
}  # fmt: skip
SECONDS = {"train_rl.py": 3.4, "train_sft.py": 1.15, "merge.py": 4.7}  # of a laptop step on one core, roughly


@dataclass(eq=False)
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
    record: dict = field(default_factory=dict)  # what the report needs to know of it

    @cache  # noqa: B019  tasks live as long as the program
    def identity(self, data_hash: str) -> str:
        parents = {flag: [task.identity(data_hash), name] for flag, (task, name) in sorted(self.inputs.items())}
        text = json.dumps([self.script, self.settings(), parents, data_hash], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def settings(self) -> dict:
        """Every setting of the command, defaults included, without paths."""
        parser = importlib.import_module(self.script.removesuffix(".py")).parser()
        args = vars(parser.parse_args(words({**dict.fromkeys(self.inputs, "-"), **self.flags})))
        shape = {"shape": vars(SHAPES[args["preset"]])} if self.kind == "pretrain" else {}
        return {k: v for k, v in args.items() if k not in ("data", "out", *self.inputs)} | shape


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
        self.done: dict[str, dict] = {}  # output -> seconds, commit and source of the run that wrote it
        self.began, self.elapsed = time.time(), 0.0  # elapsed: wall time of earlier calls

    def make_world(self) -> str:
        return " ".join(["python -m data.world --out", str(self.data), *self.p["world"]])

    # ------------------------------------------------------------------------------------------------------- the plan
    def plan(self) -> list[Task]:
        """All runs, the most wanted first."""
        p, first = self.p, self.args.seed
        base = self.pretrain("base", first)
        for step in p["save_at"]:
            for n_shot in p["shots"]:
                self.evaluate(base, step, "base", n_shot=n_shot, tasks=["gsm"] + BENCHMARKS * (n_shot == p["shots"][0]))
                if len(p["shots"]) > 2:  # which number of shots counts is chosen on validation questions
                    self.evaluate(base, step, "base", n_shot=n_shot, on="val", group="shots")
        for round_ in range(max(map(len, p["post"].values()))):  # one seed everywhere before the next
            for step, seeds in p["post"].items():
                if round_ < len(seeds):
                    self.methods(base, step, first - 1 + seeds[round_])
        if self.args.preset == "lab":
            self.controls(base, first)
        return self.tasks

    def methods(self, base: Task, step: int, seed: int) -> None:
        """Every method of the paper from one checkpoint."""
        self.train("rl", "train_rl.py", base, step, seed)
        sft = self.train("sft", "train_sft.py", base, step, seed)
        self.train("gold", "train_sft.py", base, step, seed, gold=True)
        self.train("sft_rl", "train_rl.py", base, step, seed, start=sft)
        self.train("parallel", "merge.py", base, step, seed)

    def controls(self, base: Task, first: int) -> None:
        """docs/analysis_plan.md: what separates causes that the paper's protocol mixes. From the late checkpoint."""
        p, late, early = self.p, max(self.p["post"]), min(s for s, seeds in self.p["post"].items() if len(seeds) > 2)
        three, rate, steps = range(first, first + 3), p["parallel"]["sft_lr"], p["parallel"]["steps"]
        for seed in range(first + 5, first + 8):
            self.train("rl", "train_rl.py", base, early, seed)  # C8
        wide = dict(on="test", group="wide", limit=100, n_samples=256, k=[1, 8, 32, 256])
        for t in (dict(temperature=0.6), dict(temperature=1.0, top_p=1.0)):  # C5
            self.evaluate(base, late, "base", **wide, **t)
            for method in ("rl", "sft", "sft_rl"):
                trained = next(x for x in self.tasks if x.name.startswith(f"{method}-base-{self.tokens(base, late)}"))
                self.evaluate(trained, p[method]["steps"], method, **wide, **t)
        for seed in three:  # K3: what makes parallel averaging work
            for name, change in {
                "sync8": dict(sync_every=8), "sync_end": dict(sync_every=steps), "plain_sum": dict(weights=[1, 1]),
                "one_loss": dict(combine="sum"), "alternate": dict(combine="alternate"),
            }.items():  # fmt: skip
                self.train("parallel", "merge.py", base, late, seed, variant=name, group="k3", **change)
            self.train(
                "rl", "train_rl.py", base, late, seed, variant="half_rate", group="k3", lr=p["parallel"]["lr"] / 2
            )
            for name, lr in (("half_rate", rate / 2), ("parallels_rate", rate)):
                self.train("sft", "train_sft.py", base, late, seed, variant=name, group="k3", lr=lr, steps=steps)
        for lr in (p["sft"]["lr"] / 4, p["sft"]["lr"], p["sft"]["lr"] * 2, p["sft"]["lr"] * 4):  # K1
            for n in (p["sft"]["steps"], 3 * p["sft"]["steps"]):
                if (lr, n) != (p["sft"]["lr"], p["sft"]["steps"]):
                    self.train(
                        "sft", "train_sft.py", base, late, first, variant=f"{lr:g}x{n}", group="k1", lr=lr, steps=n
                    )
        for seed in three:  # K2, K4
            sft = next(t for t in self.tasks if t.name == f"sft-base-{self.tokens(base, late)}-s{seed}")
            self.train(
                "sft_rl", "train_rl.py", base, late, seed, start=sft, variant="x40", group="k2", lr=40 * p["rl"]["lr"]
            )
            self.train("sft", "train_sft.py", base, late, seed, variant="token_sum", group="k4", sft_loss_norm="sum")
            self.train("rl", "train_rl.py", base, late, seed, variant="4_updates", group="k4", updates_per_batch=4)
        total = p["rl"]["steps"] + p["sft"]["steps"]
        self.train("rl", "train_rl.py", base, late, first, variant="total_updates", group="k2", steps=total)
        for seed in three:  # C3: few questions
            for n in (250, 1000)[: 1 if seed > first else 2]:
                many = dict(n_questions=n, group="c3", steps=math.ceil(60 * n / 64))
                self.train("rl", "train_rl.py", base, late, seed, variant=f"pool{n}", group="c3", n_questions=n)
                few = math.ceil(4 * n / 64)
                self.train("sft", "train_sft.py", base, late, seed, variant=f"pool{n}few", **{**many, "steps": few})
                self.train("sft", "train_sft.py", base, late, seed, variant=f"pool{n}many", **many)
                self.train("gold", "train_sft.py", base, late, seed, variant=f"pool{n}many", gold=True, **many)
        models = [base, self.pretrain("heavy", first, mix="math-heavy"), self.pretrain("base2", first + 1)]  # C4
        models += [
            self.pretrain("heavy2", first + 1, mix="math-heavy"),
            self.pretrain("large", first, preset="world-4x"),
        ]
        for model in models:
            for exemplars in ("hard", "gsm"):
                hard = dict(tasks=["hard"], group="c4", n_shot=8, shot_task=exemplars)
                self.evaluate(model, late, "base", variant=f"{exemplars}_shots", **hard)
            for seed in three[:2]:
                self.train(
                    "rl", "train_rl.py", model, late, seed, variant="hard", group="c4", task="hard", tasks=["hard"]
                )

    def tokens(self, base: Task, step: int) -> str:
        return f"{step * base.flags['batch_tokens'] / 1e6:.1f}M"

    def pretrain(self, name: str, seed: int, **flags) -> Task:
        p = self.p["pretrain"]
        slow = 2.6 if "preset" in flags else 1.0
        flags = {**p, "save_at": self.p["save_at"], "seed": seed, **flags}
        cost = p["steps"] * p["batch_tokens"] / 4700 * slow
        task = Task(
            f"pretrain-{name}", "pretrain", "base", "train_pretrain.py", flags, f"ckpt_{p['steps']:06d}.pt", cost,
            record=dict(base=name, seed=seed),
        )  # fmt: skip
        self.tasks.append(task)
        return task

    def train(
        self, method, script, base, step, seed, *, start=None, variant="", group="main", tasks=None, **change
    ) -> Task:
        """One post-training run from `base` at `step` (or from `start`, a run that began there), its evaluation on the
        test questions, and on validation questions those on the way that the dynamics figure shows."""
        flags = {**self.p[method], **change, "seed": seed}
        every = flags.pop("save_every", 0)
        dynamics = every and group == "main" and step == self.p["dynamics"] and seed == self.args.seed
        if dynamics:
            flags["save_every"] = every
        tokens, pool = step * base.flags["batch_tokens"], flags.get("prompts_per_step", 48) / 48
        here = (base, f"ckpt_{step:06d}.pt")
        name = f"{method}-{base.record['base']}-{self.tokens(base, step)}-s{seed}" + f"-{variant}" * bool(variant)
        task = Task(
            name, "train", method, script, flags, f"ckpt_{flags['steps']:06d}.pt",
            flags["steps"] * SECONDS[script] * pool,
            {"init": (start, start.out) if start else here},
            dict(base=base.record["base"], seed=seed, tokens=tokens, group=group, variant=variant),
        )  # fmt: skip
        self.tasks.append(task)
        self.evaluate(task, flags["steps"], method, tasks=tasks, group=group, reference=here)
        if dynamics:
            self.evaluate(
                start or base, start.flags["steps"] if start else step, method, on="val", group="dynamics", train_step=0
            )
            for at in range(every, flags["steps"] + 1, every):
                self.evaluate(task, at, method, on="val", group="dynamics", train_step=at)
        return task

    def evaluate(
        self, of: Task, step, method, *, n_shot=0, on="test", tasks=None, group="main", reference=None, variant=None,
        train_step=None, **change,
    ) -> None:  # fmt: skip
        """`of` at `step` of its own; `train_step` (dynamics): the step of `method`, which at 0 is that of its start."""
        r = of.record
        tokens = r.get("tokens") or step * of.flags["batch_tokens"]
        flags = {**self.p[on], "split": on, "seed": r["seed"], **change}
        flags |= {"n_shot": n_shot} if n_shot else {}
        flags["tasks"] = tasks or (
            ["gsm", *BENCHMARKS] if on == "test" and group in ("main", "k1", "k2", "k3", "k4") else ["gsm"]
        )
        variant = r.get("variant", "") if variant is None else variant
        name = f"{method}-{r['base']}-{tokens / 1e6:.1f}M-s{r['seed']}-{variant}-{on}-{n_shot}shot-{group}".replace(
            "--", "-"
        )
        name += f"-T{change['temperature']}" if "temperature" in change else ""
        name += f"-step{train_step}" if train_step is not None else ""
        record = dict(
            base=r["base"], seed=r["seed"], tokens=tokens, n_shot=n_shot, split=on, group=group, variant=variant,
            train_step=train_step, temperature=change.get("temperature", 0.6),
        )  # fmt: skip
        cost = 5 + 8 * (len(flags["tasks"]) > 1) + flags["limit"] * flags["n_samples"] / (150 if n_shot else 500)
        inputs = {"ckpt": (of, f"ckpt_{step:06d}.pt")} | ({"reference": reference} if reference else {})
        self.tasks.append(Task(name, "eval", method, "evaluate.py", flags, ".json", cost, inputs, record))

    # ------------------------------------------------------------------------------------------------------- running it
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
    files = [p for p in HERE.glob("*.py") if p.stem not in ("study", "report", "report_lab", "claims")]
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
    p.add_argument("--seed", type=int, default=1, help="the first one; 0 made the rates (docs/tuning.md)")
    p.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    p.add_argument("--plan", action="store_true", help="print the runs and the estimated time, run nothing")
    p.add_argument("--report-only", action="store_true", help="rebuild the report and the figures from finished runs")
    args = p.parse_args()
    args.out = args.out or f"runs/{args.preset}"
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least one run must be allowed at a time")
    return args


def main():
    args = parse_args()
    os.chdir(HERE)
    build = report_lab.build if args.preset == "lab" else report.build
    study = Study(args)
    tasks = study.plan()
    if args.plan:
        for task in tasks:
            print(f"{task.cost:6.0f} s  {task.name:<44} {task.script} {' '.join(words(task.flags))}")
        minutes = sum(t.cost for t in tasks) / args.jobs / 60
        print(f"{len(tasks)} runs, about {minutes:.0f} minutes with {args.jobs} side by side")
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
