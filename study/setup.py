"""What a study needs before its first run: devices, and the world or a corpus."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from data.files import UserError
from data.world import code_hash
from study.folder import HERE
from study.runner import shown


def find_devices(name: str) -> tuple[str, ...]:
    """What runs take in turn: every GPU for `auto` and `cuda`, else the one named; the CPU where there is no GPU."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name in ("auto", "cuda") and gpus:
        return tuple(f"cuda:{i}" for i in range(gpus)) if gpus > 1 else ("cuda",)
    known = {"cpu", *(f"cuda:{i}" for i in range(gpus)), *(["mps"] if torch.backends.mps.is_available() else [])}
    if name != "auto" and name not in known:
        raise UserError(f"--device {name}: torch finds no such device here; use one of auto {' '.join(sorted(known))}")
    return ("cpu",) if name == "auto" else (name,)


def world_command(data: Path, flags: list[str]) -> list[str]:
    return ["python", "-m", "data.world", "--out", shown(data), *flags]


def make_world(data: Path, flags: list[str], log: Path, own: bool) -> None:
    """Unless it is there. What it prints, the tour of the world, goes to the terminal and to the log. A world of other
    code is made again where it is the study's own, and refused where others may use it."""
    made_by = data / "made_by"
    if (data / "meta.json").exists():
        if made_by.is_file() and made_by.read_text(encoding="utf-8").strip() == code_hash():
            return
        if not own:
            raise UserError(f"{data} holds a world of other code than data/world.py: remove it, and it is made anew")
        print(f"{shown(data)} is of other code than data/world.py")
    command = world_command(data, flags)
    print(f"making the world, about 20 s; this is what it holds | {shown(log)}", flush=True)
    run_shown(command, log, "the world could not be made")


def corpus_command(data: Path, flags: list[str]) -> list[str]:
    return ["python", "-m", "data.prepare", "corpus", *flags, "--out", shown(data)]


def make_corpus(data: Path, flags: list[str], log: Path) -> None:
    """Unless it is there. `flags` name files under $REAL_DATA."""
    if not os.environ.get("REAL_DATA"):
        raise UserError("REAL_DATA is not set: export REAL_DATA=path/to/data, the folder that docs/data.md describes")
    print(f"making token files | {shown(log)}", flush=True)
    run_shown(corpus_command(data, [os.path.expandvars(flag) for flag in flags]), log, "no corpus could be made")


def run_shown(command: list[str], log: Path, failure: str) -> None:
    """What the command prints goes to the terminal and to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
        made = subprocess.Popen(
            [sys.executable, "-u", *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=HERE,
            encoding="utf-8",
            errors="replace",
        )
        try:
            for line in made.stdout:
                file.write(line)
                print(line, end="", flush=True)
        finally:
            made.terminate()
            failed = made.wait()
    if failed:
        raise UserError(f"{failure}; see {log}")
