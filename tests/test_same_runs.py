"""Two studies compared: what differs is found, what may differ is passed over.   pytest -q tests/test_same_runs.py"""

import copy
import json
from pathlib import Path

import pytest

from study.archive import StudyFiles, pack
from tools import same_runs

ONE = {
    "checkpoint": {"file": "a.pt", "hash": "w" * 64, "step": 3},
    "settings": {"out": "here"},
    "source": "abc",
    "seconds": 1.5,
    "questions": {
        "gsm": {"flexible": {"pass@1": {"value": 0.1 + 0.2}}, "questions": {"flexible": [1, 2], "answers": [{"1": 2}]}}
    },
    "benchmarks": {},
}
LOG = [{"step": s, "train/loss": 1 / (s + 3), "perf/elapsed_s": s} for s in range(1, 5)]
SAMPLE = {"task": "gsm", "prompt": "1+1?", "completion": " 2"}


def study(folder: Path, result: dict, log: list[dict], sample: dict, place: str = "old") -> StudyFiles:
    """An evaluation and a run, at addresses of their own."""
    runs = [dict(name="rl-test", kind="eval", out=f"evals/rl-{place}.json", finished=True)]
    runs += [dict(name="rl", kind="train", out=f"runs/{place}/c.pt", metrics=f"runs/{place}/m.jsonl", finished=True)]
    files = {runs[0]["out"]: [result], f"evals/rl-{place}.samples.jsonl": [sample], runs[1]["metrics"]: log}
    for name, lines in {**files, "runs.json": [{"preset": "smoke", "runs": runs}]}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return StudyFiles(folder)


def changed(value: dict, *where, to) -> dict:
    value = copy.deepcopy(value)
    at = value
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = to
    return value


def test_times_paths_and_code_may_differ(tmp_path, capsys):
    other = changed(changed(ONE, "seconds", to=9.0), "checkpoint", "file", to="b.pt") | {"source": "def", "date": "1"}
    other = changed(other, "questions", "gsm", "seeds", to=1)
    a = study(tmp_path / "a", ONE, LOG, SAMPLE)
    b = study(tmp_path / "b", other, [row | {"perf/elapsed_s": 9} for row in LOG], SAMPLE, "new")
    assert same_runs.compare(a, b)
    shown = capsys.readouterr().out
    assert "2 runs in both: 1 evaluations and 1 logs equal, 0 different" in shown
    assert f"recorded only in {b.path}: seeds\n" in shown


DIFFERENT = [  # evaluation, log, sample
    (changed(ONE, "questions", "gsm", "flexible", "pass@1", "value", to=0.3), LOG, SAMPLE),
    (changed(ONE, "checkpoint", "hash", to="x"), LOG, SAMPLE),
    (changed(ONE, "questions", "gsm", "questions", "flexible", to=[1]), LOG, SAMPLE),
    (changed(ONE, "questions", "gsm", "questions", "answers", to=[{"1": 1, "2": 1}]), LOG, SAMPLE),
    (ONE, [*LOG[:3], LOG[3] | {"train/loss": 1 / 7 + 1e-16}], SAMPLE),
    (ONE, LOG[:3], SAMPLE),
    (ONE, LOG, SAMPLE | {"completion": " 3"}),
]


@pytest.mark.parametrize("other", DIFFERENT)
def test_what_differs_is_found(tmp_path, capsys, other):
    """To the last bit."""
    assert not same_runs.compare(study(tmp_path / "a", ONE, LOG, SAMPLE), study(tmp_path / "b", *other, place="new"))
    shown = capsys.readouterr().out
    assert shown.count("DIFFERENT rl") == 1 and "1 different" in shown


def test_what_is_said_to_differ_is_left_out(tmp_path):
    other = changed(ONE, "questions", "gsm", "questions", "answers", to=[{"2": 2}])
    a = study(tmp_path / "a", ONE, LOG, SAMPLE)
    b = study(tmp_path / "b", other, LOG, SAMPLE | {"extracted": "2"})
    assert not same_runs.compare(a, b) and same_runs.compare(a, b, ["answers"])


def test_an_archive_is_compared_to_its_digits(tmp_path, capsys, monkeypatch):
    a = study(tmp_path / "a", ONE, LOG, SAMPLE)
    pack(tmp_path / "a", tmp_path / "runs.json.gz", [])
    monkeypatch.setattr("sys.argv", ["same_runs", str(tmp_path / "a"), str(tmp_path / "runs.json.gz")])
    with pytest.raises(SystemExit) as ended:
        same_runs.main()
    assert ended.value.code == 0 and "0 different" in capsys.readouterr().out
    wrong = study(tmp_path / "b", ONE, [row | {"train/loss": row["train/loss"] * 1.001} for row in LOG], SAMPLE)
    assert not same_runs.compare(wrong, StudyFiles(tmp_path / "runs.json.gz"))
    monkeypatch.setattr("sys.argv", ["same_runs", str(tmp_path / "b"), str(a.path)])
    with pytest.raises(SystemExit) as ended:
        same_runs.main()
    assert ended.value.code == 1
