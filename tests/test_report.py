"""The report says what the evaluation files say, and what is missing. python -m pytest -q tests/test_report.py"""

import json
import math
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import report
from common import UserError

BENCHMARKS = ("lastword", "events", "facts", "twohop", "tools", "apply")
N_SAMPLES, KS, EARLY, LATE = 8, (1, 4, 8), 400_000, 1_600_000
# (method, n_shot): one (pass rate, general rate) a checkpoint; None = listed in runs.json, not finished
SKILLS = {
    ("base", 8): [(0.02, 0.3), (0.15, 0.85)],
    ("base", 0): [(0.0, 0), (0.05, 0)],
    ("rl", 0): [(0.3, 0.3), (0.5, 0.85)],
    ("sft", 0): [(0.2, 0.2), (0.3, 0.4)],
    ("gold", 0): [None, (0.6, 0.5)],
    ("sft_rl", 0): [(0.3, 0.2), (0.5, 0.5)],
    ("parallel", 0): [(0.3, 0.3), (0.6, 0.8)],
}


def question_results(rate: float, n: int, rng: random.Random) -> dict:
    """Counts around `rate`; pass@k by counting the subsets of the samples that hold a right one."""
    rows = []
    for i in range(n):
        ease = min(1.0, max(0.0, rng.gauss(rate, 0.2)))
        right = sum(rng.random() < ease for _ in range(N_SAMPLES))
        rows.append({"qid": f"q{i}", "n": N_SAMPLES, "strict": right // 2, "flexible": right, "gold": "7"})
    out = {"n_questions": n, "format_rate": 0.75, "guess_floor": {"1": 0.004, "4": 0.016, "8": 0.031}}
    for scoring in ("flexible", "strict"):
        out[scoring] = {}
        for k in KS:
            subsets = list(combinations(range(N_SAMPLES), k))
            values = [sum(min(s) < row[scoring] for s in subsets) / len(subsets) for row in rows]
            mean = sum(values) / n
            stderr = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
            out[scoring][f"pass@{k}"] = {"value": mean, "stderr": stderr}
    return out | {"questions": rows}


def benchmark_results(rate: float, n: int, rng: random.Random) -> dict:
    out = {}
    for name in BENCHMARKS:
        hits = [rng.random() < rate for _ in range(n)]
        acc, four = sum(hits) / n, [-1.0, -2.0, -3.0, -4.0]
        stderr = math.sqrt(acc * (1 - acc) / (n - 1))
        if name == "lastword":
            out[name] = {"acc": acc, "stderr": stderr, "acc_norm": None, "acc_norm_stderr": None}
            out[name]["per_item"] = [{"greedy": hit, "gold": 0, "logprobs": [-1.0]} for hit in hits]
        else:  # acc is set wrong on purpose: acc_norm leads
            out[name] = {"acc": 0.0, "stderr": 0.0, "acc_norm": acc, "acc_norm_stderr": stderr}
            rows = [{"pred": 3, "pred_norm": 0 if hit else 1, "gold": 0, "logprobs": four} for hit in hits]
            out[name]["per_item"] = rows
    return out


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fake_study(folder: Path, skills: dict = SKILLS, n: int = 13, tokens: tuple = (EARLY, LATE)) -> Path:
    """A study's folder as study.py leaves it. Skill None: not finished; "absent": never planned."""
    runs = []

    def stage(name: str, kind: str, method: str, rows: list[dict], **record) -> None:
        out = f"runs/{name}/ckpt.pt"
        write_jsonl(folder / f"runs/{name}/metrics.jsonl", rows)
        record |= {
            "out": out,
            "metrics": f"runs/{name}/metrics.jsonl",
            "command": f"python {kind}.py --out runs/{name}",
        }
        runs.append({"name": name, "kind": kind, "method": method, "finished": True, "seconds": 100.0, **record})

    def evaluation(name: str, result: dict | None, **record) -> None:
        out = f"evals/{name}.json"
        runs.append({"name": name, "kind": "eval", "out": out, "command": f"python evaluate.py --out {out}", **record})
        if result is not None:
            sample = {"task": "gsm", "prompt": "Ann has 3. How many?", "gold": "7"}
            texts = (f" {name} says #### 7", " a later sample")
            write_jsonl(folder / f"evals/{name}.samples.jsonl", [sample | {"completion": t} for t in texts])
            (folder / out).write_text(json.dumps({"commit": "abc1234", **result}))

    losses = [{"step": i, "train/tokens": tokens[-1] * i // 8, "eval/loss": 2 + 9 / i} for i in range(1, 9)]
    stage("pretrain", "pretrain", "base", losses)
    for (method, n_shot), path in skills.items():
        for t, skill in zip(tokens, path, strict=True):
            if skill == "absent":
                continue
            rng = random.Random(f"{method}{n_shot}{t}")
            result = skill and {"questions": {"gsm": question_results(skill[0], n, rng)}, "benchmarks": {}}
            if skill and (n_shot or method != "base"):
                result["benchmarks"] = benchmark_results(skill[1], n, rng)
            record = dict(method=method, tokens=t, n_shot=n_shot, split="test", group="main", train_step=None)
            evaluation(f"{method}-{n_shot}shot-{t}", result, **record)
    for curve, start, parent in (("rl", 0.1, "base"), ("sft_rl", 0.3, "sft")):
        rng = random.Random(curve)
        rewards = [{"step": i, "reward/mean": start + i / 100 + rng.gauss(0, 0.02)} for i in range(1, 31)]
        stage(curve, "train", curve, rewards, tokens=tokens[-1])
        for step in (0, 10, 20, 30):
            result = {"questions": {"gsm": question_results(start + step / 80, n, rng)}, "benchmarks": {}}
            record = dict(method=curve if step else parent, tokens=tokens[-1], n_shot=0, split="val", group="dynamics")
            evaluation(f"{curve}-val-{step}", result, train_step=step, curve=curve, **record)
    manifest = dict(preset="laptop", seed=3, commit="abc1234", machine="2 x Test", threads=1, seconds=120, runs=runs)
    manifest["data"] = {"guess_floor": {"gsm": {"1": 0.004, "32": 0.5}}, "tokenizer": {"n_vocab": 1000}}
    (folder / "runs.json").write_text(json.dumps(manifest))
    return folder


def table_rows(text: str, section: str) -> list[list[str]]:
    """Cells of the rows of the first table in a section, without its head."""
    part = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, str]:
    folder = fake_study(tmp_path_factory.mktemp("study"))
    return folder, report.build(folder).read_text()


def shown(value: float, stderr: float) -> str:
    return f"{100 * value:.1f} ± {100 * stderr:.1f}"


def test_main_table_holds_the_numbers_of_the_files(study):
    folder, text = study
    rows = {(r[0], r[1]): r[2:] for r in table_rows(text, "Every method from every checkpoint")}
    names = {"base-8shot": "base, few-shot", "base-0shot": "base, 0-shot", "parallel-0shot": "parallel averaging"}
    for run, name in {**names, "rl-0shot": "RL", "sft_rl-0shot": "SFT→RL"}.items():
        result = json.loads((folder / f"evals/{run}-{LATE}.json").read_text())
        gsm = result["questions"]["gsm"]
        cells = [shown(**{"value": e["value"], "stderr": e["stderr"]}) for e in gsm["flexible"].values()]
        strict = gsm["strict"]["pass@1"]
        assert rows["1.6M", name][:5] == [*cells, shown(strict["value"], strict["stderr"]), "75.0"]
        benches = (
            result["benchmarks"] or json.loads((folder / f"evals/base-8shot-{LATE}.json").read_text())["benchmarks"]
        )
        leading = [benches["lastword"]["acc"], *(benches[n]["acc_norm"] for n in BENCHMARKS[1:])]
        assert rows["1.6M", name][5].split(" ± ")[0] == f"{100 * sum(leading) / 6:.1f}"
    assert rows["", "*guess floor*"][:3] == ["0.4", "1.6", "3.1"]


def test_a_missing_run_is_said_to_be_missing(study):
    _, text = study
    rows = {(r[0], r[1]): r[2:] for r in table_rows(text, "Every method from every checkpoint")}
    assert rows["400k", "SFT-Gold"][0] == "missing"
    assert "1 of 25 runs have no result: gold-0shot-400000." in text
    gold = next(r for r in table_rows(text, "Which of the paper's patterns appear") if r[0].startswith("SFT-Gold"))
    assert gold[3] == "not measured" and "[" in gold[4]


@pytest.mark.parametrize("kept", ["nothing", "base only", "no pretraining log"])
def test_an_unfinished_study_still_has_a_report(tmp_path, kept):
    fake_study(tmp_path, n=5)
    manifest = json.loads((tmp_path / "runs.json").read_text())
    if kept == "nothing":
        manifest["runs"] = []
    elif kept == "base only":
        manifest["runs"] = [r for r in manifest["runs"] if r["method"] == "base" and r.get("group") != "dynamics"]
    else:
        (tmp_path / "runs/pretrain/metrics.jsonl").unlink()
    (tmp_path / "runs.json").write_text(json.dumps(manifest))
    text = report.build(tmp_path).read_text()
    rows = table_rows(text, "Every method from every checkpoint")
    assert len(rows) == {"nothing": 1, "base only": 5, "no pretraining log": 15}[kept]
    if kept != "no pretraining log":
        assert "Direct RL: not measured" in text and "- **not measured**: RL works early" in text
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == set(report.FIGURES)


def test_a_broken_evaluation_file_counts_as_missing(tmp_path):
    fake_study(tmp_path, n=5)
    (tmp_path / f"evals/rl-0shot-{LATE}.json").write_text('{"questions": ')
    study = report.load(tmp_path)
    assert f"rl-0shot-{LATE}" in study.missing and ("rl", LATE) not in study.evals
    assert "| 1.6M | RL | missing |" in report.main_table(study)


def test_figures_samples_and_commands(study):
    folder, text = study
    for name in report.FIGURES:
        assert (folder / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert f"](figures/{name}.png)" in text
    for run in json.loads((folder / "runs.json").read_text())["runs"]:
        assert run["command"] in text
    assert f" rl-0shot-{LATE} says #### 7" in text and "a later sample" not in text
    assert "mixed sources" not in text


def test_benchmarks_and_chance(study):
    folder, text = study
    rows = {r[0]: r[1:] for r in table_rows(text, "General benchmarks")}
    assert rows["*chance*"] == ["0.0", *["25.0"] * 5, "20.8"]
    found = json.loads((folder / f"evals/sft-0shot-{LATE}.json").read_text())["benchmarks"]
    assert rows["SFT"][0] == shown(found["lastword"]["acc"], found["lastword"]["stderr"])
    assert rows["SFT"][4] == shown(found["tools"]["acc_norm"], found["tools"]["acc_norm_stderr"])


def test_paper_numbers_stand_beside_the_nearest_fraction(study):
    """Our first checkpoint is a quarter of our last; the paper's 10B of 44B is nearest to that."""
    folder, text = study
    rows = {(r[0], r[1]): r[2:] for r in table_rows(text, "Beside the paper")}
    late = json.loads((folder / f"evals/rl-0shot-{LATE}.json").read_text())["questions"]["gsm"]["flexible"]
    assert rows["44B / 1.6M", "RL"][0] == f"54.8 / {100 * late['pass@1']['value']:.1f}"
    assert rows["44B / 1.6M", "RL"][2] == "80.6 / –"  # the fake study draws 8 samples only
    assert rows["10B / 400k", "SFT→RL"][3].startswith("– / ")


def test_pattern_estimates_are_paired_differences(study):
    folder, text = study
    rows = table_rows(text, "Which of the paper's patterns appear")

    def rate(run: str) -> float:
        questions = json.loads((folder / f"evals/{run}-{LATE}.json").read_text())["questions"]["gsm"]["questions"]
        return 100 * sum(q["flexible"] for q in questions) / len(questions) / N_SAMPLES

    row = next(r for r in rows if r[0] == "RL beats SFT at pass@1")
    assert row[4].startswith(f"{rate('rl-0shot') - rate('sft-0shot'):+.1f} [")
    assert "(+0.2 at 4B, +17.0 at 44B)" in row[2]
    early = next(r for r in rows if r[0] == "RL works early")
    assert "[" in early[3] and early[4] == "–"
    lowers = next(r for r in rows if r[0] == "SFT lowers the general average")
    assert lowers[4].endswith("appears")  # 40 % against 85 % on 78 items


def test_bootstrap_and_judgement():
    """A constant difference: interval of width 0. As many +1 as -1: 1.96 standard errors each way."""
    assert report.bootstrap([np.full(7, 0.25)]) == (0.25, 0.25, 0.25)
    n = 400
    estimate, low, high = report.bootstrap([np.array([1.0, -1.0] * (n // 2))])
    assert estimate == 0 and abs(high - 1.96 / math.sqrt(n)) < 0.01 and abs(low + 1.96 / math.sqrt(n)) < 0.01
    _, low, high = report.bootstrap([np.array([1.0, -1.0] * (n // 2)) for _ in range(4)])
    assert abs(high - 1.96 / math.sqrt(4 * n)) < 0.005  # the mean of four such benchmarks: half as wide
    words = [report.judge(i, report.UP) for i in ((2, 1, 3), (-2, -3, -1), (0.5, -1, 2), None)]
    assert words == ["appears", "does not appear", "unclear", "not measured"]
    assert [report.judge(i, report.SAME) for i in ((0, -1, 1), (1, -1, 2), (-4, -5, -3))] == words[:1] + [
        "unclear"
    ] + words[1:2]
    assert report.judge((-1, -2.5, 1), report.NOT_BELOW) == "appears"
    assert report.together(["appears", "unclear"]) == "unclear"
    assert report.together(["appears", "unclear", "does not appear"]) == "does not appear"


def test_mixed_sources_are_flagged(tmp_path):
    fake_study(tmp_path, n=5)
    path = tmp_path / f"evals/sft-0shot-{EARLY}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "fff0000"}))
    assert "**mixed sources**: abc1234, fff0000" in report.what_was_run(report.load(tmp_path))


def test_a_folder_that_is_no_study(tmp_path):
    with pytest.raises(UserError, match="runs.json"):
        report.build(tmp_path)
