"""The plan of a study: what names a run, what is done again.   pytest -q tests/test_study.py"""

import json
from argparse import Namespace

import pytest

import grid
import train_rl
from grid import words
from study import Study


def planned(preset, out="runs/x", seed=1):
    made = Study(Namespace(preset=preset, out=str(out), seed=seed, jobs=2))
    made.data_hash = "d"
    return made


@pytest.mark.parametrize("preset", ["smoke", "laptop", "lab"])
def test_every_run_has_a_name_and_an_address_of_its_own(preset):
    tasks = planned(preset).tasks
    trained = [t for t in tasks if t.kind != "eval"]
    assert len({t.name for t in tasks}) == len(tasks)
    assert len({t.identity("d") for t in trained}) == len(trained)  # nothing is trained twice
    places = {id(t): i for i, t in enumerate(tasks)}
    assert all(places[id(parent)] < places[id(t)] for t in tasks for parent, _ in t.inputs.values())


def test_the_lab_extends_the_laptop():
    """Same first seed, same runs: what the laptop study trained, the lab does not train again."""
    lab = {t.name: t.identity("d") for t in planned("lab").tasks if t.kind != "eval"}
    small = {t.name: t.identity("d") for t in planned("laptop").tasks if t.kind != "eval"}
    changed = {name for name in small if lab.get(name) != small[name]}
    assert len(small) > 10 and not changed


def test_an_address_hangs_on_every_setting(monkeypatch):
    """Seed, data, a parent's setting, and a default of the stage that no flag names."""
    rl = lambda s: next(t for t in s.tasks if t.name.startswith("rl-base"))  # noqa: E731
    one = planned("smoke")
    addresses = {rl(one).identity("d"), rl(one).identity("e"), rl(planned("smoke", seed=2)).identity("d")}
    monkeypatch.setitem(grid.PRESETS["smoke"]["pretrain"], "lr", 0.123)
    addresses.add(rl(planned("smoke")).identity("d"))
    monkeypatch.undo()
    assert rl(planned("smoke")).identity("d") in addresses and len(addresses) == 4
    monkeypatch.setitem(grid.PRESETS["smoke"]["pretrain"], "eval_every", 7)  # only watches
    assert rl(planned("smoke")).identity("d") in addresses
    real = train_rl.parser

    def changed():
        parser = real()
        parser.set_defaults(clip_high=0.3)
        return parser

    monkeypatch.setattr(train_rl, "parser", changed)
    assert rl(planned("smoke")).identity("d") not in addresses


def test_finished_evaluations_need_no_checkpoints(tmp_path):
    """Copied in from elsewhere: an evaluation's file and a run's log are enough; only what is missing is asked for."""
    made = planned("smoke", tmp_path)
    assert made.to_do() == made.tasks
    for t in made.tasks:
        path = made.path(t)
        path.parent.mkdir(parents=True, exist_ok=True)
        if t.kind == "eval":
            path.write_text("{}")
        else:
            (path.parent / "metrics.jsonl").write_text(json.dumps({"step": t.flags["steps"]}) + "\n")
    assert made.to_do() == []
    lost = next(t for t in made.tasks if t.name.startswith("sft_rl") and t.kind == "eval" and "main" in t.name)
    made.path(lost).unlink()
    asked = [t.name.split("-")[0] for t in made.to_do()]
    assert asked == ["pretrain", "sft", "sft_rl", "sft_rl"]  # its run, and the runs whose checkpoints that needs


def test_words():
    assert words({"batch_size": 64, "gold": True, "k": [1, 8]}) == ["--batch-size", "64", "--gold", "--k", "1", "8"]
