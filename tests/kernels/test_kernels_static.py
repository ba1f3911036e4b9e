"""The kernel suites that need a process of their own: interpreted or on a GPU, and the static compile gate.

    pytest -q tests/kernels/test_kernels_static.py

Triton decides at import whether it compiles or interprets, and the two cannot share a process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import read_jsonl, tiny_model, write_ckpt, write_world

from kernels import dispatch
from kernels.compile_report import Build, all_builds, violations

ROOT = Path(__file__).resolve().parents[2]
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
        "tests/kernels/test_kernels.py",
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
        "tests/kernels/test_kernels.py",
        TRITON_INTERPRET="0",
        KERNELS_IMPL="triton",
    )


@needs_triton
def test_every_kernel_compiles_without_spilling():
    """All targets, bfloat16 and float16, head sizes 64 and 128. Two builds at a time."""
    out = run("-m", "kernels.compile_report", "--quick", "--jobs", "2", TRITON_INTERPRET="0")
    rows = [line for line in out.splitlines() if line.startswith(("cuda:", "hip:"))]
    assert {line.split(" | ")[0] for line in rows} == {"cuda:80", "cuda:90", "cuda:100", "hip:gfx942"}
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


CURVE = """
import importlib, sys
import torch
import model, train_rl
model.PRESETS["tiny"] = model.GPTConfig(n_layer=1, n_head=2, n_kv_head=1, n_embd=64, n_hidden=64)
train_rl.reward = lambda text, gold: float(sum(map(ord, text)) % 2)  # a coin: a signal from the first step
adamw = torch.optim.AdamW  # whose eps 1e-8 makes a whole step of the rounding noise of a gradient that cancels to zero
torch.optim.AdamW = lambda *args, **kwargs: adamw(*args, **{**kwargs, "eps": 1e-4})
name = sys.argv[0] = sys.argv.pop(1)
importlib.import_module(name).main()
"""
RL = "--prompts-per-step 2 --group-size 3 --max-new-tokens 5 --kl-coef 0.1 --updates-per-batch 2".split()
STAGES = {
    "train_pretrain": "--preset tiny --block-size 32 --batch-tokens 64".split(),
    "train_sft": ["--batch-size", "4"],
    "train_rl": RL,
    "merge": [*RL, "--batch-size", "4"],
}


@needs_triton
@pytest.mark.parametrize("name", STAGES)
def test_stages_give_the_same_losses_on_both_paths(name, tmp_path):
    """Three steps of each training stage, interpreted kernels against torch: every loss to 1e-4, gradients alive."""
    world = write_world(tmp_path / "world")
    base = write_ckpt(tmp_path / "ckpt_000001.pt", tiny_model(scale=2.0, n_layer=1, n_embd=64, n_kv_head=1))
    flags = ["--data", world, "--steps", 3, "--lr", 1e-2, "--warmup-steps", 0, "--threads", 1, *STAGES[name]]
    flags += [] if name == "train_pretrain" else ["--init", base]
    curves = []
    for impl in ("triton", "torch"):
        out = tmp_path / impl
        run("-c", CURVE, name, *map(str, [*flags, "--kernels", impl, "--out", out]), TRITON_INTERPRET="1")
        rows = read_jsonl(out / "metrics.jsonl")
        assert len(rows) == 3 and all(row["train/grad_norm"] > 0 for row in rows)
        curves.append([[row[key] for key in ("train/loss", "sft/loss", "policy/kl") if key in row] for row in rows])
    assert torch.allclose(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=0, atol=1e-4), curves


@needs_triton
def test_evaluation_gives_the_same_scores_on_both_paths(tmp_path):
    """Samples of two questions and the choices of two benchmark items, interpreted kernels against torch."""
    world = write_world(tmp_path / "world")
    base = write_ckpt(tmp_path / "ckpt_000001.pt", tiny_model(scale=2.0, n_layer=1, n_embd=64, n_kv_head=1))
    flags = ["--ckpt", base, "--data", world, "--tasks", "gsm", "facts", "--limit", 2, "--n-samples", 2, "--k", 1]
    flags += ["--max-new-tokens", 4, "--n-shot", 1, "--threads", 1]
    results = []
    for impl in ("triton", "torch"):
        out = tmp_path / f"{impl}.json"
        run("-c", CURVE, "evaluate", *map(str, [*flags, "--kernels", impl, "--out", out]), TRITON_INTERPRET="1")
        results.append(json.loads(out.read_text()))
    for key in ("questions", "benchmarks"):
        assert results[0][key] == results[1][key]
