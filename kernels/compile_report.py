"""Static gate: compile every kernel ahead of time for seven GPU targets, with no GPU, and look at the machine code.

    python -m kernels.compile_report [--out docs/kernels.md] [--jobs 2] [--only REGEX] [--quick]
    python -m kernels.compile_report --try cuda:90       the candidates of kernels/tiles.py, to choose a target's tiles
    python -m kernels.compile_report --quick --out tests/kernels/gate.md       after an edit of a kernel: see below

Exit 1 on a violation: a spill inside a walk over tiles, more 2^x than scores (then warps compute the same scores),
more instructions a score than the target's limit, more shared memory than a block may have, or a 16-bit `tl.dot` that
became no matrix instruction. It says that the kernels compile well; it is no measurement of speed: nothing has run.

A table names the code that it was made of. While tests/kernels/gate.md is of today's code, the tests build a few
kernels alone; else they build its whole list, which takes minutes.
"""

import argparse
import contextlib
import hashlib
import io
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch

from kernels import attention_triton, decode, logprob, machine_code, tiles
from kernels.machine_code import analyse, disassemble


@dataclass(frozen=True)
class Target:
    """Shared bytes a block and warps a multiprocessor may have; limits of instructions a score of 16-bit attention,
    forward at head size 128 and backward."""

    tiles: str
    shared: int
    warps: int
    forward: float
    backward: float


# One matrix instruction of sm_90 and sm_100 multiplies 64 rows or more, one of sm_80 (and of sm_86, sm_89, sm_120) 16,
# so the same tile takes more of them there.
TARGETS = {
    "cuda:80": Target("sm80", 163 * 1024, 64, 0.62, 0.80),
    "cuda:86": Target("sm80", 99 * 1024, 48, 0.62, 0.80),
    "cuda:89": Target("sm80", 99 * 1024, 48, 0.62, 0.80),
    "cuda:90": Target("sm90", 227 * 1024, 64, 0.33, 0.60),
    "cuda:100": Target("sm100", 227 * 1024, 64, 0.37, 0.60),
    "cuda:120": Target("sm80", 99 * 1024, 48, 0.62, 0.80),
    "hip:gfx942": Target("gfx942", 64 * 1024, 32, 0.33, 0.60),
}
QUICK = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")
EXP2 = 1.05  # 2^x over scores. A forward also rescales each row, in the four lanes that share it: 4 / BLOCK_N more
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MODULES = {"_attn": attention_triton, "_deco": decode, "_logp": logprob}
INT_POINTERS = {"first_ptr": "i32", "shared_ptr": "i32", "range_ptr": "i32", "length_ptr": "i64", "y_ptr": "i64"}
INT_POINTERS |= {"row_of_ptr": "i64", "seat_of_ptr": "i64"}
FLOAT_POINTERS = set("lse_ptr delta_ptr part_ptr stat_ptr ent_ptr g_logp_ptr g_lse_ptr g_ent_ptr".split())
ONES = (
    "B",
    "H",
    "H_kv",
    "T",
    "G",
    "N",
    "V",
    "Tp",
    "Tt",
    "splits",
    "seats",
)  # arguments that Triton makes constants of where they are 1


@dataclass
class Build:
    target: str
    kernel: str
    dtype: str
    head_size: int | None
    constexprs: dict
    warps: int
    stages: int
    ones: tuple = ()  # arguments compiled as the constant 1
    row: tuple = field(init=False)  # the line of the table that it shares with others

    def __post_init__(self):
        kind, size = "fp32" if self.dtype == "fp32" else "16 bit", "any"
        if self.kernel == "_attn_bwd_delta" or self.kernel.startswith("_decode"):
            kind = "any"
        elif self.head_size and kind == "16 bit":
            size = "128" if self.head_size == 128 else "32, 64"
        self.row = self.target, self.kernel, kind, size

    @property
    def tile(self) -> tuple[int, ...]:
        return tuple(v for k, v in self.constexprs.items() if k.startswith("BLOCK"))

    @property
    def name(self) -> str:
        words = [self.target, self.kernel, self.dtype, f"D{self.head_size}" if self.head_size else ""]
        words += [key.lower() for key in ("HAS_FIRST", "HAS_SHARED", "ENTROPY") if self.constexprs.get(key)]
        return " ".join(filter(None, words + [f"{name}=1" for name in self.ones]))


def attention_builds(target: str, dtype: str, D: int, masks: tuple) -> list[Build]:
    """Forward, dk/dv and dq of one head size, and delta. masks: (HAS_FIRST, HAS_SHARED) of each build."""
    rows = tiles.attention_tiles(TARGETS[target].tiles, D, DTYPES[dtype])
    precision = "ieee" if dtype == "fp32" else "tf32"
    builds = []
    for kernel, tile in zip(("_attn_fwd", "_attn_bwd_dkdv", "_attn_bwd_dq"), rows, strict=True):
        for has_first, shared in masks:
            sizes = dict(BLOCK_M=tile.queries, BLOCK_N=tile.keys, HEAD_DIM=D)
            options = sizes | dict(HAS_FIRST=has_first, HAS_SHARED=shared, PRECISION=precision)
            builds.append(Build(target, kernel, dtype, D, options, tile.warps, tile.stages))
    options = dict(BLOCK_M=tiles.DELTA_BLOCK, HEAD_DIM=D)
    return [*builds, Build(target, "_attn_bwd_delta", dtype, D, options, 4, 2)]


def decode_builds(target: str, dtype: str, D: int) -> list[Build]:
    M, N, warps, stages = tiles.DECODE_TILES["float32" if dtype == "fp32" else D]
    tail = dict(BLOCK_N=N, HEAD_DIM=D, HAS_SEATS=True, HAS_LENGTHS=False)  # as the sampler calls them
    prefix = tail | dict(BLOCK_M=M, HAS_FIRST=True, PRECISION="ieee" if dtype == "fp32" else "tf32")
    kinds = {"_decode_prefix": dict(sorted(prefix.items())), "_decode_tail": tail}
    return [Build(target, kernel, dtype, D, options, warps, stages) for kernel, options in kinds.items()]


def logprob_builds(target: str, dtype: str, entropy: tuple[bool, ...]) -> list[Build]:
    rows = tiles.LOGPROB_TILES[TARGETS[target].tiles][dtype == "fp32"]
    builds = []
    for kernel, tile in zip(("_logprob_fwd", "_logprob_bwd"), rows, strict=True):
        sizes = dict(BLOCK_N=tile.rows, BLOCK_V=tile.words, BLOCK_D=tile.width)
        fixed = dict(GROUP=logprob.GROUP, PRECISION=tile.precision, stride_hd=1, stride_wd=1)
        for asked in entropy:
            builds.append(
                Build(target, kernel, dtype, None, sizes | fixed | dict(ENTROPY=asked), tile.warps, tile.stages)
            )
    return builds


def all_builds(quick: bool = False) -> list[Build]:
    """Every kernel with the tiles its table gives: bf16 with every mask, with entropy and without; fp16 and fp32 with
    `first` and with entropy."""
    builds, both, one = [], (True, False), (True,)
    plain, packed, shared = (False, False), (True, False), (True, True)
    for target in QUICK if quick else TARGETS:
        for D in (64, 128) if quick else tiles.HEAD_SIZES:
            builds += attention_builds(target, "bf16", D, (packed,) if quick else (plain, packed, shared))
            builds += decode_builds(target, "bf16", D)
            if not quick:
                builds += attention_builds(target, "fp16", D, (packed,))
            if not quick or (target, D) == ("cuda:90", 128):
                builds += attention_builds(target, "fp32", D, (packed,)) + decode_builds(target, "fp32", D)
        builds += logprob_builds(target, "bf16", one if quick else both)
        if not quick:
            builds += logprob_builds(target, "fp16", one) + logprob_builds(target, "fp32", one)
    return builds


def candidates(target: str) -> list[Build]:
    """The named set of 16-bit tiles for one target, in place of those of its table."""
    builds = []
    for (kernel, D), rows in tiles.CANDIDATES.items():
        for *sizes, warps, stages in rows:
            if kernel.startswith("_attn"):
                options = dict(BLOCK_M=sizes[0], BLOCK_N=sizes[1], HEAD_DIM=D, HAS_FIRST=True)
                options |= dict(HAS_SHARED=False, PRECISION="tf32")
            else:
                options = dict(BLOCK_N=sizes[0], BLOCK_V=sizes[1], BLOCK_D=sizes[2], ENTROPY=True)
                options |= dict(GROUP=logprob.GROUP, PRECISION="tf32", stride_hd=1, stride_wd=1)
            stages = 1 if target.startswith("hip") and kernel.startswith("_attn") else stages
            build = Build(target, kernel, "bf16", D, options, warps, stages)
            builds += [build] if build not in builds else []
    return builds


def argument_type(name: str, dtype: str) -> str:
    """Triton's type of a kernel argument, by the naming rules of our kernels."""
    if name.endswith("_ptr"):
        return "*" + INT_POINTERS.get(name, "fp32" if name in FLOAT_POINTERS else dtype)
    return "fp32" if name in ("scale", "scale2", "inv_temp") else "i32"


def compile_one(build: Build) -> dict:
    """The columns of one build: registers, shared bytes, occupancy, and what its machine code holds."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fn = getattr(MODULES[build.kernel[:5]], build.kernel)
    constants = build.constexprs | dict.fromkeys(build.ones, 1)
    signature = {n: "constexpr" if n in constants else argument_type(n, build.dtype) for n in fn.arg_names}
    # What the launcher would find out: torch's pointers and the strides of (.., T, D) tensors are multiples of 16.
    aligned = [
        i
        for i, n in enumerate(fn.arg_names)
        if (n.endswith("_ptr") or n.startswith("stride") or n == "D") and n not in constants
    ]
    source = ASTSource(fn, signature, constexprs=constants, attrs={(i,): [["tt.divisibility", 16]] for i in aligned})
    backend, arch = build.target.split(":")
    target = GPUTarget(backend, int(arch) if backend == "cuda" else arch, 32 if backend == "cuda" else 64)
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        kernel = triton.compile(source, target=target, options=dict(num_warps=build.warps, num_stages=build.stages))
    shared = kernel.metadata.shared
    if backend == "hip":
        listing = kernel.asm["amdgcn"]
        registers = max(map(int, re.findall(r"\.vgpr_count:?\s+(\d+)", listing)), default=0)
        waves = min(8, 512 // max(8, -(-registers // 8) * 8)) * 4  # 4 SIMDs of 512 registers a lane
        blocks = min(waves // build.warps, 64 * 1024 // max(shared, 1), 16)
    else:
        listing = disassemble(kernel.asm["cubin"])
        registers = int(re.search(r"Used (\d+) registers", log.getvalue()).group(1))
        by_registers = 65536 // (-(-registers // 8) * 8 * 32 * build.warps)
        by_shared = (TARGETS[build.target].shared + 1024) // (shared + 1024)
        blocks = min(by_registers, by_shared, TARGETS[build.target].warps // build.warps, 32)
    row = dict(registers=registers, shared=shared, occupancy=100 * blocks * build.warps // TARGETS[build.target].warps)
    return (
        row
        | loop_columns(build, analyse(listing, backend), 32 if backend == "cuda" else 64)
        | dict(dots="tt.dot" in kernel.asm["ttir"])
    )


def loop_columns(build: Build, loops, lanes: int) -> dict:
    """Spills inside walks and elsewhere; 2^x and the product loop's instructions a score; matrix instructions."""
    scores = build.tile[0] * build.tile[1] if len(build.tile) > 1 else None
    inside = sum(code.spills for code in loops.walks)
    found = dict(spills=inside, other_spills=loops.whole.spills - inside, matrix="", exp2=None, instructions=None)
    if loops.product and scores:
        exp2 = loops.product.exp2 or min((code.exp2 for code in loops.walks if code.exp2), default=loops.whole.exp2)
        found["exp2"] = exp2 * lanes * build.warps / scores
        found["instructions"] = loops.product.instructions * build.warps / scores
        found["matrix"] = ", ".join(f"{n} {shape}" for shape, n in sorted(loops.product.matrix.items()))
    return found


def violations(build: Build, row: dict) -> list[str]:
    """What the gate objects to in one build, in words."""
    target, found = TARGETS[build.target], []
    if row["spills"]:
        found.append(f"{row['spills']} spills in a walk over tiles, 0 allowed")
    if row["shared"] > target.shared:
        found.append(f"{row['shared']} bytes of shared memory, the target has {target.shared}")
    if row["dots"] and not row["matrix"] and build.dtype != "fp32":
        found.append("has a dot and no matrix instruction")
    if not build.kernel.startswith("_attn") or build.dtype == "fp32" or row["exp2"] is None:
        return found
    forward = build.kernel == "_attn_fwd"
    exp2 = EXP2 + (4 / build.tile[1] if forward else 0)
    if row["exp2"] > exp2:
        found.append(f"{row['exp2']:.2f} 2^x a score, {exp2:.2f} allowed: warps compute the same scores")
    limit = target.backward if not forward else target.forward if build.head_size == 128 else None
    if limit and row["instructions"] > limit:
        found.append(f"{row['instructions']:.2f} instructions a score, {limit:.2f} allowed")
    return found


COLUMNS = "target | kernel | dtype | D | tile x warps x stages | registers | spills | shared B | instr. a score | "
COLUMNS += "2^x a score | matrix instructions | occupancy"


def table_row(builds: list[Build], rows: list[dict]) -> str:
    """One line for the builds of a row: of each number the worst."""
    b, worst = builds[0], lambda key: max((r[key] for r in rows if r[key] is not None), default=None)

    def number(value):
        return "" if value is None else f"{value:.3f}"

    spills = f"{worst('spills')} + {worst('other_spills')}"
    tiles_of_row = dict.fromkeys("x".join(map(str, (*b.tile, b.warps, b.stages))) for b in builds)
    cells = [*b.row, ", ".join(tiles_of_row), worst("registers"), spills]
    cells += [f"{worst('shared'):,}", number(worst("instructions")), number(worst("exp2"))]
    longest = max(rows, key=lambda r: r["instructions"] or 0)
    cells += [longest["matrix"], f"{min(r['occupancy'] for r in rows)} %"]
    return " | ".join(map(str, cells))


def report(builds: list[Build], rows) -> list[str]:
    """The table in Markdown, then the verdict; `rows` come in the order of `builds`."""
    groups, bad = {}, []
    for build, row in zip(builds, rows, strict=True):
        groups.setdefault(build.row, []).append((build, row))
        bad += [f"VIOLATION {build.name}: {problem}" for problem in violations(build, row)]
        print(f"{build.name}: {row}", file=sys.stderr, flush=True)
    lines = [COLUMNS, "|".join(["---"] * 12)]
    lines += [table_row(*map(list, zip(*group, strict=True))) for group in groups.values()]
    return [*lines, "", *(bad or [f"{len(builds)} builds, no violation."])]


def trial(builds: list[Build], rows) -> list[str]:
    """The table of candidates, each with what the gate says of it."""
    lines = [COLUMNS + " | verdict", "|".join(["---"] * 13)]
    for build, row in zip(builds, rows, strict=True):
        lines.append(f"{table_row([build], [row])} | {'; '.join(violations(build, row)) or 'passes'}")
    return lines


HEADER = """# What the kernels compile to

Written by `python -m kernels.compile_report{flags}` with triton {version}, of code {code}. A static gate, not a speed:
every kernel is compiled ahead of time and its machine code inspected. **Not yet run on a GPU.** A line stands for
several builds (bf16 and fp16, every mask, head sizes that share a tile; of float32 and decoding all) and shows the
worst of each number.

- registers: a thread's (AMD: VGPRs). occupancy: of a multiprocessor's warp slots, by registers and shared memory.
- spills: loads and stores of registers in memory, inside the walks over tiles (must be 0) + elsewhere, once a block.
- instr. a score: instructions of all warps in the loop without a mask, over the scores of a tile. Of log-prob: in one
  step along the width. Limits at 16 bit, forward at head size 128 / backward: {limits}.
- 2^x a score: 1 is what softmax needs; 2 would say that two groups of warps compute the same scores. At most 1.05, and
  in a forward 4 / (keys of the tile) more, for each row's rescaling.
- matrix instructions: in the longest such loop of the line. Shared memory a block may have: {shared}.

"""


def code() -> str:
    """10 hex digits of what a table depends on: the kernels, their tiles, this gate, and Triton's version."""
    files = [module.__file__ for module in (attention_triton, decode, logprob, tiles, machine_code)]
    digest = hashlib.sha256(logprob.triton.__version__.encode())
    for path in map(Path, (*files, __file__)):
        digest.update(path.read_text(encoding="utf-8").encode())
    return digest.hexdigest()[:10]


def header(flags: str) -> str:
    limits = ", ".join(f"{name} {t.forward:.2f} / {t.backward:.2f}" for name, t in TARGETS.items())
    shared = ", ".join(f"{name} {t.shared // 1024} KiB" for name, t in TARGETS.items())
    return HEADER.format(flags=flags, version=logprob.triton.__version__, code=code(), limits=limits, shared=shared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--jobs", type=int, default=2, help="builds at a time, each in its own process")
    parser.add_argument(
        "--only", default="", help="regular expression on 'target kernel dtype D has_first'; empty = all"
    )
    parser.add_argument("--quick", action="store_true", help="the part that CI runs: four targets, 62 builds")
    parser.add_argument("--try", dest="tried", metavar="TARGET", choices=TARGETS, help="compile the candidate tiles")
    args = parser.parse_args()
    if logprob.triton is None:
        parser.error("Triton is not installed: its wheels exist for Linux only; run this on Linux")
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        parser.error("TRITON_INTERPRET=1 is set: compiled and interpreted Triton cannot share a process; unset it")
    builds = candidates(args.tried) if args.tried else all_builds(args.quick)
    builds = [b for b in builds if re.search(args.only, b.name)]
    if not builds:
        parser.error(f"--only {args.only}: no build has such a name; look at the first columns of docs/kernels.md")
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        lines = (trial if args.tried else report)(builds, pool.map(compile_one, builds))
    print("\n".join(lines))
    if args.out:
        flags = "".join(f" {word}" for word in sys.argv[1:])
        args.out.write_text(header(flags) + "\n".join(lines) + "\n")
    sys.exit(1 if "VIOLATION" in lines[-1] else 0)


if __name__ == "__main__":
    main()
