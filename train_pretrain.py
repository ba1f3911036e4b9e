"""Pre-train a GPT from scratch on token files and keep checkpoints along the way: the paper's M_t (section 1 of its
setup).

Objective, over all target tokens n of a step (all micro-batches):
    loss = -1/n sum log p(x_t | x_<t)  +  z_loss * 1/n sum (log sum_v exp logit_v)^2
AdamW, linear warm-up, cosine to 10 % of the peak, global gradient clip.

Departures from the paper: (1) the default is the laptop world (a 1M model, 8M tokens); `--preset paper` is the
paper's run; (2) checkpoints are log-spaced by default, the paper keeps one every 1000 steps;
(3) tokens see their own document alone; in the paper's stack they see the whole window (`--no-document-mask`).

    python -m data.world --out data/world                      # once, under a minute
    python train_pretrain.py --out runs/base                   # 8M tokens, 10 to 20 minutes on 2 cores
    python train_pretrain.py --data data/dolmino --preset paper --out runs/1b
"""

import argparse
import math
import time

import torch

from common import UserError, check_finite, lr_at, make_optimizer, run, set_lr, setup, step_with_clip
from data.checkpoints import restore_optimizer
from data.resume import note_data
from data.tokenizer import check_tokenizer, folder_tokenizer, tokenizer_id
from data.tokens import TokenMix, document_starts, val_batches
from model import PRESETS as SHAPES
from model import build_model, load_model
from processes import deal, together
from stage import (
    Run,
    Start,
    add_system_args,
    add_training_args,
    check_compiler,
    parse,
    preset_values,
    sixth,
    world_if_absent,
)

PAPER = dict(block_size=4096, batch_tokens=2_097_152, steps=23_842, lr=4e-4, warmup_steps=477, z_loss=1e-5)
PAPER |= dict(document_mask=False, micro_batch_size=4, save_every=1000, seed=6198)
MATH = PAPER | dict(steps=28_610, mix="math-heavy")  # 60B tokens; the paper's mix is not public, this one is ours
PRESETS = {"paper": PAPER, "paper-math": MATH}  # other presets are shapes alone
PRESETS |= {"paper-sft-rl": PAPER, "paper-gold": PAPER}  # they start from the same base

SHOWN = {"val": "eval/loss:.4f", "loss": "train/loss:.4f", "gnorm": "train/grad_norm:.2f", "lr": "train/lr:.1e"}
SHOWN |= {"tok/s": "perf/tok_per_sec:,.0f"}


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=raw, epilog=preset_values(PRESETS))
    add_training_args(p, steps=6400, lr=2.5e-3, pretrain=True)
    horizon = "step at which the cosine ends, for a run that stops before; default: --steps"
    p.add_argument("--horizon", type=int, help=horizon)
    add = p.add_argument_group("Model and data").add_argument
    add("--preset", default="world", choices=[*SHAPES, *PRESETS], help="model shape; paper: its shape and settings")
    add("--mix", default="base", help="a mixture named in the data folder's meta.json (base, math-heavy)")
    add("--block-size", type=int, default=640, help="window in tokens")
    add("--batch-tokens", type=int, default=1280, help="tokens of one optimizer step, all micro-batches")
    own = "tokens see their own document alone, as prompts do later; the paper's stack lets them see the window"
    add("--document-mask", action=argparse.BooleanOptionalAction, default=True, help=own)
    add("--z-loss", type=float, default=0.0, help="weight of the squared log-sum-exp; 0 = off")
    add("--save-tokens", type=float, nargs="+", default=[], metavar="N", help="checkpoints at these token counts")
    add("--eval-every", type=int, default=100, help="steps between validation losses; 0 = only at checkpoints")
    add("--eval-tokens", type=int, default=65_536, help="held-out tokens of one validation loss")
    add_system_args(p)
    faster = "torch.compile for the blocks; on a CPU with a C++ compiler, and of use with --no-document-mask alone"
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False, help=faster)
    return p


def parse_args():
    args, ckpt = parse(parser(), __file__, PRESETS, fixed=("preset", "steps", "horizon"))
    if args.batch_tokens < args.block_size:
        raise UserError(f"--batch-tokens {args.batch_tokens} is less than one window of {args.block_size}; raise it")
    if args.horizon is not None and args.horizon < args.steps:
        raise UserError(f"--horizon {args.horizon} is before the end of the run, step {args.steps}; raise it")
    if not ckpt and args.save_tokens and (args.save_at or args.save_every):
        raise UserError("--save-tokens, --save-at and --save-every each say when to save; give one of them")
    if args.save_tokens and (not ckpt or args.save_tokens != ckpt["config"].get("save_tokens")):
        if not all(0 < n < math.inf for n in args.save_tokens):
            raise UserError(f"--save-tokens {args.save_tokens}: each must be a number above 0")
        per_step = args.batch_tokens // args.block_size * args.block_size
        args.save_at = sorted({min(args.steps, max(1, round(n / per_step))) for n in args.save_tokens})
    elif not ckpt and not args.save_at and args.save_every is None:  # log-spaced: the last step and halves of it, five
        args.save_at, args.save_every = sorted({max(1, args.steps >> i) for i in range(5)}), sixth(args)
    return args, ckpt


# ------------------------------------------------------------------------------------------------------- the objective
def pretrain_loss(model, batch, denom: int, z_loss: float, eot: int | None = None):
    """Next-token loss summed over batch (B, T+1) and divided by `denom`, the target tokens of the WHOLE step.
    eot: tokens see their own document alone; None: the whole window before them.
    Returns (loss with z-loss, plain loss)."""
    h = model.hidden(batch[:, :-1], first=None if eot is None else document_starts(batch[:, :-1], eot))
    logprobs, lse, _ = model.logprobs(h.flatten(0, 1), batch[:, 1:].flatten())
    nll = -logprobs.sum() / denom  # ABLATION: another objective
    return (nll + z_loss * lse.square().sum() / denom if z_loss else nll), nll.detach()


@torch.no_grad()
def validation_loss(model, args, device, eot) -> float:
    """Mean next-token loss in nats over held-out text."""
    sums = {"loss": 0.0, "tokens": 0}
    for batch in deal(list(val_batches(args.data, args.block_size, args.micro_batch_size, args.eval_tokens))):
        with device.autocast():
            sums["loss"] += pretrain_loss(model, batch.to(device.device), 1, 0.0, eot)[1].item()
        sums["tokens"] += batch[:, 1:].numel()
    sums = together(sums)
    return sums["loss"] / sums["tokens"]


def new_or_resumed(args, ckpt: dict | None, enc, identity: dict, device):
    """(model, Start): random weights, or those of the checkpoint to go on from."""
    if ckpt:
        check_tokenizer(enc, ckpt["tokenizer"], args.resume)
        note_data(ckpt, identity)
        model = load_model(ckpt, args.resume, device.device, args.kernels)
        return model, Start(ckpt["step"], ckpt["tokens"], ckpt["tokenizer"], None, identity, ckpt["config"])
    shape = "olmo2-1b" if args.preset in PRESETS else args.preset
    model = build_model(shape, vocab_size=enc.n_vocab, block_size=args.block_size).to(device.device)
    model.impl = args.kernels
    return model, Start(0, 0, tokenizer_id(enc), None, identity, {})


def main():
    args, ckpt = parse_args()
    device = setup(args)
    if args.compile:
        check_compiler(device.device)
    world_if_absent(args.data)
    enc = folder_tokenizer(args.data)
    eot = enc.eot_token if args.document_mask else None
    rows = args.batch_tokens // args.block_size
    data = TokenMix(args.data, args.mix, args.block_size, rows, args.seed)
    check_tokenizer(enc, data.meta["tokenizer"], f"{args.data}/meta.json")
    val_batches(args.data, args.block_size, 1, args.eval_tokens)  # refuses bad held-out text now, not at the first save
    identity = {"tokenizer": data.meta["tokenizer"]["hash"], "files": data.meta["files"], "mix": data.mix}
    identity["text"] = data.fingerprint()

    model, start = new_or_resumed(args, ckpt, enc, identity, device)
    model.recompute = args.recompute
    if args.compile:
        print("compiling the blocks: the first step takes about a minute", flush=True)
        model.compile_blocks()
    optimizer = make_optimizer(model, args)
    if ckpt:
        restore_optimizer(optimizer, ckpt["optimizer"], args.resume)
    out = Run(args, __file__, device, start)
    step_tokens = rows * args.block_size
    size, horizon = f"model {model.n_params() / 1e6:.2f}M parameters", args.steps * step_tokens
    print(
        f"{size} | {rows} rows x {args.block_size} = {step_tokens:,} tokens a step | {horizon / 1e6:.1f}M tokens in all"
    )

    for step in range(start.step, args.steps):
        began = time.time()
        set_lr(optimizer, lr := lr_at(step, args, args.lr, "cosine"))
        batch = data.batch(step).to(device.device)  # (rows, T+1)
        loss, denom = 0.0, batch[:, 1:].numel()
        mine = deal(batch)
        for i in range(0, len(mine), args.micro_batch_size):
            with device.autocast():
                objective, nll = pretrain_loss(model, mine[i : i + args.micro_batch_size], denom, args.z_loss, eot)
            objective.backward()
            loss += nll
        loss = together({"loss": float(loss)})["loss"]
        check_finite(loss, step + 1, args.out)
        norm = step_with_clip(model, optimizer, args.grad_clip, step + 1, args.out)
        start.tokens += step_tokens

        done, seconds = step + 1, time.time() - began
        metrics = {"train/loss": loss, "train/grad_norm": norm, "train/lr": lr, "train/tokens": start.tokens}
        metrics |= {"perf/tok_per_sec": step_tokens / seconds, "perf/step_ms": 1e3 * seconds}
        if out.due(done) or (args.eval_every and done % args.eval_every == 0):
            metrics["eval/loss"] = validation_loss(model, args, device, eot)
            check_finite(metrics["eval/loss"], done, args.out, "validation loss")
        out.log(done, SHOWN, metrics)
        if out.due(done) or out.stopping:
            out.save(done, model, optimizer, metrics)


if __name__ == "__main__":
    run(main, many=True)
