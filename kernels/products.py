"""Matrix products of float32 on a CPU with AVX-512, by oneDNN.

    matmul(a, b)        a @ b
    linear(x, weight)   x @ weight.T and its gradient: what nn.Linear computes

torch.mm and F.linear give float32 to MKL, which leaves AVX-512 unused on AMD's CPUs: 100 GFLOP/s on one core, where
oneDNN has 240. With AVX2 alone oneDNN is no faster, with few rows or a transposed factor slower (bench/README.md). Both
multiply and add in float32; the order of their sums differs. CPUs without AVX-512, other dtypes and devices, autocast
and torch.compile go where torch sends them.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _by_onednn(x) -> bool:
    return ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0


def _onednn(x, weight):
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")


def matmul(a, b, out=None):
    """a (M, K) @ b (K, N), of one dtype; for a place without autograd."""
    if not _by_onednn(a):
        return torch.mm(a, b, out=out)
    product = _onednn(a, b.T)
    return product if out is None else out.copy_(product)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return matmul(x.flatten(0, -2), weight.T).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        rows, g_rows = x.flatten(0, -2), g.flatten(0, -2)
        dx = matmul(g_rows, weight).view(x.shape) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return dx, None
        wide = weight.shape[0] > weight.shape[1]  # up to 1.4 times as fast with the wider of the two at the right
        return dx, matmul(rows.T, g_rows).T if wide else matmul(g_rows.T, rows)


def linear(x, weight):
    """x (..., K), weight (N, K) -> (..., N)."""
    plain = torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)
    if plain or not _by_onednn(x) or weight.dtype != x.dtype:
        return F.linear(x, weight)
    if not torch.is_grad_enabled():
        return _onednn(x, weight)
    return _Linear.apply(x, weight)
