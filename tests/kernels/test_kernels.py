"""Kernels against float64 references, their gradients, their masks and their complaints.

    pytest -q tests/kernels/test_kernels.py  the torch paths
    TRITON_INTERPRET=1 KERNELS_IMPL=triton pytest -q tests/kernels/test_kernels.py  the Triton kernels, interpreted
    KERNELS_IMPL=triton pytest -q tests/kernels/test_kernels.py  the Triton kernels on a GPU, bfloat16 too

`pytest -q tests` runs the second (or, with a GPU, the third) in a process of its own, from test_kernels_static.py.
"""

import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import attention as attention_file
from kernels import attention_torch as attention_torch_file
from kernels import dispatch
from kernels import logprob as logprob_file
from kernels.attention import attention
from kernels.attention_torch import attention_reference
from kernels.decode import decode_attention, prefix_tail_attention_reference, prefix_tail_attention_torch
from kernels.logprob import linear_logprob, linear_logprob_reference

IMPL = os.environ.get("KERNELS_IMPL", "torch")
DEVICE = "cuda" if IMPL == "triton" and not dispatch.interpreted() else "cpu"
# Largest error over the largest true value. bfloat16 keeps 8 bits; the interpreter computes it wrongly.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
TOLERANCE |= {} if dispatch.interpreted() else {torch.bfloat16: 1.6e-2}
GUARD = 512  # NaNs on both sides of every buffer
triton_only = pytest.mark.skipif(IMPL != "triton", reason="a property of the Triton path")
torch_only = pytest.mark.skipif(IMPL != "torch", reason="a property of the torch path")


def guarded(values: torch.Tensor) -> torch.Tensor:
    """The same values, with NaN before and after them in memory: a read outside shows in the result."""
    buffer = torch.full((values.numel() + 2 * GUARD,), float("nan"), dtype=values.dtype, device=values.device)
    view = buffer[GUARD:-GUARD].view(values.shape)
    return view.copy_(values)


def random(*shape, dtype=torch.float32, scale=1.0):
    return guarded((torch.randn(shape) * scale).to(DEVICE, dtype))


@pytest.fixture
def poison(monkeypatch):
    """Buffers that kernels allocate come full of NaN and NaN-guarded; afterwards nothing was written outside them."""
    buffers, empty = [], torch.empty

    def poisoned(*shape, **options):
        out = empty(*shape, **options)
        if not out.is_floating_point():
            return out
        buffer = torch.full((out.numel() + 2 * GUARD,), float("nan"), dtype=out.dtype, device=out.device)
        buffers.append(buffer)
        return buffer[GUARD:-GUARD].view(out.shape)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda x: poisoned(x.shape, dtype=x.dtype, device=x.device))
    yield
    monkeypatch.undo()
    for buffer in buffers:
        assert buffer[:GUARD].isnan().all() and buffer[-GUARD:].isnan().all(), "a kernel wrote outside its buffer"


def assert_close(got, want, dtype, what):
    assert got.shape == want.shape, f"{what}: {got.shape} against {want.shape}"
    assert got.isfinite().all(), f"{what}: not finite, so an element was never written or a guard was read"
    error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1)
    assert error <= TOLERANCE[dtype], f"{what}: relative error {error:.1e}"


def make_first(mode, B, T):
    """None, left padding of another width in each row, or documents of 23 tokens."""
    if mode is None:
        return None
    t = torch.arange(T, dtype=torch.int32, device=DEVICE)
    return (t // 23 * 23).expand(B, T) if mode == "packed" else (3 + 60 * t[:B, None] % T).expand(B, T).contiguous()


def any_first(T, generator):
    """A random non-decreasing mask of two rows; where first[b, t] = t + 1, query t sees nothing."""
    first = torch.randint(0, T + 2, (2, T), generator=generator, dtype=torch.int32).sort(1).values
    return torch.minimum(first, torch.arange(T) + 1).int().to(DEVICE)


def check_attention(q, k, v, first, dtype):
    """Output and all three gradients against float64, for a random upstream gradient."""
    g = random(*q.shape, dtype=dtype)
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attention(*inputs, first=first, impl=IMPL)
    out.backward(g)
    true = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = attention_reference(*true, first)
    want.backward(g.double())
    assert out.dtype == dtype
    assert_close(out.detach(), want.detach(), dtype, "output")
    for name, x, y in zip("qkv", inputs, true, strict=True):
        assert_close(x.grad, y.grad, dtype, f"gradient of {name}")
    return out.detach(), [x.grad for x in inputs]


# ---------------------------------------------------------------- attention
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "B, H, H_kv, T, D, mode",
    [
        (2, 2, 2, 1, 32, None),
        (2, 2, 1, 17, 32, "padded"),
        (1, 1, 1, 64, 64, "packed"),
        (1, 4, 2, 100, 32, "packed"),
        (2, 1, 1, 129, 32, "padded"),
        (1, 1, 1, 129, 128, None),
    ],
)
def test_attention_matches_float64(poison, dtype, B, H, H_kv, T, D, mode):
    torch.manual_seed(T)
    q, k, v = (random(B, T, h, D, dtype=dtype).transpose(1, 2) for h in (H, H_kv, H_kv))  # a model's strides
    check_attention(q, k, v, make_first(mode, B, T), dtype)


def test_attention_random_shapes(poison):
    """Odd sizes and masks that no list foresaw: any non-decreasing `first`, empty ranges included."""
    generator = torch.Generator().manual_seed(5)
    pick = lambda low, high: int(torch.randint(low, high + 1, (), generator=generator))  # noqa: E731
    for _ in range(4):
        T, H_kv, R = pick(1, 70), pick(1, 2), pick(1, 3)
        q, k, v = (random(2, h, T, 32) for h in (H_kv * R, H_kv, H_kv))
        check_attention(q, k, v, any_first(T, generator), torch.float32)


def test_attention_of_one_key_and_of_none(poison):
    """By hand: a query that sees only itself returns its value; one that sees nothing returns 0, without gradient."""
    T = 37
    q, k, v = (random(1, 1, T, 32) for _ in range(3))
    t = torch.arange(T, dtype=torch.int32, device=DEVICE)[None]
    out, _ = check_attention(q, k, v, t, torch.float32)
    assert torch.allclose(out, v, rtol=1e-6)
    out, grads = check_attention(q, k, v, t.clamp(min=5), torch.float32)  # the first five see nothing
    assert out[:, :, :5].eq(0).all() and all(g[:, :, :5].eq(0).all() for g in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_with_scores_of_1e4(poison, dtype):
    """Scores of +-1e4 (exact in both dtypes) overflow any softmax that does not subtract its maximum."""
    sign = lambda: torch.randint(0, 2, (1, 1, 49, 64), device=DEVICE, dtype=dtype) * 2 - 1  # noqa: E731
    q, k, v = guarded(sign() * 40), guarded(sign() * 32), random(1, 1, 49, 64, dtype=dtype)  # q . k / 8 up to 10,240
    q, k = (torch.cat((x[..., :32].abs(), x[..., 32:]), -1) for x in (q, k))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out = attention(*inputs, impl=IMPL)
    out.sum().backward()
    want = attention_reference(*(x.detach().double() for x in inputs))
    assert all(x.grad.isfinite().all() for x in inputs)
    assert (out.detach().double() - want).abs().max() < 2e-2  # a score of 1e4 is known to 1e-3 in float32


def test_attention_gradient_by_finite_differences():
    """Not our formula against our formula: the change of the loss along a random direction."""
    torch.manual_seed(0)
    first = torch.tensor([[0, 0, 0, 3, 3, 3, 3]], dtype=torch.int32, device=DEVICE)
    x = [random(1, h, 7, 32).requires_grad_() for h in (2, 1, 1)]
    weights, step = random(1, 2, 7, 32), [random(1, h, 7, 32) for h in (2, 1, 1)]
    loss = lambda sign: (  # noqa: E731
        attention(*(a.detach() + sign * 1e-2 * d for a, d in zip(x, step, strict=True)), first=first, impl=IMPL)
        * weights
    ).sum()
    (attention(*x, first=first, impl=IMPL) * weights).sum().backward()
    slope = sum((a.grad * d).sum() for a, d in zip(x, step, strict=True))
    assert torch.isclose((loss(1) - loss(-1)) / 2e-2, slope, rtol=1e-2)


def test_attention_takes_any_strides():
    q = random(2, 2, 32, 19).transpose(2, 3)  # last axis not contiguous
    k, v = random(19, 2, 2, 32).permute(2, 1, 0, 3), random(1, 2, 19, 32).expand(2, 2, 19, 32)
    check_attention(q, k, v, None, torch.float32)


@torch_only
@pytest.mark.parametrize("T", [1, 17, 64, 100, 129, 640])
@pytest.mark.parametrize("mode", ["padded", "packed", "any"])
def test_attention_by_blocks(T, mode):
    """What a CPU trains with: at and around its blocks of 64 queries, grouped heads, a model's strides."""
    generator = torch.Generator().manual_seed(T)
    first = any_first(T, generator) if mode == "any" else make_first(mode, 2, T)
    q, k, v = (random(2, T, h, 16).transpose(1, 2) for h in (4, 2, 2))
    check_attention(q, k, v, first, torch.float32)


@torch_only
def test_attention_by_blocks_by_finite_differences(monkeypatch):
    """Every entry of every gradient, in float64; row 1 has queries without keys, and a negative start counts as 0."""
    monkeypatch.setattr(attention_torch_file, "BLOCK", 3)
    first = torch.tensor([[-2, -1, 0, 3, 3, 5, 5], [2, 2, 2, 2, 2**31 - 1, 2**31 - 1, 2**31 - 1]], dtype=torch.int32)
    inputs = [torch.randn(2, h, 7, 4, dtype=torch.float64, requires_grad=True) for h in (2, 1, 1)]
    assert torch.autograd.gradcheck(lambda *x: attention(*x, first=first, impl="torch"), inputs)
    assert torch.allclose(attention(*inputs, first=first, impl="torch"), attention_reference(*inputs, first))


@torch_only
def test_attention_by_blocks_under_autocast_and_twice():
    """Autocast rounds the inputs and nothing after, even with the backward inside it; a second run gives equal bits."""
    x, g = [torch.randn(2, 2, 100, 32, requires_grad=True) for _ in "qkv"], torch.randn(2, 2, 100, 32).bfloat16()
    first = make_first("packed", 2, 100)
    results = []
    for autocast in (True, True, False):
        inputs = x if autocast else [a.detach().bfloat16().requires_grad_() for a in x]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = attention(*inputs, first=first, impl="torch")
            results.append([out, *(a.float() for a in torch.autograd.grad(out, inputs, g))])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


@triton_only
def test_attention_saves_one_number_a_query():
    q, k, v = (random(1, 2, 128, 32).requires_grad_() for _ in range(3))
    saved = attention(q, k, v, impl=IMPL).grad_fn.saved_tensors
    assert sorted(x.numel() for x in saved if x is not None) == [2 * 128] + [2 * 128 * 32] * 4  # lse; q, k, v, o


def test_last_query_of_a_key_block():
    """By hand, blocks of 2 keys: documents 0-2 and 3-4, so keys 0, 1 are last seen by query 2, key 3 by query 4."""
    first = torch.tensor([[0, 0, 0, 3, 3], [2, 2, 2, 2, 2]], dtype=torch.int32)
    assert attention_file._last_query(first, 2).tolist() == [[3, 5, 5], [0, 5, 5]]


# ---------------------------------------------------------------- log-prob
def logprob_case(N, V, D, dtype, scale=1.0):
    hidden, weight = random(N, D, dtype=dtype), random(V, D, dtype=dtype, scale=scale * D**-0.5)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(V, (N,), device=DEVICE)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kept", [True, False], ids=["one-chunk", "chunks"])
@pytest.mark.parametrize("N, V, D, temperature", [(1, 97, 16, 1.0), (17, 131, 24, 0.7), (70, 301, 64, 1.3)])
def test_logprob_matches_float64(poison, monkeypatch, dtype, kept, N, V, D, temperature):
    """All three outputs and both gradients, with another upstream gradient for every row and output."""
    torch.manual_seed(N)
    if not kept:
        monkeypatch.setattr(logprob_file, "CHUNK", 0)
        monkeypatch.setattr(logprob_file, "CPU_TILE", (16, 64))
        monkeypatch.setattr(logprob_file, "SPLITS", 1)  # one program walks all tiles, so its running sums are rescaled
        monkeypatch.setattr(logprob_file, "GPU_CHUNK", 0)
    hidden, weight, targets = logprob_case(N, V, D, dtype)
    upstream = [torch.randn(N, device=DEVICE) for _ in range(3)]
    outputs = linear_logprob(hidden, weight, targets, temperature=temperature, impl=IMPL)
    sum((o * g).sum() for o, g in zip(outputs, upstream, strict=True)).backward()
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    want = linear_logprob_reference(h, w, targets, temperature)
    sum((o * g.double()).sum() for o, g in zip(want, upstream, strict=True)).backward()
    for name, o, true in zip(("logp", "lse", "entropy"), outputs, want, strict=True):
        assert o.dtype == torch.float32
        assert_close(o.detach(), true.detach(), dtype, name)
    assert_close(hidden.grad, h.grad, dtype, "gradient of hidden")
    assert_close(weight.grad, w.grad, dtype, "gradient of weight")


@pytest.mark.parametrize("kept", [True, False], ids=["one-chunk", "chunks"])
def test_logprob_against_linear_cross_entropy(monkeypatch, kept):
    """A second oracle, torch's own: cross-entropy is minus our mean, per row and in its gradients."""
    if not kept:
        monkeypatch.setattr(logprob_file, "CHUNK", 0)
    hidden, weight, targets = logprob_case(33, 211, 32, torch.float32)
    rows = torch.rand(33, device=DEVICE)
    want = F.linear_cross_entropy(hidden, weight, targets, reduction="none")
    true = torch.autograd.grad((want * rows).sum(), (hidden, weight))
    logp, _, _ = linear_logprob(hidden, weight, targets, impl=IMPL)
    got = torch.autograd.grad(-(logp * rows).sum(), (hidden, weight))
    assert torch.allclose(-logp, want, rtol=1e-5, atol=1e-6)
    for a, b in zip(got, true, strict=True):
        assert_close(a, b.double(), torch.float32, "gradient")


def test_logprob_of_a_uniform_head():
    """By hand: equal logits over 8 words give log 1/8, log-sum-exp and entropy log 8, and z-loss gradient 2 lse p."""
    hidden, weight = torch.ones(3, 16, device=DEVICE), torch.zeros(8, 16, device=DEVICE, requires_grad=True)
    logp, lse, entropy = linear_logprob(hidden, weight, torch.tensor([0, 3, 7], device=DEVICE), impl=IMPL)
    log8 = torch.full((3,), 8.0, device=DEVICE).log()
    assert torch.allclose(logp, -log8) and torch.allclose(lse, log8) and torch.allclose(entropy, log8)
    (lse**2).sum().backward()
    assert torch.allclose(weight.grad, torch.full_like(weight, 3 * 2 * float(log8[0]) / 8))


def test_logprob_with_logits_of_1e4(poison):
    hidden, weight, targets = logprob_case(9, 150, 32, torch.float32, scale=5000.0)
    outputs = linear_logprob(hidden, weight, targets, impl=IMPL)
    sum(o.sum() for o in outputs).backward()
    want = linear_logprob_reference(hidden.detach().double(), weight.detach().double(), targets)
    assert want[1].abs().max() > 1e4
    assert_close(outputs[0].detach(), want[0], torch.float32, "logp")
    assert_close(outputs[1].detach(), want[1], torch.float32, "lse")
    assert outputs[2].min() >= -1e-6 and hidden.grad.isfinite().all() and weight.grad.isfinite().all()


def test_logprob_gradient_by_finite_differences(monkeypatch):
    monkeypatch.setattr(logprob_file, "CHUNK", 0)
    hidden, weight, targets = logprob_case(5, 40, 16, torch.float32)
    mix, step = torch.randn(3, 5, device=DEVICE), (random(5, 16), random(40, 16))
    loss = lambda h, w: (torch.stack(linear_logprob(h, w, targets, temperature=0.8, impl=IMPL)) * mix).sum()  # noqa: E731
    grads = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    with torch.no_grad():
        up, down = (loss(hidden + s * step[0], weight + s * step[1]) for s in (1e-2, -1e-2))
    assert torch.isclose((up - down) / 2e-2, sum((g * d).sum() for g, d in zip(grads, step, strict=True)), rtol=1e-2)


def test_logprob_holds_no_logits(monkeypatch):
    """No operation, forward or backward, returns half as many elements as the (N, V) logits have."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = out if isinstance(out, tuple | list) else (out,)
            self.size = max([self.size, *(x.untyped_storage().nbytes() // 4 for x in tensors if torch.is_tensor(x))])
            return out

    monkeypatch.setattr(logprob_file, "CHUNK", 0)
    monkeypatch.setattr(logprob_file, "GPU_CHUNK", 0)
    monkeypatch.setattr(logprob_file, "CPU_TILE", (32, 256))
    N, V = 64, 2500
    hidden, weight, targets = (x.detach() for x in logprob_case(N, V, 8, torch.float32))
    hidden, weight = hidden.contiguous().requires_grad_(), weight.contiguous().requires_grad_()
    with Largest() as largest:
        sum(o.sum() for o in linear_logprob(hidden, weight, targets, impl=IMPL)).backward()
    assert V * 8 <= largest.size < N * V / 2  # the gradient of weight is the least there can be


def test_logprob_marks_targets_outside_the_vocabulary():
    """What a GPU does instead of raising: NaN for that row, nothing else touched. (Called below the CPU's check.)"""
    hidden, weight, targets = logprob_case(4, 20, 16, torch.float32)
    function = logprob_file._TritonLogprob if IMPL == "triton" else logprob_file._TorchLogprob
    good = function.apply(hidden, weight, targets, 1.0)[0]
    for bad in (-1, 20):
        wrong = targets.clone()
        wrong[2] = bad
        logp, lse, _ = function.apply(hidden, weight, wrong, 1.0)
        assert logp.isnan().tolist() == [False, False, True, False] and lse.isfinite().all()
        assert torch.equal(logp[[0, 1, 3]], good[[0, 1, 3]])
        (d_hidden,) = torch.autograd.grad(logp.sum(), hidden)
        assert d_hidden.isnan().any(1).tolist() == [False, False, True, False]


# ---------------------------------------------------------------- decoding
LENGTHS = [
    dict(),
    dict(prefix_lengths=torch.tensor([40, 5, 2]), tail_lengths=torch.arange(1, 16)),
    dict(tail_lengths=4),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", LENGTHS, ids=["full", "ragged", "number"])
def test_decode_matches_float64(poison, dtype, lengths):
    P, G, H, H_kv, Tp, Tt, D = 3, 5, 4, 2, 40, 37, 32
    q = random(P * G, H, D, dtype=dtype)
    prefix = [random(P, Tp, H_kv, D, dtype=dtype).transpose(1, 2) for _ in "kv"]
    tail = [random(P * G, H_kv, 64, D, dtype=dtype)[:, :, :Tt] for _ in "kv"]
    first = torch.tensor([0, 4, 3], dtype=torch.int32, device=DEVICE)  # with prefix_lengths[2] = 2: prompt 2 has no key
    lengths = {name: x.to(DEVICE) if torch.is_tensor(x) else x for name, x in lengths.items()}
    out = decode_attention(q, *prefix, first, *tail, group_size=G, impl=IMPL, **lengths)
    double = [x.double() for x in (q[:, :, None], *prefix, *tail)]
    want = prefix_tail_attention_reference(*double[:3], first, *double[3:], group_size=G, **lengths)[:, :, 0]
    assert_close(out, want, dtype, "output")


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_decode_of_the_rows_that_are_left(poison, dtype):
    """Seven of 2 x 5 samples, shuffled, and a padding row in the seat of another: each as in the full grid."""
    P, G, H, H_kv, Tp, Tt, D = 2, 5, 4, 2, 24, 19, 32
    seat_of = torch.tensor([9, 0, 4, 6, 2, 5, 1, 1], device=DEVICE)
    row_of = torch.zeros(P * G, dtype=torch.long, device=DEVICE)
    row_of[seat_of[:7]] = torch.arange(7, device=DEVICE)
    grid, tails = random(P * G, H, D, dtype=dtype), [random(P * G, H_kv, Tt, D, dtype=dtype) for _ in "kv"]
    prefix = [random(P, H_kv, Tp, D, dtype=dtype) for _ in "kv"]
    first = torch.tensor([3, 0], dtype=torch.int32, device=DEVICE)
    same = dict(group_size=G, tail_lengths=17, impl=IMPL)
    full = decode_attention(grid, *prefix, first, *tails, **same)
    left = [x[seat_of] for x in (grid, *tails)]
    out = decode_attention(left[0], *prefix, first, *left[1:], seats=(seat_of, row_of), **same)
    assert_close(out, full[seat_of].double(), dtype, "rows that are left")
    with pytest.raises(ValueError, match="seats"):
        decode_attention(left[0], *prefix, first, *left[1:], seats=(seat_of, row_of[:-1]), **same)


def test_decode_without_any_key_is_zero():
    q, prefix, tail = random(2, 2, 32), random(2, 2, 8, 32), random(2, 2, 8, 32)
    nothing = torch.tensor([8, 0], dtype=torch.int32, device=DEVICE)
    lengths = dict(prefix_lengths=torch.tensor([8, 1], device=DEVICE), tail_lengths=0)
    out = decode_attention(q, prefix, prefix, nothing, tail, tail, group_size=1, impl=IMPL, **lengths)
    assert out[0].eq(0).all() and torch.allclose(out[1], prefix[1, :, 0])  # one key: its value


@pytest.mark.parametrize("tail_lengths", [None, 5, torch.tensor([3, 4, 5, 6, 7, 3])])
def test_reading_several_tokens_after_a_shared_prefix(tail_lengths):
    """The engine's other use of the same arithmetic: causal among the new tokens, all see the prefix."""
    P, G, H, H_kv, Tq = 2, 3, 4, 2, 3
    q, prefix, tail = torch.randn(P * G, H, Tq, 32), torch.randn(2, P, H_kv, 9, 32), torch.randn(2, P * G, H_kv, 7, 32)
    out = prefix_tail_attention_torch(q, *prefix, None, *tail, group_size=G, tail_lengths=tail_lengths)
    want = prefix_tail_attention_reference(q, *prefix, None, *tail, group_size=G, tail_lengths=tail_lengths)
    assert torch.allclose(out, want, atol=1e-6)
    if tail_lengths is None:  # and it is plain causal attention over [prefix | tail]
        k, v = (torch.cat((p.repeat_interleave(G, 0), t), 2) for p, t in zip(prefix, tail, strict=True))
        whole = attention(torch.cat((torch.zeros(P * G, H, 13, 32), q), 2), k, v)[:, :, -Tq:]
        assert torch.allclose(out, whole, atol=1e-6)


# ---------------------------------------------------------------- autocast, choice of implementation, bad input
def test_autocast_rounds_inputs_and_keeps_gradients_in_float32():
    q, k, v = (torch.randn(2, 2, 17, 32, device=DEVICE, requires_grad=True) for _ in range(3))
    hidden, weight, targets = logprob_case(17, 97, 32, torch.float32)
    kind = torch.float16 if dispatch.interpreted() else torch.bfloat16
    with torch.autocast(DEVICE, dtype=kind):
        out = attention(q, k, v, impl=IMPL)
        logp, lse, entropy = linear_logprob(hidden, weight, targets, impl=IMPL)
    (out.float().sum() + logp.sum()).backward()
    assert out.dtype == kind and logp.dtype == lse.dtype == entropy.dtype == torch.float32
    assert torch.allclose(out.float(), attention_reference(q, k, v), atol=3e-2)
    assert torch.allclose(logp, linear_logprob_reference(hidden, weight, targets)[0], atol=5e-2)
    for x in (q, k, v, hidden, weight):
        assert x.grad.dtype == torch.float32 and x.grad.abs().max() > 0


def test_bad_shapes_and_values_say_so():
    q, hidden, weight, y = torch.ones(1, 2, 4, 32), torch.ones(3, 8), torch.ones(5, 8), torch.tensor([0, 1, 2])
    kv = torch.ones(1, 1, 4, 32)
    int32 = lambda rows: torch.tensor(rows, dtype=torch.int32)  # noqa: E731
    decode = lambda *x, i: decode_attention(q[:, :, 0], *x, group_size=1, impl=i)  # noqa: E731
    cases = [
        ("needs q", lambda i: attention(q, kv[:, :, :3], kv[:, :, :3], impl=i)),
        ("no multiple of", lambda i: attention(q, torch.ones(1, 3, 4, 32), torch.ones(1, 3, 4, 32), impl=i)),
        ("one floating dtype", lambda i: attention(q, kv.half(), kv, impl=i)),
        ("one floating dtype", lambda i: attention(q.int(), kv.int(), kv.int(), impl=i)),
        ("decreases", lambda i: attention(q, kv, kv, first=int32([[0, 2, 1, 3]]), impl=i)),
        ("int32", lambda i: attention(q, kv, kv, first=torch.zeros(1, 4), impl=i)),
        ("int32", lambda i: attention(q, kv, kv, first=int32([[0, 0, 0]]), impl=i)),
        ("needs .N, D", lambda i: linear_logprob(hidden, weight[:, :4], y, impl=i)),
        ("one floating dtype", lambda i: linear_logprob(hidden, weight.half(), y, impl=i)),
        ("0 to 4", lambda i: linear_logprob(hidden, weight, torch.tensor([0, 1, 5]), impl=i)),
        ("0 to 4", lambda i: linear_logprob(hidden, weight, torch.tensor([0, 1, -100]), impl=i)),
        ("integer targets", lambda i: linear_logprob(hidden, weight, y.float(), impl=i)),
        ("above 0", lambda i: linear_logprob(hidden, weight, y, temperature=0.0, impl=i)),
        ("above 0", lambda i: linear_logprob(hidden, weight, y, temperature=-1.0, impl=i)),
        ("above 0", lambda i: linear_logprob(hidden, weight, y, temperature=float("nan"), impl=i)),
        ("needs q", lambda i: decode(kv, kv, None, kv.expand(2, -1, -1, -1), kv, i=i)),
        ("one floating dtype", lambda i: decode(kv.half(), kv.half(), None, kv, kv, i=i)),
        ("impl 'cuda'", lambda i: attention(q, kv, kv, impl="cuda")),
    ]
    for sentence, call in cases:
        for impl in ("auto", IMPL):
            with pytest.raises(ValueError, match=sentence):
                call(impl)


@pytest.mark.parametrize(
    "D, dtype, reason", [(48, torch.float32, "head size 48|needs a GPU"), (32, torch.float64, "float64|needs a GPU")]
)
def test_auto_computes_what_the_kernels_cannot(D, dtype, reason):
    """Head size 48 and float64 have no kernel: auto takes torch and is right; triton says why it cannot."""
    q, k, v = (torch.randn(2, 2, 9, D, dtype=dtype) for _ in range(3))
    words, y = torch.randn(30, D, dtype=torch.float64), torch.arange(9)  # any width will do for the log-prob
    one, cache = q[:, :, 0], (k, v, None, v, k)
    calls = [
        (lambda i: attention(q, k, v, impl=i), attention_reference(q, k, v)),
        (lambda i: linear_logprob(words[:9], words, y, impl=i)[0], linear_logprob_reference(words[:9], words, y)[0]),
        (
            lambda i: decode_attention(one, *cache, group_size=1, impl=i),
            prefix_tail_attention_reference(q[:, :, :1], *cache, group_size=1)[:, :, 0],
        ),
    ]
    for call, want in calls:
        assert torch.allclose(call("auto"), want, atol=1e-5)
        with pytest.raises(RuntimeError, match=f"{reason}|float64"):
            call("triton")


@pytest.fixture
def on_device():
    """New tensors go where the kernels run."""
    torch.manual_seed(0)
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device("cpu")


@pytest.mark.parametrize("gap", [0, 40])
def test_attention_with_first_at_the_largest_integer(on_device, gap):
    """INT_MAX says "no key"; behind `gap` ordinary queries too."""
    q, k, v = (torch.randn(2, 2, 70, 32) for i in range(3))
    first = torch.full((2, 70), 2**31 - 1, dtype=torch.int32)
    first[:, :gap] = 0
    out = attention(q, k, v, first=first, impl=IMPL)
    torch.testing.assert_close(out[:, :, :gap], attention_reference(q, k, v, first)[:, :, :gap], atol=1e-5, rtol=1e-5)
    assert out[:, :, gap:].eq(0).all()


def test_logprob_of_strided_targets(on_device):
    h, w = torch.randn(40, 16), torch.randn(300, 16)
    y = torch.randint(300, (80,))[::2]
    torch.testing.assert_close(
        linear_logprob(h, w, y, impl=IMPL)[0], linear_logprob_reference(h, w, y)[0], atol=1e-5, rtol=1e-5
    )


def test_logprob_of_no_rows(on_device):
    h, w = torch.zeros(0, 16, requires_grad=True), torch.randn(30, 16, requires_grad=True)
    out = linear_logprob(h, w, torch.zeros(0, dtype=torch.long), impl=IMPL)
    sum(x.sum() for x in out).backward()
    assert all(x.shape == (0,) for x in out) and h.grad.shape == (0, 16) and w.grad.eq(0).all()


def test_a_second_derivative_through_the_upstream_raises(on_device):
    h, w, a = torch.randn(4, 32, requires_grad=True), torch.randn(9, 32), torch.ones(4, requires_grad=True)
    logp = (a * linear_logprob(h, w, torch.tensor([1, 2, 3, 4]), impl=IMPL)[0]).sum()
    (g,) = torch.autograd.grad(logp, h, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.square().sum().backward()


def test_decode_lengths_past_the_cache_read_nothing_there(on_device):
    """Lengths beyond a cache count as its end, a negative start as 0; the caches lie in larger, poisoned buffers."""
    huge = lambda *shape: torch.full(shape, 1e30)  # noqa: E731
    buffers = [huge(2, 2, 12, 32), huge(2, 2, 12, 32), huge(4, 2, 9, 32), huge(4, 2, 9, 32)]
    cut = [b[:, :, 2 : 2 + n] for b, n in zip(buffers, (7, 7, 5, 5), strict=True)]
    for c in cut:
        c.copy_(torch.randn(c.shape))
    q = torch.randn(4, 2, 32)
    want = decode_attention(q, *cut[:2], None, *cut[2:], group_size=2, impl="torch")
    start, stop, tail = torch.tensor([-2, -1]), torch.tensor([9, 8]), torch.tensor([7, 6, 9, 8])
    if IMPL == "triton":
        got = decode_attention(
            q, *cut[:2], start, *cut[2:], group_size=2, prefix_lengths=stop, tail_lengths=tail, impl=IMPL
        )
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="tail_lengths"):
        decode_attention(q, *cut[:2], None, *cut[2:], group_size=2, tail_lengths=tail[:3], impl=IMPL)
    none = decode_attention(q[:0], *(c[:0] for c in cut[:2]), None, *(c[:0] for c in cut[2:]), group_size=2, impl=IMPL)
    assert none.shape == (0, 2, 32)


@pytest.mark.skipif(dispatch.interpreted() or dispatch.triton is None, reason="needs compiled Triton")
def test_triton_on_a_cpu_tensor_names_the_reason():
    q, kv, words = torch.ones(1, 1, 32), torch.ones(1, 1, 4, 32), torch.ones(5, 8)
    for call in (
        lambda: attention(kv, kv, kv, impl="triton"),
        lambda: linear_logprob(words[:3], words, torch.tensor([0, 1, 2]), impl="triton"),
        lambda: decode_attention(q, kv, kv, None, kv, kv, group_size=1, impl="triton"),
        lambda: dispatch.describe("triton", "cpu"),
    ):
        with pytest.raises(RuntimeError, match="got a cpu tensor, Triton needs a GPU"):
            call()


def test_the_header_says_which_kernels_and_why(monkeypatch):
    for found, why in ((False, "no GPU"), (True, "on the CPU")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert dispatch.describe("auto", "cpu") == f"torch ({why})"
    assert dispatch.describe("torch", "cpu") == "torch (asked for)"


@pytest.mark.skipif(dispatch.interpreted() or dispatch.triton is None, reason="needs compiled Triton")
def test_a_gpu_older_than_the_tiles_takes_torch(monkeypatch):
    tensor = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for capability, want in (((7, 5), "torch"), ((8, 0), "triton"), ((12, 0), "triton")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert dispatch.choose_impl("auto", tensor) == want


@pytest.mark.skipif(not dispatch.interpreted(), reason="needs TRITON_INTERPRET=1")
def test_interpreter_refuses_bfloat16_and_auto_stays_with_torch():
    q = torch.randn(1, 1, 4, 32, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="bfloat16"):
        attention(q, q, q, impl="triton")
    assert (
        dispatch.choose_impl("auto", torch.ones(1)) == "torch"
        and dispatch.choose_impl("triton", torch.ones(1)) == "triton"
    )
