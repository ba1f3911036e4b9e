"""The grid of the paper on a laptop: pre-train, post-train from several checkpoints of that run, evaluate, report.

From each chosen checkpoint: direct RL, SFT, SFT-Gold, SFT -> RL and parallel averaging; the base is evaluated
few-shot and 0-shot. The study calls the stage scripts as a user would and prints each command. Independent runs share
the cores, one thread each, and start as soon as the checkpoint they need exists. A run's folder is named by a hash of
all its settings (defaults too), its parents and the data, so a second call redoes nothing that is finished and never
reuses a run of other settings; evaluations copied in from elsewhere count as finished.

    python -m study --preset smoke --out runs/smoke        # some minutes: every stage, numbers without meaning
    python -m study --preset laptop --out runs/laptop      # the whole grid, one seed: runs/laptop/report.md
    python -m study --preset lab --out runs/lab            # seeds and controls (docs/analysis_plan.md): hours
    python -m study --preset lab --plan                    # print the runs and the estimated time, run nothing
"""

import argparse
import hashlib
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path

from common import UserError, run, writable_dir
from data.world import code_hash
from study import report
from study.archive import find
from study.plan import words
from study.presets import PRESETS
from study.read import read_json
from study.runner import HERE, KEPT, Study


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="laptop", choices=list(PRESETS))
    p.add_argument("--out", metavar="DIR", help="default: runs/PRESET")
    p.add_argument("--seed", type=int, default=1, help="the first one; 0 made the rates (docs/tuning.md)")
    p.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    p.add_argument("--plan", action="store_true", help="print the runs and the estimated time, run nothing")
    p.add_argument("--report-only", action="store_true", help="rebuild the report and the figures from finished runs")
    p.add_argument("--minutes", type=float, default=0, help="begin nothing new after so long, then report; 0 = no end")
    known = "a study's folder whose finished evaluations and logs to take over, for instance docs/results/lab"
    p.add_argument("--known", metavar="DIR", help=known)
    args = p.parse_args()
    args.out = args.out or f"runs/{args.preset}"
    if args.known and not find(HERE / args.known):
        raise UserError(f"--known {args.known}: no runs.json or runs.json.gz there; give a study's folder, or drop it")
    if args.known and (args.plan or args.report_only):
        raise UserError("--known takes over runs, --plan and --report-only run nothing: give it without them first")
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least one run must be allowed at a time")
    return args


def print_plan(study: Study) -> None:
    """Every run in order, under the part of the plan that asks for it and the time at which that part ends. What is
    finished costs nothing."""
    spent, place = 0.0, []
    for block, tasks in groupby(study.tasks, key=lambda t: t.block):
        tasks = [(t, 0.0 if study.data_hash and study.finished(t) else t.cost) for t in tasks]
        rows = [f"{cost:6.0f} s  {t.name:<44} {t.script} {' '.join(words(t.flags))}" for t, cost in tasks]
        spent += sum(cost for _, cost in tasks)
        place.append(f"{spent / 60 / study.args.jobs:5.0f} min | {len(rows):3d} runs | {block}")
        print(f"\n# {block}", *rows, sep="\n")
    print(f"\n{len(study.tasks)} runs; done after about, {study.args.jobs} side by side:", *place, sep="\n")


def main():
    args = parse_args()
    os.chdir(HERE)
    study = Study(args)
    meta = study.data / "meta.json"
    study.data_hash = hashlib.sha256(meta.read_bytes()).hexdigest() if meta.exists() else ""
    if args.plan:
        print_plan(study)
        return
    writable_dir(study.dir)
    if args.report_only:
        print(f"wrote {report.build(study.dir)}")
        return
    for name in ("logs", "evals"):
        (study.dir / name).mkdir(exist_ok=True)
    if not meta.exists():
        print(f"$ {study.make_world()}", flush=True)
        with open(study.dir / "logs" / "world.log", "w") as log:
            command = [sys.executable, *study.make_world().split()[1:]]
            if subprocess.run(command, cwd=HERE, stdout=log, stderr=subprocess.STDOUT).returncode:
                raise UserError(f"the world could not be made; see {study.dir / 'logs' / 'world.log'}")
    made_by = study.data / "made_by"
    if not made_by.is_file() or made_by.read_text().strip() != code_hash():
        raise UserError(f"{study.data} holds a world of other code than data/world.py: remove it, and it is made anew")
    study.data_hash = hashlib.sha256(meta.read_bytes()).hexdigest()
    if old := read_json(study.dir / "runs.json"):
        study.elapsed = old["seconds"]
        study.done = {r["out"]: {k: r.get(k) for k in KEPT} for r in old["runs"] if r["finished"]}
    if args.known:
        print(f"{study.take_over(Path(args.known))} finished runs taken over from {args.known}")
    failed = study.run_all()
    study.write_manifest()
    print(f"wrote {report.build(study.dir)}")
    if failed:
        what = "mend what their logs say, then run this again"
        raise UserError(f"{len(failed)} runs failed ({', '.join(failed)}): {what}")


if __name__ == "__main__":
    run(main)
