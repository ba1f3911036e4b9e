"""Figures of the report: one function a figure, Lab (or a claim) -> matplotlib figure, or None if nothing is there yet.

Lines and markers, not only colours, tell the methods apart: the figures are readable in grey.
"""

import matplotlib

matplotlib.use("Agg")  # no window: figures are only written
import matplotlib.pyplot as plt
import numpy as np

from study.claims import Claim, at
from study.read import NAMES, Lab, per_question, pools, shuffled, value

STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "figure.constrained_layout.use": True, "legend.frameon": False, "legend.fontsize": 7.5,
}  # fmt: skip
LOOKS = {  # colour, line, marker, filled
    "base": ("#777777", "--", "o", False), "base0": ("#a0a0a0", ":", "s", False), "best": ("#111111", ":", "x", True),
    "rl": ("#a61c1c", "-", "o", True),
    "sft": ("#4a90c2", (0, (6, 1.5)), "^", True), "gold": ("#d4a017", "-.", "D", True),
    "sft_rl": ("#7d3c98", "--", "v", True), "gold_rl": ("#2e7d4f", "-.", "v", False),
    "parallel": ("#111111", "-", "s", True),
}  # fmt: skip
KS = (1, 8, 32)
SHOTS = {"base": "", "base0": "0-shot", "best": "best shots"}  # the base's lines; "": the study's few shots


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


def floor_of(lab: Lab, k: int) -> float | None:
    return next((r["result"]["questions"]["gsm"]["guess_floor"].get(str(k)) for r in lab.find()), None)


def mark_floor(ax, floor: float | None, name: str = "guess floor", side: str = "right") -> None:
    if floor is not None:
        if 100 * floor > ax.get_ylim()[1]:  # all scores lie below it
            ax.set_ylim(top=105 * floor)
        ax.axhline(100 * floor, color="#555555", lw=1, ls=(0, (1, 2)))
        at_edge = (0.98 if side == "right" else 0.02, 100 * floor)
        ax.annotate(name, at_edge, xycoords=("axes fraction", "data"), fontsize=7, va="bottom", ha=side)


def token_axis(ax, lab: Lab, title: str) -> None:
    ax.set_xscale("log")
    ticks = lab.planned["base"]
    ax.set_xticks(ticks, [at(t) for t in ticks])
    ax.minorticks_off()
    ax.set_title(title)
    ax.set_xlabel("pre-training tokens")
    ax.set_ylim(bottom=0)


def by_tokens(lab: Lab, ax, methods, get, title: str) -> None:
    """Each method's mean over seeds against pre-training tokens; bars: range over seeds."""
    for method in methods:
        kind, points = "base" if method in SHOTS else method, []
        for t in lab.planned[kind]:
            n_shot = {"base0": 0, "best": "best"}.get(method, lab.few_shot)
            found = lab.base(t, n_shot) if kind == "base" else lab.by_seed(method, t)
            if got := [s for s in map(get, found.values()) if s is not None]:
                points.append((t, np.mean(got), min(got), max(got)))
        if points:
            x, y, low, high = zip(*points, strict=True)
            label = f"base, {SHOTS[method] or f'{lab.few_shot}-shot'}" if kind == "base" else NAMES[kind]
            draw(ax, x, y, method, label, low, high)
    token_axis(ax, lab, title)


def passk(lab: Lab, methods=("base", "base0", "best", "rl", "sft", "gold", "sft_rl", "parallel"), ks=KS):
    figure, axes = plt.subplots(1, len(ks), figsize=(3.5 * len(ks), 3.4), squeeze=False)
    for ax, k in zip(axes[0], ks, strict=True):
        by_tokens(lab, ax, methods, lambda r, k=k: value(r, k), f"pass@{k}, %")
        mark_floor(ax, floor_of(lab, k))
        read = lab.copying.get("floor", {}).get(str(k)) if k > 1 else None  # of pass@1 it would hide the guess floor
        mark_floor(ax, read, "first number and a usual change", "left")
    legend(axes[0, 0])
    return figure


def general_average(result: dict) -> float | None:
    return result.get("general_average") if result["benchmarks"] else None


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
    general_panel(lab, ax, ("base", "rl", "sft", "gold", "sft_rl", "gold_rl", "parallel"))
    legend(ax)
    return figure


def parallel(lab: Lab):
    figure, axes = plt.subplots(2, 2, figsize=(8.4, 6.4))
    methods = ("base", "rl", "sft", "sft_rl", "gold", "gold_rl", "parallel")
    for ax, k in zip(axes.flat, KS, strict=False):
        by_tokens(lab, ax, methods, lambda r, k=k: value(r, k), f"pass@{k}, %")
        mark_floor(ax, floor_of(lab, k))
    general_panel(lab, axes[1, 1], methods)
    legend(axes[0, 0])
    return figure


def forest(claim: Claim):
    """Estimates with their intervals; dotted: the margin. Filled: primary; alone, where all would be too many."""
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
    figure.supxlabel(f"points, 95 % interval (within: 90 %); filled: primary; (seeds){cut}", fontsize=8)
    return figure


def pool_sizes(lab: Lab):
    """C3: scores against the number of questions; the last place is all of them, the main runs of RL and SFT."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.3))
    sizes, t, some = pools(lab), lab.late, False
    kinds = [("rl", "", "rl", "RL"), ("sft", "many", "sft", "SFT, 60 epochs"), ("sft", "few", "base0", "SFT, 4 epochs"),
             ("gold", "many", "gold", "SFT-Gold, updates of 60 epochs")]  # fmt: skip
    for ax, k in zip(axes, (1, 32), strict=True):
        for method, kind, look, label in kinds:
            places = [lab.by_seed(method, t, variant=f"pool{n}{kind}", group="c3") for n in sizes]
            whole = kind in ("", "few")  # SFT's main runs make about as few passes; many on all questions were not run
            places.append(lab.by_seed(method, t) if whole else {})
            got = [(i, [value(r, k) for r in found.values()]) for i, found in enumerate(places) if found]
            some = some or any(i < len(sizes) for i, _ in got)
            if got:
                x, y = [i for i, _ in got], [np.mean(v) for _, v in got]
                draw(ax, x, y, look, label, [min(v) for _, v in got], [max(v) for _, v in got])
        mark_floor(ax, floor_of(lab, k))
        ax.set_xticks(range(len(sizes) + 1), [*map(str, sizes), "all (main runs)"])
        ax.set_xlabel("training questions")
        ax.set_title(f"pass@{k}, % ({at(t)})")
        ax.set_ylim(bottom=0)
    legend(axes[1])
    return figure if some else None


def hard_tier(lab: Lab):
    """C4: each model's pass@1 on the hard tier before RL (two kinds of exemplars) and after."""
    figure, ax = plt.subplots(figsize=(6.4, 3.3))
    models = [r["base"] for r in lab.runs if r["kind"] == "pretrain"]
    rows = {"after RL": ("rl", "hard", "o", "#a61c1c"), "base, 8 hard exemplars": ("base", "hard_shots", "s", "white"),
            "base, 8 gsm exemplars": ("base", "gsm_shots", "^", "#bbbbbb")}  # fmt: skip
    some = False
    for i, (label, (method, variant, marker, face)) in enumerate(rows.items()):
        for x, model in enumerate(models):
            found = lab.find(method=method, base=model, group="c4", variant=variant)
            got = [100 * per_question(r["result"], 1, task="hard").mean() for r in found]
            name = label if x == 0 else None
            ax.plot([x + 0.15 * (i - 1)] * len(got), got, marker, color="#222222", mfc=face, ms=6, ls="", label=name)
            some = some or bool(got)
    mark_floor(ax, lab.manifest.get("data", {}).get("guess_floor", {}).get("hard", {}).get("1"))
    ax.set_xticks(range(len(models)), models)
    ax.set_ylabel("pass@1 on the hard tier, %")
    ax.set_ylim(bottom=0)
    legend(ax)
    return figure if some else None


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


def seeds(lab: Lab, claim: Claim):
    """C8: pass@1 of each seed beside its training reward at the end."""
    if not claim.points:
        return None
    places = sorted({p[0] for p in claim.points})
    figure, axes = plt.subplots(1, len(places), figsize=(4 * len(places), 3.2), squeeze=False)
    for ax, t in zip(axes[0], places, strict=True):
        mine = [p for p in claim.points if p[0] == t]
        ax.plot([p[1] for p in mine], [p[2] for p in mine], "o", color="#a61c1c", label="test pass@1 (flexible)")
        rewards = [(p[1], p[3]) for p in mine if p[3] is not None]
        if rewards:
            ax.plot(
                *zip(*rewards, strict=True), "s", color="#555555", mfc="white", label="training reward, last 5 batches"
            )
        if mine[0][4] is not None:
            ax.axhline(mine[0][4], color="#777777", ls="--", lw=1, label="base, best shots")
        ax.set_title(f"RL from {at(t)} tokens, %")
        ax.set_xlabel("seed")
        ax.set_xticks(sorted({p[1] for p in mine}))
        mark_floor(ax, floor_of(lab, 1))
        ax.set_ylim(bottom=0)
    legend(axes[0, 0])
    return figure


def rollout_flops(lab: Lab, rows: list[dict]) -> float:
    """FLOPs of RL steps: every sampled token one forward pass, tokens of groups with a signal forward and backward.
    Prompts are left out."""
    token = lab.flops_per_token()
    return sum(r["completion/tokens"] * token * (1 / 3 + 1 - r["reward/frac_zero_std_groups"]) for r in rows)


def budget(lab: Lab):
    """C9: validation pass@1 of the first seed against questions seen and against FLOPs, where scores were taken."""
    taken = {r["variant"].split("_")[0] for r in lab.evals if r["group"] == "c9" and r["split"] == "val"}
    splits = [s for s in ("hard", "easy") if s in taken] or ["hard"]
    figure, axes = plt.subplots(len(splits), 2, figsize=(8.4, 3 * len(splits)), sharey=True, squeeze=False)
    some = False
    for row, split in zip(axes, splits, strict=True):
        for name, look in (("many", "rl"), ("few", "base0"), ("long", "sft")):
            first = dict(variant=f"{split}_{name}", seed=lab.manifest["seed"])
            run = next((r for r in lab.runs if r.get("group") == "c9" and first.items() <= r.items()), None)
            found = lab.find(group="c9", variant=f"{split}_{name}", split="val", train_step=..., method="rl")
            points = sorted((r["train_step"], value(r["result"], 1)) for r in found)
            if not run or not points:
                continue
            log, some = lab.files.rows(run["metrics"]), True
            label = f"n = {run['config']['group_size']}, {run['config']['steps']} steps"
            y = [v for _, v in points]
            draw(row[0], [s * run["config"]["prompts_per_step"] for s, _ in points], y, look, label)
            draw(row[1], [rollout_flops(lab, [r for r in log if r["step"] <= s]) for s, _ in points], y, look, label)
        for ax, x in zip(row, ("questions seen", "FLOPs"), strict=True):
            ax.set_title(f"trained on {split} questions: validation pass@1, %")
            ax.set_xlabel(x)
            if ax.lines and x == "FLOPs":
                ax.set_xscale("log")
                ax.minorticks_off()
            mark_floor(ax, floor_of(lab, 1))
    legend(axes[0, 0])
    return figure if some else None


def diagnostic(lab: Lab, claim: Claim):
    """C10: RL's outcome against the base's validation pass@32."""
    if not claim.points:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.3))
    for ax, (k, out) in zip(axes, ((32, 1), (32, 32)), strict=True):
        for base, marker in zip(dict.fromkeys(p["base"] for p in claim.points), "osD^vP", strict=False):
            mine = [p for p in claim.points if p["base"] == base]
            x, y = [100 * p["x"][k] for p in mine], [100 * p["y"][out] for p in mine]
            ax.plot(x, y, marker, color="#333333", mfc="white" if marker in "sD" else "#333333", label=base)
            for p, a, b in zip(mine, x, y, strict=True):
                ax.annotate(at(p["tokens"]), (a, b), fontsize=6, xytext=(3, 3), textcoords="offset points")
        ax.set_xlabel(f"base, validation pass@{k}, %")
        ax.set_title(f"after RL, test pass@{out}, %")
        mark_floor(ax, floor_of(lab, out))
    legend(axes[0])
    return figure


def shots(lab: Lab):
    """C11: the base with each number of exemplars."""
    asked = sorted({r["n_shot"] for r in lab.evals if r["method"] == "base" and r["group"] == "main"})
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.3))
    for ax, k in zip(axes, (1, 32), strict=True):
        for n, look in zip(asked, ("base0", "sft", "gold", "parallel"), strict=False):
            points = [(t, value(r, k)) for t in lab.planned["base"] for r in lab.base(t, n).values()]
            if points:
                draw(ax, *zip(*points, strict=True), look, f"{n}-shot")
        token_axis(ax, lab, f"base, pass@{k}, %")
        mark_floor(ax, floor_of(lab, k))
    legend(axes[0])
    return figure


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
                if mine:
                    ax.plot(*zip(*mine, strict=True), marker, color=colour, mfc=colour if filled else "white", ms=5,
                            label=NAMES[method])  # fmt: skip
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


def pretraining(lab: Lab):
    figure, ax = plt.subplots(figsize=(5, 3.3))
    some = False
    for r, line in zip(
        [r for r in lab.runs if r["kind"] == "pretrain"], ("-", "--", "-.", ":", (0, (5, 1))), strict=False
    ):
        log = [(row["train/tokens"], row["eval/loss"]) for row in lab.files.rows(r["metrics"]) if "eval/loss" in row]
        if log:
            ax.plot(*zip(*log, strict=True), color="#222222", ls=line, marker="o", ms=3, label=r["base"])
            some = True
    token_axis(ax, lab, "validation loss, nats a token")
    legend(ax)
    return figure if some else None
