"""The settings that `python -m study --compare` is given: NAME="STAGE.py --flag value", read by the stage's own parser.

A stage is train_rl.py, train_sft.py, merge.py, or a file that someone forked from one of them, wherever it lies; a fork
keeps the stage's parser(), parse_args() and main().
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from data.files import UserError
from study.folder import HERE

STAGES = ("train_rl.py", "train_sft.py", "merge.py")


@dataclass
class Setting:
    name: str
    script: str  # from HERE, or the absolute path of a fork elsewhere
    flags: dict  # that differ from the script's defaults
    steps: int

    @property
    def stage(self) -> str:
        """The stage that it is, or that it is a fork of: the one whose flags are most like its own."""
        return min(STAGES, key=lambda s: len(flag_names(s) ^ flag_names(self.script)))

    @property
    def is_stage(self) -> bool:
        """Is it the stage as it stands, at its defaults?"""
        return self.script in STAGES and not self.flags


@cache
def load_script(script: str) -> ModuleType:
    """The module of a stage. A fork that lies elsewhere is loaded from its file, as Python would run it; what is wrong
    with a fork is said in a sentence."""
    try:
        if "/" not in script:
            module = importlib.import_module(script.removesuffix(".py"))
        else:
            path = HERE / script
            sys.path.append(str(path.parent))  # for what it imports from its own folder
            spec = importlib.util.spec_from_file_location(f"fork_{path.stem}", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
    except Exception as error:  # whatever stands in that file
        raise UserError(f"{script} cannot be loaded ({type(error).__name__}: {error}); mend it") from error
    for name in ("parser", "parse_args", "main"):
        if not callable(getattr(module, name, None)):
            raise UserError(f"{script} has no {name}(): a fork keeps the stage's parser(), parse_args() and main()")
    return module


def flag_names(script: str) -> set[str]:
    return {action.dest for action in load_script(script).parser()._actions}


def find_script(name: str, start: Path) -> str:
    """Where a script lies that was named from the folder `start`: there, or among the stages."""
    for path in (start / name, HERE / name):
        if path.is_file() and path.suffix == ".py":
            path = path.resolve()
            return path.relative_to(HERE).as_posix() if path.is_relative_to(HERE) else str(path)
    raise UserError(f"{name}: no such file; name {', '.join(STAGES)} or the file of a fork")


def read_setting(text: str, own: dict, start: Path) -> Setting:
    """Of NAME="STAGE.py --flag value". `own`: flags that the comparison sets itself, with its values; `start`: the
    folder from which the user called."""
    name, _, command = text.partition("=")
    if not re.fullmatch(r"\w[\w.+-]*", name) or not command.strip():
        what = 'give NAME="STAGE.py --flag value", NAME of letters, digits and . _ + -'
        raise UserError(f"--compare {text}: {what}")
    try:
        script, *words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--compare {name}: {error} in {command!r}") from error
    try:
        script = find_script(script, start)
        args = parsed(script, own, words)
    except UserError as error:
        raise UserError(f"--compare {name}: {error}") from error
    taken = [key for key, value in own.items() if str(getattr(args, key, None)) != str(value)]
    if taken or getattr(args, "average", None):
        flag = (taken or ["average"])[0].replace("_", "-")
        raise UserError(f"--compare {name}: --{flag} cannot be part of a setting: the comparison sets it; drop it")
    if getattr(args, "epochs", None):
        raise UserError(f"--compare {name}: give --steps instead of --epochs: runs must be known by their last step")
    return Setting(name, script, changed_flags(load_script(script), words), args.steps)


def changed_flags(module: ModuleType, words: list[str]) -> dict:
    """What these words change of the script's defaults. A --preset is written out: a flag that sets its value back to
    the script's default would else be lost."""
    parser, nothing = module.parser(), object()
    untouched = argparse.Namespace(**{action.dest: nothing for action in parser._actions})
    named = {k: v for k, v in vars(parser.parse_args(words, untouched)).items() if v is not nothing}
    preset = getattr(module, "PRESETS", {}).get(named.get("preset"))
    if preset is not None:
        named = preset | {k: v for k, v in named.items() if k != "preset"}
    return {k: v for k, v in named.items() if v != parser.get_default(k)}


def parsed(script: str, own: dict, words: list[str]) -> argparse.Namespace:
    """What the script's own parse_args() makes of these words, with all its checks; its complaint as a UserError."""
    said, before = io.StringIO(), sys.argv
    sys.argv = [script, *(w for key, value in own.items() for w in (f"--{key}", str(value))), *words]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            found = load_script(script).parse_args()
    except SystemExit as ended:
        lines = said.getvalue().strip().splitlines() or ["these flags run nothing"]
        raise UserError(f"{script}: {lines[-1].split('error: ')[-1]}") from ended
    finally:
        sys.argv = before
    return found[0] if isinstance(found, tuple) else found


def with_baselines(settings: list[Setting], own: dict) -> tuple[list[Setting], dict[str, str]]:
    """(settings, name of each one's baseline): the one called "baseline", else the stage at its defaults, which is
    added where it is not among them."""
    names = [s.name for s in settings]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"--compare: two settings are called {twice.pop()}; give each a name of its own")
    if "baseline" in names:
        settings = sorted(settings, key=lambda s: s.name != "baseline")
        return settings, dict.fromkeys(set(names) - {"baseline"}, "baseline")
    stages = list(dict.fromkeys(s.stage for s in settings))
    base_of, added = {}, []
    for stage in stages:
        base = next((s for s in settings if s.script == stage and s.is_stage), None)
        if not base:
            name = "baseline" if len(stages) == 1 else f"baseline-{Path(stage).stem.removeprefix('train_')}"
            base = Setting(name, stage, {}, parsed(stage, own, []).steps)
            added.append(base)
        base_of |= {s.name: base.name for s in settings if s.stage == stage and s is not base}
    return added + settings, base_of
