"""--resume: a run goes on under its own settings, from where its checkpoint lies; what differs is told or refused."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from common import HERE, warmup_of
from data.checkpoints import last_checkpoint, load_checkpoint
from data.files import UserError

PATHS = ("data", "init", "by")  # settings that name what a run reads


def resume(p: argparse.ArgumentParser, args, script: str, fixed: tuple):
    """(settings, checkpoint) of --resume: the run's own settings, changed by what the command line names. What is named
    must act: each change is told, or refused where it cannot act. The run goes on where its checkpoint lies."""
    path, given, flag = last_checkpoint(args.resume), given_flags(p), lambda name: f"--{name.replace('_', '-')}"
    if "init" in given:
        raise UserError("--init starts a new run and --resume goes on with one, but both were given; drop one")
    ckpt = load_checkpoint(path)
    if ckpt["stage"] != Path(script).stem:
        raise UserError(f"{path} was written by {ckpt['stage']}.py; resume it there, or use --init here")
    if not ckpt["optimizer"]:
        raise UserError(f"{path} is an average, there is no run to go on with; use --init")
    before, step = settings_of(p, ckpt, path), ckpt["step"]
    if before["warmup_steps"] is None:  # as it was, not that of another --steps
        before["warmup_steps"] = warmup_of(argparse.Namespace(**before))
    p.set_defaults(**before)
    args = p.parse_args()
    args.resume = str(path)
    args.out = args.out if "out" in given else str(path.parent)
    for name in sorted(given & before.keys() - {"out"}):
        old, new = before[name], getattr(args, name)
        shown = " ".join(map(str, new)) if isinstance(new, list) else new
        if new != old and name in fixed:
            raise UserError(f"{flag(name)} {shown}: this run began with {old}, and keeps it; drop {flag(name)}")
        if new != old:
            print(f"note: {flag(name)} is {shown}, the run had {old}")
    if step >= args.steps:
        if "steps" in given and args.steps != step:
            raise UserError(f"--steps {args.steps}: {path} is at step {step} already; give more")
        print(f"{path} is the end of its run ({args.steps} steps): nothing to do; --steps MORE goes on")
        sys.exit(0)
    if late := [at for at in args.save_at if at <= step and "save_at" in given]:
        raise UserError(f"--save-at {late[0]}: {path} is at step {step} already; give later steps")
    if "warmup_steps" in given and "steps" not in fixed and step >= max(args.warmup_steps, before["warmup_steps"]):
        raise UserError(
            f"--warmup-steps {args.warmup_steps}: the rate of step {step} is constant; drop it, or give more"
        )
    return args, ckpt


def given_flags(p: argparse.ArgumentParser) -> set[str]:
    """The settings that the command line names, whatever value it gives them."""
    nothing = object()
    names = vars(p.parse_args())
    found = p.parse_args(namespace=argparse.Namespace(**dict.fromkeys(names, nothing)))
    return {name for name, value in vars(found).items() if value is not nothing}


def settings_of(p: argparse.ArgumentParser, ckpt: dict, path: Path) -> dict:
    """The settings of a checkpoint's run, of the kinds that the command line could give; files that the run read are
    looked for where they lie now."""
    settings = {}
    for action in p._actions:
        name = action.dest
        if name in ("help", "resume", "out"):
            continue
        settings[name] = value = ckpt["config"].get(name, action.default)
        if not fits(action, value):
            raise UserError(f"{path}: its setting {name} is no value of that flag; use another checkpoint")
    seen_from_run = ckpt["config"].get("paths")
    for name in PATHS:
        if given := settings.get(name):
            beside = seen_from_run.get(name) if isinstance(seen_from_run, dict) else None
            settings[name] = found_again(given, beside if isinstance(beside, str) else given, path.parent)
    return settings


def fits(action: argparse.Action, value) -> bool:
    """Could the command line give this flag this value?"""
    if value is None or action.nargs == 0:  # a switch
        return type(value) is bool or (value is None and action.default is None)
    many, kind = isinstance(value, list), action.type or str
    if many != bool(action.nargs) or (isinstance(action.nargs, int) and len(value) != action.nargs):
        return False
    for one in value if many else [value]:
        number = type(one) is int and kind in (int, float) and abs(one) < 2**62
        if not (number or (type(one) is kind and kind is not int)) or (action.choices and one not in action.choices):
            return False
    return True


def found_again(given: str, from_run: str, folder: Path) -> str:
    """A file or folder that a run read: as seen from its folder (so a moved tree goes on, from any working directory),
    from here, or beside the code; else as it was given."""
    tried = [Path(given)] * Path(given).is_absolute() + [folder / from_run, Path(given), HERE / given]
    return next(
        (os.path.normpath(p) for p in ([Path(given), *tried] if Path(given).is_absolute() else tried) if p.exists()),
        given,
    )


def seen_from(folder: Path, args) -> dict:
    """The files that a run reads as paths from its folder."""
    paths = {}
    for name in PATHS:
        if given := getattr(args, name, None):
            with contextlib.suppress(ValueError):  # on another drive
                paths[name] = os.path.relpath(os.path.abspath(given), os.path.realpath(folder))
    return paths


def note_data(ckpt: dict, identity: dict) -> None:
    """On resume, say so if the training data is not that of the run so far."""
    before = ckpt["data"].get("identity")
    before = before if isinstance(before, dict) else {}
    if any(identity.get(key) != known for key, known in before.items()):
        print("note: the data is not what this run began with; its batches may be others from here on")


def note_changes(then: dict, now: dict) -> None:
    """On resume, say which code, machine and arithmetic (common.provenance) differ from those of the run so far."""
    what = {"source": "source hash", "device_used": "device", "gpu": "GPU", "dtype_used": "dtype"}
    for key, name in what.items():
        if key in then and then[key] != now[key]:
            print(f"note: {name} is {now[key]}, the run had {then[key]}: its numbers may be others from here on")
    if then and (threads := then.get("threads")) != now["threads_used"]:
        print(f"note: {now['threads_used']} threads, the run had {threads}: results agree to rounding, not bit for bit")
    if then and (before := then.get("processes", 1)) != now["processes"]:
        print(f"note: {now['processes']} processes, the run had {before}: results agree to rounding, not bit for bit")
