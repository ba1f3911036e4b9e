"""The report of a study on real data, from the one that is committed.   pytest -q tests/study/test_real.py"""

import shutil
from pathlib import Path

import pytest

import study
from study import real, report
from study.archive import NAME
from study.read import Lab

COMMITTED = Path(study.__file__).parent.parent / "docs" / "results" / "real-small"


@pytest.fixture
def copy(tmp_path):
    shutil.copy(COMMITTED / NAME, tmp_path)
    return tmp_path


def test_the_committed_report_is_that_of_its_archive(copy):
    report.build(copy)
    assert (copy / "report.md").read_text() == (COMMITTED / "report.md").read_text()
    assert (copy / "figures" / "losses.png").stat().st_size > 5000
    assert sum(path.stat().st_size for path in COMMITTED.rglob("*") if path.is_file()) < 300_000


def test_every_path_was_taken():
    lab = Lab(COMMITTED)
    assert all(run["finished"] for run in lab.manifest["runs"]) and len(lab.manifest["runs"]) == 11
    found = dict(real.evaluations(lab))
    assert set(found) == {"base, 2-shot", "base, 0-shot", "RL", "SFT", "SFT→RL", "parallel"}
    assert all(len(result["benchmarks"]) == 6 for name, result in found.items() if name != "base, 0-shot")


def test_training_without_a_reward_says_that_it_did_nothing(monkeypatch):
    lab = Lab(COMMITTED)
    rows = [{"step": s, "reward/mean": 0.0, "reward/hits": s - 1, "reward/frac_zero_std_groups": 1.0} for s in (1, 2)]
    monkeypatch.setattr(lab, "rows", lambda run: rows if run["method"] == "rl" else [])
    assert real.training(lab) == ["RL: 1 completions were rewarded; 0 of 2 steps had a group with unequal rewards."]
    rows[1]["reward/hits"] = 0
    assert "every advantage is zero" in real.training(lab)[0]


def test_intervals():
    assert real.percent({"value": 0.25, "stderr": 0.05}, 48) == "25.0 ± 9.8"
    assert real.percent({"value": 0.0, "stderr": 0.0}, 48) == "0.0 (below 6.2)"
    assert real.percent({"value": 1.0, "stderr": 0.0}, 48) == "100.0"


def test_a_study_that_has_not_ended_has_a_report(copy, monkeypatch):
    lab = Lab(copy)
    for run in lab.evals:
        run["result"] = None
    monkeypatch.setattr(lab, "rows", lambda run: [])
    draw = report.Drawn({"losses": (real.losses, lab, "Losses")}, report.Progress())
    assert real.blocks(lab, draw)[0] == ("head", 1, real.TITLE)
