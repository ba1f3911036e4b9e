"""Figures of the report, study -> matplotlib figure, or None if nothing is there yet: the methods against pre-training
tokens. figures_conditions.py and figures_runs.py have the others.

Lines and markers, not only colours, tell the methods apart: the figures are readable in grey.
"""

import io
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")  # no window: figures are only written
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from study.paper import PAPER
from study.read import KS, NAMES, Lab, best_blind, floor_of, general_average, value
from study.stats import Claim
from study.tasks import amount as at

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
}
LOOKS = {  # colour, line, marker, filled
    "base": ("#777777", "--", "o", False),
    "base0": ("#a0a0a0", ":", "s", False),
    "best": ("#111111", ":", "x", True),
    "rl": ("#a61c1c", "-", "o", True),
    "sft": ("#4a90c2", (0, (6, 1.5)), "^", True),
    "gold": ("#d4a017", "-.", "D", True),
    "sft_rl": ("#7d3c98", "--", "v", True),
    "parallel": ("#111111", "-", "s", True),
}
WORDS = {"best": "base, best of 8 and 0 shots", "rl": "RL", "sft": "SFT", "sft_rl": "SFT→RL", "parallel": "averaging"}
SHOTS = {"base": "", "base0": "0-shot", "best": "best shots"}  # the base's lines; "": the study's few shots


def png(make: Callable, *arguments, colours: int = 48) -> bytes | None:
    """A small PNG of the figure that `make` draws."""
    with plt.rc_context(STYLE):
        figure = make(*arguments)
        if figure is None:
            return None
        drawn, small = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, dpi=120)
        plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


# ---------------------------------------------------------------- lines, floors, axes
def draw(ax, x, y, method: str, label: str, low=None, high=None) -> None:
    """A line of percentages; bars from `low` to `high`."""
    colour, line, marker, filled = LOOKS[method]
    y = 100 * np.array(y)
    bars = None if low is None else np.maximum(0, [y - 100 * np.array(low), 100 * np.array(high) - y])
    face = colour if filled else "white"
    ax.errorbar(x, y, bars, color=colour, ls=line, marker=marker, mfc=face, ms=4.5, lw=1.3, capsize=2, label=label)


def legend(ax) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend()


def mark_floor(ax, floor: float | None, name: str = "guess floor", side: str = "right") -> None:
    if floor is not None:
        if 100 * floor > ax.get_ylim()[1]:  # all scores lie below it
            ax.set_ylim(top=105 * floor)
        ax.axhline(100 * floor, color="#555555", lw=1, ls=(0, (1, 2)))
        at_edge = (0.98 if side == "right" else 0.02, 100 * floor)
        ax.annotate(name, at_edge, xycoords=("axes fraction", "data"), fontsize=7, va="bottom", ha=side)


def token_axis(ax, lab: Lab, title: str) -> None:
    """From the last checkpoint before those that are post-trained: what lies further back would press them together."""
    ticks = lab.planned["base"]
    before = [t for t in ticks if t < min(lab.planned["rl"], default=0)]
    ticks = [t for t in ticks if not before or t >= before[-1]]
    ax.set_xscale("log")
    ax.set_xticks(ticks, [at(t) for t in ticks])
    ax.minorticks_off()
    if ticks:
        ax.set_xlim(0.93 * ticks[0], 1.08 * ticks[-1])
    ax.set_title(title)
    ax.set_xlabel("pre-training tokens")
    ax.set_ylim(bottom=0)


def by_tokens(lab: Lab, ax, methods, get, title: str) -> None:
    """Each method's mean over pre-trainings against their tokens; bars: range."""
    for method in methods:
        kind, points = "base" if method in SHOTS else method, []
        for t in lab.planned["rl" if method == "best" else kind]:  # shots are chosen where RL begins
            n_shot = {"base0": 0, "best": "best"}.get(method, lab.few_shot)
            found = lab.base(t, n_shot) if kind == "base" else lab.by_seed(method, t)
            if got := [s for s in map(get, found.values()) if s is not None]:
                points.append((t, np.mean(got), min(got), max(got)))
        if points:
            x, y, low, high = zip(*points, strict=True)
            label = f"base, {SHOTS[method] or f'{lab.few_shot}-shot'}" if kind == "base" else NAMES[kind]
            draw(ax, x, y, method, label, low, high)
    token_axis(ax, lab, title)


# ---------------------------------------------------------------- figures
def headline(lab: Lab):
    """README's: pass@1 and pass@32 of the main methods against pre-training tokens, the paper's beside this study's."""
    if not any(lab.by_seed("rl", t) for t in lab.planned["rl"]):
        return None
    figure, axes = plt.subplots(2, 2, figsize=(6, 6.2), sharex="col", sharey=True)
    methods = ("best", "rl", "sft", "sft_rl", "parallel")
    for (theirs, ours), k in zip(axes, (1, 32), strict=True):
        for method in methods:
            draw(theirs, *zip(*paper_points(method, k), strict=True), method, WORDS[method])
        by_tokens(lab, ours, methods, lambda r, k=k: value(r, k), "")
        theirs.set_xscale("log")
        theirs.set_xticks(list(PAPER), [f"{b}B" for b in PAPER])
        theirs.minorticks_off()
        theirs.set_ylim(0, 100)
        theirs.set_ylabel(f"pass@{k}, %", fontsize=11)
        for ax in (theirs, ours):
            ax.set_xlabel("pre-training tokens" if k == 32 else "")
            ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    ticks = lab.planned["rl"]
    axes[1, 1].set_xticks(ticks, [at(t) for t in ticks])
    axes[1, 1].set_xlim(0.94 * ticks[0], 1.06 * ticks[-1])  # before, there is the base alone
    axes[0, 0].set_title("the paper: 1B model, GSM8K", fontsize=11)
    axes[0, 1].set_title("here: 1M model, made-up world", fontsize=11)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=10.5)
    return figure


def paper_points(method: str, k: int) -> list[tuple[int, float]]:
    """(billions of tokens, pass@k) of the paper; its base with eight or no shots, whichever has the better pass@1."""
    found = []
    for billions, scores in PAPER.items():
        base = max(scores["base8"], scores["base0"])
        row = base if method == "best" else scores.get(method)
        if row:
            found.append((billions, row[{1: 0, 8: 1, 32: 2}[k]] / 100))
    return found


def expansion(lab: Lab, claim: Claim):
    """C5: how far RL moves pass@1, @8 and @32, from the base and from SFT; bars: intervals."""
    by_name = {c.name: c for c in claim.comparisons if c.difference}
    places = lab.planned["sft_rl"]
    figure, axes = plt.subplots(1, len(places) or 1, figsize=(2.8 * len(places) or 3, 3.2), sharey=True, squeeze=False)
    for ax, t in zip(axes[0], places, strict=False):
        for name, look in (("direct RL", "rl"), ("after SFT", "sft_rl")):
            found = [(i, by_name.get(f"{at(t)}: {name}, pass@{k}")) for i, k in enumerate(KS)]
            found = [(i, c.difference.estimate, *c.interval) for i, c in found if c]
            if found:
                x, y, low, high = zip(*found, strict=True)
                label = {"rl": "RL − base, best shots", "sft_rl": "SFT→RL − SFT before it"}[look]
                draw(ax, x, y, look, label, np.clip(low, -1, 1), np.clip(high, -1, 1))
        ax.axhline(0, color="#555555", lw=0.8)
        ax.set_xticks(range(len(KS)), [f"pass@{k}" for k in KS])
        ax.set_xlim(-0.3, len(KS) - 0.7)
        ax.set_title(f"points, from {at(t)}")
    legend(axes[0, 0])
    return figure if any(ax.lines[1:] for ax in axes[0]) else None


def passk(lab: Lab, methods=("base", "base0", "best", "rl", "sft", "gold", "sft_rl", "parallel"), ks=KS):
    figure, axes = plt.subplots(1, len(ks), figsize=(3.5 * len(ks), 3.4), squeeze=False)
    for ax, k in zip(axes[0], ks, strict=True):
        by_tokens(lab, ax, methods, lambda r, k=k: value(r, k), f"pass@{k}, %")
        mark_floor(ax, floor_of(lab, k))
        mark_floor(ax, best_blind(lab, k) if lab.blind and k > 1 else None, "best blind rule", "left")
    legend(axes[0, 0])
    return figure


def general_panel(lab: Lab, ax, methods) -> None:
    by_tokens(lab, ax, [m for m in methods if m != "base"], general_average, "average of six general benchmarks, %")
    points = [(t, general_average(r)) for t in lab.planned["base"] for r in lab.base(t, lab.few_shot).values()]
    if points := [p for p in points if p[1] is not None]:
        draw(ax, *zip(*points, strict=True), "base", "base")
    chance = [
        [b["chance"] for b in r["result"]["benchmarks"].values()] for r in lab.find() if r["result"]["benchmarks"]
    ]
    mark_floor(ax, float(np.mean(chance[0])) if chance else None, "chance")


def general(lab: Lab):
    figure, ax = plt.subplots(figsize=(5.4, 3.6))
    general_panel(lab, ax, ("base", "rl", "sft", "gold", "sft_rl", "parallel"))
    legend(ax)
    return figure


def parallel(lab: Lab):
    figure, axes = plt.subplots(2, 2, figsize=(8.4, 6.4))
    methods = ("base", "rl", "sft", "sft_rl", "gold", "parallel")
    for ax, k in zip(axes.flat, KS, strict=False):
        by_tokens(lab, ax, methods, lambda r, k=k: value(r, k), f"pass@{k}, %")
        mark_floor(ax, floor_of(lab, k))
    general_panel(lab, axes[1, 1], methods)
    legend(axes[0, 0])
    return figure


def forest(claim: Claim):
    """Estimates with their intervals; dotted: the margin. Filled: registered; alone, where all would be too many."""
    shown = [c for c in claim.comparisons if c.difference]
    shown = shown if len(shown) <= 24 else [c for c in shown if c.primary]
    if not shown:
        return None
    figure, ax = plt.subplots(figsize=(7.4, 0.7 + 0.22 * len(shown)))
    whole = [c for c in shown if max(map(abs, c.interval)) < 1]  # two seeds' intervals may be of any length
    ends = [100 * x for c in whole or shown for x in c.interval] + [100 * c.difference.estimate for c in shown]
    ax.set_xlim(min(*ends, 0) - 4, max(*ends, 0) + 4)
    for y, c in enumerate(reversed(shown)):
        low, high = 100 * np.clip(c.interval, -1, 1)
        ax.plot([low, high], [y, y], color="#555555", lw=1.4)
        ax.plot(100 * c.difference.estimate, y, "o", color="#111111", mfc="#111111" if c.primary else "white", ms=4.5)
        for m in (-c.within, c.within) if c.within else (c.margin,):
            ax.plot([100 * m] * 2, [y - 0.4, y + 0.4], color="#a61c1c", ls=":", lw=1.2)
    ax.set_yticks(
        range(len(shown)), [f"{c.name}, predicted {c.predicted}  ({c.seeds})" for c in reversed(shown)], fontsize=7
    )
    ax.set_ylim(-0.7, len(shown) - 0.3)
    cut = "; some intervals go on beyond" * (len(whole) < len(shown))
    figure.supxlabel(f"points, 95 % interval (within: 90 %); filled: registered; (pre-trainings){cut}", fontsize=8)
    return figure
