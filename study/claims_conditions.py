"""The claims about what RL's outcome hangs on: data and scale (C4), seeds (C8), rollouts (C9), the base (C10, C11)."""

import math

import numpy as np

from study.read import Lab, mean, subtract, validation_loss, value
from study.stats import Claim, partial, spearman
from study.tasks import amount as at


def c4(lab: Lab) -> Claim:
    paper = "44B: 30.4 mix, 9.0 base; gain (format too) at 20B: +14.3 mix, +8.6 scale, +6.1 base"
    claim = Claim("C4", "Data mix beats scale on hard problems", "not measured", paper, verdict="no claim")
    claim.limits.append("It would take three pre-trainings of each mix and of the larger model: not run.")
    return claim


# ---------------------------------------------------------------- C8 seeds
def c8(lab: Lab) -> Claim:
    """Of one pre-training, several post-training seeds; beside it the seeds of the whole way."""
    claim = Claim(
        "C8",
        "Seeds",
        "spread of RL's pass@1 (no verdict)",
        "a 4B rerun ends at 4.4 / 12.9 (pass@1 / @32; 8-shot base 1.8 / 24.8); at 6B and 10B one fails too",
        verdict="not run",
    )
    for t in lab.planned["rl"]:
        ways, same = lab.by_seed("rl", t), lab.by_seed("rl", t, group="c8")
        same |= {s: r for s, r in ways.items() if s == lab.first} if same else {}
        kinds = (("post-training seeds of one pre-training", same), ("pre-trainings", ways))
        for what, found in kinds:
            if len(found) > 1:
                claim.verdict = "descriptive"
                got = np.array([100 * value(found[s], 1) for s in sorted(found)])
                claim.results.append(
                    f"{at(t)}, {len(got)} {what}: pass@1 mean {got.mean():.1f}, sd {got.std(ddof=1):.1f}, range "
                    f"{got.min():.1f} to {got.max():.1f}; {below_the_base(lab, t, found, one=found is same)}."
                )
                claim.points += [(t, what, s, 100 * value(found[s], 1)) for s in sorted(found)]
        sd = [
            f"{np.std([100 * value(r, 1) for r in found.values()], ddof=1):.1f}" for _, found in kinds if len(found) > 1
        ]
        if len(sd) == 2:
            claim.headline[at(t)] = f"sd {sd[0]} by post-training, {sd[1]} by pre-training"
        elif t == lab.late and sd:
            claim.headline[at(t)] = f"sd {sd[0]} by pre-training"
    return claim


def below_the_base(lab: Lab, tokens: int, found: dict[int, dict], one: bool) -> str:
    """How many runs end below the base that they came from, in pass@1 and in pass@32. `one`: the first seed's base."""
    base, told = lab.base(tokens), []
    pairs = [(r, base.get(lab.first if one else s)) for s, r in found.items()]
    pairs = [(r, b) for r, b in pairs if b]
    for k in (1, 32) if pairs else ():
        told.append(f"{sum(value(r, k) < value(b, k) for r, b in pairs)} below their base in pass@{k}")
    return ", ".join(told) or "base not run"


# ---------------------------------------------------------------- C9 rollout budget
def c9(lab: Lab) -> Claim:
    claim = Claim(
        "C9",
        "Rollout budget",
        "pass@1, n = 64 − n = 5 completions a question, equal questions (no verdict)",
        "a figure of February, hard: +10.6 and +11.1 at 6,400 and 25,600 questions; at equal completions −11.9 (82k of "
        "them) to +0.6 (1.6M), mostly below 0",
        verdict="not run",
    )
    t = lab.late
    many, few = (lab.by_seed("rl", t, variant=name, group="c9") for name in ("many", "few"))
    row = claim.add("rarely solved: 64 − 5 completions, equal questions", subtract(many, few, 1), primary=False)
    row.judge()
    if row.difference:
        claim.verdict, claim.headline[""] = "descriptive", f"{row.shown}, one pre-training"
        sizes = [lab.config("rl", t, "c9", name).get("group_size") for name in ("many", "few")]
        times = f", with {sizes[0] / sizes[1]:g} times the completions" if all(sizes) else ""
        claim.results.append(f"64 − 5 completions, equal questions: {row.shown}{times}.")
    for name in ("many", "few"):
        if c := lab.config("rl", t, "c9", name):
            size = f"{c['prompts_per_step']} prompts × {c['group_size']} completions a step, {c['steps']} steps"
            claim.details.append(f"{name}: {size}.")
    claim.limits.append("One pre-training, one seed: the interval is over questions. They are the ordinary test ones.")
    for r in lab.find(method="base", tokens=t, group="c9", split="train", temperature=1.0):
        q = r["result"]["questions"]["gsm"]["questions"]
        share = np.array(q["strict"]) / np.array(q["n"])
        claim.limits.append(
            "Rarely solved: right in an eighth of the base's samples (T 1) or less. That holds for "
            f"{sum(share <= 0.125)} of the {len(share)} training questions asked."
        )
    return claim


# ---------------------------------------------------------------- C10 diagnostic, C11 exemplars
def c10(lab: Lab) -> Claim:
    """x: the base's validation scores (paper's few-shot base); y: RL's on test questions."""
    claim = Claim(
        "C10",
        "Base pass@k on validation foretells RL",
        "Spearman, pass@32 of the 8-shot base on validation questions and RL's test pass@1 (no verdict)",
        "a figure, no coefficient; of its 9 points, digitised, rho is 0.83 (pass@32, pass@32)",
        verdict="not run",
        points=foretelling(lab),
    )
    p = claim.points
    if len(p) < 3:
        return claim
    claim.verdict = "descriptive"
    tokens, x, y = [math.log(q["tokens"]) for q in p], [q["x"][32] for q in p], [q["y"][1] for q in p]
    plain, given = signed(spearman(tokens, y)), signed(partial(x, y, tokens))
    wide = signed(spearman(x, [q["y"][32] for q in p]))
    claim.headline[""] = (
        f"{signed(spearman(x, y))} over {len(p)} points ({wide} with RL's pass@32); given tokens {given}"
    )
    seeds = {q["seed"] for q in p}
    claim.results.append(
        f"{len(p)} points of {len(seeds)} pre-trainings: rho {signed(spearman(x, y))} (with RL's pass@32, as the "
        f"paper: {wide}). Log-tokens as predictor: {plain}; partial given them "
        f"{given}."
    )
    for t in sorted({q["tokens"] for q in p}):
        alike = [q for q in p if q["tokens"] == t]
        if len(alike) > 2:
            rho = signed(spearman([q["x"][32] for q in alike], [q["y"][1] for q in alike]))
            claim.results.append(f"Among {len(alike)} pre-trainings at {at(t)}, at equal tokens: rho {rho}.")
    if all(q["loss"] is not None for q in p):
        rho = signed(spearman([-q["loss"] for q in p], y))
        claim.details.append(f"Minus the validation loss as predictor: rho {rho}.")
    for k in (1, 8, 32):
        for out in (1, 32):
            rho = signed(spearman([q["x"][k] for q in p], [q["y"][out] for q in p]))
            claim.details.append(f"base validation pass@{k} and RL's pass@{out}: rho {rho}.")
    claim.limits.append(
        "Whatever rises with training foretells RL, and checkpoints of one pre-training are no exchangeable points."
    )
    return claim


def foretelling(lab: Lab) -> list[dict]:
    """Of each checkpoint with RL: the base's validation pass@k (x), RL's on test questions (y), the validation loss."""
    points = []
    for t in lab.planned["rl"]:
        asked = dict(method="base", tokens=t, split="val", group="shots", n_shot=lab.few_shot)
        base = {r["seed"]: r["result"] for r in lab.find(**asked)}
        for seed, rl in lab.by_seed("rl", t).items():
            if seed in base:
                x, y = {k: value(base[seed], k) for k in (1, 8, 32)}, {k: value(rl, k) for k in (1, 32)}
                points.append(dict(seed=seed, tokens=t, x=x, y=y, loss=validation_loss(lab, seed, t)))
    return points


def signed(r: float) -> str:
    return "not defined" if math.isnan(r) else f"{r + 1e-12:+.2f}".replace("-", "−")  # no −0.00


def c11(lab: Lab) -> Claim:
    paper = "its figure of shots, 8-shot, 1-shot, 0-shot: 4.1, 3.6, 4.2 at 10B; 14.0, 17.5, 4.2 at 44B"
    claim = Claim("C11", "Few shots help the base", "base pass@1, 8-shot − 0-shot", paper)
    for t in lab.planned["base"]:
        few, none = lab.base(t, lab.few_shot), lab.base(t, 0)
        if few and none or t == lab.late:
            moved = subtract(few, none, 1)
            claim.add(f"{at(t)}: {lab.few_shot}-shot − 0-shot", moved, primary=t == lab.late)
            if few and none:
                levels = f"{100 * mean(few):.1f} and {100 * mean(none):.1f}"
                claim.details.append(f"{at(t)}: {lab.few_shot}-shot and 0-shot pass@1 {levels}.")
    return claim.judged()
