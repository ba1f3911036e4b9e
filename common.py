"""Run plumbing shared by every stage: errors, device, dtype, seeds, optimizer, schedule, logs, checkpoint files. No
method lives here; the flags are in stage.py."""

import ctypes
import errno
import json
import math
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

import torch

from data.files import UserError
from kernels.dispatch import describe, matmul_dtype

FORMAT = 1  # of the checkpoint dictionary; raised when a key changes its meaning
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


# ------------------------------------------------------------------------------------------------ run folder and logs
def peak_memory() -> float:
    """GB (1e9 bytes) that this process has held at most so far: on the GPU if it uses one, else resident."""
    if torch.cuda.is_available() and (held := torch.cuda.max_memory_allocated()):
        return round(held / 1e9, 3)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3) if resource else 0.0


class Run:
    """A run folder: `config.json`, `metrics.jsonl`, `samples.jsonl` (rollouts), checkpoints; and the console line.
    `start`: a stage.Start."""

    def __init__(self, args, stage: str, start):
        self.args, self.stage, self.out = args, stage, Path(args.out)
        self.start, self.began, self.before = start, time.time(), 0.0  # before: seconds of the run before --resume
        writable_dir(self.out)
        found = sorted(p for p in self.out.glob("ckpt_*.pt") if p.stem[5:].isdecimal())
        later = [p.name for p in found if int(p.stem[5:]) > start.step]
        if later and args.resume:
            raise UserError(f"{self.out} has {later[-1]}, later than {args.resume}: resume that, or give another --out")
        if found and not args.resume:
            raise UserError(f"{self.out} already holds {found[-1].name}: --resume it, or give a new run another --out")
        (self.out / "config.json").write_text(json.dumps(vars(args), indent=1) + "\n")
        for name in ("metrics.jsonl", "samples.jsonl"):  # rows past the step we resume from will be written again
            path = self.out / name
            if not path.exists():
                continue
            rows = path.read_text().splitlines() if args.resume else []
            kept = [r for r in rows if r.endswith("}") and json.loads(r)["step"] <= start.step]
            path.write_text("".join(r + "\n" for r in kept))
            if kept and name == "metrics.jsonl":
                self.before = json.loads(kept[-1])["perf/elapsed_s"]

    def log(self, step: int, shown: dict, metrics: dict) -> None:
        """One row of metrics.jsonl for the step just done, counted from 1, and one console line of some of its values:
        `shown` is {label: "metric:format"}, for instance {"gnorm": "train/grad_norm:.2f"}. None: not measured."""
        elapsed = time.time() - self.began
        left = elapsed / max(1, step - self.start.step) * (self.args.steps - step)
        values = [(label, metrics.get(spec.split(":")[0]), spec.split(":")[1]) for label, spec in shown.items()]
        line = " | ".join(f"{label} {format(value, spec)}" for label, value, spec in values if value is not None)
        print(f"step {step:05d}/{self.args.steps:05d} | {line} | {left:.0f} s left", flush=True)
        with open(self.out / "metrics.jsonl", "a") as f:
            row = {"step": step, **metrics, "perf/peak_mem_gb": peak_memory()}
            row["perf/elapsed_s"] = round(self.before + elapsed, 2)
            f.write(json.dumps(row) + "\n")

    def sample(self, step: int, row: dict) -> None:
        with open(self.out / "samples.jsonl", "a") as f:
            f.write(json.dumps({"step": step, **row}) + "\n")

    def due(self, step: int) -> bool:
        """Is a checkpoint due after `step` steps? The last one always is."""
        a = self.args
        return step == a.steps or step in a.save_at or (a.save_every > 0 and step % a.save_every == 0)

    def save(self, step: int, model, optimizer: dict, metrics: dict) -> None:
        """Write ckpt_{step:06d}.pt. `optimizer`: a state_dict, or a dictionary of several."""
        path, start = self.out / f"ckpt_{step:06d}.pt", self.start
        save_checkpoint(path, dict(
            format=FORMAT, stage=self.stage, step=step, tokens=start.tokens,
            model={k: v.detach().float().cpu() for k, v in model.state_dict().items()},
            model_config=dict(vars(model.config)), tokenizer=start.tokenizer, optimizer=optimizer,
            rng={"torch": torch.get_rng_state()},  # for forks: here every draw is a function of (seed, step)
            data={"position": step, "identity": start.identity},
            config={**vars(self.args), "threads": torch.get_num_threads()}, parent=start.parent, metrics=metrics,
            versions={"torch": str(torch.__version__), "python": platform.python_version()},
        ))  # fmt: skip
        print(f"saved {path}", flush=True)


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
