"""The claims of the paper, judged by the rules of docs/analysis_plan.md, and what came out in plain words.

claims_methods.py and claims_conditions.py hold them, one function a claim; stats.py has the statistics. The sentences
and table cells here are made from the verdicts and differences alone. What was not run is said so.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from study.claims_conditions import c4, c8, c9, c10, c11
from study.claims_methods import c1, c2, c3, c5, c6, c7
from study.read import Lab
from study.stats import Claim, Comparison, points
from study.tasks import amount as at

CLAIMS: tuple[Callable[[Lab], Claim], ...] = (c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11)
WIDEST = 90  # characters of a cell of the claims tables
MEANINGLESS = ("smoke",)  # presets that show that everything runs, and judge nothing


@dataclass
class Plain:
    """How a claim is told in few words. parts: beginning of a comparison's name (after its checkpoint) -> what the
    reader is told; the first part stands in the table."""

    words: str
    measured: str
    paper: str
    parts: dict[str, str] = field(default_factory=dict)


PLAIN = {
    "C1": Plain(
        "RL on an early checkpoint already beats that checkpoint, prompted at its best",
        "pass@1, RL − base",
        "+13.8 at 4B of 50B tokens (a rerun: +2.6), +26.1 at 10B, over 8 shots",
        {"RL − base, best shots": "RL − base"},
    ),
    "C2": Plain(
        "RL alone gets as far as SFT followed by RL",
        "pass@1, RL − SFT→RL",
        "−12.0 at 4B, +1.1 at 44B",
        {"RL − SFT→RL": "RL − SFT→RL"},
    ),
    "C3": Plain(
        "Where worked solutions are scarce, RL beats SFT on one each; SFT on all finds more",
        "pass@1, RL − SFT",
        "RL − SFT +17.0; pass@32, SFT-Gold − RL +7.2, at 44B",
        {"pass@1, RL − SFT": "RL − SFT", "pass@32, Gold − RL": "pass@32, SFT-Gold − RL"},
    ),
    "C4": Plain(
        "For hard problems, more mathematics in pre-training beats a larger model",
        "not measured",
        "gain at 20B: +14.3 by the mix, +8.6 by scale",
    ),
    "C5": Plain(
        "RL alone finds new solutions (pass@32 rises); after SFT it only sharpens",
        "pass@32, RL − base",
        "+23.3 alone, −5.0 after SFT, at 14B",
        {
            "direct RL, pass@32": "RL alone, pass@32",
            "after SFT, pass@32": "after SFT, pass@32",
        },
    ),
    "C6": Plain(
        "RL keeps general skills, SFT loses them",
        "six benchmarks, RL − base",
        "RL +0.3, SFT −6.1 at 44B",
        {"RL − base": "RL", "SFT − base": "SFT"},
    ),
    "C7": Plain(
        "Averaging an RL and an SFT model while they train has the best pass@32",
        "pass@32, averaging − SFT→RL",
        "+4.0 over RL, +10.7 over SFT, +14.2 over SFT→RL at 44B",
        {
            "pass@32, parallel − SFT→RL": "over SFT→RL",
            "pass@32, parallel − SFT": "over SFT",
            "pass@32, parallel − RL": "over RL",
        },
    ),
    "C8": Plain(
        "From early checkpoints, RL's outcome varies with the seed",
        "pass@1, standard deviation",
        "one rerun at 4B ends at 4.4 %, another at 15.6 %",
    ),
    "C9": Plain(
        "On rarely solved problems, more completions a question help",
        "pass@1, 64 − 5 completions, equal questions",
        "+10.6 and +11.1",
    ),
    "C10": Plain(
        "The base's pass@32 foretells how far RL gets",
        "rank correlation over checkpoints",
        "a figure; its 9 points give 0.83",
    ),
    "C11": Plain(
        "Worked examples in the prompt help the base",
        "pass@1, 8-shot − 0-shot",
        "−0.1 at 10B, +9.8 at 44B",
        {"8-shot − 0-shot": "8-shot − 0-shot"},
    ),
}
OUTCOMES = {  # what a sentence adds to a verdict
    "contradicted": "the opposite holds here",
    "mixed": "part of it holds here, part does not",
    "absent": "there is no such difference here",
    "estimate": "one pre-training gives no verdict",
}


def judged(lab: Lab, tell: Callable[[str], None] | None = None) -> list[Claim]:
    """`tell`: is told how far it is, since the intervals take a while."""
    claims = []
    for i, claim in enumerate(CLAIMS, 1):
        claims.append(claim(lab))
        if tell:
            tell(f"claim {i} of {len(CLAIMS)} judged")
    return claims


def told_at(claim: Claim, lab: Lab, part: str) -> dict[str, Comparison]:
    """The comparisons of a part that were run, at early and late."""
    found = {}
    for place in [at(t) for t in lab.primary]:
        names = [c for c in claim.comparisons if c.difference and c.name.startswith(f"{place}: {part}")]
        exact = [c for c in names if c.name == f"{place}: {part}"]  # SFT, not SFT→RL
        if names:
            found[place] = (exact or names)[0]
    return found


# ---------------------------------------------------------------- what came out, a sentence a claim
def sentences(claims: list[Claim], hot: list[Claim], lab: Lab) -> list[str]:
    """`hot`: the claims with every model asked at T 1."""
    at_t1 = {c.name: c for claim in hot for c in claim.comparisons if c.difference}
    return [sentence(c, at_t1, lab) for c in claims if c.key in ("C1", "C2", "C3", "C5", "C6", "C7")]


def sentence(claim: Claim, at_t1: dict[str, Comparison], lab: Lab) -> str:
    """The claim, its verdict, its differences late and early with their intervals, and the paper's."""
    plain = PLAIN[claim.key]
    why = OUTCOMES.get(claim.verdict, "")
    said = f"**{plain.words}: {claim.verdict}**{f', {why}' if why else ''}"
    told, metric, rest = [], plain.measured.split(",")[0], [c for c in claim.primary if c.difference]
    for part, name in plain.parts.items():
        found = told_at(claim, lab, part)
        rest = [c for c in rest if c not in found.values()]
        cells = [f"{c.shown} at {place}{remark(c, at_t1.get(c.name), lab)}" for place, c in reversed(found.items())]
        name = name if told or "pass@" in name else f"{metric}, {name}"
        told += [f"{name} {', '.join(cells)}"] if cells else []
    told += [f"{c.name} {c.shown}{remark(c, at_t1.get(c.name), lab)}" for c in rest]
    numbers = f" {'; '.join(told)}." if told else ""
    return f"{said}.{numbers} The paper: {plain.paper}."


def remark(c: Comparison, hot: Comparison | None, lab: Lab) -> str:
    """Behind a difference: its own verdict, what it is at T 1 where that decides otherwise, missing pre-trainings."""
    told = [c.told] if c.primary and c.told else []
    if hot and c.primary and (hot.leaning, hot.difference.estimate > 0) != (c.leaning, c.difference.estimate > 0):
        told.append(f"asked at T 1 {hot.shown}")
    if few := missing(c, lab):
        told.append(few)
    return f" ({'; '.join(told)})" if told else ""


def missing(c: Comparison, lab: Lab) -> str:
    planned = len([r for r in lab.runs if r["kind"] == "pretrain"])
    return f"{c.seeds} of {planned} pre-trainings" if 0 < c.seeds < planned else ""


# ---------------------------------------------------------------- cells of the two claims tables
def cells(claim: Claim, lab: Lab) -> list[str]:
    """What came out of the claim's first part early and late; a claim without checkpoints has its result as late."""
    plain, places = PLAIN[claim.key], [at(t) for t in dict.fromkeys([lab.early, lab.late])]
    first = told_at(claim, lab, next(iter(plain.parts), ""))
    found = {p: c.shown + (f" ({few})" if (few := missing(c, lab)) else "") for p, c in first.items()}
    shown = claim.headline or found
    if "" in shown:  # it has no checkpoints
        return [*[""] * (len(places) - 1), shown[""]]
    return [shown.get(place, "–") for place in places]


def here(claim: Claim, lab: Lab) -> str:
    """What came out, for the short table: of several parts, as many as find room, late; of one, early and late."""
    plain = PLAIN[claim.key]
    if claim.headline:
        return ", ".join(f"{shown} at {place}" if place else shown for place, shown in claim.headline.items())
    found = {name: told_at(claim, lab, part) for part, name in plain.parts.items()}
    if len(found) > 1:
        late = [
            f"{name} {points(c[at(lab.late)].difference.estimate)}" for name, c in found.items() if at(lab.late) in c
        ]
        told = [f"at {at(lab.late)}: {'; '.join(late[:n])}" for n in range(1, len(late) + 1)]
        return max((t for t in told if len(t) <= WIDEST), key=len, default="–")
    shown = [f"{points(c.difference.estimate)} at {p}" for p, c in next(iter(found.values()), {}).items()]
    return f"{plain.measured}: {', '.join(shown)}" if shown else "–"


def verdict(claim: Claim) -> str:
    """In bold; of a claim with verdicts of its own for each comparison, how many went which way."""
    run = [c for c in claim.primary if c.difference]
    if claim.verdict in ("mixed", "undecided") and len(run) > 1:
        counts = [(sum(c.verdict == v for c in run), v) for v in ("reproduced", "contradicted", "absent")]
        of = f" of {len(run)}"
        told = ", ".join(f"{n}{of * (i == 0)} {v}" for i, (n, v) in enumerate(c for c in counts if c[0]))
        return f"**{claim.verdict}**" + (f": {told}" if told else "")
    leanings = {c.leaning for c in run}
    side = f": {leanings.pop()}" if claim.verdict == "estimate" and len(leanings) == 1 else ""
    return f"**{claim.verdict}**{side}"


def short_table(claims: list[Claim], lab: Lab) -> list[list[str]]:
    """Head and rows of README's table: the claim in plain words, the paper, what came out here, the verdict."""
    rows = [[PLAIN[c.key].words, PLAIN[c.key].paper, here(c, lab), verdict(c)] for c in claims]
    return [["claim of the paper", "the paper", "here", "verdict"], *rows]
