"""Training-step speed: forward, backward, clip to 1.0, AdamW. Prints one JSON line.

    python -m bench.pretrain                          # the peers' shape: 32 x 256 tokens, OLMo 2's block
    python -m bench.pretrain --arch world --batch 16 --block 640
    python -m bench.pretrain --device cuda --preset gpt2 --dtype bf16 --batch 64 --block 1024 --micro 16 --documents 512

A step runs as train_pretrain.py runs it: micro-batches of --micro rows, their gradients summed. The micro-batch is this
project's own choice (memory and caches only: the gradient is that of the whole batch).
"""

import argparse
import statistics

import torch

from bench.timing import begin, report, shape_parser, timed
from common import make_optimizer, step_with_clip
from train_pretrain import pretrain_loss


def main():
    p = shape_parser(__doc__)
    p.add_argument("--batch", type=int, default=32, help="rows of a step")
    p.add_argument("--block", type=int, default=256, help="tokens of a row")
    p.add_argument("--micro", type=int, default=8, help="rows in one forward pass")
    p.add_argument("--warmup", type=int, default=2)
    p.add_argument("--steps", type=int, default=3, help="steps in each timed repeat")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument(
        "--documents", type=int, default=0, help="tokens of a document that attends to itself; 0: whole rows"
    )
    p.add_argument("--compile", action="store_true", help="torch.compile the blocks")
    a = p.parse_args()
    model, device = begin(a, block_size=a.block)
    if a.compile:
        model.compile_blocks()
    optimizer = make_optimizer(model, argparse.Namespace(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95)))
    batches = [torch.randint(a.vocab, (a.batch, a.block + 1)) for _ in range(4)]
    if a.documents:  # id 0 ends a document
        for batch in batches:
            batch[:, :: a.documents] = 0
    batches = [batch.to(device.device) for batch in batches]
    eot, losses = 0 if a.documents else None, []

    def steps(count):
        for i in range(count):
            loss = 0.0
            for micro in batches[i % len(batches)].split(a.micro):
                with device.autocast():
                    objective, nll = pretrain_loss(model, micro, a.batch * a.block, 0.0, eot)
                objective.backward()
                loss += nll.item()
            step_with_clip(model, optimizer, 1.0)
            losses.append(loss)

    steps(a.warmup)
    times, _, cpu = timed(lambda: steps(a.steps), a.repeats)
    rate = a.batch * a.block * a.steps / statistics.median(times)
    flops = model.config.flops_per_token(a.block)
    report(
        a,
        "pretrain step",
        times,
        cpu,
        tokens_per_s=rate,
        s_per_step=statistics.median(times) / a.steps,
        matmul_gflops=rate * flops / 1e9,
        first_loss=losses[0],
        last_loss=losses[-1],
        losses=losses,
    )


if __name__ == "__main__":
    main()
