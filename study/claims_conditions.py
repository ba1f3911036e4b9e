"""The claims about what RL's outcome hangs on: data and scale (C4), seeds (C8), rollouts (C9), the base (C10, C11)."""

import math

import numpy as np

from data.world_math import HARD_SHARE
from study.read import Lab, mean, of_rows, per_question, subtract, validation_loss, value
from study.stats import Claim, partial, permutation_p, spearman
from study.tasks import amount as at

# ---------------------------------------------------------------- C4 data mix
KINDS = {"math-heavy": ("heavy", "heavy2"), "base": ("base", "base2"), "4x model": ("large",)}  # pre-trainings of each


def c4(lab: Lab) -> Claim:
    claim = Claim(
        "C4",
        "Data mix beats scale on hard problems",
        "hard pass@1 after RL, math-heavy − 4x model, − base",
        "44B: 30.4 mix, 9.0 base; gain (format too) at 20B: +14.3 mix, +8.6 scale, +6.1 base",
    )
    for gain in (False, True):
        got = {kind: hard_scores(lab, names, gain) for kind, names in KINDS.items()}
        what = "gain over the base" if gain else "hard pass@1 after RL"
        for a, b in (("math-heavy", "4x model"), ("math-heavy", "base"), ("4x model", "base")):
            rows = [x - got[b][i] for i, x in got[a].items() if i in got[b]]  # pairs of one pre-training seed
            claim.add(f"{what}: {a} − {b}", of_rows(rows) if rows else None, primary=a == "math-heavy" and not gain)
        for i in sorted(set(got["math-heavy"]) & set(got["base"])):
            pair = f"{what}: math-heavy − base, pre-training seed {lab.manifest['seed'] + i}"
            claim.add(pair, of_rows([got["math-heavy"][i] - got["base"][i]]), primary=False)
    for model in sum(KINDS.values(), ()):
        for shots in ("hard", "gsm"):
            rl = lab.by_seed("rl", lab.late, base=model, group="c4", variant="hard")
            start = lab.base(lab.late, 8, base=model, group="c4", variant=f"{shots}_shots")
            claim.add(f"{model}: RL − base, 8 {shots} exemplars", subtract(rl, start, 1, "hard"), primary=False)
    claim.limits += [
        "Seeds of the contrasts between models are pre-trainings (each the mean of its RL seeds): the 4x model has "
        "one, so its contrasts are estimates; two leave the t-interval one degree of freedom. Each model has its own "
        "rate of RL.",
        f"The mixes differ in the tested tier itself: {100 * HARD_SHARE:g} % of the worksheets' problems are hard in "
        "the base mix, a third in the math-heavy one, whose text is 32 instead of 20 % mathematics.",
    ]
    pretrained = [r for r in lab.runs if r["kind"] == "pretrain"]
    costs = [f"{r['base']} {tokens_of(r) * lab.flops_per_token(r['base']):.2g}" for r in pretrained]
    claim.details.append(f"FLOPs of pre-training, at equal tokens: {', '.join(costs)}.")
    return claim.judged()


def hard_scores(lab: Lab, pretrainings: tuple[str, ...], gain: bool) -> dict[int, np.ndarray]:
    """Of each pre-training of a kind: its RL seeds' mean score of each question, minus the base's if `gain`."""
    rows = {}
    for i, name in enumerate(pretrainings):
        found = lab.by_seed("rl", lab.late, base=name, group="c4", variant="hard")
        start = lab.base(lab.late, 8, base=name, group="c4", variant="hard_shots")
        if found and (start or not gain):
            after = np.mean([per_question(r, 1, task="hard") for r in found.values()], axis=0)
            rows[i] = after - per_question(start[None], 1, task="hard") if gain else after
    return rows


def tokens_of(run: dict) -> int:
    return run["config"]["steps"] * run["config"]["batch_tokens"]


# ---------------------------------------------------------------- C8 seeds
def c8(lab: Lab) -> Claim:
    claim = Claim(
        "C8",
        "Seeds",
        "spread of RL over seeds (no verdict)",
        "a 4B rerun ends at 4.4 / 12.9 (pass@1 / @32; 8-shot base 1.8 / 24.8); at 6B and 10B one fails too",
        verdict="not run",
    )
    for t in lab.primary:
        found = lab.by_seed("rl", t) | lab.by_seed("rl", t, group="c8")
        if len(found) < 2:
            continue
        claim.verdict = "descriptive"
        last = {s: [r["reward/mean"] for g in ("main", "c8") for r in lab.log("rl", t, s, g)[-5:]] for s in found}
        last = {s: 100 * np.mean(rewards) for s, rewards in last.items() if rewards}
        got = np.array([100 * value(found[s], 1) for s in sorted(found)])
        base = [100 * value(r, 1) for r in lab.base(t).values()]
        best = [max(np.random.default_rng(i).choice(got, 4, replace=False)) for i in range(1000) if len(got) >= 4]
        reward = f"{np.mean(list(last.values())):.1f}" if last else "not at hand"
        claim.results.append(
            f"{at(t)}: {len(got)} seeds, pass@1 mean {got.mean():.1f}, sd {got.std(ddof=1):.1f}, range {got.min():.1f} "
            f"to {got.max():.1f}; mean of the best of 4 {f'{np.mean(best):.1f}' if best else '–'}; "
            f"{below_the_base(lab, t, found)}; training reward over the last 5 batches {reward} (strict, T 1)."
        )
        claim.headline[at(t)] = f"sd {got.std(ddof=1):.1f} over {len(got)} seeds"
        claim.points += [
            (t, s, 100 * value(found[s], 1), last.get(s), base[0] if base else None) for s in sorted(found)
        ]
    return claim


def below_the_base(lab: Lab, tokens: int, found: dict[int, dict]) -> str:
    """How many runs end below the base, in pass@1 and in pass@32."""
    if not lab.base(tokens):
        return "base not run"
    base, narrow = 100 * mean(lab.base(tokens)), [100 * value(r, 1) for r in found.values()]
    wide = [100 * value(r, 32) for r in found.values()]
    told = f"{sum(n < base for n in narrow)} below the base ({base:.1f}); pass@32 mean {np.mean(wide):.1f}"
    few = lab.few_shot
    for name, n in (("the base's best shots", "best"), (f"the {few}-shot base, the paper's yardstick", few)):
        if start := lab.base(tokens, n):
            under = 100 * mean(start, 32)
            told += f", {sum(w < under for w in wide)} below {name} ({under:.1f})"
    return told


# ---------------------------------------------------------------- C9 rollout budget
def c9(lab: Lab) -> Claim:
    claim = Claim(
        "C9",
        "Rollout budget",
        "pass@1, n = 64 − n = 5 completions a question, equal questions",
        "a figure of February, hard: +10.6 and +11.1 at 6,400 and 25,600 questions (easy: +8.0 at 6,400); at equal "
        "completions −11.9 (82k of them) to +0.6 (1.6M), mostly below 0",
    )
    t = lab.late
    planned = {r["variant"]: r["config"] for r in lab.runs if r.get("group") == "c9"}
    for split, kind in (("hard", "rarely solved"), ("easy", "often solved")):
        many, few, long = (
            lab.by_seed("rl", t, variant=f"{split}_{name}", group="c9") for name in ("many", "few", "long")
        )
        equal = subtract(many, few, 1)
        claim.add(f"{kind}: many − few completions, equal questions seen", equal, primary=split == "hard")
        if f"{split}_long" in planned or not planned:
            claim.add(f"{kind}: many − few, equal completions in all", subtract(many, long, 1), primary=False)
    for variant, c in planned.items():
        done = len(lab.by_seed("rl", t, variant=variant, group="c9"))
        size = f"{c['prompts_per_step']} prompts × {c['group_size']} completions a step"
        claim.details.append(f"{variant}: {size}, {c['steps']} steps; {done} seeds finished.")
    claim.limits.append("The splits are of training questions; every score is on the ordinary test questions.")
    for row in lab.find(method="base", tokens=t, group="c9", split="train", temperature=1.0):
        q = row["result"]["questions"]["gsm"]["questions"]
        share = np.array(q["strict"]) / np.array(q["n"])
        easy, hard = sum(share >= 0.25), sum(share <= 0.125)
        parts = f"{easy} in a quarter or more (easy), {hard} in an eighth or less (hard)"
        parts += "; the easy ones are too few to say anything of easy questions" * int(easy < 30)
        claim.limits.append(
            f"{len(share)} training questions by the share of samples that the base gets right: {parts}."
        )
    return claim.judged()


# ---------------------------------------------------------------- C10 diagnostic, C11 exemplars
def c10(lab: Lab) -> Claim:
    """x: the base's validation scores (paper's few-shot base); y: RL's on test questions, mean over seeds."""
    claim = Claim(
        "C10",
        "Base pass@k on validation foretells RL",
        "Spearman, pass@32 of the 8-shot base on 100 validation questions and RL's test pass@1",
        "a figure, no coefficient; of its 9 points, digitised, rho is 0.83 (pass@32, pass@32)",
        verdict="not run",
        points=foretelling(lab),
    )
    p = claim.points
    if len(p) < 3:
        return claim
    tokens, x, y = [math.log(q["tokens"]) for q in p], [q["x"][32] for q in p], [q["y"][1] for q in p]
    chance = permutation_p(x, y)
    claim.verdict = "estimate" if len(p) < 5 else "reproduced" if chance <= 0.025 else "undecided"
    models = len({q["base"] for q in p})
    claim.headline[""] = f"{spearman(x, y):+.2f} over {len(p)} checkpoints, p {chance:.3f}".replace("-", "−")
    plain, given = f"{spearman(tokens, y):+.2f}, p {permutation_p(tokens, y):.3f}", signed(partial(x, y, tokens))
    claim.results.append(
        f"{len(p)} checkpoints of {models} pre-trainings: rho {spearman(x, y):+.2f}, permutation p {chance:.3f}. "
        f"Log-tokens as predictor: {plain}; partial given them {given}."
    )
    alike = [q for q in p if q["tokens"] == lab.late]
    if len(alike) > 2:
        pair = [q["x"][32] for q in alike], [q["y"][1] for q in alike]
        told = f"rho {signed(spearman(*pair))}, p {permutation_p(*pair):.2f}"
        claim.results.append(f"Among the {len(alike)} pre-trainings at {at(lab.late)}, at equal tokens: {told}.")
    if low := [q for q in p if q["y"][1] <= lab.copying.get("alone", 0)]:
        places = ", ".join(f"{q['base']} {at(q['tokens'])}" for q in low)
        claim.limits.append(
            f"No higher than copying the question's first number reaches (C1): RL's pass@1 at {places}."
        )
    claim.limits.append(
        "Whatever rises with training foretells RL, and checkpoints of one pre-training are no independent points: a "
        "plain correlation proves little."
    )
    claim.details += other_correlations(p, x, y)
    return claim


def foretelling(lab: Lab) -> list[dict]:
    """Of each checkpoint with RL: the base's validation pass@k (x), RL's on test questions (y), the validation loss."""
    points = []
    places = {(r["base"], r["tokens"]) for r in lab.evals if r["method"] == "rl" and r["group"] == "main"}
    for base, t in sorted(places):
        asked = dict(method="base", base=base, tokens=t, split="val", group="shots", n_shot=lab.few_shot)
        rl, found = lab.by_seed("rl", t, base=base), [r["result"] for r in lab.find(**asked)]
        if rl and found:
            y = {k: np.mean([value(r, k) for r in rl.values()]) for k in (1, 32)}
            x = {k: value(found[0], k) for k in (1, 8, 32)}
            points.append(dict(base=base, tokens=t, x=x, y=y, loss=validation_loss(lab, base, t)))
    return points


def other_correlations(points: list[dict], x: list[float], y: list[float]) -> list[str]:
    """With the validation loss, and of each k of the base with each of RL's."""
    told = []
    if all(q["loss"] is not None for q in points):
        loss = [-q["loss"] for q in points]
        rho, chance, given = spearman(loss, y), permutation_p(loss, y), signed(partial(x, y, loss))
        told.append(
            f"Minus the validation loss as predictor: rho {rho:+.2f}, p {chance:.3f}; partial correlation of pass@32 "
            f"and the outcome given it {given}."
        )
    for k in (1, 8, 32):
        for out in (1, 32):
            rho = spearman([q["x"][k] for q in points], [q["y"][out] for q in points])
            told.append(f"base validation pass@{k} and RL's pass@{out}: rho {rho:+.2f}")
    return told


def signed(r: float) -> str:
    return "not defined" if math.isnan(r) else f"{r + 1e-12:+.2f}"  # no −0.00


def c11(lab: Lab) -> Claim:
    paper = "its figure of shots, 8-shot, 1-shot, 0-shot: 4.1, 3.6, 4.2 at 10B; 14.0, 17.5, 4.2 at 44B"
    claim = Claim("C11", "Few shots help the base", "base pass@1, 8-shot − 0-shot", paper)
    asked = [r for r in lab.evals if r["method"] == "base" and r["group"] == "main"]
    for t in lab.planned["base"]:
        for n in sorted({r["n_shot"] for r in asked if r["tokens"] == t} - {0})[::-1]:
            moved = subtract(lab.base(t, n), lab.base(t, 0), 1)
            claim.add(f"{at(t)}: {n}-shot − 0-shot", moved, primary=n == lab.few_shot and t in lab.primary)
    claim.limits.append("The base is one model: with one pre-training there is no second seed, so no verdict.")
    return claim.judged()
