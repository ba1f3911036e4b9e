"""The claims about methods, each against others from the same checkpoint: C1, C2, C3, C5, C6, C7."""

import numpy as np

from study import axis
from study.paper import PAPER
from study.read import NAMES, Lab, best_blind, general_average, hits, mean, mean_score, subtract
from study.stats import Claim, Comparison, Difference
from study.tasks import amount as at

LOW, ABOVE = 0.05, 0.10  # C1's early checkpoint: base pass@1 under the one, pass@32 so far above blind rules
GENERAL = 0.015  # what matters in general skill
CEILING = 0.92  # SFT-Gold's pass@32 from which on differences are squeezed


# ---------------------------------------------------------------- C1 RL works early
def early_checkpoint(lab: Lab) -> int | None:
    """The first judged checkpoint at which, on validation questions with the shots that they prefer, the base's pass@1
    is low and its pass@32 above what blind rules reach."""
    for t in lab.planned["rl"]:
        found = dict(enumerate(lab.asked_on_validation(t, lab.shots(t))))
        if found and mean(found) < LOW and mean(found, 32) >= best_blind(lab, 32) + ABOVE:
            return t
    return None


def c1(lab: Lab) -> Claim:
    claim = Claim(
        "C1",
        "RL works early",
        "pass@1, RL − base (with the shots that validation prefers)",
        "above the 8-shot base: +13.8 at 4B (the best of its reruns; the worst +2.6), +26.1 at 10B",
    )
    early = early_checkpoint(lab)
    for t in lab.planned["rl"]:
        rl = lab.by_seed("rl", t)
        claim.add(f"{at(t)}: RL − base, best shots ({lab.shots(t)})", subtract(rl, lab.base(t), 1), primary=t == early)
        for n in (lab.few_shot, 0):
            claim.add(f"{at(t)}: RL − base, {n}-shot", subtract(rl, lab.base(t, n), 1), primary=False)
    claim.judged()
    rule = f"pass@1 under {100 * LOW:g} and pass@32 at least {100 * ABOVE:g} points over the best blind rule"
    rule += f" ({100 * best_blind(lab, 32):.1f}), on validation questions"
    if early is None:
        claim.verdict = "not run" if not any(c.difference for c in claim.comparisons) else "undecided"
        claim.limits.append(f"At no judged checkpoint has the base {rule}: there is no early checkpoint to judge at.")
    else:
        claim.limits.append(f"Early is {at(early)}: the first judged checkpoint at which the base has {rule}.")
        if early != lab.early:
            claim.limits.append(f"The plan gave its longer runs of RL to {at(lab.early)}, which is another.")
    claim.details += [formatted_note(lab, t) for t in lab.planned["rl"] if lab.base(t, 0)]
    claim.details.append(no_signal(lab))
    return claim


def formatted_note(lab: Lab, tokens: int) -> str:
    found = [r["questions"]["gsm"]["questions"] for r in lab.base(tokens, 0).values()]
    formatted, right = (sum(sum(q[key]) for q in found) for key in ("formatted", "strict"))
    share = f"{100 * right / formatted:.1f} % of {formatted:,}" if formatted else "none was"
    return f"{at(tokens)}: 0-shot base, right among completions in the right format: {share}."


def no_signal(lab: Lab) -> str:
    """Runs with fewer than 5 hits in their first 3 rollout batches."""
    weak, asked = [], 0
    for r in lab.runs:
        if r["method"] == "rl" and r["group"] in ("main", "c8"):
            rows = lab.rows(r)[:3]
            asked += bool(rows)
            if rows and sum(row.get("reward/hits", 0) for row in rows) < 5:
                weak.append(r["name"])
    what = f"No signal (fewer than 5 hits in the first 3 batches), of {asked} RL runs of the main grid and C8"
    return f"{what}: {', '.join(weak) or 'none'}."


# ---------------------------------------------------------------- C2, C3 RL against SFT, SFT→RL
def c2(lab: Lab) -> Claim:
    paper = "−12.0 at 4B, −10.9 at 10B, −1.1 at 20B, +1.1 at 44B"
    claim = Claim("C2", "RL reaches SFT→RL", "pass@1, RL − SFT→RL", paper)
    gaps = {t: subtract(lab.by_seed("rl", t), lab.by_seed("sft_rl", t), 1) for t in lab.planned["sft_rl"]}
    for t, gap in gaps.items():
        claim.add(f"{at(t)}: RL − SFT→RL", gap, margin=-0.03, least=0.0, primary=t == lab.late)
    closing = between(gaps.get(lab.late), gaps.get(lab.early))
    claim.add(f"{at(lab.late)} − {at(lab.early)}: RL − SFT→RL", closing)
    for t in lab.planned["sft_rl"]:
        wide = subtract(lab.by_seed("rl", t), lab.by_seed("sft_rl", t), 32)
        claim.add(f"{at(t)}: pass@32, RL − SFT→RL", wide, primary=False)
    claim.limits.append(
        "Two rows: at the late checkpoint RL is at most 3 points worse, and the gap has closed since the early one."
    )
    steps = {t: lab.config("rl", t).get("steps") for t in lab.primary}
    if len(set(steps.values())) > 1:
        told = " and ".join(f"{n} batches at {at(t)}" for t, n in steps.items())
        claim.limits.append(f"RL and SFT→RL have {told}, so the second row compares more than the checkpoints.")
    return claim.judged()


def between(late: Difference | None, early: Difference | None) -> Difference | None:
    """The later difference less the earlier one, over the seeds of both; their questions are the same."""
    if late is None or early is None or len(late.seed_means) != len(early.seed_means) or late is early:
        return None
    (a, counts), (b, _) = late.parts[0], early.parts[0]
    return Difference([(a - b, counts)])


def c3(lab: Lab) -> Claim:
    claim = Claim(
        "C3",
        "RL beats SFT when demonstrations are scarce",
        "pass@1, RL − SFT; pass@32, Gold − RL; one pool of questions",
        "RL − SFT +17.0, Gold − RL +7.2 at 44B",
    )
    for t in lab.planned["rl"]:
        rl, sft, gold = (lab.by_seed(method, t) for method in ("rl", "sft", "gold"))
        claim.add(f"{at(t)}: pass@1, RL − SFT", subtract(rl, sft, 1), primary=t == lab.late)
        claim.add(f"{at(t)}: pass@32, Gold − RL", subtract(gold, rl, 32), primary=t == lab.late)
        claim.add(f"{at(t)}: pass@1, RL − Gold", subtract(rl, gold, 1), primary=False)
        if sft and lab.base(t) and mean(sft) < mean(lab.base(t)):
            claim.limits.append(f"{at(t)}: SFT ends below the base it came from.")
    if moved := subtract(lab.by_seed("sft", lab.late), lab.base(lab.late), 1):
        late = PAPER[max(PAPER)]
        theirs = late["sft"][0] - max(late["base8"], late["base0"])[0]
        here = Comparison("", moved).shown
        claim.limits.append(
            f"SFT − base, pass@1: {here} at {at(lab.late)}; the paper's {theirs:+.1f} at {max(PAPER)}B."
        )
    cells = axis.differences(axis.read(lab)).get("SFT, pass@1", {})
    if cells:
        ahead, most = sum(d.interval()[0] > 0 for d in cells.values()), max(pool for pool, _ in cells)
        claim.limits.append(
            f"Scarcity: on pools of up to {most:,} questions RL's pass@1 is clearly above SFT's in {ahead} of "
            f'{len(cells)} cells of "What decides" (one pre-training).'
        )
    return claim.judged()


# ---------------------------------------------------------------- C5 expands and sharpens
def c5(lab: Lab) -> Claim:
    claim = Claim(
        "C5",
        "Direct RL expands, RL after SFT sharpens",
        "pass@32, RL − base (best shots); SFT→RL − the SFT from which it began",
        "at 14B: direct +34.8 and +23.3 (pass@1, @32); after an earlier SFT +15.7 and −5.0; 44B: +15.9 and −3.6 "
        "against an SFT longer than the one from which RL began",
    )
    for t in lab.planned["sft_rl"]:
        rl, sft, both, late = *(lab.by_seed(m, t) for m in ("rl", "sft", "sft_rl")), t == lab.late
        start = lab.by_seed("sft", t, variant="start")
        for k in (1, 8, 32):
            claim.add(f"{at(t)}: direct RL, pass@{k}", subtract(rl, lab.base(t), k), primary=late and k == 32)
            after, sign = subtract(both, start, k), -1 if k == 32 else 1
            claim.add(f"{at(t)}: after SFT, pass@{k}", after, sign, primary=late and k == 32)
        for n in (lab.few_shot, 0):
            against = f"{at(t)}: direct RL, pass@32, against the {n}-shot base"
            claim.add(against, subtract(rl, lab.base(t, n), 32), primary=False)
        whole = f"{at(t)}: after SFT, pass@32, against SFT to its end"
        claim.add(whole, subtract(both, sft, 32), -1, primary=False)
    told = [f"against the base asked {n}-shot {c.shown}" for n in (lab.few_shot, 0) if (c := asked_so(claim, lab, n))]
    if told:
        claim.limits.append(
            f"Direct RL's pass@32 at {at(lab.late)}, by how the base is asked: {', '.join(told)}. At T 1: under "
            "Sensitivity."
        )
    claim.limits += ceiling(lab)
    return claim.judged()


def asked_so(claim: Claim, lab: Lab, n_shot: int) -> Comparison | None:
    """The exploratory row of C5 against the late base with so many shots."""
    name = f"{at(lab.late)}: direct RL, pass@32, against the {n_shot}-shot base"
    return next((c for c in claim.comparisons if c.name == name and c.difference), None)


def ceiling(lab: Lab) -> list[str]:
    gold = lab.by_seed("gold", lab.late)
    if not gold or mean(gold, 32) < CEILING:
        return []
    return [
        f"Ceiling: SFT-Gold's pass@32 is {mean_score(gold, 32)} at {at(lab.late)} on test questions (calibration "
        f"wanted under {100 * CEILING:g}, on validation ones): there, differences in pass@32 are squeezed."
    ]


# ---------------------------------------------------------------- C6 general skills, C7 parallel averaging
def c6(lab: Lab) -> Claim:
    title, statistic = "RL keeps general skills, SFT does not", "six-benchmark average, method − base"
    claim = Claim("C6", title, statistic, "RL +0.3, SFT −6.1 at 44B")
    for t in lab.planned["rl"]:
        base = {s: r for s, r in lab.base(t, lab.few_shot).items() if r["benchmarks"]}
        for method in ("rl", "sft", "gold", "sft_rl", "parallel"):
            moved, main = subtract(lab.by_seed(method, t), base, "general"), method in ("rl", "sft") and t == lab.late
            how = dict(within=GENERAL) if method == "rl" else dict(least=GENERAL)
            claim.add(f"{at(t)}: {NAMES[method]} − base", moved, -1, primary=main, **how)
        if t == lab.late and base:
            names = list(next(iter(base.values()))["benchmarks"])
            full = [name for name in names if np.mean([hits(r, name).mean() for r in base.values()]) > 0.98]
            average = np.mean([general_average(r) for r in base.values()])
            claim.limits.append(
                f"{at(t)}: the base has {100 * average:.1f} and is above 98 % on {len(full)} of {len(names)} benchmarks"
                f" ({', '.join(full) or 'none'}): there, only a loss can show."
            )
    claim.details.append("The benchmarks are asked alike of every model: --n-shot concerns the questions alone.")
    return claim.judged()


def c7(lab: Lab) -> Claim:
    claim = Claim(
        "C7",
        "Parallel averaging has the best pass@32",
        "pass@32, parallel − RL, − SFT, − SFT→RL",
        "+4.0, +10.7, +14.2 at 44B; −3.3 to Gold",
    )
    names = {32: "pass@32", 1: "pass@1", "general": "general average"}
    for t in lab.planned["parallel"]:
        parallel = lab.by_seed("parallel", t)
        for metric, name in names.items():
            for method in ("sft_rl", "sft", "rl", "gold"):
                main = metric == 32 and method != "gold" and t == lab.late
                moved = subtract(parallel, lab.by_seed(method, t), metric)
                claim.add(f"{at(t)}: {name}, parallel − {NAMES[method]}", moved, primary=main)
    if start := lab.by_seed("sft", lab.late, variant="start"):
        claim.limits.append(
            f"SFT of {lab.manifest.get('start_passes')} passes, from which SFT→RL begins, has pass@32 "
            f"{mean_score(start, 32)} at {at(lab.late)}; its row here is of SFT to its end."
        )
    claim.limits += ceiling(lab)
    return claim.judged()
