"""Five rows of a report by an independent route (tests/recompute.py).   pytest -q tests/study/test_recompute.py"""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import recompute

from study import archive

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "docs/results/lab"


@pytest.fixture
def packed(whole, tmp_path):
    archive.pack(whole, tmp_path / archive.NAME, [])
    shutil.copy(whole / "report.md", tmp_path)
    return tmp_path


def missing(folder: Path) -> list[str]:
    report = (folder / "report.md").read_text()
    return [row for row in recompute.rows(folder) if f"{row} |" not in report]


def test_rows_by_an_independent_route(packed):
    assert len(recompute.rows(packed)) == 5 and not missing(packed)


@pytest.mark.parametrize(("method", "lost"), [("sft_rl", 2), ("parallel", 1), ("base", 1)])
def test_the_independent_route_can_fail(packed, method, lost):
    """One evaluation is another than when the report was written: the rows that read it no longer agree."""
    path = packed / archive.NAME
    whole = json.loads(gzip.decompress(path.read_bytes()))
    for run in whole["manifest"]["runs"]:
        usual = dict(method=method, kind="eval", seed=2, group="main", split="test", variant="", n_shot=0)
        if usual.items() <= run.items():
            questions = whole["files"][run["out"]]["questions"]["gsm"]["questions"]
            questions["flexible"] = [0] * len(recompute.unpack(questions["n"], whole["lists"]))
    path.write_bytes(gzip.compress(json.dumps(whole).encode()))
    assert len(missing(packed)) >= lost


def test_rows_of_the_committed_lab():
    if "pool" not in json.loads(gzip.decompress((LAB / archive.NAME).read_bytes()))["manifest"]:
        pytest.skip("results of v10 not committed yet")
    assert not missing(LAB)
