"""The sampler: distribution, log-probs, what samples may not depend on.   pytest -q tests/test_generate.py"""

import math

import pytest
import torch
from tiny import BYTES, EOT, bigram_model, chain_table, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from common import UserError
from data.math_qa import StopStrings
from kernels import cache
from sample import check_logits, inverse_cdf, sample_tokens, uniform_noise

NEVER = 256  # as eos_id: the tiny models rarely say it
GROUPED = dict(post_norm=True, qk_norm=True, tied=False, n_kv_head=1)


def prompts_of(*lengths, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return [[EOT, *torch.randint(256, (n - 1,), generator=gen).tolist()] for n in lengths]


def same_rollout(a, b, rows=slice(None), bitwise=False):
    """Tokens, lengths and flags of rollout a are those of `rows` of b; log-probs too, to rounding or bit for bit."""
    L = a.tokens.shape[1]
    assert torch.equal(a.tokens, b.tokens[rows, :L]) and torch.equal(a.lengths, b.lengths[rows])
    assert torch.equal(a.finished, b.finished[rows])
    if a.logprobs is not None:
        close = 0.0 if bitwise else 1e-5
        torch.testing.assert_close(a.logprobs, b.logprobs[rows, :L], atol=close, rtol=close)


# ---------------------------------------------------------------- log-probs and caches are right
@pytest.mark.parametrize("variant", [{}, GROUPED], ids=["pre-norm", "post-norm, grouped"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_the_training_ones(variant, temperature):
    """Rows of unequal prompts, ending at different times, scored again by the training forward."""
    model = tiny_model(1, **variant)
    prompts, G = prompts_of(1, 5, 18, 3), 5
    eos = list(range(0, 257, 6))  # ends a row after 6 tokens on average: rows and whole prompts leave the batch
    out = model.generate(
        prompts, n_samples=G, max_new_tokens=40, eos_id=eos, temperature=temperature, return_logprobs=True
    )
    assert len(set(out.lengths.tolist())) > 5 and out.tokens.shape == (20, int(out.lengths.max()))
    rows = [p for p in prompts for _ in range(G)]
    scored, _, mask = model.completion_logprobs(rows, out.completions(), temperature)
    torch.testing.assert_close(out.logprobs[mask], scored[mask], atol=2e-4, rtol=2e-5)
    assert scored[mask].std() > 0.5 and out.tokens[~mask].eq(0).all() and out.logprobs[~mask].eq(0).all()


def test_lengths_and_finished_flags():
    """A row ends with its first end-of-text, which counts; a row without one is cut and not finished."""
    model, eos = tiny_model(2), list(range(0, 257, 9))
    out = model.generate(prompts_of(4, 9), n_samples=16, max_new_tokens=12, eos_id=eos)
    assert 0 < int(out.finished.sum()) < 32
    for row, n, finished in zip(out.completions(), out.lengths.tolist(), out.finished.tolist(), strict=True):
        assert len(row) == n and not set(row[:-1]) & set(eos)
        assert finished == (row[-1] in eos) and (finished or n == 12)


def test_shared_prefix_equals_whole_prompts():
    model = tiny_model(3, **GROUPED)
    prefix, prompts = prompts_of(21)[0], [p[1:] for p in prompts_of(2, 14, 7, seed=1)]
    settings = dict(n_samples=6, max_new_tokens=20, eos_id=NEVER, seed=4, return_logprobs=True)
    shared = model.generate(prompts, prefix=prefix, **settings)
    whole = model.generate([prefix + p for p in prompts], **settings)
    assert torch.equal(shared.tokens, whole.tokens) and torch.equal(shared.lengths, whole.lengths)
    torch.testing.assert_close(shared.logprobs, whole.logprobs, atol=2e-4, rtol=2e-5)


# ---------------------------------------------------------------- what samples may not depend on
@pytest.mark.parametrize("G", [1, 3, 20])
@pytest.mark.parametrize("prefix", [[], prompts_of(19)[0]], ids=["no prefix", "prefix"])
def test_samples_do_not_depend_on_the_batch(G, prefix):
    """Each question alone, in pairs, in fours, all together, in any order: the same tokens, ends and flags."""
    model = tiny_model(4)
    prompts = [p[1:] for p in prompts_of(2, 30, 9, 6, 17, 4, seed=2)]
    eos = list(range(0, 257, 12))
    settings = dict(n_samples=G, max_new_tokens=30, eos_id=eos, seed=7, prefix=prefix, return_logprobs=True)
    together = model.generate(prompts, question_ids=list(range(6)), **settings)
    for size in (1, 2, 4):  # prompts per batch
        for i in range(0, 6, size):
            some = model.generate(prompts[i : i + size], question_ids=list(range(6))[i : i + size], **settings)
            same_rollout(some, together, slice(i * G, (i + size) * G))
    order = [3, 0, 5]  # the question, not its place in the batch, names the draw
    shuffled = model.generate([prompts[i] for i in order], question_ids=order, **settings)
    same_rollout(shuffled, together, [i * G + g for i in order for g in range(G)])


def test_log_probs_are_bitwise_batch_free():
    """At one cache width the row count is the only thing that a batch changes, and padding to 16 rows hides it."""
    model, prompts = tiny_model(4), prompts_of(3, 30, 10, 7, 18, 5, seed=2)
    settings = dict(n_samples=3, max_new_tokens=12, eos_id=NEVER, seed=7, return_logprobs=True)
    together = model.generate(prompts, **settings)
    for i in range(6):
        alone = model.generate(prompts[i : i + 1], question_ids=[i], **settings)
        same_rollout(alone, together, slice(3 * i, 3 * i + 3), bitwise=True)


def test_samples_do_not_depend_on_the_number_of_samples():
    model, prompts = tiny_model(5), prompts_of(5, 11)
    settings = dict(max_new_tokens=10, eos_id=NEVER, seed=1)
    many, few = model.generate(prompts, n_samples=20, **settings), model.generate(prompts, n_samples=3, **settings)
    assert torch.equal(few.tokens, many.tokens.view(2, 20, -1)[:, :3].flatten(0, 1))


def test_seed_question_and_sample_change_the_draw():
    model, prompts = tiny_model(5), prompts_of(5) * 2
    settings = dict(n_samples=8, max_new_tokens=8, eos_id=NEVER)
    one = model.generate(prompts, seed=1, **settings)
    same_rollout(model.generate(prompts, seed=1, **settings), one)
    rows = {tuple(r) for r in one.tokens.tolist()}
    other = {tuple(r) for r in model.generate(prompts, seed=2, **settings).tokens.tolist()}
    assert len(rows) == len(other) == 16 and not rows & other  # two questions of one text, 8 samples: all differ


def test_global_generator_is_left_alone():
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    tiny = tiny_model(0)
    torch.manual_seed(3)
    tiny.generate(prompts_of(3), n_samples=2, max_new_tokens=3, eos_id=NEVER)
    assert torch.equal(torch.rand(4), want)


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored(training):
    model = tiny_model().train(training)
    model.generate(prompts_of(3), n_samples=1, max_new_tokens=2, eos_id=NEVER)
    model.continuation_logprobs([[1]], [[[2]]])
    assert model.training is training and not any(p.grad is not None for p in model.parameters())


# ---------------------------------------------------------------- the distribution
def test_uniform_noise_is_uniform_and_without_pattern():
    """16 bins over questions, samples and positions, each axis by itself: chi-square with 15 degrees stays under its
    99.99 % point, 44.3. Neighbours do not correlate."""
    n = 4096
    zeros, ramp = torch.zeros(n, dtype=torch.long), torch.arange(n)
    by_position, by_question = uniform_noise(5, zeros[:1], zeros[:1], 512)[:, 0], uniform_noise(5, ramp, zeros, 1)[0]
    by_sample, by_both = uniform_noise(5, zeros, ramp, 10)[9], uniform_noise(2**40, ramp, ramp, 4)[3]
    for u in (by_question, by_sample, by_both, by_position):
        assert u.dtype == torch.float32 and 0 <= float(u.min()) and float(u.max()) < 1
        counts = torch.histc(u, 16, 0, 1)
        assert float(((counts - len(u) / 16) ** 2 / (len(u) / 16)).sum()) < 44.3
        a, b = u[1:] - u.mean(), u[:-1] - u.mean()
        assert abs(float((a * b).mean() / u.var())) < 4 / math.sqrt(len(u))
    assert len(torch.cat([uniform_noise(s, ramp, zeros, 2) for s in (0, 1)]).unique()) > 4 * n - 16


def test_inverse_cdf_by_hand():
    probs = torch.tensor([[0.25, 0.0, 0.5, 0.25, 0.0]]).expand(7, 5)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999, 1 - 2**-24])
    drawn = inverse_cdf(probs, u).tolist()
    assert drawn == [0, 0, 2, 2, 3, 3, 3]  # ids of no mass are never drawn, at the ends neither
    gen = torch.Generator().manual_seed(0)
    flat = torch.rand(1, 1000, generator=gen)
    flat[:, 900:] = 0  # rounding in the running sum must not push the last u into the empty tail
    assert int(inverse_cdf(flat, torch.tensor([1 - 2**-24]))) < 900


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_follow_the_softmax(temperature):
    """Chi-square of 4,000 first tokens over 12 ids against softmax(logits / T); 99.99 % point at 11 degrees: 37.4."""
    torch.manual_seed(1)
    table = torch.randn(12, 12)
    model = bigram_model(table)
    out = model.generate([[0]], n_samples=4000, max_new_tokens=1, eos_id=11, temperature=temperature, seed=3)
    expected = 4000 * (table[0] / temperature).softmax(-1)
    counts = torch.bincount(out.tokens[:, 0], minlength=12)
    assert float(((counts - expected) ** 2 / expected).sum()) < 37.4
    wrong = 4000 * (table[0] / temperature * 1.3).softmax(-1)
    assert float(((counts - wrong) ** 2 / wrong).sum()) > 37.4  # the test can tell


def test_later_tokens_follow_the_row_of_the_token_before():
    torch.manual_seed(2)
    table = torch.randn(5, 5)
    model = bigram_model(table)
    tokens = model.generate([[0], [3]], n_samples=600, max_new_tokens=6, eos_id=99, seed=0).tokens
    counts = torch.zeros(5, 5)
    counts.index_put_((tokens[:, :-1].flatten(), tokens[:, 1:].flatten()), torch.ones(1200 * 5), accumulate=True)
    expected = counts.sum(1, keepdim=True) * table.softmax(-1)
    assert float(((counts - expected) ** 2 / expected).sum()) < 55  # 20 degrees, 99.99 % point 52.4


def test_greedy():
    model = tiny_model(6)
    prompts = prompts_of(3, 12)
    out = model.generate(prompts, n_samples=2, max_new_tokens=8, eos_id=NEVER, temperature=0)
    for i, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert out.tokens[2 * i].tolist() == out.tokens[2 * i + 1].tolist() == ids[len(prompt) :]


def test_top_p_nucleus_by_hand():
    """0.4, 0.3, 0.2, 0.1 with top-p 0.65: the smallest set whose mass reaches it is {0.4, 0.3}, drawn as 4/7, 3/7."""
    logits = torch.tensor([[0.2, 0.4, 0.1, 0.3]]).log().expand(4000, 4)
    u = torch.arange(4000) / 4000
    drawn = torch.bincount(sample_tokens(logits, u, 1.0, 0.65), minlength=4).tolist()
    assert drawn[0] == drawn[2] == 0 and abs(drawn[1] - 4000 * 4 / 7) <= 1
    for top_p, kept in ((0.35, {1}), (0.45, {1, 3}), (0.75, {1, 3, 0}), (0.95, {0, 1, 2, 3})):
        assert set(sample_tokens(logits, u, 1.0, top_p).tolist()) == kept, top_p
    # temperature comes first: at T = 0.5 the mass is 16, 9, 4, 1 of 30, and two ids hold 25/30
    assert set(sample_tokens(logits, u, 0.5, 0.8).tolist()) == {1, 3}
    assert set(sample_tokens(logits, u, 0.5, 0.85).tolist()) == {0, 1, 3}


def test_top_p_of_flat_rows():
    """200 near-equal ids: the nucleus is wider than the quick path's 64; peaked rows beside them are not changed."""
    V = 200
    weights = 1 + torch.arange(V) / 1000  # id 199 is the likeliest
    flat = (weights / weights.sum()).log()
    peaked = torch.full((V,), -20.0).index_fill_(0, torch.tensor([5, 6]), 0.0)
    logits = torch.stack([flat, peaked]).repeat(3000, 1)
    u = (torch.arange(6000) // 2) / 3000
    drawn = sample_tokens(logits, u, 1.0, 0.9)
    ordered = flat.exp().flip(0)
    n_kept = int((ordered.cumsum(0) - ordered < 0.9).sum())
    assert n_kept > 150 and set(drawn[::2].tolist()) == set(range(V - n_kept, V))
    assert set(drawn[1::2].tolist()) == {5, 6}


def test_top_p_draws_as_a_sort_of_all_ids_would():
    """Rows whose nucleus is one id, a few, some dozens and most, side by side: the same ids for the same noise."""
    torch.manual_seed(0)
    probs = (torch.randn(800, 300) * torch.tensor([30.0, 4.0, 2.0, 0.2]).repeat(200)[:, None]).softmax(-1)
    u, top_p = torch.rand(800), 0.95
    ordered, ids = probs.sort(dim=-1, descending=True)
    kept = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    sizes = (kept > 0).sum(-1)
    assert all(int(((low < sizes) & (sizes <= high)).sum()) > 50 for low, high in ((0, 1), (1, 8), (8, 64), (64, 300)))
    want = ids.gather(1, inverse_cdf(kept, u)[:, None]).squeeze(1)
    assert torch.equal(sample_tokens(probs.log(), u, 1.0, top_p), want)


def test_top_p_in_generate():
    table = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(4, 4)
    out = bigram_model(table).generate([[0], [1, 2]], n_samples=300, max_new_tokens=4, eos_id=9, top_p=0.65)
    counts = torch.bincount(out.tokens.flatten(), minlength=4)
    assert counts[2:].sum() == 0 and abs(int(counts[0]) - 2400 * 4 / 7) < 4 * math.sqrt(2400 * 12 / 49)


# ---------------------------------------------------------------- stopping
def test_stop_strings():
    """A row ends with the token that completes a stop string, also one that spans many tokens; others go on."""
    model = bigram_model(chain_table("bcdef", "a"))
    settings = dict(n_samples=2, max_new_tokens=20, eos_id=EOT)
    out = model.generate([[*b"a"], [*b"d"]], stop=StopStrings(BYTES, ["cd", "zz"]), **settings)
    assert out.completions() == [[*b"bcd"]] * 2 + [[*b"ef", EOT]] * 2 and out.finished.all()
    out = model.generate([[*b"a"]], stop=StopStrings(BYTES, ["db"]), **settings)
    assert out.completions() == [[*b"bcdef", EOT]] * 2


def test_long_stop_strings():
    text = "bcdefghijklmnopqrstuvwxyz01"
    out = bigram_model(chain_table(text + "23456", "a")).generate(
        [[*b"a"]], n_samples=1, max_new_tokens=40, eos_id=EOT, stop=StopStrings(BYTES, [text])
    )
    assert BYTES.decode(out.completions()[0]) == text


def test_prompt_is_no_part_of_a_stop_string():
    model = bigram_model(chain_table("bcdef", "a"))
    out = model.generate([[*b"ab"]], n_samples=1, max_new_tokens=9, eos_id=EOT, stop=StopStrings(BYTES, ["bc"]))
    assert out.completions() == [[*b"cdef", EOT]]


def test_context_overflow_and_its_edge():
    model = tiny_model()
    for prefix, prompt in (([], [1] * 90), ([2] * 80, [1] * 10)):
        out = model.generate([prompt], prefix=prefix, n_samples=1, max_new_tokens=6, eos_id=NEVER)
        assert out.tokens.shape == (1, 6)
        with pytest.raises(UserError, match=r"prompt of 90 tokens \+ 7 new tokens exceeds the context of 96"):
            model.generate([prompt, [3]], prefix=prefix, n_samples=1, max_new_tokens=7, eos_id=NEVER)


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("settings", [{}, dict(temperature=0), dict(top_p=0.9), dict(return_logprobs=True)])
def test_logits_that_are_not_finite_are_refused(value, settings):
    """One weight of a block, or of the embedding of a token that a single prompt holds, or activations that overflow
    though every weight is finite. Id 0, or the last one, would be drawn without a word."""
    one, embedding, overflow = (tiny_model(scale=1.0, tied=False) for _ in range(3))
    with torch.no_grad():
        one.blocks[1].mlp.c_proj.weight[3, 5] = value
        embedding.wte.weight[77] = value
        overflow.norm_f.weight.fill_(3e38)
        overflow.lm_head.weight.mul_(100)
    for model in (one, embedding, overflow):
        model.train()
        with pytest.raises(UserError, match="rows are NaN or infinite.*weights or activations are not finite"):
            model.generate([[1, 2], [3, 77]], n_samples=3, max_new_tokens=4, eos_id=NEVER, **settings)
        with pytest.raises(UserError, match="not finite"):
            model.continuation_logprobs([[1, 2], [3, 77]], [[[5], [6, 7]], [[8]]])
        assert model.training
    embedding.generate([[1, 2]], n_samples=3, max_new_tokens=1, eos_id=NEVER, **settings)  # never reads token 77


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_check_logits(value):
    check_logits(torch.full((4, 300), 3e38))  # finite, though the sum is not
    check_logits(torch.full((4, 300), -3e38))
    logits = torch.randn(4, 300)
    check_logits(logits)
    logits[2, 299] = value
    with pytest.raises(UserError, match="of 1 of 4 rows"):
        check_logits(logits)


@pytest.mark.parametrize(("prompts", "prefix"), [([], []), ([[1], []], []), ([[1], []], [2, 3])])
def test_prompts_without_tokens_are_refused(prompts, prefix):
    with pytest.raises(UserError, match="prompt without tokens"):
        tiny_model().generate(prompts, prefix=prefix, n_samples=1, max_new_tokens=1, eos_id=NEVER)


@pytest.mark.parametrize("prefix", [[], [2]])
@pytest.mark.parametrize("odd", [-1, 97, 127, 10**6])
def test_ids_outside_the_vocabulary_are_refused(odd, prefix):
    """The tables have 128 rows for 97 ids: an id of padding would be read as if it meant something."""
    model = tiny_model(vocab_size=97)
    for prompts, before in (([[1], [3, odd]], prefix), ([[1]], [*prefix, odd])):
        with pytest.raises(UserError, match=f"token {odd} .* 97"):
            model.generate(prompts, prefix=before, n_samples=1, max_new_tokens=1, eos_id=96)


@pytest.mark.parametrize("settings", [dict(temperature=t) for t in (-1, math.nan, math.inf, 1e-40)])
@pytest.mark.parametrize("top_p", [1.0, 0.0, -0.1, 1.1, math.nan])
def test_settings_without_meaning_are_refused(settings, top_p):
    with pytest.raises(UserError, match="give a temperature of 0 .* top-p above 0"):
        tiny_model().generate([[1]], n_samples=1, max_new_tokens=1, eos_id=NEVER, top_p=top_p, **settings)


@pytest.mark.parametrize("settings", [dict(top_p=0.9), dict(temperature=0)])
def test_logprobs_need_the_full_distribution(settings):
    with pytest.raises(UserError, match="full distribution"):
        tiny_model().generate([[1]], n_samples=1, max_new_tokens=1, eos_id=NEVER, return_logprobs=True, **settings)


def test_the_head_is_cast_once_a_rollout():
    """Not once a token: of a 1B model that would move 1.2 GB for each."""

    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.count += func is torch.ops.aten._to_copy.default and out.shape == model.head_weight.shape
            return out

    model = tiny_model(1)
    with Casts() as casts, torch.autocast("cpu", dtype=torch.bfloat16):
        model.generate([[EOT, 1]], n_samples=2, max_new_tokens=4, eos_id=NEVER)
    assert casts.count == 1


def test_steps_of_fixed_shape_give_the_same_samples(monkeypatch):
    """What a CUDA graph replays, here called: rows that leave stay behind the others, and all shrinks at each half."""
    captured = []
    monkeypatch.setattr(cache, "capture_graph", lambda work: captured.append(work) or work)
    model = tiny_model(1, **GROUPED)
    settings = dict(n_samples=20, max_new_tokens=40, eos_id=list(range(0, 257, 6)), return_logprobs=True)
    eager = model.generate(prompts_of(1, 5, 18, 3), **settings)
    model.cuda_graph = True
    replayed = model.generate(prompts_of(1, 5, 18, 3), **settings)
    same_rollout(replayed, eager)
    assert 3 <= len(captured) <= 6 and int(eager.lengths.max()) > 16  # 80 rows, then at most 40, 24 and 16
