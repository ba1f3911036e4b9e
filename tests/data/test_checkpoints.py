"""Checkpoint files: damaged, hand-made, not finite; what is saved and what is built from them.
pytest -q tests/data/test_checkpoints.py"""

import copy
import json
import random
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from tiny import assert_same, load, read_jsonl, settings, tiny_model, write_ckpt

import train_sft
from common import load_checkpoint, make_optimizer, save_checkpoint, step_with_clip
from data.checkpoints import finite, restore_optimizer
from data.files import UserError
from model import GPTConfig, build_model, load_model

NAN, INF = float("nan"), float("inf")
SFT = "--batch-size 2 --steps 4 --save-at 2".split()


@pytest.fixture
def run(ok, world, base, tmp_path):
    """A run of 4 SFT steps with a checkpoint at 2."""
    ok("train_sft", "--init", base, "--data", world, "--out", tmp_path / "run", *SFT)
    return tmp_path / "run"


def write(path, ckpt):
    """As anyone could, past save_checkpoint's checks."""
    torch.save(ckpt, path)
    return path


# ------------------------------------------------------------------------------------------------------ flipped bits
def test_a_flipped_bit_is_refused_wherever_it_lies(run, tmp_path):
    """In a weight, in a moment, in the pickle: each record of the zip has its CRC-32."""
    path = run / "ckpt_000002.pt"
    whole, draw = path.read_bytes(), random.Random(0)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: (info.header_offset + 30, info.file_size) for info in archive.infolist()}
    assert len(records) > 40
    for name, (start, size) in records.items():
        data = bytearray(whole)
        at = start + len(name) + 200 + draw.randrange(max(1, size - 300)) if size > 600 else start + len(name) - 1
        data[at] ^= 1 << draw.randrange(8)
        (tmp_path / "flipped.pt").write_bytes(data)
        with pytest.raises(UserError, match="flipped.pt is no readable checkpoint") as error:
            load_checkpoint(tmp_path / "flipped.pt")
        assert "\n" not in str(error.value)
    assert_same(load_checkpoint(path), load(path))


def test_a_flipped_bit_stops_every_reader(refused, world, run):
    """A weight of another value is still finite: only the CRC tells."""
    path = run / "ckpt_000002.pt"
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    data[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(data)
    words = ("ckpt_000002.pt", "CRC-32")
    refused("evaluate", "--ckpt", path, "--data", world, "--tasks", "gsm", words=words)
    refused("train_sft", "--resume", path, words=words)
    refused("train_rl", "--init", path, "--data", world, words=words)
    refused("merge", "--average", path, run / "ckpt_000004.pt", "--out", run / "m.pt", words=words)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what is mapped, on Linux alone")
def test_a_file_is_mapped_not_copied(base):
    """So the processes of one machine hold it once."""
    ckpt = load_checkpoint(base)
    assert str(base) in Path("/proc/self/maps").read_text()
    assert_same(ckpt, load(base))


# -------------------------------------------------------------------------------------------------------- not finite
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_weights_that_are_not_finite_are_refused_by_every_reader(refused, world, run, value):
    path = run / "ckpt_000002.pt"
    ckpt = load(path)
    ckpt["model"]["blocks.1.mlp.c_fc.weight"][3, 5] = value
    write(path, ckpt)
    words = ("ckpt_000002.pt", "blocks.1.mlp.c_fc.weight", "not finite")
    refused("evaluate", "--ckpt", path, "--data", world, "--tasks", "gsm", words=words)
    refused("evaluate", "--ckpt", run / "ckpt_000004.pt", "--reference", path, "--data", world, words=words)
    for name in ("train_sft", "train_rl", "merge"):
        refused(name, "--init", path, "--data", world, "--out", run / "new", words=words)
    refused("train_sft", "--resume", path, words=words)
    refused("merge", "--average", run / "ckpt_000004.pt", path, "--out", run / "m.pt", words=words)


def test_finite_is_exact():
    assert finite(torch.tensor([[3e38, -3e38, 0.0]])) and finite(torch.empty(0)) and finite(torch.tensor(1.0))
    assert finite(torch.full((1000,), 3e38))  # their sum is not
    for value in (NAN, INF, -INF):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            assert not finite(torch.tensor([1.0, value, 2.0], dtype=dtype)), (value, dtype)


def test_an_update_that_overflows_is_not_saved(refused, run, base, world, tmp_path):
    """The last step's loss and gradient are finite, the weights after it are not; or its moments alone."""
    flags = ("--init", base, "--data", world, "--batch-size", "2")
    for rate in ("1e39", "3e38"):
        out = tmp_path / rate
        line = refused("train_sft", *flags, "--lr", rate, "--steps", 1, "--out", out, words=("finite", "step 1"))
        assert "lower --lr" in line and not list(out.glob("*.pt")) and not list(out.glob(".tmp*"))
    ckpt = load(run / "ckpt_000002.pt")
    ckpt["optimizer"]["state"][0]["exp_avg_sq"][0] = INF
    with pytest.raises(UserError, match="optimizer.state.0.exp_avg_sq is no longer finite at step 2"):
        save_checkpoint(tmp_path / "moments.pt", ckpt)


def test_an_average_that_overflows_is_not_saved(refused, run):
    """Both are finite, two of the one less the other is not."""
    for step, value in ((2, 3e38), (4, -3e38)):
        ckpt = load(run / f"ckpt_{step:06d}.pt")
        ckpt["model"]["norm_f.weight"][3] = value
        write(run / f"{step}.pt", ckpt)
    flags = ("--average", run / "2.pt", run / "4.pt", "--weights", "2", "-1", "--out", run / "m.pt")
    refused("merge", *flags, words=("m.pt", "norm_f.weight", "finite"))
    assert not (run / "m.pt").exists()


def test_a_validation_loss_that_is_not_finite_is_not_saved(refused, world, tmp_path, monkeypatch):
    monkeypatch.setattr("train_pretrain.validation_loss", lambda *a: NAN)
    flags = "--preset tiny --block-size 32 --batch-tokens 64 --steps 3".split()
    words = ("validation loss is nan", "step 1")
    refused("train_pretrain", "--data", world, *flags, "--eval-every", 1, "--out", tmp_path / "run", words=words)
    assert not list((tmp_path / "run").glob("*.pt"))


def test_logs_hold_no_nan(ok, world, base, tmp_path, monkeypatch):
    """A metric of a fork that is NaN is null in the log, which stays JSON."""
    monkeypatch.setattr("train_sft.step_with_clip", lambda *a: (step_with_clip(*a), NAN)[1])
    ok("train_sft", "--init", base, "--data", world, "--out", tmp_path / "run", *SFT)
    text = (tmp_path / "run/metrics.jsonl").read_text()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [r["train/grad_norm"] for r in rows] == [None] * 4 and rows == read_jsonl(tmp_path / "run/metrics.jsonl")


# ---------------------------------------------------------------------------------------------------------- hand-made
def broken(ckpt: dict, *path, value) -> dict:
    ckpt = copy.deepcopy(ckpt)
    inner = ckpt
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return ckpt


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("step",), "2", "step must be"),
        (("step",), True, "step must be"),
        (("step",), -1, "step must be"),
        (("tokens",), 10**600, "tokens must be"),
        (("stage",), 5, "stage must be"),
        (("format",), "1", "format"),
        (("format",), 10**600, "format"),
        (("model",), [1, 2], "model must be"),
        (("model", "norm_f.weight"), "ones", "norm_f.weight"),
        (("model", 5), torch.ones(2), "5"),
        (("model", "wte.weight"), torch.ones(320, 32).long(), "weights are floats"),
        (("model", "wte.weight"), torch.ones(320, 32, dtype=torch.bool), "weights are floats"),
        (("model", "wte.weight"), torch.ones(320, 32, dtype=torch.complex64), "weights are floats"),
        (("model", "wte.weight"), torch.ones(1).expand(10**7, 10**5), "no plain tensor"),
        (("model", "wte.weight"), torch.ones(320, 32).to_sparse(), "no plain tensor"),
        (("model_config",), "world", "model_config must be"),
        (("tokenizer",), None, "tokenizer must be"),
        (("optimizer",), "AdamW", "optimizer must be"),
        (("parent",), "base.pt", "parent must be"),
        (("parent", "hash"), 5, "its parent's hash"),
        (("config",), [], "config must be"),
        (("data",), 7, "data must be"),
        (("format",), torch.ones(2), "format"),
        (("versions", "torch"), torch.ones(2), "is no JSON"),
        (("config", "earlier"), [{"gpu": b"one"}], "config is no JSON"),
        (("data", (1, 2)), 3, "data is no JSON"),
    ],
)
def test_kinds_are_checked_before_anything_is_built(run, tmp_path, path, value, word):
    write(tmp_path / "made.pt", broken(load(run / "ckpt_000002.pt"), *path, value=value))
    with pytest.raises(UserError, match=word) as error:
        load_checkpoint(tmp_path / "made.pt")
    assert "made.pt" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


BAD_SETTINGS = {
    "n_layer": [0, 10**9, 2**20, "2", 2.0, True],
    "n_head": [0, -2, 3],
    "n_kv_head": [-1],
    "n_embd": [2**19, None],
    "n_hidden": [10**12, 40],
    "vocab_size": [0],
    "vocab_multiple": [0],
    "block_size": [10**12, -5],
    "rope_theta": [0.0, NAN],
    "norm_eps": [INF, "1"],
    "init_std": [-1.0],
    "tied": [1, "yes"],
    "qk_norm": [None, True],
    "width": [3],
}


@pytest.mark.parametrize(("field", "value"), [(name, value) for name in BAD_SETTINGS for value in BAD_SETTINGS[name]])
def test_model_configs_that_are_no_models(run, field, value):
    """Refused at once: nothing of that size is built, and no layer is counted to a billion."""
    ckpt = load(run / "ckpt_000002.pt")
    with pytest.raises(UserError, match="f.pt: its weights do not fit its model_config") as error:
        load_model(broken(ckpt, "model_config", field, value=value), "f.pt")
    assert "\n" not in str(error.value)


def test_halves_of_a_tied_model_that_differ_are_refused(refused, run, world):
    ckpt = load(run / "ckpt_000002.pt")
    ckpt["model"]["lm_head.weight"] = ckpt["model"]["lm_head.weight"].clone()
    ckpt["model"]["lm_head.weight"][7, 7] += 1e-3
    write(run / "halves.pt", ckpt)
    refused("evaluate", "--ckpt", run / "halves.pt", "--data", world, "--tasks", "gsm", words=("tied", "differ"))
    ckpt["model_config"]["tied"] = False
    load_model(ckpt, "f.pt")  # untied they may


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("state",), {}),  # without its moments AdamW would begin anew
        (("param_groups",), []),
        (("state", 3), {}),
        (("state", 3, "exp_avg"), torch.ones(5)),
        (("state", 3, "exp_avg_sq"), None),
        (("state", 3, "step"), "2"),
        (("state", 3, "exp_avg"), torch.tensor(NAN)),
        (("state", 99), {"step": torch.tensor(1.0)}),
        (("param_groups", 0, "params"), [0, 1]),
        (("param_groups", 0), 5),
        (("param_groups",), [torch.tensor(1.0)]),
    ],
)
def test_optimizers_of_other_weights_are_refused(refused, run, path, value):
    ckpt = load(run / "ckpt_000002.pt")
    optimizer = broken(ckpt["optimizer"], *path, value=value)
    write(run / "ckpt_000002.pt", ckpt | {"optimizer": optimizer})
    (run / "ckpt_000004.pt").unlink()
    refused("train_sft", "--resume", run / "ckpt_000002.pt", words=("ckpt_000002.pt", "optimizer state"))


def test_optimizer_of_one_side_of_a_merge_is_refused(refused, ok, world, base, tmp_path):
    flags = "--prompts-per-step 2 --group-size 2 --max-new-tokens 4 --batch-size 2 --steps 4 --save-at 2".split()
    ok("merge", "--init", base, "--data", world, "--out", tmp_path / "run", *flags)
    ckpt = load(tmp_path / "run/ckpt_000002.pt")
    for optimizer in ({"rl": ckpt["optimizer"]["rl"]}, {"sft": ckpt["optimizer"]["sft"]}, ckpt["optimizer"]["rl"]):
        write(tmp_path / "one.pt", ckpt | {"optimizer": optimizer})
        refused("merge", "--resume", tmp_path / "one.pt", words=("one.pt", "optimizer state"))


def test_restore_keeps_the_flags_and_takes_the_moments():
    model = tiny_model(1)
    old = make_optimizer(model, settings(train_sft, lr=0.5, weight_decay=0.3, betas=[0.5, 0.6]))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    step_with_clip(model, old, 1.0)
    new = make_optimizer(model, settings(train_sft, lr=0.1, weight_decay=0.2, betas=[0.9, 0.99]))
    restore_optimizer(new, copy.deepcopy(old.state_dict()), "f.pt")
    assert_same(new.state_dict()["state"], old.state_dict()["state"])
    assert [g["weight_decay"] for g in new.param_groups] == [0.2, 0.0]
    assert {g["betas"] for g in new.param_groups} == {(0.9, 0.99)} and new.param_groups[0]["lr"] == 0.1


# ------------------------------------------------------------------------------------------------------------- shapes
@pytest.mark.parametrize(("preset", "heads"), [("world", 8), ("gpt2", 6), ("world-4x", 16)])
def test_another_head_count_does_not_group_heads(preset, heads):
    with torch.device("meta"):
        model = build_model(preset, n_head=heads)
        grouped = build_model(preset, n_head=heads, n_kv_head=2)
    assert model.config.n_kv_head == heads and grouped.config.n_kv_head == 2


def test_a_grouped_preset_stays_grouped(monkeypatch):
    monkeypatch.setitem(__import__("model").PRESETS, "grouped", GPTConfig(n_head=4, n_kv_head=2))
    assert build_model("grouped", n_head=8).config.n_kv_head == 2


def test_a_checkpoint_of_another_writer_still_loads(tmp_path):
    """bfloat16 weights, transposed memory, a counter: of forks, and good."""
    ckpt = load(write_ckpt(tmp_path / "a.pt", tiny_model(1)))
    ckpt["model"] = {k: v.bfloat16() for k, v in ckpt["model"].items()} | {"seen": torch.tensor([3])}
    ckpt["model"]["norm_f.weight"] = torch.ones(32, 2).T[0]
    assert load_checkpoint(write(tmp_path / "b.pt", ckpt))["model"]["seen"].tolist() == [3]
