"""The claims about methods, each against others from the same checkpoint: C1, C2, C3, C5, C6, C7."""

import numpy as np

from data.world_math import N_QUESTIONS
from study.controls import copied
from study.presets import PRESETS
from study.read import NAMES, Lab, hits, mean, mean_score, subtract
from study.stats import Claim
from study.tasks import amount as at

POOLS = tuple(PRESETS["lab"]["pools"])  # C3's primary pools of questions, whatever a preset runs of them


# ---------------------------------------------------------------- C1 RL works early
def c1(lab: Lab) -> Claim:
    claim = Claim(
        "C1",
        "RL works early",
        "pass@1, RL − base (with the shots that validation prefers)",
        "above the 8-shot base: +13.8 at 4B (the best of its reruns), +26.1 at 10B",
    )
    by_tokens, uncopied = {}, {}
    for t in lab.planned["rl"]:
        rl = lab.by_seed("rl", t)
        by_tokens[t] = claim.add(f"{at(t)}: RL − base, best shots ({lab.shots(t)})", subtract(rl, lab.base(t), 1))
        for n in (lab.few_shot, 0):
            claim.add(f"{at(t)}: RL − base, {n}-shot", subtract(rl, lab.base(t, n), 1), primary=False)
        if lab.copying:
            rest = subtract(rl, lab.base(t), ("uncopied", 1))
            name = f"{at(t)}: RL − base, best shots, answer ≠ first number"
            uncopied[t] = claim.add(name, rest, primary=False)
    claim.judged()
    claim.verdict = by_tokens[lab.early].verdict if lab.early in by_tokens else "not run"
    if claim.verdict == "reproduced" and lab.early in uncopied and uncopied[lab.early].leaning != "as predicted":
        claim.caveat = f"at {at(lab.early)} by copying the question's first number"
    first = [at(t) for t, c in by_tokens.items() if c.verdict == "reproduced"]
    claim.limits += [
        f"The claim's verdict is that of {at(lab.early)}; the earliest checkpoint at which it is reproduced: "
        f"{first[0] if first else 'none'}."
    ]
    claim.limits += [copying_note(lab, list(by_tokens))] if lab.copying else []
    claim.details += [formatted_note(lab, t) for t in by_tokens if lab.base(t, 0)]
    claim.details.append(no_signal(lab))
    return claim


def copying_note(lab: Lab, places: list[int]) -> str:
    alone = f"{100 * lab.copying['alone']:.1f} % of the test questions are answered by their own first number"
    shares = [f"{at(t)} {percent_copied(lab.base(t))} and {percent_copied(lab.by_seed('rl', t))}" for t in places]
    return f"{alone}; share of such answers, base with its best shots and RL: {'; '.join(shares)}."


def percent_copied(found: dict) -> str:
    return f"{100 * np.mean([copied(r) for r in found.values()]):.1f}" if found else "–"


def formatted_note(lab: Lab, tokens: int) -> str:
    q = lab.base(tokens, 0)[None]["questions"]["gsm"]["questions"]
    formatted, right = sum(q["formatted"]), sum(q["strict"])
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
    claim = Claim("C2", "RL reaches SFT→RL", "pass@1, RL − SFT→RL, above −3", paper)
    for t in lab.planned["sft_rl"]:
        both = lab.by_seed("sft_rl", t)
        claim.add(f"{at(t)}: RL − SFT→RL", subtract(lab.by_seed("rl", t), both, 1), 1, -0.03, t in lab.primary)
    t = lab.late
    own = subtract(lab.by_seed("rl", t), lab.by_seed("sft_rl", t, variant="own", group="k2"), 1)
    claim.add(f"{at(t)}: RL − SFT→RL with RL's own settings", own, 1, -0.03, False)
    longer = lab.by_seed("rl", t, variant="total_updates", group="k2")
    moved = subtract(longer, lab.by_seed("sft_rl", t), 1)
    claim.add(f"{at(t)}: RL of SFT→RL's total updates, four a batch − SFT→RL", moved, 1, -0.03, False)
    claim.limits.append("RL may be 3 points worse and still reach it. In the paper's numbers it does so from 20B on.")
    return claim.judged()


def c3(lab: Lab) -> Claim:
    claim = Claim(
        "C3",
        "RL beats SFT when demonstrations are scarce",
        "pass@1, RL − SFT (60 epochs); pass@32, Gold − RL",
        "all its questions: RL − SFT +17.0, Gold − RL +7.2 at 44B",
    )
    t = lab.late
    for n in POOLS:
        rl, many, few, gold = (
            lab.by_seed(method, t, variant=f"pool{n}{kind}", group="c3")
            for method, kind in (("rl", ""), ("sft", "many"), ("sft", "few"), ("gold", "many"))
        )
        claim.add(f"{n} questions, pass@1: RL − SFT 60 epochs", subtract(rl, many, 1))
        claim.add(f"{n} questions, pass@32: Gold − RL", subtract(gold, rl, 32))
        claim.add(f"{n} questions, pass@1: RL − SFT 4 epochs", subtract(rl, few, 1), primary=False)
        if rl:
            shown = {"RL": rl, "SFT 60 epochs": many, "SFT 4 epochs": few, "Gold": gold}
            shown["base, best shots"] = lab.base(t)
            levels = [f"{m} {mean_score(r, 1)} / {mean_score(r, 32)}" for m, r in shown.items() if r]
            claim.details.append(f"{n} questions, pass@1 / pass@32: {'; '.join(levels)}.")
        if rl and many and lab.base(t) and mean(many) < mean(lab.base(t)):
            claim.limits.append(f"{n} questions: SFT of 60 epochs ends below the base it came from.")
    rl, sft, gold = (lab.by_seed(m, t) for m in ("rl", "sft", "gold"))
    passes = f"all questions, {main_epochs():.1f} epochs"
    claim.add(f"{passes}, pass@1: RL − SFT", subtract(rl, sft, 1), primary=False)
    claim.add(f"{passes}, pass@32: Gold − RL", subtract(gold, rl, 32), primary=False)
    return claim.judged()


def main_epochs() -> float:
    """Passes over the training questions that SFT of the main runs makes."""
    sft = PRESETS["lab"]["sft"]
    return sft["steps"] * sft.get("batch_size", 64) / N_QUESTIONS["gsm"]["train"]


# ---------------------------------------------------------------- C5 expands and sharpens
def c5(lab: Lab) -> Claim:
    claim = Claim(
        "C5",
        "Direct RL expands, RL after SFT sharpens",
        "pass@1, @8, @32: RL − base; SFT→RL − SFT",
        "at 14B: direct +34.8 and +23.3 (pass@1, @32); after an earlier SFT +15.7 and −5.0; 44B: +15.9 and −3.6 "
        "against an SFT longer than the one from which RL began",
    )
    for t in lab.primary:
        rl, sft, both = (lab.by_seed(m, t) for m in ("rl", "sft", "sft_rl"))
        for k in (1, 8, 32):
            claim.add(f"{at(t)}: direct RL, pass@{k}", subtract(rl, lab.base(t), k), primary=k != 8)
            after = subtract(both, sft, k)
            claim.add(f"{at(t)}: after SFT, pass@{k}", after, 1 if k == 1 else -1, primary=k != 8)
        beyond = ("beyond", 32)
        for name, a, b in (("direct RL", rl, lab.base(t)), ("after SFT", both, sft)):
            sign = 1 if name == "direct RL" else -1
            claim.add(f"{at(t)}: {name}, pass@32 beyond shuffled answers", subtract(a, b, beyond), sign, primary=False)
        zero = subtract(rl, lab.base(t, 0), 32)
        claim.add(f"{at(t)}: direct RL, pass@32, against the 0-shot base", zero, primary=False)
        eight = subtract(rl, lab.base(t, lab.few_shot), 32)
        against = f"{at(t)}: direct RL, pass@32, against the {lab.few_shot}-shot base"
        found = claim.add(against, eight, primary=False)
        if found.difference:
            contrast = f"{at(t)}: against the {lab.few_shot}-shot base, the paper's contrast"
            claim.limits.append(f"{contrast}, direct RL moves pass@32 by {found.shown} points (exploratory).")
    claim.limits += ceiling(lab)
    return claim.judged()


def ceiling(lab: Lab) -> list[str]:
    gold = lab.by_seed("gold", lab.late)
    if not gold or mean(gold, 32) < 0.95:
        return []
    return [
        f"Ceiling: SFT-Gold's pass@32 is {mean_score(gold, 32)} at {at(lab.late)} on test questions (calibration "
        "wanted under 95, on validation ones): there, differences in pass@32 are squeezed."
    ]


# ---------------------------------------------------------------- C6 general skills, C7 parallel averaging
def c6(lab: Lab) -> Claim:
    title, statistic = "RL keeps general skills, SFT does not", "six-benchmark average, method − base"
    claim = Claim("C6", title, statistic, "RL +0.3, SFT −6.1 at 44B")
    for t in lab.primary:
        base = {s: r for s, r in lab.base(t, lab.few_shot).items() if r["benchmarks"]}
        for result in base.values():
            names = list(result["benchmarks"])
            if full := [name for name in names if hits(result, name).mean() > 0.99]:
                what = f"{at(t)}: the base is above 99 % on {len(full)} of {len(names)} benchmarks ({', '.join(full)})"
                claim.limits.append(f"{what}: there, only a loss can show.")
        for method in ("rl", "sft", "gold", "sft_rl", "gold_rl", "parallel"):
            moved, main = subtract(lab.by_seed(method, t), base, "general"), method in ("rl", "sft")
            claim.add(f"{at(t)}: {NAMES[method]} − base", moved, -1, 0.0, main, 0.015 if method == "rl" else 0.0)
    for name, other in other_sft(lab):
        claim.add(f"{at(lab.late)}: {name} − base", subtract(other, base, "general"), -1, primary=False)
    claim.limits.append("Whether SFT's loss of general skill is its objective's or its rate's is what control K1 asks.")
    claim.details.append("The benchmarks are asked alike of every model: --n-shot concerns the questions alone.")
    return claim.judged()


def other_sft(lab: Lab) -> list[tuple[str, dict]]:
    """K1's runs of SFT, shorter ones and lower rates first: their names, and evaluations by seed."""
    found = {r["variant"] for r in lab.evals if r["group"] == "k1"}
    found = sorted((int(updates), float(rate), f"{rate}x{updates}") for rate, updates in (v.split("x") for v in found))
    name = "SFT at rate {:g}, {} updates (K1)".format
    return [(name(rate, n), lab.by_seed("sft", lab.late, group="k1", variant=v)) for n, rate, v in found]


def c7(lab: Lab) -> Claim:
    claim = Claim(
        "C7",
        "Parallel averaging has the best pass@32",
        "pass@32, parallel − RL, − SFT, − SFT→RL",
        "+4.0, +10.7, +14.2 at 44B; −3.3 to Gold",
    )
    names = {32: "pass@32", 1: "pass@1", 8: "pass@8", ("beyond", 32): "pass@32 beyond shuffled"}
    names |= {"general": "general average"}
    for t in lab.planned["parallel"]:
        parallel, primary = lab.by_seed("parallel", t), t in lab.primary
        for metric in names if primary else (32,):
            for method in ("rl", "sft", "sft_rl", *(("gold", "gold_rl") if primary else ())):
                main = metric == 32 and "gold" not in method and primary
                moved = subtract(parallel, lab.by_seed(method, t), metric)
                claim.add(f"{at(t)}: {names[metric]}, parallel − {NAMES[method]}", moved, primary=main)
    for name, other in other_sft(lab):
        moved = subtract(lab.by_seed("parallel", lab.late), other, 32)
        claim.add(f"{at(lab.late)}: pass@32, parallel − {name}", moved, primary=False)
    claim.limits += ceiling(lab)
    return claim.judged()
