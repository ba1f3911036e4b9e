"""A study's commands: what a run is, what it is called, what it needs. plan.py says which of them a study asks for."""

import math
import os
from dataclasses import dataclass, field
from typing import NamedTuple

from study.presets import BENCHMARKS, COMPLETION, FASTER, PRESETS, SECONDS

SCRIPTS = {
    "rl": "train_rl.py",
    "sft": "train_sft.py",
    "gold": "train_sft.py",
    "sft_rl": "train_rl.py",
    "parallel": "merge.py",
}
DEFAULT_BATCH = 64  # examples of an SFT update


@dataclass(eq=False)
class Task:
    """One command. `inputs`: flag -> (task, file in its folder); `out`: the file whose existence means it is done."""

    name: str
    kind: str  # pretrain | train | eval | given (a checkpoint that is there: `record` has its path and address)
    method: str
    script: str
    flags: dict
    out: str
    cost: float  # rough seconds on one core
    inputs: dict = field(default_factory=dict)
    record: dict = field(default_factory=dict)  # what the report needs to know of it
    block: str = ""  # the part of the plan that first asked for it
    threads: int = 1  # on a CPU, if there are as many cores

    def cores(self, jobs: int) -> int:
        """How many it takes of `jobs`."""
        return min(self.threads, jobs)

    def seconds(self, jobs: int) -> float:
        """Rough ones by the clock, on these."""
        return self.cost / FASTER[self.cores(jobs)]

    def needs(self, other: "Task") -> bool:
        """Does it start from what `other` makes, directly or through others?"""
        return any(parent is other or parent.needs(other) for parent, _ in self.inputs.values())


class Checkpoint(NamedTuple):
    """A pre-training run at one of its steps."""

    task: Task
    step: int

    @property
    def tokens(self) -> int:
        return self.step * self.task.flags["batch_tokens"]

    @property
    def file(self) -> tuple[Task, str]:
        return self.task, ckpt_name(self.step)


def ckpt_name(step: int) -> str:
    return f"ckpt_{step:06d}.pt"


def words(flags: dict) -> list[str]:
    """{"batch_size": 64, "gold": True, "mask": False, "k": [1, 8]} -> --batch-size 64 --gold --no-mask --k 1 8"""
    out = []
    for name, value in flags.items():
        out.append("--" + "no-" * (value is False) + name.replace("_", "-"))
        if not isinstance(value, bool):
            out += [str(v) for v in (value if isinstance(value, list) else [value])]
    return out


def amount(tokens: int) -> str:
    return f"{tokens / 1e6:.1f}M" if tokens >= 1e6 else f"{tokens / 1e3:.3g}k"


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class Plan:
    """The tasks of a preset, in the order in which they are asked for; each is made once."""

    def __init__(self, preset: str, seed: int):
        self.preset, self.p, self.seed = preset, PRESETS[preset], seed
        self.tasks: list[Task] = []
        self.known: dict[str, Task] = {}
        self.task, self.benchmarks = self.p.get("task", "gsm"), self.p.get("benchmarks", BENCHMARKS)
        self.block = "pre-training"
        self.primary = list(dict.fromkeys([self.p["early"], self.p["late"]]))  # steps of pre-training
        self.early, self.late = self.primary[0], self.primary[-1]
        self.judged = sorted({*self.primary, *self.p.get("others", [])})

    @property
    def seeds(self) -> list[int]:
        """Of the whole way: a seed's pre-training and its post-training."""
        return list(range(self.seed, self.seed + self.p["seeds"]))

    def at(self, step: int, seed: int) -> Checkpoint:
        return Checkpoint(self.pretrain(seed), step)

    def add(self, task: Task) -> Task:
        """Into the plan, unless it is there."""
        kind = task.method if task.kind == "train" else task.kind
        task.block, task.cost = self.block, self.p.get("seconds", {}).get(kind, task.cost)
        if task.name not in self.known:
            self.known[task.name] = task
            self.tasks.append(task)
        known = self.known[task.name]
        assert (known.flags, known.inputs, known.out) == (task.flags, task.inputs, task.out), f"two runs: {task.name}"
        return known

    def name(self, method: str, start: Checkpoint, seed: int, variant: str = "") -> str:
        """A run from another seed's pre-training names that too."""
        other = f"p{start.task.record['seed']}" if start.task.record["seed"] != seed else ""
        parts = [method, amount(start.tokens), f"s{seed}", other, variant]
        return "-".join(part for part in parts if part)

    def run_of(self, method: str, start: Checkpoint) -> Task:
        """The main run of its seed that is in the plan already."""
        return self.known[self.name(method, start, start.task.record["seed"])]

    def pretrain(self, seed: int) -> Task:
        flags = {**self.p["pretrain"], "save_at": self.p["save_at"], "seed": seed}
        record = dict(seed=seed, preset=flags.get("preset", "world"))
        threads = self.p.get("pretrain_threads", 1)
        cost = flags["steps"] * flags["batch_tokens"] / 1280 * SECONDS["train_pretrain.py"]
        name, out = f"pretrain-s{seed}", ckpt_name(flags["steps"])
        task = Task(name, "pretrain", "base", "train_pretrain.py", flags, out, cost, {}, record, threads=threads)
        return self.add(task)

    def updates(self, passes: float, pool: int | None = None) -> int:
        """Of SFT, so many passes over a pool of questions."""
        return max(1, math.ceil(passes * (pool or self.p["pool"]) / self.p["sft"].get("batch_size", DEFAULT_BATCH)))

    def flags_of(self, method: str, start: Checkpoint, change: dict) -> dict:
        """The preset's for this method and checkpoint, with these changes. SFT is kept after each of the preset's
        numbers of passes, RL along the way."""
        flags = {**self.p[method], **(self.p.get("at_early", {}).get(method, {}) if start.step == self.early else {})}
        flags |= {"n_questions": self.p["pool"]} if "pool" in self.p else {}
        flags |= change | ({"gold": True} if method == "gold" else {})
        if "steps" not in flags:
            flags["save_at"] = [self.updates(n, flags["n_questions"]) for n in flags.pop("passes", self.p["passes"])]
            flags["steps"] = flags["save_at"][-1]
        return flags

    def train(
        self,
        method: str,
        start: Checkpoint,
        seed: int | None = None,
        *,
        after: tuple[Task, int] | None = None,
        variant: str = "",
        group: str = "main",
        inputs: dict | None = None,
        **change,
    ) -> Task:
        """One post-training run from `start` (or from `after`, a step of a run that began there); its seed is that of
        the pre-training unless said. `change`: flags that differ from the preset's."""
        seed, script = start.task.record["seed"] if seed is None else seed, SCRIPTS[method]
        flags = {**self.flags_of(method, start, change), "seed": seed}
        if group == "main" and seed == self.seed and start.step in self.primary and script != "train_sft.py":
            points = self.p.get("follow", 0)  # validation is asked along the first seed's runs
            flags |= {"save_at": [flags["steps"] * (i + 1) // points for i in range(points)]} if points else {}
        record = dict(seed=seed, tokens=start.tokens, group=group, variant=variant)
        record |= dict(pretraining=start.task.record["seed"])
        size = flags.get("prompts_per_step", 48) * flags.get("group_size", 16) / 768 if script == "train_rl.py" else 1
        cost = flags["steps"] * SECONDS[script] * size
        inputs = {"init": (after[0], ckpt_name(after[1])) if after else start.file, **(inputs or {})}
        name, out = self.name(method, start, seed, variant), ckpt_name(flags["steps"])
        return self.add(Task(name, "train", method, script, flags, out, cost, inputs, record))

    def score(self, task: Task, start: Checkpoint | None = None, **asked) -> Task:
        """Of a run's last step, on the test questions: with general skill, if it is a main run, and how far it moved
        from `start`."""
        main = task.record["group"] == "main" and "group" not in asked
        tasks = [self.task, *self.beyond(task.record), *self.benchmarks] if main else [self.task]
        asked |= {"start": start} if main and start and "corpus" not in self.p else {}  # a real vocabulary: minutes
        return self.evaluate(task, task.flags["steps"], task.method, tasks=tasks, **asked)

    def beyond(self, record: dict) -> list[str]:
        """The longer questions are asked at the late checkpoint alone."""
        late = record["tokens"] == self.late * self.p["pretrain"]["batch_tokens"]
        return [self.p["beyond"]] if late and "beyond" in self.p else []

    def ask_base(self, start: Checkpoint, n_shot: int, **asked) -> Task:
        """Benchmarks have no shots: they are scored once, with the first number of shots on the test questions."""
        longer = self.beyond(dict(tokens=start.tokens)) if not asked else []
        tasks = [self.task, *longer, *self.benchmarks * (n_shot == self.p["shots"][0] and not asked)]
        return self.evaluate(*start, "base", n_shot=n_shot, tasks=tasks, **asked)

    def evaluate(
        self,
        of: Task,
        step: int,
        method: str,
        *,
        n_shot: int = 0,
        on: str = "test",
        tasks: list[str] | None = None,
        group: str | None = None,
        variant: str | None = None,
        train_step: int | None = None,
        step_of: Task | None = None,
        start: Checkpoint | None = None,
        **change,
    ) -> Task:
        """`of` at `step` of its own; `train_step`: the step of `method` (of `step_of`, whose start may be `of`)."""
        r = (step_of or of).record
        flags = {**self.p.get(on, {}), "split": on, "seed": r["seed"], **change}
        flags |= {"n_shot": n_shot} if n_shot else {}
        flags["tasks"] = tasks or [self.task]
        record = dict(seed=r["seed"], tokens=r.get("tokens") or Checkpoint(of, step).tokens, n_shot=n_shot, split=on)
        record |= dict(pretraining=r.get("pretraining", r["seed"]), group=group or r.get("group", "main"))
        record |= dict(variant=r.get("variant", "") if variant is None else variant, train_step=train_step)
        record |= dict(temperature=change.get("temperature", 0.6))
        asked = sum(task not in self.benchmarks for task in flags["tasks"])
        cost = (
            5 + 5 * (len(flags["tasks"]) > asked) + asked * flags["limit"] * flags["n_samples"] * COMPLETION[n_shot > 0]
        )
        name = evaluation_name(method, record, told_temperature="temperature" in change)
        inputs = {"ckpt": (of, ckpt_name(step))} | ({"reference": start.file} if start else {})
        return self.add(Task(name, "eval", method, "evaluate.py", flags, ".json", cost, inputs, record))


def evaluation_name(method: str, record: dict, told_temperature: bool) -> str:
    other = f"p{record['pretraining']}" if record["pretraining"] != record["seed"] else ""
    parts = [method, amount(record["tokens"]), f"s{record['seed']}", other, record["variant"]]
    parts += [record["split"], f"{record['n_shot']}shot", record["group"]]
    parts += [f"T{record['temperature']}"] if told_temperature else []
    parts += [f"step{record['train_step']}"] if record["train_step"] is not None else []
    return "-".join(part for part in parts if part)
