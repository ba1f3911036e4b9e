"""Finished work of another machine is taken over, and nothing that cannot be trusted.

pytest -q tests/study/test_known.py"""

import json

import pytest
from finished_runs import evaluation, find, planned, source_of, write_all, write_result, write_run
from test_folder import forged

from data.files import UserError
from study import archive
from study.known import take_over
from study.manifest import header_of, write_manifest
from study.plan import make_plan
from study.runner import Runner


def finish(folder, count: int | None = None) -> None:
    """The first `count` of its runs are finished, without checkpoints, and runs.json says so."""
    write_all(folder, folder.tasks[:count], checkpoints=False)
    for task in folder.tasks[:count]:
        folder.done[folder.out(task)] = {"seconds": 7.0, "commit": "abc", "source": source_of(task.script)}
    save(folder)


def save(folder) -> None:
    (folder.dir / "meta.json").write_text("{}")
    header = header_of(make_plan("smoke", 1), 1, "cpu", ["python"], folder.dir)
    write_manifest(Runner(folder, folder.dir), header | {"seconds": 1.0})


@pytest.fixture
def there(tmp_path):
    folder = planned("smoke", tmp_path / "there")
    finish(folder, 6)
    return folder


def test_finished_work_is_taken_over(there, tmp_path):
    """At the addresses of this plan; of another seed, data or device nothing is."""
    here = planned("smoke", tmp_path / "here")
    assert take_over(here, there.dir) == 6
    assert [here.finished(t) for t in here.tasks] == [True] * 6 + [False] * (len(here.tasks) - 6)
    assert here.stale() == [] and {row["commit"] for row in here.done.values()} == {"abc"}
    assert {row["seconds"] for row in here.done.values()} == {7.0}
    for changed in (dict(seed=2), dict(data="other"), dict(device="cuda")):
        other = planned("smoke", tmp_path / "other", **changed)
        assert take_over(other, there.dir) == 0 and not other.done and not any(map(other.finished, other.tasks))
    save(here)
    assert take_over(here, here.dir) == 0  # from itself: nothing to do, no harm


def test_an_archive_serves_as_well(there, tmp_path):
    for given in (tmp_path / "runs.json.gz", tmp_path):
        archive.pack(there.dir, tmp_path / "runs.json.gz", [])
        here = planned("smoke", tmp_path / f"here-{given.name}")
        assert take_over(here, given) == 6 and here.stale() == []


def test_runs_of_other_code_are_refused_unless_accepted(there, tmp_path):
    """With what hangs on them, though today's code scored it; they stay what they are in later calls."""
    write_run(there, there.tasks[0], checkpoints=False, source="0ther")
    here = planned("smoke", tmp_path / "here")
    with pytest.raises(UserError, match="6 of its runs were made by other code than today.s .pretrain-s1 by 0ther"):
        take_over(here, there.dir)
    assert not any(map(here.finished, here.tasks)) and not here.dir.exists()
    assert take_over(here, there.dir, accept_other_source=True) == 6
    assert here.stale() == [] and all("accepted" in row for row in here.done.values())
    again = planned("smoke", tmp_path / "here")
    assert [t.name for t in again.stale()] == [t.name for t in here.tasks[:6]]  # unless runs.json says so
    save(here)
    kept = json.loads((here.dir / "runs.json").read_text())["runs"]
    assert [row.get("accepted") for row in kept[:2]] == ["0ther", source_of("evaluate.py")]


def first_evaluation(folder):
    return next(t for t in folder.tasks if t.kind == "eval")


def forge_score(folder):
    task = first_evaluation(folder)
    write_result(folder, task, **forged(task, "questions", "gsm", "flexible", "pass@1", "value", value=0.99))


def forge_settings(folder):
    task = first_evaluation(folder)
    write_result(folder, task, settings=evaluation(task)["settings"] | {"temperature": 0.1, "n_samples": 8})


def cut(folder):
    path = folder.path(first_evaluation(folder))
    path.write_text(path.read_text()[:100])


def link_file(folder):
    path = folder.path(first_evaluation(folder))
    path.rename(folder.dir.parent / "secret.json")
    path.symlink_to(folder.dir.parent / "secret.json")


def link_folder(folder):
    (folder.dir / "evals").rename(folder.dir.parent / "elsewhere")
    (folder.dir / "evals").symlink_to(folder.dir.parent / "elsewhere")


def lead_out(folder):
    manifest = json.loads((folder.dir / "runs.json").read_text())
    manifest["runs"][1]["out"] = "../secret.json"
    (folder.dir / "runs.json").write_text(json.dumps(manifest))


def no_list(folder):
    (folder.dir / "runs.json").write_text('{"runs": "many"}')


def garble_log(folder):
    path = folder.path(folder.tasks[0], "metrics.jsonl")
    path.write_text("no JSON\n" + path.read_text())


def forge_log(folder):
    path = folder.path(folder.tasks[0], "metrics.jsonl")
    path.write_text('{"step": 90}\n' + path.read_text())


def put_nan(folder):
    path = folder.path(folder.tasks[0], "metrics.jsonl")
    path.write_text('{"step": 1, "train/loss": NaN}\n' + path.read_text())


def forge_config(folder):
    write_run(folder, folder.tasks[0], checkpoints=False, batch_tokens=1280)


FAULTS = [forge_score, forge_settings, cut, link_file, link_folder, lead_out, no_list]


@pytest.mark.parametrize("spoil", [*FAULTS, garble_log, forge_log, put_nan, forge_config])
def test_what_cannot_be_trusted_is_refused(there, tmp_path, spoil):
    """In one sentence, before anything is written."""
    spoil(there)
    here = planned("smoke", tmp_path / "here")
    with pytest.raises(UserError) as told:
        take_over(here, there.dir, accept_other_source=True)
    assert "\n" not in str(told.value) and str(there.dir) in str(told.value)
    assert not here.dir.exists()


def test_unfinished_runs_are_passed_over(there, tmp_path):
    """A log that ends early, an evaluation that is not there."""
    path = there.path(find(there, "pretrain"), "metrics.jsonl")
    path.write_text('{"step": 3}\n')
    there.path(first_evaluation(there)).unlink()
    here = planned("smoke", tmp_path / "here")
    assert take_over(here, there.dir) == 4
