"""Plumbing shared by every stage: errors, device, dtype, seeds, optimizer, schedule, what made a run. No method lives
here; the flags and the run folder are in stage.py, checkpoint files in data/checkpoints.py."""

import ast
import contextlib
import ctypes
import errno
import functools
import hashlib
import importlib
import importlib.metadata
import math
import os
import platform
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

import torch

from data.checkpoints import CHECKPOINT_KEYS as CHECKPOINT_KEYS
from data.checkpoints import FORMAT as FORMAT
from data.checkpoints import load_checkpoint as load_checkpoint
from data.checkpoints import save_checkpoint as save_checkpoint
from data.files import UserError
from data.locks import HELD, release
from data.locks import clear_temporaries as clear_temporaries
from data.locks import lock as lock
from kernels.dispatch import describe, matmul_dtype
from processes import PROCESSES, RANK, is_lost, joined, lost, own_device, speaks, sum_gradients

HERE = Path(__file__).resolve().parent


class Console:
    """stdout or stderr while a script runs. What cannot be shown never ends a run: a character that the terminal lacks
    is escaped; after a closed pipe or a full disk the rest goes nowhere."""

    def __init__(self, stream):
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self.attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self.attempt(self.stream.flush)

    def attempt(self, act, *args) -> None:
        try:
            act(*args)
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                broken = self.stream.fileno()  # what Python flushes at the end goes nowhere too
                os.dup2(os.open(os.devnull, os.O_WRONLY), broken)


def interrupt(number: int, _frame=None) -> None:
    """Ctrl-C and SIGTERM alike: whatever is under way cleans up after itself, and `run` says how it ended."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def run(main, many: bool = False) -> None:
    """Call `main()` as a script does: `explain` makes one line of what a user can mend, other errors keep their
    traceback. Folders that main wrote (`lock`) are free afterwards. `many`: torchrun may start it (processes.py)."""
    shown, handlers = (sys.stdout, sys.stderr), {}
    sys.stdout, sys.stderr = (stream and Console(stream) for stream in shown)
    if RANK:
        sys.stdout = open(os.devnull, "w")  # the first process speaks for all
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if PROCESSES > 1 and not many:
            raise UserError(f"torchrun began {PROCESSES} processes, but this runs in one: start it with python instead")
        with joined():
            return main()
    except (UserError, RuntimeError, OSError, KeyboardInterrupt) as error:
        line, code = explain(error)
        if PROCESSES > 1 and not speaks():  # another process has said why
            sys.exit(code or 1)
        if not line:
            raise
        print(line, file=sys.stderr)
        sys.exit(code)
    finally:
        while HELD:
            release(*HELD.pop())
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        sys.stdout, sys.stderr = shown
        for number, handler in handlers.items():
            signal.signal(number, handler)


def explain(error: BaseException) -> tuple[str, int]:
    """(line for the user, exit code): 2 for a UserError, a full disk or full memory, 128 + the signal for an interrupt;
    ("", 0) for what is a fault of the code."""
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if is_lost(error):
        return f"error: {lost()}", 2
    if isinstance(error, KeyboardInterrupt):
        name = str(error) or "SIGINT"
        return f"stopped by {name}; files written before are whole", 128 + signal.Signals[name]
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
        less = "lower --prompts-per-batch (sampling) or --micro-batch-size (training, memory only)"
        return f"error: out of memory: {less}", 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        mend = "older files are whole: free some space and --resume"
        return f"error: {error.filename or 'a file'} could not be written ({error.strerror}); {mend}", 2
    return "", 0


# -------------------------------------------------------------------------------------- device, dtype, threads, seeds
@dataclass
class Device:
    device: torch.device
    dtype: torch.dtype

    def autocast(self):
        """Matmuls in bfloat16 where asked for; each call is a fresh context, so no stale weight casts are kept."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def setup(args) -> Device:
    """Choose device, dtype and kernels (printing why), set seeds and threads. With --plan: print the bill and exit."""
    if cards := vars(args).pop("plan", None):  # by name: it is no part of the code that a run is made of
        importlib.import_module("tools.plan").show(args, cards)
    found = "cuda" if torch.cuda.is_available() else "cpu"  # mps by request alone: nothing here was tried on it
    name = own_device(found if args.device == "auto" else args.device)
    if name.split(":")[0] not in {found, "cpu", *(["mps"] if torch.backends.mps.is_available() else [])}:
        raise UserError(f"--device {name}: torch finds no such device here; use --device {found}")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # Triton launches on the current device
    except RuntimeError as error:
        raise UserError(f"--device {name}: torch knows no such device; use --device {found}") from error
    dtype = torch.float32
    why = "asked for" if args.dtype == "float32" else f"the default on {device.type.upper()}"
    if args.dtype == "bfloat16" or (args.dtype == "auto" and device.type == "cuda"):
        on_cpu = device.type == "cpu" and matmul_dtype(torch.empty(0, dtype=torch.bfloat16)) == torch.bfloat16
        if on_cpu or (device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)):
            dtype, why = torch.bfloat16, "asked for" if args.dtype == "bfloat16" else "the GPU has it"
        else:
            why = f"this {device.type} has no bfloat16 arithmetic"
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    if device.type == "cpu" and platform.system() == "Linux":
        # Keep freed memory in the heap: a fresh page costs 2-3 us in a virtual machine, and every step frees megabytes.
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    torch.manual_seed(args.seed)
    try:
        kernels = describe(args.kernels, device)
    except RuntimeError as error:
        raise UserError(f"--{error}") from error
    threads = f"{torch.get_num_threads()} threads" + (f" in each of {PROCESSES} processes" if PROCESSES > 1 else "")
    print(f"device {device} | dtype {str(dtype)[6:]} ({why}) | kernels {kernels} | {threads}", flush=True)
    return Device(device, dtype)


# --------------------------------------------------------------------------------------------- optimizer and schedule
def make_optimizer(model, args, lr: float | None = None) -> torch.optim.Optimizer:
    """AdamW; weight decay on everything but the embedding (OLMo 2's rule). Fused: one pass over the weights. Each of
    many processes keeps the moments of its share of the weights, updates these and sends them to the others."""
    groups = [{"params": [], "weight_decay": args.weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, p in model.named_parameters():
        groups[name.startswith("wte")]["params"].append(p)
    settings = dict(lr=args.lr if lr is None else lr, betas=tuple(args.betas), eps=1e-8, fused=True)
    if PROCESSES == 1:
        return torch.optim.AdamW(groups, **settings)
    from torch.distributed.optim import ZeroRedundancyOptimizer  # here, since it takes a second

    return ZeroRedundancyOptimizer(groups, torch.optim.AdamW, **settings)


def lr_at(step: int, args, peak: float, schedule: str) -> float:
    """Linear warm-up over `warmup_steps`, then constant, or a cosine to 10 % of the peak at the horizon."""
    warmup = warmup_of(args)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    done = (step - warmup) / max(1, horizon_of(args) - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def horizon_of(args) -> int:
    """The step at which a falling rate ends: the last one, or `--horizon` of a run that stops before it."""
    return getattr(args, "horizon", None) or args.steps


def warmup_of(args) -> int:
    return min(50, horizon_of(args) // 10) if args.warmup_steps is None else args.warmup_steps


def set_lr(optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def step_with_clip(model, optimizer, grad_clip: float, step: int = 0, out="the run") -> float:
    """Clip, step, clear; returns the gradient norm. Weights that got no gradient count as zero gradient: AdamW's clock
    then runs alike on every step. A gradient that is not finite stops the run before it reaches the weights."""
    for p in model.parameters():
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    sum_gradients(model)
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or float("inf")))
    check_finite(norm, step, out, "gradient norm")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def check_finite(value: float, step: int, out, what: str = "loss") -> None:
    if not math.isfinite(value):
        kept = f"the run stops and {out} keeps its last good checkpoint"
        raise UserError(f"{what} is {value} at step {step}: {kept}; lower --lr or look at the data")


# ------------------------------------------------------------------------------------------------------ what made a run
def peak_memory() -> float:
    """GB (1e9 bytes) that this process has held at most so far: on the GPU if it uses one, else resident."""
    if torch.cuda.is_available() and (held := torch.cuda.max_memory_allocated()):
        return round(held / 1e9, 3)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3) if resource else 0.0


def source_files(script) -> list[Path]:
    """The files of this project that `script` runs: itself and what it imports, directly or through others. Nothing is
    executed, and a fork's own files count."""
    script = Path(script).resolve()
    roots, found, queue = [script.parent, HERE], set(), [script]
    local = {path.stem for root in roots for path in root.iterdir()}
    modules: dict[str, Path | None] = {}  # a/b -> the file of a.b, None where it is no module
    while queue:
        path = queue.pop()
        if path in found:
            continue
        found.add(path)
        package = next((path.parent.relative_to(root).parts for root in roots if path.is_relative_to(root)), ())
        for dots, names in read_source(path)[0]:
            parts = [*(package[: len(package) + 1 - dots] if dots else ()), *names]
            for n in range(1, len(parts) + 1) if parts and parts[0] in local else ():
                stem = "/".join(parts[:n])
                if stem not in modules:
                    tried = [root / file for root in roots for file in (f"{stem}/__init__.py", f"{stem}.py")]
                    modules[stem] = next((file for file in tried if file.is_file()), None)
                if modules[stem]:
                    queue.append(modules[stem])
                    if modules[stem].name != "__init__.py":  # what follows is a name in that file
                        break
    return sorted(found)


def source_hash(script) -> str:
    """Of the code that decides the numbers of `script` (source_files): 10 hex digits, the same on every system. Only
    what Python runs counts: comments, docstrings and layout may change."""
    digest = hashlib.sha256()
    for path in source_files(script):
        digest.update(path.name.encode() + read_source(path)[1])
    return digest.hexdigest()[:10]


def read_source(path: Path) -> tuple[list[tuple[int, list[str]]], bytes]:
    """(imports, hash of what runs) of a Python file. An import is (dots, names): `from ..a import b` is
    (2, ["a", "b"])."""
    stat = path.stat()
    return _read_source(path, stat.st_mtime_ns, stat.st_size)


@functools.cache
def _read_source(path: Path, *_stamp) -> tuple[list[tuple[int, list[str]]], bytes]:
    data, found = path.read_bytes(), []
    try:
        tree = ast.parse(data)
    except SyntaxError:  # its stage will say so
        return found, data
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = node.module.split(".") if node.module else []
            found += [(node.level, [*start, alias.name]) for alias in node.names]  # a name may be a module
    return found, hashlib.sha256(syntax(tree).encode()).digest()


def syntax(node) -> str:
    """A syntax tree as text, alike in every version of Python (ast.dump is not); without strings that stand alone."""
    if isinstance(node, list):
        alone = [n for n in node if isinstance(n, ast.Expr) and isinstance(getattr(n.value, "value", None), str)]
        return f"[{','.join(syntax(n) for n in node if n not in alone)}]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
    told = [f"{name}={syntax(fields[name])}" for name in fields if name not in ("ctx", "kind", "type_comment")]
    return f"{type(node).__name__}({','.join(told)})"


def git_commit() -> tuple[str | None, bool | None]:
    """(commit of the code, whether tracked files differ from it); (None, None) where git cannot say."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=HERE, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None, None
    name = found.stdout.strip()
    return (name.removesuffix("-dirty"), name.endswith("-dirty")) if name and not found.returncode else (None, None)


def versions() -> dict:
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "tiktoken", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def provenance(script, device: "Device") -> dict:
    """What makes the numbers of this process: code, versions, machine, time. `script`: the stage's __file__."""
    commit, dirty = git_commit()
    on_gpu = device.device.type == "cuda"
    return {
        "commit": commit,
        "dirty": dirty,
        "source": source_hash(script),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device_used": str(device.device),
        "gpu": torch.cuda.get_device_name(device.device) if on_gpu else None,
        "dtype_used": str(device.dtype),
        "threads_used": torch.get_num_threads(),
        "processes": PROCESSES,
    }


def writable_dir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".tmp_{os.getpid()}_probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {path} cannot be written ({error.strerror}); choose a folder you own") from error


if __name__ == "__main__":
    print("Plumbing that the stages share; run one of them: python train_rl.py --help")
