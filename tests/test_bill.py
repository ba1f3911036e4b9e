"""The formulas of --plan against counts of tensors and operations.   pytest -q tests/test_bill.py"""

import importlib
import re
from pathlib import Path

import pytest
import torch
from tiny import settings, tiny_model
from torch.utils.flop_counter import FlopCounterMode

import evaluate
import merge
import model
import train_pretrain
import train_rl
import train_sft
from kernels.cache import Unfinished
from kernels.gradients import rms_norm
from model import GPT, PRESETS, GPTConfig
from sample import read
from tools import plan

SHAPES = {
    "olmo2": GPTConfig(n_layer=3, n_embd=128, n_head=4, n_hidden=512, post_norm=True, qk_norm=True, tied=False),
    "llama, grouped": GPTConfig(n_layer=3, n_embd=128, n_head=8, n_kv_head=2, n_hidden=384),
    "grouped, norms on q and k": GPTConfig(n_layer=2, n_embd=128, n_head=4, n_kv_head=2, n_hidden=256, qk_norm=True),
    "world": PRESETS["world"],
}


@pytest.fixture(autouse=True)
def no_world_beside(monkeypatch, tmp_path):
    """--plan reads the vocabulary of --data if it is there, as a user's data/world is."""
    monkeypatch.chdir(tmp_path)


def close(told: float, measured: float, within: float = 0.15) -> bool:
    return abs(told / measured - 1) <= within


# ----------------------------------------------------------------------------------------------------------- the model
@pytest.mark.parametrize("c", [*SHAPES.values(), PRESETS["gpt2"], PRESETS["olmo2-1b"]])
def test_parameters_and_moments(c):
    with torch.device("meta"):
        net = GPT(c)
    assert sum(plan.sizes(c).values()) == net.n_params()
    assert plan.moments_share(c, 1) == net.n_params()
    norms_and_embedding = sum(p.numel() for n, p in net.named_parameters() if p.ndim == 1 or n.startswith("wte"))
    head = c.vocab_size * c.n_embd - (0 if c.tied else c.padded_vocab * c.n_embd)
    assert plan.multiplied(c) == net.n_params() - norms_and_embedding + head


@pytest.mark.parametrize("c", SHAPES.values(), ids=SHAPES)
def test_flops_of_a_token(c):
    net, idx = GPT(c), torch.zeros(4, 64, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        net(idx).sum().backward()
    assert close(idx.numel() * c.flops_per_token(64), counter.get_total_flops())


def test_moments_are_dealt_out_as_torch_deals_them():
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.testing._internal.distributed.fake_pg import FakeStore

    c, n = SHAPES["olmo2"], 4
    net = GPT(c)
    named = [(name.startswith("wte"), p) for name, p in net.named_parameters()]
    groups = [{"params": [p for last, p in named if last == of_last]} for of_last in (False, True)]
    torch.distributed.init_process_group("fake", rank=0, world_size=n, store=FakeStore())
    try:
        optimizer = ZeroRedundancyOptimizer(groups, torch.optim.AdamW)
        shares = [sum(p.numel() for g in groups for p in g["params"]) for groups in optimizer._partition_parameters()]
    finally:
        torch.distributed.destroy_process_group()
    assert plan.moments_share(c, n) == max(shares) > net.n_params() / n


# ---------------------------------------------------------------------------------------------------------- activations
class Kernel(torch.autograd.Function):
    """Keeps what the attention kernel keeps."""

    @staticmethod
    def forward(ctx, q, k, v):
        o = torch.empty(q.shape, dtype=q.dtype)
        ctx.save_for_backward(q, k, v, o, torch.empty(q.shape[:3]))
        return o

    @staticmethod
    def backward(ctx, g):
        q, k, v, *_ = ctx.saved_tensors
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)


def attention_as_on_a_gpu(q, k, v, **_):
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.bfloat16() for x in (q, k, v))
    return Kernel.apply(q, k, v)


def norms_as_on_a_gpu(x, weight, eps):
    """Several vectors at once: without the weight, then times it."""
    return rms_norm(x, weight, eps) if weight.ndim == 1 else rms_norm(x, torch.ones_like(weight), eps) * weight


def saved_bytes(net, work) -> int:
    """Bytes of the storages that autograd keeps, without parameters."""
    own, found = {p.untyped_storage().data_ptr() for p in net.parameters()}, {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = work()
    assert kept is not None
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("c", SHAPES.values(), ids=SHAPES)
def test_activations_are_what_autograd_keeps(c, width, monkeypatch):
    monkeypatch.setattr(model, "attention", attention_as_on_a_gpu)
    monkeypatch.setattr(model, "rms_norm", norms_as_on_a_gpu)
    net, idx = GPT(c), torch.zeros(4, 256, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=width == 2):
        measured = saved_bytes(net, lambda: net.hidden(idx))
    copies = 2 * (plan.multiplied(c) - c.vocab_size * c.n_embd) if width == 2 else 0
    head = (4 + width) * c.n_embd  # what only the head keeps, and hidden() is without it
    assert close(plan.activations(c, idx.numel(), width, False) - head * idx.numel() + copies, measured)
    net.recompute = True
    with torch.autocast("cpu", torch.bfloat16, enabled=width == 2):
        measured = saved_bytes(net, lambda: net.hidden(idx))
    told = plan.activations(c, idx.numel(), width, True) - (head + plan.block_bytes(c, width)) * idx.numel()
    assert close(told, measured)  # without the block that is computed anew


def test_activations_of_packed_rows(monkeypatch):
    """Of RL and SFT: prompts and completions in one row, as the kernels take them."""
    monkeypatch.setattr("kernels.packed.attention", attention_as_on_a_gpu)
    monkeypatch.setattr(model, "rms_norm", norms_as_on_a_gpu)
    monkeypatch.setattr(model, "choose_impl", lambda *_: "triton")
    c, prompts = SHAPES["olmo2"], [[1] * 40] * 4 + [[2] * 40] * 4
    net = GPT(c)
    net.impl = "torch"
    with torch.autocast("cpu", torch.bfloat16):
        measured = saved_bytes(net, lambda: net.completion_logprobs(prompts, [[3] * 60] * 8))
    told = plan.activations(c, 2 * 40 + 8 * 60, 2, False) + 2 * plan.multiplied(c)
    kept_logits = 8 * 60 * c.vocab_size * 2  # of small problems the torch path keeps the exponentials
    assert close(told, measured - kept_logits)


@pytest.mark.parametrize("c", [SHAPES["llama, grouped"], SHAPES["world"]])
def test_the_cache(c):
    net, prompts, group, tokens = GPT(c), [[1] * 48] * 3, 16, 32
    with torch.no_grad():
        _, cached = read(net, prompts, [])
        rows = Unfinished(net, cached, group)
        for _ in range(tokens):
            rows.step(torch.ones(len(rows.ids), dtype=torch.long))
    tensors = [x for layers in (rows.tails, cached.layers) for kv in layers for x in kv]
    measured = sum(x.numel() * x.element_size() for x in tensors)
    assert close(plan.cache_bytes(c, 3 * (48 + group * tokens), 4), measured)


# ------------------------------------------------------------------------------------------------------- of the stages
def bill(stage, *flags, cards: str = "h100x8", **changes):
    return plan.Bill(settings(stage, *flags, **changes), *plan.machine(cards))


@pytest.mark.parametrize("stage", [train_pretrain, train_rl, train_sft, merge, evaluate], ids=lambda s: s.__name__)
def test_the_paper_fits_eight_cards_of_80_gb(stage):
    for preset, values in stage.PRESETS.items():
        if preset.startswith("paper"):
            for cards in ("h100x8", "a100x8"):
                assert bill(stage, "--preset", preset, cards=cards, **values).fits(), preset


PAGE = Path(__file__).parent.parent / "docs" / "paper_scale.md"
ROWS = re.findall(r"^\| `(\w+)\.py`: `([\w-]+)` \| (.*) GB \|$", PAGE.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("name, preset, figures", ROWS)
def test_the_page_tells_what_the_bill_tells(name, preset, figures):
    stage = importlib.import_module(name)
    told = bill(stage, "--preset", preset, **stage.PRESETS[preset])
    steps, each = told.checkpoints()
    found = [max(told.needs()) / 1e9, *(seconds / 3600 for seconds in told.seconds()), len(steps) * each / 1e9]
    for shown, exact in zip(map(float, figures.split(" | ")), found, strict=True):
        assert abs(shown - exact) <= max(0.6, 0.02 * exact), (figures, found)


def test_a_run_as_it_is_told(ok, tmp_path, monkeypatch):
    """Without a file, without data, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    told = ok("train_rl", "--preset", "paper", "--plan", "a100x4").out
    for word in ("olmo2-1b: 1,484.9M parameters", "4 x 80 GB", "reference", "moments, over 4", "cache of 128", "hours"):
        assert word in told, word
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train_rl", "train_sft", "merge", "train_pretrain"])
def test_checkpoints_are_those_of_the_run(name, ok, world, base, tmp_path):
    flags = ["--data", world, "--steps", "7", "--out", tmp_path / "run"]
    if name == "train_pretrain":
        flags += ["--preset", "tiny", "--block-size", "16", "--batch-tokens", "32"]
    else:
        flags += ["--init", base]
    if name in ("train_rl", "merge"):
        flags += ["--max-new-tokens", "4", "--prompts-per-step", "2"]
    told = ok(name, *flags, "--plan").out
    line = next(line for line in ok(name, *flags).out.splitlines() if "checkpoints at" in line)
    disk = next(line for line in told.splitlines() if line.startswith("disk"))
    assert disk.endswith(f"steps {line.split('checkpoints at ')[1]}")
    assert close(float(disk.split(" x ")[1].split()[0]) * 1e9, (tmp_path / "run" / "ckpt_000007.pt").stat().st_size)


def test_the_shape_of_a_file(ok, base):
    assert f"{tiny_model().n_params() / 1e6:,.1f}M" in ok("train_rl", "--init", base, "--plan").out
    assert "it fits" in ok("evaluate", "--ckpt", base, "--plan", "laptop").out


@pytest.mark.parametrize(
    "stage, flags", [(train_rl, ["--prompts-per-batch", "64"]), (merge, []), (train_sft, ["--batch-size", "512"])]
)
def test_what_does_not_fit_fits_as_advised(stage, flags):
    big = bill(stage, "--init", "olmo2-1b", "--max-new-tokens", "2048", "--task", "openmath", *flags)
    words = big.advice().split()
    assert not big.fits() and "--micro-batch-size" in words
    names = [flag.removeprefix("--").replace("-", "_") for flag in words[::2]]
    assert big.changed(**dict(zip(names, map(int, words[1::2]), strict=True))).fits()


def test_more_cards_and_recomputation_take_less():
    one, eight = (bill(train_rl, "--init", "olmo2-4b", cards=cards) for cards in ("h100", "h100x8"))
    assert eight.needs()[0] < one.needs()[0] and eight.update_seconds() < one.update_seconds()
    less = eight.changed(recompute=True)
    assert less.needs()[0] < eight.needs()[0] and less.needs()[1] == eight.needs()[1]
    assert close(less.flops() / eight.flops(), 4 / 3, 0.05)
    assert "cards" in bill(train_pretrain, "--preset", "olmo2-4b", cards="rtx4090").advice()


def test_with_a_sampler_rollouts_take_nothing_here():
    here, there = (bill(train_rl, "--init", "olmo2-1b", *flags) for flags in ([], ["--sampler", "box"]))
    assert there.needs() == [here.needs()[0], 0] and there.seconds()[1] == there.steps * here.update_seconds()
    assert "workers of box" in "\n".join(plan.time_lines(there))


def test_the_reference_and_the_second_side_are_counted():
    flags = ("--init", "olmo2-1b")
    without, kl = (bill(train_rl, *flags, "--kl-coef", x).kept() for x in ("0", "0.1"))
    assert kl["reference"] == kl["weights"] and "reference" not in without
    both, other = bill(merge, *flags, "--weights", "0.5", "0.5").kept(), bill(merge, *flags, "--combine", "sum").kept()
    assert both["the SFT side's weights"] == both["weights"] and "the SFT side's weights" not in other
    assert both["moments, over 8"] == 2 * other["moments, over 8"]


REFUSED = {
    "train_rl --plan gtx1080": ("gtx1080", "h100x8"),
    "train_rl --plan h100x0": ("h100x0",),
    "train_rl --plan --init nowhere.pt": ("nowhere.pt", "olmo2-1b"),
    "train_rl --plan --resume x": ("--resume", "--init"),
    "train_sft --plan --epochs 2": ("--epochs", "--steps"),
    "merge --plan --average a.pt b.pt --out c.pt": ("--plan", "--average"),
    "evaluate --plan --tasks hellaswag": ("--tasks",),
}


@pytest.mark.parametrize("command", REFUSED)
def test_refusals(command, refused):
    refused(*command.split(), words=REFUSED[command])
