"""The statistics behind the verdicts, on data with known effects.   pytest -q tests/study/test_stats.py"""

import math
import random

import numpy as np
import pytest

from data.world_math import DRAW, question_sentences
from study import coverage
from study.controls import events_in, shuffled
from study.read import per_question
from study.stats import (
    Claim,
    Comparison,
    Difference,
    kendall,
    kendall_p,
    overall,
    partial,
    points,
    spearman,
    with_interval,
)


def drawn(effect, seeds=3, questions=400, noise=0.3, seed_noise=0.005, seed=0):
    """Paired differences of two models whose true difference is `effect`; seed_noise: from one pre-training to the
    next."""
    rng = np.random.default_rng(seed)
    runs = np.atleast_1d(effect) + seed_noise * rng.standard_normal(seeds)
    rows = runs[:, None] + noise * rng.standard_normal((1, questions)) + 0.1 * rng.standard_normal((seeds, questions))
    return Difference([(rows, np.ones(questions))])


def verdict(effect, sign=1, margin=0.0, drawn=drawn, **what):
    comparison = Comparison("x", drawn(effect), sign, margin, **what)
    comparison.judge()
    return comparison.verdict


@pytest.mark.parametrize(
    ("effect", "margin", "sign", "want"),
    [
        (0.08, 0.0, 1, "reproduced"),  # a true effect
        (0.0, 0.0, 1, "undecided"),  # none, but 400 questions with noise 0.3 cannot tell it from 3 points
        (-0.08, 0.0, 1, "contradicted"),  # the opposite one
        (-0.08, 0.0, -1, "reproduced"),  # predicted below, and is
        (0.08, 0.0, -1, "contradicted"),
        (0.01, -0.03, 1, "undecided"),
        (0.04, -0.06, 1, "reproduced"),
        (-0.12, -0.03, 1, "contradicted"),
    ],
)
def test_verdicts_of_known_effects(effect, margin, sign, want):
    assert verdict(effect, sign, margin) == want


def test_the_smallest_effect_of_interest():
    """A true effect of 1 point, measured well, is no claim's: it lies within ±3 of nothing. Of 2.9, and measured not
    quite so well, it is undecided; where any difference counts, it is reproduced."""

    def exact(effect):
        return drawn(effect, noise=0.02, seed_noise=0.001)

    assert verdict(0.01, drawn=exact) == "absent" and verdict(0.05, drawn=exact) == "reproduced"
    assert verdict(0.028, drawn=exact) == "undecided" and verdict(0.028, drawn=exact, least=0.0) == "reproduced"
    assert verdict(-0.01, margin=-0.03, least=0.0, drawn=exact) == "reproduced"


def test_pretrainings_that_disagree_leave_it_undecided():
    """Two gain 15 points and one loses 10: questions are many and their own interval narrow, pre-trainings decide."""
    d = drawn(np.array([0.15, 0.15, -0.10]), noise=0.02)
    assert d.estimate - 1.96 * d.question_error > 0  # questions alone would have said "reproduced"
    comparison = Comparison("x", d)
    comparison.judge()
    assert comparison.verdict == "undecided" and comparison.interval[0] < 0 < comparison.interval[1]


def test_a_true_pretraining_effect_is_covered():
    """Of pre-trainings that differ by 5 points, 95 % of intervals hold the truth; of questions alone, under 70 %. No
    effect: at most 2.5 % a side are called one."""
    held, alone, _ = coverage.coverage(3, 0.05, draws=600)
    assert 0.94 <= held <= 0.995 and alone < 0.7
    rng, verdicts = np.random.default_rng(1), []
    for _ in range(400):
        rows = 0.05 * rng.standard_normal((3, 1)) + 0.3 * rng.standard_normal((1, 300))
        comparison = Comparison("x", Difference([(rows + 0.3 * rng.standard_normal((3, 300)), np.ones(300))]))
        comparison.judge()
        verdicts.append(comparison.verdict)
    assert verdicts.count("reproduced") <= 16 and verdicts.count("contradicted") <= 16


def test_one_pretraining_gives_an_estimate_and_nothing_gives_not_run():
    for effect, leaning in ((0.2, "as predicted"), (-0.2, "opposite"), (0.0, "open")):
        comparison = Comparison("x", drawn(effect, seeds=1))
        comparison.judge()
        assert comparison.told == f"estimate: {leaning}"
    none = Comparison("y", None)
    none.judge()
    assert none.verdict == "not run"


def test_what_was_not_registered_has_no_verdict():
    claim = Claim("C1", "", "", "", [Comparison("x", drawn(0.2)), Comparison("y", drawn(-0.2), primary=False)]).judged()
    assert claim.verdict == "reproduced" and [c.told for c in claim.comparisons] == ["reproduced", ""]


@pytest.mark.parametrize(("effect", "want"), [(0.001, "reproduced"), (0.04, "contradicted"), (0.013, "undecided")])
def test_unchanged_means_within_the_margin(effect, want):
    assert verdict(effect, within=0.015, drawn=lambda e: drawn(e, noise=0.05, seed_noise=0.002)) == want


def test_overall():
    """All its rows, or it does not hold."""
    assert overall(["reproduced", "contradicted", "undecided"]) == overall(["reproduced", "absent"]) == "mixed"
    assert overall(["reproduced", "undecided"]) == "undecided" and overall(["estimate", "not run"]) == "estimate"
    assert (
        overall(["contradicted", "absent"]) == "contradicted" and overall(["contradicted", "undecided"]) == "undecided"
    )
    assert overall(["reproduced", "not run"]) == "undecided" and overall(["reproduced"] * 3) == "reproduced"


def test_interval_by_hand():
    """Three pre-trainings, means 0.1, 0.2, 0.3, every question alike: 0.2 ± 4.303 · 0.1 / √3. One pre-training and 100
    questions, half 0 and half 1: 0.5 ± 1.96 · sd / 10. Both: the root of both squares."""
    d = Difference([(np.array([[0.1] * 10, [0.2] * 10, [0.3] * 10]), np.ones(10))])
    over_seeds = 4.303 * 0.1 / math.sqrt(3)
    assert d.estimate == pytest.approx(0.2) and d.half_width() == pytest.approx(over_seeds)
    one = np.array([0.0, 1.0] * 50)
    over_questions = 1.96 * one.std(ddof=1) / 10
    assert Difference([(one[None], np.ones(100))]).half_width() == pytest.approx(over_questions)
    both = Difference([(one[None] + [[-0.1], [0.0], [0.1]], np.ones(100))])
    assert both.half_width() == pytest.approx(math.hypot(over_seeds, over_questions))
    assert both.half_width(0.10) == pytest.approx(math.hypot(2.920 * 0.1 / math.sqrt(3), 1.645 * over_questions / 1.96))


def test_facts_are_drawn_whole():
    """Ten facts of 20 items each, all right or all wrong together: the error must be that of ten, not of 200. Of two
    benchmarks, half the root of both squares."""
    part = np.array([[20.0] * 5 + [0.0] * 5]), np.full(10, 20)
    error = math.sqrt(0.25 * 10 / 9 / 10)
    assert Difference([part]).question_error == pytest.approx(error)
    assert Difference([part, part]).question_error == pytest.approx(error / math.sqrt(2))


def test_ranks():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 2, 3], [1, 1, 2, 3]) == pytest.approx(1)  # ties take their mean rank
    x, z = np.arange(6), np.arange(6)
    assert math.isnan(partial(x, x, z)) and abs(partial([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], [1, 3, 2, 5, 4])) < 1


def test_kendall_by_hand():
    """Of 6 pairs one stands the other way: (5 − 1) / 6; four of the 24 orders agree as well. A tie counts for none."""
    assert kendall([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert kendall_p([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 24)
    assert kendall([1, 2, 3], [1, 1, 2]) == pytest.approx(2 / math.sqrt(6)) and math.isnan(kendall([1, 2], [3, 3]))


def test_events_are_sentences():
    """Of an example, and of every wording that the world has."""
    assert events_in("Zoe has 16.3 kg of rice. Zoe buys 2. The rice doubles. How much now?") == 2
    rng = random.Random(0)
    for task in ("gsm", "long"):
        for _ in range(300):
            chain = DRAW[task](rng)
            assert events_in(" ".join(question_sentences(chain, rng))) == len(chain[2])


def test_shuffle_control_by_hand():
    """Three questions with answers 1, 2, 3; every sample of each question is its own answer: right at home, 0 dealt
    out. If all questions share the answer, dealing out changes nothing."""

    def result(gold, answers, right):
        columns = {"n": [4] * 3, "flexible": right, "gold": gold, "answers": answers}
        return {"questions": {"gsm": {"questions": columns}}}

    own = result(["1", "2", "3"], [{"1": 4}, {"2": 4}, {"3": 4}], [4, 4, 4])
    assert shuffled(own, 1).tolist() == [0, 0, 0] and per_question(own, 1).tolist() == [1, 1, 1]
    same = result(["2", "2", "2"], [{"2.0": 1, "": 1, "2": 1, "5": 1}] * 3, [2, 2, 2])
    assert shuffled(same, 1).tolist() == per_question(same, 1).tolist() == [0.5] * 3
    assert shuffled(same, 2) == pytest.approx([5 / 6] * 3)  # of six pairs one holds neither


def test_points_by_hand():
    """Signed, but for what rounds to nothing; the ends of an interval have only a minus."""
    assert [points(x) for x in (0.0172, -0.4, 0.0004, -0.0004)] == ["+1.7", "−40.0", "0.0", "0.0"]
    assert (
        with_interval(0.017, -0.0004, 0.03) == "+1.7 [0.0, 3.0]"
        and with_interval(-0.1, -0.2, 0.0) == "−10.0 [−20.0, 0.0]"
    )
