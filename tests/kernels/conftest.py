"""Fixtures of the kernel tests."""

import pytest
import torch
from cases import DEVICE, GUARD
from interpreter import patch_once_a_launch

from kernels import dispatch

if dispatch.interpreted() and dispatch.triton is not None:
    patch_once_a_launch()


@pytest.fixture
def poison(monkeypatch):
    """Buffers that kernels allocate come full of NaN and NaN-guarded; afterwards nothing was written outside them."""
    buffers, empty = [], torch.empty

    def poisoned(*shape, **options):
        out = empty(*shape, **options)
        if not out.is_floating_point():
            return out
        buffer = torch.full((out.numel() + 2 * GUARD,), float("nan"), dtype=out.dtype, device=out.device)
        buffers.append(buffer)
        return buffer[GUARD:-GUARD].view(out.shape)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda x: poisoned(x.shape, dtype=x.dtype, device=x.device))
    yield
    monkeypatch.undo()
    for buffer in buffers:
        assert buffer[:GUARD].isnan().all() and buffer[-GUARD:].isnan().all(), "a kernel wrote outside its buffer"


@pytest.fixture
def on_device():
    """New tensors go where the kernels run."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        yield
