"""The parts of bench/gpu.py that ask whether a GPU runs the kernels and computes the right numbers."""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch

from bench.gpu_machine import Machine, document_starts
from bench.gpu_speed import tile_work
from kernels import tiles
from kernels.attention import attention
from kernels.attention_torch import attention_reference
from kernels.decode import decode_attention, prefix_tail_attention_reference
from kernels.logprob import linear_logprob
from kernels.logprob_torch import linear_logprob_reference

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of the largest true value


def versions(m: Machine):
    """What runs here, and how fast it multiplies and copies: the ceilings of everything below."""
    import triton

    row = dict(case="software", torch=torch.__version__, triton=triton.__version__, python=platform.python_version())
    yield row | dict(cuda=str(torch.version.cuda), hip=str(torch.version.hip))
    if not m.rehearse:
        found = torch.cuda.get_device_properties(0)
        name = dict(name=found.name, capability=f"{found.major}.{found.minor}", processors=found.multi_processor_count)
        yield dict(case="GPU", **name, gb=found.total_memory / 1e9)
    n = m.pick(8192, 64)
    yield dict(case=f"product of {n} x {n}", tflops=m.product_tflops(n))
    source = torch.empty(m.pick(2 * 10**9, 10**6), dtype=torch.uint8, device=m.device)
    goal = torch.empty_like(source)
    yield dict(case="copy", gb_per_s=2e-6 * len(source) / m.milliseconds(lambda: goal.copy_(source)))


# ---------------------------------------------------------------- build
def kernel_calls(m: Machine) -> list[tuple]:
    """Arguments of `build_one`: every kernel, for each dtype, head size and mask."""
    dtypes = m.pick(("bfloat16", "float16", "float32"), ("float32",))
    sizes = m.pick(tiles.HEAD_SIZES, (32,))
    attentions = [
        (m.rehearse, "attention", t, D, mask) for t in dtypes for D in sizes for mask in (None, "first", "shared")
    ]
    others = [(m.rehearse, kind, t, D, None) for t in dtypes for kind in ("logprob", "decode") for D in sizes]
    sets = m.pick(tiles.CANDIDATES, {})  # for the part that compares tiles
    return (
        attentions + others + [(m.rehearse, k, None, D, i) for (k, D), rows in sets.items() for i in range(len(rows))]
    )


def build_one(rehearse: bool, kind: str, dtype: str | None, D: int | None, mask: str | int | None) -> float:
    """Seconds of a first forward and backward, or of one kernel with its candidate tile number `mask`; what it compiles
    stays in Triton's cache on the disk."""
    m, began = Machine(rehearse), time.perf_counter()
    if dtype is None:
        _, candidates, work = tile_work(m, kind, D, T=256)
        with contextlib.suppress(Exception):  # more shared memory than this GPU has: no candidate then
            work(candidates[mask])
    else:
        forward(m, kind, getattr(torch, dtype), D, mask, T=m.pick(256, 32))
    m.synchronize()
    return time.perf_counter() - began


def forward(m: Machine, kind: str, dtype, D: int, mask: str | None, T: int) -> list[torch.Tensor]:
    """Outputs and gradients of one small call."""
    G, V, H = m.pick((16, 200, (4, 2, 2)), (2, 70, (2, 1, 1)))
    if kind == "decode":
        q, prefix, tail = (
            m.randn(2 * G, 2, D, dtype=dtype),
            m.randn(2, 2, 1, T, D, dtype=dtype),
            m.randn(2, 2 * G, 1, 16, D, dtype=dtype),
        )
        first = torch.tensor([0, 3], dtype=torch.int32, device=m.device)
        seats = torch.arange(2 * G, device=m.device)
        return [decode_attention(q, *prefix, first, *tail, group_size=G, seats=(seats, seats), impl="triton")]
    if kind == "logprob":
        hidden, weight = m.randn(T, D, dtype=dtype, grad=True), m.randn(V, D, dtype=dtype, grad=True)
        targets = torch.arange(T, device=m.device) % V
        out = linear_logprob(hidden, weight, targets, entropy=True, impl="triton")
        return [*out, *torch.autograd.grad(sum(x.sum() for x in out), (hidden, weight))]
    q, k, v = (m.randn(2, T, h, D, dtype=dtype).transpose(1, 2).requires_grad_() for h in H)
    first = None if mask is None else document_starts(2, T, 24, m.device)
    shared = torch.tensor([8, 20], dtype=torch.int32, device=m.device) if mask == "shared" else None
    out = attention(q, k, v, first=first, shared=shared, impl="triton")
    return [out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))]


def build(m: Machine):
    """All kernels, compiled by many processes: afterwards no other part waits for a compiler."""
    calls, began = kernel_calls(m), time.perf_counter()
    if m.rehearse:
        seconds = [build_one(*call) for call in calls]
    else:
        jobs = min(8, os.cpu_count() or 1)
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            futures, seconds = {pool.submit(build_one, *call): call for call in calls}, []
            for done in as_completed(futures):
                try:
                    seconds.append(done.result())
                except Exception as error:
                    yield dict(case=" ".join(map(str, futures[done][1:])), passed=False, note=str(error)[:200])
    wall = time.perf_counter() - began
    yield dict(case=f"{len(seconds)} of {len(calls)} built", s=wall, s_longest=max(seconds, default=0.0))


# ---------------------------------------------------------------- correctness
def compare(got, want, dtype) -> dict:
    """The largest error over the largest true value of each tensor; passed: all within the dtype's tolerance."""
    errors = [
        float((a.detach().double() - b).abs().max() / b.abs().max().clamp(min=1))
        for a, b in zip(got, want, strict=True)
    ]
    finite = all(bool(a.isfinite().all()) for a in got)
    return dict(error=max(errors), passed=finite and max(errors) <= TOLERANCE[dtype])


def attention_case(m: Machine, dtype, B, H, H_kv, T, D, mask) -> dict:
    """Output and gradients against float64 on the same device, and a second run bit for bit."""
    q, k, v = (m.randn(B, T, h, D, dtype=dtype).transpose(1, 2).requires_grad_() for h in (H, H_kv, H_kv))
    g, first, shared = m.randn(B, H, T, D, dtype=dtype), None, None
    if mask == "documents":
        first = document_starts(B, T, 23 + T // 5, m.device)
    elif mask == "left pads":
        first = (torch.arange(B, dtype=torch.int32, device=m.device) * (T // 3))[:, None].expand(B, T).contiguous()
    elif mask == "shared":
        first = document_starts(B, T, 23 + T // 5, m.device)
        shared = torch.full((B,), T // 4, dtype=torch.int32, device=m.device)

    def run():
        out = attention(q, k, v, first=first, shared=shared, impl="triton")
        return [out, *torch.autograd.grad(out, (q, k, v), g)]

    once, twice = run(), run()
    true = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = attention_reference(*true, first, shared)
    row = compare(once, [want, *torch.autograd.grad(want, true, g.double())], dtype)
    if not all(torch.equal(a, b) for a, b in zip(once, twice, strict=True)):
        row |= dict(passed=False, note="two runs differ")
    return row


def logprob_case(m: Machine, dtype, N, V, D) -> dict:
    hidden, weight = m.randn(N, D, dtype=dtype, grad=True), (m.randn(V, D) * D**-0.5).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,), device=m.device)
    mix = [torch.randn(N, device=m.device) for _ in range(3)]

    def run(function, h, w):
        out = function(h, w)
        loss = sum((o * g.to(o.dtype)).sum() for o, g in zip(out, mix, strict=True))
        return [*out, *torch.autograd.grad(loss, (h, w))]

    def ours(h, w):
        return linear_logprob(h, w, targets, temperature=0.8, entropy=True, impl="triton")

    once, twice = run(ours, hidden, weight), run(ours, hidden, weight)
    true = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    row = compare(once, run(lambda h, w: linear_logprob_reference(h, w, targets, 0.8), *true), dtype)
    if not all(torch.equal(a, b) for a, b in zip(once[:4], twice[:4], strict=True)):
        row |= dict(passed=False, note="two runs differ")
    return row


def decode_case(m: Machine, dtype, P, G, H, H_kv, Tp, Tt, D) -> dict:
    q, prefix = m.randn(P * G, H, D, dtype=dtype), m.randn(2, P, H_kv, Tp, D, dtype=dtype)
    tail, first = m.randn(2, P * G, H_kv, Tt, D, dtype=dtype), torch.arange(P, dtype=torch.int32, device=m.device)
    out = decode_attention(q, *prefix, first, *tail, group_size=G, tail_lengths=Tt - 1, impl="triton")
    double = [x.double() for x in (q[:, :, None], *prefix, *tail)]
    want = prefix_tail_attention_reference(*double[:3], first, *double[3:], group_size=G, tail_lengths=Tt - 1)
    return compare([out], [want[:, :, 0]], dtype)


def nan_case(m: Machine) -> dict:
    """One NaN key, one NaN hidden state: every row that sees it is NaN, and no other."""
    T, V = m.pick((512, 300), (40, 70))
    q, k, v = (m.randn(1, 2, T, 64) for _ in range(3))
    k[0, 0, T // 2] = float("nan")
    rows = attention(q, k, v, impl="triton")[0, 0].isnan().any(1)
    hidden, weight, targets = m.randn(T, 64), m.randn(V, 64), torch.zeros(T, dtype=torch.long, device=m.device)
    hidden[3] = float("nan")
    logp = linear_logprob(hidden, weight, targets, impl="triton")[0].isnan()
    right = bool(rows[T // 2 :].all() and not rows[: T // 2].any() and logp[3]) and int(logp.sum()) == 1
    return dict(passed=right)


def offset_case(m: Machine) -> dict:
    """Elements past 2**31 of one buffer: rows of q, k, v and hidden far apart, compared with the same rows packed."""
    (T, V), D = m.pick((1024, 300), (32, 70)), 64
    stride = m.pick(2**31 // T + 64, 128) // 64 * 64 + 64
    if not m.rehearse and torch.cuda.mem_get_info()[0] < 3 * 2 * T * stride:
        return dict(note=f"skipped: needs {6e-9 * T * stride:.0f} GB")
    buffer = torch.zeros(T * stride, dtype=m.low, device=m.device)
    far = buffer.view(T, stride)[:, :D]
    far.copy_(m.randn(T, D))
    near, weight, targets = far.contiguous(), m.randn(V, D), torch.arange(T, device=m.device) % V
    spread, packed = (x.view(1, 1, T, D) for x in (far.unflatten(0, (1, 1, T)), near))
    same = torch.equal(
        attention(spread, spread, spread, impl="triton"), attention(packed, packed, packed, impl="triton")
    )
    a, b = (linear_logprob(x, weight, targets, impl="triton")[0] for x in (far, near))
    return dict(passed=same and torch.equal(a, b), elements=T * stride)


def correctness(m: Machine):
    dtypes = m.pick((torch.float32, torch.float16, torch.bfloat16), (torch.float32, torch.float16))
    shapes = m.pick([(2, 8, 2, 2048, 128), (4, 12, 12, 1000, 64), (2, 4, 4, 517, 32)], [(1, 2, 1, 40, 32)])
    for dtype in dtypes:
        name = str(dtype)[6:]
        for shape in shapes:
            for mask in m.pick((None, "documents", "left pads", "shared"), ("documents", "shared")):
                yield dict(
                    case=f"attention {shape}", variant=f"{name} {mask}", **attention_case(m, dtype, *shape, mask)
                )
        for shape in m.pick([(4096, 50_257, 768), (1000, 100_278, 2048)], [(20, 70, 32)]):
            yield dict(case=f"log-prob {shape}", variant=name, **logprob_case(m, dtype, *shape))
        for shape in m.pick(
            [(1, 16, 16, 16, 4096, 200, 128), (48, 16, 12, 4, 300, 100, 64)], [(2, 3, 2, 1, 40, 9, 32)]
        ):
            yield dict(case=f"decode {shape}", variant=name, **decode_case(m, dtype, *shape))
    yield dict(case="NaN in, NaN out", **nan_case(m))
    yield dict(case="offsets past 2**31", **offset_case(m))


# ---------------------------------------------------------------- sanitizer
TINY = (("attention", "first"), ("attention", "shared"), ("logprob", None), ("decode", None))


def tiny(index: int, rehearse: bool = False) -> None:
    m = Machine(rehearse)
    kind, mask = TINY[index]
    forward(m, kind, m.low, 64, mask, T=m.pick(130, 33))
    m.synchronize()


def sanitizer(m: Machine):
    """Reads and writes outside of buffers, as the driver's own tool sees them."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for i, (kind, mask) in enumerate(TINY):
        case = f"{kind} {mask or ''}".strip()
        if m.rehearse:
            tiny(i, rehearse=True)
            yield dict(case=case, passed=True)
        elif not os.path.exists(tool):
            yield dict(case=case, note="skipped: no compute-sanitizer here")
        else:
            command = [
                tool,
                "--error-exitcode",
                "7",
                sys.executable,
                "-c",
                f"from bench.gpu_checks import tiny; tiny({i})",
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=80)
            last = (done.stdout.strip().splitlines() or [""])[-1]
            yield dict(case=case, passed=done.returncode == 0, note=last[:120])
