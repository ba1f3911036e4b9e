"""A GGUF file of Llama's shape as a folder of transformers: weights, config.json, tokenizer.json.

Needs the package gguf. Quantised weights are multiplied out: they are what llama.cpp computes with, not what was
quantised.
"""

from pathlib import Path

import torch
from gguf import GGUFReader, dequantize

from data.files import UserError, write_json
from tools.safetensors import write_tensors

TABLES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
SPECIAL = 3  # a token's type
END = "<|endoftext|>"


def write_folder(path: Path, folder: Path) -> dict[str, int]:
    """Write the folder; returns how many tensors there are of each kind of number."""
    reader = GGUFReader(path)
    settings = {name: entry.contents() for name, entry in reader.fields.items() if not name.startswith("GGUF.")}
    kind, parted = settings["general.architecture"], settings["tokenizer.ggml.pre"]
    if (kind, parted) != ("llama", "smollm"):
        raise UserError(f"{path}: of {kind}, its text parted as {parted}: only llama and smollm are read")
    c = {name.removeprefix("llama."): value for name, value in settings.items() if name.startswith("llama.")}
    heads = {"attn_q": c["attention.head_count"], "attn_k": c["attention.head_count_kv"]}
    tensors, kinds = {}, {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, part = name.split(".")
            weight = halves(weight, heads[part]) if part in heads else weight
            tensors[f"model.layers.{layer}.{BLOCK[part]}.weight"] = weight
        else:
            tensors[f"{TABLES[name]}.weight"] = weight
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tensors)
    write_tokenizer(settings, folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(settings["tokenizer.ggml.tokens"]),
        "max_position_embeddings": c["context_length"],
        "num_hidden_layers": c["block_count"],
        "num_attention_heads": heads["attn_q"],
        "num_key_value_heads": heads["attn_k"],
        "hidden_size": c["embedding_length"],
        "intermediate_size": c["feed_forward_length"],
        "rms_norm_eps": round(c["attention.layer_norm_rms_epsilon"], 9),  # a float32 of 1e-5
        "rope_parameters": {"rope_type": "default", "rope_theta": c["rope.freq_base"]},
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "dtype": "float32",
    }
    write_json(folder / "config.json", config)
    return kinds


def halves(weight: torch.Tensor, n_head: int) -> torch.Tensor:
    """Rows of q or k in the order of transformers. GGUF lays the two numbers that are rotated together side by side,
    transformers half a head apart."""
    return weight.view(n_head, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_tokenizer(settings: dict, folder: Path) -> None:
    """tokenizer.json: GPT-2's form after single digits. A text that is asked for with special tokens begins with
    end-of-text, as our documents do."""
    tokens, types = settings["tokenizer.ggml.tokens"], settings["tokenizer.ggml.token_type"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    specials = [i for i, kind in enumerate(types) if kind == SPECIAL]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    begin = {"SpecialToken": {"id": END, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False, "ignore_merges": False}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False}
    model |= {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": settings["tokenizer.ggml.merges"]}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i]} | flags for i in specials],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {END: {"id": END, "ids": [tokens.index(END)], "tokens": [END]}},
        },
        "decoder": byte_level,
        "model": model,
    }
    write_json(folder / "tokenizer.json", whole, separators=(",", ":"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END, "pad_token": END}
    write_json(folder / "tokenizer_config.json", names | {"model_max_length": settings["llama.context_length"]})
