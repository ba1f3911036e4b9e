"""The report of a run on real data, with a model far too small for it: that every path works, and what came out. It
judges no claim."""

from collections.abc import Callable

import numpy as np

from study.archive import samples_of
from study.figures import LOOKS, plt
from study.provenance import made_by, not_run, time_by_stage
from study.read import NAMES, Lab
from study.render import quoted
from study.tasks import amount as at

TITLE = "Every stage on real data, with a model too small for it"
SAID = (
    "This run shows that the way from public files to scores works: text to token files, pre-training, few-shot and "
    "0-shot evaluation, RL, SFT, SFT→RL, averaging. It says nothing of the paper's claims: the model has a few million "
    "parameters, nearly all of them in GPT-2's vocabulary, and has read a million tokens or two."
)
WORDS = [
    "Losses: means of the first and the last tenth of what was logged.",
    "Intervals are 95 %: 1.96 standard errors over questions; where none was right, below 3 / questions.",
    "flexible: what follows the final-answer marker, else the last number; strict: only what follows the marker, as in "
    "RL's reward. format: share of completions with the marker. finished: share that ended by themselves. Guess floor: "
    "answers drawn blindly from those of the training questions. Chance: a blind choice.",
]
SHOWN = 160  # characters of a completion that are shown


def is_real(lab: Lab) -> bool:
    return (lab.manifest.get("data") or {}).get("kind") == "text"


def blocks(lab: Lab, draw: Callable[[str], list[tuple]]) -> list[tuple]:
    head = [("head", 1, TITLE), ("text", SAID), *made_by(lab, judged=False)]
    return [
        *head,
        ("text", data(lab)),
        ("head", 2, "Training"),
        *draw("losses"),
        ("list", training(lab)),
        ("head", 2, "GSM8K"),
        scores(lab),
        ("text", learned(lab)),
        ("head", 2, "General benchmarks"),
        benchmarks(lab),
        ("head", 2, "What the models write"),
        *samples(lab),
        ("head", 2, "Words"),
        ("list", WORDS),
        *time_by_stage(lab),
        *not_run(lab),
    ]


def evaluations(lab: Lab) -> list[tuple[str, dict]]:
    """(name, result) of what was scored, the base first."""
    return [(named(r), r["result"]) for r in lab.find(tokens=lab.late, n_shot=...)]


def named(run: dict) -> str:
    return f"base, {run['n_shot']}-shot" if run["method"] == "base" else NAMES[run["method"]]


def data(lab: Lab) -> str:
    meta = lab.manifest["data"]
    sizes = ", ".join(f"{name} {at(entry['tokens'])}" for name, entry in meta["files"].items())
    mix = ", ".join(f"{name} {100 * weight:.0f} %" for name, weight in meta["mixes"]["base"].items())
    return f"Tokens of {quoted(meta['tokenizer']['name'])}: {sizes}. Mix: {mix}. {at(lab.late)} tokens of training."


# ---------------------------------------------------------------- training
def training(lab: Lab) -> list[str]:
    """How losses fell, and what reward there was to learn from."""
    lines = []
    for run in lab.runs:
        rows, name = lab.rows(run), "pre-training" if run["kind"] == "pretrain" else NAMES[run["method"]]
        if not rows:
            continue
        for key, what in (("eval/loss", "held-out loss"), ("train/loss", "loss"), ("sft/loss", "SFT loss")):
            values = [row[key] for row in rows if key in row]
            if values and ("reward/mean" not in rows[0] or key == "sft/loss"):
                tenth = max(1, len(values) // 10)
                first, last = np.mean(values[:tenth]), np.mean(values[-tenth:])
                lines.append(f"{name}: {what} {first:.2f} → {last:.2f} nats a token in {len(rows)} steps.")
        if "reward/hits" in rows[0]:
            hits = sum(row["reward/hits"] for row in rows)
            signal = sum(row["reward/frac_zero_std_groups"] < 1 for row in rows)
            told = f"{hits} completions were rewarded; {signal} of {len(rows)} steps had a group with unequal rewards."
            none = " With none, every advantage is zero, and RL leaves the weights but for weight decay as they were."
            lines.append(f"{name}: {told}{'' if hits else none}")
    return lines


def losses(lab: Lab):
    """Figure: pre-training, SFT, rewards."""
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.8))
    for run in lab.runs:
        rows, method = lab.rows(run), run["method"]
        colour, line, _, _ = LOOKS[method]
        for key, ax in (("train/loss", axes[0]), ("eval/loss", axes[0]), ("reward/mean", axes[2])):
            steps, values = np.array([(r["step"], r[key]) for r in rows if key in r]).reshape(-1, 2).T
            if len(steps) and (ax is axes[2] or run["kind"] == "pretrain"):
                label = {"train/loss": "training", "eval/loss": "held out"}.get(key, NAMES[method])
                ax.plot(steps, values, color="black" if key == "eval/loss" else colour, ls=line, lw=1.2, label=label)
        key = "sft/loss" if method == "parallel" else "train/loss"
        values = [r[key] for r in rows if key in r]
        if method in ("sft", "parallel") and values:
            axes[1].plot(values, color=colour, ls=line, lw=1.2, label=NAMES[method])
    for ax, title in zip(axes, ("Pre-training: loss", "SFT: loss", "RL: share rewarded"), strict=True):
        ax.set(title=title, xlabel="step")
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
    return figure


# ---------------------------------------------------------------- scores
def percent(score: dict, n: int) -> str:
    """With its 95 % interval."""
    value, error = 100 * score["value"], 196 * score["stderr"]
    return (
        f"{value:.1f} ± {error:.1f}" if error else f"{value:.1f} (below {300 / n:.1f})" if not value else f"{value:.1f}"
    )


def scores(lab: Lab) -> tuple:
    rows, ks = [], []
    for name, result in evaluations(lab):
        found = next(iter(result["questions"].values()))
        n, ks = found["n_questions"], list(found["flexible"])
        rates = [f"{100 * found[rate]:.0f} %" for rate in ("format_rate", "finish_rate")]
        rows.append([name, *(percent(found[how][k], n) for how in ("flexible", "strict") for k in ks), *rates])
        floor = [f"{100 * v:.1f}" for v in found["guess_floor"].values()]
    if rows:
        rows.append(["guess floor", *floor, *[""] * (len(ks) + 2)])
    columns = [f"{k}, {how}" for how in ("flexible", "strict") for k in ks]
    return "table", ["%", *columns, "format", "finished"], rows


def learned(lab: Lab) -> str:
    asked = {name: next(iter(result["questions"].values())) for name, result in evaluations(lab)}
    if not {"base, 0-shot", "SFT"} <= asked.keys():
        return ""
    before, after = (100 * asked[name]["format_rate"] for name in ("base, 0-shot", "SFT"))
    above = []
    for name, found in asked.items():
        score = found["flexible"]["pass@1"]
        above += [name] if score["value"] - 1.96 * score["stderr"] > found["guess_floor"].get("1", 1.0) else []
    return (
        f"An answer behind the marker: the base in {before:.0f} % of completions (it has read worksheets), SFT in "
        f"{after:.0f} %. Above the guess floor by the interval of pass@1: {', '.join(above) or 'none'} (which takes "
        "no skill: a model that gives the commonest answers is right more often than the floor's draws)."
    )


def benchmarks(lab: Lab) -> tuple:
    asked = [(name, result) for name, result in evaluations(lab) if result["benchmarks"]]
    if not asked:
        return "table", [], []
    rows = []
    for task, first in asked[0][1]["benchmarks"].items():
        row = [task, f"{100 * first['chance']:.1f}"]
        for _, result in asked:
            found = result["benchmarks"][task]
            key, error = ("acc", "stderr") if found["acc_norm"] is None else ("acc_norm", "acc_norm_stderr")
            row.append(percent({"value": found[key], "stderr": found[error]}, found["n"]))
        rows.append(row)
    rows.append(["average", "", *(f"{100 * result['general_average']:.1f}" for _, result in asked)])
    return "table", ["%", "chance", *(name for name, _ in asked)], rows


def samples(lab: Lab) -> list[tuple]:
    """The first answer to the first test question."""
    rows, prompt = [], ""
    for run in lab.find(tokens=lab.late, n_shot=...):
        for row in lab.files.rows(samples_of(run))[:1]:
            prompt = f"{shortened(row['prompt'], 40)} (right: {row['gold']})"
            rows.append([named(run), quoted(shortened(row["completion"], SHOWN))])
    return [("text", f"The first answer to the first question, not chosen. {prompt}"), ("table", ["", ""], rows)]


def shortened(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most + 1 else text[:most] + "…"
