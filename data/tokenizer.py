"""Tokenizers: every one is a `tiktoken.Encoding`, loaded offline where it can be, named in checkpoints by a hash.

`world` is the small vocabulary that `python -m data.world` trains and saves; `gpt2` and `cl100k_base` come from a
local file or from tiktoken's own cache or download. A ranks file holds one `base64-of-the-token rank` pair per line,
which is tiktoken's own text form.

    python -m data.tokenizer train corpus.txt --vocab-size 1024 --numbers 999 --out my.tiktoken
    python -m data.tokenizer inspect gpt2 --text "Zoe has 12 pens."
"""

import argparse
import base64
import binascii
import functools
import hashlib
import heapq
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import regex
import tiktoken

from common import UserError, run
from data.files import field, inside, open_bytes, read_json, read_text, replacing, suffix

EOT = "<|endoftext|>"
WORLD_FILE = Path(__file__).parent / "world" / "tokenizer.tiktoken"

# The pre-tokens, inside which merges happen. cl100k's form keeps digits in groups of at most three, no space before.
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# Our own vocabularies add one rule: a single decimal (".3") is a token. It can then be copied by what stands before it,
# which is how a small model reads; behind a bare "." it never learns to (docs/calibration.md).
OWN_PATTERN = r"\.\p{N}(?!\p{N})|" + CL100K_PATTERN
PATTERNS = {"gpt2": GPT2_PATTERN, "cl100k_base": CL100K_PATTERN}  # every other ranks file uses our own form

CL100K_SPECIALS = {
    EOT: 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}
# ranks_hash of the published vocabularies, so that a bare ranks file of theirs gets its own pattern and name
KNOWN_HASHES = {
    "gpt2": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}

Ranks = dict[bytes, int]


# ---------------------------------------------------------------- identity
def ranks_text(ranks: Ranks) -> bytes:
    """The ranks in tiktoken's text form, in order of rank."""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered)


def ranks_hash(ranks: Ranks) -> str:
    """sha256 of `ranks_text`, in hex."""
    return hashlib.sha256(ranks_text(ranks)).hexdigest()


@functools.lru_cache(maxsize=16)
def tokenizer_id(enc: tiktoken.Encoding) -> dict:
    """What a checkpoint or a data folder keeps of its tokenizer: {"name", "hash", "n_vocab"}."""
    return {"name": enc.name, "hash": ranks_hash(enc._mergeable_ranks), "n_vocab": enc.n_vocab}


def check_tokenizer(enc: tiktoken.Encoding, ident: dict, where: str) -> None:
    """Raise UserError unless `ident`, found in `where` (a file name), describes `enc`."""
    ours = tokenizer_id(enc)
    ident = ident if isinstance(ident, dict) else {}
    if (ident.get("hash"), ident.get("n_vocab")) != (ours["hash"], ours["n_vocab"]):
        raise UserError(
            f"{where}: made with tokenizer {ident.get('name')!r} "
            f"({ident.get('n_vocab')} tokens, hash {str(ident.get('hash'))[:12]}), "
            f"but this data uses {ours['name']!r} ({ours['n_vocab']} tokens, hash {ours['hash'][:12]}); "
            "give the --data or the checkpoint that belongs to the other"
        )


# ---------------------------------------------------------------- loading and saving
class Encoding(tiktoken.Encoding):
    """tiktoken's, with very long runs of blanks encoded piece by piece: its regular expressions fail on a million."""

    LONG_BLANKS = re.compile(r"\s{10000}")

    def encode_ordinary(self, text: str) -> list[int]:
        ends = [match.end() for match in self.LONG_BLANKS.finditer(text)] if len(text) > 10_000 else []
        if not ends:
            return super().encode_ordinary(text)
        pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
        return [i for piece in pieces for i in tiktoken.Encoding.encode_ordinary(self, piece)]


def make_encoding(name: str, ranks: Ranks) -> tiktoken.Encoding:
    """Encoding over `ranks`; end-of-text is the id after the last rank (cl100k_base: where its authors put it)."""
    specials = CL100K_SPECIALS if name == "cl100k_base" else {EOT: len(ranks)}
    pattern = PATTERNS.get(name, OWN_PATTERN)
    return Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)


def save_ranks(ranks: Ranks, path: str | os.PathLike) -> None:
    with replacing(path) as file:
        file.write(ranks_text(ranks))


def read_ranks(path: str | os.PathLike) -> Ranks:
    """Ranks from a `.tiktoken` file, or from GPT-2 style merges (`.bpe`, `merges.txt`). Errors name file and line."""
    path = Path(path)
    with open_bytes(path, "tokenizer", "give a .tiktoken or .bpe file") as file:
        lines = file.read().splitlines()
    if suffix(path) in (".bpe", ".txt"):
        return _ranks_from_merges(lines, path)
    ranks: Ranks = {}
    for number, line in enumerate(lines, 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(
                f"{path}:{number}: expected a base64 token, a space and a rank; the file is damaged"
            ) from None
    if sorted(ranks.values()) != list(range(len(lines))) or any(bytes([b]) not in ranks for b in range(256)):
        raise UserError(
            f"{path}: ranks must be 0, 1, 2, ... and hold all 256 bytes; the file is damaged or not a vocabulary"
        )
    return ranks


def _ranks_from_merges(lines: list[bytes], path: Path) -> Ranks:
    """GPT-2 writes each byte as a visible character: printable Latin-1 as itself, the others, in order, from U+0100."""
    visible = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    hidden = [b for b in range(256) if b not in visible]
    byte_of = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}
    ranks = {bytes([b]): rank for rank, b in enumerate(visible + hidden)}  # GPT-2's own order of the 256 bytes
    for number, line in enumerate(lines, 1):
        if line.startswith(b"#version") or not line.strip():
            continue
        try:
            left, right = (bytes(byte_of[c] for c in part) for part in line.decode().split())
        except (ValueError, KeyError):
            raise UserError(
                f"{path}:{number}: expected two merge symbols parted by a space; the file is damaged"
            ) from None
        if left not in ranks or right not in ranks:
            raise UserError(f"{path}:{number}: merges symbols that no earlier line made; the file is damaged")
        ranks[left + right] = len(ranks)
    return ranks


def _published(name: str) -> tiktoken.Encoding:
    """gpt2 or cl100k_base: from $REAL_DATA/tokenizers when there, else by tiktoken (its cache, or a download)."""
    file_name = {"gpt2": "gpt2_vocab.bpe", "cl100k_base": "cl100k_base.tiktoken"}[name]
    local = Path(os.environ.get("REAL_DATA", "")) / "tokenizers" / file_name
    if os.environ.get("REAL_DATA") and local.is_file():
        ranks = read_ranks(local)
        if ranks_hash(ranks) != KNOWN_HASHES[name]:
            raise UserError(
                f"{local}: not the published {name} vocabulary (hash differs); fetch it again or pass a file's path"
            )
        return make_encoding(name, ranks)
    try:
        return make_encoding(name, tiktoken.get_encoding(name)._mergeable_ranks)
    except (OSError, ValueError) as error:  # requests' network errors are OSErrors
        raise UserError(
            f"tokenizer {name!r}: tiktoken could not fetch it ({type(error).__name__}); set REAL_DATA to a folder with "
            f"tokenizers/{file_name}, or give the path of a local .tiktoken or .bpe file"
        ) from None


def folder_tokenizer(folder: str | os.PathLike) -> tiktoken.Encoding:
    """The tokenizer of a world or prepared folder, checked against the hash in its meta.json."""
    path = Path(folder) / "meta.json"
    meta = read_json(path, "data folder", mend="make it with `python -m data.world` or `python -m data.prepare corpus`")
    ident = field(meta, "tokenizer", dict, path)
    ranks = read_ranks(inside(folder, field(ident, "file", str, path), path))
    enc = make_encoding(field(ident, "name", str, path), ranks)
    check_tokenizer(enc, ident, path)
    return enc


def named_tokenizer(name: str) -> tiktoken.Encoding:
    """`world`, `gpt2` or `cl100k_base`, whatever files lie about."""
    if name in ("gpt2", "cl100k_base"):
        return _published(name)
    if name != "world":
        raise UserError(f"tokenizer {name!r}: known by name are world, gpt2 and cl100k_base; give its data folder")
    if not WORLD_FILE.is_file():
        raise UserError(f"tokenizer 'world': {WORLD_FILE} does not exist; make it with `python -m data.world`")
    return make_encoding("world", read_ranks(WORLD_FILE))


def load_tokenizer(name_or_file: str | os.PathLike = "world") -> tiktoken.Encoding:
    """A data folder, a ranks or merges file, or else `world`, `gpt2`, `cl100k_base`. Has `eot_token` and `n_vocab`."""
    path = Path(name_or_file)
    if path.is_dir():
        return folder_tokenizer(path)
    if path.is_file():
        ranks = read_ranks(path)
        known = {digest: name for name, digest in KNOWN_HASHES.items()}
        return make_encoding(known.get(ranks_hash(ranks), path.stem), ranks)
    if os.fspath(name_or_file) in ("world", "gpt2", "cl100k_base"):
        return named_tokenizer(os.fspath(name_or_file))
    raise UserError(
        f"tokenizer {os.fspath(name_or_file)!r}: no such name or file; give world, gpt2, cl100k_base, a .tiktoken or "
        ".bpe file, or a data folder (`python -m data.world` or `python -m data.prepare corpus` makes one)"
    )


# ---------------------------------------------------------------- decoding
@functools.lru_cache(maxsize=16)
def token_bytes(enc: tiktoken.Encoding) -> list[bytes | None]:
    """The bytes of every id below n_vocab; None where the vocabulary has a gap."""
    table: list[bytes | None] = [None] * enc.n_vocab
    for token, rank in enc._mergeable_ranks.items():
        table[rank] = token
    for text, rank in enc._special_tokens.items():
        table[rank] = text.encode()
    return table


def decode(enc: tiktoken.Encoding, ids: Iterable[int]) -> str:
    """Text of `ids`. Never fails: an unknown id (padded vocabulary, gap) and broken UTF-8 read as U+FFFD."""
    table, unknown = token_bytes(enc), "\ufffd".encode()
    parts = ((table[i] if 0 <= i < len(table) else None) for i in ids)
    return b"".join(unknown if part is None else part for part in parts).decode("utf-8", errors="replace")


# ---------------------------------------------------------------- training
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


# ---------------------------------------------------------------- command line
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.tokenizer", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="learn ranks from text files")
    train.add_argument("files", nargs="+", help="text files, UTF-8")
    train.add_argument("--vocab-size", type=int, default=1024, help="tokens, end-of-text included (default 1024)")
    train.add_argument("--numbers", type=int, default=0, help="make 0..N one token each, N at most 999 (0 = off)")
    train.add_argument("--out", required=True, help="ranks file to write (.tiktoken)")
    inspect = commands.add_parser("inspect", help="print a tokenizer's identity and how it splits a text")
    inspect.add_argument("tokenizer", help="world, gpt2, cl100k_base, a ranks or merges file, or a data folder")
    inspect.add_argument("--text", default="Q: Zoe has 12 pens. #### 120\n", help="text to split")
    args = parser.parse_args()

    if args.command == "inspect":
        enc = load_tokenizer(args.tokenizer)
        ids = enc.encode_ordinary(args.text)
        print(json.dumps(tokenizer_id(enc) | {"eot_token": enc.eot_token}))
        print(f"{len(args.text)} characters, {len(ids)} tokens: " + " ".join(f"{i}:{decode(enc, [i])!r}" for i in ids))
        return
    if not 0 <= args.numbers <= 999:
        parser.error(f"--numbers {args.numbers}: a pre-token holds at most three digits; give 0 to 999")
    texts = [read_text(file) for file in args.files]
    forced = [str(n) for n in range(args.numbers + 1)] if args.numbers else []
    ranks = train_bpe(texts, args.vocab_size, forced=forced)
    try:
        save_ranks(ranks, args.out)
    except OSError as error:
        raise UserError(
            f"--out {args.out}: cannot write ({error.strerror}); give a path in a writable folder"
        ) from None
    print(f"{args.out}: {len(ranks)} ranks + end-of-text, hash {ranks_hash(ranks)[:12]}")


if __name__ == "__main__":
    run(main)
