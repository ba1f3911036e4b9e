"""Where a run lies, what counts as finished, which code made it.   pytest -q tests/study/test_folder.py"""

import json
import shutil

import pytest
from finished_runs import evaluation, find, planned, write_all, write_result, write_run

import train_rl
from study import folder as folders
from study import tasks as plans
from study.check import evaluation_fault
from study.folder import data_identity, source_of_run


# ----------------------------------------------------------------------------------------------------------- addresses
@pytest.mark.parametrize("preset", ["smoke", "laptop", "lab"])
def test_every_training_run_has_an_address_of_its_own(preset):
    """Nothing is trained twice."""
    made = planned(preset)
    trained = [t for t in made.tasks if t.kind != "eval"]
    assert len({made.address(t) for t in trained}) == len(trained)


def test_the_lab_extends_the_laptop():
    """Same first seed, same runs: what the laptop study trained, the lab does not train again."""
    lab, small = (planned(preset) for preset in ("lab", "laptop"))
    known = {t.name: lab.address(t) for t in lab.tasks if t.kind != "eval"}
    mine = {t.name: small.address(t) for t in small.tasks if t.kind != "eval"}
    assert len(mine) == 9 and mine.items() <= known.items()


def test_an_address_hangs_on_every_setting(monkeypatch):
    """Seed, data, device, a parent's setting; not on how often a run is watched."""

    def rl(**what):
        made = planned("smoke", **what)
        return made.address(find(made, "rl-"))

    addresses = {rl(), rl(data="e"), rl(seed=2), rl(device="cuda")}
    monkeypatch.setitem(plans.PRESETS["smoke"]["pretrain"], "lr", 0.123)
    addresses.add(rl())
    monkeypatch.undo()
    assert rl() in addresses and len(addresses) == 5
    monkeypatch.setitem(plans.PRESETS["smoke"]["pretrain"], "eval_every", 7)
    assert rl() in addresses


def test_no_address_hangs_on_what_the_stage_offers(monkeypatch):
    """A new flag, or another default: the code tells them. A flag that the plan gives does."""
    before = planned("smoke")
    addresses, real = [before.address(t) for t in before.tasks], train_rl.parser

    def extended():
        parser = real()
        parser.add_argument("--my-bonus", type=float, default=0.0)
        parser.set_defaults(clip_high=0.3, lr=1e-4)
        return parser

    monkeypatch.setattr(train_rl, "parser", extended)
    after = planned("smoke")
    assert [after.address(t) for t in after.tasks] == addresses
    monkeypatch.setitem(plans.PRESETS["smoke"]["rl"], "my_bonus", 0.1)
    again = planned("smoke")
    assert again.address(find(again, "rl-")) != before.address(find(before, "rl-"))


def test_the_data_is_known_by_its_content(world, tmp_path):
    """Not by what else lies in its folder or by the layout of meta.json."""
    data = shutil.copytree(world, tmp_path / "world")
    first = data_identity(data)
    (data / "notes.txt").write_text("mine")
    (data / "meta.json").write_text(json.dumps(json.loads((data / "meta.json").read_text())))
    assert data_identity(data) == first
    rows = (data / "train.jsonl").read_text()
    (data / "train.jsonl").write_text(rows.replace("so 3", "so 4"))
    assert data_identity(data) != first and data_identity(tmp_path) == ""


# ------------------------------------------------------------------------------------------------------------ finished
def test_finished_evaluations_need_no_checkpoints(tmp_path):
    """Taken over from elsewhere: an evaluation's file and a run's log are enough; only what is missing is asked for."""
    made = planned("smoke", tmp_path)
    assert made.to_do() == made.tasks
    write_all(made, checkpoints=False)
    assert made.to_do() == []
    lost = next(t for t in made.tasks if t.name.startswith("sft_rl") and t.kind == "eval" and "main" in t.name)
    made.path(lost).unlink()
    asked = [t.name.split("-")[0] for t in made.to_do()]
    assert asked == ["pretrain", "sft", "sft_rl", "sft_rl"]  # its run, and the runs whose checkpoints that needs


def test_a_changed_setting_runs_again(tmp_path, monkeypatch):
    """Everything finished, then one rate changed: it and what hangs on it are asked for."""
    assert write_all(planned("smoke", tmp_path)).to_do() == []
    monkeypatch.setitem(plans.PRESETS["smoke"]["sft"], "lr", 0.123)
    again = planned("smoke", tmp_path).to_do()
    assert {t.method for t in again} == {"sft", "sft_rl"}
    assert {t.kind for t in again} == {"train", "eval"}


def forged(task, *where, value) -> dict:
    """An evaluation with one value changed."""
    result = evaluation(task)
    at = json.loads(json.dumps(result))
    result = at
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = value
    return result


FORGED = [  # where, value
    (("questions", "gsm", "flexible", "pass@1", "value"), 0.9),
    (("questions", "gsm", "strict", "pass@8", "stderr"), 0.0),
    (("questions", "gsm", "questions", "flexible"), [32, 0]),
    (("questions", "gsm", "questions", "strict"), [33, 0]),
    (("questions", "gsm", "questions", "strict"), [3]),
    (("questions", "gsm", "questions", "answers"), [{"1": 3}, {}]),
    (("questions", "gsm", "n_questions"), 400),
    (("questions", "gsm", "format_rate"), 0.6),
    (("questions", "gsm"), {}),
    (("questions",), {}),
    (("benchmarks", "facts", "hits"), "1111"),
    (("benchmarks", "facts", "hits"), ""),
    (("benchmarks", "facts", "acc_norm"), float("nan")),
    (("benchmarks",), {}),
    (("general_average",), 0.8),
    (("settings", "seed"), 2),
    (("settings", "n_samples"), "many"),
    (("settings",), None),
]


@pytest.mark.parametrize(("where", "value"), FORGED)
def test_scores_that_do_not_follow_from_the_counts_are_no_result(where, value):
    made = planned("smoke")
    task = next(t for t in made.tasks if t.name.startswith("rl") and "facts" in t.flags.get("tasks", []))
    assert evaluation_fault(evaluation(task), task.flags) == ""
    assert evaluation_fault(forged(task, *where, value=value), task.flags)


def test_what_cannot_be_read_is_made_again(tmp_path):
    """An evaluation that is empty, cut, of another command or forged; a checkpoint that is cut."""
    made = write_all(planned("smoke", tmp_path))
    evals = [t for t in made.tasks if t.kind == "eval" and t.method == "base"]
    whole = made.path(evals[1]).read_text()
    made.path(evals[0]).write_text("")
    made.path(evals[1]).write_text(whole[: len(whole) // 2])
    write_result(made, evals[2], settings=evaluation(evals[3])["settings"])
    write_result(made, evals[3], questions={})
    cut = made.path(find(made, "gold-"))
    cut.write_bytes(cut.read_bytes()[:-5])
    assert set(made.broken()) == {*(made.path(t) for t in evals[:4]), cut}
    assert {t.name for t in made.to_do()} == {*(t.name for t in evals[:4]), find(made, "gold-").name}


# ----------------------------------------------------------------------------------------------------- the code behind
@pytest.fixture
def code(tmp_path, monkeypatch):
    """A copy of the code, which the study takes for its own."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "docs", "tests", "bench", "*.pt", "*.bin", "runs", "study")
    copy = shutil.copytree(folders.HERE, tmp_path / "code", ignore=ignored)
    monkeypatch.setattr(folders, "HERE", copy)
    return copy


def names(tasks) -> set[str]:
    return {t.name.split("-")[0] for t in tasks}


def test_an_edited_line_makes_runs_stale(code, tmp_path):
    """At train_rl's ABLATION mark: RL, averaging (which takes its loss) and what hangs on them; in the grading, all
    that samples or imports it. A comment, a docstring and layout change nothing."""
    made = write_all(planned("smoke", tmp_path / "study"))
    assert made.stale() == []
    rl = code / "train_rl.py"
    text = rl.read_text()
    assert "ABLATION" in text
    mark = next(line for line in text.splitlines() if "ABLATION" in line)
    rl.write_text(text.replace(mark, mark + " (tried)", 1))
    assert made.stale() == []
    rl.write_text(text + "\nBONUS = 0.1\n")
    assert names(made.stale()) == {"rl", "sft_rl", "parallel"}
    started = [t for t in made.stale() if "step0" in t.name]
    assert not started  # the base, and SFT, before RL: scored by code that has not changed
    rl.write_text(text)
    questions = code / "evaluate.py"
    questions.write_text(questions.read_text() + "\nMORE = 1\n")
    assert {t.kind for t in made.stale()} == {"eval"} and len(made.stale()) == sum(t.kind == "eval" for t in made.tasks)


def place(path) -> str:
    return f"{path.parent.name}/{path.name}"


def test_stale_runs_are_set_aside_and_nothing_is_lost(code, tmp_path):
    """Cut off in between, the rest is still stale; runs of several codes, and of none that is known, are stale too."""
    made = write_all(planned("smoke", tmp_path / "study"))
    sft, gold = find(made, "sft-"), find(made, "gold-")
    write_run(made, sft, source="0ther")
    write_run(made, gold, earlier=[{"source": "0ther"}])
    just_begun = made.path(find(made, "sft_rl-")).parent
    shutil.rmtree(just_begun)
    just_begun.mkdir()  # killed before it wrote anything
    stale = made.stale()  # and what hangs on SFT through it
    assert names(stale) == {"sft", "sft_rl", "gold"} and made.source(gold) is None
    write_run(made, find(made, "sft_rl-"))
    stale = made.stale()
    held = {place(p): p.read_bytes() for p in map(made.path, stale)}
    made.set_aside(stale[-3:])
    assert made.stale() == stale[:-3]
    aside = made.set_aside(made.stale())
    assert made.stale() == [] and made.to_do() == stale
    kept = {place(p): p.read_bytes() for p in aside.rglob("*") if place(p) in held}
    assert kept == held and (aside / "0ther" / "runs" / f"{sft.name}-{made.address(sft)}" / sft.out).exists()


def test_what_was_accepted_is_kept(code, tmp_path):
    """Until its code changes once more."""
    made = write_all(planned("smoke", tmp_path / "study"))
    write_run(made, find(made, "sft-"), source="0ther")
    assert len(made.stale()) > 2
    made.accept(made.stale())
    assert made.stale() == []
    write_run(made, find(made, "sft-"), source="third")
    assert names(made.stale()) == {"sft", "sft_rl"}


@pytest.mark.parametrize("source", ["../../elsewhere", ["a"], 5, None])
def test_a_source_that_is_no_hash_leads_nowhere(tmp_path, source):
    """Of a hand-edited config.json (`earlier` too) or evaluation: the run is stale, and is moved within the folder."""
    folder = write_all(planned("smoke", tmp_path / "study"))
    train, scored = find(folder, "rl-"), next(t for t in folder.tasks if t.kind == "eval")
    write_run(folder, train, source=source)
    write_result(folder, scored, source=source)
    assert {train, scored} <= set(folder.stale())
    folder.set_aside(folder.stale())
    assert [p.name for p in tmp_path.iterdir()] == ["study"]
    assert (folder.dir / "other_code" / "unknown" / folder.out(scored)).is_file()
    for earlier in (5, [5], [{}], {"source": "a"}):
        assert source_of_run({"source": "a", "earlier": earlier}) is None
    assert source_of_run({"source": "a", "earlier": [{"source": "a"}]}) == "a"
