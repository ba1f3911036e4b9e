"""The attention of attention.py in plain PyTorch: its definition, and what runs where its kernels do not.

Shapes, mask and formulas as there: q (B, H, T, D), k and v (B, H_kv, T, D), query t of row b sees keys first[b, t]..t,
and of those that are not later also 0..shared[b] - 1.
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from kernels.dispatch import matmul_dtype

BLOCK = 64  # queries of `_BlockedAttention`; 48 is as fast, 128 takes 1.3 times as long


def visible_keys(first, T: int, device, shared=None) -> torch.Tensor:
    """The mask in full: bool (B, T queries, T keys), or (1, T, T) when first is None."""
    t = torch.arange(T, device=device)
    causal = (t[None, :] <= t[:, None])[None]
    if first is None:
        return causal
    begun = t >= first[:, :, None]
    return causal & (begun if shared is None else begun | (t < shared[:, None, None]))


def attention_reference(q, k, v, first=None, shared=None):
    """The definition with (T, T) scores in memory. Any dtype, device and head size."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))  # (B, H, T, D)
    visible = visible_keys(first, q.shape[2], q.device, shared)[:, None]  # (B or 1, 1, T, T)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    # A softmax over no key at all is NaN: such a row gets finite scores here and weight 0 below.
    scores = scores.masked_fill(~visible & visible.any(-1, keepdim=True), -math.inf)
    return torch.where(visible, scores.softmax(-1), 0.0) @ v


def attention_torch(q, k, v, first=None, shared=None):
    """Torch path. With a gradient to come a CPU goes block by block where there is `first` to skip by, or bfloat16
    arithmetic: forward and backward of (8, 4, 256, 32) take 11 ms so, torch's fused kernel 19, and 15 in float32 (one
    AVX-512 core). Else a CPU computes in float32 by torch's kernel whatever the dtype; without a gradient the result
    must not depend on the other rows of the batch, which blocks' does."""
    dtype, grouped, on_cpu = q.dtype, q.shape[1] != k.shape[1], q.device.type == "cpu"
    compiling = torch.compiler.is_compiling()  # what has to look at numbers cannot be compiled: no blocks
    low = on_cpu and not compiling and dtype == torch.bfloat16 == matmul_dtype(q)
    blocks = (
        on_cpu and not compiling and q.requires_grad and q.numel() and (low or first is not None) and shared is None
    )
    if blocks and first is None:
        first = torch.zeros(q.shape[0], q.shape[2], dtype=torch.int32)
    if on_cpu and dtype in (torch.float16, torch.bfloat16) and not (blocks and low):
        q, k, v = q.float(), k.float(), v.float()
    with torch.autocast(q.device.type, enabled=False):  # which would take float32 back to bf16
        if first is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).to(dtype)
        if blocks:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) if grouped else x for x in (k, v))
            return _BlockedAttention.apply(q, k, v, first).to(dtype)
        # A query without keys is given its own, which keeps its softmax finite, and its row is set to 0 afterwards.
        own = torch.arange(q.shape[2], device=q.device, dtype=first.dtype)
        blind = first > own if shared is None else (first > own) & (shared[:, None] == 0)
        mask = visible_keys(torch.where(blind, own, first), q.shape[2], q.device, shared)[:, None]  # (B, 1, T, T)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        return out.masked_fill(blind[:, None, :, None], 0.0).to(dtype)


class _BlockedAttention(torch.autograd.Function):
    """q, k, v (B, H, T, D) by blocks of queries, each with the keys from its rows' earliest `first` to its own end: a
    block's scores stay in cache, and packed documents cost what they are, not T^2. Saves q, k, v, o and each block's
    probabilities. Of bfloat16 inputs scores, softmax and sums are float32 and the other products bfloat16."""

    @staticmethod
    def blocks(first, T: int, dtype):
        """[(queries, keys, bias)]: two slices, and (B, 1, queries, last keys) of 0 where visible, else -1e30; all keys
        before those are visible. Adding that is cheaper than masked_fill_; and not -inf: a query without keys then has
        a finite softmax, to be zeroed after."""
        t = torch.arange(T, dtype=first.dtype)
        found = []
        for start, low in zip(range(0, T, BLOCK), first[:, ::BLOCK].amin(0).tolist(), strict=True):
            own, seen = slice(start, min(start + BLOCK, T)), slice(max(0, min(low, start)), min(start + BLOCK, T))
            last = t[own] if bool((first[:, own] <= seen.start).all()) else t[seen]
            hidden = (last > t[own, None]) | (last < first[:, own, None])
            found.append((own, seen, torch.where(hidden, -1e30, 0.0).to(dtype)[:, None]))
        return found

    @staticmethod
    def probabilities(q, k, bias):
        """softmax(q k^T + bias), (B H, queries, keys); q carries the scale."""
        s = torch.bmm(q, k.transpose(1, 2))
        s.view(len(bias), -1, *s.shape[1:])[..., -bias.shape[-1] :].add_(bias)  # one mask for the H heads of a row
        return s.softmax(-1)

    @staticmethod
    def forward(ctx, q, k, v, first):
        (B, H, T, D), dtype = q.shape, q.dtype
        stat = torch.float32 if dtype == torch.bfloat16 else dtype
        q = (q.to(stat) * D**-0.5).reshape(B * H, T, D)
        k, v = (x.reshape(B * H, T, D) for x in (k, v))
        blocks, keys = _BlockedAttention.blocks(first, T, stat), k.to(stat)
        ctx.blocks = [(own, seen) for own, seen, _ in blocks]
        ctx.sees = (first <= torch.arange(T))[:, None, :, None]  # any key at all
        o, kept = torch.empty_like(v), []
        for own, seen, bias in blocks:
            p = _BlockedAttention.probabilities(q[:, own], keys[:, seen], bias).to(dtype)
            o[:, own] = torch.bmm(p, v[:, seen])
            kept.append(p)
        o = o.view(B, H, T, D).mul_(ctx.sees)
        ctx.save_for_backward(q.to(dtype), k, v, o, *kept)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        q, k, v, o, *kept = ctx.saved_tensors
        stat = torch.float32 if q.dtype == torch.bfloat16 else q.dtype
        g = g * ctx.sees
        delta = (g.to(stat) * o).sum(-1).view(*q.shape[:2], 1)
        g = g.reshape(q.shape)
        dq, dk, dv = (torch.zeros(q.shape, dtype=stat) for _ in range(3))
        with torch.autocast("cpu", enabled=False):
            for (own, seen), p in zip(ctx.blocks, kept, strict=True):
                dv[:, seen] += torch.bmm(p.transpose(1, 2), g[:, own])
                dp = torch.bmm(g[:, own], v[:, seen].transpose(1, 2)).to(stat)
                ds = dp.sub_(delta[:, own]).mul_(p).to(p.dtype)
                dq[:, own] = torch.bmm(ds, k[:, seen])
                dk[:, seen] += torch.bmm(ds.transpose(1, 2), q[:, own])
        return (dq * q.shape[-1] ** -0.5).view_as(o), dk.view_as(o), dv.view_as(o), None
