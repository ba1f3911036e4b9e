"""The sampler: `generate` draws completions of prompts, `continuation_logprobs` scores given ones; both methods of GPT.

Sampling is training's forward pass, model.hidden, with an attention that reads a cache of keys and values
(kernels/cache.py):

    read the prompts, all at once                                     read
    then, a token of every unfinished completion at a time:           generate
        take the logits of its last state and draw a token            sample_tokens
        let the completions that have ended leave the batch           Unfinished.leave
        let the blocks read the tokens of those that go on            Unfinished.step

P prompts, G samples of a prompt, N = P * G completions, R of them unfinished; other shapes as in model.py.

    python sample.py --ckpt checkpoints/world_base.pt --prompt "The home of Sue is"
    python sample.py --ckpt checkpoints/world_base.pt --template world --interactive
"""

import contextlib
import importlib
import math
from dataclasses import dataclass

import torch

from common import UserError, run
from kernels.attention import attention
from kernels.cache import PromptCache, Replayed, Unfinished, batch_rows, repeat_last, round_up
from kernels.decode import prefix_tail_attention_torch
from kernels.dispatch import choose_impl, to_autocast
from kernels.logprob import float32_logits
from processes import deal, gather


@dataclass
class Rollout:
    """N = P * G completions, the G samples of a prompt adjacent; all tensors on the CPU.

    tokens (N, L) int64, zeros past the end; lengths (N,) counts the end-of-text; finished (N,) ended by end-of-text
    or a stop string, not by length; logprobs (N, L) float32 of what was sampled, or None.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    finished: torch.Tensor
    logprobs: torch.Tensor | None

    def completions(self) -> list[list[int]]:
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]

    def token_logprobs(self) -> list[list[float]]:
        """Of each completion; empty where none were asked for."""
        rows = [[]] * len(self.tokens) if self.logprobs is None else self.logprobs.tolist()
        return [row[:n] for row, n in zip(rows, self.lengths.tolist(), strict=True)]


@torch.no_grad()
def generate(
    model,
    prompts: list[list[int]],
    *,
    n_samples: int,
    max_new_tokens: int,
    eos_id: int | list[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    question_ids: list[int] | None = None,
    prefix: list[int] | None = None,
    stop=None,
    return_logprobs: bool = False,
) -> Rollout:
    """Sample `n_samples` completions of each prompt (or of prefix + prompt) from softmax(logits / temperature).

    A completion ends with an id of `eos_id`, with the token that completes a stop string (`stop`: a
    data.math_qa.StopStrings), or at `max_new_tokens`. logprobs are of the sampling distribution at this temperature
    (only without top_p). UserError for prompts and settings that cannot be sampled, and for logits that are not finite.

    A draw is a function of (seed, question id, sample, position) and the logits, which do not depend on the rows beside
    them (see `batch_rows`): samples are the same whichever prompts are sampled together.

    To sample in another way, change the lines marked ABLATION; the others only keep the books.
    """
    check_request(model, prompts, prefix or [], max_new_tokens, temperature, top_p, return_logprobs)
    N = len(prompts) * n_samples
    question = torch.tensor(range(len(prompts)) if question_ids is None else question_ids)
    eos = torch.tensor([eos_id] if isinstance(eos_id, int) else eos_id)
    tokens, logprobs = torch.zeros(N, max_new_tokens, dtype=torch.long), torch.zeros(N, max_new_tokens)
    lengths, finished = torch.zeros(N, dtype=torch.long), torch.zeros(N, dtype=torch.bool)
    with evaluation_mode(model):
        (head,) = to_autocast(model.head_weight)  # once, not once a token
        last, cache = read(model, prompts, prefix or [])
        if model.cuda_graph:
            batch = Replayed(model, cache, n_samples, max_new_tokens)
        else:
            batch = Unfinished(model, cache, n_samples)
        h = last.repeat_interleave(n_samples, dim=0)  # a completion begins where its prompt ends
        h = repeat_last(h, batch_rows(N))
        u = uniform_noise(seed, question.repeat_interleave(n_samples), torch.arange(N) % n_samples, max_new_tokens)
        for step in range(max_new_tokens):
            ids = batch.ids  # (R,): which of the N completions the rows of h are
            logits = float32_logits(h, head)[: len(ids)]  # (R, V)
            check_logits(logits)
            # ABLATION: other logits, another way to draw from them
            new = sample_tokens(logits, u[step, ids].to(logits.device), temperature, top_p)  # (R,)
            tokens[ids, step], lengths[ids] = new.cpu(), step + 1
            if return_logprobs:
                logprobs[ids, step] = token_logprobs(logits / temperature, new).cpu()
            # ABLATION: another end of a completion
            finished[ids] = done = torch.isin(tokens[ids, step], eos) | ended_by(stop, tokens, ids, step)
            if bool(done.all()) or step + 1 == max_new_tokens:
                break
            batch.leave(done)
            h = batch.step(tokens[batch.ids, step])
    L = int(lengths.max())
    return Rollout(tokens[:, :L], lengths, finished, logprobs[:, :L] if return_logprobs else None)


def ended_by(stop, tokens: torch.Tensor, ids: torch.Tensor, step: int) -> torch.Tensor:
    """(R,) bool: does the text of completion ids[i] hold a stop string? Only tokens that can end one are asked."""
    done = torch.zeros(len(ids), dtype=torch.bool)
    if stop is not None:
        newest = tokens[ids, step].clamp(max=len(stop.candidates) - 1)  # a model may have more ids than its tokenizer
        for i in stop.candidates[newest].nonzero().squeeze(-1).tolist():
            done[i] = stop(tokens[ids[i], : step + 1].tolist())
    return done


# ----------------------------------------------------------------------------------------------------------- reading
def read(model, prompts: list[list[int]], prefix: list[int], scoring: bool = False) -> tuple[torch.Tensor, PromptCache]:
    """Read prefix + prompt for each prompt -> last hidden states (P, C) and the cache. The prefix is read once: the
    prompts attend to its keys. Rows are as wide as the longest, rounded up to a multiple of 16: the last bits must not
    depend on how the prompts were batched. `scoring` does without that: rows are not rounded, and each prompt's last
    token alone goes through what follows the keys and values of the last block."""
    common, n, device = None, len(prefix), model.device
    if prefix:
        _, cache = read(model, [prefix], [])
        common = [(k[:, :, :n].contiguous(), v[:, :, :n].contiguous()) for k, v in cache.layers]
    lengths = torch.tensor([len(row) for row in prompts], device=device)
    width = round_up(int(lengths.max()), 1 if scoring else 16)
    idx = pad_rows(prompts, width, device)  # at the right, where causality hides the pads
    positions = (n + torch.arange(idx.shape[1], device=device)).clamp(max=model.config.block_size - 1)
    layers = []

    def attend(layer, q, k, v):
        wide = torch.promote_types(k.dtype, torch.float32) if device.type == "cpu" else k.dtype
        layers.append((k.to(wide).contiguous(), v.to(wide).contiguous()))  # read at every step of decoding
        if scoring and layer == model.config.n_layer - 1:
            q, *own = (x.take_along_dim(lengths[:, None, None, None] - 1, 2) for x in (q, *layers[layer]))
            settings = dict(group_size=1, prefix_lengths=lengths - 1)
            return prefix_tail_attention_torch(q, *layers[layer], None, *own, **settings)
        if common is None:
            return attention(q, k, v, impl=model.impl)
        return prefix_tail_attention_torch(q, *common[layer], None, *layers[layer], group_size=len(prompts))

    h = model.hidden(idx, positions=positions[None], attend=attend, ends=lengths - 1 if scoring else None)
    cache = PromptCache(layers, lengths, common)
    if choose_impl(model.impl, h) == "triton":
        cache = cache.copied()
    return h[:, 0] if scoring else h[torch.arange(len(prompts), device=device), lengths - 1], cache


def pad_rows(rows: list[list[int]], width: int, device) -> torch.Tensor:
    """Rows of ids -> (B, width) int64, padded with 0 (a real id: masks and lengths hide the pads, not values)."""
    padded = [row + [0] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.long, device=device).view(len(rows), width)


@contextlib.contextmanager
def evaluation_mode(model):
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


# ----------------------------------------------------------------------------------------------------------- drawing
def uniform_noise(seed: int, question: torch.Tensor, sample: torch.Tensor, positions: int) -> torch.Tensor:
    """(positions, rows), each number in [0, 1) a pure function of (seed, question, sample, position): splitmix64,
    wrapping int64. question, sample (rows,).

    A generator's stream would tie each draw to the rows beside it; this way batch size and finished rows change
    nothing.
    """

    def mix(z):
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):  # the constants as signed int64
            z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * factor  # mask: a logical, not arithmetic, shift
        return z ^ ((z >> 31) & ((1 << 33) - 1))

    z = torch.full_like(question, seed)
    for part in (question, sample, torch.arange(positions)[:, None]):
        z = mix(z + (part + 1) * -0x61C8864680B583EB)  # golden-ratio increments keep neighbouring ids apart
    return ((z >> 40) & ((1 << 24) - 1)).to(torch.float32) / (1 << 24)  # 24 bits: exact in float32


def sample_tokens(logits: torch.Tensor, u: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Draw one id a row by inverse CDF (one uniform a row, where multinomial draws V). logits (R, V) float32, u (R,).

    temperature 0 is greedy. top_p < 1 keeps the smallest set of ids whose mass reaches top_p.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits if temperature == 1 else logits / temperature, dim=-1)
    if top_p >= 1:
        return inverse_cdf(probs, u)
    peak, choice = probs.max(-1)
    rows = (peak < top_p).nonzero().squeeze(-1)  # elsewhere the nucleus is one id
    for k in (8, 64, probs.shape[-1]):  # few ids mostly reach top_p, and all of them take fifteen times as long
        if not len(rows):
            break
        ordered, ids = probs[rows].topk(min(k, probs.shape[-1]), dim=-1)
        before = ordered.cumsum(-1) - ordered
        picked = inverse_cdf(ordered.masked_fill(before >= top_p, 0.0), u[rows])
        choice[rows] = ids.gather(1, picked[:, None]).squeeze(1)
        rows = rows[ordered.sum(-1) < top_p]  # flat ones: once more, among more ids
    return choice


def inverse_cdf(probs: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    cdf = probs.cumsum(-1)
    target = u[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True).squeeze(-1).clamp_(max=probs.shape[-1] - 1)


def token_logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """logits (R, V), ids (R,) -> (R,): log-prob of each id under softmax(logits)."""
    return logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(-1)


# --------------------------------------------------------------------------------------------------- what is refused
def check_request(model, prompts, prefix, max_new_tokens, temperature, top_p, return_logprobs) -> None:
    """UserError for what `generate` cannot do."""
    V, limit = model.config.vocab_size, model.config.block_size
    if not prompts or not all(prompts):
        raise UserError("a prompt without tokens cannot be continued; give each at least one, for instance end-of-text")
    if odd := [i for row in (prefix, *prompts) for i in row if not 0 <= i < V]:
        raise UserError(f"token {odd[0]} of a prompt is not among the model's {V}; encode with the model's tokenizer")
    n = len(prefix) + max(map(len, prompts))
    if n + max_new_tokens > limit:
        what = f"prompt of {n} tokens + {max_new_tokens} new tokens"
        raise UserError(f"{what} exceeds the context of {limit}; shorten one")
    check_draw(temperature, top_p)
    if return_logprobs and (top_p < 1 or temperature == 0):
        raise UserError("log-probs of samples need the full distribution; use temperature > 0 and top_p 1")


def check_draw(temperature: float, top_p: float) -> None:
    """The least temperature is one that keeps logits / temperature finite."""
    if not (temperature == 0 or 1e-6 <= temperature < math.inf) or not 0 < top_p <= 1:
        given = f"--temperature {temperature:g} --top-p {top_p:g}"
        raise UserError(f"{given}: give a temperature of 0 (greedy) or at least 1e-6, and a top-p above 0, at most 1")


def check_logits(logits: torch.Tensor) -> None:
    """UserError unless logits (R, V) are finite: a token drawn from NaN looks like any other. If their sum is finite,
    they are; looking at each of them takes 30 times as long."""
    if not bool(logits.sum().isfinite()) and (bad := int((~logits.isfinite()).any(-1).sum())):
        what = f"the logits of {bad} of {len(logits)} rows are NaN or infinite"
        why = "the model's weights or activations are not finite"
        raise UserError(f"{what}: {why}; use another checkpoint, or --dtype float32 if it was not")


# ----------------------------------------------------------------------------------------------------------- scoring
@torch.no_grad()
def continuation_logprobs(model, contexts, choices, micro_batch_tokens: int = 4096) -> list[list[tuple[float, bool]]]:
    """For each context (ids) and each of its choices (ids): (sum of the choice's log-probs, is it the greedy choice).

    A context is read once for all its choices; only choice positions meet the head. Items are sorted by length and
    cut to about `micro_batch_tokens` tokens of context, which changes memory and speed only.
    """
    order, batches = sorted(range(len(contexts)), key=lambda i: -len(contexts[i])), []
    while order:
        count = max(1, micro_batch_tokens // len(contexts[order[0]]))  # the longest of what is left
        batches.append(order[:count])
        order = order[count:]
    with evaluation_mode(model):
        parts = [([contexts[i] for i in batch], [choices[i] for i in batch]) for batch in deal(batches)]
        scored = gather([score_choices(model, *part) for part in parts])
    results: list = [None] * len(contexts)
    for batch, scores in zip(batches, scored, strict=True):
        for i, found in zip(batch, scores, strict=True):
            results[i] = found
    return results


def score_choices(model, contexts, choices) -> list[list[tuple[float, bool]]]:
    """One batch of `continuation_logprobs`: every choice is a row that attends to [its context | itself]."""
    last, cache = read(model, contexts, [], scoring=True)
    group, device = max(map(len, choices)), model.device
    rows = [c for item in choices for c in item + [item[-1]] * (group - len(item))]  # equal groups; repeats are dropped
    T = max(max(map(len, rows)) - 1, 1)
    idx = pad_rows([c[:-1] for c in rows], T, device)  # the context's last state scores a choice's first token
    begin = torch.tensor([len(c) for c in contexts], device=device).repeat_interleave(group)
    positions = (begin[:, None] + torch.arange(T, device=device)).clamp(max=model.config.block_size - 1)

    def attend(layer, q, k, v):
        settings = dict(group_size=group, prefix_lengths=cache.lengths)
        return prefix_tail_attention_torch(q, *cache.layers[layer], None, k, v, **settings)

    h = model.hidden(idx, positions=positions, attend=attend)
    h = torch.cat((last.repeat_interleave(group, dim=0)[:, None], h), dim=1)[:, : max(map(len, rows))]
    real = torch.arange(h.shape[1], device=device)[None] < torch.tensor([len(c) for c in rows], device=device)[:, None]
    targets = pad_rows(rows, h.shape[1], device)[real]
    logits = float32_logits(h[real], model.head_weight)
    check_logits(logits)
    scores, wrong = torch.zeros(real.shape, device=device), torch.zeros(real.shape, dtype=torch.bool, device=device)
    scores[real], wrong[real] = token_logprobs(logits, targets), logits.argmax(-1) != targets
    found = list(zip(scores.cpu().double().sum(1).tolist(), (~wrong.any(1)).tolist(), strict=True))
    return [found[i * group : i * group + len(item)] for i, item in enumerate(choices)]


# ------------------------------------------------------------------------------------------------------ command line
def main() -> None:
    """The command line lies in tools/complete.py: it loads a model, and model.py imports this file. Looked up by name,
    it is no part of the code that a training run is made of (common.source_files)."""
    importlib.import_module("tools.complete").main()


if __name__ == "__main__":
    run(main)
