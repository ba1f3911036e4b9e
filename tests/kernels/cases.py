"""What the kernel tests share: which path and device they run on, guarded tensors, comparison with float64.

    pytest -q tests/kernels                                          the torch paths
    TRITON_INTERPRET=1 KERNELS_IMPL=triton pytest -q tests/kernels   the Triton kernels, interpreted on the CPU
    KERNELS_IMPL=triton pytest -q tests/kernels                      the Triton kernels on a GPU, bfloat16 too

The first also runs the second (and, with a GPU, the third) in processes of their own, from test_processes.py.
"""

import os

import pytest
import torch

from kernels import dispatch

IMPL = os.environ.get("KERNELS_IMPL", "torch")
DEVICE = "cuda" if IMPL == "triton" and not dispatch.interpreted() else "cpu"
# Largest error over the largest true value. bfloat16 keeps 8 bits; the interpreter computes it wrongly.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
TOLERANCE |= {} if dispatch.interpreted() else {torch.bfloat16: 1.6e-2}
GUARD = 512  # NaNs on both sides of every buffer
# Query and key heads: grouped, and as few as that takes where every program runs in Python.
HEADS = (2, 1) if dispatch.interpreted() else (4, 2)
triton_only = pytest.mark.skipif(IMPL != "triton", reason="a property of the Triton path")
torch_only = pytest.mark.skipif(IMPL != "torch", reason="a property of the torch path")


def guarded(values: torch.Tensor) -> torch.Tensor:
    """The same values, with NaN before and after them in memory: a read outside shows in the result."""
    buffer = torch.full((values.numel() + 2 * GUARD,), float("nan"), dtype=values.dtype, device=values.device)
    view = buffer[GUARD:-GUARD].view(values.shape)
    return view.copy_(values)


def random(*shape, dtype=torch.float32, scale=1.0):
    return guarded((torch.randn(shape) * scale).to(DEVICE, dtype))


def assert_close(got, want, dtype, what):
    assert got.shape == want.shape, f"{what}: {got.shape} against {want.shape}"
    assert got.isfinite().all(), f"{what}: not finite, so an element was never written or a guard was read"
    error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1)
    assert error <= TOLERANCE[dtype], f"{what}: relative error {error:.1e}"
