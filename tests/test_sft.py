"""SFT: response-only loss by hand, which examples are trained on, runs.   pytest -q tests/test_sft.py"""

import json

import pytest
import torch
from tiny import BYTES, EOT, load, read_jsonl, settings, tiny_model

import train_sft
from common import Device
from data.math_qa import load_questions, template_for
from train_sft import load_examples, sft_gradient, sft_loss

CPU = Device(torch.device("cpu"), torch.float32)
EXAMPLES = [([EOT, 1, 2], [0, 0, EOT]), ([EOT], [5, EOT]), ([EOT, 9, 9, 9], [EOT]), ([EOT, 3], [7, 0, 8, 4, EOT])]


def gradient(model):
    grads = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    return grads


def by_plain_logits(model, denom):
    """-sum of the targets' log-probs over denom, row by row: the prompt's tokens are read, never scored."""
    total = 0.0
    for prompt, target in EXAMPLES:
        logp = model(torch.tensor([prompt + target]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        loss = -logp[range(len(target)), target].sum() / denom
        loss.backward()
        total += loss.item()
    return total, gradient(model)


def test_loss_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, 0.0], [-3.0, -9.0, -9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert sft_loss(logprobs, mask, 3).item() == pytest.approx(2.0)
    assert sft_loss(logprobs, mask, 1.0).item() == pytest.approx(6.0)


@pytest.mark.parametrize(("norm", "denom"), [("token", 11), ("sum", 1)])
@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_only_the_response_is_trained_whatever_the_micro_batch(norm, denom, size):
    """End-of-text and tokens of the pad's id 0 count like any; 11 target tokens in all."""
    model = tiny_model(1)
    stats = sft_gradient(model, EXAMPLES, settings(train_sft, sft_loss_norm=norm, micro_batch_size=size), CPU)
    got = gradient(model)
    loss, want = by_plain_logits(model, denom)
    assert stats["tokens"] == 11 and stats["loss"] == pytest.approx(loss, rel=1e-5) and want.norm() > 0.1
    torch.testing.assert_close(got, want, atol=2e-6 * 11 / denom, rtol=1e-3)


def test_examples_of_plain_and_gold(world):
    questions = load_questions(world, "gsm", "train")
    plain = load_examples(BYTES, questions, template_for("gsm"), gold=False)
    gold = load_examples(BYTES, questions, template_for("gsm"), gold=True)
    assert len(questions) == len(plain) == 12 and len(gold) == 24
    prompt, target = plain[1]
    assert prompt[0] == EOT and BYTES.decode(prompt[1:]) == "Q: 1+3?\nA:"
    assert target[-1] == EOT and BYTES.decode(target[:-1]) == " 1+3=4 #### 4\n"
    assert {BYTES.decode(t[:-1]) for _, t in gold[2:4]} == {" 1+3=4 #### 4\n", " so 4 #### 4\n"}


def test_run_learns(ok, world, base, tmp_path):
    flags = "--gold --batch-size 8 --steps 30 --lr 1e-2".split()
    shown = ok("train_sft", "--init", base, "--data", world, "--out", tmp_path / "run", *flags).out
    rows = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert rows[0]["train/loss"] == pytest.approx(5.5, abs=0.3) and rows[-1]["train/loss"] < 2.5
    assert {"train/grad_norm", "train/lr", "perf/tok_per_sec", "perf/step_ms"} <= rows[0].keys()
    assert "24 examples of 12 gsm questions" in shown and "10.0 epochs" in shown
    assert load(tmp_path / "run/ckpt_000030.pt")["stage"] == "train_sft"


def test_epochs_set_the_steps(ok, world, base, tmp_path):
    """3 epochs of 12 examples, 5 a step: 7 steps."""
    flags = ("--init", base, "--data", world, "--out", tmp_path / "run", "--epochs", "3", "--batch-size", "5")
    ok("train_sft", *flags)
    saved = sorted(p.name for p in (tmp_path / "run").glob("*.pt"))
    assert saved == [f"ckpt_{s:06d}.pt" for s in (2, 4, 6, 7)]  # every sixth of the steps, and the last
    assert len(read_jsonl(tmp_path / "run/metrics.jsonl")) == 7


@pytest.mark.parametrize("flags", [["--warmup-steps", "1"], ["--warmup-steps", "0"]])
def test_epochs_keep_the_given_warmup(ok, world, base, tmp_path, flags):
    given = ("--epochs", "10", "--batch-size", "5", "--n-questions", "10")
    ok("train_sft", "--init", base, "--data", world, "--out", tmp_path / "run", *given, *flags)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["steps"] == 20 and config["warmup_steps"] == int(flags[1])


def test_preset_and_its_override(ok, world, base, tmp_path):
    flags = ("--preset", "paper", "--steps", "1", "--batch-size", "2", "--task", "gsm", "--template", "world")
    ok("train_sft", "--init", base, "--data", world, "--out", tmp_path / "run", *flags)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["lr"], config["sft_loss_norm"], config["steps"], config["batch_size"]) == (4e-5, "sum", 1, 2)


def test_non_finite_loss_names_the_step(refused, world, base, tmp_path, monkeypatch):
    real, calls = train_sft.sft_gradient, []

    def broken(*args):
        calls.append(1)
        return real(*args) | ({"loss": float("inf")} if len(calls) == 3 else {})

    monkeypatch.setattr(train_sft, "sft_gradient", broken)
    flags = ("--init", base, "--data", world, "--batch-size", "2", "--steps", "4", "--save-every", "2")
    refused("train_sft", *flags, "--out", tmp_path / "run", words=("step 3", "inf"))
    assert [p.name for p in (tmp_path / "run").glob("*.pt")] == ["ckpt_000002.pt"]
