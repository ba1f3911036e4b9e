"""Token files: mixtures, exact position, validation rows.   pytest -q tests/data/test_tokens.py"""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from common import UserError
from data.tokenizer import load_tokenizer, make_encoding, save_ranks
from data.tokens import TokenMix, load_meta, val_batches, write_meta

BYTES = make_encoding("bytes", {bytes([b]): b for b in range(256)})


def make_folder(path, streams, mixes=None, dtype="<u2", val="val.bin"):
    """A data folder over the byte tokenizer (257 ids) with the given streams of ids."""
    path.mkdir(exist_ok=True)
    for name, ids in streams.items():
        np.asarray(ids, dtype=dtype).tofile(path / name)
    files = {n: {"dtype": "uint16" if dtype == "<u2" else "uint32", "tokens": len(s)} for n, s in streams.items()}
    mixes = mixes or {"base": {name: 1.0 for name in streams}}
    write_meta(path, BYTES, {"kind": "text", "files": files, "mixes": mixes, "val": val, "block_size": 7, "seed": 0})
    return path


@pytest.fixture
def folder(tmp_path):
    streams = {"a.bin": range(0, 100), "b.bin": range(100, 151), "val.bin": range(30)}
    return make_folder(tmp_path / "d", streams, {"base": {"a.bin": 0.8, "b.bin": 0.2}, "only_a": {"a.bin": 2}})


def test_batch_is_a_pure_function_of_seed_and_step(folder):
    mix = TokenMix(folder, "base", 7, 3, seed=5)
    in_order = [mix.batch(step) for step in range(40)]
    assert in_order[0].shape == (3, 8) and in_order[0].dtype == torch.int64
    fresh = TokenMix(folder, {"a.bin": 0.8, "b.bin": 0.2}, 7, 3, seed=5)
    for step in (39, 7, 0, 39, 8):  # any order, epochs apart, backwards too
        assert torch.equal(fresh.batch(step), in_order[step])
    other = TokenMix(folder, "base", 7, 3, seed=6)
    assert not all(torch.equal(other.batch(step), in_order[step]) for step in range(3))


def test_rows_are_consecutive_tokens_of_one_file(folder):
    mix = TokenMix(folder, "base", 7, 5, seed=0)
    for row in torch.cat([mix.batch(step) for step in range(30)]):
        low, n = (0, 100) if row[0] < 100 else (100, 51)
        assert torch.equal(row - low, (row[0] - low + torch.arange(8)) % n)  # the stream is a ring


def test_nothing_repeats_before_everything_was_seen(folder):
    mix = TokenMix(folder, "only_a", 7, 1, seed=3)  # 100 tokens: 14 blocks of 7 and 2 tokens over
    epochs = [[mix.batch(14 * e + i)[0, :-1].tolist() for i in range(14)] for e in range(3)]
    for epoch in epochs:
        counts = Counter(token for row in epoch for token in row)
        assert len(counts) == 98 and set(counts.values()) == {1}
    assert epochs[0] != epochs[1] and sorted(epochs[0]) != sorted(epochs[1])  # another order, other borders


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_weights_hold_over_any_stretch(folder, rows):
    mix = TokenMix(folder, "base", 7, rows, seed=9)
    first_ids = torch.cat([mix.batch(step) for step in range(10, 10 + 960 // rows)])[:, 0]
    assert abs(int((first_ids >= 100).sum()) - 192) <= 5  # a fifth of 960 rows


def test_uint32_files(tmp_path):
    folder = make_folder(tmp_path / "wide", {"val.bin": range(40)}, dtype="<u4")
    assert next(val_batches(folder, 5, 2)).tolist()[1] == [5, 6, 7, 8, 9, 10]


def test_validation_rows_by_hand(folder):
    rows = list(val_batches(folder, 7, 3))  # 30 tokens: (30 - 1) // 7 = 4 rows
    assert [len(b) for b in rows] == [3, 1] and torch.cat(rows)[:, 0].tolist() == [0, 7, 14, 21]
    assert torch.cat(rows)[-1].tolist() == list(range(21, 29))
    assert torch.cat(list(val_batches(folder, 7, 3, max_tokens=15)))[:, 0].tolist() == [0, 14]  # 2 rows, evenly spaced
    assert len(torch.cat(list(val_batches(folder, 7, 3, max_tokens=1)))) == 1


@pytest.mark.parametrize(
    "mix, block, message",
    [
        ("nope", 7, "base, only_a"),
        ({"c.bin": 1}, 7, "no token file 'c.bin'"),
        ({"a.bin": -1, "b.bin": 2}, 7, "0 or more"),
        ({}, 7, "sum above 0"),
        ("base", 51, "b.bin: 51 tokens"),
        ("base", 0, "at least 1"),
    ],
)
def test_bad_mixes(folder, mix, block, message):
    with pytest.raises(UserError, match=message):
        TokenMix(folder, mix, block, 2, 0)


def test_damaged_folders(folder, tmp_path):
    with pytest.raises(UserError, match="data.world"):
        load_meta(tmp_path / "nowhere")
    with pytest.raises(UserError, match="fewer than a row"):
        val_batches(folder, 30, 1)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "a.bin").write_bytes(b"\0" * 199)
    with pytest.raises(UserError, match="a.bin: 199 bytes.*200 bytes"):
        load_meta(folder)
    (folder / "a.bin").unlink()
    with pytest.raises(UserError, match="a.bin: missing"):
        load_meta(folder)
    np.full(100, 300, dtype="<u2").tofile(folder / "a.bin")
    with pytest.raises(UserError, match="token id 300.*257"):
        TokenMix(folder, "only_a", 7, 1, 0).batch(0)
    (folder / "meta.json").write_text(json.dumps(meta | {"format": 2}))
    with pytest.raises(UserError, match="format 2"):
        load_meta(folder)
    (folder / "meta.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_meta(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"files": {"../a.bin": {"dtype": "uint16", "tokens": 100}}}, "no name of a file in its own folder"),
        ({"files": {"/etc/passwd": {"dtype": "uint16", "tokens": 100}}}, "no name of a file"),
        ({"files": ["a.bin"]}, "'files' must be dict"),
        ({"files": {"a.bin": 100}}, "'a.bin' must be dict"),
        ({"files": {"a.bin": {"dtype": "uint16", "tokens": "100"}}}, "'tokens' must be int"),
        ({"files": {"a.bin": {"dtype": "uint16", "tokens": -100}}}, "-100 tokens"),
        ({"files": {"a.bin": {"dtype": ["uint16"], "tokens": 100}}}, "'dtype' must be str"),
        ({"files": {"a.bin": {"dtype": "float64", "tokens": 100}}}, "uint16 or uint32"),
        ({"val": ["val.bin"]}, "'val' must be str"),
        ({"val": "../val.bin"}, "none of its files"),
        ({"mixes": {"base": 1}}, "'base' must be dict"),
        ({"mixes": {"base": {"a.bin": "all"}}}, "'a.bin' must be int or float"),
        ({"mixes": {"base": {"a.bin": True}}}, "'a.bin' must be int or float"),
        ({"mixes": {"base": {"else.bin": 1}}}, "'else.bin' is none of its files"),
        ({"block_size": None}, "'block_size' must be int"),
        ({"kind": 1}, "'kind' must be str"),
        ({"tokenizer": "bytes"}, "'tokenizer' must be dict"),
        ({"tokenizer": {"name": "bytes", "file": "x", "hash": "x", "n_vocab": "257"}}, "'n_vocab' must be int"),
        ({"format": [1]}, "format"),
    ],
)
def test_every_field_of_a_manifest_is_checked(folder, change, message):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(UserError, match=message) as error:
        load_meta(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", '{"format": 1, "seed": NaN}', "\ufeff{", "9" * 5000])
def test_a_manifest_that_is_none(folder, text):
    (folder / "meta.json").write_text(text)
    with pytest.raises(UserError, match="meta.json: no .*data folder"):
        load_meta(folder)


def test_held_out_ids_beyond_the_vocabulary_are_refused_before_the_run(folder):
    ids = np.arange(30, dtype="<u2")
    ids[25] = 257
    ids.tofile(folder / "val.bin")
    with pytest.raises(UserError, match="token id 257 in .*val.bin.*257"):
        val_batches(folder, 7, 1)  # called, not yet read from
    assert len(list(val_batches(folder, 7, 1, max_tokens=14))) == 2  # of the rows that are taken


def test_a_failed_manifest_leaves_none(folder, monkeypatch):
    (folder / "meta.json").unlink()
    with pytest.raises(UserError, match="mixes/base is nan"):
        write_meta(folder, BYTES, {"mixes": {"base": float("nan")}})
    assert not list(folder.glob("*meta*"))


def test_a_folder_with_another_tokenizer_file_is_refused(folder):
    assert load_tokenizer(folder).n_vocab == 257
    save_ranks({bytes([b]): (b + 1) % 256 for b in range(256)}, folder / "tokenizer.tiktoken")
    with pytest.raises(UserError, match="meta.json"):
        load_tokenizer(folder)
