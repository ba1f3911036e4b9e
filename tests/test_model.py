"""The model against an independent forward pass; padded vocabulary; presets.   pytest -q tests/test_model.py"""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from common import UserError
from kernels.packed import Packed
from model import GPT, PRESETS, GPTConfig, build_model, load_model, outline

ROOT = Path(__file__).resolve().parent.parent
POST = dict(post_norm=True, qk_norm=True, tied=False, n_head=4, n_kv_head=2, rope_theta=500_000.0)
VARIANTS = {"pre-norm": {}, "post-norm": POST, "grouped": dict(n_head=4, n_kv_head=1), "untied": dict(tied=False)}


def test_an_outline_has_names_and_shapes_alone_and_needs_no_compiler():
    """torch._dynamo takes 1 to 3 seconds to import; an evaluation starts without it."""
    config = tiny_model().config
    whole, shapes = GPT(config).state_dict(), outline(config).state_dict()
    assert {k: v.shape for k, v in whole.items()} == {k: v.shape for k, v in shapes.items()}
    assert all(v.is_meta for v in shapes.values())
    code = "import sys, model; model.outline(model.GPTConfig()); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def rms(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turn(x, theta):
    """RoPE of one head (T, D) by complex numbers: pair (i, i + D/2) turns by t * theta^(-2i/D)."""
    T, D = x.shape
    z = torch.complex(x[:, : D // 2], x[:, D // 2 :])
    angle = torch.arange(T, dtype=torch.float64)[:, None] * theta ** (
        -2 * torch.arange(D // 2, dtype=torch.float64) / D
    )
    z = z * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), dim=1)


def plain_forward(model, ids):
    """Logits (T, padded V) of one row, in float64, head by head, from the papers: shares no code with model.py."""
    c, w = model.config, {k: v.double() for k, v in model.state_dict().items()}
    D, H, K = c.n_embd // c.n_head, c.n_head, c.n_kv_head
    x = w["wte.weight"][ids]
    T = len(ids)
    for i in range(c.n_layer):
        p = f"blocks.{i}."

        def attn(x, p=p):
            q, k, v = (x @ w[p + "attn.c_attn.weight"].T).split([H * D, K * D, K * D], dim=1)
            if c.qk_norm:
                q, k = rms(q, w[p + "attn.q_norm.weight"], c.norm_eps), rms(k, w[p + "attn.k_norm.weight"], c.norm_eps)
            heads = []
            for h in range(H):
                g = h // (H // K)  # the key head that query head h reads
                qh, kh = turn(q[:, h * D : (h + 1) * D], c.rope_theta), turn(k[:, g * D : (g + 1) * D], c.rope_theta)
                scores = qh @ kh.T / math.sqrt(D)
                scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
                heads.append(scores.softmax(-1) @ v[:, g * D : (g + 1) * D])
            return torch.cat(heads, dim=1) @ w[p + "attn.c_proj.weight"].T

        def mlp(x, p=p):
            gate, up = (x @ w[p + "mlp.c_fc.weight"].T).split(c.n_hidden, dim=1)
            return (gate * gate.sigmoid() * up) @ w[p + "mlp.c_proj.weight"].T

        n1, n2 = (lambda x, n=p + f"norm_{j}.weight": rms(x, w[n], c.norm_eps) for j in (1, 2))
        if c.post_norm:
            x = x + n1(attn(x))
            x = x + n2(mlp(x))
        else:
            x = x + attn(n1(x))
            x = x + mlp(n2(x))
    head = w["wte.weight"] if c.tied else w["lm_head.weight"]
    return rms(x, w["norm_f.weight"], c.norm_eps) @ head.T


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_is_the_plain_one(variant):
    model = tiny_model(1, vocab_size=97, block_size=32, **VARIANTS[variant])
    idx = torch.randint(97, (2, 17))
    logits = model(idx)
    assert logits.shape == (2, 17, 97)  # the padded rows of the table are no logits
    want = torch.stack([plain_forward(model, row) for row in idx])[..., :97]
    assert want.std() > 0.5  # or the tolerance would hide an error
    torch.testing.assert_close(logits.double(), want, atol=1e-4, rtol=1e-4)
    targets = torch.randint(97, (2, 17))
    nll = -want.log_softmax(-1).gather(2, targets[..., None]).mean()
    torch.testing.assert_close(model(idx, targets).double(), nll, atol=1e-5, rtol=0)


def test_packed_documents_do_not_see_each_other():
    model = tiny_model(2)
    a, b = torch.randint(257, (5,)), torch.randint(257, (7,))
    first = torch.tensor([[0] * 5 + [5] * 7], dtype=torch.int32)
    positions = torch.tensor([[*range(5), *range(7)]])
    packed = model.hidden(torch.cat((a, b))[None], first=first, positions=positions)[0]
    apart = torch.cat((model.hidden(a[None])[0], model.hidden(b[None])[0]))
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-5)


def test_logprobs_match_log_softmax_and_its_gradient():
    model = tiny_model(3, vocab_size=97)
    h = torch.randn(11, 32, requires_grad=True)
    y = torch.randint(97, (11,))
    up = torch.randn(11)
    logp, lse, entropy = model.logprobs(h, y, temperature=0.7, entropy=True)
    (logp * up).sum().backward()
    got_h, got_w = h.grad.clone(), model.wte.weight.grad.clone()
    h.grad = model.wte.weight.grad = None
    z = h @ model.wte.weight[:97].T / 0.7
    want = z.log_softmax(-1)
    (want.gather(1, y[:, None])[:, 0] * up).sum().backward()
    torch.testing.assert_close(logp, want.gather(1, y[:, None])[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, z.logsumexp(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, -(want.exp() * want).sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got_h, h.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got_w, model.wte.weight.grad, atol=1e-5, rtol=1e-4)
    assert got_w[97:].abs().max() == 0  # padded rows learn nothing


def test_completion_logprobs_of_unequal_rows():
    """Each row alone gives what the batch gives; the mask is by length, also where real tokens equal the pad id 0."""
    model = tiny_model(4)
    prompts = [[256, 7], [256, 1, 2, 3, 0], [256]]
    completions = [[0, 0, 256], [5], [9, 256, 0, 0]]  # 0 is the pad's id, 256 is end-of-text, both occur inside
    logprobs, entropy, mask = model.completion_logprobs(prompts, completions, temperature=1.3, entropy=True)
    assert mask.tolist() == [[True] * 3 + [False], [True] + [False] * 3, [True] * 4]
    for i, (p, c) in enumerate(zip(prompts, completions, strict=True)):
        z = plain_forward(model, torch.tensor(p + c))[len(p) - 1 : -1, :257] / 1.3
        want = z.log_softmax(-1)
        got = logprobs[i, : len(c)].double()
        torch.testing.assert_close(got, want[range(len(c)), c], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(entropy[i, : len(c)].double(), -(want.exp() * want).sum(-1), atol=1e-4, rtol=1e-4)
    assert logprobs[~mask].abs().max() == 0 and logprobs.requires_grad and not entropy.requires_grad


GROUPS = (  # (prompts, completions): groups of 3, 1 and 4 with a repeat of the first prompt apart; 1 to 40 tokens; 0s
    [[256, 7, 0]] * 3 + [[256]] + [[256, 7, 0, 0, 9]] * 4 + [[256, 7, 0]] * 2,
    [[0, 0, 256], [5], [0, 0, 8, 1], [4] * 40, [1] * 20, [0], [2, 256], [3, 1, 256], [0, 0, 256], [256]],
)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kernels", [False, True])
def test_shared_prompts_are_read_once_and_change_nothing(variant, kernels, monkeypatch):
    """Log-probs by the independent forward pass, gradients by plain logits row by row; 4 prompts are read, not 10."""
    model, (prompts, completions) = tiny_model(3, **VARIANTS[variant]), GROUPS
    monkeypatch.setattr("model.choose_impl", lambda *_: "triton" if kernels else "torch")  # the layout, not the kernel
    packed = Packed(prompts, completions, model.device, kernels)
    assert packed.shared and len(packed.idx) == 12 + sum(len(c) - 1 for c in completions)
    assert len(packed.shapes) == (1 if kernels else 4)  # completions of up to 16, 32 and 64 tokens apart
    weights = torch.rand(10, 40, generator=torch.Generator().manual_seed(1))
    logprobs, _, mask = model.completion_logprobs(prompts, completions)
    (logprobs * weights).sum().backward()
    got = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    for i, (p, c) in enumerate(zip(prompts, completions, strict=True)):
        exact = plain_forward(model, torch.tensor(p + c))[len(p) - 1 : -1, :257].log_softmax(-1)[range(len(c)), c]
        torch.testing.assert_close(logprobs[i, : len(c)].double(), exact, atol=1e-5, rtol=1e-5)
        plain = model(torch.tensor([p + c]))[0, len(p) - 1 : -1].log_softmax(-1)[range(len(c)), c]
        (plain * weights[i, : len(c)]).sum().backward()
    assert mask.sum() == sum(map(len, completions))
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, atol=2e-6 * float(p.grad.abs().max()) + 1e-7, rtol=1e-4)


def test_few_repeats_are_not_shared():
    """It needs two completions a prompt."""
    prompts = [[256, 1], [256, 1], [256, 2]]
    assert not Packed(prompts, [[1, 2]] * 3, "cpu").shared
    assert Packed(prompts[:2], [[1, 2]] * 2, "cpu").shared


def test_rows_beyond_the_context_are_refused():
    model = tiny_model()
    model.completion_logprobs([[1] * 90], [[1] * 7])
    with pytest.raises(UserError, match="97 tokens exceed the model's context of 96"):
        model.completion_logprobs([[1] * 90], [[1] * 8])


def test_continuation_logprobs():
    """Sums and greediness by the plain forward; contexts and choices of any lengths, order and memory do not matter."""
    model = tiny_model(5, **{**POST, "n_head": 2, "n_kv_head": 1})
    gen = torch.Generator().manual_seed(0)

    def draw(n):
        return torch.randint(257, (n,), generator=gen).tolist()

    contexts = [draw(n) for n in (1, 17, 5, 30)]
    greedy = plain_forward(model, torch.tensor(contexts[1]))[-1, :257].argmax().item()
    choices = [[draw(1), draw(6)], [draw(3), [greedy], draw(2)], [draw(2)], [draw(4), draw(1), draw(2)]]
    got = model.continuation_logprobs(contexts, choices)
    assert [len(row) for row in got] == [2, 3, 1, 3]
    flags = []
    for context, cs, scores in zip(contexts, choices, got, strict=True):
        for c, (logp, is_greedy) in zip(cs, scores, strict=True):
            z = plain_forward(model, torch.tensor(context + c))[len(context) - 1 : -1, :257]
            assert logp == pytest.approx(z.log_softmax(-1)[range(len(c)), c].sum().item(), abs=1e-4)
            assert is_greedy == (z.argmax(-1).tolist() == c)
            flags.append(is_greedy)
    assert flags.count(True) == 1
    again = model.continuation_logprobs(contexts[::-1], choices[::-1], micro_batch_tokens=1)[::-1]
    for a, b in zip(got, again, strict=True):
        assert [s[0] for s in a] == pytest.approx([s[0] for s in b], abs=1e-4)
        assert [s[1] for s in a] == [s[1] for s in b]


def test_padded_rows_are_never_scored():
    """97 ids live in tables of 128 rows: whatever the other 31 hold, nothing changes."""
    model = tiny_model(6, vocab_size=97)
    assert model.wte.weight.shape[0] == 128
    idx, prompts, completions = torch.randint(97, (1, 9)), [[1, 2]], [[3, 4, 5]]

    def everything():
        out = model.generate([[1, 2]], n_samples=20, max_new_tokens=6, eos_id=96, return_logprobs=True)
        scores = model.continuation_logprobs([[1, 2]], [[[3], [4, 5]]])[0]
        scored = model.completion_logprobs(prompts, completions)[0]
        return model(idx), model(idx, idx), scored, out.logprobs, scores, out.tokens

    *before, tokens = everything()
    with torch.no_grad():
        model.wte.weight[97:] = 1e4
    *after, tokens_after = everything()
    assert int(tokens.max()) < 97 and torch.equal(tokens, tokens_after)
    for a, b in zip(before, after, strict=True):
        assert a == b if isinstance(a, list) else torch.equal(a, b)


@pytest.mark.parametrize(("preset", "billions"), [("olmo2-1b", 1.485), ("gpt2", 0.124), ("olmo2-4b", 4.2)])
def test_parameter_counts(preset, billions):
    with torch.device("meta"):
        model = build_model(preset)
    assert model.n_params() / 1e9 == pytest.approx(billions, rel=0.015)
    assert sum(p.numel() for p in model.parameters()) == model.n_params()  # a tied matrix counts once


def test_olmo2_1b_is_the_papers():
    """PROTOCOL of the paper's 1B: every matrix by hand."""
    c = PRESETS["olmo2-1b"]
    with torch.device("meta"):
        model = GPT(c)
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert shapes["wte.weight"] == shapes["lm_head.weight"] == (100_352, 2048)
    assert c.vocab_size == 100_278 and not c.tied
    last = "blocks.15."
    assert shapes[last + "attn.c_attn.weight"] == (3 * 2048, 2048)
    assert shapes[last + "attn.c_proj.weight"] == (2048, 2048)
    assert shapes[last + "mlp.c_fc.weight"] == (2 * 8192, 2048) and shapes[last + "mlp.c_proj.weight"] == (2048, 8192)
    assert shapes[last + "attn.q_norm.weight"] == shapes[last + "attn.k_norm.weight"] == (2048,)
    assert "blocks.16.norm_1.weight" not in shapes and not any(k.endswith("bias") for k in shapes)
    assert (c.rope_theta, c.norm_eps, c.block_size, c.post_norm, c.init_std) == (500_000, 1e-6, 4096, True, 0.02)
    by_hand = 2 * 100_352 * 2048 + 16 * (4 * 2048**2 + 3 * 2048 * 8192 + 4 * 2048) + 2048
    assert model.n_params() == by_hand == 1_484_916_736


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_blocks_give_the_same_gradient(dtype):
    """Bit for bit, of packed documents and of completions that share a prompt, with a third of the memory."""
    model = tiny_model(2, **POST, n_layer=6)
    idx, first = torch.randint(257, (2, 48)), torch.tensor([[0] * 20 + [20] * 28, [0] * 48], dtype=torch.int32)
    rows = [[1, 2, 3], [1, 2, 3], [4, 5]], [[7, 8], [9], [6, 6, 6, 6]]
    found = []
    for model.recompute in (False, True):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.nbytes) or x, lambda x: x):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = model(idx, idx, first) + model.completion_logprobs(*rows)[0].sum()
        loss.backward()
        found.append((sum(kept), loss.detach(), *(p.grad.clone() for p in model.parameters())))
        model.zero_grad()
    assert found[1][0] < found[0][0] / 3
    assert all(torch.equal(a, b) for a, b in zip(found[0][1:], found[1][1:], strict=True))


def test_init_is_truncated_at_three_sigma_and_seeded():
    torch.manual_seed(5)
    model = GPT(GPTConfig(vocab_size=500, n_embd=64, n_head=2, n_layer=1, init_std=0.02))
    w = model.wte.weight
    assert w.std().item() == pytest.approx(0.02, rel=0.05) and 0.05 < w.abs().max().item() <= 0.06
    assert model.lm_head.weight is w and model.blocks[0].norm_1.weight.eq(1).all()
    torch.manual_seed(5)
    assert torch.equal(GPT(model.config).wte.weight, w)


@pytest.mark.parametrize("changes", [dict(n_head=3), dict(n_head=4, n_kv_head=3), dict(n_embd=36, n_head=12)])
def test_shapes_that_do_not_divide(changes):
    with pytest.raises(UserError, match="model shape: width"):
        GPTConfig(**{"n_embd": 32, **changes})


def test_context_overflow():
    model = tiny_model()
    model.hidden(torch.zeros(1, 96, dtype=torch.long))
    with pytest.raises(UserError, match="97 tokens exceed the model's context of 96"):
        model.hidden(torch.zeros(1, 97, dtype=torch.long))


def test_load_model_round_trip_and_damage():
    model = tiny_model(7, **POST)
    ckpt = {"model": model.state_dict(), "model_config": dict(vars(model.config))}
    again = load_model(ckpt, "a.pt")
    idx = torch.randint(257, (1, 9))
    assert torch.equal(again(idx), model(idx))
    for broken in (
        {**ckpt, "model": {k: v for k, v in ckpt["model"].items() if k != "norm_f.weight"}},
        {**ckpt, "model": {**ckpt["model"], "extra": torch.zeros(1)}},
        {**ckpt, "model_config": {**ckpt["model_config"], "n_hidden": 40}},
        {**ckpt, "model_config": {**ckpt["model_config"], "n_wings": 2}},
    ):
        with pytest.raises(UserError, match="^a.pt: its weights do not fit") as error:
            load_model(broken, "a.pt")
        assert "\n" not in str(error.value)
