"""The parts of bench/gpu.py that measure: tiles, peers, memory, launches, and whole training and sampling steps."""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from unittest.mock import patch

import torch
import torch.nn.functional as F

from bench.gpu_machine import Machine, document_starts, with_backward
from kernels import logprob as logprob_file
from kernels import tiles
from kernels.attention import attention
from kernels.attention_torch import visible_keys
from kernels.attention_triton import attention_delta, attention_dkdv, attention_dq, attention_forward
from kernels.cache import capture_graph
from kernels.decode import decode_attention
from kernels.dispatch import target_of
from kernels.logprob import linear_logprob


# ---------------------------------------------------------------- tiles
def tile_work(m: Machine, kernel: str, D: int | None, T: int):
    """(the table's tile, the candidates, a call of this kernel alone with a tile) on rows of T tokens."""
    target = target_of(torch.empty(0, device=m.device))
    table = "sm90" if m.rehearse else target
    if D is None:
        row, kind = logprob_file.LOGPROB_TILES[table][0][kernel == "_logprob_bwd"], tiles.LogprobTile
        width = m.pick(2048, 32)
        hidden, weight = m.randn(2 * T, width, grad=True), m.randn(m.pick(32_000, 70), width, grad=True)
        targets = torch.arange(2 * T, device=m.device) % len(weight)

        def work(tile):
            with patch.dict(logprob_file.LOGPROB_TILES, {target: ((tile,) * 2,) * 2}):
                logp = linear_logprob(hidden, weight, targets, impl="triton")[0]
                return logp if kernel == "_logprob_fwd" else torch.autograd.grad(logp.sum(), hidden)

    else:
        row, kind = (
            dict(zip(ATTENTION, tiles.attention_tiles(table, D, m.low), strict=True))[kernel],
            tiles.AttentionTile,
        )
        q, k, v, g = (m.randn(*m.pick((4, 16), (1, 1)), T, D) for _ in range(4))
        first = document_starts(len(q), T, m.pick(1024, 16), m.device)
        o, lse = attention_forward(q, k, v, first, None, tiles.attention_tiles(table, D, m.low)[0])
        backward = (q, k, v, first, None, g, lse, attention_delta(o, g))

        def work(tile):
            if kernel == "_attn_fwd":
                return attention_forward(q, k, v, first, None, tile)
            return (attention_dkdv if kernel == "_attn_bwd_dkdv" else attention_dq)(*backward, tile)

    return row, [kind(*x) for x in tiles.CANDIDATES[kernel, D]], work


ATTENTION = ("_attn_fwd", "_attn_bwd_dkdv", "_attn_bwd_dq")


def sweep(m: Machine):
    """Each kernel alone over its candidates: the table's tile against the best. Part `build` has compiled them."""
    for kernel, D in tiles.CANDIDATES:
        row, candidates, work = tile_work(m, kernel, D, m.pick(4096, 40))
        yield dict(case=f"{kernel} {D or ''}".strip(), **best_tile(m, work, row, m.pick(candidates, candidates[:1])))


def best_tile(m: Machine, work, row, candidates) -> dict:
    times = {}
    for tile in dict.fromkeys([row, *candidates]):
        try:
            times[tile] = m.milliseconds(lambda tile=tile: work(tile))
        except Exception:  # more shared memory or registers than this GPU has
            continue
    best = min(times, key=times.get)
    return dict(table="x".join(map(str, row)), ms=times.get(row), best="x".join(map(str, best)), best_ms=times[best])


# ---------------------------------------------------------------- peers
def peers(m: Machine):
    shapes = m.pick([(32, 12, 12, 512, 64), (4, 16, 16, 4096, 128), (4, 32, 8, 4096, 128)], [(1, 1, 1, 40, 32)])
    for B, H, H_kv, T, D in shapes:
        q = m.randn(B, H, T, D, grad=True)
        k, v = (m.randn(B, H_kv, T, D, grad=True) for _ in range(2))
        g, first = m.randn(B, H, T, D), document_starts(B, T, max(T // 4, 8), m.device)
        flops = 2 * B * H * T * T * D  # of a causal forward: two products over half of T x T
        for mask in (None, "documents"):
            variants = attention_variants(m, q, k, v, None if mask is None else first)
            for name, make in variants.items():
                case = f"attention {B}x{H}/{H_kv}x{T}x{D} {mask or 'causal'}"
                yield dict(
                    case=case, variant=name, **timed_variant(m, make, (q, k, v), g, flops if mask is None else None)
                )
    for N, V, D in m.pick([(8192, 50_304, 768), (8192, 100_352, 2048)], [(20, 70, 32)]):
        hidden, weight = m.randn(N, D, grad=True), (m.randn(V, D) * 0.02).requires_grad_()
        targets, g = torch.randint(V, (N,), device=m.device), torch.randn(N, device=m.device)
        for name, make in logprob_variants(m, hidden, weight, targets).items():
            yield dict(
                case=f"log-prob {N}x{V}x{D}", variant=name, **timed_variant(m, make, (hidden, weight), g, 2 * N * V * D)
            )


def timed_variant(m: Machine, make, inputs, gradient, flops=None) -> dict:
    """Milliseconds of forward and of forward + backward of make()'s call; a variant that cannot run says why."""
    try:
        work = make()
        forward = m.milliseconds(work)
        both = m.milliseconds(with_backward(work, inputs, gradient.to(work().dtype)))
    except Exception as error:
        return dict(note=f"skipped: {reason(error)}")
    row = dict(forward_ms=forward, both_ms=both)
    return row | dict(forward_tflops=1e-9 * flops / forward) if flops else row


def attention_variants(m: Machine, q, k, v, first) -> dict:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    grouped = q.shape[1] != k.shape[1]
    mask = None if first is None else visible_keys(first, q.shape[2], q.device)[:, None]

    def sdpa(backend):
        def run():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
                )

        return lambda: run

    def flex():
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def visible(b, h, t, n):
            return (n <= t) if first is None else (n <= t) & (n >= first[b, t])

        block_mask = create_block_mask(visible, len(q), None, q.shape[2], q.shape[2], device=m.device)
        call = m.pick(torch.compile, lambda f: f)(flex_attention)
        return lambda: call(q, k, v, block_mask=block_mask, enable_gqa=grouped)

    variants = {
        "ours": lambda: lambda: attention(q, k, v, first=first, impl="triton"),
        "ours, torch path": lambda: lambda: attention(q, k, v, first=first, impl="torch"),
        "SDPA efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
        "FlexAttention": flex,
    }
    if first is None:  # these take no mask
        variants |= {"SDPA flash": sdpa(SDPBackend.FLASH_ATTENTION), "SDPA cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION)}
    return variants


def logprob_variants(m: Machine, hidden, weight, targets) -> dict:
    def naive():
        return -F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")

    def torchs():
        fused = F.linear_cross_entropy  # from torch 2.13 on
        return lambda: -fused(hidden, weight, targets, reduction="none")

    def liger():
        loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss(reduction="none")
        return lambda: -loss(weight, hidden, targets)

    def cce():
        call = importlib.import_module("cut_cross_entropy").linear_cross_entropy
        return lambda: -call(hidden, weight, targets, reduction="none", filter_eps=None)  # None: exact gradients

    return {
        "ours": lambda: lambda: linear_logprob(hidden, weight, targets, impl="triton")[0],
        "ours, torch path": lambda: lambda: linear_logprob(hidden, weight, targets, impl="torch")[0],
        "F.linear_cross_entropy": torchs,
        "naive": lambda: naive,
        "naive, compiled": lambda: m.pick(torch.compile, lambda f: f)(naive),
        "Liger": liger,
        "CCE exact": cce,
    }


# ---------------------------------------------------------------- memory
def memory(m: Machine):
    """Peak beyond inputs and outputs that are held, of forward + backward; nothing is timed here."""
    q, k, v = (m.randn(*m.pick((4, 16, 4096, 128), (1, 1, 40, 32)), grad=True) for _ in range(3))
    g, first = m.randn(*q.shape), document_starts(*q.shape[::2][:2], m.pick(1024, 16), m.device)
    for name, make in attention_variants(m, q, k, v, first).items():
        yield dict(case="attention with documents", variant=name, **peak(m, make, (q, k, v), g))
    shape = m.pick((8192, 100_352, 2048), (20, 70, 32))
    hidden, weight = m.randn(shape[0], shape[2], grad=True), m.randn(shape[1], shape[2], grad=True)
    targets, g = torch.randint(shape[1], shape[:1], device=m.device), torch.randn(shape[0], device=m.device)
    for name, make in logprob_variants(m, hidden, weight, targets).items():
        yield dict(case=f"log-prob {shape}", variant=name, **peak(m, make, (hidden, weight), g))


def peak(m: Machine, make, inputs, gradient) -> dict:
    try:
        work = make()
        found = m.peak_mb(with_backward(work, inputs, gradient.to(work().dtype)))
    except Exception as error:
        return dict(note=f"skipped: {reason(error)}")
    return dict(note="rehearsed") if found is None else dict(peak_mb=found)


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:60]}"


# ---------------------------------------------------------------- launches and decoding
def launch(m: Machine):
    q = m.randn(1, 1, 16, 64)
    yield dict(
        case="a call of attention on 16 tokens", us=1e3 * m.milliseconds(lambda: attention(q, q, q, impl="triton"))
    )
    G, H, H_kv, Tp, Tt, D = m.pick((16, 16, 16, 512, 256, 128), (2, 2, 1, 20, 9, 32))
    for P in m.pick((1, 8, 48), (1, 2)):
        x, prefix, tail = m.randn(P * G, H, D), m.randn(2, P, H_kv, Tp, D), m.randn(2, P * G, H_kv, Tt, D)
        first = torch.zeros(P, dtype=torch.int32, device=m.device)
        read = x.element_size() * (prefix.numel() + tail.numel())

        def step(impl="triton", x=x, prefix=prefix, tail=tail, first=first):
            return decode_attention(x, *prefix, first, *tail, group_size=G, tail_lengths=Tt, impl=impl)

        for impl in ("triton", "torch"):
            ms = m.milliseconds(lambda impl=impl, step=step: step(impl))
            yield dict(case=f"decode {P} x {G}, {Tp} + {Tt} keys", variant=impl, us=1e3 * ms, gb_per_s=1e-6 * read / ms)
        if not m.rehearse:
            yield dict(
                case=f"decode {P} x {G}",
                variant="triton, as a CUDA graph",
                us=1e3 * m.milliseconds(capture_graph(step)),
            )


# ---------------------------------------------------------------- end to end
def end_to_end(m: Machine):
    """The timing scripts of bench/, each in a process of its own, and the loss of 30 steps on both paths."""
    device = ["--device", m.device, "--dtype", m.pick("bf16", "fp32")]
    tiny = ["--layers", 1, "--hidden", 64, "--heads", 2, "--intermediate", 64, "--vocab", 130]
    losses = {}
    for impl in ("triton", "torch"):
        size = m.pick(
            ["--preset", "gpt2", "--batch", 8, "--block", 1024, "--micro", 8], [*tiny, "--batch", 2, "--block", 16]
        )
        steps = ["--warmup", 0, "--steps", m.pick(30, 2), "--repeats", 1, "--kernels", impl]
        losses[impl] = run(m, "pretrain", *size, *device, *steps, here=m.rehearse)["losses"]
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    row = dict(case=f"loss of {len(losses['torch'])} steps", first=losses["torch"][0], last=losses["torch"][-1])
    yield row | dict(triton_minus_torch=apart, passed=apart < m.pick(0.02, 1e-4))
    if m.rehearse:
        yield dict(
            case="GRPO step",
            variant="triton",
            **rl_row(run(m, "grpo_step", *tiny, *device, "--kernels", "triton", *RL)),
        )
        return
    ceiling = m.product_tflops(8192)
    for preset, shape in (("gpt2", (64, 1024, 16)), ("olmo2-1b", (8, 4096, 2))):
        for variant in ("triton", "torch", "triton compiled", "torch compiled"):
            for documents in (512, 0):
                size = ["--preset", preset, "--batch", shape[0], "--block", shape[1], "--micro", shape[2]]
                flags = [*size, "--documents", documents, "--steps", 2, "--repeats", 2, "--kernels", variant.split()[0]]
                flags += ["--compile"] if "compiled" in variant else []
                yield dict(case=f"pre-training {preset}", **training_row(m, variant, documents, device, flags, ceiling))
        for name, script in (("rollout", "rollout"), ("GRPO step", "grpo_step")):
            flags = ["--preset", preset, *device, "--prompt-lens", 100, 140, "--max-new", 200]
            for impl, graph in (("triton", []), ("triton", ["--cuda-graph"]), ("torch", [])):
                row = dict(case=f"{name} {preset}", variant=" ".join([impl, *graph]))
                try:
                    yield row | rl_row(run(m, script, *flags, "--kernels", impl, *graph))
                except RuntimeError as error:
                    yield row | dict(note=str(error)[-120:])


RL = ["--prompts", 1, "--samples", 8, "--max-new", 3, "--prompt-lens", 3, 6, "--steps", 1, "--micro", 4]


def training_row(m: Machine, variant: str, documents: int, device, flags, ceiling: float) -> dict:
    row = dict(variant=f"{variant}, {f'documents of {documents}' if documents else 'causal'}")
    try:
        found = run(m, "pretrain", *device, *flags)
    except RuntimeError as error:
        return row | dict(note=str(error)[-120:])
    mfu = 1e-3 * found["matmul_gflops"] / ceiling
    return row | dict(tokens_per_s=found["tokens_per_s"], mfu_of_measured=mfu, peak_gb=found["peak_gpu_gb"])


def rl_row(found: dict) -> dict:
    return {
        k: found[k] for k in ("useful_tokens_per_s", "s_per_step", "s_generate", "s_train", "peak_gpu_gb") if k in found
    }


def run(m: Machine, script: str, *flags, here: bool = False) -> dict:
    """The JSON line of `python -m bench.SCRIPT`; here: in this process, as importing torch is most of a rehearsal."""
    if here:
        argv = patch.object(sys, "argv", [script, *map(str, flags)])
        with argv, contextlib.redirect_stdout(io.StringIO()) as out:
            importlib.import_module(f"bench.{script}").main()
        return json.loads(out.getvalue().strip().splitlines()[-1])
    command = [sys.executable, "-m", f"bench.{script}", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=m.pick(200, 60))
    if done.returncode:
        raise RuntimeError(f"bench.{script} failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
