"""The claims of the paper, judged: docs/analysis_plan.md as code. report_lab.py writes them up.

Statistics first (they know nothing of the study), then reading a study, then one function a claim. A difference is an
array (seeds, units): the two sides share seed and question (or, for general skills, fact). What was not run is said so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np

import report
from common import UserError
from evaluate import pass_at_k

DRAWS, LEVEL = 4000, 0.05
# Two-sided 95 % and 90 % quantiles of Student's t by degrees of freedom (numpy has none), the last one for more.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
T_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)


# ---------------------------------------------------------------------------------------------------------- statistics
@dataclass(eq=False)
class Difference:
    """a - b, paired. parts: (sums (S, F), counts (F,)) of each benchmark, or one part with counts 1 for questions: F
    facts (or questions) are what is drawn anew; the estimate is the mean over seeds, items, then parts."""

    parts: list[tuple[np.ndarray, np.ndarray]]

    @property
    def seed_means(self) -> np.ndarray:
        return np.mean([sums.sum(1) / counts.sum() for sums, counts in self.parts], axis=0)

    @property
    def estimate(self) -> float:
        return float(self.seed_means.mean())

    @cache  # noqa: B019  asked for by the interval and by both p
    def bootstrap(self, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
        """(draws,) estimates with the facts drawn anew; the seeds of a fact stay together."""
        rng, means = np.random.default_rng(seed), []
        for sums, counts in self.parts:
            times = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=draws)
            means.append(times @ sums.mean(0) / (times @ counts))
        return np.mean(means, axis=0)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The wider of the percentile bootstrap over facts and the t-interval over seed means."""
        low, high = np.percentile(self.bootstrap(), [50 * level, 100 - 50 * level])
        means = self.seed_means
        if len(means) > 1:
            table = T_975 if level == 0.05 else T_95
            half = table[min(len(means) - 1, len(table)) - 1] * means.std(ddof=1) / math.sqrt(len(means))
            if 2 * half > high - low:
                low, high = means.mean() - half, means.mean() + half
        return float(low), float(high)

    def p_beyond(self, margin: float, sign: int) -> float:
        """One-sided p against "not beyond the margin on that side": the larger of the bootstrap's and the t-test's."""
        beyond = sign * (self.bootstrap() - margin) > 0
        p = max(1 - beyond.mean(), 1 / DRAWS)
        means = sign * (self.seed_means - margin)
        if len(means) > 1:
            error = means.std(ddof=1) / math.sqrt(len(means))
            p = max(p, t_upper_tail(means.mean() / error, len(means) - 1) if error else float(means.mean() <= 0))
        return float(p)


def t_upper_tail(t: float, df: int, steps: int = 20_000) -> float:
    """P(T > t) of Student's t, by the substitution x = sqrt(df) tan(a), whose integrand is cos(a)^(df - 1)."""
    a = np.linspace(math.atan(t / math.sqrt(df)), math.pi / 2, steps)
    whole = math.sqrt(math.pi) * math.exp(math.lgamma(df / 2) - math.lgamma((df + 1) / 2))
    return float(np.trapezoid(np.cos(a) ** (df - 1), a) / whole)


def holm(ps: list[float], alpha: float = LEVEL / 2) -> list[bool]:
    """Holm's step-down: which of the hypotheses are rejected at family-wise alpha."""
    rejected, order = [False] * len(ps), sorted(range(len(ps)), key=ps.__getitem__)
    for rank, i in enumerate(order):
        if ps[i] > alpha / (len(ps) - rank):
            break
        rejected[i] = True
    return rejected


@dataclass
class Comparison:
    """One line of a claim. Predicted: `difference` beyond `margin` on the side of `sign` (+1 above, -1 below)."""

    name: str
    difference: Difference | None
    sign: int = 1
    margin: float = 0.0  # as the scores: 0.03 is 3 points
    primary: bool = True
    paper: str = ""
    within: float = 0.0  # > 0: predicted is a 90 % interval within +- this much instead
    verdict: str = ""

    @property
    def seeds(self) -> int:
        return len(self.difference.seed_means) if self.difference else 0

    @property
    def interval(self) -> tuple[float, float]:
        return self.difference.interval(0.10 if self.within else LEVEL)


def judge(comparisons: list[Comparison]) -> str:
    """Give each comparison its verdict (the primary ones corrected together), return the claim's."""
    family = [c for c in comparisons if c.primary and c.seeds > 1 and not c.within]
    kept = {+1: holm([c.difference.p_beyond(c.margin, c.sign) for c in family])} if family else {}
    if family:
        kept[-1] = holm([c.difference.p_beyond(c.margin, -c.sign) for c in family])
    for c in comparisons:
        if not c.difference:
            c.verdict = "not run"
            continue
        low, high = c.interval
        if c.within:
            inside, outside = -c.within < low and high < c.within, low > c.within or high < -c.within
        else:
            ahead, behind = (low, -high) if c.sign > 0 else (-high, low)
            inside, outside = ahead > c.sign * c.margin, behind > -c.sign * c.margin
            if c in family:
                inside, outside = inside and kept[1][family.index(c)], outside and kept[-1][family.index(c)]
        c.verdict = "reproduced" if inside else "contradicted" if outside else "undecided"
        if c.seeds < 2:
            c.verdict = "estimate"
        elif not c.primary:
            c.verdict = "exploratory"
    return overall([c.verdict for c in comparisons if c.primary])


def overall(verdicts: list[str]) -> str:
    """All alike: that. Reproduced here and contradicted there: mixed. Else undecided."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    if {"reproduced", "contradicted"} <= set(verdicts):
        return "mixed"
    return "undecided" if {"reproduced", "contradicted", "undecided"} & set(verdicts) else "estimate"


def spearman(x, y) -> float:
    rank = lambda v: np.array([np.mean(np.flatnonzero(np.sort(v) == a)) for a in v])  # noqa: E731  ties: mean rank
    x, y = rank(np.asarray(x)), rank(np.asarray(y))
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else math.nan


def permutation_p(x, y, draws: int = 4000, seed: int = 0) -> float:
    """One-sided p of Spearman's rho > 0: the share of shuffles of y that reach it."""
    rng, found = np.random.default_rng(seed), spearman(x, y)
    return float((1 + sum(spearman(x, rng.permutation(y)) >= found - 1e-12 for _ in range(draws))) / (1 + draws))


def partial(x, y, z) -> float:
    """Rank correlation of x and y given z."""
    xy, xz, yz = spearman(x, y), spearman(x, z), spearman(y, z)
    rest = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / math.sqrt(rest) if rest > 1e-12 else math.nan


# ------------------------------------------------------------------------------------------------------- the study read
class Lab:
    """Evaluations of a study by what was evaluated."""

    def __init__(self, folder: Path):
        self.folder, self.manifest = folder, report.read_json(folder / "runs.json")
        if not isinstance(self.manifest, dict) or "runs" not in self.manifest:
            raise UserError(f"{folder} holds no readable runs.json; give the folder that study.py --out wrote")
        self.runs = [r for r in self.manifest["runs"] if r["kind"] != "eval"]
        self.evals = [r for r in self.manifest["runs"] if r["kind"] == "eval"]
        for r in self.evals:
            r["result"] = report.read_json(folder / r["out"])

    def find(self, **want) -> list[dict]:
        """Finished evaluations with these fields, of pre-training "base" and group "main" on test unless said."""
        want = dict(base="base", group="main", split="test", variant="", temperature=0.6) | want
        return [r for r in self.evals if r["result"] and all(r.get(k) == v for k, v in want.items())]

    def tokens(self, method: str = "rl") -> list[int]:
        """Checkpoints at which a method was run, planned or finished."""
        return sorted({r["tokens"] for r in self.evals if r["method"] == method and r["group"] == "main"})

    def seeds(self, tokens: int) -> int:
        """Seeds planned for direct RL at a checkpoint."""
        return len({r["seed"] for r in self.evals if (r["method"], r["group"], r["tokens"]) == ("rl", "main", tokens)})

    @property
    def primary(self) -> list[int]:
        """The checkpoints with four planned seeds or more: early and late. Of a one-seed study: all."""
        return [t for t in self.tokens() if self.seeds(t) >= 4] or self.tokens()

    def by_seed(self, method: str, tokens: int, **want) -> dict[int, dict]:
        return {r["seed"]: r["result"] for r in self.find(method=method, tokens=tokens, **want)}

    def shots(self, tokens: int, base: str = "base") -> int | None:
        """The number of shots that validation questions prefer for the base at this checkpoint (pass@1); a study that
        did not ask them takes the paper's few-shot base."""
        found = self.find(method="base", tokens=tokens, base=base, split="val", group="shots")
        found = found or [r for r in self.find(method="base", tokens=tokens, base=base) if r["n_shot"]]
        best = max(found, key=lambda r: value(r["result"], 1), default=None)
        return best["n_shot"] if best else None

    def base(self, tokens: int, n_shot: int | None | str = "best") -> dict[int, dict]:
        """Its one evaluation, under the key None: a base has no post-training seed and is paired with every one."""
        n_shot = self.shots(tokens) if n_shot == "best" else n_shot
        return {} if n_shot is None else self.alone(self.by_seed("base", tokens, n_shot=n_shot))

    @staticmethod
    def alone(found: dict[int, dict]) -> dict[None, dict]:
        return dict.fromkeys([None], next(iter(found.values()))) if found else {}


def value(result: dict, k: int, scoring: str = "flexible", task: str = "gsm") -> float:
    return result["questions"][task][scoring][f"pass@{k}"]["value"]


def per_question(result: dict, k: int, scoring: str = "flexible", task: str = "gsm") -> np.ndarray:
    return np.array([cached_pass_at_k(q["n"], q[scoring], k) for q in result["questions"][task]["questions"]])


cached_pass_at_k = cache(pass_at_k)  # few counts, asked for very often


def subtract(a: dict[int, dict], b: dict[int, dict], metric: int | str, task: str = "gsm") -> Difference | None:
    """a - b over the seeds that both have; a b of one shared result (key None) is taken from each of a's."""
    if None in b:
        b = dict.fromkeys(a, b[None])
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    if metric != "general":
        rows = np.array([per_question(a[s], metric, task=task) - per_question(b[s], metric, task=task) for s in seeds])
        return Difference([(rows, np.ones(rows.shape[1]))])
    parts = []
    for name in a[seeds[0]]["benchmarks"]:
        facts, at = np.unique([r.get("fact", str(i)) for i, r in items(a[seeds[0]], name)], return_inverse=True)
        sums = np.zeros((len(seeds), len(facts)))
        for row, s in zip(sums, seeds, strict=True):
            hits = [hit(x) - hit(y) for (_, x), (_, y) in zip(items(a[s], name), items(b[s], name), strict=True)]
            np.add.at(row, at, hits)
        parts.append((sums, np.bincount(at)))
    return Difference(parts)


def items(result: dict, name: str) -> list[tuple[int, dict]]:
    return list(enumerate(result["benchmarks"][name]["per_item"]))


def hit(item: dict) -> float:
    return float(item["greedy"] if "greedy" in item else item["pred_norm"] == item["gold"])


def shuffled(result: dict, k: int, shifts: int = 20) -> float:
    """The shuffle control: pass@k when question i's answers are those the model gave to question i + s, mean over s."""
    from data.math_qa import answers_equal

    questions, scores = result["questions"]["gsm"]["questions"], []
    n = len(questions)
    known: dict[tuple, bool] = {}
    for s in [1 + i * (n - 1) // shifts for i in range(min(shifts, n - 1))]:
        for i, q in enumerate(questions):
            other, right = questions[(i + s) % n], 0
            for answer in other["answers"]:
                pair = (answer, q["gold"])
                if pair not in known:
                    known[pair] = answers_equal(answer, q["gold"])
                right += known[pair]
            scores.append(cached_pass_at_k(other["n"], right, k))
    return float(np.mean(scores))


# ----------------------------------------------------------------------------------------------------------- the claims
@dataclass
class Claim:
    key: str
    title: str
    statistic: str
    paper: str
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figure: Callable | None = None
    verdict: str = ""


def megatokens(tokens: int) -> str:
    return f"{tokens / 1e6:.1f}M"


def c1(lab: Lab) -> Claim:
    claim = Claim("C1", "RL works early", "pass@1, RL − base (best of 0, 1, 4, 8 shots)", "+13.8 at 4B, +26.1 at 10B")
    for t in lab.tokens():
        best = subtract(lab.by_seed("rl", t, n_shot=0), lab.base(t), 1)
        claim.comparisons.append(Comparison(f"{megatokens(t)}: RL − base, best shots ({lab.shots(t)})", best))
        for n, name in ((8, "8-shot"), (0, "0-shot")):
            other = subtract(lab.by_seed("rl", t, n_shot=0), lab.base(t, n), 1)
            claim.comparisons.append(Comparison(f"{megatokens(t)}: RL − base, {name}", other, primary=False))
    judge(claim.comparisons)
    early = min(lab.primary, default=None)
    claim.verdict = next(
        (c.verdict for c in claim.comparisons if early and c.name.startswith(megatokens(early))), "not run"
    )
    first = next((c.name.split(":")[0] for c in claim.comparisons if c.primary and c.verdict == "reproduced"), None)
    claim.notes.append(f"Earliest checkpoint at which it is reproduced: {first or 'none'}.")
    for t in lab.tokens():
        if zero := lab.base(t, 0):
            questions = next(iter(zero.values()))["questions"]["gsm"]["questions"]
            formatted, right = sum(q["formatted"] for q in questions), sum(q["strict"] for q in questions)
            share = f"{100 * right / formatted:.1f} % of {formatted:,}" if formatted else "none was"
            claim.notes.append(f"{megatokens(t)}: 0-shot base, right among completions in the right format: {share}.")
    claim.notes += no_signal(lab)
    return claim


def no_signal(lab: Lab) -> list[str]:
    """Runs with fewer than 5 hits in their first 3 rollout batches."""
    weak = []
    for r in lab.runs:
        if r["method"] == "rl" and r.get("group") == "main":
            rows = report.read_jsonl(lab.folder / r["metrics"])[:3]
            if rows and sum(row["reward/hits"] for row in rows) < 5:
                weak.append(r["name"])
    return [f"No signal (fewer than 5 hits in the first 3 batches): {', '.join(weak) or 'no run'}."]


def c2(lab: Lab) -> Claim:
    claim = Claim("C2", "RL reaches SFT→RL", "pass@1, RL − SFT→RL, above −3", "−12.0 at 4B, −1.1 at 20B, +1.1 at 44B")
    for t in lab.primary:
        rl = lab.by_seed("rl", t, n_shot=0)
        claim.comparisons.append(
            Comparison(f"{megatokens(t)}: RL − SFT→RL", subtract(rl, lab.by_seed("sft_rl", t), 1), 1, -0.03)
        )
        other = subtract(rl, lab.by_seed("sft_rl", t, variant="x40", group="k2"), 1)
        claim.comparisons.append(
            Comparison(f"{megatokens(t)}: RL − SFT→RL with 40 times RL's rate", other, 1, -0.03, False)
        )
    claim.verdict = judge(claim.comparisons)
    return claim


def c3(lab: Lab) -> Claim:
    title, statistic = "RL beats SFT when demonstrations are scarce", "pass@1, RL − SFT (60 epochs); pass@32, Gold − RL"
    claim, t = Claim("C3", title, statistic, "RL − SFT +17.0, Gold − RL +7.2 at 44B"), max(lab.primary, default=0)
    for n in (250, 1000):
        get = lambda method, kind="", n=n: lab.by_seed(method, t, variant=f"pool{n}{kind}", group="c3")  # noqa: E731
        claim.comparisons += [
            Comparison(f"{n} questions, pass@1: RL − SFT 60 epochs", subtract(get("rl"), get("sft", "many"), 1)),
            Comparison(f"{n} questions, pass@32: Gold − RL", subtract(get("gold", "many"), get("rl"), 32)),
        ]  # fmt: skip
        few = subtract(get("rl"), get("sft", "few"), 1)
        claim.comparisons.append(Comparison(f"{n} questions, pass@1: RL − SFT 4 epochs", few, primary=False))
    main = [lab.by_seed(m, t, n_shot=0) for m in ("rl", "sft", "gold")]
    claim.comparisons += [
        Comparison("4,000 questions, pass@1: RL − SFT (2 epochs)", subtract(main[0], main[1], 1), primary=False),
        Comparison("4,000 questions, pass@32: Gold − RL", subtract(main[2], main[0], 32), primary=False),
    ]
    claim.verdict = judge(claim.comparisons)
    return claim


def c4(lab: Lab) -> Claim:
    title, statistic = "Data mix beats scale on hard problems", "hard pass@1 after RL, math-heavy − 4x model"
    claim, t = (
        Claim("C4", title, statistic, "gain at 20B: +14.3 mix, +8.6 scale, +6.1 base"),
        max(lab.primary, default=0),
    )

    def get(base: str, method: str = "rl", variant: str = "hard", **want):
        return lab.by_seed(method, t, base=base, group="c4", variant=variant, **want)

    for a, b, primary in (("heavy", "large", True), ("heavy", "base", True), ("large", "base", False)):
        name = f"{a} − {b}"
        claim.comparisons.append(
            Comparison(f"{name}: hard pass@1 after RL", subtract(get(a), get(b), 1, "hard"), primary=primary)
        )
    for model in ("base", "heavy", "large", "base2", "heavy2"):
        for shots in ("hard", "gsm"):
            gain = subtract(get(model), lab.alone(get(model, "base", f"{shots}_shots")), 1, "hard")
            claim.comparisons.append(Comparison(f"{model}: RL − base, 8 {shots} shots", gain, primary=False))
    claim.verdict = judge(claim.comparisons)
    return claim


def c5(lab: Lab) -> Claim:
    claim = Claim(
        "C5", "Direct RL expands, RL after SFT sharpens", "pass@1, @8, @32: RL − base; SFT→RL − SFT",
        "at 14B: direct +34.8 and +23.3 (pass@1, @32); after SFT +15.7 and −5.0",
    )  # fmt: skip
    for t in lab.primary:
        rl, sft, both = (lab.by_seed(m, t, n_shot=0) for m in ("rl", "sft", "sft_rl"))
        for k in (1, 8, 32):
            claim.comparisons.append(
                Comparison(f"{megatokens(t)}: direct RL, pass@{k}", subtract(rl, lab.base(t), k), primary=k != 8)
            )
            sign = 1 if k == 1 else -1
            claim.comparisons.append(
                Comparison(f"{megatokens(t)}: after SFT, pass@{k}", subtract(both, sft, k), sign, primary=k != 8)
            )
    claim.verdict = judge(claim.comparisons)
    return claim


def c6(lab: Lab) -> Claim:
    claim = Claim(
        "C6",
        "RL keeps general skills, SFT does not",
        "six-benchmark average, method − base",
        "RL +0.3, SFT −6.1 at 44B",
    )
    for t in lab.primary:
        base = {s: r for s, r in lab.base(t, 8).items() if r["benchmarks"]}
        for method, name in (
            ("rl", "RL"),
            ("sft", "SFT"),
            ("gold", "SFT-Gold"),
            ("sft_rl", "SFT→RL"),
            ("parallel", "parallel"),
        ):
            moved = subtract(lab.by_seed(method, t, n_shot=0), base, "general")
            within = 0.015 if method == "rl" else 0.0
            claim.comparisons.append(
                Comparison(f"{megatokens(t)}: {name} − base", moved, -1, within=within, primary=method in ("rl", "sft"))
            )
    claim.verdict = judge(claim.comparisons)
    return claim


def c7(lab: Lab) -> Claim:
    claim = Claim(
        "C7",
        "Parallel averaging has the best pass@32",
        "pass@32, parallel − RL, − SFT, − SFT→RL",
        "+4.0, +10.7, +14.2 at 44B; −3.3 to Gold",
    )
    for t in lab.primary:
        parallel = lab.by_seed("parallel", t, n_shot=0)
        for metric, (method, name) in product(
            (32, 1, 8, "general"), (("rl", "RL"), ("sft", "SFT"), ("sft_rl", "SFT→RL"), ("gold", "SFT-Gold"))
        ):
            what = metric if metric == "general" else f"pass@{metric}"
            moved = subtract(parallel, lab.by_seed(method, t, n_shot=0), metric)
            claim.comparisons.append(
                Comparison(
                    f"{megatokens(t)}: {what}, parallel − {name}", moved, primary=metric == 32 and method != "gold"
                )
            )
    claim.verdict = judge(claim.comparisons)
    return claim


def c8(lab: Lab) -> Claim:
    claim = Claim(
        "C8",
        "Seeds",
        "spread of RL over seeds (no verdict)",
        "one rerun of four collapsed at 4B",
        verdict="descriptive",
    )
    for t in lab.primary:
        found = lab.by_seed("rl", t, n_shot=0)
        if len(found) < 2:
            continue
        scores = np.array([value(r, 1) for r in found.values()]) * 100
        base = [100 * value(r, 1) for r in lab.base(t).values()]
        failed = sum(s < base[0] for s in scores) if base else 0
        best4 = (
            np.mean([max(np.random.default_rng(i).choice(scores, 4, replace=False)) for i in range(1000)])
            if len(scores) >= 4
            else math.nan
        )
        rewards = {
            r["seed"]: report.read_jsonl(lab.folder / r["metrics"])
            for r in lab.runs
            if r["method"] == "rl" and r.get("tokens") == t and r["group"] == "main"
        }
        last = [
            100 * np.mean([row["reward/mean"] for row in rows[-5:]])
            for s, rows in sorted(rewards.items())
            if rows and s in found
        ]
        before, reward = base[0] if base else math.nan, np.mean(last) if last else math.nan
        claim.notes.append(
            f"{megatokens(t)}: {len(scores)} seeds, pass@1 mean {scores.mean():.1f}, sd {scores.std(ddof=1):.1f}, "
            f"range {scores.min():.1f} to {scores.max():.1f}; mean of the best of 4 {best4:.1f}; {failed} below the "
            f"base ({before:.1f}); training reward over the last 5 batches {reward:.1f} (strict, T 1)."
        )
    return claim


def c10(lab: Lab) -> Claim:
    claim = Claim(
        "C10",
        "Base pass@k on validation foretells RL",
        "Spearman, base val pass@32 and RL test pass@1",
        "rho 0.83 (pass@32 and pass@32)",
        verdict="not run",
    )
    x, y, z = [], [], []
    for t in lab.tokens():
        rl = lab.by_seed("rl", t, n_shot=0)
        base = [r["result"] for r in lab.find(method="base", tokens=t, split="val", group="shots", n_shot=lab.shots(t))]
        if rl and base:
            x.append(value(base[0], 32)), y.append(np.mean([value(r, 1) for r in rl.values()])), z.append(math.log(t))
    if len(x) >= 3:
        p = permutation_p(x, y)
        claim.verdict = "estimate" if len(x) < 5 else "reproduced" if p <= 0.025 else "undecided"
        claim.notes.append(
            f"{len(x)} checkpoints: rho {spearman(x, y):+.2f} (permutation p {p:.3f}); log-tokens as "
            f"predictor {spearman(z, y):+.2f}; partial given log-tokens {partial(x, y, z):+.2f}. With so few "
            "checkpoints of one pre-training, and all of it rising with training, this says little."
        )
    return claim


def c11(lab: Lab) -> Claim:
    claim = Claim(
        "C11", "Few shots help the base", "base pass@1, 8-shot − 0-shot", "44B: 8-shot 14.0, 1-shot 17.5, 0-shot 4.2"
    )
    for t in sorted({r["tokens"] for r in lab.find(method="base")}):
        for n in (8, 4, 1):
            moved = subtract(lab.base(t, n), lab.base(t, 0), 1)
            claim.comparisons.append(
                Comparison(f"{megatokens(t)}: {n}-shot − 0-shot", moved, primary=n == 8 and t in lab.primary)
            )
    claim.verdict = judge(claim.comparisons)
    return claim


def not_built(key: str, title: str, statistic: str, paper: str) -> Callable:
    return lambda lab: Claim(key, title, statistic, paper, verdict="not run")


c9 = not_built("C9", "Rollout budget", "pass@1, n = 64 − n = 5, hard split", "see the paper's budget figure")
CLAIMS = (c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11)
