"""The paper's order, what decides, beyond the text, what RL changes, rates: from made-up evaluations.

pytest -q tests/study/test_regime.py"""

import numpy as np
import pytest
from known_effects import EARLY, LATE, made_up

from study import agreement, axis, beyond, mechanism, tables, tuning
from study.claims import judged
from study.read import Lab, value


# ---------------------------------------------------------------- the paper's order
def test_the_papers_checkpoint_is_that_of_the_nearest_base(made):
    """Base pass@1 about 3.6 and 18 %: the paper's 10B (4.2) and 44B (14.8)."""
    lab = Lab(made)
    assert agreement.nearest(lab, EARLY) == 10 and agreement.nearest(lab, LATE) == 44


def test_tau_by_hand(made):
    """The paper at 44B, pass@32: base 67.5 < SFT→RL 70.3 < SFT 73.8 < RL 80.6 < averaging 84.5 < Gold 87.8. Here
    averaging and Gold reach the same, and SFT and SFT→RL: 13 of 15 pairs alike, two tied."""
    lab = Lab(made)
    methods, theirs, ours = agreement.orders(lab, LATE, 32)
    assert methods == ["base", "rl", "sft", "gold", "sft_rl", "parallel"] and set(ours) == {1, 2, 3}
    assert theirs == [67.48, 80.58, 73.84, 87.79, 70.28, 84.53]
    for scores in ours.values():
        pairs = [(i, j) for i in range(6) for j in range(i)]
        signs = [np.sign(theirs[i] - theirs[j]) * np.sign(scores[i] - scores[j]) for i, j in pairs]
        untied = sum(s != 0 for s in signs)
        tau = agreement.kendall(theirs, scores)
        assert tau == pytest.approx(sum(signs) / np.sqrt(15 * untied))
    assert f"{agreement.signed(tau)} in pass@32 at 8.2M (6 methods, the paper's 44B; " in agreement.headline(lab)


def test_costs_by_hand():
    """Two batches of 2 × 4 completions and 100 tokens, a quarter of the groups with a signal; then SFT of 64 examples
    and 50 tokens; then both in one step of averaging."""
    rl = {"step": 1, "completion/tokens": 100, "reward/frac_zero_std_groups": 0.75, "reward/hits": 3}
    found = agreement.cost_of([rl, rl], dict(prompts_per_step=2, group_size=4), 6.0)
    assert found == {"completions": 16, "tokens": 50, "flops": 6.0 * (200 / 3 + 50), "right": 6}
    sft = {"step": 1, "perf/tok_per_sec": 25.0, "perf/step_ms": 2000.0}
    assert agreement.cost_of([sft], {}, 6.0) == {"completions": 0, "tokens": 50, "flops": 300, "right": 64}
    both = rl | {"perf/tok_per_sec": 75.0, "perf/step_ms": 2000.0, "sft/loss": 1.0}
    found = agreement.cost_of([both], dict(prompts_per_step=2, group_size=4, batch_size=8), 6.0)
    assert found == {"completions": 8, "tokens": 75, "flops": pytest.approx(6.0 * (100 / 3 + 75)), "right": 11}


def test_sft_before_rl_is_part_of_its_cost(made):
    rows = {(r[0], r[1]): r for r in agreement.compute(Lab(made))[2]}
    assert int(rows["8.2M", "SFT→RL"][3].replace(",", "")) > int(rows["8.2M", "RL"][3].replace(",", ""))
    assert rows["3.1M", "SFT"][2] == "0" and set(rows) >= {(t, "parallel") for t in ("3.1M", "8.2M")}


def test_the_stop_is_told(made):
    """Reward rises by half over the run: in its last third as before, 0.5 / 48 a batch."""
    told = agreement.slopes(Lab(made))
    assert told[0].startswith("No plateau is claimed: in 18 of 18 runs the training reward still rises")
    assert any(line.startswith("RL from 8.2M: validation pass@1 ") and "+10.4, +10.4, +10.4" in line for line in told)
    assert agreement.slope([{"step": s, "reward/mean": 0.3} for s in range(9)], lambda r: r["reward/mean"]) < 1e-9
    assert agreement.slope([], lambda r: 0.0) is None


# ---------------------------------------------------------------- what decides
def test_the_axis_takes_the_main_runs_for_its_own_pool(made):
    lab = Lab(made)
    a = axis.read(lab)
    assert a.pools == [64, 250, 1000, 4000] and a.passes == [5, 24, 60] and a.questions == 60
    assert a.cells["rl", 250, 0] is lab.by_seed("rl", LATE)[1]
    assert a.cells["sft", 250, 24] is lab.by_seed("sft", LATE)[1]
    assert a.cells["sft_rl", 250, 5] is lab.by_seed("sft_rl", LATE)[1]
    assert a.cells["sft", 250, 5] is lab.by_seed("sft", LATE, variant="start")[1]
    assert ("sft", 4000, 60) not in a.cells and len(a.cells) == 4 + 4 + 10 + 9 + 9
    d = a.difference(("rl", 64, 0), ("sft", 64, 24), 1)
    both = value(a.cells["rl", 64, 0], 1) - value(a.cells["sft", 64, 24], 1)
    assert d.estimate == pytest.approx(both) and a.difference(("rl", 64, 0), ("sft", 4000, 60), 1) is None


def test_the_papers_place(made):
    """SFT reads 2,560 tokens a step of 64 examples: 40 a solution; 0.3 % of a fifth of 8.2M tokens are 4,915."""
    lab = Lab(made)
    assert axis.paper_pool(lab) == pytest.approx(0.003 * 0.2 * LATE / 40)  # 123: nearer to 64 than to 250
    a, told = axis.read(lab), axis.said(lab)
    right = lab.base(LATE)[1]["questions"]["gsm"]["questions"]["flexible"][: a.questions]
    assert axis.base_score(lab, a, 1) == pytest.approx(np.array(right) / 32)
    sft, before = (f"{100 * s.mean():.1f}" for s in (a.score("sft", 64, 60, 1), axis.base_score(lab, a, 1)))
    assert f"In the nearest cell, 64 × 60, SFT stands at {sft} / " in told and f" and the base at {before} / " in told
    assert told.endswith("; the paper's at 37.8 / 73.8 and 14.8 / 67.5, at 44B tokens.")


def test_the_axis_says_who_is_best(made):
    told = " ".join(axis.sentences(Lab(made)))
    assert "Best pass@1 but for SFT-Gold: 64 questions: RL" in told
    assert "pass@32, RL − SFT→RL, 9 cells (questions × passes): whole interval above zero in " in told
    rows = axis.difference_table(Lab(made))[2]
    assert [len(row) for row in rows] == [5] * 10 and rows[-1][0] == "4,000 × 5" and rows[-2][3] == "–"
    above = [row[0] for row in rows if row[1].partition("[")[2][:1] not in ("−", "")]  # the interval begins above 0
    assert (
        f"pass@1, RL − SFT, 10 cells (questions × passes): whole interval above zero in {len(above)}" in told and above
    )


# ---------------------------------------------------------------- beyond the text
def test_by_number_of_events(made):
    """gsm has 2 to 5 events, long 7 to 10, where everyone is worse; the same questions, counted by hand."""
    lab = Lab(made)
    found = beyond.curve(lab, "rl", 1)
    assert list(found) == [2, 3, 4, 5, 7, 8, 9, 10] and {n for _, n in found.values()} == {15} and beyond.edge(lab) == 5
    result = lab.by_seed("rl", LATE)
    q = [r["questions"]["gsm"]["questions"]["flexible"][::4] for r in result.values()]
    assert found[2][0] == pytest.approx(np.mean(q) / 32)
    head, rows = beyond.differences(lab)[1:]
    assert head[1:] == ["within: pass@1", "within: pass@32", "beyond: pass@1", "beyond: pass@32"] and len(rows) == 5
    assert beyond.said(lab).startswith(
        "Pre-training and `gsm` questions have at most 5 events. On longer ones, RL − base"
    )


# ---------------------------------------------------------------- what RL changes
def test_styles_and_answers_without_work(made):
    """An eighth without work, a fifth (6 of 32) in each style."""
    lab = Lab(made)
    found = mechanism.written(lab, "rl", EARLY)
    assert list(found) == [0, 48, 96, 144]
    assert found[0] == {"no work": 1 / 8, **dict.fromkeys(("equations", "nested", "retold", "running"), 6 / 32)}
    row = next(r for r in mechanism.table(lab)[2] if r[:2] == ["8.2M", "RL"])
    assert row[2:] == ["0.00 → 0.50", "0.60", "1.00 → 0.50", "40 → 39", "12 → 12 %"]


def test_a_style_that_dies_out_has_no_share(made):
    """evaluate.py counts the styles that occur: in a figure over steps one that is gone is at 0."""
    lab = Lab(made)
    last = lab.find(method="rl", tokens=EARLY, group="dynamics", split="val", train_step=144)[0]
    del last["result"]["questions"]["gsm"]["styles"]["nested"]
    found = mechanism.written(lab, "rl", EARLY)
    assert found[144]["nested"] == 0 and found[96]["nested"] == 6 / 32 and found[144].keys() == found[0].keys()


def test_what_teaches_nothing_is_told(made):
    """Half of the groups, a quarter of the time."""
    told = mechanism.without_signal(Lab(made))
    assert len(told) == 2 and told[0].startswith("RL from 3.1M: 50 % of the groups are all right or all wrong")
    assert told[1].startswith("RL from 8.2M: ") and told[1].endswith("; sampling is 25 % of a batch's time.")


def test_a_broken_off_run_has_no_log(made):
    """Its last steps are missing: it is left out of means and slopes."""
    lab = Lab(made)
    whole = lab.logs("parallel", EARLY)
    run = next(r for r in lab.runs if (r["method"], r.get("tokens"), r["seed"]) == ("parallel", EARLY, 2))
    lab.kept_rows[run["metrics"]] = lab.rows(run)[:-1]
    assert sorted(lab.logs("parallel", EARLY)) == sorted(set(whole) - {2}) and 2 in whole


def test_without_those_counts_nothing_is_said(made):
    lab = Lab(made)
    for r in lab.evals:
        r["result"]["questions"]["gsm"].pop("styles")
        r["result"]["questions"]["gsm"]["questions"].pop("bare")
    assert mechanism.written(lab, "rl", LATE) == {} and mechanism.table(lab)[2][0][-1] == "–"


# ---------------------------------------------------------------- checks
def test_sensitivity_rows_are_of_other_runs(made):
    """Direct RL at half its rate touches the rows that have it; T 1 those of questions, never general skill."""
    lab = Lab(made)
    views = {name: judged(lab.viewed_as(name)) for name in ("half", "hot")}
    rows = {r[0]: r[1:] for r in tables.sensitivity(judged(lab), views)[2]}
    assert len(rows) == 13
    assert rows["C7 8.2M: pass@32, parallel − SFT"][1] == "–" and rows["C6 8.2M: SFT − base"][1:] == ["–", "–"]
    assert all("[" in cell for cell in rows["C3 8.2M: pass@1, RL − SFT"])


# ---------------------------------------------------------------- rates
def trial(one: float, general: float, error: float = 0.02) -> dict:
    scores = {f"pass@{k}": {"value": one, "stderr": error} for k in (1, 8, 32)}
    return {"questions": {"gsm": {"flexible": scores}}, "general_average": general, "benchmarks": {"facts": {}}}


def test_the_rule_sees_general_skill():
    """0.31 is the best; 0.30 and 0.295 lie within its error, and 0.295 keeps the most. Alike: the lower rate."""
    found = {1e-4: trial(0.2, 0.99), 2e-4: trial(0.295, 0.9), 4e-4: trial(0.3, 0.8), 8e-4: trial(0.31, 0.3)}
    assert tuning.choose(found) == 2e-4
    assert tuning.choose({1e-4: trial(0.3, 0.9), 2e-4: trial(0.31, 0.9)}) == 1e-4 and tuning.choose({}) is None


def test_a_tuning_study_ends_with_its_rates(tmp_path):
    lab = Lab(made_up(tmp_path, "tuning", seed=0))
    told = tuning.page(lab)
    assert told.count("| yes |") == 10 and told.count("base, 0-shot") == 2
    assert "rates at 3.1M: rl=" in told and "rates at 8.2M: rl=" in told
