"""Tables of the report: study -> ("table", head, rows), cells as text. Scores in percent, differences in points."""

from collections.abc import Callable

import numpy as np

from study.agreement import nearest
from study.claims import PLAIN, cells, verdict
from study.controls import shuffled
from study.paper import PAPER
from study.read import KS, NAMES, Lab, floor_of, general_average, hits, value
from study.render import slug
from study.stats import Claim, Comparison, spread
from study.tasks import amount as at

ORDER = ("rl", "sft", "gold", "sft_rl", "parallel")


# ---------------------------------------------------------------- cells
def percent(x: float | None) -> str:
    return "–" if x is None else f"{100 * x:.1f}"


def over_seeds(results: list[dict], get: Callable[[dict], float | None]) -> str:
    return spread([score for score in map(get, results) if score is not None])


# ---------------------------------------------------------------- tables
def claims(claims: list[Claim], lab: Lab) -> tuple:
    """One row a claim, one result a cell."""
    rows = []
    for claim in claims:
        plain = PLAIN[claim.key]
        link = f"[{claim.key}](#{slug(heading(claim))})"
        rows.append([link, plain.words, plain.measured, plain.paper, *cells(claim, lab), verdict(claim)])
    places = [f"at {at(t)} tokens" for t in dict.fromkeys([lab.early, lab.late])]
    return "cards", ["", "claim", "measured", "the paper", *places, "verdict"], rows


def heading(claim: Claim) -> str:
    return f"{claim.key}. {claim.title}"


def differences(comparisons: list[Comparison]) -> tuple:
    rows = [[c.name, c.shown, c.told, c.predicted, str(c.seeds or "–")] for c in comparisons]
    return "table", ["comparison", "points [interval]", "verdict", "predicted", "pre-trainings"], rows


def score(lab: Lab) -> tuple:
    """Every method from every checkpoint: means over pre-trainings, ± their standard deviation."""
    head = ["tokens", "method", "seeds", *(f"pass@{k}" for k in KS), "strict @1", "strict @32", "format", "general"]
    rows = []
    for t in lab.planned["base"]:
        best, compared = lab.shots(t), len(lab.asked_on_validation(t, 0)) > 0
        asked = [
            (f"base, {n}-shot" + ", best on validation" * (n == best and compared), list(lab.base(t, n).values()))
            for n in dict.fromkeys((lab.few_shot, 0, best))
        ]
        for m in ORDER:
            asked += [(NAMES[m], list(lab.by_seed(m, t).values()))] if t in lab.planned[m] else []
            start = list(lab.by_seed(m, t, variant="start").values()) if m == "sft" else []
            asked += [("SFT before SFT→RL", start)] if start else []
        for name, found in asked:
            kinds = [("flexible", k) for k in KS] + [("strict", 1), ("strict", 32)]
            cells = [over_seeds(found, lambda r, k=k, s=s: value(r, k, s)) for s, k in kinds]
            cells += [
                over_seeds(found, lambda r: r["questions"]["gsm"]["format_rate"]),
                over_seeds(found, general_average),
            ]
            rows.append([at(t), name, str(len(found) or "not run"), *cells])
    return "table", head, [*rows, *([*row[:2], "", *row[2:], *["–"] * 4] for row in floors(lab))]


def floors(lab: Lab) -> list[list[str]]:
    """Blind answers: drawn from the training answers; by the best rule that reads one or two numbers."""
    rules = {"guess floor": [floor_of(lab, k) for k in KS], "best blind rule": [lab.blind.get(str(k)) for k in KS]}
    return [["", f"*{name}*", *map(percent, found)] for name, found in rules.items() if any(found)]


def paper(lab: Lab) -> tuple:
    """Paper / ours, at the paper's checkpoint whose base is nearest."""
    rows = []
    for t in lab.planned["rl"]:
        if not (billions := nearest(lab, t)):
            continue
        for method, theirs in PAPER[billions].items():
            few = {"base8": lab.few_shot, "base0": 0}.get(method)
            found = list((lab.by_seed(method, t) if few is None else lab.base(t, few)).values())
            gets = [*(lambda r, k=k: value(r, k) for k in KS), general_average]
            cells = [
                f"{'–' if p is None else p} / {over_seeds(found, get)}" for p, get in zip(theirs, gets, strict=True)
            ]
            name = NAMES[method] if few is None else f"base, {few}-shot"
            rows.append([f"{billions}B / {at(t)}", name, *cells])
    return "table", ["tokens", "method", *(f"pass@{k}" for k in KS), "general"], rows


def sensitivity(main: list[Claim], others: dict[str, list[Claim]]) -> tuple:
    """The registered rows again, with other runs in the place of the main ones. No verdicts."""
    rows = []
    for i, claim in enumerate(main):
        for row in claim.primary:
            again = {}
            for name, claims in others.items():
                found = [c for c in claims[i].comparisons if c.name == row.name and c.difference]
                changed = found and found[0].shown != row.shown
                again[name] = found[0].shown if changed else "–"
            if row.difference:
                rows.append([f"{claim.key} {row.name}", row.shown, *again.values()])
    return "table", ["registered row", "main", *others], rows


def benchmark(lab: Lab) -> tuple:
    """The benchmarks one by one at the late checkpoint."""
    few = [r for r in lab.base(lab.late, lab.few_shot).values() if r["benchmarks"]]
    names = list(few[0]["benchmarks"]) if few else []
    rows = []
    for name, found in [("base", few), *((NAMES[m], list(lab.by_seed(m, lab.late).values())) for m in ORDER)]:
        cells = [over_seeds(found, lambda r, n=n: float(hits(r, n).mean())) for n in names]
        rows.append([name, *cells, over_seeds(found, general_average)])
    if few:
        chance = [few[0]["benchmarks"][n]["chance"] for n in names]
        rows.append(["*chance*", *map(percent, [*chance, float(np.mean(chance))])])
    return "table", ["method", *names, "average"], rows


def first(found: dict) -> dict | None:
    return next(iter(found.values()), None)


def calibration(lab: Lab) -> tuple:
    """What the world was made for against what came out, in percent, both ends allowed; of the base with the shots
    that validation prefers. Every pre-training's value stands for itself."""
    early, late, first = lab.early, lab.late, min(lab.planned["base"], default=0)
    base = {t: lab.base(t) for t in (early, late)}
    rows = [
        ("base pass@1, late", [value(r, 1) for r in base[late].values()], (8, 25)),
        ("base pass@32, late", [value(r, 32) for r in base[late].values()], (55, 80)),
        ("base pass@1, early", [value(r, 1) for r in base[early].values()], (0, 5)),
        ("SFT-Gold pass@32, late", [value(r, 32) for r in lab.by_seed("gold", late).values()], (0, 92)),
    ]
    for t, name, bounds in ((first, "first", (0, 40)), (late, "late", (85, 100))):
        averages = [general_average(r) for r in lab.base(t, lab.few_shot).values()]
        rows.append((f"base general average, {name} checkpoint", [a for a in averages if a is not None], bounds))
    sft = lab.by_seed("sft", late)
    pairs = [(sft[s], r) for s, r in base[late].items() if s in sft and value(r, 1)]
    rows.append(
        ("SFT pass@1 over the base's, late, times", [value(a, 1) / value(b, 1) / 100 for a, b in pairs], (1.5, 3))
    )
    rows.append(("SFT pass@32 − the base's, late", [value(a, 32) - value(b, 32) for a, b in pairs], (-12, 12)))
    for k, top in ((1, 1.5), (32, 15)):
        rows.append((f"best blind rule at pass@{k}", [lab.blind[str(k)]] if lab.blind else [], (0, top)))
    shown = []
    for name, got, (low, high) in rows:
        holds = "–" if not got else "yes" if all(low <= 100 * x <= high for x in got) else "**no**"
        told = ", ".join(f"{100 * x:.1f}" for x in got) or "not run"
        shown.append([name, f"{low} to {high}", told, holds])
    return "table", ["quantity, test questions", "target", "came out, each pre-training", "holds"], shown


def shuffle(lab: Lab) -> tuple:
    """pass@k, that of the same answers dealt to other questions; means over seeds. Below: what blind answers reach."""
    rows = []
    for t in lab.primary:
        for method in ("base", *ORDER):
            found = list((lab.base(t) if method == "base" else lab.by_seed(method, t)).values())
            real = [over_seeds(found, lambda r, k=k: value(r, k)) for k in KS]
            dealt = [over_seeds(found, lambda r, k=k: shuffled(r, k).mean()) for k in KS]
            cells = [f"{a} / {b}" for a, b in zip(real, dealt, strict=True)]
            if found:
                rows.append([at(t), NAMES[method], *cells])
    return "table", ["tokens", "method", *(f"pass@{k} / shuffled" for k in KS)], [*rows, *floors(lab)]


def movement(lab: Lab) -> tuple:
    """How far each main run moved from its start, and what became of general text; means over pre-trainings."""
    rows = []
    for t in lab.primary:
        for method in ORDER:
            found = [r["movement"] for r in lab.by_seed(method, t).values() if "movement" in r]
            if found:
                mean = {key: np.mean([m[key] for m in found]) for key in ("relative_distance", "kl")}
                loss = np.mean([m["loss"] - m["loss_reference"] for m in found])
                rows.append([at(t), NAMES[method], *(f"{x:.4f}" for x in (*mean.values(), loss))])
    return "table", ["from", "method", "distance / norm", "KL, nats a token", "general loss, change"], rows
