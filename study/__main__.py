"""The paper's study on a laptop: pre-train, post-train from several checkpoints of that run, evaluate, report.

From each chosen checkpoint: direct RL, SFT, SFT-Gold, SFT -> RL and parallel averaging, all on one pool of questions;
the base is evaluated few-shot and 0-shot. The stages are called as a user would call them. Independent runs share the
cores, one thread each (the laptop's pre-training two), or the GPUs, and start as soon as the checkpoint they need
exists. A second call goes on where the first stopped: finished runs are kept if today's code made them, under the same
settings from the same data; runs of other code are moved to DIR/other_code and made again.

    python -m study --preset smoke --out runs/smoke        # a minute or two: every stage, numbers without meaning
    python -m study --preset laptop --out runs/laptop      # the whole grid, one seed: runs/laptop/report.md
    python -m study --preset lab --out runs/lab            # three pre-trainings (docs/analysis_plan.md): hours
    python -m study --preset tuning --seed 0               # how the rates were chosen (docs/tuning.md)
    python -m study --preset real-small                    # every stage once on real data (docs/data.md)
    python -m study --preset lab --plan                    # print the runs and the time they take, run nothing

Ablations of a stage over seeds, beside a baseline and with intervals: python -m study --compare, see study/compare.py.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from data.files import UserError  # and nothing here that loads torch: the first line must not wait for it
from study.clock import told
from study.plan import make_plan
from study.presets import PRESETS
from study.tasks import Plan, cores


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--preset", default="laptop", choices=list(PRESETS))
    p.add_argument("--out", metavar="DIR", help="default: runs/PRESET")
    p.add_argument("--seed", type=int, default=1, help="the first one; 0 made the rates (docs/tuning.md)")
    p.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps; auto: every GPU, else the CPU")
    p.add_argument("--jobs", type=int, help="runs side by side; default: one per GPU, else per core")
    p.add_argument("--plan", action="store_true", help="print the runs and the estimated time, run nothing")
    p.add_argument("--report-only", action="store_true", help="rebuild the report and the figures from finished runs")
    p.add_argument("--minutes", type=float, default=0, help="begin nothing new after so long, then report; 0 = no end")
    known = "a study's folder or runs.json.gz whose finished evaluations and logs to take over, as docs/results/lab"
    p.add_argument("--known", metavar="DIR", help=known)
    other = "keep finished runs that other code made, and take them from --known; the report names them"
    p.add_argument("--accept-other-source", action="store_true", help=other)
    args = p.parse_args()
    if args.known and (args.plan or args.report_only):
        raise UserError("--known takes over runs, --plan and --report-only run nothing: give it without them first")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least one run must be allowed at a time")
    args.out = Path(args.out or f"runs/{args.preset}").absolute()  # from where the user is, not where the stages lie
    if args.known and not any(Path(args.known, name).is_file() for name in ("", "runs.json", "runs.json.gz")):
        raise UserError(f"--known {args.known}: no runs.json or runs.json.gz there; give a study's folder, or drop it")
    return args


def begin() -> Callable[[], None]:
    """Read the command line and print the study's first line; what comes back does the work, and loads torch."""
    sys.stdout.reconfigure(errors="backslashreplace")
    if any(word.split("=")[0] == "--compare" for word in sys.argv[1:]):
        return compare
    args = parse_args()
    plan, jobs = make_plan(args.preset, args.seed), args.jobs or cores()
    place = args.out.relative_to(Path.cwd()) if args.out.is_relative_to(Path.cwd()) else args.out
    print(f"study {args.preset}, first seed {args.seed}: {len(plan.tasks)} runs in {place}", end="")
    print(f", {jobs} side by side: {told(plan.tasks, jobs)}", flush=True)
    return partial(study, args, plan)


def study(args: argparse.Namespace, plan: Plan) -> None:
    from study.session import Study

    made = Study(args, plan)
    made.print_plan() if args.plan else made.report() if args.report_only else made.run()


def compare() -> None:
    from study.compare import main

    main()


def carry_out(work: Callable[[], None]) -> None:
    try:
        work()
    except KeyboardInterrupt as stopped:
        print(f"stopped; to go on: python -m study {shlex.join(sys.argv[1:])}", file=sys.stderr)
        sys.exit(128 + signal.Signals[str(stopped) or "SIGINT"])


if __name__ == "__main__":
    try:
        begun = begin()
        from common import run
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    run(partial(carry_out, begun))
