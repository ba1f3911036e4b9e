"""Causal attention with one mask form (`first`), grouped heads, forward and backward. Placeholder order; kernels follow."""

import torch
import torch.nn.functional as F

from kernels.dispatch import autocast_dtype, choose_impl

HEAD_SIZES = (32, 64, 128)


def visible_keys(first: torch.Tensor | None, T: int, device: torch.device) -> torch.Tensor:
    """The mask in words: query t sees keys first[b, t]..t. Returns bool (B, T, T), or (1, T, T) without `first`."""
    t = torch.arange(T, device=device)
    causal = t[None, :] <= t[:, None]  # (T query, T key)
    return causal[None] if first is None else causal & (t >= first[:, :, None])


def attention_reference(q, k, v, first=None):
    """The definition, one line per formula, in the dtype it is given; O(T^2) memory. Shapes as in `attention`."""
    B, H, T, D = q.shape
    k, v = (x.repeat_interleave(H // k.shape[1], dim=1) for x in (k, v))  # (B, H, T, D)
    visible = visible_keys(first, T, q.device)[:, None]  # (B or 1, 1, T, T)
    scores = (q @ k.transpose(-1, -2) * D**-0.5).masked_fill(~visible, float("-inf"))
    # A row without keys would be softmax of nothing but -inf, which is NaN; its answer is 0.
    weights = torch.where(visible, scores.masked_fill(~visible.any(-1, keepdim=True), 0.0).softmax(-1), 0.0)
    return weights @ v


def attention_torch(q, k, v, first=None):
    """Torch path. On CPU always in float32: torch's bf16 attention backward there takes 34 ms for (64, 4, 64, 32) where
    float32 takes 11 (AVX-512 with bf16), and 520 ms for (32, 4, 256, 32) where float32 takes 80 (AVX2). A hand-written
    bmm-softmax-bmm in cache-sized blocks was no faster than torch's fused float32 kernel at any of our sizes."""
    dtype = q.dtype
    if q.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        q, k, v = q.float(), k.float(), v.float()
    grouped = q.shape[1] != k.shape[1]
    with torch.autocast(q.device.type, enabled=False):  # or autocast would take float32 back to bf16
        if first is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).to(dtype)
        # A query without keys is given its own key, which keeps the softmax finite, and its row is set to 0 afterwards.
        own = torch.arange(q.shape[2], device=q.device, dtype=first.dtype)
        mask = visible_keys(torch.minimum(first, own), q.shape[2], q.device)[:, None]  # (B, 1, T, T)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        return out.masked_fill((first > own)[:, None, :, None], 0.0).to(dtype)


def check_attention(q, k, v, first) -> None:
    """One sentence for every input that has no answer."""
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4 or q.shape[::2] != k.shape[::2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"attention: got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; needs q (B, H, T, D) and k, v (B, H_kv, T, D)"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"attention: {q.shape[1]} query heads are no multiple of {k.shape[1]} key heads")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise ValueError(f"attention: got q {q.dtype}, k {k.dtype}, v {v.dtype}; needs one floating dtype")
    if first is not None:
        if first.shape != (q.shape[0], q.shape[2]) or first.dtype != torch.int32:
            raise ValueError(f"attention: got first {tuple(first.shape)} {first.dtype}; needs (B, T) int32")
        if first.device.type == "cpu" and first.shape[1] > 1 and bool((first[:, 1:] < first[:, :-1]).any()):
            raise ValueError("attention: `first` decreases along T; sort the documents of a row by position")


def attention(q, k, v, *, first=None, impl="auto"):
    dtype = autocast_dtype(q)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    check_attention(q, k, v, first)
    choose_impl(impl, q)
    return attention_torch(q, k, v, first)
