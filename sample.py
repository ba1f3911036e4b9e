"""Reading with a cache: the sampler that RL and evaluation share, and the scores of given continuations.

`generate` and `continuation_logprobs` are methods of GPT (model.py); here lies what they need. The blocks are those of
training, asked to attend to a cache. P prompts, G samples of a prompt; other shapes as in model.py.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from common import UserError
from kernels.attention import attention
from kernels.decode import decode_attention, prefix_tail_attention_torch


@dataclass
class Rollout:
    """N = P * G completions, the G samples of a prompt adjacent.

    tokens (N, L) int64, zeros past the end; lengths (N,) counts the end-of-text; finished (N,) ended by end-of-text
    or a stop string, not by length; logprobs (N, L) float32 of what was sampled, or None.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    finished: torch.Tensor
    logprobs: torch.Tensor | None

    def completions(self) -> list[list[int]]:
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def pad_rows(rows: list[list[int]], width: int, device, left: bool = False) -> torch.Tensor:
    """Rows of ids -> (B, width) int64, padded with 0 (a real id: masks and lengths hide the pads, not values)."""
    padded = [[0] * (width - len(r)) + r if left else r + [0] * (width - len(r)) for r in rows]
    return torch.tensor(padded, dtype=torch.long, device=device).view(len(rows), width)


def uniform_noise(seed: int, question: torch.Tensor, sample: torch.Tensor, position: int) -> torch.Tensor:
    """One number in [0, 1) a row, a pure function of (seed, question, sample, position): splitmix64, wrapping int64.

    A generator's stream would tie each draw to the rows beside it; this way batch size and finished rows change
    nothing.
    """

    def mix(z):
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):  # the constants as signed int64
            z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * factor  # mask: a logical, not arithmetic, shift
        return z ^ ((z >> 31) & ((1 << 33) - 1))

    z = torch.full_like(question, seed)
    for part in (question, sample, torch.full_like(question, position)):
        z = mix(z + (part + 1) * -0x61C8864680B583EB)  # golden-ratio increments keep neighbouring ids apart
    return ((z >> 40) & ((1 << 24) - 1)).to(torch.float32) / (1 << 24)  # 24 bits: exact in float32


def sample_tokens(logits: torch.Tensor, u: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Draw one id a row by inverse CDF (one uniform a row, where multinomial draws V). logits (R, V) float32, u (R,).

    temperature 0 is greedy. top_p < 1 keeps the smallest set of ids whose mass reaches top_p.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits / temperature, dim=-1)
    if top_p >= 1:
        return inverse_cdf(probs, u)
    peak, choice = probs.max(-1)
    open_rows = (peak < top_p).nonzero().squeeze(-1)  # elsewhere the nucleus is one id: no sort needed
    if len(open_rows):
        ordered, ids = probs[open_rows].topk(min(64, probs.shape[-1]), dim=-1)
        if bool((ordered.sum(-1) < top_p).any()):  # flat rows: 64 ids do not reach top_p, so sort them all
            ordered, ids = probs[open_rows].sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        picked = inverse_cdf(ordered.masked_fill(before >= top_p, 0.0), u[open_rows])
        choice[open_rows] = ids.gather(1, picked[:, None]).squeeze(1)
    return choice


def inverse_cdf(probs: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    cdf = probs.cumsum(-1)
    target = u[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True).squeeze(-1).clamp_(max=probs.shape[-1] - 1)


# ----------------------------------------------------------------------------------------------------------- reading
def read(model, rows: list[list[int]], width: int):
    """Read prompts left-padded to `width` -> last hidden states (P, C), cache of each layer (k, v), each (P, K, width,
    D), and first (P,), where each prompt begins."""
    idx = pad_rows(rows, width, model.device, left=True)
    first = torch.tensor([width - len(r) for r in rows], dtype=torch.int32, device=model.device)
    positions = (torch.arange(width, device=model.device)[None] - first[:, None]).clamp(min=0)
    cache = []

    def attend(layer, q, k, v):
        cache.append((k.contiguous(), v.contiguous()))  # read at every step of decoding
        return attention(q, k, v, first=first[:, None].expand(-1, width), impl=model.impl)

    return model.hidden(idx, positions=positions, attend=attend)[:, -1], cache, first


def read_after(model, prefix: list[int], rows: list[list[int]], width: int):
    """`read` of prefix + row for each row, with the shared prefix read once. Same returns, width as for whole rows."""
    _, shared, _ = read(model, [prefix], len(prefix))
    lengths = torch.tensor([len(r) for r in rows], device=model.device)
    idx = pad_rows(rows, round_up(int(lengths.max()), 16), model.device)  # right-padded: causality hides the pads
    positions = (len(prefix) + torch.arange(idx.shape[1], device=model.device))[None].expand(len(rows), -1)
    cache = []

    def attend(layer, q, k, v):
        wide = [k.new_zeros(len(rows), k.shape[1], width, k.shape[3]) for _ in (k, v)]
        for i, row in enumerate(rows):  # each row's cache is [pads | prefix | row], as `read` lays it out
            start = width - len(prefix) - len(row)
            for whole, head, own in zip(wide, shared[layer], (k, v), strict=True):
                whole[i, :, start : start + len(prefix)] = head[0]
                whole[i, :, start + len(prefix) :] = own[i, :, : len(row)]
        cache.append(tuple(wide))
        return prefix_tail_attention_torch(q, *shared[layer], None, k, v, group_size=len(rows))

    h = model.hidden(idx, positions=positions.clamp(max=model.config.block_size - 1), attend=attend)
    first = (width - len(prefix) - lengths).to(torch.int32)
    return h[torch.arange(len(rows), device=model.device), lengths - 1], cache, first


def decoding(cache, first, tails, step: int, **settings):
    """attend(layer, q, k, v) of one decoding step, a token a row: its keys and values go into slot `step` of the row's
    tail, and it sees its prompt's cache and the tail up to there."""

    def attend(layer, q, k, v):
        for tail, fresh in zip(tails[layer], (k, v), strict=True):
            tail[: len(q), :, step] = fresh[:, :, 0]
        k, v = (t[: len(q)] for t in tails[layer])
        out = decode_attention(q[:, :, 0], *cache[layer], first, k, v, tail_lengths=step + 1, **settings)
        return out.unsqueeze(2)

    return attend


# ---------------------------------------------------------------------------------------------- the methods of GPT
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

    Every prompt and the shared prefix are read once; the samples of a prompt share its cache; finished rows leave
    the batch. Draws depend only on (seed, question id, sample, position). On a CPU the row count is kept at 16 or
    more and cache lengths at multiples of 16, since smaller matrices take other kernels: samples then do not depend
    on which prompts are sampled together. `stop` (data.math_qa.StopStrings) ends a row whose text holds a stop
    string. logprobs are of the sampling distribution at this temperature (only without top_p).
    """
    if return_logprobs and (top_p < 1 or temperature == 0):
        raise UserError("log-probs of samples need the full distribution; use temperature > 0 and top_p 1")
    prefix = prefix or []
    longest = len(prefix) + max(map(len, prompts)) + max_new_tokens
    if longest > model.config.block_size:
        got = f"prompt of {longest - max_new_tokens} tokens + {max_new_tokens} new tokens"
        raise UserError(f"{got} exceeds the context of {model.config.block_size}; shorten one")
    was_training, device = model.training, model.device
    model.eval()
    P, G = len(prompts), n_samples
    eos = torch.tensor([eos_id] if isinstance(eos_id, int) else eos_id, device=device)
    width = round_up(max(map(len, prompts)) + len(prefix), 16)
    h, cache, first = read_after(model, prefix, prompts, width) if prefix else read(model, prompts, width)
    question = torch.tensor(question_ids if question_ids is not None else range(P), device=device)

    # Row i of the tail caches is the i-th unfinished completion, in any order; its seat says whose prompt it reads:
    # seats p * group .. (p + 1) * group - 1 belong to prompt p.
    group = round_up(G, 16)
    padded = max(16, round_up(P * G, 8))
    tails = [tuple(t.new_empty(padded, t.shape[1], 0, t.shape[3]) for t in kv) for kv in cache]
    tokens = torch.zeros(P * G, max_new_tokens, dtype=torch.long)
    logprobs = torch.zeros(P * G, max_new_tokens) if return_logprobs else None
    lengths = torch.full((P * G,), max_new_tokens)
    finished = torch.zeros(P * G, dtype=torch.bool)

    row = torch.arange(P * G, device=device)
    seat = row // G * group + row % G
    h = h.repeat_interleave(G, dim=0)
    h = torch.cat((h, h[-1:].expand(padded - len(h), -1)))
    for step in range(max_new_tokens):
        logits = F.linear(h, model.head_weight).float()[: len(row)]
        u = uniform_noise(seed, question[row // G], row % G, step)
        new = sample_tokens(logits, u, temperature, top_p)
        if return_logprobs:
            scaled = logits / temperature
            logprobs[row.cpu(), step] = (scaled.gather(1, new[:, None])[:, 0] - scaled.logsumexp(-1)).cpu()
        tokens[row.cpu(), step] = new.cpu()
        done = torch.isin(new, eos)
        if stop is not None:
            for i in stop.candidates.to(device)[new].nonzero().squeeze(-1).tolist():
                done[i] |= stop(tokens[row[i], : step + 1].tolist())
        lengths[row[done].cpu()] = step + 1
        finished[row[done].cpu()] = True
        if len(row) == int(done.sum()) or step + 1 == max_new_tokens:
            break

        # The last unfinished rows move into the places of finished ones: few tails are copied, no holes are left.
        left = len(row) - int(done.sum())
        holes, movers = done[:left].nonzero().squeeze(-1), left + (~done[left:]).nonzero().squeeze(-1)
        for t in (t for tail in tails for t in tail):
            t[holes] = t[movers]
        for t in (row, seat, new):
            t[holes] = t[movers]
        row, seat, new = row[:left], seat[:left], new[:left]

        # Drop prompts whose samples have all ended, and shrink the groups when every prompt has few left.
        alive, place, counts = (seat // group).unique(return_inverse=True, return_counts=True)
        smaller = min(group, round_up(int(counts.max()), 16))
        if len(alive) <= 0.75 * len(first) or smaller < group:
            by_prompt = place.argsort(stable=True)
            starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
            seat[by_prompt] = place[by_prompt] * smaller + torch.arange(left, device=device) - starts
            cache = [tuple(t[alive] for t in kv) for kv in cache]
            group, first = smaller, first[alive]
        row_of = torch.zeros(len(first) * group, dtype=torch.long, device=device)  # empty seats: any row
        row_of[seat] = torch.arange(left, device=device)

        # One token a row through the blocks; rows padded to a multiple of 8, at least 16, by repeating the last.
        padded = max(16, round_up(left, 8))
        if step % 16 == 0:  # the tails are full: 16 more slots for the rows that are left
            more = lambda t, n=padded: torch.cat((t[:n], t.new_zeros(n, t.shape[1], 16, t.shape[3])), 2)  # noqa: E731
            for layer, kv in enumerate(tails):  # one by one: the old list whole would double the cache
                tails[layer] = tuple(more(t) for t in kv)
        seat_of = torch.cat((seat, seat[-1:].expand(padded - left)))
        position = (width - first.long())[seat_of // group] + step  # real prompt length + step

        seats = dict(group_size=group, seats=(seat_of, row_of))
        attend = decoding(cache, first, tails, step, **seats, impl=model.impl)
        new = torch.cat((new, new[-1:].expand(padded - left)))
        h = model.hidden(new[:, None], positions=position[:, None], attend=attend)[:, 0]
    model.train(was_training)
    L = int(lengths.max())
    return Rollout(tokens[:, :L], lengths, finished, logprobs[:, :L] if return_logprobs else None)


@torch.no_grad()
def continuation_logprobs(model, contexts, choices, micro_batch_tokens: int = 8192) -> list[list[tuple[float, bool]]]:
    """For each context (ids) and each of its choices (ids): (sum of the choice's log-probs, is it the greedy choice).

    A context is read once for all its choices; only choice positions meet the head. Items are sorted by length and
    cut to about `micro_batch_tokens` tokens of context, which changes memory and speed only.
    """
    was_training = model.training
    model.eval()
    results: list = [None] * len(contexts)
    order = sorted(range(len(contexts)), key=lambda i: -len(contexts[i]))
    while order:
        width = round_up(len(contexts[order[0]]), 16)  # the longest of what is left
        count = max(1, micro_batch_tokens // width)
        batch, order = order[:count], order[count:]
        scores = score_choices(model, [contexts[i] for i in batch], [choices[i] for i in batch], width)
        for i, found in zip(batch, scores, strict=True):
            results[i] = found
    model.train(was_training)
    return results


def score_choices(model, contexts, choices, width):
    last, cache, first = read(model, contexts, width)
    group, device = max(map(len, choices)), model.device
    flat = [c for item in choices for c in item + [item[-1]] * (group - len(item))]  # equal groups; repeats are dropped
    T = max(max(len(c) for c in flat) - 1, 1)
    idx = pad_rows([c[:-1] for c in flat], T, device)  # the context's last state scores a choice's first token
    positions = (width - first.long()).repeat_interleave(group)[:, None] + torch.arange(T, device=device)

    def attend(layer, q, k, v):
        return prefix_tail_attention_torch(q, *cache[layer], first, k, v, group_size=group)

    h = model.hidden(idx, positions=positions.clamp(max=model.config.block_size - 1), attend=attend)
    h = torch.cat((last.repeat_interleave(group, dim=0)[:, None], h), dim=1)[:, : max(map(len, flat))]
    real = torch.arange(h.shape[1], device=device)[None] < torch.tensor([len(c) for c in flat], device=device)[:, None]
    targets = pad_rows(flat, h.shape[1], device)[real]
    logits = F.linear(h[real], model.head_weight).float()
    scores = torch.zeros(real.shape, device=device)
    scores[real] = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)
    wrong = torch.zeros(real.shape, dtype=torch.bool, device=device)
    wrong[real] = logits.argmax(-1) != targets
    rows = list(zip(scores.cpu().double().sum(1).tolist(), (~wrong.any(1)).tolist(), strict=True))
    return [rows[i * group : i * group + len(item)] for i, item in enumerate(choices)]
