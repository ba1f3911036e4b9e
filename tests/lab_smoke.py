"""Every kind of run of the lab's plan once, at a size without meaning, and its report.

    python -m tests.lab_smoke OUT     # some 200 runs of seconds each: about ten minutes on two cores

Not part of `pytest`: test_study.py checks the plan and test_report.py the report without running anything.
"""

import json
import sys

import grid
import study

TINY = dict(prompts_per_step=4, group_size=4)
MINI = grid.PRESETS["lab"] | dict(
    world=["--tokens", "600000"],
    pretrain=dict(steps=8, batch_tokens=1280, lr=6e-3, micro_batch_size=2, eval_every=2, eval_tokens=2560),
    save_at=[2, 4, 6, 8], early=4, late=8, others=[6, 2], seeds=2, other_seeds=1, gold_seeds=1, control_seeds=1,
    rl=dict(steps=2, lr=1e-4, save_every=1, **TINY), sft=dict(steps=4, lr=1e-3, batch_size=4, save_every=2),
    gold=dict(steps=4, lr=1e-3, batch_size=4), sft_rl=dict(steps=2, lr=2e-4, save_every=1, **TINY),
    gold_rl=dict(steps=2, lr=2e-4, **TINY), parallel=dict(steps=4, lr=1e-3, sft_lr=1e-3, batch_size=4, **TINY),
    test=dict(limit=4, n_samples=32, k=[1, 8, 32], max_new_tokens=24),
    val=dict(limit=4, n_samples=32, k=[1, 8, 32], max_new_tokens=24), pools={8: 2, 16: 1}, few_epochs=1, many_epochs=2,
    c4=grid.LAB["c4"] | dict(seeds=1), wide=grid.LAB["wide"] | dict(limit=2), c8_seeds=3,
    c9=dict(sort=dict(limit=8, n_samples=32, k=[1], temperature=1.0, top_p=1.0, max_new_tokens=24), prompts_per_step=2,
            few=2, many=4, steps=2, points=2),
    k1=dict(rates=[1, 2], longer=2), k3=dict(sync=[2]),
)  # fmt: skip


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


if __name__ == "__main__":
    grid.PRESETS["mini"], study.Study = MINI, Smoke
    sys.argv = ["study.py", "--preset", "mini", "--seed", "1", "--out", *sys.argv[1:]]
    study.run(study.main)
