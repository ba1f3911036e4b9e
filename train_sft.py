"""Supervised fine-tuning from a checkpoint: next-token loss on the solution alone (paper sections "SFT" and
"SFT-Gold").

    loss = - sum over target tokens of log p(token | prompt, tokens before) / n
with n the target tokens of the whole step (`--sft-loss-norm token`), or 1 (`--sft-loss-norm sum`: the paper's, where
the gradient clip then sets the length of every step). The target is the solution, a newline and end-of-text.
`--gold` trains on every solution of a question, otherwise on its first one.

Departures from the paper: laptop defaults; `--preset paper` holds the final recipe (lr 4e-5, batch 512, 9500 steps).

    python train_sft.py --init runs/base/ckpt_006400.pt --out runs/sft            # laptop, about a minute
    python train_sft.py --init runs/base/ckpt_006400.pt --gold --out runs/sft_gold
    python train_sft.py --init runs/1b/ckpt_010000.pt --data data/omi2 --preset paper --out runs/1b_sft
"""

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np
import torch

from common import UserError, check_finite, lr_at, make_optimizer, run, set_lr, setup, step_with_clip
from data.checkpoints import restore_optimizer
from data.files import counted
from data.math_qa import draw, format_prompt, format_target, template_for
from data.pass_at_k import VALIDATION_SHOWN, Validation, fitting
from data.prepared import PreparedQuestions, example_lengths, take
from data.resume import given_flags
from processes import deal, together
from stage import Run, add_system_args, add_training_args, load_start, parse, preset_values

PAPER = dict(lr=4e-5, steps=9500, warmup_steps=0, batch_size=512, sft_loss_norm="sum", weight_decay=0.01)
PAPER |= dict(task="openmath", template="paper", max_prompt_tokens=512, max_target_tokens=512, save_every=500)
PAPER |= dict(micro_batch_size=16)
MATH = PAPER | dict(lr=5e-4, max_prompt_tokens=2560, max_target_tokens=1024)  # that rate: its 60B-MATH and 4B alone
MATH |= dict(micro_batch_size=4)
PRESETS = {"laptop": {}, "paper": PAPER, "paper-math": MATH, "paper-gold": PAPER | dict(gold=True)}
PRESETS |= {"paper-sft-rl": PAPER | dict(steps=2000)}  # what RL after SFT starts from

SHOWN = {
    "loss": "train/loss:.4f",
    "gnorm": "train/grad_norm:.2f",
    "lr": "train/lr:.1e",
    "tok/s": "perf/tok_per_sec:,.0f",
}
SHOWN |= VALIDATION_SHOWN


def add_sft_args(p) -> None:
    add = p.add_argument_group("The SFT objective").add_argument
    add("--batch-size", type=int, default=64, help="examples of one optimizer step")
    every = "all solutions of a question, not the first"
    add("--max-target-tokens", type=int, default=0, help="leave out longer solutions; 0 = what fits the context")
    add("--gold", action=argparse.BooleanOptionalAction, default=False, help=every)
    norm = "divide by the step's target tokens, or not"
    add("--sft-loss-norm", default="token", choices=["token", "sum"], help=norm)


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=raw, epilog=preset_values(PRESETS))
    p.add_argument("--preset", default="laptop", choices=list(PRESETS), help="defaults of the flags below")
    add_training_args(p, steps=240, lr=1e-3)
    add_sft_args(p)
    p.add_argument("--max-new-tokens", type=int, default=112, help="longest completion of --eval-every, --sample-every")
    p.add_argument("--epochs", type=float, help="passes over the examples; takes the place of --steps")
    add_system_args(p)
    return p


def parse_args():
    args, ckpt = parse(parser(), __file__, PRESETS, fixed=("preset", "epochs"))
    if args.epochs is not None and not 0 < args.epochs < math.inf:
        raise UserError(f"--epochs {args.epochs}: must be a number above 0; or give --steps")
    if "max_new_tokens" in given_flags(parser()) and not (args.eval_every or args.sample_every):
        what = f"--max-new-tokens {args.max_new_tokens} does nothing without --eval-every or --sample-every"
        raise UserError(f"{what}; drop it, or give one of them")
    return args, ckpt


# ------------------------------------------------------------------------------------------------------- the objective
def load_examples(enc, questions, template, gold: bool) -> Sequence[tuple[list[int], list[int]]]:
    """(prompt ids, target ids) of each training example; the target ends with end-of-text, which is trained."""
    if isinstance(questions, PreparedQuestions):
        return questions.examples(enc, template, gold)
    start = [enc.eot_token] if template.begin else []
    return [
        (
            [*start, *enc.encode_ordinary(format_prompt(q, template))],
            [*enc.encode_ordinary(format_target(q, solution, template)), enc.eot_token],
        )
        for q in counted(questions, "tokenizing questions")
        # ABLATION: other demonstrations of a question
        for solution in (q.solutions if gold else q.solutions[:1])
    ]


def fitting_examples(examples: Sequence, block_size: int, args) -> Sequence:
    """Those that fit the context and the limits of `args` on prompt and target; `fitting` tells of the others."""
    if not examples:
        raise UserError("the questions have no solutions, which SFT needs; give a file with solutions, or train_rl.py")
    limits = {"prompts": args.max_prompt_tokens, "targets": args.max_target_tokens, "examples": 0}
    fits = np.zeros(len(examples), np.int8)
    for what, sizes in example_lengths(examples):
        fits[fitting(sizes, 0, block_size, what, args.strict_length, longest=limits[what])] += 1
    if not (kept := fits == 3).any():
        raise UserError("no example fits the context and the limits of its prompt and target; raise one of them")
    return take(examples, kept)


def sft_loss(logprobs, mask, denom) -> torch.Tensor:
    """logprobs, mask (B, T), mask 1 on target tokens; denom: target tokens of the WHOLE step, not of this
    micro-batch."""
    return -(logprobs * mask).sum() / denom  # ABLATION: another objective


def sft_gradient(model, examples, args, device) -> dict:
    """Add the gradient of one step (all micro-batches of `examples`) to .grad; micro-batches hold rows of similar
    length."""
    examples = sorted(examples, key=lambda e: len(e[0]) + len(e[1]))
    tokens = sum(len(target) for _, target in examples)
    denom = tokens if args.sft_loss_norm == "token" else 1.0
    total, examples = 0.0, deal(examples)
    for i in range(0, len(examples), args.micro_batch_size):
        prompts, targets = map(list, zip(*examples[i : i + args.micro_batch_size], strict=True))
        with device.autocast():
            logprobs, _, mask = model.completion_logprobs(prompts, targets)
        loss = sft_loss(logprobs, mask, denom)
        loss.backward()
        total += loss.item()
    return {"loss": together({"loss": total})["loss"], "tokens": tokens}


def main():
    args, ckpt = parse_args()
    device = setup(args)
    model, enc, questions, start = load_start(args, ckpt, device)
    examples = load_examples(enc, questions, template_for(args.template or args.task), args.gold)
    examples = fitting_examples(examples, model.config.block_size, args)
    if args.epochs and not ckpt:
        args.steps = max(1, round(args.epochs * len(examples) / args.batch_size))
    validation = Validation(args, enc, model, device, needed=args.sample_every > 0)
    optimizer = make_optimizer(model, args)
    if ckpt:
        restore_optimizer(optimizer, ckpt["optimizer"], args.resume)
    out = Run(args, __file__, device, start)
    epochs = f"{args.steps} steps of {args.batch_size}: {args.steps * args.batch_size / len(examples):.1f} epochs"
    print(f"{len(examples)} examples of {len(questions)} {args.task} questions | {epochs}")

    if start.step == 0 and validation.due(0):
        out.log(0, SHOWN, validation.scores())
    for step in range(start.step, args.steps):
        began = time.time()
        set_lr(optimizer, lr := lr_at(step, args, args.lr, "constant"))
        batch = [examples[i] for i in draw(len(examples), args.batch_size, step, args.seed)]
        stats = sft_gradient(model, batch, args, device)
        check_finite(stats["loss"], step + 1, args.out)
        norm = step_with_clip(model, optimizer, args.grad_clip, step + 1, args.out)
        seconds, done = time.time() - began, step + 1
        metrics = {"train/loss": stats["loss"], "train/grad_norm": norm, "train/lr": lr, "train/updates": done}
        metrics |= {"perf/step_ms": 1e3 * seconds, "perf/tok_per_sec": stats["tokens"] / seconds}
        metrics |= validation.scores() if validation.due(done) else {}
        out.log(done, SHOWN, metrics)
        if args.sample_every and out.samples_due(done):
            out.samples(done, validation.samples())
        if out.due(done) or out.stopping:
            out.save(done, model, optimizer, metrics)


if __name__ == "__main__":
    run(main, many=True)
