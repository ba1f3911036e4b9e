"""The claims of the paper, judged: docs/analysis_plan.md as code, with the statistics of stats.py on a study that
read.py read; one function a claim. report.py writes them up. What was not run is said so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from data.world import HARD_SHARE, N_QUESTIONS
from study.presets import PRESETS
from study.read import (
    NAMES,
    Lab,
    copied,
    mean,
    mean_score,
    of_rows,
    per_question,
    subtract,
    validation_loss,
    value,
)
from study.stats import Comparison, Difference, judge, partial, permutation_p, spearman
from study.tasks import amount as at

POOLS = tuple(PRESETS["lab"]["pools"])  # C3's primary pools of questions, whatever a preset runs of them


@dataclass
class Claim:
    key: str
    title: str
    statistic: str
    paper: str
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdict: str = ""
    caveat: str = ""  # stands behind the verdict
    points: list = field(default_factory=list)  # of its figure, where comparisons are none

    def add(self, name: str, difference: Difference | None, sign: int = 1, margin: float = 0.0, primary: bool = True,
            within: float = 0.0) -> None:  # fmt: skip
        self.comparisons.append(Comparison(name, difference, sign, margin, primary, within))

    def done(self) -> "Claim":
        self.verdict = judge(self.comparisons)
        main = [c for c in self.comparisons if c.primary]
        decided = [f"{c.name} ({c.verdict})" for c in main if c.verdict in ("reproduced", "contradicted")]
        if self.verdict in ("undecided", "mixed") and decided:
            self.notes.insert(0, f"Decided on their own: {'; '.join(decided)}.")
        for c in main:
            if c.verdict == "undecided" and c.leaning != "open":
                lies = "beyond" if c.leaning == "as predicted" else "on the other side of"
                told = f"{c.name}: its interval lies {lies} the margin, but Holm's correction does not keep it."
                self.notes.append(told)
        run = sum(bool(c.difference) for c in main)
        if 0 < run < len(main):
            self.notes.insert(0, f"Partly run: {run} of {len(main)} primary comparisons.")
        return self


def c1(lab: Lab) -> Claim:
    statistic = "pass@1, RL − base (with the shots that validation prefers)"
    paper = "above the 8-shot base: +13.8 at 4B (the best of its reruns), +26.1 at 10B"
    claim = Claim("C1", "RL works early", statistic, paper)
    by_tokens, uncopied = {}, {}
    for t in lab.planned["rl"]:
        rl = lab.by_seed("rl", t)
        claim.add(f"{at(t)}: RL − base, best shots ({lab.shots(t)})", subtract(rl, lab.base(t), 1))
        by_tokens[t] = claim.comparisons[-1]
        for n in (lab.few_shot, 0):
            claim.add(f"{at(t)}: RL − base, {n}-shot", subtract(rl, lab.base(t, n), 1), primary=False)
        if lab.copying:
            rest = subtract(rl, lab.base(t), ("uncopied", 1))
            claim.add(f"{at(t)}: RL − base, best shots, answer ≠ first number", rest, primary=False)
            uncopied[t] = claim.comparisons[-1]
    claim.done()
    claim.verdict = by_tokens[lab.early].verdict if lab.early in by_tokens else "not run"
    if claim.verdict == "reproduced" and lab.early in uncopied and uncopied[lab.early].leaning != "as predicted":
        claim.caveat = f"at {at(lab.early)} by copying the question's first number"
    first = [at(t) for t, c in by_tokens.items() if c.verdict == "reproduced"]
    claim.notes.append(f"The claim's verdict is that of {at(lab.early)}.")
    claim.notes.append(f"Earliest checkpoint at which it is reproduced: {first[0] if first else 'none'}.")
    for t in by_tokens:
        if zero := lab.base(t, 0):
            q = zero[None]["questions"]["gsm"]["questions"]
            formatted, right = sum(q["formatted"]), sum(q["strict"])
            share = f"{100 * right / formatted:.1f} % of {formatted:,}" if formatted else "none was"
            claim.notes.append(f"{at(t)}: 0-shot base, right among completions in the right format: {share}.")
    if lab.copying:
        shares = [
            f"{at(t)} {percent_copied(lab.base(t))} and {percent_copied(lab.by_seed('rl', t))}" for t in by_tokens
        ]
        alone = f"{100 * lab.copying['alone']:.1f} % of the test questions are answered by their own first number"
        claim.notes.append(f"{alone}; share of such answers, base with its best shots and RL: {'; '.join(shares)}.")
    claim.notes.append(no_signal(lab))
    return claim


def percent_copied(found: dict) -> str:
    return f"{100 * np.mean([copied(r) for r in found.values()]):.1f}" if found else "–"


def no_signal(lab: Lab) -> str:
    """Runs with fewer than 5 hits in their first 3 rollout batches."""
    weak, asked = [], 0
    for r in lab.runs:
        if r["method"] == "rl" and r.get("group") in ("main", "c8"):
            rows = lab.files.rows(r["metrics"])[:3]
            asked += bool(rows)
            if rows and sum(row["reward/hits"] for row in rows) < 5:
                weak.append(r["name"])
    what = f"No signal (fewer than 5 hits in the first 3 batches), of {asked} RL runs of the main grid and C8"
    return f"{what}: {', '.join(weak) or 'none'}."


def c2(lab: Lab) -> Claim:
    claim = Claim("C2", "RL reaches SFT→RL", "pass@1, RL − SFT→RL, above −3",
                  "−12.0 at 4B, −10.9 at 10B, −1.1 at 20B, +1.1 at 44B")  # fmt: skip
    for t in lab.planned["sft_rl"]:
        rl = lab.by_seed("rl", t)
        claim.add(f"{at(t)}: RL − SFT→RL", subtract(rl, lab.by_seed("sft_rl", t), 1), 1, -0.03, t in lab.primary)
    t = lab.late
    own = subtract(lab.by_seed("rl", t), lab.by_seed("sft_rl", t, variant="own", group="k2"), 1)
    claim.add(f"{at(t)}: RL − SFT→RL with RL's own settings", own, 1, -0.03, False)
    longer = lab.by_seed("rl", t, variant="total_updates", group="k2")
    moved = subtract(longer, lab.by_seed("sft_rl", t), 1)
    claim.add(f"{at(t)}: RL of SFT→RL's total updates, four a batch − SFT→RL", moved, 1, -0.03, False)
    return claim.done()


def c3(lab: Lab) -> Claim:
    title, statistic = "RL beats SFT when demonstrations are scarce", "pass@1, RL − SFT (60 epochs); pass@32, Gold − RL"
    claim, t = Claim("C3", title, statistic, "all its questions: RL − SFT +17.0, Gold − RL +7.2 at 44B"), lab.late
    for n in POOLS:
        get = lambda method, kind="", n=n: lab.by_seed(method, t, variant=f"pool{n}{kind}", group="c3")  # noqa: E731
        claim.add(f"{n} questions, pass@1: RL − SFT 60 epochs", subtract(get("rl"), get("sft", "many"), 1))
        claim.add(f"{n} questions, pass@32: Gold − RL", subtract(get("gold", "many"), get("rl"), 32))
        claim.add(f"{n} questions, pass@1: RL − SFT 4 epochs", subtract(get("rl"), get("sft", "few"), 1), primary=False)
        shown = {"RL": get("rl"), "SFT 60 epochs": get("sft", "many"), "SFT 4 epochs": get("sft", "few")}
        shown |= {"Gold": get("gold", "many"), "base, best shots": lab.base(t)}
        levels = [f"{m} {mean_score(r, 1)} / {mean_score(r, 32)}" for m, r in shown.items() if r]
        if get("rl"):
            below = get("sft", "many") and lab.base(t) and mean(get("sft", "many")) < mean(lab.base(t))
            told = " SFT of 60 epochs ends below the base it came from." * bool(below)
            claim.notes.append(f"{n} questions, pass@1 / pass@32: {'; '.join(levels)}.{told}")
    rl, sft, gold = (lab.by_seed(m, t) for m in ("rl", "sft", "gold"))
    passes = f"all questions, {main_epochs():.1f} epochs"
    claim.add(f"{passes}, pass@1: RL − SFT", subtract(rl, sft, 1), primary=False)
    claim.add(f"{passes}, pass@32: Gold − RL", subtract(gold, rl, 32), primary=False)
    return claim.done()


def main_epochs() -> float:
    """Passes over the training questions that SFT of the main runs makes."""
    sft = PRESETS["lab"]["sft"]
    return sft["steps"] * sft.get("batch_size", 64) / N_QUESTIONS["gsm"]["train"]


def ceiling(lab: Lab) -> list[str]:
    gold = lab.by_seed("gold", lab.late)
    if not gold or mean(gold, 32) < 0.95:
        return []
    return [f"Ceiling: SFT-Gold's pass@32 is {mean_score(gold, 32)} at {at(lab.late)} on test questions (calibration "
            "wanted under 95, on validation ones): there, differences in pass@32 are squeezed."]  # fmt: skip


def c4(lab: Lab) -> Claim:
    statistic = "hard pass@1 after RL, math-heavy − 4x model, − base"
    claim = Claim("C4", "Data mix beats scale on hard problems", statistic,
                  "44B: 30.4 mix, 9.0 base; gain (format too) at 20B: +14.3 mix, +8.6 scale, +6.1 base")  # fmt: skip

    def of_pretrainings(*names: str, gain: bool = False) -> dict[int, np.ndarray]:
        """Of each pre-training of a kind: its RL seeds' mean score of each question, minus the base's if `gain`."""
        rows = {}
        for i, name in enumerate(names):
            found = lab.by_seed("rl", lab.late, base=name, group="c4", variant="hard")
            start = lab.base(lab.late, 8, base=name, group="c4", variant="hard_shots")
            if found and (start or not gain):
                mean = np.mean([per_question(r, 1, task="hard") for r in found.values()], axis=0)
                rows[i] = mean - per_question(start[None], 1, task="hard") if gain else mean
        return rows

    kinds = {"math-heavy": ("heavy", "heavy2"), "base": ("base", "base2"), "4x model": ("large",)}
    for gain in (False, True):
        got = {kind: of_pretrainings(*names, gain=gain) for kind, names in kinds.items()}
        what = "gain over the base" if gain else "hard pass@1 after RL"
        for a, b in (("math-heavy", "4x model"), ("math-heavy", "base"), ("4x model", "base")):
            rows = [x - got[b][i] for i, x in got[a].items() if i in got[b]]  # pairs of one pre-training seed
            claim.add(f"{what}: {a} − {b}", of_rows(rows) if rows else None, primary=a == "math-heavy" and not gain)
        for i in sorted(set(got["math-heavy"]) & set(got["base"])):
            pair = f"{what}: math-heavy − base, pre-training seed {lab.manifest['seed'] + i}"
            claim.add(pair, of_rows([got["math-heavy"][i] - got["base"][i]]), primary=False)
    for model in sum(kinds.values(), ()):
        for shots in ("hard", "gsm"):
            rl = lab.by_seed("rl", lab.late, base=model, group="c4", variant="hard")
            start = lab.base(lab.late, 8, base=model, group="c4", variant=f"{shots}_shots")
            claim.add(f"{model}: RL − base, 8 {shots} exemplars", subtract(rl, start, 1, "hard"), primary=False)
    claim.notes.append(
        "Seeds of the contrasts between models are pre-trainings (each the mean of its RL seeds): the 4x model has "
        "one, so its contrasts are estimates; two leave the t-interval one degree of freedom. Each model has its own "
        "rate of RL."
    )
    claim.notes.append(
        f"The mixes differ in the tested tier itself: {100 * HARD_SHARE:g} % of the worksheets' problems are hard in "
        "the base mix, a third in the math-heavy one, whose text is 32 instead of 20 % mathematics."
    )
    costs = [f"{r['base']} {tokens_of(r) * lab.flops_per_token(r['base']):.2g}"
             for r in lab.runs if r["kind"] == "pretrain"]  # fmt: skip
    claim.notes.append(f"FLOPs of pre-training, at equal tokens: {', '.join(costs)}.")
    return claim.done()


def tokens_of(run: dict) -> int:
    return run["config"]["steps"] * run["config"]["batch_tokens"]


def c5(lab: Lab) -> Claim:
    claim = Claim("C5", "Direct RL expands, RL after SFT sharpens", "pass@1, @8, @32: RL − base; SFT→RL − SFT",
                  "at 14B: direct +34.8 and +23.3 (pass@1, @32); after an earlier SFT +15.7 and −5.0; 44B: +15.9 and "
                  "−3.6 against an SFT longer than the one from which RL began")  # fmt: skip
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
        claim.add(f"{at(t)}: direct RL, pass@32, against the {lab.few_shot}-shot base", eight, primary=False)
    claim.notes += ceiling(lab)
    return claim.done()


def other_sft(lab: Lab) -> list[tuple[str, dict]]:
    """K1's runs of SFT, shorter ones and lower rates first: their names, and evaluations by seed."""
    found = {r["variant"] for r in lab.evals if r["group"] == "k1"}
    found = sorted((int(updates), float(rate), f"{rate}x{updates}") for rate, updates in (v.split("x") for v in found))
    name = "SFT at rate {:g}, {} updates (K1)".format
    return [(name(rate, n), lab.by_seed("sft", lab.late, group="k1", variant=v)) for n, rate, v in found]


def c6(lab: Lab) -> Claim:
    claim = Claim("C6", "RL keeps general skills, SFT does not", "six-benchmark average, method − base",
                  "RL +0.3, SFT −6.1 at 44B")  # fmt: skip
    for t in lab.primary:
        base = {s: r for s, r in lab.base(t, lab.few_shot).items() if r["benchmarks"]}
        for result in base.values():
            scores = {n: np.mean(list(map(int, b["hits"]))) for n, b in result["benchmarks"].items()}
            if full := [n for n, score in scores.items() if score > 0.99]:
                what = f"{at(t)}: the base is above 99 % on {len(full)} of {len(scores)} benchmarks ({', '.join(full)})"
                claim.notes.append(f"{what}: there, only a loss can show.")
        for method in ("rl", "sft", "gold", "sft_rl", "gold_rl", "parallel"):
            moved, main = subtract(lab.by_seed(method, t), base, "general"), method in ("rl", "sft")
            claim.add(f"{at(t)}: {NAMES[method]} − base", moved, -1, 0.0, main, 0.015 if method == "rl" else 0.0)
    for name, other in other_sft(lab):
        claim.add(f"{at(lab.late)}: {name} − base", subtract(other, base, "general"), -1, primary=False)
    claim.notes.append("Whether SFT's loss of general skill is its objective's or its rate's is what control K1 asks.")
    claim.notes.append("The benchmarks are asked alike of every model: --n-shot concerns the questions alone.")
    return claim.done()


def c7(lab: Lab) -> Claim:
    claim = Claim("C7", "Parallel averaging has the best pass@32", "pass@32, parallel − RL, − SFT, − SFT→RL",
                  "+4.0, +10.7, +14.2 at 44B; −3.3 to Gold")  # fmt: skip
    for t in lab.planned["parallel"]:
        parallel = lab.by_seed("parallel", t)
        metrics = (32, 1, 8, ("beyond", 32), "general") if t in lab.primary else (32,)
        for metric in metrics:
            what = {"general": "general average", ("beyond", 32): "pass@32 beyond shuffled"}.get(metric)
            what = what or f"pass@{metric}"
            for method in ("rl", "sft", "sft_rl", "gold", "gold_rl"):
                if method in ("gold", "gold_rl") and t not in lab.primary:
                    continue
                main = metric == 32 and "gold" not in method and t in lab.primary
                moved = subtract(parallel, lab.by_seed(method, t), metric)
                claim.add(f"{at(t)}: {what}, parallel − {NAMES[method]}", moved, primary=main)
    for name, other in other_sft(lab):
        moved = subtract(lab.by_seed("parallel", lab.late), other, 32)
        claim.add(f"{at(lab.late)}: pass@32, parallel − {name}", moved, primary=False)
    claim.notes += ceiling(lab)
    return claim.done()


def c8(lab: Lab) -> Claim:
    claim = Claim("C8", "Seeds", "spread of RL over seeds (no verdict)",
                  "a 4B rerun ends at 4.4 / 12.9 (pass@1 / @32; 8-shot base 1.8 / 24.8); at 6B and 10B one fails too",
                  verdict="not run")  # fmt: skip
    for t in lab.primary:
        found = lab.by_seed("rl", t) | lab.by_seed("rl", t, group="c8")
        if len(found) < 2:
            continue
        claim.verdict = "descriptive"
        last = {s: [r["reward/mean"] for g in ("main", "c8") for r in lab.log("rl", t, s, g)[-5:]] for s in found}
        last = {s: 100 * np.mean(rewards) for s, rewards in last.items() if rewards}
        got = np.array([100 * value(found[s], 1) for s in sorted(found)])
        base = [100 * value(r, 1) for r in lab.base(t).values()]
        failed, wide = "base not run", [100 * value(found[s], 32) for s in found]
        if base:
            failed = f"{sum(got < base[0])} below the base ({base[0]:.1f}); pass@32 mean {np.mean(wide):.1f}"
            few = lab.few_shot
            for name, n in (("the base's best shots", "best"), (f"the {few}-shot base, the paper's yardstick", few)):
                under = 100 * mean(lab.base(t, n), 32)
                failed += f", {sum(w < under for w in wide)} below {name} ({under:.1f})"
        best = [max(np.random.default_rng(i).choice(got, 4, replace=False)) for i in range(1000) if len(got) >= 4]
        reward = f"{np.mean(list(last.values())):.1f}" if last else "not at hand"
        claim.notes.append(
            f"{at(t)}: {len(got)} seeds, pass@1 mean {got.mean():.1f}, sd {got.std(ddof=1):.1f}, range {got.min():.1f} "
            f"to {got.max():.1f}; mean of the best of 4 {f'{np.mean(best):.1f}' if best else '–'}; {failed}; training "
            f"reward over the last 5 batches {reward} (strict, T 1)."
        )
        claim.points += [
            (t, s, 100 * value(found[s], 1), last.get(s), base[0] if base else None) for s in sorted(found)
        ]
    return claim


def c9(lab: Lab) -> Claim:
    claim, t = Claim("C9", "Rollout budget", "pass@1, n = 64 − n = 5 completions a question, equal questions",
                     "a figure of February, hard: +10.6 and +11.1 at 6,400 and 25,600 questions (easy: +8.0 at 6,400); "
                     "at equal completions −11.9 (82k of them) to +0.6 (1.6M), mostly below 0"), lab.late  # fmt: skip
    get = lambda split, name: lab.by_seed("rl", t, variant=f"{split}_{name}", group="c9")  # noqa: E731
    planned = {r["variant"]: r["config"] for r in lab.runs if r.get("group") == "c9"}
    for split, kind in (("hard", "rarely solved"), ("easy", "often solved")):
        equal = subtract(get(split, "many"), get(split, "few"), 1)
        claim.add(f"{kind}: many − few completions, equal questions seen", equal, primary=split == "hard")
        if f"{split}_long" in planned or not planned:
            equal = subtract(get(split, "many"), get(split, "long"), 1)
            claim.add(f"{kind}: many − few, equal completions in all", equal, primary=False)
    for variant, c in planned.items():
        done = len(lab.by_seed("rl", t, variant=variant, group="c9"))
        claim.notes.append(f"{variant}: {c['prompts_per_step']} prompts × {c['group_size']} completions a step, "
                           f"{c['steps']} steps; {done} seeds finished.")  # fmt: skip
    claim.notes.append("The splits are of training questions; every score is on the ordinary test questions.")
    for row in lab.find(method="base", tokens=t, group="c9", split="train", temperature=1.0):
        q = row["result"]["questions"]["gsm"]["questions"]
        share = np.array(q["strict"]) / np.array(q["n"])
        easy, hard = sum(share >= 0.25), sum(share <= 0.125)
        parts = f"{easy} in a quarter or more (easy), {hard} in an eighth or less (hard)"
        parts += "; the easy ones are too few to say anything of easy questions" * int(easy < 30)
        claim.notes.append(
            f"{len(share)} training questions by the share of samples that the base gets right: {parts}."
        )
    return claim.done()


def signed(r: float) -> str:
    return "not defined" if math.isnan(r) else f"{r + 1e-12:+.2f}"  # no −0.00


def c10(lab: Lab) -> Claim:
    """x: the base's validation scores (paper's few-shot base); y: RL's on test questions, mean over seeds."""
    statistic = "Spearman, pass@32 of the 8-shot base on 100 validation questions and RL's test pass@1"
    claim = Claim("C10", "Base pass@k on validation foretells RL", statistic,
                  "a figure, no coefficient; of its 9 points, digitised, rho is 0.83 (pass@32, pass@32)",
                  verdict="not run")  # fmt: skip
    for base, t in sorted(
        {(r["base"], r["tokens"]) for r in lab.evals if r["method"] == "rl" and r["group"] == "main"}
    ):
        asked = dict(method="base", base=base, tokens=t, split="val", group="shots", n_shot=lab.few_shot)
        rl, found = lab.by_seed("rl", t, base=base), [r["result"] for r in lab.find(**asked)]
        if rl and found:
            y = {k: np.mean([value(r, k) for r in rl.values()]) for k in (1, 32)}
            x = {k: value(found[0], k) for k in (1, 8, 32)}
            claim.points.append(dict(base=base, tokens=t, x=x, y=y, loss=validation_loss(lab, base, t)))
    p = claim.points
    if len(p) < 3:
        return claim
    tokens = [math.log(q["tokens"]) for q in p]
    x, y = [q["x"][32] for q in p], [q["y"][1] for q in p]
    chance = permutation_p(x, y)
    claim.verdict = "estimate" if len(p) < 5 else "reproduced" if chance <= 0.025 else "undecided"
    models = len({q["base"] for q in p})
    plain, given = f"{spearman(tokens, y):+.2f}, p {permutation_p(tokens, y):.3f}", signed(partial(x, y, tokens))
    claim.notes.append(f"{len(p)} checkpoints of {models} pre-trainings: rho {spearman(x, y):+.2f}, permutation p "
                       f"{chance:.3f}. Log-tokens as predictor: {plain}; partial given them {given}.")  # fmt: skip
    alike = [q for q in p if q["tokens"] == lab.late]
    if len(alike) > 2:
        pair = [q["x"][32] for q in alike], [q["y"][1] for q in alike]
        told = f"rho {signed(spearman(*pair))}, p {permutation_p(*pair):.2f}"
        claim.notes.append(f"Among the {len(alike)} pre-trainings at {at(lab.late)}, at equal tokens: {told}.")
    if all(q["loss"] is not None for q in p):
        loss = [-q["loss"] for q in p]
        rho, chance, given = spearman(loss, y), permutation_p(loss, y), signed(partial(x, y, loss))
        claim.notes.append(f"Minus the validation loss as predictor: rho {rho:+.2f}, p {chance:.3f}; partial "
                           f"correlation of pass@32 and the outcome given it {given}.")  # fmt: skip
    if low := [q for q in p if q["y"][1] <= lab.copying.get("alone", 0)]:
        places = ", ".join(f"{q['base']} {at(q['tokens'])}" for q in low)
        claim.notes.append(f"No higher than copying the question's first number reaches (C1): RL's pass@1 at {places}.")
    claim.notes.append("Whatever rises with training foretells RL, and checkpoints of one pre-training are no "
                       "independent points: a plain correlation proves little.")  # fmt: skip
    for k in (1, 8, 32):
        for out in (1, 32):
            rho = spearman([q["x"][k] for q in p], [q["y"][out] for q in p])
            claim.notes.append(f"base validation pass@{k} and RL's pass@{out}: rho {rho:+.2f}")
    return claim


def c11(lab: Lab) -> Claim:
    paper = "its figure of shots, 8-shot, 1-shot, 0-shot: 4.1, 3.6, 4.2 at 10B; 14.0, 17.5, 4.2 at 44B"
    claim = Claim("C11", "Few shots help the base", "base pass@1, 8-shot − 0-shot", paper)
    asked = [r for r in lab.evals if r["method"] == "base" and r["group"] == "main"]
    for t in lab.planned["base"]:
        for n in sorted({r["n_shot"] for r in asked if r["tokens"] == t} - {0})[::-1]:
            moved = subtract(lab.base(t, n), lab.base(t, 0), 1)
            claim.add(f"{at(t)}: {n}-shot − 0-shot", moved, primary=n == lab.few_shot and t in lab.primary)
    claim.notes.append("The base is one model: with one pre-training there is no second seed, so no verdict.")
    return claim.done()


CLAIMS: tuple[Callable[[Lab], Claim], ...] = (c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11)
