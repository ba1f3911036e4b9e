"""The bill before the run: what a stage takes on given hardware, by arithmetic on shapes. Nothing is read but the model
shape of a checkpoint; nothing is allocated or run.

    python train_rl.py --init olmo2-1b --preset paper --plan         # on eight H100; --init: a file or a shape's name
    python train_pretrain.py --plan laptop

Memory is what the kernels of a GPU hold: weights, gradients and moments in float32, moments dealt out over the cards by
whole tensors (ZeRO-1), products in bfloat16. An update and a rollout each have their own: the larger one must fit.

Time rests on two guesses, which the bill prints: BUSY, the share of a card's peak that training reaches, and LENGTHS,
how long texts are on average. A token step of sampling reads the weights and the cache at 60 % of the bandwidth,
multiplies at BUSY of the peak and launches kernels for LAUNCH a layer. A batch of completions ends with its longest,
here twice the mean and at worst --max-new-tokens: length decides, more than the engine.
"""

import argparse
import re
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from common import UserError
from data.files import field, read_json
from kernels.logprob import GPU_CHUNK
from model import PRESETS, GPTConfig, outline
from stage import sixth


@dataclass(frozen=True)
class Card:
    memory: float  # GB, of 1e9 bytes
    tflops: float  # peak of dense products in bfloat16 (laptop: float32)
    bandwidth: float  # TB/s


CARDS = {
    "h100": Card(80, 989, 3.35),
    "h200": Card(141, 989, 4.8),
    "b200": Card(180, 2250, 8.0),
    "a100": Card(80, 312, 2.0),
    "a100-40gb": Card(40, 312, 1.55),
    "l40s": Card(48, 362, 0.86),
    "rtx4090": Card(24, 165, 1.0),
    "rtx3090": Card(24, 71, 0.94),
    "mi300x": Card(192, 1307, 5.3),
    "laptop": Card(16, 0.25, 0.03),  # two cores
}
BUSY = 0.3
LAUNCH = 0.2e-3  # seconds
RESERVE = 5e9  # bytes of a GPU: CUDA's context, NCCL's buffers, what the allocator cannot use
LENGTHS = {"gsm": (45, 30), "hard": (45, 30), "gsm8k": (80, 120), "svamp": (60, 60), "math": (100, 250)}
LENGTHS |= {"openmath": (100, 300)}  # mean tokens of (a prompt, a solution)
QUESTIONS = {"gsm": 500, "hard": 500, "gsm8k": 1319, "math": 5000, "svamp": 300}  # of the test sets


# ----------------------------------------------------------------------------------------------- the model by its shape
@cache
def parameters(shape: tuple) -> dict[str, int]:
    """Numbers in each parameter of a model, by name; `shape`: the items of a GPTConfig."""
    return {name: p.numel() for name, p in outline(GPTConfig(**dict(shape))).named_parameters()}


def sizes(c: GPTConfig) -> dict[str, int]:
    return parameters(tuple(vars(c).items()))


def multiplied(c: GPTConfig) -> int:
    """Weights that a token meets in a matrix product: those of the blocks, and the head."""
    return int(c.flops_per_token(0) / 6)


def moments_share(c: GPTConfig, n: int) -> int:
    """Weights whose moments the fullest of n processes keeps: tensors are dealt out whole, the largest first, each to
    the emptiest process; the embedding, which is not decayed, last."""
    held = [0] * n
    for _, _, size in sorted((name.startswith("wte"), -size, size) for name, size in sizes(c).items()):
        held[held.index(min(held))] += size
    return max(held)


def block_bytes(c: GPTConfig, width: int) -> int:
    """Bytes a token that one block keeps for its backward pass; width: bytes of a product's numbers, 2 or 4."""
    C, K, F = c.n_embd, c.n_kv_head * c.head_dim, c.n_hidden
    inputs = 3 * C + F  # of the four products
    attention = (C + K) + (C + 2 * K) + C  # rotated q and k; q, k, v in one; o
    mlp = 3 * F  # gate and up in one, silu(gate)
    norms = 2 * 4 * C  # float32, as in what follows
    if c.qk_norm:  # q and k before, and where both are normed in one call also after
        norms += 4 * (C + K) * ((width == 2) + (K == C))
    return width * (inputs + attention + mlp) + norms


def activations(c: GPTConfig, tokens: int, width: int, recompute: bool) -> int:
    """Bytes that a micro-batch of `tokens` keeps for its backward pass: of all blocks, or with --recompute what enters
    each of them and one block whole."""
    whole = block_bytes(c, width)
    kept = c.n_layer * 4 * c.n_embd + whole if recompute else c.n_layer * whole
    return tokens * (kept + (4 + 4 + width) * c.n_embd)  # the last norm, what it gives, the head's input


def logprob_bytes(c: GPTConfig, tokens: int, width: int) -> int:
    """Of the head's backward: a chunk of the logits' gradient, the gradients of hidden states and of the head."""
    words = min(c.vocab_size, max(1024, GPU_CHUNK // tokens))
    head = c.vocab_size * c.n_embd
    return tokens * (width * words + 4 * c.n_embd) + head * (4 + width if width == 2 else 4)


def cache_bytes(c: GPTConfig, tokens: int, width: int) -> int:
    """Of the keys and values of `tokens`."""
    return 2 * c.n_layer * c.n_kv_head * c.head_dim * width * tokens


# ------------------------------------------------------------------------------------------------- the work of one step
@dataclass
class Work:
    """Of one step on n cards. Means are of all cards together; what ends in _most is the longest of one card."""

    row: float  # tokens of a row, prompt and all
    trained: float = 0.0  # tokens, forward and backward
    scored: float = 0.0  # tokens, forward alone
    micro_most: int = 0  # tokens of a micro-batch
    head_most: int = 0  # of which the head reads
    batches: int = 0  # of completions, one after the other, of one card
    rows: int = 0  # completions of a batch
    completion: float = 0.0  # its tokens
    completion_most: int = 0
    cached_most: int = 0  # tokens of keys and values of a batch


def text(args) -> tuple[int, int, int, int]:
    """Tokens of a prompt and a solution: the means, and the longest (four times that, where no flag bounds them)."""
    prompt, solution = LENGTHS[args.task]
    most = (getattr(args, "max_prompt_tokens", 0), getattr(args, "max_target_tokens", 0))
    return prompt, solution, most[0] or 4 * prompt, most[1] or 4 * solution


def pretraining(args, n: int) -> Work:
    rows, T = args.batch_tokens // args.block_size, args.block_size
    micro = min(args.micro_batch_size, -(-rows // n)) * T
    return Work(row=T, trained=rows * T, micro_most=micro, head_most=micro)


def tuning(args, n: int) -> Work:
    prompt, solution, prompt_most, solution_most = text(args)
    rows, row = min(args.micro_batch_size, -(-args.batch_size // n)), prompt + solution
    most = dict(micro_most=rows * (prompt_most + solution_most), head_most=rows * solution_most)
    return Work(row=row, trained=args.batch_size * row, **most)


def sampling(questions: int, group: int, prompts: tuple[int, int], mean: float, args, n: int) -> Work:
    """`group` completions of each question; prompts: mean and longest. With --sampler other cards draw them."""
    together, mean = min(args.prompts_per_batch, -(-questions // n)), min(mean, args.max_new_tokens)
    w = Work(row=prompts[0] + mean, rows=together * group, completion=mean, completion_most=args.max_new_tokens)
    if getattr(args, "sampler", None):
        return replace(w, rows=0)
    w.batches = -(-questions // n // together)
    w.cached_most = together * (prompts[1] + group * args.max_new_tokens)
    return w


def rl(args, n: int) -> Work:
    prompt, solution, prompt_most, _ = text(args)
    P, G = args.prompts_per_step, args.group_size
    w = sampling(P, G, (prompt, prompt_most), solution, args, n)
    w.trained = P * (prompt + G * w.completion)  # a prompt is read once for all its completions
    later = 1 - 1 / args.updates_per_batch  # the share of rows whose old log-probs take a pass of their own
    w.scored = w.trained * ((args.kl_coef > 0) + later)
    rows = min(args.micro_batch_size, -(-P * G // args.updates_per_batch // n))
    w.head_most = rows * args.max_new_tokens
    w.micro_most = w.head_most + -(-rows // G) * prompt_most
    return w


def merging(args, n: int) -> Work:
    w, other = rl(args, n), tuning(args, n)
    most = {name: max(getattr(w, name), getattr(other, name)) for name in ("micro_most", "head_most")}
    return replace(w, trained=w.trained + other.trained, **most)


def evaluation(args, n: int) -> Work:
    """Of the question sets; benchmarks are a small part."""
    tasks = [task for task in args.tasks or ("gsm", "hard") if task in QUESTIONS]
    if not tasks:
        raise UserError(f"--plan is of question sets ({', '.join(QUESTIONS)}); --tasks names none of them")
    questions = sum(min(args.limit or 10**9, QUESTIONS[task]) for task in tasks)
    prompt, solution = (max(LENGTHS[task][i] for task in tasks) for i in (0, 1))
    shots = args.n_shot * (prompt + solution)
    w = sampling(questions, args.n_samples, (shots + prompt, shots + 4 * prompt), solution, args, n)
    return replace(w, scored=questions * (prompt + shots))


# ------------------------------------------------------------------------------------------------------------- the bill
class Bill:
    """What a stage with these settings takes on n cards: bytes of one card, seconds of one step."""

    def __init__(self, args, card: Card, n: int):
        self.args, self.card, self.n = args, card, n
        self.c, self.model = shape_of(args)
        self.kind = kind_of(args)
        self.work = self.kind(args, n)
        self.size = sum(sizes(self.c).values())
        self.steps, self.recompute = getattr(args, "steps", 1), getattr(args, "recompute", False)
        narrow = args.dtype == "bfloat16" or (args.dtype == "auto" and card is not CARDS["laptop"])
        self.width = 2 if narrow else 4
        self.pairs = (
            0 if self.kind is evaluation else 2 if getattr(args, "combine", "sum") != "sum" else 1
        )  # of moments

    def changed(self, **settings) -> "Bill":
        return Bill(argparse.Namespace(**{**vars(self.args), **settings}), self.card, self.n)

    # ------------------------------------------------------------------ memory
    def kept(self) -> dict[str, float]:
        """Bytes of what is there all the time."""
        a, merges = self.args, self.kind is merging and self.args.combine == "average"
        copy, found = 4 * self.size, {"weights": 4 * self.size}
        if merges:
            found["the SFT side's weights"] = copy
            if abs(sum(a.weights or [1]) - 1) > 1e-12:
                found["the last average"] = copy
        if getattr(a, "kl_coef", 0) or getattr(a, "reference", None):
            found["reference"] = copy
        found[f"moments, over {self.n}"] = 8 * self.pairs * moments_share(self.c, self.n)
        found["bfloat16 copies"] = 2 * multiplied(self.c) if self.width == 2 else 0
        return found | {"context, buffers": 0.5e9 if self.card is CARDS["laptop"] else RESERVE}

    def updates(self) -> dict[str, float]:
        """Bytes that come and go with an update."""
        c, w, width = self.c, self.work, self.width
        if self.kind is evaluation:
            return {}
        return {
            "gradients": 4 * self.size,
            f"activations of {w.micro_most:,} tokens": activations(c, w.micro_most, width, self.recompute),
            "gradients of one block's": w.micro_most * block_bytes(c, width),
            "log-prob chunk": logprob_bytes(c, w.head_most, width),
        }

    def rollouts(self) -> dict[str, float]:
        """Bytes that come and go with a batch of completions."""
        w, logits = self.work, 5 * 4 * self.work.rows * self.c.vocab_size  # and what is drawn from them
        cached = cache_bytes(self.c, w.cached_most, self.width)
        return {f"cache of {w.rows:,} completions": cached, "logits": logits} if w.rows else {}

    def needs(self) -> list[float]:
        """Bytes of an update and of a batch of completions; 0 where there is none."""
        kept = sum(self.kept().values())
        return [part and kept + part for part in (sum(self.updates().values()), sum(self.rollouts().values()))]

    def fits(self) -> bool:
        return max(self.needs()) <= 1e9 * self.card.memory

    def advice(self) -> str:
        """The first flags to change where something does not fit, with values that do."""
        a, found = self.args, {}
        for place, name in enumerate(("micro_batch_size", "prompts_per_batch")):
            if self.needs()[place] > 1e9 * self.card.memory:
                halves = [{name: getattr(a, name) >> i} for i in range(getattr(a, name).bit_length())]
                tried = [h | more for more in ({}, {"recompute": True}) for h in halves]
                fits = [h for h in tried if self.changed(**h).needs()[place] <= 1e9 * self.card.memory]
                if not fits:
                    return "more or larger cards; docs/many_gpus.md says what else there is"
                found |= fits[0]
        told = {name.replace("_", "-"): value for name, value in found.items() if value != getattr(a, name, None)}
        return " ".join(f"--{name}" + f" {value}" * (value is not True) for name, value in told.items())

    # ------------------------------------------------------------------ time
    def flops(self) -> float:
        """Of one step without its sampling."""
        passes = self.work.trained * (1 + self.recompute / 3) + self.work.scored / 3
        return passes * self.c.flops_per_token(int(self.work.row))

    def update_seconds(self) -> float:
        return self.flops() / (self.n * self.card.tflops * 1e12 * BUSY)

    def token_seconds(self, length: float) -> float:
        """Of one token for all rows of a batch, on the way to completions of `length`."""
        c, rows = self.c, self.work.rows
        read = multiplied(c) * self.width + cache_bytes(c, int(rows * length / 2), self.width)
        products = 2 * multiplied(c) * rows / (self.card.tflops * 1e12 * BUSY)
        return read / (0.6e12 * self.card.bandwidth) + products + LAUNCH * c.n_layer

    def lengths(self) -> list[float]:
        """Tokens that a batch of completions lasts: as expected, and at worst."""
        return [min(2 * self.work.completion, self.work.completion_most), self.work.completion_most]

    def sampling_seconds(self, length: float) -> float:
        return self.work.batches * length * self.token_seconds(length)

    def seconds(self) -> list[float]:
        """Of the run, as expected and at worst."""
        return [self.steps * (self.update_seconds() + self.sampling_seconds(x)) for x in self.lengths()]

    # ------------------------------------------------------------------ disk
    def checkpoints(self) -> tuple[list[int], float]:
        """(steps, bytes of one)."""
        a = self.args
        every = sixth(a) if a.save_every is None and not a.save_at else a.save_every or 0
        steps = [s for s in range(1, a.steps + 1) if s == a.steps or s in a.save_at or (every and s % every == 0)]
        return steps, (4 + 8 * self.pairs) * self.size


# --------------------------------------------------------------------------------------------------- of a command line
def machine(text: str) -> tuple[Card, int]:
    """h100x8 -> (card, 8)."""
    found = re.fullmatch(rf"({'|'.join(CARDS)})(?:x([1-9]\d*))?", text.lower())
    if not found:
        raise UserError(f"--plan {text}: the cards are {', '.join(CARDS)}, with how many behind, as in h100x8")
    return CARDS[found[1]], int(found[2] or 1)


def kind_of(args):
    """Which stage has these settings."""
    if hasattr(args, "batch_tokens"):
        return pretraining
    if hasattr(args, "sft_lr"):
        return merging
    return rl if hasattr(args, "prompts_per_step") else tuning if hasattr(args, "batch_size") else evaluation


def shape_of(args) -> tuple[GPTConfig, str]:
    """The model's shape, and what to call it. --init and --ckpt name a file, of which only the shape is read, or a
    shape; without them it is olmo2-1b for a preset of the paper and the world's for others."""
    if hasattr(args, "batch_tokens"):
        meta, shape = Path(args.data) / "meta.json", PRESETS.get(args.preset, PRESETS["olmo2-1b"])
        if meta.exists():
            ident = field(read_json(meta, "data folder"), "tokenizer", dict, meta)
            shape = replace(shape, vocab_size=field(ident, "n_vocab", int, meta))
        return replace(shape, block_size=args.block_size), args.preset
    of_paper = getattr(args, "preset", "").startswith("paper")
    name = getattr(args, "init", None) or getattr(args, "ckpt", None) or ("olmo2-1b" if of_paper else "world")
    if name in PRESETS:
        return PRESETS[name], name
    if not Path(name).is_file():
        raise UserError(f"{name}: no such checkpoint; with --plan a shape's name will do: {', '.join(PRESETS)}")
    try:
        ckpt = torch.load(name, map_location="meta", mmap=True, weights_only=True)
        return GPTConfig(**ckpt["model_config"]), name
    except Exception as error:  # torch.load's failures have no common class; each means the same to a user
        raise UserError(f"{name} is no readable checkpoint ({type(error).__name__}); use another") from error


def show(args, text: str) -> None:
    """--plan: print the bill and exit."""
    print("\n".join(lines(args, text)))
    sys.exit(0)


def lines(args, text: str) -> list[str]:
    if getattr(args, "epochs", None):
        raise UserError(f"--epochs {args.epochs}: --plan reads no examples to count the steps by; give --steps")
    card, n = machine(text)
    bill = Bill(args, card, n)
    c, length, step = bill.c, int(bill.work.row), bill.flops()
    told = [
        f"plan for {text}: {n} x {card.memory:g} GB, {card.tflops:g} TFLOP/s, {card.bandwidth:g} TB/s; nothing is run",
        f"model      {bill.model}: {bill.size / 1e6:,.1f}M parameters, {c.n_layer} x {c.n_embd}, T {c.block_size}",
        f"FLOPs      {c.flops_per_token(length):.2e} to train a token in a row of {length:,}; {step:.2e} a step, "
        f"{bill.steps * step:.2e} in all, sampling apart",
        *memory_lines(bill),
        *time_lines(bill),
    ]
    if bill.kind is not evaluation:
        steps, each = bill.checkpoints()
        shown = " ".join(map(str, steps if len(steps) <= 8 else [*steps[:3], "...", steps[-1]]))
        told.append(f"disk       {len(steps)} x {each / 1e9:.3g} GB = {len(steps) * each / 1e9:,.3g} GB: steps {shown}")
    return told


def memory_lines(bill: Bill) -> list[str]:
    table = {"memory, GB a card": ["updates", "rollouts"]}
    table |= {f"  {label}": [value, value] for label, value in bill.kept().items() if value}
    table |= {f"  {label}": [value, 0] for label, value in bill.updates().items()}
    table |= {f"  {label}": [0, value] for label, value in bill.rollouts().items()}
    table[f"  in all, of {bill.card.memory:g}"] = needs = bill.needs()

    def cell(value) -> str:
        return value if isinstance(value, str) else f"{value / 1e9:.1f}" if value else "-"

    told = []
    for label, values in table.items():
        told.append(f"{label:<38}" + "".join(f"{cell(v):>10}" for v, need in zip(values, needs, strict=True) if need))
    if needs[0]:
        other = bill.changed(recompute=not bill.recompute).needs()[0]
        told.append(f"  with{'out' * bill.recompute} --recompute an update takes {other / 1e9:.1f}")
    return [*told, "  it fits" if bill.fits() else f"  it does NOT fit; try {bill.advice()}"]


def time_lines(bill: Bill) -> list[str]:
    w, each = bill.work, bill.update_seconds()
    what = "reading" if bill.kind is evaluation else "updates"
    told = [f"{what:<11}{span(bill.steps * each)}, {each:.3g} s a step, where {BUSY:.0%} of the peak is reached"]
    if w.rows:
        told.append(f"rollouts   {w.batches} batches of {w.rows} completions, of {w.completion:.0f} tokens on average")
    for how, length in zip(("expected", "at worst"), bill.lengths(), strict=True) if w.rows else ():
        total, speed = bill.steps * bill.sampling_seconds(length), w.rows / bill.token_seconds(length)
        told.append(f"  {how} {span(total)}: the longest of a batch {length:,.0f} tokens, {speed:,.0f} tokens/s a card")
    if getattr(bill.args, "sampler", None):
        told.append(f"rollouts   on other cards, of the workers of {bill.args.sampler}: their time comes on top")
    expected, worst = bill.seconds()
    return [*told, f"in all     {span(expected)}" + f", at worst {span(worst)}" * (worst > expected)]


def span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 3600:,.1f} hours" if seconds > 5400 else f"{seconds / 60:.1f} minutes"
