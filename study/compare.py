"""Ablations: settings of a stage against a baseline, from one checkpoint, over seeds.

    python -m study --compare none="train_rl.py --adv-norm none" --init checkpoints/world_base.pt --out runs/adv_norm
    python -m study --compare mine="my_train_rl.py --lr 2e-4" rare="merge.py --sync-every 8" --init CKPT --out DIR

Each setting is trained with every seed and scored on validation questions (`--split test`: on the test questions, for
the last look). The stage at its defaults is added as `baseline` unless a setting has that name or is that. A forked
file works in place of the stage's name. Runs are those of a study (study/runner.py): side by side, nothing twice, a
second call goes on, and runs of other code than today's are made again. DIR/compare.md has the table, compare.json its
numbers, curves.png the curves; differences are paired over questions and seeds.
"""

import argparse
import os
import shlex
from pathlib import Path

import numpy as np

from common import git_commit, load_checkpoint, lock, writable_dir
from data.benchmarks import WORLD_TASKS
from data.checkpoints import weights_hash
from data.files import UserError, read_json, write_json, write_text
from data.math_qa import TASKS, load_questions
from data.tokenizer import tokenizer_of
from stage import WORLD, world_if_absent
from study import plot
from study.folder import HERE, Folder
from study.logs import read_log
from study.manifest import machine
from study.presets import COMPLETION, SECONDS
from study.read import subtract, value
from study.runner import shown
from study.session import Session, refuse_failed
from study.settings import Setting, read_setting, with_baselines
from study.stats import Difference, spread
from study.tasks import Task, ckpt_name, minutes, words

CURVES = "curves.png"
START = "--init"  # its row of the table; no setting can be called so
LOUD = "these are TEST questions: choose between settings on validation questions, and look here once, at the end"


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    setting = 'a setting: NAME="STAGE.py --flag value"'
    p.add_argument("--compare", nargs="*", required=True, metavar="NAME=COMMAND", help=setting)
    p.add_argument("--init", required=True, metavar="CKPT", help="where every run starts")
    p.add_argument("--out", required=True, metavar="DIR", help="folder of the runs and the results")
    p.add_argument("--seeds", type=int, default=3, help="runs of each setting")
    p.add_argument("--seed", type=int, default=1, help="the first seed")
    p.add_argument("--data", default=WORLD, metavar="DIR", help="a folder made by data.world or data.prepare")
    p.add_argument("--task", default="gsm", help=f"questions trained and asked: {' '.join(TASKS)}")
    p.add_argument("--split", default="val", choices=["val", "test"], help="of the questions asked")
    p.add_argument("--limit", type=int, default=200, help="first N questions and items of each benchmark; 0 = all")
    p.add_argument("--n-samples", type=int, default=32, help="completions of each question")
    p.add_argument("--max-new-tokens", type=int, default=112, help="longest completion when a checkpoint is scored")
    p.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps; auto: every GPU, else the CPU")
    p.add_argument("--jobs", type=int, help="runs side by side, one thread each; default: one per GPU, else per core")
    p.add_argument("--plan", action="store_true", help="print the runs and the estimated time, run nothing")
    p.add_argument("--minutes", type=float, default=0, help="begin nothing new after so long; 0 = no end")
    p.add_argument("--accept-other-source", action="store_true", help="keep finished runs that other code made")
    args = p.parse_args()
    if not args.compare:
        raise UserError(f"--compare names no setting; give one or more: {setting.removeprefix('a setting: ')}")
    for name in ("seeds", "n_samples", "max_new_tokens", "jobs"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1 is needed")
    if args.task not in TASKS:
        raise UserError(f"--task {args.task}: unknown; choose from {' '.join(TASKS)}")
    start = Path.cwd()  # paths are meant from where the user is; the stages run from where they lie
    args.init, args.out, args.called_from = start / args.init, start / args.out, start
    args.data = HERE / WORLD if args.data == WORLD else start / args.data
    return args


# ---------------------------------------------------------------------------------------------------------------- plan
class Ablations:
    """What is compared, as tasks of a study. `base_of`: setting -> its baseline; `asked`: (setting, seed) -> the
    evaluation, that of the checkpoint where all start under (START, None)."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.seeds = list(range(args.seed, args.seed + args.seeds))
        own = {"init": args.init, "data": args.data, "out": args.out, "seed": args.seed, "task": args.task}
        settings = [read_setting(text, own, args.called_from) for text in args.compare]
        self.settings, self.base_of = with_baselines(settings, own)
        self.init = self.given_checkpoint()
        for split in ("train", args.split):
            load_questions(str(args.data), args.task, split)  # what is missing is said now
        self.ks = sorted({1, min(8, args.n_samples), args.n_samples})
        found = [b for b in WORLD_TASKS if (args.data / f"bench_{b}.jsonl").exists()]
        self.questions = [args.task, *found]
        self.tasks: list[Task] = []
        self.runs: dict[tuple[str, int], Task] = {}
        self.asked: dict[tuple[str, int | None], Task] = {}
        self.ask(START, None, self.init)
        for seed in self.seeds:  # seed by seed: a comparison that is cut off has whole ones
            for setting in self.settings:
                self.train(setting, seed)

    def given_checkpoint(self) -> Task:
        """The start, as a task that is done."""
        ckpt = load_checkpoint(self.args.init)
        world_if_absent(shown(self.args.data))
        tokenizer_of(ckpt["tokenizer"], self.args.data, self.args.init)
        record = {"path": str(self.args.init), "address": weights_hash(ckpt["model"])[:10]}
        return Task("init", "given", "init", "", {}, self.args.init.name, 0.0, record=record)

    def train(self, setting: Setting, seed: int) -> None:
        flags = {**setting.flags, "steps": setting.steps, "seed": seed}
        size = flags.get("prompts_per_step", 48) * flags.get("group_size", 16) / 768
        cost = setting.steps * SECONDS[setting.stage] * (size if setting.stage == "train_rl.py" else 1)
        if self.args.task != "gsm":
            flags = {"task": self.args.task} | flags
        name, start = f"{setting.name}-s{seed}", {"init": (self.init, self.init.out)}
        record = {"setting": setting.name, "seed": seed}
        task = Task(name, "train", setting.name, setting.script, flags, ckpt_name(setting.steps), cost, start, record)
        self.runs[setting.name, seed] = task
        self.tasks.append(task)
        self.ask(setting.name, seed, task)

    def ask(self, name: str, seed: int | None, of: Task) -> None:
        a = self.args
        flags = dict(split=a.split, limit=a.limit, n_samples=a.n_samples, k=self.ks, tasks=self.questions)
        flags |= dict(max_new_tokens=a.max_new_tokens, seed=a.seed if seed is None else seed)
        record = {"setting": name, "seed": seed, "split": a.split}
        cost = 5 + 8 * (len(self.questions) > 1) + (a.limit or 500) * a.n_samples * COMPLETION[0]
        start, label = {"ckpt": (of, of.out)}, f"{of.name}-{a.split}"
        task = Task(label, "eval", name, "evaluate.py", flags, ".json", cost, start, record)
        self.asked[name, seed] = task
        self.tasks.append(task)

    # -------------------------------------------------------------------------------------------------------- results
    def read(self, folder: Folder) -> None:
        """What is finished of it: setting -> seed -> evaluation."""
        self.results: dict[str, dict] = {}
        for (name, seed), task in self.asked.items():
            if folder.finished(task):
                self.results.setdefault(name, {})[seed] = read_json(folder.path(task))

    def score(self, name: str, metric: int | str) -> list[float]:
        """Of each seed that is there. metric: k of pass@k, or "general"."""
        found = self.results.get(name, {}).values()
        if metric == "general":
            return [r["general_average"] for r in found if r["benchmarks"]]
        return [value(r, metric, task=self.args.task) for r in found]

    def difference(self, name: str, metric: int | str) -> Difference | None:
        base = self.base_of.get(name)
        if not (name in self.results and base in self.results):
            return None
        return subtract(self.results[name], self.results[base], metric, self.args.task)

    @property
    def metrics(self) -> list[int | str]:
        return [*dict.fromkeys([1, max(self.ks)]), *(["general"] if len(self.questions) > 1 else [])]


def title(metric: int | str) -> str:
    return metric if metric == "general" else f"pass@{metric}"


# -------------------------------------------------------------------------------------------------------------- results
def interval(d: Difference | None) -> str:
    """Points: the difference and its 95 % interval, which ends where no difference can lie."""
    if d is None:
        return "–"
    low, high = np.clip(d.interval(), -1, 1)
    at, low, high = (round(100 * x, 1) + 0.0 for x in (d.estimate, low, high))  # no -0.0
    return f"{at:+.1f} [{low:+.1f}, {high:+.1f}]"


def table(c: Ablations) -> list[list[str]]:
    """Rows of text, the head first: the start, then each setting."""
    several = len(set(c.base_of.values())) > 1
    rows = [["setting", "seeds", *map(title, c.metrics), *(f"{title(m)} − baseline" for m in c.metrics)]]
    for name in [START, *(s.name for s in c.settings)]:
        scores = [spread(c.score(name, m)) for m in c.metrics]
        differences = [interval(c.difference(name, m)) if name in c.base_of else "" for m in c.metrics]
        label = f"{name} (against {c.base_of[name]})" if several and name in c.base_of else name
        count = "" if name == START else str(len(c.results.get(name, {})))
        rows.append([label, count, *scores, *differences])
    return rows


def aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]])


def questions_asked(c: Ablations) -> str:
    a, first = c.args, next(iter(next(iter(c.results.values())).values()))
    kind = {"val": "validation", "test": "test"}[a.split]
    return f"{first['questions'][a.task]['n_questions']} {kind} questions of {a.task}, {a.n_samples} samples each"


def seeds(c: Ablations) -> str:
    return f"seeds {c.seeds[0]} to {c.seeds[-1]}" if len(c.seeds) > 1 else f"seed {c.seeds[0]}"


def command(s: Setting) -> str:
    return shlex.join([s.script, *words(s.flags)])


def page(c: Ablations, unfinished: list[str]) -> str:
    """compare.md."""
    means = "Percent, mean ± standard deviation over seeds; differences in points, paired by question and seed, "
    means += "with 95 % intervals over questions and seeds together (docs/study.md)."
    one = "One seed: the intervals are over questions alone, and say nothing of another seed. " * (len(c.seeds) == 1)
    commands = [f"- {s.name}: `{command(s)}`" for s in c.settings]
    parts = [
        "# Settings compared",
        f"From `{shown(c.args.init)}`, {seeds(c)}, on {questions_asked(c)}.",
        f"**Careful: {LOUD}.**" * (c.args.split == "test"),
        markdown(table(c)),
        one + means,
        f"![curves]({CURVES})",
        "\n".join(commands),
        f"Not finished: {', '.join(unfinished)}." * bool(unfinished),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def numbers(c: Ablations, folder: Folder) -> dict:
    """compare.json."""
    settings = {}
    for s in c.settings:
        ds = {title(m): d for m in c.metrics if (d := c.difference(s.name, m))}
        settings[s.name] = {
            "command": command(s),
            "baseline": c.base_of.get(s.name),
            "runs": {seed: folder.out(c.runs[s.name, seed]) for seed in c.results.get(s.name, {})},
            "scores": {title(m): c.score(s.name, m) for m in c.metrics},
            "difference": {k: {"estimate": d.estimate, "interval": list(d.interval())} for k, d in ds.items()},
        }
    a = c.args
    asked = dict(task=a.task, split=a.split, limit=a.limit, n_samples=a.n_samples, seeds=c.seeds)
    init = {"path": str(a.init), "weights": c.init.record["address"]}
    scores = {title(m): c.score(START, m) for m in c.metrics}
    return {**asked, "init": {**init, "scores": scores}, "settings": settings}


def draw(c: Ablations, folder: Folder, out: Path) -> None:
    groups = {}
    for s in c.settings:
        logs = [folder.path(c.runs[s.name, seed]).parent for seed in c.seeds]
        logs = [read_log(path) for path in logs if (path / "metrics.jsonl").is_file()]
        for log in logs:  # what was asked now, not in earlier calls
            kept = (c.args.task, c.args.split, c.args.limit)
            log.scores = {a: found for a, found in log.scores.items() if (a.task, a.split, a.limit) == kept}
        groups |= {s.name: logs} if any(log.rows for log in logs) else {}
    if not groups:  # every run failed at once
        return
    parts = []
    for metric in [m for m in c.metrics if m != "general"]:
        found = {name: d for name in groups if (d := c.difference(name, metric))}
        if found:
            parts.append((f"{title(metric)}, difference to baseline, points", forest(found, list(groups))))
    plot.draw(groups, out, parts + plot.panels(groups))


def forest(found: dict[str, Difference], names: list[str]):
    """A function that draws the differences on axes, each with its interval, in the colour of its curve."""

    def paint(ax):
        ax.axvline(0, color="#888888", lw=1)
        for y, (name, d) in enumerate(found.items()):
            low, high = d.interval()
            at = 100 * d.estimate
            bar = [[at - 100 * low], [100 * high - at]]
            ax.errorbar([at], [y], xerr=bar, color=plot.looks(names.index(name))["color"], marker="o", capsize=3)
        ax.set_yticks(range(len(found)), list(found))
        ax.set_ylim(len(found) - 0.5, -0.5)
        plot.at_least(ax, "x", 4)

    return paint


# ----------------------------------------------------------------------------------------------------------------- main
def write_results(c: Ablations, folder: Folder) -> None:
    c.read(folder)
    if not c.results:
        print("nothing is finished yet, so there is nothing to compare")
        return
    unfinished = [task.name for task in c.tasks if not folder.finished(task)]
    write_json(c.args.out / "compare.json", numbers(c, folder))
    draw(c, folder, c.args.out / CURVES)
    write_text(c.args.out / "compare.md", page(c, unfinished))
    print(f"\non {questions_asked(c)}, mean ± sd over seeds; differences in points with 95 % intervals\n")
    print(aligned(table(c)))
    if c.args.split == "test":
        print(f"\nCAREFUL: {LOUD}")
    print(f"\nwrote {', '.join(shown(c.args.out / name) for name in ('compare.md', 'compare.json', CURVES))}")


def print_plan(c: Ablations, folder: Folder) -> None:
    stale = folder.stale()
    for task in c.tasks:
        done = folder.finished(task) and task not in stale
        why = "  (made by other code)" * (task in stale)
        cost = "done" if done else f"{task.cost:.0f} s"
        print(f"{cost:>7}  {task.name:<32} {task.script} {shlex.join(words(task.flags))}{why}")


def main() -> None:
    args = parse_args()
    plot.pyplot()  # without it, say so before the work
    os.chdir(HERE)
    c = Ablations(args)
    if args.split == "test":
        print(f"CAREFUL: {LOUD}")
    session = Session(args, c.tasks, args.data)
    what = f"{', '.join(s.name for s in c.settings)} | {seeds(c)} | {len(c.tasks)} runs"
    cost = minutes(sum(task.cost for task in c.tasks) / session.jobs)
    print(f"{what}, about {cost} from nothing, {session.jobs} side by side", flush=True)
    if args.plan:
        print_plan(c, session.folder)
        return
    writable_dir(args.out)
    lock(args.out)
    header = dict(preset="compare", seed=args.seed, commit=git_commit()[0], machine=machine(), threads=1)
    failed = session.run_missing(header | {"jobs": session.jobs, "device": session.folder.device})
    write_results(c, session.folder)
    refuse_failed(failed)
