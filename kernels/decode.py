"""One-token attention over a shared prefix and own tails. Kernels follow."""

import torch

from kernels.dispatch import choose_impl


def decode_attention_reference(q, prefix_k, prefix_v, prefix_first, tail_k, tail_v, *, group_size, prefix_lengths=None,
                               tail_lengths=None):
    """The definition for Tq queries per row: repeat the prefix for each sample, concatenate, mask, softmax, sum."""
    B, H, Tq, D = q.shape
    k = torch.cat([prefix_k.repeat_interleave(group_size, 0), tail_k], 2).repeat_interleave(H // tail_k.shape[1], 1)
    v = torch.cat([prefix_v.repeat_interleave(group_size, 0), tail_v], 2).repeat_interleave(H // tail_v.shape[1], 1)
    Tp, Tt = prefix_k.shape[2], tail_k.shape[2]
    in_prefix = _range_mask(prefix_first, prefix_lengths, B // group_size, Tp, q.device).repeat_interleave(group_size, 0)
    in_tail = tail_mask(tail_lengths, B, Tq, Tt, q.device)
    visible = torch.cat([in_prefix[:, None].expand(B, Tq, Tp), in_tail.expand(B, Tq, Tt)], 2)[:, None]  # (B, 1, Tq, Tp+Tt)
    scores = (q @ k.transpose(-1, -2) * D**-0.5).masked_fill(~visible, float("-inf"))
    weights = torch.where(visible, scores.masked_fill(~visible.any(-1, keepdim=True), 0.0).softmax(-1), 0.0)
    return weights @ v


def _range_mask(first, lengths, P: int, Tp: int, device) -> torch.Tensor:
    """bool (P, Tp): slots first[p]..lengths[p]-1; None means from 0, None means to the end."""
    slot = torch.arange(Tp, device=device)
    mask = torch.ones(P, Tp, dtype=torch.bool, device=device)
    if first is not None:
        mask &= slot >= first[:, None]
    if lengths is not None:
        mask &= slot < torch.as_tensor(lengths, device=device).reshape(-1, 1)
    return mask


def tail_mask(tail_lengths, B: int, Tq: int, Tt: int, device) -> torch.Tensor:
    """bool (B or 1, Tq, Tt): query j (the last Tq slots of the row's valid tail, in order) sees slots up to its own."""
    length = torch.as_tensor(Tt if tail_lengths is None else tail_lengths, device=device).reshape(-1, 1, 1)
    slot, j = torch.arange(Tt, device=device), torch.arange(Tq, device=device)[:, None]
    return slot < length - (Tq - 1) + j


def prefix_tail_attention_torch(q, prefix_k, prefix_v, prefix_first, tail_k, tail_v, *, group_size, prefix_lengths=None,
                                tail_lengths=None):
    """q (B, H, Tq, D) -> (B, H, Tq, D)."""
    B, H, Tq, D = q.shape
    P, H_kv, Tp, _ = prefix_k.shape
    Tt, G, R = tail_k.shape[2], group_size, H // H_kv
    dtype = q.dtype
    q = (q.float() * D**-0.5).view(P, G, H_kv, R, Tq, D)
    # Prefix: the G samples of a prompt and the R heads that share a key head are rows of one product, so the prompt's
    # keys are read once per group.
    rows = q.permute(0, 2, 1, 3, 4, 5).reshape(P * H_kv, G * R * Tq, D)
    s = torch.bmm(rows, prefix_k.float().reshape(P * H_kv, Tp, D).transpose(1, 2))  # (P H_kv, G R Tq, Tp)
    if prefix_first is not None or prefix_lengths is not None:
        mask = _range_mask(prefix_first, prefix_lengths, P, Tp, q.device)
        s.view(P, H_kv, G * R * Tq, Tp).masked_fill_(~mask[:, None, None], float("-inf"))
    o_p, m_p, l_p = _partial(s, prefix_v.float().reshape(P * H_kv, Tp, D))
    back = lambda x: x.view(P, H_kv, G, R, Tq, -1).permute(0, 2, 1, 3, 4, 5).reshape(B * H_kv, R * Tq, -1)  # noqa: E731
    o_p, m_p, l_p = back(o_p), back(m_p), back(l_p)
    # Tail: every sample has its own keys.
    rows = q.reshape(B * H_kv, R * Tq, D)
    s = torch.bmm(rows, tail_k.float().reshape(B * H_kv, Tt, D).transpose(1, 2))  # (B H_kv, R Tq, Tt)
    if tail_lengths is not None or Tq > 1:
        mask = tail_mask(tail_lengths, B, Tq, Tt, q.device)
        s.view(B, H_kv, R, Tq, Tt).masked_fill_(~mask[:, None, None], float("-inf"))
    o_t, m_t, l_t = _partial(s, tail_v.float().reshape(B * H_kv, Tt, D))
    m = torch.maximum(m_p, m_t)
    a_p, a_t = (m_p - m).exp(), (m_t - m).exp()
    out = (o_p * a_p + o_t * a_t) / (l_p * a_p + l_t * a_t).clamp_min(1e-38)
    return out.view(B, H, Tq, D).to(dtype)


def _partial(scores, v):
    """(sum of exp(s - m) v, m, sum of exp(s - m)) over the last axis; scores are overwritten. Without keys: (0, -1e30, 0)."""
    if scores.shape[-1] == 0:
        o = scores.new_zeros(*scores.shape[:-1], v.shape[-1])
        return o, o.new_full((*o.shape[:-1], 1), -1e30), o.new_zeros(*o.shape[:-1], 1)
    m = scores.amax(-1, keepdim=True).clamp_min(-1e30)
    p = scores.sub_(m).exp_()
    return torch.bmm(p, v), m, p.sum(-1, keepdim=True)


def decode_attention(q, prefix_k, prefix_v, prefix_first, tail_k, tail_v, *, group_size, prefix_lengths=None,
                     tail_lengths=None, impl="auto"):
    """q (B, H, D) -> (B, H, D)."""
    choose_impl(impl, q)
    return prefix_tail_attention_torch(
        q[:, :, None], prefix_k, prefix_v, prefix_first, tail_k, tail_v,
        group_size=group_size, prefix_lengths=prefix_lengths, tail_lengths=tail_lengths,
    )[:, :, 0]
