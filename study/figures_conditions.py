"""Figures of what RL's outcome hangs on: questions, data and scale, seeds, rollouts, the base, its exemplars."""

import matplotlib.pyplot as plt
import numpy as np

from study.figures import draw, legend, mark_floor, token_axis
from study.read import Lab, floor_of, per_question, pools, value
from study.stats import Claim
from study.tasks import amount as at


def pool_sizes(lab: Lab):
    """C3: scores against the number of questions; the last place is all of them, the main runs of RL and SFT."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.3))
    sizes, t, some = pools(lab), lab.late, False
    kinds = [  # method, variant, look, label
        ("rl", "", "rl", "RL"),
        ("sft", "many", "sft", "SFT, 60 epochs"),
        ("sft", "few", "base0", "SFT, 4 epochs"),
        ("gold", "many", "gold", "SFT-Gold, updates of 60 epochs"),
    ]
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
    rows = {  # label: method, variant, marker, face
        "after RL": ("rl", "hard", "o", "#a61c1c"),
        "base, 8 hard exemplars": ("base", "hard_shots", "s", "white"),
        "base, 8 gsm exemplars": ("base", "gsm_shots", "^", "#bbbbbb"),
    }
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
            log, some = lab.rows(run), True
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


def pretraining(lab: Lab):
    figure, ax = plt.subplots(figsize=(5, 3.3))
    some = False
    for r, line in zip(
        [r for r in lab.runs if r["kind"] == "pretrain"], ("-", "--", "-.", ":", (0, (5, 1))), strict=False
    ):
        log = [(row["train/tokens"], row["eval/loss"]) for row in lab.rows(r) if "eval/loss" in row]
        if log:
            ax.plot(*zip(*log, strict=True), color="#222222", ls=line, marker="o", ms=3, label=r["base"])
            some = True
    token_axis(ax, lab, "validation loss, nats a token")
    legend(ax)
    return figure if some else None
