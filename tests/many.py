"""Run stages one after the other in one group of torchrun's processes; tests/test_torchrun.py starts it.

torchrun --nproc-per-node 2 tests/many.py PLAN.json

The plan: {"runs": [[stage, flag, ...], ...]} and, if a process is to get a signal, {"signal": number, "rank": its rank,
"step": after which step of the first run}, {"silence": seconds until a silent process counts as dead}.
"""

import importlib
import json
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import common  # noqa: E402
import model  # noqa: E402
import processes  # noqa: E402
import stage as plumbing  # noqa: E402

TINY = model.GPTConfig(n_layer=2, n_head=2, n_embd=32, n_hidden=48, init_std=0.02)


def scored(text: str, *_) -> float:
    """A reward that random text gets half of the time, so that groups have a signal."""
    return float(sum(map(ord, text)) % 2)


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    model.PRESETS["tiny"] = TINY
    importlib.import_module("train_rl").reward = scored
    if "silence" in plan:
        processes.SILENCE, processes.PULSE = plan["silence"], plan["silence"] / 8
    log = plumbing.Run.log

    def logged(run, step, *rest):
        if "signal" in plan and (processes.RANK, step) == (plan["rank"], plan["step"]):
            os.kill(os.getpid(), plan["signal"])
        log(run, step, *rest)

    plumbing.Run.log = logged
    common.run(lambda: all_of(plan["runs"]), many=True)


def all_of(runs: list[list[str]]) -> None:
    for name, *flags in runs:
        sys.argv = [f"{name}.py", *flags]
        importlib.import_module(name).main()
        while common.HELD:
            common.release(*common.HELD.pop())


if __name__ == "__main__":
    main()
