"""The report from made-up evaluations whose effects are known.   pytest -q tests/study/test_report.py"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from common import UserError
from evaluate import mean_stderr, pass_at_k
from study import report
from study.archive import StudyFiles
from study.claims import CLAIMS, Claim
from study.folder import Folder
from study.manifest import header_of, write_manifest
from study.plan import make_plan
from study.presets import BENCHMARKS, PRESETS
from study.read import Lab, of_rows, validation_loss
from study.runner import Runner
from study.stats import Comparison
from study.tables import claims as claims_table
from study.tables import control_differences, k1_note
from study.tasks import amount

ROOT = Path(__file__).resolve().parents[2]
TRIPLE = r"([+-]?\d+\.\d) \[([+-]?\d+\.\d), ([+-]?\d+\.\d)\]"
N = 60
STEPS = PRESETS["lab"]["late"]
LATE = STEPS * PRESETS["lab"]["pretrain"]["batch_tokens"]
# Probability of a right answer: RL above the base everywhere, SFT→RL far above RL, parallel as RL; general: SFT loses.
SKILL = {"base": 0.02, "rl": 0.08, "sft": 0.02, "gold": 0.02, "sft_rl": 0.45, "gold_rl": 0.45, "parallel": 0.08}
GENERAL = {"base": 0.9, "rl": 0.9, "sft": 0.6, "gold": 0.6, "sft_rl": 0.6, "gold_rl": 0.6, "parallel": 0.9}
SPECIAL = {"hard_many": 0.2, "pool250": 0.3, "pool1000": 0.3}  # C9, C3


def result(task):
    """What evaluate.py would have written for this task of the plan."""
    method, flags, record = task.method, task.flags, task.record
    rng = np.random.default_rng([flags["seed"] + 100 * flags.get("n_shot", 0), sum(map(ord, task.name))])
    ease = np.random.default_rng(5).uniform(0.2, 1.8, N)  # questions differ, alike for all
    skill = SPECIAL.get(record["variant"], SKILL[method]) * {"heavy": 3, "heavy2": 3}.get(record["base"], 1)
    skill *= 1 + 0.1 * (record["tokens"] == LATE)
    n, ks = flags["n_samples"], flags["k"]
    hits = rng.binomial(n, np.clip(skill * ease, 0, 1))
    scores = {f"pass@{k}": mean_stderr([pass_at_k(n, int(c), k) for c in hits]) for k in ks}
    columns = {
        "qid": [f"q/{i}" for i in range(N)], "n": [n] * N, "strict": hits.tolist(), "flexible": hits.tolist(),
        "formatted": [n] * N, "finished": [n] * N, "gold": [str(i) for i in range(N)],
        "answers": [{str(i): int(c), "-1": int(n - c)} for i, c in enumerate(hits)],
    }  # fmt: skip
    one = {"n_questions": N, "format_rate": 1.0, "finish_rate": 1.0, "guess_floor": {str(k): 0.01 for k in ks}}
    one |= {"questions": columns, "flexible": scores, "strict": scores}
    known = np.random.default_rng(6).uniform(size=50) < GENERAL[method]
    bench = dict.fromkeys(["acc", "acc_norm"], float(known.mean())) | {"chance": 0.25}
    bench |= {"hits": "".join(str(int(k)) for k in known), "facts": [i % 40 for i in range(50)]}
    moved = dict(distance=1.0, relative_distance=0.01 * (1 + flags["seed"]), kl=0.1, loss=1.1, loss_reference=1.0)
    out = {"commit": "abc", "settings": flags, "questions": {t: one for t in flags["tasks"] if t in ("gsm", "hard")}}
    out["benchmarks"] = {t: bench for t in flags["tasks"] if t in BENCHMARKS}
    out |= {"movement": moved} if "reference" in task.inputs else {}
    return out | ({"general_average": float(known.mean())} if out["benchmarks"] else {})


def made_up(folder, preset, keep=lambda task: True):
    """A study's folder as the runner leaves it, with these of its runs finished."""
    plan = make_plan(preset, 1)
    study = Folder(folder, plan.tasks)
    first = {f"q/{i}": str(i if i < N // 20 else -1) for i in range(N)}  # is the answer of one question in twenty
    copying = {"first": first, "alone": 1 / 20, "floor": {"1": 0.05, "8": 0.1, "32": 0.2}}
    (folder / "meta.json").write_text("{}")
    for task in filter(keep, study.tasks):
        path = study.path(task)
        path.parent.mkdir(parents=True, exist_ok=True)
        if task.kind == "eval":
            path.write_text(json.dumps(result(task)))
            rows = [
                {"task": "gsm", "prompt": f"Q{i}?", "gold": "7", "completion": f" by {task.method}"} for i in range(2)
            ]
            path.with_suffix(".samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        else:
            batch = task.flags.get("batch_tokens", 0)
            row = {"reward/mean": 0.1, "reward/hits": 9, "completion/tokens": 9, "reward/frac_zero_std_groups": 0.5}
            steps = range(task.flags["steps"] % 16, task.flags["steps"] + 1, 16)  # every one of the pre-training's
            rows = [{"step": s, "train/tokens": s * batch, "eval/loss": 3 - s / STEPS, **row} for s in steps]
            (path.parent / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    header = header_of(plan, 2, "cpu", ["python"], folder) | {"copying": copying, "seconds": 1.0}
    write_manifest(Runner(study, folder), header)
    report.build(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("whole"), "lab")


@pytest.fixture(scope="module")
def unseen():
    """Figures are made and not drawn: drawing takes most of a report's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path, **how: path.write_bytes(b""))
        yield


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory, whole, unseen):
    """As after an hour: three seeds of the primary comparisons, and no more."""
    block = re.compile("pre-training|base|C1 C2 C5 C6 C7: seed [123]")
    return made_up(tmp_path_factory.mktemp("cut"), "lab", lambda task: block.match(task.block))


def verdicts(folder):
    return {c.key: c.verdict for c in (claim(Lab(folder)) for claim in CLAIMS)}


def test_known_effects_come_out(whole):
    found = verdicts(whole)
    assert found["C1"] == "reproduced"  # RL 8 % against 2 %
    assert found["C2"] == "contradicted"  # RL 37 points below SFT→RL
    assert found["C3"] == "mixed"  # RL above SFT, and Gold below RL
    assert found["C4"] == "estimate" or found["C4"] == "undecided"  # two pre-trainings
    assert found["C6"] == "reproduced" and found["C7"] == "mixed"  # parallel is above SFT, as RL, below SFT→RL
    assert found["C8"] == "descriptive" and found["C9"] == "reproduced" and found["C11"] == "estimate"
    assert found["C10"] in ("reproduced", "undecided")


def test_a_gain_by_copying_is_named(whole):
    """RL is right on no question whose answer is not its first number: the verdict stands, and says so."""
    lab = Lab(whole)
    assert not CLAIMS[0](lab).caveat  # by made-up skill, RL gains on all questions alike
    for r in lab.evals:
        columns = r["result"]["questions"]["gsm"]["questions"] if "gsm" in r["result"]["questions"] else None
        if columns and r["split"] == "test":
            columns["first"] = ["-1"] * 20 + columns["gold"][20:]
            if r["method"] == "rl":
                columns["flexible"][:20] = [0] * 20
    claim = CLAIMS[0](lab)
    assert claim.verdict == "reproduced" and "by copying the question's first number" in claim.caveat
    assert f"**reproduced**, {claim.caveat}" in claims_table([claim])[2][0]


def test_cut_off_study_says_what_it_has(cut_off):
    found = verdicts(cut_off)
    assert found["C1"] == "reproduced" and found["C2"] == "contradicted" and found["C6"] == "reproduced"
    assert all(found[key] == "not run" for key in ("C3", "C4", "C9"))
    text = (cut_off / "report.md").read_text()
    assert (
        "planned runs not run" in text and "Partly run: 2 of 4 primary comparisons" in text
    )  # C1: no other checkpoint
    rows = [line for line in text.splitlines() if line.startswith("| [C2]")]
    assert len(rows) == 1 and "| 3<br>3 |" in rows[0]


def test_a_laptop_gives_estimates(tmp_path, whole, unseen):
    folder = made_up(tmp_path, "laptop")
    found = verdicts(folder)
    assert {found[f"C{i}"] for i in (1, 2, 3, 5, 6, 7, 11)} == {"estimate"} and found["C10"] == "estimate"
    assert {found["C4"], found["C8"], found["C9"]} == {"not run"}
    assert "estimate: as predicted" in (folder / "report.md").read_text()


def test_nothing_run_is_no_error(tmp_path, whole, unseen):
    folder = made_up(tmp_path, "lab", lambda task: False)
    assert set(verdicts(folder).values()) <= {"not run"} and "Not run." in (folder / "report.md").read_text()


# ------------------------------------------------------------------------------------------------ by another route
def rows_again(folder: Path) -> int:
    """Rows of the claims table straight from the evaluations' files; returns how many were there to check."""
    text, checked = (folder / "report.md").read_text(), 0
    files = StudyFiles(folder)
    runs, tokens = files.manifest["runs"], files.manifest["primary"]

    def mean(method, tokens, k):
        scores = {}
        usual = dict(kind="eval", method=method, tokens=tokens, group="main", split="test", base="base", n_shot=0)
        for r in runs:
            if r["finished"] and all(r.get(key) == v for key, v in (usual | {"variant": ""}).items()):
                q = files.json(r["out"])["questions"]["gsm"]["questions"]
                missed = [
                    np.prod([(n - c - i) / (n - i) for i in range(k)])
                    for n, c in zip(q["n"], q["flexible"], strict=True)
                ]
                scores[r["seed"]] = 100 * (1 - np.mean(missed))
        return scores

    for t in tokens:
        for a, b, k, said in (
            ("rl", "sft_rl", 1, "RL − SFT→RL"),
            ("parallel", "sft", 32, "pass@32, parallel − SFT"),
            ("sft_rl", "sft", 1, "after SFT, pass@1"),
        ):
            left, right = mean(a, t, k), mean(b, t, k)
            both = set(left) & set(right)
            if both:
                want = np.mean([left[s] - right[s] for s in both])
                assert f"{amount(t)}: {said}: {want:+.1f} [" in text, (t, said, want)
                checked += 1
    return checked


def test_rows_by_an_independent_route(whole):
    assert rows_again(whole) == 6


def test_the_independent_route_can_fail(whole, tmp_path):
    """One count of one evaluation changed after the report was written: the rows no longer agree."""
    for name in ("report.md", "runs.json"):
        (tmp_path / name).write_text((whole / name).read_text())
    (tmp_path / "evals").mkdir()
    for path in (whole / "evals").glob("*-main-*.json"):
        found = json.loads(path.read_text())
        if path.name.startswith(f"sft_rl-base-{amount(LATE)}-s1"):
            found["questions"]["gsm"]["questions"]["flexible"] = [0] * N
        (tmp_path / "evals" / path.name).write_text(json.dumps(found))
    with pytest.raises(AssertionError, match="RL − SFT→RL"):
        rows_again(tmp_path)


def test_rows_of_the_committed_study():
    """The report in docs/results/lab is that of the evaluations beside it."""
    folder = ROOT / "docs/results/lab"
    if not (folder / "report.md").exists():
        pytest.skip("no lab study is committed yet")
    assert rows_again(folder) >= 3


# ------------------------------------------------------------------------------------------------------- the pages
def test_page_is_self_contained(whole):
    page = (whole / "report.html").read_text()
    figures = list((whole / "figures").glob("*.png"))
    assert page.count("data:image/png;base64,") >= len(figures) > 25 and not re.search(r'src="(?!data:)', page)
    assert "<table>" in page and "**" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.S)
    for anchor in re.findall(r'href="#([^"]*)"', page):
        assert f'id="{anchor}"' in page


def test_every_claim_and_control_has_its_page(whole):
    text = (whole / "report.md").read_text()
    pages = {part.split("\n")[0]: part for part in text.split("\n## ")[1:]}
    for key in (*(f"C{i}" for i in range(1, 12)), "K1", "K2", "K3", "K4"):
        assert "](figures/" in pages[key] and "python " in pages[key], key
    for key in ("C1", "C2", "C3", "C5", "C7", "C9"):
        assert "right answer" in pages[key], key
    for name in re.findall(r"\]\(figures/([^)]*)\)", text):
        assert (whole / "figures" / name).read_bytes()[:4] == b"\x89PNG"
    assert "Shuffle control" in pages["C5"] and "Shuffle control" in pages["C7"] and "@256" in pages["C5"]
    assert all(f"| RL − base, {n}-shot | {t} |" in pages["C5"] for n in (0, 8) for t in (0.6, 1.0))
    assert "FLOPs of pre-training" in pages["C4"] and "No signal" in pages["C1"] and "strict @1" in text
    assert "How another pre-training would come out" in text.partition("## What remains open")[2].partition("## ")[0]
    assert "settings tried in tuning" in pages["C5"]
    assert re.search(r"\| SFT-Gold pass@32, late checkpoint \| 0 to 95 \| \d", text)  # on validation questions
    assert "Mixed sources" not in text and "planned runs not run" not in text


def changed(whole, folder, change):
    """A study in `folder` with the files of `whole` and its runs.json after `change`."""
    for name in ("evals", "runs"):
        (folder / name).symlink_to(whole / name)
    manifest = json.loads((whole / "runs.json").read_text())
    change(manifest)
    (folder / "runs.json").write_text(json.dumps(manifest))


def test_mixed_sources_are_flagged(tmp_path, whole):
    def change(manifest):
        for i, r in enumerate(r for r in manifest["runs"] if r["kind"] == "eval"):
            r["source"] = "one" if i else "two"

    changed(whole, tmp_path, change)
    assert "Mixed sources" in report.provenance(Lab(tmp_path))[0][0][1][1]


def test_diagnostic_reads_the_loss_at_the_checkpoint(whole):
    lab = Lab(whole)
    assert validation_loss(lab, "base", LATE) == 2.0 and validation_loss(lab, "base", LATE + 1) is None


def test_movement_note_by_hand():
    """SFT at distances 1, 2, 3 has general 0.9, 0.8, 0.6; RL at 2.5 has 0.85: SFT there 0.7."""
    usual = dict(group="main", seed=1, kl=1.0, loss=0.0)
    rows = [
        {"method": "sft", "distance": d, "general": g, "pass@1": 0.1, **usual}
        for d, g in ((1, 0.9), (2, 0.8), (3, 0.6))
    ]
    rows.append({"method": "rl", "distance": 2.5, "general": 0.85, "pass@1": 0.1, **usual})
    assert "85.0 and +0.0000; SFT moved as far: 70.0 and" in k1_note(rows)[0]
    rows[-1]["distance"] = 0.5  # nearer than any SFT run: between the base, 1.0, and the first of them
    assert "outside" in k1_note(rows)[0] and "moved least, SFT, 1.0000): 95.0 and" in k1_note(rows, 1.0)[0]


def test_an_estimate_says_its_side_only_when_its_rows_agree():
    """Three one-seed rows: two as predicted and one opposite; then two that agree."""
    rows = [Comparison("a", of_rows([np.full(9, d)])) for d in (0.1, 0.2, -0.1)]
    for shown, said in ((rows, "**estimate**"), (rows[:2], "**estimate**: as predicted")):
        claim = Claim("C1", "title", "statistic", "paper", shown)
        claim.done()
        assert claims_table([claim])[2][0][6] == said


def test_a_broken_evaluation_counts_as_not_run(tmp_path, whole):
    def change(manifest):
        victim = next(r for r in manifest["runs"] if r["name"].startswith(f"rl-base-{amount(LATE)}-s1-test"))
        victim["out"] = "broken.json"

    changed(whole, tmp_path, change)
    (tmp_path / "broken.json").write_text('{"questions": ')
    lab = Lab(tmp_path)
    assert set(lab.by_seed("rl", LATE)) == {2, 3, 4} and "broken.json: no readable evaluation" in lab.unreadable[0]


def test_a_folder_that_is_no_study(tmp_path):
    with pytest.raises(UserError, match="runs.json"):
        report.build(tmp_path)


def test_controls_are_compared_with_their_method(whole):
    """SFT of 2.2 % and 60 beside parallel of 8.8 % and 90: −6.6 and −30 points; a variant of parallel: none."""
    _, _, rows = control_differences(Lab(whole), "K3")
    rows = {r[0]: r[1:] for r in rows}
    seeds, one, _, general = rows["SFT half_rate − parallel"]
    assert seeds == "3" and abs(float(one.split()[0]) + 6.6) < 1 and abs(float(general.split()[0]) + 30) < 6
    low, high = map(float, re.findall(r"[-+][.\d]+(?=[,\]])", rows["parallel sync_end − parallel"][1]))
    assert low < 0 < high
    assert {r[0].split(" − ")[1] for r in control_differences(Lab(whole), "K4")[2]} == {"RL", "SFT"}


def numbers(text: str) -> list[str]:
    """Each "d [low, high]" in a text, in the report's spelling: signs written out, minus as a hyphen."""
    plain = text.replace("−", "-")
    sign = lambda x: x if x[0] in "+-" else "+" + x  # noqa: E731
    return [f"{sign(d)} [{sign(low)}, {sign(high)}]" for d, low, high in re.findall(TRIPLE, plain)]


def test_readme_says_what_the_reports_say():
    """Its intervals, counts and scores stand in the lab's report, in the report's spelling."""
    readme, lab = (ROOT / "README.md").read_text(), (ROOT / "docs/results/lab/report.md").read_text()
    told = numbers(readme)
    assert len(told) > 30 and set(told) <= set(numbers(lab)), sorted(set(told) - set(numbers(lab)))
    assert re.search(r"(\d+ of \d+) planned", readme)[1] in lab
    names = "base, 8-shot|base, 0-shot|base, 4-shot|RL|SFT|SFT-Gold|SFT→RL|parallel|*guess floor*".split("|")
    rows = [[cell.strip().split(" ± ")[0] for cell in row.split("|")[1:-1]] for row in lab.splitlines()]
    rows = {r[1].split(", best on")[0]: r for r in rows if len(r) == 11 and r[0] in ("8.2M", "")}
    for line, columns in (("ours", (3, 5)), ("ours, general", (10,))):
        ours = re.search(rf"^\| {line} \|(.*)\|$", readme, re.M)[1].split("|")
        for name, cell in zip(names, ours, strict=True):
            if cell.strip() and rows[name][columns[0]] != "–":
                assert cell.strip() == " / ".join(rows[name][c] for c in columns), (line, name)
