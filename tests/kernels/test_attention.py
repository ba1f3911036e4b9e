"""Attention against its float64 definition: masks, shapes, gradients, NaN, a GPU's tiles.   Commands: cases.py"""

import pytest
import torch
from cases import DEVICE, HEADS, IMPL, TOLERANCE, assert_close, guarded, random, torch_only, triton_only

from kernels import attention as attention_file
from kernels import attention_torch as attention_torch_file
from kernels.attention import attention
from kernels.attention_torch import attention_reference
from kernels.attention_triton import _query_ranges
from kernels.tiles import attention_tiles


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


def check_attention(q, k, v, first, dtype, shared=None):
    """Output and all three gradients against float64, for a random upstream gradient."""
    g = random(*q.shape, dtype=dtype)
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attention(*inputs, first=first, shared=shared, impl=IMPL)
    out.backward(g)
    true = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = attention_reference(*true, first, shared)
    want.backward(g.double())
    assert out.dtype == dtype
    assert_close(out.detach(), want.detach(), dtype, "output")
    for name, x, y in zip("qkv", inputs, true, strict=True):
        assert_close(x.grad, y.grad, dtype, f"gradient of {name}")
    return out.detach(), [x.grad for x in inputs]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "B, H, H_kv, T, D, mode",
    [
        (2, 1, 1, 1, 32, None),
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

    def pick(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

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

    def sign():
        return torch.randint(0, 2, (1, 1, 49, 64), device=DEVICE, dtype=dtype) * 2 - 1

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

    def loss(sign):
        return (
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


def test_query_ranges_of_a_key_block():
    """By hand, blocks of 2 keys. Row 0, documents 0-2 and 3-4: keys 0, 1 are seen whole by queries 0-2 and by no other;
    keys 2, 3 whole by queries 0-2 (causality apart), in part by 3 and 4. Row 1 sees from key 2 on. Row 2 is not sorted:
    query 1 sees no key of the first block, and query 3 all of it again."""
    first = torch.tensor([[0, 0, 0, 3, 3], [2, 2, 2, 2, 2], [0, 4, 4, 0, 4]], dtype=torch.int32)
    full, stop = _query_ranges(first, None, 2).tolist()
    assert full == [[3, 3, 5], [0, 5, 5], [1, 1, 5]] and stop == [[3, 5, 5], [0, 5, 5], [4, 4, 5]]


@pytest.mark.parametrize("prompt", [1, 20, 64, 65, 90])
def test_attention_with_a_shared_prompt(poison, prompt):
    """Two rows [prompt | completions of 17 tokens]; in the second the prompt is half as long. Pads at its end see only
    the prompt, and a row may share nothing."""
    T, t = 130, torch.arange(130, dtype=torch.int32, device=DEVICE)
    shared = torch.tensor([prompt, prompt // 2], dtype=torch.int32, device=DEVICE)
    own = shared[:, None] + (t - shared[:, None]).div(17, rounding_mode="floor") * 17
    first = torch.where(t < shared[:, None], 0, own).int()
    first[1, 120:] = 2**31 - 1
    H, H_kv = HEADS
    q, k, v = (random(2, T, h, 32).transpose(1, 2) for h in (H, H_kv, H_kv))
    check_attention(q, k, v, first, torch.float32, shared)


# The rows of kernels/tiles.py that differ most: wide and narrow tiles, queries before keys and keys before queries.
@triton_only
@pytest.mark.parametrize("target, D, T", [("sm90", 64, 300), ("sm80", 128, 150), ("gfx942", 64, 200)])
@pytest.mark.parametrize("mode", [None, "packed", "shared"])
def test_attention_with_the_tiles_of_a_gpu(poison, monkeypatch, target, D, T, mode):
    monkeypatch.setattr(attention_file, "target_of", lambda tensor: target)
    monkeypatch.setattr(attention_file, "attention_tiles", lambda t, D, dtype: attention_tiles(t, D, torch.float16))
    B = 2 if mode == "shared" else 1  # rows differ in what they share alone
    q, k, v = (random(B, T, h, D).transpose(1, 2) for h in (2, 1, 1))
    shared = torch.tensor([70, 130], dtype=torch.int32, device=DEVICE) if mode == "shared" else None
    check_attention(q, k, v, make_first("packed" if shared is not None else mode, B, T), torch.float32, shared)


@triton_only
def test_attention_with_an_unsorted_first_on_a_gpu(monkeypatch):
    """Nobody can look at it there without waiting; the result is the definition's all the same."""
    monkeypatch.setattr(attention_file, "check_attention", lambda *inputs: None)
    generator = torch.Generator().manual_seed(1)
    first = torch.minimum(torch.randint(0, 90, (2, 90), generator=generator), torch.arange(90) + 1).int().to(DEVICE)
    q, k, v = (random(2, h, 90, 32) for h in (2, 1, 1))
    check_attention(q, k, v, first, torch.float32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", [None, "packed"])
def test_a_nan_key_gives_nan_rows(bad, mode):
    """NaN in, NaN out: key 3 spoils the queries that see it, in output and gradient; of the kernels no others (torch's
    blocks add their mask, so that there it also spoils those beside it)."""
    q, k, v = (random(1, 1, 40, 32) for _ in range(3))
    k[0, 0, 3] = bad  # inf: scores of both signs, and inf - inf
    first = make_first(mode, 1, 40)
    seen = set(range(3, 40 if mode is None else 23))
    q.requires_grad_()
    out = attention(q, k, v, first=first, impl=IMPL)
    out.sum().backward()
    spoiled, spoiled_gradient = (set(x[0, 0].isnan().any(1).nonzero().flatten().tolist()) for x in (out, q.grad))
    assert seen <= spoiled_gradient and (seen == spoiled if IMPL == "triton" else seen <= spoiled)


@triton_only
def test_a_row_of_scores_of_minus_infinity_is_nan():
    """exp(-inf) / sum exp(-inf) has no value; 0, which torch's own CPU kernel gives, would hide it."""
    q, k, v = -torch.ones(1, 1, 9, 32, device=DEVICE), torch.ones(1, 1, 9, 32, device=DEVICE), random(1, 1, 9, 32)
    k[0, 0] = float("inf")
    assert attention(q, k, v, impl=IMPL).isnan().all()


@pytest.mark.parametrize("gap", [0, 40])
def test_attention_with_first_at_the_largest_integer(on_device, gap):
    """INT_MAX says "no key"; behind `gap` ordinary queries too."""
    q, k, v = (torch.randn(2, 2, 70, 32) for i in range(3))
    first = torch.full((2, 70), 2**31 - 1, dtype=torch.int32)
    first[:, :gap] = 0
    out = attention(q, k, v, first=first, impl=IMPL)
    torch.testing.assert_close(out[:, :, :gap], attention_reference(q, k, v, first)[:, :, :gap], atol=1e-5, rtol=1e-5)
    assert out[:, :, gap:].eq(0).all()
