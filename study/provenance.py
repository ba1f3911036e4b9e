"""What a report says of how its study was made: code, machine, seeds, time, what is missing."""

import os
from pathlib import Path

from study.axis import PAPER_PASSES
from study.plan import make_plan
from study.presets import PRESETS
from study.read import Lab
from study.render import quoted
from study.tasks import amount as at

PLAN = Path(__file__).parent.parent / "docs" / "analysis_plan.md"


def made_by(lab: Lab, judged: bool = True) -> list[tuple]:
    """For the head of the report: runs, machine, seeds; `judged`: there are verdicts."""
    m, runs = lab.manifest, lab.manifest["runs"]
    evaluated = [r["result"] for r in lab.evals if r["result"]]
    done = sum(r["finished"] for r in runs)
    commits = {r.get("commit") for r in [*evaluated, *(r for r in runs if r["finished"])]} | {m.get("commit")}
    seeds = [f"{at(t)}: {len(lab.by_seed('rl', t))}" for t in lab.planned["rl"]]
    wall = f", {m['seconds'] / 60:.0f} minutes by the clock" if m.get("seconds") else ""
    more = " (pre-training two)" * any(r.get("threads", 1) > 1 for r in runs)
    first = [
        f"Preset {quoted(m['preset'])}, first seed {m['seed']}, on {quoted(m['machine'])}{device(evaluated)}: {done} "
        f"of {len(runs)} planned runs finished, {hours(runs):.1f} core hours{wall}, one thread a run{more}, "
        f"{m['jobs']} side by side.",
        f"Commits {', '.join(sorted(quoted(c) for c in commits - {None})) or '–'}.",
    ]
    rules = [
        *regime(lab),
        f"Pre-trainings with direct RL by checkpoint: {', '.join(seeds) or 'none'}. With one, a row is an *estimate*, "
        "never a verdict.",
        f"Rules: [docs/analysis_plan.md]({os.path.relpath(PLAN, lab.folder)}), dated; what was changed after first "
        "results were in sight stands at its end.",
    ]
    return [("list", first + rules * judged + warnings(lab))]


def regime(lab: Lab) -> list[str]:
    m, steps = lab.manifest, {at(t): lab.config("rl", t).get("steps") for t in lab.planned["rl"]}
    if not {"pool", "passes", "start_passes"} <= m.keys() or not all(steps.values()):
        return []
    batches = ", ".join(f"{n} batches from {name}" for name, n in steps.items())
    return [
        f"Regime of the claims: models of a million parameters, {m['pool']} training questions for every method (C9: "
        f"more), SFT of {max(m['passes'])} passes over them (SFT→RL starts after {m['start_passes']}; the paper: "
        f"{PAPER_PASSES['sft']} and {PAPER_PASSES['sft_rl']}), RL of {batches}."
    ]


def hours(runs: list[dict]) -> float:
    return sum((r.get("seconds") or 0) * r.get("threads", 1) for r in runs) / 3600


def device(evaluated: list[dict]) -> str:
    """Where and in which precision it was evaluated, as evaluations tell."""
    settings = [r.get("settings") or {} for r in evaluated]
    used = {(s["device_used"], s["dtype_used"]) for s in settings if {"device_used", "dtype_used"} <= s.keys()}
    told = sorted(f"{quoted(d)} in {quoted(str(t).removeprefix('torch.'))}" for d, t in used)
    mixed = " (**mixed devices or precisions**)" * (len(used) > 1)
    return f", evaluated on {', '.join(told)}{mixed}" if told else ""


def sources(lab: Lab) -> dict[str, set[str]]:
    """Script -> the hashes of the code that made its finished runs."""
    found: dict[str, set[str]] = {}
    for r in lab.manifest["runs"]:
        made = [r.get("source")] if r["finished"] else []
        made += [r["result"].get("source")] if r.get("result") else []
        found.setdefault(script(r), set()).update(str(source) for source in made if source)
    return found


def script(run: dict) -> str:
    return next((word for word in run["command"].split() if word.endswith(".py")), run["kind"])


def time_by_stage(lab: Lab) -> list[tuple]:
    whole, rows = hours(lab.manifest["runs"]) or 1, []
    preset = lab.manifest["preset"]
    cost = {t.name: t.cost for t in make_plan(preset, lab.first).tasks} if preset in PRESETS else {}
    for name, hashes in sources(lab).items():
        mine = [r for r in lab.manifest["runs"] if script(r) == name]
        done = [r for r in mine if r["finished"]]
        code = ", ".join(sorted(map(quoted, hashes))) or "–"
        share = f"{100 * hours(done) / whole:.0f} %"
        thought = sum(cost.get(r["name"], 0.0) for r in done) / 3600
        times = f"{hours(done) / thought:.1f}" if thought else "–"
        rows.append([quoted(name), f"{len(done)} of {len(mine)}", code, f"{hours(done):.2f}", share, times])
    head = [
        "stage",
        "runs",
        "code (source hash)",
        "core hours",
        "share of time",
        "times the plan's (AVX-512, bfloat16)",
    ]
    return [("head", 2, "Time by stage"), ("table", head, rows)]


def warnings(lab: Lab) -> list[str]:
    told = []
    if any(len(hashes) > 1 for hashes in sources(lab).values()):
        beside = " (a README.md beside this report says more)" * (lab.folder / "README.md").is_file()
        told.append(f"**Mixed sources: the runs of a stage are not all of one code**{beside}.")
    if accepted := sum(bool(r.get("accepted")) for r in lab.manifest["runs"]):
        told.append(f"**{accepted} runs of other code than today's were accepted as they are.**")
    if lab.unreadable:
        shown = "; ".join(quoted(line) for line in lab.unreadable[:3])
        told.append(f"**{len(lab.unreadable)} evaluations could not be read and count as not run**: {shown}.")
    return told


def not_run(lab: Lab) -> list[tuple]:
    missing = [r["name"] for r in lab.manifest["runs"] if not r["finished"]]
    return [("code", f"{len(missing)} planned runs not run", missing)] if missing else []
