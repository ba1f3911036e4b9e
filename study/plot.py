"""Curves of run folders: reward, loss, pass@k, completion length, entropy, general skill, against the step.

    python -m study.plot runs/rl --out runs/rl/curves.png
    python -m study.plot runs/rl runs/rl_none runs/sft --out curves.png         # overlaid, each named by what differs
    python -m study.plot runs/rl --metrics policy/kl train/grad_norm --out kl.png

They come from each run's metrics.jsonl; pass@k and general skill from evaluations beside its checkpoints (or in the
evals/ of its study) and from `eval/*` rows of the log. Runs whose config.json differs in nothing but the seed are one
curve: their mean, in a band from the lowest to the highest. A metric that a run does not have is left out.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from common import UserError, run, writable_dir
from data.files import replacing
from study.logs import Asked, Log, by_setting, counted, read_log

REWARD = {"reward/mean": "training reward"}  # metric -> title of its panel
OTHERS = {
    "completion/len_mean": "completion length, tokens",
    "policy/entropy": "entropy, nats a token",
    "train/loss": "training loss, nats a token",
    "pretrain/loss": "pre-training loss, nats a token",
    "eval/loss": "validation loss, nats a token",
    "rl/loss": "loss of RL (near 0 is normal)",
}
COLOURS = ["#a61c1c", "#2f6fa5", "#111111", "#d4a017", "#7d3c98", "#2e7d4f", "#888888", "#c96a2b"]
LINES = ["-", (0, (5, 1.5)), (0, (1, 1.2)), "-.", (0, (3, 1, 1, 1, 1, 1))]  # grey print tells them apart
FORMATS = ("png", "pdf", "svg")


# ------------------------------------------------------------------------------------------------------------- drawing
def pyplot():
    try:
        import matplotlib
    except ImportError:
        raise UserError("curves are drawn by matplotlib, which is not installed: pip install matplotlib") from None
    matplotlib.use("Agg")  # no window: figures are only written
    import matplotlib.pyplot as plt

    return plt


def looks(i: int) -> dict:
    return {"color": COLOURS[i % len(COLOURS)], "ls": LINES[i % len(LINES)]}


def together(series: list[dict[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values (S, steps)) at the steps that all of S runs have: a mean is always over the same runs."""
    steps = sorted(set.intersection(*map(set, series))) if series else []
    return np.array(steps), np.array([[s[step] for step in steps] for s in series])


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Along the last axis; centred, over fewer values at both ends."""
    ones = np.ones(window)
    counts = np.convolve(np.ones(values.shape[-1]), ones, "same")
    return np.array([np.convolve(row, ones, "same") for row in values]) / counts


def draw_metric(ax, groups: dict[str, list[Log]], metric: str) -> None:
    """A line a setting. A long log is smoothed, with the raw curve of a single run faintly behind."""
    widest, drawn = 1, []
    for i, members in enumerate(groups.values()):
        steps, values = together([s for log in members if (s := log.series(metric))])
        if not len(steps):
            continue
        drawn.append(steps)
        window = max(1, len(steps) // 25)
        widest = max(widest, window)
        smooth = running_mean(values, window)
        if len(values) > 1:
            ax.fill_between(steps, smooth.min(0), smooth.max(0), color=looks(i)["color"], alpha=0.15, lw=0)
        elif window > 1:
            ax.plot(steps, values[0], color=looks(i)["color"], lw=0.5, alpha=0.3)
        marker = "." if len(steps) < 12 else ""
        ax.plot(steps, smooth.mean(0), **looks(i), lw=1.4, marker=marker)
    step_axis(ax, drawn, f" (running mean of up to {widest})" * (widest > 1))


def step_axis(ax, drawn: list[np.ndarray], note: str = "") -> None:
    """Logarithmic where one run is many times as long as another."""
    lasts = [max(steps) for steps in drawn]
    if lasts and max(lasts) > 6 * min(lasts):
        ticks = [0, *(10**n for n in range(9) if 10**n <= max(lasts))]
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        ax.set_xlim(-0.2 if min(map(min, drawn)) == 0 else 0.9, 1.4 * max(lasts))
    else:
        ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("step" + note)


def draw_scores(ax, groups: dict[str, list[Log]], asked: list[Asked], name: str) -> None:
    """Means of scores in percent, bars from the lowest to the highest seed, a little apart where settings share a
    step."""
    points = {}
    for i, members in enumerate(groups.values()):
        at = [{s: v[name] for a in asked for s, v in log.scores.get(a, {}).items() if name in v} for log in members]
        steps, values = together([scores for scores in at if any(scores)])  # step 0 alone says nothing of a run
        if len(steps):
            points[i] = (steps, values)
    last = max((max(steps) for steps, _ in points.values()), default=1)
    for i, (steps, values) in points.items():
        beside = [[j for j, (theirs, _) in points.items() if step in theirs] for step in steps]
        apart = [
            0 if step == 0 else group.index(i) - (len(group) - 1) / 2 for step, group in zip(steps, beside, strict=True)
        ]
        values = 100 * values
        mean = values.mean(0)
        bars = [mean - values.min(0), values.max(0) - mean] if len(values) > 1 else None
        ax.errorbar(steps + 0.01 * last * np.array(apart), mean, bars, **looks(i), lw=1.4, marker="o", ms=4, capsize=2)
    at_least(ax, "y", 4)  # points: the axis must not make much of little
    ax.set_ylim(bottom=max(-1, ax.get_ylim()[0]))
    step_axis(ax, [steps for steps, _ in points.values()])


def at_least(ax, axis: str, span: float) -> None:
    """Widen an axis to this span, if it is less."""
    low, high = getattr(ax, f"get_{axis}lim")()
    more = (span - abs(high - low)) / 2
    if more > 0:
        getattr(ax, f"set_{axis}lim")(low - more, high + more)


def choose_asked(logs: list[Log]) -> Asked | None:
    """What most checkpoints were asked; of equals, questions of the training task, then validation questions. Says
    which evaluations are left out."""
    counts = Counter(a for log in logs for a, steps in log.scores.items() for step in steps if step)
    trained_on = {log.config.get("task") for log in logs}
    order = sorted(counts, key=lambda a: (-counts[a], a.task not in trained_on, a.split != "val", a.n_shot, str(a)))
    if order[1:]:
        told = [*map(str, order[1:4]), *([f"{len(order) - 4} more"] if order[4:] else [])]
        print(f"note: drawn are evaluations of {order[0]}; not drawn: {'; '.join(told)}")
    return order[0] if order else None


def panels(groups: dict[str, list[Log]], metrics: list[str] | None = None) -> list[tuple]:
    """(title, function that draws on axes) of all that these runs have, or of the metrics asked for."""
    logs = [log for members in groups.values() for log in members]
    known = sorted({m for log in logs for m in set(log.metrics())})
    for metric in metrics or []:
        if metric not in known:
            raise UserError(f"--metrics {metric}: no run logged it; there are {' '.join(known)}")
    if metrics:
        return metric_panels(groups, {m: m for m in metrics})
    watched = {m: f"{m[5:]} on validation questions, during training" for m in known if m.startswith("eval/")}
    parts = metric_panels(groups, {m: title for m, title in REWARD.items() if m in known})
    parts += metric_panels(groups, {m: title for m, title in watched.items() if m not in OTHERS})
    if asked := choose_asked(logs):
        names = {name for log in logs for scores in log.scores.get(asked, {}).values() for name in scores}
        names = sorted(names - {"general"}, key=lambda n: int(n[5:]))
        for name in dict.fromkeys([*names[:1], *names[-1:]]):
            parts.append((f"{name}, %\n{asked}", lambda ax, n=name: draw_scores(ax, groups, [asked], n)))
        every = list({a: None for log in logs for a in log.scores})
        if any("general" in v for log in logs for scores in log.scores.values() for s, v in scores.items() if s):
            parts.append(("general benchmarks, average, %", lambda ax: draw_scores(ax, groups, every, "general")))
    return parts + metric_panels(groups, {m: title for m, title in OTHERS.items() if m in known})


def metric_panels(groups: dict[str, list[Log]], titles: dict[str, str]) -> list[tuple]:
    return [(title, lambda ax, m=metric: draw_metric(ax, groups, m)) for metric, title in titles.items()]


def draw(groups: dict[str, list[Log]], out: Path, parts: list[tuple]) -> None:
    """The panels `parts` as one figure with one legend."""
    plt = pyplot()
    columns = min(len(parts), 3)
    lines = -(-len(parts) // columns)
    style = {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(lines, columns, figsize=(4.1 * columns, 2.9 * lines + 0.3), squeeze=False)
        for ax in axes.flat[len(parts) :]:
            ax.remove()
        for ax, (title, paint) in zip(axes.flat, parts, strict=False):
            paint(ax)
            ax.set_title(title)
            ax.grid(alpha=0.2, lw=0.5)
        names = [counted(label, members) for label, members in groups.items()]
        handles = [plt.Line2D([], [], **looks(i), lw=1.6) for i in range(len(names))]
        wide = max(1, round(48 * columns / (8 + max(map(len, names)))))
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), wide), frameon=False)
        try:
            with replacing(out) as file:
                figure.savefig(file, format=out.suffix[1:].lower(), dpi=140)
        except OSError as error:
            raise UserError(f"--out {out} could not be written ({error.strerror}); choose another place") from error
        finally:
            plt.close(figure)


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    p.add_argument("--out", default="curves.png", metavar="FILE", help=f"the figure: {', '.join(FORMATS)}")
    p.add_argument("--metrics", nargs="+", metavar="NAME", help="draw these metrics of the log instead")
    args = p.parse_args()
    args.out = Path(args.out)
    if args.out.suffix[1:].lower() not in FORMATS:
        raise UserError(f"--out {args.out}: the name must end in .{', .'.join(FORMATS)}")
    return args


def main():
    args = parse_args()
    pyplot()  # before any work
    logs = [read_log(Path(folder)) for folder in dict.fromkeys(args.runs)]
    for log in logs:
        if not log.rows:
            print(f"note: {log.folder} has logged no step yet, and is left out")
    logs = [log for log in logs if log.rows]
    if not logs:
        raise UserError("none of these runs has logged a step yet; try again when one has")
    groups = by_setting(logs)
    for label, members in groups.items():
        lasts = {max(log.rows): log for log in members}
        if len(lasts) > 1:
            first = min(lasts)
            print(f"note: {lasts[first].folder} ends at step {first}, and the mean of {label} with it")
    parts = panels(groups, args.metrics)
    if not parts:
        raise UserError("these runs logged none of the usual metrics; name some with --metrics")
    writable_dir(args.out.absolute().parent)
    draw(groups, args.out, parts)
    print(f"wrote {args.out}: {len(parts)} panels of {', '.join(counted(*g) for g in groups.items())}")


if __name__ == "__main__":
    run(main)
