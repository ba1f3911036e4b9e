"""Attention of one new token per sample, when the G samples of a prompt share the prompt's keys.

Row i = p * G + g is sample g of prompt p. Its query sees the prompt's keys (stored once, for p) and its own tail:

    o[i] = softmax over [prefix of p | tail of i] of <q[i], k> / sqrt(D), times v

The two parts are computed apart and joined by their log-sum-exp: o = w o_p + (1 - w) o_t, w = sigmoid(lse_p - lse_t),
which is to say that the prefix counts in the tail's softmax as one key, of score lse_p and value o_p.
So the prefix is a matrix product of the group's G (x heads per key head) queries with one set of keys: read once a
group, not once a sample. Bytes a step and layer: 2 H_kv D (P Tp + B Tt) elements against 2 H_kv D B (Tp + Tt) of
separate caches; 32 prompts x 16 samples, 400 prefix and 32 own keys: 29,184 keys against 221,184.

A sampler whose rows finish one by one keeps only the B unfinished ones, in any order, and passes `seats`: then the
tails, whose cost is memory traffic, are those of B rows, and only the prefix product runs on the padded groups.

There is no backward: this is for sampling and scoring. Log-sum-exps are in base e in the torch path and in base 2 in
the kernels, which therefore share nothing but the definition. The kernels' arguments stand in rows by kind (fmt: skip),
as in attention_triton.py.
"""

import functools
import math

import torch

from kernels.dispatch import check_devices, choose_impl, on_device
from kernels.tiles import DECODE_TILES, HEAD_SIZES

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


# ---------------------------------------------------------------- masks and the definition
def prefix_mask(prefix_first, prefix_lengths, P: int, Tp: int, device):
    """bool (P or 1, Tp): slots prefix_first[p]..prefix_lengths[p]-1, or None when every slot is valid."""
    if prefix_first is None and prefix_lengths is None:
        return None
    slot = torch.arange(Tp, device=device)
    stop = Tp if prefix_lengths is None else torch.as_tensor(prefix_lengths, device=device).reshape(-1, 1)
    return slot < stop if prefix_first is None else (slot >= prefix_first.view(P, 1)) & (slot < stop)


def tail_mask(tail_lengths, Tq: int, Tt: int, device):
    """bool (B or 1, Tq, Tt): the queries are the last Tq of a row's valid tail slots, in order, and see up to
    themselves."""
    length = torch.as_tensor(Tt if tail_lengths is None else tail_lengths, device=device).reshape(-1, 1, 1)
    slot, query = torch.arange(Tt, device=device), torch.arange(Tq, device=device)[:, None]
    return slot <= length - Tq + query


def prefix_tail_attention_reference(
    q, prefix_k, prefix_v, prefix_first, tail_k, tail_v, *, group_size, prefix_lengths=None, tail_lengths=None
):
    """The definition: every sample gets its copy of the prefix, then one masked softmax. Same arguments as the torch
    path."""
    (B, H, Tq, D), Tp, Tt = q.shape, prefix_k.shape[2], tail_k.shape[2]
    k, v = (
        torch.cat((p.repeat_interleave(group_size, 0), t), 2).repeat_interleave(H // p.shape[1], 1)
        for p, t in ((prefix_k, tail_k), (prefix_v, tail_v))
    )  # (B, H, Tp + Tt, D)
    visible = torch.ones(B, Tq, Tp + Tt, dtype=torch.bool, device=q.device)
    shared = prefix_mask(prefix_first, prefix_lengths, B // group_size, Tp, q.device)
    if shared is not None:
        visible[:, :, :Tp] = shared.expand(B // group_size, -1).repeat_interleave(group_size, 0)[:, None]
    visible[:, :, Tp:] = tail_mask(tail_lengths, Tq, Tt, q.device)
    visible = visible[:, None]
    scores = q @ k.transpose(-1, -2) * D**-0.5
    scores = scores.masked_fill(~visible & visible.any(-1, keepdim=True), -math.inf)
    return torch.where(visible, scores.softmax(-1), 0.0) @ v


# ---------------------------------------------------------------- torch path
def _bias(mask, dtype):
    """bool mask -> what is added to scores: 0 where visible, else -1e30. Not -inf: a query that sees nothing then gets
    finite numbers and a log-sum-exp of about -1e30."""
    return torch.where(mask, 0.0, -1e30).to(dtype)


@functools.lru_cache(maxsize=1)  # for all layers of a step
def _same_tail_bias(length: int, Tq: int, Tt: int, dtype, device):
    return _bias(tail_mask(length, Tq, Tt, device), dtype)


def _softmax_over(q, k, v, bias):
    """Queries q (N, H, M, D) over keys k, v (N, H, T, D): o (N, H, M, D) and log-sum-exp (N, H, M)."""
    if q.device.type == "cpu":  # one fused pass; a row's bits do not depend on the others if M is a multiple of 4
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, attn_mask=bias)
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    return scores.softmax(-1).to(v.dtype) @ v, scores.logsumexp(-1)


def _prefix_part(q, k, v, bias, seats):
    """q (B, H_kv, M, D) over prefixes k, v (P, H_kv, T, D), the M queries of all rows of one prefix in one product:
    o (B * H_kv, M, D) and log-sum-exp (B * H_kv, M, 1)."""
    (P, H_kv), M = k.shape[:2], q.shape[2]
    seated = q if seats is None else q.index_select(0, seats[1])
    groups = seated.unflatten(0, (P, -1)).transpose(1, 2)  # (P, H_kv, G, M, D)
    found = _softmax_over(groups.flatten(2, 3), k, v, bias)
    found = (x.transpose(1, 2).reshape(seated.shape[0], M, H_kv, -1) for x in found)  # their layout in memory, on a CPU
    found = (x if seats is None else x.index_select(0, seats[0]) for x in found)
    return [x.transpose(1, 2).flatten(0, 1) for x in found]


@torch.no_grad()
def prefix_tail_attention_torch(
    q,
    prefix_k,
    prefix_v,
    prefix_first,
    tail_k,
    tail_v,
    *,
    group_size,
    prefix_lengths=None,
    tail_lengths=None,
    seats=None,
    common=None,
):
    """Torch path of `decode_attention`, for Tq >= 1 new tokens a row: q (B, H, Tq, D) -> (B, H, Tq, D). The Tq queries
    are the row's last Tq valid tail slots (tail_lengths[i]-Tq..tail_lengths[i]-1), causal among themselves, so it also
    reads questions after a shared few-shot prefix and answer choices after a shared context. On CPU in float32: a batch
    of small 16-bit products is slow there, so keep CPU caches in float32."""
    (B, H, Tq, D), (P, H_kv, Tp, _), Tt = q.shape, prefix_k.shape, tail_k.shape[2]
    M, dtype = H // H_kv * Tq, q.dtype  # the queries that read one key head
    tail_lengths = Tt if tail_lengths is None else tail_lengths
    narrow = dtype in (torch.float16, torch.bfloat16) and q.device.type == "cpu"
    compute = torch.float32 if narrow else torch.promote_types(dtype, tail_k.dtype)
    stat = torch.promote_types(compute, torch.float32)
    q = q.to(compute).reshape(B, H_kv, M, D)
    with torch.autocast(q.device.type, enabled=False):
        visible = prefix_mask(prefix_first, prefix_lengths, P, Tp, q.device)
        bias = None if visible is None else _bias(visible, stat)[:, None, None]
        levels = [(prefix_k, prefix_v, bias, seats)] + ([] if common is None else [(*common, None, None)])
        parts = [_prefix_part(q, k.to(compute), v.to(compute), *rest) for k, v, *rest in levels]
        q, k, v = (x.to(compute).reshape(B * H_kv, -1, D) for x in (q, tail_k, tail_v))
        if torch.is_tensor(tail_lengths):
            bias = _bias(tail_mask(tail_lengths, Tq, Tt, q.device), stat)
            bias = bias.expand(B, -1, -1).repeat_interleave(H_kv, 0)
        else:
            bias = _same_tail_bias(tail_lengths, Tq, Tt, stat, q.device)
        bias = bias if M == Tq else bias.repeat(1, M // Tq, 1)
        if compute == stat:
            own = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=D**-0.5)
        else:
            own = torch.bmm(q, k.transpose(1, 2)).to(stat) * D**-0.5 + bias
        scores = torch.cat([lse for _, lse in parts] + [own], -1)
        p = scores.softmax(-1)
        out = torch.bmm(p[..., len(parts) :].to(compute), v).to(stat)
        for i, (o, _) in enumerate(parts):  # each counts as one key, of score lse and value o
            out.addcmul_(o.to(stat), p[..., i : i + 1])
        if torch.is_tensor(tail_lengths) or tail_lengths < Tq:  # maybe no key at all: 0
            out = out.mul_(scores.amax(-1, keepdim=True) > -1e29)
    return out.view(B, H, Tq, D).to(dtype)


# ---------------------------------------------------------------- Triton kernels (log-sum-exps in base 2)
PROGRAMS = 256  # enough for any GPU: with fewer prompts and heads the prefix is split over its keys
SPLIT_KEYS = 256  # a split has at least these

if triton is not None:

    @triton.jit
    def _decode_prefix(
        q_ptr, k_ptr, v_ptr, row_of_ptr, first_ptr, length_ptr, part_ptr, stat_ptr,
        stride_qb, stride_qh, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
        seats, H, H_kv, G, Tp, split_keys, scale2,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_SEATS: tl.constexpr,
        HAS_FIRST: tl.constexpr, HAS_LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """BLOCK_M of the G * R queries that share a prompt's key head, over one split of its keys. part (splits, seats,
        H, D) = acc; stat (2, splits, seats, H) = m_i, l_i."""
        p, h_kv = (tl.program_id(0) // H_kv).to(tl.int64), (tl.program_id(0) % H_kv).to(tl.int64)
        split, splits = tl.program_id(2).to(tl.int64), tl.num_programs(2)
        R = H // H_kv
        row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        real = row < G * R
        seat, h = p * G + row // R, h_kv * R + row % R  # which sample, which head
        i = seat
        if HAS_SEATS:
            i = tl.load(row_of_ptr + seat, mask=real, other=0)
        d, n = tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK_N)
        q = tl.load(q_ptr + (i * stride_qb + h * stride_qh)[:, None] + d[None, :], mask=real[:, None], other=0.0)
        k_ptr += p * stride_kb + h_kv * stride_kh
        v_ptr += p * stride_vb + h_kv * stride_vh
        start = tl.program_id(2) * split_keys
        stop = tl.minimum(start + split_keys, Tp)
        if HAS_FIRST:
            start = tl.maximum(start, tl.load(first_ptr + p).to(tl.int32))
        if HAS_LENGTHS:
            stop = tl.minimum(stop, tl.load(length_ptr + p).to(tl.int32))
        m_i = tl.full([BLOCK_M], -1e30, tl.float32)
        l_i = tl.zeros([BLOCK_M], dtype=tl.float32)
        acc = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
        for n0 in range(start, stop, BLOCK_N):
            slot = (n0 + n).to(tl.int64)
            valid = (n0 + n) < stop
            k = tl.load(k_ptr + slot[:, None] * stride_kt + d[None, :], mask=valid[:, None], other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
            scores = tl.where(valid[None, :], scores, float("-inf"))
            new_m = tl.maximum(m_i, tl.max(scores, 1))
            e = tl.exp2(scores - new_m[:, None])
            scale = tl.exp2(m_i - new_m)
            l_i = l_i * scale + tl.sum(e, 1)
            v = tl.load(v_ptr + slot[:, None] * stride_vt + d[None, :], mask=valid[:, None], other=0.0)
            acc = tl.dot(e.to(v.dtype), v, acc * scale[:, None], input_precision=PRECISION)
            m_i = new_m
        out = (split * seats + seat) * H + h
        tl.store(part_ptr + out[:, None] * HEAD_DIM + d[None, :], acc, mask=real[:, None])
        tl.store(stat_ptr + out, m_i, mask=real)
        tl.store(stat_ptr + tl.cast(splits, tl.int64) * seats * H + out, l_i, mask=real)

    @triton.jit
    def _decode_tail(
        q_ptr, k_ptr, v_ptr, seat_of_ptr, length_ptr, part_ptr, stat_ptr, o_ptr,
        stride_qb, stride_qh, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
        seats, splits, H, H_kv, Tt, scale2,
        BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_SEATS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    ):  # fmt: skip
        """One query: the splits of its prefix joined, then its own tail. Both are steps of the online softmax."""
        out = tl.program_id(0).to(tl.int64)
        b, h = out // H, out % H
        h_kv = h // (H // H_kv)
        seat, stop = b, Tt
        if HAS_SEATS:
            seat = tl.load(seat_of_ptr + b)
        if HAS_LENGTHS:
            stop = tl.minimum(tl.load(length_ptr + b).to(tl.int32), Tt)
        d, n = tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK_N)
        m_i, l_i = -1e30, 0.0
        acc = tl.zeros([HEAD_DIM], dtype=tl.float32)
        for split in range(0, splits):
            part = (split * tl.cast(seats, tl.int64) + seat) * H + h
            m = tl.load(stat_ptr + part)
            new_m = tl.maximum(m_i, m)
            scale, weight = tl.exp2(m_i - new_m), tl.exp2(m - new_m)
            l_i = l_i * scale + tl.load(stat_ptr + tl.cast(splits, tl.int64) * seats * H + part) * weight
            acc = acc * scale + tl.load(part_ptr + part * HEAD_DIM + d) * weight
            m_i = new_m
        q = tl.load(q_ptr + b * stride_qb + h * stride_qh + d).to(tl.float32) * scale2
        k_ptr += b * stride_kb + h_kv * stride_kh
        v_ptr += b * stride_vb + h_kv * stride_vh
        for n0 in range(0, stop, BLOCK_N):
            slot = (n0 + n).to(tl.int64)
            valid = (n0 + n) < stop
            k = tl.load(k_ptr + slot[:, None] * stride_kt + d[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
            scores = tl.where(valid, tl.sum(k * q[None, :], 1), float("-inf"))
            new_m = tl.maximum(m_i, tl.max(scores, 0))
            e = tl.exp2(scores - new_m)
            scale = tl.exp2(m_i - new_m)
            l_i = l_i * scale + tl.sum(e, 0)
            v = tl.load(v_ptr + slot[:, None] * stride_vt + d[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
            acc = acc * scale + tl.sum(e[:, None] * v, 0)
            m_i = new_m
        o = acc / tl.where(l_i == 0, 1.0, l_i)  # no key at all: acc is 0. A NaN stays
        tl.store(o_ptr + out * HEAD_DIM + d, o.to(o_ptr.dtype.element_ty))


@torch.no_grad()
def _decode_triton(
    q, prefix_k, prefix_v, prefix_first, tail_k, tail_v, group_size, prefix_lengths, tail_lengths, seats
):
    """Two launches and nothing else where caches are dense and lengths are None, a number (of tails) or tensors."""
    q, prefix_k, prefix_v, tail_k, tail_v = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (q, prefix_k, prefix_v, tail_k, tail_v)
    )
    (B, H, D), (P, H_kv, Tp, _), Tt = q.shape, prefix_k.shape, tail_k.shape[2]
    out = torch.empty(B, H, D, dtype=q.dtype, device=q.device)
    wide = q.dtype == torch.float32
    BLOCK_M, BLOCK_N, warps, stages = DECODE_TILES["float32" if wide else D]
    blocks = triton.cdiv(group_size * (H // H_kv), BLOCK_M)
    splits = max(1, min(triton.cdiv(PROGRAMS, P * H_kv * blocks), Tp // SPLIT_KEYS))
    split_keys = triton.cdiv(triton.cdiv(Tp, splits), BLOCK_N) * BLOCK_N
    part = torch.empty(splits, P * group_size, H, D, dtype=torch.float32, device=q.device)
    stat = torch.empty(2, splits, P * group_size, H, dtype=torch.float32, device=q.device)
    seat_of, row_of = (q, q) if seats is None else seats  # pointers that are never read
    if isinstance(prefix_lengths, int):
        Tp, prefix_lengths = min(prefix_lengths, Tp), None
    if isinstance(tail_lengths, int):
        Tt, tail_lengths = min(tail_lengths, Tt), None
    first, prefix_lengths, tail_lengths = (
        None if x is None else x.expand(count).contiguous()
        for x, count in ((prefix_first, P), (prefix_lengths, P), (tail_lengths, B))
    )
    scale2 = math.log2(math.e) * D**-0.5
    with on_device(q):
        _decode_prefix[(P * H_kv, blocks, splits)](
            q, prefix_k, prefix_v, row_of, q if first is None else first,
            q if prefix_lengths is None else prefix_lengths, part, stat, *q.stride()[:2], *prefix_k.stride()[:3],
            *prefix_v.stride()[:3], P * group_size, H, H_kv, group_size, Tp, split_keys, scale2, BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N, HEAD_DIM=D, HAS_SEATS=seats is not None, HAS_FIRST=first is not None,
            HAS_LENGTHS=prefix_lengths is not None, PRECISION="ieee" if wide else "tf32", num_warps=warps,
            num_stages=stages,
        )  # fmt: skip
        _decode_tail[(B * H,)](
            q, tail_k, tail_v, seat_of, q if tail_lengths is None else tail_lengths, part, stat, out, *q.stride()[:2],
            *tail_k.stride()[:3], *tail_v.stride()[:3], P * group_size, splits, H, H_kv, Tt, scale2, BLOCK_N=BLOCK_N,
            HEAD_DIM=D, HAS_SEATS=seats is not None, HAS_LENGTHS=tail_lengths is not None, num_warps=warps,
        )  # fmt: skip
    return out


def check_decode(q, prefix_k, prefix_v, prefix_first, tail_k, tail_v, group_size, seats) -> None:
    """One sentence for every input that has no answer."""
    check_devices("decode_attention", q=q, prefix_k=prefix_k, prefix_v=prefix_v, tail_k=tail_k, tail_v=tail_v)
    B, H, D = q.shape if q.ndim == 3 else (-1, -1, -1)
    P, H_kv, _, prefix_D = prefix_k.shape if prefix_k.ndim == 4 else (-2, -2, -2, -2)
    fits = prefix_k.shape == prefix_v.shape and tail_k.shape == tail_v.shape and tail_k.ndim == 4 and D == prefix_D
    fits = fits and tail_k.shape[:2] == (B, H_kv) and tail_k.shape[3] == D and H_kv > 0 and H % H_kv == 0
    seated = B if seats is None else len(seats[1])
    fits = fits and P * group_size == seated and (seats is None or len(seats[0]) == B)
    if not (fits and (prefix_first is None or prefix_first.shape == (P,))):
        shapes = (
            f"q {tuple(q.shape)}, prefix {tuple(prefix_k.shape)}, tail {tuple(tail_k.shape)}, group_size {group_size}"
        )
        raise ValueError(
            f"decode_attention: got {shapes}; needs q (P * group_size, H, D), prefix_k and prefix_v (P, H_kv, Tp, D), "
            "prefix_first (P,) or None, tail_k and tail_v (P * group_size, H_kv, Tt, D), H a multiple of H_kv; with "
            "seats any row count B, seat_of (B,) and row_of (P * group_size,)"
        )
    if not (prefix_k.dtype == prefix_v.dtype == tail_k.dtype == tail_v.dtype and q.is_floating_point()):
        raise ValueError(
            f"decode_attention: got a {prefix_k.dtype} prefix and a {tail_k.dtype} tail; needs one floating dtype"
        )


def decode_attention(
    q,
    prefix_k,
    prefix_v,
    prefix_first,
    tail_k,
    tail_v,
    *,
    group_size,
    prefix_lengths=None,
    tail_lengths=None,
    seats=None,
    common=None,
    impl="auto",
):
    """softmax(<q, k> / sqrt(D)) v of one query per sample over [its prompt's keys | its own tail]: (B, H, D) in q's
    dtype.

    q (B, H, D) with row p * group_size + g = sample g of prompt p; prefix_k, prefix_v (P, H_kv, Tp, D), P * group_size
    = B; tail_k, tail_v (B, H_kv, Tt, D). Valid are prefix slots prefix_first[p]..prefix_lengths[p]-1 (None: from 0, to
    the end) and tail slots 0..tail_lengths[i]-1 (None: all; a number: the same for every row; or (B,)). A row without
    keys gives 0. float32, float16, bfloat16, all alike for Triton; D is 32, 64 or 128 there, anything for torch. No
    gradient.

    seats = (seat_of (B,), row_of (P * group_size,)), both int64: rows in any order, or fewer than P * group_size. Row i
    is sample seat_of[i] % group_size of prompt seat_of[i] // group_size; row_of is the inverse (an empty seat names any
    row). common = (k, v), both (1, H_kv, n, D): n more keys that every row sees, such as those of few-shot exemplars.

    Slots that are not valid must hold finite numbers (the torch path masks them after the product).
    Moved: each prompt's keys and values once per 16 rows of its group, each tail once; saved: nothing. impl: "auto" |
    "triton" | "torch" (see kernels/dispatch.py). Raises ValueError for shapes and dtypes that do not fit.
    """
    check_decode(q, prefix_k, prefix_v, prefix_first, tail_k, tail_v, group_size, seats)
    for name, lengths, count in (("prefix", prefix_lengths, len(prefix_k)), ("tail", tail_lengths, len(q))):
        if isinstance(lengths, torch.Tensor) and lengths.shape not in ((), (count,)):
            raise ValueError(
                f"decode_attention: got {name}_lengths {tuple(lengths.shape)}; needs ({count},) or a number"
            )
    if len(q) == 0:
        return torch.empty_like(q)
    unsupported = None
    if q.shape[2] not in HEAD_SIZES:
        unsupported = f"got head size {q.shape[2]}, the decoding kernel takes 32, 64 and 128"
    elif common is not None:
        unsupported = "got a common prefix, the decoding kernel takes a prefix for each prompt"
    elif q.dtype != tail_k.dtype:
        unsupported = f"got {q.dtype} queries and a {tail_k.dtype} cache, the decoding kernel takes one dtype"
    if choose_impl(impl, q, unsupported) == "triton":
        return _decode_triton(
            q, prefix_k, prefix_v, prefix_first, tail_k, tail_v, group_size, prefix_lengths, tail_lengths, seats
        )
    return prefix_tail_attention_torch(
        q[:, :, None], prefix_k, prefix_v, prefix_first, tail_k, tail_v,
        group_size=group_size, prefix_lengths=prefix_lengths, tail_lengths=tail_lengths, seats=seats, common=common,
    )[:, :, 0]  # fmt: skip
