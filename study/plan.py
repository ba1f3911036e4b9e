"""What a study runs: blocks of runs in order, the most wanted first, so that a study that is cut off holds whole
methods, seed by seed. presets.py has their settings, tasks.py the single commands; runner.py runs them.

A seed is the whole way: its pre-training, and the post-training from it.
"""

from collections.abc import Callable
from functools import partial

from study.tasks import Checkpoint, Plan, Task

METHODS = ["rl", "sft", "sft_rl", "parallel", "gold"]


def make_plan(preset: str, seed: int) -> Plan:
    """Every block whose settings the preset has."""
    plan = Plan(preset, seed)
    blocks = REAL_DATA if "corpus" in plan.p else TUNING if "trial_rates" in plan.p else BLOCKS
    for needed, block in blocks:
        if not needed or needed in plan.p:
            block(plan)
    return plan


# ----------------------------------------------------------------------------------------------- the base, every method
def pretrainings(plan: Plan) -> None:
    """The first two side by side: nothing else can run before they have written something."""
    plan.block = "pre-training"
    for seed in plan.seeds[:2]:
        plan.pretrain(seed)


def whole_way(plan: Plan, i: int) -> None:
    """The i-th seed: base, then every method at late and at early."""
    for seed in plan.seeds[i : i + 1]:
        plan.block = f"seed {seed}: base"
        for step in plan.primary:
            ask_everything(plan, plan.at(step, seed))
        for step in plan.primary[::-1]:
            start = plan.at(step, seed)
            plan.block = f"C1 C2 C3 C5 C6 C7: seed {seed}, {'late' if step == plan.late else 'early'}"
            methods(plan, start, METHODS if step == plan.late else plan.p["early_methods"])


def ask_everything(plan: Plan, start: Checkpoint) -> None:
    """The base with each number of shots, on validation and on test questions."""
    for n_shot in plan.p["shots"]:
        plan.ask_base(start, n_shot, on="val", group="shots")
        plan.ask_base(start, n_shot)


def methods(plan: Plan, start: Checkpoint, which: list[str]) -> None:
    """Main runs from a checkpoint, scored. SFT→RL begins where SFT has made start_passes, which is scored too."""
    for method in which:
        if method == "sft_rl":
            sft, step = plan.train("sft", start), plan.updates(plan.p["start_passes"])
            plan.evaluate(sft, step, "sft", variant="start")
            plan.score(plan.train("sft_rl", start, after=(sft, step)), start)
        else:
            plan.score(plan.train(method, start), start)


def dynamics(plan: Plan) -> None:
    """Validation along the first seed's runs; step 0 is where a run began."""
    plan.block = "the way of RL, on validation questions"
    for step in plan.primary[::-1]:
        for method in ("rl", "sft_rl", "parallel"):
            task = plan.known.get(plan.name(method, plan.at(step, plan.seed), plan.seed))
            if task and "save_at" in task.flags:
                parent, file = task.inputs["init"]
                asked = dict(on="val", group="dynamics", step_of=task)
                plan.evaluate(parent, int(file[5:11]), method, train_step=0, **asked)
                for at in task.flags["save_at"]:
                    plan.evaluate(task, at, method, train_step=at, **asked)


def other_checkpoints(plan: Plan) -> None:
    """Between early and late: RL of every seed, every method of the first."""
    for seed in plan.seeds:
        plan.block = f"C1 C10: seed {seed}, other checkpoints"
        for step in plan.p["others"]:
            start = plan.at(step, seed)
            ask_everything(plan, start)
            methods(plan, start, METHODS if seed == plan.seed else ["rl"])


def base_on_the_way(plan: Plan) -> None:
    """The base at the other judged checkpoints, and at the first and the last before them."""
    plan.block = "base at other checkpoints, first seed"
    before = [step for step in plan.p["save_at"] if step < plan.judged[0]]
    for step in [*before[:1], *before[1:][-1:], *plan.judged]:
        for n_shot in plan.p["shots"]:
            plan.ask_base(plan.at(step, plan.seed), n_shot)


def every_method_once(plan: Plan) -> None:
    plan.block, start = "every method, once", plan.at(plan.late, plan.seed)
    for n_shot in plan.p["shots"]:
        plan.ask_base(start, n_shot)
    sft = plan.train("sft", start)
    rl, after = plan.train("rl", start), plan.train("sft_rl", start, after=(sft, sft.flags["steps"]))
    for task in (rl, sft, after, plan.train("parallel", start)):
        plan.score(task)


# ------------------------------------------------------------------------------------------------- what decides, checks
def axis(plan: Plan) -> None:
    """Questions × passes at the late checkpoint of the first seed. What the main runs hold is not run again."""
    a, start = plan.p["axis"], plan.at(plan.late, plan.seed)
    asked, end = dict(limit=a["limit"]), plan.p["passes"][-1]
    held = {"sft": (plan.p["start_passes"], end), "gold": (end,)}  # what the main runs' evaluations are of
    for pool, passes in a["pools"].items():
        plan.block = f"what decides: {pool} questions"
        train, main = partial(plan.train, start=start, n_questions=pool, group="axis"), pool == plan.p["pool"]
        if not main:
            plan.score(train("rl", variant=f"{pool}"), **asked)
            plan.score(train("parallel", variant=f"{pool}"), **asked)
        for method, kept in (("sft", passes), ("gold", a["gold"].get(pool, passes))):
            again = not main or max(kept) > end  # longer than the main run
            of = train(method, variant=f"{pool}", passes=kept) if again else plan.run_of(method, start)
            for n in kept:
                if not main or n not in held[method]:
                    plan.evaluate(of, plan.updates(n, pool), method, group="axis", variant=f"{pool}x{n}", **asked)
            for n in a["rl_after"][pool] if method == "sft" else []:
                after = of, plan.updates(n, pool)
                plan.score(train("sft_rl", after=after, variant=f"{pool}x{n}"), **asked)


def half_rate(plan: Plan, seed: int) -> None:
    """Sensitivity: direct RL at half its rate; at early, where its runs are long, of the first seed."""
    for step in plan.primary[::-1] if seed == plan.seed else [plan.late]:
        start = plan.at(step, seed)
        task = plan.run_of("rl", start)
        flags = dict(lr=task.flags["lr"] / 2, group="half", variant="half")
        plan.score(plan.train("rl", start, **flags))


def hot(plan: Plan, seed: int) -> None:
    """Sensitivity: the main cells asked at T 1."""
    asked = dict(group="hot", **plan.p["hot"])
    for step in plan.primary[::-1]:
        start = plan.at(step, seed)
        for n_shot in plan.p["shots"]:
            plan.ask_base(start, n_shot, **asked)
        for method in METHODS:
            plan.score(plan.run_of(method, start), **asked)
        at = plan.updates(plan.p["start_passes"])
        plan.evaluate(plan.run_of("sft", start), at, "sft", variant="start", **asked)


def sensitivity(plan: Plan) -> None:
    for seed in plan.seeds:
        plan.block = f"sensitivity: seed {seed}"
        half_rate(plan, seed)
        hot(plan, seed)


def more_seeds(plan: Plan) -> None:
    plan.block, start = "C8: more post-training seeds of RL, first pre-training", plan.at(plan.early, plan.seed)
    for seed in range(plan.seed + 1, plan.seed + plan.p["c8_seeds"]):
        plan.score(plan.train("rl", start, seed, group="c8"))


def rollout_budget(plan: Plan) -> None:
    """C9: few and many completions a question, on the questions that the base rarely solves."""
    plan.block, c = "C9: few and many completions", plan.p["c9"]
    start = plan.at(plan.late, plan.seed)
    by = plan.evaluate(*start, "base", on="train", group="c9", **c["sort"])
    for name, n in (("many", c["many"]), ("few", c["few"])):
        flags = dict(group_size=n, prompts_per_step=c["prompts_per_step"], steps=c["steps"], only="hard", n_questions=0)
        kept = dict(variant=name, group="c9", inputs={"by": (by, ".json")})
        plan.score(plan.train("rl", start, **kept, **flags))


# --------------------------------------------------------------------------------------------------------------- tuning
def trials(plan: Plan) -> None:
    """As many rates for each method, at an early and a late checkpoint, on validation questions. SFT→RL starts from
    SFT at the preset's own rate: once that has changed, the same call tries it again."""
    asked = dict(on="val", group="tuning", tasks=[plan.task, *plan.benchmarks])
    for step in plan.primary[::-1]:
        start = plan.at(step, plan.seed)
        plan.block = f"rates at step {step}"
        plan.evaluate(*start, "base", **asked)
        for method, rates in plan.p["trial_rates"].items():
            for rate in rates:
                trial(plan, start, method, rate, asked)


def trial(plan: Plan, start: Checkpoint, method: str, rate: float, asked: dict) -> None:
    change = dict(lr=rate) | (dict(sft_lr=rate) if method == "parallel" else {})
    change |= plan.p["trial_at_early"].get(method, {}) if start.step == plan.early else {}
    after = None
    if method == "sft_rl":
        own = plan.flags_of("sft", start, {})["lr"]
        after = sft_trial(plan, start, own), plan.updates(plan.p["start_passes"])
    task = plan.train(method, start, variant=f"{rate:g}", group="tuning", after=after, **change)
    plan.evaluate(task, task.flags["steps"], method, **asked)


def sft_trial(plan: Plan, start: Checkpoint, rate: float) -> Task:
    return plan.train("sft", start, variant=f"{rate:g}", group="tuning", lr=rate)


# A block, and the setting without which a preset leaves it out.
BLOCKS: list[tuple[str, Callable[[Plan], None]]] = [
    ("", pretrainings),
    ("", partial(whole_way, i=0)),
    ("", partial(whole_way, i=1)),
    ("", partial(whole_way, i=2)),
    ("axis", dynamics),
    ("axis", axis),
    ("axis", other_checkpoints),
    ("hot", sensitivity),
    ("c8_seeds", more_seeds),
    ("c9", rollout_budget),
    ("", base_on_the_way),
]
TUNING = [("", pretrainings), ("", trials)]
REAL_DATA = [("", pretrainings), ("", every_method_once)]
