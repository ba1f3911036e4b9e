"""Tokenizers: every one is a `tiktoken.Encoding`, loaded offline where it can be, named in checkpoints by a hash.

`world` is the small vocabulary that `python -m data.world` trains and saves; `gpt2` and `cl100k_base` come from a
local file or from tiktoken's own cache or download. A ranks file holds one `base64-of-the-token rank` pair per line,
which is tiktoken's own text form.

The tokenizer of a checkpoint from elsewhere (tools/convert.py) lies in the checkpoint itself: pattern, specials, ranks.

    python -m data.tokenizer train corpus.txt --vocab-size 1024 --numbers 999 --out my.tiktoken
    python -m data.tokenizer inspect gpt2 --text "Zoe has 12 pens."
"""

import argparse
import base64
import binascii
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import tiktoken

from common import UserError, run
from data.bpe import CL100K_PATTERN, GPT2_PATTERN, OWN_PATTERN, Ranks, train_bpe
from data.files import field, inside, open_bytes, read_json, read_text, replacing, suffix

EOT = "<|endoftext|>"
WORLD_FILE = Path(__file__).parent / "world" / "tokenizer.tiktoken"

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
    """What a checkpoint or a data folder keeps of its tokenizer: {"name", "hash", "n_vocab"}. The hash is that of the
    ranks, and of pattern and specials where these are not what `make_encoding` gives such ranks."""
    text, own = ranks_text(enc._mergeable_ranks), (enc._pat_str, enc._special_tokens)
    if own != form_of(enc.name, enc._mergeable_ranks):
        text += json.dumps(own).encode()
    return {"name": enc.name, "hash": hashlib.sha256(text).hexdigest(), "n_vocab": enc.n_vocab}


def keep(enc: tiktoken.Encoding) -> dict:
    """`tokenizer_id` and all that `kept_tokenizer` needs to make the encoding again."""
    specials = {"pattern": enc._pat_str, "special_tokens": enc._special_tokens, "end_of_text": enc.eot_token}
    return tokenizer_id(enc) | specials | {"ranks": ranks_text(enc._mergeable_ranks).decode()}


def end_of_text(ident: dict) -> int:
    """Id of the end-of-text of a kept tokenizer, or of one that is known by name."""
    last = CL100K_SPECIALS[EOT] if ident["name"] == "cl100k_base" else ident["n_vocab"] - 1
    return ident.get("end_of_text", last)


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
    """tiktoken's, for vocabularies from elsewhere too. Very long runs of blanks are encoded piece by piece: its regular
    expressions fail on a million. A byte that the vocabulary lacks is left out of the ids, where tiktoken would fail:
    SmolLM2's lacks 21, such as control characters. End-of-text may have another name, and any id."""

    LONG_BLANKS = re.compile(r"\s{10000}")

    def __init__(self, name: str, *, pat_str: str, mergeable_ranks: Ranks, special_tokens: dict[str, int], eot: int):
        lacking = [bytes([b]) for b in range(256) if bytes([b]) not in mergeable_ranks]
        top = max(*mergeable_ranks.values(), *special_tokens.values())
        ranks = mergeable_ranks | {byte: top + 1 + i for i, byte in enumerate(lacking)}  # past the vocabulary
        super().__init__(name, pat_str=pat_str, mergeable_ranks=ranks, special_tokens=special_tokens)
        self._mergeable_ranks, self.max_token_value = mergeable_ranks, top
        self.eot, self.whole = eot, not lacking

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"eot": self.eot}

    @property
    def eot_token(self) -> int:
        return self.eot

    def encode_ordinary(self, text: str) -> list[int]:
        ends = [match.end() for match in self.LONG_BLANKS.finditer(text)] if len(text) > 10_000 else []
        if not ends:
            ids = super().encode_ordinary(text)
        else:
            pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
            ids = [i for piece in pieces for i in tiktoken.Encoding.encode_ordinary(self, piece)]
        return ids if self.whole else [i for i in ids if i <= self.max_token_value]


def form_of(name: str, ranks: Ranks) -> tuple[str, dict[str, int]]:
    """(pattern, specials) of a vocabulary that is known by name, or is our own: its end-of-text follows the ranks."""
    return PATTERNS.get(name, OWN_PATTERN), CL100K_SPECIALS if name == "cl100k_base" else {EOT: len(ranks)}


def make_encoding(name: str, ranks: Ranks) -> tiktoken.Encoding:
    """Encoding over `ranks`; end-of-text is the id after the last rank (cl100k_base: where its authors put it)."""
    pattern, specials = form_of(name, ranks)
    return Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials, eot=specials[EOT])


def made_by_name(enc: tiktoken.Encoding) -> bool:
    """Do its name and a file of its ranks make it again? Else a folder must `keep` it."""
    ranks = enc._mergeable_ranks
    in_order = sorted(ranks.values()) == list(range(len(ranks))) and all(bytes([b]) in ranks for b in range(256))
    return in_order and (enc._pat_str, enc._special_tokens) == form_of(enc.name, ranks)


def kept_tokenizer(kept: dict, where: str | os.PathLike) -> tiktoken.Encoding:
    """The encoding of what `keep` made of it, found in `where` (a checkpoint)."""
    ranks = parse_ranks(field(kept, "ranks", str, where).encode().splitlines(), f"{where}: its tokenizer's ranks")
    specials = field(kept, "special_tokens", dict, where)
    ids, eot = [*ranks.values(), *specials.values()], field(kept, "end_of_text", int, where)
    good = all(type(i) is int and 0 <= i < 2**24 for i in ids) and len(set(ids)) == len(ids) and ranks
    if not good or eot not in specials.values():
        raise UserError(f"{where}: ids of its tokenizer are none, or given twice; use another checkpoint")
    name, pattern = field(kept, "name", str, where), field(kept, "pattern", str, where)
    try:
        return Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials, eot=eot)
    except ValueError as error:  # tiktoken cannot read the pattern
        raise UserError(f"{where}: its tokenizer's pattern is not readable ({error}); use another checkpoint") from None


def tokenizer_of(ident: dict, folder: str | os.PathLike, where: str | os.PathLike) -> tiktoken.Encoding:
    """The tokenizer of a checkpoint `where`: the one that lies in it, else that of the data folder. The folder's must
    be the same, unless it holds texts alone."""
    if "ranks" not in ident:
        enc = folder_tokenizer(folder)
        check_tokenizer(enc, ident, where)
        return enc
    enc = kept_tokenizer(ident, where)
    meta = Path(folder) / "meta.json"
    has_ids = meta.is_file() and read_json(meta).get("kind") == "questions"  # a world's questions are texts
    check_tokenizer(folder_tokenizer(folder) if has_ids else enc, ident, where)
    return enc


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
    ranks = parse_ranks(lines, path)
    if sorted(ranks.values()) != list(range(len(lines))) or any(bytes([b]) not in ranks for b in range(256)):
        raise UserError(
            f"{path}: ranks must be 0, 1, 2, ... and hold all 256 bytes; the file is damaged or not a vocabulary"
        )
    return ranks


def parse_ranks(lines: list[bytes], where: str | os.PathLike) -> Ranks:
    ranks: Ranks = {}
    for number, line in enumerate(lines, 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(
                f"{where}:{number}: expected a base64 token, a space and a rank; the file is damaged"
            ) from None
    return ranks


def visible_bytes() -> dict[str, int]:
    """GPT-2 writes each byte as a visible character: printable Latin-1 as itself, the others from U+0100. In the order
    of their ids in its vocabulary."""
    visible = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _ranks_from_merges(lines: list[bytes], path: Path) -> Ranks:
    byte_of = visible_bytes()
    ranks = {bytes([b]): rank for rank, b in enumerate(byte_of.values())}
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
    if "ranks" in ident:
        return kept_tokenizer(ident, path)
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
