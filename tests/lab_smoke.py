"""Every kind of run of the lab's plan once, at a size without meaning, and its report.

    python -m tests.lab_smoke OUT     # some 120 runs of a second each, all in this process

Not part of `pytest`: test_study.py checks the plan and test_report.py the report without running anything.
"""

import contextlib
import importlib
import json
import sys
import traceback

import grid
import study

TINY = dict(prompts_per_step=4, group_size=4)
MINI = grid.PRESETS["lab"] | dict(
    world=["--tokens", "600000"],
    pretrain=dict(steps=8, batch_tokens=1280, lr=6e-3, micro_batch_size=2, eval_every=2, eval_tokens=2560),
    save_at=[4, 6, 8], early=4, late=8, others=[6], seeds=1, other_seeds=1, shots=[8, 0, 1],
    gold_seeds=1, control_seeds=1,
    rl=dict(steps=2, lr=1e-4, save_every=1, **TINY), sft=dict(steps=4, lr=1e-3, batch_size=4, save_every=2),
    gold=dict(steps=4, lr=1e-3, batch_size=4), sft_rl=dict(steps=2, lr=2e-4, save_every=1, **TINY),
    gold_rl=dict(steps=2, lr=2e-4, **TINY), parallel=dict(steps=4, lr=1e-3, sft_lr=1e-3, batch_size=4, **TINY),
    test=dict(limit=2, n_samples=32, k=[1, 8, 32], max_new_tokens=24),
    val=dict(limit=2, n_samples=32, k=[1, 8, 32], max_new_tokens=24), pools={8: 1}, few_epochs=1, many_epochs=2,
    c4=grid.LAB["c4"] | dict(seeds=1, models={"heavy": dict(mix="math-heavy"), "large": dict(preset="world-4x")}),
    wide=grid.LAB["wide"] | dict(limit=1, max_new_tokens=24), c8_seeds=2,
    c9=dict(sort=dict(limit=8, n_samples=32, k=[1], temperature=1.0, top_p=1.0, max_new_tokens=24), prompts_per_step=2,
            few=2, many=4, steps=2, points=2),
    k1=dict(rates=[1, 2], longer=1), k3=dict(sync=[2]),
)  # fmt: skip


class Ended:
    """What study.py asks of a process that has ended."""

    def __init__(self, returncode):
        self.returncode, self.poll = returncode, lambda: returncode


class Smoke(study.Study):
    def ready(self, task):
        """A model of eight steps finds no question easy: say that it found every other one so."""
        ready = super().ready(task)
        if ready and "by" in task.inputs:
            path = self.path(task.inputs["by"][0])
            found = json.loads(path.read_text())
            rows = found["questions"]["gsm"]["questions"]
            rows["strict"] = [n * (i % 2) for i, n in enumerate(rows["n"])]
            path.write_text(json.dumps(found))
        return ready

    def start(self, task):
        """The stage's main() here, as its command line would: nothing is loaded anew for each run."""
        command, kept, code = self.command(task), sys.argv, 0
        print(f"$ {' '.join(command)}", flush=True)
        sys.argv = command[1:]
        with open(self.log_file(task), "a") as log, contextlib.redirect_stdout(log):
            try:
                importlib.import_module(task.script.removesuffix(".py")).main()
            except Exception:
                traceback.print_exc(file=log)
                code = 1
        sys.argv = kept
        return Ended(code)


if __name__ == "__main__":
    grid.PRESETS["mini"], study.Study, study.time.sleep = MINI, Smoke, float
    sys.argv = ["study.py", "--preset", "mini", "--seed", "1", "--jobs", "1", "--out", *sys.argv[1:]]
    study.run(study.main)
