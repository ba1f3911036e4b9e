"""The lab's report from made-up evaluations whose effects are known.   pytest -q tests/test_report_lab.py"""

import json
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

import report_lab
from claims import Lab
from evaluate import pass_at_k
from grid import BENCHMARKS
from study import Study

N, SAMPLES = 60, 32
# probability of a right answer: RL above the base everywhere, SFT->RL far above RL, parallel as RL; general: SFT loses
SKILL = {"base": 0.02, "rl": 0.08, "sft": 0.02, "gold": 0.02, "sft_rl": 0.45, "parallel": 0.08}
GENERAL = {"base": 0.9, "rl": 0.9, "sft": 0.6, "gold": 0.6, "sft_rl": 0.6, "parallel": 0.9}


def result(method, seed, tasks, ks, samples):
    rng = np.random.default_rng([seed, sum(map(ord, method))])
    easy = np.random.default_rng(5).uniform(0.2, 1.8, N)  # questions differ, alike for all
    hits = rng.binomial(samples, np.clip(SKILL[method] * easy, 0, 1))
    rows = [
        {"qid": f"q/{i}", "n": samples, "strict": int(c), "flexible": int(c), "formatted": samples, "finished": samples,
         "answers": [str(i)] * int(c) + ["-1"] * (samples - int(c)), "gold": str(i)}
        for i, c in enumerate(hits)
    ]  # fmt: skip
    scores = {
        f"pass@{k}": {"value": float(np.mean([pass_at_k(samples, int(c), k) for c in hits])), "stderr": 0.0} for k in ks
    }
    task = {"n_questions": N, "format_rate": 1.0, "finish_rate": 1.0, "guess_floor": {str(k): 0.01 for k in ks}}
    questions = {
        t: {**task, "questions": rows, "flexible": scores, "strict": scores} for t in tasks if t in ("gsm", "hard")
    }
    known = np.random.default_rng(6).uniform(size=50) < GENERAL[method]
    bench = {"per_item": [{"pred_norm": int(not k), "gold": 0, "fact": f"f{i % 40}"} for i, k in enumerate(known)]}
    benchmarks = {t: bench for t in tasks if t in BENCHMARKS}
    moved = dict(distance=1.0, relative_distance=0.01 * (1 + seed), kl=0.1, loss=1.1, loss_reference=1.0)
    out = {"commit": "abc", "questions": questions, "benchmarks": benchmarks, "movement": moved}
    return out | ({"general_average": float(known.mean())} if benchmarks else {})


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    study = Study(Namespace(preset="lab", out=str(folder), seed=1, jobs=2))
    study.data = folder
    (folder / "meta.json").write_text("{}")
    for task in study.tasks:
        if task.record.get("group") in ("main", "shots", "dynamics", "k1", "k3") and task.kind == "eval":
            path, f = study.path(task), task.flags
            path.parent.mkdir(parents=True, exist_ok=True)
            made = result(task.method, f["seed"] + 100 * f.get("n_shot", 0), f["tasks"], f["k"], f["n_samples"])
            path.write_text(json.dumps(made))
    study.write_manifest()
    report_lab.build(folder)
    return folder


def test_known_effects_come_out(lab):
    verdicts = {c.key: c.verdict for c in (claim(Lab(lab)) for claim in report_lab.CLAIMS)}
    assert verdicts["C1"] == "reproduced"  # RL 8 % against 2 %
    assert verdicts["C2"] == "contradicted"  # RL 37 points below SFT->RL
    assert verdicts["C3"] == verdicts["C4"] == verdicts["C9"] == "not run"
    assert verdicts["C6"] == "reproduced" and verdicts["C7"] == "mixed"  # parallel is above SFT, as RL, below SFT->RL
    assert verdicts["C8"] == "descriptive"


def rows_again(folder: Path) -> int:
    """Rows of the claims table straight from the evaluations' files; returns how many were there to check."""
    text, checked = (folder / "report.md").read_text(), 0
    runs = json.loads((folder / "runs.json").read_text())["runs"]

    def mean(method, tokens, k, n_shot=0):
        scores = {}
        for r in runs:
            here = dict(
                kind="eval", method=method, tokens=tokens, group="main", split="test", base="base", n_shot=n_shot
            )
            if r["finished"] and all(r.get(key) == v for key, v in (here | {"variant": ""}).items()):
                rows = json.loads((folder / r["out"]).read_text())["questions"]["gsm"]["questions"]
                missed = [np.prod([(r["n"] - r["flexible"] - i) / (r["n"] - i) for i in range(k)]) for r in rows]
                scores[r["seed"]] = 100 * (1 - np.mean(missed))
        return scores

    for tokens, name in ((8192000, "8.2M"), (2048000, "2.0M")):
        for a, b, k, said in (
            ("rl", "sft_rl", 1, "RL − SFT→RL"),
            ("parallel", "sft", 32, "pass@32, parallel − SFT"),
            ("sft_rl", "sft", 1, "after SFT, pass@1"),
        ):
            left, right = mean(a, tokens, k), mean(b, tokens, k)
            both = set(left) & set(right)
            if both:
                want = np.mean([left[s] - right[s] for s in both])
                assert f"{name}: {said}: {want:+.1f} [" in text, (name, said, want)
                checked += 1
    return checked


def test_rows_by_an_independent_route(lab):
    assert rows_again(lab) == 6


def test_rows_of_the_committed_study():
    """The report in docs/results/lab is that of the evaluations beside it."""
    folder = Path(report_lab.__file__).parent / "docs/results/lab"
    if not (folder / "report.md").exists():
        pytest.skip("no lab study is committed yet")
    assert rows_again(folder) >= 3


def test_page_is_self_contained(lab):
    page = (lab / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 6 and not re.search(r'src="(?!data:)', page)
    assert "<table>" in page and "**" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.S)
    text = (lab / "report.md").read_text()
    assert all(f"## C{i}\n" in text for i in range(1, 12)) and "not run" in text
