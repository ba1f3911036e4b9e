"""Test questions in prepared data.   pytest -q tests/data/test_contamination.py"""

import json

import numpy as np
import pytest
from made_questions import made_rows, prepared, write
from tiny import BYTES

from data import contamination, prepare
from data.contamination import Index, questions_of, runs
from data.prepare_corpus import prepare as prepare_corpus
from data.questions import load_questions, questions_hash
from data.tokenizer import decode
from data.tokens import load_meta, open_tokens

LONG = "A baker sells 12 loaves of rye bread and 7 rolls each day for 3 days . How many items ?"  # 18 words
MIDDLE = "How many apples does a tree of 9 branches hold"  # 10 words
SHORT = "What is 2 + 2?"  # 4


@pytest.fixture
def command(stage):
    """python -m data.prepare contamination .."""
    return lambda *flags: stage("data.prepare", "contamination", *flags)


# ---------------------------------------------------------------- what counts
def test_runs_by_hand():
    ids = np.array([3, 5, 7, 9], np.uint64)
    base = int(contamination.BASE)
    found = dict(runs(ids, [1, 3]))
    expected = [(a * base**2 + b * base + c) % 2**64 for a, b, c in ((3, 5, 7), (5, 7, 9))]
    assert found[1].tolist() == [3, 5, 7, 9] and found[3].tolist() == expected
    assert not dict(runs(ids[:2], [3])) and not dict(runs(ids, []))


def test_what_is_found_whole_in_part_or_not():
    index = Index([LONG, MIDDLE, SHORT])
    words = LONG.split()
    other = "once upon a time".split()
    texts = {
        "the words of it, whatever case and marks": (LONG.upper().replace(" ", ",  "), {0: True}),
        "inside a longer text": (" ".join([*other, LONG, *other]), {0: True}),
        "13 words in a row": (" ".join([*other, *words[2:15], *other]), {0: False}),
        "12 words in a row": (" ".join([*other, *words[2:14], *other]), {}),
        "13 words, one of them another": (" ".join([*words[:6], "oat", *words[7:15]]), {}),
        "a question of 10 words inside": (f"so {MIDDLE} then", {1: True}),
        "9 of its words": (MIDDLE.rsplit(" ", 1)[0], {}),
        "a short question": ("what is 2, 2", {2: True}),
        "a short question inside": (f"{SHORT} It is 4", {}),
        "nothing": ("...", {}),
    }
    for what, (text, expected) in texts.items():
        assert {test: whole for (_, test), whole in index.find([text]).items()} == expected, what
    together = index.find([text for text, _ in texts.values()])
    expected = {(n, test): whole for n, (_, found) in enumerate(texts.values()) for test, whole in found.items()}
    assert together == expected
    assert not index.find([" ".join(words[:9]), " ".join(words[9:])])  # no run goes from a text to the next
    assert not Index([]).find([LONG]) and not index.find([])


def test_every_kind_of_test_file_gives_its_questions(tmp_path, monkeypatch):
    monkeypatch.setenv("REAL_DATA", str(tmp_path))
    rows = {
        "gsm8k/test.jsonl": {"question": "Q one?", "answer": "#### 1"},
        "math/math500_test.jsonl": {"problem": "P", "solution": r"\boxed{1}"},
        "evals/arc_easy_test.jsonl": {"question": "Why?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"},
        "evals/hellaswag_val.jsonl.gz": {"activity_label": "Cook", "ctx_a": "She: cooks", "ctx_b": "and"}
        | {"endings": ["a", "b"], "label": "0"},
        "mine.jsonl": {"text": "plain"},
        "omi.jsonl": made_rows()[0],
    }
    for name, row in rows.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    found = [questions_of(name) for name in ("gsm8k", "math", "arc_easy", "hellaswag")]
    assert found == [["Q one?"], ["P"], ["Why?"], ["She: cooks And"]]
    files = [questions_of(str(tmp_path / name)) for name in ("mine.jsonl", "omi.jsonl", "gsm8k/test.jsonl")]
    assert files == [["plain"], ["What is 0 + 0?"], ["Q one?"]]


# ---------------------------------------------------------------- folders
def test_questions_are_counted_and_left_out(command, tmp_path):
    rows = made_rows()
    rows[5]["problem"], rows[21]["problem"] = LONG, "Please: " + LONG.lower()  # one row each
    prepared(tmp_path / "data", [write(tmp_path / "rows.jsonl", rows)])
    tests = write(tmp_path / "tests.jsonl", [{"text": LONG}, {"text": "What is 10 + 3?"}, {"text": MIDDLE}])
    before = {split: load_questions(tmp_path / "data", "openmath", split) for split in ("train", "val")}
    shown = command(tmp_path / "data", "--tests", tests)
    assert shown.code == 0 and "3 of 62 questions hold a test question" in shown.out, shown
    report = json.loads((tmp_path / "data" / "contamination.json").read_text())
    assert report["tests"][str(tests)] == {"questions": 3, "short": 1, "whole": [0, 1], "in part": []}
    assert len(load_questions(tmp_path / "data", "openmath", "train")) == len(before["train"])

    assert "left out" in command(tmp_path / "data", "--tests", tests, "--exclude").out
    after = {split: load_questions(tmp_path / "data", "openmath", split) for split in ("train", "val")}
    left = [q.problem for split in after.values() for q in split]
    assert len(left) == 59 and not {LONG, "Please: " + LONG.lower(), "What is 10 + 3?"} & {*left}
    assert questions_hash(after["train"]) != questions_hash(before["train"])
    other = write(tmp_path / "other.jsonl", [{"text": "What is 11 + 4?"}])
    command(tmp_path / "data", "--tests", other, "--exclude")  # takes the place of the first
    again = {q.problem for split in ("train", "val") for q in load_questions(tmp_path / "data", "openmath", split)}
    assert LONG in again and "What is 11 + 4?" not in again and len(again) == 61
    assert len([*(tmp_path / "data").glob("excluded_*")]) == 1


def documents(folder) -> dict[str, list[str]]:
    meta = load_meta(folder)
    texts = {name: decode(BYTES, open_tokens(folder, meta, name).tolist()) for name in meta["files"]}
    return {name: text.split("<|endoftext|>")[1:] for name, text in texts.items()}


def test_documents_are_counted_and_left_out(command, tmp_path, monkeypatch):
    monkeypatch.setitem(contamination.PIECE, "tokens", 500)
    general = [{"text": f"Document {n} is about {n % 5} birds. " * 4} for n in range(60)]
    general[7]["text"] += LONG
    math = [{"text": f"{n} plus {n} equals {2 * n}, as everyone knows by now. " * 2} for n in range(60)]
    math[0]["text"] = math[59]["text"] = f"Long ago, {LONG} The answer is 57."
    parts = {"general": [write(tmp_path / "g.jsonl", general)], "math": [write(tmp_path / "m.jsonl", math)]}
    prepare_corpus(parts, tmp_path / "data", BYTES, val_fraction=0.3, block_size=64, seed=3)
    tests, clean = write(tmp_path / "tests.jsonl", [{"text": LONG}]), tmp_path / "clean"
    before, meta = documents(tmp_path / "data"), load_meta(tmp_path / "data")
    shown = command(tmp_path / "data", "--tests", tests, "--exclude", "--out", clean)
    assert shown.code == 0 and "3 of 120 documents hold a test question" in shown.out, shown
    expected = {name: [t for t in texts if "loaves of rye" not in t] for name, texts in before.items()}
    assert documents(clean) == expected and sum(map(len, expected.values())) == 117
    in_val = sum(len(t.encode()) + 1 for t in before["val.bin"] if t.startswith("Long ago"))
    assert load_meta(clean)["val_math"] == meta["val_math"] - in_val
    assert load_meta(clean)["mixes"] == meta["mixes"] and "0 of 117" in command(clean, "--tests", tests).out


def test_workers_change_nothing(tmp_path, monkeypatch):
    rows = made_rows()
    rows[5]["problem"] = rows[21]["problem"] = LONG
    prepared(tmp_path / "data", [write(tmp_path / "rows.jsonl", rows)])
    monkeypatch.setitem(contamination.PIECE, "questions", 7)
    tests = {"a": [LONG, MIDDLE], "b": ["What is 11 + 4?"]}
    one, two = (contamination.check(tmp_path / "data", tests, workers) for workers in (1, 2))
    assert one == two and len(one["found"]) == 2


def test_bad_input_is_one_sentence(command, world, tmp_path, monkeypatch):
    monkeypatch.setenv("REAL_DATA", str(tmp_path))
    prepared(tmp_path / "data", [write(tmp_path / "rows.jsonl", made_rows())])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    write(tmp_path / "t.jsonl", [{"text": LONG}])
    tests = ("--tests", tmp_path / "t.jsonl")
    for flags, words in (
        ((tmp_path / "data",), "no test questions; set REAL_DATA"),
        ((tmp_path / "data", "--tests", "gsm9k"), "--tests gsm9k: no such task or file"),
        ((tmp_path / "data", *tests, "--exclude", "--out", tmp_path / "new"), "a folder of questions: drop --out"),
        ((world, *tests, "--exclude"), "a folder of token files: give --out DIR"),
        ((world, *tests, "--exclude", "--out", tmp_path / "full"), "is not empty; give a new folder"),
        ((world, *tests, "--out", tmp_path / "new"), "--out goes with --exclude"),
        ((tmp_path / "none", *tests), "no such data folder"),
    ):
        ended = command(*flags)
        assert ended.code == 2 and words in ended.err and len(ended.err.splitlines()) == 1, (flags, ended)
    assert prepare.COMMANDS["contamination"] is contamination
