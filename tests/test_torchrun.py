"""Two processes do what one does: every stage by torchrun, against itself.   pytest -q tests/test_torchrun.py"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import many
import pytest
import torch
from tiny import load, read_jsonl

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


def begin(plan: dict, folder: Path, *, torchrun: bool = True) -> list[subprocess.Popen]:
    """tests/many.py in two processes: torchrun, or without it the two themselves."""
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    script = [str(ROOT / "tests" / "many.py"), str(path)]
    ranks = [{"RANK": str(n), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29471"} for n in (0, 1)]
    if torchrun:
        ranks, script = [{}], [*"-m torch.distributed.run --standalone --nproc-per-node 2".split(), *script]
    pipes = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen([sys.executable, *script], env=environment | rank, **pipes) for rank in ranks]


def one_process(runs: list[list[str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(many.model.PRESETS, "tiny", many.TINY)
        patch.setattr("train_rl.reward", many.scored)
        patch.setattr("sys.argv", [])
        many.all_of(runs)


def two_processes(runs: list[list[str]], folder: Path) -> str:
    [process] = begin({"runs": runs}, folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:] + err[-6000:]
    return out


@pytest.fixture(scope="module")
def both(world, base, tmp_path_factory):
    """A folder with the runs of one process in "1", of two in "2", of one that two go on with in "12", and the other
    way round in "21"; and the text that the two printed."""
    folder = tmp_path_factory.mktemp("many")
    whole = {n: [run_of(name, folder / n, base, world) for name in RUNS] for n in "12"}
    for n in "12":
        result = ["--data", str(world), "--out", str(folder / n / "result.json"), "--reference", str(base)]
        whole[n].append([*EVALUATE, "--ckpt", str(folder / "1/sft/ckpt_000004.pt"), *result])
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


# ------------------------------------------------------------------------------------------------------ when one ends
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_process_ends_the_others(world, base, tmp_path, number):
    """Killed, or silent though its connections stand, as on a machine that is gone. No torchrun is there to help."""
    run = run_of("rl", tmp_path, base, world)
    began = time.time()
    plan = {"runs": [[*run, "--save-at", "1"]], "signal": number, "rank": 1, "step": 2, "silence": 4.0}
    first, second = begin(plan, tmp_path, torchrun=False)
    _, err = first.communicate(timeout=60)
    second.kill()
    second.communicate()
    assert first.returncode == 2 and time.time() - began < 60
    assert len(err.splitlines()) == 1 and err.startswith("error: ") and "no longer answers, so all end" in err
    assert [p.name for p in (tmp_path / "rl").glob("*.pt")] == ["ckpt_000001.pt"]


def test_torchrun_refusal_is_said_once_and_a_signal_stops_all(world, base, tmp_path):
    pass
