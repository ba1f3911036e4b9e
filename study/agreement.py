"""Do the methods stand in the paper's order? And what did each one cost?"""

import math
from collections.abc import Callable

import numpy as np

from study.paper import PAPER
from study.read import NAMES, Lab, mean, value
from study.stats import kendall, kendall_p
from study.tasks import amount as at

METHODS = ("base", "rl", "sft", "gold", "sft_rl", "parallel")


# ---------------------------------------------------------------- order
def best_base(scores: dict) -> tuple:
    """The paper's base with eight or no shots, whichever has the better pass@1."""
    return max(scores["base8"], scores["base0"])


def nearest(lab: Lab, tokens: int) -> int | None:
    """The paper's checkpoint (billions of tokens) whose base has the nearest pass@1, in proportion, each prompted at
    its best: RL and SFT are compared by what they start from, not by a count of tokens."""
    base = lab.base(tokens)
    if not base:
        return None
    ours = max(mean(base), 1e-3)
    return min(PAPER, key=lambda b: abs(math.log(best_base(PAPER[b])[0] / 100 / ours)))


def orders(lab: Lab, tokens: int, k: int) -> tuple[list[str], list[float], dict[int, list[float]]]:
    """(methods that both have, the paper's scores, those of each seed that has all of them)."""
    theirs = PAPER[nearest(lab, tokens)]
    theirs = {m: (best_base(theirs) if m == "base" else theirs.get(m)) for m in METHODS}
    ours = {m: lab.base(tokens) if m == "base" else lab.by_seed(m, tokens) for m in METHODS}
    both = [m for m in METHODS if theirs[m] and ours[m]]
    seeds = sorted(set.intersection(*(set(ours[m]) for m in both))) if both else []
    place = {1: 0, 8: 1, 32: 2}[k]
    return both, [theirs[m][place] for m in both], {s: [value(ours[m][s], k) for m in both] for s in seeds}


def table(lab: Lab) -> tuple:
    """Kendall's tau of the order of the methods with the paper's."""
    rows = []
    for t in lab.planned["rl"]:
        billions = nearest(lab, t)
        for k in (1, 32) if billions else ():
            methods, theirs, ours = orders(lab, t, k)
            if len(methods) < 3 or not ours:
                continue
            means = np.mean(list(ours.values()), axis=0)
            each = ", ".join(signed(kendall(theirs, scores)) for scores in ours.values())
            order = " < ".join(NAMES[methods[i]] for i in np.argsort(means, kind="stable"))
            tau = f"**{signed(kendall(theirs, means))}** ({each})"
            rows.append([at(t), f"{billions}B", f"pass@{k}", tau, f"{kendall_p(theirs, means):.2f}", order])
    head = ["from", "the paper's", "", "tau (each pre-training)", "by chance", "order here"]
    return "table", head, rows


def headline(lab: Lab) -> str:
    """In a sentence, early and late."""
    told = []
    for t in dict.fromkeys([lab.early, lab.late]):
        billions = nearest(lab, t)
        for k in (1, 32) if billions else ():
            methods, theirs, ours = orders(lab, t, k)
            if len(methods) > 2 and ours:
                means = np.mean(list(ours.values()), axis=0)
                which = (
                    f"{len(methods)} methods, the paper's {billions}B; {100 * kendall_p(theirs, means):.0f} % by chance"
                )
                told.append(f"{signed(kendall(theirs, means))} in pass@{k} at {at(t)} ({which})")
    return (
        "**Do the methods stand in the paper's order?** Kendall's tau (1: the same, −1: the opposite; by chance: the "
        f"share of random orders that agree as well): {'; '.join(told) or 'not run'}."
    )


def signed(tau: float) -> str:
    return "–" if math.isnan(tau) else f"{tau + 1e-12:+.2f}".replace("-", "−")


# ---------------------------------------------------------------- cost
def cost_of(rows: list[dict], config: dict, flops: float) -> dict[str, float]:
    """Of a run's steps: completions sampled, tokens with a gradient, FLOPs, right answers seen (SFT: examples). A
    sampled token is a forward pass; prompts are left out."""
    prompts, group = config.get("prompts_per_step", 48), config.get("group_size", 16)
    out = dict.fromkeys(("completions", "tokens", "flops", "right"), 0.0)
    for r in rows:
        sampled = r.get("completion/tokens", 0)
        trained = sampled * (1 - r.get("reward/frac_zero_std_groups", 1.0))
        read = r.get("perf/tok_per_sec", 0.0) * r.get("perf/step_ms", 0.0) / 1e3  # of solutions; merge.py: all tokens
        read = max(0.0, read - sampled) if "sft/loss" in r or not sampled else 0.0
        out["completions"] += prompts * group if sampled else 0
        out["tokens"] += trained + read
        out["flops"] += flops * (sampled / 3 + trained + read)
        shown = config.get("batch_size", 64) if "sft/loss" in r or not sampled else 0
        out["right"] += r.get("reward/hits", 0) + shown
    return out


def compute(lab: Lab) -> tuple:
    """What each method took from a checkpoint, mean over seeds; SFT→RL with the SFT before it."""
    rows, flops = [], lab.flops_per_token()
    for t in lab.primary:
        for method in METHODS[1:]:
            found, config = lab.logs(method, t), lab.config(method, t)
            costs = {s: cost_of(log, config, flops) for s, log in found.items()}
            if method == "sft_rl":
                add_start(lab, t, costs, flops)
            if costs:
                mean_of = {key: np.mean([c[key] for c in costs.values()]) for key in next(iter(costs.values()))}
                scores = lab.by_seed(method, t)
                told = [f"{100 * mean(scores, k):.1f}" if scores else "–" for k in (1, 32)]
                numbers = [mean_of[key] for key in ("completions", "tokens", "right")]
                rows.append([at(t), NAMES[method], *(f"{n:,.0f}" for n in numbers), f"{mean_of['flops']:.2g}", *told])
    head = ["from", "method", "completions", "trained tokens", "right answers seen", "FLOPs", "pass@1", "pass@32"]
    return "table", head, rows


def add_start(lab: Lab, tokens: int, costs: dict[int, dict], flops: float) -> None:
    """To SFT→RL, the passes of SFT from which it began."""
    config, m = lab.config("sft", tokens), lab.manifest
    step = math.ceil(m.get("start_passes", 0) * m.get("pool", 0) / config.get("batch_size", 64))
    for seed, log in lab.logs("sft", tokens).items():
        if seed in costs:
            before = cost_of([r for r in log if r["step"] <= step], config, flops)
            costs[seed] = {key: costs[seed][key] + before[key] for key in before}


# ---------------------------------------------------------------- the stop
def slopes(lab: Lab) -> list[str]:
    """Did RL reach a plateau? Validation pass@1 between the last two looks, and the training reward's own slope."""
    lines, rising, asked = [], 0, 0
    for t in lab.primary:
        for method in ("rl", "sft_rl", "parallel"):
            told = []
            found = lab.find(method=method, tokens=t, group="dynamics", split="val", train_step=...)
            path = sorted((r["train_step"], 100 * value(r["result"], 1)) for r in found)
            if len(path) > 1:
                (a, x), (b, y) = path[-2:]
                told.append(f"validation pass@1 {x:.1f} at batch {a}, {y:.1f} at {b}")
            ends = [slope(log, lambda r: 100 * r["reward/mean"]) for log in lab.logs(method, t).values()]
            if ends := [e for e in ends if e is not None]:
                rising, asked = rising + sum(e > 0 for e in ends), asked + len(ends)
                each = ", ".join(f"{e:+.1f}" for e in ends).replace("-", "−")
                told.append(f"training reward over the last third {each} points in ten batches, each pre-training")
            lines += [f"{NAMES[method]} from {at(t)}: {'; '.join(told)}."] if told else []
    plateau = [f"No plateau is claimed: in {rising} of {asked} runs the training reward still rises at the stop."]
    return plateau * bool(asked) + lines or ["Not run."]


def slope(log: list[dict], get: Callable[[dict], float]) -> float | None:
    """Of a straight line through the last third of a run, for ten steps."""
    rows = [r for r in log if "reward/mean" in r]
    rows = rows[2 * len(rows) // 3 :]
    if len(rows) < 3:
        return None
    return 10 * float(np.polyfit([r["step"] for r in rows], [get(r) for r in rows], 1)[0])
