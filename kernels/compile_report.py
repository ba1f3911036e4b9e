"""Static gate: compile every kernel ahead of time for four GPU targets, with no GPU, and look at what came out.

    python -m kernels.compile_report [--out docs/kernels.md] [--jobs 2] [--only REGEX]

One row a build, starting with its target: tile, registers a thread, spilled bytes, shared memory, matrix instructions
in the machine code, and the occupancy those allow. Exit 1 on a violation: any spill in a forward kernel, more than 64
bytes in a backward kernel, more shared memory than a block of the target may have, or a `tl.dot` that became no matrix
instruction. This says that the kernels compile well. It is no measurement of speed: nothing here has run.
"""

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from kernels import attention, decode, logprob

SHARED_LIMIT = {"cuda:80": 163 * 1024, "cuda:90": 227 * 1024, "cuda:100": 227 * 1024, "hip:gfx942": 64 * 1024}
TILE_KEY = {"cuda:80": "sm80", "cuda:90": "sm90", "cuda:100": "sm100", "hip:gfx942": "gfx942"}
MATRIX = r"\b(HMMA|HGMMA|UTCHMMA|v_mfma)"
BACKWARD_SPILL = 64  # bytes a thread
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
INT_POINTERS = {"first_ptr": "i32", "last_ptr": "i32", "length_ptr": "i32", "y_ptr": "i64"}
FLOAT_POINTERS = {"lse_ptr", "delta_ptr", "part_ptr", "stat_ptr", "ent_ptr", "a_ptr", "b_ptr", "c_ptr"}


@dataclass
class Build:
    target: str
    module: str
    kernel: str
    dtype: str
    head_size: int | None
    constexprs: dict
    warps: int
    stages: int

    @property
    def name(self) -> str:
        size = f" D{self.head_size}" if self.head_size else ""
        first = " first" if self.constexprs.get("HAS_FIRST") else ""
        return f"{self.target} {self.kernel} {self.dtype}{size}{first}"


def all_builds() -> list[Build]:
    """Every kernel of every file with the tiles its table gives. Attention kernels once with and once without
    `first`."""
    builds = []
    for target in SHARED_LIMIT:
        for dtype in DTYPES:
            for D in attention.HEAD_SIZES:
                tiles = attention.tiles_for(TILE_KEY[target], D, DTYPES[dtype])
                for kernel, tile in zip(("_attn_fwd", "_attn_bwd_dkdv", "_attn_bwd_dq"), tiles, strict=True):
                    for has_first in (True, False):
                        options = dict(
                            BLOCK_M=tile[0], BLOCK_N=tile[1], HEAD_DIM=D, HAS_FIRST=has_first, PRECISION="tf32"
                        )
                        builds.append(Build(target, "attention", kernel, dtype, D, options, *tile[2:]))
                options = dict(BLOCK_M=attention.DELTA_BLOCK, HEAD_DIM=D)
                builds.append(Build(target, "attention", "_attn_bwd_delta", dtype, D, options, 4, 2))
                M, N, warps, stages = decode.TILES[D]
                options = dict(BLOCK_M=M, BLOCK_N=N, HEAD_DIM=D, PRECISION="tf32")
                builds.append(Build(target, "decode", "_decode_prefix", dtype, D, options, warps, stages))
                builds.append(
                    Build(target, "decode", "_decode_tail", dtype, D, dict(BLOCK_N=N, HEAD_DIM=D), warps, stages)
                )
            N, V, D, warps, stages = logprob.TILES[TILE_KEY[target]][0]
            options = dict(BLOCK_N=N, BLOCK_V=V, BLOCK_D=D, PRECISION="tf32", stride_hd=1, stride_wd=1)
            for kernel in ("_logprob_fwd", "_logprob_bwd"):
                builds.append(Build(target, "logprob", kernel, dtype, None, options, warps, stages))
    return builds


def argument_type(name: str, dtype: str) -> str:
    """Triton's type of a kernel argument, by the naming rules of our kernels."""
    if name.endswith("_ptr"):
        return "*" + INT_POINTERS.get(name, "fp32" if name in FLOAT_POINTERS else dtype)
    return "fp32" if name in ("scale", "scale2", "inv_temp") else "i32"


def compile_one(build: Build) -> dict:
    """Registers, spilled bytes, shared bytes, matrix instructions and occupancy of one build."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fn = getattr({"attention": attention, "decode": decode, "logprob": logprob}[build.module], build.kernel)
    signature = {n: "constexpr" if n in build.constexprs else argument_type(n, build.dtype) for n in fn.arg_names}
    # What the launcher would find out: torch's pointers and the strides of (.., T, D) tensors are multiples of 16.
    aligned = [
        i
        for i, n in enumerate(fn.arg_names)
        if (n.endswith("_ptr") or n.startswith("stride") or n == "D") and n not in build.constexprs
    ]
    source = ASTSource(
        fn, signature, constexprs=build.constexprs, attrs={(i,): [["tt.divisibility", 16]] for i in aligned}
    )
    backend, arch = build.target.split(":")
    target = GPUTarget(backend, int(arch) if backend == "cuda" else arch, 32 if backend == "cuda" else 64)
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        kernel = triton.compile(source, target=target, options=dict(num_warps=build.warps, num_stages=build.stages))
    shared = kernel.metadata.shared
    if backend == "hip":
        asm = kernel.asm["amdgcn"]
        number = lambda key: max(map(int, re.findall(rf"\.{key}:?\s+(\d+)", asm)), default=0)  # noqa: E731
        registers, code = number("vgpr_count"), asm
        spill = 4 * number("vgpr_spill_count") + number("private_segment_fixed_size")
        waves = min(8, 512 // max(8, -(-registers // 8) * 8)) * 4  # 4 SIMDs of 512 registers a lane
        blocks, most = min(waves // build.warps, 64 * 1024 // max(shared, 1), 16), 32
    else:
        registers = int(re.search(r"Used (\d+) registers", log.getvalue()).group(1))
        spill = sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", log.getvalue())))
        code = disassemble(kernel.asm["cubin"])
        threads = 32 * build.warps
        blocks = min(
            65536 // (-(-registers // 8) * 8 * threads), (SHARED_LIMIT[build.target] + 1024) // (shared + 1024)
        )
        blocks, most = min(blocks, 64 // build.warps, 32), 64
    return dict(
        registers=registers, spill=spill, shared=shared, matrix=len(re.findall(MATRIX, code)),
        occupancy=100 * blocks * build.warps // most, dots="tt.dot" in kernel.asm["ttir"],
    )  # fmt: skip


def disassemble(cubin: bytes) -> str:
    from triton.backends import nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-c", file.name], check=True, capture_output=True, text=True).stdout


def violations(build: Build, row: dict) -> list[str]:
    """What the gate objects to in one build, in words."""
    found = []
    allowed = BACKWARD_SPILL if "_bwd" in build.kernel else 0
    if row["spill"] > allowed:
        found.append(f"spills {row['spill']} bytes, {allowed} allowed")
    if row["shared"] > SHARED_LIMIT[build.target]:
        found.append(f"{row['shared']} bytes of shared memory, the target has {SHARED_LIMIT[build.target]}")
    if row["dots"] and not row["matrix"]:
        found.append("has a dot and no matrix instruction")
    return found


COLUMNS = "target, kernel, dtype, D, tile, warps, stages, registers, spill B, shared B, matrix instr., occupancy bound"


def report(builds: list[Build], rows):
    """The table's lines in Markdown, one at a time as `rows` come in, then the verdict."""
    yield COLUMNS.replace(", ", " | ")  # no outer bars: each row starts with its target
    yield "|".join(["---"] * 12)
    bad = []
    for b, row in zip(builds, rows, strict=True):
        tile = "x".join(str(v) for k, v in b.constexprs.items() if k.startswith("BLOCK"))
        kernel = b.kernel + (" +first" if b.constexprs.get("HAS_FIRST") else "")
        cells = [b.target, kernel, b.dtype, b.head_size or "any", tile, b.warps, b.stages, row["registers"]]
        cells += [row["spill"], f"{row['shared']:,}", row["matrix"], f"{row['occupancy']} %"]
        yield " | ".join(map(str, cells))
        bad += [f"{b.name}: {problem}" for problem in violations(b, row)]
    yield ""
    yield from [f"VIOLATION {line}" for line in bad] or [f"{len(builds)} builds, no violation."]


HEADER = """# What the kernels compile to

Written by `python -m kernels.compile_report --out docs/kernels.md` with triton {version}. A static gate, not a speed:
every kernel is compiled ahead of time and its machine code inspected. **Not yet run on a GPU.**

Registers a thread (AMD: VGPRs), spilled bytes a thread (stores + loads; AMD: spilled VGPRs x 4 + private segment),
shared bytes a block (limits: 163 KiB, 227 KiB, 227 KiB, 64 KiB), count of HMMA | HGMMA | UTCHMMA | MFMA instructions in
the listing, and the share of a multiprocessor's warp slots that registers, shared memory and block size leave usable.
`+first`: with the mask array.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--jobs", type=int, default=2, help="builds at a time, each in its own process")
    parser.add_argument(
        "--only", default="", help="regular expression on 'target kernel dtype Dsize [first]'; empty = all"
    )
    parser.add_argument("--quick", action="store_true", help="without head size 32 and calls without `first` (CI)")
    args = parser.parse_args()
    if attention.triton is None:
        parser.error("Triton is not installed: its wheels exist for Linux only; run this on Linux")
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        parser.error("TRITON_INTERPRET=1 is set: compiled and interpreted Triton cannot share a process; unset it")
    builds = [b for b in all_builds() if re.search(args.only, b.name)]
    if not builds:
        parser.error(f"--only {args.only}: no build has such a name; look at the first columns of docs/kernels.md")
    if args.quick:
        builds = [b for b in builds if b.constexprs.get("HAS_FIRST", True) and b.head_size != 32]
    lines = []
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for line in report(builds, pool.map(compile_one, builds)):
            print(line, flush=True)
            lines.append(line)
    if args.out:
        args.out.write_text(HEADER.format(version=attention.triton.__version__) + "\n".join(lines) + "\n")
    sys.exit(1 if "VIOLATION" in lines[-1] else 0)


if __name__ == "__main__":
    main()
