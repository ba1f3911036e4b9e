"""A GPT in one file: RMSNorm, RoPE, SwiGLU, grouped-query attention; its sampler, generate(), lies in sample.py.

Shapes: B rows, T time, C width, H heads, K key/value heads, D head size, V vocabulary, P prompts, G completions of a
prompt. Block order is pre-norm (GPT-2, Llama) or OLMo 2's post-norm, where the norm sits on each branch's output,
before the residual add. Presets: `world` (the laptop model), `gpt2` (GPT-2's size), `olmo2-1b` (the paper's 1B,
exactly), `olmo2-4b` (the paper never states its 4B shape; ours is an analogue of 4.2B parameters).

Reading and sampling are the same code as training: a block asks `attend(layer, q, k, v)` for its attention, and the
caller decides whether that is plain causal attention, one that keeps the keys, or one that reads a cache.
"""

from dataclasses import dataclass, fields, replace
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from common import UserError
from kernels.attention import attention
from kernels.dispatch import choose_impl
from kernels.gradients import rms_norm
from kernels.logprob import linear_logprob
from kernels.packed import Packed
from kernels.products import linear
from sample import continuation_logprobs, generate


@dataclass
class GPTConfig:
    vocab_size: int = 1024  # the tokenizer's count; the tables are padded to vocab_multiple, and padded ids never score
    block_size: int = 640  # longest context in tokens
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 0  # key/value heads; 0 = n_head (no grouping)
    n_embd: int = 128
    n_hidden: int = 352  # inner width of SwiGLU (each of gate and up)
    post_norm: bool = False  # True: OLMo 2's order
    qk_norm: bool = False  # RMSNorm over the full width of q and of k
    tied: bool = True  # head weight = embedding weight
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    init_std: float = 0.08  # truncated at 3 sigma
    vocab_multiple: int = 64

    def __post_init__(self):
        for field in fields(self):  # a checkpoint's may be hand-made
            value, kind = getattr(self, field.name), field.type
            least = 0 if field.name in ("n_kv_head", "norm_eps") else 1 if kind is int else 1e-30
            most = 2**20 if kind is int else 2.0**40
            if kind in (int, float) and (type(value) not in (int, kind) or not least <= value <= most):
                what = f"got a {type(value).__name__}, {kind.__name__} from {least:g} to {most:g} is needed"
                raise UserError(f"model shape: {field.name} does not fit: {what}; change it")
            if kind is bool and type(value) is not bool:
                raise UserError(f"model shape: {field.name} must be true or false, got a {type(value).__name__}")
        self.n_kv_head = self.n_kv_head or self.n_head
        if self.n_embd % self.n_head or self.n_head % self.n_kv_head or self.head_dim % 2:
            shape = f"width {self.n_embd}, {self.n_head} heads, {self.n_kv_head} key/value heads"
            raise UserError(f"model shape: {shape} do not fit evenly (head size must be even); change one of them")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def padded_vocab(self) -> int:
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def flops_per_token(self, T: int) -> float:
        """Training FLOPs of one token in a context of T: 6 per matmul weight, plus causal attention (PaLM, app. B)."""
        layer = 2 * self.n_embd + 2 * self.n_kv_head * self.head_dim + 3 * self.n_hidden  # per unit of width
        weights = (self.n_layer * layer + self.vocab_size) * self.n_embd
        return 6.0 * weights + 6.0 * self.n_layer * self.n_embd * T


GPT2 = dict(vocab_size=50_257, block_size=1024, init_std=0.02)
OLMO2 = dict(vocab_size=100_278, block_size=4096, init_std=0.02, post_norm=True, qk_norm=True, tied=False)
OLMO2 |= dict(rope_theta=500_000.0, vocab_multiple=128)
PRESETS = {
    "world": GPTConfig(qk_norm=True),
    "world-4x": GPTConfig(qk_norm=True, n_head=8, n_embd=256, n_hidden=704),  # 3.5M parameters
    "small": GPTConfig(qk_norm=True, n_embd=64, n_hidden=176),  # 3.4M parameters with GPT-2's vocabulary
    "gpt2": GPTConfig(n_layer=12, n_head=12, n_embd=768, n_hidden=2048, **GPT2),
    "olmo2-1b": GPTConfig(n_layer=16, n_head=16, n_embd=2048, n_hidden=8192, **OLMO2),
    "olmo2-4b": GPTConfig(n_layer=24, n_head=24, n_embd=3072, n_hidden=12288, **OLMO2),
}


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


class Linear(nn.Linear):
    def forward(self, x):
        return linear(x, self.weight)


def rotate(x, cos, sin):
    """RoPE on x (B, T, heads, D): pairs (i, i + D/2) turn by the angle t * theta^(-2i/D). cos (1 or B, T, 1, D) holds
    each angle's cosine twice, sin its -sine, then its sine."""
    return x.roll(x.shape[-1] // 2, -1).mul_(sin).addcmul_(x, cos)


class Attention(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        self.c = c
        width = (c.n_head + 2 * c.n_kv_head) * c.head_dim  # q, k, v in one matmul
        self.c_attn = Linear(c.n_embd, width, bias=False)
        self.c_proj = Linear(c.n_embd, c.n_embd, bias=False)
        if c.qk_norm:
            self.q_norm = RMSNorm(c.n_embd, c.norm_eps)
            self.k_norm = RMSNorm(c.n_kv_head * c.head_dim, c.norm_eps)

    def forward(self, x, cos, sin, attend):
        c, (B, T, _) = self.c, x.shape
        H, K, D = c.n_head, c.n_kv_head, c.head_dim
        qk, v = self.c_attn(x).split([(H + K) * D, K * D], dim=-1)
        if c.qk_norm and H == K:  # of one width: one call normalises both
            weight = torch.stack((self.q_norm.weight, self.k_norm.weight))
            qk = rms_norm(qk.unflatten(-1, (2, c.n_embd)), weight, c.norm_eps)
        elif c.qk_norm:
            q, k = qk.split([H * D, K * D], dim=-1)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=-1)
        qk = rotate(qk.view(B, T, H + K, D), cos, sin).to(v.dtype)  # q and k together: half the calls
        q, k = qk.split([H, K], dim=2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v.view(B, T, K, D)))  # (B, H or K, T, D)
        return self.c_proj(attend(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        self.c_fc = Linear(c.n_embd, 2 * c.n_hidden, bias=False)  # gate and up in one matmul
        self.c_proj = Linear(c.n_hidden, c.n_embd, bias=False)

    def forward(self, x):
        gate, up = self.c_fc(x).chunk(2, dim=-1)
        return self.c_proj(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        self.post_norm = c.post_norm
        self.norm_1, self.attn = RMSNorm(c.n_embd, c.norm_eps), Attention(c)
        self.norm_2, self.mlp = RMSNorm(c.n_embd, c.norm_eps), MLP(c)

    def forward(self, x, cos, sin, attend, ends=None):
        seen = self.attn(x if self.post_norm else self.norm_1(x), cos, sin, attend)
        if ends is not None:  # the other positions end here: attend has answered for these alone
            x = x.take_along_dim(ends[:, None, None], 1)  # (B, 1, C)
        if self.post_norm:
            x = x + self.norm_1(seen)
            return x + self.norm_2(self.mlp(x))
        x = x + seen
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        c = self.config = config
        self.impl = "auto"  # kernels: auto | triton | torch
        self.recompute = False  # keep what enters a block alone; the backward pass computes the rest anew
        self.cuda_graph = False  # the sampler's steps replay a CUDA graph
        self.wte = nn.Embedding(c.padded_vocab, c.n_embd)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.norm_f = RMSNorm(c.n_embd, c.norm_eps)
        self.lm_head = nn.Linear(c.n_embd, c.padded_vocab, bias=False)
        if c.tied:
            self.lm_head.weight = self.wte.weight
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=c.init_std, a=-3 * c.init_std, b=3 * c.init_std)
        frequencies = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, dtype=torch.float64, device="cpu") / c.head_dim)
        angles = torch.arange(c.block_size, dtype=torch.float64, device="cpu")[:, None] * frequencies
        cos, sin = angles.cos().float(), angles.sin().float()
        self.register_buffer("rope_cos", torch.cat((cos, cos), 1), persistent=False)
        self.register_buffer("rope_sin", torch.cat((-sin, sin), 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def head_weight(self) -> torch.Tensor:
        """(V, C): the real rows of the head; padded ids are cut here, so they can neither be sampled nor scored."""
        return self.lm_head.weight[: self.config.vocab_size]

    def compile_blocks(self, backend: str = "inductor") -> None:
        """torch.compile for the blocks, one graph that all of them share. Attention stays what it is (the kernels are
        operators that the compiler does not look into); what gains is all between the products."""
        for block in self.blocks:
            block.compile(backend=backend)

    def n_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def hidden(self, idx, first=None, positions=None, attend=None, ends=None) -> torch.Tensor:
        """idx (B, T) -> final hidden states (B, T, C), normed, before the head.

        first (B, T) int32: query t sees keys first[b, t]..t (left padding, packed documents); None = all before it.
        positions (B, T) int64: rotary positions; None = 0..T-1. attend(layer, q, k, v): replaces causal attention.
        ends (B,) int64: of the last block only these positions are wanted, (B, 1, C); there `attend` answers for them.
        """
        T = idx.shape[1]
        if positions is None:
            if T > self.config.block_size:
                raise UserError(f"{T} tokens exceed the model's context of {self.config.block_size}; shorten the input")
            cos, sin = self.rope_cos[None, :T, None], self.rope_sin[None, :T, None]  # (1, T, 1, D)
        else:
            cos, sin = self.rope_cos[positions].unsqueeze(2), self.rope_sin[positions].unsqueeze(2)  # (B, T, 1, D)
        x, again = self.wte(idx), self.recompute and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            if attend is None:
                see = partial(attention, first=first, impl=self.impl)
            else:
                see = partial(attend, layer)
            if again:
                x = checkpoint(block, x, cos, sin, see, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, cos, sin, see, ends if layer == len(self.blocks) - 1 else None)
        return self.norm_f(x)

    def logprobs(self, hidden, targets, temperature: float = 1.0, entropy: bool = False):
        """hidden (N, C), targets (N,) -> log-prob of the targets under softmax(logits / temperature), log-sum-exp and
        entropy (None unless asked for), each (N,) float32; no (N, V) tensor is kept."""
        settings = dict(temperature=temperature, entropy=entropy, impl=self.impl)
        return linear_logprob(hidden, self.head_weight, targets, **settings)

    def forward(self, idx, targets=None, first=None):
        """idx (B, T) -> logits (B, T, V), or with targets (B, T) the mean next-token loss; first: see hidden()."""
        h = self.hidden(idx, first)
        if targets is None:
            return F.linear(h, self.head_weight)
        return -self.logprobs(h.flatten(0, 1), targets.flatten())[0].mean()

    def completion_logprobs(
        self,
        prompts: list[list[int]],
        completions: list[list[int]],
        temperature: float = 1.0,
        entropy: bool = False,
    ):
        """Log-probs of completions after their prompts, and if asked for the entropy at each token (detached), else
        None: (B, T) float32 each, with mask (B, T), T the longest completion. The mask comes from lengths, never from
        ids, so end-of-text is scored like any token.

        All tokens lie in one row without pads, prompt p and then its completions; neighbouring rows of one prompt
        share it (`Packed`). Only completion positions meet the head.
        """
        kernels = choose_impl(self.impl, self.wte.weight) == "triton"
        packed = Packed(prompts, completions, self.device, kernels)
        if packed.longest > self.config.block_size:
            limit = f"the model's context of {self.config.block_size}"
            raise UserError(f"{packed.longest} tokens exceed {limit}; shorten the input")

        def attend(layer, q, k, v):
            return packed.attention(q, k, v, self.impl)

        h = self.hidden(packed.idx[None], positions=packed.positions[None], attend=attend)[0]
        lengths = torch.tensor([len(c) for c in completions], device=self.device)
        mask = torch.arange(int(lengths.max()), device=self.device) < lengths[:, None]
        targets = torch.tensor([t for c in completions for t in c], device=self.device)
        scored, _, at_each = self.logprobs(h.index_select(0, packed.scoring), targets, temperature, entropy)
        grid = torch.zeros(mask.shape, dtype=scored.dtype, device=self.device)
        return grid.masked_scatter(mask, scored), grid.masked_scatter(mask, at_each.detach()) if entropy else None, mask

    generate = generate  # the sampler of RL and evaluation
    continuation_logprobs = continuation_logprobs  # of the choices of likelihood benchmarks


def build_model(preset: str, **overrides) -> GPT:
    shape = PRESETS[preset]
    if shape.n_kv_head == shape.n_head:  # not grouped, and another n_head does not make it so
        overrides.setdefault("n_kv_head", 0)
    return GPT(replace(shape, **overrides))


class Undrawn(TorchFunctionMode):
    """nn.Embedding draws its weights; without memory there is nothing to draw, but torch would import its compiler to
    find that out, 1 to 3 seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs)


def outline(config: GPTConfig) -> GPT:
    """Names and shapes of a model, without memory for its weights."""
    with torch.device("meta"), Undrawn():
        return GPT(config)


def check_weights(weights: dict, config: GPTConfig) -> None:
    """RuntimeError unless names and shapes are those of a model of this config: told before any memory is taken."""
    layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    if layers != config.n_layer:
        raise RuntimeError(f"weights of {layers} layers, the config has {config.n_layer}")
    wanted = {name: tuple(p.shape) for name, p in outline(config).state_dict().items()}
    if different := sorted(wanted.keys() ^ weights.keys()):
        raise RuntimeError(f"{different[0]} is {'missing' if different[0] in wanted else 'not of this model'}")
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise RuntimeError(f"{name} is {tuple(weights[name].shape)}, the config makes it {shape}")
    if config.tied and not torch.equal(weights["wte.weight"], weights["lm_head.weight"]):
        raise RuntimeError("head and embedding are tied, but wte.weight and lm_head.weight differ")


def load_model(ckpt: dict, path, device: str | torch.device = "cpu", impl: str = "auto") -> GPT:
    """The model of a checkpoint (common.load_checkpoint). UserError if its weights do not fit its own shape."""
    try:
        config = GPTConfig(**ckpt["model_config"])
        check_weights(ckpt["model"], config)
        model = GPT(config)
        model.load_state_dict(ckpt["model"])
    except (RuntimeError, TypeError, UserError) as error:
        detail = str(error).splitlines()[-1].strip()
        what = f"its weights do not fit its model_config ({detail})"
        raise UserError(f"{path}: {what}; the file is damaged, use another") from error
    model.impl = impl
    return model.to(device)


def check_context(prompts: list[list[int]], new_tokens: int, block_size: int) -> None:
    longest = max(map(len, prompts))
    if longest + new_tokens > block_size:
        what = f"prompt of {longest} tokens + {new_tokens} new tokens exceeds the model's context of {block_size}"
        raise UserError(f"{what}; lower --max-new-tokens, drop long questions, or pre-train with a longer --block-size")


if __name__ == "__main__":
    print("The model; train_pretrain.py --preset NAME trains one. Shapes (layers x width, heads, parameters):")
    for preset, config in PRESETS.items():
        size = outline(config).n_params()
        shape = f"{config.n_layer} x {config.n_embd}, {config.n_head} heads"
        print(f"  {preset:<10} {shape:<22} {size / 1e6:9,.1f}M")
