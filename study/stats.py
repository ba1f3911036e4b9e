"""The statistics of docs/analysis_plan.md: paired differences, their intervals, claims and their verdicts, rank
correlations.

They know nothing of the study. A difference is an array (seeds, units): the two sides share seed and question (or, for
general skills, fact).
"""

import math
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations

import numpy as np

DRAWS, LEVEL = 4000, 0.05
# Two-sided 95 % and 90 % quantiles of Student's t by degrees of freedom (numpy has none), the last one for more.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
T_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)


@cache
def drawn_anew(n: int, draws: int, seed: int, part: int) -> np.ndarray:
    """(draws, n): how often each of n units is drawn, n draws with replacement."""
    return np.random.default_rng([seed, part]).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float32)


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
        means = []
        for part, (sums, counts) in enumerate(self.parts):
            times = drawn_anew(len(counts), draws, seed, part)
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


def spread(scores: list[float]) -> str:
    """Percent: the mean and, of several seeds, their standard deviation."""
    got = [100 * score for score in scores]
    return "–" if not got else f"{np.mean(got):.1f}" + (f" ± {np.std(got, ddof=1):.1f}" if len(got) > 1 else "")


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
    within: float = 0.0  # > 0: predicted is a 90 % interval within +- this much instead
    verdict: str = ""
    leaning: str = ""  # where the interval lies, before Holm: as predicted | opposite | open

    @property
    def seeds(self) -> int:
        return len(self.difference.seed_means) if self.difference else 0

    @property
    def interval(self) -> tuple[float, float]:
        return self.difference.interval(0.10 if self.within else LEVEL)

    @property
    def shown(self) -> str:
        """In points: +1.7 [0.6, 3.0]. Scores lie within 100 points; two seeds' t-interval may not."""
        if not self.difference:
            return "not run"
        low, high = np.clip(self.interval, -1, 1)
        return f"{100 * self.difference.estimate:+.1f} [{100 * low:.1f}, {100 * high:.1f}]".replace("-", "−")

    @property
    def told(self) -> str:
        """The verdict; of what has none, where the interval lies."""
        return f"{self.verdict}: {self.leaning}" if self.verdict in ("estimate", "exploratory") else self.verdict

    @property
    def predicted(self) -> str:
        """In points: > 0, < 0, > −3, within ±1.5."""
        if self.within:
            return f"within ±{100 * self.within:g}"
        return f"{'>' if self.sign > 0 else '<'} {100 * self.margin:g}".replace("-", "−")


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
        c.leaning = "as predicted" if inside else "opposite" if outside else "open"
        if c in family:
            i = family.index(c)
            inside, outside = inside and kept[1][i], outside and kept[-1][i]
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


@dataclass
class Claim:
    """A claim of the paper and what was found of it."""

    key: str
    title: str
    statistic: str
    paper: str  # its own numbers
    comparisons: list[Comparison] = field(default_factory=list)
    headline: dict[str, str] = field(default_factory=dict)  # what came out, by checkpoint, where no comparison has it
    results: list[str] = field(default_factory=list)  # the same in sentences
    limits: list[str] = field(default_factory=list)  # what limits it
    details: list[str] = field(default_factory=list)
    verdict: str = ""
    caveat: str = ""  # stands behind the verdict
    points: list = field(default_factory=list)  # of its figure, where it has no comparisons

    def add(
        self,
        name: str,
        difference: Difference | None,
        sign: int = 1,
        margin: float = 0.0,
        primary: bool = True,
        within: float = 0.0,
    ) -> Comparison:
        self.comparisons.append(Comparison(name, difference, sign, margin, primary, within))
        return self.comparisons[-1]

    @property
    def primary(self) -> list[Comparison]:
        return [c for c in self.comparisons if c.primary]

    def judged(self) -> "Claim":
        self.verdict = judge(self.comparisons)
        told = []
        for c in self.primary:
            if c.verdict == "undecided" and c.leaning != "open":
                lies = "beyond" if c.leaning == "as predicted" else "on the other side of"
                told.append(f"{c.name}: its interval lies {lies} the margin, but Holm's correction does not keep it.")
        run = sum(bool(c.difference) for c in self.primary)
        if 0 < run < len(self.primary):
            told.insert(0, f"Partly run: {run} of {len(self.primary)} primary comparisons.")
        self.limits = told + self.limits
        return self


def ranks(v) -> np.ndarray:
    """Ranks, less their mean; ties share theirs."""
    v = np.asarray(v)
    r = np.array([np.mean(np.flatnonzero(np.sort(v) == a)) for a in v])
    return r - r.mean()


def spearman(x, y) -> float:
    x, y = ranks(x), ranks(y)
    scale = math.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale else math.nan


def permutation_p(x, y, draws: int = 4000, seed: int = 0) -> float:
    """One-sided p of Spearman's rho > 0: the share of orders of y that reach it, of all up to 8 points, else of
    shuffles (and the one found)."""
    x, y = ranks(x), ranks(y)
    reached = x @ y - 1e-9
    if len(y) <= 8:
        return float((np.array(list(permutations(y))) @ x >= reached).mean())
    shuffles = np.random.default_rng(seed).permuted(np.tile(y, (draws, 1)), axis=1)
    return float((1 + (shuffles @ x >= reached).sum()) / (1 + draws))


def partial(x, y, z) -> float:
    """Rank correlation of x and y given z."""
    xy, xz, yz = spearman(x, y), spearman(x, z), spearman(y, z)
    rest = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / math.sqrt(rest) if rest > 1e-12 else math.nan
