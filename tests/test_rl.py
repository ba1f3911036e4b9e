"""GRPO, with answers worked by hand, and a run that must learn.   pytest -q tests/test_rl.py"""

import copy
import dataclasses
import math

import pytest
import tiny
import torch
from tiny import BYTES, EOT, bigram_model, chain_table, read_jsonl, tiny_model, write_ckpt, write_jsonl, write_world

import train_rl
from common import Device, make_optimizer
from data import rl_metrics
from data.math_qa import Question, load_questions, template_for
from data.pass_at_k import sample_texts
from train_rl import (
    Batch,
    group_advantages,
    grpo_gradient,
    grpo_loss,
    grpo_step,
    loss_weights,
    micro_batches,
    rollout,
    stop_strings,
)

CPU = Device(torch.device("cpu"), torch.float32)


def settings(**changes):
    small = dict(group_size=3, max_new_tokens=8, grad_clip=0.0, lr=0.1, weight_decay=0.0, prompts_per_step=2, out="x")
    return tiny.settings(train_rl, **(small | changes))


def hand_batch(rewards=(1, 0, 0, 0, 1, 1), group_size=3, seed=0):
    """6 rows of 2 prompts; lengths 1..6; tokens hold 0, the pad's id, and end with end-of-text."""
    gen = torch.Generator().manual_seed(seed)
    prompts = [[EOT, 5, 0]] * 3 + [[EOT, 7]] * 3
    lengths = [3, 1, 4, 2, 6, 5]
    completions = [[*torch.randint(0, 256, (n - 1,), generator=gen).tolist(), EOT] for n in lengths]
    completions[2][1] = completions[5][0] = 0
    rewards = torch.tensor([float(r) for r in rewards])
    return Batch(
        prompts=prompts,
        completions=completions,
        lengths=torch.tensor(lengths),
        rewards=rewards,
        texts=[""] * 6,
        advantages=group_advantages(rewards, group_size),
        gold=[""] * 6,
        finished=torch.ones(6, dtype=torch.bool),
    )


def gradient(model):
    grads = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    return grads


# ------------------------------------------------------------------------------------------------------- advantages
def test_advantages_of_two_groups_by_hand():
    """Group (1, 0, 0): mean 1/3, std with ddof 1 sqrt(1/3). Group (1, 1, 0): mean 2/3, the same std."""
    rewards = torch.tensor([1.0, 0, 0, 1, 1, 0])
    s = math.sqrt(1 / 3) + 1e-6
    want = torch.tensor([2 / 3, -1 / 3, -1 / 3, 1 / 3, 1 / 3, -2 / 3])
    torch.testing.assert_close(group_advantages(rewards, 3), want / s, rtol=1e-6, atol=0)
    torch.testing.assert_close(group_advantages(rewards, 3, "none"), want, rtol=1e-6, atol=1e-7)
    # groups differ in mean: a batch-wide centring would give (0.5, 0.5, 0.5, -0.5, ...) here
    assert group_advantages(torch.tensor([1.0, 1, 1, 0, 0, 0]), 3).eq(0).all()
    # one group of six: mean 1/2, std sqrt(6 / 5 / 4)
    one = group_advantages(rewards, 6)
    assert one[0].item() == pytest.approx(0.5 / (math.sqrt(0.3) + 1e-6), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 0.7, 1 / 3, 1e-8])
@pytest.mark.parametrize("norm", ["std", "none"])
def test_equal_rewards_give_exactly_zero(value, norm):
    """0.1 * 7 / 7 is not 0.1 in float32: without care the rounding, over 1e-6, becomes a signal."""
    for group_size in (2, 3, 7, 16):
        assert group_advantages(torch.full((2 * group_size,), value), group_size, norm).eq(0).all()


# ------------------------------------------------------------------------------------------------------- the objective
def one_row(ratios, advantage, **changes):
    """Loss of one row with the given ratios, weight 1, and its gradient with respect to the log-probs."""
    logprobs = torch.tensor([ratios]).log().requires_grad_()
    options = dict(clip_low=0.2, clip_high=0.3, dual_clip=3.0) | changes
    mask, zeros = torch.ones(1, len(ratios)), torch.zeros(1, len(ratios))
    loss, stats = grpo_loss(logprobs, zeros, torch.tensor([advantage]), mask, torch.ones(1), **options)
    loss.backward()
    return loss.item(), logprobs.grad[0].tolist(), stats


def test_clip_by_hand():
    """A = 2: ratios above 1.3 earn 1.3 * 2 and no gradient; below 0.8 they are not clipped. A = -2: the other way."""
    loss, grad, stats = one_row([0.5, 1.0, 1.2, 1.5], 2.0)
    assert loss == pytest.approx(-2 * (0.5 + 1.0 + 1.2 + 1.3))
    assert grad == pytest.approx([-1.0, -2.0, -2.4, 0.0])
    assert (
        stats["clipped"] == 2 and stats["ratio_min"] == pytest.approx(0.5) and stats["ratio_max"] == pytest.approx(1.5)
    )
    loss, grad, _ = one_row([0.5, 1.0, 1.2, 1.5], -2.0)
    assert loss == pytest.approx(2 * (0.8 + 1.0 + 1.2 + 1.5))
    assert grad == pytest.approx([0.0, 2.0, 2.4, 3.0])


def test_dual_clip_by_hand():
    """A = -1: the push of a ratio of 5 is bounded at 3; A = 1 knows no such bound; 0 switches it off."""
    assert one_row([2.0, 5.0], -1.0)[:2] == (pytest.approx(2 + 3), pytest.approx([2.0, 0.0]))
    assert one_row([2.0, 5.0], -1.0, dual_clip=0.0)[:2] == (pytest.approx(2 + 5), pytest.approx([2.0, 5.0]))
    assert one_row([2.0, 5.0], 1.0)[0] == pytest.approx(-2.6)


def test_kl_by_hand():
    """k3 = e^d - d - 1 with d = ref - new: 0 at the start, positive on both sides, and its gradient 1 - e^d pulls the
    policy to the reference: down (loss falls with the log-prob) where it is too likely, up where it is too unlikely."""
    ref = torch.tensor([[-1.0, -1.0, -1.0]])
    logprobs = torch.tensor([[-1.0, -0.5, -1.7]], requires_grad=True)
    mask, zero = torch.ones(1, 3), torch.zeros(1)
    loss, stats = grpo_loss(
        logprobs, logprobs.detach(), zero, mask, torch.ones(1), 0.2, 0.2, 3.0, ref_logprobs=ref, kl_coef=0.1
    )
    loss.backward()
    k3 = [0.0, math.exp(-0.5) + 0.5 - 1, math.exp(0.7) - 0.7 - 1]
    assert stats["kl"] == pytest.approx(sum(k3), rel=1e-5) and loss.item() == pytest.approx(0.1 * sum(k3), rel=1e-5)
    assert logprobs.grad[0].tolist() == pytest.approx(
        [0, 0.1 * (1 - math.exp(-0.5)), 0.1 * (1 - math.exp(0.7))], abs=1e-6
    )
    assert logprobs.grad[0, 1] > 0 > logprobs.grad[0, 2]  # descent lowers the too likely, raises the too unlikely


def test_masked_positions_do_not_matter():
    """Whatever stands beyond a row's end, even values that overflow, changes nothing."""
    mask = torch.tensor([[True, True, False], [True, False, False]])
    adv, weights = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.25])
    results = []
    for junk in (0.0, 80.0):
        new = torch.where(mask, torch.tensor([[-1.0, -2.0, 0], [-0.5, 0, 0]]), junk).requires_grad_()
        old = torch.where(mask, torch.tensor([[-1.1, -1.9, 0], [-0.6, 0, 0]]), -junk)
        loss, stats = grpo_loss(new, old, adv, mask, weights, 0.2, 0.2, 3.0, ref_logprobs=old - 0.1, kl_coef=0.5)
        loss.backward()
        results.append((loss.item(), stats, new.grad[mask].tolist(), new.grad[~mask].abs().max().item()))
    assert results[0] == results[1] and results[0][3] == 0


def test_loss_norms_by_hand():
    """Rows of 1, 2 and 5 tokens, ratio 1, advantages 1, 1, -1, at most 10 tokens.
    token: -(1 + 2 - 5) / 8. sequence: -(1 + 1 - 1) / 3. constant: -(1 + 2 - 5) / 30."""
    lengths = torch.tensor([1, 2, 5])
    mask = torch.arange(5)[None] < lengths[:, None]
    logprobs = torch.randn(3, 5)
    adv = torch.tensor([1.0, 1.0, -1.0])
    for norm, want in (("token", 2 / 8), ("sequence", -1 / 3), ("constant", 2 / 30)):
        weights = loss_weights(lengths, norm, 10)
        loss, _ = grpo_loss(logprobs, logprobs, adv, mask, weights, 0.2, 0.2)
        assert loss.item() == pytest.approx(want, rel=1e-6), norm


# ------------------------------------------------------------------------------------------------------- the gradient
def reinforce(model, batch, weights, temperature=1.0):
    """Gradient of -sum_i c_i A_i sum_t log p(token), row by row with plain logits: nothing of train_rl.py."""
    model.zero_grad(set_to_none=True)
    for i, (p, c) in enumerate(zip(batch.prompts, batch.completions, strict=True)):
        logp = (model(torch.tensor([p + c]))[0, len(p) - 1 : -1] / temperature).log_softmax(-1)
        (-weights[i] * batch.advantages[i] * logp[range(len(c)), c].sum()).backward()
    return gradient(model)


@pytest.mark.parametrize(("norm", "temperature"), [("token", 1.0), ("sequence", 1.0), ("constant", 0.7)])
def test_first_update_is_reinforce(norm, temperature):
    """Ratio exactly 1, loss about 0 where lengths weigh equally, and yet the gradient is REINFORCE's."""
    model, batch = tiny_model(1), hand_batch()
    args = settings(loss_norm=norm, temperature=temperature)
    total = sum(batch.lengths.tolist())
    c = {"token": [1 / total] * 6, "sequence": [1 / 6 / n for n in batch.lengths.tolist()], "constant": [1 / 48] * 6}[
        norm
    ]
    stats = grpo_gradient(model, None, batch, list(range(6)), args, CPU)
    assert stats["ratio_min"] == stats["ratio_max"] == 1.0 and stats["clipped"] == 0
    want_loss = -sum(w * a * n for w, a, n in zip(c, batch.advantages.tolist(), batch.lengths.tolist(), strict=True))
    assert stats["loss"] == pytest.approx(want_loss, abs=1e-6)
    if norm == "sequence":
        assert abs(stats["loss"]) < 1e-6  # each group's advantages sum to 0: "loss 0" is no sign of a dead run
    got = gradient(model)
    want = reinforce(model, batch, c, temperature)
    assert want.norm() > 0.05
    torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("kl_coef", [0.0, 0.5])
def test_micro_batch_size_changes_nothing(kl_coef):
    """Sizes 1, 2, 4 and all at once, rows of unequal length, one group without signal."""
    model, batch = tiny_model(2), hand_batch(rewards=(1, 0, 0, 1, 1, 1))
    ref = copy.deepcopy(model).requires_grad_(False) if kl_coef else None
    with torch.no_grad():
        model.norm_f.weight += 0.1
    results = []
    for size in (64, 1, 2, 4):
        stats = grpo_gradient(model, ref, batch, list(range(6)), settings(micro_batch_size=size, kl_coef=kl_coef), CPU)
        results.append((stats, gradient(model)))
    for stats, grads in results[1:]:
        torch.testing.assert_close(grads, results[0][1], atol=1e-6, rtol=1e-4)
        for key in ("loss", "kl", "entropy", "tokens"):
            assert stats[key] == pytest.approx(results[0][0][key], rel=1e-4, abs=1e-6), key
    assert results[0][1].norm() > 0.05 and (results[0][0]["kl"] > 0) == bool(kl_coef)


def test_micro_batches_keep_groups_together():
    """By their longest completion (4 and 6 tokens), rows of a prompt side by side and short ones first; every row once,
    whatever the size."""
    batch = hand_batch()
    assert micro_batches(batch, list(range(6)), 64) == [[1, 0, 2, 3, 5, 4]]
    assert micro_batches(batch, [5, 3, 4, 2, 0, 1], 3) == [[1, 0, 2], [3, 5, 4]]
    assert micro_batches(batch, list(range(6)), 4) == [[1, 0, 2, 3], [5, 4]]


def test_rows_without_signal_count_in_the_denominator():
    """With no KL the group of equal rewards is not computed; its tokens still are in the loss's denominator."""
    model, batch = tiny_model(2), hand_batch(rewards=(1, 0, 0, 1, 1, 1))
    grpo_gradient(model, None, batch, list(range(6)), settings(), CPU)
    got = gradient(model)
    torch.testing.assert_close(got, reinforce(model, batch, [1 / 21] * 6), atol=2e-6, rtol=1e-3)


def test_end_of_text_is_trained():
    """A completion that is end-of-text alone has a gradient; so have tokens whose id is the pad's."""
    model = tiny_model(4)
    for completion in ([EOT], [0], [0, 0, EOT]):
        batch = hand_batch()
        batch.completions[0], batch.lengths[0] = completion, len(completion)
        batch.advantages = torch.tensor([1.0, 0, 0, 0, 0, 0])
        stats = grpo_gradient(model, None, batch, list(range(6)), settings(), CPU)
        got = gradient(model)
        assert stats["tokens"] == len(completion) and got.norm() > 0.01
        want = reinforce(model, batch, [1 / float(batch.lengths.sum())] * 6)
        torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-3)


def test_kl_is_zero_at_the_start_and_grows_when_the_policy_moves():
    model, batch = tiny_model(5), hand_batch()
    ref = copy.deepcopy(model).requires_grad_(False)
    stats = grpo_gradient(model, ref, batch, list(range(6)), settings(kl_coef=1.0), CPU)
    assert stats["kl"] == 0.0
    with torch.no_grad():
        model.norm_f.weight += 0.1
    gradient(model)
    assert grpo_gradient(model, ref, batch, list(range(6)), settings(kl_coef=1.0), CPU)["kl"] > 1e-3
    assert all(p.grad is None for p in ref.parameters())


def test_updates_per_batch():
    """Two updates: the first prompt's rows, then the second's under the moved policy, with the log-probs of before as
    old ones. Worked out here with plain logits and AdamW."""
    args = settings(updates_per_batch=2, dual_clip=0.0, micro_batch_size=2, lr=0.01)
    model, batch = tiny_model(6), hand_batch()
    plain = copy.deepcopy(model)
    stats = grpo_step(model, None, make_optimizer(model, args), batch, args, CPU)

    def logprobs(i):
        p, c = batch.prompts[i], batch.completions[i]
        return plain(torch.tensor([p + c]))[0, len(p) - 1 : -1].log_softmax(-1)[range(len(c)), c]

    old = [logprobs(i).detach() for i in range(6)]
    optimizer, ratios = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.0), []
    for rows in ((0, 1, 2), (3, 4, 5)):
        tokens = sum(len(batch.completions[i]) for i in rows)
        for i in rows:
            ratio = (logprobs(i) - old[i]).exp()
            ratios += ratio.tolist()
            a = batch.advantages[i]
            (-torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).sum() / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert stats["policy/ratio_max"] == pytest.approx(max(ratios), rel=1e-4) and max(ratios) > 1.001
    assert stats["policy/kl"] is None  # no reference is kept
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ratios_of_a_policy_that_has_not_moved_are_one(dtype):
    """Of every update of a batch: old log-probs come from the code that computes the new ones."""
    args = settings(updates_per_batch=2, lr=0.0)
    model, batch = tiny_model(6), hand_batch()
    stats = grpo_step(model, None, make_optimizer(model, args), batch, args, Device(torch.device("cpu"), dtype))
    assert stats["policy/ratio_min"] == stats["policy/ratio_max"] == 1.0


def test_a_batch_without_signal_leaves_the_weights():
    args = settings()
    model, batch = tiny_model(7), hand_batch(rewards=[0] * 6)
    before = copy.deepcopy(model.state_dict())
    stats = grpo_step(model, None, make_optimizer(model, args), batch, args, CPU)
    policy = {name: value for name, value in stats.items() if name.startswith("policy/")}
    assert len(policy) == 5 and set(policy.values()) == {None}  # nothing was measured
    assert stats["train/grad_norm"] == 0 and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# ------------------------------------------------------------------------------------------------------- rollouts
def test_rollout_scores_and_centres(world):
    """A chain that answers 13 to everything: questions with that answer are right, end-of-text is in the completion."""
    questions = load_questions(world, "gsm", "train")
    prompts = [[EOT, *BYTES.encode_ordinary(f"Q: {q.problem}\nA:")] for q in questions]
    model = bigram_model(chain_table("\\boxed{13}", ":"))
    at = [i for i, q in enumerate(questions) if q.answer == "13"] + [0, 1]
    args = settings(max_new_tokens=16)
    batch = rollout(model, BYTES, questions, prompts, at, 0, args, CPU)
    assert len(at) == 3 and batch.texts == ["\\boxed{13}"] * 9 and batch.rewards.tolist() == [1.0] * 3 + [0.0] * 6
    assert batch.prompts[3] == batch.prompts[5] == prompts[0] and batch.advantages.eq(0).all() and batch.finished.all()
    assert all(c[-1] == EOT for c in batch.completions) and batch.lengths.eq(11).all()
    cut = rollout(model, BYTES, questions, prompts, at, 0, settings(max_new_tokens=10), CPU)
    assert not cut.finished.any() and cut.rewards[:3].eq(1).all()  # truncated, yet right: \boxed{13} was whole


def test_hits_count_right_answers_under_a_shaped_reward(world, monkeypatch):
    """A fork gives 0.3 for any text, or 2 for a right one: the sum of rewards is no count of right answers."""
    batch = hand_batch()
    for rewards in (batch.rewards, 0.3 + batch.rewards, 2 * batch.rewards, -1 + batch.rewards):
        shaped = dataclasses.replace(batch, rewards=rewards, texts=["#### 5", "#### 6", "no", " #### 5", "", "5"])
        shaped.gold = ["5"] * 6
        assert rl_metrics.rollout_metrics(shaped, 3)["reward/hits"] == 2


def test_the_marker_of_the_task_decides_the_reward(monkeypatch):
    """13 behind a `####`: right of a task with that marker, no answer of one with boxes."""

    def sampled(*args, **settings):
        found = sample_texts(*args, **settings)
        return [(rows, ended, ["#### 13"] * 3, logprobs) for rows, ended, _, logprobs in found]

    monkeypatch.setattr(train_rl, "sample_texts", sampled)
    questions = [Question("q", "?", [], "13", "")]
    for task, right, stated in (("gsm8k", 1, "13"), ("math", 0, None)):
        batch = rollout(tiny_model(8), BYTES, questions, [[EOT, 1]], [0], 0, settings(task=task), CPU)
        metrics, [row] = rl_metrics.rollout_metrics(batch, 3), rl_metrics.samples_to_read(batch, 3, BYTES)
        assert batch.rewards.tolist() == [right] * 3 and metrics["reward/hits"] == 3 * right
        assert metrics["completion/parse_failure"] == 1 - right and row["extracted"] == stated


def test_rollouts_of_two_steps_differ(world):
    questions = load_questions(world, "gsm", "train")
    prompts = [[EOT, 1, 2]] * len(questions)
    model, args = tiny_model(8, scale=1.0), settings()
    draws = [rollout(model, BYTES, questions, prompts, [0, 1], step, args, CPU).completions for step in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len({tuple(c) for c in draws[0] + draws[2]}) == 12


def test_a_question_drawn_twice_gets_other_samples(world):
    questions = load_questions(world, "gsm", "train")
    batch = rollout(
        tiny_model(8, scale=1.0), BYTES, questions, [[EOT, 1, 2]] * len(questions), [1, 1], 0, settings(), CPU
    )
    assert len({tuple(c) for c in batch.completions}) == len(batch.completions) == 6


def test_prompts_per_batch_changes_memory_only(world):
    questions = load_questions(world, "gsm", "train")
    prompts = [[EOT, *range(1, 2 + 7 * (i % 4))] for i in range(len(questions))]  # of four lengths
    drawn, found = [3, 0, 2, 1, 3], []
    for n in (1, 2, 5):
        args = settings(max_new_tokens=20, prompts_per_batch=n)
        found.append(rollout(tiny_model(8, scale=1.0), BYTES, questions, prompts, drawn, 4, args, CPU))
    for batch in found[:2]:
        assert batch.completions == found[2].completions and batch.prompts == found[2].prompts
        assert torch.equal(batch.lengths, found[2].lengths) and torch.equal(batch.finished, found[2].finished)


@pytest.mark.parametrize("stop", ["template", "eos"])
def test_rollouts_end_at_the_stop_string(stop, world):
    """A model that answers, breaks the line and runs on: with the template's stop it ends with the line, and that last
    token is in the completion; without, it runs to the limit and the run-on shares the answer's reward."""
    questions = load_questions(world, "gsm", "train")
    prompts = [[EOT, *BYTES.encode_ordinary(f"Q: {q.problem}\nA:")] for q in questions]
    table = chain_table("\\boxed{13}", ":")
    table[ord("}"), ord("\n")], table[ord("\n"), ord("Q")], table[ord("Q"), ord("Q")] = 90.0, 60.0, 60.0
    args = settings(max_new_tokens=16, stop=stop)
    stops = stop_strings(args, BYTES, template_for("gsm"))
    batch = rollout(bigram_model(table), BYTES, questions, prompts, [0], 0, args, CPU, stops)
    assert batch.texts[0] == ("\\boxed{13}" if stop == "template" else "\\boxed{13}\nQQQQQ")  # cut, as evaluation does
    assert bool(batch.finished.all()) == (stop == "template") and int(batch.lengths[0]) == len(batch.completions[0])


def test_a_batch_of_one_question(tmp_path, ok, world, base):
    flags = "--steps 1 --prompts-per-step 1 --group-size 2 --max-new-tokens 4".split()
    ok("train_rl", "--init", base, "--data", world, "--out", tmp_path / "run", *flags)
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 1


def test_rl_learns(tmp_path, ok):
    """From a model that answers 1, 2 or 3 alike, RL on questions whose answer is 2 must find it, by the command."""
    data = write_world(tmp_path / "world")
    rows = [
        {"problem": f"{i}?", "generated_solution": "#### 2", "expected_answer": "2", "problem_source": "gsm"}
        for i in range(8)
    ]
    write_jsonl(data / "train.jsonl", rows)
    table = chain_table("\\boxed{2}", ":")
    for digit in b"123":
        table[ord("{"), digit], table[digit, ord("}")] = 5.0, 30.0
    init = write_ckpt(tmp_path / "ckpt_000001.pt", bigram_model(table))
    flags = "--steps 12 --prompts-per-step 4 --group-size 8 --max-new-tokens 14 --lr 0.02 --warmup-steps 0".split()
    ok("train_rl", "--init", init, "--data", data, "--out", tmp_path / "rl", *flags)
    curve = [row["reward/mean"] for row in read_jsonl(tmp_path / "rl/metrics.jsonl")]
    assert curve[0] < 0.6 and sum(curve[-3:]) / 3 > 0.95


def test_a_cuda_graph_needs_a_gpu(refused, world, base, tmp_path):
    flags = ["--data", world, "--init", base, "--out", tmp_path / "run", "--device", "cpu", "--cuda-graph"]
    refused("train_rl", *flags, words=("--cuda-graph on a cpu", "--device cuda"))
