"""Merge RL and SFT: parallel averaging from a checkpoint (paper section "Parallel averaging"), or finished checkpoints.

`--init CKPT`: every step, from the same weights theta, one GRPO step with its own AdamW gives theta_A and one SFT
step with its own AdamW gives theta_B; then
    theta = w_A theta_A + w_B theta_B + (1 - w_A - w_B) theta_sync            (`--weights`, default 0.5 0.5)
where theta_sync, the weights of the last averaging, drops out when the weights sum to 1. Moments are never averaged,
each side clips its own gradient. `--sync-every H` averages every H steps only (H 1 is the paper's): a step is one
local step of each side, rollouts come from the RL side, moments persist.

`--average A.pt B.pt --weights ...`: the weighted mean of finished checkpoints of the same parent and shape. The parent
itself may be one of them: `--average BASE A B --weights -1 1 1` adds what both learned (task arithmetic).

`--combine` has what the paper tried beside it, on one set of weights: `alternate`, N SFT steps and an RL step in turn
(`--sft-steps 20`; its curriculum: `--sft-steps 200 --sft-fewer 1`), and `sum`, one optimizer on RL's loss plus w times
SFT's (`--weights 1 w`).

The objectives are imported from the stages that define them; see train_rl.py and train_sft.py for the formulas.

    python merge.py --init runs/base/ckpt_006400.pt --out runs/parallel                 # laptop, about 3 minutes
    python merge.py --average runs/rl/ckpt_000048.pt runs/sft/ckpt_000240.pt --weights 0.5 0.5 --out runs/mean.pt
"""

import argparse
import copy
import math
import time
from pathlib import Path

import torch

from common import (
    Device,
    UserError,
    check_finite,
    load_checkpoint,
    lr_at,
    make_optimizer,
    provenance,
    run,
    save_checkpoint,
    set_lr,
    setup,
    step_with_clip,
    writable_dir,
)
from data.checkpoints import parent_of, restore_optimizer, weights_hash
from data.math_qa import draw, question_prompts, stop_strings, template_for
from data.pass_at_k import VALIDATION_SHOWN, Validation, fitting
from data.prepared import take
from data.resume import given_flags
from data.rl_metrics import note_without_signal, rollout_metrics, samples_to_read
from processes import RANK, gather
from stage import Run, add_system_args, add_training_args, load_start, parse, preset_values
from train_rl import (
    add_rl_args,
    check_rl_args,
    grpo_step,
    reference_model,
    rollout,
    sampler_of,
)
from train_sft import add_sft_args, fitting_examples, load_examples, sft_gradient

PAPER = dict(lr=1e-6, sft_lr=1e-6, steps=2200, warmup_steps=0, prompts_per_step=512, group_size=32, batch_size=512)
PAPER |= dict(max_new_tokens=512, sft_loss_norm="sum", weight_decay=0.01, stop="eos", save_every=100)
PAPER |= dict(max_prompt_tokens=512, max_target_tokens=512, task="openmath", template="paper")
PAPER |= dict(micro_batch_size=8, prompts_per_batch=8)
PRESETS = {"laptop": {}, "paper": PAPER, "paper-math": PAPER | dict(group_size=64)}  # not in the paper: MATH, Gold
PRESETS |= {"paper-gold": PAPER | dict(gold=True), "paper-sft-rl": PAPER}  # the last: from a checkpoint of SFT

SHOWN = {"reward": "reward/mean:.4f", "hits": "reward/hits:d", "no signal": "reward/frac_zero_std_groups:.0%"}
SHOWN |= {"sft": "sft/loss:.4f", "len": "completion/len_mean:.0f", "gnorm": "train/grad_norm:.2f"}
SHOWN |= {"lr": "train/lr:.1e", "tok/s": "perf/tok_per_sec:,.0f", **VALIDATION_SHOWN}


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=raw, epilog=preset_values(PRESETS))
    p.add_argument("--preset", default="laptop", choices=list(PRESETS), help="defaults of the flags below")
    finished = "merge these finished checkpoints; --out is then a file"
    p.add_argument("--average", nargs="+", metavar="CKPT", help=finished)
    p.add_argument("--weights", type=float, nargs="+", help="of RL and SFT, or of the --average files; default: equal")
    between = "steps between averagings; must divide --steps"
    p.add_argument("--sync-every", type=int, default=1, metavar="H", help=between)
    how = "average (the method) | alternate: SFT steps, then an RL step | sum: one optimizer step on both losses"
    p.add_argument("--combine", default="average", choices=["average", "alternate", "sum"], help=how)
    many = "SFT steps before each RL step, with --combine alternate (the paper tried 20)"
    p.add_argument("--sft-steps", type=int, default=1, metavar="N", help=many)
    fewer = "how many fewer they are at each next step, until none is left (its curriculum: 200 and 1)"
    p.add_argument("--sft-fewer", type=int, default=0, metavar="D", help=fewer)
    p.add_argument("--sft-lr", type=float, help="rate of the SFT side, 3e-4; --lr is the RL side's")
    add_training_args(p, steps=48, lr=3e-4)
    add_rl_args(p)
    add_sft_args(p)
    add_system_args(p)
    return p


def parse_args():
    args = parser().parse_args()
    if args.average:
        if args.init or args.resume:
            raise UserError("--average merges finished checkpoints and --init or --resume trains; give one of them")
        if idle := sorted(given_flags(parser()) - {"average", "weights", "out"}):
            flag = idle[0].replace("_", "-")
            raise UserError(f"--{flag} does nothing with --average, which takes --weights and --out alone; drop it")
        if not args.out or Path(args.out).exists():
            what = "with --average this is the new checkpoint's file name; give one that does not exist"
            raise UserError(f"--out {args.out}: {what}")
        args.weights = args.weights or [1 / len(args.average)] * len(args.average)
        if not math.isclose(sum(args.weights), 1.0, abs_tol=1e-6):
            raise UserError(f"--weights {args.weights} sum to {sum(args.weights):g}: an average needs 1; change one")
        if len(args.weights) != len(args.average):
            raise UserError(f"{len(args.weights)} --weights for {len(args.average)} checkpoints; give one weight each")
        return args, None
    args, ckpt = parse(parser(), __file__, PRESETS, fixed=("preset", "combine"))
    check_rl_args(args)
    idle = given_flags(parser()) & ({"sync_every"} if args.combine == "sum" else {"weights", "sync_every"})
    if args.combine != "average" and idle:
        raise UserError(f"--combine {args.combine} averages nothing: drop --{sorted(idle)[0].replace('_', '-')}")
    if args.combine != "alternate" and (args.sft_steps, args.sft_fewer) != (1, 0):
        raise UserError(f"--sft-steps and --sft-fewer are for --combine alternate, not {args.combine}; drop them")
    if args.combine == "sum" and args.sft_lr not in (None, args.lr):
        raise UserError(f"--sft-lr {args.sft_lr:g}: --combine sum takes one step, at --lr {args.lr:g}; drop --sft-lr")
    args.sft_lr = args.lr if args.combine == "sum" else 3e-4 if args.sft_lr is None else args.sft_lr
    args.weights = args.weights or ([1.0, 1.0] if args.combine == "sum" else [0.5, 0.5])
    if not all(map(math.isfinite, args.weights)):
        raise UserError(f"--weights {args.weights}: numbers are needed")
    if len(args.weights) != 2:
        raise UserError(f"{len(args.weights)} --weights: parallel averaging needs two, of RL and of SFT")
    if args.combine == "sum" and args.weights[0] != 1:
        raise UserError(f"--weights {args.weights} with --combine sum: RL's is 1, SFT's is in proportion; change them")
    if args.combine == "sum" and args.updates_per_batch > 1:
        raise UserError("--combine sum takes one step on both gradients; it needs --updates-per-batch 1")
    saves = [*args.save_at, *([args.save_every] if args.save_every else [])]
    if args.sync_every < 1 or any(n % args.sync_every for n in [args.steps, *saves]):
        what = f"--steps and all saving steps {[args.steps, *saves]}"
        raise UserError(f"--sync-every {args.sync_every} must divide {what}")
    return args, ckpt


# ------------------------------------------------------------------------------------------------------ the averaging
@torch.no_grad()
def synchronise(side_a, side_b, anchor: dict, weights: list[float]) -> None:
    """Set both sides to w_A A + w_B B + (1 - w_A - w_B) anchor, and the anchor, if it has a share, to the result. Tied
    weights stay tied."""
    rest = anchor_share(weights)
    for (name, a), (_, b) in zip(side_a.named_parameters(), side_b.named_parameters(), strict=True):
        mean = weights[0] * a + weights[1] * b  # ABLATION: another way to merge
        if rest:
            mean += rest * anchor[name]
        for target in (a, b, anchor[name]) if rest else (a, b):
            target.copy_(mean)


def sft_steps_before(step: int, args) -> int:
    """SFT steps in all before this step: --sft-steps at step 0, --sft-fewer less at each next, never below none."""
    return sum(max(0, args.sft_steps - args.sft_fewer * before) for before in range(step))


def scale_gradients(model, weight: float) -> None:
    for p in model.parameters():
        if weight != 1 and p.grad is not None:
            p.grad *= weight


def anchor_share(weights: list[float]) -> float:
    """Of the weights of the last averaging in the next; 0: they need not be kept."""
    rest = 1.0 - sum(weights)
    return rest if abs(rest) > 1e-12 else 0.0


def shapes(ckpt: dict) -> dict:
    return {name: tensor.shape for name, tensor in ckpt["model"].items()}


def average_checkpoints(paths: list[str], weights: list[float]) -> dict:
    """Weighted mean of the float tensors of checkpoints, in float32. Shapes must be the same, and the weights (by hash)
    from which all started, or which one of them is itself."""
    ckpts = [load_checkpoint(path) for path in paths]
    parents = [parent_of(path, ckpt) for path, ckpt in zip(paths, ckpts, strict=True)]
    first = ckpts[0]
    for path, ckpt in zip(paths, ckpts, strict=True):
        if ckpt["model_config"] != first["model_config"] or shapes(ckpt) != shapes(first):
            raise UserError(f"{path} has another model shape than {paths[0]}; merge checkpoints of one model")
        if ckpt["tokenizer"] != first["tokenizer"]:
            raise UserError(f"{path} has another tokenizer than {paths[0]}; merge checkpoints of one model")
    known = [{mine["hash"], (ckpt["parent"] or mine)["hash"]} for mine, ckpt in zip(parents, ckpts, strict=True)]
    origins = [ckpt["parent"] for ckpt in ckpts if ckpt["parent"]]
    origin = next((o for o in origins if all(o["hash"] in hashes for hashes in known)), None)
    if not origin:
        strange = next((path for path, hashes in zip(paths, known, strict=True) if not hashes & known[0]), paths[-1])
        what = f"{strange} and {paths[0]} do not start from the same checkpoint"
        raise UserError(f"{what}; merge runs with the same --init, or these and the file they started from")
    model = {}
    for name, tensor in first["model"].items():
        model[name] = tensor.clone()
        if tensor.is_floating_point():  # weight 0: not read, so (1, 0) is exact
            parts = [w * c["model"][name].float() for w, c in zip(weights, ckpts, strict=True) if w]
            model[name] = sum(parts[1:], start=parts[0])
    made = provenance(__file__, Device(torch.device("cpu"), torch.float32))
    return {
        **first,
        "stage": "merge",
        "step": max(c["step"] for c in ckpts),
        "model": model,
        "optimizer": None,
        "rng": {},
        "data": {},
        "metrics": {},
        "config": {"average": list(paths), "weights": list(weights), **made},
        "parent": {**origin, "merged": parents},
        "versions": made["versions"],
    }


def main():
    args, ckpt = parse_args()
    if not args.average:
        return train(args, ckpt)
    gather([])  # all have seen that --out is free
    if RANK:  # one process does the rest
        return
    writable_dir(Path(args.out).absolute().parent)
    merged = average_checkpoints(args.average, args.weights)
    save_checkpoint(Path(args.out), merged)
    print(f"saved {args.out} | weights {args.weights} | {weights_hash(merged['model'])[:12]}")


def train(args, ckpt: dict | None) -> None:
    """Parallel averaging, or with `--combine` its two ablations, from a checkpoint."""
    device = setup(args)
    rl_side, enc, questions, start = load_start(args, ckpt, device)
    template = template_for(args.template or args.task)
    sft_side = copy.deepcopy(rl_side) if args.combine == "average" else rl_side
    keep = args.combine == "average" and anchor_share(args.weights)
    anchor = {name: p.detach().clone() for name, p in rl_side.named_parameters()} if keep else {}
    prompts = question_prompts(enc, questions, template)
    examples = load_examples(enc, questions, template, args.gold)
    examples = fitting_examples(examples, rl_side.config.block_size, args)
    room, limit = (args.max_new_tokens, rl_side.config.block_size), dict(longest=args.max_prompt_tokens)
    kept = fitting(prompts, *room, "questions", args.strict_length, **limit)
    questions, prompts = take(questions, kept), take(prompts, kept)
    stop = stop_strings(args, enc, template)
    rl_optimizer, sft_optimizer = make_optimizer(rl_side, args), make_optimizer(sft_side, args, args.sft_lr)
    if ckpt:
        restore_optimizer(rl_optimizer, ckpt["optimizer"].get("rl"), args.resume)
        if args.combine != "sum":  # there it takes no step
            restore_optimizer(sft_optimizer, ckpt["optimizer"].get("sft"), args.resume)
    ref = reference_model(rl_side, args, ckpt, start)
    validation = Validation(args, enc, rl_side, device)  # between two averagings, of the RL side
    out = Run(args, __file__, device, start)
    sampler = sampler_of(rl_side, start, args)
    how = f"weights {args.weights} every {args.sync_every} steps" if args.combine == "average" else args.combine
    rl = f"RL {args.prompts_per_step} questions x {args.group_size} completions"
    print(f"{len(questions)} {args.task} questions | {rl} and SFT {args.batch_size} of {len(examples)} examples a step")
    print(f"combine: {how}")

    if start.step == 0 and validation.due(0):
        out.log(0, SHOWN, validation.scores())
    signal = False
    for step in range(start.step, args.steps):
        began = time.time()
        set_lr(rl_optimizer, lr := lr_at(step, args, args.lr, "constant"))
        set_lr(sft_optimizer, lr_at(step, args, args.sft_lr, "constant"))
        trained, metrics = 0, {"sft/loss": None, "sft/grad_norm": None}
        for k in range(sft_steps_before(step, args), sft_steps_before(step + 1, args)):
            pairs = [examples[i] for i in draw(len(examples), args.batch_size, k, args.seed + 1)]
            stats = sft_gradient(sft_side, pairs, args, device)
            check_finite(stats["loss"], step + 1, args.out)
            trained += stats["tokens"]
            metrics["sft/loss"] = stats["loss"]
            if args.combine == "sum":  # the gradient waits for RL's, and grpo_step takes one step on both
                scale_gradients(sft_side, args.weights[1])
            else:
                norm = step_with_clip(sft_side, sft_optimizer, args.grad_clip, step + 1, args.out)  # theta_B
                metrics["sft/grad_norm"] = norm
        drawn = draw(len(questions), args.prompts_per_step, step, args.seed)
        batch = rollout(sampler, enc, questions, prompts, drawn, step, args, device, stop)
        metrics |= rollout_metrics(batch, args.group_size)
        metrics |= grpo_step(rl_side, ref, rl_optimizer, batch, args, device, step)  # theta_A
        done = step + 1
        if args.combine == "average" and done % args.sync_every == 0:
            synchronise(rl_side, sft_side, anchor, args.weights)
        seconds = time.time() - began
        signal |= metrics["reward/frac_zero_std_groups"] < 1
        metrics |= {"train/lr": lr, "train/updates": done * args.updates_per_batch, "perf/step_ms": 1e3 * seconds}
        metrics |= {"perf/tok_per_sec": (metrics["completion/tokens"] + trained) / seconds}
        metrics |= validation.scores() if validation.due(done) else {}
        out.log(done, SHOWN, metrics)
        if out.samples_due(done):
            out.samples(done, samples_to_read(batch, args.group_size, enc))
        if out.due(done) or (out.stopping and done % args.sync_every == 0):  # between, the sides differ
            out.save(done, rl_side, {"rl": rl_optimizer, "sft": sft_optimizer}, metrics)
    if not signal:
        note_without_signal(start.step + 1, metrics)


if __name__ == "__main__":
    run(main, many=True)
