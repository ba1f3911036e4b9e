"""What the four timing scripts share: shape flags, a model of that shape, a clock, one JSON line.

Flags and defaults are those of the peers' scripts (4 layers, width 128, 4 heads, vocabulary 1024), so that
`bench/compare.py` can pass the same ones to both sides. The block is OLMo 2's (post-norm, QK-norm, untied head), as the
peers'; `--arch world` is this project's laptop model (pre-norm, no QK-norm, tied head), `--preset` one of model.py's.
"""

import argparse
import contextlib
import json
import resource
import statistics
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import torch

from common import Device, setup
from kernels.dispatch import matmul_dtype
from model import GPT, PRESETS, GPTConfig


def shape_parser(doc: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--arch", choices=["olmo2", "world"], default="olmo2", help="block order and norms")
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--hidden", type=int, default=128)
    p.add_argument("--heads", type=int, default=4)
    p.add_argument("--intermediate", type=int, default=352)
    p.add_argument("--vocab", type=int, default=1024)
    p.add_argument("--tied", action="store_true", help="tie the embedding and the head (always so with --arch world)")
    p.add_argument("--preset", choices=list(PRESETS), help="a shape of model.py, in place of all flags above")
    p.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    p.add_argument("--kernels", choices=["auto", "triton", "torch"], default="auto")
    p.add_argument("--cuda-graph", action="store_true", help="sampling replays a CUDA graph")
    p.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16 = autocast, weights stay fp32")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=0)
    return p


def bf16_in_hardware() -> bool:
    """Does this CPU multiply in bfloat16? Where it does not, a bf16 product runs about 60 times slower than float32."""
    return matmul_dtype(torch.empty(0, dtype=torch.bfloat16)) == torch.bfloat16


def begin(a, block_size: int = 1024) -> tuple[GPT, Device]:
    """The model and the device of a run, set up as every stage is (heap kept, threads, seeds)."""
    if a.dtype == "bf16" and a.device == "cpu" and not bf16_in_hardware():
        sys.exit("--dtype bf16: this CPU has no bfloat16 arithmetic, so the figure would mean nothing; use fp32")
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[a.dtype]
    with contextlib.redirect_stdout(sys.stderr):
        settings = dict(device=a.device, dtype=dtype, kernels=a.kernels, threads=a.threads, seed=a.seed)
        device = setup(SimpleNamespace(**settings))
    if a.preset:
        a.vocab = PRESETS[a.preset].vocab_size
        return at_home(GPT(replace(PRESETS[a.preset], block_size=block_size)), a, device), device
    olmo2 = a.arch == "olmo2"
    config = GPTConfig(
        vocab_size=a.vocab,
        block_size=block_size,
        n_layer=a.layers,
        n_head=a.heads,
        n_embd=a.hidden,
        n_hidden=a.intermediate,
        post_norm=olmo2,
        qk_norm=olmo2,
        tied=a.tied or not olmo2,
    )
    return at_home(GPT(config), a, device), device


def at_home(model: GPT, a, device: Device) -> GPT:
    model.impl, model.cuda_graph = a.kernels, a.cuda_graph
    return model.to(device.device)


def timed(work, repeats: int) -> tuple[list[float], list, float]:
    """Seconds of each call of `work()`, its results, and CPU time over wall time (well under 1: the core was
    shared)."""
    times, results, cpu, wall = [], [], time.process_time(), time.perf_counter()
    for _ in range(repeats):
        began = time.perf_counter()
        results.append(work())
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return times, results, (time.process_time() - cpu) / (time.perf_counter() - wall)


def report(a, what: str, times: list[float], cpu_over_wall: float, **figures) -> None:
    print(
        json.dumps(
            {"what": what, "torch": torch.__version__, "args": vars(a), "repeats": len(times)}
            | {"s": round(statistics.median(times), 4), "s_min_max": [round(min(times), 4), round(max(times), 4)]}
            | {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
            | {"peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}
            | {"cpu_over_wall": round(cpu_over_wall, 3), "bf16_in_hardware": bf16_in_hardware()}
            | {
                "peak_gpu_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)
                if torch.cuda.is_initialized()
                else None
            }
        )
    )
