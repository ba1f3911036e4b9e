"""bench/gpu.py: its rehearsal, and that it survives what fails.   pytest -q tests/kernels/test_gpu_script.py"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import IMPL

from bench import gpu
from bench.gpu_machine import Machine
from kernels import dispatch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(dispatch.triton is None, reason="Triton is not installed: its wheels are for Linux only")
@pytest.mark.skipif(IMPL != "torch", reason="runs once, from the process that runs the torch paths")
def test_every_part_rehearses_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.jsonl"
    command = [sys.executable, "-m", "bench.gpu", "--rehearse", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["part"] for row in rows} == set(gpu.PARTS)
    assert all(row.get("passed", True) for row in rows) and sum("passed" in row for row in rows) >= 15
    assert all("ms" in row for row in rows if row["part"] == "tiles")
    (step,) = [row for row in rows if row["case"] == "GRPO step"]
    assert step["s_train"] > 0.05  # its rewards differ, else it would train nothing
    ours = [row for row in rows if row["part"] == "peers" and row["variant"].startswith("ours")]
    assert len(ours) == 6 and all("both_ms" in row for row in ours)


def test_a_part_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def breaks(machine):
        yield dict(case="before", ms=1.5)
        raise ZeroDivisionError("a sentence\nand a second line")

    monkeypatch.setattr(
        gpu, "PARTS", {"first": (breaks, 60), "slow": (lambda m: iter([dict(case=str(i)) for i in range(9)]), -1)}
    )
    for name in gpu.PARTS:
        gpu.run_part(name, Machine(rehearse=True), tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows[0] == {"part": "first", "case": "before", "ms": 1.5}
    assert rows[1] == {"part": "first", "case": "failed", "note": "ZeroDivisionError: a sentence"}
    assert [row["case"] for row in rows[2:]] == ["0", "cut"]  # over its time after the first row


def test_the_table_has_a_hundred_lines_at_most(tmp_path):
    """Passed checks are counted and not listed; a check that failed is."""
    out = tmp_path / "rows.jsonl"
    rows = [dict(part="correctness", case="a", passed=True)] * 30 + [dict(part="correctness", case="b", passed=False)]
    rows += [dict(part="peers", case=str(i), variant="ours", both_ms=0.123456) for i in range(150)]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = gpu.table(out)
    assert len(lines) == 100 and lines[2] == "correctness | b |  | passed False | "
    assert "peers | 0 | ours | both_ms 0.1235 | " in lines and "checks | 30 passed" in lines[-2]
    assert "55 more rows" in lines[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_names_the_rehearsal(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out.jsonl")])
    assert gpu.main() == 2 and "no GPU here; `--rehearse`" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
