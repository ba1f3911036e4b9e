"""Kill every stage at random moments, resume it, and compare what it ends with; flip bits in checkpoints.

    python tests/crash.py --kills 200 --flips 200        # some minutes; pytest does ten of each (tests/test_crash.py)

Kills are SIGKILL or SIGTERM, of training stages and of evaluations, at a moment drawn over the length of an undisturbed
run. What was killed goes on with --resume (or begins again, where nothing was saved), until it ends by itself: its last
checkpoint must equal the undisturbed one's bit for bit, its log must hold every step once, and nothing else may be left
in its folder. A checkpoint with a flipped bit must be refused, or load as exactly what was written. Stages run as
forks of this process, which has imported torch already.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from tiny import assert_same, load, read_jsonl, tiny_model, write_ckpt, write_world  # noqa: E402

import common  # noqa: E402
import model  # noqa: E402
from data.files import UserError  # noqa: E402

STEPS = 8
RL = "--prompts-per-step 3 --group-size 3 --max-new-tokens 6".split()
FLAGS = {
    "train_pretrain": "--preset tiny --block-size 32 --batch-tokens 96 --eval-every 4 --eval-tokens 64".split(),
    "train_sft": "--gold --batch-size 5".split(),
    "train_rl": [*RL, *"--updates-per-batch 2 --kl-coef 0.1".split()],
    "merge": [*RL, *"--batch-size 4 --sync-every 2 --save-every 2".split()],
    "evaluate": "--n-samples 2 --k 1 2 --max-new-tokens 8 --prompts-per-batch 2".split(),
}
KEPT = ("model", "optimizer", "step", "tokens", "data", "parent", "tokenizer", "model_config", "stage")


def command(stage: str, folder: Path) -> list[str]:
    """Of a new run in folder / "run", or of what goes on with the one there."""
    out, init = folder / "run", str(folder.parent / "base.pt")
    if stage == "evaluate":
        return ["--ckpt", init, "--data", str(folder.parent / "world"), "--out", str(out / "r.json"), *FLAGS[stage]]
    if list(out.glob("ckpt_*.pt")):
        return ["--resume", str(out)]
    begin = [] if stage == "train_pretrain" else ["--init", init]
    rest = ["--data", str(folder.parent / "world"), "--out", str(out), "--steps", str(STEPS), "--warmup-steps", "5"]
    return [*begin, *rest, "--lr", "0.01", *FLAGS[stage]]


def fork(stage: str, flags: list[str], log: Path) -> int:
    """Run a stage's main() in a child, as its script does; returns the child's pid."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        sys.argv = [f"{stage}.py", *flags]
        model.PRESETS["tiny"] = model.GPTConfig(n_layer=2, n_head=2, n_embd=32, n_hidden=48, init_std=0.02)
        module = importlib.import_module(stage)
        importlib.import_module("train_rl").reward = lambda text, *_: float(sum(map(ord, text)) % 2)  # a signal
        common.run(module.main)
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def exit_code(pid: int) -> int:
    """0.., or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def final(stage: str, folder: Path) -> dict:
    """What an undisturbed and a resumed run must have in common."""
    run = folder / "run"
    if stage == "evaluate":
        report = json.loads((run / "r.json").read_text())
        samples = read_jsonl(run / "r.samples.jsonl")
        return {"questions": report["questions"], "benchmarks": report["benchmarks"], "samples": samples}
    ckpt = load(run / f"ckpt_{STEPS:06d}.pt")
    rows = [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in read_jsonl(run / "metrics.jsonl")]
    return {**{key: ckpt[key] for key in KEPT}, "rows": rows}


def killed(stage: str, folder: Path, whole: dict, seconds: float, draw: random.Random) -> int:
    """Kill a run one to three times on its way; AssertionError unless it ends as `whole`. Returns the kills."""
    log, kills = folder / "log", 0
    for _ in range(draw.randint(1, 3)):
        number = draw.choice([signal.SIGKILL, signal.SIGTERM])
        pid = fork(stage, command(stage, folder), log)
        time.sleep(draw.uniform(0, seconds))
        os.kill(pid, number)
        code, kills = exit_code(pid), kills + 1
        assert code in (0, -number, 128 + number), f"exit code {code} after {number.name}"
        if code == 0:
            break
    code = exit_code(fork(stage, command(stage, folder), log))
    text = log.read_text()
    assert code == 0 and "Traceback" not in text, f"exit code {code}: {text[-2000:]}"
    assert_same(final(stage, folder), whole, stage)
    left = [p.name for p in (folder / "run").iterdir() if p.name.startswith(".") or "stopped" in p.name]
    assert not left, f"left behind: {left}"
    return kills


def flip(path: Path, draw: random.Random, scratch: Path) -> str:
    """Flip one bit of a copy: "refused" or "harmless"; AssertionError for any other end. Half of the bits are drawn
    from the ends of the file, where its zip and pickle records lie: most of the bytes are weights."""
    data = bytearray(path.read_bytes())
    ends = [*range(min(4000, len(data))), *range(max(0, len(data) - 8000), len(data))]
    place = draw.choice(ends) if draw.random() < 0.5 else draw.randrange(len(data))
    data[place] ^= 1 << draw.randrange(8)
    scratch.write_bytes(data)
    try:
        found = common.load_checkpoint(scratch)
    except UserError:
        return "refused"
    assert_same(found, load(path), f"{path} with a bit of byte {place} flipped")
    return "harmless"


def main(kills: int, flips: int, seed: int, folder: Path) -> str:
    """Run both; returns a summary, raises AssertionError at the first fault."""
    draw = random.Random(seed)
    write_world(folder / "world")
    write_ckpt(folder / "base.pt", tiny_model(scale=1.0))
    whole, seconds, files = {}, {}, []
    for stage in FLAGS:
        (folder / stage / "run").mkdir(parents=True)
        began = time.time()
        code = exit_code(fork(stage, command(stage, folder / stage), folder / stage / "log"))
        assert code == 0, (folder / stage / "log").read_text()
        seconds[stage], whole[stage] = time.time() - began, final(stage, folder / stage)
        files += sorted((folder / stage / "run").glob("*.pt"))
    done = dict.fromkeys(FLAGS, 0)
    while sum(done.values()) < kills:
        stage = min(done, key=done.get)
        where = Path(tempfile.mkdtemp(prefix=f"{stage}_", dir=folder))
        (where / "run").mkdir()
        done[stage] += killed(stage, where, whole[stage], 1.1 * seconds[stage], draw)
        shutil.rmtree(where)
        print(f"{sum(done.values())} of {kills} kills", end="\r", file=sys.stderr, flush=True)
    ends = [flip(draw.choice(files), draw, folder / "flipped.pt") for _ in range(flips)]
    kinds = ", ".join(f"{name} {n}" for name, n in done.items())
    refused = ends.count("refused")
    return (
        f"{sum(done.values())} kills ({kinds}), all resumed bit for bit; {flips} flipped bits, {refused} refused, "
        + (f"{flips - refused} harmless; seed {seed}")
    )


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=200)
    p.add_argument("--flips", type=int, default=200)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    torch.set_num_threads(1)  # before any work: a fork has no other threads
    with tempfile.TemporaryDirectory() as folder:
        print(main(args.kills, args.flips, args.seed, Path(folder)))
