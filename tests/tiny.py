"""What the stage tests share: a byte vocabulary, tiny models, a tiny data folder, a bigram GPT with known answers."""

import json
import math
from pathlib import Path

import numpy as np
import torch

from common import FORMAT, save_checkpoint
from data.tokenizer import make_encoding, tokenizer_id
from data.tokens import write_meta
from model import GPT, GPTConfig

BYTES = make_encoding(
    "bytes", {bytes([b]): b for b in range(256)}
)  # 257 ids, 256 = end-of-text; 0, the pad, is a real id
EOT = BYTES.eot_token
SHAPE = dict(vocab_size=257, block_size=96, n_layer=2, n_head=2, n_embd=32, n_hidden=48, init_std=0.02)


def tiny_model(seed: int = 0, scale: float = 6.0, **changes) -> GPT:
    """A random model. Weights `scale` times wider than at init, norms off 1: far from uniform, so that errors show."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SHAPE, **changes}))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(1 + 0.2 * torch.randn_like(p) if p.ndim == 1 else scale * p)
    return model


def bigram_model(table: torch.Tensor, **changes) -> GPT:
    """A GPT whose next-token logits are row `current token` of `table` (V, V), whatever came before: blocks add
    nothing, embeddings are one-hot, and a normed one-hot of width C is sqrt(C) times itself."""
    V = len(table)
    width = -(-V // 4) * 4
    shape = dict(vocab_size=V, block_size=96, n_layer=1, n_head=2, n_embd=width, n_hidden=8, tied=False, norm_eps=0.0)
    model = GPT(GPTConfig(**{**shape, **changes}))
    with torch.no_grad():
        for p in model.blocks.parameters():
            p.zero_()
        model.wte.weight.zero_()
        model.wte.weight[:V, :V] = torch.eye(V)
        model.lm_head.weight.fill_(50.0)  # padded rows would win if they were ever read
        model.lm_head.weight[:V] = 0.0
        model.lm_head.weight[:V, :V] = table.T / math.sqrt(width)
    return model


def chain_table(text: str, start: str, V: int = 257) -> torch.Tensor:
    """Bigram logits that spell `text` after `start`, then end-of-text. Each character of start + text occurs once."""
    assert len(set(start + text)) == len(start + text)
    table = torch.full((V, V), -30.0)
    ids = [*(start + text).encode(), EOT]
    for a, b in zip(ids, ids[1:], strict=False):
        table[a, b] = 30.0
    return table


def write_ckpt(path: Path, model: GPT, **changes) -> Path:
    """`model` as a pre-training checkpoint."""
    ckpt = dict(
        format=FORMAT,
        stage="train_pretrain",
        step=3,
        tokens=1234,
        model=dict(model.state_dict()),
        model_config=dict(vars(model.config)),
        tokenizer=tokenizer_id(BYTES),
        optimizer=None,
        rng={},
        data={},
        config={},
        parent=None,
        metrics={},
        versions={},
    )
    save_checkpoint(Path(path), ckpt | changes)
    return Path(path)


def settings(stage, *flags, **changes):
    """A stage's settings by its own parser, so that a flag which a fork adds has its default here too."""
    args = stage.parser().parse_args(list(map(str, flags)))
    vars(args).update(changes)
    return args


def row(a: int, b: int, task: str = "gsm", style: str = "{a}+{b}={c}") -> dict:
    c = a + b
    solution = style.format(a=a, b=b, c=c) + f" #### {c}"
    return {"problem": f"{a}+{b}?", "generated_solution": solution, "expected_answer": str(c), "problem_source": task}


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def write_world(path: Path) -> Path:
    """A data folder with the real formats: sums, two tiers, two solution styles, token files, benchmarks."""
    path.mkdir(parents=True, exist_ok=True)
    splits = {"train": range(0, 12), "val": range(12, 16), "test": range(16, 21)}
    styles = ("{a}+{b}={c}", "so {c}")
    for split, numbers in splits.items():
        rows = [row(a, 3, "gsm", style) for a in numbers for style in styles]
        rows += [row(a, 70, "hard", style) for a in numbers for style in styles]
        write_jsonl(path / f"{split}.jsonl", rows)
    documents = [f"Q: {a}+{b}?\nA: {a}+{b}={a + b} #### {a + b}\n" for a in range(12) for b in range(7)]
    general = [f"{name} has a {thing}. " * 3 for name in ("Ann", "Bo", "Cy") for thing in ("hat", "pen", "cup", "dog")]
    files = {"general.bin": general * 3, "math.bin": documents, "val.bin": general[:6] + documents[:12]}
    entries = {}
    for name, texts in files.items():
        ids = np.array([i for t in texts for i in (EOT, *BYTES.encode_ordinary(t))], dtype="<u2")
        ids.tofile(path / name)
        entries[name] = {"dtype": "uint16", "tokens": len(ids)}
    mixes = {"base": {"general.bin": 0.8, "math.bin": 0.2}, "math-heavy": {"general.bin": 0.5, "math.bin": 0.5}}
    meta = {"kind": "world", "files": entries, "mixes": mixes, "val": "val.bin", "block_size": 96, "seed": 0}
    write_meta(path, BYTES, meta | {"guess_floor": {}})
    things = ["hat", "pen", "cup", "dog"]
    items = [{"context": "Ann has a", "choices": things, "gold": i % 4, "fact": f"f{i}"} for i in range(6)]
    write_jsonl(path / "bench_facts.jsonl", items)
    write_jsonl(path / "bench_lastword.jsonl", [{"context": "Bo has a", "target": t, "fact": t} for t in things])
    return path


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same(a, b, where: str = "checkpoint") -> None:
    """Nested dictionaries, lists and tensors are equal, tensors bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b, where
