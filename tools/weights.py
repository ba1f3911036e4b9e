"""A checkpoint without its optimizer: a third of the size, to share. It starts new runs (`--init`) and can be evaluated
and sampled from; `--resume` needs the whole file.

    python -m tools.weights runs/base/ckpt_006400.pt --out base.pt

checkpoints/world_base.pt was made so, from the lab study's first pre-training (docs/results/lab), 8.2M tokens of a
schedule of 16.4M, in float32, since that machine has no bfloat16:

    python -m data.world
    python train_pretrain.py --steps 6400 --horizon 12800 --lr 0.0025 --micro-batch-size 2 --dtype bfloat16 \\
        --eval-every 800 --save-at 100 400 800 1600 2400 3200 5120 6400 --seed 1 --threads 1 --out runs/base
"""

import argparse
from pathlib import Path

from common import UserError, load_checkpoint, run, save_checkpoint, writable_dir
from data.checkpoints import weights_hash


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m tools.weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("ckpt", metavar="CKPT", help="a checkpoint that a stage wrote")
    p.add_argument("--out", required=True, metavar="FILE.pt", help="the new file")
    args = p.parse_args()
    out = Path(args.out)
    if out.exists():
        raise UserError(f"--out {out} exists; give the name of a new file")
    writable_dir(out.absolute().parent)
    ckpt = load_checkpoint(args.ckpt)
    save_checkpoint(out, ckpt | {"optimizer": {}, "rng": {}})
    print(f"saved {out} | {out.stat().st_size / 1e6:.1f} MB | weights {weights_hash(ckpt['model'])[:12]}")


if __name__ == "__main__":
    run(main)
