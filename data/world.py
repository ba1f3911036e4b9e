"""A small synthetic world on which the whole study runs on a laptop: general text, worked sums, questions.

Everything is invented here and deterministic in `--seed`. Of the pre-training tokens 80 % are general text (facts about
people, stories, daily events, tools, materials: `data/world_general.py`) and 20 % are mathematics (worksheets of worked
problems, and drills: `data/world_math.py`), the paper's proportion.

    python -m data.world --out data/world --seed 0      # under a minute, 12M base-mix tokens
    python -m data.world --out runs/tiny --tokens 50000 # for a quick look
"""

import argparse
import hashlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tiktoken

from common import UserError, read_source, run
from data import world_rules
from data.files import write_json, write_jsonl, write_text
from data.math_qa import guess_floor
from data.questions import load_questions
from data.tokenizer import EOT, make_encoding, save_ranks, tokenizer_id, train_bpe
from data.world_general import benchmarks, document, people_facts
from data.world_math import DRAW, HARD_MAX, STYLES, hard_document, math_document, question_rows

# ---------------------------------------------------------------- sizes
VOCAB_SIZE = 1280  # enough for every common word and every number the world writes to be one token
BLOCK_SIZE = 640  # the training window: an 8-shot prompt, a long question and its answer
MATH_SHARE = 0.2  # of the base mix's tokens, as in the paper
MIXES = {  # token shares; in math-heavy a third of the problems are hard
    "base": {"general.bin": 1 - MATH_SHARE, "math.bin": MATH_SHARE},
    "math-heavy": {"general.bin": 0.68, "math.bin": 0.19, "hard.bin": 0.13},
}


# ---------------------------------------------------------------- files
def token_stream(
    make: Callable[[random.Random], str], rng: random.Random, enc: tiktoken.Encoding, n_tokens: int, name: str = "text"
) -> np.ndarray:
    """Exactly n_tokens of documents, each behind an end-of-text token, (n_tokens,) uint16. Says how far it is."""
    pieces, total, told = [], 0, time.time()
    while total < n_tokens:
        if time.time() - told > 2:
            print(f"writing {name}: {total:,} of {n_tokens:,} tokens", flush=True)
            told = time.time()
        text = "".join(EOT + make(rng) for _ in range(2000))
        pieces.append(enc.encode_to_numpy(text, allowed_special={EOT}).astype(np.uint16))
        total += len(pieces[-1])
    return np.concatenate(pieces)[:n_tokens]


def code_hash() -> str:
    """Of the code that decides what a world holds, not of its comments and layout. A folder's file `made_by` has that
    of the code that made it."""
    files = [Path(__file__).with_name(f"{name}.py") for name in ("world", "world_general", "world_math")]
    return hashlib.sha256(b"".join(read_source(path)[1] for path in files)).hexdigest()


def build(out: Path, seed: int, n_tokens: int) -> tuple:
    """Write the whole data folder; return what `report` prints from: (meta, encoding, question rows, items,
    makers, questions of gsm: of train and held out)."""
    (out / "meta.json").unlink(missing_ok=True)  # no longer whole
    facts = people_facts(seed)
    makers: dict[str, Callable[[random.Random], str]] = {
        "general.bin": lambda rng: document(rng, facts),
        "math.bin": math_document,
        "hard.bin": hard_document,
    }
    sizes = {  # hard.bin: what the math-heavy mix needs for as many tokens
        "general.bin": round(n_tokens * (1 - MATH_SHARE)),
        "math.bin": round(n_tokens * MATH_SHARE),
        "hard.bin": round(n_tokens * MIXES["math-heavy"]["hard.bin"]),
    }
    print("drawing questions, training the tokenizer", flush=True)
    rows = {task: question_rows(task, seed) for task in DRAW}
    items = benchmarks(seed, facts)

    rng = random.Random(f"{seed}:vocabulary")
    sample = [makers["general.bin" if i % 3 else "math.bin"](rng) for i in range(9000)]
    sample += [row["problem"] + " " + row["generated_solution"] for row in rows["hard"]["train"][:2000]]
    forced = [str(n) for n in range(HARD_MAX[0] + 1)] + [f".{n}" for n in range(1, 10)]
    enc = make_encoding("world", train_bpe(sample, VOCAB_SIZE, forced=forced))
    save_ranks(enc._mergeable_ranks, out / "tokenizer.tiktoken")
    for name, make in makers.items():
        token_stream(make, random.Random(f"{seed}:{name}"), enc, sizes[name], name).tofile(out / name)
    rng = random.Random(f"{seed}:val.bin")
    held_out = [token_stream(makers[f], rng, enc, round(n_tokens * share / 60)) for f, share in MIXES["base"].items()]
    sizes["val.bin"] = sum(map(len, held_out))
    np.concatenate(held_out).tofile(out / "val.bin")
    for split in ("train", "val", "test"):
        write_jsonl(out / f"{split}.jsonl", [row for task in rows for row in rows[task][split]])
    for name, bench in items.items():
        write_jsonl(out / f"bench_{name}.jsonl", bench)

    answers = {
        task: {split: [row["expected_answer"] for row in rows[task][split][:: len(STYLES)]] for split in rows[task]}
        for task in rows
    }
    answers["long"]["train"] = answers["gsm"]["train"]  # of its own it has none
    train, *held = (load_questions(out, "gsm", split) for split in ("train", "val", "test"))
    meta = {
        "format": 1,
        "kind": "world",
        "tokenizer": tokenizer_id(enc) | {"file": "tokenizer.tiktoken"},
        "files": {name: {"dtype": "uint16", "tokens": size} for name, size in sizes.items()},
        "mixes": MIXES,
        "val": "val.bin",
        "block_size": BLOCK_SIZE,
        "seed": seed,
        "guess_floor": {
            task: {str(k): floor for k, floor in guess_floor(a["train"], a["test"], (1, 8, 32)).items()}
            for task, a in answers.items()
        },
        "blind_rules": {
            str(k): rate for k, (_, rate) in world_rules.best(world_rules.BLIND, train, sum(held, [])).items()
        },
    }
    write_text(out / "made_by", code_hash() + "\n")
    write_json(out / "meta.json", meta)  # last: a folder that has it is whole
    return meta, enc, rows, items, makers, (train, sum(held, []))


def report(
    meta: dict, enc: tiktoken.Encoding, rows: dict, items: dict, makers: dict, questions: tuple, seed: int
) -> None:
    """Print counts, lengths in tokens, the guess floor and one example of everything."""
    rng = random.Random(f"{seed}:examples")

    def length(text):
        return len(enc.encode_ordinary(text))

    print(f"vocabulary {enc.n_vocab} tokens, hash {meta['tokenizer']['hash'][:12]}")
    for name, entry in meta["files"].items():
        print(f"{name:12s} {entry['tokens']:>11,} tokens")
    for name in makers:
        texts = [makers[name](rng) for _ in range(1000)]
        print(f"\n{name}: {sum(map(length, texts)) / 1000 + 1:.0f} tokens a document, such as")
        print("\n".join("    " + text.strip().replace("\n", "\n    ") for text in texts[:4]))
    for task in rows:
        counts = ", ".join(f"{split} {len(rows[task][split]) // len(STYLES)}" for split in rows[task])
        floor = ", ".join(f"pass@{k} {100 * p:.2f} %" for k, p in meta["guess_floor"][task].items())
        shown = rows[task]["train"] or rows[task]["val"]
        texts = [f"Q: {row['problem']}\nA: {row['generated_solution']}\n" for row in shown]
        sizes = sorted(map(length, texts))
        print(f"\n{task}: questions {counts}; guess floor {floor}")
        print(
            f"    tokens: mean {sum(sizes) / len(sizes):.0f}, 99 % {sizes[len(sizes) * 99 // 100]}, longest {sizes[-1]}"
        )
        prompts = sorted(sum(length(text) for text in rng.sample(texts, 8)) for _ in range(500))
        print(f"    8 shots: mean {sum(prompts) // 500} tokens, longest of 500 draws {prompts[-1]}")
        print(
            "    " + "    ".join(texts[0].splitlines(True)[:1] + [text.split("\n")[1] + "\n" for text in texts[:4]]),
            end="",
        )
    print("\ngsm by rules that read no words:")
    world_rules.report(*questions)
    for name, bench in items.items():
        item = bench[0]
        ending = item.get("choices", item.get("target"))
        print(f"\nbench_{name}: {len(bench)} items, {len({row['fact'] for row in bench})} facts")
        print(f"    {item['context']} ... {ending}")


def make(out: Path, seed: int = 0, n_tokens: int = 12_000_000) -> None:
    """Write the world to the folder `out` and print what it holds."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        report(*build(out, seed, n_tokens), seed)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write ({error.strerror}); give a folder that can be written") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.world", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="data/world", help="folder to write (default data/world)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    parser.add_argument("--tokens", type=int, default=12_000_000, help="base-mix training tokens (default 12000000)")
    args = parser.parse_args()
    if args.tokens < 10_000:
        raise UserError(f"--tokens {args.tokens}: a world needs at least 10000 tokens to hold every kind of document")
    make(Path(args.out), args.seed, args.tokens)


if __name__ == "__main__":
    run(main)
