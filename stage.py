"""What every stage does around its loop: the flags that mean the same everywhere, the checkpoint, model and data that
they name, and the run folder."""

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import sys
import sysconfig
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from common import (
    Device,
    clear_temporaries,
    interrupt,
    lock,
    peak_memory,
    provenance,
    writable_dir,
)
from data import world
from data.checkpoints import (
    FORMAT,
    STOPPED,
    checkpoints_in,
    load_checkpoint,
    parent_of,
    save_checkpoint,
    step_of,
)
from data.files import UserError, field, read_jsonl, write_json, write_jsonl
from data.math_qa import TEMPLATES
from data.pass_at_k import readable
from data.questions import WORLD, load_questions, questions_hash
from data.resume import given_flags, note_changes, note_data, resume, seen_from
from data.tokenizer import tokenizer_of
from model import load_model
from processes import PROCESSES, RANK, agree, gather, optimizer_state

BILL = "print what this takes on h100x8 (or a100x4, laptop, ...: tools/plan.py): memory, hours, disk; run nothing"
PLAN = dict(nargs="?", const="h100x8", metavar="CARDS", help=BILL)
STRICT_LENGTH = "refuse a question that does not fit the context; default: it is left out, and counted in a note"
COUNTS = """steps micro_batch_size batch_size prompts_per_step prompts_per_batch max_new_tokens block_size
sft_steps eval_questions""".split()
NOT_NEGATIVE = """lr sft_lr weight_decay grad_clip kl_coef z_loss clip_low clip_high n_questions save_every eval_every
sample_every limit bench_limit n_shot warmup_steps threads max_prompt_tokens max_target_tokens sft_fewer""".split()


@dataclass
class Start:
    """Where a run begins: from nothing, from `--init` (step 0), or from `--resume` (where the file stopped)."""

    step: int
    tokens: int  # pre-training tokens behind the weights
    tokenizer: dict  # its identity
    parent: dict | None
    identity: dict  # of the training data
    before: dict  # on --resume, the run's settings so far and what made it; else empty


def add_system_args(p: argparse.ArgumentParser) -> None:
    add = p.add_argument_group("System").add_argument
    add("--device", default="auto", help="auto | cuda | cuda:1 | mps | cpu")
    add("--dtype", default="auto", choices=["auto", "bfloat16", "float32"], help="of matmuls; weights stay float32")
    add("--kernels", default="auto", choices=["auto", "triton", "torch"], help="auto = triton on a GPU, else torch")
    add("--seed", type=int, default=0, help="of weights, data order and sampling")
    add("--threads", type=int, default=0, help="CPU threads; 0 = torch's choice")


def add_training_args(p: argparse.ArgumentParser, *, steps: int, lr: float, pretrain: bool = False) -> None:
    """Flags that mean the same in every training stage; `steps` and `lr` are the stage's laptop defaults."""
    sampled = "steps between completions to read, in samples.jsonl; 0 = with checkpoints (SFT: none)"
    decay, betas, rows = (0.1, [0.9, 0.95], 8) if pretrain else (0.01, [0.9, 0.999], 64)
    add = p.add_argument_group("Input and output").add_argument
    add("--data", default=WORLD, metavar="DIR", help="a folder made by data.world or data.prepare")
    add("--out", metavar="DIR", help="run folder for checkpoints, settings and logs; default: runs/STAGE")
    if not pretrain:
        add("--init", metavar="CKPT", help="start a new run from these weights")
        add("--task", default="gsm", help="questions: gsm | hard (world), gsm8k | math | svamp | openmath (real)")
        add("--template", choices=list(TEMPLATES), help="of prompts and solutions; default: the task's own")
        add("--n-questions", type=int, default=0, help="use only the first N training questions; 0 = all")
        add("--max-prompt-tokens", type=int, default=0, help="leave out longer prompts; 0 = what fits the context")
        add("--strict-length", action=argparse.BooleanOptionalAction, default=False, help=STRICT_LENGTH)
    last = "go on with the run that wrote this file, or with a run folder's last one, under its own settings"
    add("--resume", metavar="CKPT|DIR", help=last)
    add("--plan", **PLAN)
    if not pretrain:
        add = p.add_argument_group("Watching").add_argument
        add("--eval-every", type=int, default=0, help="steps between pass@1 on validation questions; 0 = off")
        add("--eval-questions", type=int, default=64, help="the first N validation questions of the task")
        add("--sample-every", type=int, default=0, help=sampled)
    add = p.add_argument_group("Optimization").add_argument
    longer = "the schedule's horizon" if pretrain else "more of them with --resume continue a run"
    add("--steps", type=int, default=steps, help=f"end of the run; {longer}")
    add("--lr", type=float, default=lr, help="peak learning rate")
    add("--warmup-steps", type=int, help="linear warm-up; default min(50, steps // 10)")
    add("--weight-decay", type=float, default=decay, help="all weights but the embedding; 0 = off")
    add("--betas", type=float, nargs=2, default=betas, help="of AdamW")
    add("--grad-clip", type=float, default=1.0, help="global gradient norm; 0 = off")
    add("--micro-batch-size", type=int, default=rows, help="rows in one forward pass: memory only")
    anew = "keep of each block what enters it alone, and compute the rest again for its gradient: a third slower"
    add("--recompute", action=argparse.BooleanOptionalAction, default=False, help=anew)
    add("--save-every", type=int, help="steps between checkpoints; 0 = only the last; default: a sixth of --steps")
    add("--save-at", type=int, nargs="+", default=[], metavar="STEP", help="checkpoints at these steps instead")


def parse(p: argparse.ArgumentParser, script: str, presets: dict | None = None, fixed: tuple = ("preset",)):
    """(settings, checkpoint of --resume or None) from the command line; `script`: the stage's __file__. --preset NAME
    sets defaults from `presets`; with --resume the run's own settings are the defaults. `fixed`: settings that a run
    keeps for life, since changing them on the way would do nothing or mean another run."""
    need_flags(p)
    args, ckpt = p.parse_args(), None
    if args.resume and args.plan:
        raise UserError("--plan is for a run that has not begun; drop --resume, and give --init or a model shape")
    if args.resume:
        args, ckpt = resume(p, args, script, fixed)
    elif presets:
        p.set_defaults(**presets.get(args.preset, {}))
        args = p.parse_args()
    if not ckpt and not args.plan and getattr(args, "init", "") is None:
        raise UserError("--init is missing: give a checkpoint to start from, or --resume CKPT to go on with a run")
    if "eval_questions" in given_flags(p) and not args.eval_every:
        raise UserError(
            f"--eval-questions {args.eval_questions} does nothing without --eval-every; drop it, or give both"
        )
    if args.out is None:
        args.out = f"runs/{Path(script).stem.removeprefix('train_')}"
    check_numbers(args)
    return args, ckpt


def preset_values(presets: dict) -> str:
    """What the presets of a stage set, for the end of its --help: `paper` in full, the others as they differ."""

    def flag(name: str, value) -> str:
        if isinstance(value, bool):
            return f"--{'' if value else 'no-'}{name.replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        return " ".join([f"--{name.replace('_', '-')}", *map(str, values)])

    lines, paper = [], presets["paper"]
    for name, preset in presets.items():
        changed = {} if preset is paper else {key: v for key, v in preset.items() if paper.get(key) != v}
        like = "the defaults above" if not preset else "" if preset is paper else "as paper"
        values = " ".join(flag(*item) for item in (paper if preset is paper else changed).items())
        text = f"--preset {name}: {', but '.join(part for part in (like, values) if part)}"
        lines.append(textwrap.fill(text, 110, subsequent_indent="    ", break_on_hyphens=False))
    return "\n".join(lines)


def check_preset(preset: str, ckpt: dict, path: str) -> None:
    """Refuse a preset of the paper's for a checkpoint of the synthetic world, whose tokens spell no real question."""
    if preset.startswith("paper") and field(ckpt["tokenizer"], "name", str, path) == "world":
        what = f"--preset {preset} asks real questions, and {path} has the synthetic world's tokenizer"
        raise UserError(f"{what}; give a checkpoint with a real one (docs/paper_scale.md), or drop --preset")


def need_flags(p: argparse.ArgumentParser) -> None:
    """Refuse a command line without flags, with the first command of the script's docstring as an example."""
    if len(sys.argv) == 1:
        commands = [line.split("  #")[0].strip() for line in p.description.splitlines()]
        example = next((c for c in commands if c.startswith("python ") and ".py " in c), f"python {p.prog} --out DIR")
        raise UserError(f"{p.prog} needs flags; for example: {example} (--help lists them all)")


def check_compiler(device: torch.device) -> None:
    """UserError where torch.compile cannot work: for a CPU it writes C++ that includes Python's headers."""
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    name, header = os.environ.get("CXX", default), Path(sysconfig.get_path("include"), "Python.h")
    missing = name if not shutil.which(name) else None if header.is_file() else header
    if device.type == "cpu" and missing:
        needs = "on a CPU it needs a C++ compiler (CXX names it) and Python's headers"
        raise UserError(f"--compile: {missing} was not found, {needs}; install them or leave --compile out")


def world_if_absent(folder: str) -> None:
    """Make the default data folder where there is none, so that the first command in a fresh clone works."""
    if folder == WORLD and RANK == 0 and not Path(folder, "meta.json").exists():
        print(f"{folder} is not there yet: making the synthetic world (about 20 s); this is what it holds", flush=True)
        world.make(Path(folder))
    gather([])  # the other processes read what the first one has made


def check_numbers(args) -> None:
    """Refuse a count below 1, a rate below 0 and betas outside [0, 1), of those of these flags that the stage has."""
    for name in COUNTS:
        if (got := getattr(args, name, 1)) < 1:
            raise UserError(f"--{name.replace('_', '-')} {got}: at least 1 is needed")
    for name in NOT_NEGATIVE:
        if (got := getattr(args, name, None)) is not None and not 0 <= got < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {got}: must be a number of at least 0")
    for step in getattr(args, "save_at", []):
        if step < 1 or (step > args.steps and not getattr(args, "epochs", None)):
            raise UserError(f"--save-at {step}: must be a step of the run, 1 to {args.steps}")
    if not 0 <= args.seed < 2**40:
        raise UserError(f"--seed {args.seed}: must be at least 0 and below 2**40")
    betas = getattr(args, "betas", [])
    if not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"--betas {betas[0]} {betas[1]}: each must be at least 0 and below 1")


# ------------------------------------------------------------------------------------ what a run starts from, and notes
def load_start(args, ckpt: dict | None, device: Device, choose: Callable | None = None):
    """(model, tokenizer, training questions, Start) of a post-training run; `choose`: see train_rl.py."""
    path = args.resume or args.init
    source = ckpt or load_checkpoint(path)
    check_preset(args.preset, source, path)
    world_if_absent(args.data)  # once the checkpoint is known to be one
    enc = tokenizer_of(source["tokenizer"], args.data, path)
    model = load_model(source, path, device.device, args.kernels)
    model.recompute = args.recompute
    describe_model(model, path, source)
    questions = load_questions(args.data, args.task, "train")[: args.n_questions or None]
    questions = choose(questions, args) if choose else questions
    identity = {"task": args.task, "questions": len(questions), "hash": questions_hash(questions)}
    if ckpt:
        note_data(ckpt, identity)
    step, parent = (ckpt["step"], ckpt["parent"]) if ckpt else (0, parent_of(path, source))
    before = ckpt["config"] if ckpt else {}
    return model, enc, questions, Start(step, source["tokens"], source["tokenizer"], parent, identity, before)


def describe_model(model, path, ckpt: dict) -> None:
    origin = f"{ckpt['stage']} step {ckpt['step']}, {ckpt['tokens'] / 1e6:.2f}M pre-training tokens"
    print(f"model {model.n_params() / 1e6:.2f}M parameters | {path} | {origin}", flush=True)


def earlier(start: Start, made: dict) -> list[dict]:
    """What made a resumed run before, one entry for each call of its script, with the step at which it ended."""
    if not start.before:
        return []
    last, calls = {key: start.before.get(key) for key in made}, start.before.get("earlier")
    return [*(calls if isinstance(calls, list) else []), {"until_step": start.step, **last}]


# ------------------------------------------------------------------------------------------------------- the run folder
class Run:
    """A run folder: `config.json`, `metrics.jsonl`, `samples.jsonl` (rollouts), checkpoints; and the console line.
    `script`: the stage's __file__, whose name its checkpoints bear and a fork keeps its own."""

    def __init__(self, args, script: str, device: Device, start: Start):
        self.args, self.stage, self.out = args, Path(script).stem, Path(args.out)
        self.start, self.began, self.before = start, time.time(), 0.0  # before: seconds of the run before --resume
        self.asked = ""  # the signal that asked this process for an end after the step under way
        self.stopping = ""  # the one on which all processes have agreed
        agree((start.step, start.parent, start.identity), "checkpoints or data")
        if RANK == 0:
            self.claim()
        args.save_every = sixth(args) if args.save_every is None and not args.save_at else args.save_every or 0
        made = provenance(script, device)
        note_changes(start.before, made)
        self.config = {**vars(args), "threads": made["threads_used"], **made}
        self.config |= {"paths": seen_from(self.out, args), "earlier": earlier(start, made)}
        if RANK == 0:
            write_json(self.out / "config.json", self.config)
            logs = [self.keep_rows(self.out / name) for name in ("samples.jsonl", "metrics.jsonl")]
            if logs[-1]:
                self.before = float(logs[-1][-1].get("perf/elapsed_s") or 0)
        saves = [str(step) for step in range(start.step + 1, args.steps + 1) if self.due(step)]
        saves = saves if len(saves) <= 8 else [*saves[:3], "...", saves[-1]]
        print(f"run folder {self.out} | {args.steps} steps, checkpoints at {' '.join(saves)}", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            if threading.current_thread() is threading.main_thread():
                signal.signal(number, self.stop)

    def claim(self) -> None:
        """Take the folder; UserError if another process or another run has it."""
        writable_dir(self.out)
        lock(self.out)
        found = checkpoints_in(self.out)
        if found and not self.args.resume:
            raise UserError(f"{self.out} already holds {found[-1].name}: --resume it, or give a new run another --out")
        if found and step_of(found[-1]) > self.start.step:
            last = f"{self.out} has {found[-1].name}, later than {self.args.resume}"
            raise UserError(f"{last}: resume that, or give another --out")
        clear_temporaries(self.out)

    def keep_rows(self, path: Path) -> list[dict]:
        """Drop the rows of a log past the step we resume from, which will be written again, and torn ones, with a note.
        Returns those that stay."""
        if not path.exists():
            return []
        dropped: list[str] = []
        rows = [row for _, row in read_jsonl(path, dropped)] if self.args.resume else []
        whole = [row for row in rows if type(row.get("step")) is int]
        if torn := len(dropped) + len(rows) - len(whole):
            print(f"note: {path} had {torn} torn or foreign rows, which are dropped")
        kept = [row for row in whole if row["step"] <= self.start.step]
        write_jsonl(path, kept)
        return kept

    def stop(self, number: int, frame=None) -> None:
        """Ctrl-C or SIGTERM: the step under way is done and saved first; the second time, at once. (Of torchrun's
        processes each may get it twice, and torchrun itself does not wait for long.)"""
        if self.asked and PROCESSES == 1:
            interrupt(number, frame)
        self.asked = signal.Signals(number).name

    def log(self, step: int, shown: dict, metrics: dict) -> None:
        """One row of metrics.jsonl for the step just done, counted from 1, and one console line of some of its values:
        `shown` is {label: "metric:format"}, for instance {"gnorm": "train/grad_norm:.2f"}. None: not measured."""
        asked, memory = zip(*gather([(self.asked, peak_memory())]), strict=True)
        self.stopping = next(filter(None, asked), "")
        if RANK:
            return
        elapsed = time.time() - self.began
        done = step - self.start.step
        left = f" | {elapsed / done * (self.args.steps - step):.0f} s left" if done else ""
        with open(self.out / "metrics.jsonl", "a") as f:
            row = {"step": step, **metrics, "perf/peak_mem_gb": max(memory)}
            row["perf/elapsed_s"] = round(self.before + elapsed, 2)
            lost = {k: None for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}  # JSON has no NaN
            f.write(json.dumps(row | lost) + "\n")
        values = [(label, metrics.get(spec.split(":")[0]), spec.split(":")[1]) for label, spec in shown.items()]
        line = " | ".join(f"{label} {format(value, spec)}" for label, value, spec in values if value is not None)
        print(f"step {step:05d}/{self.args.steps:05d} | {line}{left}", flush=True)

    def samples(self, step: int, rows: list[dict]) -> None:
        """Add rows (data.pass_at_k.sample_row) to samples.jsonl and show the first."""
        if RANK:
            return
        with open(self.out / "samples.jsonl", "a") as f:
            f.writelines(json.dumps({"step": step, **row}) + "\n" for row in rows)
        print(readable(rows[0]), flush=True)

    def samples_due(self, step: int) -> bool:
        """Every `--sample-every` steps, the first and the last; without it, the first and with each checkpoint."""
        every = self.args.sample_every
        often = step % every == 0 or step == self.args.steps if every else self.due(step)
        return step == 1 or often

    def due(self, step: int) -> bool:
        """Is a checkpoint due after `step` steps? The last one always is."""
        a = self.args
        return step == a.steps or step in a.save_at or (a.save_every > 0 and step % a.save_every == 0)

    def save(self, step: int, model, optimizer, metrics: dict) -> None:
        """Write a checkpoint. `optimizer`: one, or a dictionary of several. A stopped run ends here."""
        several = isinstance(optimizer, dict)
        state = {k: optimizer_state(o) for k, o in optimizer.items()} if several else optimizer_state(optimizer)
        if RANK == 0:
            self.write(step, model, state, metrics)
        if self.stopping and step < self.args.steps:
            again = shlex.join(["python", f"{self.stage}.py", "--resume", str(self.out)])
            print(f"stopped by {self.stopping} after step {step} of {self.args.steps}; go on with: {again}", flush=True)
            gather([])  # torchrun ends the others with the first that ends
            sys.exit(128 + signal.Signals[self.stopping])

    def write(self, step: int, model, optimizer: dict, metrics: dict) -> None:
        """Write ckpt_{step:06d}.pt; a file out of turn is called ckpt_{step:06d}_stopped.pt, and goes when the next one
        in turn is written. `optimizer`: a state_dict, or a dictionary of several."""
        due, start = self.due(step), self.start
        path = self.out / f"ckpt_{step:06d}{'' if due else STOPPED}.pt"
        ckpt = {
            "format": FORMAT,
            "stage": self.stage,
            "step": step,
            "tokens": start.tokens,
            "model": {k: v.detach().float().cpu() for k, v in model.state_dict().items()},
            "model_config": dict(vars(model.config)),
            "tokenizer": start.tokenizer,
            "optimizer": optimizer,
            "rng": {"torch": torch.get_rng_state()},  # for forks: here every draw is a function of (seed, step)
            "data": {"position": step, "identity": start.identity},
            "config": self.config,
            "parent": start.parent,
            "metrics": metrics,
            "versions": self.config["versions"],
        }
        save_checkpoint(path, ckpt)
        print(f"saved {path}", flush=True)
        if step == self.args.steps:
            curves = shlex.join(["python", "-m", "study.plot", str(self.out), "--out", str(self.out / "curves.png")])
            print(f"its curves: {curves}", flush=True)
        for old in self.out.glob(f"ckpt_*{STOPPED}.pt") if due else ():
            old.unlink()


def sixth(args) -> int:
    """--save-every where nothing says when to save: a sixth of the steps, so that a kill costs no more; of a run below
    six steps only the last. Where merge.py averages every H steps, a multiple of H."""
    unit = 6 * getattr(args, "sync_every", 1)
    return -(-args.steps // unit) * unit // 6 if args.steps >= 6 else 0


if __name__ == "__main__":
    print("Flags and run folders of the stages; run one of them: python train_rl.py --help")
