"""The keys and values that a sampler keeps: of prompts, once for all their samples, and of the samples themselves.

sample.py draws the tokens; the rows, their seats and their caches are kept here. P prompts, R rows that go on, K
key/value heads, D head size.
"""

from dataclasses import dataclass

import torch

from kernels.decode import decode_attention


@dataclass
class PromptCache:
    """Keys and values of P prompts, padded at the right; `common`, of a prefix that all of them begin with."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]  # k and v of each layer, (P, K, width, D)
    lengths: torch.Tensor  # (P,): each prompt's own tokens
    common: list[tuple[torch.Tensor, torch.Tensor]] | None  # (1, K, n, D)

    def starts(self) -> torch.Tensor:
        """(P,): the position of the first token after each prompt."""
        return self.lengths + self.common[0][0].shape[2] if self.common else self.lengths

    def kept(self, prompts: torch.Tensor) -> "PromptCache":
        return PromptCache([(k[prompts], v[prompts]) for k, v in self.layers], self.lengths[prompts], self.common)

    def copied(self) -> "PromptCache":
        """The same with a copy of the common prefix in each prompt: Triton's kernel takes one prefix a row."""
        if not self.common:
            return self
        whole = [
            tuple(torch.cat((c.expand(len(x), -1, -1, -1), x), dim=2) for c, x in zip(common, own, strict=True))
            for common, own in zip(self.common, self.layers, strict=True)
        ]
        return PromptCache(whole, self.starts(), None)


class Unfinished:
    """The R completions that have not ended, one a row of the batch, and the keys and values that they attend to.

    The keys of one layer (its values lie alike) after three tokens, when all samples of prompt 1 have ended:

        prompts.layers  (P, K, width, D)                  tails  (rows, K, slots, D)
        prompt 0  p p p p p p p . . .   seats  0 -  7     row 0  t t t _ _ ..    prompt[0] = 2, in seat 16
        prompt 1  p p p p p p p p p p   seats  8 - 15     row 1  t t t _ _ ..    prompt[1] = 0, in seat 0
        prompt 2  p p p p p p p p p .   seats 16 - 23     row 2  t t t _ _ ..    prompt[2] = 2, in seat 17

        p  a prompt's tokens, once for all its samples    t  a row's own tokens, `length` of them in every row
        .  padding                                        _  free slots; 16 more when there are none

    Rows stand in any order: the last ones take the places of those that leave, so that few tails are copied. Only to
    meet the prompts' keys, in one matrix product for all rows of a prompt, are they put side by side: each prompt has
    `group` seats, some of them empty. `rows` is R rounded up (`batch_rows`): those beyond are copies of the last.
    """

    def __init__(self, model, prompts: PromptCache, n_samples: int):
        self.model, self.prompts, self.length = model, prompts, 0
        self.ids = torch.arange(len(prompts.lengths) * n_samples)  # (R,): which of the N completions a row is
        self.prompt = self.ids // n_samples  # (R,): which of the cached prompts it reads
        rows = self.n_rows(len(self.ids))
        self.tails = [tuple(x.new_empty(rows, x.shape[1], 0, x.shape[3]) for x in kv) for kv in prompts.layers]
        self.take_seats()

    def leave(self, done: torch.Tensor) -> None:
        """Rows where done (R,) leave, and the last rows move to their places."""
        if not bool(done.any()):
            return
        left = int((~done).sum())
        holes, movers = done[:left].nonzero().squeeze(-1), left + (~done[left:]).nonzero().squeeze(-1)
        for x in (self.ids, self.prompt, *(x for kv in self.tails for x in kv)):
            x.index_copy_(0, holes.to(x.device), x.index_select(0, movers.to(x.device)))
        self.ids, self.prompt = self.ids[:left], self.prompt[:left]
        self.take_seats()

    def take_seats(self) -> None:
        """Seat the rows of a prompt side by side. Prompts without rows are forgotten once they are a quarter of all."""
        counts = torch.bincount(self.prompt, minlength=len(self.prompts.lengths))  # (P,): rows of each prompt
        alive = counts > 0
        if int(alive.sum()) <= 0.75 * len(alive):
            self.prompts = self.prompts.kept(alive.nonzero().squeeze(-1).to(self.prompts.lengths.device))
            self.prompt = (alive.cumsum(0) - 1)[self.prompt]
            counts = counts[alive]
        self.group = round_up(int(counts.max()), 8)
        self.seats = self.seating(counts)

    def n_rows(self, n: int) -> int:
        return batch_rows(n)

    def seating(self, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The seat of each row, and the row in each seat."""
        device, order = self.prompts.lengths.device, self.prompt.argsort(stable=True)  # the rows, by prompt
        place = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # 0.. in each prompt
        seat_of, row_of = torch.empty_like(order), torch.zeros(len(counts) * self.group, dtype=torch.long)
        seat_of[order] = self.prompt[order] * self.group + place
        row_of[seat_of] = torch.arange(len(order))  # an empty seat names any row
        seat_of = repeat_last(seat_of, self.n_rows(len(order)))
        return seat_of.to(device), row_of.to(device)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """The blocks read tokens (R,), one a row, whose keys and values go to the tails. Returns the last hidden states
        (rows, C): the first R count, see `batch_rows`."""
        rows, length, device = batch_rows(len(tokens)), self.length, self.model.device
        if length == self.tails[0][0].shape[2]:
            self.grow(rows, length + 16)
        position = self.prompts.starts()[self.seats[0] // self.group] + length

        def attend(layer, q, k, v):  # q (rows, H, 1, D), k and v (rows, K, 1, D)
            own = [x[:rows] for x in self.tails[layer]]
            for x, new in zip(own, (k, v), strict=True):
                x[:, :, length] = new[:, :, 0]
            return self.attended(layer, q, own, length + 1)

        self.length += 1
        tokens = repeat_last(tokens, rows).to(device)
        return self.model.hidden(tokens[:, None], positions=position[:, None], attend=attend)[:, 0]

    def attended(self, layer: int, q, tails, tail_lengths) -> torch.Tensor:
        """(rows, H, 1, D): the attention of q (rows, H, 1, D) over prompts and tails."""
        prompts, seats = self.prompts, dict(group_size=self.group, seats=self.seats)
        lengths = dict(prefix_lengths=prompts.lengths, tail_lengths=tail_lengths)
        common = prompts.common and prompts.common[layer]
        keys = (*prompts.layers[layer], None, *tails)
        out = decode_attention(q[:, :, 0], *keys, **seats, **lengths, common=common, impl=self.model.impl)
        return out.unsqueeze(2)

    def grow(self, rows: int, slots: int) -> None:
        """More slots a row, for the rows that are left."""
        for layer, kv in enumerate(self.tails):  # one by one: the old list whole would double the cache
            _, K, old, D = kv[0].shape
            self.tails[layer] = tuple(torch.cat((x[:rows], x.new_zeros(rows, K, slots - old, D)), 2) for x in kv)


class Replayed(Unfinished):
    """The same by a CUDA graph: one launch a token, where each layer makes some twenty. A graph has fixed shapes and
    addresses, so rows that leave only move behind those that go on, tails have all their slots from the start, and what
    changes from token to token lies in tensors on the device. Once half of the rows have left everything shrinks, and
    the next step is captured anew.
    """

    def __init__(self, model, prompts: PromptCache, n_samples: int, max_new_tokens: int):
        self.rows, self.slots = 0, round_up(max_new_tokens, 16)
        super().__init__(model, prompts, n_samples)

    def n_rows(self, n: int) -> int:
        return self.rows or batch_rows(n)

    def take_seats(self) -> None:
        rows = batch_rows(len(self.ids))
        if self.rows and 2 * rows > self.rows:  # the same shapes: new seats in the old tensors
            counts = torch.bincount(self.prompt, minlength=len(self.prompts.lengths))
            for old, new in zip(self.seats, self.seating(counts), strict=True):
                old.copy_(new)
            return
        self.rows, self.replay, device = rows, None, self.model.device
        super().take_seats()
        self.grow(rows, self.slots)
        self.tokens, self.position = torch.zeros(2, rows, dtype=torch.long, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int32, device=device)  # of the rows' tails
        self.slot = torch.zeros(1, dtype=torch.long, device=device)  # where the new token's keys and values go

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self.tokens.copy_(repeat_last(tokens, self.rows))
        self.position.copy_(self.prompts.starts()[self.seats[0] // self.group] + self.length)
        self.slot.fill_(self.length)
        self.length += 1
        self.lengths.fill_(self.length)
        if self.replay is None:
            self.replay = capture_graph(self.run)
        self.replay()
        return self.last

    def run(self) -> None:
        h = self.model.hidden(self.tokens[:, None], positions=self.position[:, None], attend=self.attend)
        self.last = h[:, 0]

    def attend(self, layer: int, q, k, v):
        for x, new in zip(self.tails[layer], (k, v), strict=True):
            x.index_copy_(2, self.slot, new)
        return self.attended(layer, q, self.tails[layer], self.lengths)


def capture_graph(work):
    """work() as a CUDA graph -> its replay. It first runs once outside: kernels compile, and autocast's copies of the
    weights are made where they outlive the graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def batch_rows(n: int) -> int:
    """The number of rows in which n of them are computed. Matrices of fewer rows, or of an odd number, take other
    kernels on a CPU, and a row's last bits would depend on how many rows stand beside it."""
    return max(16, round_up(n, 8))


def repeat_last(x: torch.Tensor, rows: int) -> torch.Tensor:
    """x (R, ...) -> (rows, ...): the last row is repeated."""
    return torch.cat((x, x[-1:].expand(rows - len(x), *x.shape[1:])))
