"""Claims judged, and told in sentences and cells, from made-up evaluations whose effects are known.

pytest -q tests/study/test_claims.py"""

import re
from pathlib import Path

import numpy as np
import pytest
from known_effects import LATE, N, changed, made_up

from study import report
from study.archive import StudyFiles
from study.claims import CLAIMS, PLAIN, WIDEST, cells, here, judged, sentences, short_table, verdict
from study.read import Lab, of_rows, validation_loss
from study.stats import Claim, Comparison
from study.tables import claims as claims_table
from study.tables import control_differences, k1_note
from study.tasks import amount

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "docs/results/lab"


def verdicts(folder):
    return {c.key: c.verdict for c in judged(Lab(folder))}


# ---------------------------------------------------------------- verdicts
def test_known_effects_come_out(whole):
    found = verdicts(whole)
    assert found["C1"] == "reproduced"  # RL 8 % against 2 %
    assert found["C2"] == "contradicted"  # RL 37 points below SFT→RL
    assert found["C3"] == "mixed"  # RL above SFT, and Gold below RL
    assert found["C4"] == "estimate" or found["C4"] == "undecided"  # two pre-trainings
    assert found["C6"] == "reproduced" and found["C7"] == "mixed"  # parallel is above SFT, as RL, below SFT→RL
    assert found["C8"] == "descriptive" and found["C9"] == "reproduced" and found["C11"] == "estimate"
    assert found["C10"] in ("reproduced", "undecided")


def only_where_copied(lab: Lab) -> None:
    """RL is right on no question whose answer is not its first number."""
    for r in lab.evals:
        columns = r["result"]["questions"]["gsm"]["questions"] if "gsm" in r["result"]["questions"] else None
        if columns and r["split"] == "test":
            columns["first"] = ["-1"] * 20 + columns["gold"][20:]
            if r["method"] == "rl":
                columns["flexible"][:20] = [0] * 20


def test_a_gain_by_copying_is_named(whole):
    """The verdict stands, and says so."""
    lab = Lab(whole)
    assert not CLAIMS[0](lab).caveat  # by made-up skill, RL gains on all questions alike
    only_where_copied(lab)
    claim = CLAIMS[0](lab)
    assert claim.verdict == "reproduced" and "by copying the question's first number" in claim.caveat
    assert claims_table([claim], lab)[2][0][-1] == verdict(claim) == f"**reproduced**, {claim.caveat}"
    assert f"reproduced**, {claim.caveat}" in sentences([claim], lab)[0]


def test_cut_off_study_says_what_it_has(cut_off):
    lab = Lab(cut_off)
    found = {c.key: c for c in judged(lab)}
    assert found["C1"].verdict == "reproduced" and found["C2"].verdict == "contradicted"
    assert found["C6"].verdict == "reproduced"
    assert all(found[key].verdict == "not run" for key in ("C3", "C4", "C9"))
    assert found["C1"].limits[0] == "Partly run: 2 of 4 primary comparisons."  # no other checkpoint
    assert [c.seeds for c in found["C2"].primary] == [3, 3]


def test_a_laptop_gives_estimates(tmp_path, unseen):
    folder = made_up(tmp_path, "laptop")
    found = verdicts(folder)
    assert {found[f"C{i}"] for i in (1, 2, 3, 5, 6, 7, 11)} == {"estimate"} and found["C10"] == "estimate"
    assert {found["C4"], found["C8"], found["C9"]} == {"not run"}
    text = report.build(folder).read_text()
    assert "estimate: as predicted" in text and "estimate**, one seed gives no verdict: RL − base +" in text
    assert re.search(r"one seed gives no verdict: RL − SFT→RL −\S+ and −\S+ \(opposite\), in points", text)


def test_nothing_run_is_no_error(tmp_path, unseen):
    folder = made_up(tmp_path, "lab", lambda task: False)
    assert set(verdicts(folder).values()) == {"not run"} and "Not run." in report.build(folder).read_text()


def test_an_estimate_says_its_side_only_when_its_rows_agree():
    """Three one-seed rows: two as predicted and one opposite; then two that agree."""
    rows = [Comparison("a", of_rows([np.full(9, d)])) for d in (0.1, 0.2, -0.1)]
    for shown, said in ((rows, "**estimate**"), (rows[:2], "**estimate**: as predicted")):
        claim = Claim("C1", "title", "statistic", "paper", shown)
        assert verdict(claim.judged()) == said


# ---------------------------------------------------------------- in words
def known(lab: Lab, right: dict[str, tuple[int, int]]) -> Lab:
    """The lab, each of these methods with (so many right answers, to each of so many of the 60 questions)."""
    for r in lab.evals:
        if r["result"] and "gsm" in r["result"]["questions"] and r["method"] in right:
            count, asked = right[r["method"]]
            r["result"]["questions"]["gsm"]["questions"]["flexible"] = [count * (i < asked) for i in range(N)]
    return lab


def test_sentences_tell_the_verdicts(cut_off):
    """Five sentences: the claim, its verdict, both differences with their signs, parts that go another way."""
    lab = known(Lab(cut_off), {"parallel": (4, 40), "rl": (4, 40), "sft": (4, 20), "sft_rl": (8, 60)})
    told = dict(zip(("C1", "C2", "C5", "C6", "C7"), sentences(judged(lab), lab), strict=True))
    by_key = {c.key: c for c in judged(lab)}
    for key, sentence in told.items():
        assert sentence.startswith(f"**{PLAIN[key].words}: {by_key[key].verdict}**")
        assert sentence.endswith(f"The paper: {PLAIN[key].paper}.")
    assert "**, the opposite holds here: RL − SFT→RL −16.7 and −16.7, in points at 2.0M and 8.2M tokens." in told["C2"]
    assert (
        ": mixed**, part of it holds here, part is the other way round: over SFT→RL −33.3 and −33.3 (contra"
        in (told["C7"])
    )
    assert "; over SFT +33.3 and +33.3 (reproduced); over RL +0.0 and +0.0 (undecided), in points" in told["C7"]


def test_sentences_follow_the_data(cut_off):
    """Other counts of right answers turn them round: RL below its base, and above SFT→RL."""
    lab = known(Lab(cut_off), {"rl": (4, 60), "base": (20, 60), "sft_rl": (1, 60)})
    first, second, *_ = sentences(judged(lab), lab)
    assert ": contradicted**, the opposite holds here: RL − base −50.0 and −50.0, in points" in first
    assert ": reproduced**: RL − SFT→RL +9.4 and +9.4, in points" in second
    lab = known(Lab(cut_off), {"rl": (5, 60), "base": (5, 60), "sft_rl": (5, 60)})
    first, second, *_ = sentences(judged(lab), lab)
    assert ": undecided**, the intervals leave it open: RL − base +0.0 and +0.0" in first
    assert ": reproduced**: RL − SFT→RL +0.0 and +0.0" in second  # not 3 points worse


def test_sentences_of_what_was_not_run(tmp_path):
    lab = Lab(made_up(tmp_path, "lab", lambda task: False))
    for sentence in sentences(judged(lab), lab):
        assert re.fullmatch(r"\*\*[^*]*: not run\*\*\. The paper: [^*]*\.", sentence), sentence


@pytest.mark.parametrize("folder", ["whole", "cut_off", LAB, ROOT / "docs/results/laptop"])
def test_cells_are_short_and_hold_one_result(folder, request):
    lab = Lab(request.getfixturevalue(folder) if isinstance(folder, str) else folder)
    found = judged(lab)
    _, head, rows = claims_table(found, lab)
    assert len(rows) == len(found) == 11 and head[4:6] == ["at 2.0M tokens", "at 8.2M tokens"]
    for row in [*rows, *short_table(found, lab)]:
        assert all(len(re.sub(r"\(#[^)]*\)", "", cell)) <= WIDEST for cell in row), row
    for row in rows:
        assert all(cell.count("[") <= 1 for cell in row[4:6]), row


def test_cells_by_hand():
    """A claim early and late; one without checkpoints; one whose result no comparison has."""
    lab = Lab.__new__(Lab)
    lab.early, lab.late, lab.primary = 2_048_000, 8_192_000, [2_048_000, 8_192_000]
    rows = [of_rows([np.full(9, d), np.full(9, d)]) for d in (-0.2, -0.3, 0.1)]
    two = Claim(
        "C2", "", "", "", [Comparison(f"{t}: RL − SFT→RL", d) for t, d in zip(("2.0M", "8.2M"), rows[:2], strict=True)]
    )
    assert cells(two.judged(), lab) == ["−20.0 [−20.0, −20.0]", "−30.0 [−30.0, −30.0]"]
    assert here(two, lab) == "pass@1, RL − SFT→RL: −20.0 at 2.0M, −30.0 at 8.2M"
    nine = Claim("C9", "", "", "", [Comparison("rarely solved: many − few completions, equal questions seen", rows[2])])
    assert cells(nine.judged(), lab) == ["", "+10.0 [10.0, 10.0]"]
    eight = Claim("C8", "", "", "", headline={"8.2M": "sd 0.8 over 4 seeds"}, verdict="descriptive")
    assert cells(eight, lab) == ["–", "sd 0.8 over 4 seeds"] and here(eight, lab) == "sd 0.8 over 4 seeds at 8.2M"
    six = Claim(
        "C6", "", "", "", [Comparison(f"8.2M: {m} − base", d) for m, d in zip(("RL", "SFT"), rows[:2], strict=True)]
    )
    assert here(six.judged(), lab) == "at 8.2M: RL −20.0; SFT −30.0" and verdict(six) == "**contradicted**"
    six.primary[0].verdict, six.verdict = "reproduced", "mixed"
    assert verdict(six) == "**mixed**: 1 of 2 reproduced, 1 contradicted"


def test_readme_has_the_table_of_the_lab():
    """What stands between <!-- claims --> and the next blank line after the table is what --claims prints."""
    _, marker, rest = (ROOT / "README.md").read_text().partition("<!-- claims -->\n")
    if not marker:
        pytest.skip("README has no <!-- claims --> table yet")
    lab = Lab(LAB)
    head, *rows = short_table(judged(lab), lab)
    assert rest.lstrip("\n").startswith(report.markdown([("table", head, rows)]))


# ---------------------------------------------------------------- by another route
def rows_again(folder: Path, text: str) -> int:
    """Rows of the report's text straight from the evaluations; returns how many were there to check."""
    files, checked = StudyFiles(folder), 0
    runs, tokens = files.manifest["runs"], files.manifest["primary"]

    def mean(method, tokens, k):
        scores = {}
        usual = dict(kind="eval", method=method, tokens=tokens, group="main", split="test", base="base", n_shot=0)
        for r in runs:
            if r["finished"] and all(r.get(key) == v for key, v in (usual | {"variant": ""}).items()):
                q = files.json(r["out"])["questions"]["gsm"]["questions"]
                pairs = zip(q["n"], q["flexible"], strict=True)
                missed = [np.prod([(n - c - i) / (n - i) for i in range(k)]) for n, c in pairs]
                scores[r["seed"]] = 100 * (1 - np.mean(missed))
        return scores

    for t in tokens:
        for a, b, k, said in (
            ("rl", "sft_rl", 1, "RL − SFT→RL"),
            ("parallel", "sft", 32, "pass@32, parallel − SFT"),
            ("sft_rl", "sft", 1, "after SFT, pass@1"),
        ):
            left, right = mean(a, t, k), mean(b, t, k)
            if both := set(left) & set(right):
                want = f"{np.mean([left[s] - right[s] for s in both]):+.1f}".replace("-", "−")
                assert f"| {amount(t)}: {said} | {want} [" in text, (t, said, want)
                checked += 1
    return checked


def test_rows_by_an_independent_route(whole):
    assert rows_again(whole, (whole / "report.md").read_text()) == 6


def test_the_independent_route_can_fail(whole, tmp_path):
    """One evaluation is another than when the report was written: the rows no longer agree."""

    def change(manifest):
        rows = [r for r in manifest["runs"] if r["kind"] == "eval" and r["tokens"] == LATE and r["group"] == "main"]
        better, worse = (next(r for r in rows if r["method"] == m and r["seed"] == 1) for m in ("sft_rl", "rl"))
        better["out"] = worse["out"]

    with pytest.raises(AssertionError, match="RL − SFT→RL"):
        rows_again(changed(whole, tmp_path / "other", change), (whole / "report.md").read_text())


def test_rows_of_the_committed_study():
    """The report in docs/results/lab is that of the evaluations in its archive."""
    assert rows_again(LAB, (LAB / "report.md").read_text()) == 6


def test_numbers_of_the_committed_study():
    """As they were when the lab had run: no change of the report's code may move them."""
    lab = Lab(LAB)
    found = {f"{c.key} {k.name}": f"{k.shown} {k.told}" for c in judged(lab) for k in c.primary}
    assert (
        len(found) == 33
        and found.items()
        >= {
            "C1 2.0M: RL − base, best shots (0)": "+1.7 [0.6, 3.0] reproduced",
            "C1 8.2M: RL − base, best shots (4)": "+43.6 [40.0, 47.3] reproduced",
            "C2 8.2M: RL − SFT→RL": "−21.9 [−25.4, −18.6] contradicted",
            "C3 250 questions, pass@32: Gold − RL": "+1.7 [−2.7, 6.3] undecided",
            "C4 hard pass@1 after RL: math-heavy − base": "+29.2 [−100.0, 100.0] undecided",
            "C5 8.2M: direct RL, pass@32": "−6.9 [−10.1, −3.6] contradicted",
            "C6 8.2M: SFT − base": "−33.3 [−36.2, −30.4] reproduced",
            "C7 2.0M: pass@32, parallel − RL": "+27.0 [23.2, 30.8] reproduced",
            "C9 rarely solved: many − few completions, equal questions seen": "+4.3 [2.4, 6.2] reproduced",
            "C11 8.2M: 8-shot − 0-shot": "−4.4 [−5.5, −3.3] estimate: opposite",
        }.items()
    )


# ---------------------------------------------------------------- parts
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
    rows[-1]["variant"] = "half_rate"
    assert k1_note(rows, 1.0, controls=False) == ["Not run yet."] and len(k1_note(rows, 1.0)) == 2


def test_controls_are_compared_with_their_method(whole):
    """SFT of 2.2 % and 60 beside parallel of 8.8 % and 90: −6.6 and −30 points; a variant of parallel: none."""
    _, _, rows = control_differences(Lab(whole), "K3")
    rows = {r[0]: [cell.replace("−", "-") for cell in r[1:]] for r in rows}
    seeds, one, _, general = rows["SFT half_rate − parallel"]
    assert seeds == "3" and abs(float(one.split()[0]) + 6.6) < 1 and abs(float(general.split()[0]) + 30) < 6
    low, high = map(float, re.findall(r"-?[.\d]+(?=[,\]])", rows["parallel sync_end − parallel"][1]))
    assert low < 0 < high
    assert {r[0].split(" − ")[1] for r in control_differences(Lab(whole), "K4")[2]} == {"RL", "SFT"}


def test_every_claim_has_plain_words():
    assert list(PLAIN) == [f"C{i}" for i in range(1, 12)] and len(CLAIMS) == len(PLAIN)
