"""Seconds of one GRPO step: sample, reward, advantages, gradient, AdamW. Prints one JSON line.

    python -m bench.grpo_step      # 32 prompts x 16 samples, at most 64 new tokens, micro-batches of 64 completions

Runs train_rl.py's own code on random prompts with the peer's reward (sum of ids divisible by 7), so about one group in
twelve has equal rewards and no gradient. Decoding of text and answer checking are left out (the peer spends 0.05 s on
them).
"""

import argparse
import statistics
import time

import torch

from bench.timing import begin, report, shape_parser, timed
from common import make_optimizer
from train_rl import Batch, group_advantages, grpo_step


def stage_settings(a: argparse.Namespace) -> argparse.Namespace:
    """What train_rl.py reads of its flags in a step."""
    return argparse.Namespace(
        lr=1e-6,
        weight_decay=0.01,
        betas=(0.9, 0.999),
        group_size=a.samples,
        max_new_tokens=a.max_new,
        temperature=1.0,
        updates_per_batch=1,
        loss_norm="token",
        adv_norm="std",
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=3.0,
        kl_coef=0.0,
        micro_batch_size=a.micro,
        grad_clip=1.0,
        sampler="",
        out="",
    )


def main():
    p = shape_parser(__doc__)
    p.add_argument("--prompts", type=int, default=32)
    p.add_argument("--samples", type=int, default=16)
    p.add_argument("--max-new", type=int, default=64)
    p.add_argument("--prompt-lens", type=int, nargs=2, default=(24, 40))
    p.add_argument("--eos-rate", type=float, default=0.04)
    p.add_argument("--micro", type=int, default=64, help="completions in one forward and backward")
    p.add_argument("--steps", type=int, default=3, help="timed steps, after one warm-up step")
    a = p.parse_args()
    model, device = begin(a)
    args = stage_settings(a)
    optimizer = make_optimizer(model, args)
    eos = list(range(1, 1 + max(1, round(a.eos_rate * a.vocab))))
    rng = torch.Generator().manual_seed(a.seed)
    spans, lengths, count = [], [], 0

    def step():
        nonlocal count
        began, count = time.perf_counter(), count + 1
        sizes = torch.randint(a.prompt_lens[0], a.prompt_lens[1] + 1, (a.prompts,), generator=rng).tolist()
        prompts = [torch.randint(len(eos) + 1, a.vocab, (n,), generator=rng).tolist() for n in sizes]
        with device.autocast():
            out = model.generate(prompts, n_samples=a.samples, max_new_tokens=a.max_new, seed=count, eos_id=eos)
        spans.append(time.perf_counter() - began)
        completions = out.completions()
        rewards = torch.tensor([float(sum(ids) % 7 == 0) for ids in completions])
        batch = Batch(
            [p for p in prompts for _ in range(a.samples)],
            completions,
            out.lengths,
            rewards,
            group_advantages(rewards, a.samples),
            [],
            [],
            out.finished,
        )
        lengths.append(float(out.lengths.float().mean()))
        return grpo_step(model, None, optimizer, batch, args, device)

    step()
    times, results, cpu = timed(step, a.steps)
    generate = statistics.median(spans[1:])
    report(
        a,
        "grpo step",
        times,
        cpu,
        s_per_step=statistics.median(times),
        s_generate=generate,
        s_train=statistics.median(t - g for t, g in zip(times, spans[1:], strict=True)),
        mean_len=sum(lengths) / len(lengths),
        grad_norm=results[-1]["train/grad_norm"],
    )


if __name__ == "__main__":
    main()
