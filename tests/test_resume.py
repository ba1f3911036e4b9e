"""--resume: every flag acts or is refused, longer runs, moved folders, copies.   pytest -q tests/test_resume.py"""

import argparse
import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import assert_same, load, read_jsonl, row, write_jsonl, write_world

import common
from common import save_checkpoint
from data.math_qa import load_questions, template_for

ROOT = Path(common.__file__).parent
RL = "--prompts-per-step 3 --group-size 3 --max-new-tokens 8 --updates-per-batch 2 --lr 0.02".split()
STAGES = {
    "train_pretrain": "--preset tiny --block-size 32 --batch-tokens 96 --eval-every 2 --eval-tokens 64".split(),
    "train_sft": "--batch-size 5 --micro-batch-size 2 --sample-every 3 --max-new-tokens 8".split(),
    "train_rl": RL,
    "merge": [*RL, *"--batch-size 5 --sft-lr 0.01".split()],
}
SFT = STAGES["train_sft"]
MEMORY_ONLY = {"micro_batch_size", "prompts_per_batch", "recompute"}  # results do not depend on them
CHECKS = {"strict_length"}  # nor on this, where it refuses nothing
OTHER = {  # values that act in so small a run; every other flag gets a changed value of its kind
    "betas": ["0.5", "0.6"],
    "block_size": ["16"],
    "clip_low": ["0"],
    "clip_high": ["0"],
    "dual_clip": ["1.001"],
    "device": ["cuda:9"],
    "eval_tokens": ["128"],
    "kernels": ["triton"],
    "lr": ["0.003"],
    "mix": ["math-heavy"],
    "n_questions": ["5"],
    "plan": ["laptop"],
    "sampler": ["nobody"],
    "save_at": ["5"],
    "save_every": ["1"],
    "save_tokens": ["480"],
    "task": ["hard"],
    "warmup_steps": ["6"],
    "weights": ["0.9", "0.3"],
    "epochs": ["3"],
    "sync_every": ["3"],
    "grad_clip": ["0.01"],
    "batch_tokens": ["128"],
    "steps": ["8"],
    "weight_decay": ["0.9"],
    "temperature": ["0.5"],
    "sft_lr": ["0.5"],
    "max_new_tokens": ["2"],
}


@pytest.fixture(autouse=True)
def signal_from_the_first_step(monkeypatch, tmp_path):
    """A reward that is a coin on the text, and stop strings that random models write."""
    monkeypatch.chdir(tmp_path)  # where `--sampler nobody` makes its folder
    monkeypatch.setattr("tools.mailbox.PATIENCE", 0.1)
    monkeypatch.setattr("train_rl.reward", lambda text, *_: float(sum(map(ord, text)) % 2))
    stops = tuple(map(chr, range(32, 127)))

    def short(task: str):
        return dataclasses.replace(template_for(task), stops=stops)

    for name in ("train_rl", "merge"):
        monkeypatch.setattr(f"{name}.template_for", short)


@pytest.fixture
def begin(ok, world, base, tmp_path):
    """begin("train_sft", ...) -> the folder of a run of 6 steps with checkpoints at 3 and 6."""

    def run(name: str, *flags, out: str = "run") -> Path:
        init = [] if name == "train_pretrain" else ["--init", base]
        fixed = ["--steps", 6, "--save-at", 3, "--out", tmp_path / out]
        ok(name, *init, "--data", world, *STAGES[name], *fixed, *flags)
        return tmp_path / out

    return run


def results(folder: Path) -> dict:
    """What a run leaves behind, without times, settings and paths."""
    files = sorted(p.name for p in folder.glob("*.pt"))
    last = load(folder / files[-1])
    rows = [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in read_jsonl(folder / "metrics.jsonl")]
    samples = read_jsonl(folder / "samples.jsonl") if (folder / "samples.jsonl").exists() else []
    return {"files": files, "rows": rows, "samples": samples, "model": last["model"], "optimizer": last["optimizer"]}


def told(shown: str) -> list[str]:
    """What a run says of itself besides its steps, paths and notes."""
    return [line for line in shown.splitlines() if not line.startswith(("step ", "saved ", "its curves", "note:"))]


def same(a, b) -> bool:
    try:
        assert_same(a, b)
    except AssertionError:
        return False
    return True


def changed(action: argparse.Action, old, folders: dict) -> list[str]:
    """Command line that gives a flag another value than `old`."""
    flag, kind = action.option_strings[0], action.type
    if action.nargs == 0:
        return [f"--no-{flag[2:]}" if old else flag]
    if action.dest in folders:
        return [flag, *map(str, folders[action.dest])]
    if action.dest in OTHER:
        return [flag, *OTHER[action.dest]]
    if action.choices:
        return [flag, next(c for c in action.choices if c not in (old, "auto"))]
    assert kind in (int, float), f"{flag}: give a value that acts in OTHER"
    return [flag, str((old or 0) + 1 if kind is int else (old or 0.0) + 0.5)]


@pytest.mark.parametrize("name", STAGES)
def test_every_flag_acts_or_is_refused(stage, begin, base, tmp_path, name):
    run = begin(name)
    if name != "train_pretrain":
        run = begin(name, "--eval-every", 2, "--eval-questions", 2, out="watched")
    first, config = run / "ckpt_000003.pt", json.loads((run / "config.json").read_text())
    other = write_world(tmp_path / "other")
    write_jsonl(other / "train.jsonl", [row(a, 40, task) for a in range(9) for task in ("gsm", "hard")])
    (other / "general.bin").write_bytes((other / "general.bin").read_bytes()[::-2] * 2)
    folders = {"data": [other], "init": [base], "average": [base, base], "only": ["easy"], "by": [tmp_path / "e.json"]}
    shown = stage(name, "--resume", first, "--out", tmp_path / "same").out
    whole = results(tmp_path / "same")
    assert same(whole["model"], results(run)["model"])
    for action in importlib.import_module(name).parser()._actions:
        if action.dest in ("help", "resume", "out"):
            continue
        flags, out = changed(action, config.get(action.dest), folders), tmp_path / action.dest
        ended = stage(name, "--resume", first, "--out", out, *flags)
        if ended.code:
            assert ended.code == 2 and ended.err.count("\n") == 1 and flags[0] in ended.err, (flags, ended.err)
            continue
        assert f"note: {flags[0].replace('--no-', '--')} is" in ended.out, (flags, ended.out)
        now = results(out)
        if action.dest in MEMORY_ONLY | CHECKS:
            assert now["files"] == whole["files"]
            assert action.dest != "recompute" or same(now["model"], whole["model"])
        else:
            acted = not same(now, whole) or told(ended.out) != told(shown)
            assert acted, f"{flags} changed nothing, and was accepted"


def test_flags_whose_time_is_over_are_refused(refused, begin):
    first = begin("train_sft", "--warmup-steps", 2) / "ckpt_000003.pt"
    refused("train_sft", "--resume", first, "--warmup-steps", 1, words=("--warmup-steps 1", "step 3"))
    refused("train_sft", "--resume", first, "--save-at", 2, 5, words=("--save-at 2", "step 3"))
    refused("train_sft", "--resume", first, "--steps", 2, words=("--steps 2", "step 3"))


def write_counts(path: Path, task: str, right: list[int]) -> Path:
    """What evaluate.py --split train says of the first questions: 4 samples each, so many right."""
    questions = {"qid": [f"{task}-{i}" for i in range(len(right))], "strict": right, "n": [4] * len(right)}
    path.write_text(
        json.dumps(
            {
                "settings": {"split": "train", "n_shot": 0, "temperature": 1.0},
                "questions": {task: {"questions": questions}},
            }
        )
    )
    return path


def test_only_and_by_act_and_are_noted(ok, begin, world, tmp_path):
    """Together, by another file, and by the same file with other counts in it."""
    qids = [q.qid for q in load_questions(world, "gsm", "train")]
    counts = write_counts(tmp_path / "e.json", "gsm", [4, 4, 4, 0, 0, 0])
    counts.write_text(counts.read_text().replace("gsm-", qids[0].removesuffix("0")))
    first = begin("train_rl") / "ckpt_000003.pt"
    whole = ok("train_rl", "--resume", first, "--out", tmp_path / "same")
    assert "the data is not" not in whole.out
    shown = ok("train_rl", "--resume", first, "--only", "easy", "--by", counts, "--out", tmp_path / "only").out
    assert "note: --only is easy" in shown and "note: --by is" in shown and "the data is not" in shown
    assert not same(results(tmp_path / "only"), results(tmp_path / "same"))
    first = begin("train_rl", "--only", "easy", "--by", counts, out="easy") / "ckpt_000003.pt"
    assert "the data is not" not in ok("train_rl", "--resume", first, "--out", tmp_path / "again").out
    counts.write_text(counts.read_text().replace("[4, 4, 4, 0, 0, 0]", "[0, 0, 4, 4, 4, 4]"))
    assert "the data is not" in ok("train_rl", "--resume", first, "--out", tmp_path / "others").out


# ------------------------------------------------------------------------------------------------------- longer runs
@pytest.mark.parametrize("name", ["train_sft", "train_rl", "merge"])
def test_more_steps_equal_a_longer_run(ok, begin, tmp_path, name):
    """A finished run of 6 steps, resumed for 9, is the run of 9: its warm-up stays that of 6 steps (none)."""
    run = begin(name)
    assert "note: --steps is 9, the run had 6" in ok(name, "--resume", run, "--steps", 9).out
    longer = begin(name, "--steps", 9, "--warmup-steps", 0, out="longer")
    a, b = results(run), results(longer)
    assert_same({k: a[k] for k in ("rows", "model", "optimizer")}, {k: b[k] for k in ("rows", "model", "optimizer")})
    assert len(a["rows"]) == 9


def test_a_falling_rate_keeps_its_horizon(refused, begin):
    run = begin("train_pretrain")
    refused("train_pretrain", "--resume", run, "--steps", 9, words=("--steps 9", "began with 6"))


def test_default_warm_up_stays_that_of_the_first_steps(ok, begin, tmp_path):
    """A tenth of 20 steps is 2; of 40 it would be 4, and step 3 was at the full rate already."""
    run = begin("train_sft", "--steps", 20)
    ok("train_sft", "--resume", run / "ckpt_000003.pt", "--steps", 40, "--out", tmp_path / "longer")
    rates = {r["train/lr"] for r in read_jsonl(tmp_path / "longer/metrics.jsonl")}
    assert rates == {1e-3} and json.loads((tmp_path / "longer/config.json").read_text())["warmup_steps"] == 2


# ------------------------------------------------------------------------------------------------- which, and where
def test_a_folder_is_its_last_checkpoint(ok, refused, begin, tmp_path):
    run = begin("train_sft", "--save-at", 2, 3, 4)
    assert "nothing to do" in ok("train_sft", "--resume", run).out
    (run / "ckpt_000006.pt").unlink()
    (run / "ckpt_000004.pt").rename(run / "ckpt_000004_stopped.pt")  # what a signal left
    (run / "ckpt_best.pt").write_bytes(b"not ours")
    ok("train_sft", "--resume", run)
    assert [r["step"] for r in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert not list(run.glob("*stopped*"))  # its work is in the next one
    (tmp_path / "empty").mkdir()
    refused("train_sft", "--resume", tmp_path / "empty", words=("no ckpt_*.pt", "empty"))


@pytest.mark.parametrize("name", ["train_pretrain", "train_rl"])
def test_a_moved_run_goes_on_where_it_lies(ok, base, world, tmp_path, monkeypatch, name):
    """Begun with relative paths; then its whole tree is moved, and it goes on from another working directory."""
    tree = tmp_path / "tree"
    shutil.copytree(world, tree / "data/world")
    shutil.copy(base, tree / "base.pt")
    monkeypatch.chdir(tree)
    init = [] if name == "train_pretrain" else ["--init", "base.pt", "--kl-coef", "0.1"]  # which reads --init again
    flags = ["--data", "data/world", "--steps", 4, "--save-at", 2, "--out", "runs/a", *init]
    ok(name, *STAGES[name], *flags)
    whole = results(tree / "runs/a")
    (tree / "runs/a/ckpt_000004.pt").unlink()
    tree.rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ok(name, "--resume", "../moved/runs/a")
    assert same(results(tmp_path / "moved/runs/a"), whole)
    assert not tree.exists() and not list((tmp_path / "elsewhere").iterdir())


def test_a_foreign_file_writes_beside_itself(ok, begin, tmp_path):
    """A checkpoint whose settings name a folder of someone else's: nothing is written there."""
    run = begin("train_sft")
    for name in ("theirs", "got"):
        (tmp_path / name).mkdir()
    ckpt = load(run / "ckpt_000003.pt")
    config = ckpt["config"] | {"out": str(tmp_path / "theirs")}
    save_checkpoint(tmp_path / "got/ckpt_000003.pt", ckpt | {"config": config})
    ok("train_sft", "--resume", tmp_path / "got/ckpt_000003.pt")
    assert not list((tmp_path / "theirs").iterdir()) and (tmp_path / "got/ckpt_000006.pt").exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("lr", "fast"), ("steps", [6]), ("betas", [0.9]), ("data", 7), ("gold", "yes"), ("seed", True), ("steps", 10**30)],
)
def test_hand_made_settings_are_refused(refused, begin, setting, value):
    first = begin("train_sft") / "ckpt_000003.pt"
    ckpt = load(first)
    torch.save(ckpt | {"config": ckpt["config"] | {setting: value}}, first)
    refused("train_sft", "--resume", first, words=(setting, "ckpt_000003.pt"))


def test_a_copied_stage_resumes_its_own_runs(ok, refused, base, world, tmp_path, monkeypatch):
    """my_train_sft.py, a copy with one line changed: its checkpoints bear its name, and it alone goes on with them."""
    text = (ROOT / "train_sft.py").read_text()
    (tmp_path / "my_train_sft.py").write_text(text.replace("/ denom  # ABLATION", "/ denom * 2  # ABLATION"))
    monkeypatch.syspath_prepend(tmp_path)
    flags = ("--init", base, "--data", world, *SFT, "--steps", 4, "--save-at", 2)
    ok("my_train_sft", *flags, "--out", tmp_path / "run")
    first = tmp_path / "run/ckpt_000002.pt"
    assert load(first)["stage"] == "my_train_sft"
    whole = load(tmp_path / "run/ckpt_000004.pt")
    ok("my_train_sft", "--resume", first, "--out", tmp_path / "again")
    assert_same(load(tmp_path / "again/ckpt_000004.pt")["model"], whole["model"])
    refused("train_sft", "--resume", first, words=("my_train_sft.py", "resume it there"))
