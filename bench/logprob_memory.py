"""Peak memory and time of per-token log-probs with their gradients: ours, naive, and torch's linear_cross_entropy.

    python -m bench.logprob_memory                                            N 4096, D 256, V 50304, fp32: ~5 minutes
    python -m bench.logprob_memory --tokens 8192 --vocab 100352 --rounds 1    ours < 3 GB, naive > 6 GB

The loss is sum(w * logp) with another w for every token, as in a policy gradient. Every run is a process of its own
(peak memory cannot be reset), the variants take turns, and each run warms up on 256 tokens and words first. Times are
CPU seconds of one thread, so that another process on the machine disturbs them less; memory is the peak over what the
inputs and the warm-up took. Prints one JSON line at the end.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

VARIANTS = ("naive", "linear_cross_entropy", "ours")


def one_run(a) -> dict:
    """Seconds, peak MB over the inputs, and a few gradient entries of one forward and backward."""
    import torch
    import torch.nn.functional as F
    from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

    from kernels.dispatch import matmul_dtype
    from kernels.logprob import linear_logprob

    dtype = torch.bfloat16 if a.dtype == "bf16" else torch.float32
    if matmul_dtype(torch.empty(0, dtype=dtype)) != dtype:
        sys.exit("--dtype bf16: this CPU has no bfloat16 arithmetic, so the figure would mean nothing; use fp32")
    torch.set_num_threads(1)
    torch.manual_seed(0)

    def normal(rows, std):  # no temporary
        return torch.empty(rows, a.dim, dtype=dtype).normal_(0, std)

    hidden, weight = normal(a.tokens, 1.0).requires_grad_(), normal(a.vocab, 0.02).requires_grad_()
    targets, w = torch.randint(a.vocab, (a.tokens,)), torch.randn(a.tokens)

    def naive(h, head, y):
        return F.linear(h, head).float().log_softmax(-1).gather(1, y[:, None])[:, 0]

    def linear_cross_entropy(h, head, y):
        options = LinearCrossEntropyOptions(batch_chunk_size=256)
        return -F.linear_cross_entropy(h, head, y, reduction="none", options=options)

    def ours(h, head, y):
        return linear_logprob(h, head, y)[0]

    variant = dict(naive=naive, linear_cross_entropy=linear_cross_entropy, ours=ours)[a.variant]
    few = [
        x[:256].detach().requires_grad_() for x in (hidden, weight)
    ]  # small, or it would raise the mark we start from
    variant(*few, targets[:256] % len(few[1])).sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = time.perf_counter(), time.process_time()
    (variant(hidden, weight, targets).float() * w).sum().backward()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    probe = (
        hidden.grad[:8, :8].float().flatten().tolist()
        + weight.grad[: a.vocab : a.vocab // 32, :4].float().flatten().tolist()
    )
    return dict(cpu_s=cpu, wall_s=wall, peak_mb=peak - before, probe=probe)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tokens", type=int, default=4096, help="N, rows")
    p.add_argument("--dim", type=int, default=256, help="D, width")
    p.add_argument("--vocab", type=int, default=50304, help="V, words")
    p.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of hidden and weight")
    p.add_argument("--rounds", type=int, default=5, help="runs of each variant, taking turns")
    p.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    p.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)  # set for the runs' own processes
    a = p.parse_args()
    if a.variant:
        print(json.dumps(one_run(a)))
        return
    runs = {v: [] for v in a.variants}
    for _ in range(a.rounds):
        for v in a.variants:
            flags = [f"--{k}={getattr(a, k)}" for k in ("tokens", "dim", "vocab", "dtype")]
            command = [sys.executable, "-m", "bench.logprob_memory", *flags, f"--variant={v}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(f"the run of {v} failed")
            runs[v].append(json.loads(done.stdout))
    result = {}
    for v, rows in runs.items():
        result[v] = {key: round(statistics.median(r[key] for r in rows), 3) for key in ("cpu_s", "wall_s", "peak_mb")}
        result[v]["cpu_s_min_max"] = [round(f(r["cpu_s"] for r in rows), 3) for f in (min, max)]
    if "ours" in runs and len(runs) > 1:
        others = [v for v in runs if v != "ours"]
        mine, theirs = runs["ours"][0]["probe"], runs[others[0]][0]["probe"]
        error = max(abs(x - y) for x, y in zip(mine, theirs, strict=True)) / max(map(abs, theirs))
        result["ours"][f"gradient_error_to_{others[0]}"] = float(f"{error:.1e}")
        result["time_to_the_better"] = round(result["ours"]["cpu_s"] / min(result[v]["cpu_s"] for v in others), 3)
        if "naive" in runs:
            result["memory_to_naive"] = round(result["ours"]["peak_mb"] / result["naive"]["peak_mb"], 3)
    print(json.dumps(dict(what="log-prob and backward", flags=vars(a) | {"variants": list(a.variants)}, **result)))


if __name__ == "__main__":
    main()
