"""The tiles of every kernel, by target: chosen by `python -m kernels.compile_report --try`, not by autotuning, which is
slow to start and may choose differently in two runs. docs/kernels.md has what each row compiles to; kernels/README.md
has the rule. The interpreter takes small tiles, but of the proportions a GPU uses.

Targets: sm80 stands for sm_80, sm_86, sm_89 and sm_120 (see dispatch.target_of_capability), gfx942 for all of AMD's.
"""

from typing import NamedTuple

import torch

HEAD_SIZES = (32, 64, 128)  # of the attention kernels


class AttentionTile(NamedTuple):
    queries: int  # BLOCK_M
    keys: int  # BLOCK_N
    warps: int
    stages: int


class LogprobTile(NamedTuple):
    rows: int  # BLOCK_N
    words: int  # BLOCK_V
    width: int  # BLOCK_D, of one step of the product
    warps: int
    stages: int
    precision: str = "tf32"  # of float32 products; 16-bit ones ignore it


# Forward, dk/dv, dq, for 16-bit inputs. Head size 32 takes the row of 64.
ATTENTION_TILES = {
    ("sm80", 64): ((128, 128, 8, 2), (32, 128, 8, 2), (128, 64, 8, 2)),
    ("sm80", 128): ((128, 32, 8, 2), (16, 128, 8, 2), (128, 32, 8, 2)),
    ("sm90", 64): ((128, 128, 8, 2), (64, 128, 8, 2), (128, 64, 8, 2)),
    ("sm90", 128): ((128, 128, 8, 2), (32, 128, 8, 2), (128, 64, 8, 2)),
    ("sm100", 64): ((128, 64, 4, 3), (64, 128, 8, 2), (128, 64, 4, 2)),
    ("sm100", 128): ((128, 64, 8, 2), (64, 128, 8, 2), (128, 64, 4, 2)),
    ("gfx942", 64): ((128, 64, 4, 1), (32, 128, 4, 1), (128, 64, 4, 1)),
    ("gfx942", 128): ((128, 64, 4, 1), (32, 128, 4, 1), (128, 32, 4, 1)),
}
# Float32 multiplies in ieee arithmetic, on NVIDIA without tensor cores, so its tiles are small.
FLOAT32_TILES = {
    ("nvidia", 64): ((32, 32, 8, 1), (16, 32, 4, 1), (16, 32, 4, 1)),
    ("nvidia", 128): ((16, 16, 4, 1), (32, 32, 8, 1), (16, 32, 4, 1)),
    ("gfx942", 64): ((32, 16, 4, 1), (16, 32, 4, 1), (32, 16, 4, 1)),
    ("gfx942", 128): ((32, 16, 4, 1), (16, 32, 4, 1), (32, 16, 4, 1)),
}
INTERPRETER_TILES = ((32, 64, 4, 1), (16, 64, 4, 1), (64, 32, 4, 1))
DELTA_BLOCK = 64  # queries a program of _attn_bwd_delta

# Forward and backward of 16-bit inputs; forward and backward of float32, on NVIDIA as three tf32 products ("tf32x3"),
# which is as exact as a float32 product (tests/kernels/test_logprob.py).
_FLOAT32 = (LogprobTile(128, 64, 32, 8, 2, "tf32x3"),) * 2
LOGPROB_TILES = {
    "sm80": ((LogprobTile(128, 128, 32, 8, 3), LogprobTile(128, 256, 32, 8, 3)), _FLOAT32),
    "sm90": ((LogprobTile(128, 256, 64, 8, 3), LogprobTile(128, 128, 64, 8, 3)), _FLOAT32),
    "sm100": ((LogprobTile(128, 128, 64, 8, 3), LogprobTile(128, 256, 64, 8, 3)), _FLOAT32),
    "gfx942": ((LogprobTile(128, 256, 32, 8, 2),) * 2, (LogprobTile(128, 128, 32, 8, 2, "ieee"),) * 2),
    "interpreter": ((LogprobTile(16, 64, 32, 4, 1, "ieee"), LogprobTile(32, 64, 32, 4, 1, "ieee")),) * 2,
}

# (BLOCK_M rows of the group, BLOCK_N keys, warps, stages) of decoding, by head size, for every target: the work is
# reading keys, and 16 rows is the least a tensor core takes. Float32 reads fewer keys at a time.
DECODE_TILES = {32: (16, 128, 4, 2), 64: (16, 64, 4, 2), 128: (16, 64, 4, 2), "float32": (16, 32, 4, 2)}


def attention_tiles(target: str, D: int, dtype: torch.dtype) -> tuple[AttentionTile, AttentionTile, AttentionTile]:
    """Forward, dk/dv and dq."""
    if target == "interpreter":
        rows = INTERPRETER_TILES
    elif dtype == torch.float32:
        rows = FLOAT32_TILES["gfx942" if target == "gfx942" else "nvidia", max(D, 64)]
    else:
        rows = ATTENTION_TILES[target, max(D, 64)]
    return tuple(AttentionTile(*row) for row in rows)


# What `python -m kernels.compile_report --try TARGET` compiles: the set that the tables above were chosen from.
CANDIDATES = {
    ("_attn_fwd", 64): [
        (128, 128, 8, 2),
        (128, 64, 8, 2),
        (128, 64, 8, 3),
        (128, 64, 4, 2),
        (128, 64, 4, 3),
        (64, 64, 4, 2),
    ],
    ("_attn_fwd", 128): [
        (128, 128, 8, 2),
        (128, 64, 8, 2),
        (128, 64, 8, 3),
        (128, 64, 4, 2),
        (128, 32, 8, 2),
        (128, 32, 4, 2),
        (64, 64, 4, 2),
        (64, 64, 4, 3),
    ],
    ("_attn_bwd_dkdv", 64): [
        (64, 128, 8, 1),
        (64, 128, 8, 2),
        (32, 128, 8, 2),
        (32, 128, 4, 2),
        (64, 64, 8, 2),
        (64, 64, 4, 2),
        (32, 64, 4, 2),
    ],
    ("_attn_bwd_dkdv", 128): [
        (64, 128, 8, 1),
        (64, 128, 8, 2),
        (32, 128, 8, 1),
        (32, 128, 8, 2),
        (32, 128, 4, 2),
        (16, 128, 8, 2),
        (32, 64, 8, 1),
        (32, 64, 8, 2),
        (32, 64, 4, 1),
        (32, 64, 4, 2),
        (16, 64, 4, 2),
    ],
    ("_attn_bwd_dq", 64): [
        (128, 64, 8, 2),
        (128, 64, 4, 2),
        (128, 32, 4, 2),
        (64, 64, 4, 2),
        (64, 32, 4, 2),
    ],
    ("_attn_bwd_dq", 128): [
        (128, 64, 8, 1),
        (128, 64, 8, 2),
        (128, 32, 8, 2),
        (128, 32, 4, 2),
        (64, 64, 4, 2),
        (64, 32, 4, 2),
        (128, 64, 4, 2),
    ],
    ("_logprob_fwd", None): [
        (128, 128, 32, 8, 3),
        (128, 128, 64, 8, 3),
        (128, 256, 32, 8, 3),
        (128, 256, 64, 8, 3),
        (256, 128, 32, 8, 3),
    ],
    ("_logprob_bwd", None): [
        (128, 128, 32, 8, 3),
        (128, 128, 64, 8, 3),
        (128, 256, 32, 8, 3),
        (128, 256, 64, 8, 3),
        (256, 128, 32, 8, 3),
    ],
}
