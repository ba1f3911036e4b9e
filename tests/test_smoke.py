"""The pipeline as a user runs it; every training entry resumed bit for bit.   pytest -q tests/test_smoke.py"""

import json
import math

import forked
import pytest
from tiny import assert_same, load, read_jsonl

import common
from data.checkpoints import parent_of

TRAINED = {"train/loss", "train/grad_norm", "train/lr", "perf/tok_per_sec", "perf/step_ms", "perf/peak_mem_gb"}
ROLLED = {"reward/mean", "reward/std", "reward/hits", "reward/frac_zero_std_groups", "completion/len_mean"}
ROLLED |= {"completion/frac_truncated", "completion/parse_failure", "policy/kl", "policy/clip_frac", "policy/entropy"}
ROLLED |= {"policy/ratio_max", "train/updates"}
RL = "--prompts-per-step 3 --group-size 3 --max-new-tokens 8".split()


def test_pipeline_of_subprocesses(ok, world, tmp_path):
    """pretrain -> sft -> rl -> merge -> evaluate: files, checkpoint keys, parents, metrics, samples, report."""

    def script(name, *flags):
        ended = forked.run([f"{name}.py", *flags])
        assert ended.returncode == 0 and ended.stderr == "", ended.stderr
        return ended.stdout

    data, runs = ("--data", world), {name: tmp_path / name for name in ("base", "sft", "rl", "parallel")}
    small = "--block-size 64 --batch-tokens 128 --steps 2 --eval-tokens 128".split()
    shown = script("train_pretrain", *data, *small, "--out", runs["base"])
    assert "device cpu" in shown and "step 00002/00002 | " in shown and "saved" in shown
    init = ("--init", runs["base"] / "ckpt_000002.pt", *data)
    script("train_sft", *init, "--out", runs["sft"], "--batch-size", 3, "--steps", 2)
    script("train_rl", *init, "--out", runs["rl"], *RL, "--steps", 2, "--updates-per-batch", 2, "--kl-coef", 0.01)
    script("merge", *init, "--out", runs["parallel"], *RL, "--batch-size", 3, "--steps", 2)
    finished = [runs[name] / "ckpt_000002.pt" for name in ("rl", "sft")]
    ok("merge", "--average", *finished, "--weights", 0.5, 0.5, "--out", tmp_path / "mean.pt")
    flags = "--n-samples 2 --k 1 2 --max-new-tokens 8 --limit 2 --n-shot 1".split()
    shown = script("evaluate", "--ckpt", tmp_path / "mean.pt", *data, *flags, "--out", tmp_path / "mean.json")
    assert "pass@2" in shown and "average" in shown

    stages = {"base": "train_pretrain", "sft": "train_sft", "rl": "train_rl", "parallel": "merge"}
    for name, run in runs.items():
        ckpt, rows = load(run / "ckpt_000002.pt"), read_jsonl(run / "metrics.jsonl")
        assert set(ckpt) == set(common.CHECKPOINT_KEYS) and ckpt["stage"] == stages[name] and ckpt["step"] == 2
        assert ckpt["tokens"] == 256 and json.loads((run / "config.json").read_text())["steps"] == 2
        needed = TRAINED | (ROLLED if name in ("rl", "parallel") else set())
        assert [r["step"] for r in rows] == [1, 2] and all(needed <= r.keys() for r in rows), name
        assert all(math.isfinite(v) for r in rows for v in r.values() if v is not None)
        held = [r["perf/peak_mem_gb"] for r in rows]  # the most so far; torch alone is over 0.1 GB
        assert 0.1 < held[0] <= held[1] < 4, held
        assert not [p for p in run.iterdir() if p.name.startswith(".")]
        if name != "base":
            parent = load(runs["base"] / "ckpt_000002.pt")
            assert ckpt["parent"] == parent_of("ckpt_000002.pt", parent)
    for name in ("rl", "parallel"):
        samples = read_jsonl(runs[name] / "samples.jsonl")
        assert samples and {"step", "prompt", "completion", "extracted", "gold", "reward"} <= samples[0].keys()
        assert samples[0]["prompt"].startswith("Q: ")
    rl = read_jsonl(runs["rl"] / "metrics.jsonl")
    assert [r["train/updates"] for r in rl] == [2, 4]
    assert load(tmp_path / "mean.pt")["parent"]["merged"][0]["stage"] == "train_rl"
    report = json.loads((tmp_path / "mean.json").read_text())
    assert set(report["questions"]) == {"gsm", "hard"} and set(report["benchmarks"]) == {"facts", "lastword"}
    assert report["checkpoint"]["stage"] == "merge" and 0 <= report["general_average"] <= 1
    assert (tmp_path / "mean.samples.jsonl").exists()


ENTRIES = {
    "train_pretrain": "--preset tiny --block-size 32 --batch-tokens 96 --lr 1e-2 --eval-every 1".split(),
    "train_sft": "--gold --batch-size 5 --lr 1e-2".split(),
    "train_rl": [*RL, *"--updates-per-batch 2 --kl-coef 0.1 --lr 1e-2 --micro-batch-size 2".split()],
    "merge": [*RL, *"--batch-size 5 --sync-every 2 --weights 0.3 0.5 --lr 1e-2 --sft-lr 1e-2".split()],
}


@pytest.mark.parametrize("name", ENTRIES)
def test_resume_is_bit_for_bit(ok, world, base, tmp_path, monkeypatch, name):
    """6 steps equal 2 steps, resume, 4 steps: weights, optimizer, counters, metrics. A reward that is a coin on the
    text gives RL a signal from the first step; warm-up and the schedule cross the border."""
    monkeypatch.setattr("train_rl.reward", lambda text, *_: float(sum(map(ord, text)) % 2))
    flags = ["--data", world, "--steps", "6", "--save-every", "2", "--warmup-steps", "3", *ENTRIES[name]]
    flags += [] if name == "train_pretrain" else ["--init", base]
    ok(name, *flags, "--out", tmp_path / "whole")
    ok(name, "--resume", tmp_path / "whole/ckpt_000002.pt", "--out", tmp_path / "resumed")
    a, b = (load(tmp_path / run / "ckpt_000006.pt") for run in ("whole", "resumed"))
    for key in ("model", "optimizer", "step", "tokens", "data", "parent", "tokenizer", "model_config"):
        assert_same(a[key], b[key], key)
    rows = [
        [
            {k: v for k, v in r.items() if not k.startswith("perf/")}
            for r in read_jsonl(tmp_path / run / "metrics.jsonl")
        ]
        for run in ("whole", "resumed")
    ]
    assert rows[1] == rows[0][2:] and len(rows[0]) == 6
    assert any(r["train/grad_norm"] > 0 for r in rows[1])
    start = load(tmp_path / "whole/ckpt_000002.pt")
    assert not (a["model"]["wte.weight"] == start["model"]["wte.weight"]).all()  # there was something to resume
