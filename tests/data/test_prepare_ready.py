"""Raw token files of others as a data folder.   pytest -q tests/data/test_prepare_ready.py"""

import gzip

import numpy as np
import pytest

from common import UserError
from data import prepare
from data.tokenizer import make_encoding, save_ranks
from data.tokens import TokenMix, val_batches

WORDS = make_encoding("bytes", {bytes([b]): b for b in range(256)})  # 257 ids
CONFIG = """data:
  memmap_dtype: uint32
  #       c4: - http://example.org/eval/not-these.npy
  paths:
    #SOURCE: http://example.org/raw/web/ (0.02MT)
    - http://example.org/raw/web/part-0.npy
    - "http://example.org/raw/web/part-1.npy"
    #SOURCE: http://example.org/raw/tinyGSM/ (0.01MT)
    - http://example.org/raw/tinyGSM/part-0.npy"""


@pytest.fixture
def folder(tmp_path):
    """Two files of web text, 10,000 ids each, one of mathematics, and one held out."""
    rng = np.random.default_rng(0)
    for name in ("raw/web/part-0.npy", "raw/web/part-1.npy", "raw/tinyGSM/part-0.npy", "eval/held.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        rng.integers(0, 257, 10_000).astype("<u2").tofile(tmp_path / name)
    (tmp_path / "config.yaml").write_text(CONFIG)
    save_ranks(WORDS._mergeable_ranks, tmp_path / "bytes.tiktoken")
    return tmp_path


@pytest.fixture
def ready(folder, monkeypatch, capsys):
    """ready() runs the command on the folder."""

    def run(val: str = "eval/held.npy") -> str:
        words = [
            "ready",
            folder / "config.yaml",
            "--val",
            val,
            "--tokenizer",
            folder / "bytes.tiktoken",
            "--out",
            folder,
        ]
        monkeypatch.setattr("sys.argv", ["prepare", *map(str, words)])
        prepare.main()
        return capsys.readouterr().out

    return run


def test_a_list_of_addresses_is_a_data_folder(ready, folder):
    assert "4 files, 40,000 tokens, mixes base math-heavy" in ready()
    mix = TokenMix(folder, "base", 32, 8)
    assert mix.names == ["raw/web/part-0.npy", "raw/web/part-1.npy", "raw/tinyGSM/part-0.npy"]
    stream = np.fromfile(folder / mix.names[0], dtype="<u2")
    rows = [row.tolist() for row in mix.batch(0) if row[0] in stream]
    assert any(row == stream[i : i + 33].tolist() for row in rows for i in np.flatnonzero(stream[:-33] == row[0]))
    held = next(val_batches(folder, 32, 1))[0].tolist()
    assert held == np.fromfile(folder / "eval/held.npy", dtype="<u2")[:33].tolist()


def test_shares_are_those_of_the_sizes(ready, folder):
    ready()
    shares = TokenMix(folder, "base", 32, 8).mix
    assert shares == pytest.approx(dict.fromkeys(shares, 1 / 3))
    heavy = TokenMix(folder, "math-heavy", 32, 8).mix
    assert heavy["raw/tinyGSM/part-0.npy"] == pytest.approx(2 / 3) and sum(heavy.values()) == pytest.approx(1)


def broken(path, how: str) -> None:
    ids = np.fromfile(path, dtype="<u2")
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "numpy":
        np.save(path, ids)
    elif how == "zst":
        path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    elif how == "gzip":
        path.write_bytes(gzip.compress(bytes(100)))
    elif how == "foreign":
        (ids + 300).astype("<u2").tofile(path)
    elif how == "short":
        path.write_bytes(path.read_bytes()[:-16_000])
    elif how == "gone":
        path.unlink()


@pytest.mark.parametrize("how, words", [
    ("cut", "19999 bytes are no ids of uint16.*fetch it again"),
    ("empty", "0 bytes are no ids"),
    ("numpy", "begins with a NumPy header.*tofile"),
    ("zst", "begins with zstd's mark.*unpack it"),
    ("gzip", "begins with gzip's mark.*unpack it"),
    ("foreign", "holds id 5.., and --tokenizer has 257"),
    ("short", "2 files from raw/web/part-0.npy on have 0.01M tokens, and the list says 0.02M"),
    ("gone", "no such file; fetch it"),
])  # fmt: skip
def test_what_is_no_raw_token_file_is_refused(ready, folder, how, words):
    broken(folder / "raw/web/part-1.npy", how)
    with pytest.raises(UserError, match=f"(part-1.npy: |^){words}"):
        ready()
    assert not (folder / "meta.json").exists()


@pytest.mark.parametrize("text, words", [
    ("# nothing\n", "names no .npy or .bin file"),
    ("raw/web/part-0.npy\n- raw/web/part-0.npy\n", "names raw/web/part-0.npy twice"),
    ("../other/part-0.npy\n", "leads out of"),
])  # fmt: skip
def test_odd_lists_are_refused(ready, folder, text, words):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        ready()


def test_held_out_text_is_not_trained_on(ready):
    with pytest.raises(UserError, match="--val raw/web/part-0.npy is also in"):
        ready("raw/web/part-0.npy")
