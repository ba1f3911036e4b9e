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
from study import claims_methods, report, runner, tasks
from study.claims import CLAIMS
from study.folder import Folder
from study.manifest import header_of, write_manifest
from study.plan import make_plan
from study.read import Lab

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
    others=[3, 1],
    seeds=2,
    other_seeds=1,
    gold_seeds=1,
    control_seeds=1,
    rl=dict(steps=2, lr=1e-3, save_every=1, **RL),
    sft=dict(steps=4, lr=1e-3, batch_size=4, save_every=2),
    gold=dict(steps=4, lr=1e-3, batch_size=4),
    sft_rl=dict(steps=2, lr=2e-3, save_every=1, **RL),
    gold_rl=dict(steps=2, lr=2e-3, **RL),
    parallel=dict(steps=4, lr=1e-3, sft_lr=1e-3, batch_size=4, **RL),
    test=ASK,
    val=ASK,
    pools={4: 2, 8: 1},
    few_epochs=1,
    many_epochs=2,
    c4=dict(
        models={
            "heavy": dict(mix="math-heavy"),
            "large": dict(preset="mini-4x"),
            "base2": dict(seed=1),
            "heavy2": dict(mix="math-heavy", seed=1),
        },
        lr=dict.fromkeys(["base", "heavy", "large", "base2", "heavy2"], 1e-3),
        seeds=1,
    ),
    wide=dict(limit=2, n_samples=256, k=[1, 8, 32, 256], **SMALL),
    c8_seeds=3,
    c10_models=["heavy", "base2"],
    c9=dict(
        sort=dict(limit=8, n_samples=4, k=[1], temperature=1.0, top_p=1.0, **SMALL),
        prompts_per_step=2,
        few=2,
        many=4,
        steps=2,
        points=2,
    ),
    k1=dict(first={1: [1, 2], 2: [1, 2]}),
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
        patch.setattr(claims_methods, "POOLS", tuple(MINI["pools"]))
        patch.setitem(model.PRESETS, "mini", model.GPTConfig(n_embd=16, **SHAPE))
        patch.setitem(model.PRESETS, "mini-4x", model.GPTConfig(n_embd=32, **SHAPE))
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
    """All groups of the plan; claims and controls have what they need: one row is left to say "not run"."""
    groups = {r.get("group") for r in lab.manifest["runs"] if r["finished"]}
    assert groups == {
        None,
        "main",
        "shots",
        "calibration",
        "dynamics",
        "wide",
        *(f"c{i}" for i in (3, 4, 8, 9)),
        "k1",
        "k2",
        "k3",
        "k4",
    }
    claims = [claim(lab) for claim in CLAIMS]
    missing = [c.name for claim in claims for c in claim.comparisons if c.primary and not c.difference]
    assert missing == ["8 questions, pass@32: Gold − RL"]  # cut for time
    assert "not run" not in {claim.verdict for claim in claims}
    text = (lab.folder / "report.md").read_text()
    assert "Not run" not in text and "Mixed sources" not in text and text.count("](figures/") == 17
    assert (lab.folder / "report.html").read_text().count("data:image/png") > 25 and not lab.unreadable


def test_what_the_runs_hold_reaches_the_claims(lab):
    """The counts that sort C9's questions, the points of C10, the losses of pre-training, the shuffled 256."""
    by_key = {claim.key: claim for claim in (claim(lab) for claim in CLAIMS)}
    assert any("8 training questions" in n and "4 in a quarter or more (easy), 4 in" in n for n in by_key["C9"].limits)
    points = by_key["C10"].points
    assert len(points) == 4 + 2 and all(p["loss"] for p in points)
    wide = lab.find(group="wide", temperature=1.0, n_shot=...)
    assert {r["n_shot"] for r in wide} == {0, 8} and "pass@256" in wide[0]["result"]["questions"]["gsm"]["flexible"]
