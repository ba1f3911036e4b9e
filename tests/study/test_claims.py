"""Claims judged, and told in sentences and cells, from made-up evaluations whose effects are known.

pytest -q tests/study/test_claims.py"""

import re
from pathlib import Path

import numpy as np
import pytest
from known_effects import EARLY, LATE, made_up

from study import report
from study.claims import CLAIMS, PLAIN, WIDEST, cells, here, judged, remark, sentence, sentences, short_table, verdict
from study.claims_methods import early_checkpoint
from study.read import Lab, of_rows, validation_loss
from study.stats import Claim, Comparison
from study.tables import claims as claims_table

ROOT = Path(__file__).resolve().parents[2]


def verdicts(folder):
    return {c.key: c.verdict for c in judged(Lab(folder))}


def known(lab: Lab, right: dict[str, tuple[int, int]]) -> Lab:
    """The lab, each of these methods with (so many right answers, to each of so many of the 60 questions)."""
    for r in lab.evals:
        name = "start" if r["variant"] == "start" else r["method"]
        if r["result"] and "gsm" in r["result"]["questions"] and name in right and r["split"] == "test":
            count, asked = right[name]
            columns = r["result"]["questions"]["gsm"]["questions"]
            columns["flexible"] = [count * (i < asked) for i in range(len(columns["n"]))]
    return lab


# ---------------------------------------------------------------- verdicts
def test_known_effects_come_out(made):
    """The paper's pattern, which the made-up lab has, over pre-trainings that differ."""
    found = verdicts(made)
    assert {found[f"C{i}"] for i in (1, 2, 3, 5, 6, 7)} == {"reproduced"}
    assert found["C4"] == "no claim" and {found[f"C{i}"] for i in (8, 9, 10)} == {"descriptive"}
    assert found["C11"] in ("undecided", "absent", "contradicted")  # shots cost it a tenth


def test_verdicts_follow_the_data(made):
    """Direct RL narrows, RL after SFT widens, averaging is RL: three claims turn round."""
    right = {"base": (2, 50), "rl": (6, 30), "start": (4, 30), "sft_rl": (6, 55), "sft": (4, 30), "parallel": (6, 30)}
    found = {c.key: c for c in judged(known(Lab(made), right))}
    assert found["C5"].verdict == found["C2"].verdict == "contradicted" or found["C2"].verdict == "mixed"
    assert [c.verdict for c in found["C5"].primary] == ["contradicted", "contradicted"]
    assert found["C7"].verdict == "contradicted"  # below SFT→RL; as SFT and RL: absent
    assert {c.verdict for c in found["C7"].primary} == {"contradicted", "absent"}


def test_early_is_defined_by_the_base(made):
    """The first judged checkpoint whose base is rarely right at once and often in 32 tries; the plan's own, here."""
    lab = Lab(made)
    assert early_checkpoint(lab) == EARLY == lab.early
    assert [c.name.split(":")[0] for c in CLAIMS[0](lab).primary] == ["3.1M"]
    lab.blind = {"1": 0.0, "8": 0.0, "32": 0.99}
    claim = CLAIMS[0](lab)
    assert early_checkpoint(lab) is None and claim.verdict == "undecided" and not claim.primary
    assert "there is no early checkpoint" in claim.limits[0]


def test_the_gap_is_paired(made):
    """C2's second row: late less early, question by question; RL 4 of 32, SFT→RL 2, all alike: no change."""
    lab = known(Lab(made), {"rl": (4, 60), "sft_rl": (2, 60)})
    row = CLAIMS[1](lab).primary[1]
    assert row.name == "8.2M − 3.1M: RL − SFT→RL" and row.difference.estimate == 0 and row.verdict == "absent"


def test_cut_off_study_says_what_it_has(cut_off):
    """Two pre-trainings: t with one degree of freedom decides little."""
    found = {c.key: c for c in judged(Lab(cut_off))}
    assert {c.seeds for c in found["C3"].primary} == {2}
    assert all(found[key].verdict == "not run" for key in ("C9",)) and found["C6"].verdict == "reproduced"


def test_a_laptop_gives_estimates(tmp_path, unseen):
    folder = made_up(tmp_path, "laptop")
    found = verdicts(folder)
    assert {found[f"C{i}"] for i in (1, 2, 3, 5, 6, 7, 11)} == {"estimate"}
    assert {found["C8"], found["C9"], found["C10"]} == {"not run"} and found["C4"] == "no claim"
    text = report.build(folder).read_text()
    assert "estimate: as predicted" in text
    assert "estimate**, one pre-training gives no verdict. pass@1, RL − base +" in text


def test_nothing_run_is_no_error(tmp_path, unseen):
    folder = made_up(tmp_path, "lab", lambda task: False)
    found = verdicts(folder)
    assert set(found.values()) == {"not run", "no claim"} and "Not run." in report.build(folder).read_text()


def test_an_estimate_says_its_side_only_when_its_rows_agree():
    """Three rows of one pre-training: two as predicted and one opposite; then two that agree."""
    rows = [Comparison("a", of_rows([np.full(9, d)])) for d in (0.1, 0.2, -0.1)]
    for shown, said in ((rows, "**estimate**"), (rows[:2], "**estimate**: as predicted")):
        claim = Claim("C1", "title", "statistic", "paper", shown)
        assert verdict(claim.judged()) == said


# ---------------------------------------------------------------- in words
def test_sentences_tell_the_verdicts(made):
    """Claim, verdict, late and early differences with intervals and verdicts; T 1 where that decides otherwise."""
    lab = known(Lab(made), {"base": (1, 60), "rl": (4, 40), "sft": (4, 20), "sft_rl": (8, 60), "parallel": (4, 40)})
    found = judged(lab)
    told = dict(zip(("C1", "C2", "C3", "C5", "C6", "C7"), sentences(found, found, lab), strict=True))
    by_key = {c.key: c for c in found}
    for key, said in told.items():
        assert said.startswith(f"**{PLAIN[key].words}: {by_key[key].verdict}**")
        assert said.endswith(f"The paper: {PLAIN[key].paper}.")
    assert re.search(
        r"\. pass@1, RL − SFT→RL −16\.7 \[.*\] at 8\.2M \(contradicted\), −16\.7 \[.*\] at 3\.1M; 8\.2M − 3\.1M: ",
        told["C2"],
    )
    assert re.search(r"pass@32, over SFT→RL −33\.3 \[.*?\] at 8\.2M \(contradicted\), −33\.3 \[", told["C7"])
    assert "T 1" not in " ".join(told.values())
    opposite = Comparison("8.2M: RL − base", of_rows([np.full(9, 0.1)]), leaning="opposite")
    row = Comparison(opposite.name, opposite.difference, leaning="as predicted", verdict="reproduced")
    assert remark(row, opposite, lab) == f" (reproduced; asked at T 1 {opposite.shown}; 1 of 3 pre-trainings)"


def test_sentences_of_what_was_not_run(tmp_path):
    lab = Lab(made_up(tmp_path, "lab", lambda task: False))
    for said in sentences(judged(lab), judged(lab), lab):
        assert re.fullmatch(r"\*\*[^*]*: not run\*\*\. The paper: [^*]*\.", said), said


@pytest.mark.parametrize("folder", ["made", "cut_off"])
def test_cells_are_short_and_hold_one_result(folder, request):
    lab = Lab(request.getfixturevalue(folder))
    found = judged(lab)
    _, head, rows = claims_table(found, lab)
    assert len(rows) == len(found) == 11 and head[4:6] == ["at 3.1M tokens", "at 8.2M tokens"]
    for row in [*rows, *short_table(found, lab)]:
        assert all(len(re.sub(r"\(#[^)]*\)", "", cell)) <= WIDEST for cell in row), row
    for row in rows:
        assert all(cell.count("[") <= 1 for cell in row[4:6]), row


def test_cells_by_hand():
    """A claim early and late; one whose result no comparison has; one of two parts."""
    lab = Lab.__new__(Lab)
    lab.early, lab.late, lab.primary, lab.runs = EARLY, LATE, [EARLY, LATE], [{"kind": "pretrain"}] * 2
    rows = [of_rows([np.full(9, d), np.full(9, d)]) for d in (-0.2, -0.3)]
    places = ("3.1M", "8.2M")
    two = Claim("C2", "", "", "", [Comparison(f"{t}: RL − SFT→RL", d) for t, d in zip(places, rows, strict=True)])
    assert cells(two.judged(), lab) == ["−20.0 [−20.0, −20.0]", "−30.0 [−30.0, −30.0]"]
    assert here(two, lab) == "pass@1, RL − SFT→RL: −20.0 at 3.1M, −30.0 at 8.2M"
    lab.runs = [{"kind": "pretrain"}] * 3  # one of them has not come so far
    assert cells(two, lab)[1] == "−30.0 [−30.0, −30.0] (2 of 3 pre-trainings)"
    assert "at 8.2M (contradicted; 2 of 3 pre-trainings)" in sentence(two, {}, lab)
    eight = Claim("C8", "", "", "", headline={"8.2M": "sd 0.8"}, verdict="descriptive")
    assert cells(eight, lab) == ["–", "sd 0.8"] and here(eight, lab) == "sd 0.8 at 8.2M"
    ten = Claim("C10", "", "", "", headline={"": "+0.90 over 12 points"}, verdict="descriptive")
    assert cells(ten, lab) == ["", "+0.90 over 12 points"]
    both = [Comparison(f"8.2M: {m} − base", d, -1) for m, d in zip(("RL", "SFT"), rows, strict=True)]
    six = Claim("C6", "", "", "", both)
    assert here(six.judged(), lab) == "at 8.2M: RL −20.0; SFT −30.0" and verdict(six) == "**reproduced**"
    six.primary[0].verdict, six.verdict = "contradicted", "mixed"
    assert verdict(six) == "**mixed**: 1 of 2 reproduced, 1 contradicted"


# ---------------------------------------------------------------- parts
def test_diagnostic_reads_the_loss_at_the_checkpoint(made):
    lab = Lab(made)
    assert validation_loss(lab, 1, LATE) == 2.0 and validation_loss(lab, 1, LATE + 1) is None


def test_seeds_of_one_pretraining_stand_beside_the_pretrainings(made):
    claim = CLAIMS[7](Lab(made))
    assert claim.results[0].startswith("3.1M, 3 post-training seeds of one pre-training")
    assert claim.results[1].startswith("3.1M, 3 pre-trainings") and "by pre-training" in claim.headline["3.1M"]


def test_other_runs_in_the_place_of_the_main_ones(made):
    """At T 1 every method and the base, direct RL at half its rate alone; nothing else is touched."""
    lab = Lab(made)
    hot, half = lab.viewed_as("hot"), lab.viewed_as("half")
    for method in ("rl", "sft", "base"):
        assert {r["temperature"] for r in hot.find(method=method, tokens=LATE)} == {1.0}
    assert {r["variant"] for r in half.find(method="rl", tokens=LATE)} == {"half"}
    assert (
        half.by_seed("sft", LATE) == lab.by_seed("sft", LATE)
        and len(half.by_seed("rl", LATE)) == 3
        and len(half.by_seed("rl", EARLY)) == 1
    )
    assert hot.asked_on_validation(LATE, 0) == lab.asked_on_validation(LATE, 0) != []
    assert not lab.viewed


def test_every_claim_has_plain_words():
    assert list(PLAIN) == [f"C{i}" for i in range(1, 12)] and len(CLAIMS) == len(PLAIN)
