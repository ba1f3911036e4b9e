"""A run's folder: one writer, stops by a signal, logs that are torn, files of the dead, when it saves.
pytest -q tests/test_run_folder.py"""

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import crash
import pytest
import torch
from test_common import full_disk
from tiny import assert_same, load, read_jsonl

import common
import stage as plumbing
from common import UserError, lock, release
from data import locks

ROOT = Path(common.__file__).parent
SFT = "--batch-size 2 --steps 4 --save-at 2".split()
RL = "--prompts-per-step 2 --group-size 2 --max-new-tokens 4".split()


@pytest.fixture
def begin(ok, world, base, tmp_path):
    def run(*flags, out: str = "run") -> Path:
        ok("train_sft", "--init", base, "--data", world, "--out", tmp_path / out, *SFT, *flags)
        return tmp_path / out

    return run


@pytest.fixture
def held(tmp_path):
    """held(folder): another process that has the folder's lock until the test ends, or until it is killed."""
    processes = []
    code = "import sys, time, pathlib, common; common.lock(pathlib.Path(sys.argv[1])); print(1, flush=True)"
    code += "; time.sleep(99)"

    def hold(folder: Path) -> subprocess.Popen:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", code, str(folder)]
        processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline()
        return processes[-1]

    yield hold
    for process in processes:
        process.kill()
        process.wait()


# --------------------------------------------------------------------------------------------------------- one writer
def test_a_second_writer_is_refused_and_a_dead_one_is_told(ok, refused, begin, held, world, base, tmp_path):
    run = begin()
    (run / "ckpt_000004.pt").unlink()
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    owner = held(run)
    name = f"process {owner.pid} on {platform.node()}"
    line = refused("train_sft", "--resume", run, words=(run, name, "another --out"))
    assert "being written" in line
    new = ("--init", base, "--data", world, "--out", run, *SFT)
    refused("train_sft", *new, words=(name,))
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.name != ".lock"} == before
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    shown = ok("train_sft", "--resume", run).out
    assert f"note: {run} was left by {name}" in shown and not (run / ".lock").exists()
    (run / "ckpt_000004.pt").unlink()
    assert "was left by" not in ok("train_sft", "--resume", run).out  # its own end was in order


def test_two_runs_of_one_process_do_not_shut_each_other_out(begin, refused, base, world, tmp_path):
    """The lock is free after a run's end and after its failure."""
    refused(
        "train_sft", "--init", base, "--data", world, "--out", tmp_path / "run", *SFT, "--lr", "1e39", words=("lr",)
    )
    begin()
    assert not common.HELD


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_without_file_locks_the_owners_name_decides(tmp_path, monkeypatch, capsys, host):
    """On a disk that cannot lock: a living process of this machine and any of another keep the folder, a dead one of
    this machine does not."""
    monkeypatch.setattr(locks, "fcntl", None)
    node = platform.node() if host == "here" else "another-machine"
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid, kept in ((os.getppid(), True), (ended.pid, host == "elsewhere")):
        (tmp_path / ".lock").write_text(f"process {pid} on {node}")
        if kept:
            with pytest.raises(UserError, match=f"written by process {pid} on {node}"):
                lock(tmp_path)
            continue
        lock(tmp_path)
        release(*common.HELD.pop())
        assert f"left by process {pid}" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------------- stops
@pytest.fixture
def signalled(monkeypatch):
    """signalled(number, at, times): the run gets a signal at its `at`-th optimizer step."""

    def prepare(name: str, number: int, at: int, times: int = 1):
        steps = []

        def stepping(*args):
            steps.append(1)
            if len(steps) == at:
                for _ in range(times):
                    signal.raise_signal(number)
            return common.step_with_clip(*args)

        monkeypatch.setattr(f"{name}.step_with_clip", stepping)

    return prepare


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["train_pretrain", "train_sft", "train_rl"])
def test_a_signal_saves_and_says_how_to_go_on(stage, ok, world, base, tmp_path, signalled, monkeypatch, name, number):
    flags = {"train_sft": ["--batch-size", 2], "train_rl": RL}
    flags["train_pretrain"] = "--preset tiny --block-size 32 --batch-tokens 64 --eval-tokens 64".split()
    init = [] if name == "train_pretrain" else ["--init", base]
    given = [*init, "--data", world, "--steps", 5, "--save-at", 4, *flags[name]]
    ok(name, *given, "--out", tmp_path / "whole")
    signalled(name, number, at=3)
    ended = stage(name, *given, "--out", tmp_path / "run")
    assert ended.code == 128 + number and not ended.err
    assert f"go on with: python {name}.py --resume {tmp_path / 'run'}" in ended.out.splitlines()[-1]
    assert [p.name for p in (tmp_path / "run").glob("*.pt")] == ["ckpt_000003_stopped.pt"]
    monkeypatch.undo()
    monkeypatch.setitem(crash.model.PRESETS, "tiny", crash.model.GPTConfig(n_layer=2, n_head=2, n_embd=32, n_hidden=48))
    ok(name, "--resume", tmp_path / "run")
    names = [sorted(p.name for p in (tmp_path / out).iterdir()) for out in ("run", "whole")]
    assert names[0] == names[1]
    a, b = (load(tmp_path / out / "ckpt_000005.pt") for out in ("run", "whole"))
    assert_same(a["model"], b["model"])


def test_a_merge_stops_where_its_sides_are_one(stage, ok, world, base, tmp_path, signalled):
    """Between two averagings the sides differ, and a checkpoint holds one: a signal in step 3 ends it after step 4."""
    given = [
        "--init",
        base,
        "--data",
        world,
        "--steps",
        6,
        *RL,
        "--batch-size",
        2,
        "--sync-every",
        2,
        "--save-every",
        0,
    ]
    signalled("merge", signal.SIGTERM, at=3)
    assert stage("merge", *given, "--out", tmp_path / "run").code == 143
    assert [p.name for p in (tmp_path / "run").glob("*stopped.pt")] == ["ckpt_000004_stopped.pt"]


def test_a_second_signal_ends_at_once(stage, world, base, tmp_path, signalled):
    signalled("train_sft", signal.SIGINT, at=3, times=2)
    flags = ("--init", base, "--data", world, *SFT, "--out", tmp_path / "run")
    ended = stage("train_sft", *flags)
    assert ended.code == 130 and ended.err.splitlines() == ["stopped by SIGINT; files written before are whole"]
    assert [p.name for p in (tmp_path / "run").glob("*.pt")] == ["ckpt_000002.pt"]
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


def test_a_signal_in_the_last_step_changes_nothing(stage, world, base, tmp_path, signalled):
    signalled("train_sft", signal.SIGTERM, at=4)
    ended = stage("train_sft", "--init", base, "--data", world, *SFT, "--out", tmp_path / "run")
    assert ended.code == 0 and (tmp_path / "run/ckpt_000004.pt").exists() and "stopped by" not in ended.out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_or_without_steps(stage, world, base, tmp_path, monkeypatch, number):
    """While files are read, and in an evaluation: one line, no traceback, nothing half-written."""

    def stopped(*_):
        signal.raise_signal(number)

    monkeypatch.setattr("stage.load_questions", stopped)
    monkeypatch.setattr("evaluate.load_questions", stopped)
    name = signal.Signals(number).name
    for script, flags in (("train_sft", ["--init", base, *SFT]), ("evaluate", ["--ckpt", base, "--tasks", "gsm"])):
        ended = stage(script, *flags, "--data", world, "--out", tmp_path / "out")
        assert ended.code == 128 + number and ended.err.splitlines()[0].startswith(f"stopped by {name}")
        assert len(ended.err.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_signal_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """What was half-written goes."""

    def interrupted(_, file):
        file.write(b"x" * 1000)
        raise KeyboardInterrupt("SIGTERM")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(SystemExit) as ended:
        common.run(lambda: common.save_checkpoint(tmp_path / "a.pt", {}))
    assert ended.value.code == 143 and not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------- logs
@pytest.mark.parametrize(
    "torn",
    [
        b'{"step": 2, "completion": "\\\\boxed{5}',
        b"\0" * 60,
        b'{"step": 1, "text": "\xff\xfe"}',
        b'{"loss": 1.0}',
        b'{"step": "2"}',
        b"[2]",
        b"{" * 5000,
        b'{"step": 2, "train/loss": NaN}',
        b'{"step": true}',
    ],
    ids=["torn", "nul", "not-utf8", "no-step", "text-step", "list", "deep", "nan", "bool-step"],
)
def test_torn_rows_are_dropped_with_a_note(ok, begin, torn):
    run = begin()
    (run / "ckpt_000004.pt").unlink()
    whole = (run / "metrics.jsonl").read_bytes()
    rows = whole.splitlines()
    for name in ("metrics.jsonl", "samples.jsonl"):
        (run / name).write_bytes(b"\n".join([*rows[:2], torn, *rows[2:3]]) + b"\n" + torn)
    shown = ok("train_sft", "--resume", run).out
    assert f"note: {run / 'metrics.jsonl'} had 2 torn or foreign rows" in shown
    again = read_jsonl(run / "metrics.jsonl")
    assert [r["step"] for r in again] == [1, 2, 3, 4]
    assert [r["train/loss"] for r in again] == [json.loads(r)["train/loss"] for r in rows]
    assert (run / "metrics.jsonl").read_bytes().splitlines()[:2] == rows[:2]


def test_a_full_disk_on_resume_keeps_the_old_rows(refused, ok, begin):
    """The rewritten log does not fit: config and log are what they were, and with space again the run goes on."""
    run = begin()
    (run / "ckpt_000004.pt").unlink()
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    for free in (0, 100, 700):
        with full_disk(free):
            refused("train_sft", "--resume", run, words=("space",))
        assert (run / "metrics.jsonl").read_bytes() == before["metrics.jsonl"], free
        assert json.loads((run / "config.json").read_text())["steps"] == 4
    ok("train_sft", "--resume", run)
    assert [r["step"] for r in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_kill_between_the_logs_keeps_the_old_rows(stage, begin, monkeypatch):
    """The process dies when the first rewritten file is on disk and before it takes its place."""
    run = begin()
    (run / "ckpt_000004.pt").unlink()
    before = {p.name: p.read_bytes() for p in run.iterdir()}

    def killed(*_):
        raise SystemExit(137)

    monkeypatch.setattr(os, "replace", killed)
    assert stage("train_sft", "--resume", run).code == 137
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


# ------------------------------------------------------------------------------------------------- files of the dead
def test_files_of_dead_processes_are_cleared(ok, begin, world, base, tmp_path):
    """Half a checkpoint of a process that was killed goes when a run begins; that of a living one stays."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    run = tmp_path / "run"
    run.mkdir()
    dead = [run / f".tmp_{ended.pid}_{name}" for name in ("ckpt_000002.pt", "metrics.jsonl", "probe")]
    living, foreign = run / f".tmp_{os.getppid()}_r.json", run / ".tmp_mine"
    for path in (*dead, living, foreign):
        path.write_bytes(b"x" * 1000)
    begin()
    assert not any(p.exists() for p in dead) and living.exists() and foreign.exists()
    left = [run / f".tmp_{ended.pid}_r.json", run / f".tmp_{ended.pid}_r.samples.jsonl"]
    others = run / f".tmp_{ended.pid}_ckpt_000003.pt"  # of a run, perhaps on another machine
    for path in (*left, others):
        path.write_bytes(b"x")
    quick = "--n-samples 1 --k 1 --max-new-tokens 2 --tasks gsm --limit 1".split()
    ok("evaluate", "--ckpt", base, "--data", world, "--out", run / "r.json", *quick)
    assert not any(p.exists() for p in left) and others.exists()


# ---------------------------------------------------------------------------------------------------------- when saved
def steps_saved(folder: Path) -> list[int]:
    return sorted(int(p.stem[5:]) for p in folder.glob("ckpt_*.pt"))


def test_a_sixth_of_the_steps_is_saved_by_default(ok, world, base, tmp_path):
    """What a kill costs at most; --save-at and --save-every say otherwise, and below six steps only the last is."""
    small = {"train_sft": ["--batch-size", 1, "--n-questions", 1], "train_rl": RL}
    small["merge"] = [*RL, "--batch-size", 1, "--sync-every", 4]
    for name, given, want in (
        ("train_sft", ["--steps", 12], [2, 4, 6, 8, 10, 12]),
        ("train_sft", ["--steps", 13], [3, 6, 9, 12, 13]),
        ("train_sft", ["--steps", 5], [5]),
        ("train_sft", ["--steps", 12, "--save-every", 0], [12]),
        ("train_sft", ["--steps", 12, "--save-at", 5], [5, 12]),
        ("train_rl", ["--steps", 6], [1, 2, 3, 4, 5, 6]),
        ("merge", ["--steps", 12], [4, 8, 12]),  # where the sides are one
    ):
        out = tmp_path / f"{name}{given}"
        ok(name, "--init", base, "--data", world, "--out", out, *small[name], *given)
        assert steps_saved(out) == want, (name, given)
        assert json.loads((out / "config.json").read_text())["save_every"] is not None


def test_every_stage_has_the_default():
    for name in ("train_pretrain", "train_sft", "train_rl", "merge"):
        assert __import__(name).parser().get_default("save_every") is None


# ------------------------------------------------------------------------------------------------------------- devices
def test_auto_is_cuda_or_the_cpu_and_never_mps(ok, refused, world, base, tmp_path, monkeypatch):
    """On a Mac: `auto` takes what was tried, MPS is there by request."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    flags = ("--init", base, "--data", world, *SFT)
    assert ok("train_sft", *flags, "--out", tmp_path / "a").out.startswith("device cpu")
    asked = plumbing.argparse.Namespace(device="mps", dtype="float32", kernels="torch", seed=0, threads=0)
    monkeypatch.setattr(common, "describe", lambda *_: "torch")  # which allocates on the device
    assert common.setup(asked).device.type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    refused("train_sft", *flags, "--out", tmp_path / "b", "--device", "mps", words=("--device mps", "use --device cpu"))
