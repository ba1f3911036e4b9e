"""A study's commands: what a run is, what it is called, what it needs. plan.py says which of them a study asks for."""

import os
from dataclasses import dataclass, field
from typing import NamedTuple

from study.presets import BENCHMARKS, COMPLETION, LARGE, PRESETS, SECONDS, TOKEN

SCRIPTS = {
    "rl": "train_rl.py",
    "sft": "train_sft.py",
    "gold": "train_sft.py",
    "sft_rl": "train_rl.py",
    "gold_rl": "train_rl.py",
    "parallel": "merge.py",
}
WITH_BENCHMARKS = ("main", "k1", "k2", "k3", "k4", "c8")  # groups whose test evaluations score general skill too


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
        self.base = self.pretrain("base")
        self.models = {"base": self.base}  # and those of C4
        self.primary = [self.at(step) for step in dict.fromkeys([self.p["early"], self.p["late"]])]
        self.early, self.late = self.primary[0], self.primary[-1]

    def at(self, step: int) -> Checkpoint:
        return Checkpoint(self.base, step)

    def seeds(self, count: int) -> list[int]:
        return list(range(self.seed, self.seed + count))

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

    def run_of(self, method: str, start: Checkpoint, seed: int) -> Task:
        """A main run that is in the plan already."""
        return self.known[self.name(method, start, seed)]

    def name(self, method: str, start: Checkpoint, seed: int, variant: str = "") -> str:
        parts = [method, start.task.record["base"], amount(start.tokens), f"s{seed}", variant]
        return "-".join(part for part in parts if part)

    def pretrain(self, name: str, seed: int = 0, **flags) -> Task:
        """`seed`: distance from the study's first one."""
        p = self.p["pretrain"]
        flags = {**p, "save_at": self.p["save_at"], "seed": self.seed + seed, **flags}
        record = dict(base=name, seed=self.seed + seed, preset=flags.get("preset", "world"))
        cost = p["steps"] * p["batch_tokens"] * TOKEN * (LARGE if "preset" in flags else 1.0)
        out = ckpt_name(p["steps"])
        return self.add(Task(f"pretrain-{name}", "pretrain", "base", "train_pretrain.py", flags, out, cost, {}, record))

    def train(
        self,
        method: str,
        start: Checkpoint,
        seed: int,
        *,
        after: Task | None = None,
        variant: str = "",
        group: str = "main",
        tasks: list[str] | None = None,
        inputs: dict | None = None,
        **change,
    ) -> Task:
        """One post-training run from `start` (or from the end of `after`, a run that began there), and its evaluation
        of these `tasks` on the test questions. `change`: flags that differ from the preset's."""
        base, script = start.task, SCRIPTS[method]
        flags = {**self.p[method], **change, "seed": seed} | ({"gold": True} if method == "gold" else {})
        followed = group == "main" and start in self.primary and seed == self.seed
        if not followed:
            flags.pop("save_every", 0)
        record = dict(base=base.record["base"], seed=seed, tokens=start.tokens, group=group, variant=variant)
        size = flags.get("prompts_per_step", 48) * flags.get("group_size", 16) / 768 if script == "train_rl.py" else 1
        cost = flags["steps"] * SECONDS[script] * size * (LARGE if "preset" in base.flags else 1)
        inputs = {"init": (after, after.out) if after else start.file, **(inputs or {})}
        name, out = self.name(method, start, seed, variant), ckpt_name(flags["steps"])
        task = self.add(Task(name, "train", method, script, flags, out, cost, inputs, record))
        reference = None if "corpus" in self.p else start  # with a real vocabulary, minutes
        self.evaluate(task, flags["steps"], method, tasks=tasks, group=group, reference=reference)
        return task

    def ask_base(self, start: Checkpoint, n_shot: int, **asked) -> Task:
        """Benchmarks have no shots: they are scored once, with the first number of shots on the test questions."""
        benchmarks = self.benchmarks * (n_shot == self.p["shots"][0] and not asked)
        return self.evaluate(*start, "base", n_shot=n_shot, tasks=[self.task, *benchmarks], **asked)

    def evaluate(
        self,
        of: Task,
        step: int,
        method: str,
        *,
        n_shot: int = 0,
        on: str = "test",
        tasks: list[str] | None = None,
        group: str = "main",
        reference: Checkpoint | None = None,
        variant: str | None = None,
        train_step: int | None = None,
        step_of: Task | None = None,
        **change,
    ) -> Task:
        """`of` at `step` of its own; `train_step`: the step of `method` (of `step_of`, whose start may be `of`)."""
        r = (step_of or of).record
        tokens = r.get("tokens") or Checkpoint(of, step).tokens
        flags = {**self.p.get(on, {}), "split": on, "seed": r["seed"], **change}
        flags |= {"n_shot": n_shot} if n_shot else {}
        benchmarks = self.benchmarks if on == "test" and group in WITH_BENCHMARKS else []
        flags["tasks"] = tasks or [self.task, *benchmarks]
        record = dict(base=r["base"], seed=r["seed"], tokens=tokens, n_shot=n_shot, split=on, group=group)
        record["variant"] = r.get("variant", "") if variant is None else variant
        record |= dict(train_step=train_step, temperature=change.get("temperature", 0.6))
        slow = COMPLETION[n_shot > 0] * (LARGE if r["base"] == "large" else 1)
        cost = 5 + 8 * (len(flags["tasks"]) > 1) + flags["limit"] * flags["n_samples"] * slow
        inputs = {"ckpt": (of, ckpt_name(step))} | ({"reference": reference.file} if reference else {})
        name = evaluation_name(method, record, told_temperature="temperature" in change)
        return self.add(Task(name, "eval", method, "evaluate.py", flags, ".json", cost, inputs, record))


def evaluation_name(method: str, record: dict, told_temperature: bool) -> str:
    parts = [method, record["base"], amount(record["tokens"]), f"s{record['seed']}", record["variant"]]
    parts += [record["split"], f"{record['n_shot']}shot", record["group"]]
    parts += [f"T{record['temperature']}"] if told_temperature else []
    parts += [f"step{record['train_step']}"] if record["train_step"] is not None else []
    return "-".join(part for part in parts if part)
