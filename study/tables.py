"""Tables of the report: study -> ("table", head, rows), cells as text. Scores in percent, differences in points."""

import math
from collections.abc import Callable

import numpy as np

from study.claims import PLAIN, cells, verdict
from study.controls import shuffled
from study.paper import PAPER
from study.read import KS, NAMES, Lab, floor_of, general_average, hits, subtract, value
from study.render import slug
from study.stats import Claim, Comparison, spread
from study.tasks import amount as at

ORDER = ("rl", "sft", "gold", "sft_rl", "gold_rl", "parallel")


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
    return "table", ["comparison", "points [interval]", "verdict", "predicted", "seeds"], rows


def score(lab: Lab) -> tuple:
    """Every method from every checkpoint: means over seeds, ± their standard deviation."""
    head = ["tokens", "method", "seeds", *(f"pass@{k}" for k in KS), *(f"strict @{k}" for k in KS), "format", "general"]
    rows = []
    for t in lab.planned["base"]:
        best, compared = lab.shots(t), len(lab.asked_on_validation(t)) > 1
        asked = [
            (f"base, {n}-shot" + ", best on validation" * (n == best and compared), list(lab.base(t, n).values()))
            for n in dict.fromkeys((lab.few_shot, 0, best))
        ]
        asked += [(NAMES[m], list(lab.by_seed(m, t).values())) for m in ORDER if t in lab.planned[m]]
        for name, found in asked:
            cells = [over_seeds(found, lambda r, k=k, s=s: value(r, k, s)) for s in ("flexible", "strict") for k in KS]
            cells += [
                over_seeds(found, lambda r: r["questions"]["gsm"]["format_rate"]),
                over_seeds(found, general_average),
            ]
            rows.append([at(t), name, str(len(found) or "not run"), *cells])
    return "table", head, [*rows, *([*row[:2], "", *row[2:], *["–"] * 5] for row in floors(lab))]


def floors(lab: Lab) -> list[list[str]]:
    """Blind answers: drawn from the training answers; the question's first number and a usual change."""
    floor, read = [floor_of(lab, k) for k in KS], lab.copying.get("floor", {})
    both = {"guess floor": floor, "first number and a usual change": [read[str(k)] for k in KS] if read else None}
    return [["", f"*{name}*", *map(percent, found)] for name, found in both.items() if found]


def paper(lab: Lab) -> tuple:
    """Paper / ours, at the paper's checkpoint nearest in fraction of training (its last beside our last)."""
    rows, last = [], max(lab.planned["base"], default=0)
    for t in lab.planned["rl"]:
        billions = min(PAPER, key=lambda b: abs(math.log(b / max(PAPER)) - math.log(t / last)))
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
    """What the world was made for against what came out; ranges in percent, both ends allowed. Question scores are on
    validation questions (first seed); those on test questions stand beside."""
    places, data = lab.planned["base"] or [0], lab.manifest.get("data", {})
    asked = dict(split="val", group="calibration")
    wanted = []
    for t, name, ranges in ((places[0], "first", [(0, 1), (0, 15)]), (places[-1], "last", [(5, 20), (50, 85)])):
        few = [first(lab.by_seed("base", t, lab.few_shot, **want)) for want in (asked, {})]
        for k, bounds in zip((1, 32), ranges, strict=True):
            wanted.append((f"base few-shot pass@{k}, {name} checkpoint", [r and value(r, k) for r in few], bounds))
        bounds = (11, 31) if name == "first" else (80, 100)
        average = few[1] and general_average(few[1])
        wanted.append((f"base general average, {name} checkpoint", [average, None], bounds))
    gold = [first(lab.by_seed("gold", lab.late, **want)) for want in (asked, {})]
    wanted.append(("SFT-Gold pass@32, late checkpoint", [r and value(r, 32) for r in gold], (0, 95)))
    for task in ("gsm", "hard"):
        for k, top in ((1, 1), (32, 10)):
            floor = data.get("guess_floor", {}).get(task, {}).get(str(k))
            wanted.append((f"guess floor of {task} at pass@{k}", [floor, None], (0, top)))
    rows = []
    for name, (got, test), (low, high) in wanted:
        holds = "–" if got is None else "yes" if low <= 100 * got <= high else "**no**"
        rows.append([name, f"{low} to {high}", "not run" if got is None else percent(got), holds, percent(test)])
    return "table", ["quantity", "target, %", "came out, %", "holds", "on test questions, %"], rows


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


def wide(lab: Lab) -> tuple:
    rows = []
    for r in lab.find(group="wide", temperature=..., n_shot=..., tokens=...):
        name = f"base, {r['n_shot']}-shot" if r["method"] == "base" else NAMES[r["method"]]
        ks = [int(n[5:]) for n in r["result"]["questions"]["gsm"]["flexible"]]
        both = [f"{percent(value(r['result'], k))} / {percent(shuffled(r['result'], k).mean())}" for k in ks]
        rows.append([name, str(r["temperature"]), *both])
    return "table", ["method", "T", *(f"@{k} / shuffled" for k in (1, 8, 32, 256))], rows


def wide_differences(lab: Lab) -> tuple:
    """Of the same runs: RL − base and SFT→RL − SFT, bootstrap over questions (one seed)."""
    rows = []
    for temperature in (0.6, 1.0):
        found = lab.find(group="wide", temperature=temperature, n_shot=..., tokens=lab.late, method=...)
        one = {(r["method"], r["n_shot"]): {r["seed"]: r["result"]} for r in found}
        for a, b in ((("rl", 0), ("base", 0)), (("rl", 0), ("base", lab.few_shot)), (("sft_rl", 0), ("sft", 0))):
            if a in one and b in one:
                name = f"{NAMES[a[0]]} − {NAMES[b[0]]}" + f", {b[1]}-shot" * (b[0] == "base")
                under = dict.fromkeys([None], *one[b].values())
                pairs = [Comparison("", subtract(one[a], under, k), primary=False) for k in (1, 8, 32, 256)]
                rows.append([name, str(temperature), *(c.shown for c in pairs)])
    return "table", ["difference [95 % interval]", "T", *(f"@{k}" for k in (1, 8, 32, 256))], rows


def chosen(lab: Lab) -> tuple:
    """The step that validation would have chosen beside the last one, which counts (first seed, validation pass@1)."""
    rows = []
    for t in lab.primary:
        for method in ORDER:
            found = lab.find(method=method, tokens=t, group="dynamics", split="val", train_step=...)
            path = {r["train_step"]: value(r["result"], 1) for r in found if r["train_step"]}
            if path:
                best, last = max(path, key=path.get), max(path)
                trials = lab.manifest.get("trials", {}).get(method, "–")
                there = [str(best), percent(path[best]), str(last), percent(path[last])]
                rows.append([at(t), NAMES[method], *there, str(trials)])
    head = ["tokens", "method", "best step", "pass@1 there", "last step", "pass@1 there", "settings tried in tuning"]
    return "table", head, rows


def movement(lab: Lab) -> list[dict]:
    """Every run from the late checkpoint, with how far it moved and what became of general text."""
    rows = []
    for r in lab.find(tokens=lab.late, group=..., variant=..., method=...):
        if "movement" in r["result"] and "gsm" in r["result"]["questions"]:
            m = r["result"]["movement"]
            scores = {f"pass@{k}": value(r["result"], k) for k in (1, 32)} | {"general": general_average(r["result"])}
            moved = dict(distance=m["relative_distance"], kl=m["kl"], loss=m["loss"] - m["loss_reference"])
            rows.append({**{k: r[k] for k in ("method", "variant", "seed", "group")}, **scores, **moved})
    return rows


def control(rows: list[dict]) -> tuple:
    """Means over seeds of each method and variant, in percent; movement beside."""
    out = []
    for key in dict.fromkeys((r["method"], r["variant"]) for r in rows):
        mine = [r for r in rows if (r["method"], r["variant"]) == key]
        cells = []
        for name in ("pass@1", "pass@32", "general", "loss", "distance", "kl"):
            mean = np.mean([r[name] for r in mine if r[name] is not None] or [np.nan])
            in_percent = name not in ("loss", "distance", "kl")
            cells.append("–" if np.isnan(mean) else f"{100 * mean:.1f}" if in_percent else f"{mean:.4f}")
        out.append([f"{NAMES[key[0]]} {key[1]}".strip(), str(len(mine)), *cells])
    moved = ["general loss, change", "distance / norm", "KL, nats a token"]
    return "table", ["run", "seeds", "pass@1", "pass@32", "general", *moved], out


def control_differences(lab: Lab, key: str) -> tuple:
    """Each run of a control minus the main runs of its own method (K3: of parallel averaging), in points, paired."""
    rows, metrics = [], (1, 32, "general")
    found = lab.find(tokens=lab.late, group=key.lower(), variant=..., method=...)
    for method, variant in dict.fromkeys((r["method"], r["variant"]) for r in found):
        mine = lab.by_seed(method, lab.late, group=key.lower(), variant=variant)
        against = "parallel" if key == "K3" else method
        pairs = [Comparison("", subtract(mine, lab.by_seed(against, lab.late), m), primary=False) for m in metrics]
        rows.append([f"{NAMES[method]} {variant} − {NAMES[against]}", str(pairs[0].seeds), *(c.shown for c in pairs)])
    return "table", ["difference over the same seeds [95 % interval]", "seeds", "pass@1", "pass@32", "general"], rows


def control_rows(rows: list[dict], key: str) -> list[dict]:
    """The runs of a control, after the main runs that they stand beside."""
    beside = {"K1": ORDER, "K2": ("rl", "sft_rl"), "K3": ("rl", "sft", "parallel"), "K4": ("rl", "sft")}[key]
    mine = [r for r in rows if r["group"] == key.lower()]
    return [r for r in rows if r["group"] == "main" and r["method"] in beside] + mine if mine else []


def moved_alone(rows: list[dict]) -> list[dict]:
    """What K1 shows: its runs and the main ones, and RL alone and SFT alone of the other controls."""
    also = [r for r in rows if r["group"] in ("k2", "k3", "k4") and r["method"] in ("rl", "sft")]
    return control_rows(rows, "K1") + also


def k1_note(rows: list[dict], base: float | None = None, controls: bool = True) -> list[str]:
    """SFT's general score at another run's movement, by linear interpolation over the base (no movement) and the SFT
    runs in that order, those of K3 among them; the other runs: main methods and, of `controls`, RL of K2 to K4."""
    rows = [r for r in rows if r["general"] is not None and r["group"] in ("main", "k1", "k2", "k3", "k4")]
    sft, out = [r for r in rows if r["method"] == "sft" and r["group"] != "k4"], []
    others = [
        r for r in rows if r["method"] == "rl" or (r["method"] in ("parallel", "sft_rl") and r["group"] == "main")
    ]
    compared = dict.fromkeys((r["method"], r.get("variant", "")) for r in others if controls or not r.get("variant"))
    for axis, unit in (("distance", "of the weights' norm"), ("kl", "nats of KL a token")):
        start = [(0.0, base, 0.0)] if base is not None else []
        line = sorted(start + [(r[axis], r["general"], r["loss"]) for r in sft])
        for key in compared if len(line) > 2 else ():
            mine = [r for r in others if (r["method"], r.get("variant", "")) == key]
            here, general, loss = (float(np.mean([r[k] for r in mine])) for k in (axis, "general", "loss"))
            name = f"{NAMES[key[0]]} {key[1]}".strip() + f" ({here:.4f} {unit})"
            if not line[0][0] <= here <= line[-1][0]:
                out.append(f"{name} lies outside SFT's range, {line[0][0]:.4f} to {line[-1][0]:.4f}.")
                continue
            there = [float(np.interp(here, [s[0] for s in line], [s[i] for s in line])) for i in (1, 2)]
            ours = f"{100 * general:.1f} and {loss:+.4f}"
            sft_there = f"{100 * there[0]:.1f} and {there[1]:+.4f}"
            least = min(sft, key=lambda r: r[axis])
            named = f"SFT {least.get('variant', '')}".strip() + f", {least[axis]:.4f}"
            near = f" (between the base and the SFT run that moved least, {named})" * (here < least[axis])
            out.append(
                f"{name}: general average and change of general loss {ours}; SFT moved as far{near}: {sft_there}."
            )
    return out or ["Not run yet."]
