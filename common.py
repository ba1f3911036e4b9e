"""Plumbing shared by every stage: errors, device, dtype, seeds, optimizer, schedule, what made a run, checkpoint files.
No method lives here; the flags and the run folder are in stage.py."""

import ast
import ctypes
import errno
import hashlib
import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

import torch

from data.files import UserError
from kernels.dispatch import describe, matmul_dtype

FORMAT = 1  # of the checkpoint dictionary; raised when a key changes its meaning
HERE = Path(__file__).resolve().parent
CHECKPOINT_KEYS = """format stage step tokens model model_config tokenizer optimizer rng data config parent metrics
versions""".split()


def run(main) -> None:
    """Call `main()`; a `UserError`, a full disk or full memory becomes one line on stderr and exit code 2."""
    try:
        return main()
    except UserError as error:
        message = str(error)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        message = "out of memory: lower --prompts-per-batch (sampling) or --micro-batch-size (training, memory only)"
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        name = error.filename or "a file"
        message = f"{name} could not be written ({error.strerror}); older files are whole: free some space and --resume"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


# -------------------------------------------------------------------------------------- device, dtype, threads, seeds
@dataclass
class Device:
    device: torch.device
    dtype: torch.dtype

    def autocast(self):
        """Matmuls in bfloat16 where asked for; each call is a fresh context, so no stale weight casts are kept."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def setup(args) -> Device:
    """Choose device, dtype and kernels (printing why), set seeds and threads."""
    found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name = found if args.device == "auto" else args.device
    if name.split(":")[0] not in {found, "cpu"}:
        raise UserError(f"--device {name}: torch finds no such device here; use --device {found}")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # Triton launches on the current device
    except RuntimeError as error:
        raise UserError(f"--device {name}: torch knows no such device; use --device {found}") from error
    dtype = torch.float32
    why = "asked for" if args.dtype == "float32" else "bfloat16 is the default on GPUs that have it"
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
    threads = torch.get_num_threads()
    print(f"device {device} | dtype {str(dtype)[6:]} ({why}) | kernels {kernels} | {threads} threads", flush=True)
    return Device(device, dtype)


# --------------------------------------------------------------------------------------------- optimizer and schedule
def make_optimizer(model, args, lr: float | None = None) -> torch.optim.AdamW:
    """AdamW; weight decay on everything but the embedding (OLMo 2's rule). Fused: one pass over the weights."""
    groups = [{"params": [], "weight_decay": args.weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, p in model.named_parameters():
        groups[name.startswith("wte")]["params"].append(p)
    return torch.optim.AdamW(groups, lr=args.lr if lr is None else lr, betas=tuple(args.betas), eps=1e-8, fused=True)


def lr_at(step: int, args, peak: float, schedule: str) -> float:
    """Linear warm-up over `warmup_steps`, then constant, or a cosine to 10 % of the peak at `steps`."""
    warmup = min(50, args.steps // 10) if args.warmup_steps is None else args.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    done = (step - warmup) / max(1, args.steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def set_lr(optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def step_with_clip(model, optimizer, grad_clip: float, step: int = 0, out="the run") -> float:
    """Clip, step, clear; returns the gradient norm. Weights that got no gradient count as zero gradient: AdamW's clock
    then runs alike on every step. A gradient that is not finite stops the run before it reaches the weights."""
    for p in model.parameters():
        if p.grad is None:
            p.grad = torch.zeros_like(p)
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
    """The files of this project that `script` runs: itself and what it imports, directly or through others. Found in
    the text of the import statements (`ast`), so nothing is executed and a fork's own files count."""
    script = Path(script).resolve()
    roots, found, queue = [script.parent, HERE], set(), [script]
    while queue:
        path = queue.pop()
        if path in found:
            continue
        found.add(path)
        package = next((path.parent.relative_to(root).parts for root in roots if path.is_relative_to(root)), ())
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):  # a name may be a module of a package
                start = [*(package[: len(package) + 1 - node.level] if node.level else ())]
                start += node.module.split(".") if node.module else []
                names = [[*start, alias.name] for alias in node.names]
            for parts in names:
                for stem in (Path(*parts[:n]) for n in range(1, len(parts) + 1)):
                    tried = [root / file for root in roots for file in (f"{stem}.py", stem / "__init__.py")]
                    queue += [file for file in tried if file.is_file()][:1]
    return sorted(found)


def source_hash(script) -> str:
    """Of the code that decides the numbers of `script` (source_files): 10 hex digits, the same on every system."""
    digest = hashlib.sha256()
    for path in source_files(script):
        digest.update(path.name.encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:10]


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
        "commit": commit, "dirty": dirty, "source": source_hash(script), "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "device_used": str(device.device),
        "gpu": torch.cuda.get_device_name(device.device) if on_gpu else None, "dtype_used": str(device.dtype),
        "threads_used": torch.get_num_threads(),
    }  # fmt: skip


def writable_dir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe_{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {path} cannot be written ({error.strerror}); choose a folder you own") from error


# --------------------------------------------------------------------------------------------------- checkpoint files
def save_checkpoint(path: Path, ckpt: dict) -> None:
    """Write to a temporary name, sync, rename: a crash or a full disk leaves the previous file whole."""
    temporary = Path(path).parent / f".tmp_{os.getpid()}_{Path(path).name}"
    try:
        with open(temporary, "wb") as f:
            torch.save(ckpt, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        mend = "older files are whole: free some space and --resume"
        raise UserError(f"{path} could not be written ({error}); {mend}") from error


def load_checkpoint(path) -> dict:
    """Read a checkpoint on the CPU (weights_only) and check that it is one of ours."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint; give a ckpt_*.pt file that a training stage wrote")
    try:
        ckpt = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load's failures have no common class; each means the same to a user
        what = f"truncated or foreign ({type(error).__name__})"
        raise UserError(f"{path} is no readable checkpoint but {what}; use another") from error
    missing = [k for k in CHECKPOINT_KEYS if not isinstance(ckpt, dict) or k not in ckpt]
    if missing:
        raise UserError(f"{path} is no checkpoint of ours (it has no {missing[0]}); use a ckpt_*.pt that a stage wrote")
    if ckpt["format"] != FORMAT:
        raise UserError(f"{path} has format {ckpt['format']}, this code reads {FORMAT}; use the version that wrote it")
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):  # left by torch.compile and DDP in files of forks
        ckpt["model"] = {k.removeprefix(prefix): v for k, v in ckpt["model"].items()}
    return ckpt


if __name__ == "__main__":
    print("Plumbing that the stages share; run one of them: python train_rl.py --help")
