"""What a run shows while it trains: validation, samples, a run without a signal.   pytest -q tests/test_watching.py"""

import json

import pytest
from tiny import BYTES, assert_same, bigram_model, chain_table, load, read_jsonl, write_ckpt, write_jsonl, write_world

from data.checkpoints import load_checkpoint
from data.files import counted
from data.math_qa import load_questions
from data.pass_at_k import readable
from data.prepare_corpus import prepare
from model import GPT

RL = "--prompts-per-step 2 --group-size 4 --max-new-tokens 14 --lr 0.02 --warmup-steps 0".split()
STAGES = {
    "train_rl": RL,
    "train_sft": "--batch-size 3 --lr 0.02 --warmup-steps 0".split(),
    "merge": [*RL, "--batch-size", "3", "--sync-every", "2"],
}


def guesser(answers: bytes) -> GPT:
    """A model that answers every question with one of these digits, in a box."""
    table = chain_table("\\boxed{2}", ":")
    table[ord("{"), ord("2")] = -30.0
    for digit in answers:
        table[ord("{"), digit], table[digit, ord("}")] = 32.0, 30.0
    return bigram_model(table)


@pytest.fixture(scope="module")
def guesses(tmp_path_factory):
    """A world without test questions whose answers are 1, 2 and 3, and a checkpoint that guesses among these."""
    folder = tmp_path_factory.mktemp("guesses")
    data = write_world(folder / "world")
    rows = [
        {
            "problem": f"{i}?",
            "generated_solution": f"#### {1 + i % 3}",
            "expected_answer": str(1 + i % 3),
            "problem_source": "gsm",
        }
        for i in range(20)
    ]
    write_jsonl(data / "train.jsonl", rows[:8])
    write_jsonl(data / "val.jsonl", rows[8:])
    (data / "test.jsonl").unlink()
    return data, write_ckpt(folder / "ckpt_000001.pt", guesser(b"123"))


def measured(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(("perf/", "eval/"))} for row in rows]


@pytest.mark.parametrize("name", STAGES)
def test_validation_changes_no_number(ok, guesses, tmp_path, name):
    """6 steps with and without: the same weights and metrics, bit for bit, and scores at steps 0, 4 and 6."""
    data, init = guesses
    flags = ["--init", init, "--data", data, "--steps", "6", "--save-every", "2", *STAGES[name]]
    ok(name, *flags, "--out", tmp_path / "plain")
    watch = "--eval-every 4 --eval-questions 9 --sample-every 3 --max-new-tokens 14".split()
    shown = ok(name, *flags, *watch, "--out", tmp_path / "watched").out
    a, b = (load(tmp_path / run / "ckpt_000006.pt") for run in ("plain", "watched"))
    for key in ("model", "optimizer"):
        assert_same(a[key], b[key], key)
    plain, watched = (read_jsonl(tmp_path / run / "metrics.jsonl") for run in ("plain", "watched"))
    assert measured(plain) == measured(watched)[1:] and not any("eval/pass@1" in row for row in plain)
    scored = {row["step"]: row for row in watched if "eval/pass@1" in row}
    assert list(scored) == [0, 4, 6]
    for row in scored.values():
        assert row["eval/format"] == 1.0 and (9 * row["eval/pass@1"]) == pytest.approx(round(9 * row["eval/pass@1"]))
    assert 0 < scored[0]["eval/pass@1"] < 1
    assert "step 00000/00006 | pass@1 " in shown and shown.count("| format 100%") == 3
    samples = [row["step"] for row in read_jsonl(tmp_path / "watched/samples.jsonl")]
    assert sorted(set(samples)) == [1, 3, 6]


@pytest.mark.parametrize("name", STAGES)
def test_validation_is_evaluation(ok, guesses, tmp_path, name):
    """eval/pass@1 and eval/format are what evaluate.py finds on the same questions, one sample each."""
    data, init = guesses
    watch = "--steps 2 --eval-every 1 --eval-questions 10 --seed 5 --max-new-tokens 14".split()
    ok(name, "--init", init, "--data", data, *STAGES[name], *watch, "--out", tmp_path / "run")
    rows = {row["step"]: row for row in read_jsonl(tmp_path / "run/metrics.jsonl")}
    for step, ckpt in ((0, init), (2, tmp_path / "run/ckpt_000002.pt")):
        same = "--split val --limit 10 --n-samples 1 --k 1 --max-new-tokens 14 --seed 5 --tasks gsm".split()
        ok("evaluate", "--ckpt", ckpt, "--data", data, *same, "--out", tmp_path / "found.json")
        found = json.loads((tmp_path / "found.json").read_text())["questions"]["gsm"]
        assert rows[step]["eval/pass@1"] == found["flexible"]["pass@1"]["value"], step
        assert rows[step]["eval/format"] == found["format_rate"]
    assert rows[0]["eval/pass@1"] != rows[2]["eval/pass@1"]  # the model has moved, so step 2 is not step 0's number


def test_a_resumed_run_is_not_scored_at_its_start_again(ok, guesses, tmp_path):
    data, init = guesses
    flags = "--steps 4 --save-every 2 --eval-every 2".split()
    ok("train_rl", "--init", init, "--data", data, *RL, *flags, "--out", tmp_path / "run")
    whole = read_jsonl(tmp_path / "run/metrics.jsonl")
    (tmp_path / "run/ckpt_000004.pt").unlink()
    ok("train_rl", "--resume", tmp_path / "run/ckpt_000002.pt")
    again = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert measured(again) == measured(whole) and [r.get("eval/pass@1") for r in again] == [
        r.get("eval/pass@1") for r in whole
    ]


def test_validation_refuses_before_work_starts(refused, guesses, tmp_path):
    data, init = guesses
    start = ("--init", init, "--data", data, "--out", tmp_path / "run")
    refused("train_sft", *start, "--eval-every", "1", "--max-new-tokens", "500", words=("exceeds", "lower"))
    refused("train_sft", *start, "--eval-every", "1", "--eval-questions", "0", words=("--eval-questions 0",))
    refused("train_sft", *start, "--max-new-tokens", "14", words=("--max-new-tokens 14", "--sample-every"))
    refused("train_rl", *start, "--sample-every", "-1", words=("--sample-every -1",))
    refused("merge", *start, "--eval-questions", "9", words=("--eval-questions 9", "--eval-every"))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------- samples
def test_samples_by_default(ok, guesses, tmp_path):
    """RL: of the first step and of each checkpoint. SFT: none."""
    data, init = guesses
    flags = ("--init", init, "--data", data, "--steps", "5", "--save-at", "3")
    shown = ok("train_rl", *flags, *RL, "--out", tmp_path / "rl").out
    rows = read_jsonl(tmp_path / "rl/samples.jsonl")
    assert sorted({row["step"] for row in rows}) == [1, 3, 5]
    assert shown.count("    prompt:     Q: ") == 3 and "    completion: \\boxed{" in shown and "    gold " in shown
    shown = ok("train_sft", *flags, *STAGES["train_sft"], "--out", tmp_path / "sft").out
    assert not (tmp_path / "sft/samples.jsonl").exists() and "prompt:" not in shown


def test_samples_of_sft_are_of_validation_questions(ok, guesses, tmp_path):
    data, init = guesses
    flags = ("--init", init, "--data", data, "--steps", "2", *STAGES["train_sft"])
    ok("train_sft", *flags, "--sample-every", "2", "--max-new-tokens", "14", "--out", tmp_path / "run")
    rows = read_jsonl(tmp_path / "run/samples.jsonl")
    assert [row["step"] for row in rows] == [1] * 3 + [2] * 3
    assert [row["prompt"] for row in rows[:3]] == [f"Q: {i}?\nA:" for i in (8, 9, 10)]
    assert all(row["reward"] == (row["extracted"] == row["gold"]) for row in rows)
    assert "eval/pass@1" not in read_jsonl(tmp_path / "run/metrics.jsonl")[-1]


def test_a_sample_is_readable():
    row = {"prompt": "Q: one\ntwo?\nA:", "completion": " x" * 400, "extracted": None, "gold": "7", "reward": 0.0}
    lines = readable(row).splitlines()
    assert lines[:3] == ["    prompt:     Q: one", "                two?", "                A:"]
    assert lines[3].startswith("    completion: x x x") and lines[3].endswith("x ...") and len(lines[3]) < 330
    assert lines[4] == "    gold 7, extracted None, reward 0"


# ------------------------------------------------------------------------------------------------------- a signal
@pytest.mark.parametrize("name", ["train_rl", "merge"])
@pytest.mark.parametrize(("answers", "advice"), [(b"9", "SFT first"), (b"2", "harder"), (b"123", None)])
def test_a_run_without_a_signal_says_so(ok, guesses, tmp_path, name, answers, advice):
    """All wrong: easier questions or more samples; all right: harder ones; some of both: nothing."""
    data = tmp_path / "world"
    write_world(data)
    rows = [{"problem": f"{i}?", "generated_solution": "#### 2", "expected_answer": "2"} for i in range(8)]
    write_jsonl(data / "train.jsonl", [{**row, "problem_source": "gsm"} for row in rows])
    init = write_ckpt(tmp_path / "ckpt_000001.pt", guesser(answers))
    flags = [*STAGES[name], "--lr", "0", *(["--sft-lr", "0"] if name == "merge" else [])]
    shown = ok(name, "--init", init, "--data", data, "--steps", "4", *flags, "--out", tmp_path / "run").out
    last = shown.splitlines()[-1]
    assert ("no group had both" in last) == bool(advice) and (not advice or advice in last), last


def test_slow_work_is_counted(monkeypatch, capsys):
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr("data.files.time.time", lambda: next(clock))
    assert list(counted(list(range(6)), "questions")) == list(range(6))
    assert capsys.readouterr().out.splitlines() == ["questions 2/6 | 12 s left", "questions 5/6 | 2 s left"]
    assert list(counted(iter("abc"), "rows", seconds=1)) == list("abc")
    assert capsys.readouterr().out.splitlines() == ["rows 0", "rows 1", "rows 2"]


# ------------------------------------------------------------------------------------------------------- the head
def test_the_head_says_what_runs_where(ok, guesses, tmp_path):
    """Device and why, model and its origin, run folder and next checkpoint, rows of a step, in this order."""
    data, init = guesses
    start = ("--init", init, "--data", data, "--steps", "4", "--save-at", "3")
    heads = {
        "train_rl": "8 gsm questions | 2 questions x 4 = 8 completions a step, 1 update each | a loss near 0 is normal",
        "train_sft": "8 examples of 8 gsm questions | 4 steps of 3: 1.5 epochs",
        "merge": "8 gsm questions | RL 2 questions x 4 completions and SFT 3 of 8 examples a step",
    }
    for name, questions in heads.items():
        flags = [*STAGES[name][: -2 if name == "merge" else None], "--device", "cpu", "--dtype", "float32"]
        shown = ok(name, *start, *flags, "--out", tmp_path / name).out.splitlines()
        assert shown[0].startswith("device cpu | dtype float32 (asked for) | kernels torch (")
        assert shown[1] == f"model 0.44M parameters | {init} | train_pretrain step 3, 0.00M pre-training tokens"
        assert shown[2] == f"run folder {tmp_path / name} | 4 steps, checkpoints at 3 4"
        assert shown[3].startswith(questions), shown[3]
        assert f"its curves: python -m study.plot {tmp_path / name} --out {tmp_path / name}/curves.png" in shown
    shown = ok("train_sft", *start, *STAGES["train_sft"], "--out", tmp_path / "a b #1").out
    assert f"study.plot '{tmp_path}/a b #1' --out '{tmp_path}/a b #1/curves.png'" in shown  # can be pasted
    small = "--block-size 32 --batch-tokens 64 --steps 3 --save-at 2 --eval-tokens 64".split()
    shown = ok("train_pretrain", "--data", data, *small, "--out", tmp_path / "base").out.splitlines()
    assert shown[1] == f"run folder {tmp_path / 'base'} | 3 steps, checkpoints at 2 3"
    assert "| 2 rows x 32 = 64 tokens a step |" in shown[2]


def test_a_large_checkpoint_is_named_before_it_is_read(guesses, monkeypatch, capsys):
    _, init = guesses
    load_checkpoint(init)
    assert not capsys.readouterr().out
    monkeypatch.setattr("data.checkpoints.BIG", 1000)
    load_checkpoint(init)
    assert capsys.readouterr().out == f"reading {init}, 0.0 GB\n"


def test_slow_reading_and_tokenizing_are_counted(guesses, monkeypatch, capsys, tmp_path):
    data, _ = guesses
    clock = iter(range(0, 10_000, 6))
    monkeypatch.setattr("data.files.time.time", lambda: next(clock))
    load_questions(data, "gsm", "train")
    assert "reading train.jsonl: rows 1\n" in capsys.readouterr().out
    (tmp_path / "text.txt").write_text("A line of text.\n" * 5000)
    prepare({"general": [tmp_path / "text.txt"]}, tmp_path / "out", BYTES, block_size=16, val_fraction=0.5)
    assert "tokenizing general.bin: documents 1\n" in capsys.readouterr().out
