"""Two processes do what one does: every stage by torchrun, against itself.   pytest -q tests/test_torchrun.py"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import forked
import many
import pytest
import torch
from tiny import load, read_jsonl

import common
import processes
from data.files import UserError

ROOT = Path(__file__).resolve().parent.parent
RL = "--prompts-per-step 5 --group-size 3 --max-new-tokens 6 --prompts-per-batch 2 --micro-batch-size 2".split()
SFT = "--batch-size 5 --micro-batch-size 2".split()
WATCHED = "--max-new-tokens 6 --eval-every 2 --eval-questions 3".split()
# Nothing divides evenly: 3 rows, 5 examples, 5 questions. In "idle" one micro-batch holds all, so one process has none.
RUNS = {
    "pretrain": "train_pretrain --preset tiny --block-size 32 --batch-tokens 96 --micro-batch-size 1".split(),
    "sft": ["train_sft", *SFT, "--gold", "--sample-every", "2", *WATCHED],
    "rl": ["train_rl", *RL, *"--updates-per-batch 2 --kl-coef 0.1".split(), *WATCHED],
    "idle": ["train_rl", *RL, "--micro-batch-size", "64"],
    "merge": ["merge", *RL, *SFT, "--sync-every", "2", *WATCHED],
    "sum": ["merge", *RL, *SFT, "--combine", "sum"],
}
RUNS["pretrain"] += "--eval-every 2 --eval-tokens 320".split()
EVALUATE = "evaluate --n-samples 2 --k 1 2 --max-new-tokens 8 --prompts-per-batch 2".split()
MINE = ("date", "seconds", "settings")  # of an evaluation's own making


def run_of(name: str, folder: Path, base, world) -> list[str]:
    stage, *flags = RUNS[name]
    init = [] if stage == "train_pretrain" else ["--init", str(base)]
    rest = "--steps 4 --warmup-steps 2 --lr 0.01 --save-at 2".split()
    return [stage, *init, "--data", str(world), "--out", str(folder / name), *rest, *flags]


def begin(plan: dict, folder: Path, *, alone: bool = False) -> list:
    """tests/many.py in two processes: torchrun, or the two `alone`, without it."""
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    script = [str(ROOT / "tests" / "many.py"), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if alone:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        return [forked.Started(script, env=environment | meeting | {"RANK": str(rank)}) for rank in range(2)]
    script = [*"-m torch.distributed.run --standalone --nproc-per-node 2".split(), *script]
    pipes = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return [subprocess.Popen([sys.executable, *script], env=environment, **pipes)]


def one_process(runs: list[list[str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(many.model.PRESETS, "tiny", many.TINY)
        patch.setattr("train_rl.reward", many.scored)
        patch.setattr("sys.argv", [])
        many.all_of(runs)
    assert not torch.distributed.is_initialized()


def two_processes(runs: list[list[str]], folder: Path) -> str:
    [process] = begin({"runs": runs}, folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:] + err[-6000:]
    return out


def told(process) -> list[str]:
    """The lines that a process printed until its end, without torch's warnings."""
    out, err = process.communicate(timeout=120)
    return [line for line in (out + err).splitlines() if not line.startswith("[W")]


@pytest.fixture(scope="module")
def both(world, base, tmp_path_factory):
    """A folder with the runs of one process in "1", of two in "2", of one that two go on with in "12", and the other
    way round in "21"; and the text that the two printed."""
    folder = tmp_path_factory.mktemp("many")
    whole = {n: [run_of(name, folder / n, base, world) for name in RUNS] for n in "12"}
    for n in "12":
        result = ["--data", str(world), "--out", str(folder / n / "result.json"), "--reference", str(base)]
        whole[n].append([*EVALUATE, "--ckpt", str(folder / "1/sft/ckpt_000004.pt"), *result])
        finished = [str(folder / "1" / name / "ckpt_000004.pt") for name in ("sft", "rl")]
        whole[n].append(["merge", "--average", *finished, "--out", str(folder / n / "mean.pt")])
    one_process(whole["1"])
    copied = {n: [folder / n / name for name in ("sft", "merge")] for n in ("12", "21")}
    for n, paths in copied.items():
        for path in paths if n == "12" else ():
            shutil.copytree(folder / n[0] / path.name, path)
            (path / "ckpt_000004.pt").unlink()
    resumed = {n: [[RUNS[path.name][0], "--resume", str(path)] for path in paths] for n, paths in copied.items()}
    shown = two_processes([*whole["2"], *resumed["12"]], folder)
    for path in copied["21"]:
        shutil.copytree(folder / "2" / path.name, path)
        (path / "ckpt_000004.pt").unlink()
    one_process(resumed["21"])
    return folder, shown


def rows_of(run: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_jsonl(run / "metrics.jsonl")]


def assert_alike(a, b, where: str) -> None:
    """Nested dictionaries, lists and tensors of one structure, numbers within 1e-5 of each other."""
    assert type(a) is type(b), where
    if isinstance(a, dict | list):
        assert len(a) == len(b) and (isinstance(a, list) or a.keys() == b.keys()), where
        for key in a if isinstance(a, dict) else range(len(a)):
            assert_alike(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=lambda text: f"{where}: {text}")
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5), where
    else:
        assert a == b, where


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_two_is_the_run_of_one(both, name):
    """Weights, moments, every metric; samples, rewards and lengths exactly."""
    one, two = (both[0] / n / name for n in "12")
    for key in ("model", "optimizer", "data", "parent", "step", "tokens"):
        assert_alike(*(load(run / "ckpt_000004.pt")[key] for run in (one, two)), key)
    assert_alike(rows_of(one), rows_of(two), "metrics.jsonl")
    exact = ("reward/", "completion/", "eval/pass", "step")
    rows = [[{k: v for k, v in row.items() if k.startswith(exact)} for row in rows_of(run)] for run in (one, two)]
    assert rows[0] == rows[1]
    if (one / "samples.jsonl").exists():
        assert (one / "samples.jsonl").read_text() == (two / "samples.jsonl").read_text()
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())


def test_the_runs_had_a_signal_and_moved(both, base):
    """Else they would be alike whatever the processes did."""
    for name in ("rl", "idle", "merge"):
        assert all(row["train/grad_norm"] > 0 for row in rows_of(both[0] / "1" / name) if "train/grad_norm" in row)
        weights = load(both[0] / "1" / name / "ckpt_000004.pt")["model"]
        assert max((weights[k] - v).abs().max() for k, v in load(base)["model"].items()) > 1e-3
    assert json.loads((both[0] / "2/rl/config.json").read_text())["processes"] == 2


def test_the_first_process_alone_speaks(both):
    assert both[1].count("step 00004/00004") == len(RUNS) + 2
    assert both[1].count("1 threads in each of 2 processes") == len(RUNS) + 3


@pytest.mark.parametrize("name", ["sft", "merge"])
@pytest.mark.parametrize("way", ["12", "21"])
def test_another_number_of_processes_goes_on_with_a_run(both, name, way):
    whole, resumed = (load(both[0] / n / name / "ckpt_000004.pt") for n in ("1", way))
    assert_alike(whole["model"], resumed["model"], "model")
    assert_alike(whole["optimizer"], resumed["optimizer"], "optimizer")
    assert [row["step"] for row in rows_of(both[0] / way / name)] == [
        row["step"] for row in rows_of(both[0] / "1" / name)
    ]
    if way == "12":
        assert "note: 2 processes, the run had 1: results agree to rounding, not bit for bit" in both[1]


def test_an_evaluation_by_two_is_that_by_one(both):
    one, two = (json.loads((both[0] / n / "result.json").read_text()) for n in "12")
    assert one["questions"]["gsm"]["flexible"] and one["benchmarks"] and one["movement"]["kl"]
    assert {k: v for k, v in one.items() if k not in MINE} == {k: v for k, v in two.items() if k not in MINE}
    samples = [(both[0] / n / "result.samples.jsonl").read_text() for n in "12"]
    assert samples[0] == samples[1] and two["settings"]["processes"] == 2


def test_checkpoints_averaged_by_two(both):
    """The first process does it."""
    one, two = (load(both[0] / n / "mean.pt")["model"] for n in "12")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# ------------------------------------------------------------------------------------------------------ when one ends
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_process_ends_the_others(world, base, tmp_path, number):
    """Killed, or silent though its connections stand, as on a machine that is gone. No torchrun is there to help."""
    run = [*run_of("rl", tmp_path, base, world), "--save-at", "1"]
    first, second = begin({"runs": [run], "signal": number, "rank": 1, "step": 2, "silence": 4.0}, tmp_path, alone=True)
    said = told(first)
    second.kill()
    second.communicate()
    assert first.returncode == 2
    assert [line for line in said if line.startswith("error: ") and "no longer answers, so all end" in line] == said[
        -1:
    ]
    assert not any("Traceback" in line for line in said)
    assert [p.name for p in (tmp_path / "rl").glob("*.pt")] == ["ckpt_000001.pt"]


def test_a_signal_to_one_stops_all_after_the_same_step(world, base, tmp_path):
    run = [*run_of("rl", tmp_path, base, world), "--save-at", "3"]
    both = begin({"runs": [run], "signal": signal.SIGTERM, "rank": 1, "step": 2}, tmp_path, alone=True)
    first, second = map(told, both)
    assert [process.returncode for process in both] == [143, 143] and not second
    assert first[-1].startswith("stopped by SIGTERM after step 2 of 4; go on with")
    assert [p.name for p in (tmp_path / "rl").glob("*.pt")] == ["ckpt_000002_stopped.pt"]


@pytest.mark.parametrize("known", ["all", "first"])
def test_a_refusal_is_said_once(world, base, tmp_path, known):
    """By all processes, each of which finds the fault, and by the first, which alone looks into the run's folder."""
    run = run_of("sft", tmp_path, base, world)
    run += ["--betas", "2", "2"] if known == "all" else []
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/ckpt_000001.pt").write_bytes(b"")
    started = begin({"runs": [run]}, tmp_path, alone=known == "all")
    said = [line for process in started for line in told(process) if line.startswith("error: ")]
    assert [process.returncode for process in started] == ([2, 2] if known == "all" else [1])  # 1: torchrun's own
    assert len(said) == 1 and said[0].startswith("error: --betas 2.0" if known == "all" else f"error: {tmp_path}")


@pytest.mark.parametrize(("signs", "after", "dead"), [(3, 46, True), (3, 44, False), (0, 500, False), (0, 601, True)])
def test_who_counts_as_dead(monkeypatch, capsys, signs, after, dead):
    """A process that has given signs may be silent for 45 seconds, one that has yet to arrive for ten minutes."""
    clock = iter([0.0, 1.0, 1.0 + after])

    class Store:
        def add(self, key, n):
            return 1 if key == "told" else signs

    waits = iter([False, False, True])
    monkeypatch.setattr(processes, "PROCESSES", 2)
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(processes.OVER, "wait", lambda seconds: next(waits))
    monkeypatch.setattr(processes.os, "_exit", lambda code: None)
    processes.watch(Store())
    assert ("no longer answers" in capsys.readouterr().err) == dead


# ------------------------------------------------------------------------------------------- what torchrun cannot start
@pytest.fixture
def first_of_two(monkeypatch):
    for module in (processes, common):
        monkeypatch.setattr(module, "PROCESSES", 2)
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_what_runs_in_one_process_refuses_many(refused, first_of_two):
    refused("sample", "--ckpt", "a.pt", words=("torchrun began 2 processes", "start it with python"))


def test_processes_that_cannot_meet(first_of_two):
    with pytest.raises(UserError, match="2 processes did not meet .*WORLD_SIZE.*; start them with torchrun"):
        with processes.joined():
            pass


def test_each_process_has_a_gpu_of_its_own(first_of_two, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert processes.own_device("cuda") == "cuda:1" and processes.own_device("cpu") == "cpu"
    with pytest.raises(UserError, match="--device cuda:0 for 2 processes"):
        processes.own_device("cuda:0")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match="2 processes on a machine of 1 GPUs; lower --nproc-per-node"):
        processes.own_device("cuda")


# ------------------------------------------------------------------------------------------------------ of one process
def test_processes_with_other_files_are_refused(monkeypatch):
    processes.agree({"hash": "a"}, "data")
    monkeypatch.setattr(processes, "gather", lambda mine: [*mine, {"hash": "b"}])
    with pytest.raises(UserError, match="the processes have different data"):
        processes.agree({"hash": "a"}, "data")


def test_peak_memory_is_of_the_process_that_holds_most(ok, world, base, tmp_path, monkeypatch):
    monkeypatch.setattr("stage.gather", lambda mine: [*mine, ("", 99.0)])
    ok("train_sft", "--init", base, "--data", world, "--out", tmp_path / "run", "--steps", 1)
    assert read_jsonl(tmp_path / "run/metrics.jsonl")[0]["perf/peak_mem_gb"] == 99.0
