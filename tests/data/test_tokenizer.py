"""Tokenizers: BPE training, identity, loading, decoding.   pytest -q tests/data/test_tokenizer.py"""

import json
import os
from pathlib import Path

import pytest
import regex
import tiktoken
from tiktoken._educational import bpe_encode

from common import UserError
from data import tokenizer
from data.bpe import byte_pairs
from data.tokenizer import (
    check_tokenizer,
    decode,
    folder_tokenizer,
    load_tokenizer,
    make_encoding,
    named_tokenizer,
    ranks_hash,
    read_ranks,
    save_ranks,
    tokenizer_id,
    train_bpe,
)

BYTES = make_encoding("bytes", {bytes([b]): b for b in range(256)})
REAL_DATA = os.environ.get("REAL_DATA")
TEXTS = ["Zoe has 7 pens. Ivy has 12 pens and 105 books.\nQ: How many?\nA: 7+12=19. #### 19\n"] * 3 + [
    "the hen then",
    "é ü 中",
]


@pytest.fixture(scope="module")
def ranks():
    return train_bpe(TEXTS, 1400, forced=[str(n) for n in range(1000)])


def test_first_merges_by_hand():
    # pre-tokens "ab" x3, " ab" x1, "cb" x2: unions ab 4, " a" 1, cb 2; then " ab" occurs once: nothing left to learn
    learned = train_bpe(["ab\nab\nab ab", "cb\ncb"], 300)
    assert list(learned)[256:] == [b"ab", b"cb"]


def test_ties_go_to_the_smaller_bytes():
    assert list(train_bpe(["zy\nzy\nab\nab\nmn\nmn"], 259))[256:] == [b"ab", b"mn"]


def test_training_is_deterministic_and_honours_the_size(ranks):
    assert ranks == train_bpe(TEXTS, 1400, forced=[str(n) for n in range(1000)])
    small = train_bpe(TEXTS, 280)
    assert len(small) == 279 and make_encoding("x", small).n_vocab == 280 and make_encoding("x", small).eot_token == 279


def test_every_forced_number_is_one_token_by_both_algorithms(ranks):
    enc = make_encoding("world", ranks)
    for n in map(str, range(1000)):
        assert enc.encode_ordinary(n) == [ranks[n.encode()]]
        assert bpe_encode(ranks, n.encode(), visualise=None) == [ranks[n.encode()]]  # merging alone


def test_forced_prefixes_are_added():
    learned = train_bpe([""], 300, forced=["507"])
    assert learned == {bytes([b]): b for b in range(256)} | {b"50": 256, b"507": 257}  # the prefix ranks lower
    assert byte_pairs([b"5", b"0", b"7"], learned) == [b"507"]


def test_own_merging_is_tiktokens(ranks):
    enc = make_encoding("world", ranks)
    for text in TEXTS + ["Ivythen 1234567 pens\n\n  #### 99."]:
        pieces = regex.findall(tokenizer.CL100K_PATTERN, text)
        ours = [ranks[t] for p in pieces for t in byte_pairs([bytes([b]) for b in p.encode()], ranks)]
        assert enc.encode_ordinary(text) == ours


def test_numbers_split_at_three_digits_and_keep_no_space(ranks):
    enc = make_encoding("world", ranks)
    assert [decode(enc, [i]) for i in enc.encode_ordinary("= 12345")] == ["=", " ", "123", "45"]


def test_forced_must_be_one_pretoken_and_fit():
    with pytest.raises(UserError, match="1234"):
        train_bpe(["x"], 400, forced=["1234"])
    with pytest.raises(UserError, match="raise it"):
        train_bpe(["x"], 258, forced=["12", "13"])


def test_decode_never_fails(ranks):
    enc = make_encoding("world", ranks)
    text = "Zoe é 中 19\n"
    ids = enc.encode_ordinary(text)
    assert decode(enc, ids) == text
    assert decode(enc, [*ids, enc.eot_token]) == text + "<|endoftext|>"
    assert decode(enc, [enc.n_vocab, -1, 10**30, ranks[b"7"]]) == "\ufffd" * 3 + "7"
    assert decode(enc, [ranks[b"\xe4"], ranks[b"7"]]) == "\ufffd7"  # a torn character


def test_decode_of_a_gap_in_the_vocabulary():
    ranks = {bytes([b]): b for b in range(256)}
    enc = tiktoken.Encoding("gap", pat_str=".", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 300})
    assert decode(enc, [65, 299, 300]) == "A\ufffd<|endoftext|>"


def test_file_round_trip_and_identity(ranks, tmp_path):
    path = tmp_path / "mine.tiktoken"
    save_ranks(ranks, path)
    enc = load_tokenizer(path)
    assert read_ranks(path) == ranks and enc.name == "mine"
    assert tokenizer_id(enc) == {"name": "mine", "hash": ranks_hash(ranks), "n_vocab": len(ranks) + 1}
    assert path.read_bytes().startswith(b"AA== 0\n")  # tiktoken's own form
    check_tokenizer(enc, tokenizer_id(enc) | {"name": "renamed"}, "x.pt")  # a name is not an identity
    other = make_encoding("other", train_bpe(TEXTS, 300))
    with pytest.raises(UserError, match="x.pt.*'other'.*293 tokens"):
        check_tokenizer(enc, tokenizer_id(other), "x.pt")
    with pytest.raises(UserError, match="x.pt"):
        check_tokenizer(enc, None, "x.pt")


def test_hash_is_of_the_ranks():
    ranks = {bytes([b]): b for b in range(256)}
    swapped = ranks | {b"a": ranks[b"b"], b"b": ranks[b"a"]}
    assert ranks_hash(ranks) != ranks_hash(swapped)
    assert ranks_hash(dict(reversed(ranks.items()))) == ranks_hash(ranks)


@pytest.mark.parametrize("line", ["AA==", "?? 3", "AA== x"])
def test_damaged_ranks_name_file_and_line(tmp_path, line):
    path = tmp_path / "bad.tiktoken"
    path.write_text("AA== 0\n" + line + "\n")
    with pytest.raises(UserError, match=r"bad.tiktoken:2"):
        load_tokenizer(path)


def test_incomplete_ranks_are_refused(tmp_path, ranks):
    path = tmp_path / "cut.tiktoken"
    save_ranks({t: r for t, r in ranks.items() if r != 300}, path)
    with pytest.raises(UserError, match="damaged"):
        load_tokenizer(path)


def test_merges_file_in_gpt2_form(tmp_path):
    path = tmp_path / "tiny.bpe"
    path.write_text("#version: 0.2\nĠ t\nĠt o\n", encoding="utf-8")
    ranks = read_ranks(path)
    assert ranks[b" t"] == 256 and ranks[b" to"] == 257 and ranks[b"!"] == 0 and ranks[b"\x00"] == 188  # GPT-2's order
    path.write_text("#version: 0.2\nq qq\n", encoding="utf-8")
    with pytest.raises(UserError, match="tiny.bpe:2"):
        read_ranks(path)


def test_folders_and_files_win_over_names(tmp_path, monkeypatch):
    """A folder called gpt2 or world is what was meant; where a name is asked for, no file of that name is read."""
    monkeypatch.chdir(tmp_path)
    ranks = {bytes([b]): b for b in range(256)}
    for name in ("gpt2", "world", "cl100k_base"):
        Path(name).mkdir()
        save_ranks(ranks, Path(name, "tokenizer.tiktoken"))
        ident = tokenizer_id(make_encoding("mine", ranks)) | {"file": "tokenizer.tiktoken"}
        Path(name, "meta.json").write_text(json.dumps({"tokenizer": ident}))
        assert load_tokenizer(name).name == "mine" and folder_tokenizer(name).n_vocab == 257
    save_ranks(ranks, Path("ranks"))
    assert load_tokenizer("ranks").name == "ranks"
    monkeypatch.setattr(tokenizer, "WORLD_FILE", Path("ranks"))
    assert named_tokenizer("world").name == "world" and Path("world").is_dir()
    with pytest.raises(UserError, match="known by name"):
        named_tokenizer("mine")
    for missing in ("no_such_folder", tmp_path):  # a name is no data folder, and not every folder is one
        with pytest.raises(UserError, match="no such data folder.*data.world"):
            folder_tokenizer(missing)


@pytest.mark.parametrize(
    "ident",
    [
        {"file": "../outside.tiktoken"},
        {"file": "/etc/passwd"},
        {"file": "sub/tokenizer.tiktoken"},
        {"file": ""},
        {"file": 3},
        {"name": None},
        {"hash": 5},
        "tokenizer",
        [],
    ],
)
def test_a_damaged_manifest_is_one_sentence(tmp_path, ident):
    ranks = {bytes([b]): b for b in range(256)}
    for place in (tmp_path, tmp_path / "d"):
        place.mkdir(exist_ok=True)
        save_ranks(ranks, place / "outside.tiktoken")
        save_ranks(ranks, place / "tokenizer.tiktoken")
    whole = tokenizer_id(make_encoding("mine", ranks)) | {"file": "tokenizer.tiktoken"}
    ident = whole | ident if isinstance(ident, dict) else ident
    (tmp_path / "d" / "meta.json").write_text(json.dumps({"tokenizer": ident}))
    with pytest.raises(UserError, match="meta.json"):
        folder_tokenizer(tmp_path / "d")


@pytest.mark.parametrize("blank", [" ", "\t", "\n \u00a0"])
def test_a_million_blanks_are_encoded(blank):
    text = "a" + blank * 1_000_000 + "x" + " " * 20_001 + "\n" * 10_000
    assert decode(BYTES, BYTES.encode_ordinary(text)) == text
    assert BYTES.encode_ordinary_batch([text, "b"])[1] == [ord("b")]


def test_unknown_names_and_missing_world(monkeypatch):
    with pytest.raises(UserError, match="no such name or file"):
        load_tokenizer("nonesuch")
    monkeypatch.setattr(tokenizer, "WORLD_FILE", Path("nowhere/tokenizer.tiktoken"))
    with pytest.raises(UserError, match="python -m data.world"):
        load_tokenizer("world")


def test_offline_without_a_local_file_says_what_to_do(monkeypatch):
    monkeypatch.delenv("REAL_DATA", raising=False)

    def no_network(name):
        raise ConnectionError("offline")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    with pytest.raises(UserError, match="set REAL_DATA"):
        load_tokenizer("gpt2")


@pytest.mark.skipif(not REAL_DATA, reason="REAL_DATA is not set: GPT-2's merges are not at hand")
def test_gpt2_from_the_local_merges():
    enc = load_tokenizer("gpt2")
    assert (enc.name, enc.n_vocab, enc.eot_token) == ("gpt2", 50257, 50256)
    assert enc.encode_ordinary("Hello world") == [15496, 995]
    assert load_tokenizer(f"{REAL_DATA}/tokenizers/gpt2_vocab.bpe").encode_ordinary(
        " world\n\nI'm"
    ) == enc.encode_ordinary(" world\n\nI'm")
