"""tokenizer.json -> a tiktoken encoding of the same ids, kept in a checkpoint, from which every stage runs.

pytest -q tests/tools/test_tokenizer_json.py     (the comparison of ids with their library needs `tokenizers`)
"""

import json
import pickle
import random
import shutil

import pytest
import torch
from tiny import tiny_model, write_ckpt

import tools.tokenizer_json
from common import UserError
from data.bpe import CL100K_PATTERN, GPT2_PATTERN
from data.tokenizer import (
    decode,
    end_of_text,
    folder_tokenizer,
    keep,
    kept_tokenizer,
    make_encoding,
    ranks_hash,
    tokenizer_id,
    tokenizer_of,
    visible_bytes,
)
from tools.convert import from_hf, to_hf
from tools.tokenizer_json import DIGITS_PATTERN, OTHER_FORMS, read_tokenizer

LETTERS = {byte: text for text, byte in visible_bytes().items()}
LACKING = (0x04, 0xF1, 0xFF)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict:
    first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
    return {"type": "Sequence", "pretokenizers": [first, BYTE_LEVEL | {"use_regex": False}]}


def tokenizer_json(splitter=DIGITS, merges=("t h", "Ġ Ġ", "th e", "Ġ the", "a b", "ab c", "1 2", "Ġ 1", "o o")) -> dict:
    """Like SmolLM2's: specials first, then the bytes but a few, then what merges make."""
    names = ["<|endoftext|>", "<|im_start|>"]
    tokens = names + [LETTERS[b] for b in range(256) if b not in LACKING]
    tokens += [merge.replace(" ", "") for merge in merges]
    vocab = {token: i for i, token in enumerate(tokens)}
    strips = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": text, "special": True} | strips for i, text in enumerate(names)]
    model = {"type": "BPE", "unk_token": None, "byte_fallback": False, "vocab": vocab, "merges": list(merges)}
    return {"added_tokens": added, "normalizer": None, "pre_tokenizer": splitter, "model": model}


def written(folder, data: dict):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def pieces(enc, text: str) -> list[str]:
    return [decode(enc, [i]) for i in enc.encode_ordinary(text)]


def test_ids_by_hand(tmp_path):
    enc = read_tokenizer(written(tmp_path, tokenizer_json()))
    assert (enc.n_vocab, enc.eot_token) == (2 + 253 + 9, 0)
    assert pieces(enc, "the the abc") == ["the", " the", " ", "abc"]
    assert pieces(enc, "in 12  12") == ["i", "n", " ", "1", "2", "  ", "1", "2"]  # digits by themselves, blanks before
    assert pieces(enc, "   x") == ["  ", " ", "x"]
    assert enc.encode_ordinary("the") == [2 + 253 + 2]


def test_a_byte_that_the_vocabulary_lacks_is_left_out(tmp_path):
    enc = read_tokenizer(written(tmp_path, tokenizer_json()))
    assert enc.encode_ordinary("a\x04b") == enc.encode_ordinary("a") + enc.encode_ordinary("b")
    assert max(enc.encode_ordinary("\x04\U00040000" + "".join(map(chr, range(500))))) < enc.n_vocab
    assert len(enc.encode_ordinary(" " * 30_000 + "\x04" * 30_000)) == 15_000


def test_the_name_of_a_special_in_a_text_is_text(tmp_path):
    enc = read_tokenizer(written(tmp_path, tokenizer_json()))
    assert 0 not in enc.encode_ordinary("<|endoftext|>") and decode(enc, [1]) == "<|im_start|>"


SPLITTERS = {"digits": DIGITS, "gpt2": BYTE_LEVEL, "cl100k": split(next(iter(OTHER_FORMS)))}
SPLITTERS |= {"cl100k-removed": split(next(iter(OTHER_FORMS)), "Removed", True), "own": split(r"\p{N}{1,2}|\P{N}+")}


@pytest.mark.parametrize("name", SPLITTERS)
def test_the_same_ids_as_their_library(name, tmp_path):
    library = pytest.importorskip("tokenizers")
    folder = written(tmp_path, tokenizer_json(SPLITTERS[name]))
    enc, theirs = read_tokenizer(folder), library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    draw, pool = random.Random(1), "  \n\t'sdtrevheabco0123.,!AB\u00e9\u4e2d\U0001f600\u0661\u00bd\u3000\u00a0\r"
    for _ in range(500):
        text = "".join(draw.choice(pool) for _ in range(draw.randint(1, 30)))
        assert enc.encode_ordinary(text) == theirs.encode(text, add_special_tokens=False).ids, text


def test_patterns(tmp_path):
    wanted = {"digits": DIGITS_PATTERN, "gpt2": GPT2_PATTERN, "cl100k": CL100K_PATTERN, "own": r"\p{N}{1,2}|\P{N}+"}
    for name, pattern in wanted.items():
        assert read_tokenizer(written(tmp_path / name, tokenizer_json(SPLITTERS[name])))._pat_str == pattern


def test_a_published_vocabulary_is_known_by_its_ranks(tmp_path, monkeypatch):
    """dolma2 is cl100k_base: data that was made with one fits a model of the other."""
    data = tokenizer_json(SPLITTERS["cl100k"])
    ranks = read_tokenizer(written(tmp_path, data))._mergeable_ranks
    monkeypatch.setattr(tools.tokenizer_json, "KNOWN_HASHES", {"cl100k_base": ranks_hash(ranks)})
    enc = read_tokenizer(written(tmp_path, data))
    assert tokenizer_id(enc) == tokenizer_id(make_encoding("cl100k_base", ranks))
    assert enc.eot_token == end_of_text(tokenizer_id(enc)) == end_of_text(keep(enc)) == 100257
    other = read_tokenizer(written(tmp_path / "smol", tokenizer_json()))  # these ranks, parted in another way
    assert other.name == "smol" and tokenizer_id(other)["hash"] != ranks_hash(ranks)


def test_where_the_end_of_text_is_found(tmp_path):
    data = tokenizer_json()
    data["added_tokens"][0]["content"] = "<|end_of_text|>"
    data["model"]["vocab"] = {k.replace("endoftext", "end_of_text"): i for k, i in data["model"]["vocab"].items()}
    folder = written(tmp_path, data)
    with pytest.raises(UserError, match="none of its special tokens"):
        read_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [1, 0]}))
    assert read_tokenizer(folder).eot_token == 1
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end_of_text|>"}}))
    assert read_tokenizer(folder).eot_token == 0


def broken(**changes) -> dict:
    data = tokenizer_json()
    data["model"] |= changes.pop("model", {})
    return data | changes


SPACES = {"id": 900, "content": "    ", "special": False}
METASPACE, WORDS = {"type": "Metaspace"}, {"type": "Sequence", "pretokenizers": [split("a"), split("b")]}
SENTENCEPIECE = {"vocab": {"\u2581the": 5}, "merges": []}
REFUSED = {
    "a normalizer": broken(normalizer={"type": "NFC"}),
    "a byte_fallback": broken(model={"byte_fallback": True}),
    "'    ' is an added token": broken(added_tokens=[SPACES]),
    "pre-tokenizers Metaspace": broken(pre_tokenizer=METASPACE),
    "pre-tokenizers Sequence, Sequence": broken(pre_tokenizer=WORDS),
    "pre-tokenizers none": broken(pre_tokenizer=None),
    "ByteLevel: these": broken(pre_tokenizer=BYTE_LEVEL | {"add_prefix_space": True}),
    "no byte-level BPE whose ids follow its merges ('\u2581')": broken(model=SENTENCEPIECE),
    "b'th' comes after a token of a higher id": broken(model={"merges": ["Ġ Ġ", "t h"]}),
    "b'the' would be made of (b'th', b'e')": broken(model={"merges": ["t h", "Ġ Ġ"]}),
    "does not cover all text": broken(pre_tokenizer=split(r"\p{L}+")),
    "'vocab' must be dict": broken(model={"vocab": None}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_would_not_give_the_same_ids_is_refused(words, tmp_path):
    with pytest.raises(UserError) as error:
        read_tokenizer(written(tmp_path, REFUSED[words]))
    assert words in str(error.value)


def test_a_token_that_another_pair_makes_too_is_refused(tmp_path):
    """Theirs joins a to bc only; by ids, ab and c would join too, and "abc" is ab, c first."""
    merges = ("a b", "b c", "a bc")
    with pytest.raises(UserError, match=r"b'abc' would be made of \(b'ab', b'c'\)"):
        read_tokenizer(written(tmp_path, tokenizer_json(merges=merges)))


def test_whole_words_need_no_merges(tmp_path):
    data = tokenizer_json(merges=("a b",))
    data["model"]["vocab"]["xyz"] = len(data["model"]["vocab"])
    with pytest.raises(UserError, match="b'xyz' would be made of"):
        read_tokenizer(written(tmp_path, data))
    data["model"]["ignore_merges"] = True  # Llama 3's
    assert pieces(read_tokenizer(written(tmp_path, data)), "xyz xyz") == ["xyz", " ", "x", "y", "z"]


# ------------------------------------------------------------------------------------------------ kept in a checkpoint
def test_kept_is_the_same_encoding(tmp_path):
    enc = read_tokenizer(written(tmp_path, tokenizer_json()))
    text = "the 12 abc's\x04  12\n"
    for again in (kept_tokenizer(json.loads(json.dumps(keep(enc))), "ckpt.pt"), pickle.loads(pickle.dumps(enc))):
        assert again.encode_ordinary(text) == enc.encode_ordinary(text)
        assert tokenizer_id(again) == tokenizer_id(enc) and again.eot_token == enc.eot_token == 0


def test_a_checkpoint_without_one_has_that_of_its_data(world):
    ident = json.loads((world / "meta.json").read_text())["tokenizer"]
    assert tokenizer_id(tokenizer_of(ident, world, "ckpt.pt"))["hash"] == ident["hash"]
    with pytest.raises(UserError, match="ckpt.pt: made with tokenizer"):
        tokenizer_of(ident | {"hash": "0"}, world, "ckpt.pt")


def test_data_that_holds_ids_of_another_tokenizer_is_refused(world, tmp_path):
    """A prepared folder of questions does; a world holds texts, which the checkpoint's own tokenizer reads."""
    enc = read_tokenizer(written(tmp_path / "hf", tokenizer_json()))
    assert tokenizer_id(tokenizer_of(keep(enc), world, "ckpt.pt")) == tokenizer_id(enc)
    folder = tmp_path / "prepared"
    shutil.copytree(world, folder)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"kind": "questions"}))
    with pytest.raises(UserError, match="ckpt.pt: made with tokenizer 'hf'"):
        tokenizer_of(keep(enc), folder, "ckpt.pt")
    same = keep(folder_tokenizer(folder))
    assert tokenizer_id(tokenizer_of(same, folder, "ckpt.pt"))["hash"] == meta["tokenizer"]["hash"]


DAMAGE = {
    "'ranks' must be str": dict(ranks=None),
    "expected a base64 token": dict(ranks="YQ== x"),
    "given twice": dict(ranks="YQ== 1\nYg== 1\n"),
    "are none, or": dict(special_tokens={"<|endoftext|>": -1}),
    "or given twice": dict(end_of_text=5),
    "pattern is not readable": dict(pattern="(("),
    "made with tokenizer": dict(hash="0"),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_a_damaged_one_is_refused(words, tmp_path):
    kept = keep(read_tokenizer(written(tmp_path, tokenizer_json())))
    with pytest.raises(UserError, match="ckpt.pt") as error:
        tokenizer_of(kept | DAMAGE[words], "nowhere", "ckpt.pt")
    assert words in str(error.value)


@pytest.fixture
def converted(tmp_path):
    """A checkpoint that was read from a folder with tokenizer.json; its model has more ids than its tokenizer."""
    model = tiny_model(scale=1.0, tied=True, vocab_size=300)
    folder = written(tmp_path / "hf", tokenizer_json())
    state = {"model": model.state_dict(), "model_config": vars(model.config), "tokenizer": {"name": "", "n_vocab": 1}}
    to_hf(state, folder)
    ckpt = from_hf(folder)
    return write_ckpt(tmp_path / "start.pt", model, **{key: ckpt[key] for key in ("tokenizer", "stage", "config")})


def test_every_stage_runs_from_it_with_its_own_tokenizer(converted, world, ok, refused, tmp_path):
    ident = torch.load(converted, weights_only=True)["tokenizer"]
    small = ("--init", converted, "--data", world, "--steps", 2)
    rollouts = ("--prompts-per-step", 2, "--group-size", 2, "--max-new-tokens", 8)
    ok("train_rl", *small, *rollouts, "--out", tmp_path / "rl")
    ok("train_sft", *small, "--batch-size", 4, "--out", tmp_path / "sft")
    ok("merge", *small, *rollouts, "--batch-size", 4, "--out", tmp_path / "merged")
    ok("train_rl", "--resume", tmp_path / "rl", "--steps", 3)
    for name in ("rl/ckpt_000003.pt", "sft/ckpt_000002.pt", "merged/ckpt_000002.pt"):
        assert torch.load(tmp_path / name, weights_only=True)["tokenizer"] == ident
    shown = ok("sample", "--ckpt", tmp_path / "rl/ckpt_000003.pt", "--prompt", "the 12", "--max-new-tokens", 4).out
    assert "the 12" in shown
    scoring = ("--n-samples", 2, "--k", 1, "--max-new-tokens", 8, "--limit", 3, "--n-shot", 0)
    last = tmp_path / "sft/ckpt_000002.pt"
    ok("evaluate", "--ckpt", last, "--data", world, *scoring)
    report = json.loads(last.with_suffix(".test_0shot.json").read_text())
    assert report["questions"]["gsm"]["n_questions"] == 3 and "facts" in report["benchmarks"]
    words = ["made with tokenizer"]  # held-out text of the world is in the world's tokens
    refused("evaluate", "--ckpt", last, "--data", world, "--reference", converted, *scoring, words=words)
