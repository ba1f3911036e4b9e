"""Per-token log-prob, log-sum-exp and entropy straight from hidden states and head weight, without an (N, V) tensor.

With logits z[n, v] = <hidden[n], weight[v]> / temperature, p = softmax(z) and y = targets:

    lse[n]     = log sum_v exp z[n, v]
    logp[n]    = z[n, y[n]] - lse[n]                   minus its mean is the cross-entropy; lse ** 2 is the z-loss
    entropy[n] = lse[n] - sum_v p[n, v] z[n, v]

The forward walks the vocabulary in tiles and keeps four numbers a row, rescaled whenever the running maximum m_i grows:
m_i, l_i = sum exp(z - m_i), s = sum exp(z - m_i) (z - m_i), and z at the target. Then lse = m_i + log l_i, entropy =
log l_i - s / l_i. The sums are taken relative to m_i, so logits of 1e4 cost no digits.

Gradient. d logp / d z_v = [v = y] - p_v, d lse / d z_v = p_v, d entropy / d z_v = -p_v (z_v - lse + entropy), so for
upstream gradients a (of logp), b (of lse), c (of entropy), all (N,),

    dz[n, v] = a [v = y] + (b - a) p[n, v] - c p[n, v] (z[n, v] - lse + entropy)
    d_hidden = dz @ weight / temperature,    d_weight = dz.T @ hidden / temperature

which the backward forms one vocabulary chunk at a time into one reused buffer, recomputing z from hidden and weight;
the products with weight and hidden are the library's. Bytes: naive keeps logits, log-softmax and their gradient, 12 N V
at the peak; here N V is never stored: 16 N (forward) and one chunk (backward).
"""

import math

import torch
from torch.autograd.function import once_differentiable

from kernels.dispatch import choose_impl, matmul_dtype, target_of, to_autocast

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

LOG2E = math.log2(math.e)
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
        return torch.mm(a, b, out=out)
    return out.copy_(torch.mm(a, b, out=scratch))


class _Tiles:
    """The buffers of one pass: views of the same memory for every tile, whatever its size. Fresh pages are slow."""

    def __init__(self, rows: int, words: int, like: torch.Tensor, count: int):
        stat = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.stat = [torch.empty(rows * words, dtype=stat, device=like.device) for _ in range(count)]
        self.low = None if like.dtype == stat else torch.empty(rows * words, dtype=like.dtype, device=like.device)

    def view(self, rows: int, words: int):
        """(statistics-dtype tiles..., 16-bit tile or None), each (rows, words)."""
        cut = lambda buffer: None if buffer is None else buffer[: rows * words].view(rows, words)  # noqa: E731
        return *map(cut, self.stat), cut(self.low)


def _tile_sizes(N: int, V: int, device: torch.device) -> tuple[int, int]:
    if device.type == "cpu":
        return max(1, min(N, CPU_TILE[0])), min(V, CPU_TILE[1])
    rows = max(1, min(N, 4096))
    return rows, min(V, max(1024, CHUNK // rows))  # a GPU wants large products


def _forward_torch(hidden, weight, targets, keep: bool):
    """hidden (N, D) already divided by the temperature. Returns logp, lse, entropy (N,) and (l_i, exp(z - m_i)) if
    kept, else ()."""
    N, V = len(hidden), len(weight)
    rows, words = _tile_sizes(N, V, hidden.device)
    if keep:
        words = V
    tiles = _Tiles(rows, words, hidden, count=2)
    stat = tiles.stat[0].dtype
    m_i, l_i, s, zy = (torch.zeros(N, dtype=stat, device=hidden.device) for _ in range(4))
    m_i.fill_(-math.inf)
    kept = (
        torch.empty(N, V, dtype=stat if tiles.low is None else tiles.low.dtype, device=hidden.device) if keep else None
    )
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
            # for s.
            step = torch.where(l_i[R] > 0, m_i[R] - new_m, 0)
            scale = step.exp()
            s[R] = scale * (s[R] + step * l_i[R]) + z.mul_(e).sum(1)
            l_i[R] = scale * l_i[R] + e.sum(1)
            m_i[R] = new_m
            if keep and low is not None:
                kept[R] = e
    log_l = l_i.log()
    return zy - m_i - log_l, m_i + log_l, log_l - s / l_i, (l_i, kept) if keep else ()


def _backward_torch(hidden, weight, lse, entropy, coef, c, kept, d_hidden, d_weight):
    """Add dz's softmax part, coef p - c p (z - lse + entropy) with coef = b - a, to d_hidden (N, D) and d_weight (V,
    D)."""
    N, V = len(hidden), len(weight)
    # A row's factor moves from the large dz = coef p to the small sides: dz @ w = coef (p @ w), dz.T @ h = p.T @ (coef
    # h).
    if kept and c is None:
        l_i, e = kept
        coef = (coef / l_i)[:, None]
        d_hidden += coef * torch.mm(e, weight)
        d_weight += torch.mm(e.T, (coef * hidden).to(hidden.dtype))
        return
    right = hidden if c is not None else (coef[:, None] * hidden).to(hidden.dtype)
    left = torch.zeros_like(d_hidden)
    rows, words = _tile_sizes(N, V, hidden.device)
    tiles = _Tiles(rows, words, hidden, count=1)
    for v in range(0, V, words):
        w = weight[v : v + words]
        for r in range(0, N, rows):
            R = slice(r, min(r + rows, N))
            p, low = tiles.view(R.stop - r, len(w))
            _product(hidden[R], w.T, p, low).sub_(lse[R, None])  # log p
            if c is None:
                p.exp_()
            else:
                factor = coef[R, None] - c[R, None] * (p + entropy[R, None])
                p.exp_().mul_(factor)
            if low is None:
                left[R].addmm_(p, w)
                d_weight[v : v + len(w)].addmm_(p.T, right[R])
            else:
                low.copy_(p)
                left[R] += torch.mm(low, w)
                d_weight[v : v + len(w)] += torch.mm(low.T, right[R])
    d_hidden += left if c is not None else left.mul_(coef[:, None])


def _mark_invalid(x, targets, V: int):
    """NaN where the target is no word. On a GPU nothing can raise without waiting for the device, so the loss says
    it."""
    return torch.where((targets >= 0) & (targets < V), x, math.nan)


class _TorchLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature):
        multiply = matmul_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(multiply), weight.to(multiply)
            h = h if temperature == 1 else h / temperature
            keep = any(ctx.needs_input_grad) and len(h) * len(w) <= CHUNK
            logp, lse, entropy, kept = _forward_torch(h, w, targets, keep)
        ctx.save_for_backward(hidden, weight, targets, lse, entropy, *kept)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return _mark_invalid(logp, targets, len(w)), lse, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, a, b, c):
        hidden, weight, targets, lse, entropy, *kept = ctx.saved_tensors
        multiply = matmul_dtype(hidden)
        a, b = (torch.zeros_like(lse) if g is None else g for g in (a, b))
        a = _mark_invalid(a, targets, len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(multiply) / ctx.temperature, weight.to(multiply)
            y = targets.clamp(0, len(w) - 1)
            d_hidden = a[:, None] * w[y]  # the one-hot part of dz, a [v = y], is a gather and a scatter of rows
            d_weight = torch.zeros(w.shape, dtype=lse.dtype, device=w.device).index_add_(0, y, a[:, None] * h)
            _backward_torch(h, w, lse, entropy, b - a, c, kept, d_hidden, d_weight)
        return (d_hidden / ctx.temperature).to(hidden.dtype), d_weight.to(weight.dtype), None, None


# ---------------------------------------------------------------- Triton kernels (BLOCK_N rows, BLOCK_V words, BLOCK_D,
# warps, stages) by target, for 16-bit and for float32 inputs; docs/kernels.md has what each compiles to. Float32
# multiplies without tensor cores (ieee), so its tiles are small.
TILES = {
    "sm80": ((128, 128, 32, 8, 3), (64, 64, 32, 8, 2)),
    "sm90": ((128, 128, 64, 8, 3), (64, 64, 32, 8, 2)),
    "sm100": ((128, 128, 64, 8, 3), (64, 64, 32, 8, 2)),
    "gfx942": ((128, 128, 32, 8, 2), (64, 64, 32, 4, 1)),
    "interpreter": ((32, 64, 32, 4, 1), (32, 64, 32, 4, 1)),
}
SPLITS = (
    16  # of the vocabulary in the forward: 4,096 rows in blocks of 128 alone would leave three quarters of a GPU idle
)
GPU_CHUNK = 2**26  # elements of d_logits in the backward's buffer: 128 MB in bf16

if triton is not None:

    @triton.jit
    def _logits2_tile(
        h_ptr, w_ptr, rows, cols, N, V, D, stride_hn, stride_hd, stride_wv, stride_wd, scale2,
        BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """One tile of logits / temperature in base 2, (BLOCK_N, BLOCK_V): exp z = 2 ** (z log2 e), and GPUs have
        exp2."""
        offs_d = tl.arange(0, BLOCK_D)
        h_row = h_ptr + rows.to(tl.int64)[:, None] * stride_hn
        w_row = w_ptr + cols.to(tl.int64)[:, None] * stride_wv
        z = tl.zeros([BLOCK_N, BLOCK_V], dtype=tl.float32)
        for d0 in range(0, D, BLOCK_D):
            d = d0 + offs_d
            h = tl.load(h_row + d[None, :] * stride_hd, mask=(rows < N)[:, None] & (d < D)[None, :], other=0.0)
            w = tl.load(w_row + d[None, :] * stride_wd, mask=(cols < V)[:, None] & (d < D)[None, :], other=0.0)
            z = tl.dot(h, tl.trans(w), z, input_precision=PRECISION)
        return z * scale2

    @triton.jit
    def _logprob_fwd(
        h_ptr, w_ptr, y_ptr, part_ptr, N, V, D, split_words, stride_hn, stride_hd, stride_wv, stride_wd, scale2,
        BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Online sums of BLOCK_N rows over one split of the vocabulary: part (splits, 4, N) = m_i, l_i, s, z at the
        target."""
        split = tl.program_id(1)
        rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        y = tl.load(y_ptr + rows, mask=rows < N, other=-1)
        m_i = tl.full([BLOCK_N], -1e30, tl.float32)
        l_i = tl.zeros([BLOCK_N], dtype=tl.float32)
        s = tl.zeros([BLOCK_N], dtype=tl.float32)
        zy = tl.zeros([BLOCK_N], dtype=tl.float32)
        for v0 in range(split * split_words, tl.minimum((split + 1) * split_words, V), BLOCK_V):
            cols = v0 + tl.arange(0, BLOCK_V)
            z = _logits2_tile(
                h_ptr, w_ptr, rows, cols, N, V, D, stride_hn, stride_hd, stride_wv, stride_wd, scale2,
                BLOCK_N, BLOCK_V, BLOCK_D, PRECISION,
            )  # fmt: skip
            z = tl.where((cols < V)[None, :], z, -1e30)
            zy += tl.sum(tl.where(cols[None, :] == y[:, None], z, 0.0), 1)
            new_m = tl.maximum(m_i, tl.max(z, 1))
            z -= new_m[:, None]
            e = tl.exp2(z)
            step = m_i - new_m
            scale = tl.exp2(step)
            s = scale * (s + step * l_i) + tl.sum(e * z, 1)
            l_i = scale * l_i + tl.sum(e, 1)
            m_i = new_m
        part = part_ptr + (split * 4).to(tl.int64) * N + rows
        tl.store(part, m_i, mask=rows < N)
        tl.store(part + N, l_i, mask=rows < N)
        tl.store(part + 2 * N, s, mask=rows < N)
        tl.store(part + 3 * N, zy, mask=rows < N)

    @triton.jit
    def _logprob_bwd(
        h_ptr, w_ptr, y_ptr, lse_ptr, ent_ptr, a_ptr, b_ptr, c_ptr, dz_ptr, v_start, v_stop, N, D,
        stride_hn, stride_hd, stride_wv, stride_wd, stride_dz, scale2, inv_temp,
        BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """One tile of dz / temperature (formula in the file's docstring) for the words v_start..v_stop-1, into dz (N,
        chunk)."""
        rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        cols = v_start + tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
        z = _logits2_tile(
            h_ptr, w_ptr, rows, cols, N, v_stop, D, stride_hn, stride_hd, stride_wv, stride_wd, scale2,
            BLOCK_N, BLOCK_V, BLOCK_D, PRECISION,
        )  # fmt: skip
        real = rows < N
        y = tl.load(y_ptr + rows, mask=real, other=-1)
        lse = tl.load(lse_ptr + rows, mask=real, other=0.0)
        entropy = tl.load(ent_ptr + rows, mask=real, other=0.0)
        a = tl.load(a_ptr + rows, mask=real, other=0.0)
        b = tl.load(b_ptr + rows, mask=real, other=0.0)
        c = tl.load(c_ptr + rows, mask=real, other=0.0)
        logp = (z - lse[:, None] * 1.4426950408889634) * 0.6931471805599453  # back to base e
        p = tl.exp2(z - lse[:, None] * 1.4426950408889634)
        dz = p * ((b - a)[:, None] - c[:, None] * (logp + entropy[:, None]))
        dz += tl.where(cols[None, :] == y[:, None], a[:, None], 0.0)
        out = dz_ptr + rows.to(tl.int64)[:, None] * stride_dz + (cols - v_start)[None, :]
        tl.store(out, (dz * inv_temp).to(dz_ptr.dtype.element_ty), mask=real[:, None] & (cols < v_stop)[None, :])


class _TritonLogprob(torch.autograd.Function):
    @staticmethod
    def setup(hidden, weight, temperature):
        """What both kernels are launched with: the tile, the strides and the constexprs."""
        wide = hidden.dtype == torch.float32
        BLOCK_N, BLOCK_V, BLOCK_D, warps, stages = TILES[target_of(hidden)][wide]
        tile = dict(BLOCK_N=BLOCK_N, BLOCK_V=BLOCK_V, BLOCK_D=BLOCK_D, PRECISION="ieee" if wide else "tf32")
        return (*hidden.stride(), *weight.stride()), LOG2E / temperature, tile, dict(num_warps=warps, num_stages=stages)

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature):
        (N, D), V = hidden.shape, len(weight)
        strides, scale2, tile, launch = _TritonLogprob.setup(hidden, weight, temperature)
        words = triton.cdiv(triton.cdiv(V, SPLITS), tile["BLOCK_V"]) * tile["BLOCK_V"]
        splits = triton.cdiv(V, words)
        part = torch.empty(splits, 4, N, dtype=torch.float32, device=hidden.device)
        if N:
            grid = (triton.cdiv(N, tile["BLOCK_N"]), splits)
            _logprob_fwd[grid](hidden, weight, targets, part, N, V, D, words, *strides, scale2, **tile, **launch)
        m_i, l_i, s, zy = part.unbind(1)  # (splits, N) each; join the splits as the kernel joins its tiles
        top = m_i.amax(0)
        scale = (m_i - top).exp2()
        s = (scale * (s + (m_i - top) * l_i)).sum(0)
        l_i = (scale * l_i).sum(0)
        log_l = l_i.log2()
        lse, entropy = (top + log_l) / LOG2E, (log_l - s / l_i) / LOG2E
        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return _mark_invalid((zy.sum(0) - top - log_l) / LOG2E, targets, V), lse, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, a, b, c):
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        (N, D), V = hidden.shape, len(weight)
        strides, scale2, tile, launch = _TritonLogprob.setup(hidden, weight, ctx.temperature)
        a, b, c = (torch.zeros_like(lse) if g is None else g.contiguous() for g in (a, b, c))
        a = _mark_invalid(a, targets, V)
        words = min(V, max(1024, GPU_CHUNK // max(N, 1)))
        dz = torch.empty(N, words, dtype=hidden.dtype, device=hidden.device)
        d_hidden = torch.zeros(N, D, dtype=torch.float32, device=hidden.device)
        d_weight = torch.zeros_like(weight)
        for v in range(0, V if N else 0, words):
            stop = min(v + words, V)
            grid = (triton.cdiv(N, tile["BLOCK_N"]), triton.cdiv(stop - v, tile["BLOCK_V"]))
            _logprob_bwd[grid](
                hidden, weight, targets, lse, entropy, a, b, c, dz, v, stop, N, D, *strides, dz.stride(0), scale2,
                1 / ctx.temperature, **tile, **launch,
            )  # fmt: skip
            chunk = dz[:, : stop - v]
            with torch.autocast(hidden.device.type, enabled=False):
                d_hidden += chunk @ weight[v:stop]
                torch.mm(chunk.T, hidden, out=d_weight[v:stop])
        return d_hidden.to(hidden.dtype), d_weight, None, None


def check_logprob(hidden, weight, targets, temperature) -> None:
    """One sentence for every input that has no answer."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"linear_logprob: got hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, "
            f"targets {tuple(targets.shape)}; needs (N, D), (V, D), (N,)"
        )
    if not (
        hidden.dtype == weight.dtype and hidden.is_floating_point() and targets.dtype in (torch.int64, torch.int32)
    ):
        raise ValueError(
            f"linear_logprob: got {hidden.dtype}, {weight.dtype}, {targets.dtype}; "
            "needs one floating dtype and integer targets"
        )
    if not temperature > 0:
        raise ValueError(f"linear_logprob: got temperature {temperature}; needs a number above 0")
    if targets.device.type == "cpu" and len(targets):
        low, high, V = int(targets.min()), int(targets.max()), len(weight)
        if low < 0 or high >= V:
            raise ValueError(f"linear_logprob: targets run from {low} to {high}; needs 0 to {V - 1}")


def linear_logprob(hidden, weight, targets, *, temperature: float = 1.0, impl: str = "auto"):
    """(logp, lse, entropy), each (N,) float32, of softmax(hidden @ weight.T / temperature) at `targets`,
    differentiable.

    hidden (N, D) and weight (V, D) of one dtype: float32, float16, bfloat16 (float64: torch path, float64 results);
    targets (N,) int64 or int32. Pass only the rows that are scored and only the words that exist, weight[:vocab_size].
    Under autocast both are taken to its dtype. Products run in the inputs' dtype (on a CPU without 16-bit arithmetic in
    float32), softmax statistics always in float32. lse and entropy are those of the logits divided by the temperature.

    logp = z_y - lse, lse = log sum_v exp z_v, entropy = lse - sum_v p_v z_v with z = hidden @ weight.T / temperature.
    Moved: hidden once per vocabulary tile and weight once per block of rows, twice (forward, recomputation), against 12
    N V bytes for logits, log-softmax and gradient of the naive path. Saved for the backward: the inputs, lse and
    entropy; no (N, V) tensor, except that a problem of at most 2**23 logits (a small world) keeps its exponentials on
    the torch path (32 MB in float32, and at most as much again in tiles). There is no second derivative. float16 needs
    the usual loss scaling: upstream gradients below about 1e-4 underflow.
    impl: "auto" | "triton" | "torch" (see kernels/dispatch.py). Raises ValueError for shapes, dtypes, temperature <= 0
    and, on CPU, targets outside the vocabulary; on a GPU such a row's log-prob and gradients are NaN, without a host
    sync.
    """
    hidden, weight = to_autocast(hidden, weight)
    check_logprob(hidden, weight, targets, temperature)
    function = _TritonLogprob if choose_impl(impl, hidden) == "triton" else _TorchLogprob
    return function.apply(hidden, weight, targets.long().contiguous(), temperature)
