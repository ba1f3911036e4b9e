"""Figures along a run: validation scores, and how RL changes what is written."""

import matplotlib.pyplot as plt
import numpy as np

from study.figures import LOOKS, draw, legend, mark_floor
from study.mechanism import along, written
from study.read import NAMES, Lab, value
from study.tasks import amount as at

STYLES = (("x", "#111111"), ("o", "#4a90c2"), ("^", "#d4a017"), ("s", "#2e7d4f"), ("D", "#7d3c98"), ("v", "#a61c1c"))


def dynamics(lab: Lab, tokens: int):
    """Along direct RL, RL after SFT and averaging, first seed: validation questions above, training reward below."""
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 4.8), sharex="col", sharey="row", height_ratios=[2, 1])
    some = False
    for (top, bottom), method in zip(axes.T, ("rl", "sft_rl", "parallel"), strict=True):
        rows = lab.find(method=method, tokens=tokens, group="dynamics", split="val", train_step=...)
        steps = sorted((r["train_step"], r["result"]) for r in rows)
        for k, look in ((1, "parallel"), (8, "base0"), (32, "base")):
            if steps:
                draw(top, [s for s, _ in steps], [value(r, k) for _, r in steps], look, f"pass@{k}")
                mark_floor(top, steps[0][1]["questions"]["gsm"]["guess_floor"].get(str(k)), f"guess floor @{k}")
        for seed, log in lab.logs(method, tokens).items():
            reward = [(r["step"], 100 * r["reward/mean"]) for r in log if "reward/mean" in r]
            bottom.plot(*zip(*reward, strict=True), color="#222222" if seed == lab.first else "#aaaaaa", lw=1)
        some = some or len(steps) > 1
        top.set_title(f"{NAMES[method]}, from {at(tokens)}")
        top.set_ylim(bottom=0)
        bottom.set_ylim(bottom=0)
        bottom.set_xlabel("rollout batches")
    axes[0, 0].set_ylabel("validation pass@k, %")
    axes[1, 0].set_ylabel("training reward, %")
    legend(axes[0, 0])
    return figure if some else None


def mechanism(lab: Lab):
    """Rows: early, late. Reward, entropy and length of RL's rollouts at each step (thin: each pre-training); and of
    answers to validation questions, first seed, the share without work and of each style."""
    panels = {"reward/mean": "training reward", "policy/entropy": "entropy, nats a token"}
    panels |= {"completion/len_mean": "tokens a completion"}
    figure, axes = plt.subplots(len(lab.primary), 4, figsize=(11, 2.7 * len(lab.primary)), squeeze=False)
    some = False
    for line, t in zip(axes, lab.primary, strict=True):
        for ax, (key, title) in zip(line, panels.items(), strict=False):
            for method in ("rl", "sft_rl", "parallel"):
                logs = along(lab, method, t, key)
                colour, style, *_ = LOOKS[method]
                for log in logs.values():
                    ax.plot(*zip(*log, strict=True), color=colour, ls=style, lw=0.5, alpha=0.4)
                if logs:
                    steps = min(map(len, logs.values()))
                    mean = np.mean([[y for _, y in log[:steps]] for log in logs.values()], axis=0)
                    x = [s for s, _ in next(iter(logs.values()))[:steps]]
                    ax.plot(x, mean, color=colour, ls=style, lw=1.5, label=NAMES[method])
                    some = True
            ax.set_title(f"{at(t)}: {title}")
            ax.set_ylim(bottom=0)
        shares = written(lab, "rl", t)
        for name, (marker, colour) in zip(next(iter(shares.values()), {}), STYLES, strict=False):
            y = [100 * s[name] for s in shares.values()]
            line[3].plot(list(shares), y, marker=marker, color=colour, ms=4, lw=1.2, label=name)
        line[3].set_title(f"{at(t)}: how RL answers, %")
        line[3].set_ylim(0, 100)
    for ax in axes[-1]:
        ax.set_xlabel("rollout batches")
    legend(axes[0, 0])
    legend(axes[0, 3])
    return figure if some else None
