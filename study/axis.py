"""What decides: how many questions have a worked solution, and how often it is read. One pre-training, its late
checkpoint; every cell is a run of its own, those of the study's own pool are its main runs."""

import math
from dataclasses import dataclass

import numpy as np

from study.paper import PAPER
from study.read import NAMES, Lab, of_rows, per_question
from study.stats import Difference, with_interval
from study.tasks import amount as at

METHODS = ("rl", "sft", "gold", "sft_rl", "parallel")
PAPER_SHARE, PAPER_PASSES = 0.003, {"sft": 61, "sft_rl": 13}  # demonstrations of the math tokens; passes over them


@dataclass
class Axis:
    """cells: (method, pool, passes) -> evaluation; passes is 0 for RL and averaging, which have none."""

    cells: dict[tuple[str, int, int], dict]
    pools: list[int]
    passes: list[int]
    questions: int  # asked in every cell

    def score(self, method: str, pool: int, passes: int, k: int) -> np.ndarray | None:
        """Of each question."""
        found = self.cells.get((method, pool, passes))
        return None if found is None else per_question(found, k)[: self.questions]

    def difference(self, a: tuple, b: tuple, k: int) -> Difference | None:
        a, b = self.score(*a, k), self.score(*b, k)
        return None if a is None or b is None else of_rows([a - b])


def read(lab: Lab) -> Axis:
    cells, found = {}, [r for r in lab.evals if r["group"] == "axis" and r["result"]]
    for r in found:
        pool, _, passes = r["variant"].partition("x")
        cells[r["method"], int(pool), int(passes or 0)] = r["result"]
    size = min((r["result"]["questions"]["gsm"]["n_questions"] for r in found), default=0)
    main, start = lab.manifest.get("pool", 0), lab.manifest.get("start_passes", 0)
    end = max(lab.manifest.get("passes", [0]))
    if found:
        for method in METHODS:
            passes = {"sft": end, "gold": end, "sft_rl": start}.get(method, 0)
            if result := lab.by_seed(method, lab.late).get(lab.first):
                cells[method, main, passes] = result
        if result := lab.by_seed("sft", lab.late, variant="start").get(lab.first):
            cells["sft", main, start] = result
    pools, every = sorted({pool for _, pool, _ in cells}), sorted({n for *_, n in cells if n})
    return Axis(cells, pools, every, size)


def paper_pool(lab: Lab) -> float | None:
    """How many questions would be the paper's share: distinct tokens of their solutions over the math tokens read."""
    logs, size = lab.logs("sft", lab.late), lab.config("sft", lab.late).get("batch_size", 64)
    tokens = [
        r["perf/tok_per_sec"] * r["perf/step_ms"] / 1e3 for log in logs.values() for r in log if "perf/step_ms" in r
    ]
    mix = (lab.manifest.get("data") or {}).get("mixes", {}).get("base", {})
    if not tokens or "math.bin" not in mix:
        return None
    return PAPER_SHARE * mix["math.bin"] * lab.late / (np.mean(tokens) / size)


def base_score(lab: Lab, a: Axis, k: int) -> np.ndarray | None:
    """Of each question, of the base that every cell started from."""
    found = lab.base(lab.late).get(lab.first)
    return None if found is None else per_question(found, k)[: a.questions]


def table(lab: Lab) -> tuple:
    """pass@1 / pass@32 of each cell."""
    a, rows = read(lab), []
    for n in a.pools:
        for method in METHODS:
            places = [0] if method in ("rl", "parallel") else a.passes
            got = {p: [a.score(method, n, p, k) for k in (1, 32)] for p in places}
            cells = {
                p: " / ".join(f"{100 * s.mean():.1f}" for s in both) for p, both in got.items() if both[0] is not None
            }
            if cells:
                of_sft = [cells.get(p, "–") if 0 not in places else "" for p in a.passes]
                rows.append([f"{n:,}", NAMES[method], cells.get(0, ""), *of_sft])
    head = ["questions", "pass@1 / pass@32", "one run a pool", *(f"{p} passes" for p in a.passes)]
    return "table", head, rows


COMPARED = (("SFT, pass@1", "sft", 1), ("SFT, pass@32", "sft", 32))
COMPARED += (("SFT→RL, pass@1", "sft_rl", 1), ("SFT→RL, pass@32", "sft_rl", 32))


def differences(a: Axis) -> dict[str, dict[tuple[int, int], Difference]]:
    """RL less each other: title -> (pool, passes) -> difference, of the cells that exist."""
    places = [(n, p) for n in a.pools for p in a.passes]
    found = {title: {(n, p): a.difference(("rl", n, 0), (m, n, p), k) for n, p in places} for title, m, k in COMPARED}
    return {title: {place: d for place, d in cells.items() if d} for title, cells in found.items()}


def difference_table(lab: Lab) -> tuple:
    found = differences(read(lab))
    places = dict.fromkeys(place for cells in found.values() for place in cells)
    rows = [[f"{n:,} × {p}", *(shown(c[n, p]) if (n, p) in c else "–" for c in found.values())] for n, p in places]
    return "table", ["questions × passes", *(f"RL − {title}" for title in found)], rows


def sentences(lab: Lab) -> list[str]:
    """Where RL beats SFT, where SFT→RL beats RL, where averaging is best; intervals over questions alone."""
    a, lines = read(lab), []
    for title, cells in differences(a).items():
        sides = []
        for side, sign in (("above", 1), ("below", -1)):
            clear = {at: d for at, d in cells.items() if min(sign * end for end in d.interval()) > 0}
            names = ", ".join(f"{n:,} × {p}" for n, p in clear)
            sides.append(f"{side} zero in {len(clear)}" + f" ({names})" * (0 < len(clear) < len(cells)))
        metric = title.split(", ")[1]
        told = f"{metric}, RL − {title.split(', ')[0]}, {len(cells)} cells (questions × passes): whole interval"
        lines += [f"{told} {', '.join(sides)}."] if cells else []
    for k in (1, 32):
        best = []
        for n in a.pools:
            scores = {
                (m, p): s.mean() for (m, pool, p) in a.cells if pool == n and (s := a.score(m, n, p, k)) is not None
            }
            scores = {key: s for key, s in scores.items() if key[0] != "gold"}  # it reads every solution
            if len(scores) > 1:
                top = max(scores.values())
                first = [NAMES[m] + f" of {p} passes" * (p > 0) for (m, p), s in scores.items() if s > top - 1e-9]
                best.append(f"{n:,} questions: {' and '.join(first)} ({100 * top:.1f})")
        lines += [f"Best pass@{k} but for SFT-Gold: {'; '.join(best)}."] if best else []
    return lines or ["Not run."]


def shown(d: Difference) -> str:
    return with_interval(d.estimate, *d.interval())


def said(lab: Lab) -> str:
    a, place = read(lab), paper_pool(lab)
    if not a.pools:
        return "Pools of other sizes are not run."
    text = (
        f"Every method from the same checkpoint ({at(lab.late)} tokens, first pre-training), on pools of "
        f"{', '.join(f'{n:,}' for n in a.pools)} questions; SFT and the SFT before SFT→RL make so many passes over "
        "theirs, SFT-Gold as many updates; RL and averaging have as many batches on every pool. The first "
        f"{a.questions} test questions, one run a cell: intervals are over questions alone, and nothing here is a "
        "verdict. –: not run."
    )
    if place:
        text += (
            f" The paper's place: {100 * PAPER_SHARE:g} % of the math tokens are demonstrations, here {place:.0f} "
            f"questions; {PAPER_PASSES['sft']} passes, {PAPER_PASSES['sft_rl']} before SFT→RL."
        )
        text += at_the_place(lab, a, place)
    return text


def at_the_place(lab: Lab, a: Axis, place: float) -> str:
    """SFT in the cell nearest to the paper's place, beside its base, here and in the paper (pass@1 / pass@32)."""
    pool = min(a.pools, key=lambda n: abs(math.log(n / place)))
    passes = min(a.passes, key=lambda n: abs(n - PAPER_PASSES["sft"]), default=0)
    base, late = [base_score(lab, a, k) for k in (1, 32)], PAPER[max(PAPER)]
    scores = [a.score("sft", pool, passes, k) for k in (1, 32)]
    if base[0] is None or scores[0] is None:
        return ""
    sft, before = (" / ".join(f"{100 * s.mean():.1f}" for s in two) for two in (scores, base))
    theirs, under = (f"{row[0]:.1f} / {row[2]:.1f}" for row in (late["sft"], max(late["base8"], late["base0"])))
    return (
        f" In the nearest cell, {pool:,} × {passes}, SFT stands at {sft} and the base at {before}; the paper's at "
        f"{theirs} and {under}, at {max(PAPER)}B tokens."
    )
