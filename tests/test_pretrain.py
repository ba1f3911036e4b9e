"""Pre-training: the loss by hand, checkpoints along the way, held-out loss.   pytest -q tests/test_pretrain.py"""

import sysconfig

import pytest
import torch
from tiny import assert_same, load, read_jsonl, tiny_model

import train_pretrain
from data.tokens import document_starts
from model import GPT
from train_pretrain import pretrain_loss

TINY = "--preset tiny --block-size 32 --batch-tokens 128 --steps 12 --lr 1e-2 --eval-tokens 256".split()


def test_loss_and_z_loss_by_plain_logits():
    model = tiny_model(1)
    batch = torch.randint(257, (3, 10))
    loss, nll = pretrain_loss(model, batch, denom=54, z_loss=0.01)  # half of a step of 54 target tokens
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    z = model(batch[:, :-1])
    plain = -z.log_softmax(-1).gather(2, batch[:, 1:, None]).sum() / 54
    whole = plain + 0.01 * z.logsumexp(-1).square().sum() / 54
    whole.backward()
    assert nll.item() == pytest.approx(plain.item(), rel=1e-5) and loss.item() == pytest.approx(whole.item(), rel=1e-5)
    assert loss.item() > nll.item() + 0.05
    for got, p in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad, atol=1e-6, rtol=1e-3)


def test_document_starts_by_hand():
    idx = torch.tensor([[5, 9, 1, 2, 9, 9, 3], [9, 1, 2, 3, 4, 5, 6]])  # 9 is end-of-text
    starts = document_starts(idx, 9)
    assert starts.dtype == torch.int32 and starts.tolist() == [[0, 1, 1, 1, 4, 5, 5], [0] * 7]


def test_document_mask_is_the_documents_alone():
    """Two documents in a window: their loss is that of each by itself; without the mask it is not."""
    model, eot = tiny_model(2), 256
    one = torch.cat((torch.tensor([eot]), torch.randint(256, (7,))))
    two = torch.cat((torch.tensor([eot]), torch.randint(256, (12,))))
    window = torch.cat((one, two))[None]
    joined = pretrain_loss(model, window, 1, 0.0, eot)[1].item()
    apart = (
        pretrain_loss(model, torch.cat((one, two[:1]))[None], 1, 0.0)[1] + pretrain_loss(model, two[None], 1, 0.0)[1]
    )
    assert joined == pytest.approx(apart.item(), rel=1e-5)  # rotary positions count from the window's start: no matter
    assert abs(pretrain_loss(model, window, 1, 0.0)[1].item() - joined) > 1e-2


def test_run_learns_and_saves_log_spaced(ok, world, tmp_path):
    out = tmp_path / "run"
    shown = ok("train_pretrain", "--data", world, "--out", out, *TINY).out
    assert sorted(p.name for p in out.glob("*.pt")) == [f"ckpt_{s:06d}.pt" for s in (1, 2, 3, 4, 6, 8, 10, 12)]
    assert (
        "| 12 steps, checkpoints at 1 2 3 4 6 8 10 12\n" in shown
    )  # 12 and its halves, and a sixth of it: said before it starts
    rows = read_jsonl(out / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, 13)) and [r["train/tokens"] for r in rows] == list(
        range(128, 1537, 128)
    )
    assert rows[0]["train/loss"] == pytest.approx(5.55, abs=0.1)  # ln 257: a fresh model knows nothing
    assert rows[-1]["train/loss"] < 4.2 and rows[-1]["eval/loss"] < rows[0]["eval/loss"] - 1
    assert {"train/grad_norm", "train/lr", "perf/tok_per_sec", "perf/step_ms"} <= rows[0].keys()
    ckpt = load(out / "ckpt_000006.pt")
    assert ckpt["tokens"] == 768 and ckpt["parent"] is None and ckpt["model_config"]["block_size"] == 32
    assert ckpt["model_config"]["vocab_size"] == 257 and ckpt["tokenizer"]["name"] == "bytes"


def test_micro_batches_change_memory_only(ok, world, tmp_path):
    losses = []
    for size in (1, 3, 8):
        out = tmp_path / str(size)
        ok("train_pretrain", "--data", world, "--out", out, *TINY, "--micro-batch-size", size, "--z-loss", "1e-3")
        losses.append([r["train/loss"] for r in read_jsonl(out / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[2], rel=2e-3) and losses[1] == pytest.approx(losses[2], rel=2e-3)
    assert losses[0][0] == pytest.approx(losses[2][0], rel=1e-6)


def test_save_lists(ok, world, tmp_path):
    """Steps, every N, or tokens (128 a step; the nearest step); the final step always."""
    for flags, steps in (
        (["--save-at", "2", "5"], [2, 5, 12]),
        (["--save-every", "5"], [5, 10, 12]),
        (["--save-tokens", "250", "1e3", "1536"], [2, 8, 12]),
    ):
        out = tmp_path / flags[0]
        ok("train_pretrain", "--data", world, "--out", out, *TINY, *flags)
        assert sorted(out.glob("ckpt_*.pt")) == [out / f"ckpt_{s:06d}.pt" for s in steps], flags


def test_seed_reaches_weights_and_data(ok, world, tmp_path):
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ok("train_pretrain", "--data", world, "--out", tmp_path / name, *TINY, "--steps", "2", "--seed", seed)
        runs[name] = load(tmp_path / name / "ckpt_000002.pt")
    assert_same(runs["a"]["model"], runs["b"]["model"])
    assert not torch.equal(runs["a"]["model"]["wte.weight"], runs["c"]["model"]["wte.weight"])


def test_mix_is_chosen_by_name(ok, refused, world, tmp_path):
    flags = ("--data", world, *TINY, "--steps", "2")
    ok("train_pretrain", *flags, "--out", tmp_path / "a")
    ok("train_pretrain", *flags, "--out", tmp_path / "b", "--mix", "math-heavy")
    a, b = (read_jsonl(tmp_path / run / "metrics.jsonl")[1]["train/loss"] for run in "ab")
    assert a != b
    refused("train_pretrain", *flags, "--out", tmp_path / "c", "--mix", "poems", words=("--mix poems", "math-heavy"))


def test_batch_smaller_than_a_window(refused, world, tmp_path):
    flags = ("--data", world, "--out", tmp_path / "a", "--preset", "tiny", "--block-size", "64", "--batch-tokens", "63")
    refused("train_pretrain", *flags, words=("--batch-tokens 63", "64"))


def test_compile_is_asked_for(ok, world, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(GPT, "compile_blocks", lambda model: compiled.append(len(model.blocks)))
    for flags in ([], ["--compile"]):
        ok("train_pretrain", "--data", world, "--out", tmp_path / f"run{len(flags)}", *TINY, *flags, "--steps", "1")
    assert compiled == [2]


@pytest.mark.parametrize("lacks", ["compiler", "headers"])
def test_compile_without_a_compiler(refused, world, tmp_path, monkeypatch, lacks):
    monkeypatch.setenv("CXX", "no-such-c++" if lacks == "compiler" else "python3")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    word = "no-such-c++ was not found" if lacks == "compiler" else "Python.h was not found"
    refused("train_pretrain", "--data", world, "--out", tmp_path / "a", *TINY, "--compile", words=("--compile", word))


def test_non_finite_loss_stops_and_saves_nothing(refused, world, tmp_path, monkeypatch):
    """The loss turns to NaN at step 5: checkpoints 2 and 4 stay, whole, and none is written after."""
    real, calls = train_pretrain.pretrain_loss, []

    def broken(*args):
        calls.append(1)
        loss, nll = real(*args)
        return (loss, nll * float("nan")) if len(calls) == 5 else (loss, nll)

    monkeypatch.setattr(train_pretrain, "pretrain_loss", broken)
    monkeypatch.setattr(train_pretrain, "validation_loss", lambda *a: 0.0)
    out = tmp_path / "run"
    line = refused("train_pretrain", "--data", world, "--out", out, *TINY, "--save-every", "2", words=("step 5", "nan"))
    assert "last good checkpoint" in line and sorted(p.name for p in out.glob("*.pt")) == [
        "ckpt_000002.pt",
        "ckpt_000004.pt",
    ]
    assert all(v.isfinite().all() for v in load(out / "ckpt_000004.pt")["model"].values())


def test_a_horizon_beyond_the_end_is_the_beginning_of_the_longer_run(ok, refused, world, tmp_path):
    """12 steps of a schedule of 40 are the first 12 of a run of 40, resumed or not: warm-up, rates and weights."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    ok("train_pretrain", "--data", world, *TINY, "--steps", 40, "--save-at", 12, "--out", whole)
    ok("train_pretrain", "--data", world, *TINY, "--horizon", 40, "--save-at", 5, "--out", part)
    first = load(whole / "ckpt_000012.pt")
    for key in ("model", "optimizer"):
        assert_same(load(part / "ckpt_000012.pt")[key], first[key])
    ok("train_pretrain", "--resume", part / "ckpt_000005.pt", "--out", tmp_path / "again")
    assert_same(load(tmp_path / "again/ckpt_000012.pt")["model"], first["model"])
    rates = [row["train/lr"] for row in read_jsonl(part / "metrics.jsonl")]
    assert rates == [row["train/lr"] for row in read_jsonl(whole / "metrics.jsonl")][:12] and rates[3] == 1e-2
    words = ("--horizon 80", "began with 40")
    refused("train_pretrain", "--resume", part / "ckpt_000005.pt", "--horizon", 80, words=words)
    refused("train_pretrain", "--data", world, *TINY, "--horizon", 11, words=("--horizon 11", "step 12"))


def test_without_a_horizon_it_is_the_last_step(ok, world, tmp_path):
    for name, flags in (("plain", []), ("named", ["--horizon", 12])):
        ok("train_pretrain", "--data", world, *TINY, *flags, "--out", tmp_path / name)
    a, b = (load(tmp_path / name / "ckpt_000012.pt") for name in ("plain", "named"))
    assert_same(a["model"], b["model"])
    assert read_jsonl(tmp_path / "plain/metrics.jsonl")[-1]["train/lr"] < 2e-3  # a tenth of the peak is 1e-3
