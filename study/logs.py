"""Run folders read: their logs, the evaluations of their checkpoints, and what sets one setting apart from another.

plot.py draws them.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from data.files import UserError, read_json, read_jsonl

STAGES = {"combine": "merge", "adv_norm": "rl", "batch_tokens": "pretrain", "batch_size": "sft"}  # a flag that tells it
# Settings that change no number of a run, or only its rounding, and what made it (stage.Run): its code alone counts.
NOT_COMPARED = """out resume seed save_every save_at eval_every eval_tokens eval_questions sample_every micro_batch_size
prompts_per_batch device kernels threads commit dirty versions date device_used gpu dtype_used threads_used
paths earlier""".split()


# ------------------------------------------------------------------------------------------------- what a folder holds
@dataclass(frozen=True)
class Asked:
    """What an evaluation asked; only answers to the same are drawn in one panel."""

    task: str
    split: str
    n_shot: int
    temperature: float
    limit: int

    def __str__(self) -> str:
        questions = f"first {self.limit} " * bool(self.limit) + f"{self.task} {self.split} questions"
        return f"{questions}, {self.n_shot}-shot, T {self.temperature:g}"


@dataclass(eq=False)
class Log:
    """A run folder, read. `scores`: what was asked -> step -> {"pass@1": 0.5, ..}; step 0 is where the run began."""

    folder: Path
    config: dict
    rows: dict[int, dict]
    scores: dict[Asked, dict[int, dict]]

    def series(self, metric: str) -> dict[int, float]:
        return {step: float(row[metric]) for step, row in self.rows.items() if is_number(row.get(metric))}

    def metrics(self) -> set[str]:
        return {m for row in self.rows.values() for m, value in row.items() if is_number(value)} - {"step"}

    @property
    def stage(self) -> str:
        return next((stage for flag, stage in STAGES.items() if flag in self.config), "")


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_log(folder: Path) -> Log:
    folder = folder.parent if folder.name == "metrics.jsonl" else folder
    path, torn = folder / "metrics.jsonl", []
    if not path.is_file():
        raise UserError(f"{folder}: no metrics.jsonl there; give a run's folder, the --out of a training stage")
    rows = {}  # of a step that was logged twice the later row
    for _, row in read_jsonl(path, dropped=torn):
        if isinstance(row.get("step"), int):
            rows[row["step"]] = by_kind_of_loss(row)
    for line in torn:
        print(f"note: left out {line}")
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return Log(folder, config, dict(sorted(rows.items())), find_scores(folder, config))


def by_kind_of_loss(row: dict) -> dict:
    """The row with `train/loss` under a name of its own where it is not a next-token loss of demonstrations."""
    if "reward/mean" in row:
        losses = {"rl/loss": row.get("train/loss"), "train/loss": row.get("sft/loss")}
    elif "train/tokens" in row:
        losses = {"pretrain/loss": row.get("train/loss"), "train/loss": None}
    else:
        losses = {}
    return row | losses


@cache
def read_evaluation(path: Path) -> dict | None:
    """{"ckpt", "step", "scores": {Asked: {"pass@1": .., "general": ..}}} of an evaluation's file; None of any other."""
    try:
        found = read_json(path)
        s, scores = found["settings"], {}
        asked = (s["split"], s["n_shot"], float(s["temperature"]), s["limit"])
        general = {} if found.get("general_average") is None else {"general": found["general_average"]}
        for task, result in found["questions"].items():
            scores[Asked(task, *asked)] = {k: v["value"] for k, v in result["flexible"].items()} | general
        return {"ckpt": Path(s["ckpt"]), "step": found["checkpoint"]["step"], "scores": scores}
    except (UserError, KeyError, TypeError, AttributeError):
        return None


def find_scores(folder: Path, config: dict) -> dict[Asked, dict[int, dict]]:
    """Of the run's checkpoints and, as step 0, of the one it began from: evaluations are known by the checkpoint's
    folder and file name, so a study that was moved keeps them."""
    init = Path(str(config.get("init") or ""))
    places = [folder, init.parent if config.get("init") else folder, folder.absolute().parent.parent / "evals"]
    scores: dict[Asked, dict[int, dict]] = {}
    for path in dict.fromkeys(p for place in places for p in sorted(place.glob("*.json"))):
        found = read_evaluation(path)
        if not found:
            continue
        ckpt, beside = found["ckpt"], path.parent == folder
        if ckpt.parent.name == folder.absolute().name or (beside and not ckpt.parent.name):
            step = found["step"]
        elif config.get("init") and (ckpt.parent.name, ckpt.name) == (init.parent.name, init.name):
            step = 0
        else:
            continue
        for asked, values in found["scores"].items():
            scores.setdefault(asked, {})[step] = values
    return scores


# ------------------------------------------------------------------------------------------------- settings and names
def settings(config: dict, folder: Path) -> dict:
    """What makes a run the run it is, but for its seed. A start that is a run of post-training counts by its settings
    too, so that RL from SFT is one setting whatever the seed of both."""
    kept = {k: v for k, v in config.items() if k not in NOT_COMPARED}
    if "data" in kept:
        kept["data"] = "/".join(Path(str(kept["data"])).parts[-2:])
    if init := str(kept.get("init") or ""):
        kept["init"] = "/".join(Path(init).parts[-2:])
        for place in (Path(init).parent, folder.absolute().parent / Path(init).parent.name):
            parent = read_json(place / "config.json") if (place / "config.json").is_file() else {}
            if parent.get("init"):
                kept["init"] = [settings(parent, place), Path(init).name]
                break
    return kept


def shown(key: str, value) -> str:
    """One setting of a label, as on the command line: "adv-norm none", "gold", "no gold"."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    values = value if isinstance(value, list) else [value]
    return f"{name} " + " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def by_setting(logs: list[Log]) -> dict[str, list[Log]]:
    """Seeds of one setting together, under what sets it apart from the other settings of its stage, or under the name
    of its folder where that is shorter."""
    groups: list[tuple[str, dict, list[Log]]] = []
    for log in logs:
        mine = settings(log.config, log.folder) if log.config else {"": str(log.folder)}
        same = next((g for stage, other, g in groups if (stage, other) == (log.stage, mine)), None)
        if same is None:
            groups.append((log.stage, mine, [log]))
        else:
            same.append(log)
    stages = Counter(stage for stage, _, _ in groups)
    out: dict[str, list[Log]] = {}
    for stage, mine, members in groups:
        others = [s for other, s, _ in groups if other == stage]
        # What most settings share need not be said of them.
        differ = [k for k in mine if sum(s.get(k) == mine[k] for s in others) <= len(others) / 2]
        label = ", ".join([stage] * (len(stages) > 1) + [shown(k, mine[k]) for k in differ])
        name = folder_name(members)
        if not label or len(label) > max(24, len(name)) or {"init", "source", ""} & set(differ):  # no words for these
            label = name
        out[label if label not in out else str(members[0].folder)] = members
    return out


def folder_name(members: list[Log]) -> str:
    """The parts that the folders' names share, without the address that a study adds: rl-s1-half and rl-s2-half are
    rl-half."""
    names = [re.sub(r"-[0-9a-f]{10}$", "", log.folder.absolute().name) for log in members]
    parts = [re.split(r"(?<=[-_])", name) for name in names]
    alike = [part for part, *others in zip(*parts, strict=False) if all(part == other for other in others)]
    return "".join(alike).rstrip("-_") or names[0]


def counted(label: str, members: list[Log]) -> str:
    """The label, with how many runs are behind it."""
    seeds = {log.config.get("seed") for log in members}
    kind = "seeds" if len(seeds) == len(members) else "runs"
    return label if len(members) == 1 else f"{label} ({len(members)} {kind})"
