"""The plan of a study: what names a run, what is done again.   pytest -q tests/study/test_study.py"""

import json
import os
import signal
import sys
from argparse import Namespace
from collections import Counter
from itertools import product

import pytest

import train_rl
from common import UserError
from study import __main__ as cli
from study import plan, runner
from study.plan import words
from study.runner import Study


def planned(preset, out="runs/x", seed=1):
    made = Study(Namespace(preset=preset, out=str(out), seed=seed, jobs=2))
    made.data_hash = "d"
    return made


@pytest.mark.parametrize("preset", ["smoke", "laptop", "lab"])
def test_every_run_has_a_name_and_an_address_of_its_own(preset):
    tasks = planned(preset).tasks
    trained = [t for t in tasks if t.kind != "eval"]
    assert len({t.name for t in tasks}) == len(tasks)
    assert len({t.identity("d") for t in trained}) == len(trained)  # nothing is trained twice
    places = {id(t): i for i, t in enumerate(tasks)}
    assert all(places[id(parent)] < places[id(t)] for t in tasks for parent, _ in t.inputs.values())


def test_the_lab_extends_the_laptop():
    """Same first seed, same runs: what the laptop study trained, the lab does not train again."""
    lab = {t.name: t.identity("d") for t in planned("lab").tasks if t.kind != "eval"}
    small = {t.name: t.identity("d") for t in planned("laptop").tasks if t.kind != "eval"}
    changed = {name for name in small if lab.get(name) != small[name]}
    assert len(small) > 10 and not changed


def test_an_address_hangs_on_every_setting(monkeypatch):
    """Seed, data, a parent's setting, and a default of the stage that no flag names."""
    rl = lambda s: next(t for t in s.tasks if t.name.startswith("rl-base"))  # noqa: E731
    one = planned("smoke")
    addresses = {rl(one).identity("d"), rl(one).identity("e"), rl(planned("smoke", seed=2)).identity("d")}
    monkeypatch.setitem(plan.PRESETS["smoke"]["pretrain"], "lr", 0.123)
    addresses.add(rl(planned("smoke")).identity("d"))
    monkeypatch.undo()
    assert rl(planned("smoke")).identity("d") in addresses and len(addresses) == 4
    monkeypatch.setitem(plan.PRESETS["smoke"]["pretrain"], "eval_every", 7)  # only watches
    assert rl(planned("smoke")).identity("d") in addresses
    real = train_rl.parser

    def changed():
        parser = real()
        parser.set_defaults(clip_high=0.3)
        return parser

    monkeypatch.setattr(train_rl, "parser", changed)
    assert rl(planned("smoke")).identity("d") not in addresses


def test_finished_evaluations_need_no_checkpoints(tmp_path):
    """Copied in from elsewhere: an evaluation's file and a run's log are enough; only what is missing is asked for."""
    made = planned("smoke", tmp_path)
    assert made.to_do() == made.tasks
    for t in made.tasks:
        path = made.path(t)
        path.parent.mkdir(parents=True, exist_ok=True)
        if t.kind == "eval":
            path.write_text("{}")
        else:
            (path.parent / "metrics.jsonl").write_text(json.dumps({"step": t.flags["steps"]}) + "\n")
    assert made.to_do() == []
    lost = next(t for t in made.tasks if t.name.startswith("sft_rl") and t.kind == "eval" and "main" in t.name)
    made.path(lost).unlink()
    asked = [t.name.split("-")[0] for t in made.to_do()]
    assert asked == ["pretrain", "sft", "sft_rl", "sft_rl"]  # its run, and the runs whose checkpoints that needs


def test_the_primary_comparisons_come_first():
    """Cut off anywhere, the lab holds whole methods seed by seed: three seeds of C1, C2, C5, C6, C7 at early and late,
    then K1, Gold, more seeds, the small pool of C3, C4, C9, C8, K3, the rest of C3, K2, K4, C10, C5."""
    blocks = list(dict.fromkeys(t.block for t in planned("lab").tasks))
    keys = ["pre-training", "base, few-shot", "base, shots", *(f"C1 C2 C5 C6 C7: seed {s}" for s in range(1, 4))]
    keys += ["K1", "SFT-Gold", *(f"C1 C2 C5 C6 C7: seed {s}" for s in (4, 5)), "C3: 250", "C4: base", "C9"]
    keys += ["C8", "K3", "C3: 1000", "K2", "K4", "C10", "C5: T 1", "every method at another"]
    places = [next(i for i, b in enumerate(blocks) if b.startswith(key)) for key in keys]
    assert places == sorted(places)
    lab = planned("lab")
    first = [t for t in lab.tasks if t.block in blocks[: places[5] + 1] and t.kind == "eval"]
    places = [step * lab.base.flags["batch_tokens"] for step in lab.primary]
    for seed, tokens, method in product((1, 2, 3), places, ("rl", "sft", "sft_rl", "parallel")):
        want = dict(seed=seed, tokens=tokens, split="test", group="main", variant="")
        assert any(t.method == method and want.items() <= t.record.items() for t in first), (method, want)


def test_the_lab_asks_for_what_the_claims_need():
    """One run of each kind that docs/analysis_plan.md names, three seeds of the controls."""
    tasks = planned("lab").tasks
    count = Counter((t.record.get("group"), t.method, t.record.get("variant")) for t in tasks if t.kind == "train")
    for variant, seeds in dict(sync_end=3, plain_sum=1, one_loss=1, alternate=3).items():
        assert count["k3", "parallel", variant] == seeds
    assert (
        count["k3", "rl", "half_rate"] == count["k3", "sft", "half_rate"] == count["k3", "sft", "parallels_rate"] == 3
    )
    p = planned("lab").p
    same = all(p["rl"][k] == p["sft_rl"][k] for k in ("lr", "steps"))  # then the main SFT→RL has RL's own settings
    assert count["k2", "sft_rl", "own"] == 3 * (not same)
    assert count["k2", "rl", "total_updates"] == 1
    assert (count["k4", "sft", "token_sum"], count["k4", "rl", "4_updates"]) == (1, 1)
    assert sum(n for (group, *_), n in count.items() if group == "k1") == 9  # 5, 2 and 2
    assert count["c3", "rl", "pool250"] == count["c3", "gold", "pool250many"] == count["c3", "sft", "pool250few"] == 3
    assert count["c4", "rl", "hard"] == 5 and count["c8", "rl", ""] == 3
    for kind, hard, easy in (("many", 3, 1), ("few", 3, 1), ("long", 1, 0)):
        assert (count["c9", "rl", f"hard_{kind}"], count["c9", "rl", f"easy_{kind}"]) == (hard, easy)
    for method, seeds in dict(rl=9, sft=9, sft_rl=9, parallel=9, gold=4).items():  # of the primary comparisons
        main = [t for t in tasks if t.kind == "train" and t.method == method and t.record["group"] == "main"]
        assert sum(t.record["tokens"] in (2048000, 8192000) and t.record["base"] == "base" for t in main) == seeds
    asked = [t for t in tasks if t.record.get("group") == "wide"]
    assert len(asked) == 10 and all(t.flags["k"][-1] == 256 for t in asked)
    sync = [t for t in tasks if t.kind == "train" and t.record["variant"] == "sync_end"]
    assert all(t.flags["steps"] % t.flags["sync_every"] == 0 for t in sync)


def test_work_of_another_machine_is_taken_over(tmp_path):
    """Evaluations and logs at the addresses of this plan are copied; of a changed setting nothing is."""
    there = planned("smoke", tmp_path / "there")
    there.data = tmp_path
    (tmp_path / "meta.json").write_text("{}")
    for t in there.tasks[:6]:
        path = there.path(t)
        path.parent.mkdir(parents=True, exist_ok=True)
        if t.kind == "eval":
            path.write_text("{}")
            path.with_suffix(".samples.jsonl").write_text("")
        else:
            (path.parent / "metrics.jsonl").write_text(json.dumps({"step": t.flags["steps"]}) + "\n")
        there.done[path.relative_to(there.dir).as_posix()] = {"seconds": 7.0, "commit": "abc", "source": "def"}
    there.write_manifest()
    here = planned("smoke", tmp_path / "here")
    assert here.take_over(tmp_path / "there") == 6
    assert [here.finished(t) for t in here.tasks] == [True] * 6 + [False] * (len(here.tasks) - 6)
    assert set(map(json.dumps, here.done.values())) == {json.dumps({"seconds": 7.0, "commit": "abc", "source": "def"})}
    other = planned("smoke", tmp_path / "other", seed=2)
    assert other.take_over(tmp_path / "there") == 0
    assert not other.done and not any(map(other.finished, other.tasks))
    assert here.take_over(here.dir) == 0  # from itself: nothing to do, no harm


def test_nothing_is_taken_over_unless_asked(monkeypatch):
    """`make study` measures: results that lie in docs/ are no part of it."""
    monkeypatch.setattr(sys, "argv", ["study", "--preset", "laptop"])
    assert cli.parse_args().known is None
    monkeypatch.setattr(sys, "argv", ["study", "--known", "nowhere"])
    with pytest.raises(UserError, match="--known nowhere: no runs.json or runs.json.gz there; give a study's folder"):
        cli.parse_args()
    for other in ("--plan", "--report-only"):
        monkeypatch.setattr(sys, "argv", ["study", "--known", "docs/results/lab", other])
        with pytest.raises(UserError, match="give it without them first"):
            cli.parse_args()


def test_a_changed_setting_runs_again(tmp_path, monkeypatch):
    """Everything finished, then one rate changed: it and what hangs on it are asked for."""
    made = planned("smoke", tmp_path)
    for t in made.tasks:
        path = made.path(t)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert made.to_do() == []
    monkeypatch.setitem(plan.PRESETS["smoke"]["sft"], "lr", 0.123)
    again = planned("smoke", tmp_path).to_do()
    assert {t.method for t in again} == {"sft", "sft_rl"}
    assert {t.kind for t in again} == {"train", "eval"}


class Ended:
    def __init__(self, code):
        self.returncode, self.poll = code, lambda: code


class Made(Study):
    """Its runs take no time: they write what they should, but those whose name begins with `bad`."""

    bad = "none"

    def start(self, task):
        self.begun.append(task)
        if not task.name.startswith(self.bad):
            every = task.flags.get("save_every") or 10**9
            steps = [*task.flags.get("save_at", []), *range(every, task.flags.get("steps", 0) + 1, every)]
            for name in {task.out, *(f"ckpt_{s:06d}.pt" for s in steps)}:
                path = self.path(task, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")
        return Ended(int(task.name.startswith(self.bad)))


def run_made(tmp_path, monkeypatch, preset, bad="none", minutes=0):
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(runner, "git_commit", lambda: ("abc", False))
    monkeypatch.setattr(Study, "write_manifest", lambda self: None)
    made = Made(Namespace(preset=preset, out=str(tmp_path), seed=1, jobs=2, minutes=minutes))
    made.data_hash, made.bad, made.begun = "d", bad, []
    return made, made.run_all()


def test_a_pretraining_waits_for_its_place(tmp_path, monkeypatch):
    """In the plan's order; what needs no checkpoint of its own would else begin with the idle core at the start."""
    made, failed = run_made(tmp_path, monkeypatch, "lab")
    assert not failed and len(made.begun) == len(made.tasks)
    for i, task in enumerate(made.begun):
        if task.kind == "pretrain":
            assert set(made.tasks[: made.tasks.index(task)]) <= set(made.begun[:i]), task.name


def test_a_failure_stops_what_hangs_on_it_alone(tmp_path, monkeypatch):
    made, failed = run_made(tmp_path, monkeypatch, "lab", bad="pretrain-heavy")
    left = {t.record["base"] for t in made.tasks} - {t.record["base"] for t in made.begun if t.kind != "pretrain"}
    assert failed == ["pretrain-heavy", "pretrain-heavy2"] and left == {"heavy", "heavy2"}
    made, failed = run_made(tmp_path / "again", monkeypatch, "smoke", bad="sft-")
    assert failed[0].startswith("sft-") and not any(t.name.startswith("sft_rl") for t in made.begun)
    assert any(t.name.startswith("parallel") for t in made.begun)


def test_kill_ends_the_runs_too(tmp_path, monkeypatch):
    ended = []

    class Endless(Ended):
        def terminate(self):
            ended.append(self)

    def start(self, task):
        process = Endless(None)
        if len(self.begun) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        self.begun.append(task)
        return process

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Made, "start", start)
    monkeypatch.setattr(Made, "to_do", lambda self: [t for t in self.tasks if not t.inputs])
    try:
        with pytest.raises(SystemExit):
            run_made(tmp_path, monkeypatch, "lab")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(ended) >= 1


def test_minutes_end_a_study(tmp_path, monkeypatch):
    made, failed = run_made(tmp_path, monkeypatch, "smoke", minutes=1e-9)
    assert not failed and made.begun == []


def test_a_world_of_other_code_is_refused(tmp_path, monkeypatch):
    """Else a study would report an old world's numbers as today's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "meta.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["study", "--preset", "smoke", "--out", str(tmp_path)])
    for made_by in ("", "another\n"):
        if made_by:
            (tmp_path / "world" / "made_by").write_text(made_by)
        with pytest.raises(UserError, match="other code.*remove it"):
            cli.main()
    assert not (tmp_path / "runs.json").exists()


def test_the_plan_is_printed_in_order(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["study", "--preset", "lab", "--plan"])
    cli.main()
    shown = capsys.readouterr().out
    names = [t.name for t in planned("lab").tasks]
    assert [line.split()[2] for line in shown.splitlines() if " s  " in line] == names
    assert f"{len(names)} runs; done after about" in shown and "min |  16 runs | C1 C2 C5 C6 C7: seed 3" in shown


def test_what_is_finished_costs_nothing_in_the_plan(tmp_path, capsys):
    made = planned("smoke", tmp_path)
    made.args = Namespace(jobs=1)
    done = next(t for t in made.tasks if t.kind == "eval")
    made.path(done).parent.mkdir(parents=True)
    made.path(done).write_text("{}")
    cli.print_plan(made)
    costs = {line.split()[2]: line.split()[0] for line in capsys.readouterr().out.splitlines() if " s  " in line}
    assert [name for name, cost in costs.items() if cost == "0"] == [done.name]


def test_words():
    assert words({"batch_size": 64, "gold": True, "k": [1, 8]}) == ["--batch-size", "64", "--gold", "--k", "1", "8"]
