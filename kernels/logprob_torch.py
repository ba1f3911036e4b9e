"""The log-prob of logprob.py in plain PyTorch: its definition, and what runs where its kernels do not.

Shapes and formulas as there: hidden (N, D), weight (V, D), targets (N,), z the logits over the temperature, dz their
gradient. Log-sum-exps and maxima are base e throughout this file.
"""

import math

import torch
from torch.autograd.function import once_differentiable

from kernels.dispatch import matmul_dtype
from kernels.products import matmul

# Elements of the one large buffer. 2**23 (32 MB in float32) also holds the whole problem of a small world (8,192 rows,
# 1,000 words): then the forward's exponentials stay in it and the backward is two products without recomputation.
CHUNK = 2**23
CPU_TILE = (256, 2048)  # rows, words: 2 MB of float32, which stays in cache between the passes over it


def linear_logprob_reference(hidden, weight, targets, temperature: float = 1.0):
    """The definition, with the (N, V) logits in memory. Any dtype, any device. Same returns as `linear_logprob`."""
    logits = hidden @ weight.T / temperature  # (N, V)
    logp = logits.log_softmax(-1)
    return logp.gather(1, targets[:, None])[:, 0], logits.logsumexp(-1), -(logp.exp() * logp).sum(-1)


# ---------------------------------------------------------------- torch path
def _product(a, b, out, scratch):
    """out = a @ b in float32, by way of `scratch` when a and b are 16 bit. Returns out."""
    if scratch is None:
        return matmul(a, b, out)
    return out.copy_(torch.mm(a, b, out=scratch))


class _Tiles:
    """The buffers of one pass: views of the same memory for every tile, whatever its size. Fresh pages are slow."""

    def __init__(self, rows: int, words: int, like: torch.Tensor, count: int):
        stat = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.stat = [torch.empty(rows * words, dtype=stat, device=like.device) for _ in range(count)]
        self.low = None if like.dtype == stat else torch.empty(rows * words, dtype=like.dtype, device=like.device)

    def view(self, rows: int, words: int):
        """(statistics-dtype tiles..., 16-bit tile or None), each (rows, words)."""
        whole = [*self.stat, self.low]
        return tuple(None if buffer is None else buffer[: rows * words].view(rows, words) for buffer in whole)


def _tile_sizes(N: int, V: int, device: torch.device) -> tuple[int, int]:
    if device.type == "cpu":
        return max(1, min(N, CPU_TILE[0])), min(V, CPU_TILE[1])
    rows = max(1, min(N, 4096))
    return rows, min(V, max(1024, CHUNK // rows))  # a GPU wants large products


def _forward(hidden, weight, targets, keep: bool, entropy: bool):
    """hidden (N, D) already divided by the temperature. Returns logp, lse, entropy (N,) or None, and (l_i, exp(z -
    m_i)) if kept, else ()."""
    N, V = len(hidden), len(weight)
    rows, words = _tile_sizes(N, V, hidden.device)
    if keep:
        words = V
    tiles = _Tiles(rows, words, hidden, count=2)
    stat = tiles.stat[0].dtype
    m_i, l_i, ez, zy = (torch.zeros(N, dtype=stat, device=hidden.device) for _ in range(4))
    m_i.fill_(-math.inf)
    kept = None
    if keep:
        kept = torch.empty(N, V, dtype=stat if tiles.low is None else tiles.low.dtype, device=hidden.device)
    for r in range(0, N, rows):
        h, y = hidden[r : r + rows], targets[r : r + rows]
        R = slice(r, r + len(h))
        for v in range(0, V, words):
            w = weight[v : v + words]
            z, e, low = tiles.view(len(h), len(w))
            if keep and low is None:
                e = kept[R]
            _product(h, w.T, z, low)
            inside = (y >= v) & (y < v + len(w))
            zy[R] += torch.where(inside, z.gather(1, (y - v).clamp(0, len(w) - 1)[:, None])[:, 0], 0)
            new_m = torch.maximum(m_i[R], z.amax(1))
            torch.exp(z.sub_(new_m[:, None]), out=e)
            # The sums so far are relative to the old maximum: exp(z - m_i) = exp(z - old) exp(old - m_i), and likewise
            # for ez.
            step = torch.where(l_i[R] > 0, m_i[R] - new_m, 0)
            scale = step.exp()
            if entropy:
                ez[R] = scale * (ez[R] + step * l_i[R]) + z.mul_(e).sum(1)
            l_i[R] = scale * l_i[R] + e.sum(1)
            m_i[R] = new_m
            if keep and low is not None:
                kept[R] = e
    log_l = l_i.log()
    return zy - m_i - log_l, m_i + log_l, log_l - ez / l_i if entropy else None, (l_i, kept) if keep else ()


def _backward(hidden, weight, lse, entropy, coef, g_entropy, kept, d_hidden, d_weight):
    """Add dz's softmax part, coef p - g_entropy p (z - lse + entropy) with coef = g_lse - g_logp, to d_hidden (N, D)
    and d_weight (V, D); either may be None."""
    N, V = len(hidden), len(weight)
    # A row's factor moves from the large dz = coef p to the small sides: dz @ w = coef (p @ w), dz.T @ h = p.T @ (coef
    # h).
    if kept and g_entropy is None:
        l_i, e = kept
        coef = (coef / l_i)[:, None]
        if d_hidden is not None:
            d_hidden += coef * matmul(e, weight)
        if d_weight is not None:
            d_weight += matmul(e.T, (coef * hidden).to(hidden.dtype))
        return
    right = hidden if g_entropy is not None else (coef[:, None] * hidden).to(hidden.dtype)
    left = None if d_hidden is None else torch.zeros_like(d_hidden)
    rows, words = _tile_sizes(N, V, hidden.device)
    tiles = _Tiles(rows, words, hidden, count=1)
    for v in range(0, V, words):
        w = weight[v : v + words]
        for r in range(0, N, rows):
            R = slice(r, min(r + rows, N))
            p, low = tiles.view(R.stop - r, len(w))
            _product(hidden[R], w.T, p, low).sub_(lse[R, None])  # log p
            if g_entropy is None:
                p.exp_()
            else:
                factor = coef[R, None] - g_entropy[R, None] * (p + entropy[R, None])
                p.exp_().mul_(factor)
            if low is not None:
                low.copy_(p)
            if left is not None:
                _add_product(left[R], p, low, w)
            if d_weight is not None:
                _add_product(d_weight[v : v + len(w)], p.T, None if low is None else low.T, right[R])
    if left is not None:
        d_hidden += left if g_entropy is not None else left.mul_(coef[:, None])


def _add_product(total, p, low, x) -> None:
    """total += p @ x, by way of the 16-bit `low` where there is one."""
    if low is None:
        total += matmul(p, x)
    else:
        total += torch.mm(low, x)


def mark_invalid(x, targets, V: int):
    """NaN where the target is no word. On a GPU nothing can raise without waiting for the device, so the loss says
    it."""
    return torch.where((targets >= 0) & (targets < V), x, math.nan)


class TorchLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, entropy):
        multiply = matmul_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(multiply), weight.to(multiply)
            h = h if temperature == 1 else h / temperature
            keep = any(ctx.needs_input_grad) and len(h) * len(w) <= CHUNK
            logp, lse, ent, kept = _forward(h, w, targets, keep, entropy)
        ctx.save_for_backward(hidden, weight, targets, lse, ent, *kept)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return mark_invalid(logp, targets, len(w)), lse, ent

    @staticmethod
    @once_differentiable
    def backward(ctx, g_logp, g_lse, g_entropy):
        hidden, weight, targets, lse, entropy, *kept = ctx.saved_tensors
        multiply = matmul_dtype(hidden)
        g_logp, g_lse = (torch.zeros_like(lse) if g is None else g for g in (g_logp, g_lse))
        g_logp = mark_invalid(g_logp, targets, len(weight))
        d_hidden = d_weight = None
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(multiply) / ctx.temperature, weight.to(multiply)
            y = targets.clamp(0, len(w) - 1)
            # The one-hot part of dz, g_logp [v = y], is a gather and a scatter of rows.
            if ctx.needs_input_grad[0]:
                d_hidden = g_logp[:, None] * w[y]
            if ctx.needs_input_grad[1]:
                d_weight = torch.zeros(w.shape, dtype=lse.dtype, device=w.device)
                d_weight.index_add_(0, y, g_logp[:, None] * h)
            _backward(h, w, lse, entropy, g_lse - g_logp, g_entropy, kept, d_hidden, d_weight)
        if d_hidden is not None:
            d_hidden = (d_hidden / ctx.temperature).to(hidden.dtype)
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None
