"""Causal attention with an online softmax: the (T, T) scores live tile by tile in registers and never in memory.

For each row b and head h, with scale = 1 / sqrt(D) and keys first[b, t]..t visible to query t,

    s[t, n] = scale <q[t], k[n]>,   p[t, n] = exp(s[t, n]) / sum_n' exp(s[t, n']),   o[t] = sum_n p[t, n] v[n]

and o[t] = 0 where no key is visible. `first` (B, T) int32, non-decreasing along T, is the one mask: with first[b, t] =
pads it is left padding, with first[b, t] = start of t's document it is packing; right padding needs nothing, since
causality hides what comes later. Head h of q reads head h // (H / H_kv) of k and v.

Forward (Dao et al. 2022): walk the keys in blocks and keep, a query, the maximum m_i, the sum l_i = sum exp(s - m_i)
and the unnormalised acc = sum exp(s - m_i) v; a new maximum rescales both by exp(m_old - m_new). Then o = acc / l_i and
lse = m_i + log l_i, the only thing saved for the backward besides the inputs and o: 4 T bytes a head against 4 T^2.

Backward: p = exp(s - lse) is recomputed. With upstream g = d loss / d o and delta[t] = <g[t], o[t]>,

    dv[n] = sum_t p[t, n] g[t]                     ds[t, n] = p[t, n] (<g[t], v[n]> - delta[t])
    dq[t] = scale sum_n ds[t, n] k[n]              dk[n]    = scale sum_t ds[t, n] q[t]

(delta is what the softmax's normalisation takes back: sum_n p[t, n] <g[t], v[n]> = <g[t], o[t]>.) One kernel walks the
queries of a key block for dk and dv, summing the heads that share it; another walks the keys of a query block for dq.

attention_torch.py has the definition without tiles, and the path for tensors that these kernels do not take.
"""

import math

import torch
from torch.autograd.function import once_differentiable

from kernels.attention_torch import attention_torch
from kernels.dispatch import check_devices, choose_impl, on_device, target_of, to_autocast
from kernels.tiles import DELTA_BLOCK, HEAD_SIZES, attention_tiles

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

LOG2E = math.log2(math.e)


# ---------------------------------------------------------------- Triton kernels
if triton is not None:

    @triton.jit
    def _scores(q, k, offs_m, offs_n, first, MASKED: tl.constexpr, PRECISION: tl.constexpr):
        """One tile of <q, k>, (BLOCK_M, BLOCK_N), -inf where not visible. Its scale waits for the exponent: exp(scale
        <q, k> - max) = 2 ** (<q, k> scale2 - max2) is one multiply-add and one exp2."""
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            visible = (offs_n[None, :] <= offs_m[:, None]) & (offs_n[None, :] >= first[:, None])
            s = tl.where(visible, s, float("-inf"))
        return s

    @triton.jit
    def _load_rows(ptr, start, stride, T, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, EDGE: tl.constexpr = True):
        """Rows start..start+ROWS-1 of a (T, HEAD_DIM) matrix; EDGE: zeros past its end, else all rows are inside. The
        offset of the first row is int64, since T * stride may pass 2**31; offsets within the tile are int32, which
        takes half the registers."""
        r, d = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
        ptr += tl.cast(start, tl.int64) * stride
        if EDGE:
            return tl.load(ptr + r[:, None] * stride + d[None, :], mask=(r < T - start)[:, None], other=0.0)
        return tl.load(ptr + r[:, None] * stride + d[None, :])

    @triton.jit
    def _load_stat(ptr, start, T, other, ROWS: tl.constexpr, EDGE: tl.constexpr):
        """One float32 a row, as `_load_rows`."""
        r = start + tl.arange(0, ROWS)
        if EDGE:
            return tl.load(ptr + r, mask=r < T, other=other)
        return tl.load(ptr + r)

    @triton.jit
    def _store_rows(ptr, x, start, stride, T, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr):
        r, d = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
        ptr += tl.cast(start, tl.int64) * stride
        tl.store(ptr + r[:, None] * stride + d[None, :], x.to(ptr.dtype.element_ty), mask=(r < T - start)[:, None])

    @triton.jit
    def _key_range(first_ptr, b, offs_m, m0, T, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_FIRST: tl.constexpr):
        """(first of each query, lo, left, right, hi): keys lo..left-1 and right..hi-1 need the mask, the rest none."""
        hi = tl.minimum(m0 + BLOCK_M, T)
        right = m0 // BLOCK_N * BLOCK_N  # whole blocks of keys that every query of the block has behind it
        if HAS_FIRST:
            first = tl.load(first_ptr + b.to(tl.int64) * T + offs_m, mask=offs_m < T, other=2147483647)
            lo = tl.minimum(tl.maximum(tl.min(first, 0), 0) // BLOCK_N * BLOCK_N, right)
            real_max = tl.minimum(tl.max(tl.where(offs_m < T, first, 0), 0), hi)  # first may be INT_MAX: no key
            left = tl.minimum(tl.cdiv(tl.maximum(real_max, 0), BLOCK_N) * BLOCK_N, right)
        else:
            first = offs_m * 0
            lo = 0
            left = 0
        return first, lo, left, right, hi

    @triton.jit
    def _fwd_keys(
        acc, l_i, m_i, q, k_ptr, v_ptr, stride_k, stride_v, offs_m, first, lo, hi, T, scale2,
        BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Take keys lo..hi-1 into the running maximum m_i, sum l_i and weighted sum acc."""
        for n0 in range(lo, hi, BLOCK_N):
            offs_n = n0 + tl.arange(0, BLOCK_N)
            k = _load_rows(k_ptr, n0, stride_k, T, BLOCK_N, HEAD_DIM, MASKED)
            s = _scores(q, k, offs_m, offs_n, first, MASKED, PRECISION)
            new_m = tl.maximum(m_i, tl.max(s, 1) * scale2)  # m_i starts finite: a row that sees nothing stays finite
            p = tl.exp2(s * scale2 - new_m[:, None])
            scale = tl.exp2(m_i - new_m)
            l_i = l_i * scale + tl.sum(p, 1)
            v = _load_rows(v_ptr, n0, stride_v, T, BLOCK_N, HEAD_DIM, MASKED)
            acc = tl.dot(p.to(v.dtype), v, acc * scale[:, None], input_precision=PRECISION)
            m_i = new_m
        return acc, l_i, m_i

    @triton.jit
    def _attn_fwd(
        q_ptr, k_ptr, v_ptr, first_ptr, o_ptr, lse_ptr,
        stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
        H, H_kv, T, scale2,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_FIRST: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        """One block of queries of a head. o (B, H, T, D) contiguous; lse (B, H, T) in base 2, +inf for no key."""
        blocks = tl.cdiv(T, BLOCK_M)
        m0 = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M  # the longest first: they finish last
        bh = tl.program_id(0) // blocks
        b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
        h_kv = h // (H // H_kv)
        offs_m = m0 + tl.arange(0, BLOCK_M)
        k_ptr += b * stride_kb + h_kv * stride_kh
        v_ptr += b * stride_vb + h_kv * stride_vh
        q = _load_rows(q_ptr + b * stride_qb + h * stride_qh, m0, stride_qt, T, BLOCK_M, HEAD_DIM)
        first, lo, left, right, hi = _key_range(first_ptr, b, offs_m, m0, T, BLOCK_M, BLOCK_N, HAS_FIRST)
        m_i = tl.full([BLOCK_M], -1e30, tl.float32)
        l_i = tl.zeros([BLOCK_M], dtype=tl.float32)
        acc = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
        if HAS_FIRST:  # the left edge
            acc, l_i, m_i = _fwd_keys(
                acc, l_i, m_i, q, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, lo, left, T, scale2,
                BLOCK_N, HEAD_DIM, True, PRECISION,
            )  # fmt: skip
        acc, l_i, m_i = _fwd_keys(  # full
            acc, l_i, m_i, q, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, left, right, T, scale2,
            BLOCK_N, HEAD_DIM, False, PRECISION,
        )  # fmt: skip
        acc, l_i, m_i = _fwd_keys(  # the diagonal
            acc, l_i, m_i, q, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, right, hi, T, scale2,
            BLOCK_N, HEAD_DIM, True, PRECISION,
        )  # fmt: skip
        sees = first <= offs_m  # any key at all. Asking l_i > 0 instead would turn a NaN into "sees nothing"
        l_i = tl.where(sees, l_i, 1.0)
        o = tl.where(sees[:, None], acc / l_i[:, None], 0.0)
        lse = tl.where(sees, m_i + tl.log2(l_i), float("inf"))  # exp2(s - inf) = 0: the backward needs no special case
        base = bh.to(tl.int64) * T
        _store_rows(o_ptr + base * HEAD_DIM, o, m0, HEAD_DIM, T, BLOCK_M, HEAD_DIM)
        tl.store(lse_ptr + base + offs_m, lse, mask=offs_m < T)

    @triton.jit
    def _attn_bwd_delta(
        o_ptr, g_ptr, delta_ptr, stride_gb, stride_gh, stride_gt, H, T, BLOCK_M: tl.constexpr, HEAD_DIM: tl.constexpr
    ):
        """delta[t] = <g[t], o[t]> for one block of queries: (B, H, T) float32."""
        blocks = tl.cdiv(T, BLOCK_M)
        bh = tl.program_id(0) // blocks
        m0 = tl.program_id(0) % blocks * BLOCK_M
        offs_m = m0 + tl.arange(0, BLOCK_M)
        base = bh.to(tl.int64) * T
        b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
        o = _load_rows(o_ptr + base * HEAD_DIM, m0, HEAD_DIM, T, BLOCK_M, HEAD_DIM).to(tl.float32)
        g = _load_rows(g_ptr + b * stride_gb + h * stride_gh, m0, stride_gt, T, BLOCK_M, HEAD_DIM).to(tl.float32)
        tl.store(delta_ptr + base + offs_m, tl.sum(o * g, 1), mask=offs_m < T)

    @triton.jit
    def _dkdv_queries(
        dk, dv, k, v, q_ptr, g_ptr, lse_ptr, delta_ptr, first_ptr, stride_q, stride_g, offs_n, lo, hi, T, scale2,
        BLOCK_M: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_FIRST: tl.constexpr, MASKED: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Add what queries lo..hi-1 of one head send to a block of keys. Tiles are transposed: (keys, queries)."""
        for m0 in range(lo, hi, BLOCK_M):
            offs_m = m0 + tl.arange(0, BLOCK_M)
            q = _load_rows(q_ptr, m0, stride_q, T, BLOCK_M, HEAD_DIM, MASKED)
            lse = _load_stat(lse_ptr, m0, T, float("inf"), BLOCK_M, MASKED)  # rows past the end: p = 0
            s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            if MASKED:
                visible = offs_n[:, None] <= offs_m[None, :]
                if HAS_FIRST:
                    first = tl.load(first_ptr + offs_m, mask=offs_m < T, other=0)
                    visible &= offs_n[:, None] >= first[None, :]
                s = tl.where(visible, s, float("-inf"))
            p = tl.exp2(s * scale2 - lse[None, :])
            g = _load_rows(g_ptr, m0, stride_g, T, BLOCK_M, HEAD_DIM, MASKED)
            dv = tl.dot(p.to(g.dtype), g, dv, input_precision=PRECISION)
            delta = _load_stat(delta_ptr, m0, T, 0.0, BLOCK_M, MASKED)
            ds = p * (tl.dot(v, tl.trans(g), input_precision=PRECISION) - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
        return dk, dv

    @triton.jit
    def _attn_bwd_dkdv(
        q_ptr, k_ptr, v_ptr, first_ptr, range_ptr, g_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
        stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
        stride_gb, stride_gh, stride_gt, B, H, H_kv, T, scale, scale2,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_FIRST: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        """dk, dv of one block of keys of one key head, (B, H_kv, T, D) contiguous. range: see `_query_ranges`."""
        blocks = tl.cdiv(T, BLOCK_N)
        n0 = tl.program_id(0) % blocks * BLOCK_N
        bh = tl.program_id(0) // blocks
        b, h_kv = (bh // H_kv).to(tl.int64), (bh % H_kv).to(tl.int64)
        offs_n = n0 + tl.arange(0, BLOCK_N)
        k = _load_rows(k_ptr + b * stride_kb + h_kv * stride_kh, n0, stride_kt, T, BLOCK_N, HEAD_DIM)
        v = _load_rows(v_ptr + b * stride_vb + h_kv * stride_vh, n0, stride_vt, T, BLOCK_N, HEAD_DIM)
        lo = n0 // BLOCK_M * BLOCK_M
        diagonal = tl.cdiv(n0 + BLOCK_N, BLOCK_M) * BLOCK_M  # from here on causality hides no key of the block
        full, hi = T, T
        if HAS_FIRST:
            full = tl.load(range_ptr + b * blocks + n0 // BLOCK_N)
            hi = tl.load(range_ptr + (B + b) * blocks + n0 // BLOCK_N)
        right = tl.maximum(diagonal, full // BLOCK_M * BLOCK_M)
        dk = tl.zeros([BLOCK_N, HEAD_DIM], dtype=tl.float32)
        dv = tl.zeros([BLOCK_N, HEAD_DIM], dtype=tl.float32)
        for r in range(0, H // H_kv):
            h = h_kv * (H // H_kv) + r
            row = (b * H + h) * T
            q_head, g_head = q_ptr + b * stride_qb + h * stride_qh, g_ptr + b * stride_gb + h * stride_gh
            dk, dv = _dkdv_queries(  # the diagonal
                dk, dv, k, v, q_head, g_head, lse_ptr + row, delta_ptr + row, first_ptr + b * T,
                stride_qt, stride_gt, offs_n, lo, tl.minimum(diagonal, hi), T, scale2,
                BLOCK_M, HEAD_DIM, HAS_FIRST, True, PRECISION,
            )  # fmt: skip
            dk, dv = _dkdv_queries(  # full
                dk, dv, k, v, q_head, g_head, lse_ptr + row, delta_ptr + row, first_ptr + b * T,
                stride_qt, stride_gt, offs_n, diagonal, right, T, scale2,
                BLOCK_M, HEAD_DIM, HAS_FIRST, False, PRECISION,
            )  # fmt: skip
            dk, dv = _dkdv_queries(  # queries that see a part of the block, and those at the end of the row
                dk, dv, k, v, q_head, g_head, lse_ptr + row, delta_ptr + row, first_ptr + b * T,
                stride_qt, stride_gt, offs_n, right, hi, T, scale2,
                BLOCK_M, HEAD_DIM, HAS_FIRST, True, PRECISION,
            )  # fmt: skip
        out = bh.to(tl.int64) * T * HEAD_DIM
        _store_rows(dk_ptr + out, dk * scale, n0, HEAD_DIM, T, BLOCK_N, HEAD_DIM)
        _store_rows(dv_ptr + out, dv, n0, HEAD_DIM, T, BLOCK_N, HEAD_DIM)

    @triton.jit
    def _dq_keys(
        dq, q, g, lse, delta, k_ptr, v_ptr, stride_k, stride_v, offs_m, first, lo, hi, T, scale2,
        BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Add what keys lo..hi-1 send to a block of queries."""
        for n0 in range(lo, hi, BLOCK_N):
            offs_n = n0 + tl.arange(0, BLOCK_N)
            k = _load_rows(k_ptr, n0, stride_k, T, BLOCK_N, HEAD_DIM, MASKED)
            v = _load_rows(v_ptr, n0, stride_v, T, BLOCK_N, HEAD_DIM, MASKED)
            p = tl.exp2(_scores(q, k, offs_m, offs_n, first, MASKED, PRECISION) * scale2 - lse[:, None])
            ds = p * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        return dq

    @triton.jit
    def _attn_bwd_dq(
        q_ptr, k_ptr, v_ptr, first_ptr, g_ptr, lse_ptr, delta_ptr, dq_ptr,
        stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
        stride_gb, stride_gh, stride_gt, H, H_kv, T, scale, scale2,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_FIRST: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        """dq of one block of queries of one head, (B, H, T, D) contiguous. The walk over the keys is the forward's."""
        blocks = tl.cdiv(T, BLOCK_M)
        m0 = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M
        bh = tl.program_id(0) // blocks
        b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
        h_kv = h // (H // H_kv)
        offs_m = m0 + tl.arange(0, BLOCK_M)
        base = bh.to(tl.int64) * T
        k_ptr += b * stride_kb + h_kv * stride_kh
        v_ptr += b * stride_vb + h_kv * stride_vh
        q = _load_rows(q_ptr + b * stride_qb + h * stride_qh, m0, stride_qt, T, BLOCK_M, HEAD_DIM)
        g = _load_rows(g_ptr + b * stride_gb + h * stride_gh, m0, stride_gt, T, BLOCK_M, HEAD_DIM)
        lse = tl.load(lse_ptr + base + offs_m, mask=offs_m < T, other=float("inf"))
        delta = tl.load(delta_ptr + base + offs_m, mask=offs_m < T, other=0.0)
        first, lo, left, right, hi = _key_range(first_ptr, b, offs_m, m0, T, BLOCK_M, BLOCK_N, HAS_FIRST)
        dq = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
        if HAS_FIRST:  # the left edge, full, the diagonal: as in the forward
            dq = _dq_keys(
                dq, q, g, lse, delta, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, lo, left, T, scale2,
                BLOCK_N, HEAD_DIM, True, PRECISION,
            )  # fmt: skip
        dq = _dq_keys(
            dq, q, g, lse, delta, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, left, right, T, scale2,
            BLOCK_N, HEAD_DIM, False, PRECISION,
        )  # fmt: skip
        dq = _dq_keys(
            dq, q, g, lse, delta, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, right, hi, T, scale2,
            BLOCK_N, HEAD_DIM, True, PRECISION,
        )  # fmt: skip
        _store_rows(dq_ptr + base * HEAD_DIM, dq * scale, m0, HEAD_DIM, T, BLOCK_M, HEAD_DIM)


def _query_ranges(first, block: int):
    """(2, B, key blocks) int32: up to which query all see every key of the block (`full`), and one past the last query
    that sees any (`hi`), causality apart. The running maximum from the left and minimum from the right make both hold
    for any `first`; on a GPU nobody checks that it is sorted."""
    (B, T), device = first.shape, first.device
    highest = first.cummax(1).values.contiguous()
    lowest = first.flip(1).cummin(1).values.flip(1).contiguous()
    start = torch.arange(0, T, block, device=device, dtype=first.dtype).expand(B, -1).contiguous()
    full = torch.searchsorted(highest, start, right=True)
    return torch.stack((full, torch.searchsorted(lowest, start + (block - 1), right=True))).int()


# ---------------------------------------------------------------- launches
def _options(q, first, tile) -> dict:
    """Constexprs and launch options of the three kernels that walk over tiles."""
    sizes = dict(BLOCK_M=tile.queries, BLOCK_N=tile.keys, HEAD_DIM=q.shape[3], HAS_FIRST=first is not None)
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    return sizes | dict(PRECISION=precision, num_warps=tile.warps, num_stages=tile.stages)


def _strides(*tensors) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def attention_forward(q, k, v, first, tile):
    """o in q's dtype and lse (B, H, T) float32 in base 2."""
    (B, H, T, D), H_kv = q.shape, k.shape[1]
    o = torch.empty(B, H, T, D, dtype=q.dtype, device=q.device)
    lse = torch.empty(B, H, T, dtype=torch.float32, device=q.device)
    with on_device(q):
        _attn_fwd[(triton.cdiv(T, tile.queries) * B * H,)](
            q, k, v, q if first is None else first, o, lse, *_strides(q, k, v), H, H_kv, T, LOG2E * D**-0.5,
            **_options(q, first, tile),
        )  # fmt: skip
    return o, lse


def attention_delta(o, g):
    (B, H, T, D) = o.shape
    delta = torch.empty(B, H, T, dtype=torch.float32, device=o.device)
    with on_device(o):
        _attn_bwd_delta[(triton.cdiv(T, DELTA_BLOCK) * B * H,)](
            o, g, delta, *_strides(g), H, T, BLOCK_M=DELTA_BLOCK, HEAD_DIM=D, num_warps=4, num_stages=2
        )
    return delta


def attention_dkdv(q, k, v, first, g, lse, delta, tile):
    (B, H, T, D), H_kv = q.shape, k.shape[1]
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    ranges = q if first is None else _query_ranges(first, tile.keys)
    with on_device(q):
        _attn_bwd_dkdv[(triton.cdiv(T, tile.keys) * B * H_kv,)](
            q, k, v, q if first is None else first, ranges, g, lse, delta, dk, dv, *_strides(q, k, v, g), B, H, H_kv, T,
            D**-0.5, LOG2E * D**-0.5, **_options(q, first, tile),
        )  # fmt: skip
    return dk, dv


def attention_dq(q, k, v, first, g, lse, delta, tile):
    (B, H, T, D), H_kv = q.shape, k.shape[1]
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    with on_device(q):
        _attn_bwd_dq[(triton.cdiv(T, tile.queries) * B * H,)](
            q, k, v, q if first is None else first, g, lse, delta, dq, *_strides(q, k, v, g), H, H_kv, T, D**-0.5,
            LOG2E * D**-0.5, **_options(q, first, tile),
        )  # fmt: skip
    return dq


def _dense(x):
    """The kernels take any strides but that of the head size, which is 1."""
    return x if x.stride(-1) == 1 else x.contiguous()


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, first):
        q, k, v = map(_dense, (q, k, v))
        if q.numel() == 0:
            ctx.save_for_backward(q, k, v, None, None, None)
            return torch.empty_like(q)
        o, lse = attention_forward(q, k, v, first, attention_tiles(target_of(q), q.shape[3], q.dtype)[0])
        ctx.save_for_backward(q, k, v, first, o, lse)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        q, k, v, first, o, lse = ctx.saved_tensors
        if lse is None:
            return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v), None
        g = _dense(g)
        _, dkdv, dq = attention_tiles(target_of(q), q.shape[3], q.dtype)
        delta = attention_delta(o, g)
        dk, dv = attention_dkdv(q, k, v, first, g, lse, delta, dkdv)
        return attention_dq(q, k, v, first, g, lse, delta, dq), dk, dv, None


def check_attention(q, k, v, first) -> None:
    """One sentence for every input that has no answer."""
    check_devices("attention", q=q, k=k, v=v, first=first)
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[::2] != k.shape[::2] or q.shape[3] != k.shape[3]:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise ValueError(f"attention: got {shapes}; needs q (B, H, T, D) and k, v (B, H_kv, T, D)")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"attention: {q.shape[1]} query heads are no multiple of {k.shape[1]} key heads")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise ValueError(f"attention: got q {q.dtype}, k {k.dtype}, v {v.dtype}; needs one floating dtype")
    if first is not None:
        if first.shape != (q.shape[0], q.shape[2]) or first.dtype != torch.int32:
            raise ValueError(f"attention: got first {tuple(first.shape)} {first.dtype}; needs (B, T) int32")
        if first.device.type == "cpu" and bool((first[:, 1:] < first[:, :-1]).any()):
            raise ValueError("attention: `first` decreases along T; a row's documents must follow each other")


def attention(q, k, v, *, first=None, impl: str = "auto"):
    """softmax(q k^T / sqrt(D)) v over the keys first[b, t]..t of each query t, (B, H, T, D) in q's dtype.

    q (B, H, T, D), k and v (B, H_kv, T, D), H a multiple of H_kv; float32 (ieee products), float16 or bfloat16 with
    float32 accumulation (under autocast: its dtype). D is 32, 64 or 128 for Triton, anything for torch. first (B, T)
    int32, non-decreasing along T: None sees all earlier keys, a range without keys gives 0. Any strides, any T.

    Triton moves q, o once, k, v once per block of queries, and saves for the backward inputs, o and one float32 a query
    (the log-sum-exp), B H T 4 bytes against B H T^2 of a naive softmax. The torch path: see attention_torch.py.
    impl: "auto" | "triton" | "torch" (see kernels/dispatch.py). Raises ValueError for shapes, dtypes and (on CPU, where
    looking is free) a decreasing `first`; on a GPU a decreasing `first` is still computed as the definition says.
    """
    q, k, v = to_autocast(q, k, v)
    check_attention(q, k, v, first)
    D = q.shape[3]
    unsupported = None if D in HEAD_SIZES else f"got head size {D}, the attention kernel takes 32, 64 and 128"
    if choose_impl(impl, q, unsupported) == "torch":
        return attention_torch(q, k, v, first)
    return _TritonAttention.apply(q, k, v, None if first is None else first.contiguous())
