"""Our model against transformers' Olmo2ForCausalLM: same weights, same logits, log-probs, hidden states and gradients.

    OLMO2_ORACLE=/path/to/folder pytest tests/test_oracle.py

The folder (or each folder in it) holds config.json, model.safetensors, io.safetensors and grads.safetensors as written
from a small Olmo2ForCausalLM with non-trivial norm weights. Its own eager and sdpa attention differ by 3e-6.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from model import GPT, GPTConfig

ROOT = Path(os.environ.get("OLMO2_ORACLE", "/nonexistent"))
FOLDERS = sorted(path.parent for path in [*ROOT.glob("io.safetensors"), *ROOT.glob("*/io.safetensors")])
pytestmark = pytest.mark.skipif(not FOLDERS, reason="OLMO2_ORACLE names no folder with io.safetensors")


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """8 bytes of header length, a JSON header with dtype, shape and byte range of each tensor, then the bytes."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    dtypes = {"F32": torch.float32, "I64": torch.int64}
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            whole = torch.frombuffer(data[start + begin : start + end], dtype=dtypes[entry["dtype"]])
            tensors[name] = whole.reshape(entry["shape"])
    return tensors


def ours_from_olmo2(theirs: dict[str, torch.Tensor], n_layer: int) -> dict[str, torch.Tensor]:
    """Olmo2ForCausalLM's names -> ours. q, k, v and gate, up are stacked into one matrix each."""
    ours = {"wte.weight": theirs["model.embed_tokens.weight"], "norm_f.weight": theirs["model.norm.weight"]}
    ours["lm_head.weight"] = theirs.get("lm_head.weight", ours["wte.weight"])
    for i in range(n_layer):
        there, here = f"model.layers.{i}.", f"blocks.{i}."
        attn, mlp = there + "self_attn.", there + "mlp."
        ours[here + "attn.c_attn.weight"] = torch.cat([theirs[f"{attn}{x}_proj.weight"] for x in "qkv"])
        ours[here + "attn.c_proj.weight"] = theirs[attn + "o_proj.weight"]
        ours[here + "attn.q_norm.weight"] = theirs[attn + "q_norm.weight"]
        ours[here + "attn.k_norm.weight"] = theirs[attn + "k_norm.weight"]
        ours[here + "mlp.c_fc.weight"] = torch.cat([theirs[f"{mlp}{x}_proj.weight"] for x in ("gate", "up")])
        ours[here + "mlp.c_proj.weight"] = theirs[mlp + "down_proj.weight"]
        ours[here + "norm_1.weight"] = theirs[there + "post_attention_layernorm.weight"]
        ours[here + "norm_2.weight"] = theirs[there + "post_feedforward_layernorm.weight"]
    return ours


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def oracle(request):
    """(our model with the oracle's weights, the oracle's io, its gradients under our names)."""
    c = json.loads((request.param / "config.json").read_text())
    model = GPT(
        GPTConfig(
            vocab_size=c["vocab_size"],
            block_size=c["max_position_embeddings"],
            n_layer=c["num_hidden_layers"],
            n_head=c["num_attention_heads"],
            n_kv_head=c["num_key_value_heads"],
            n_embd=c["hidden_size"],
            n_hidden=c["intermediate_size"],
            post_norm=True,
            qk_norm=True,
            tied=c["tie_word_embeddings"],
            rope_theta=c["rope_parameters"]["rope_theta"],
            norm_eps=c["rms_norm_eps"],
            vocab_multiple=1,
        )
    )
    n_layer = c["num_hidden_layers"]
    model.load_state_dict(ours_from_olmo2(read_safetensors(request.param / "model.safetensors"), n_layer))
    grads = ours_from_olmo2(read_safetensors(request.param / "grads.safetensors"), n_layer)
    return model, read_safetensors(request.param / "io.safetensors"), grads


def test_logits(oracle):
    model, io, _ = oracle
    with torch.no_grad():
        assert (model(io["input_ids"]) - io["logits"]).abs().max() < 1e-4


def test_hidden_states(oracle):
    model, io, _ = oracle
    seen = []
    hooks = [
        m.register_forward_hook(lambda module, inputs, out: seen.append(out))
        for m in (model.wte, *model.blocks[:-1], model.norm_f)
    ]
    with torch.no_grad():
        model.hidden(io["input_ids"])
    for hook in hooks:
        hook.remove()
    assert len(seen) == model.config.n_layer + 1
    for i, h in enumerate(seen):
        assert (h - io[f"hidden.{i}"]).abs().max() < 1e-4, f"hidden state {i}"


def test_loss_and_gradients(oracle):
    model, io, grads = oracle
    model.zero_grad()
    ids = io["input_ids"]
    logp = model.logprobs(model.hidden(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())[0]
    assert (logp - io["logp"].flatten()).abs().max() < 1e-4
    (-logp.mean()).backward()
    for name, p in model.named_parameters():
        scale = grads[name].abs().max()
        assert (p.grad - grads[name]).abs().max() < 1e-4 * scale, name


def test_reading_and_sampling_see_the_same_model(oracle):
    """The sampler's greedy token is the argmax of the oracle's logits, and continuations score as the oracle says."""
    model, io, _ = oracle
    ids, half = io["input_ids"].tolist(), io["input_ids"].shape[1] // 2
    out = model.generate([row[:half] for row in ids], n_samples=1, max_new_tokens=1, temperature=0, eos_id=0)
    assert out.tokens[:, 0].tolist() == io["logits"][:, half - 1].argmax(-1).tolist()
    scores = model.continuation_logprobs([row[:half] for row in ids], [[row[half:]] for row in ids])
    for (total, _), row in zip((item[0] for item in scores), io["logp"], strict=True):
        assert total == pytest.approx(float(row[half - 1 :].sum()), abs=1e-3)
