"""The report of bench/real_model.py, of made-up results, and the order of rows in a GGUF file.

pytest -q tests/tools/test_real_model.py
"""

import json

import pytest
import torch

from bench.real_model_report import STAGES, equality, write_report

ITEM = {"pred": 0, "pred_norm": 1, "gold": 0, "logprobs": [-1.25, -1.251]}
SCORED = {"n": 2, "acc": 1.0, "acc_norm": 0.5, "stderr": 0.0, "acc_norm_stderr": 0.5, "per_item": [ITEM, ITEM]}
SAME = {"items": 2, "acc": 1.0, "acc_norm": 0.5, "acc_differs": [], "acc_norm_differs": [], "worst": 3e-4}
SAMPLE = {"prompt": "1+1?", "completion": " 2\n#### 2", "gold": "2", "reward": 1.0}


def results() -> dict:
    score = {f"pass@{k}": {"value": 0.01 * k, "stderr": 0.005} for k in (1, 8)}
    row = {"step": 1, "train/loss": 0.5, "reward/mean": None, "train/grad_norm": 123.4}
    found = {
        "folder": {"megabytes": 98.0, "kinds": {"Q4_1": 210}},
        "logits": {
            "worst": 2e-5,
            "ours_exact": 1e-5,
            "theirs_exact": 2e-5,
            "spread": 3.0,
            "same_ids": 1000,
            "texts": 1000,
            "parameters": 134_515_008,
        },
        "benchmarks": {
            "piqa": SCORED,
            "arc_easy": SCORED,
            "arc_challenge": SCORED,
            "lambada": SCORED | {"acc_norm": None, "acc_norm_stderr": None},
        },
        "harness": dict.fromkeys(("piqa", "arc_easy", "arc_challenge", "lambada"), SAME),
        "quantisation": {"relative_error": 0.07, "before": {}, "after": {}},
        "gsm8k": {"flexible": score, "strict": score, "guess_floor": {"1": 0.01, "8": 0.07}, "samples": [SAMPLE]},
        "export": {"worst": 1e-5},
    }
    for when, loss in (("before", 3.0), ("after", 3.1)):
        found["quantisation"][when] = {"passages": loss, "solutions": loss - 1}
    found["gsm8k"] |= {"n_questions": 100, "dtype": "torch.bfloat16"}
    found |= {name: {"flags": ["--lr", "1e-5"], "rows": [row], "sample": SAMPLE} for name in STAGES}
    return {name: part | {"cpu_s": 60.0, "wall_s": 61.0} for name, part in found.items()}


def written(tmp_path, found: dict) -> str:
    packages = {"transformers": "5", "lm_eval": "0", "torch": "2"}
    sizes = {"items": 2, "harness_items": 2, "n_shot": 5, "max_new_tokens": 128}
    write_report(tmp_path, found, {"cpu": "a CPU", "threads": 1, "versions": packages}, sizes)
    return (tmp_path / "README.md").read_text()


def test_the_page_says_what_was_found(tmp_path):
    page = written(tmp_path, results())
    wanted = (
        "| piqa | 2 | 100.0 ± 0.0 | 50.0 ± 50.0 | 66.3 | 2 | 100.0, the same items | 50.0, the same items | 3e-04 |"
    )
    assert wanted in page
    assert "| lambada | 2 | 100.0 ± 0.0 | - | - | 2 | 100.0, the same items | - | 3e-04 |" in page
    assert "Every item of every task is right or wrong on both sides alike." in page
    assert "| flexible | 1.0 ± 0.5 | 8.0 ± 0.5 |" in page and "| blind | 1.0 | 7.0 |" in page
    assert "| 1 | 0.5000 | - | 123 |" in page
    assert "has to be shown it first" in page
    assert "    -> 2\n    #### 2" in page
    assert "in 11 minutes of CPU time" in page and "--items 2" in page
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["sizes"]["items"] == 2 and "per_item" not in kept["benchmarks"]["piqa"]


def test_an_item_that_differs_is_named_with_what_decides_it(tmp_path):
    found = results()
    found["harness"]["piqa"] = SAME | {"acc_norm_differs": [1]}
    said = "All items are right or wrong on both sides alike but: piqa item 1 (acc_norm; log-probs -1.250, -1.251)."
    assert equality({"piqa": SCORED}, {"piqa": found["harness"]["piqa"]}) == said
    assert "50.0, 1 items differ" in written(tmp_path, found)


def test_rows_of_q_and_k_in_the_order_of_transformers():
    pytest.importorskip("gguf")
    from bench.gguf_folder import halves

    theirs = torch.arange(2 * 6).view(12, 1)  # two heads of six: row 0 is rotated with row 3, ..
    there = theirs.view(2, 2, 3, 1).transpose(1, 2).reshape(12, 1)  # as llama.cpp's converter lays them
    assert there[:2, 0].tolist() == [0, 3]
    assert torch.equal(halves(there, 2), theirs)
