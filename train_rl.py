"""Direct RL from a checkpoint: GRPO with a binary, verifiable reward (paper section "Direct RL"; DeepSeekMath eq. 3).

One step: P prompts, G completions of each from softmax(logits / temperature) over the full vocabulary, reward r in
{0, 1}.
    advantage   A_i = (r_i - mean_group) / (std_group + 1e-6), std with ddof 1; exactly 0 where all rewards are equal
    ratio       w_t = exp(logprobs - old_logprobs)
    surrogate   min(w A, clip(w, 1 - clip_low, 1 + clip_high) A), and at least dual_clip * A where A < 0
    KL          k3 = exp(d) - d - 1 with d = ref_logprobs - logprobs, reference = the starting checkpoint
    --sampler   surrogate times min(exp(old_logprobs - sampler_logprobs), sampler_cap): another program drew the tokens
    loss      = - sum over completion tokens of c_i (surrogate - kl_coef * k3)
with c_i = 1 / (tokens of the update) [--loss-norm token], 1 / (rows * length_i) [sequence], 1 / (rows * max_new_tokens)
[constant]. End-of-text is a trained token; truncated completions stay in and are rewarded only if right.

Departures from the paper: (1) `--loss-norm token` divides by the tokens of the whole update, the paper's code by
those of each micro-batch, then row-weighted; (2) rollouts also end at the template's stop string (`--stop eos`: at
end-of-text alone, as in the paper); (3) laptop defaults; `--preset paper` holds the paper's values.
A loss near 0 is normal (advantages of a group sum to 0): the curve to watch is `reward`.

What it calls, for a reader who stays in this file:
    sample_texts               completions of prompts, some prompts at a time, and their texts, cut at the stop string
    reward(text, answer)       1.0 if the answer that the text states, by the template's marker, is right, else 0.0
    model.completion_logprobs  (logprobs, entropy, mask), each (B, T), of completions after their prompts
    step_with_clip             clips the gradient's global norm, takes the optimizer's step, clears the gradient

    python train_rl.py --init runs/base/ckpt_006400.pt --out runs/rl                       # laptop, about 2 minutes
    python train_rl.py --init runs/1b/ckpt_010000.pt --data data/omi2 --preset paper --out runs/1b_rl
"""

import argparse
import copy
import importlib
import math
import operator
import time
from dataclasses import dataclass
from itertools import chain

import torch
from torch.nn.utils.rnn import pad_sequence

from common import (
    UserError,
    check_finite,
    load_checkpoint,
    lr_at,
    make_optimizer,
    run,
    set_lr,
    setup,
    step_with_clip,
)
from data.checkpoints import restore_optimizer, weights_hash
from data.math_qa import Template, draw, question_prompts, reward, stop_strings, template_for
from data.pass_at_k import SPLITS, VALIDATION_SHOWN, Validation, choose, fitting, sample_texts
from data.prepared import take
from data.rl_metrics import note_without_signal, rollout_metrics, samples_to_read, update_metrics
from processes import PROCESSES, deal, gather, together
from stage import Run, add_system_args, add_training_args, load_start, parse, preset_values

PAPER = dict(lr=1e-6, steps=1560, warmup_steps=0, prompts_per_step=512, group_size=32, updates_per_batch=4)
PAPER |= dict(kl_coef=1e-3, max_prompt_tokens=1024, max_new_tokens=2048, weight_decay=0.01, stop="eos")
PAPER |= dict(task="openmath", template="paper", save_every=200, prompts_per_batch=4, micro_batch_size=8)
AFTER_SFT = PAPER | dict(lr=4e-5, kl_coef=0.0, updates_per_batch=1, max_prompt_tokens=512, max_new_tokens=512)
MATH = PAPER | dict(group_size=64, prompts_per_batch=2)  # its 60B-MATH and 4B: 32
PRESETS = {"laptop": {}, "paper": PAPER, "paper-math": MATH}
PRESETS |= {"paper-sft-rl": AFTER_SFT, "paper-gold": AFTER_SFT}  # from SFT's step 2000, SFT-Gold's step 9500

SHOWN = {"reward": "reward/mean:.4f", "hits": "reward/hits:d", "no signal": "reward/frac_zero_std_groups:.0%"}
SHOWN |= {"loss": "train/loss:+.4f", "len": "completion/len_mean:.0f", "kl": "policy/kl:.4f"}
SHOWN |= {"clip": "policy/clip_frac:.1%", "gnorm": "train/grad_norm:.2f", "lr": "train/lr:.1e"}
SHOWN |= {"tok/s": "perf/tok_per_sec:,.0f", **VALIDATION_SHOWN}


def add_rl_args(p) -> None:
    add = p.add_argument_group("Rollouts and the RL objective").add_argument
    add("--prompts-per-step", type=int, default=48, help="questions of one rollout batch")
    add("--group-size", type=int, default=16, help="completions of each question (G)")
    add("--max-new-tokens", type=int, default=112, help="longest completion in tokens")
    add("--prompts-per-batch", type=int, default=48, help="questions sampled together: memory and speed only")
    stop = "a completion ends at end-of-text or at the template's stop string; eos: at end-of-text alone"
    add("--stop", default="template", choices=["template", "eos"], help=stop)
    add("--temperature", type=float, default=1.0, help="of rollouts and of their log-probs alike")
    updates = "disjoint prompt mini-batches of a rollout batch, one update each"
    add("--updates-per-batch", type=int, default=1, help=updates)
    weights = "c_i of the loss: over the update's tokens, rows and own tokens, or rows and --max-new-tokens"
    add("--loss-norm", default="token", choices=["token", "sequence", "constant"], help=weights)
    divide = "divide centred rewards by the group's std, or not"
    add("--adv-norm", default="std", choices=["std", "none"], help=divide)
    add("--clip-low", type=float, default=0.2, help="the ratio is clipped below 1 - this")
    add("--clip-high", type=float, default=0.2, help="and above 1 + this")
    bound = "bound on the ratio where the advantage is negative; 0 = off"
    add("--dual-clip", type=float, default=3.0, help=bound)
    kl = "weight of k3 to the starting checkpoint; 0 keeps no reference in memory"
    add("--kl-coef", type=float, default=0.0, help=kl)
    workers = "rollouts by the workers of this folder, python -m tools.mailbox BOX, and not in this process"
    add("--sampler", metavar="BOX", help=workers)
    add("--sampler-cap", type=float, help="bound on the weight that corrects for --sampler's rounding; default 2")


def check_rl_args(args) -> None:
    G, n, P = args.group_size, args.updates_per_batch, args.prompts_per_step
    if G < 2:
        raise UserError(f"--group-size {G}: a group needs 2 or more completions to have a baseline; try 8")
    if not 1 <= n <= P:
        raise UserError(f"--updates-per-batch {n}: must be 1 to {P} prompts; lower it")
    if not 0 < args.temperature < math.inf:
        t = args.temperature
        raise UserError(f"--temperature {t}: rollouts are sampled, so it must be above 0; the paper uses 1")
    if args.dual_clip and not 1 < args.dual_clip < math.inf:
        raise UserError(f"--dual-clip {args.dual_clip}: it bounds the ratio, so it is above 1, or 0 for none")
    if args.sampler_cap is not None and not (args.sampler and 1 <= args.sampler_cap < math.inf):
        raise UserError(f"--sampler-cap {args.sampler_cap}: it needs --sampler, and is a number of at least 1")
    if args.sampler and PROCESSES > P:
        raise UserError(f"--prompts-per-step {P} with --sampler: give at least as many as processes, {PROCESSES}")


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=raw, epilog=preset_values(PRESETS))
    p.add_argument("--preset", default="laptop", choices=list(PRESETS), help="defaults of the flags below")
    add_training_args(p, steps=48, lr=1e-4)
    add_rl_args(p)
    p.add_argument("--only", choices=list(SPLITS), help="train on the easy or the hard questions, by --by's counts")
    p.add_argument("--by", metavar="EVAL.json", help="what `evaluate.py --split train --temperature 1` found")
    add_system_args(p)
    replay = "sampling replays a CUDA graph, one launch a token; off by default until a GPU has run it"
    p.add_argument("--cuda-graph", action="store_true", help=replay)
    return p


def parse_args():
    args, ckpt = parse(parser(), __file__, PRESETS)
    check_rl_args(args)
    if bool(args.only) != bool(args.by):
        raise UserError("--only chooses questions by the counts of --by: give both, or neither")
    return args, ckpt


# ------------------------------------------------------------------------------------------------------- the objective
def group_advantages(rewards: torch.Tensor, group_size: int, norm: str = "std") -> torch.Tensor:
    """DeepSeekMath section 4.1.2. rewards (P * G,), groups adjacent -> advantages (P * G,): centred per group, over
    (std + 1e-6) with ddof 1 unless norm is "none". A group of equal rewards gets exactly 0."""
    # ABLATION: another baseline or scale
    groups = rewards.view(-1, group_size)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if norm == "std":
        advantages = advantages / (groups.std(dim=1, keepdim=True) + 1e-6)
    equal = (groups == groups[:, :1]).all(dim=1, keepdim=True)
    return advantages.masked_fill(equal, 0.0).view(-1)  # rounding in the mean must not become a signal


def loss_weights(lengths: torch.Tensor, loss_norm: str, max_new_tokens: int) -> torch.Tensor:
    """c_i of each row of ONE update (before any micro-batch is cut): lengths (B,) in tokens -> (B,)."""
    if loss_norm == "token":
        return torch.full_like(lengths, 1.0 / float(lengths.sum()), dtype=torch.float32)
    if loss_norm == "sequence":
        return 1.0 / (len(lengths) * lengths.float())
    return torch.full_like(lengths, 1.0 / (len(lengths) * max_new_tokens), dtype=torch.float32)


def grpo_loss(
    logprobs: torch.Tensor,  # (B, T), of the completions' tokens
    old_logprobs: torch.Tensor,  # (B, T), under the weights that sampled them, by this same forward pass
    advantages: torch.Tensor,  # (B,)
    mask: torch.Tensor,  # (B, T), 1 on completion tokens including end-of-text
    weights: torch.Tensor,  # (B,), c_i from `loss_weights` over the whole update: micro-batches simply add up
    clip_low: float,
    clip_high: float,
    dual_clip: float = 0.0,
    ref_logprobs: torch.Tensor | None = None,  # (B, T)
    kl_coef: float = 0.0,
    sampler_logprobs: torch.Tensor | None = None,  # (B, T), of --sampler's program for the tokens that it drew
    sampler_cap: float = 2.0,
) -> tuple[torch.Tensor, dict]:
    """DeepSeekMath eq. 3 with its sign turned: the clipped surrogate and the k3 penalty, summed over completion tokens
    with a weight c_i a row. Returns (loss, stats): sums over tokens of clipped and kl, and the extreme ratios."""
    mask = mask.float()
    log_ratio = (logprobs - old_logprobs) * mask
    ratio = log_ratio.exp()  # (B, T), exactly 1 on the first update of a batch
    adv = advantages[:, None]
    # ABLATION: another surrogate
    surrogate = torch.minimum(ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv)
    if dual_clip:  # a sample of negative advantage that has become likely: bound its push (Ye et al. 2020)
        surrogate = torch.where(adv < 0, torch.maximum(surrogate, dual_clip * adv), surrogate)
    stats = {
        "clipped": (((ratio < 1 - clip_low) | (ratio > 1 + clip_high)).float() * mask).sum().item(),
        "ratio_min": ratio[mask > 0].min().item(),
        "ratio_max": ratio[mask > 0].max().item(),
        "kl": 0.0,
    }
    if sampler_logprobs is not None:  # importance weights of what was drawn; the clip is about the policy's own steps
        drift = (old_logprobs - sampler_logprobs) * mask
        surrogate = surrogate * drift.exp().clamp(max=sampler_cap)
        stats["sampler_kl"] = ((drift.expm1() - drift) * mask).sum().item()
        stats["sampler_ratio_max"] = drift.exp()[mask > 0].max().item()
    if ref_logprobs is not None:  # ABLATION: another penalty
        d = (ref_logprobs - logprobs) * mask
        k3 = d.exp() - d - 1  # DeepSeekMath eq. 4: >= 0, unbiased for KL(policy || reference) on the policy's samples
        surrogate = surrogate - kl_coef * k3
        stats["kl"] = (k3.detach() * mask).sum().item()
    return -(surrogate * mask * weights[:, None]).sum(), stats


# ------------------------------------------------------------------------------------------------ rollouts and scoring
@dataclass
class Batch:
    """N = P * G completions with their rewards; rows of a prompt adjacent."""

    prompts: list[list[int]]  # (N) ids
    completions: list[list[int]]  # (N) ids, end-of-text included when it was sampled
    lengths: torch.Tensor  # (N,) completion tokens
    rewards: torch.Tensor  # (N,) 0 or 1
    advantages: torch.Tensor  # (N,)
    texts: list[str]
    gold: list[str]
    finished: torch.Tensor  # (N,) bool: ended by end-of-text or a stop string
    template: Template = template_for("world")  # its marker states the answers
    sampler_logprobs: torch.Tensor | None = None  # (N, T), with --sampler

    def rows(self, part: list[int]):
        return [self.prompts[r] for r in part], [self.completions[r] for r in part]


def sampler_of(model, start, args):
    """What draws completions: the model, or --sampler's workers, which get its weights at every step. Found by name:
    only runs that use it are made of it (common.source_files)."""
    return importlib.import_module("tools.mailbox").Box(model, start.tokenizer, args) if args.sampler else model


def rollout(sampler, enc, questions, prompts, drawn, step, args, device, stop=None) -> Batch:
    """Sample G completions of each drawn question, check the answers, centre the rewards. `stop`: see stop_strings."""
    G, seed = args.group_size, args.seed * 1_000_003 + step
    settings = dict(n_samples=G, max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=seed)
    settings |= dict(
        together=len(drawn) if args.sampler else args.prompts_per_batch, return_logprobs=bool(args.sampler)
    )
    asked, places = [prompts[i] for i in drawn], deal(range(len(drawn)))
    groups = gather(list(sample_texts(sampler, enc, asked, places, stop, device, **settings)))
    completions, finished, texts, logprobs = (list(chain(*part)) for part in zip(*groups, strict=True))
    repeated = [i for i in drawn for _ in range(G)]
    gold, template = [questions[i].answer for i in repeated], template_for(args.template or args.task)
    # ABLATION: another reward
    rewards = torch.tensor([reward(text, answer, template) for text, answer in zip(texts, gold, strict=True)])
    return Batch(
        prompts=[prompts[i] for i in repeated],
        completions=completions,
        lengths=torch.tensor([len(row) for row in completions]),
        rewards=rewards,
        advantages=group_advantages(rewards, G, args.adv_norm),
        texts=texts,
        gold=gold,
        finished=torch.tensor(finished),
        template=template,
        sampler_logprobs=pad_sequence([torch.tensor(x) for x in logprobs], batch_first=True) if args.sampler else None,
    )


# ------------------------------------------------------------------------------------------- the updates of one batch
def grpo_step(model, ref, optimizer, batch: Batch, args, device, step: int = 0) -> dict:
    """All updates of one rollout batch: disjoint prompt mini-batches, one optimizer step each."""
    per_update = torch.arange(len(batch.prompts)).view(-1, args.group_size).tensor_split(args.updates_per_batch)
    updates = [rows.flatten().tolist() for rows in per_update]
    # Later updates meet a policy that has moved: take their old_logprobs now, cut as they will be, and with gradients
    # on, since without them other code computes them and rounds otherwise.
    old = [None]
    for rows in updates[1:]:
        parts = [batch.rows(part) for part in signal_micro_batches(batch, rows, args)]
        with device.autocast():
            old.append([model.completion_logprobs(*part, args.temperature)[0].detach() for part in parts])
    results = []
    for rows, old_logprobs in zip(updates, old, strict=True):
        stats = grpo_gradient(model, ref, batch, rows, args, device, old_logprobs)
        check_finite(stats["loss"], step + 1, args.out)
        stats["grad_norm"] = step_with_clip(model, optimizer, args.grad_clip, step + 1, args.out)
        results.append(stats)
    return update_metrics(results, with_kl=ref is not None)


def grpo_gradient(model, ref, batch: Batch, rows: list[int], args, device, old=None) -> dict:
    """Add the gradient of one update (all micro-batches of `rows`) to .grad. `old`: old_logprobs of each micro-batch,
    or None on the first update of a batch, where the policy is the one that sampled. Returns sums over tokens."""
    weights = torch.zeros(len(batch.prompts))
    weights[rows] = loss_weights(batch.lengths[rows], args.loss_norm, args.max_new_tokens)
    clipping = dict(clip_low=args.clip_low, clip_high=args.clip_high, dual_clip=args.dual_clip)
    total = {"loss": 0.0, "clipped": 0.0, "kl": 0.0, "entropy": 0.0, "tokens": 0, "ratio_min": 1.0, "ratio_max": 1.0}
    total |= {"sampler_kl": 0.0, "sampler_ratio_max": 0.0} if args.sampler else {}
    for i, part in enumerate(signal_micro_batches(batch, rows, args)):
        with device.autocast():
            logprobs, entropy, mask = model.completion_logprobs(*batch.rows(part), args.temperature, entropy=True)
            ref_logprobs = None
            if ref is not None:
                with torch.no_grad():
                    ref_logprobs = ref.completion_logprobs(*batch.rows(part), args.temperature)[0]
        old_logprobs = logprobs.detach() if old is None else old[i]
        advantages, c = batch.advantages[part].to(mask.device), weights[part].to(mask.device)
        others = dict(ref_logprobs=ref_logprobs, kl_coef=args.kl_coef)
        if args.sampler:
            drawn = batch.sampler_logprobs[part, : mask.shape[1]].to(mask.device)
            others |= dict(sampler_logprobs=drawn, sampler_cap=args.sampler_cap or 2.0)
        loss, stats = grpo_loss(logprobs, old_logprobs, advantages, mask, c, **clipping, **others)
        loss.backward()
        for key, value in stats.items():
            fold = min if key.endswith("_min") else max if key.endswith("_max") else operator.add
            total[key] = fold(total.get(key, 0.0), value)
        total["loss"] += loss.item()
        total["entropy"] += entropy.sum().item()
        total["tokens"] += int(mask.sum())
    return together(total)


def signal_micro_batches(batch: Batch, rows: list[int], args) -> list[list[int]]:
    """This process's micro-batches of the rows that have a gradient. With no KL, a row of zero advantage has none: it
    counts in the denominator (its c_i is spent on it) but need not be computed. Most rows of an early checkpoint are
    of this kind."""
    if args.kl_coef == 0:
        rows = [r for r in rows if batch.advantages[r] != 0]
    return deal(micro_batches(batch, rows, args.micro_batch_size))


def micro_batches(batch: Batch, rows: list[int], size: int) -> list[list[int]]:
    """Cut an update's rows into micro-batches. The completions of a prompt stay neighbours, so that the model reads it
    once; prompts are ordered by their longest completion, since padding costs more than the sort."""
    longest: dict[tuple, int] = {}
    for i in rows:
        prompt = tuple(batch.prompts[i])
        longest[prompt] = max(longest.get(prompt, 0), len(batch.completions[i]))
    rows = sorted(rows, key=lambda i: (longest[tuple(batch.prompts[i])], batch.prompts[i], len(batch.completions[i])))
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def reference_model(model, args, ckpt: dict | None, start):
    """The starting checkpoint, frozen, for a KL term; None without one. After --resume it comes from the file that
    --init named."""
    if not args.kl_coef:
        return None
    ref = copy.deepcopy(model).requires_grad_(False)
    if ckpt:
        first = load_checkpoint(args.init or "no --init")
        if not start.parent or weights_hash(first["model"]) != start.parent["hash"]:
            mend = "put it back, or resume with --kl-coef 0"
            raise UserError(f"{args.init} is not the file this run began from; {mend}")
        ref.load_state_dict(first["model"])
    return ref


# ---------------------------------------------------------------------------------------------------------- the loop
def main():
    args, ckpt = parse_args()
    device = setup(args)
    if args.cuda_graph and device.device.type != "cuda":
        raise UserError(f"--cuda-graph on a {device.device.type}: it needs a GPU; leave it out, or give --device cuda")
    model, enc, questions, start = load_start(args, ckpt, device, choose if args.only else None)
    model.cuda_graph = args.cuda_graph
    template = template_for(args.template or args.task)
    prompts = question_prompts(enc, questions, template)
    room, limit = (args.max_new_tokens, model.config.block_size), dict(longest=args.max_prompt_tokens)
    kept = fitting(prompts, *room, "questions", args.strict_length, **limit)
    questions, prompts = take(questions, kept), take(prompts, kept)
    stop = stop_strings(args, enc, template)
    validation = Validation(args, enc, model, device)
    ref = reference_model(model, args, ckpt, start)
    optimizer = make_optimizer(model, args)
    if ckpt:
        restore_optimizer(optimizer, ckpt["optimizer"], args.resume)
    out = Run(args, __file__, device, start)
    sampler = sampler_of(model, start, args)
    P, G, n = args.prompts_per_step, args.group_size, args.updates_per_batch
    batches = f"{P} questions x {G} = {P * G} completions a step, {n} {'update' if n == 1 else 'updates'} each"
    print(f"{len(questions)} {args.task} questions | {batches} | a loss near 0 is normal, watch the reward")
    shown = SHOWN if n > 1 else {label: SHOWN[label] for label in SHOWN if label != "clip"}  # n = 1: the ratio is 1

    if start.step == 0 and validation.due(0):
        out.log(0, shown, validation.scores())
    signal = False
    for step in range(start.step, args.steps):
        began = time.time()
        set_lr(optimizer, lr := lr_at(step, args, args.lr, "constant"))
        # ABLATION: another choice of questions
        drawn = draw(len(questions), P, step, args.seed)
        batch = rollout(sampler, enc, questions, prompts, drawn, step, args, device, stop)
        sampled = time.time()
        metrics = rollout_metrics(batch, G) | grpo_step(model, ref, optimizer, batch, args, device, step)
        seconds, done = time.time() - began, step + 1
        signal |= metrics["reward/frac_zero_std_groups"] < 1
        metrics |= {"train/lr": lr, "train/updates": done * n, "perf/step_ms": 1e3 * seconds}
        metrics |= {"perf/sample_ms": 1e3 * (sampled - began)}
        metrics |= {"perf/tok_per_sec": metrics["completion/tokens"] / seconds}
        metrics |= validation.scores() if validation.due(done) else {}
        out.log(done, shown, metrics)
        if out.samples_due(done):
            out.samples(done, samples_to_read(batch, G, enc))
        if out.due(done) or out.stopping:
            out.save(done, model, optimizer, metrics)
    if not signal:
        note_without_signal(start.step + 1, metrics)


if __name__ == "__main__":
    run(main, many=True)
