"""The gradients written out against autograd's of the plain references.   pytest -q tests/kernels/test_gradients.py"""

import math

import pytest
import torch

from kernels.gradients import (
    move_rows,
    move_rows_reference,
    rms_norm,
    rms_norm_reference,
)
from model import rotate


def value_and_gradients(work, inputs, g):
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = work(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, g)


def assert_same(work, reference, inputs, g):
    for a, b in zip(value_and_gradients(work, inputs, g), value_and_gradients(reference, inputs, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start", [0, 8], ids=["slice", "copy"])
@pytest.mark.parametrize("shape", [(16,), (2, 16)])
def test_rms_norm(shape, start):
    """Also of a slice that is not contiguous; and without a gradient, where torch's own is called."""
    torch.manual_seed(0)
    x, g, weight = torch.randn(3, 5, *shape[:-1], 24), torch.randn(3, 5, *shape), torch.randn(shape)

    def of_a_part(norm):
        return lambda x, w: norm(x[..., :16] if start == 0 else x[..., start:].contiguous(), w, 1e-3)

    assert_same(of_a_part(rms_norm), of_a_part(rms_norm_reference), (x, weight), g)
    with torch.no_grad():
        torch.testing.assert_close(of_a_part(rms_norm)(x, weight), of_a_part(rms_norm_reference)(x, weight))


def test_rotation_by_hand():
    """Pairs (i, i + D/2) turn by their angle: (1, 0) by 90 degrees is (0, 1); the gradient turns back."""
    angles = torch.tensor([math.pi / 2, math.pi / 6])
    cos, sin = (torch.cat(parts)[None, None, None] for parts in ((angles.cos(),) * 2, (-angles.sin(), angles.sin())))
    x = torch.tensor([1.0, 2.0, 0.0, 0.0]).view(1, 1, 1, 4).requires_grad_()
    out = rotate(x, cos, sin)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 2 * math.sqrt(0.75), 1.0, 1.0]), atol=1e-6, rtol=0)
    (back,) = torch.autograd.grad(out, x, out)
    torch.testing.assert_close(back, x.detach(), atol=1e-6, rtol=0)


def test_moved_rows():
    """Five rows into seven slots, two of them empty, and back."""
    slots = torch.tensor([3, -1, 0, 1, -1, 4, 2])
    slot_of = torch.tensor([2, 3, 6, 0, 5])
    x, g = torch.randn(5, 2, 3), torch.randn(7, 2, 3)
    assert_same(lambda x: move_rows(x, slots, slot_of), lambda x: move_rows_reference(x, slots), [x], g)
    assert torch.equal(move_rows(move_rows(x, slots, slot_of), slot_of, slots), x)
