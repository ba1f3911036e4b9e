"""Fixtures of the stage tests: a tiny data folder, a checkpoint, and a way to run a stage in this process."""

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
import torch
from tiny import tiny_model, write_ckpt, write_world

import common
import model

# The tensors of these tests are tiny: more threads only wait for each other, and bit-for-bit claims are for one count.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the stages that run as subprocesses
torch.set_num_threads(1)
forked.start_server()


ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def checkout_stays_as_it_is():
    """No test makes what stages make by default where the user keeps the code: later tests would take it for the
    user's."""
    absent = [path for path in (ROOT / "data/world", ROOT / "runs") if not path.exists()]
    yield
    assert not [path for path in absent if path.exists()]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A data folder; tests that change it copy it first."""
    return write_world(tmp_path_factory.mktemp("data") / "world")


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A checkpoint of a random tiny model, of the world's tokenizer."""
    return write_ckpt(tmp_path_factory.mktemp("ckpt") / "ckpt_000003.pt", tiny_model(scale=1.0))


@pytest.fixture
def stage(monkeypatch, capsys):
    """stage("train_sft", "--init", ...) runs a script's main() as the command line does, and says how it ended."""
    monkeypatch.setitem(
        model.PRESETS, "tiny", model.GPTConfig(n_layer=2, n_head=2, n_embd=32, n_hidden=48, init_std=0.02)
    )
    threads = torch.get_num_threads()

    def run_stage(name: str, *flags) -> Ended:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
        capsys.readouterr()
        code = 0
        try:
            common.run(importlib.import_module(name).main)
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            torch.set_num_threads(threads)
        shown = capsys.readouterr()
        return Ended(code, shown.out, shown.err)

    return run_stage


@pytest.fixture
def ok(stage):
    """As `stage`, for runs that must succeed."""

    def run_ok(name: str, *flags) -> Ended:
        ended = stage(name, *flags)
        assert ended.code == 0, ended.err
        return ended

    return run_ok


@pytest.fixture
def refused(stage):
    """As `stage`, for user mistakes: exit code 2 and one line on stderr, returned, that holds every given word."""

    def run_refused(name: str, *flags, words: tuple = ()) -> str:
        ended = stage(name, *flags)
        lines = ended.err.splitlines()
        assert ended.code == 2 and len(lines) == 1, (ended.code, ended.err)
        assert lines[0].startswith("error: "), lines[0]
        for word in words:
            assert str(word) in lines[0], (word, lines[0])
        return lines[0]

    return run_refused
