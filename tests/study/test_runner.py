"""Runs side by side, in order, through failures and signals.   pytest -q tests/study/test_runner.py"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finished_runs import find, planned, write_result, write_run

from study import runner
from study.runner import Runner, last_line, shown


class Ended:
    """What the runner asks of a process that has ended."""

    def __init__(self, code):
        self.returncode, self.poll = code, lambda: code


class Made(Runner):
    """Its runs take no time: they write what they should, but those whose name begins with `bad`."""

    bad = "none"

    def start(self, task, slot):
        self.begun.append(task)
        if task.name.startswith(self.bad):
            return Ended(1)
        write_result(self.folder, task) if task.kind == "eval" else write_run(self.folder, task)
        return Ended(0)


def made(tmp_path, monkeypatch, preset, bad="none", limit=0, kind=Made):
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(runner, "git_commit", lambda: ("abc", False))
    study = kind(planned(preset, tmp_path), Path("data"), jobs=2, limit=limit)
    study.bad, study.begun = bad, []
    return study, study.run()


def test_a_pretraining_waits_for_its_place(tmp_path, monkeypatch):
    """In the plan's order; what needs no checkpoint of its own would else begin with the idle core at the start."""
    study, failed = made(tmp_path, monkeypatch, "lab")
    tasks = study.folder.tasks
    assert not failed and len(study.begun) == len(tasks)
    for i, task in enumerate(study.begun):
        if task.kind == "pretrain":
            assert set(tasks[: tasks.index(task)]) <= set(study.begun[:i]), task.name


def test_a_failure_stops_what_hangs_on_it_alone(tmp_path, monkeypatch, capsys):
    study, failed = made(tmp_path / "a", monkeypatch, "lab", bad="pretrain-s2")
    assert failed == ["pretrain-s2"]
    begun = {t.record.get("pretraining") for t in study.begun}
    assert begun == {None, 1, 3}
    study, failed = made(tmp_path / "b", monkeypatch, "smoke", bad="sft-")
    assert failed[0].startswith("sft-") and not any(t.name.startswith("sft_rl") for t in study.begun)
    assert any(t.name.startswith("parallel") for t in study.begun)
    assert "FAILED sft-154k-s1 (exit code 1)" in capsys.readouterr().out


def test_what_a_run_left_must_be_whole(tmp_path, monkeypatch):
    """A stage that ends well and leaves an evaluation whose scores are not those of its counts has failed."""

    class Garbled(Made):
        def start(self, task, slot):
            ended = super().start(task, slot)
            if task.name.startswith("rl") and task.kind == "eval":
                write_result(self.folder, task, general_average=0.1, questions={})
            return ended

    study, failed = made(tmp_path, monkeypatch, "smoke", kind=Garbled)
    assert failed and all(name.startswith("rl") for name in failed)


def test_one_line_a_run_with_its_result_and_the_time_left(tmp_path, monkeypatch, capsys):
    made(tmp_path, monkeypatch, "smoke")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 18 and all(line.startswith("done  ") for line in lines)
    assert all(" left, about " in line and len(line) < 160 for line in lines)
    scores = next(line for line in lines if "rl-154k-s1-test" in line)
    assert "gsm pass@1 4.7 pass@32 50.0, general 75.0" in scores
    assert "loss 1.000" in next(line for line in lines if "sft-154k-s1 " in line)


def test_checkpoints_that_were_for_a_crash_go(tmp_path, monkeypatch):
    """Stages save six times unless told; of a run that was not told only the last file stays, from which others start.
    What the plan asked for stays; smoke's plan asks of every run."""

    class Saving(Made):
        def start(self, task, slot):
            ended = super().start(task, slot)
            if task.kind == "train":
                shutil.copy(self.folder.path(task), self.folder.path(task, "ckpt_000001.pt"))
            return ended

    study, _ = made(tmp_path, monkeypatch, "smoke", kind=Saving)
    kept = {t.method: [p.name for p in study.folder.checkpoints(t)] for t in study.folder.tasks if t.kind == "train"}
    assert kept["parallel"] == ["ckpt_000001.pt", "ckpt_000002.pt", "ckpt_000004.pt"]
    assert kept["sft"] == ["ckpt_000001.pt", "ckpt_000004.pt", "ckpt_000008.pt"]


def test_minutes_end_a_study(tmp_path, monkeypatch):
    study, failed = made(tmp_path, monkeypatch, "smoke", limit=1e-9)
    assert not failed and study.begun == []


def test_code_edited_while_a_study_runs_is_told(tmp_path, monkeypatch, capsys):
    """Once for each script; the next call finds the earlier runs stale."""
    study = Runner(planned("smoke", tmp_path / "a b"), tmp_path)
    monkeypatch.setattr(runner.subprocess, "Popen", lambda *_, **__: Ended(0))
    study.start(study.folder.tasks[0], 0)
    assert "note" not in capsys.readouterr().out
    monkeypatch.setattr(runner, "source_hash", lambda script: "another")
    study.start(study.folder.tasks[0], 0)
    study.start(study.folder.tasks[0], 0)
    assert capsys.readouterr().out.count("the code of train_pretrain.py was edited") == 1


@pytest.mark.parametrize(("jobs", "device", "slots"), [(1, "cpu", [0]), (2, "cpu", [0, 1]), (2, "cuda:0", [0])])
def test_a_lone_pretraining_takes_two_cores(tmp_path, monkeypatch, jobs, device, slots):
    """Of a CPU; the laptop's command says two threads, those of the lab and of post-training one."""
    study = Runner(planned("laptop", tmp_path, device=device[:4].rstrip(":")), tmp_path, jobs, devices=(device,))
    monkeypatch.setattr(study, "start", lambda task, slot: Ended(None))
    study.todo = study.folder.to_do()
    study.begin()
    assert [(run.task.kind, run.slots) for run in study.running] == [("pretrain", slots)]
    threads = [study.command(t)[study.command(t).index("--threads") + 1] for t in study.folder.tasks]
    assert threads == [f"{len(slots)}"] + ["1"] * (len(threads) - 1)
    assert all(task.threads == 1 for task in planned("lab", tmp_path / "lab").tasks)


def test_what_needs_two_cores_waits_for_them(tmp_path, monkeypatch):
    study = Runner(planned("lab", tmp_path), tmp_path, 2)
    monkeypatch.setattr(study, "start", lambda task, slot: Ended(None))
    study.todo = study.folder.to_do()
    study.todo[1].threads = 2  # the second pre-training, which has its turn
    study.begin()
    study.begin()
    assert [run.slots for run in study.running] == [[0]] and study.todo[0].threads == 2
    study.running[0].task.threads, study.running = 1, []
    study.begin()
    assert [run.slots for run in study.running] == [[0, 1]]


def test_commands_are_for_a_shell(tmp_path):
    """Paths with spaces stay whole, in the log as in the call; what lies elsewhere is named in full."""
    study = Runner(planned("smoke", tmp_path / "my runs"), tmp_path / "my world")
    task = find(study.folder, "rl-")
    command = study.command(task)
    assert str(tmp_path / "my world") in command and f"{tmp_path}/my runs/runs/{task.name}" in " ".join(command)
    assert command[:2] == ["python", "train_rl.py"] and command[command.index("--device") + 1] == "cpu"
    assert shown(runner.HERE / "runs" / "x") == "runs/x"
    write_run(study.folder, task)
    resumed = ["python", "train_rl.py", "--resume", str(study.folder.path(task).parent)]
    assert study.command(task) == resumed and study.command(task, fresh=True) == command


def test_gpus_are_given_in_turn(tmp_path):
    study = Runner(planned("smoke", tmp_path, device="cuda"), tmp_path, 2, devices=("cuda:0", "cuda:1"))
    task = find(study.folder, "rl-")
    given = [study.command(task, slot)[study.command(task).index("--device") + 1] for slot in (0, 1)]
    assert given == ["cuda:0", "cuda:1"]


def test_last_line(tmp_path):
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_bytes(b"x" * 9000 + b"\nstep 1 \xff\n\n")
    assert last_line(log).startswith("step 1")


SCRIPT = '''
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from finished_runs import planned
from study.runner import Runner
folder = planned("smoke", sys.argv[3])
stage = """import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
print("began", flush=True)
time.sleep(60)"""
Path(sys.argv[3], "stage.py").write_text(stage)
study = Runner(folder, Path("data"), jobs=1)
study.command = lambda task, slot=0: ["python", str(Path(sys.argv[3], "stage.py"))]
try:
    study.run()
except KeyboardInterrupt:
    print("interrupted", flush=True)
'''


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_stages_save(tmp_path, number):
    """Sent to the whole group, as a terminal's Ctrl-C is, and to the study alone, as `kill` is: the stage hears of it
    once, from the study, which waits for it."""
    command = [sys.executable, "-c", SCRIPT, str(runner.HERE), str(Path(__file__).parent), str(tmp_path)]
    study = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    log = tmp_path / "logs"
    deadline = time.time() + 60
    while time.time() < deadline and not any("began" in p.read_text().split("\n") for p in log.glob("*.log")):
        time.sleep(0.1)
    os.killpg(study.pid, number) if number == signal.SIGINT else study.send_signal(number)
    shown, _ = study.communicate(timeout=60)
    assert study.returncode == 0 and "stopping: 1 run saves what it has" in shown and "interrupted" in shown
    (told,) = log.glob("*.log")
    assert told.read_text().split("\n")[1:] == ["began", "saved", ""]
