"""Figures of what RL's outcome hangs on: questions and passes, number of events, seeds, the base."""

import matplotlib.pyplot as plt
import numpy as np

from study import axis, beyond
from study.figures import draw, legend, mark_floor, token_axis
from study.read import NAMES, Lab, best_blind, floor_of, value
from study.stats import Claim
from study.tasks import amount as at


def what_decides(lab: Lab):
    """pass@1 and pass@32 against the number of questions, a column a number of passes; grey: the paper's place."""
    a, paper = axis.read(lab), axis.paper_pool(lab)
    if len(a.pools) < 2:
        return None
    figure, axes = plt.subplots(
        2, len(a.passes), figsize=(3.1 * len(a.passes), 6), sharey="row", sharex=True, squeeze=False
    )
    for line, k in zip(axes, (1, 32), strict=True):
        base = axis.base_score(lab, a, k)
        for ax, passes in zip(line, a.passes, strict=True):
            for method in ("sft", "gold", "sft_rl", "rl", "parallel"):
                places = [(n, a.score(method, n, 0 if method in ("rl", "parallel") else passes, k)) for n in a.pools]
                points = [(n, s.mean()) for n, s in places if s is not None]
                if points:
                    draw(ax, *zip(*points, strict=True), method, NAMES[method])
            if base is not None:
                ax.axhline(100 * base.mean(), color="#777777", ls="--", lw=1, label="base, best shots")
            ax.set_xscale("log")
            ax.set_xticks(a.pools, [f"{n:,}" for n in a.pools])
            ax.minorticks_off()
            ax.set_title(f"{passes} passes: pass@{k}, %")
            ax.set_ylim(0, 100 if k == 32 else None)
            where = [
                m for m, n in axis.PAPER_PASSES.items() if paper and min(a.passes, key=lambda p: abs(p - n)) == passes
            ]
            if where:
                ax.axvline(paper, color="#888888", lw=5, alpha=0.25)
                passes_there = [f"{NAMES[m]} ({axis.PAPER_PASSES[m]} passes)" for m in where]
                ax.annotate("the paper's\n" + "\n".join(passes_there), (paper, 0.02), fontsize=7,
                            xycoords=("data", "axes fraction"), ha="center", va="bottom")  # fmt: skip
    for ax in axes[-1]:
        ax.set_xlabel("questions with a solution")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return figure


def events(lab: Lab):
    """pass@1 and pass@32 by number of events; shaded: beyond what pre-training read."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.4))
    last, some = beyond.edge(lab), False
    for ax, k in zip(axes, (1, 32), strict=True):
        for method in beyond.METHODS:
            found = beyond.curve(lab, method, k)
            if found:
                draw(ax, list(found), [s for s, _ in found.values()], method, NAMES[method])
                some = True
        right = ax.get_xlim()[1]
        if last and right > last + 0.5:
            ax.axvspan(last + 0.5, right, color="#eeeeee", zorder=0)
            ax.annotate(
                "longer than the text", (last + 0.6, 0.97), xycoords=("data", "axes fraction"), fontsize=7, va="top"
            )
            ax.set_xlim(right=right)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_title(f"from {at(lab.late)}: pass@{k}, %")
        ax.set_xlabel("events in the question")
        ax.set_ylim(bottom=0)
    legend(axes[0])
    return figure if some else None


def seeds(lab: Lab, claim: Claim):
    """C8: pass@1 of each run."""
    if not claim.points:
        return None
    places = list(dict.fromkeys((p[0], p[1]) for p in claim.points))
    figure, ax = plt.subplots(figsize=(7, 0.8 + 0.4 * len(places)))
    for y, place in enumerate(reversed(places)):
        got = [p[3] for p in claim.points if (p[0], p[1]) == place]
        ax.plot(got, [y] * len(got), "o", color="#a61c1c", mfc="white" if "post" in place[1] else "#a61c1c")
    ax.set_yticks(range(len(places)), [f"{at(t)}: {what}" for t, what in reversed(places)])
    ax.set_ylim(-0.6, len(places) - 0.4)
    ax.set_xlim(left=0)
    ax.set_title("pass@1 after RL, %")
    return figure


def diagnostic(lab: Lab, claim: Claim):
    """C10: RL's outcome against the base's validation pass@32; a marker for each pre-training."""
    if not claim.points:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.3))
    for ax, out in zip(axes, (1, 32), strict=True):
        for seed, marker in zip(dict.fromkeys(p["seed"] for p in claim.points), "osD^vP", strict=False):
            mine = [p for p in claim.points if p["seed"] == seed]
            x, y = [100 * p["x"][32] for p in mine], [100 * p["y"][out] for p in mine]
            face = "white" if marker in "sD" else "#333333"
            ax.plot(x, y, marker, color="#333333", mfc=face, label=f"pre-training {seed}")
            for p, a, b in zip(mine, x, y, strict=True):
                ax.annotate(at(p["tokens"]), (a, b), fontsize=6, xytext=(3, 3), textcoords="offset points")
        ax.set_xlabel("base, validation pass@32, %")
        ax.set_title(f"after RL, test pass@{out}, %")
        mark_floor(ax, best_blind(lab, out), "best blind rule")
    legend(axes[0])
    return figure


def shots(lab: Lab):
    """C11: the base with each number of exemplars, mean over pre-trainings."""
    asked = sorted({r["n_shot"] for r in lab.evals if r["method"] == "base" and r["group"] == "main"})
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.3))
    for ax, k in zip(axes, (1, 32), strict=True):
        for n, look in zip(asked, ("base0", "sft"), strict=False):
            found = [(t, [value(r, k) for r in lab.base(t, n).values()]) for t in lab.planned["base"]]
            if points := [(t, np.mean(v), min(v), max(v)) for t, v in found if v]:
                x, y, low, high = zip(*points, strict=True)
                draw(ax, x, y, look, f"{n}-shot", low, high)
        token_axis(ax, lab, f"base, pass@{k}, %")
        mark_floor(ax, floor_of(lab, k))
    legend(axes[0])
    return figure


def pretraining(lab: Lab):
    figure, ax = plt.subplots(figsize=(5, 3.3))
    some, lines = False, ("-", "--", "-.", ":", (0, (5, 1)))
    for r, line in zip([r for r in lab.runs if r["kind"] == "pretrain"], lines, strict=False):
        log = [(row["train/tokens"], row["eval/loss"]) for row in lab.rows(r) if "eval/loss" in row]
        if log:
            ax.plot(*zip(*log, strict=True), color="#222222", ls=line, marker="o", ms=3, label=f"seed {r['seed']}")
            some = True
    ticks = sorted({*lab.planned["base"][:1], *lab.primary})
    ax.set_xscale("log")
    ax.set_xticks(ticks, [at(t) for t in ticks])
    ax.minorticks_off()
    ax.set_title("validation loss, nats a token")
    ax.set_xlabel("pre-training tokens")
    legend(ax)
    return figure if some else None
