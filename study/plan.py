"""What a study runs: the commands that a preset unfolds into, in order. runner.py runs them.

A run's address is a hash of every setting of its command (defaults too), of its parents' addresses and of the data.
"""

import hashlib
import importlib
import json
import math
from dataclasses import dataclass, field
from functools import cache

from model import PRESETS as SHAPES
from study.presets import BENCHMARKS, COMPLETION, LARGE, PRESETS, SECONDS, TOKEN


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
    block: str = ""  # the part of the plan that first asked for it

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
        left_out = ["data", "out", "eval_every", "eval_tokens", *self.inputs]
        left_out += ["prompts_per_batch"] * (self.kind == "train")  # memory alone; evaluations have always named it
        return {k: v for k, v in args.items() if k not in left_out} | shape


def words(flags: dict) -> list[str]:
    """{"batch_size": 64, "gold": True, "k": [1, 8]} -> --batch-size 64 --gold --k 1 8"""
    out = []
    for name, value in flags.items():
        out.append("--" + name.replace("_", "-"))
        if value is not True:
            out += [str(v) for v in (value if isinstance(value, list) else [value])]
    return out


def amount(tokens: int) -> str:
    return f"{tokens / 1e6:.1f}M" if tokens >= 1e6 else f"{tokens / 1e3:.3g}k"


class Plan:
    """The runs of a preset, the most wanted first: a study that is cut off holds whole methods, seed by seed."""

    def __init__(self, preset: str, seed: int):
        self.preset, self.p, self.seed = preset, PRESETS[preset], seed
        self.tasks: list[Task] = []
        self.known: dict[str, Task] = {}
        self.block = ""
        self.base = self.pretrain("base")
        self.models = {"base": self.base}  # and those of C4
        self.primary = list(dict.fromkeys([self.p["early"], self.p["late"]]))
        self.plan()

    def seeds(self, count: int, start: int = 0) -> range:
        return range(self.seed + start, self.seed + count)

    def plan(self) -> None:
        p, many = self.p, len(self.p["shots"]) > 2
        self.block = "base, few-shot and 0-shot"
        for step in self.primary:
            for n_shot in p["shots"][:2]:
                self.ask_base(self.base, step, n_shot)
        self.block = "base, shots chosen on validation"
        for step in self.primary:
            for n_shot in p["shots"]:
                self.ask_base(self.base, step, n_shot, on="val", group="shots")
        self.main_seeds(1)
        self.block = "base, 1 and 4 shots"
        for n_shot in p["shots"][2:]:
            for step in self.primary:
                self.ask_base(self.base, step, n_shot)
        self.main_seeds(min(3, p["seeds"]), 1)
        self.block = "C5: the way of RL on validation questions"
        for step in self.primary[::-1] if many else [p["late"]]:
            self.dynamics(step)
        if "c4" in p:
            self.movement()
            self.another_model("heavy")
        self.block = "SFT-Gold, Gold→RL"
        for seed in self.seeds(p["gold_seeds"]):
            for step in self.primary:
                self.gold(self.base, step, seed)
        self.calibration()
        if "c4" in p:
            self.another_model("large")
        self.main_seeds(p["seeds"], 3)
        self.pool_sizes(*list(p["pools"])[:1])
        self.block = "C1, C10: RL at the other checkpoints"
        for step in p["save_at"]:
            if step not in self.primary:
                for n_shot in p["shots"][:2]:
                    self.ask_base(self.base, step, n_shot)
        for step in p["others"]:
            for n_shot in p["shots"]:
                self.ask_base(self.base, step, n_shot, on="val", group="shots")
            for seed in self.seeds(p["other_seeds"]):
                self.train("rl", "train_rl.py", self.base, step, seed)
        if "c4" in p:
            self.another_model("base2")
            self.another_model("heavy2")
            self.mix_or_scale()
            self.rollout_budget()
            self.block = "C8: more seeds of RL"
            for seed in self.seeds(p["c8_seeds"], p["seeds"]):
                self.train("rl", "train_rl.py", self.base, p["early"], seed, group="c8")
            self.parts_of_parallel()
            self.pool_sizes(*list(p["pools"])[1:])
            self.settings_of_sft_rl()
            self.updates()
            self.more_models()
            self.wide()
        self.block = "every method at another checkpoint"
        for step in p["others"][:1]:
            self.methods(self.base, step, self.seed)
            self.train("gold", "train_sft.py", self.base, step, self.seed, gold=True)

    def main_seeds(self, last: int, start: int = 0) -> None:
        p = self.p
        for seed in self.seeds(last, start):
            self.block = f"C1 C2 C5 C6 C7: seed {seed}"
            for step in self.primary:
                if step == p["early"] or seed in self.seeds(p.get("late_seeds", p["seeds"])):
                    self.methods(self.base, step, seed)

    def methods(self, base: Task, step: int, seed: int) -> None:
        """The methods that the primary comparisons need, from one checkpoint."""
        self.train("rl", "train_rl.py", base, step, seed)
        sft = self.train("sft", "train_sft.py", base, step, seed)
        self.train("sft_rl", "train_rl.py", base, step, seed, start=sft)
        self.train("parallel", "merge.py", base, step, seed)

    def gold(self, base: Task, step: int, seed: int) -> None:
        gold = self.train("gold", "train_sft.py", base, step, seed, gold=True)
        if "gold_rl" in self.p and seed == self.seed and step == self.p["late"]:
            self.train("gold_rl", "train_rl.py", base, step, seed, start=gold)

    def calibration(self) -> None:
        """What the world was made for, on the questions on which it was made: the few-shot base, SFT-Gold."""
        p, self.block = self.p, "calibration, on validation questions"
        asked = dict(on="val", group="calibration", limit=p["test"]["limit"])
        for step in dict.fromkeys([p["save_at"][0], p["late"]]):
            self.evaluate(self.base, step, "base", n_shot=p["shots"][0], **asked)
        gold = self.known[self.name("gold", self.base, p["late"], self.seed)]
        self.evaluate(gold, p["gold"]["steps"], "gold", **asked)

    def mix_or_scale(self) -> None:
        """C4: the hard tier after RL. Exemplars of that tier, and of gsm (the paper's) as a control."""
        p = self.p
        for name, model in self.models.items():
            self.block = f"C4: {name}"
            for exemplars in ("hard", "gsm"):
                asked = dict(tasks=["hard"], group="c4", n_shot=8, shot_task=exemplars)
                self.evaluate(model, p["late"], "base", variant=f"{exemplars}_shots", **asked)
            for seed in self.seeds(p["c4"]["seeds"]):
                change = dict(task="hard", lr=p["c4"]["lr"][name], tasks=["hard"])
                self.train("rl", "train_rl.py", model, p["late"], seed, variant="hard", group="c4", **change)

    def another_model(self, name: str) -> None:
        self.block = f"C4: pre-training of {name}"
        self.models[name] = self.pretrain(name, **self.p["c4"]["models"][name])

    def pool_sizes(self, *sizes: int) -> None:
        """C3: few questions; SFT at few and many epochs, on the smallest pool SFT-Gold with as many updates as the
        latter."""
        p = self.p
        for n in sizes:
            for seed in self.seeds(p["pools"][n]):
                self.block = f"C3: {n} questions, seed {seed}"
                pool, size = dict(n_questions=n, group="c3"), p["sft"].get("batch_size", 64)
                few, many = (max(1, math.ceil(p[e] * n / size)) for e in ("few_epochs", "many_epochs"))
                args = ("train_sft.py", self.base, p["late"], seed)
                self.train("rl", "train_rl.py", *args[1:], variant=f"pool{n}", **pool)
                self.train("sft", *args, variant=f"pool{n}many", steps=many, **pool)
                self.train("sft", *args, variant=f"pool{n}few", steps=few, **pool)
                if n == min(p["pools"]):
                    self.train("gold", *args, variant=f"pool{n}many", gold=True, steps=many, **pool)

    def wide(self) -> None:
        """C5 to pass@256, at the evaluation's temperature and at 1."""
        p, self.block = self.p, "C5: T 1, pass@256"
        first = {m: self.known[self.name(m, self.base, p["late"], self.seed)] for m in ("rl", "sft", "sft_rl")}
        for t in (dict(temperature=0.6), dict(temperature=1.0, top_p=1.0)):
            for method, task in {"base": self.base, **first}.items():
                step = p["late"] if method == "base" else p[method]["steps"]
                for n_shot in p["shots"][1::-1] if method == "base" else [0]:
                    self.evaluate(task, step, method, n_shot=n_shot, group="wide", **{**p["wide"], **t})

    def movement(self) -> None:
        """K1: SFT at several rates and lengths."""
        p, self.block = self.p, "K1: SFT at other rates and lengths"
        for seed in self.seeds(p["control_seeds"]):
            for n, rates in p["k1"]["first" if seed == self.seed else "later"].items():
                for times in rates:
                    if (times, n) != (1, 1):
                        change = dict(lr=times * p["sft"]["lr"], steps=round(n * p["sft"]["steps"]))
                        variant = f"{change['lr']:g}x{change['steps']}"
                        args = ("sft", "train_sft.py", self.base, p["late"], seed)
                        self.train(*args, variant=variant, group="k1", **change)

    def settings_of_sft_rl(self) -> None:
        """K2: SFT→RL with direct RL's own settings; RL of as many updates as SFT→RL has in all, four a batch: with
        one, it would take three times SFT→RL's compute."""
        p, self.block = self.p, "K2: settings of SFT→RL"
        for seed in self.seeds(p["control_seeds"]):
            sft = self.known[self.name("sft", self.base, p["late"], seed)]
            change = dict(variant="own", group="k2", lr=p["rl"]["lr"], steps=p["rl"]["steps"])
            if any(change[k] != p["sft_rl"][k] for k in ("lr", "steps")):  # else it is the main run
                self.train("sft_rl", "train_rl.py", self.base, p["late"], seed, start=sft, **change)
        steps = (p["sft_rl"]["steps"] + p["sft"]["steps"]) // 4
        total = dict(variant="total_updates", group="k2", steps=steps, updates_per_batch=4)
        self.train("rl", "train_rl.py", self.base, p["late"], self.seed, **total)

    def parts_of_parallel(self) -> None:
        """K3: what makes parallel averaging work, at equal compute."""
        p = self.p
        steps, lr, sft_lr = (p["parallel"][k] for k in ("steps", "lr", "sft_lr"))
        every = {"sync_end": dict(sync_every=steps), "alternate": dict(combine="alternate")}
        first = {"plain_sum": dict(weights=[1, 1]), "one_loss": dict(combine="sum")}
        for seed in self.seeds(p["control_seeds"]):
            self.block = f"K3: parts of parallel averaging, seed {seed}"
            here = (self.base, p["late"], seed)
            for variant, change in ((first if seed == self.seed else {}) | every).items():
                self.train("parallel", "merge.py", *here, variant=variant, group="k3", **change)
            self.train("rl", "train_rl.py", *here, variant="half_rate", group="k3", lr=lr / 2, steps=steps)
            for variant, rate in (("half_rate", sft_lr / 2), ("parallels_rate", sft_lr)):
                self.train("sft", "train_sft.py", *here, variant=variant, group="k3", lr=rate, steps=steps)

    def rollout_budget(self) -> None:
        """C9: few and many completions a question, on the questions that the base finds easy or hard; first seed: on
        hard ones the few also for as many completions in all, and scores along the way."""
        p, c = self.p, self.p["c9"]
        self.block = "C9: sorting the questions"
        by = self.evaluate(self.base, p["late"], "base", on="train", group="c9", **c["sort"])
        for seed in self.seeds(p["control_seeds"]):
            for only in ("hard", "easy")[: 2 if seed == self.seed else 1]:
                self.block = f"C9: {only}, seed {seed}"
                long = c["steps"] * c["many"] // c["few"]
                kinds = [("many", c["many"], c["steps"]), ("few", c["few"], c["steps"]), ("long", c["few"], long)]
                whole = seed == self.seed and only == "hard"
                for name, n, steps in kinds[: 3 if whole else 2]:
                    flags = dict(group_size=n, prompts_per_step=c["prompts_per_step"], steps=steps, only=only)
                    at = [steps * (i + 1) // c["points"] for i in range(c["points"])] if whole else []
                    if at:
                        flags["save_at"] = at
                    task = self.train("rl", "train_rl.py", self.base, p["late"], seed, variant=f"{only}_{name}",
                                      group="c9", inputs={"by": (by, ".json")}, **flags)  # fmt: skip
                    for step in at:
                        self.evaluate(task, step, "rl", on="val", group="c9", train_step=step)

    def updates(self) -> None:
        """K4: the loss denominator under clipping; one or four updates a rollout batch."""
        self.block, here = "K4: loss denominator, updates a batch", (self.base, self.p["late"], self.seed)
        self.train("sft", "train_sft.py", *here, variant="token_sum", group="k4", sft_loss_norm="sum")
        self.train("rl", "train_rl.py", *here, variant="4_updates", group="k4", updates_per_batch=4)

    def more_models(self) -> None:
        """C10: RL on gsm from the models of C4 (but the large one), and what validation says of them before."""
        p, self.block = self.p, "C10: the models of C4"
        for name in p["c10_models"]:
            model = self.models[name]
            self.evaluate(model, p["late"], "base", n_shot=p["shots"][0], on="val", group="shots")
            self.train("rl", "train_rl.py", model, p["late"], self.seed, tasks=["gsm"])

    def dynamics(self, step: int) -> None:
        """Validation along the first seed's runs; step 0 is where a run began."""
        for method in ("rl", "sft_rl", "parallel", "sft"):
            task = self.known[self.name(method, self.base, step, self.seed)]
            if every := task.flags.get("save_every"):
                parent, file = task.inputs["init"]
                asked = dict(on="val", group="dynamics", step_of=task)
                self.evaluate(parent, int(file[5:11]), method, train_step=0, **asked)
                for at in range(every, task.flags["steps"] + 1, every):
                    self.evaluate(task, at, method, train_step=at, **asked)

    # ------------------------------------------------------------------------------------------------- single commands
    def add(self, task: Task) -> Task:
        """Into the plan, unless it is there."""
        if task.name not in self.known:
            task.block = self.block
            self.known[task.name] = task
            self.tasks.append(task)
        known = self.known[task.name]
        assert (known.flags, known.inputs, known.out) == (task.flags, task.inputs, task.out), f"two runs: {task.name}"
        return known

    def name(self, method: str, base: Task, step: int, seed: int, variant: str = "") -> str:
        tokens = step * base.flags["batch_tokens"]
        return f"{method}-{base.record['base']}-{amount(tokens)}-s{seed}" + f"-{variant}" * bool(variant)

    def pretrain(self, name: str, seed: int = 0, **flags) -> Task:
        """`seed`: distance from the study's first one."""
        p, self.block = self.p["pretrain"], self.block or "pre-training"
        flags = {**p, "save_at": self.p["save_at"], "seed": self.seed + seed, **flags}
        cost = p["steps"] * p["batch_tokens"] * TOKEN * (LARGE if "preset" in flags else 1.0)
        record = dict(base=name, seed=self.seed + seed, preset=flags.get("preset", "world"))
        out = f"ckpt_{p['steps']:06d}.pt"
        return self.add(Task(f"pretrain-{name}", "pretrain", "base", "train_pretrain.py", flags, out, cost, {}, record))

    def train(
        self, method, script, base, step, seed, *, start=None, variant="", group="main", tasks=None, inputs=None,
        **change,
    ) -> Task:  # fmt: skip
        """One post-training run from `base` at `step` (or from `start`, a run that began there) and its evaluation on
        the test questions."""
        flags = {**self.p[method], **change, "seed": seed}
        followed = group == "main" and base is self.base and step in self.primary and seed == self.seed
        if not followed:
            flags.pop("save_every", 0)
        here = (base, f"ckpt_{step:06d}.pt")
        record = dict(base=base.record["base"], seed=seed, tokens=step * base.flags["batch_tokens"], group=group,
                      variant=variant)  # fmt: skip
        size = flags.get("prompts_per_step", 48) * flags.get("group_size", 16) / 768 if "rl" in script else 1
        cost = flags["steps"] * SECONDS[script] * size * (LARGE if "preset" in base.flags else 1)
        inputs = {"init": (start, start.out) if start else here, **(inputs or {})}
        name, out = self.name(method, base, step, seed, variant), f"ckpt_{flags['steps']:06d}.pt"
        task = self.add(Task(name, "train", method, script, flags, out, cost, inputs, record))
        self.evaluate(task, flags["steps"], method, tasks=tasks, group=group, reference=here)
        return task

    def ask_base(self, base: Task, step: int, n_shot: int, **kind) -> Task:
        benchmarks = BENCHMARKS * (n_shot == self.p["shots"][0] and not kind)
        return self.evaluate(base, step, "base", n_shot=n_shot, tasks=["gsm", *benchmarks], **kind)

    def evaluate(
        self, of: Task, step, method, *, n_shot=0, on="test", tasks=None, group="main", reference=None, variant=None,
        train_step=None, step_of=None, **change,
    ) -> Task:  # fmt: skip
        """`of` at `step` of its own; `train_step`: the step of `method` (of `step_of`, whose start may be `of`)."""
        r = (step_of or of).record
        tokens = r.get("tokens") or step * of.flags["batch_tokens"]
        flags = {**self.p.get(on, {}), "split": on, "seed": r["seed"], **change}
        flags |= {"n_shot": n_shot} if n_shot else {}
        general = on == "test" and group in ("main", "k1", "k2", "k3", "k4", "c8")
        flags["tasks"] = tasks or (["gsm", *BENCHMARKS] if general else ["gsm"])
        variant = r.get("variant", "") if variant is None else variant
        record = dict(base=r["base"], seed=r["seed"], tokens=tokens, n_shot=n_shot, split=on, group=group,
                      variant=variant, train_step=train_step, temperature=change.get("temperature", 0.6))  # fmt: skip
        parts = [method, r["base"], amount(tokens), f"s{r['seed']}", variant, on, f"{n_shot}shot", group]
        parts += [f"T{change['temperature']}"] if "temperature" in change else []
        parts += [f"step{train_step}"] if train_step is not None else []
        slow = COMPLETION[n_shot > 0] * (LARGE if r["base"] == "large" else 1)
        cost = 5 + 8 * (len(flags["tasks"]) > 1) + flags["limit"] * flags["n_samples"] * slow
        inputs = {"ckpt": (of, f"ckpt_{step:06d}.pt")} | ({"reference": reference} if reference else {})
        name = "-".join(part for part in parts if part)
        return self.add(Task(name, "eval", method, "evaluate.py", flags, ".json", cost, inputs, record))
