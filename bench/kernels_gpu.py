"""Kernel speed on a GPU: attention against torch's flash attention, log-prob against linear_cross_entropy and naive.

    python -m bench.kernels_gpu [--out docs/kernels_gpu.md]

Forward, and forward + backward, bfloat16, median of triton.testing.do_bench. **Not yet run on a GPU**: no figure of
this script is committed. Without a GPU it says so and exits 2.
"""

# ruff: noqa: B023  (every lambda is called before its loop goes on)
import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from kernels.attention import attention
from kernels.decode import decode_attention
from kernels.dispatch import why_not_triton
from kernels.logprob import linear_logprob


def milliseconds(work) -> float:
    from triton.testing import do_bench

    return do_bench(work, return_mode="median")


def with_backward(work, inputs):
    """A call that also runs the backward of work()'s sum."""

    def run():
        out = work()
        torch.autograd.grad(out.float().sum(), inputs)

    return run


def attention_rows():
    """(B, H, H_kv, T, D) of a small and of the 1B and 4B models' layers; 8k to 16k tokens a call."""
    for B, H, H_kv, T, D in [
        (32, 12, 12, 512, 64),
        (8, 16, 16, 2048, 128),
        (4, 16, 16, 4096, 128),
        (4, 32, 8, 4096, 128),
    ]:
        q, k, v = (
            torch.randn(B, h, T, D, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (H, H_kv, H_kv)
        )
        ours = lambda: attention(q, k, v, impl="triton")  # noqa: E731
        sdpa = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != H_kv)  # noqa: E731
        yield f"attention {B}x{H}/{H_kv}x{T}x{D}", {"ours": ours, "sdpa": sdpa}, (q, k, v)


def logprob_rows():
    for N, V, D in [(8192, 50304, 768), (8192, 100352, 2048)]:
        hidden = torch.randn(N, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = (torch.randn(V, D, device="cuda") * 0.02).bfloat16().requires_grad_()
        y = torch.randint(V, (N,), device="cuda")
        variants = {
            "ours": lambda: linear_logprob(hidden, weight, y, impl="triton")[0],
            "ours, torch path": lambda: linear_logprob(hidden, weight, y, impl="torch")[0],
            "linear_cross_entropy": lambda: -F.linear_cross_entropy(hidden, weight, y, reduction="none"),
            "naive": lambda: -F.cross_entropy(F.linear(hidden, weight).float(), y, reduction="none"),
        }
        yield f"log-prob {N}x{V}x{D}", variants, (hidden, weight)


def decode_rows():
    for P, G, H, Tp, Tt, D in [(32, 16, 16, 512, 256, 128), (8, 64, 16, 2048, 256, 128)]:
        q = torch.randn(P * G, H, D, device="cuda", dtype=torch.bfloat16)
        prefix = torch.randn(2, P, H, Tp, D, device="cuda").bfloat16()
        tail = torch.randn(2, P * G, H, Tt, D, device="cuda").bfloat16()
        run = lambda impl: decode_attention(q, *prefix, None, *tail, group_size=G, impl=impl)  # noqa: E731
        variants = {"ours": lambda: run("triton"), "ours, torch path": lambda: run("torch")}
        yield f"decode {P}x{G}x{H}, {Tp}+{Tt}, {D}", variants, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here; kernels have not yet been run on one", file=sys.stderr)
        sys.exit(2)
    reason = why_not_triton(torch.empty(0, device="cuda", dtype=torch.bfloat16))
    if reason:
        sys.exit(f"error: {reason}")
    lines = [
        f"`python -m bench.kernels_gpu` on {torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16.",
        "",
        "| case | variant | forward ms | forward + backward ms | peak MB | ours / this, forward + backward |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for rows in (attention_rows(), logprob_rows(), decode_rows()):
        for case, variants, inputs in rows:
            ours = None
            for name, work in variants.items():
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
                forward = milliseconds(work)
                both = milliseconds(with_backward(work, inputs)) if inputs else forward
                peak = (torch.cuda.max_memory_allocated() - held) / 2**20
                ours = ours or both
                lines.append(f"| {case} | {name} | {forward:.3f} | {both:.3f} | {peak:.0f} | {ours / both:.2f} |")
                print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
