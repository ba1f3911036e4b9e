"""The checkpoint that ships, and the tool that made it.   pytest -q tests/test_shipped.py"""

from pathlib import Path

import common
from common import load_checkpoint
from data.checkpoints import weights_hash
from model import load_model
from tools import weights

SHIPPED = Path(common.__file__).parent / "checkpoints" / "world_base.pt"


def test_it_is_the_labs_base():
    """World v10, pre-training seed 1 at 8.2M of 16.4M tokens: tools/weights.py."""
    ckpt = load_checkpoint(SHIPPED)
    assert (ckpt["stage"], ckpt["step"], ckpt["tokens"]) == ("train_pretrain", 6400, 8_192_000)
    assert weights_hash(ckpt["model"])[:12] == "ba24dfc5e218"
    assert load_model(ckpt, SHIPPED).n_params() == 968_832 and not ckpt["optimizer"]
    assert (ckpt["config"]["horizon"], ckpt["config"]["seed"], ckpt["config"]["data"]) == (12800, 1, "data/world")


def test_it_starts_runs_and_cannot_be_resumed(base, world, stage, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["weights", str(base), "--out", str(tmp_path / "w.pt")])
    weights.main()
    flags = ("--data", world, "--steps", 1, "--max-new-tokens", 4, "--out", tmp_path / "run")
    assert stage("train_rl", "--init", tmp_path / "w.pt", *flags).code == 0
    assert stage("train_rl", "--resume", tmp_path / "w.pt", *flags).code == 2
    monkeypatch.setattr("sys.argv", ["weights", str(base), "--out", str(tmp_path / "w.pt")])
    try:
        weights.main()
    except common.UserError as error:
        assert "exists" in str(error)
    else:
        raise AssertionError("an existing file was written over")
