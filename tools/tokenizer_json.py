"""A byte-level BPE tokenizer of Hugging Face (tokenizer.json) as a `tiktoken.Encoding` that gives the same ids.

tiktoken joins the neighbours whose union has the lowest id, theirs the pair that comes first in a list of merges. These
are the same where ids follow that list and no token can arise from another pair than the list's: `check_merges` looks.
Added tokens are specials here: text that happens to hold their names is read as text.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import tiktoken

from data.bpe import CL100K_PATTERN, GPT2_PATTERN, Ranks, byte_pairs
from data.files import UserError, field, read_json
from data.tokenizer import EOT, KNOWN_HASHES, PATTERNS, Encoding, make_encoding, ranks_hash, visible_bytes

# cl100k's pattern as tokenizer.json files have it; ours is tiktoken's newer form of the same
OTHER_FORMS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": CL100K_PATTERN
}
# GPT-2's pattern after each digit was parted off by itself: a run of blanks before a digit then ends a piece
DIGITS_PATTERN = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?[^\s\p{L}\p{N}]++|\s+(?![^\s\p{N}])|\s"
PROBE = "".join(map(chr, range(32, 127))) + "  don't\n\n\t 3.14159 \u00e9\u0301\u4e2d\u6587 \U0001f600\r\n  x  "


def read_tokenizer(folder: Path) -> tiktoken.Encoding:
    """UserError for what is no byte-level BPE, or would not give the same ids."""
    path = folder / "tokenizer.json"
    data = read_json(path, "tokenizer", mend="give a folder that has one, or --tokenizer")
    model = field(data, "model", dict, path)
    vocab, added = field(model, "vocab", dict, path), field(data, "added_tokens", list, path)
    specials = {field(row, "content", str, path): field(row, "id", int, path) for row in added}
    if blank := [text for text in specials if not text.strip()]:
        raise UserError(f"{path}: {blank[0]!r:.40} is an added token that any text may hold: that is not read")
    for what, odd in (("normalizer", data.get("normalizer")), ("byte_fallback", model.get("byte_fallback"))):
        if odd:
            raise UserError(f"{path}: it has a {what}, and no text is changed here before it is split; use another")
    byte_of = visible_bytes()
    try:
        pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        ranks = {bytes(byte_of[c] for c in text): i for text, i in vocab.items() if text not in specials}
        merges = [tuple(bytes(byte_of[c] for c in part) for part in pair) for pair in pairs]
        check_merges(ranks, merges, bool(model.get("ignore_merges")))
        known = {digest: name for name, digest in KNOWN_HASHES.items()}.get(ranks_hash(ranks))
    except (KeyError, ValueError, TypeError) as error:
        what = f"no byte-level BPE whose ids follow its merges ({error})"
        raise UserError(f"{path}: {what}; convert it, and give the result by --tokenizer") from None
    pattern = pattern_of(data.get("pre_tokenizer"), path)
    if known and PATTERNS[known] == pattern:  # with the specials of the published one, so that data made for it fits
        return make_encoding(known, ranks)
    parts = dict(pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
    enc = Encoding(folder.resolve().name, **parts, eot=end_of_text(folder, specials))
    if enc.decode(enc.encode_ordinary(PROBE)) != PROBE:
        raise UserError(f"{path}: its pattern {pattern!r:.80} does not cover all text; use another tokenizer")
    return enc


def pattern_of(splitter, path: Path) -> str:
    """The regular expression of one's pre-tokens: GPT-2's, GPT-2's after single digits, or one that is written out."""
    steps = splitter.get("pretokenizers", [splitter]) if isinstance(splitter, dict) else []
    kinds = [step.get("type") for step in steps]
    if steps and kinds[-1] == "ByteLevel" and not steps[-1].get("add_prefix_space"):
        by_words, before = steps[-1].get("use_regex", True), steps[0]
        if kinds == ["ByteLevel"] and by_words:
            return GPT2_PATTERN
        if kinds == ["Digits", "ByteLevel"] and by_words and before.get("individual_digits"):
            return DIGITS_PATTERN
        how = (before.get("behavior"), bool(before.get("invert")))
        if kinds == ["Split", "ByteLevel"] and not by_words and how in (("Isolated", False), ("Removed", True)):
            written = field(field(before, "pattern", dict, path), "Regex", str, path)
            return OTHER_FORMS.get(written, written)
    shown = ", ".join(map(str, kinds)) or "none"
    raise UserError(f"{path}: pre-tokenizers {shown}: these do not make one regular expression; use another tokenizer")


def check_merges(ranks: Ranks, merges: Iterable[tuple[bytes, bytes]], whole_words: bool) -> None:
    """ValueError unless joining by lowest id gives what the merges give. whole_words: a pre-token that is a token is
    taken whole, as tiktoken does, whether merges lead to it or not."""
    made, last = defaultdict(set), -1
    for left, right in merges:
        rank = ranks[left + right]
        if rank < last:
            raise ValueError(f"{left + right!r} comes after a token of a higher id")
        made[left + right].add((left, right))
        last = rank
    others = dict(ranks)
    for token in [token for token in ranks if len(token) > 1]:
        rank = others.pop(token)
        parts = tuple(byte_pairs([token[i : i + 1] for i in range(len(token))], others))
        others[token] = rank
        if parts not in made[token] and not (whole_words and len(parts) > 2):
            raise ValueError(f"{token!r} would be made of {parts}")


def end_of_text(folder: Path, specials: dict[str, int]) -> int:
    """Id of <|endoftext|>, else of what the folder's settings call the end."""
    if EOT in specials:
        return specials[EOT]
    for name, key in (("tokenizer_config.json", "eos_token"), ("config.json", "eos_token_id")):
        settings = read_json(folder / name) if (folder / name).is_file() else {}
        found = settings.get(key)
        found = found.get("content") if isinstance(found, dict) else found[0] if isinstance(found, list) else found
        if found in specials or found in specials.values():
            return specials.get(found, found)
    raise UserError(
        f"{folder}: none of its special tokens is {EOT} or its eos_token; name one in tokenizer_config.json"
    )
