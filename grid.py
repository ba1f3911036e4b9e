"""What a study runs: presets, and the commands they unfold into, in order. study.py runs them.

A run's address is a hash of every setting of its command (defaults too), of its parents' addresses and of the data.
"""

import hashlib
import importlib
import json
import math
from dataclasses import dataclass, field
from functools import cache

from model import PRESETS as SHAPES

BENCHMARKS = ["lastword", "events", "facts", "twohop", "tools", "apply"]

# Rates: chosen on validation questions at one checkpoint (docs/tuning.md). Steps: what 45 minutes on two cores allow.
LAPTOP = dict(
    world=[],
    pretrain=dict(steps=6400, batch_tokens=1280, lr=6e-3, micro_batch_size=2, eval_every=800),
    save_at=[400, 800, 1600, 3200, 6400], post=[(1600, 1), (3200, 1), (6400, 1)], dynamics=6400, shots=[8, 0],
    rl=dict(steps=40, lr=2e-4, save_every=8), sft=dict(steps=120, lr=2e-3), gold=dict(steps=120, lr=2e-3),
    sft_rl=dict(steps=40, lr=4e-4, save_every=8), parallel=dict(steps=40, lr=1.2e-3, sft_lr=1.2e-3),
    test=dict(limit=200, n_samples=32, k=[1, 8, 32]), val=dict(limit=100, n_samples=32, k=[1, 8, 32]),
)  # fmt: skip
PRESETS = {
    "smoke": dict(
        world=["--tokens", "600000"],
        pretrain=dict(steps=60, batch_tokens=2560, micro_batch_size=4, eval_every=20), save_at=[20, 60],
        post=[(60, 1)], dynamics=60, shots=[4, 0],
        rl=dict(steps=4, lr=1e-4, prompts_per_step=8, group_size=8, save_every=2),
        sft=dict(steps=6, lr=3e-4, batch_size=16), gold=dict(steps=6, lr=3e-4, batch_size=16),
        sft_rl=dict(steps=4, lr=1e-4, prompts_per_step=8, group_size=8, save_every=2),
        parallel=dict(steps=4, lr=2e-4, sft_lr=2e-4, prompts_per_step=8, group_size=8, batch_size=16),
        test=dict(limit=16, n_samples=8, k=[1, 4, 8]), val=dict(limit=8, n_samples=8, k=[1, 8]),
    ),
    "laptop": LAPTOP,
    "lab": {
        **LAPTOP, "shots": [8, 0, 1, 4], "test": dict(limit=400, n_samples=32, k=[1, 8, 32]),
        "post": [  # (step, seed): early and late get five seeds, the others two; the most wanted first
            (6400, 1), (1600, 1), (6400, 2), (1600, 2), (6400, 3), (1600, 3), (3200, 1), (800, 1),
            (6400, 4), (1600, 4), (6400, 5), (1600, 5), (3200, 2), (800, 2),
        ],
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
        """Every setting of the command, defaults included, without paths and without what only watches."""
        parser = importlib.import_module(self.script.removesuffix(".py")).parser()
        args = vars(parser.parse_args(words({**dict.fromkeys(self.inputs, "-"), **self.flags})))
        shape = {"shape": vars(SHAPES[args["preset"]])} if self.kind == "pretrain" else {}
        left_out = ("data", "out", "eval_every", "eval_tokens", *self.inputs)
        return {k: v for k, v in args.items() if k not in left_out} | shape


def words(flags: dict) -> list[str]:
    """{"batch_size": 64, "gold": True, "k": [1, 8]} -> --batch-size 64 --gold --k 1 8"""
    out = []
    for name, value in flags.items():
        out.append("--" + name.replace("_", "-"))
        if value is not True:
            out += [str(v) for v in (value if isinstance(value, list) else [value])]
    return out


class Grid:
    """The runs of a preset, the most wanted first."""

    def __init__(self, preset: str, seed: int):
        self.preset, self.p, self.seed = preset, PRESETS[preset], seed
        self.tasks: list[Task] = []
        self.plan()

    def plan(self) -> None:
        p, first = self.p, self.seed
        base = self.pretrain("base", first)
        asked = [(n_shot, step) for n_shot in p["shots"] for step in p["save_at"]]
        for n_shot, step in asked[: 2 * len(p["save_at"])]:
            self.evaluate(base, step, "base", n_shot=n_shot, tasks=["gsm"] + BENCHMARKS * (n_shot == p["shots"][0]))
        if len(p["shots"]) > 2:  # which number of shots counts is chosen on validation questions
            for n_shot, step in asked:
                self.evaluate(base, step, "base", n_shot=n_shot, on="val", group="shots")
        for step, seed in p["post"]:
            self.methods(base, step, first - 1 + seed, gold=seed <= 2)
        for n_shot, step in asked[2 * len(p["save_at"]) :]:
            self.evaluate(base, step, "base", n_shot=n_shot)
        if self.preset == "lab":
            self.controls(base, first)

    def methods(self, base: Task, step: int, seed: int, gold: bool) -> None:
        """Every method of the paper from one checkpoint."""
        self.train("rl", "train_rl.py", base, step, seed)
        sft = self.train("sft", "train_sft.py", base, step, seed)
        if gold:  # two seeds: no primary comparison of five seeds needs it
            self.train("gold", "train_sft.py", base, step, seed, gold=True)
        self.train("sft_rl", "train_rl.py", base, step, seed, start=sft)
        self.train("parallel", "merge.py", base, step, seed)

    def controls(self, base: Task, first: int) -> None:
        """docs/analysis_plan.md: what separates causes that the paper's protocol mixes. From the late checkpoint."""
        p, late, early = self.p, 6400, 1600
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
        dynamics = every and group == "main" and step == self.p["dynamics"] and seed == self.seed
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
