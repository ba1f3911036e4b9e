"""Checkpoint files: written whole or not at all, checked before anything is built from them.

One dictionary of tensors, numbers, strings, lists and dictionaries, which `torch.load(.., weights_only=True)` reads:
    format, stage, step, tokens   of the file, the script, optimizer updates and pre-training tokens behind the weights
    model, model_config           weights in float32 under plain names; the fields of GPTConfig
    tokenizer, parent             {"name", "hash", "n_vocab"}; {"file", "stage", "step", "tokens", "hash"} of --init.
                                  Of a converted model the tokenizer lies here whole (data.tokenizer.keep)
    optimizer, rng, data          AdamW's state (None: an average), generator states, position and identity of the data
    config, metrics, versions     the settings and what made the run (common.provenance), the last step's metrics
A reader gets a whole file of finite numbers or a `UserError`: torch.save writes a CRC-32 of every record into its zip,
torch.load does not look at it.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from data.files import UserError, replacing

FORMAT = 1  # of the checkpoint dictionary; raised when a key changes its meaning
BIG = 500_000_000  # bytes, read in more than a moment
MAYBE = (dict, type(None))
STOPPED = "_stopped"  # ends the name of a checkpoint that a signal asked for
KINDS = dict(format=int, stage=str, step=int, tokens=int, model=dict, model_config=dict, tokenizer=dict)
KINDS |= dict(optimizer=MAYBE, rng=dict, data=dict, config=dict, parent=MAYBE, metrics=dict, versions=dict)
CHECKPOINT_KEYS = list(KINDS)
PARENT = dict(file=str, stage=str, step=int, tokens=int, hash=str)
PLAIN = ("model_config", "tokenizer", "data", "config", "parent", "versions")  # written on into JSON files
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's, of every weight
MEND = "use another checkpoint"


# -------------------------------------------------------------------------------------------------------------- writing
def save_checkpoint(path: str | Path, ckpt: dict) -> None:
    """Write to a temporary name, sync, rename: a crash or a full disk leaves the previous file whole. Weights and
    moments that are not finite are not written."""
    for name, tensor in tensors({key: ckpt.get(key) for key in ("model", "optimizer")}):
        if tensor.is_floating_point() and not finite(tensor):
            what = f"{name} is no longer finite at step {ckpt.get('step')}: the last good checkpoint is kept"
            raise UserError(f"{path} was not written, {what}; lower --lr or look at the data")
    try:
        with replacing(path) as file:
            torch.save(ckpt, file)
    except (OSError, RuntimeError) as error:
        mend = "older files are whole: free some space and --resume"
        raise UserError(f"{path} could not be written ({error}); {mend}") from error


def tensors(value, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested dictionaries and lists, with its name."""
    if isinstance(value, torch.Tensor):
        yield name, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        yield from tensors(inner, f"{name}.{key}".lstrip("."))


def finite(tensor: torch.Tensor) -> bool:
    """No NaN and no infinity, in one pass and without a mask in memory: a NaN becomes both extremes."""
    tensor = tensor.detach().float() if tensor.element_size() < 2 else tensor.detach()  # eight bits: not compared
    return not tensor.numel() or all(math.isfinite(extreme) for extreme in tensor.aminmax())


# -------------------------------------------------------------------------------------------------------------- reading
def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint on the CPU. UserError unless every byte is as it was written (CRC-32), every key of its kind,
    and every weight a finite float."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint; give a ckpt_*.pt file that a training stage wrote")
    if (size := Path(path).stat().st_size) > BIG:
        print(f"reading {path}, {size / 1e9:.1f} GB", flush=True)
    try:
        with zipfile.ZipFile(path) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise zipfile.BadZipFile("compressed")
            damaged = archive.testzip()
        ckpt = None if damaged else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load's failures have no common class; each means the same to a user
        what = f"truncated or foreign ({type(error).__name__})"
        raise UserError(f"{path} is no readable checkpoint but {what}; {MEND}") from error
    if damaged:
        raise UserError(f"{path} is no readable checkpoint: {damaged} is not as it was written (CRC-32); {MEND}")
    missing = [k for k in CHECKPOINT_KEYS if not isinstance(ckpt, dict) or k not in ckpt]
    if missing:
        raise UserError(f"{path} is no checkpoint of ours (it has no {missing[0]}); use a ckpt_*.pt that a stage wrote")
    known = isinstance(ckpt["format"], int)
    if not known or ckpt["format"] != FORMAT:
        got = str(ckpt["format"])[:20] if known else repr(type(ckpt["format"]))
        raise UserError(f"{path} has format {got}, this code reads {FORMAT}; use the version that wrote it")
    check_kinds(ckpt, path)
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):  # left by torch.compile and DDP in files of forks
        ckpt["model"] = {k.removeprefix(prefix): v for k, v in ckpt["model"].items()}
    return ckpt


def check_kinds(ckpt: dict, path: str | Path) -> None:
    """Refuse a hand-made or damaged dictionary before anything is built from it."""
    for row, kinds, whose in ((ckpt, KINDS, ""), (ckpt["parent"], PARENT, "its parent's ")):
        for key, kind in kinds.items() if isinstance(row, dict) else ():
            value, needed = row.get(key), "a dictionary or None" if kind is MAYBE else f"of type {kind.__name__}"
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UserError(f"{path}: {whose}{key} must be {needed}, got {type(value).__name__}; {MEND}")
            if kind is int and not 0 <= value < 2**62:
                raise UserError(f"{path}: {whose}{key} must be a count of at least 0, below 2**62; {MEND}")
    for key in PLAIN:
        try:
            json.dumps(ckpt[key])
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: its {key} is no JSON ({str(error)[:60]}); {MEND}") from None
    for name, tensor in ckpt["model"].items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: its model holds {type(tensor).__name__} {str(name)[:60]!r}, not a weight; {MEND}")
        check_tensor(name, tensor, path)


def check_tensor(name: str, tensor: torch.Tensor, path: str | Path) -> None:
    """A dense tensor whose numbers lie in the file; a weight (a fork's counters are none) of finite floats."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not dense or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise UserError(f"{path}: {name} is no plain tensor; {MEND}")
    if name.endswith("weight") and not tensor.is_floating_point():
        raise UserError(f"{path}: {name} is of {tensor.dtype}, and weights are floats; {MEND}")
    if tensor.is_floating_point() and not finite(tensor):
        raise UserError(f"{path}: {name} holds numbers that are not finite; {MEND}")


def restore_optimizer(optimizer: torch.optim.Optimizer, state, path: str | Path) -> None:
    """Load AdamW's moments, of many processes those that this one keeps. Rate, betas and weight decay stay those that
    `optimizer` was made with: the flags act. UserError unless the state is that of these weights."""
    mend = "start a new run from its weights with --init"
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        theirs = [len(group["params"]) for group in state["param_groups"]]
        moments = [state["state"][i] for i in range(len(weights))]
        extra = len(state["state"]) - len(weights)
        found = [(p, key, m[key]) for p, m in zip(weights, moments, strict=True) for key in MOMENTS]
    except (TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path}: its optimizer state lacks moments of some weights ({error!r}); {mend}") from error
    if theirs != sizes or extra:
        raise UserError(f"{path}: its optimizer state is of groups of {theirs} weights, not {sizes}; {mend}")
    for p, key, tensor in found:
        shape = () if key == "step" else p.shape
        if not isinstance(tensor, torch.Tensor) or tensor.shape != shape or not tensor.is_floating_point():
            raise UserError(f"{path}: its optimizer state's {key} does not fit a weight of {tuple(p.shape)}; {mend}")
        check_tensor(f"the optimizer's {key}", tensor, path)
        if key != "exp_avg" and tensor.numel() and tensor.min() < 0:
            raise UserError(f"{path}: its optimizer state's {key} is below 0; {mend}")
    optimizer = getattr(optimizer, "optim", optimizer)  # ZeroRedundancyOptimizer's, of this process's weights
    place = {p: i for i, p in enumerate(weights)}
    own = [state["state"][place[p]] for group in optimizer.param_groups for p in group["params"]]
    optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(enumerate(own))})


# ---------------------------------------------------------------- which file, which weights
def step_of(path: Path) -> int:
    """The step of ckpt_000012.pt, and of ckpt_000012_stopped.pt, which a stopped run wrote; -1 of other files."""
    digits = path.stem.removeprefix("ckpt_").removesuffix(STOPPED)
    return int(digits) if path.stem.startswith("ckpt_") and digits.isdecimal() and path.suffix == ".pt" else -1


def checkpoints_in(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("ckpt_*.pt") if step_of(p) >= 0), key=step_of)


def last_checkpoint(path: str) -> Path:
    """A checkpoint as it is named; the last one of a run folder."""
    if not Path(path).is_dir():
        return Path(path)
    if not (found := checkpoints_in(Path(path))):
        raise UserError(f"--resume {path}: no ckpt_*.pt in this folder; give a run's folder or a checkpoint")
    return found[-1]


def weights_hash(weights: dict) -> str:
    """sha256 over names and float32 bytes: the identity of a set of weights, whatever file holds it."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def parent_of(path, ckpt: dict) -> dict:
    """What a checkpoint records of the file it was started from."""
    kept = {k: ckpt[k] for k in ("stage", "step", "tokens")}
    return {"file": Path(path).name, **kept, "hash": weights_hash(ckpt["model"])}


if __name__ == "__main__":
    print("Reads and writes checkpoint files; the stages use it: python train_rl.py --help")
