"""What a study asks for, and in which order.   pytest -q tests/study/test_plan.py"""

from collections import Counter
from itertools import product

import pytest

from study.clock import there, told, wall_seconds
from study.plan import METHODS, make_plan
from study.presets import FASTER
from study.tasks import Task, words

PRESETS = ["smoke", "laptop", "lab", "tuning", "real-small"]


def minutes(preset: str, jobs: int = 2) -> list[int]:
    """Of both machines."""
    return [int(word) for word in told(make_plan(preset, 1).tasks, jobs).split() if word.isdigit()]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_run_has_a_name_and_comes_after_what_it_needs(preset):
    tasks = make_plan(preset, 1).tasks
    assert len({t.name for t in tasks}) == len(tasks)
    places = {id(t): i for i, t in enumerate(tasks)}
    assert all(places[id(parent)] < places[id(t)] for t in tasks for parent, _ in t.inputs.values())
    for t in tasks:  # a file that is written: the last, or one that --save-at names
        for parent, file in t.inputs.values():
            if parent.kind != "eval" and file != parent.out:
                assert int(file[5:11]) in parent.flags["save_at"], (t.name, file)


def test_the_number_of_runs_stays():
    """Results are committed under these names."""
    assert [len(make_plan(preset, 1).tasks) for preset in PRESETS] == [18, 35, 292, 63, 11]


def test_the_time_allowed():
    """Two cores: laptop 30 minutes, lab 240, with bfloat16. Without, a virtual machine took three times as long."""
    assert minutes("laptop")[0] <= 30 and minutes("lab")[0] <= 160 and minutes("tuning")[0] <= 70
    assert all(slow < 3.2 * fast for fast, slow in map(minutes, ("laptop", "lab")))


def test_the_primary_comparisons_come_first():
    """Cut off anywhere, the lab holds whole pre-trainings; then what decides, the other checkpoints, the checks."""
    plan = make_plan("lab", 1)
    blocks = list(dict.fromkeys(t.block for t in plan.tasks))
    keys = ["pre-training", *(f"C1 C2 C3 C5 C6 C7: seed {s}, {at}" for s in (1, 2, 3) for at in ("late", "early"))]
    keys += ["the way of RL", "what decides", "C1 C10: seed 1", "sensitivity: seed 1", "C8", "C9", "base at other"]
    places = [next(i for i, b in enumerate(blocks) if b.startswith(key)) for key in keys]
    assert places == sorted(places)
    assert [t.name for t in plan.tasks[:2]] == ["pretrain-s1", "pretrain-s2"]  # side by side


def test_a_seed_is_the_whole_way():
    """Every method from both checkpoints of each of three pre-trainings, with that pre-training's seed."""
    plan = make_plan("lab", 1)
    main = [t for t in plan.tasks if t.kind == "eval" and t.record["group"] == "main" and t.record["split"] == "test"]
    for seed, tokens, method in product((1, 2, 3), (3072000, 8192000), [*METHODS, "base"]):
        want = dict(seed=seed, pretraining=seed, tokens=tokens, variant="")
        assert any(t.method == method and want.items() <= t.record.items() for t in main), want
    trained = [t for t in plan.tasks if t.kind == "train" and t.record["group"] != "c8"]
    assert all(t.flags["seed"] == t.record["pretraining"] for t in trained)
    others = [t for t in plan.tasks if t.kind == "train" and t.record["group"] == "c8"]
    assert [(t.flags["seed"], t.record["pretraining"]) for t in others] == [(2, 1), (3, 1)]


def test_one_pool_for_every_method():
    """250 questions for every method: SFT of 24 passes, SFT→RL from 5 of them, Gold of as many updates; at the early
    checkpoint three times the batches."""
    plan = make_plan("lab", 1)
    main = [t for t in plan.tasks if t.kind == "train" and t.record["group"] == "main"]
    assert {t.flags["n_questions"] for t in main} == {250}
    assert {tuple(t.flags["save_at"]) for t in main if t.method in ("sft", "gold")} == {(20, 94)}
    assert {t.inputs["init"][1] for t in main if t.method == "sft_rl"} == {"ckpt_000020.pt"}
    for t in main:
        if t.method in ("rl", "sft_rl", "parallel"):
            assert t.flags["steps"] == (144 if t.record["tokens"] == 3072000 else 48), t.name
    starts = [t for t in plan.tasks if t.record.get("variant") == "start" and t.record["group"] == "main"]
    assert len(starts) == 3 * 2 + 2 and all(t.inputs["ckpt"][1] == "ckpt_000020.pt" for t in starts)


def test_the_axis_has_every_cell_once():
    """Pool × passes; those of the main runs are not run again."""
    plan = make_plan("lab", 1)
    cells = Counter(
        (t.method, t.record["variant"]) for t in plan.tasks if t.kind == "eval" and t.record["group"] == "axis"
    )
    assert set(cells.values()) == {1}
    for method in ("rl", "parallel"):
        assert {v for m, v in cells if m == method} == {"64", "1000", "4000"}
    for method in ("sft", "gold"):
        want = {f"{n}x{p}" for n in (64, 1000) for p in (5, 24, 60)} | {"250x60", "4000x5"}
        want = want if method == "sft" else (want | {"250x5"}) - {"1000x60"}
        assert {v for m, v in cells if m == method} == want
    assert {v for m, v in cells if m == "sft_rl"} == {
        *(f"64x{p}" for p in (5, 24, 60)), "250x24", "250x60", "1000x5", "1000x24", "4000x5",
    }  # fmt: skip
    steps = {t.record["variant"]: t.inputs["ckpt"][1] for t in plan.tasks if t.name.startswith("sft-8.2M-s1-1000x")}
    assert steps == {"1000x5": "ckpt_000079.pt", "1000x24": "ckpt_000375.pt", "1000x60": "ckpt_000938.pt"}


def test_longer_questions_are_asked_late_alone():
    tasks = make_plan("lab", 1).tasks
    longer = [t for t in tasks if "long" in t.flags.get("tasks", [])]
    assert {t.record["tokens"] for t in longer} == {8192000} and {t.record["group"] for t in longer} == {"main"}
    assert {t.method for t in longer} == {"base", *METHODS}


def test_checks_of_the_main_cells():
    tasks = make_plan("lab", 1).tasks
    half = [t for t in tasks if t.kind == "train" and t.record["group"] == "half"]
    whole = {(t.record["tokens"], t.record["seed"]): t.flags["lr"] for t in tasks
             if t.kind == "train" and t.method == "rl" and t.record["group"] == "main"}  # fmt: skip
    assert len(half) == 3 + 1 and all(t.flags["lr"] * 2 == whole[t.record["tokens"], t.record["seed"]] for t in half)
    hot = [t for t in tasks if t.record.get("group") == "hot"]
    assert len(hot) == 3 * 2 * (2 + len(METHODS) + 1) and all(t.flags["temperature"] == 1.0 for t in hot)


def test_tuning_tries_as_many_rates_for_each_method_on_validation():
    tasks = make_plan("tuning", 0).tasks
    count = Counter((t.method, t.record["tokens"]) for t in tasks if t.kind == "train")
    assert set(count.values()) == {3} and len(count) == 10
    assert all(t.flags["split"] == "val" and len(t.flags["tasks"]) == 7 for t in tasks if t.kind == "eval")
    assert {t.flags["seed"] for t in tasks} == {0}


def test_what_needs_what():
    tasks = {t.name: t for t in make_plan("smoke", 1).tasks}
    rl, sft = tasks["sft_rl-154k-s1"], tasks["sft-154k-s1"]
    assert rl.needs(sft) and rl.needs(tasks["pretrain-s1"]) and not sft.needs(rl)
    assert not rl.needs(tasks["rl-154k-s1"])


def test_words():
    assert words({"batch_size": 64, "gold": True, "k": [1, 8]}) == ["--batch-size", "64", "--gold", "--k", "1", "8"]


def test_real_data_takes_every_path_once():
    tasks = make_plan("real-small", 1).tasks
    assert [t.method for t in tasks if t.kind == "train"] == ["sft", "rl", "sft_rl", "parallel"]
    for task in tasks[1:]:
        asked = task.flags["tasks"] if task.kind == "eval" else [task.flags["task"]]
        assert asked[0] == "gsm8k" and len(asked) in (1, 7) and "reference" not in task.inputs
    assert sum(len(t.flags["tasks"]) == 7 for t in tasks if t.kind == "eval") == 5  # but the base 0-shot
    assert tasks[0].cost == 450  # the preset's own, not the world's


# ---------------------------------------------------------------- the clock
def task(name: str, cost: float, **inputs) -> Task:
    kind = "pretrain" if name.startswith("pretrain") else "train"
    return Task(name, kind, "", "x.py", {"steps": 100}, "ckpt_000100.pt", cost, inputs)


def test_the_clock_by_hand():
    """100 s of pre-training; from its half 30 s, from its end 20 s: 120 on two cores, 150 on one. A second pre-training
    that stands last waits for nothing on the idle core only when nothing else runs."""
    base = task("pretrain-1", 100)
    half, whole = (task(n, c, init=(base, f)) for n, c, f in (("a", 30, "ckpt_000050.pt"), ("b", 20, "ckpt_000100.pt")))
    tasks = [base, half, whole]
    assert wall_seconds(tasks, 2, lambda t: t.cost) == 120 and wall_seconds(tasks, 1, lambda t: t.cost) == 150
    assert there(base, "ckpt_000050.pt", {base: 10.0}, {base: 100.0}) == 60
    other = task("pretrain-2", 100)
    assert wall_seconds([base, other, half, whole], 2, lambda t: t.cost) == 130
    assert wall_seconds([base, half, whole, other], 2, lambda t: t.cost) == 200


def test_the_clock_of_a_run_with_two_threads():
    """It takes both cores of two, and of three leaves one: what starts from its half has that one."""
    base = task("pretrain-1", 100)
    base.threads = 2
    half, whole = (task(n, c, init=(base, f)) for n, c, f in (("a", 30, "ckpt_000050.pt"), ("b", 20, "ckpt_000100.pt")))
    seconds = {jobs: wall_seconds([base, half, whole], jobs, lambda t: t.cost) for jobs in (1, 2, 3)}
    took = 100 / FASTER[2]
    assert seconds == {1: 150, 2: pytest.approx(took + 30), 3: pytest.approx(took + 20)}
    last = task("c", 5 * FASTER[2])
    last.threads = 2  # waits for both cores, and what stands behind it waits too
    assert wall_seconds([task("a", 30), last, task("b", 20)], 2, lambda t: t.cost) == pytest.approx(55)


def test_what_is_left_starts_at_once_from_what_is_there():
    """Without its pre-training, which is finished, a study of one core takes the other runs' seconds."""
    tasks = make_plan("smoke", 1).tasks
    left = [t for t in tasks if t.kind != "pretrain"]
    assert len(left) < len(tasks)
    assert wall_seconds(left, 1, lambda t: 2.0) == 2.0 * len(left) and wall_seconds([], 1, len) == 0
