"""What every stage does around its loop: the flags that mean the same everywhere, the checkpoint, model and data that
they name, and the run folder."""

import argparse
import hashlib
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from common import FORMAT, Device, load_checkpoint, peak_memory, provenance, save_checkpoint, writable_dir
from data import world
from data.files import UserError, write_json
from data.math_qa import load_questions
from data.tokenizer import check_tokenizer, load_tokenizer
from model import load_model

WORLD = "data/world"  # the default of --data
COUNTS = "steps micro_batch_size batch_size prompts_per_step prompts_per_batch max_new_tokens block_size".split()
NOT_NEGATIVE = """lr sft_lr weight_decay grad_clip kl_coef z_loss clip_low clip_high n_questions save_every eval_every
limit n_shot warmup_steps threads""".split()


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
    decay, betas, rows = (0.1, [0.9, 0.95], 8) if pretrain else (0.01, [0.9, 0.999], 64)
    add = p.add_argument_group("Input and output").add_argument
    add("--data", default=WORLD, metavar="DIR", help="a folder made by data.world or data.tokens")
    add("--out", metavar="DIR", help="run folder for checkpoints, settings and logs; default: runs/STAGE")
    if not pretrain:
        add("--init", metavar="CKPT", help="start a new run from these weights")
        add("--task", default="gsm", help="questions: gsm | hard (world), gsm8k | math | svamp | openmath (real)")
        add("--n-questions", type=int, default=0, help="use only the first N training questions; 0 = all")
    add("--resume", metavar="CKPT", help="go on with the run that wrote this file, under its own settings")
    add = p.add_argument_group("Optimization").add_argument
    add("--steps", type=int, default=steps, help="ends the run and is the schedule's horizon")
    add("--lr", type=float, default=lr, help="peak learning rate")
    add("--warmup-steps", type=int, help="linear warm-up; default min(50, steps // 10)")
    add("--weight-decay", type=float, default=decay, help="all weights but the embedding; 0 = off")
    add("--betas", type=float, nargs=2, default=betas, help="of AdamW")
    add("--grad-clip", type=float, default=1.0, help="global gradient norm; 0 = off")
    add("--micro-batch-size", type=int, default=rows, help="rows in one forward pass: memory only")
    add("--save-every", type=int, default=0, help="steps between checkpoints; 0 = only the last")
    add("--save-at", type=int, nargs="+", default=[], metavar="STEP", help="checkpoints at these steps")


def parse(p: argparse.ArgumentParser, presets: dict | None = None) -> tuple[argparse.Namespace, dict | None]:
    """Parse the command line; --preset NAME sets defaults from `presets`. With --resume the run's own settings are the
    defaults, and each change is reported."""
    args = p.parse_args()
    if presets:
        p.set_defaults(**presets[args.preset])
        args = p.parse_args()
    ckpt = load_checkpoint(args.resume) if args.resume else None
    if ckpt:
        if getattr(args, "init", None):
            raise UserError("--init starts a new run and --resume goes on with one, but both were given; drop one")
        if ckpt["stage"] != Path(p.prog).stem:
            raise UserError(f"{args.resume} was written by {ckpt['stage']}.py; resume it there, or use --init here")
        before = {k: v for k, v in ckpt["config"].items() if hasattr(args, k) and k != "resume"}
        p.set_defaults(**before)
        args = p.parse_args()
        for name, old in before.items():
            if (new := getattr(args, name)) != old and name == "steps":
                raise UserError(f"--steps {new}: this run's schedule ends at {old}; drop --steps or start a new run")
            if new != old and name in ("epochs", "preset"):
                raise UserError(f"--{name} {new}: this run began with {old}, and keeps it; drop --{name}")
            if new != old:
                print(f"note: --{name.replace('_', '-')} is {new}, the run had {old}")
        if not ckpt["optimizer"]:
            raise UserError(f"{args.resume} is an average, there is no run to go on with; use --init")
        if ckpt["step"] >= args.steps:
            print(f"{args.resume} is the end of its run ({args.steps} steps): nothing to do")
            sys.exit(0)
    if getattr(args, "init", "") is None and not ckpt and not getattr(args, "average", None):
        raise UserError("--init is missing: give a checkpoint to start from, or --resume CKPT to go on with a run")
    if args.out is None and not getattr(args, "average", None):
        args.out = f"runs/{Path(p.prog).stem.removeprefix('train_')}"
    check_numbers(args)
    world_if_absent(args.data)
    return args, ckpt


def world_if_absent(folder: str) -> None:
    """Make the default data folder where there is none, so that the first command in a fresh clone works."""
    if folder == WORLD and not Path(folder, "meta.json").exists():
        print(f"{folder} is not there yet: making the synthetic world (about 20 s); this is what it holds", flush=True)
        world.make(Path(folder))


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


def load_start(args, ckpt: dict | None, device: Device):
    """(model, tokenizer, training questions, Start) of a post-training run."""
    path = args.resume or args.init
    source = ckpt or load_checkpoint(path)
    enc = load_tokenizer(args.data)
    check_tokenizer(enc, source["tokenizer"], path)
    model = load_model(source, path, device.device, args.kernels)
    questions = load_questions(args.data, args.task, "train")[: args.n_questions or None]
    rows = repr([(q.problem, q.solutions, q.answer) for q in questions])
    identity = {"task": args.task, "questions": len(questions), "hash": hashlib.sha256(rows.encode()).hexdigest()}
    if ckpt:
        note_data(ckpt, identity)
    step, parent = (ckpt["step"], ckpt["parent"]) if ckpt else (0, parent_of(path, source))
    before = ckpt["config"] if ckpt else {}
    return model, enc, questions, Start(step, source["tokens"], source["tokenizer"], parent, identity, before)


def note_data(ckpt: dict, identity: dict) -> None:
    """On resume, say so if the training data is not that of the run so far."""
    before = ckpt["data"].get("identity") or {}
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


def earlier(start: Start, made: dict) -> list[dict]:
    """What made a resumed run before, one entry for each call of its script, with the step at which it ended."""
    if not start.before:
        return []
    last = {key: start.before.get(key) for key in made}
    return [*start.before.get("earlier", []), {"until_step": start.step, **last}]


# ------------------------------------------------------------------------------------------------------- the run folder
class Run:
    """A run folder: `config.json`, `metrics.jsonl`, `samples.jsonl` (rollouts), checkpoints; and the console line.
    `script`: the stage's __file__, whose name its checkpoints bear and a fork keeps its own."""

    def __init__(self, args, script: str, device: Device, start: Start):
        self.args, self.stage, self.out = args, Path(script).stem, Path(args.out)
        self.start, self.began, self.before = start, time.time(), 0.0  # before: seconds of the run before --resume
        writable_dir(self.out)
        found = sorted(p for p in self.out.glob("ckpt_*.pt") if p.stem[5:].isdecimal())
        later = [p.name for p in found if int(p.stem[5:]) > start.step]
        if later and args.resume:
            raise UserError(f"{self.out} has {later[-1]}, later than {args.resume}: resume that, or give another --out")
        if found and not args.resume:
            raise UserError(f"{self.out} already holds {found[-1].name}: --resume it, or give a new run another --out")
        made = provenance(script, device)
        note_changes(start.before, made)
        self.config = {**vars(args), "threads": made["threads_used"], **made, "earlier": earlier(start, made)}
        write_json(self.out / "config.json", self.config)
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
            config=self.config, parent=start.parent, metrics=metrics, versions=self.config["versions"],
        ))  # fmt: skip
        print(f"saved {path}", flush=True)


if __name__ == "__main__":
    print("Flags and run folders of the stages; run one of them: python train_rl.py --help")
