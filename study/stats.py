"""The statistics of docs/analysis_plan.md: paired differences, their intervals, claims and their verdicts, ranks.

They know nothing of the study. A difference is an array (seeds, units): the two sides share seed and question (or, for
general skills, fact). A seed is the whole way, pre-training and post-training.
"""

import math
from dataclasses import dataclass, field
from itertools import combinations, permutations

import numpy as np

LEVEL, LEAST = 0.05, 0.03  # of intervals; the smallest effect of interest
Z = {0.05: 1.960, 0.10: 1.645}
# Two-sided 95 % and 90 % quantiles of Student's t by degrees of freedom (numpy has none), the last one for more.
T = {
    0.05: (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    0.10: (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812),
}


@dataclass(eq=False)
class Difference:
    """a - b, paired. parts: (sums (S, F), counts (F,)) of each benchmark, or one part with counts 1 for questions: F
    facts (or questions) are what another test would draw anew; the estimate is the mean over seeds, items, parts."""

    parts: list[tuple[np.ndarray, np.ndarray]]

    @property
    def seed_means(self) -> np.ndarray:
        return np.mean([sums.sum(1) / counts.sum() for sums, counts in self.parts], axis=0)

    @property
    def estimate(self) -> float:
        return float(self.seed_means.mean())

    @property
    def seed_error(self) -> float:
        """Standard error over seeds; 0 of one seed, which tells nothing of another."""
        means = self.seed_means
        return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else 0.0

    @property
    def question_error(self) -> float:
        """Standard error over questions (facts, whole), seeds kept together."""
        variance = 0.0
        for sums, counts in self.parts:
            mine, size = sums.mean(0), len(counts)
            rest = mine - counts * mine.sum() / counts.sum()
            variance += (rest**2).sum() * size / max(1, size - 1) / counts.sum() ** 2
        return math.sqrt(variance) / len(self.parts)

    def half_width(self, level: float = LEVEL) -> float:
        """Over seeds and questions together: the square root of both half-widths' squares. What differs from seed to
        seed and from question to question at once is counted in both, so it is rather too wide (study/coverage.py)."""
        degrees = len(self.seed_means) - 1
        t = T[level][min(degrees, len(T[level])) - 1] if degrees else 0.0
        return math.hypot(t * self.seed_error, Z[level] * self.question_error)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        half = self.half_width(level)
        return self.estimate - half, self.estimate + half


def points(share: float) -> str:
    """0.017 -> +1.7, in points of percent; 0.0 has no sign."""
    told = f"{100 * share:+.1f}".replace("-", "−")
    return told[1:] if told[1:] == "0.0" else told


def with_interval(estimate: float, low: float, high: float) -> str:
    """In points: +1.7 [0.6, 3.0]."""
    return f"{points(estimate)} [{points(low).lstrip('+')}, {points(high).lstrip('+')}]"


def spread(scores: list[float]) -> str:
    """Percent: the mean and, of several seeds, their standard deviation."""
    got = [100 * score for score in scores]
    return "–" if not got else f"{np.mean(got):.1f}" + (f" ± {np.std(got, ddof=1):.1f}" if len(got) > 1 else "")


@dataclass
class Comparison:
    """One line of a claim. Predicted: `difference` beyond `margin` on the side of `sign` (+1 above, -1 below), by
    `least` or more."""

    name: str
    difference: Difference | None
    sign: int = 1
    margin: float = 0.0  # as the scores: 0.03 is 3 points
    primary: bool = True  # registered before the runs: it alone gets a verdict
    within: float = 0.0  # > 0: predicted is a 90 % interval within +- this much instead
    least: float = LEAST  # 0: any difference beyond the margin counts
    verdict: str = ""
    leaning: str = ""  # where the interval lies: as predicted | opposite | open

    @property
    def seeds(self) -> int:
        return len(self.difference.seed_means) if self.difference else 0

    @property
    def interval(self) -> tuple[float, float]:
        return self.difference.interval(0.10 if self.within else LEVEL)

    @property
    def shown(self) -> str:
        """In points: +1.7 [0.6, 3.0]. Scores lie within 100 points."""
        if not self.difference:
            return "not run"
        return with_interval(self.difference.estimate, *np.clip(self.interval, -1, 1))

    @property
    def told(self) -> str:
        """The verdict; of one seed, where its interval lies; of what was not registered, nothing."""
        return f"{self.verdict}: {self.leaning}" if self.verdict == "estimate" else self.verdict

    @property
    def predicted(self) -> str:
        """In points: > 0, < 0, > −3, within ±1.5."""
        if self.within:
            return f"within ±{100 * self.within:g}"
        return f"{'>' if self.sign > 0 else '<'} {100 * self.margin:g}".replace("-", "−")

    def judge(self) -> None:
        if not self.difference:
            self.verdict = "not run"
            return
        low, high = self.interval
        if self.within:
            inside, outside = -self.within < low and high < self.within, low > self.within or high < -self.within
            matters = True
        else:
            ahead, behind = (low, -high) if self.sign > 0 else (-high, low)
            inside, outside = ahead > self.sign * self.margin, behind > -self.sign * self.margin
            matters = abs(self.difference.estimate - self.margin) >= self.least
        self.leaning = "as predicted" if inside else "opposite" if outside else "open"
        small = not self.within and -self.least < low - self.margin and high - self.margin < self.least
        self.verdict = "reproduced" if inside and matters else "contradicted" if outside and matters else "undecided"
        self.verdict = "absent" if small else self.verdict
        if self.seeds < 2 or not self.primary:
            self.verdict = "estimate" if self.primary else ""


def overall(verdicts: list[str]) -> str:
    """All alike: that. Reproduced here and not there: mixed. Else undecided. A claim holds if all its rows do, so no
    row needs a correction for the others."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    if "reproduced" in verdicts and {"contradicted", "absent"} & set(verdicts):
        return "mixed"
    decided = {"reproduced", "contradicted", "absent", "undecided"} & set(verdicts)
    return ("contradicted" if decided == {"contradicted", "absent"} else "undecided") if decided else "estimate"


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
    points: list = field(default_factory=list)  # of its figure, where it has no comparisons

    def add(self, name: str, difference: Difference | None, sign: int = 1, **what) -> Comparison:
        self.comparisons.append(Comparison(name, difference, sign, **what))
        return self.comparisons[-1]

    @property
    def primary(self) -> list[Comparison]:
        return [c for c in self.comparisons if c.primary]

    def judged(self) -> "Claim":
        for c in self.comparisons:
            c.judge()
        self.verdict = overall([c.verdict for c in self.primary])
        run = sum(bool(c.difference) for c in self.primary)
        if 0 < run < len(self.primary):
            self.limits.insert(0, f"Partly run: {run} of {len(self.primary)} primary comparisons.")
        for c in self.primary:
            if c.verdict == "undecided" and c.leaning != "open":
                side = "as predicted" if c.leaning == "as predicted" else "opposite"
                told = (
                    f"{c.name}: its interval lies on one side ({side}), but the estimate is under the smallest effect"
                )
                self.limits.insert(0, f"{told} of interest, {100 * c.least:g} points.")
        return self


# ---------------------------------------------------------------- ranks
def ranks(v) -> np.ndarray:
    """Ranks, less their mean; ties share theirs."""
    v = np.asarray(v)
    r = np.array([np.mean(np.flatnonzero(np.sort(v) == a)) for a in v])
    return r - r.mean()


def spearman(x, y) -> float:
    x, y = ranks(x), ranks(y)
    scale = math.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale else math.nan


def partial(x, y, z) -> float:
    """Rank correlation of x and y given z."""
    xy, xz, yz = spearman(x, y), spearman(x, z), spearman(y, z)
    rest = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / math.sqrt(rest) if rest > 1e-12 else math.nan


def kendall(x, y) -> float:
    """Kendall's tau-b: pairs in the same order less pairs in the other, over all pairs that are not tied."""
    signs = [(np.sign(a - b), np.sign(c - d)) for (a, c), (b, d) in combinations(zip(x, y, strict=True), 2)]
    untied = math.sqrt(sum(a != 0 for a, _ in signs) * sum(c != 0 for _, c in signs))
    return float(sum(a * c for a, c in signs) / untied) if untied else math.nan


def kendall_p(x, y) -> float:
    """Share of all orders of y whose tau reaches that of the one found."""
    reached = kendall(x, y) - 1e-9
    return float(np.mean([kendall(x, order) >= reached for order in permutations(y)]))
