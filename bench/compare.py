"""Ours against the peers, interleaved: a table of medians, ratios and targets.

    python -m bench.compare --peers DIR --peer-python VENV/bin/python [--nanogpt CHECKOUT] [--only pretrain ...]

DIR holds the peers' scripts (pretrain_hf.py, pretrain_nanogpt.py, generate_hf.py, grpo_trl.py, loglik_lmeval.py); their
packages are in bench/requirements.txt, in a venv of their own. For each row the peer with glibc's own heap settings,
the peer with a heap that keeps its pages, and ours run in turn, --rounds times over, each in its own process with one
thread; the faster of the two heap settings counts. Ratios are of CPU seconds for the same work: on a machine that
does other work too, wall time measures the neighbours (cpu/wall says how much of a core each side got).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass

from bench.timing import bf16_in_hardware

KEPT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}


@dataclass
class Row:
    """One line of the table. `rate` reads units of work per second from a script's JSON line."""

    what: str
    peer: list[str]
    ours: list[str]
    rate: str
    at_least: float
    aim: float
    key: str  # for --only


def rows(quick: bool, dtype: str) -> list[Row]:
    train = ["--steps", "2", "--repeats", "1"] if quick else []
    once = ["--repeats", "1"] if quick else []
    few = ["--prompts", "8"] if quick else []
    step = ["--steps", "1"] if quick else []
    bf16 = dtype == "bf16"
    return [
        Row(
            "pre-training step, 32 x 256, against Olmo2ForCausalLM",
            ["pretrain_hf.py", *train],
            ["bench.pretrain", *train],
            "tokens_per_s",
            1.6 if bf16 else 1.15,
            2 if bf16 else 1.3,
            "pretrain",
        ),
        Row(
            "the same, against nanoGPT",
            ["pretrain_nanogpt.py", *train],
            ["bench.pretrain", *train],
            "tokens_per_s",
            1.25 if bf16 else 1.1,
            1.5 if bf16 else 1.25,
            "nanogpt",
        ),
        Row(
            "laptop model (--arch world), against nanoGPT",
            ["pretrain_nanogpt.py", *train],
            ["bench.pretrain", "--arch", "world", *train],
            "tokens_per_s",
            1.25 if bf16 else 1.1,
            1.5 if bf16 else 1.25,
            "nanogpt",
        ),
        Row(
            "rollouts, 32 x 16, against generate",
            ["generate_hf.py", "--mode", "rl", *once],
            ["bench.rollout", "--mode", "rl", *once],
            "useful_tokens_per_s",
            6,
            8,
            "rl",
        ),
        Row(
            "few-shot set, 400 + 48 x 32, against generate",
            ["generate_hf.py", "--mode", "eval", *few],
            ["bench.rollout", "--mode", "eval", *once],
            "useful_tokens_per_s",
            20,
            30,
            "eval",
        ),
        Row(
            "GRPO step, against TRL",
            ["grpo_trl.py", *step],
            ["bench.grpo_step", *step],
            "s_per_step",
            6,
            8,
            "grpo",
        ),
        Row(
            "likelihood, against HFLM",
            ["loglik_lmeval.py", *once],
            ["bench.likelihood", *once],
            "items_per_s",
            6,
            8,
            "likelihood",
        ),
    ]


def run(command: list[str], cpu: int, **env) -> dict:
    """The JSON line of a script, pinned to one core."""
    env = os.environ | dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1") | env
    pin = ["taskset", "-c", str(cpu)] if sys.platform == "linux" else []
    done = subprocess.run([*pin, *command], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def units_per_cpu_second(result: dict, rate: str) -> float:
    value = 1 / result[rate] if rate.startswith("s_") else result[rate]
    return value / result["cpu_over_wall"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peers", required=True, metavar="DIR", help="folder with the peers' scripts")
    p.add_argument(
        "--peer-python", default=sys.executable, metavar="PY", help="interpreter that has the peers' packages"
    )
    p.add_argument("--nanogpt", metavar="DIR", help="a nanoGPT checkout; without it its rows are left out")
    p.add_argument("--only", nargs="+", choices=["pretrain", "nanogpt", "rl", "eval", "grpo", "likelihood"])
    p.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    p.add_argument("--rounds", type=int, default=2, help="times each side runs")
    p.add_argument(
        "--quick", action="store_true", help="fewer repeats in a process; 8 of the few-shot questions for the peer"
    )
    p.add_argument("--cpu", type=int, default=0, help="the core to run on")
    a = p.parse_args()
    if a.dtype == "bf16" and not bf16_in_hardware():
        sys.exit("--dtype bf16: this CPU has no bfloat16 arithmetic, so the ratios would mean nothing; use fp32")

    print("| work | peer, stock heap | peer, kept heap | ours | ratio | at least | aim | cpu/wall (peer, ours) |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for row in rows(a.quick, a.dtype):
        if (a.only and row.key not in a.only) or (row.key == "nanogpt" and not a.nanogpt):
            continue
        script, *flags = row.peer
        checkout = [a.nanogpt] if row.key == "nanogpt" else []
        peer = [a.peer_python, os.path.join(a.peers, script), *checkout, *flags, "--dtype", a.dtype]
        ours = [sys.executable, "-m", *row.ours, "--dtype", a.dtype]
        sides = {"stock": (peer, {}), "kept": (peer, KEPT), "ours": (ours, {})}
        results = {name: [] for name in sides}
        for _ in range(a.rounds):
            for name, (command, env) in sides.items():
                results[name].append(run(command, a.cpu, **env))
        rates = {n: statistics.median(units_per_cpu_second(r, row.rate) for r in rs) for n, rs in results.items()}
        share = [statistics.median(r["cpu_over_wall"] for r in results[name]) for name in ("kept", "ours")]
        ratio = rates["ours"] / max(rates["stock"], rates["kept"])
        shown = " | ".join(f"{rate:,.0f}" if rate > 10 else f"{rate:.3f}" for rate in rates.values())
        shares = f"{share[0]:.2f}, {share[1]:.2f}"
        goals = f"{row.at_least}x | {row.aim}x"
        print(f"| {row.what} | {shown} | **{ratio:.2f}x** | {goals} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
