"""Curves of run folders: what is read, what is one setting, what a panel shows.   pytest -q tests/study/test_plot.py"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from common import UserError
from study import plot
from study.logs import Asked, by_setting, counted, read_log

RL = dict(adv_norm="std", lr=1e-4, init="runs/base/ckpt_000009.pt", data="data/world", task="gsm", save_every=0)
SFT = dict(batch_size=64, gold=False, lr=1e-3, init="runs/base/ckpt_000009.pt", data="data/world", task="gsm")
VAL = Asked("gsm", "val", 0, 0.6, 100)


def rl_row(step: int, **more) -> dict:
    return {"step": step, "train/loss": 0.01, "reward/mean": step / 10, "policy/entropy": 0.5, **more}


def write_run(folder: Path, config: dict | None, rows: list[dict]) -> Path:
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config | {"out": str(folder)}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_evaluation(path: Path, ckpt: str, value: float, split="val", general: float | None = None) -> None:
    settings = dict(ckpt=ckpt, split=split, n_shot=0, temperature=0.6, limit=100)
    flexible = {f"pass@{k}": {"value": value * k} for k in (1, 2)}
    found = dict(settings=settings, checkpoint={"step": int(Path(ckpt).stem[5:])}, general_average=general)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found | {"questions": {"gsm": {"flexible": flexible}}, "benchmarks": {}}))


def groups_of(*folders: Path) -> dict:
    return by_setting([read_log(folder) for folder in folders])


def drawn(part: tuple) -> list[np.ndarray]:
    """The lines that a panel draws, as (points, 2)."""
    ax = plot.pyplot().figure().subplots()
    part[1](ax)
    return [line.get_xydata() for line in ax.lines if len(line.get_xdata())]


def cli(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["plot", *map(str, words)])
    plot.main()


def test_seeds_of_one_setting_are_their_mean_and_range(tmp_path):
    """Only the seed and what changes no number differs: one curve, at the steps that both have."""
    one = write_run(tmp_path / "rl-s1", RL | {"seed": 1}, [rl_row(s) for s in (1, 2, 3)])
    two = write_run(tmp_path / "rl-s2", RL | {"seed": 2, "save_every": 2}, [rl_row(s + 1) for s in (0, 1)])
    for row, seed in ((one, 1), (two, 2)):
        path = row / "metrics.jsonl"
        path.write_text(path.read_text().replace('"reward/mean": 0.1', f'"reward/mean": 0.{seed}'))
    groups = groups_of(one, two)
    assert [counted(*g) for g in groups.items()] == ["rl (2 seeds)"]
    parts = dict(plot.panels(groups))
    (line,) = drawn(("", parts["training reward"]))
    assert np.allclose(line, [[1, 0.15], [2, 0.2]])


def test_labels_say_what_differs_or_name_the_folder(tmp_path):
    runs = [
        write_run(tmp_path / "plain-s1-0123456789", RL | {"seed": 1}, [rl_row(1)]),
        write_run(tmp_path / "a_folder_whose_name_is_long", RL | {"seed": 1, "adv_norm": "none"}, [rl_row(1)]),
        write_run(tmp_path / "fast", RL | {"seed": 1, "lr": 3e-4}, [rl_row(1)]),
        write_run(tmp_path / "gold", SFT | {"seed": 1, "gold": True}, [{"step": 1, "train/loss": 2.0}]),
        write_run(tmp_path / "fork", RL | {"seed": 1, "source": "abc"}, [rl_row(1)]),
        write_run(tmp_path / "bare", None, [rl_row(1)]),
    ]
    assert list(groups_of(*runs[:3])) == ["plain-s1", "adv-norm none", "lr 0.0003"]  # what most share is not said
    assert list(groups_of(*runs[:2])) == ["adv-norm std", "adv-norm none"]
    assert list(groups_of(runs[0], runs[3])) == ["rl", "sft"]
    assert list(groups_of(runs[0], runs[4])) == ["plain-s1", "fork"]  # other code is another setting
    assert list(groups_of(runs[5], runs[0])) == ["bare", "rl"]


def test_rl_from_sft_is_one_setting_over_the_seeds_of_both(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"sft-s{seed}", SFT | {"seed": seed}, [{"step": 1, "train/loss": 2.0}])
        start = {"init": f"elsewhere/sft-s{seed}/ckpt_000240.pt", "seed": seed}
        write_run(tmp_path / f"sft_rl-s{seed}", RL | start, [rl_row(1)])
    assert [len(g) for g in groups_of(*sorted(tmp_path.glob("sft_rl*"))).values()] == [2]
    for seed in (1, 2):  # two pre-trainings are two settings
        start = {"init": f"runs/base-s{seed}/ckpt_000009.pt", "seed": seed}
        write_run(tmp_path / f"rl-s{seed}", RL | start, [rl_row(1)])
    assert [len(g) for g in groups_of(*sorted(tmp_path.glob("rl*"))).values()] == [1, 1]


def test_each_kind_of_loss_has_its_panel(tmp_path):
    """RL's is near 0 and no likelihood; merge.py's SFT side is one; pre-training's is of all text."""
    runs = [
        write_run(tmp_path / "rl", RL, [rl_row(1)]),
        write_run(tmp_path / "merge", RL | {"combine": "average"}, [rl_row(1, **{"sft/loss": 1.5})]),
        write_run(tmp_path / "sft", SFT, [{"step": 1, "train/loss": 2.0}]),
        write_run(tmp_path / "base", {"batch_tokens": 64}, [{"step": 1, "train/loss": 3.0, "train/tokens": 64}]),
    ]
    parts = dict(plot.panels(groups_of(*runs)))
    values = {title: sorted(float(line[0, 1]) for line in drawn((title, parts[title]))) for title in parts}
    assert values["training loss, nats a token"] == [1.5, 2.0]
    assert values["pre-training loss, nats a token"] == [3.0]
    assert values["loss of RL (near 0 is normal)"] == [0.01, 0.01]


def test_pass_at_k_comes_from_evaluations_beside_and_in_the_study(tmp_path, capsys):
    """Step 0 is the checkpoint that the run began from; evaluations of another kind are told, not mixed in."""
    run = write_run(tmp_path / "runs" / "rl", RL | {"init": "old/base/ckpt_000009.pt"}, [rl_row(1), rl_row(4)])
    write_evaluation(tmp_path / "evals" / "base.json", "old/base/ckpt_000009.pt", 0.1, general=0.9)
    write_evaluation(run / "ckpt_000002.val_0shot.json", "ckpt_000002.pt", 0.2)
    write_evaluation(tmp_path / "evals" / "rl.json", "moved/rl/ckpt_000004.pt", 0.3, general=0.8)
    write_evaluation(tmp_path / "evals" / "test.json", "moved/rl/ckpt_000004.pt", 0.4, split="test")
    write_evaluation(tmp_path / "evals" / "other.json", "moved/sft/ckpt_000004.pt", 0.9)
    (tmp_path / "evals" / "torn.json").write_text('{"settings": {"split"')
    log = read_log(run)
    assert {step: v["pass@1"] for step, v in log.scores[VAL].items()} == {0: 0.1, 2: 0.2, 4: 0.3}
    parts = dict(plot.panels({"rl": [log]}))
    note = capsys.readouterr().out
    assert "not drawn: first 100 gsm test questions" in note
    panel = next(part for part in parts.items() if part[0].startswith("pass@2, %\nfirst 100 gsm val questions, 0-shot"))
    assert np.allclose(drawn(panel)[0], [[0, 20], [2, 40], [4, 60]])
    assert np.allclose(drawn(("", parts["general benchmarks, average, %"]))[0], [[0, 90], [4, 80]])


def test_scores_during_training_are_drawn(tmp_path):
    run = write_run(tmp_path / "rl", RL, [rl_row(1), rl_row(2, **{"eval/pass@1": 0.25})])
    parts = dict(plot.panels(groups_of(run)))
    assert np.allclose(drawn(("", parts["pass@1 on validation questions, during training"]))[0], [[2, 0.25]])


def test_a_torn_log_and_missing_metrics_are_no_hindrance(tmp_path, monkeypatch, capsys):
    """A row cut off, rows that are no rows, a null, a step logged twice, a run without steps; runs of unlike length."""
    run = write_run(tmp_path / "torn", RL, [rl_row(1), rl_row(2, **{"policy/entropy": None}), rl_row(2, **{"x": 1})])
    with open(run / "metrics.jsonl", "a") as f:
        f.write('[1]\n{"train/loss": 1}\n{"step": 3, "train/lo')
    empty = write_run(tmp_path / "empty", RL, [])
    sft = write_run(tmp_path / "sft", SFT, [{"step": s, "train/loss": 1 / s} for s in range(1, 60)])
    assert list(read_log(run).rows) == [1, 2] and read_log(run).rows[2]["x"] == 1
    cli(monkeypatch, run, empty, sft, "--out", tmp_path / "new" / "curves.svg")
    shown = capsys.readouterr().out
    assert "left out" in shown and "empty has logged no step" in shown
    assert "4 panels of rl, sft" in shown
    assert (tmp_path / "new" / "curves.svg").read_text().count("training reward") == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere"], "no metrics.jsonl there; give a run's folder"),
        (["empty"], "none of these runs has logged a step"),
        (["odd"], "none of the usual metrics; name some with --metrics"),
        (["rl", "--metrics", "policy/kl"], "no run logged it; there are policy/entropy"),
        (["rl", "--out", "curves.jpeg"], "must end in .png"),
    ],
)
def test_what_cannot_be_drawn_is_told(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_run(Path("empty"), RL, [])
    write_run(Path("odd"), RL, [{"step": 1, "mine": 2}])
    write_run(Path("rl"), RL, [rl_row(1)])
    with pytest.raises(UserError, match=message):
        cli(monkeypatch, *words)
    assert not Path("curves.png").exists()


def test_without_matplotlib_there_is_a_sentence(tmp_path, monkeypatch):
    run = write_run(tmp_path / "rl", RL, [rl_row(1)])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        cli(monkeypatch, run)
