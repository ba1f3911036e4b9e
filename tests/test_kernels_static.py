"""The kernel suites that need a process of their own: interpreted or on a GPU, and the static compile gate.

    pytest -q tests/test_kernels_static.py

Triton decides at import whether it compiles or interprets, and the two cannot share a process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import dispatch
from kernels.compile_report import Build, all_builds, violations

ROOT = Path(__file__).resolve().parent.parent
needs_triton = pytest.mark.skipif(
    dispatch.triton is None, reason="Triton is not installed: its wheels are for Linux only"
)


def run(*command, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@needs_triton
def test_kernels_interpreted():
    out = run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_kernels.py",
        TRITON_INTERPRET="1",
        KERNELS_IMPL="triton",
    )
    assert " passed" in out and "skipped" in out.splitlines()[-1]


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_kernels_on_the_gpu():
    run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_kernels.py",
        TRITON_INTERPRET="0",
        KERNELS_IMPL="triton",
    )


@needs_triton
def test_every_kernel_compiles_without_spilling():
    """All targets, bfloat16 and float16, head sizes 64 and 128. Two builds at a time."""
    out = run("-m", "kernels.compile_report", "--quick", "--jobs", "2", TRITON_INTERPRET="0")
    rows = [line for line in out.splitlines() if line.startswith(("| cuda:", "| hip:"))]
    assert {line.split(" | ")[0][2:] for line in rows} == {"cuda:80", "cuda:90", "cuda:100", "hip:gfx942"}
    assert len(rows) == 4 * 2 * (2 * 6 + 2) and out.rstrip().endswith("no violation.")


def test_the_gate_knows_a_violation():
    """Made-up figures around each limit: one byte over is a violation, the limit itself is not."""
    fine = dict(registers=255, spill=0, shared=65536, matrix=8, occupancy=12, dots=True)
    forward = Build("hip:gfx942", "attention", "_attn_fwd", "bf16", 64, {}, 4, 1)
    backward = Build("cuda:80", "attention", "_attn_bwd_dq", "bf16", 64, {}, 4, 1)
    assert violations(forward, fine) == [] and violations(backward, {**fine, "spill": 64, "shared": 163 * 1024}) == []
    assert "spills 4 bytes" in violations(forward, {**fine, "spill": 4})[0]
    assert "spills 68 bytes" in violations(backward, {**fine, "spill": 68})[0]
    assert "shared memory" in violations(forward, {**fine, "shared": 65537})[0]
    assert "no matrix instruction" in violations(forward, {**fine, "matrix": 0})[0]
    assert violations(forward, {**fine, "matrix": 0, "dots": False}) == []


@needs_triton
def test_the_gate_covers_every_kernel():
    """A kernel that is launched anywhere in kernels/ is in the table."""
    launched = {
        word.split("[")[0].strip()
        for path in (ROOT / "kernels").glob("*.py")
        for word in path.read_text().splitlines()
        if word.strip().startswith("_") and "[(" in word or "[grid]" in word
    }
    assert len(launched) == 8 and {b.kernel for b in all_builds()} == launched
