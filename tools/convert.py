"""Hugging Face checkpoints in and out, exactly: OLMo 2's shape (post-norm, norms on q and k) and Llama's (pre-norm).

    python -m tools.convert from-hf OLMo-2-0425-1B --out runs/olmo2.pt       # then: train_rl.py --init runs/olmo2.pt ..
    python -m tools.convert to-hf runs/rl/ckpt_000048.pt --tokenizer OLMo-2-0425-1B --out runs/rl_hf

Here q, k, v are one matrix, and gate and up are one. Rows of the tables past the vocabulary are ours alone: zeros on
the way in, cut on the way out, where another sampler would draw them.
"""

import argparse
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F

from common import FORMAT, UserError, load_checkpoint, run, save_checkpoint, versions, writable_dir
from data.files import field, inside, read_json, write_json
from data.tokenizer import end_of_text, keep, load_tokenizer
from model import GPTConfig, check_weights
from tools.safetensors import read_tensors, write_tensors
from tools.tokenizer_json import read_tokenizer

NORMS = {  # norm_1 and norm_2 of a block
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "llama": ("input_layernorm", "post_attention_layernorm"),
}
CLASSES = {"olmo2": "Olmo2ForCausalLM", "llama": "LlamaForCausalLM"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
TOKENIZER_FILES += ("chat_template.jinja",)


# ------------------------------------------------------------------------------------------------------- what is where
def names(c: GPTConfig) -> dict[str, list[str]]:
    """Our name of each weight -> theirs: several where ours is theirs, one below the other."""
    norm_1, norm_2 = NORMS["olmo2" if c.post_norm else "llama"]
    block = {
        "attn.c_attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "attn.c_proj": ["self_attn.o_proj"],
        "mlp.c_fc": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.c_proj": ["mlp.down_proj"],
        "norm_1": [norm_1],
        "norm_2": [norm_2],
    }
    if c.qk_norm:
        block |= {"attn.q_norm": ["self_attn.q_norm"], "attn.k_norm": ["self_attn.k_norm"]}
    found = {"wte": ["model.embed_tokens"], "norm_f": ["model.norm"]}
    found |= {} if c.tied else {"lm_head": ["lm_head"]}
    for i in range(c.n_layer):
        found |= {f"blocks.{i}.{a}": [f"model.layers.{i}.{b}" for b in parts] for a, parts in block.items()}
    return {f"{ours}.weight": [f"{part}.weight" for part in parts] for ours, parts in found.items()}


def shape_of(h: dict, tensors: dict, where: Path) -> GPTConfig:
    """The shape that a config.json names; UserError for what model.py has no place for. Defaults are transformers'."""

    def refuse(what: str) -> None:
        raise UserError(f"{where}: {what} has no place in model.py; use a checkpoint without it")

    def get(key: str, kind: type, default=None):
        return default if h.get(key) is None and default is not None else field(h, key, kind, where)

    kind = h.get("model_type")
    if kind not in NORMS:
        raise UserError(f"{where}: model_type {kind!r:.40}: the shapes of olmo2 and llama are read, no others")
    rope = get("rope_parameters", dict, get("rope_scaling", dict, {}))  # transformers 5, 4
    if (scaling := rope.get("rope_type", rope.get("type", "default"))) != "default":
        refuse(f"rope scaling ({scaling!r:.40})")
    if rope.get("partial_rotary_factor", h.get("partial_rotary_factor", 1)) != 1:
        refuse("a rotation of a part of each head")
    for key in ("attention_bias", "mlp_bias"):
        if h.get(key):
            refuse(f"a bias ({key})")
    if (act := h.get("hidden_act", "silu")) != "silu":
        refuse(f"the activation {act!r:.40}")
    width, heads = get("hidden_size", int), get("num_attention_heads", int)
    head_dim = get("head_dim", int, width // max(heads, 1))
    if head_dim * heads != width:
        refuse(f"attention of {heads} heads of {head_dim} in a width of {width}")
    norm = tensors.get("model.layers.0.self_attn.q_norm.weight")
    if norm is not None and norm.numel() == head_dim != width:
        refuse("a norm of each head's q and k")
    return GPTConfig(
        vocab_size=get("vocab_size", int),
        block_size=get("max_position_embeddings", int, 2048),
        n_layer=get("num_hidden_layers", int),
        n_head=heads,
        n_kv_head=get("num_key_value_heads", int, heads),
        n_embd=width,
        n_hidden=get("intermediate_size", int),
        post_norm=kind == "olmo2",
        qk_norm=kind == "olmo2",
        tied=get("tie_word_embeddings", bool, "lm_head.weight" not in tensors),
        rope_theta=float(rope.get("rope_theta") or get("rope_theta", float, 10_000.0)),
        norm_eps=get("rms_norm_eps", float, 1e-5 if kind == "olmo2" else 1e-6),
        init_std=0.02,
    )


def shape_to_hf(c: GPTConfig, dtype: torch.dtype, eot: int) -> dict:
    if c.qk_norm != c.post_norm:
        has = "norms on q and k" if c.qk_norm else "OLMo 2's post-norm"
        lacks = "OLMo 2's post-norm (the world's presets are so)" if c.qk_norm else "norms on q and k"
        raise UserError(f"a model with {has} and without {lacks} has no class in transformers: it cannot be exported")
    kind = "olmo2" if c.post_norm else "llama"
    return {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.block_size,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head,
        "hidden_size": c.n_embd,
        "intermediate_size": c.n_hidden,
        "tie_word_embeddings": c.tied,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,  # transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},  # and 5
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": eot,  # a document begins with it, here
        "eos_token_id": eot,
        "pad_token_id": None,
        "torch_dtype": str(dtype).removeprefix("torch."),  # transformers 4
        "dtype": str(dtype).removeprefix("torch."),
    }


# ----------------------------------------------------------------------------------------------------------------- in
def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, from one file or from shards; safetensors before pytorch_model.bin."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index, files = folder / f"{whole}.index.json", [whole]
        if index.is_file():
            files = sorted(set(map(str, field(read_json(index), "weight_map", dict, index).values())))
        elif not (folder / whole).is_file():
            continue
        tensors = {}
        for path in (inside(folder, name, index) for name in files):
            if not path.is_file():
                raise UserError(f"{path}: no such file, and {index} names it; fetch the missing part")
            tensors |= read_tensors(path) if path.suffix == ".safetensors" else _unpickled(path)
        return tensors
    needed = "model.safetensors or pytorch_model.bin, or their index.json"
    raise UserError(f"{folder}: no weights in it: {needed} is needed; fetch the whole folder")


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load's failures have no common class; each means the same to a user
        raise UserError(f"{path}: no readable weights ({type(error).__name__}); fetch it again") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise UserError(f"{path}: no dictionary of weights; fetch it again")
    return found


def read_model(folder: Path) -> tuple[GPTConfig, dict[str, torch.Tensor]]:
    """(shape, our weights in float32) of a folder with config.json and weights."""
    where = folder / "config.json"
    h, theirs = read_json(where, "model's settings", mend="give a folder that transformers wrote"), read_weights(folder)
    c, weights = shape_of(h, theirs, where), {}
    for ours, parts in names(c).items():
        if missing := [part for part in parts if part not in theirs]:
            raise UserError(f"{folder}: no tensor {missing[0]} in its files; fetch the missing part")
        weights[ours] = torch.cat([theirs.pop(part).float() for part in parts])
    unread = [name for name in theirs if not name.endswith("inv_freq") and (name, c.tied) != ("lm_head.weight", True)]
    if unread:
        raise UserError(f"{folder}: {unread[0]} has no place in model.py; use a checkpoint without it")
    for table in {"wte.weight", "lm_head.weight"} & weights.keys():
        weights[table] = F.pad(weights[table], (0, 0, 0, c.padded_vocab - c.vocab_size))
    weights.setdefault("lm_head.weight", weights["wte.weight"])
    try:
        check_weights(weights, c)
    except RuntimeError as error:
        raise UserError(f"{folder}: its weights do not fit its config.json ({error}); fetch both again") from None
    return c, weights


def from_hf(folder: str | Path, tokenizer: dict | None = None, tokens: int = 0) -> dict:
    """A checkpoint of the model in `folder` and of its tokenizer.json, or of `tokenizer` (data.tokenizer.tokenizer_id
    or keep); tokens: of pre-training, as far as known."""
    folder = Path(folder)
    if tokenizer is None:
        tokenizer = keep(read_tokenizer(folder))
    c, weights = read_model(folder)
    if tokenizer["n_vocab"] > c.vocab_size:
        what = f"its tokenizer has {tokenizer['n_vocab']} tokens, its model {c.vocab_size}"
        raise UserError(f"{folder}: {what}; give the tokenizer that belongs to it")
    made = dict(format=FORMAT, stage="convert", step=0, tokens=tokens, parent=None, versions=versions())
    made |= dict(optimizer=None, rng={}, data={}, config={"from_hf": folder.resolve().name}, metrics={})
    return made | dict(model=weights, model_config=dict(vars(c)), tokenizer=tokenizer)


# ---------------------------------------------------------------------------------------------------------------- out
def to_hf(ckpt: dict, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write model.safetensors and config.json: a folder that has the second is whole."""
    c, folder, theirs = GPTConfig(**ckpt["model_config"]), Path(folder), {}
    config = shape_to_hf(c, dtype, end_of_text(ckpt["tokenizer"]))
    heads, groups = c.n_embd, c.n_kv_head * c.head_dim
    rows = {"attn.c_attn.weight": [heads, groups, groups], "mlp.c_fc.weight": [c.n_hidden] * 2}
    for ours, parts in names(c).items():
        weight = ckpt["model"][ours]
        weight = weight[: c.vocab_size] if ours in ("wte.weight", "lm_head.weight") else weight
        pieces = weight.split(rows[ours.split(".", 2)[2]]) if len(parts) > 1 else [weight]
        theirs |= {part: piece.to(dtype) for part, piece in zip(parts, pieces, strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", theirs)
    write_json(folder / "config.json", config)


# ------------------------------------------------------------------------------------------------------- command line
def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m tools.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ways = p.add_subparsers(dest="way", required=True)
    take = ways.add_parser("from-hf", help="a folder of transformers -> a checkpoint")
    take.add_argument("source", metavar="DIR", help="config.json, weights (.safetensors or .bin), tokenizer.json")
    take.add_argument("--out", required=True, metavar="FILE.pt", help="the new checkpoint")
    take.add_argument("--tokenizer", help="instead of DIR's: gpt2, cl100k_base, a ranks or merges file, a data folder")
    take.add_argument("--tokens", type=int, default=0, help="pre-training tokens behind it, to be recorded")
    give = ways.add_parser("to-hf", help="a checkpoint -> a folder for transformers, vLLM, lm-eval")
    give.add_argument("source", metavar="CKPT", help="a checkpoint of OLMo 2's or Llama's shape")
    give.add_argument("--out", required=True, metavar="DIR", help="the new folder")
    give.add_argument("--tokenizer", metavar="DIR", help="copy the tokenizer's files of this folder")
    give.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights")
    args = p.parse_args()
    out = Path(args.out)
    if out.exists():
        raise UserError(f"--out {out} exists; give a new name")
    if args.way == "from-hf":
        if args.tokens < 0:
            raise UserError(f"--tokens {args.tokens}: a count of at least 0 is needed")
        writable_dir(out.absolute().parent)
        given = keep(load_tokenizer(args.tokenizer)) if args.tokenizer else None
        ckpt = from_hf(args.source, given, args.tokens)
        save_checkpoint(out, ckpt)
        known = ckpt["tokenizer"]
        print(f"tokenizer {known['name']}, {known['n_vocab']:,} tokens, hash {known['hash'][:12]}")
    else:
        files = [Path(args.tokenizer) / name for name in TOKENIZER_FILES] if args.tokenizer else []
        if files and not files[0].is_file():
            raise UserError(f"--tokenizer {args.tokenizer}: no tokenizer.json in it; give a folder that has one")
        to_hf(load_checkpoint(args.source), out, getattr(torch, args.dtype))
        for path in filter(Path.is_file, files):
            shutil.copyfile(path, out / path.name)
        if not files:
            print("note: no tokenizer's files go with it; --tokenizer DIR copies them")
    print(f"saved {out}")


if __name__ == "__main__":
    run(main)
