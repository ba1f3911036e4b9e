"""Figures along a run, to large k, and of the controls."""

import matplotlib.pyplot as plt
import numpy as np

from study.controls import shuffled
from study.figures import LOOKS, draw, legend, mark_floor
from study.read import NAMES, Lab, floor_of, value
from study.tasks import amount as at


def dynamics(lab: Lab, tokens: int):
    """Along direct RL and RL after SFT, first seed: validation questions above, training reward below."""
    figure, axes = plt.subplots(2, 2, figsize=(8.4, 5), sharex="col", height_ratios=[2, 1])
    some = False
    for (top, bottom), method in zip(axes.T, ("rl", "sft_rl"), strict=True):
        rows = lab.find(method=method, tokens=tokens, group="dynamics", split="val", train_step=...)
        steps = sorted((r["train_step"], r["result"]) for r in rows)
        for k, look in ((1, "parallel"), (8, "base0"), (32, "base")):
            if steps:
                draw(top, [s for s, _ in steps], [value(r, k) for _, r in steps], look, f"pass@{k}")
                mark_floor(top, steps[0][1]["questions"]["gsm"]["guess_floor"].get(str(k)), f"guess floor @{k}")
        reward = [(r["step"], 100 * r["reward/mean"]) for r in lab.log(method, tokens, lab.manifest["seed"])]
        if reward:
            bottom.plot(*zip(*reward, strict=True), color="#555555", lw=1)
        some = some or len(steps) > 1
        top.set_title(f"{NAMES[method]}, from {at(tokens)} tokens")
        top.set_ylim(bottom=0)
        bottom.set_ylim(bottom=0)
        bottom.set_xlabel("rollout batches")
    axes[0, 0].set_ylabel("validation pass@k, %")
    axes[1, 0].set_ylabel("training reward, %")
    legend(axes[0, 0])
    return figure if some else None


def wide(lab: Lab):
    """C5: pass@k to k = 256; thin: the same answers shuffled."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
    some = False
    for ax, temperature in zip(axes, (0.6, 1.0), strict=True):
        for r in lab.find(group="wide", temperature=temperature, n_shot=..., tokens=lab.late):
            gsm, few = r["result"]["questions"]["gsm"], r["method"] == "base" and r["n_shot"]
            ks = [int(name[5:]) for name in gsm["flexible"]]
            look = "base0" if r["method"] == "base" and not few else r["method"]
            label = f"base, {r['n_shot']}-shot" if r["method"] == "base" else NAMES[r["method"]]
            draw(ax, ks, [value(r["result"], k) for k in ks], look, label)
            colour, line, *_ = LOOKS[look]
            ax.plot(ks, [100 * shuffled(r["result"], k).mean() for k in ks], color=colour, ls=line, lw=0.6)
            floor, some = gsm["guess_floor"], True
        if some and ax.lines:
            ax.plot(ks, [100 * floor[str(k)] for k in ks], color="#555555", ls=(0, (1, 2)), label="guess floor")
            ax.set_xscale("log", base=2)
            ax.set_xticks(ks, map(str, ks))
        ax.set_title(f"T {temperature}, 100 questions: pass@k, %; thin: shuffled")
        ax.set_xlabel("k")
    if some:
        axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure if some else None


def movement(rows: list[dict]):
    """K1: general score and general loss against distance, KL and pass@1; a point is a run."""
    if not rows:
        return None
    figure, axes = plt.subplots(2, 3, figsize=(10, 6))
    for y, line in zip(("general", "loss"), axes, strict=True):
        for x, ax in zip(("distance", "kl", "pass@1"), line, strict=True):
            for method in dict.fromkeys(r["method"] for r in rows):
                colour, _, marker, filled = LOOKS[method]
                mine = [r for r in rows if r["method"] == method and r[y] is not None]
                mine = [[r[k] * (100 if k in ("general", "pass@1") else 1) for k in (x, y)] for r in mine]
                face = colour if filled else "white"
                if mine:
                    ax.plot(*zip(*mine, strict=True), marker, color=colour, mfc=face, ms=5, label=NAMES[method])
            told = [r for r in rows if r["method"] == "sft" and r["variant"] and r["seed"] == rows[0]["seed"]]
            told = sorted(told, key=lambda r: r["loss"]) if (x, y) == ("distance", "loss") else []
            for i, r in enumerate(told):  # SFT's variants, first seed: rate x updates, or the control's name
                left = dict(xytext=(-5, 2), ha="right") if i % 2 else dict(xytext=(5, -6))
                ax.annotate(r["variant"], (r[x], r[y]), fontsize=5, textcoords="offset points", **left)
            names = {"distance": "distance / norm of the weights", "kl": "KL from the start, nats a token"}
            ax.set_xlabel(names.get(x, "gsm pass@1, %"))
            ax.set_title({"general": "general average, %", "loss": "general loss, change, nats a token"}[y])
            if y == "loss":  # most runs lie between 0 and 0.3, a few beyond 1
                ax.set_yscale("symlog", linthresh=0.1)
                ax.set_yticks([0, 0.05, 0.1, 0.3, 1, 3])
                ax.yaxis.set_major_formatter("{x:g}")
            if x != "pass@1" and ax.lines:
                ax.set_xscale("log")
                low, high = ax.get_xlim()
                ax.set_xticks([t for t in (0.01, 0.03, 0.1, 0.3, 1, 3, 10) if low < t < high])
                ax.xaxis.set_major_formatter("{x:g}")
                ax.minorticks_off()
    legend(axes[1, 0])
    return figure


def variants(lab: Lab, rows: list[dict]):
    """K2 to K4: a row for each variant; dots are seeds, the stroke is their mean. Dotted: the guess floor."""
    names = list(dict.fromkeys((r["method"], r["variant"]) for r in rows))
    if not names:
        return None
    figure, axes = plt.subplots(1, 3, figsize=(10, 0.9 + 0.28 * len(names)), sharey=True)
    for ax, what in zip(axes, ("pass@1", "pass@32", "general"), strict=True):
        for y, key in enumerate(reversed(names)):
            got = [100 * r[what] for r in rows if (r["method"], r["variant"]) == key and r[what] is not None]
            ax.plot(got, [y] * len(got), "o", color="#777777", ms=4)
            if got:
                ax.plot([np.mean(got)] * 2, [y - 0.35, y + 0.35], color="#111111", lw=2)
        ax.set_title(f"{what}, %")
        if what != "general" and (floor := floor_of(lab, int(what[5:]))) is not None:
            ax.axvline(100 * floor, color="#555555", lw=1, ls=(0, (1, 2)))
    axes[0].set_yticks(range(len(names)), [f"{NAMES[m]} {v}".strip() for m, v in reversed(names)])
    return figure
