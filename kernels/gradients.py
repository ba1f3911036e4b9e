"""Two small operations whose gradients are written out: autograd would go over the memory twice as often.

    rms_norm(x, weight, eps)       x over its root mean square, times weight
    move_rows(x, index, inverse)   a gather whose gradient is the gather back

Each is followed by its plain reference, which autograd differentiates: the definition, for tests and readers.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


# ---------------------------------------------------------------- RMSNorm
class _NormOnCPU(torch.autograd.Function):
    """With r = 1 / rms(x) and g the upstream gradient,

        dx = r g w - x r^3 mean(g w x)        dw = sum of g x r over rows

    F.rms_norm on a CPU is a chain of operations, each with a pass of its own in both directions."""

    @staticmethod
    def forward(ctx, x, weight, eps: float):
        r = _inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, weight, r = ctx.saved_tensors
        out = g * x  # then overwritten: a fresh tensor of a few MB costs four times what a multiplication in place does
        rows, scale = out.view(-1, *weight.shape), r.view(-1, *weight.shape[:-1])
        if weight.ndim == 1:
            dw = rows.T.mv(scale)
        else:
            dw = torch.stack([rows[:, i].T.mv(scale[:, i]) for i in range(len(weight))])
        mean = out.mul_(weight).sum(-1, keepdim=True).mul_(r**3).div_(-x.shape[-1])
        return torch.mul(g, weight, out=out).mul_(r).addcmul_(x, mean), dw, None


def _inverse_rms(x, eps: float):
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return square.div_(x.shape[-1]).add_(eps).rsqrt_()


def rms_norm(x, weight, eps: float):
    """x (..., *weight.shape) over its root mean square along the last dimension, times weight (W,) or (n, W): n vectors
    of one width, normed in one call. In float32, also under autocast."""
    x = x.float()
    if torch.compiler.is_compiling():  # the compiler fuses the passes itself
        return rms_norm_reference(x, weight, eps)
    if x.device.type == "cpu":
        if torch.is_grad_enabled():
            return _NormOnCPU.apply(x, weight, eps)
        return (x * _inverse_rms(x, eps)).mul_(weight)
    if weight.ndim == 1:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x, weight.shape[-1:], None, eps) * weight


def rms_norm_reference(x, weight, eps: float):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


# ---------------------------------------------------------------- rows between two layouts
class _MoveRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index, inverse):
        ctx.save_for_backward(index, inverse)
        return _gather(x, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        index, inverse = ctx.saved_tensors
        return _gather(g, inverse), None, None


def _gather(x, index):
    return x.index_select(0, index.clamp(min=0)).mul_((index >= 0).to(x.dtype).view(-1, *[1] * (x.ndim - 1)))


def move_rows(x, index, inverse):
    """x (N, ...) -> x[index], 0 where index is -1. An index names a row once at most, and `inverse` leads back, so the
    gradient is the same gather the other way (torch's own would add the rows up one by one)."""
    return _MoveRows.apply(x, index, inverse)


def move_rows_reference(x, index):
    return torch.where((index >= 0).view(-1, *[1] * (x.ndim - 1)), x[index.clamp(min=0)], 0.0)
