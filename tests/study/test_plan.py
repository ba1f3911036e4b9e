"""What a study asks for, and in which order.   pytest -q tests/study/test_plan.py"""

from collections import Counter
from itertools import product

import pytest

from study.plan import make_plan
from study.tasks import words


@pytest.mark.parametrize("preset", ["smoke", "laptop", "lab", "real-small"])
def test_every_run_has_a_name_and_comes_after_what_it_needs(preset):
    tasks = make_plan(preset, 1).tasks
    assert len({t.name for t in tasks}) == len(tasks)
    places = {id(t): i for i, t in enumerate(tasks)}
    assert all(places[id(parent)] < places[id(t)] for t in tasks for parent, _ in t.inputs.values())


def test_the_number_of_runs_stays():
    """Results are committed under these names."""
    assert [len(make_plan(preset, 1).tasks) for preset in ("smoke", "laptop", "lab")] == [28, 76, 340]


def test_the_primary_comparisons_come_first():
    """Cut off anywhere, the lab holds whole methods seed by seed: three seeds of C1, C2, C5, C6, C7 at early and late,
    then K1, Gold, more seeds, the small pool of C3, C4, C9, C8, K3, the rest of C3, K2, K4, C10, C5."""
    plan = make_plan("lab", 1)
    blocks = list(dict.fromkeys(t.block for t in plan.tasks))
    keys = ["pre-training", "base, few-shot", "base, shots", *(f"C1 C2 C5 C6 C7: seed {s}" for s in range(1, 4))]
    keys += ["K1", "SFT-Gold", *(f"C1 C2 C5 C6 C7: seed {s}" for s in (4, 5)), "C3: 250", "C4: base", "C9"]
    keys += ["C8", "K3", "C3: 1000", "K2", "K4", "C10", "C5: T 1", "every method at another"]
    places = [next(i for i, b in enumerate(blocks) if b.startswith(key)) for key in keys]
    assert places == sorted(places)
    first = [t for t in plan.tasks if t.block in blocks[: places[5] + 1] and t.kind == "eval"]
    for seed, start, method in product((1, 2, 3), plan.primary, ("rl", "sft", "sft_rl", "parallel")):
        want = dict(seed=seed, tokens=start.tokens, split="test", group="main", variant="")
        assert any(t.method == method and want.items() <= t.record.items() for t in first), (method, want)


def test_the_lab_asks_for_what_the_claims_need():
    """One run of each kind that docs/analysis_plan.md names, three seeds of the controls."""
    plan = make_plan("lab", 1)
    tasks, p = plan.tasks, plan.p
    count = Counter((t.record.get("group"), t.method, t.record.get("variant")) for t in tasks if t.kind == "train")
    for variant, seeds in dict(sync_end=3, plain_sum=1, one_loss=1, alternate=3).items():
        assert count["k3", "parallel", variant] == seeds
    for method, variant in (("rl", "half_rate"), ("sft", "half_rate"), ("sft", "parallels_rate")):
        assert count["k3", method, variant] == 3
    same = all(p["rl"][k] == p["sft_rl"][k] for k in ("lr", "steps"))  # then the main SFT→RL has RL's own settings
    assert count["k2", "sft_rl", "own"] == 3 * (not same)
    assert count["k2", "rl", "total_updates"] == 1
    assert (count["k4", "sft", "token_sum"], count["k4", "rl", "4_updates"]) == (1, 1)
    assert sum(n for (group, *_), n in count.items() if group == "k1") == 9  # 5, 2 and 2
    assert count["c3", "rl", "pool250"] == count["c3", "gold", "pool250many"] == count["c3", "sft", "pool250few"] == 3
    assert count["c4", "rl", "hard"] == 5 and count["c8", "rl", ""] == 3
    for kind, hard, easy in (("many", 3, 1), ("few", 3, 1), ("long", 1, 0)):
        assert (count["c9", "rl", f"hard_{kind}"], count["c9", "rl", f"easy_{kind}"]) == (hard, easy)
    for method, seeds in dict(rl=9, sft=9, sft_rl=9, parallel=9, gold=4).items():  # of the primary comparisons
        main = [t for t in tasks if t.kind == "train" and t.method == method and t.record["group"] == "main"]
        assert sum(t.record["tokens"] in (2048000, 8192000) and t.record["base"] == "base" for t in main) == seeds
    asked = [t for t in tasks if t.record.get("group") == "wide"]
    assert len(asked) == 10 and all(t.flags["k"][-1] == 256 for t in asked)
    sync = [t for t in tasks if t.kind == "train" and t.record["variant"] == "sync_end"]
    assert all(t.flags["steps"] % t.flags["sync_every"] == 0 for t in sync)


def test_what_needs_what():
    tasks = {t.name: t for t in make_plan("smoke", 1).tasks}
    rl, sft = tasks["sft_rl-base-154k-s1"], tasks["sft-base-154k-s1"]
    assert rl.needs(sft) and rl.needs(tasks["pretrain-base"]) and not sft.needs(rl)
    assert not rl.needs(tasks["rl-base-154k-s1"])


def test_words():
    assert words({"batch_size": 64, "gold": True, "k": [1, 8]}) == ["--batch-size", "64", "--gold", "--k", "1", "8"]


def test_real_data_takes_every_path_once():
    tasks = make_plan("real-small", 1).tasks
    assert [t.method for t in tasks if t.kind == "train"] == ["rl", "sft", "sft_rl", "parallel"]
    for task in tasks[1:]:
        asked = task.flags["tasks"] if task.kind == "eval" else [task.flags["task"]]
        assert asked[0] == "gsm8k" and len(asked) in (1, 7) and "reference" not in task.inputs
    assert sum(len(t.flags["tasks"]) == 7 for t in tasks if t.kind == "eval") == 5  # but the base 0-shot
    assert tasks[0].cost == 450  # the preset's own, not the world's
