"""What a study runs: blocks of runs in order, the most wanted first, so that a study that is cut off holds whole
methods, seed by seed. presets.py has their settings, tasks.py the single commands; runner.py runs them.
"""

import math
from collections.abc import Callable
from functools import partial

from study.presets import PRESETS
from study.tasks import Checkpoint, Plan


def make_plan(preset: str, seed: int) -> Plan:
    """The pre-training and every block whose settings the preset has."""
    plan = Plan(preset, seed)
    for needed, block in REAL_DATA if "corpus" in plan.p else BLOCKS:
        if not needed or needed in PRESETS[preset]:
            block(plan)
    return plan


# ----------------------------------------------------------------------------------------------- the base, every method
def base_few_shot(plan: Plan) -> None:
    plan.block = "base, few-shot and 0-shot"
    for start in plan.primary:
        for n_shot in plan.p["shots"][:2]:
            plan.ask_base(start, n_shot)


def base_on_validation(plan: Plan) -> None:
    plan.block = "base, shots chosen on validation"
    for start in plan.primary:
        for n_shot in plan.p["shots"]:
            plan.ask_base(start, n_shot, on="val", group="shots")


def base_other_shots(plan: Plan) -> None:
    plan.block = "base, 1 and 4 shots"
    for n_shot in plan.p["shots"][2:]:
        for start in plan.primary:
            plan.ask_base(start, n_shot)


def main_grid(plan: Plan, of: slice) -> None:
    """The methods of the primary comparisons, from both primary checkpoints, for these of the preset's seeds."""
    p = plan.p
    for seed in plan.seeds(p["seeds"])[of]:
        plan.block = f"C1 C2 C5 C6 C7: seed {seed}"
        for start in plan.primary:
            if start == plan.early or seed in plan.seeds(p.get("late_seeds", p["seeds"])):
                methods(plan, start, seed)


def methods(plan: Plan, start: Checkpoint, seed: int) -> None:
    plan.train("rl", start, seed)
    sft = plan.train("sft", start, seed)
    plan.train("sft_rl", start, seed, after=sft)
    plan.train("parallel", start, seed)


def dynamics(plan: Plan) -> None:
    """C5: validation along the first seed's runs; step 0 is where a run began."""
    plan.block = "C5: the way of RL on validation questions"
    asked = dict(on="val", group="dynamics")
    for start in plan.primary[::-1] if len(plan.p["shots"]) > 2 else [plan.late]:
        for method in ("rl", "sft_rl", "parallel", "sft"):
            task = plan.run_of(method, start, plan.seed)
            if every := task.flags.get("save_every"):
                parent, file = task.inputs["init"]
                plan.evaluate(parent, int(file[5:11]), method, train_step=0, step_of=task, **asked)
                for step in range(every, task.flags["steps"] + 1, every):
                    plan.evaluate(task, step, method, train_step=step, step_of=task, **asked)


def gold(plan: Plan) -> None:
    plan.block = "SFT-Gold, Gold→RL"
    for seed in plan.seeds(plan.p["gold_seeds"]):
        for start in plan.primary:
            task = plan.train("gold", start, seed)
            if "gold_rl" in plan.p and seed == plan.seed and start == plan.late:
                plan.train("gold_rl", start, seed, after=task)


def calibration(plan: Plan) -> None:
    """What the world was made for, on the questions on which it was made: the few-shot base, SFT-Gold."""
    p, plan.block = plan.p, "calibration, on validation questions"
    asked = dict(on="val", group="calibration", limit=p["test"]["limit"])
    for step in dict.fromkeys([p["save_at"][0], p["late"]]):
        plan.evaluate(plan.base, step, "base", n_shot=p["shots"][0], **asked)
    plan.evaluate(plan.run_of("gold", plan.late, plan.seed), p["gold"]["steps"], "gold", **asked)


def other_checkpoints(plan: Plan) -> None:
    p, plan.block = plan.p, "C1, C10: RL at the other checkpoints"
    for start in map(plan.at, p["save_at"]):
        if start not in plan.primary:
            for n_shot in p["shots"][:2]:
                plan.ask_base(start, n_shot)
    for start in map(plan.at, p["others"]):
        for n_shot in p["shots"]:
            plan.ask_base(start, n_shot, on="val", group="shots")
        for seed in plan.seeds(p["other_seeds"]):
            plan.train("rl", start, seed)


def every_method_once(plan: Plan) -> None:
    plan.block = "every method, once"
    methods(plan, plan.late, plan.seed)


def every_method_elsewhere(plan: Plan) -> None:
    plan.block = "every method at another checkpoint"
    for start in map(plan.at, plan.p["others"][:1]):
        methods(plan, start, plan.seed)
        plan.train("gold", start, plan.seed)


# ------------------------------------------------------------------------------------------------------ single claims
def pool_sizes(plan: Plan, of: slice) -> None:
    """C3: few questions; SFT at few and many epochs, on the smallest pool SFT-Gold with as many updates as the
    latter. `of`: which of the preset's pools."""
    p, size = plan.p, plan.p["sft"].get("batch_size", 64)
    for n in list(p["pools"])[of]:
        for seed in plan.seeds(p["pools"][n]):
            plan.block = f"C3: {n} questions, seed {seed}"
            few, many = (max(1, math.ceil(p[epochs] * n / size)) for epochs in ("few_epochs", "many_epochs"))
            train = partial(plan.train, start=plan.late, seed=seed, n_questions=n, group="c3")
            train("rl", variant=f"pool{n}")
            train("sft", variant=f"pool{n}many", steps=many)
            train("sft", variant=f"pool{n}few", steps=few)
            if n == min(p["pools"]):
                train("gold", variant=f"pool{n}many", steps=many)


def another_model(plan: Plan, name: str) -> None:
    plan.block = f"C4: pre-training of {name}"
    plan.models[name] = plan.pretrain(name, **plan.p["c4"]["models"][name])


def mix_or_scale(plan: Plan) -> None:
    """C4: the hard tier after RL. Exemplars of that tier, and of gsm (the paper's) as a control."""
    c = plan.p["c4"]
    for name, model in plan.models.items():
        plan.block, start = f"C4: {name}", plan.late._replace(task=model)
        for exemplars in ("hard", "gsm"):
            asked = dict(tasks=["hard"], group="c4", n_shot=8, shot_task=exemplars)
            plan.evaluate(*start, "base", variant=f"{exemplars}_shots", **asked)
        for seed in plan.seeds(c["seeds"]):
            change = dict(task="hard", lr=c["lr"][name])
            plan.train("rl", start, seed, variant="hard", group="c4", tasks=["hard"], **change)


def wide(plan: Plan) -> None:
    """C5 to pass@256, at the evaluation's temperature and at 1."""
    p, plan.block = plan.p, "C5: T 1, pass@256"
    first = {method: plan.run_of(method, plan.late, plan.seed) for method in ("rl", "sft", "sft_rl")}
    for sampling in (dict(temperature=0.6), dict(temperature=1.0, top_p=1.0)):
        for n_shot in p["shots"][1::-1]:
            plan.evaluate(*plan.late, "base", n_shot=n_shot, group="wide", **p["wide"], **sampling)
        for method, task in first.items():
            plan.evaluate(task, p[method]["steps"], method, group="wide", **p["wide"], **sampling)


def more_seeds(plan: Plan) -> None:
    plan.block = "C8: more seeds of RL"
    for seed in plan.seeds(plan.p["c8_seeds"])[plan.p["seeds"] :]:
        plan.train("rl", plan.early, seed, group="c8")


def rollout_budget(plan: Plan) -> None:
    """C9: few and many completions a question, on the questions that the base finds easy or hard; first seed: on
    hard ones the few also for as many completions in all, and scores along the way."""
    plan.block, c = "C9: sorting the questions", plan.p["c9"]
    by = plan.evaluate(*plan.late, "base", on="train", group="c9", **c["sort"])
    long = c["steps"] * c["many"] // c["few"]
    kinds = [("many", c["many"], c["steps"]), ("few", c["few"], c["steps"]), ("long", c["few"], long)]
    for seed in plan.seeds(plan.p["control_seeds"]):
        for only in ("hard", "easy") if seed == plan.seed else ("hard",):
            plan.block = f"C9: {only}, seed {seed}"
            whole = seed == plan.seed and only == "hard"
            for name, n, steps in kinds if whole else kinds[:2]:
                at = [steps * (i + 1) // c["points"] for i in range(c["points"])] if whole else []
                flags = dict(group_size=n, prompts_per_step=c["prompts_per_step"], steps=steps, only=only)
                flags |= {"save_at": at} if at else {}
                kept = dict(variant=f"{only}_{name}", group="c9", inputs={"by": (by, ".json")})
                task = plan.train("rl", plan.late, seed, **kept, **flags)
                for step in at:
                    plan.evaluate(task, step, "rl", on="val", group="c9", train_step=step)


def more_models(plan: Plan) -> None:
    """C10: RL on gsm from the models of C4 (but the large one), and what validation says of them before."""
    plan.block = "C10: the models of C4"
    for name in plan.p["c10_models"]:
        start = plan.late._replace(task=plan.models[name])
        plan.evaluate(*start, "base", n_shot=plan.p["shots"][0], on="val", group="shots")
        plan.train("rl", start, plan.seed, tasks=["gsm"])


# ---------------------------------------------------------------------------------------------------------- controls
def movement(plan: Plan) -> None:
    """K1: SFT at several rates and lengths."""
    plan.block, sft = "K1: SFT at other rates and lengths", plan.p["sft"]
    for seed in plan.seeds(plan.p["control_seeds"]):
        for length, rates in plan.p["k1"]["first" if seed == plan.seed else "later"].items():
            for rate in rates:
                if (rate, length) != (1, 1):  # that is the main run
                    change = dict(lr=rate * sft["lr"], steps=round(length * sft["steps"]))
                    variant = f"{change['lr']:g}x{change['steps']}"
                    plan.train("sft", plan.late, seed, variant=variant, group="k1", **change)


def settings_of_sft_rl(plan: Plan) -> None:
    """K2: SFT→RL with direct RL's own settings; RL of as many updates as SFT→RL has in all, four a batch (with one, it
    would take three times SFT→RL's compute)."""
    p, plan.block = plan.p, "K2: settings of SFT→RL"
    own = {key: p["rl"][key] for key in ("lr", "steps")}
    for seed in plan.seeds(p["control_seeds"]):
        sft = plan.run_of("sft", plan.late, seed)
        if any(p["sft_rl"][key] != value for key, value in own.items()):  # else it is the main run
            plan.train("sft_rl", plan.late, seed, after=sft, variant="own", group="k2", **own)
    steps = (p["sft_rl"]["steps"] + p["sft"]["steps"]) // 4
    total = dict(variant="total_updates", group="k2", steps=steps, updates_per_batch=4)
    plan.train("rl", plan.late, plan.seed, **total)


def parts_of_parallel(plan: Plan) -> None:
    """K3: what makes parallel averaging work, at equal compute."""
    steps, lr, sft_lr = (plan.p["parallel"][key] for key in ("steps", "lr", "sft_lr"))
    every = {"sync_end": dict(sync_every=steps), "alternate": dict(combine="alternate")}
    first = {"plain_sum": dict(weights=[1, 1]), "one_loss": dict(combine="sum")}
    for seed in plan.seeds(plan.p["control_seeds"]):
        plan.block = f"K3: parts of parallel averaging, seed {seed}"
        train = partial(plan.train, start=plan.late, seed=seed, group="k3")
        for variant, change in ((first if seed == plan.seed else {}) | every).items():
            train("parallel", variant=variant, **change)
        train("rl", variant="half_rate", lr=lr / 2, steps=steps)
        train("sft", variant="half_rate", lr=sft_lr / 2, steps=steps)
        train("sft", variant="parallels_rate", lr=sft_lr, steps=steps)


def updates(plan: Plan) -> None:
    """K4: the loss denominator under clipping; one or four updates a rollout batch."""
    plan.block = "K4: loss denominator, updates a batch"
    plan.train("sft", plan.late, plan.seed, variant="token_sum", group="k4", sft_loss_norm="sum")
    plan.train("rl", plan.late, plan.seed, variant="4_updates", group="k4", updates_per_batch=4)


# A block, and the setting without which a preset leaves it out.
BLOCKS: list[tuple[str, Callable[[Plan], None]]] = [
    ("", base_few_shot),
    ("", base_on_validation),
    ("", partial(main_grid, of=slice(0, 1))),
    ("", base_other_shots),
    ("", partial(main_grid, of=slice(1, 3))),
    ("", dynamics),
    ("k1", movement),
    ("c4", partial(another_model, name="heavy")),
    ("", gold),
    ("", calibration),
    ("c4", partial(another_model, name="large")),
    ("", partial(main_grid, of=slice(3, None))),
    ("", partial(pool_sizes, of=slice(0, 1))),
    ("", other_checkpoints),
    ("c4", partial(another_model, name="base2")),
    ("c4", partial(another_model, name="heavy2")),
    ("c4", mix_or_scale),
    ("c9", rollout_budget),
    ("c8_seeds", more_seeds),
    ("control_seeds", parts_of_parallel),
    ("", partial(pool_sizes, of=slice(1, None))),
    ("control_seeds", settings_of_sft_rl),
    ("control_seeds", updates),
    ("c10_models", more_models),
    ("wide", wide),
    ("", every_method_elsewhere),
]
REAL_DATA = [("", base_few_shot), ("", every_method_once)]
