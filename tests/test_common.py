"""Run plumbing: schedule, draws, optimizer, checkpoint files, resume rules, logs.   pytest -q tests/test_common.py"""

import contextlib
import json
import math
import resource
import shutil
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny import assert_same, load, read_jsonl, settings, tiny_model, write_ckpt

import common
import train_sft
from common import UserError, load_checkpoint, lr_at, make_optimizer, save_checkpoint, step_with_clip
from data.checkpoints import weights_hash
from data.math_qa import draw
from model import check_context

ROOT = Path(common.__file__).parent
SFT = "--batch-size 4 --steps 4 --save-every 2 --lr 1e-3 --threads 1".split()


@contextlib.contextmanager
def full_disk(free: int):
    """Every file is cut at `free` bytes: a write past that fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def sft_run(ok, world, base, tmp_path):
    """A finished SFT run of 4 steps with checkpoints at 2 and 4."""
    ok("train_sft", "--init", base, "--data", world, "--out", tmp_path / "run", *SFT)
    return tmp_path / "run"


# ------------------------------------------------------------------------------------------- schedule, draws, steps
def test_schedules_by_hand():
    args = settings(train_sft, warmup_steps=4, steps=12)
    for schedule in ("constant", "cosine"):
        assert [lr_at(s, args, 8.0, schedule) for s in range(4)] == [2.0, 4.0, 6.0, 8.0]
    assert [lr_at(s, args, 8.0, "constant") for s in (4, 7, 11)] == [8.0, 8.0, 8.0]
    # from the peak to a tenth of it, half-way at step 8; step 12 would be the floor
    assert lr_at(4, args, 8.0, "cosine") == 8.0 and lr_at(8, args, 8.0, "cosine") == pytest.approx(4.4)
    assert lr_at(6, args, 8.0, "cosine") == pytest.approx(0.8 + 3.6 * (1 + math.sqrt(0.5)))
    assert lr_at(12, args, 8.0, "cosine") == pytest.approx(0.8)
    flat = settings(train_sft, warmup_steps=0, steps=1)
    assert lr_at(0, flat, 8.0, "cosine") == lr_at(0, flat, 8.0, "constant") == 8.0


@pytest.mark.parametrize("count", [1, 3, 7, 16, 40])
def test_draw_covers_each_epoch_exactly_once(count):
    """Batches of 1 to 40 out of 7: every stretch of 7 is a permutation; epochs and seeds differ."""
    n, steps = 7, 70
    taken = [i for step in range(steps) for i in draw(n, count, step, seed=3)]
    epochs = [tuple(taken[i : i + n]) for i in range(0, len(taken) - n + 1, n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len(set(epochs[:10])) > 5
    assert max(Counter(taken).values()) - min(Counter(taken).values()) <= 1
    assert draw(n, count, 5, seed=3) == taken[5 * count : 6 * count]  # no state: any step at once
    assert [draw(n, count, s, seed=4) for s in range(steps)] != [draw(n, count, s, seed=3) for s in range(steps)]


def test_weight_decay_spares_the_embedding_alone():
    """With zero gradients a step of rate 0.5 and decay 0.1 shrinks every weight by 5 %, but not the embedding."""
    args = settings(train_sft, lr=0.5, weight_decay=0.1, betas=[0.9, 0.95])
    for tied in (True, False):
        model = tiny_model(tied=tied)
        before = {k: v.clone() for k, v in model.named_parameters()}
        norm = step_with_clip(model, make_optimizer(model, args), 1.0)
        assert norm == 0.0
        for name, p in model.named_parameters():
            torch.testing.assert_close(p, before[name] * (1.0 if name == "wte.weight" else 0.95))
    assert make_optimizer(model, args, lr=0.3).param_groups[0]["lr"] == 0.3
    assert make_optimizer(model, args).param_groups[0]["betas"] == (0.9, 0.95)


@pytest.mark.parametrize(("clip", "scale"), [(1.0, 0.2), (10.0, 1.0), (0.0, 1.0)])
def test_clip(clip, scale):
    """Gradient (3, 4) has norm 5: clipped to 1 it is (0.6, 0.8); above the norm, and with 0, it is left alone."""
    model = torch.nn.Linear(2, 1, bias=True)
    before = model.weight.detach().clone()
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    norm = step_with_clip(model, torch.optim.SGD(model.parameters(), lr=1.0), clip)
    assert norm == pytest.approx(5.0)
    torch.testing.assert_close(model.weight.detach(), before - scale * torch.tensor([[3.0, 4.0]]))
    assert model.weight.grad is None and model.bias.grad is None


def test_adamw_clock_runs_for_weights_without_gradient():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step_with_clip(model, optimizer, 1.0)
    assert {float(optimizer.state[p]["step"]) for p in model.parameters()} == {1.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_check_finite(value):
    common.check_finite(0.0, 7, "runs/x")
    with pytest.raises(UserError, match="step 7.*runs/x keeps its last good checkpoint"):
        common.check_finite(value, 7, "runs/x")


def test_check_context_at_the_edge():
    check_context([[1] * 5, [1] * 60], 36, 96)
    with pytest.raises(UserError, match=r"prompt of 60 tokens \+ 37 new tokens exceeds .* 96"):
        check_context([[1] * 60, [1] * 5], 37, 96)


# ------------------------------------------------------------------------------------------------------ user errors
def test_run_turns_user_errors_into_one_line(capsys):
    def mistaken():
        raise UserError("got 1, need 2; give 2")

    with pytest.raises(SystemExit) as ended:
        common.run(mistaken)
    shown = capsys.readouterr()
    assert ended.value.code == 2 and shown.err == "error: got 1, need 2; give 2\n" and shown.out == ""
    with pytest.raises(ZeroDivisionError):  # our own bugs keep their traceback
        common.run(lambda: 1 // 0)
    common.run(lambda: None)


def test_memory_that_ends_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        common.run(lambda: torch.empty(1 << 58, dtype=torch.uint8))
    assert ended.value.code == 2 and "lower --prompts-per-batch" in capsys.readouterr().err
    with pytest.raises(RuntimeError):  # any other is a bug, and keeps its traceback
        common.run(lambda: torch.ones(2) @ torch.ones(3, 3))


def test_every_stage_imports_without_triton():
    stages = "train_pretrain, train_sft, train_rl, merge, evaluate, study"
    code = f"import sys; sys.modules['triton'] = None; import {stages}; assert sys.modules['triton'] is None"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=common.__file__.rpartition("/")[0])


# -------------------------------------------------------------------------------------------------- checkpoint files
def test_save_and_load_round_trip(tmp_path):
    model = tiny_model(1)
    path = write_ckpt(
        tmp_path / "ckpt_000003.pt", model, metrics={"a": 0.5, "b": None}, rng={"torch": torch.get_rng_state()}
    )
    ckpt = load_checkpoint(path)
    assert_same(ckpt, load(path))
    assert_same(ckpt["model"], dict(model.state_dict()))
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt_000003.pt"]


@pytest.mark.parametrize("free", [0, 1000, 60_000])
def test_full_disk_leaves_the_previous_file_whole(tmp_path, free):
    path = write_ckpt(tmp_path / "ckpt_000003.pt", tiny_model(1))
    before = path.read_bytes()
    assert len(before) > 100_000
    with full_disk(free), pytest.raises(UserError, match="ckpt_000003.pt could not be written") as error:
        save_checkpoint(path, load(path) | {"step": 4})
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
    save_checkpoint(path, load(path) | {"step": 4})  # with space again it works
    assert load(path)["step"] == 4


def test_kill_during_a_save_leaves_the_previous_file_whole(tmp_path):
    """kill -9 in the middle of writing: the old file is whole, and what was half written is no ckpt_*.pt."""
    path = write_ckpt(tmp_path / "ckpt_000003.pt", tiny_model(1))
    before = path.read_bytes()
    code = f"""
import os, signal, sys, torch, common
def half(ckpt, f):
    f.write(b"x" * 50_000)
    f.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
common.save_checkpoint({str(path)!r}, {{}})
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert ended.returncode == -9
    assert path.read_bytes() == before and list(tmp_path.glob("ckpt_*.pt")) == [path]
    left = [p for p in tmp_path.iterdir() if p != path]
    assert len(left) == 1 and left[0].stat().st_size == 50_000  # it was killed half-way, into another name


def test_files_that_are_no_checkpoints(tmp_path, base):
    whole = base.read_bytes()
    bad = {"empty.pt": b"", "text.pt": b"hello\n" * 99, "short.pt": whole[:1000], "cut.pt": whole[:-40]}
    bad["half.pt"] = whole[: len(whole) // 2]
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"code": Namespace(a=1)}, tmp_path / "objects.pt")  # needs more than weights_only
    torch.save(tiny_model().state_dict(), tmp_path / "weights.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(load(base) | {"format": 99}, tmp_path / "newer.pt")
    torch.save({k: v for k, v in load(base).items() if k != "tokenizer"}, tmp_path / "lacks.pt")
    words = {"objects.pt": "no readable", "weights.pt": "no format", "list.pt": "no format", "newer.pt": "format 99"}
    words["lacks.pt"] = "no tokenizer"
    for name in (*bad, *words):
        with pytest.raises(UserError, match=words.get(name, "no readable checkpoint")) as error:
            load_checkpoint(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
    for missing in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(UserError, match="no such checkpoint"):
            load_checkpoint(missing)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes_of_compiled_and_parallel_models_are_stripped(tmp_path, prefix):
    model = tiny_model(2)
    path = write_ckpt(tmp_path / "c.pt", model)
    ckpt = load(path)
    save_checkpoint(path, ckpt | {"model": {prefix + k: v for k, v in ckpt["model"].items()}})
    assert_same(load_checkpoint(path), ckpt)


def test_weights_hash():
    """The same weights have the same hash in any order and dtype that holds them; one changed bit, or name, differs."""
    a = dict(tiny_model(3).state_dict())
    reversed_ = dict(reversed(a.items()))
    assert weights_hash(a) == weights_hash(reversed_) == weights_hash({k: v.double() for k, v in a.items()})
    b = {k: v.clone() for k, v in a.items()}
    b["norm_f.weight"][0] = torch.nextafter(b["norm_f.weight"][0], torch.tensor(9.0))
    renamed = {k.replace("norm_f", "norm_g"): v for k, v in a.items()}
    assert len({weights_hash(a), weights_hash(b), weights_hash(renamed)}) == 3


def test_checkpoint_of_a_stage(sft_run, base):
    """Every key, plain float32 weights, and the parent by file, stage, step, tokens and hash."""
    ckpt, parent = load(sft_run / "ckpt_000004.pt"), load(base)
    assert set(ckpt) == set(common.CHECKPOINT_KEYS) and ckpt["format"] == 1 and ckpt["stage"] == "train_sft"
    assert ckpt["step"] == 4 and ckpt["tokens"] == parent["tokens"] == 1234 and ckpt["tokenizer"] == parent["tokenizer"]
    assert ckpt["model"].keys() == parent["model"].keys()
    assert {v.dtype for v in ckpt["model"].values()} == {torch.float32}
    want = {"file": base.name, "stage": "train_pretrain", "step": 3, "tokens": 1234}
    want["hash"] = weights_hash(parent["model"])
    assert ckpt["parent"] == want and ckpt["model_config"] == parent["model_config"]
    assert ckpt["config"]["lr"] == 1e-3 and ckpt["data"]["position"] == 4 and "train/loss" in ckpt["metrics"]
    assert json.loads((sft_run / "config.json").read_text())["batch_size"] == 4
    assert sorted(p.name for p in sft_run.glob("*.pt")) == ["ckpt_000002.pt", "ckpt_000004.pt"]


# -------------------------------------------------------------------------------------------------------- resume rules
def test_resume_of_a_finished_run_ends_well(ok, sft_run):
    before = (sft_run / "metrics.jsonl").read_text()
    assert "nothing to do" in ok("train_sft", "--resume", sft_run / "ckpt_000004.pt").out
    assert (sft_run / "metrics.jsonl").read_text() == before


def test_resume_keeps_epochs_and_preset(refused, sft_run):
    for flags in (("--epochs", "3.0"), ("--preset", "paper")):
        refused("train_sft", "--resume", sft_run / "ckpt_000002.pt", *flags, words=(" ".join(flags), "began with"))


def test_resume_excludes_init(refused, sft_run, base):
    refused("train_sft", "--resume", sft_run / "ckpt_000002.pt", "--init", base, words=("--init", "--resume"))


def test_resume_by_another_stage(refused, sft_run):
    refused("train_rl", "--resume", sft_run / "ckpt_000002.pt", words=("train_sft",))


def test_resume_reports_what_changed(ok, sft_run, tmp_path):
    flags = ("--resume", sft_run / "ckpt_000002.pt", "--out", tmp_path / "other")
    same = ok("train_sft", *flags)
    assert "--lr" not in same.out and "the data is not" not in same.out and "threads, the run had" not in same.out
    ckpt = load(sft_run / "ckpt_000002.pt")  # as if it had run with two threads
    save_checkpoint(sft_run / "ckpt_000002.pt", ckpt | {"config": ckpt["config"] | {"threads": 2}})
    more = ("--lr", "0.5", "--threads", "1", "--n-questions", "3")
    changed = ok("train_sft", *flags[:2], "--out", tmp_path / "third", *more).out
    assert "note: --lr is 0.5, the run had 0.001" in changed and "1 threads, the run had 2" in changed
    assert "the data is not what this run began with" in changed


def test_resume_reports_other_text(ok, world, tmp_path):
    """Token files of the same length with other text in them."""
    data = tmp_path / "world2"
    shutil.copytree(world, data)
    flags = "--preset tiny --block-size 64 --batch-tokens 64 --steps 2 --save-every 1 --eval-every 0".split()
    ok("train_pretrain", "--data", data, "--out", tmp_path / "run", *flags, "--eval-tokens", "64")
    first = tmp_path / "run" / "ckpt_000001.pt"
    same = ok("train_pretrain", "--resume", first, "--out", tmp_path / "same")
    text = (data / "general.bin").read_bytes()
    (data / "general.bin").write_bytes(text[len(text) // 4 * 2 :] + text[: len(text) // 4 * 2])
    other = ok("train_pretrain", "--resume", first, "--out", tmp_path / "other")
    assert "the data is not" not in same.out and "the data is not what this run began with" in other.out


def test_resume_reports_other_questions(ok, sft_run, world, tmp_path):
    data = tmp_path / "world2"
    shutil.copytree(world, data)
    text = (data / "train.jsonl").read_text()
    (data / "train.jsonl").write_text(text.replace("11+3?", "11+3!"))
    resumed = ok("train_sft", "--resume", sft_run / "ckpt_000002.pt", "--data", data, "--out", tmp_path / "other")
    assert "the data is not what this run began with" in resumed.out


def test_resume_drops_rows_past_the_step(ok, sft_run):
    """The run was killed after step 3 in the middle of a line; rows 3.. are written again, once."""
    rows = (sft_run / "metrics.jsonl").read_text().splitlines()
    (sft_run / "metrics.jsonl").write_text("\n".join(rows[:3]) + "\n" + rows[3][:20])
    (sft_run / "ckpt_000004.pt").unlink()
    ok("train_sft", "--resume", sft_run / "ckpt_000002.pt")
    again = read_jsonl(sft_run / "metrics.jsonl")
    assert [r["step"] for r in again] == [1, 2, 3, 4]
    assert again[2]["perf/elapsed_s"] >= json.loads(rows[1])["perf/elapsed_s"]  # goes on counting
    assert [r["train/loss"] for r in again] == [json.loads(r)["train/loss"] for r in rows]


def test_resume_overwrites_no_later_checkpoint(stage, sft_run):
    before = (sft_run / "ckpt_000004.pt").read_bytes()
    ended = stage("train_sft", "--resume", sft_run / "ckpt_000002.pt", "--lr", "0.5")
    assert (sft_run / "ckpt_000004.pt").read_bytes() == before
    assert ended.code == 2 and "ckpt_000004.pt" in ended.err


def test_new_run_needs_an_empty_folder(refused, sft_run, base, world):
    before = (sft_run / "metrics.jsonl").read_text()
    line = refused("train_sft", "--init", base, "--data", world, "--out", sft_run, *SFT, words=("ckpt_000004.pt",))
    assert "another --out" in line and (sft_run / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("name", ["train_pretrain", "train_sft", "train_rl", "merge", "evaluate"])
def test_without_flags_an_example_is_shown(refused, name):
    line = refused(name, words=(f"{name}.py needs flags", "--help"))
    assert f"for example: python {name}.py --" in line and "#" not in line


def test_missing_flags(refused):
    for name, flag in (("train_sft", "--init"), ("train_rl", "--init"), ("merge", "--init"), ("evaluate", "--ckpt")):
        refused(name, "--seed", "1", words=(f"{flag} is missing",))


def test_defaults_of_warmup(ok, base, world, tmp_path):
    """min(50, steps // 10), and what the user gives is kept: W steps of warm-up begin at 1/W of the rate."""
    for steps, flags, warmup in (
        (20, [], 2),
        (9, [], 0),
        (5, ["--warmup-steps", 4], 4),
        (20, ["--warmup-steps", 0], 0),
    ):
        out = tmp_path / f"{steps}_{warmup}"
        small = ("--batch-size", "1", "--n-questions", "1", "--lr", "0.01", "--steps", steps)
        ok("train_sft", "--init", base, "--data", world, "--out", out, *small, *flags)
        rates = [row["train/lr"] for row in read_jsonl(out / "metrics.jsonl")]
        assert rates == pytest.approx([0.01 * min(1, (s + 1) / max(1, warmup)) for s in range(steps)])


def test_device_and_dtype_are_said(ok, refused, base, world, tmp_path):
    flags = ("--init", base, "--data", world, "--batch-size", "2", "--steps", "1")
    out = ok("train_sft", *flags, "--out", tmp_path / "a", "--dtype", "bfloat16").out
    assert "dtype bfloat16" in out or "has no bfloat16" in out  # never a silent fallback
    assert "kernels torch" in out and "threads" in out
    if not torch.cuda.is_available():
        refused("train_sft", *flags, "--out", tmp_path / "b", "--device", "cuda", words=("--device cuda",))
        refused("train_sft", *flags, "--out", tmp_path / "b", "--kernels", "triton", words=("triton",))


def test_peak_memory_counts_gigabytes():
    """In a process of its own: 0.3 GB more than the most ever held raise it by as much; freeing lowers nothing.
    (Linux hands the parent's most down to the child, so `before` may be pytest's.)"""
    code = """import common, torch
before = common.peak_memory()
filled = torch.ones(int((before + 0.3) * 1e9 / 4))
grown = common.peak_memory()
del filled
assert before + 0.3 <= grown < before + 0.9 and common.peak_memory() >= grown, (before, grown)"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
