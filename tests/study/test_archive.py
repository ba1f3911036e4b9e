"""A study in one file: the same content by name, small, the same bytes.   pytest -q tests/study/test_archive.py"""

import gzip
import json
from pathlib import Path

import pytest

from common import UserError
from study import archive
from study.archive import StudyFiles, columns, find, pack, rows_of

LOG = [
    {"step": 1, "train/loss": 7.5160956382751465, "reward/hits": 3},
    {"step": 2, "train/loss": 0.1234567890123, "reward/hits": 4, "eval/loss": 2.5},
    {"step": 3, "train/loss": 1e-12, "reward/hits": None, "eval/loss": 2.25},
]
LONG = [f"gsm/{i}" for i in range(40)]


def study(folder: Path) -> dict[str, dict | list]:
    """A live study of two evaluations and a run; returns its files."""
    samples = [{"task": "gsm", "prompt": f"Q{i // 2}", "gold": "1", "completion": f"a{i}"} for i in range(12)]
    evaluation = {"seconds": 1.2345678901234, "questions": {"gsm": {"qid": LONG, "n": [4, 4], "answers": [{"1": 4}]}}}
    files = {
        "evals/a.json": {**evaluation, "general_average": 0.1 + 0.2},
        "evals/b.json": evaluation,
        "evals/a.samples.jsonl": samples,
        "runs/rl/metrics.jsonl": LOG,
        "runs/rl/config.json": {"lr": 0.1},
        "beyond/c.json": evaluation,
    }
    runs = [dict(name=n, kind="eval", out=f"evals/{n}.json") for n in ("a", "b", "never-run")]
    runs.append(dict(name="rl", kind="train", out="runs/rl/ckpt_000003.pt", metrics="runs/rl/metrics.jsonl"))
    for name, content in {**files, "runs.json": {"preset": "lab", "runs": runs}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lines = content if name.endswith(".jsonl") else [content]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files


def test_a_packed_study_reads_as_the_live_one(tmp_path):
    """Evaluations to the last bit, logs to seven digits, of samples the first answer to each of three questions."""
    files, out = study(tmp_path / "live"), tmp_path / "packed" / archive.NAME
    out.parent.mkdir()
    pack(tmp_path / "live", out, ["beyond/c.json"])
    live, packed = StudyFiles(tmp_path / "live"), StudyFiles(out.parent)
    assert packed.manifest == live.manifest and packed.folder == out.parent and StudyFiles(out).packed == packed.packed
    assert all(packed.json(n) == live.json(n) == c for n, c in files.items() if n.endswith(".json"))
    log = packed.rows("runs/rl/metrics.jsonl")
    assert [r.keys() for r in log] == [r.keys() for r in LOG] and live.rows("runs/rl/metrics.jsonl") == LOG
    assert [r["train/loss"] for r in log] == [7.516096, 0.1234568, 1e-12]
    assert [r["completion"] for r in packed.rows("evals/a.samples.jsonl")] == ["a0", "a2", "a4"]
    for s in (live, packed):
        assert not s.has("evals/never-run.json") and s.json("evals/never-run.json") is None
        assert s.rows("evals/b.samples.jsonl") == []


def test_what_several_hold_stands_there_once(tmp_path):
    study(tmp_path)
    pack(tmp_path, tmp_path / "a.gz", [])
    text = gzip.decompress((tmp_path / "a.gz").read_bytes()).decode()
    assert text.count('"gsm/7"') == 1
    one, other = (StudyFiles(tmp_path / "a.gz").json(f"evals/{n}.json")["questions"]["gsm"]["qid"] for n in "ab")
    one[0] = "changed"
    assert other == LONG


def test_the_same_study_gives_the_same_bytes(tmp_path, monkeypatch):
    study(tmp_path)
    pack(tmp_path, tmp_path / "a.gz", [])
    monkeypatch.setattr("time.time", lambda: 2e9)
    pack(tmp_path, tmp_path / "b.gz", [])
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_a_folder_again_and_packed_again(tmp_path, monkeypatch, capsys):
    study(tmp_path / "live")
    for argv in (["live", "--out", "a.gz"], ["a.gz", "--out", "again"], ["again", "--out", "b.gz"]):
        monkeypatch.setattr("sys.argv", ["archive", *(str(tmp_path / a) if a[0] != "-" else a for a in argv)])
        archive.main()
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert "5 files and runs.json" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["archive", str(tmp_path / "a.gz"), "--out", str(tmp_path / "again")])
    with pytest.raises(UserError, match="not an empty folder"):
        archive.main()


def test_columns_and_back():
    assert rows_of(columns(LOG)) == LOG and rows_of(columns([])) == []
    assert columns(LOG)["eval/loss"] == {"rows": [1, 2], "values": [2.5, 2.25]}


def test_a_live_study_goes_before_its_archive(tmp_path):
    study(tmp_path)
    pack(tmp_path, tmp_path / archive.NAME, [])
    assert find(tmp_path).name == "runs.json" and StudyFiles(tmp_path).packed is None
    (tmp_path / "runs.json").unlink()
    assert find(tmp_path).name == archive.NAME and find(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "whole",
    [
        {},
        {"manifest": {}, "lists": [], "files": []},
        {"manifest": {}, "lists": [], "files": {"evals/a.json": {"list": 0}}},
        {"manifest": {}, "lists": [], "files": {"a.jsonl": {"step": 3, "loss": {"rows": [0], "values": [1.0]}}}},
        {"manifest": {}, "lists": [], "files": {"../../etc/passwd": {}}},
        {"manifest": {}, "lists": [], "files": {"/etc/passwd": {}}},
    ],
)
def test_a_file_that_is_no_archive_ends_in_a_sentence(tmp_path, whole):
    (tmp_path / archive.NAME).write_bytes(gzip.compress(json.dumps(whole).encode()))
    with pytest.raises(UserError, match="runs.json.gz: "):
        StudyFiles(tmp_path)


@pytest.mark.parametrize("runs", [None, {}, [3], [{"kind": "eval"}], [{"kind": "train", "out": "a", "metrics": 3}]])
def test_a_study_without_a_list_of_runs_is_not_packed(tmp_path, runs):
    (tmp_path / "runs.json").write_text(json.dumps({"runs": runs} if runs != {} else {}))
    with pytest.raises(UserError, match="runs.json: no list of runs"):
        pack(tmp_path, tmp_path / "a.gz", [])
    assert not (tmp_path / "a.gz").exists()


def test_names_stay_in_the_folder(tmp_path):
    """Of a live study too: its runs.json may be edited by hand, or come from elsewhere."""
    study(tmp_path)
    files = StudyFiles(tmp_path)
    for name in ("../x.json", "/etc/hostname", "evals/../../x.json", "", None, 3):
        with pytest.raises(UserError, match="not in the study's folder"):
            files.has(name)
