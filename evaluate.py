"""Score a checkpoint: pass@k on question sets and likelihood benchmarks (paper sections "Evaluation").

pass@k (Chen et al. 2021, eq. 1, in data/pass_at_k.py) is averaged over questions; one sampling run serves every k. Each
completion is scored twice: `flexible` (#### or box, else the last number; the headline, as the paper's GSM8K scorer)
and `strict` (the marker must be there; this is what RL is rewarded for). `--grader` says what is right. The `floor` row
is pass@k of answers drawn blindly from the training answers' distribution: what exceeds it is skill.

    python evaluate.py --ckpt runs/base/ckpt_006400.pt --n-shot 8      # all tasks of data/world, about 2 minutes
    python evaluate.py --ckpt runs/rl/ckpt_000048.pt --tasks gsm --split val --limit 100 --out runs/rl/val.json
    REAL_DATA=path/to/data python evaluate.py --ckpt runs/real/ckpt_000200.pt --tasks gsm8k hellaswag --limit 50
"""

import argparse
import math
import re
import time
from collections import Counter
from pathlib import Path

import torch

from common import UserError, clear_temporaries, load_checkpoint, provenance, run, setup, writable_dir
from data.benchmarks import REAL_TASKS, WORLD_TASKS, encode_item, load_benchmark, score_benchmark
from data.checkpoints import parent_of
from data.files import write_json, write_jsonl
from data.graders import GRADERS, need_grader, stated_answer
from data.math_qa import (
    TASKS,
    TEMPLATES,
    encode_prompts,
    few_shot_prefixes,
    format_prompt,
    guess_floor,
    load_questions,
    paper_exemplars,
    reward,
    template_for,
)
from data.pass_at_k import LEFT_OUT, TEMPERATURE, TOP_P, batches, fitting, pass_at_k, score_questions
from data.questions import TRAINS_ON
from data.questions import WORLD_TASKS as QUESTION_SETS
from data.resume import given_flags
from data.styles import style_of
from data.tokenizer import check_tokenizer, folder_tokenizer, named_tokenizer, tokenizer_of
from data.tokens import document_starts, general_text
from model import load_model
from processes import RANK, deal, gather
from sample import check_draw
from stage import (
    PLAN,
    STRICT_LENGTH,
    WORLD,
    add_system_args,
    check_numbers,
    check_preset,
    describe_model,
    need_flags,
    preset_values,
    world_if_absent,
)

PAPER = dict(tasks=["gsm8k", *REAL_TASKS], n_samples=32, k=[1, 8, 32], temperature=0.6, top_p=0.95)
PAPER |= dict(max_new_tokens=1024, bench_limit=1000, split="test", prompts_per_batch=8, grader="gsm8k")
MATH = PAPER | dict(tasks=["math", *REAL_TASKS], grader="math")
PRESETS = {"laptop": {}, "paper": PAPER, "paper-math": MATH, "paper-sft-rl": PAPER, "paper-gold": PAPER}
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
ACCURACY = {"lambada": "acc", "lastword": "acc"}  # every other benchmark leads with acc_norm, the paper's rule


def parser() -> argparse.ArgumentParser:
    raw, words = argparse.RawDescriptionHelpFormatter, "and the template that suits the checkpoint: base or trained"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=raw, epilog=preset_values(PRESETS))
    p.add_argument("--preset", default="laptop", choices=list(PRESETS), help=f"defaults of the flags below, {words}")
    add = p.add_argument_group("Input and output").add_argument
    add("--ckpt", metavar="CKPT", help="what is scored")
    folder = "world or prepared folder; real sets come from it or $REAL_DATA"
    add("--data", default=WORLD, metavar="DIR", help=folder)
    out = "default: beside the checkpoint; readable completions go to FILE.samples.jsonl"
    add("--out", metavar="FILE.json", help=out)
    tasks = f"{' '.join(TASKS)}, benchmarks {' '.join((*WORLD_TASKS, *REAL_TASKS))}; default: all in --data"
    add("--tasks", nargs="+", help=tasks)
    add("--split", default="test", choices=["train", "val", "test"], help="of the questions; benchmarks have one")
    add("--limit", type=int, default=0, help="first N questions or items of each task; 0 = all")
    add("--bench-limit", type=int, help="first N items of each benchmark; default: --limit")
    add("--grader", default="ours", choices=GRADERS, help="what is right: docs/graders.md; ours: as RL's reward")
    add("--strict-length", action=argparse.BooleanOptionalAction, default=False, help=STRICT_LENGTH)
    add("--reference", metavar="CKPT", help="also: how far --ckpt is from this one (weights, KL, loss)")
    add("--plan", **PLAN)
    add = p.add_argument_group("Sampling").add_argument
    add("--k", type=int, nargs="+", default=[1, 8, 32], help="of pass@k, at most --n-samples")
    add("--n-samples", type=int, default=32, help="completions of each question")
    add("--temperature", type=float, default=TEMPERATURE, help="0 = greedy (one sample, pass@1)")
    add("--top-p", type=float, default=TOP_P, help="sample from the likeliest ids of this mass; 1 = all")
    add("--max-new-tokens", type=int, default=112, help="longest completion in tokens")
    add("--n-shot", type=int, default=0, help="worked exemplars from the training questions before each question")
    add("--shot-seed", type=int, default=87, help="draws the exemplars; 87: the first to leave room in the world")
    add("--shot-task", help="take the exemplars from this question set; default: the task's own")
    add("--template", choices=list(TEMPLATES), help="of the prompts; default: the task's own")
    together = "questions sampled together: memory and speed only"
    add("--prompts-per-batch", type=int, default=64, help=together)
    add_system_args(p)
    return p


def parse_args():
    p = parser()
    need_flags(p)
    p.set_defaults(**PRESETS[p.parse_args().preset])
    args = p.parse_args()
    if args.ckpt is None and not args.plan:
        raise UserError("--ckpt is missing: give the checkpoint to score, a ckpt_*.pt file that a training stage wrote")
    check_numbers(args)
    check_draw(args.temperature, args.top_p)
    need_grader(args.grader)
    if args.temperature == 0:
        args.n_samples, args.k = 1, [1]
    k, n = max(args.k), args.n_samples
    if k > n or min(args.k) < 1:
        raise UserError(f"--k {k} with --n-samples {n}: pass@k needs 1 <= k <= n samples; raise --n-samples")
    return args


# ------------------------------------------------------------------------------------------------------------ pass@k
def mean_stderr(values: list[float]) -> dict:
    """Mean over questions and its standard error sqrt(var / n), ddof 1."""
    n, mean = len(values), sum(values) / len(values)
    return {"value": mean, "stderr": math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, n - 1) / n)}


def read_task(enc, task: str, block_size: int, args) -> dict:
    """Everything a task needs from files, checked before any task is sampled."""
    questions = load_questions(args.data, task, args.split)[: args.limit or None]
    template = template_for(args.template or task)
    own = TRAINS_ON.get(task, task)
    train = load_questions(args.data, own, "train") if task not in ("svamp", "math500") else []
    if template.turn:
        shots = paper_exemplars(args.data, args.n_shot, template)
    else:
        exemplars = load_questions(args.data, args.shot_task, "train") if args.shot_task else train
        shots = few_shot_prefixes(questions, exemplars, args.n_shot, args.shot_seed, template) if args.n_shot else ""
    prefix, prompts = encode_prompts(enc, [format_prompt(q, template) for q in questions], shots, template.begin)
    rows, what = [prefix + prompt for prompt in prompts], f"{task} questions"
    kept = fitting(rows, args.max_new_tokens, block_size, what, args.strict_length, LEFT_OUT)
    too_long = [questions[i].qid for i in sorted({*range(len(questions))} - {*kept})]
    questions, prompts = [questions[i] for i in kept], [prompts[i] for i in kept]
    return dict(questions=questions, train=train, prefix=prefix, prompts=prompts, template=template, too_long=too_long)


def sample_task(model, enc, task: str, files: dict, args, device) -> tuple[dict, list[dict]]:
    """Sample and score every question of a task: (results with per-question counts and answers, readable samples)."""
    questions, train, prefix, prompts, template, too_long = files.values()
    sampling = dict(temperature=args.temperature, top_p=args.top_p, max_new_tokens=args.max_new_tokens, seed=args.seed)
    sampling |= dict(n_samples=args.n_samples, together=args.prompts_per_batch, prefix=prefix, grader=args.grader)
    rows, samples, styles, began = [], [], Counter(), time.time()
    told = {batch.stop for batch in batches(len(questions), args.prompts_per_batch)}
    scored = score_questions(model, enc, questions, prompts, template, device, **sampling)
    for question, (counts, texts) in zip(questions, scored, strict=True):
        found = [stated_answer(t, template.marker, flexible=True, grader=args.grader) for t in texts]
        answers = Counter(answer or "" for answer in found)  # "": none was found
        bare = sum(len(NUMBER.findall(text)) < 2 for text in texts)  # nothing but an answer
        styles.update(map(style_of, texts))
        row = {"qid": question.qid, **counts, "bare": bare, "gold": question.answer, "answers": dict(answers)}
        rows.append(row)  # with the answers, for controls that deal them anew
        if len(rows) <= 3:
            shown = {"task": task, "prompt": question.problem, "gold": question.answer}
            for text, answer in list(zip(texts, found, strict=True))[:4]:
                score = reward(text, question.answer, template)
                samples.append(shown | {"completion": text, "extracted": answer, "reward": score})
        if len(rows) in told:
            left = (time.time() - began) / len(rows) * (len(questions) - len(rows))
            print(f"{task} {len(rows)}/{len(questions)} questions | {left:.0f} s left", flush=True)
    written = {"styles": dict(sorted(styles.items()))} if template.name == "world" else {}
    return {**summary(rows, train, args.k), **written, "too_long": too_long}, samples


def summary(rows: list[dict], train: list, ks: list[int]) -> dict:
    """A task's scores from the counts of its questions; the guess floor is of the training questions' answers."""
    floor = guess_floor([q.answer for q in train], [r["gold"] for r in rows], ks) if train else {}
    total = sum(r["n"] for r in rows)
    result = {
        "n_questions": len(rows),
        "format_rate": sum(r["formatted"] for r in rows) / total,
        "finish_rate": sum(r["finished"] for r in rows) / total,
        "no_work_rate": sum(r["bare"] for r in rows) / total,
        "guess_floor": {str(k): v for k, v in floor.items()},
        "questions": {name: [row[name] for row in rows] for name in rows[0]},  # columns: a third of the bytes
    }
    for scoring in ("flexible", "strict"):
        result[scoring] = {f"pass@{k}": mean_stderr([pass_at_k(r["n"], r[scoring], k) for r in rows]) for k in ks}
    return result


# ----------------------------------------------------------------------------------------------------------- movement
@torch.no_grad()
def movement(model, reference, text, eot: int, device) -> dict:
    """How far `model` is from `reference`: L2 distance of the weights, absolute and over the reference's norm, and on
    held-out (general) text (rows, T + 1) the mean KL(reference || model) and both losses, nats a token. Tokens see
    their own document alone: a model trained so has never seen another before it, nor has any prompt one."""
    start = dict(reference.named_parameters())
    moved = math.sqrt(sum((p - start[name]).square().sum().item() for name, p in model.named_parameters()))
    norm = math.sqrt(sum(p.square().sum().item() for p in start.values()))
    sums = []
    for batch in deal(text.to(device.device).split(4)):
        first = document_starts(batch[:, :-1], eot)
        with device.autocast():
            p, q = (m(batch[:, :-1], first=first).float().log_softmax(-1) for m in (reference, model))
        at = batch[:, 1:, None]
        losses = [-logprobs.gather(-1, at).sum().item() for logprobs in (q, p)]
        sums.append(((p.exp() * (p - q)).sum().item(), *losses, at.numel()))
    kl = loss = loss_reference = count = 0.0
    for part in gather(sums):  # in the order of the text: the same sums, whoever had which part
        kl, loss, loss_reference, count = kl + part[0], loss + part[1], loss_reference + part[2], count + part[3]
    text_means = {"kl": kl / count, "loss": loss / count, "loss_reference": loss_reference / count}
    return {"distance": moved, "relative_distance": moved / norm, **text_means}


def compact(bench: dict) -> dict:
    """A benchmark's result with its items as `hits`, a digit for each (by its leading score), and `facts`, a number
    for each that items of one fact share. `chance`: the score of blind choice (0 where the word must be found)."""
    items, facts = bench.pop("per_item"), {}
    hits = "".join(str(int(i["greedy"] if "greedy" in i else i["pred_norm"] == i["gold"])) for i in items)
    groups = [facts.setdefault(i.get("fact", n), len(facts)) for n, i in enumerate(items)]
    chance = sum(0 if "greedy" in i else 1 / len(i["logprobs"]) for i in items) / len(items)
    return {**bench, "chance": chance, "hits": hits, "facts": groups}


# ------------------------------------------------------------------------------------------------------------- tables
def percent(value: float, stderr: float) -> str:
    return f"{100 * value:.1f} ± {100 * stderr:.1f}"


def print_table(results: dict, args) -> None:
    if moved := results.get("movement"):
        print("movement | " + " | ".join(f"{k} {v:.4f}" for k, v in moved.items() if k != "reference"))
    head = "".join(f"{f'pass@{k}':>16}" for k in args.k)
    print(f"\n{'task':<10}{'scoring':<10}{head}{'format':>9}{'no work':>9}")
    for task, r in results["questions"].items():
        for scoring in ("flexible", "strict"):
            shown = "".join(f"{percent(**r[scoring][f'pass@{k}']):>16}" for k in args.k)
            print(f"{task:<10}{scoring:<10}{shown}{100 * r['format_rate']:>8.1f}%{100 * r['no_work_rate']:>8.1f}%")
        if out := len(r["too_long"]):
            total = r["n_questions"] + out
            print(f"{task:<10}over {r['n_questions']} of {total} questions: {out} do not fit the context")
        if r["guess_floor"]:
            print(f"{task:<10}{'floor':<10}" + "".join(f"{100 * r['guess_floor'][str(k)]:>16.1f}" for k in args.k))
    if results["benchmarks"]:
        print(f"\n{'benchmark':<14}{'acc':>16}{'acc_norm':>16}")
        for name, r in results["benchmarks"].items():
            norm = percent(r["acc_norm"], r["acc_norm_stderr"]) if r.get("acc_norm") is not None else "-"
            extra = f"  perplexity {r['ppl']:.1f}" if r.get("ppl") is not None else ""
            extra += f"  {r['truncated']} of {r['n']} contexts shortened" if r["truncated"] else ""
            print(f"{name:<14}{percent(r['acc'], r['stderr']):>16}{norm:>16}{extra}")
        errors = [r["stderr" if n in ACCURACY else "acc_norm_stderr"] for n, r in results["benchmarks"].items()]
        error = math.sqrt(sum(e**2 for e in errors)) / len(errors)
        print(f"{'average':<14}{percent(results['general_average'], error):>16}  of acc_norm, last word: acc")


# -------------------------------------------------------------------------------------------------- what is evaluated
def paper_prompts(args, ckpt: dict) -> None:
    """With a preset of the paper's: 8 exemplars for a base model (a checkpoint without a parent), the boxed prompt and
    none for what was trained further. Few-shot prompts and grader are those of the tasks: MATH's where answers are
    boxed, else GSM8K's. --template, --n-shot and --grader override it."""
    check_preset(args.preset, ckpt, args.ckpt)
    base, given = ckpt["parent"] is None, given_flags(parser())
    boxed = {template_for(task).marker == "boxed" for task in args.tasks if task in TASKS}
    if len(boxed) == 2 and not {"template", "grader"} <= given:
        what = "the paper has a prompt and a grader for GSM8K, and others for MATH"
        raise UserError(f"--preset {args.preset} --tasks {' '.join(args.tasks)}: {what}; evaluate them one by one")
    if "grader" not in given and boxed:
        args.grader = "math" if True in boxed else "gsm8k"
    if "template" not in given:
        args.template = "paper" if not base else "paper-base-math" if True in boxed else "paper-base"
    if "n_shot" not in given:
        args.n_shot = 8 if TEMPLATES[args.template].turn else 0


def asks_the_world(args) -> bool:
    return not args.tasks or bool(set(args.tasks) & {*QUESTION_SETS, *WORLD_TASKS})


def chosen_tasks(args) -> list[str]:
    """`--tasks`, or the world's two tiers and its benchmarks as far as `--data` holds them."""
    known = (*TASKS, *WORLD_TASKS, *REAL_TASKS)
    if args.tasks:
        if unknown := [task for task in args.tasks if task not in known]:
            raise UserError(f"--tasks {unknown[0]}: unknown; choose from {' '.join(known)}")
    if asks_the_world(args):
        world_if_absent(args.data)
    if args.tasks:
        return args.tasks
    data = Path(args.data)
    found = ["gsm", "hard"] if (data / "test.jsonl").exists() else []
    found += [b for b in WORLD_TASKS if (data / f"bench_{b}.jsonl").exists()]
    if not found:
        mend = "name --tasks (real ones are read from --data or $REAL_DATA)"
        raise UserError(f"{data} holds no questions or benchmarks; {mend}")
    return found


def tokenizer_for(args, ckpt: dict):
    """The tokenizer that lies in the checkpoint, else `--data`'s, which must be the checkpoint's; where only real sets
    are asked for, which need nothing of `--data`'s default, the world, the one that the checkpoint names."""
    folder, of_world = Path(args.data), asks_the_world(args)
    name = ckpt["tokenizer"]["name"]
    if "ranks" in ckpt["tokenizer"]:
        return tokenizer_of(ckpt["tokenizer"], folder, args.ckpt)
    enc = folder_tokenizer(folder) if (folder / "meta.json").exists() else named_tokenizer(name)
    if not of_world and enc.n_vocab != ckpt["tokenizer"]["n_vocab"]:
        enc = named_tokenizer(name)
    check_tokenizer(enc, ckpt["tokenizer"], args.ckpt)
    return enc


def load_reference(args, ckpt: dict, enc, device):
    """(what is recorded of it, model, held-out text) of `--reference`; None without one."""
    if not args.reference:
        return None
    other = load_checkpoint(args.reference)
    if other["model_config"] != ckpt["model_config"]:
        what = f"another model shape than {args.ckpt}; give one of its parents"
        raise UserError(f"--reference {args.reference}: {what}")
    check_tokenizer(enc, other["tokenizer"], args.reference)
    model = load_model(other, args.reference, device.device, args.kernels)
    text = general_text(Path(args.data), model.config.block_size, 65_536)
    check_tokenizer(folder_tokenizer(args.data), ckpt["tokenizer"], args.ckpt)  # --data's text is in its own
    return parent_of(args.reference, other), model, text


def score_tasks(model, enc, tasks: list[str], args, device) -> tuple[dict, list[dict]]:
    """(results of all tasks, readable samples); every file is read before the first task is sampled."""
    files = {}
    limit = args.limit if args.bench_limit is None else args.bench_limit
    for task in tasks:
        if task in TASKS:
            files[task] = read_task(enc, task, model.config.block_size, args)
            continue
        files[task] = load_benchmark(task, args.data, args.split, limit)
        for item in files[task]:
            encode_item(enc, item, model.config.block_size)  # refuses a choice that does not fit
    results: dict = {"questions": {}, "benchmarks": {}}
    samples: list[dict] = []
    for task in tasks:
        if task in TASKS:
            results["questions"][task], shown = sample_task(model, enc, task, files[task], args, device)
            samples += shown
        else:
            print(f"{task}: {len(files[task])} items", flush=True)
            with device.autocast():
                results["benchmarks"][task] = compact(score_benchmark(model, enc, files[task]))
    if results["benchmarks"]:
        leading = [r[ACCURACY.get(name, "acc_norm")] for name, r in results["benchmarks"].items()]
        results["general_average"] = sum(leading) / len(leading)
    return results, samples


def main():
    args = parse_args()
    if args.plan:
        setup(args)
    ckpt = load_checkpoint(args.ckpt)
    asked = args.split
    if args.preset != "laptop":
        paper_prompts(args, ckpt)  # sets --n-shot, which is in the file's name
        asked = f"{args.preset}_{asked}"
    path = Path(args.out) if args.out else Path(args.ckpt).with_suffix(f".{asked}_{args.n_shot}shot.json")
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; give the name of a .json file")
    if RANK == 0:
        writable_dir(path.absolute().parent)
        clear_temporaries(path.parent, path.stem[:40])
    device = setup(args)
    made = provenance(__file__, device)
    used = {name: made.pop(name) for name in ("device_used", "dtype_used", "threads_used", "processes")}
    tasks = chosen_tasks(args)
    enc = tokenizer_for(args, ckpt)
    model = load_model(ckpt, args.ckpt, device.device, args.kernels)
    reference = load_reference(args, ckpt, enc, device)
    describe_model(model, args.ckpt, ckpt)
    sampled = f"{args.n_samples} completions of each question"
    print(f"tasks {' '.join(tasks)} | {sampled} | grader {args.grader}", flush=True)

    began = time.time()
    results, samples = score_tasks(model, enc, tasks, args, device)
    if reference:
        record, start, text = reference
        results["movement"] = {"reference": record, **movement(model, start, text, enc.eot_token, device)}
    if RANK:
        return
    report = {
        "checkpoint": {**parent_of(args.ckpt, ckpt), "parent": ckpt["parent"]},
        "settings": {**vars(args), **used},
        **made,
        "seconds": round(time.time() - began, 1),
        **results,
    }
    write_jsonl(path.with_suffix(".samples.jsonl"), samples)
    write_json(path, report, separators=(",", ":"))  # before anything is shown: printing must not lose it
    print_table(results, args)
    if samples:
        print("\nsample | {prompt}\n       |{completion}\n       | gold {gold}".format(**samples[0]))
    print(f"\nwrote {path}")


if __name__ == "__main__":
    run(main, many=True)
