"""Printing never ends a run, and what was computed is on disk before it is shown.   pytest -q tests/test_console.py"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import bigram_model, chain_table, read_jsonl, write_ckpt

import common
import evaluate
import train_sft

ROOT = Path(common.__file__).parent
QUICK = "--n-samples 1 --k 1 --max-new-tokens 8 --tasks gsm lastword --limit 2".split()
SFT = "--batch-size 2 --steps 3".split()


class Broken(io.TextIOBase):
    """A stream that takes `lines` lines, then fails as a closed pipe or a full disk does."""

    def __init__(self, error: OSError, lines: int):
        self.error, self.lines = error, lines

    def write(self, text: str) -> int:
        self.lines -= text.count("\n")
        if self.lines < 0:
            raise self.error
        return len(text)


@pytest.mark.parametrize("lines", [0, 2, 5])
@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")])
def test_results_survive_a_broken_stdout(ok, world, base, tmp_path, monkeypatch, error, lines):
    """After the first, third and sixth line: an evaluation and a training run end as if nothing was shown."""
    monkeypatch.setattr(sys, "stdout", Broken(error, lines))
    out = tmp_path / "r.json"
    monkeypatch.setattr(
        sys, "argv", ["evaluate.py", "--ckpt", str(base), "--data", str(world), "--out", str(out), *QUICK]
    )
    common.run(evaluate.main)
    assert json.loads(out.read_text())["questions"]["gsm"]["n_questions"] == 2
    flags = ["--init", str(base), "--data", str(world), "--out", str(tmp_path / "run"), *SFT]
    monkeypatch.setattr(sys, "argv", ["train_sft.py", *flags])
    common.run(train_sft.main)
    assert (tmp_path / "run/ckpt_000003.pt").exists()


def test_an_evaluation_is_written_before_it_is_shown(monkeypatch, ok, world, base, tmp_path):
    """Whatever goes wrong in the tables, the numbers are there."""

    def fails(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(evaluate, "print_table", fails)
    with pytest.raises(ZeroDivisionError):
        ok("evaluate", "--ckpt", base, "--data", world, "--out", tmp_path / "r.json", *QUICK)
    assert json.loads((tmp_path / "r.json").read_text())["questions"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_on_the_command_line(world, tmp_path, encoding):
    """A model that writes an arrow, half a surrogate pair's bytes and a tab; stdout is a pipe whose reader leaves."""
    table = chain_table(" \u21920", ":") if encoding != "utf-8" else chain_table(" \u0394", ":")
    ckpt, out = write_ckpt(tmp_path / "c.pt", bigram_model(table)), tmp_path / "r.json"
    command = [sys.executable, "evaluate.py", "--ckpt", ckpt, "--data", world, "--out", out, *QUICK]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    for shown in (subprocess.PIPE, "closed")[: 2 if encoding == "ascii" else 1]:  # who reads has no say in the letters
        out.unlink(missing_ok=True)
        read, write = os.pipe()
        if shown == "closed":
            os.close(read)
        target = write if shown == "closed" else subprocess.PIPE
        ended = subprocess.run(command, cwd=ROOT, env=env, stdout=target, stderr=subprocess.PIPE)
        os.close(write)
        assert ended.returncode == 0 and not ended.stderr, ended.stderr
        assert json.loads(out.read_text())["questions"]["gsm"]["n_questions"] == 2
    assert read_jsonl(tmp_path / "r.samples.jsonl")[0]["completion"].strip()


def test_text_that_utf8_cannot_hold(capsys):
    """A lone surrogate, as json.loads makes of \\ud800."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    common.Console(stream).write("a\ud800b \u00b1\n")
    stream.flush()
    assert stream.buffer.getvalue() == "a\\ud800b \u00b1\n".encode()


def test_errors_are_told_on_a_broken_stderr_too(monkeypatch):
    def mistaken():
        raise common.UserError("got 1, need 2; give 2")

    monkeypatch.setattr(sys, "stderr", Broken(BrokenPipeError(32, "Broken pipe"), 0))
    with pytest.raises(SystemExit) as ended:
        common.run(mistaken)
    assert ended.value.code == 2
