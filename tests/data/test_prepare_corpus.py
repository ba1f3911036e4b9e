"""Files of text to token files: parts, mixes, going on, bad input.   pytest -q tests/data/test_prepare_corpus.py"""

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_common import full_disk
from tiny import BYTES

from common import UserError, run
from data import prepare as command
from data import tokens
from data.prepare_corpus import MANIFEST, default_mixes, prepare
from data.tokenizer import decode, load_tokenizer, make_encoding, save_ranks
from data.tokens import TokenMix, general_text, load_meta

ROOT = Path(command.__file__).parent.parent
SMALL = dict(val_fraction=0.3, block_size=20)


def write_sources(folder, documents=60):
    """web.jsonl.gz, book.txt, train.jsonl (questions); returns the texts of the first."""
    texts = [f"Document {n} says é.\n" for n in range(documents)]
    with gzip.open(folder / "web.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"id": n, "source": "x", "text": t}) + "\n" for n, t in enumerate(texts))
    (folder / "book.txt").write_text("To be.\n\nNot to be.\n")
    rows = [{"question": f"What is {n}+1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(80)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return texts


def bytes_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def tokens_of(folder):
    return {name: data for name, data in bytes_of(folder).items() if name.endswith(".bin")}


@pytest.fixture
def shards(tmp_path):
    """A folder of five files of documents."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(5):
        rows = [json.dumps({"text": f"Document {n} of file {i}."}) for n in range(40)]
        (folder / f"{i}.jsonl").write_text("\n".join(rows))
    return folder


def test_whole_documents_and_worksheets_are_written(tmp_path):
    texts, out = write_sources(tmp_path), tmp_path / "out"
    parts = {"general": [tmp_path / "web.jsonl.gz", tmp_path / "book.txt"], "math": [tmp_path / "train.jsonl"]}
    meta = prepare(parts, out, BYTES, val_fraction=0.2, block_size=200, seed=1)
    assert meta["mixes"] == {
        "base": {"general.bin": 0.8, "math.bin": 0.2},
        "math-heavy": {"general.bin": 0.6, "math.bin": 0.4},
    }
    read = {name: np.fromfile(out / name, dtype="<u2").tolist() for name in meta["files"]}
    assert all(ids[0] == 256 for ids in read.values()) and load_tokenizer(out).n_vocab == 257
    documents = {name: decode(BYTES, ids).split("<|endoftext|>")[1:] for name, ids in read.items()}
    held_out = documents["val.bin"]
    general = [d for d in held_out if not d.startswith("Question")]
    assert sorted(documents["general.bin"] + general) == sorted([*texts, "To be.\n\nNot to be.\n"])
    assert 0 < len(general) < 30 and held_out[: len(general)] == general  # mathematics comes last
    assert meta["val_math"] == sum(len(d.encode()) + 1 for d in held_out[len(general) :]) > 0
    assert len(general_text(out, 20, 0)) == round(
        (1 - meta["val_math"] / len(read["val.bin"])) * (len(read["val.bin"]) // 20)
    )
    assert sum(sheet.count("Question:") for sheet in documents["math.bin"] + held_out) == 72


def test_parts_have_the_papers_shares():
    tokens = {"dclm": 300, "flan": 100, "wiki": 50, "pes2o": 10, "stackexchange": 10, "math": 60, "worksheets": 20}
    base = default_mixes(tokens)["base"]
    assert sum(base.values()) == pytest.approx(1)
    shares = {part: 94 * weight for part, weight in base.items()}
    assert shares == pytest.approx(
        {"dclm": 45, "flan": 15, "wiki": 7, "pes2o": 5, "stackexchange": 2, "math": 15, "worksheets": 5}
    )
    heavy = default_mixes(tokens)["math-heavy"]
    assert heavy["math"] == pytest.approx(2 * base["math"]) and sum(heavy.values()) == pytest.approx(1)
    assert heavy["dclm"] / heavy["wiki"] == pytest.approx(base["dclm"] / base["wiki"])
    assert default_mixes({"general": 9, "math": 1}, 0.3)["base"] == {"general": 0.7, "math": 0.3}
    assert default_mixes({"general": 9}) == {"base": {"general": 1.0}}
    assert default_mixes({"general": 9, "code": 9}) == {}


def test_a_mix_of_ones_own(tmp_path):
    write_sources(tmp_path)
    parts = {"code": [tmp_path / "web.jsonl.gz"], "math": [tmp_path / "train.jsonl"]}
    with pytest.raises(UserError, match="--part code: no share in the paper's mix; give --mix base"):
        prepare(parts, tmp_path / "out", BYTES, **SMALL)
    assert not (tmp_path / "out").exists()  # told before any work
    with pytest.raises(UserError, match="'cod' is no part; the parts are code, math"):
        prepare(parts, tmp_path / "out", BYTES, mixes={"base": {"cod": 1}}, **SMALL)
    meta = prepare(parts, tmp_path / "out", BYTES, mixes={"base": {"code": 3, "math": 1}}, **SMALL)
    assert meta["mixes"] == {"base": {"code.bin": 3, "math.bin": 1}}
    assert TokenMix(tmp_path / "out", "base", 20, 2, 0).batch(0).shape == (2, 21)
    with pytest.raises(UserError, match="--part val: give a name"):
        prepare({"val": parts["code"]}, tmp_path / "out", BYTES)


def test_a_finished_folder_stays_as_it_is(tmp_path, shards):
    prepare({"general": [shards]}, tmp_path / "out", BYTES, **SMALL)
    before = bytes_of(tmp_path / "out")
    prepare({"general": [shards]}, tmp_path / "out", BYTES, **SMALL)
    assert bytes_of(tmp_path / "out") == before
    for change, message in [
        ({"val_fraction": 0.1}, "was begun with val_fraction 0.3, not 0.1; give the same again, or another --out"),
        ({"seed": 1}, "was begun with seed 0, not 1"),
    ]:
        with pytest.raises(UserError, match=message):
            prepare({"general": [shards]}, tmp_path / "out", BYTES, **SMALL | change)
    with pytest.raises(UserError, match="begun with sources 5 files of .* bytes, not 1 files"):
        prepare({"general": [shards / "0.jsonl"]}, tmp_path / "out", BYTES, **SMALL)
    other = make_encoding("other", {bytes([b]): (b + 1) % 256 for b in range(256)})
    with pytest.raises(UserError, match="begun with tokenizer bytes .257 tokens, hash .*, not other"):
        prepare({"general": [shards]}, tmp_path / "out", other, **SMALL)
    for missing in ([tmp_path / "missing.txt"], [shards, tmp_path / "missing.txt"]):
        with pytest.raises(UserError, match="missing.txt: no such file"):
            prepare({"general": missing}, tmp_path / "out", BYTES, **SMALL)
    assert bytes_of(tmp_path / "out") == before and load_meta(tmp_path / "out")["kind"] == "text"
    (tmp_path / "out" / MANIFEST).unlink()
    with pytest.raises(UserError, match="data folder that this command did not make"):
        prepare({"general": [shards]}, tmp_path / "out", BYTES, **SMALL)


def test_what_is_written_does_not_depend_on_workers(tmp_path, shards):
    prepare({"general": [shards]}, tmp_path / "one", BYTES, **SMALL)
    prepare({"general": [shards]}, tmp_path / "two", BYTES, **SMALL, workers=2)
    assert tokens_of(tmp_path / "one") == tokens_of(tmp_path / "two")
    assert bytes_of(tmp_path / "one")["meta.json"] == bytes_of(tmp_path / "two")["meta.json"]


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_a_preparation_that_was_cut_off_goes_on(tmp_path, shards, lines, monkeypatch):
    """After any number of sources, with tokens behind the last line and a line that is torn."""
    out = tmp_path / "out"
    prepare({"general": [shards]}, out, BYTES, **SMALL)
    whole = tokens_of(out), (out / "meta.json").read_bytes()
    kept = (out / MANIFEST).read_text().splitlines(keepends=True)[: lines + 1]
    (out / MANIFEST).write_text("".join(kept) + '{"source": "')
    (out / "meta.json").unlink()
    (out / ".tmp_99999999_3.train").write_bytes(b"left behind")
    read = []
    monkeypatch.setattr("data.prepare_corpus.question_task", lambda path: read.append(path))
    prepare({"general": [shards]}, out, BYTES, **SMALL)
    assert (tokens_of(out), (out / "meta.json").read_bytes()) == whole
    assert read == [str(shards / f"{i}.jsonl") for i in range(lines, 5)]
    assert not list(out.glob(".tmp_*"))


def test_lost_tokens_are_told(tmp_path, shards):
    out = tmp_path / "out"
    prepare({"general": [shards]}, out, BYTES, **SMALL)
    rows = (out / MANIFEST).read_text().splitlines(keepends=True)
    (out / MANIFEST).write_text("".join(rows[:-1]))
    (out / "general.bin").write_bytes(b"")
    with pytest.raises(UserError, match="general.bin: 0 bytes, but manifest.jsonl counts"):
        prepare({"general": [shards]}, out, BYTES, **SMALL)


def test_a_killed_command_goes_on_and_leaves_no_process(tmp_path):
    source = tmp_path / "shards"
    source.mkdir()
    for i in range(6):
        rows = [json.dumps({"text": f"Document {n} of file {i}. " * 20}) for n in range(1500)]
        (source / f"{i}.jsonl").write_text("\n".join(rows))
    save_ranks(BYTES._mergeable_ranks, tmp_path / "bytes.tiktoken")
    flags = ["corpus", str(source), "--tokenizer", str(tmp_path / "bytes.tiktoken"), "--workers", "2"]
    called = [sys.executable, "-m", "data.prepare", *flags, "--out"]
    killed = subprocess.Popen([*called, str(tmp_path / "killed")], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    manifest, until = tmp_path / "killed" / MANIFEST, time.time() + 60
    while not (manifest.is_file() and manifest.read_text().count("\n") > 1) and time.time() < until:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.stdout.read()  # ends when the last process that holds it has ended
    assert killed.wait() == -signal.SIGKILL
    for name in ("killed", "whole"):
        prepare({"general": [str(source)]}, tmp_path / name, load_tokenizer(tmp_path / "bytes.tiktoken"))
    assert tokens_of(tmp_path / "killed") == tokens_of(tmp_path / "whole")


def test_a_full_disk(tmp_path, shards):
    """What is done is kept, and the same call goes on."""
    out = tmp_path / "out"
    with pytest.raises(UserError, match="cannot write.*what is done is kept.*goes on") as error, full_disk(4500):
        prepare({"general": [shards]}, out, BYTES, **SMALL)
    assert "\n" not in str(error.value) and not list(out.glob(".tmp_*"))
    assert 2 < len((out / MANIFEST).read_text().splitlines()) < 6
    prepare({"general": [shards]}, out, BYTES, **SMALL)
    prepare({"general": [shards]}, tmp_path / "whole", BYTES, **SMALL)
    assert tokens_of(out) == tokens_of(tmp_path / "whole")


def test_a_bad_source_stops_it_and_names_itself(tmp_path, shards):
    (shards / "2.jsonl").write_text("no JSON\n" * 5)
    for workers in (1, 2):
        with pytest.raises(UserError, match="2.jsonl:1: not valid JSON"):
            prepare({"general": [shards]}, tmp_path / "out", BYTES, **SMALL, workers=workers)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="--out"):
        prepare({"general": [shards / "0.jsonl"]}, tmp_path / "taken" / "sub", BYTES)
    (tmp_path / "x.docx").write_text("x")
    with pytest.raises(UserError, match="x.docx: unknown kind of file"):  # before any work
        prepare({"general": [shards / "0.jsonl", tmp_path / "x.docx"]}, tmp_path / "new", BYTES)
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no .jsonl, .json, .parquet, .txt files in this folder"):
        prepare({"general": [tmp_path / "empty"]}, tmp_path / "out", BYTES)


def test_a_document_with_a_million_blanks_is_prepared(tmp_path):
    rows = [{"text": "a" + " " * 1_000_000 + "b"}, *({"text": f"Document {n}."} for n in range(20))]
    (tmp_path / "blank.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    meta = prepare({"general": [tmp_path / "blank.jsonl"]}, tmp_path / "out", BYTES, val_fraction=0.5, block_size=4)
    assert sum(entry["tokens"] for entry in meta["files"].values()) == sum(len(row["text"]) + 1 for row in rows)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """call(flags...) -> (exit code, stdout, stderr) of the command, with the bytes as its tokenizer."""
    save_ranks(BYTES._mergeable_ranks, tmp_path / "bytes.tiktoken")
    own = ["--tokenizer", str(tmp_path / "bytes.tiktoken"), "--block-size", "20", "--val-fraction", "0.3"]

    def called(*flags):
        monkeypatch.setattr(sys, "argv", ["prepare", "corpus", *map(str, flags), *own])
        code = 0
        try:
            run(command.main)
        except SystemExit as ended:
            code = ended.code
        return (code, *capsys.readouterr())

    return called


def test_command_line(tmp_path, call):
    write_sources(tmp_path)
    web, sums, out = tmp_path / "web.jsonl.gz", tmp_path / "train.jsonl", tmp_path / "cli"
    code, shown, _ = call(web, "--math", sums, "--mix", "half", "general=1", "math=1", "--out", out)
    assert code == 0 and "general.bin" in shown and "tokens a core-second" in shown
    assert load_meta(out)["mixes"]["half"] == {"general.bin": 1, "math.bin": 1}
    assert call(web, "--math", sums, "--math-weight", 0.5, "--out", out)[0] == 0  # another mix, the same tokens
    assert load_meta(out)["mixes"]["base"] == {"general.bin": 0.5, "math.bin": 0.5}
    assert call("--part", "wiki", web, "--part", "math", sums, "--out", tmp_path / "parts")[0] == 0
    for flags, message in [
        (["missing.txt"], "missing.txt: no such file"),
        ([], "no files"),
        ([web, "--mix", "x", "general=much"], "--mix general=much: give PART=WEIGHT"),
        ([web, "--mix", "x"], "--mix x: no part has a weight above 0"),
        ([web, "--mix", "base", "general=0"], "--mix base: no part has a weight above 0"),
        (["--part", "code", web], "--part code: no share in the paper's mix; give --mix base"),
        ([web, "--math-weight", 1], "--math-weight 1.0: must lie between 0 and 1"),
        ([web, "--workers", 0], "--workers 0: must be at least 1"),
    ]:
        code, _, error = call(*flags, "--out", tmp_path / "none")
        assert code == 2 and error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "none").exists()


def test_the_older_name_of_the_command(tmp_path, shards, monkeypatch, capsys):
    """`python -m data.tokens FILES` is `data.prepare corpus FILES`, with --ready LIST `data.prepare ready LIST`."""
    made = ["--val-fraction", "0.3", "--block-size", "20", "--tokenizer", str(tmp_path / "bytes.tiktoken")]
    save_ranks(BYTES._mergeable_ranks, tmp_path / "bytes.tiktoken")
    for out, name in (("new", ["data.prepare", "corpus"]), ("old", ["data.tokens"])):
        monkeypatch.setattr(sys, "argv", [*name, str(shards), *made, "--out", str(tmp_path / out)])
        (command if out == "new" else tokens).main()
    assert tokens_of(tmp_path / "new") == tokens_of(tmp_path / "old") != {}
    monkeypatch.setattr(sys, "argv", ["data.tokens", "--ready", "none.txt", "--val", "v", "--out", str(tmp_path)])
    with pytest.raises(UserError, match="none.txt"):
        tokens.main()


def test_optional_packages_are_asked_for_in_a_sentence(tmp_path, monkeypatch):
    """Before any work, and only where a file needs them."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "b.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    for name in ("pyarrow", "pyarrow.parquet", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    for file, package in (("a.parquet", "pyarrow"), ("b.jsonl.zst", "zstandard")):
        with pytest.raises(UserError, match=f"needs {package}, which is not installed; pip install {package}"):
            prepare({"general": [tmp_path / file]}, tmp_path / "out", BYTES)
    assert not (tmp_path / "out").exists()
