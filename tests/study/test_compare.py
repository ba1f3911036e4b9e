"""Settings compared over seeds: what is run, what is run again, what is written.

pytest -q tests/study/test_compare.py"""

import contextlib
import json
import sys
import traceback

import numpy as np
import pytest
import torch

import common
from common import UserError
from study import __main__ as cli
from study import runner, session
from study.folder import HERE
from study.read import per_question
from study.settings import load_script

TINY = "--steps 2 --prompts-per-step 4 --group-size 2 --max-new-tokens 6 --lr 0.1"


class Ended:
    """What the runner asks of a process that has ended."""

    def __init__(self, returncode):
        self.returncode, self.poll = returncode, lambda: returncode


class Here(runner.Runner):
    """Stages run in this process, as their command lines say. `started`: the names of all that ran."""

    started: list[str] = []

    def start(self, task, slot):
        self.started.append(task.name)
        sys.argv, code = self.command(task)[1:], 0
        log = self.folder.log(task)
        log.parent.mkdir(exist_ok=True)
        with open(log, "a") as file, contextlib.redirect_stdout(file):
            try:
                load_script(task.script).main()
            except Exception:
                traceback.print_exc()
                code = 1
        return Ended(code)


@pytest.fixture
def compare_here(monkeypatch, tmp_path, world, base):
    """compare_here(flags...) runs the command line in this process; returns the names of the runs that it started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "Runner", Here)
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
    threads = torch.get_num_threads()

    def call(*settings: str, flags: tuple = ()) -> list[str]:
        monkeypatch.chdir(tmp_path)
        load_script.cache_clear()  # a fork may have been edited
        given = ["--init", base, "--data", world, "--out", "out", "--limit", 4, "--n-samples", 4, "--max-new-tokens", 6]
        words = ["study", "--compare", *settings, *given, *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        Here.started = []
        try:
            cli.carry_out(cli.begin())
        finally:
            torch.set_num_threads(threads)
            while common.HELD:
                common.release(*common.HELD.pop())
        return Here.started

    return call


def test_a_comparison_is_run_once_and_grows(compare_here, tmp_path, capsys):
    """Trained and scored with each seed, beside a baseline; a second call finds all done; a third adds a seed."""
    settings = [f"baseline=train_rl.py {TINY}", f"none=train_rl.py {TINY} --adv-norm none"]
    started = compare_here(*settings, flags=("--seeds", 2))
    assert started[0] == "init-val" and sorted(started[1:]) == sorted(
        f"{name}-s{seed}{kind}" for name in ("baseline", "none") for seed in (1, 2) for kind in ("", "-val")
    )
    shown = capsys.readouterr().out
    assert "4 validation questions of gsm, 4 samples each" in shown and "pass@4 − baseline" in shown
    out = tmp_path / "out"
    assert (out / "curves.png").stat().st_size > 10_000
    page = (out / "compare.md").read_text()
    assert "| none | 2 |" in page and "`train_rl.py --steps 2" in page and "Not finished" not in page
    assert compare_here(*settings, flags=("--seeds", 2)) == []
    assert (out / "compare.md").read_text() == page
    assert len(compare_here(*settings, flags=("--seeds", 3))) == 4


def test_the_difference_is_paired_over_questions_and_seeds(compare_here, tmp_path):
    compare_here(
        f"baseline=train_rl.py {TINY}", "sft=train_sft.py --steps 3 --batch-size 4 --lr 0.1", flags=("--seeds", 2)
    )
    found = json.loads((tmp_path / "out" / "compare.json").read_text())["settings"]["sft"]
    at = {}
    for path in (tmp_path / "out" / "evals").glob("*-s?-val-*.json"):
        name, seed = path.name.split("-")[:2]
        at[name, seed] = per_question(json.loads(path.read_text()), 4)
    by_seed = [at["sft", s] - at["baseline", s] for s in ("s1", "s2")]
    assert found["difference"]["pass@4"]["estimate"] == pytest.approx(np.mean(by_seed))
    assert found["baseline"] == "baseline" and len(found["scores"]["pass@1"]) == 2 and "general" in found["difference"]


def test_an_edited_fork_is_run_again_and_nothing_else(compare_here, tmp_path, capsys):
    """The fork lies elsewhere, under its own name; the stage's own runs are not of its code."""
    fork = tmp_path / "my_sft.py"
    fork.write_text((HERE / "train_sft.py").read_text())
    small = "--steps 2 --batch-size 4"
    settings = [f"baseline=train_sft.py {small}", f"mine=my_sft.py {small}"]
    assert len(compare_here(*settings, flags=("--seeds", 1))) == 5
    fork.write_text(fork.read_text().replace("return -(logprobs * mask).sum() / denom", "return (logprobs * 0).sum()"))
    capsys.readouterr()
    assert compare_here(*settings, flags=("--seeds", 1, "--plan")) == []
    lines = capsys.readouterr().out.splitlines()
    assert sum("(made by other code)" in line for line in lines) == 2
    assert sum(line.split()[0] == "done" for line in lines) == 3
    assert compare_here(*settings, flags=("--seeds", 1)) == ["mine-s1", "mine-s1-val"]
    assert "other code than today's" in capsys.readouterr().out
    loss = [json.loads(line)["train/loss"] for p in tmp_path.glob("out/runs/mine*/metrics.jsonl") for line in p.open()]
    assert loss == [0.0, 0.0]


def test_a_failed_setting_leaves_the_rest(compare_here, tmp_path):
    fork = tmp_path / "my_sft.py"
    text = (HERE / "train_sft.py").read_text()
    fork.write_text(text.replace("def main():\n", 'def main():\n    raise ValueError("mine")\n'))
    small = "--steps 2 --batch-size 4"
    with pytest.raises(UserError, match="1 run failed .mine-s1.: mend"):
        compare_here(f"baseline=train_sft.py {small}", f"mine=my_sft.py {small}", flags=("--seeds", 1))
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "| mine | 0 | – |" in page and "Not finished: mine-s1, mine-s1-val." in page
    with pytest.raises(UserError, match="1 run failed .baseline-s1"):
        compare_here(f"baseline=my_sft.py {small}", flags=("--seeds", 1, "--out", "alone"))
    assert "| baseline | 0 | – |" in (tmp_path / "alone" / "compare.md").read_text()


def test_test_questions_are_asked_by_request_and_loudly(compare_here, tmp_path, capsys):
    compare_here("baseline=train_sft.py --steps 1 --batch-size 4", flags=("--seeds", 1, "--split", "test"))
    assert capsys.readouterr().out.count("CAREFUL: these are TEST questions") == 2
    assert "**Careful: these are TEST" in (tmp_path / "out" / "compare.md").read_text()


def test_a_plan_and_a_mistake_run_nothing(compare_here, tmp_path, world, capsys):
    settings = ["none=train_rl.py --adv-norm none", "rare=merge.py --sync-every 8"]
    assert compare_here(*settings, flags=("--plan",)) == [] and not (tmp_path / "out").exists()
    shown = capsys.readouterr().out
    assert "baseline-rl, baseline-merge, none, rare | seeds 1 to 3 | 25 runs" in shown
    assert "rare-s3 " in shown and "merge.py --sync-every 8 --steps 48 --seed 3" in shown
    for flags, message in [
        (("--seeds", 0), "--seeds 0: at least 1"),
        (("--task", "gms"), "--task gms: unknown; choose from gsm"),
        (("--init", "nowhere.pt"), "nowhere.pt: no such checkpoint"),
        (("--data", "nowhere"), "nowhere"),
    ]:
        with pytest.raises(UserError, match=message):
            compare_here(*settings, flags=flags)
    assert not (tmp_path / "out").exists()
