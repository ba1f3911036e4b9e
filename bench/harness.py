"""lm-evaluation-harness on a folder of transformers, with its own tasks read from $REAL_DATA instead of the hub."""

import logging
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from data.benchmarks import REAL_FILES
from data.public import find_files

NAMES = {"lambada": "lambada_openai"}  # where theirs is another


def task(name: str, settings: dict) -> ConfigurableTask:
    """The harness's own task, its items from the files that data/benchmarks.py reads."""
    split = list(REAL_FILES[name])[-1]
    paths = find_files(name, REAL_FILES[name], split, None)
    form = "parquet" if paths[0].suffix == ".parquet" else "json"
    source = {
        "dataset_path": form,
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: list(map(str, paths))}},
    }
    splits = {"validation_split": split if split == "val" else None, "test_split": split if split == "test" else None}
    settings.pop("tag", None)
    return ConfigurableTask(config=settings | {"training_split": None, "fewshot_split": None} | source | splits)


def score(folder: Path, names: list[str], items: int) -> dict[str, list[dict]]:
    """Of each task the first `items` items: {"logprobs" of the choices, "acc", "acc_norm"}. Contexts begin with
    end-of-text, as ours do."""
    logging.disable(logging.WARNING)
    model = HFLM(str(folder), dtype="float32", device="cpu", batch_size=8, add_bos_token=True, max_length=2048)
    manager = TaskManager()
    written = {name: load_yaml(manager.task_index[NAMES.get(name, name)].yaml_path) for name in names}
    tasks = [task(name, settings) for name, settings in written.items()]
    found = simple_evaluate(model, tasks=tasks, limit=items, bootstrap_iters=0)
    result = {}
    for name in names:
        rows = sorted(found["samples"][NAMES.get(name, name)], key=lambda row: row["doc_id"])
        result[name] = [
            {
                "logprobs": [float(pair[0]) for pair in map(first, row["resps"])],
                "acc": float(row["acc"]),
                "acc_norm": float(row.get("acc_norm", row["acc"])),
            }
            for row in rows
        ]
    return result


def first(response):
    """(log-prob, greedy) of a request; some versions wrap it in a list."""
    return response[0] if isinstance(response[0], list | tuple) else response
