"""The statistics behind the verdicts, on data with known effects.   pytest -q tests/study/test_stats.py"""

import math

import numpy as np
import pytest

from data.math_qa import Question
from study.controls import copied, shuffled
from study.manifest import copying
from study.read import per_question, scores
from study.stats import Comparison, Difference, holm, judge, overall, partial, permutation_p, spearman, t_upper_tail


def drawn(effect, seeds=5, questions=400, noise=0.3, seed_noise=0.005, seed=0):
    """Paired differences of two models whose true difference is `effect`; seed_noise: from run to run."""
    rng = np.random.default_rng(seed)
    runs = np.atleast_1d(effect) + seed_noise * rng.standard_normal(seeds)
    rows = runs[:, None] + noise * rng.standard_normal((1, questions)) + 0.1 * rng.standard_normal((seeds, questions))
    return Difference([(rows, np.ones(questions))])


@pytest.mark.parametrize(
    ("effect", "margin", "sign", "want"),
    [
        (0.08, 0.0, 1, "reproduced"),  # a true effect
        (0.0, 0.0, 1, "undecided"),  # none
        (-0.08, 0.0, 1, "contradicted"),  # the opposite one
        (-0.08, 0.0, -1, "reproduced"),  # predicted below, and is
        (0.08, 0.0, -1, "contradicted"),
        (0.01, -0.03, 1, "undecided"),  # not worse by 3 points, but 400 questions with noise 0.3 cannot tell
        (0.02, -0.06, 1, "reproduced"),
        (-0.12, -0.03, 1, "contradicted"),
    ],
)
def test_verdicts_of_known_effects(effect, margin, sign, want):
    assert judge([Comparison("x", drawn(effect), sign, margin)]) == want


def test_bimodal_seeds_leave_it_undecided():
    """Three runs gain 15 points and two collapse: questions are many and their interval narrow, the seeds decide."""
    runs = np.array([0.15, 0.15, 0.15, -0.10, -0.10])
    comparison = Comparison("x", drawn(runs, noise=0.02))
    low, high = np.percentile(comparison.difference.bootstrap(), [2.5, 97.5])
    assert low > 0  # the bootstrap over questions alone would have said "reproduced"
    assert judge([comparison]) == "undecided" and comparison.interval[0] < 0 < comparison.interval[1]


def test_one_seed_gives_an_estimate_and_nothing_gives_not_run():
    one, none = Comparison("x", drawn(0.2, seeds=1)), Comparison("y", None)
    assert judge([one]) == "estimate" and judge([none]) == "not run"
    assert judge([Comparison("x", drawn(0.2)), Comparison("z", drawn(0.2), primary=False)]) == "reproduced"


@pytest.mark.parametrize(("effect", "want"), [(0.001, "reproduced"), (0.03, "contradicted"), (0.013, "undecided")])
def test_unchanged_means_within_the_margin(effect, want):
    comparison = Comparison("x", drawn(effect, noise=0.05), within=0.015)
    assert judge([comparison]) == want


def test_verdicts_hold_over_many_draws():
    """No effect: at most 2.5 % a side may be called an effect, with t and bootstrap both asked; 100 draws."""
    verdicts = [judge([Comparison("x", drawn(0.0, seeds=4, questions=100, seed=s))]) for s in range(100)]
    assert verdicts.count("reproduced") <= 6 and verdicts.count("contradicted") <= 6


def test_holm_by_hand():
    """0.004 <= 0.025 / 3; 0.012 <= 0.025 / 2; 0.02 <= 0.025. With 0.013 in the middle the walk stops there."""
    assert holm([0.02, 0.004, 0.012]) == [True, True, True]
    assert holm([0.02, 0.004, 0.013]) == [False, True, False]
    assert holm([0.009, 0.5]) == [True, False] and holm([]) == []


def test_holm_takes_back_a_lone_weak_comparison():
    """p about 0.02 alone is enough; beside two that show nothing it is not."""

    def weak():  # an estimate of 2.2 of its own standard errors
        (rows, counts), *_ = (d := drawn(0.0, seed_noise=0.0)).parts
        return Comparison("x", Difference([(rows - d.estimate + 2.2 * d.bootstrap().std(), counts)]))

    alone = weak()
    p = alone.difference.p_beyond(0, 1)
    assert 0.025 / 3 < p <= 0.025 and judge([alone]) == "reproduced"
    family = [weak(), Comparison("y", drawn(0.0, seed=7)), Comparison("z", drawn(0.0, seed=8))]
    assert judge(family) == "undecided" and family[0].verdict == "undecided"


def test_overall():
    assert overall(["reproduced", "contradicted", "undecided"]) == "mixed"
    assert overall(["reproduced", "undecided"]) == "undecided" and overall(["estimate", "not run"]) == "estimate"


@pytest.mark.parametrize(
    ("t", "df", "want"), [(2.776445, 4, 0.025), (12.7062, 1, 0.025), (0.0, 7, 0.5), (-1.812461, 10, 0.95)]
)
def test_t_distribution_by_table(t, df, want):
    assert t_upper_tail(t, df) == pytest.approx(want, abs=2e-6)


def test_interval_by_hand():
    """Two seeds, means 0.1 and 0.3: 0.2 +- 12.706 * 0.1, wider than any bootstrap of equal questions."""
    d = Difference([(np.array([[0.1] * 10, [0.3] * 10]), np.ones(10))])
    assert d.estimate == pytest.approx(0.2) and d.interval() == pytest.approx((0.2 - 1.2706, 0.2 + 1.2706))


def test_facts_are_drawn_whole():
    """Ten facts of 20 items each, all right or all wrong together: the interval must be that of ten, not of 200."""
    sums = np.array([[20.0] * 5 + [0.0] * 5])
    low, high = Difference([(sums, np.full(10, 20))]).interval()
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(10), rel=0.15)


def test_ranks_and_permutations():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1) and spearman(
        [1, 2, 3], [3, 2, 1]
    ) == pytest.approx(-1)
    assert spearman([1, 1, 2, 3], [1, 1, 2, 3]) == pytest.approx(1)  # ties take their mean rank
    assert permutation_p([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1 / 24)  # exact: of 24 orders one reaches rho 1
    assert permutation_p([1, 2, 3], [1, 3, 2]) == pytest.approx(3 / 6)  # rho 0.5: 123, 132 and 213
    assert permutation_p(range(9), range(9)) == pytest.approx(1 / 4001)  # shuffles: none of 4,000 reaches it
    x, z = np.arange(6), np.arange(6)
    assert math.isnan(partial(x, x, z)) and abs(partial([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], [1, 3, 2, 5, 4])) < 1


def question(qid, problem, answer):
    return Question(qid, problem, [], answer, "gsm")


def test_copying_by_hand():
    """Training answers lie 1, 0, 1 and 3 beyond the first number; of the test questions one lies 1 beyond, one 0."""
    train = [
        question("", f"Otto has {a}. He buys 2, sells 2.", b)
        for a, b in (("3", "4"), ("5.5", "5.5"), ("2", "3"), ("7", "10"))
    ]
    test = [question("a", "Una has 1,010, and 2.", "1011"), question("b", "Ray has 6.5. He eats 1, finds 1.", "6.5")]
    found = copying(train, test, (1, 2))
    assert found["first"] == {"a": "1,010", "b": "6.5"} and found["alone"] == 0.5
    assert found["floor"] == {"1": (1 / 2 + 1 / 4) / 2, "2": (3 / 4 + 7 / 16) / 2}
    columns = {"gold": ["1011", "6.5"], "first": ["1,010", "6.5"], "n": [4, 4], "flexible": [1, 3]}
    columns["answers"] = [{"1010": 3, "1011": 1}, {"6.50": 2, "": 2}]
    result = {"questions": {"gsm": {"questions": columns}}}
    assert copied(result) == 5 / 8
    assert scores(result, ("uncopied", 1), "gsm").tolist() == [1 / 4]  # the second is answered by its first number


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


def test_one_seed_says_where_its_interval_lies():
    for effect, leaning in ((0.2, "as predicted"), (-0.2, "opposite"), (0.0, "open")):
        comparison = Comparison("x", drawn(effect, seeds=1))
        assert judge([comparison]) == "estimate" and comparison.leaning == leaning
