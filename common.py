"""Run plumbing shared by every stage: errors, flags, device, dtype, seeds, schedule, logs, checkpoints. No method lives here."""

import argparse
import ctypes
import hashlib
import json
import math
import os
import platform
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from kernels.dispatch import describe, matmul_dtype

FORMAT = 1  # of the checkpoint dictionary; raised when a key changes its meaning
CHECKPOINT_KEYS = "format stage step tokens model model_config tokenizer optimizer rng data config parent metrics versions"


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence: what was got, what is needed, what to do."""


def run(main) -> None:
    """Call `main()`; a `UserError` becomes one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


# ------------------------------------------------------------------------------------------------------------- flags
def add_system_args(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("System")
    g.add_argument("--device", default="auto", help="auto | cuda | cuda:1 | mps | cpu")
    g.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"], help="of the matmuls; weights stay float32")
    g.add_argument("--kernels", default="auto", choices=["auto", "triton", "torch"], help="auto = triton on a GPU, else torch")
    g.add_argument("--seed", type=int, default=0)
    g.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = torch's choice")


def add_training_args(p: argparse.ArgumentParser, *, steps: int, lr: float, init: bool = True) -> None:
    """Flags that mean the same in every training stage; `steps` and `lr` are the stage's laptop defaults."""
    g = p.add_argument_group("Input and output")
    g.add_argument("--data", default="data/world", metavar="DIR", help="a folder made by data.world or data.tokens")
    g.add_argument("--out", metavar="DIR", help="run folder: checkpoints, config.json, metrics.jsonl, samples.jsonl")
    if init:
        g.add_argument("--init", metavar="CKPT", help="start a new run from these weights")
    g.add_argument("--resume", metavar="CKPT", help="go on with the run that wrote this file, under its own settings")
    g = p.add_argument_group("Optimization")
    g.add_argument("--steps", type=int, default=steps, help="ends the run and is the schedule's horizon")
    g.add_argument("--lr", type=float, default=lr, help="peak learning rate")
    g.add_argument("--warmup-steps", type=int, help="linear warm-up; default min(50, steps // 10)")
    g.add_argument("--weight-decay", type=float, default=0.01 if init else 0.1, help="all weights but the embedding; 0 = off")
    g.add_argument("--betas", type=float, nargs=2, default=[0.9, 0.999] if init else [0.9, 0.95])
    g.add_argument("--grad-clip", type=float, default=1.0, help="global gradient norm; 0 = off")
    g.add_argument("--micro-batch-size", type=int, default=64 if init else 8, help="rows in one forward pass: memory only")
    g.add_argument("--save-every", type=int, default=0, help="steps between checkpoints; 0 = only the last one")
    g.add_argument("--save-at", type=int, nargs="+", default=[], metavar="STEP", help="checkpoints at these steps")


def add_question_args(p: argparse.ArgumentParser) -> None:
    """Flags of the stages that train on questions."""
    p.add_argument("--task", default="gsm", help="question set: gsm | hard (world), gsm8k | math | svamp | openmath (real)")
    p.add_argument("--n-questions", type=int, default=0, help="use only the first N training questions; 0 = all")


def parse(p: argparse.ArgumentParser, presets: dict | None = None) -> tuple[argparse.Namespace, dict | None]:
    """Parse the command line; --preset NAME sets defaults from `presets`. With --resume the run's own settings are the
    defaults, and each change is reported."""
    args = p.parse_args()
    if presets:
        p.set_defaults(**presets[args.preset])
        args = p.parse_args()
    if not args.resume:
        for name, why in (("out", "where to write the run"), ("init", "the checkpoint to start from")):
            if getattr(args, name, "") is None:
                raise UserError(f"--{name} is missing: say {why}, or give --resume CKPT")
        ckpt = None
    else:
        if getattr(args, "init", None):
            raise UserError("--init and --resume were both given: --init starts a new run, --resume goes on with one; drop one")
        ckpt = load_checkpoint(args.resume)
        if ckpt["stage"] != Path(p.prog).stem:
            raise UserError(f"{args.resume} was written by {ckpt['stage']}.py, not {p.prog}; resume it there, or use --init")
        known = {k: v for k, v in ckpt["config"].items() if hasattr(args, k) and k != "resume"}
        p.set_defaults(**known)
        args = p.parse_args()
        for name, old in known.items():
            new = getattr(args, name)
            if name == "steps" and new != old:
                raise UserError(f"--steps {new}: this run's horizon is {old} and its schedule depends on it; drop --steps or start a new run")
            if new != old:
                print(f"note: --{name.replace('_', '-')} is {new}, the run had {old}")
        if ckpt["step"] >= args.steps:
            print(f"{args.resume} is the end of its run ({args.steps} steps): nothing to do")
            sys.exit(0)
    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: at least one step is needed")
    if args.micro_batch_size < 1:
        raise UserError(f"--micro-batch-size {args.micro_batch_size}: at least one row is needed")
    if args.warmup_steps is None:
        args.warmup_steps = min(50, args.steps // 10)
    return args, ckpt


# ------------------------------------------------------------------------------------------ device, dtype, threads, seeds
@dataclass
class Device:
    device: torch.device
    dtype: torch.dtype

    def autocast(self):
        """Matmuls in bfloat16 where asked for; each call is a fresh context, so no stale weight casts are kept."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def setup(args) -> Device:
    """Choose device and dtype (printing why), set seeds and threads."""
    if args.device == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        why = "no GPU found" if name == "cpu" else "found"
    else:
        name, why = args.device, "asked for"
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"--device {name}: torch sees no CUDA device; use --device cpu or a CUDA build of torch")
        if name.startswith("mps") and not torch.backends.mps.is_available():
            raise UserError("--device mps: torch sees no Apple GPU; use --device cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: not a device torch knows; use auto, cpu, cuda, cuda:1 or mps") from error
    gpu_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if args.dtype == "auto":
        dtype = torch.bfloat16 if gpu_bf16 else torch.float32
        dtype_why = "the GPU has bfloat16" if gpu_bf16 else "bfloat16 is the default only on GPUs that have it"
    else:
        dtype, dtype_why = getattr(torch, args.dtype), "asked for"
        has = gpu_bf16 if device.type == "cuda" else matmul_dtype(torch.empty(0, dtype=dtype, device=device)) == dtype
        if dtype == torch.bfloat16 and not has:
            dtype, dtype_why = torch.float32, f"this {device.type} has no bfloat16 arithmetic and would be far slower in it"
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    if device.type == "cpu" and platform.system() == "Linux":
        # Keep freed memory in the heap: a fresh page costs 2-3 us in a virtual machine, and every step frees megabytes.
        ctypes.CDLL(None).mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        ctypes.CDLL(None).mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    torch.manual_seed(args.seed)
    try:
        kernels = describe(args.kernels, device)
    except RuntimeError as error:
        raise UserError(f"--{error}") from error
    threads = torch.get_num_threads()
    print(f"device {device} ({why}) | dtype {str(dtype)[6:]} ({dtype_why}) | kernels {kernels} | threads {threads}", flush=True)
    return Device(device, dtype)


# ------------------------------------------------------------------------------------------------ optimizer and schedule
def make_optimizer(model, args, lr: float | None = None) -> torch.optim.AdamW:
    """AdamW; weight decay on everything but the embedding (OLMo 2's rule). Fused: one pass over the weights."""
    named = dict(model.named_parameters())
    skip = [p for n, p in named.items() if n.startswith("wte")]
    decay = [p for n, p in named.items() if not n.startswith("wte")]
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": skip, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr if lr is None else lr, betas=tuple(args.betas), eps=1e-8, fused=True)


def lr_at(step: int, args, peak: float, schedule: str) -> float:
    """Linear warm-up over `warmup_steps`, then constant, or a cosine to 10 % of the peak at `steps`."""
    if step < args.warmup_steps:
        return peak * (step + 1) / args.warmup_steps
    if schedule == "constant":
        return peak
    done = (step - args.warmup_steps) / max(1, args.steps - args.warmup_steps)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def set_lr(optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def step_with_clip(model, optimizer, grad_clip: float) -> float:
    """Clip, step, clear. Weights that got no gradient count as zero gradient: AdamW's clock then runs alike on every step."""
    for p in model.parameters():
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or float("inf"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


def draw(n: int, count: int, step: int, seed: int) -> list[int]:
    """Batch `step` of `count` items out of n: seeded permutations of range(n), one after the other, cut into batches. A pure
    function of its arguments, so that resuming needs no state."""
    return [permutation(n, seed, position // n)[position % n] for position in range(step * count, (step + 1) * count)]


@lru_cache(maxsize=4)
def permutation(n: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()


def check_finite(loss: float, step: int, out) -> None:
    if not math.isfinite(loss):
        raise UserError(f"loss is {loss} at step {step}: the run stops and {out} keeps its last good checkpoint; lower --lr or look at the data")


# ----------------------------------------------------------------------------------------------------- run folder and logs
class Run:
    """A run folder: `config.json`, `metrics.jsonl`, `samples.jsonl`, checkpoints; and the console line."""

    def __init__(self, args, stage: str, start_step: int = 0):
        self.args, self.stage, self.out = args, stage, Path(args.out)
        self.start, self.started = start_step, time.time()
        writable_dir(self.out)
        found = sorted(self.out.glob("ckpt_*.pt"))
        if found and not args.resume:
            raise UserError(f"{self.out} already holds {found[-1].name}: --resume {found[-1]} goes on with it; a new run needs another --out")
        (self.out / "config.json").write_text(json.dumps(vars(args), indent=1) + "\n")
        for name in ("metrics.jsonl", "samples.jsonl"):  # rows past the step we resume from will be written again
            path = self.out / name
            rows = path.read_text().splitlines() if args.resume and path.exists() else []
            kept = [r for r in rows if r.endswith("}") and json.loads(r)["step"] <= start_step]
            path.write_text("".join(r + "\n" for r in kept))

    def log(self, step: int, fields: dict, metrics: dict) -> None:
        """One console line (`fields`) and one row of metrics.jsonl for the step just done, counted from 1."""
        elapsed = time.time() - self.started
        left = elapsed / max(1, step - self.start) * (self.args.steps - step)
        shown = " | ".join(f"{k} {v}" for k, v in fields.items())
        print(f"step {step:05d}/{self.args.steps:05d} | {shown} | {left:.0f} s left", flush=True)
        with open(self.out / "metrics.jsonl", "a") as f:
            f.write(json.dumps({"step": step, **metrics, "perf/elapsed_s": round(elapsed, 2)}) + "\n")

    def samples(self, step: int, rows: list[dict]) -> None:
        with open(self.out / "samples.jsonl", "a") as f:
            f.writelines(json.dumps({"step": step, **row}) + "\n" for row in rows)

    def due(self, step: int) -> bool:
        """Is a checkpoint due after `step` steps? The last one always is."""
        a = self.args
        return step == a.steps or step in a.save_at or (a.save_every > 0 and step % a.save_every == 0)

    def save(self, step: int, *, model, optimizer, tokens: int, tokenizer: dict, data: dict, parent: dict | None, metrics: dict):
        """Write ckpt_{step:06d}.pt. `optimizer`: a state_dict, or a dictionary of several."""
        path = self.out / f"ckpt_{step:06d}.pt"
        save_checkpoint(
            path,
            dict(
                format=FORMAT, stage=self.stage, step=step, tokens=tokens,
                model={k: v.detach().float().cpu() for k, v in model.state_dict().items()}, model_config=dict(vars(model.config)),
                tokenizer=tokenizer, optimizer=optimizer, rng={"torch": torch.get_rng_state()}, data=data,
                config={**vars(self.args), "threads": torch.get_num_threads()}, parent=parent, metrics=metrics,
                versions={"torch": str(torch.__version__), "python": platform.python_version()},
            ),
        )  # fmt: skip
        print(f"saved {path}", flush=True)
        return path


def check_context(prompts: list[list[int]], new_tokens: int, block_size: int) -> None:
    longest = max(map(len, prompts))
    if longest + new_tokens > block_size:
        raise UserError(
            f"prompt of {longest} tokens + {new_tokens} new tokens exceeds the model's context of {block_size}; "
            "shorten one (--max-new-tokens, --n-shot) or pre-train with a longer --block-size"
        )


def writable_dir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe_{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {path} cannot be written ({error.strerror}); choose a folder you own") from error


# -------------------------------------------------------------------------------------------------------- checkpoint files
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
        raise UserError(f"{path} could not be written ({error}); older checkpoints are untouched: free some space and --resume the last one") from error


def load_checkpoint(path) -> dict:
    """Read a checkpoint on the CPU (weights_only) and check that it is one of ours."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint; give a ckpt_*.pt file that a training stage wrote")
    try:
        ckpt = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load's failures have no common class; each means the same to a user
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__}): truncated or foreign; use another file") from error
    missing = [k for k in CHECKPOINT_KEYS.split() if not isinstance(ckpt, dict) or k not in ckpt]
    if missing:
        raise UserError(f"{path} is not a checkpoint of this project (no {', '.join(missing[:3])}); use a ckpt_*.pt that a stage wrote")
    if ckpt["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {ckpt['format']}, this code reads {FORMAT}; use the version that wrote it")
    prefixes = ("_orig_mod.", "module.")  # left by torch.compile and DDP in files of forks
    for prefix in prefixes:
        ckpt["model"] = {k.removeprefix(prefix): v for k, v in ckpt["model"].items()}
    return ckpt


def weights_hash(weights: dict) -> str:
    """sha256 over names and float32 bytes: the identity of a set of weights, whatever file holds it."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def parent_of(path, ckpt: dict) -> dict:
    """What a checkpoint records of the file it was started from."""
    return dict(file=Path(path).name, stage=ckpt["stage"], step=ckpt["step"], tokens=ckpt["tokens"], hash=weights_hash(ckpt["model"]))


@dataclass
class Start:
    """Where a post-training run begins: `--init` (step 0) or `--resume` (where the file stopped)."""

    model: torch.nn.Module
    enc: object  # tiktoken.Encoding
    step: int
    tokens: int  # pre-training tokens behind the weights
    parent: dict
    identity: dict  # of the training questions
    optimizer: dict | None


def load_start(args, ckpt: dict | None, device: Device) -> Start:
    from data.tokenizer import check_tokenizer, load_tokenizer  # here, since model and data import this module's UserError
    from model import load_model

    path = args.resume or args.init
    source = ckpt or load_checkpoint(path)
    enc = load_tokenizer(args.data)
    check_tokenizer(enc, source["tokenizer"], path)
    identity = {"tokenizer": source["tokenizer"]["hash"], "task": args.task, "questions": args.n_questions}
    if ckpt:
        note_changes(ckpt, identity)
    parent = ckpt["parent"] if ckpt else parent_of(path, source)
    model = load_model(source, path, device.device, args.kernels)
    return Start(model, enc, ckpt["step"] if ckpt else 0, source["tokens"], parent, identity, ckpt and ckpt["optimizer"])


def reference_weights(args, start: Start) -> dict:
    """The starting checkpoint's weights, for a KL term; after --resume they come from the file that --init named."""
    ckpt = load_checkpoint(args.init)
    if weights_hash(ckpt["model"]) != start.parent["hash"]:
        raise UserError(f"{args.init} is no longer the file this run began from; put it back, or resume with --kl-coef 0")
    return ckpt["model"]


def note_changes(ckpt: dict, identity: dict) -> None:
    """On resume, say what differs from the run so far and may change its numbers."""
    threads = ckpt["config"].get("threads")
    if threads != torch.get_num_threads():
        print(f"note: {torch.get_num_threads()} threads, the run had {threads}: results agree to rounding, not bit for bit")
    if ckpt["data"].get("identity") != identity:
        print("note: the data is not what this run began with; its order of batches is another from here on")
