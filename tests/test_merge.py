"""Merging finished checkpoints; parallel averaging by hand.   pytest -q tests/test_merge.py"""

import pytest
import torch
from test_rl import reinforce
from tiny import BYTES, EOT, assert_same, load, read_jsonl, settings, tiny_model, write_ckpt

import merge
from common import Device, load_checkpoint
from data.checkpoints import parent_of, weights_hash
from data.math_qa import load_questions, template_for
from train_rl import rollout
from train_sft import load_examples, sft_gradient

CPU = Device(torch.device("cpu"), torch.float32)
PARALLEL = (
    "--prompts-per-step 3 --group-size 4 --max-new-tokens 12 --batch-size 5 --lr 0.002 --sft-lr 0.001 "
    "--weight-decay 0 --grad-clip 0.5 --warmup-steps 0"
).split()


@pytest.fixture
def family(tmp_path):
    """Three children of one parent, of another parent, and of another shape."""
    parent = tiny_model(1)
    origin = {
        "file": "p.pt",
        "stage": "train_pretrain",
        "step": 3,
        "tokens": 9,
        "hash": weights_hash(parent.state_dict()),
    }
    paths = [write_ckpt(tmp_path / f"{i}.pt", tiny_model(10 + i), parent=origin, step=4 + i) for i in range(3)]
    stranger = write_ckpt(tmp_path / "stranger.pt", tiny_model(5), parent=origin | {"hash": "0" * 64})
    other = write_ckpt(tmp_path / "other.pt", tiny_model(5, n_hidden=40), parent=origin)
    return paths, stranger, other


def test_weights_one_and_zero_give_back_a_checkpoint_bit_for_bit(ok, family, tmp_path):
    paths, _, _ = family
    for i, weights in enumerate((["1", "0"], ["0", "1"])):
        out = tmp_path / f"out{i}.pt"
        ok("merge", "--average", *paths[:2], "--weights", *weights, "--out", out)
        assert_same(load(out)["model"], load(paths[i])["model"])


def test_weighted_mean_in_float32(ok, family, tmp_path):
    paths, _, _ = family
    ok("merge", "--average", *paths, "--weights", "0.5", "0.3", "0.2", "--out", tmp_path / "a.pt")
    merged, models = load_checkpoint(tmp_path / "a.pt"), [load(p)["model"] for p in paths]
    for name, tensor in merged["model"].items():
        want = sum(w * m[name].double() for w, m in zip((0.5, 0.3, 0.2), models, strict=True))
        torch.testing.assert_close(tensor.double(), want, atol=1e-7, rtol=1e-6)
        assert tensor.dtype == torch.float32
    assert merged["stage"] == "merge" and merged["optimizer"] is None and merged["rng"] == {}
    assert (
        merged["config"]["weights"] == [0.5, 0.3, 0.2] and merged["parent"]["hash"] == load(paths[0])["parent"]["hash"]
    )
    assert [p["file"] for p in merged["parent"]["merged"]] == ["0.pt", "1.pt", "2.pt"]
    assert merged["parent"]["merged"][1] == parent_of(paths[1], load(paths[1]))
    ok("merge", "--average", *paths[:2], "--out", tmp_path / "b.pt")  # equal weights by default
    half = load(tmp_path / "b.pt")["model"]["norm_f.weight"]
    torch.testing.assert_close(half, (models[0]["norm_f.weight"] + models[1]["norm_f.weight"]) / 2)


def test_tied_weights_stay_tied_and_counters_are_not_averaged(tmp_path):
    model, parent = tiny_model(2), {"file": "p", "stage": "s", "step": 0, "tokens": 0, "hash": "1"}
    for i in range(2):
        ckpt = load(write_ckpt(tmp_path / f"{i}.pt", tiny_model(20 + i), parent=parent))
        ckpt["model"]["counter"] = torch.tensor([3 + i])
        torch.save(ckpt, tmp_path / f"{i}.pt")
    merged = merge.average_checkpoints([tmp_path / "0.pt", tmp_path / "1.pt"], [0.5, 0.5])["model"]
    assert merged.pop("counter").tolist() == [3]
    assert torch.equal(merged["wte.weight"], merged["lm_head.weight"])
    model.load_state_dict(merged)
    assert model.lm_head.weight is model.wte.weight


def test_average_refuses(refused, family, tmp_path):
    (a, b, _), stranger, other = family
    orphan = write_ckpt(tmp_path / "orphan.pt", tiny_model(5))
    foreign = write_ckpt(tmp_path / "foreign.pt", tiny_model(5), parent=load(a)["parent"], tokenizer={"name": "x"})
    out = tmp_path / "out.pt"
    refused("merge", "--average", a, stranger, "--out", out, words=("stranger.pt", "same checkpoint"))
    refused("merge", "--average", a, orphan, "--out", out, words=("orphan.pt", "same checkpoint"))
    refused("merge", "--average", a, other, "--out", out, words=("other.pt", "shape"))
    refused("merge", "--average", a, foreign, "--out", out, words=("foreign.pt", "tokenizer"))
    refused("merge", "--average", a, b, "--weights", "1", "--out", out, words=("1 --weights for 2",))
    refused("merge", "--average", a, b, "--init", a, "--out", out, words=("--average", "--init"))
    refused("merge", "--average", a, b, "--out", a, words=("0.pt", "does not exist"))
    refused("merge", "--average", a, b, "--out", tmp_path, words=("file name",))
    refused("merge", "--average", a, b, words=("--out",))
    refused("merge", "--average", a, tmp_path / "none.pt", "--out", out, words=("no such checkpoint",))
    assert not out.exists()


def test_task_arithmetic_with_the_parent_among_the_files(ok, refused, family, tmp_path):
    """-1 base + 1 A + 1 B: base plus what each learned. The base may be anywhere among the files, and have a parent."""
    (a, b, _), stranger, _ = family
    old = {"file": "old.pt", "stage": "train_pretrain", "step": 1, "tokens": 9, "hash": "5" * 64}
    base = write_ckpt(tmp_path / "p.pt", tiny_model(1), parent=old)
    models = [load(p)["model"] for p in (base, a, b)]
    want = {k: -models[0][k].double() + models[1][k].double() + models[2][k].double() for k in models[0]}
    for i, (files, weights) in enumerate([((base, a, b), (-1, 1, 1)), ((a, b, base), (1, 1, -1))]):
        out = tmp_path / f"sum{i}.pt"
        ok("merge", "--average", *files, "--weights", *weights, "--out", out)
        merged = load(out)
        for name, tensor in merged["model"].items():
            torch.testing.assert_close(tensor.double(), want[name], atol=1e-6, rtol=1e-5)
        assert merged["parent"]["hash"] == load(a)["parent"]["hash"]
        assert [p["file"] for p in merged["parent"]["merged"]] == [p.name for p in files]
    words = ("stranger.pt", "same checkpoint")
    refused("merge", "--average", base, a, stranger, "--weights", -1, 1, 1, "--out", tmp_path / "no.pt", words=words)


def test_average_refuses_flags_that_do_nothing(refused, family, tmp_path):
    for flags in (("--lr", "1"), ("--data", "data/world"), ("--device", "cpu"), ("--steps", "48")):
        words = (flags[0], "--average")
        refused("merge", "--average", *family[0][:2], *flags, "--out", tmp_path / "out.pt", words=words)


def test_one_optimizer_has_one_rate(ok, refused, world, base, tmp_path):
    """--combine sum takes no second rate: refused, before anything is written; the same one may be given."""
    flags = ("--init", base, "--data", world, "--combine", "sum", "--out", tmp_path / "run", "--steps", "1")
    words = ("--sft-lr 0.001", "--combine sum", "--lr 0.002")
    refused("merge", *flags, *PARALLEL, words=words)
    refused("merge", *flags, "--sft-lr", "0.1", words=("--sft-lr 0.1", "--lr 0.0003"))
    assert not (tmp_path / "run").exists()
    ok("merge", *flags, *PARALLEL, "--sft-lr", "0.002")


@pytest.mark.parametrize("weights", [("1", "1"), ("0", "0"), ("nan", "1")])
def test_average_weights_must_sum_to_one(refused, family, tmp_path, weights):
    paths = family[0][:2]
    refused("merge", "--average", *paths, "--weights", *weights, "--out", tmp_path / "out.pt", words=("--weights",))


def test_averaged_checkpoint_cannot_be_resumed(refused, ok, family, tmp_path):
    ok("merge", "--average", *family[0][:2], "--out", tmp_path / "a.pt")
    refused("merge", "--resume", tmp_path / "a.pt", "--out", tmp_path / "run", words=("a.pt",))


# ------------------------------------------------------------------------------------------------- parallel averaging
def test_synchronise_by_hand():
    """0.5 A + 0.3 B + 0.2 anchor becomes both sides and the anchor; with 0.25 + 0.75 none is needed."""
    a, b = tiny_model(1), tiny_model(2)
    anchor = {k: p.detach().clone() for k, p in tiny_model(3).named_parameters()}
    want = {
        k: 0.5 * p + 0.3 * q + 0.2 * anchor[k] for (k, p), q in zip(a.named_parameters(), b.parameters(), strict=True)
    }
    merge.synchronise(a, b, anchor, [0.5, 0.3])
    for side in (dict(a.named_parameters()), dict(b.named_parameters()), anchor):
        for name, p in side.items():
            torch.testing.assert_close(p.detach(), want[name].detach(), atol=1e-6, rtol=1e-6)
    assert a.lm_head.weight is a.wte.weight and b.lm_head.weight is b.wte.weight
    want = {k: 0.25 * p + 0.75 * q for (k, p), q in zip(a.named_parameters(), b.parameters(), strict=True)}
    merge.synchronise(a, b, {}, [0.25, 0.75])
    assert all(torch.equal(p, want[k]) for side in (a, b) for k, p in side.named_parameters())


@pytest.mark.parametrize(("sync_every", "steps"), [(1, 3), (2, 4)])
def test_parallel_averaging_by_hand(ok, world, tmp_path, monkeypatch, sync_every, steps):
    """Written out here with torch's AdamW: from theta one GRPO step and one SFT step, each with its own clip and
    moments, then half of each; with H = 2 both sides take two local steps between, rollouts from the RL side."""
    monkeypatch.setattr("train_rl.reward", lambda text, *_: float(sum(map(ord, text)) % 2))  # a signal at once
    init = write_ckpt(tmp_path / "ckpt_000001.pt", tiny_model(7))
    out = tmp_path / "run"
    flags = (
        "--init",
        init,
        "--data",
        world,
        "--out",
        out,
        "--steps",
        steps,
        "--stop",
        "eos",
        "--sync-every",
        sync_every,
    )
    ok("merge", *flags, *PARALLEL)

    questions = load_questions(world, "gsm", "train")
    prompts = [[EOT, *BYTES.encode_ordinary(f"Q: {q.problem}\nA:")] for q in questions]
    examples = load_examples(BYTES, questions, template_for("gsm"), gold=False)
    args = settings(merge, *PARALLEL)
    sides = [tiny_model(7), tiny_model(7)]
    optimizers = [
        torch.optim.AdamW(m.parameters(), lr=r, weight_decay=0.0) for m, r in zip(sides, (0.002, 0.001), strict=True)
    ]
    signal = 0
    for step in range(steps):
        drawn = merge.draw(12, 3, step, 0)
        batch = rollout(sides[0], BYTES, questions, prompts, drawn, step, args, CPU)
        signal += int(batch.advantages.ne(0).sum())
        flat = reinforce(sides[0], batch, [1 / float(batch.lengths.sum())] * 12)
        for p, g in zip(sides[0].parameters(), flat.split([p.numel() for p in sides[0].parameters()]), strict=True):
            p.grad = g.view_as(p).clone()
        pairs = [examples[i] for i in merge.draw(12, 5, step, 1)]
        tokens = sum(len(t) for _, t in pairs)
        for prompt, target in pairs:
            logp = sides[1](torch.tensor([prompt + target]))[0, len(prompt) - 1 : -1].log_softmax(-1)
            (-logp[range(len(target)), target].sum() / tokens).backward()
        for side, optimizer in zip(sides, optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(side.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % sync_every == 0:
            with torch.no_grad():
                for p, q in zip(*(side.parameters() for side in sides), strict=True):
                    p.copy_((p + q) / 2)
                    q.copy_(p)
    assert signal > 10  # the RL side had something to say
    got = load(out / f"ckpt_{steps:06d}.pt")
    start = load(init)["model"]
    for name, p in sides[0].state_dict().items():
        moved, want = got["model"][name] - start[name], p - start[name]
        # AdamW turns the rounding of a tiny gradient into a whole step, so moves are compared as vectors
        assert (moved - want).norm() <= 0.01 * want.norm() and want.norm() > 0.005, name
    assert set(got["optimizer"]) == {"rl", "sft"} and got["stage"] == "merge"
    row = read_jsonl(out / "metrics.jsonl")[-1]
    assert {"sft/loss", "sft/grad_norm", "train/grad_norm", "reward/mean", "reward/hits"} <= row.keys()


def test_tied_model_stays_tied(ok, world, base, tmp_path):
    ok("merge", "--init", base, "--data", world, "--out", tmp_path / "run", "--steps", 2, *PARALLEL)
    weights = load(tmp_path / "run/ckpt_000002.pt")["model"]
    assert torch.equal(weights["wte.weight"], weights["lm_head.weight"])
    assert not torch.equal(weights["wte.weight"], load(base)["model"]["wte.weight"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "4", "--sync-every", "3"], ("--sync-every 3", "--steps")),
        (["--steps", "4", "--sync-every", "2", "--save-at", "3"], ("--sync-every 2",)),
        (["--steps", "4", "--sync-every", "0"], ("--sync-every 0",)),
        (["--steps", "4", "--weights", "1"], ("1 --weights",)),
        (["--steps", "4", "--group-size", "1"], ("--group-size 1",)),
    ],
)
def test_parallel_refuses(refused, world, base, tmp_path, flags, words):
    refused("merge", "--init", base, "--data", world, "--out", tmp_path / "run", *PARALLEL, *flags, words=words)
    assert not (tmp_path / "run").exists()


def test_combine_on_one_set_of_weights(ok, refused, world, tmp_path, monkeypatch):
    """One step from the same start. Sum: AdamW's first step on the summed gradients; alternate: an SFT step, then an RL
    step whose rollouts come from the weights after it."""
    monkeypatch.setattr("train_rl.reward", lambda text, *_: float(sum(map(ord, text)) % 2))
    init = write_ckpt(tmp_path / "ckpt_000001.pt", tiny_model(7))
    questions = load_questions(world, "gsm", "train")
    prompts = [[EOT, *BYTES.encode_ordinary(f"Q: {q.problem}\nA:")] for q in questions]
    examples = load_examples(BYTES, questions, template_for("gsm"), gold=False)
    args = settings(merge, *PARALLEL, "--out", "x")
    pairs = [examples[i] for i in merge.draw(len(examples), 5, 0, 1)]
    for combine in ("sum", "alternate"):
        flags = ("--steps", "1", "--stop", "eos", "--combine", combine)
        rates = ("--sft-lr", "0.002") if combine == "sum" else ()  # there one step, of one rate
        ok("merge", "--init", init, "--data", world, "--out", tmp_path / combine, *flags, *PARALLEL, *rates)
        model = tiny_model(7)
        rl, sft = (torch.optim.AdamW(model.parameters(), lr=r, weight_decay=0.0) for r in (0.002, 0.001))
        merge.sft_gradient(model, pairs, args, CPU)
        if combine == "alternate":
            merge.step_with_clip(model, sft, 0.5)
        batch = rollout(model, BYTES, questions, prompts, merge.draw(12, 3, 0, 0), 0, args, CPU)
        merge.grpo_step(model, None, rl, batch, args, CPU)
        got, start = load(tmp_path / combine / "ckpt_000001.pt")["model"], load(init)["model"]
        for name, p in model.state_dict().items():
            assert (got[name] - p).norm() <= 0.01 * (p - start[name]).norm() and not torch.equal(p, start[name]), name
    words = ("--combine sum", "--updates-per-batch 1")
    flags = ("--combine", "sum", "--updates-per-batch", "2")
    refused("merge", "--init", init, "--data", world, "--out", tmp_path / "no", *flags, words=words)
    flags = ("--combine", "alternate", "--weights", "1", "1")
    words = ("--combine alternate", "drop --weights")
    refused("merge", "--init", init, "--data", world, "--out", tmp_path / "no", *flags, words=words)


def test_interleaved_and_curriculum_steps(ok, refused, world, tmp_path, monkeypatch):
    """Two SFT steps before the first RL step, none before the second: their batches follow each other."""
    monkeypatch.setattr("train_rl.reward", lambda text, *_: float(sum(map(ord, text)) % 2))
    drawn = []
    monkeypatch.setattr("merge.sft_gradient", lambda *a: drawn.append(a[1]) or sft_gradient(*a))
    init = write_ckpt(tmp_path / "ckpt_000001.pt", tiny_model(7))
    examples = load_examples(BYTES, load_questions(world, "gsm", "train"), template_for("gsm"), gold=False)
    flags = ("--init", init, "--data", world, "--combine", "alternate", *PARALLEL, "--sft-steps", "2")
    ok("merge", *flags, "--sft-fewer", "2", "--steps", "2", "--out", tmp_path / "curriculum")
    assert drawn == [[examples[i] for i in merge.draw(len(examples), 5, k, 1)] for k in (0, 1)]
    rows = read_jsonl(tmp_path / "curriculum/metrics.jsonl")
    assert rows[0]["sft/loss"] > 0 and rows[1]["sft/loss"] is None
    drawn.clear()
    ok("merge", *flags, "--steps", "2", "--out", tmp_path / "interleaved")
    assert drawn == [[examples[i] for i in merge.draw(len(examples), 5, k, 1)] for k in range(4)]
    refused("merge", *flags[:4], "--sft-steps", "2", "--out", tmp_path / "no", words=("--combine alternate", "drop"))


def test_summed_losses_have_weights(ok, refused, world, tmp_path, monkeypatch):
    """Without a reward RL adds nothing, so the clipped step tells SFT's weight by its norm."""
    monkeypatch.setattr("train_rl.reward", lambda text, *_: 0.0)
    init, norms = write_ckpt(tmp_path / "ckpt_000001.pt", tiny_model(7)), []
    flags = ("--init", init, "--data", world, "--combine", "sum", *PARALLEL, "--grad-clip", "0", "--steps", "1")
    for name, weights in (("one", ()), ("half", ("--weights", "1", "0.5"))):
        ok("merge", *flags, *weights, "--sft-lr", "0.002", "--out", tmp_path / name)
        norms.append(read_jsonl(tmp_path / name / "metrics.jsonl")[0]["train/grad_norm"])
    assert norms[1] == pytest.approx(norms[0] / 2, rel=1e-5)
    flags = (*flags, "--sft-lr", "0.002", "--weights", "2", "1")
    refused("merge", *flags, "--out", tmp_path / "no", words=("RL's is 1",))
