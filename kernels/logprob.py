"""Per-token log-prob, log-sum-exp and entropy straight from hidden states and head weight, without an (N, V) tensor.

With logits z[n, v] = <hidden[n], weight[v]> / temperature, p = softmax(z) and y = targets:

    lse[n]     = log sum_v exp z[n, v]
    logp[n]    = z[n, y[n]] - lse[n]                   minus its mean is the cross-entropy; lse ** 2 is the z-loss
    entropy[n] = lse[n] - sum_v p[n, v] z[n, v]        only where asked for

The forward walks the vocabulary in tiles and keeps four numbers a row, rescaled whenever the running maximum m_i grows:
m_i, l_i = sum exp(z - m_i), ez = sum exp(z - m_i) (z - m_i), and z at the target. Then lse = m_i + log l_i, entropy =
log l_i - ez / l_i. The sums are taken relative to m_i, so logits of 1e4 cost no digits. Inside the kernels z, m_i and
ez are in base 2 (times log2 e, since GPUs have 2^x); what leaves them, lse and entropy, is in base e.

Gradient. d logp / d z_v = [v = y] - p_v, d lse / d z_v = p_v, d entropy / d z_v = -p_v (z_v - lse + entropy), so for
upstream gradients g_logp, g_lse, g_entropy, each (N,),

    dz[n, v] = g_logp [v = y] + (g_lse - g_logp) p[n, v] - g_entropy p[n, v] (z[n, v] - lse + entropy)
    d_hidden = dz @ weight / temperature,    d_weight = dz.T @ hidden / temperature

which the backward forms one vocabulary chunk at a time into one reused buffer, recomputing z from hidden and weight;
the products with weight and hidden are the library's. Bytes: naive keeps logits, log-softmax and their gradient, 12 N V
at the peak; here N V is never stored: 16 N (forward) and one chunk (backward).

logprob_torch.py has the definition, and the path for tensors that these kernels do not take. The kernels' arguments
stand in rows by kind (fmt: skip), as in attention_triton.py.
"""

import math

import torch
from torch.autograd.function import once_differentiable

from kernels.dispatch import check_devices, choose_impl, on_device, target_of, to_autocast
from kernels.logprob_torch import TorchLogprob, mark_invalid
from kernels.products import linear
from kernels.tiles import LOGPROB_TILES

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

LOG2E = math.log2(math.e)
SPLITS = 16  # of the vocabulary in the forward: 4,096 rows in blocks of 128 alone would leave most of a GPU idle
GROUP = 8  # blocks of rows that take the vocabulary together, see `_row_and_column`
GPU_CHUNK = 2**27  # elements of dz in the backward's buffer: 256 MB in bf16


# ---------------------------------------------------------------- Triton kernels
if triton is not None:

    @triton.jit
    def _row_and_column(rows, columns, GROUP: tl.constexpr):
        """Program -> (row block, column block). GROUP row blocks take all columns before the next GROUP begins: what
        runs at one time reads few hidden states, which stay in L2, while the weight passes by once a group. Row by row
        16k tokens of width 2048 (64 MB) would be read from memory again for every tile of the vocabulary."""
        pid = tl.program_id(0)
        start = pid // (GROUP * columns) * GROUP
        height = tl.minimum(rows - start, GROUP)
        inside = pid % (GROUP * columns)
        return start + inside % height, inside // height

    @triton.jit
    def _logits2_tile(
        h_ptr, w_ptr, rows, cols, N, V, D, stride_hn, stride_hd, stride_wv, stride_wd, scale2,
        BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """One tile of logits / temperature in base 2, (BLOCK_N, BLOCK_V)."""
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
        BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, ENTROPY: tl.constexpr,
        GROUP: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Online sums of BLOCK_N rows over one split of the vocabulary: part (splits, 4, N) = m_i, l_i, z at the
        target, ez (not written without ENTROPY)."""
        block, split = _row_and_column(tl.cdiv(N, BLOCK_N), tl.cdiv(V, split_words), GROUP)
        rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
        y = tl.load(y_ptr + rows, mask=rows < N, other=-1)
        m_i = tl.full([BLOCK_N], -1e30, tl.float32)
        l_i = tl.zeros([BLOCK_N], dtype=tl.float32)
        ez = tl.zeros([BLOCK_N], dtype=tl.float32)
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
            if ENTROPY:
                ez = scale * (ez + step * l_i) + tl.sum(e * z, 1)
            l_i = scale * l_i + tl.sum(e, 1)
            m_i = new_m
        part = part_ptr + (split * 4).to(tl.int64) * N + rows
        tl.store(part, m_i, mask=rows < N)
        tl.store(part + N, l_i, mask=rows < N)
        tl.store(part + 2 * N, zy, mask=rows < N)
        if ENTROPY:
            tl.store(part + 3 * N, ez, mask=rows < N)

    @triton.jit
    def _logprob_bwd(
        h_ptr, w_ptr, y_ptr, lse_ptr, ent_ptr, g_logp_ptr, g_lse_ptr, g_ent_ptr, dz_ptr, v_start, v_stop, N, D,
        stride_hn, stride_hd, stride_wv, stride_wd, stride_dz, scale2, inv_temp,
        BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, ENTROPY: tl.constexpr,
        GROUP: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """One tile of dz / temperature (formula in the file's docstring) for the words v_start..v_stop-1, into dz (N,
        chunk)."""
        block, column = _row_and_column(tl.cdiv(N, BLOCK_N), tl.cdiv(v_stop - v_start, BLOCK_V), GROUP)
        rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
        cols = v_start + column * BLOCK_V + tl.arange(0, BLOCK_V)
        z = _logits2_tile(
            h_ptr, w_ptr, rows, cols, N, v_stop, D, stride_hn, stride_hd, stride_wv, stride_wd, scale2,
            BLOCK_N, BLOCK_V, BLOCK_D, PRECISION,
        )  # fmt: skip
        real = rows < N
        y = tl.load(y_ptr + rows, mask=real, other=-1)
        lse = tl.load(lse_ptr + rows, mask=real, other=0.0)
        g_logp = tl.load(g_logp_ptr + rows, mask=real, other=0.0)
        g_lse = tl.load(g_lse_ptr + rows, mask=real, other=0.0)
        logp2 = z - lse[:, None] * 1.4426950408889634  # log p in base 2: lse came in base e
        dz = tl.exp2(logp2) * (g_lse - g_logp)[:, None]
        if ENTROPY:
            entropy = tl.load(ent_ptr + rows, mask=real, other=0.0)
            g_ent = tl.load(g_ent_ptr + rows, mask=real, other=0.0)
            dz -= tl.exp2(logp2) * g_ent[:, None] * (logp2 * 0.6931471805599453 + entropy[:, None])
        dz += tl.where(cols[None, :] == y[:, None], g_logp[:, None], 0.0)
        out = dz_ptr + rows.to(tl.int64)[:, None] * stride_dz + (cols - v_start)[None, :]
        tl.store(out, (dz * inv_temp).to(dz_ptr.dtype.element_ty), mask=real[:, None] & (cols < v_stop)[None, :])


# ---------------------------------------------------------------- products of 16-bit matrices with float32 sums
def _library_sums_in_float32(x: torch.Tensor) -> bool:
    """Has torch a product of x's 16-bit matrices that is not rounded to 16 bits? Since 2.8, on NVIDIA."""
    has = x.device.type == "cuda" and not torch.version.hip and x.dtype in (torch.float16, torch.bfloat16)
    return has and "dtype_out" in torch.ops.aten.addmm.overloads()


def _add_product(total, a, b) -> None:
    """total += a @ b, total in float32. Where torch has no such product of 16-bit matrices, a @ b is first rounded."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif _library_sums_in_float32(a):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


def float32_logits(hidden, weight):
    """hidden (N, D) @ weight.T (D, V) in float32: sums as the scorer's (`linear_logprob`), where rounded ones would now
    and then give another greatest. On a CPU under autocast torch rounds them."""
    hidden, weight = to_autocast(hidden, weight)
    if not _library_sums_in_float32(hidden):
        return linear(hidden, weight).float()
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)


class _TritonLogprob(torch.autograd.Function):
    @staticmethod
    def setup(hidden, weight, temperature, backward: bool):
        """What both kernels are launched with: the tile, the strides and the constexprs."""
        tile = LOGPROB_TILES[target_of(hidden)][hidden.dtype == torch.float32][backward]
        sizes = dict(BLOCK_N=tile.rows, BLOCK_V=tile.words, BLOCK_D=tile.width, GROUP=GROUP, PRECISION=tile.precision)
        launch = dict(num_warps=tile.warps, num_stages=tile.stages)
        return (*hidden.stride(), *weight.stride()), LOG2E / temperature, sizes, launch

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, entropy):
        (N, D), V = hidden.shape, len(weight)
        strides, scale2, tile, launch = _TritonLogprob.setup(hidden, weight, temperature, backward=False)
        words = triton.cdiv(triton.cdiv(V, SPLITS), tile["BLOCK_V"]) * tile["BLOCK_V"]
        splits = triton.cdiv(V, words)
        part = torch.empty(splits, 4, N, dtype=torch.float32, device=hidden.device)
        if N:
            with on_device(hidden):
                _logprob_fwd[(triton.cdiv(N, tile["BLOCK_N"]) * splits,)](
                    hidden, weight, targets, part, N, V, D, words, *strides, scale2, ENTROPY=entropy, **tile, **launch
                )
        m_i, l_i, zy, ez = part.unbind(1)  # (splits, N) each; join the splits as the kernel joins its tiles
        top = m_i.amax(0)
        scale = (m_i - top).exp2()
        total = (scale * l_i).sum(0)
        log_l = total.log2()
        lse = (top + log_l) / LOG2E
        ent = None
        if entropy:
            ent = (log_l - (scale * (ez + (m_i - top) * l_i)).sum(0) / total) / LOG2E
        ctx.save_for_backward(hidden, weight, targets, lse, ent)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return mark_invalid((zy.sum(0) - top - log_l) / LOG2E, targets, V), lse, ent

    @staticmethod
    @once_differentiable
    def backward(ctx, g_logp, g_lse, g_entropy):
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        (N, D), V = hidden.shape, len(weight)
        strides, scale2, tile, launch = _TritonLogprob.setup(hidden, weight, ctx.temperature, backward=True)
        tile["ENTROPY"] = g_entropy is not None
        g_logp, g_lse = (torch.zeros_like(lse) if g is None else g.contiguous() for g in (g_logp, g_lse))
        g_logp = mark_invalid(g_logp, targets, V)
        entropy, g_entropy = (lse, lse) if g_entropy is None else (entropy, g_entropy.contiguous())  # or never read
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        words = min(V, max(1024, GPU_CHUNK // max(N, 1)))
        dz = torch.empty(N, words, dtype=hidden.dtype, device=hidden.device)
        d_hidden = torch.zeros(N, D, dtype=torch.float32, device=hidden.device) if needs_hidden else None
        d_weight = torch.zeros_like(weight) if needs_weight else None
        for v in range(0, V if N else 0, words):
            stop = min(v + words, V)
            with on_device(hidden):
                _logprob_bwd[(triton.cdiv(N, tile["BLOCK_N"]) * triton.cdiv(stop - v, tile["BLOCK_V"]),)](
                    hidden, weight, targets, lse, entropy, g_logp, g_lse, g_entropy, dz, v, stop, N, D, *strides,
                    dz.stride(0), scale2, 1 / ctx.temperature, **tile, **launch,
                )  # fmt: skip
            chunk = dz[:, : stop - v]
            with torch.autocast(hidden.device.type, enabled=False):
                if needs_hidden:
                    _add_product(d_hidden, chunk, weight[v:stop])
                if needs_weight:
                    torch.mm(chunk.T, hidden, out=d_weight[v:stop])
        return d_hidden.to(hidden.dtype) if needs_hidden else None, d_weight, None, None, None


def check_logprob(hidden, weight, targets, temperature) -> None:
    """One sentence for every input that has no answer."""
    check_devices("linear_logprob", hidden=hidden, weight=weight, targets=targets)
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


def linear_logprob(hidden, weight, targets, *, temperature: float = 1.0, entropy: bool = False, impl: str = "auto"):
    """(logp, lse, entropy), each (N,) float32, of softmax(hidden @ weight.T / temperature) at `targets`,
    differentiable. entropy is None unless asked for: its sums are a pass over the logits of their own.

    hidden (N, D) and weight (V, D) of one dtype: float32, float16, bfloat16 (float64: torch path, float64 results);
    targets (N,) int64 or int32. Pass only the rows that are scored and only the words that exist, weight[:vocab_size].
    Under autocast both are taken to its dtype. Products run in the inputs' dtype (on a CPU without 16-bit arithmetic in
    float32), softmax statistics always in float32. Only gradients that are needed are computed. lse and entropy are
    those of the logits divided by the temperature.

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
    function = _TritonLogprob if choose_impl(impl, hidden) == "triton" else TorchLogprob
    return function.apply(hidden, weight, targets.long().contiguous(), temperature, entropy)
