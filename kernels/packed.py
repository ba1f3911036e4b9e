"""Attention over prompts and their completions as training and scoring lay them out: one row of tokens without pads.

The blocks of model.py work on tokens and ask for attention; here lies which token sees which. P prompts, G completions
of a prompt, other shapes as in model.py.
"""

import itertools
import math

import torch
import torch.nn.functional as F

from kernels.attention import attention
from kernels.dispatch import to_autocast
from kernels.gradients import move_rows


class Packed:
    """Prompts and their completions as one row of N tokens, each prompt once and without pads, for training. All layers
    but attention work on the tokens; attention moves them to slots, and its output back:

        tokens (N,)    p p p a a b b b q q c d d     prompt p with completions a and b, prompt q with c and d

        slots          prompts (P, Tp)    completions (rows, T)      keys that a completion's token sees
                         p p p              c .                        q q . | c up to itself
                         q q .              a a                        p p p | a up to itself
                                            d d                        q q . | d up to itself

                                            b b b                      p p p | b up to itself

    Pads (.) stand at the right, where causality hides them; completions of like length share a rectangle, since a row
    as wide as the longest of all would be two thirds pads. A completion's last token is left out: nothing is predicted
    from it. With fewer than two neighbouring completions of a prompt on average each completion has its own copy of the
    prompt, and the slots are plain causal rows (B, T) of prompt + completion.

    On a GPU (`kernels`) the slots are rows (P, L) of a prompt and all its completions, p p p a a b b b: the attention
    kernel takes where each one's own keys begin, and how many keys all of a row share.
    """

    def __init__(self, prompts: list[list[int]], completions: list[list[int]], device, kernels: bool = False):
        pairs = list(zip(prompts, completions, strict=True))
        groups = [(p, [c for _, c in group]) for p, group in itertools.groupby(pairs, key=lambda pair: pair[0])]
        self.shared = 2 * len(groups) <= len(pairs)
        groups = groups if self.shared else [(p, [c]) for p, c in pairs]
        self.longest = max(len(p) + len(c) - 1 for p, c in pairs)
        tokens, positions, scoring = [], [], []  # scoring: the states that predict the completions' tokens
        prompt_spans, own_spans = [], []  # (first token, number of tokens) of each prompt; of its completions
        for prompt, group in groups:
            prompt_spans.append((len(tokens), len(prompt)))
            own_spans.append([])
            tokens += prompt
            positions += range(len(prompt))
            last = len(tokens) - 1
            for c in group:
                start, n = len(tokens), len(c[:-1])
                own_spans[-1].append((start, n))
                scoring += [last, *range(start, start + n)][: len(c)]
                tokens += c[:-1]
                positions += range(len(prompt), len(prompt) + n)
        self.idx, self.positions, self.scoring = (
            torch.tensor(x, dtype=torch.long, device=device) for x in (tokens, positions, scoring)
        )
        self.first = self.prompt_lengths = None
        self.completions = []  # of each rectangle of completions: the prompt of each row, and the bias of its keys
        if self.shared and kernels:
            rows = [
                (start, n + sum(m for _, m in own)) for (start, n), own in zip(prompt_spans, own_spans, strict=True)
            ]
            slots = [span_slots(rows, device)]
            self.first = first_keys(prompt_spans, own_spans, device)
            self.prompt_lengths = torch.tensor([n for _, n in prompt_spans], dtype=torch.int32, device=device)
        elif self.shared:
            slots = [span_slots(prompt_spans, device)]
            rows = [(*span, p) for p, own in enumerate(own_spans) for span in own]
            for rectangle in by_length([row for row in rows if row[1]]):
                slots.append(span_slots([row[:2] for row in rectangle], device))
                prompt = torch.tensor([p for *_, p in rectangle], device=device)  # of each row
                seen = visible_to_completions(slots[0][prompt], slots[-1].shape[1])
                self.completions.append((prompt, torch.where(seen, 0.0, -math.inf)))
        else:
            rows = [(start, n + own) for (start, n), [(_, own)] in zip(prompt_spans, own_spans, strict=True)]
            slots = [span_slots(rows, device)]
        self.shapes = [x.shape for x in slots]
        self.token_of = torch.cat([x.flatten() for x in slots])  # of each slot, -1 at pads
        real = (self.token_of >= 0).nonzero().squeeze(1)
        self.slot_of = torch.empty_like(self.idx).index_copy_(0, self.token_of[real], real)  # of each token

    def attention(self, q, k, v, impl: str):
        """Causal attention within each prompt + completion: q (1, H, N, D), k and v (1, K, N, D) -> (1, H, N, D)."""
        q, k, v = (self.to_slots(x) for x in to_autocast(q, k, v))
        # The prompts, or whole rows.
        out = [attention(q[0], k[0], v[0], first=self.first, shared=self.prompt_lengths, impl=impl)]
        dtype, grouped = q[0].dtype, q[0].shape[1] != k[0].shape[1]
        narrow = q[0].device.type == "cpu" and dtype in (torch.float16, torch.bfloat16)  # slow: attention_torch.py
        for i, (prompt, bias) in enumerate(self.completions, 1):
            keys, values = (torch.cat((x[0].index_select(0, prompt), x[i]), 2) for x in (k, v))
            query = q[i]
            if narrow:
                query, keys, values = query.float(), keys.float(), values.float()
            with torch.autocast(query.device.type, enabled=False):
                own = F.scaled_dot_product_attention(query, keys, values, bias.to(query.dtype), enable_gqa=grouped)
            out.append(own.to(dtype))
        out = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in out])  # (slots, H, D)
        return move_rows(out, self.slot_of, self.token_of).transpose(0, 1)[None]

    def to_slots(self, x) -> list[torch.Tensor]:
        """x (1, heads, N, D) -> (rows, heads, width, D) for each rectangle of slots; pads are 0."""
        x = move_rows(x[0].transpose(0, 1), self.token_of, self.slot_of)
        parts = x.split([rows * width for rows, width in self.shapes])
        return [part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, self.shapes, strict=True)]


def span_slots(spans: list[tuple[int, int]], device) -> torch.Tensor:
    """(first token, number of tokens) of each row -> (rows, longest): the token in each slot, -1 at pads."""
    start, length = torch.tensor(spans, dtype=torch.long, device=device).unbind(1)
    t = torch.arange(max(1, int(length.max())), device=device)
    return torch.where(t < length[:, None], start[:, None] + t, -1)


def first_keys(prompt_spans, own_spans, device) -> torch.Tensor:
    """(P, L) int32, of a slot in rows [prompt | completions | pads]: where the prompt or completion that it belongs to
    begins. A pad sees only the prompt."""
    rows = []
    for (row, n), own in zip(prompt_spans, own_spans, strict=True):
        rows.append([0] * n + [start - row for start, m in own for _ in range(m)])
    longest = max(map(len, rows))
    return torch.tensor([r + [2**31 - 1] * (longest - len(r)) for r in rows], dtype=torch.int32, device=device)


def by_length(rows: list[tuple]) -> list[list[tuple]]:
    """Rows (first token, number of tokens, ...) in lists of like length: up to 16 tokens, 32, 64 ..."""

    def width(row):
        return max(16, 1 << (row[1] - 1).bit_length())

    return [list(group) for _, group in itertools.groupby(sorted(rows, key=width), key=width)]


def visible_to_completions(prompts: torch.Tensor, T: int) -> torch.Tensor:
    """Prompts' slots (rows, Tp) and T slots of completions -> mask (rows, 1, T, Tp + T): the whole prompt, and the own
    tokens so far."""
    seen = (prompts >= 0)[:, None].expand(-1, T, -1)
    causal = torch.ones(T, T, dtype=torch.bool, device=prompts.device).tril().expand(len(prompts), -1, -1)
    return torch.cat((seen, causal), 2)[:, None]
