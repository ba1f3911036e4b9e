"""Byte-pair encoding: the patterns that part text before pairs are joined, the joining, and the training of ranks."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

import regex

from data.files import UserError

Ranks = dict[bytes, int]  # token -> its id, which is also its place in the order of joining

# The pre-tokens, inside which merges happen. cl100k's form keeps digits in groups of at most three, no space before.
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# Our own vocabularies add one rule: a single decimal (".3") is a token. It can then be copied by what stands before it,
# which is how a small model reads; behind a bare "." it never learns to (docs/calibration.md).
OWN_PATTERN = r"\.\p{N}(?!\p{N})|" + CL100K_PATTERN


def byte_pairs(parts: list[bytes], ranks: Ranks) -> list[bytes]:
    """tiktoken's merging in plain Python: join the neighbours whose union ranks lowest until no union is a token."""
    parts = list(parts)
    while len(parts) > 1:
        unions = [ranks.get(parts[i] + parts[i + 1]) for i in range(len(parts) - 1)]
        found = [rank for rank in unions if rank is not None]
        if not found:
            break
        i = unions.index(min(found))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _byte_and_forced_ranks(forced: Iterable[str], find: Callable[[str], list[str]]) -> Ranks:
    """The 256 bytes, then every prefix of every forced string; `find` cuts text into pre-tokens."""
    ranks: Ranks = {bytes([b]): b for b in range(256)}
    seeds = set()
    for text in forced:
        if find(text) != [text]:
            raise UserError(
                f"forced token {text!r}: splits into {find(text)}; force only strings that are one pre-token"
            )
        token = text.encode()
        seeds.update(token[:end] for end in range(2, len(token) + 1))
    for token in sorted(seeds, key=lambda t: (len(t), t)):  # shorter first: a prefix must merge before what it leads to
        ranks[token] = len(ranks)
    return ranks


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, forced: Iterable[str] = (), pattern: str = OWN_PATTERN
) -> Ranks:
    """Byte-pair ranks learned from `texts`, deterministic (ties go to the smaller bytes).

    vocab_size counts everything: 256 bytes, forced tokens, merges and the end-of-text token, so `n_vocab` of the
    encoding is at most this (fewer when no pair repeats any more). `forced` strings become tokens before any merge is
    learned, each with all its prefixes, so that it is always encoded as one token. Words are merged by `byte_pairs`,
    thus the counts are those of tiktoken's own encoding. UserError when the vocabulary is too small or a forced
    string is not one pre-token.
    """
    find = regex.compile(pattern).findall
    ranks = _byte_and_forced_ranks(forced, find)
    if vocab_size < len(ranks) + 1:
        raise UserError(
            f"vocab size {vocab_size}: bytes, forced tokens and end-of-text already take {len(ranks) + 1}; raise it"
        )

    pieces: Counter[str] = Counter()
    for text in texts:
        pieces.update(find(text))
    words: Counter[bytes] = Counter()
    for piece, count in pieces.items():
        words[piece.encode()[:64]] += count  # the cut keeps long runs (rulers, spaces) from costing time
    parts = {word: byte_pairs([word[i : i + 1] for i in range(len(word))], ranks) for word in words}
    counts: Counter[bytes] = Counter()  # union of two neighbours -> how often it occurs
    holders: dict[bytes, set[bytes]] = defaultdict(set)  # union -> words that may hold it
    for word, split in parts.items():
        for a, b in zip(split, split[1:], strict=False):
            counts[a + b] += words[word]
            holders[a + b].add(word)
    heap = [(-count, union) for union, count in counts.items()]
    heapq.heapify(heap)

    while len(ranks) < vocab_size - 1 and heap:
        count, union = heapq.heappop(heap)
        if -count != counts[union]:
            continue  # stale: the entry with the present count is elsewhere in the heap
        if -count < 2:
            break
        ranks[union] = len(ranks)
        changes: Counter[bytes] = Counter()
        for word in holders.pop(union):
            before, count = parts[word], words[word]
            after = byte_pairs(before, ranks)  # older merges are done: only `union` and what it makes possible remain
            if len(after) == len(before):
                continue  # this word lost the pair to another merge
            for a, b in zip(before, before[1:], strict=False):
                changes[a + b] -= count
            for a, b in zip(after, after[1:], strict=False):
                changes[a + b] += count
                holders[a + b].add(word)
            parts[word] = after
        for neighbour, change in changes.items():
            if change:
                counts[neighbour] += change
                heapq.heappush(heap, (-counts[neighbour], neighbour))
    return ranks


if __name__ == "__main__":
    print("Byte-pair encoding; this trains a vocabulary: python -m data.tokenizer train FILES --out my.tiktoken")
