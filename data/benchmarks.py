r"""Likelihood benchmarks: multiple choice and last-word prediction, for the world and for six real sets.

| real          | prompt (as lm-eval writes it)             | choices       | splits              | licence      |
|---------------|-------------------------------------------|---------------|---------------------|--------------|
| lambada       | the passage without its last word         | its last word | test 5,153          | CC BY 4.0    |
| hellaswag     | "activity: context", without bracket tags | 4 endings     | val 10,042          | MIT          |
| arc_easy      | "Question: ..\nAnswer:"                   | 3 to 5        | val 570, test 2,376 | CC BY-SA 4.0 |
| arc_challenge | "Question: ..\nAnswer:"                   | 3 to 5        | val 299, test 1,172 | CC BY-SA 4.0 |
| piqa          | "Question: goal\nAnswer:"                 | 2             | val 1,838           | AFL-3.0      |
| openbookqa    | the stem alone                            | 4             | val 500, test 500   | Apache-2.0   |

The world's six stand for them in that order: lastword, events, facts, twohop, tools, apply; a world folder's
bench_{name}.jsonl has rows {"context", "choices", "gold", "fact"}, or {"context", "target", "fact"} for lastword.
Where only validation items have public labels (hellaswag, piqa) they serve as test, as everywhere in the literature.

acc takes the choice of highest log-likelihood, acc_norm that of highest log-likelihood per character. The general
average is the mean of acc_norm, but acc for lambada and lastword (the paper's rule; first 1,000 items of each).

    python -m data.benchmarks                   # counts and one item of each found in data/world and $REAL_DATA
    python -m data.benchmarks hellaswag --split val
"""

import argparse
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from common import UserError, run
from data.files import read_rows
from data.public import find_files

WORLD_TASKS = ("lastword", "events", "facts", "twohop", "tools", "apply")
REAL_FILES = {
    "lambada": {"test": "evals/lambada_test.jsonl.gz"},
    "hellaswag": {"val": "evals/hellaswag_val.jsonl.gz"},
    "arc_easy": {"val": "evals/arc_easy_val.jsonl", "test": "evals/arc_easy_test.jsonl"},
    "arc_challenge": {"val": "evals/arc_challenge_val.jsonl", "test": "evals/arc_challenge_test.jsonl"},
    "piqa": {"val": "evals/piqa_val.jsonl"},
    "openbookqa": {"val": "evals/openbookqa_val.jsonl", "test": "evals/openbookqa_test.jsonl"},
}
REAL_TASKS = tuple(REAL_FILES)


@dataclass(frozen=True)
class Item:
    """One item. Context and choice are joined by a space; a last-word item has one choice, the word, and gold 0."""

    context: str
    choices: tuple[str, ...]
    gold: int
    fact: str = ""


# ---------------------------------------------------------------- loading
def _hellaswag_text(text: str) -> str:
    """lm-eval's cleaning: " [title]" ends a sentence, other bracketed tags vanish, double spaces become one."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _texts(value) -> tuple[str, ...]:
    """A list of strings; TypeError for anything else, such as one string."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError
    return tuple(value)


def _place(value) -> int:
    """A gold index, 2 or "2"; not 2.5 or true."""
    if type(value) is not int and not isinstance(value, str):
        raise TypeError
    return int(value)


def _flat(row: dict) -> dict:
    """A row of ARC or OpenBookQA as their authors wrote it, {"question": {"stem", "choices": [{"text", "label"}]}}, in
    the hub's form; any other row as it is."""
    if not isinstance(row.get("question"), dict):
        return row
    stem, choices = row["question"]["stem"], row["question"]["choices"]
    choices = {key: [choice[key] for choice in choices] for key in ("text", "label")}
    return {"question": stem, "question_stem": stem, "choices": choices, "answerKey": row["answerKey"]}


def _lettered(row: dict) -> tuple[tuple[str, ...], int]:
    """(choices, gold) of ARC and OpenBookQA rows: the answer key is one of the row's own labels (A.., but also 1..)."""
    return _texts(row["choices"]["text"]), _texts(row["choices"]["label"]).index(row["answerKey"])


def _item(name: str, row: dict) -> Item:
    """Item of a row; KeyError, TypeError, ValueError or AttributeError when the row is not of the task's form."""
    if name == "lambada":
        context, word = row["text"].rsplit(" ", 1)
        return Item(context, (word,), 0)
    if name == "hellaswag":
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        return Item(_hellaswag_text(context), tuple(map(_hellaswag_text, _texts(row["endings"]))), _place(row["label"]))
    if name in ("arc_easy", "arc_challenge"):
        row = _flat(row)
        return Item(f"Question: {row['question']}\nAnswer:", *_lettered(row))
    if name == "piqa":
        return Item(f"Question: {row['goal']}\nAnswer:", (row["sol1"], row["sol2"]), _place(row["label"]))
    if name == "openbookqa":
        row = _flat(row)
        return Item(row["question_stem"], *_lettered(row))
    context, fact = row["context"].rstrip(" "), str(row.get("fact", ""))
    if "target" in row:
        return Item(context, (row["target"].strip(),), 0, fact)
    return Item(context, tuple(choice.strip() for choice in _texts(row["choices"])), _place(row["gold"]), fact)


def load_benchmark(
    name: str, folder: str | os.PathLike | None = None, split: str = "test", limit: int = 0
) -> list[Item]:
    """The first `limit` items (0 = all) of a benchmark. World tasks come from `folder` and have no splits; real ones
    from `folder` or $REAL_DATA. UserError: unknown name, no such file or split, malformed row, no items."""
    if name not in (*WORLD_TASKS, *REAL_TASKS):
        raise UserError(f"benchmark {name!r}: unknown; give one of {', '.join((*WORLD_TASKS, *REAL_TASKS))}")
    if name in WORLD_TASKS:
        paths = [Path(folder or ".") / f"bench_{name}.jsonl"]
        if not paths[0].is_file():
            raise UserError(f"{paths[0]}: no such file; make the world with `python -m data.world`, or give its folder")
    else:
        files = REAL_FILES[name]
        if split not in files and (split != "test" or "val" not in files):
            raise UserError(f"benchmark {name!r} has no {split!r} split; use {' or '.join(files)}")
        paths = find_files(name, files, split if split in files else "val", folder)
    items: list[Item] = []
    for where, row in (row for path in paths for row in read_rows(path)):
        try:
            item = _item(name, row)
            whole = isinstance(item.context, str) and all(isinstance(c, str) and c for c in item.choices)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            whole = False
        if not whole or not 0 <= item.gold < len(item.choices):
            raise UserError(f"{where}: not a {name} item with a gold choice among its choices; mend that row")
        items.append(item)
        if limit and len(items) == limit:
            break
    if not items:
        raise UserError(f"{paths[0]}: no items (the file is empty); make or fetch it again")
    return items


# ---------------------------------------------------------------- scoring
def encode_item(enc: tiktoken.Encoding, item: Item, block_size: int | None = None) -> tuple[list[int], list[list[int]]]:
    """(context ids, ids of each choice). The context starts with end-of-text; its trailing spaces move to the choices.

    As lm-eval does, whole texts are encoded, since a token may span the seam, and a choice's ids are what follows as
    many ids as the context alone has. A context too long for block_size loses its oldest tokens, not the end-of-text.
    """
    context = item.context.rstrip(" ")
    gap = item.context[len(context) :] + " "
    ids = enc.encode_ordinary(context)
    choices = [enc.encode_ordinary(context + gap + choice)[len(ids) :] for choice in item.choices]
    if any(not choice for choice in choices):  # the seam swallowed a choice whole: score it as it reads alone
        choices = [enc.encode_ordinary(gap + choice) for choice in item.choices]
    if block_size:
        longest = max(map(len, choices))
        if longest >= block_size:
            raise UserError(
                f"a choice of {longest} tokens does not fit the context of {block_size}; leave the task out"
            )
        ids = ids[max(0, len(ids) + 1 + longest - block_size) :]
    return [enc.eot_token, *ids], choices


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)  # the first among equals


def score_benchmark(model, enc: tiktoken.Encoding, items: Sequence[Item], *, micro_batch_tokens: int = 4096) -> dict:
    """Score `items` with `model.continuation_logprobs(contexts, choices)`.

    -> {"acc", "acc_norm", "n", "truncated", "stderr", "acc_norm_stderr",
        "per_item": [{"pred", "pred_norm", "gold", "logprobs"}]};
    truncated: items whose context lost its oldest tokens. stderr is that of acc, sqrt(acc (1 - acc) / (n - 1)).
    Last-word items: acc is the share whose every token is the greedy choice, acc_norm and its stderr are None, and
    "ppl" is exp of the mean negative log-likelihood of the word.
    """
    if not items:
        raise UserError("no items to score; load a benchmark with at least one")
    last_word = len(items[0].choices) == 1
    block_size = getattr(getattr(model, "config", None), "block_size", None)
    encoded = [encode_item(enc, item, block_size) for item in items]
    contexts, choices = [c for c, _ in encoded], [c for _, c in encoded]
    full = [len(c) + max(map(len, chosen)) == block_size for c, chosen in encoded]  # perhaps shortened to it
    truncated = sum(c != encode_item(enc, item)[0] for c, item, at in zip(contexts, items, full, strict=True) if at)
    scored = model.continuation_logprobs(contexts, choices, micro_batch_tokens=micro_batch_tokens)
    per_item, hits, hits_norm = [], 0, 0
    for item, pairs in zip(items, scored, strict=True):
        logprobs, fact = [round(logprob, 4) for logprob, _ in pairs], {"fact": item.fact} if item.fact else {}
        if last_word:
            hit = hit_norm = bool(pairs[0][1])
            per_item.append({"greedy": hit, "gold": 0, "logprobs": logprobs} | fact)
        else:
            pred = _best([logprob for logprob, _ in pairs])
            pred_norm = _best([lp / len(choice) for (lp, _), choice in zip(pairs, item.choices, strict=True)])
            hit, hit_norm = pred == item.gold, pred_norm == item.gold
            per_item.append({"pred": pred, "pred_norm": pred_norm, "gold": item.gold, "logprobs": logprobs} | fact)
        hits, hits_norm = hits + hit, hits_norm + hit_norm

    n = len(items)
    acc, acc_norm = hits / n, hits_norm / n
    stderr, stderr_norm = (math.sqrt(a * (1 - a) / max(1, n - 1)) for a in (acc, acc_norm))
    result = {"acc": acc, "acc_norm": acc_norm, "n": n, "truncated": truncated}
    result |= {"stderr": stderr, "acc_norm_stderr": stderr_norm}
    if last_word:
        mean = -sum(pairs[0][0] for pairs in scored) / n
        result |= {"acc_norm": None, "acc_norm_stderr": None, "ppl": math.exp(min(mean, 700.0))}  # exp(710) overflows
    return result | {"per_item": per_item}


# ---------------------------------------------------------------- command line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.benchmarks", description="Print counts and one item of each benchmark."
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join((*WORLD_TASKS, *REAL_TASKS))} (default: all found)"
    )
    parser.add_argument("--data", default="data/world", metavar="DIR", help="world folder, or folder of the real files")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    args = parser.parse_args()
    for name in args.names or (*WORLD_TASKS, *REAL_TASKS):
        try:
            items = load_benchmark(name, args.data, args.split)
        except UserError as error:
            if args.names:
                raise
            print(f"\n{name}: {error}")
            continue
        places = [sum(item.gold == place for item in items) for place in range(max(len(i.choices) for i in items))]
        facts = len({item.fact for item in items})
        print(
            f"\n{name}: {len(items)} items" + (f", {facts} facts" if facts > 1 else "") + f", gold positions {places}"
        )
        print(f"  {items[0].context!r}")
        for place, choice in enumerate(items[0].choices):
            print(f"  {'*' if place == items[0].gold else '-'} {choice!r}")


if __name__ == "__main__":
    run(main)
