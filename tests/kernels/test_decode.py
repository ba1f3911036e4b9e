"""Attention over cached prompts and tails against its float64 definition.   Commands: cases.py"""

import pytest
import torch
from cases import DEVICE, IMPL, TOLERANCE, assert_close, random

from kernels.attention import attention
from kernels.cache import PromptCache
from kernels.decode import (
    _softmax_over,
    decode_attention,
    prefix_tail_attention_reference,
    prefix_tail_attention_torch,
)

LENGTHS = [
    dict(),
    dict(prefix_lengths=torch.tensor([40, 5, 2]), tail_lengths=torch.arange(1, 10)),
    dict(tail_lengths=4),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", LENGTHS, ids=["full", "ragged", "number"])
def test_decode_matches_float64(poison, dtype, lengths):
    P, G, H, H_kv, Tp, Tt, D = 3, 3, 4, 2, 40, 37, 32
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


def test_decode_lengths_past_the_cache_read_nothing_there(on_device):
    """Lengths beyond a cache count as its end, a negative start as 0; the caches lie in larger, poisoned buffers."""

    def huge(*shape):
        return torch.full(shape, 1e30)

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


@pytest.mark.parametrize("where", ["prefix", "tail"])
def test_a_nan_key_gives_nan_rows(on_device, where):
    """NaN in, NaN out: of the four samples those of prompt 1, or sample 2 alone."""
    q, prefix, tail = torch.randn(4, 2, 32), torch.randn(2, 2, 2, 9, 32), torch.randn(2, 4, 2, 7, 32)
    if where == "prefix":
        prefix[0, 1, :, 5] = float("nan")
    else:
        tail[0, 2, :, 3] = float("nan")
    out = decode_attention(q, *prefix, None, *tail, group_size=2, impl=IMPL)
    assert out.isnan().all(2).all(1).nonzero().flatten().tolist() == ([2, 3] if where == "prefix" else [2])
    assert out.isfinite().all(2).all(1).sum() == (2 if where == "prefix" else 3)


@pytest.mark.parametrize("seated", [False, True])
def test_keys_that_all_rows_have_in_common(seated):
    """They count as if each prompt began with them, which is also what a cache with copies holds."""
    P, G, H, H_kv = 3, 2, 4, 2
    q, own = torch.randn(P * G, H, 32), [tuple(torch.randn(2, P, H_kv, 9, 32))]
    common, tail = [tuple(torch.randn(2, 1, H_kv, 21, 32))], torch.randn(2, P * G, H_kv, 7, 32)
    cache = PromptCache(own, torch.tensor([9, 4, 1]), common)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    seats = (order, order.argsort()) if seated else None
    settings = dict(group_size=G, seats=seats, tail_lengths=5, impl="torch")
    out = decode_attention(q, *own[0], None, *tail, prefix_lengths=cache.lengths, common=common[0], **settings)
    whole = cache.copied()
    copied = decode_attention(q, *whole.layers[0], None, *tail, prefix_lengths=whole.lengths, **settings)
    back = order.argsort() if seated else torch.arange(P * G)  # the definition takes rows in the order of seats
    keys = (*whole.layers[0], None, *tail[:, back])
    lengths = dict(prefix_lengths=whole.lengths, tail_lengths=5)
    want = prefix_tail_attention_reference(q[back][:, :, None], *keys, group_size=G, **lengths)[:, :, 0]
    torch.testing.assert_close(out[back], want, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(copied[back], want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("keys", [48, 400])
def test_a_query_does_not_depend_on_those_beside_it(keys):
    """Samples are the same whichever prompts are sampled together: bit for bit, in groups of any multiple of 8."""
    q, k, v = torch.randn(1, 2, 1536, 32), *torch.randn(2, 1, 2, keys, 32)
    whole = _softmax_over(q, k, v, None)
    for rows in (8, 16, 24, 40, 64, 72, 136, 256, 520, 1480):
        for part, full in zip(_softmax_over(q[:, :, :rows], k, v, None), whole, strict=True):
            assert torch.equal(part, full[:, :, :rows]), rows
