"""Attention's Triton kernels and their launches; the mathematics is in attention.py.

A block of BLOCK_M queries walks its keys in phases, so that only blocks which an edge of the mask cuts pay for the mask
(#). `first` and `shared` are as in attention.py; without them the first phases do not exist.

    keys:      0        whole    edge         lo       left            right      hi
    query m0   |.........|####   |            |   #####|...............|#         |
               |.........|####   |            |     ###|...............|####      |
               |.........|####   |            |       #|...............|#######   |
                  shared                       left edge      full       diagonal

A block of BLOCK_N keys walks the queries that see it in the same way: the diagonal, full, and those that see a part.
Log-sum-exps (m_i, lse) are in base 2 throughout: exp(x) = 2 ** (x log2 e), scale2 = scale log2 e, and GPUs have 2^x.
No atomics: every element is summed by one program in one order, so two runs give the same bits.
Arguments stand in rows by kind (fmt: skip): pointers, strides, sizes, constants. One a line would hide the kernels.
"""

import math

import torch

from kernels.dispatch import on_device
from kernels.tiles import DELTA_BLOCK

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

LOG2E = math.log2(math.e)


# ---------------------------------------------------------------- Triton kernels
if triton is not None:

    @triton.jit
    def _visible(m, n, first, shared, HAS_SHARED: tl.constexpr):
        """Does query m see key n? first belongs to m; the four broadcast to a tile."""
        begun = n >= first
        if HAS_SHARED:
            begun |= n < shared
        return (n <= m) & begun

    @triton.jit
    def _scores(
        q, k, offs_m, offs_n, first, shared, MASKED: tl.constexpr, HAS_SHARED: tl.constexpr, PRECISION: tl.constexpr
    ):
        """One tile of <q, k>, (BLOCK_M, BLOCK_N), -inf where not visible. Its scale waits for the exponent: exp(scale
        <q, k> - max) = 2 ** (<q, k> scale2 - max2) is one multiply-add and one exp2."""
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            visible = _visible(offs_m[:, None], offs_n[None, :], first[:, None], shared, HAS_SHARED)
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
    def _key_range(
        first_ptr, shared_ptr, b, offs_m, m0, T, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
        HAS_FIRST: tl.constexpr, HAS_SHARED: tl.constexpr,
    ):  # fmt: skip
        """first of each query and shared; then where the phases of the walk over keys begin and end, in the file's
        picture: whole, edge, lo, left, right, hi."""
        hi = tl.minimum(m0 + BLOCK_M, T)
        right = m0 // BLOCK_N * BLOCK_N  # whole blocks of keys that every query of the block has behind it
        first = offs_m * 0
        lo, left, shared, whole, edge = 0, 0, 0, 0, 0
        if HAS_FIRST:
            first = tl.load(first_ptr + b.to(tl.int64) * T + offs_m, mask=offs_m < T, other=2147483647)
            lo = tl.minimum(tl.maximum(tl.min(first, 0), 0) // BLOCK_N * BLOCK_N, right)
            real_max = tl.minimum(tl.max(tl.where(offs_m < T, first, 0), 0), hi)  # first may be INT_MAX: no key
            left = tl.minimum(tl.cdiv(tl.maximum(real_max, 0), BLOCK_N) * BLOCK_N, right)
        if HAS_SHARED:
            shared = tl.load(shared_ptr + b)
            whole = tl.minimum(shared // BLOCK_N * BLOCK_N, lo)
            edge = tl.minimum(tl.cdiv(shared, BLOCK_N) * BLOCK_N, lo)
        return first, shared, whole, edge, lo, left, right, hi

    @triton.jit
    def _fwd_keys(
        acc, l_i, m_i, q, k_ptr, v_ptr, stride_k, stride_v, offs_m, first, shared, lo, hi, T, scale2,
        BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr, HAS_SHARED: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Take keys lo..hi-1 into the running maximum m_i, sum l_i and weighted sum acc."""
        for n0 in range(lo, hi, BLOCK_N):
            offs_n = n0 + tl.arange(0, BLOCK_N)
            k = _load_rows(k_ptr, n0, stride_k, T, BLOCK_N, HEAD_DIM, MASKED)
            s = _scores(q, k, offs_m, offs_n, first, shared, MASKED, HAS_SHARED, PRECISION)
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
        q_ptr, k_ptr, v_ptr, first_ptr, shared_ptr, o_ptr, lse_ptr,
        stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
        H, H_kv, T, scale2,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_FIRST: tl.constexpr,
        HAS_SHARED: tl.constexpr, PRECISION: tl.constexpr,
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
        first, shared, whole, edge, lo, left, right, hi = _key_range(
            first_ptr, shared_ptr, b, offs_m, m0, T, BLOCK_M, BLOCK_N, HAS_FIRST, HAS_SHARED
        )
        m_i = tl.full([BLOCK_M], -1e30, tl.float32)
        l_i = tl.zeros([BLOCK_M], dtype=tl.float32)
        acc = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
        if HAS_SHARED:
            acc, l_i, m_i = _fwd_keys(  # shared
                acc, l_i, m_i, q, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, shared, 0, whole, T, scale2,
                BLOCK_N, HEAD_DIM, False, HAS_SHARED, PRECISION,
            )  # fmt: skip
            acc, l_i, m_i = _fwd_keys(  # the edge of what is shared
                acc, l_i, m_i, q, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, shared, whole, edge, T, scale2,
                BLOCK_N, HEAD_DIM, True, HAS_SHARED, PRECISION,
            )  # fmt: skip
        if HAS_FIRST:
            acc, l_i, m_i = _fwd_keys(  # the left edge
                acc, l_i, m_i, q, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, shared, lo, left, T, scale2,
                BLOCK_N, HEAD_DIM, True, HAS_SHARED, PRECISION,
            )  # fmt: skip
        acc, l_i, m_i = _fwd_keys(  # full
            acc, l_i, m_i, q, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, shared, left, right, T, scale2,
            BLOCK_N, HEAD_DIM, False, HAS_SHARED, PRECISION,
        )  # fmt: skip
        acc, l_i, m_i = _fwd_keys(  # the diagonal
            acc, l_i, m_i, q, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, shared, right, hi, T, scale2,
            BLOCK_N, HEAD_DIM, True, HAS_SHARED, PRECISION,
        )  # fmt: skip
        sees = (first <= offs_m) | (shared > 0)  # any key at all. To ask l_i > 0 would turn NaN into "sees nothing"
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
        dk, dv, k, v, q_ptr, g_ptr, lse_ptr, delta_ptr, first_ptr, shared, stride_q, stride_g, offs_n, lo, hi, T,
        scale2, BLOCK_M: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_SHARED: tl.constexpr,
        MASKED: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Add what queries lo..hi-1 of one head send to a block of keys. Tiles are transposed: (keys, queries)."""
        for m0 in range(lo, hi, BLOCK_M):
            offs_m = m0 + tl.arange(0, BLOCK_M)
            q = _load_rows(q_ptr, m0, stride_q, T, BLOCK_M, HEAD_DIM, MASKED)
            lse = _load_stat(lse_ptr, m0, T, float("inf"), BLOCK_M, MASKED)  # rows past the end: p = 0
            s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            if MASKED:
                first = offs_m * 0
                if HAS_FIRST:
                    first = tl.load(first_ptr + offs_m, mask=offs_m < T, other=0)
                visible = _visible(offs_m[None, :], offs_n[:, None], first[None, :], shared, HAS_SHARED)
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
        q_ptr, k_ptr, v_ptr, first_ptr, shared_ptr, range_ptr, g_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
        stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
        stride_gb, stride_gh, stride_gt, B, H, H_kv, T, scale, scale2,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_FIRST: tl.constexpr,
        HAS_SHARED: tl.constexpr, PRECISION: tl.constexpr,
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
        full, hi, shared = T, T, 0
        if HAS_FIRST:
            full = tl.load(range_ptr + b * blocks + n0 // BLOCK_N)
            hi = tl.load(range_ptr + (B + b) * blocks + n0 // BLOCK_N)
        if HAS_SHARED:
            shared = tl.load(shared_ptr + b)
        right = tl.maximum(diagonal, full // BLOCK_M * BLOCK_M)
        dk = tl.zeros([BLOCK_N, HEAD_DIM], dtype=tl.float32)
        dv = tl.zeros([BLOCK_N, HEAD_DIM], dtype=tl.float32)
        for r in range(0, H // H_kv):
            h = h_kv * (H // H_kv) + r
            row = (b * H + h) * T
            q_head, g_head = q_ptr + b * stride_qb + h * stride_qh, g_ptr + b * stride_gb + h * stride_gh
            dk, dv = _dkdv_queries(  # the diagonal
                dk, dv, k, v, q_head, g_head, lse_ptr + row, delta_ptr + row, first_ptr + b * T, shared,
                stride_qt, stride_gt, offs_n, lo, tl.minimum(diagonal, hi), T, scale2,
                BLOCK_M, HEAD_DIM, HAS_FIRST, HAS_SHARED, True, PRECISION,
            )  # fmt: skip
            dk, dv = _dkdv_queries(  # full
                dk, dv, k, v, q_head, g_head, lse_ptr + row, delta_ptr + row, first_ptr + b * T, shared,
                stride_qt, stride_gt, offs_n, diagonal, right, T, scale2,
                BLOCK_M, HEAD_DIM, HAS_FIRST, HAS_SHARED, False, PRECISION,
            )  # fmt: skip
            dk, dv = _dkdv_queries(  # queries that see a part of the block, and those at the end of the row
                dk, dv, k, v, q_head, g_head, lse_ptr + row, delta_ptr + row, first_ptr + b * T, shared,
                stride_qt, stride_gt, offs_n, right, hi, T, scale2,
                BLOCK_M, HEAD_DIM, HAS_FIRST, HAS_SHARED, True, PRECISION,
            )  # fmt: skip
        out = bh.to(tl.int64) * T * HEAD_DIM
        _store_rows(dk_ptr + out, dk * scale, n0, HEAD_DIM, T, BLOCK_N, HEAD_DIM)
        _store_rows(dv_ptr + out, dv, n0, HEAD_DIM, T, BLOCK_N, HEAD_DIM)

    @triton.jit
    def _dq_keys(
        dq, q, g, lse, delta, k_ptr, v_ptr, stride_k, stride_v, offs_m, first, shared, lo, hi, T, scale2,
        BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr, HAS_SHARED: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Add what keys lo..hi-1 send to a block of queries."""
        for n0 in range(lo, hi, BLOCK_N):
            offs_n = n0 + tl.arange(0, BLOCK_N)
            k = _load_rows(k_ptr, n0, stride_k, T, BLOCK_N, HEAD_DIM, MASKED)
            v = _load_rows(v_ptr, n0, stride_v, T, BLOCK_N, HEAD_DIM, MASKED)
            s = _scores(q, k, offs_m, offs_n, first, shared, MASKED, HAS_SHARED, PRECISION)
            p = tl.exp2(s * scale2 - lse[:, None])
            ds = p * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        return dq

    @triton.jit
    def _attn_bwd_dq(
        q_ptr, k_ptr, v_ptr, first_ptr, shared_ptr, g_ptr, lse_ptr, delta_ptr, dq_ptr,
        stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
        stride_gb, stride_gh, stride_gt, H, H_kv, T, scale, scale2,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_FIRST: tl.constexpr,
        HAS_SHARED: tl.constexpr, PRECISION: tl.constexpr,
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
        first, shared, whole, edge, lo, left, right, hi = _key_range(
            first_ptr, shared_ptr, b, offs_m, m0, T, BLOCK_M, BLOCK_N, HAS_FIRST, HAS_SHARED
        )
        dq = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
        if HAS_SHARED:  # the phases are the forward's
            dq = _dq_keys(
                dq, q, g, lse, delta, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, shared, 0, whole, T, scale2,
                BLOCK_N, HEAD_DIM, False, HAS_SHARED, PRECISION,
            )  # fmt: skip
            dq = _dq_keys(
                dq, q, g, lse, delta, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, shared, whole, edge, T, scale2,
                BLOCK_N, HEAD_DIM, True, HAS_SHARED, PRECISION,
            )  # fmt: skip
        if HAS_FIRST:
            dq = _dq_keys(
                dq, q, g, lse, delta, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, shared, lo, left, T, scale2,
                BLOCK_N, HEAD_DIM, True, HAS_SHARED, PRECISION,
            )  # fmt: skip
        dq = _dq_keys(
            dq, q, g, lse, delta, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, shared, left, right, T, scale2,
            BLOCK_N, HEAD_DIM, False, HAS_SHARED, PRECISION,
        )  # fmt: skip
        dq = _dq_keys(
            dq, q, g, lse, delta, k_ptr, v_ptr, stride_kt, stride_vt, offs_m, first, shared, right, hi, T, scale2,
            BLOCK_N, HEAD_DIM, True, HAS_SHARED, PRECISION,
        )  # fmt: skip
        _store_rows(dq_ptr + base * HEAD_DIM, dq * scale, m0, HEAD_DIM, T, BLOCK_M, HEAD_DIM)


# ---------------------------------------------------------------- launches
def _query_ranges(first, shared, block: int):
    """(2, B, key blocks) int32: up to which query all see every key of the block (`full`), and one past the last query
    that sees any (`hi`), causality apart. The running maximum from the left and minimum from the right make both hold
    for any `first`; on a GPU nobody checks that it is sorted."""
    (B, T), device = first.shape, first.device
    highest = first.cummax(1).values.contiguous()
    lowest = first.flip(1).cummin(1).values.flip(1).contiguous()
    start = torch.arange(0, T, block, device=device, dtype=first.dtype).expand(B, -1).contiguous()
    full = torch.searchsorted(highest, start, right=True)
    hi = torch.searchsorted(lowest, start + (block - 1), right=True)
    if shared is not None:
        full = full.masked_fill(start + block <= shared[:, None], T)
        hi = hi.masked_fill(start < shared[:, None], T)
    return torch.stack((full, hi)).int()


def _options(q, first, shared, tile) -> dict:
    """Constexprs and launch options of the three kernels that walk over tiles."""
    masks = dict(HAS_FIRST=first is not None, HAS_SHARED=shared is not None)
    sizes = dict(BLOCK_M=tile.queries, BLOCK_N=tile.keys, HEAD_DIM=q.shape[3])
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    return sizes | masks | dict(PRECISION=precision, num_warps=tile.warps, num_stages=tile.stages)


def _or(tensor, stand_in):
    """A pointer that is never read needs a tensor all the same."""
    return stand_in if tensor is None else tensor


def _strides(*tensors) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def attention_forward(q, k, v, first, shared, tile):
    """o in q's dtype and lse (B, H, T) float32 in base 2."""
    (B, H, T, D), H_kv = q.shape, k.shape[1]
    o = torch.empty(B, H, T, D, dtype=q.dtype, device=q.device)
    lse = torch.empty(B, H, T, dtype=torch.float32, device=q.device)
    with on_device(q):
        _attn_fwd[(triton.cdiv(T, tile.queries) * B * H,)](
            q, k, v, _or(first, q), _or(shared, q), o, lse, *_strides(q, k, v), H, H_kv, T, LOG2E * D**-0.5,
            **_options(q, first, shared, tile),
        )  # fmt: skip
    return o, lse


def attention_delta(o, g):
    B, H, T, D = o.shape
    delta = torch.empty(B, H, T, dtype=torch.float32, device=o.device)
    with on_device(o):
        _attn_bwd_delta[(triton.cdiv(T, DELTA_BLOCK) * B * H,)](
            o, g, delta, *_strides(g), H, T, BLOCK_M=DELTA_BLOCK, HEAD_DIM=D, num_warps=4, num_stages=2
        )
    return delta


def attention_dkdv(q, k, v, first, shared, g, lse, delta, tile):
    (B, H, T, D), H_kv = q.shape, k.shape[1]
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    ranges = None if first is None else _query_ranges(first, shared, tile.keys)
    with on_device(q):
        _attn_bwd_dkdv[(triton.cdiv(T, tile.keys) * B * H_kv,)](
            q, k, v, _or(first, q), _or(shared, q), _or(ranges, q), g, lse, delta, dk, dv, *_strides(q, k, v, g), B, H,
            H_kv, T, D**-0.5, LOG2E * D**-0.5, **_options(q, first, shared, tile),
        )  # fmt: skip
    return dk, dv


def attention_dq(q, k, v, first, shared, g, lse, delta, tile):
    (B, H, T, D), H_kv = q.shape, k.shape[1]
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    with on_device(q):
        _attn_bwd_dq[(triton.cdiv(T, tile.queries) * B * H,)](
            q, k, v, _or(first, q), _or(shared, q), g, lse, delta, dq, *_strides(q, k, v, g), H, H_kv, T, D**-0.5,
            LOG2E * D**-0.5, **_options(q, first, shared, tile),
        )  # fmt: skip
    return dq
