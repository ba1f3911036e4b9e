"""Everything that only a GPU can tell of the kernels, in one command of about ten minutes, on whatever GPU it finds.

    python -m bench.gpu [--out runs/gpu.jsonl] [--only PART ...] [--skip PART ...]
    python -m bench.gpu --rehearse                   every part, tiny, on a CPU under Triton's interpreter

Needs torch 2.8 and triton 3.4 or later and no network. Each part runs in a process of its own with a time limit, so
that a crash, a hang or a poisoned driver costs that part alone (a rehearsal runs all in one); each result is a JSON
line, written at once to --out. What a machine has not (a peer's package, a tool) is skipped with a word. The table at
the end is kept within 100 lines: commit it as docs/gpu_results.md, and take the better tiles of part `tiles` into
kernels/tiles.py.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

if "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported

import torch

from bench import gpu_checks, gpu_speed
from bench.gpu_machine import Machine
from kernels.dispatch import why_not_triton

# In this order; seconds that each may take on a GPU.
PARTS = {
    "versions": (gpu_checks.versions, 60),
    "build": (gpu_checks.build, 240),
    "correctness": (gpu_checks.correctness, 120),
    "sanitizer": (gpu_checks.sanitizer, 90),
    "tiles": (gpu_speed.sweep, 120),
    "peers": (gpu_speed.peers, 120),
    "memory": (gpu_speed.memory, 60),
    "launch": (gpu_speed.launch, 60),
    "end to end": (gpu_speed.end_to_end, 240),
}


def run_part(name: str, machine: Machine, out: Path) -> None:
    """All rows of one part, each written as it comes. A failure is a row too."""
    work, limit = PARTS[name]
    began = time.perf_counter()
    try:
        for row in work(machine):
            write(out, {"part": name, **row})
            if time.perf_counter() - began > limit:
                write(out, {"part": name, "case": "cut", "note": f"after {limit} s"})
                break
    except Exception as error:  # whatever it is, the other parts go on
        write(out, {"part": name, "case": "failed", "note": f"{type(error).__name__}: {error}".splitlines()[0][:200]})


def write(out: Path, row: dict) -> None:
    with open(out, "a") as file:
        file.write(json.dumps(row) + "\n")
    print(shown(row), flush=True)


def shown(row: dict) -> str:
    """part | case | variant | figures | note, in one line."""
    figures = {k: v for k, v in row.items() if k not in ("part", "case", "variant", "note")}
    text = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
    return " | ".join([row["part"], str(row.get("case", "")), row.get("variant", ""), text, row.get("note", "")])


def table(out: Path, lines: int = 100) -> list[str]:
    """The rows as a Markdown table of at most `lines` lines. Passed checks are counted, not listed."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    listed = [row for row in rows if row.get("passed") is not True]
    head = ["part | case | variant | figures | note", "---|---|---|---|---"]
    passed = len(rows) - len(listed)
    foot = [f"checks | {passed} passed | | |"] if passed else []
    room = lines - len(head) - len(foot)
    if len(listed) > room:
        foot.append(f"... | {len(listed) - room + 1} more rows in {out} | | |")
        listed = listed[: room - 1]
    return [*head, *map(shown, listed), *foot]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/gpu.jsonl"), help="JSON lines; a file there is replaced")
    p.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    p.add_argument("--skip", nargs="+", choices=PARTS, default=[], help="parts to leave out")
    p.add_argument("--rehearse", action="store_true", help="every part tiny, on the CPU under Triton's interpreter")
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)  # one part, called by the parent
    a = p.parse_args()
    machine = Machine(rehearse=a.rehearse)
    found = torch.cuda.is_available() or a.rehearse
    reason = why_not_triton(torch.empty(0, device=machine.device)) if found else "no GPU here"
    if reason:
        print(f"{reason}; `--rehearse` runs every part on a CPU", file=sys.stderr)
        return 2
    parts = [name for name in a.only if name not in a.skip]
    if a.child:
        run_part(parts[0], machine, a.out)
        return 0
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text("")
    for name in parts:
        if a.rehearse:
            run_part(name, machine, a.out)
            continue
        command = [sys.executable, "-m", "bench.gpu", "--child", "--out", str(a.out), "--only", name]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, timeout=PARTS[name][1] + 60)
            if done.returncode == 0:
                continue
        write(a.out, {"part": name, "case": "failed", "note": "its process crashed or hung; its rows so far are kept"})
    print("\n".join(["", *table(a.out)]))
    return int(any('"failed"' in line for line in a.out.read_text().splitlines()))


if __name__ == "__main__":
    sys.exit(main())
