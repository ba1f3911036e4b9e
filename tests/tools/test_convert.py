"""Hugging Face folders in and out: bits, shapes, what is refused.   pytest -q tests/tools/test_convert.py

The comparisons with transformers need it; without it they are skipped.
"""

import json

import pytest
import torch
from tiny import assert_same, tiny_model, write_ckpt

from common import UserError
from data.tokenizer import keep, make_encoding
from model import GPT, PRESETS, GPTConfig, load_model
from tools.convert import from_hf, read_model, to_hf
from tools.safetensors import read_tensors, write_tensors

BYTES = keep(make_encoding("bytes", {bytes([b]): b for b in range(256)}))
OLMO2, LLAMA = dict(post_norm=True, qk_norm=True, norm_eps=1e-5), dict(norm_eps=1e-5)
SHAPES = {
    "olmo2": dict(**OLMO2, tied=False, rope_theta=5e5),
    "olmo2-grouped-tied": dict(**OLMO2, n_head=4, n_kv_head=2, n_layer=3),
    "llama-grouped-tied": dict(**LLAMA, n_head=4, n_kv_head=1, rope_theta=1e5),
    "llama": dict(**LLAMA, tied=False, n_layer=3),
}


def exported(folder, **shape):
    """(checkpoint of a random model, the folder it was exported to)."""
    model = tiny_model(**shape)
    ckpt = {"model": model.state_dict(), "model_config": vars(model.config), "tokenizer": BYTES}
    to_hf(ckpt, folder)
    return ckpt, folder


def edit(folder, **changes):
    """Change config.json; None removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_tensors(folder, **changes):
    """Replace tensors of model.safetensors by what the functions make of them (of None where there are none)."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in read_tensors(path).items()}
    for name, change in changes.items():
        name = name.replace("__", ".")
        tensors[name] = change(tensors.get(name))
    write_tensors(path, {name: tensor for name, tensor in tensors.items() if tensor is not None})


@pytest.mark.parametrize("name", SHAPES)
def test_out_and_in_again_is_the_same_model_bit_for_bit(name, tmp_path):
    ckpt, folder = exported(tmp_path / "hf", **SHAPES[name])
    again = from_hf(folder, BYTES)
    assert GPTConfig(**again["model_config"]) == GPTConfig(**ckpt["model_config"])
    for weight, tensor in ckpt["model"].items():
        real = 257 if weight.startswith(("wte", "lm_head")) else len(tensor)
        assert_same(again["model"][weight][:real], tensor[:real], weight)
        assert not again["model"][weight][real:].any()
    to_hf(again, tmp_path / "second")
    for file in ("model.safetensors", "config.json"):
        assert (folder / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_transformers_gives_the_same_logits(name, shard, tmp_path):
    transformers = pytest.importorskip("transformers")
    ckpt, folder = exported(tmp_path / "hf", **SHAPES[name])
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.randint(257, (3, 90), generator=torch.Generator().manual_seed(1))
    ours = GPT(GPTConfig(**ckpt["model_config"]))
    ours.load_state_dict(ckpt["model"])
    with torch.no_grad():
        assert theirs(ids).logits.std() > 0.1
        assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-5
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard)  # as they write it, in one file or many
    assert (tmp_path / "theirs/model.safetensors.index.json").exists() == (shard == "20KB")
    assert_same(from_hf(tmp_path / "theirs", BYTES)["model"], from_hf(folder, BYTES)["model"])


def test_rows_past_the_vocabulary_stay_here(tmp_path):
    ckpt, folder = exported(tmp_path / "hf", **SHAPES["llama"])
    assert ckpt["model"]["wte.weight"].shape == (320, 32)
    tensors = read_tensors(folder / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].shape == tensors["lm_head.weight"].shape == (257, 32)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 257


def test_rows_that_a_published_model_has_past_its_tokenizer_stay(tmp_path):
    """OLMo 2's table has 100,352 rows, its tokenizer 100,278: the softmax is over all of them, there and here."""
    ckpt, folder = exported(tmp_path / "hf", vocab_size=300, **SHAPES["olmo2"])
    again = from_hf(folder, BYTES)
    assert again["model_config"]["vocab_size"] == 300 and BYTES["n_vocab"] == 257
    assert_same(again["model"]["wte.weight"][:300], ckpt["model"]["wte.weight"][:300])


def test_a_tokenizer_that_is_too_large_is_refused(tmp_path):
    _, folder = exported(tmp_path / "hf", **SHAPES["llama"])
    with pytest.raises(UserError, match="tokenizer has 300 tokens, its model 257"):
        from_hf(folder, BYTES | {"n_vocab": 300})


def test_theta_of_either_place(tmp_path):
    _, folder = exported(tmp_path / "hf", **SHAPES["llama-grouped-tied"])
    for keep_key, drop in (("rope_theta", "rope_parameters"), ("rope_parameters", "rope_theta")):
        was = (folder / "config.json").read_text()
        edit(folder, **{drop: None})
        assert keep_key in (folder / "config.json").read_text()
        assert read_model(folder)[0].rope_theta == 1e5
        (folder / "config.json").write_text(was)


REFUSED = {
    "attention_bias": dict(attention_bias=True),
    "mlp_bias": dict(mlp_bias=True),
    "rope scaling": dict(rope_parameters=None, rope_scaling={"rope_type": "llama3", "factor": 8.0}),
    "'yarn'": dict(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
    "'linear'": dict(rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0}),
    "a part of each head": dict(partial_rotary_factor=0.5),
    "'gelu'": dict(hidden_act="gelu"),
    "2 heads of 20 in a width of 32": dict(head_dim=20),
    "model_type 'qwen3'": dict(model_type="qwen3"),
    "'num_hidden_layers' must be int": dict(num_hidden_layers=None),
    "its weights do not fit": dict(intermediate_size=50),
    "no tensor model.layers.3": dict(num_hidden_layers=4),
    "model.layers.2.self_attn.q_proj.weight has no place": dict(num_hidden_layers=2),
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_shape_that_model_py_does_not_have_is_refused(words, tmp_path):
    _, folder = exported(tmp_path / "hf", **SHAPES["llama"])
    edit(folder, **REFUSED[words])
    with pytest.raises(UserError) as error:
        from_hf(folder, BYTES)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_tensors_that_model_py_has_no_place_for_are_refused(tmp_path):
    _, folder = exported(tmp_path / "hf", **SHAPES["olmo2"])
    change_tensors(folder, model__layers__0__self_attn__q_norm__weight=lambda norm: norm[:16])
    with pytest.raises(UserError, match="a norm of each head's q and k has no place"):
        from_hf(folder, BYTES)
    _, folder = exported(tmp_path / "second", **SHAPES["llama"])
    change_tensors(folder, model__layers__0__self_attn__q_proj__bias=lambda _: torch.zeros(32))
    with pytest.raises(UserError, match="q_proj.bias has no place"):
        from_hf(folder, BYTES)


def test_a_missing_shard_is_named(tmp_path):
    _, folder = exported(tmp_path / "hf", **SHAPES["llama"])
    tensors = read_tensors(folder / "model.safetensors")
    parts = {f"model-{i}.safetensors": dict(list(tensors.items())[i::2]) for i in (0, 1)}
    for name, part in parts.items():
        write_tensors(folder / name, part)
    where = {tensor: name for name, part in parts.items() for tensor in part}
    whole = from_hf(folder, BYTES)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert_same(from_hf(folder, BYTES)["model"], whole["model"])
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match="model-1.safetensors: no such file"):
        from_hf(folder, BYTES)
    where["lm_head.weight"] = "../../etc/passwd"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(UserError, match="no name of a file in its own folder"):
        from_hf(folder, BYTES)


LIES = {
    "at bytes 0 to 4096, where there are 128": dict(shape=[32, 32], data_offsets=[0, 4096]),
    "[32] of F32 at bytes 0 to 64": dict(data_offsets=[0, 64]),
    "[-8, -4]": dict(shape=[-8, -4]),
    "-128 to 0": dict(data_offsets=[-128, 0]),
    "[True, 32]": dict(shape=[True, 32]),
    "is of F8_E4M3": dict(dtype="F8_E4M3"),
    "unhashable": dict(dtype=["F32"]),
    "NoneType": dict(shape=None),
}


@pytest.mark.parametrize("words", LIES)
def test_a_header_that_lies_is_refused(words, tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"norm": torch.ones(32)})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    header["norm"] |= LIES[words]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
    with pytest.raises(UserError, match="header") as error:
        read_tensors(path)
    assert words in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 8])
def test_what_is_no_safetensors_file_is_refused(data, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError, match="safetensors file"):
        read_tensors(path)


def test_a_tensor_may_begin_at_any_byte(tmp_path):
    path = tmp_path / "odd.safetensors"
    wanted = {"a": torch.arange(3, dtype=torch.uint8), "b": torch.randn(4, 2), "c": torch.randn(3).bfloat16()}
    write_tensors(path, wanted | {"empty": torch.zeros(0, 3)})
    assert_same(read_tensors(path), wanted | {"empty": torch.zeros(0, 3)})


class Harm:
    def __reduce__(self):
        return print, ("run",)


def test_the_older_form_is_read_and_no_code_in_it_runs(tmp_path, capsys):
    _, folder = exported(tmp_path / "hf", **SHAPES["llama"])
    whole = from_hf(folder, BYTES)
    tensors = {name: tensor.clone() for name, tensor in read_tensors(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights in it"):
        from_hf(folder, BYTES)
    torch.save(tensors, folder / "pytorch_model.bin")
    assert_same(from_hf(folder, BYTES)["model"], whole["model"])
    for harmful in (tensors | {"more": Harm()}, [1]):
        torch.save(harmful, folder / "pytorch_model.bin")
        with pytest.raises(UserError, match="pytorch_model.bin: no"):
            from_hf(folder, BYTES)
    assert "run" not in capsys.readouterr().out


def test_bfloat16(tmp_path):
    ckpt, folder = exported(tmp_path / "hf", **SHAPES["llama"])
    to_hf(ckpt, tmp_path / "half", torch.bfloat16)
    full, half = (read_tensors(path / "model.safetensors") for path in (folder, tmp_path / "half"))
    assert_same({name: tensor.bfloat16() for name, tensor in full.items()}, half)
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    to_hf(from_hf(tmp_path / "half", BYTES), tmp_path / "again", torch.bfloat16)
    assert_same(read_tensors(tmp_path / "again/model.safetensors"), half)


@pytest.mark.parametrize("preset", ["world", "world-4x"])
def test_the_worlds_shape_has_no_class_there(preset, tmp_path):
    ckpt = {"model": {}, "model_config": vars(PRESETS[preset]), "tokenizer": BYTES}
    with pytest.raises(UserError, match="the world's presets are so.*cannot be exported"):
        to_hf(ckpt, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_the_commands(ok, refused, tmp_path):
    path = write_ckpt(tmp_path / "ckpt.pt", tiny_model(**SHAPES["llama"]), tokenizer=BYTES)
    ok("tools.convert", "to-hf", path, "--out", tmp_path / "hf")
    refused("tools.convert", "to-hf", path, "--out", tmp_path / "hf", words=["exists"])
    out = ("--out", tmp_path / "new.pt")
    refused("tools.convert", "from-hf", tmp_path / "hf", *out, words=["tokenizer.json: no such tokenizer"])
    refused("tools.convert", "from-hf", tmp_path / "hf", "--tokens", -1, *out, words=["--tokens -1"])
    ranks = tmp_path / "own.tiktoken"
    ranks.write_text(BYTES["ranks"])
    shown = ok("tools.convert", "from-hf", tmp_path / "hf", "--tokenizer", ranks, "--tokens", 4000, *out).out
    assert "tokenizer own, 257 tokens" in shown
    made = torch.load(tmp_path / "new.pt", weights_only=True)
    assert made["tokens"] == 4000 and made["tokenizer"]["ranks"] == BYTES["ranks"]
    load_model(made, "new.pt")
    (tmp_path / "files").mkdir()
    words = ["no tokenizer.json"]
    files = ("--tokenizer", tmp_path / "files", "--out", tmp_path / "third")
    refused("tools.convert", "to-hf", path, *files, words=words)
    for name in ("tokenizer.json", "merges.txt", "notes.txt"):
        (tmp_path / "files" / name).write_text(name)
    ok("tools.convert", "to-hf", path, *files, "--dtype", "bfloat16")
    assert {p.name for p in (tmp_path / "third").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "merges.txt",
    }
