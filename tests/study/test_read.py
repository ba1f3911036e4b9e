"""Every kind of run of the lab's plan once, at a size without meaning, and its report.

pytest -q tests/study/test_read.py"""

import contextlib
import importlib
import json
import sys
import traceback

import pytest
import torch
from known_effects import undrawn

import model
from evaluate import mean_stderr
from study import agreement, axis, beyond, report, runner, tasks
from study.claims import CLAIMS, judged
from study.folder import Folder
from study.manifest import header_of, write_manifest
from study.plan import make_plan
from study.read import Lab
from study.tasks import amount

SHAPE = dict(n_layer=1, n_head=2, n_hidden=32, init_std=0.1)
SMALL = dict(max_new_tokens=6)
RL = dict(prompts_per_step=4, group_size=4, **SMALL)
ASK = dict(limit=2, n_samples=32, k=[1, 8, 32], **SMALL)
MINI = tasks.PRESETS["lab"] | dict(
    pretrain=dict(
        preset="mini", block_size=256, steps=4, batch_tokens=256, micro_batch_size=1, eval_every=1, eval_tokens=256
    ),
    save_at=[1, 2, 3, 4],
    early=2,
    late=4,
    others=[3],
    seeds=2,
    pool=6,
    passes=[1, 2, 4],
    start_passes=2,
    follow=2,
    rl=dict(steps=2, lr=1e-3, **RL),
    sft=dict(lr=1e-3, batch_size=4),
    gold=dict(lr=1e-3, batch_size=4),
    sft_rl=dict(steps=2, lr=2e-3, **RL),
    parallel=dict(steps=2, lr=1e-3, sft_lr=1e-3, batch_size=4, **RL),
    at_early=dict(rl=dict(steps=4)),
    test=ASK,
    val=ASK,
    beyond="hard",
    axis=dict(pools={4: [1, 2, 4], 6: [1, 2, 4], 8: [1]}, gold={}, rl_after={4: [1], 6: [1], 8: []}, limit=2),
    hot=dict(temperature=1.0, top_p=1.0),
    c8_seeds=2,
    c9=dict(
        sort=dict(limit=8, n_samples=4, k=[1], temperature=1.0, top_p=1.0, **SMALL),
        prompts_per_step=2,
        few=2,
        many=4,
        steps=2,
    ),
)


class Ended:
    """What the runner asks of a process that has ended."""

    def __init__(self, returncode):
        self.returncode, self.poll = returncode, lambda: returncode


class Here(runner.Runner):
    """Stages run in this process, as their command lines say: nothing is loaded anew for each."""

    def start(self, task, slot):
        if "by" in task.inputs:  # a model of four steps finds nothing easy: say that it found every other question so
            path = self.folder.path(task.inputs["by"][0])
            found = json.loads(path.read_text())
            rows = found["questions"]["gsm"]["questions"]
            rows["strict"] = [n * (i % 2) for i, n in enumerate(rows["n"])]
            found["questions"]["gsm"]["strict"] = {"pass@1": mean_stderr([i % 2 for i in range(len(rows["n"]))])}
            path.write_text(json.dumps(found))
        sys.argv, code = self.command(task)[1:], 0
        with open(self.folder.log(task), "a") as log, contextlib.redirect_stdout(log):
            try:
                importlib.import_module(task.script.removesuffix(".py")).main()
            except Exception:
                traceback.print_exc()
                code = 1
        return Ended(code)


@pytest.fixture(scope="module")
def lab(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.PRESETS, "mini", MINI)
        patch.setitem(model.PRESETS, "mini", model.GPTConfig(n_embd=16, **SHAPE))
        patch.setattr(tasks, "BENCHMARKS", ["lastword", "facts"])
        patch.setattr(sys, "argv", sys.argv)
        patch.setattr(runner.time, "sleep", lambda seconds: None)
        patch.setattr(runner, "git_commit", lambda: ("abc", False))
        plan = make_plan("mini", 1)
        made = Here(Folder(folder, plan.tasks, "d"), world)
        for name in ("logs", "evals"):
            (folder / name).mkdir()
        threads = torch.get_num_threads()
        failed = made.run()
        torch.set_num_threads(threads)
        assert not failed, made.folder.log(plan.known[failed[0]]).read_text()[-2000:]
        header = header_of(plan, 1, "cpu", ["python"], world) | {"seconds": 1.0}
        write_manifest(made, header)
        assert made.folder.to_do() == []
        undrawn(patch)
        report.build(folder)
        yield Lab(folder)


def test_every_run_is_done_and_told(lab):
    """All groups of the plan; the claims have what they need."""
    groups = {r.get("group") for r in lab.manifest["runs"] if r["finished"]}
    assert groups == {None, "main", "shots", "dynamics", "axis", "hot", "half", "c8", "c9"}
    assert all(r["finished"] for r in lab.manifest["runs"]) and not lab.unreadable
    text = (lab.folder / "report.md").read_text()
    assert "Not run." not in text and "not run" not in "".join(c.verdict for c in judged(lab))


def test_what_the_runs_hold_reaches_the_report(lab):
    """The counts that sort C9's questions, the points of C10, the losses of pre-training, cells of the axis, costs."""
    by_key = {claim.key: claim for claim in (claim(lab) for claim in CLAIMS)}
    assert any("for 4 of the 8 training questions asked" in line for line in by_key["C9"].limits)
    points = by_key["C10"].points
    assert len(points) == 2 * 3 and all(p["loss"] for p in points)
    cells = axis.read(lab).cells
    assert {(m, n, p) for m, n, p in cells if m == "sft"} == {("sft", n, p) for n in (4, 6) for p in (1, 2, 4)} | {
        ("sft", 8, 1)
    }
    assert ("rl", 6, 0) in cells and ("sft_rl", 6, 2) in cells
    rows = {(r[0], r[1]): r for r in agreement.compute(lab)[2]}
    late = amount(lab.late)
    assert rows[late, "RL"][2] == "32" and rows[late, "SFT"][2] == "0" and rows[late, "SFT"][4] == "24"
    assert lab.events.keys() >= {"gsm/0", "hard/0"} and beyond.tasks(lab) == ["gsm", "hard"]
