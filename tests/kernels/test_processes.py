"""The kernel suites that need a process of their own: interpreted or on a GPU, and the static compile gate.

    pytest -q tests/kernels/test_processes.py

Triton decides at import whether it compiles or interprets, and the two cannot share a process.
"""

import builtins
import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import read_jsonl, tiny_model, write_ckpt, write_world

from kernels import compile_report, dispatch
from kernels.compile_report import QUICK, TARGETS, Build, all_builds, violations
from kernels.machine_code import analyse

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(
    dispatch.triton is None, reason="Triton is not installed: its wheels are for Linux only"
)
needs_compiler = pytest.mark.skipif(dispatch.triton is None or dispatch.interpreted(), reason="needs compiled Triton")


def run(*command, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
ONCE = {Path(__file__).name, "test_gpu_script.py", "test_gradients.py", "test_products.py"}  # no Triton path in them
FILES = sorted(
    f"tests/kernels/{path.name}" for path in Path(__file__).parent.glob("test_*.py") if path.name not in ONCE
)
ATTENTION = "tests/kernels/test_attention.py"  # half of the time


@needs_triton
@pytest.mark.parametrize(
    "files", [[ATTENTION], [name for name in FILES if name != ATTENTION]], ids=["attention", "rest"]
)
def test_kernels_interpreted(files):
    out = run(*PYTEST, *files, TRITON_INTERPRET="1", KERNELS_IMPL="triton")
    assert " passed" in out and "skipped" in out.splitlines()[-1]


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_kernels_on_the_gpu():
    run(*PYTEST, *FILES, TRITON_INTERPRET="0", KERNELS_IMPL="triton")


@needs_compiler
@pytest.mark.parametrize("target", QUICK)
def test_every_kernel_passes_the_gate(target, monkeypatch, capsys):
    """Four targets, bfloat16 (float32 on sm_90), head sizes 64 and 128; 128 alone where both share a line of the table,
    since it takes more registers and shared memory. Built in this process. gate.md has the same, already built: while
    it is of today's kernels, two of them are built, to see that this machine's compiler says so too."""
    builds = [build for build in all_builds(quick=True) if build.target == target]
    largest = {(b.row, b.dtype): b.name for b in sorted(builds, key=lambda b: b.head_size or 0)}
    names = list(largest.values())
    assert {b.kernel for b in builds if b.name in names} == KERNELS
    built = (ROOT / "tests/kernels/gate.md").read_text()
    if f"of code {compile_report.code()}." in built:
        assert "\n62 builds, no violation.\n" in built
        assert {" ".join(line.split(" | ")[:2]) for line in built.splitlines()} >= {f"{target} {k}" for k in KERNELS}
        names = [f"{target} _attn_fwd bf16 D128 has_first", f"{target} _logprob_bwd bf16 entropy"]
    monkeypatch.setattr(compile_report, "ProcessPoolExecutor", lambda *_, **__: contextlib.nullcontext(builtins))
    monkeypatch.setattr(sys, "argv", ["compile_report", "--quick", "--only", f"^({'|'.join(map(re.escape, names))})$"])
    with pytest.raises(SystemExit) as ended:
        compile_report.main()
    out = capsys.readouterr().out.rstrip()
    assert ended.value.code == 0 and out.endswith(f"\n{len(names)} builds, no violation."), out


@needs_triton
def test_an_edited_kernel_makes_the_gate_stale(tmp_path, monkeypatch):
    before = compile_report.code()
    edited = tmp_path / "decode.py"
    edited.write_text(Path(compile_report.decode.__file__).read_text().replace("tl.exp2", "tl.exp", 1))
    monkeypatch.setattr(compile_report.decode, "__file__", str(edited))
    assert compile_report.code() != before


@needs_compiler
def test_kernels_compile_for_arguments_of_one():
    """Triton makes constants of integer arguments that are 1, and of constants not all of its functions can be made: a
    batch of one row, one head, one token, one word."""
    wanted = [build for build in all_builds(quick=True) if (build.target, build.dtype) == ("cuda:90", "bf16")]
    by_kernel = {build.kernel: build for build in reversed(wanted)}  # the first of each, head size 64
    assert set(by_kernel) == KERNELS
    for kernel, build in by_kernel.items():
        names = getattr(compile_report.MODULES[kernel[:5]], kernel).arg_names
        build.ones = tuple(name for name in compile_report.ONES if name in names)
        compile_report.compile_one(build)


KERNELS = {"_attn_fwd", "_attn_bwd_delta", "_attn_bwd_dkdv", "_attn_bwd_dq", "_decode_prefix", "_decode_tail"}
KERNELS |= {"_logprob_fwd", "_logprob_bwd"}


def test_the_gate_knows_a_violation():
    """Made-up figures around each limit: the limit itself is none, anything over it is."""
    fine = dict(spills=0, shared=65536, matrix="8 32x32x8", exp2=1.05, instructions=0.33, dots=True)
    forward = Build("hip:gfx942", "_attn_fwd", "bf16", 128, dict(BLOCK_M=64, BLOCK_N=80), 4, 1)
    backward = Build("cuda:90", "_attn_bwd_dq", "bf16", 64, dict(BLOCK_M=64, BLOCK_N=64), 4, 1)
    wide = Build("cuda:90", "_attn_bwd_dq", "fp32", 64, dict(BLOCK_M=64, BLOCK_N=64), 4, 1)
    assert violations(forward, {**fine, "exp2": 1.1}) == [] == violations(backward, {**fine, "instructions": 0.6})
    assert "1 spills" in violations(forward, {**fine, "spills": 1})[0]
    assert "shared memory" in violations(forward, {**fine, "shared": 65537})[0]
    assert "no matrix instruction" in violations(backward, {**fine, "matrix": ""})[0]
    assert violations(backward, {**fine, "matrix": "", "dots": False}) == []
    assert "the same scores" in violations(forward, {**fine, "exp2": 1.11})[0]
    assert "the same scores" in violations(backward, {**fine, "exp2": 2.0})[0]
    assert "0.34 instructions a score, 0.33 allowed" in violations(forward, {**fine, "instructions": 0.34})[0]
    assert "0.60 allowed" in violations(backward, {**fine, "instructions": 0.61})[0]
    assert violations(wide, {**fine, "matrix": "", "exp2": 1.5, "instructions": 8.0}) == []


CUDA = """
        .L_outer
        /*0000*/  LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/  LDL R2, [R1] ;
.L_x_1:
        /*0020*/  HGMMA.64x64x16.F32.BF16 R24, gdesc[UR20], R24 ;
        /*0030*/  MUFU.EX2 R4, R5 ;
        /*0040*/  MUFU.EX2 R4, R5 ;
        /*0050*/  STL [R1], R4 ;
        /*0060*/  @P4 BRA `(.L_x_1) ;
.L_x_2:
        /*0070*/  HGMMA.64x64x16.F32.BF16 R24, gdesc[UR20], R24 ;
        /*0080*/  MUFU.EX2 R4, R5 ;
        /*0090*/  @!P4 BRA `(.L_x_2) ;
        /*00a0*/  @P3 BRA `(.L_x_0) ;
        /*00b0*/  EXIT ;
.L_x_3:
        /*00c0*/  SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5], R2 ;
        /*00d0*/  @!P0 BRA `(.L_x_3) ;
        /*00e0*/  BRA `(.L_x_2) ;
"""
HIP = """
\tv_mov_b32 v0, 0   ; comment
.LBB0_1:   ; =>This Loop Header: Depth=1
.LBB0_2:   ;   Parent Loop BB0_1 Depth=1
\tv_mfma_f32_32x32x8_bf16_1k v[0:15], v[2:3], v[4:5], v[0:15]
\ts_cbranch_scc1 .LBB0_2
\tv_exp_f32_e32 v1, v2
\tscratch_store_dword off, v1, off
\ts_cbranch_vccnz .LBB0_1
"""


def test_loops_of_machine_code_by_hand():
    """NVIDIA: the walks are the two inner loops, not the one around them that reloads a register, nor what lies between
    them and the code behind the end that returns to them; the product loop is the shorter. AMD: 2^x stands outside the
    product loop, so that the walk is the loop around it, as in log-prob."""
    loops = analyse(CUDA, "cuda")
    assert [(w.instructions, w.exp2, w.spills) for w in loops.walks] == [(5, 2, 1), (3, 1, 0)]
    assert loops.product.instructions == 3 and loops.product.matrix == {"HGMMA.64x64x16": 1}
    assert loops.whole.spills == 2 and loops.whole.instructions == 15
    loops = analyse(HIP, "hip")
    assert [(w.instructions, w.exp2, w.spills) for w in loops.walks] == [(5, 1, 1)]
    assert loops.product.instructions == 2 and loops.product.matrix == {"32x32x8": 1}


@needs_triton
def test_the_gate_covers_every_kernel():
    """A kernel that is launched anywhere in kernels/ is in the table, for every target."""
    source = "".join(path.read_text() for path in (ROOT / "kernels").glob("*.py"))
    assert set(re.findall(r"(_\w+)\[\(", source)) == KERNELS
    for target in TARGETS:
        assert {b.kernel for b in all_builds() if b.target == target} == KERNELS


CURVE = """
import importlib, json, sys
import torch
sys.path.append("tests/kernels")
from interpreter import patch_once_a_launch
import model, train_rl
model.PRESETS["tiny"] = model.GPTConfig(n_layer=1, n_head=2, n_kv_head=1, n_embd=64, n_hidden=64)
train_rl.reward = lambda text, *_: float(sum(map(ord, text)) % 2)  # a coin: a signal from the first step
adamw = torch.optim.AdamW  # whose eps 1e-8 makes a whole step of the rounding noise of a gradient that cancels to zero
torch.optim.AdamW = lambda *args, **kwargs: adamw(*args, **{**kwargs, "eps": 1e-4})
patch_once_a_launch()
for name, out, *flags in json.loads(sys.argv[1]):
    for impl in ("triton", "torch"):
        sys.argv = [name, *flags, "--kernels", impl, "--out", out.replace("IMPL", impl)]
        importlib.import_module(name).main()
"""
RL = "--prompts-per-step 2 --group-size 3 --max-new-tokens 5 --kl-coef 0.1 --updates-per-batch 2".split()
STAGES = {
    "train_pretrain": "--preset tiny --block-size 32 --batch-tokens 64".split(),
    "train_sft": ["--batch-size", "4"],
    "train_rl": RL,
    "merge": [*RL, "--batch-size", "4"],
}
EVALUATE = "--tasks gsm facts --limit 2 --n-samples 2 --k 1 --max-new-tokens 4 --n-shot 1 --threads 1".split()


@needs_triton
def test_stages_give_the_same_losses_and_scores_on_both_paths(tmp_path):
    """Interpreted kernels against torch. Three steps of each training stage: every loss to 1e-4, gradients alive.
    Samples of two questions and the choices of two benchmark items: the same."""
    data = ["--data", str(write_world(tmp_path / "world"))]
    base = str(write_ckpt(tmp_path / "ckpt_000001.pt", tiny_model(scale=2.0, n_layer=1, n_embd=64, n_kv_head=1)))
    fixed = [*data, *"--steps 3 --lr 1e-2 --warmup-steps 0 --threads 1".split()]
    runs = [[name, str(tmp_path / name / "IMPL"), *fixed, *flags] for name, flags in STAGES.items()]
    runs = [[*run, *([] if run[0] == "train_pretrain" else ["--init", base])] for run in runs]
    runs += [["evaluate", str(tmp_path / "IMPL.json"), "--ckpt", base, *data, *EVALUATE]]
    run("-c", CURVE, json.dumps(runs), TRITON_INTERPRET="1")
    for name in STAGES:
        curves = []
        for impl in ("triton", "torch"):
            rows = read_jsonl(tmp_path / name / impl / "metrics.jsonl")
            assert len(rows) == 3 and all(row["train/grad_norm"] > 0 for row in rows), name
            keys = ("train/loss", "sft/loss", "policy/kl")
            curves.append([[row[key] for key in keys if key in row] for row in rows])
        assert torch.allclose(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=0, atol=1e-4), (name, curves)
    results = [json.loads((tmp_path / f"{impl}.json").read_text()) for impl in ("triton", "torch")]
    for key in ("questions", "benchmarks"):
        assert results[0][key] == results[1][key]
