"""The reader and writer of small files.   pytest -q tests/data/test_files.py"""

import gzip
import json
import os
import stat
import sys

import pytest

import common
from data import files
from data.files import (
    UserError,
    field,
    read_json,
    read_jsonl,
    read_parquet,
    read_text,
    suffix,
    to_json,
    write_json,
    write_jsonl,
    write_text,
)

DEEP = b"[" * 200_000 + b"]" * 200_000


def test_there_is_one_user_error():
    assert common.UserError is files.UserError


# ---------------------------------------------------------------- reading
def test_byte_order_marks_and_gzip_read_as_plain_text(tmp_path):
    row = {"question": "Wie viel? é 中"}
    text = json.dumps(row, ensure_ascii=False).encode()
    for name, data in {
        "plain.json": text,
        "bom.json": b"\xef\xbb\xbf" + text,
        "x.json.gz": gzip.compress(text),
        "unmarked.json": gzip.compress(b"\xef\xbb\xbf" + text),  # gzipped, whatever its name
        "crlf.json": text + b"\r\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert read_json(tmp_path / name) == row and list(read_jsonl(tmp_path / name)) == [(1, row)], name
        assert json.loads(read_text(tmp_path / name)) == row
    (tmp_path / "empty").write_bytes(b"")
    assert read_text(tmp_path / "empty") == "" and list(read_jsonl(tmp_path / "empty")) == []


def test_zstd_reads_as_plain_text_and_a_torn_file_is_refused(tmp_path):
    zstd = pytest.importorskip("zstandard", reason="zstandard is not installed")
    rows = [{"n": n, "text": "é" * n} for n in range(2000)]
    text, path = b"".join(json.dumps(row).encode() + b"\n" for row in rows), tmp_path / "x.jsonl.zst"
    packed = zstd.compress(text)
    for data in (packed, zstd.compress(b"\xef\xbb\xbf" + text[:5000]) + zstd.compress(text[5000:])):  # two frames
        path.write_bytes(data)
        assert [row for _, row in read_jsonl(path)] == rows
    path.write_bytes(zstd.compress(b""))
    assert list(read_jsonl(path)) == []
    for broken in (packed[:-9], packed[:40] + b"\0" * 20 + packed[60:]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="x.jsonl.zst: cannot read it"):
            list(read_jsonl(path))


def test_parquet_columns_and_a_torn_file(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet, path = pytest.importorskip("pyarrow.parquet"), tmp_path / "x.parquet"
    table = arrow.table({"problem": [f"é{n}" for n in range(2500)], "n": list(range(2500))})
    parquet.write_table(table, path, row_group_size=700)
    batches = list(read_parquet(path, ["problem", "answer"]))
    assert [set(batch) for batch in batches] == [{"problem"}] * len(batches)
    assert [text for batch in batches for text in batch["problem"]] == table["problem"].to_pylist()
    data = path.read_bytes()
    for broken in (data[:-9], data[:200] + b"\0" * 400 + data[600:], b"", b"{}"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="no readable parquet file .*; fetch it again"):
            list(read_parquet(path, ["problem"]))
    with pytest.raises(UserError, match="no such file"):
        list(read_parquet(tmp_path / "none.parquet", ["problem"]))


def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "x.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd....")
    with pytest.raises(UserError, match="needs zstandard, which is not installed; pip install zstandard"):
        list(read_jsonl(tmp_path / "x.jsonl.zst"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="needs pyarrow, which is not installed; pip install pyarrow"):
        list(read_parquet(tmp_path / "x.parquet", ["problem"]))


def test_suffixes_in_any_case():
    names = {"a/Train.JSONL": ".jsonl", "x.json.gz": ".json", "X.JSON.GZ": ".json", "notes.md": ".md", "a": ""}
    assert {name: suffix(name) for name in names} == names


def test_integers_of_any_length_are_read(tmp_path):
    digits = "9" * 5000
    (tmp_path / "x.json").write_text(f'{{"id": {digits}, "small": -{digits}, "n": 7}}')
    assert read_json(tmp_path / "x.json") == {"id": digits, "small": "-" + digits, "n": 7}
    with pytest.raises(UserError, match="'id' must be int"):
        field(read_json(tmp_path / "x.json"), "id", int, "x.json")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b'{"a": 1}\n{"a": 2}', "Extra data at line 2, column 1"),
        (DEEP, "nested too deep"),
        (b'{"a": ' + DEEP + b"}", "nested too deep"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity, "b": ' + b"1" * 5000 + b"}", "-Infinity is no number"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b"\x00{\x00}", "not UTF-8|not valid JSON"),
        (b'{"a": "\xe9"}', "not UTF-8"),
        (b"\x00" * 30, "not valid JSON"),
        (b"[1]", "list where dict is needed"),
        (b"\x1f\x8b\x08\x00", "cannot read it"),
        (gzip.compress(b'{"a": 1}' * 1000, mtime=0)[:-9], "cannot read it"),
    ],
)
def test_an_unreadable_file_is_one_sentence(tmp_path, data, message):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        read_json(path, "evaluation", mend="run evaluate.py again")
    assert str(path) in str(error.value) and "run evaluate.py again" in str(error.value)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 300


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match="no such study|cannot read it"):
            read_json(path, "study")
        with pytest.raises(UserError, match="no such file|cannot read it"):
            next(read_jsonl(path))
    with pytest.raises(UserError, match="not UTF-8"):
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
        read_text(tmp_path / "latin.txt")


def test_a_damaged_line_is_named_or_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    torn = [b'{"step": 2, "text": "so \\boxed{5}', b"\x00\x00\x00", b'{"a": "\xff"}', b"[1]", DEEP, b'{"a": NaN}']
    path.write_bytes(b"\n".join([b'{"step": 1}', b"", *torn, b'{"step": 3}']))
    with pytest.raises(UserError, match="metrics.jsonl:3: not valid JSON.*mend or remove"):
        list(read_jsonl(path))
    dropped: list[str] = []
    assert list(read_jsonl(path, dropped)) == [(1, {"step": 1}), (9, {"step": 3})]
    assert len(dropped) == len(torn) and all(f"metrics.jsonl:{n + 3}: " in d for n, d in enumerate(dropped))
    path.write_bytes(gzip.compress(b'{"step": 1}\n' * 10_000)[:-20])
    dropped.clear()
    assert len(list(read_jsonl(path, dropped))) > 100 and len(dropped) == 1


@pytest.mark.parametrize(
    "value, kind", [(True, int), (1.5, int), ("1", int), (None, str), (float("inf"), float), (False, float), ([], dict)]
)
def test_a_field_of_another_kind_is_refused(value, kind):
    with pytest.raises(UserError, match="meta.json: 'n' must be"):
        field({"n": value}, "n", kind, "meta.json")


def test_a_field_of_its_kind_passes():
    row = {"n": 3, "x": 2, "on": True, "name": None}
    assert field(row, "n", int, "") == 3 and field(row, "x", float, "") == 2 and field(row, "on", bool, "") is True
    assert field(row, "name", (str, type(None)), "") is None


# ---------------------------------------------------------------- writing
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    write_json(path, {"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="out.json: losses/1 is nan"):
        write_json(path, {"fine": 1.0, "losses": [1.0, float("nan")]})
    with pytest.raises(UserError, match="evil is -inf"):
        write_jsonl(path, [{"a": 1}, {"evil": float("-inf")}])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_text(path, "new")

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["out.json"]
    with pytest.raises(UserError, match="could not be written"):
        write_text(tmp_path / "no" / "such" / "folder.txt", "x")


def test_written_files_are_utf8_whatever_the_text(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    write_text(tmp_path / "x.md", "± 中\n\udcff")
    assert (tmp_path / "x.md").read_bytes() == "± 中\n\\udcff".encode()
    write_json(tmp_path / "x.json", {"half": "\ud800", "n": 1}, separators=(",", ":"))
    assert (tmp_path / "x.json").read_bytes() == b'{"half":"\\ud800","n":1}\n'
    assert read_json(tmp_path / "x.json") == {"half": "\ud800", "n": 1}
    assert to_json({"a": [1, 2]}) == '{"a": [1, 2]}'


def test_links_stay_and_long_names_and_pipes_work(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "file.txt")
    write_text(tmp_path / "link.txt", "x")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real" / "file.txt").read_text() == "x"
    write_text(tmp_path / ("中" * 80), "long")
    assert (tmp_path / ("中" * 80)).read_text() == "long"
    write_text("/dev/null", "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
