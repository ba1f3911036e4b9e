"""Causal attention with an online softmax: the (T, T) scores live tile by tile in registers and never in memory.

For each row b and head h, with scale = 1 / sqrt(D) and keys first[b, t]..t visible to query t,

    s[t, n] = scale <q[t], k[n]>,   p[t, n] = exp(s[t, n]) / sum_n' exp(s[t, n']),   o[t] = sum_n p[t, n] v[n]

and o[t] = 0 where no key is visible. `first` (B, T) int32, non-decreasing along T, is the one mask: with first[b, t] =
pads it is left padding, with first[b, t] = start of t's document it is packing; right padding needs nothing, since
causality hides what comes later. `shared` (B,) adds keys 0..shared[b] - 1: a row is then one prompt and several
completions, each with its own start in `first`, and all see the prompt. Head h of q reads head h // (H / H_kv) of k, v.

Forward (Dao et al. 2022): walk the keys in blocks and keep, a query, the maximum m_i, the sum l_i = sum exp(s - m_i)
and the unnormalised acc = sum exp(s - m_i) v; a new maximum rescales both by exp(m_old - m_new). Then o = acc / l_i and
lse = m_i + log l_i, the only thing saved for the backward besides the inputs and o: 4 T bytes a head against 4 T^2.

Backward: p = exp(s - lse) is recomputed. With upstream g = d loss / d o and delta[t] = <g[t], o[t]>,

    dv[n] = sum_t p[t, n] g[t]                     ds[t, n] = p[t, n] (<g[t], v[n]> - delta[t])
    dq[t] = scale sum_n ds[t, n] k[n]              dk[n]    = scale sum_t ds[t, n] q[t]

(delta is what the softmax's normalisation takes back: sum_n p[t, n] <g[t], v[n]> = <g[t], o[t]>.) One kernel walks the
queries of a key block for dk and dv, summing the heads that share it; another walks the keys of a query block for dq.

attention_triton.py has the kernels (log-sum-exps there in base 2, here in base e), attention_torch.py the definition
without tiles, and the path for tensors that the kernels do not take.
"""

import torch
from torch.autograd.function import once_differentiable

from kernels.attention_torch import attention_torch
from kernels.attention_triton import attention_delta, attention_dkdv, attention_dq, attention_forward
from kernels.dispatch import check_devices, choose_impl, target_of, to_autocast
from kernels.tiles import HEAD_SIZES, attention_tiles


def _dense(x):
    """The kernels take any strides but that of the head size, which is 1."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _forward(q, k, v, first, shared):
    """o and lse, by the kernels."""
    if q.numel() == 0:
        return torch.empty(q.shape, dtype=q.dtype, device=q.device), q.new_empty(q.shape[:3], dtype=torch.float32)
    q, k, v = map(_dense, (q, k, v))
    return attention_forward(q, k, v, first, shared, attention_tiles(target_of(q), q.shape[3], q.dtype)[0])


def _backward(g, q, k, v, o, lse, first, shared):
    """dq, dk, dv, by the kernels."""
    if q.numel() == 0:
        return tuple(x.new_zeros(x.shape) for x in (q, k, v))
    g, q, k, v = map(_dense, (g, q, k, v))
    _, dkdv, dq = attention_tiles(target_of(q), q.shape[3], q.dtype)
    delta = attention_delta(o, g)
    dk, dv = attention_dkdv(q, k, v, first, shared, g, lse, delta, dkdv)
    return attention_dq(q, k, v, first, shared, g, lse, delta, dq), dk, dv


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, first, shared):
        o, lse = _forward(q, k, v, first, shared)
        ctx.save_for_backward(q, k, v, o, lse, first, shared)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return *_backward(g, *ctx.saved_tensors), None, None


# ---------------------------------------------------------------- operators, which torch.compile does not look into
Maybe = torch.Tensor | None


@torch.library.custom_op("kernels::attention", mutates_args=())
def _operator(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: Maybe, shared: Maybe
) -> tuple[torch.Tensor, torch.Tensor]:
    return _forward(q, k, v, first, shared)


@_operator.register_fake
def _(q, k, v, first, shared):
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("kernels::attention_backward", mutates_args=())
def _backward_operator(
    g: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    first: Maybe,
    shared: Maybe,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _backward(g, q, k, v, o, lse, first, shared)


@_backward_operator.register_fake
def _(g, q, k, v, o, lse, first, shared):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx, inputs, output):
    q, k, v, first, shared = inputs
    ctx.save_for_backward(q, k, v, *output, first, shared)


def _gradient(ctx, g, _):
    return *torch.ops.kernels.attention_backward(g, *ctx.saved_tensors), None, None


_operator.register_autograd(_gradient, setup_context=_keep)


def check_attention(q, k, v, first, shared) -> None:
    """One sentence for every input that has no answer."""
    check_devices("attention", q=q, k=k, v=v, first=first, shared=shared)
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
        look = first.device.type == "cpu" and not torch.compiler.is_compiling()
        if look and bool((first[:, 1:] < first[:, :-1]).any()):
            raise ValueError("attention: `first` decreases along T; a row's documents must follow each other")
    if shared is not None and (first is None or shared.shape != q.shape[:1] or shared.dtype != torch.int32):
        got = f"{tuple(shared.shape)} {shared.dtype}" + (" without `first`" if first is None else "")
        raise ValueError(f"attention: got shared {got}; needs (B,) int32 beside `first`")


def attention(q, k, v, *, first=None, shared=None, impl: str = "auto"):
    """softmax(q k^T / sqrt(D)) v over the keys that each query t of row b sees, first[b, t]..t and, where given, those
    of 0..shared[b] - 1 that are not later than t: (B, H, T, D) in q's dtype.

    q (B, H, T, D), k and v (B, H_kv, T, D), H a multiple of H_kv; float32 (ieee products), float16 or bfloat16 with
    float32 accumulation (under autocast: its dtype). D is 32, 64 or 128 for Triton, anything for torch. first (B, T)
    int32, non-decreasing along T: None sees all earlier keys, a range without keys gives 0. shared (B,) int32, for
    rows [prompt | completion | completion ...]: the prompt's length, first being each completion's start. Any strides.

    Triton moves q, o once, k, v once per block of queries, and saves for the backward inputs, o and one float32 a query
    (the log-sum-exp), B H T 4 bytes against B H T^2 of a naive softmax. The torch path: see attention_torch.py.
    impl: "auto" | "triton" | "torch" (see kernels/dispatch.py). Raises ValueError for shapes, dtypes and (on CPU, where
    looking is free) a decreasing `first`; on a GPU a decreasing `first` is still computed as the definition says.
    """
    q, k, v = to_autocast(q, k, v)
    check_attention(q, k, v, first, shared)
    D = q.shape[3]
    unsupported = None if D in HEAD_SIZES else f"got head size {D}, the attention kernel takes 32, 64 and 128"
    if choose_impl(impl, q, unsupported) == "torch":
        return attention_torch(q, k, v, first, shared)
    first, shared = (None if x is None else x.contiguous() for x in (first, shared))
    if torch.compiler.is_compiling():
        return torch.ops.kernels.attention(q, k, v, first, shared)[0]
    return _TritonAttention.apply(q, k, v, first, shared)
