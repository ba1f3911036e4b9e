"""Where public data sets lie on a disk, by the names under which they are published. docs/data.md says what to fetch.

A layout is {split: pattern} below a folder. The first of which a file is there is taken for all splits of a set: train
and test are of one publication, and never overlap.
"""

import os
from pathlib import Path

from data.files import UserError

Layout = dict[str, str]


def hub(repository: str, **splits: str) -> list[Layout]:
    """A repository of the Hugging Face hub: downloaded under its name or org/name, or in the hub's own cache."""
    org, name = repository.split("/")
    roots = (name, repository, f"datasets--{org}--{name}/snapshots/*")
    return [{split: f"{root}/{pattern}" for split, pattern in splits.items()} for root in roots]


def arc(name: str) -> list[Layout]:
    theirs = f"ARC-V1-Feb2018-2/{name}/{name}"
    found = hub("allenai/ai2_arc", val=f"{name}/validation-*.parquet", test=f"{name}/test-*.parquet")
    return [*found, {"val": f"{theirs}-Dev.jsonl", "test": f"{theirs}-Test.jsonl"}]


PUBLISHED: dict[str, list[Layout]] = {
    "gsm8k": [
        *hub("openai/gsm8k", train="main/train-*.parquet", test="main/test-*.parquet"),
        {split: f"grade-school-math/grade_school_math/data/{split}.jsonl" for split in ("train", "test")},
    ],
    "svamp": [{"test": "SVAMP/SVAMP.json"}, *hub("ChilleD/SVAMP", test="data/t*-*.parquet")],  # 700 train + 300 test
    "math": [
        {split: f"MATH/{split}/*/*.json" for split in ("train", "test")},
        *hub("EleutherAI/hendrycks_math", train="*/train-*.parquet", test="*/test-*.parquet"),
        {"train": "math/math_train_4500.jsonl", "test": "math/math500_test.jsonl"},
    ],
    "math500": hub("HuggingFaceH4/MATH-500", test="test.jsonl"),
    "lambada": [
        *hub("EleutherAI/lambada_openai", test="default/test/*.parquet"),
        *hub("EleutherAI/lambada_openai", test="data/lambada_test.jsonl"),
        {"test": "lambada_test.jsonl"},
    ],
    "hellaswag": [*hub("Rowan/hellaswag", val="data/validation-*.parquet"), {"val": "hellaswag_val.jsonl"}],
    "arc_easy": arc("ARC-Easy"),
    "arc_challenge": arc("ARC-Challenge"),
    "piqa": [
        *hub("baber/piqa", val="piqa_validation.parquet"),
        *hub("ybisk/piqa", val="plain_text/validation*.parquet"),
        *hub("ybisk/piqa", val="plain_text/validation/*.parquet"),
    ],
    "openbookqa": [
        *hub("allenai/openbookqa", val="main/validation-*.parquet", test="main/test-*.parquet"),
        {"val": "OpenBookQA-V1-Sep2018/Data/Main/dev.jsonl", "test": "OpenBookQA-V1-Sep2018/Data/Main/test.jsonl"},
    ],
}


def find_files(name: str, own: Layout, split: str, folder: str | os.PathLike | None) -> list[Path]:
    """Files of a split of a set, in order, under `folder`, else under $REAL_DATA; `own`: the layout that comes first.
    UserError when in neither, with all that was looked for."""
    roots = [Path(root) for root in (folder, os.environ.get("REAL_DATA")) if root]
    layouts = [own, *PUBLISHED.get(name, [])]
    there = [layout for root in roots for layout in layouts if any(any(root.glob(p)) for p in layout.values())]
    layouts = there[:1] or layouts
    for layout in layouts:
        for root in roots if split in layout else ():
            if found := sorted(root.glob(layout[split])):
                return found
    looked = ", ".join(dict.fromkeys(layout[split] for layout in layouts if split in layout))
    places = " and ".join(map(str, roots)) or "no folder"
    raise UserError(f"{looked}: not found (looked in {places}); set REAL_DATA to the folder that holds one of them")
