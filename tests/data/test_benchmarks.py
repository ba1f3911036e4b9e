"""Benchmarks: loading, formats, the context/choice seam, scoring with hand-computed log-probs.
pytest -q tests/data/test_benchmarks.py"""

import gzip
import json
import math
import os
from types import SimpleNamespace

import pytest

from common import UserError
from data.benchmarks import REAL_FILES, REAL_TASKS, Item, encode_item, load_benchmark, score_benchmark
from data.tokenizer import decode, make_encoding

REAL_DATA = os.environ.get("REAL_DATA")
BYTES = make_encoding("bytes", {bytes([b]): b for b in range(256)})


class FakeModel:
    """Gives the log-probs of a table {choice text: (logprob, greedy)}; keeps what it was asked."""

    def __init__(self, table, block_size=None):
        self.table, self.config = table, SimpleNamespace(block_size=block_size)

    def continuation_logprobs(self, contexts, choices, micro_batch_tokens=0):
        self.contexts = contexts
        return [[self.table[decode(BYTES, ids).strip()] for ids in item] for item in choices]


def write(path, rows, opener=open):
    path.parent.mkdir(exist_ok=True)
    with opener(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


# ---------------------------------------------------------------- scoring
def test_acc_and_acc_norm_by_hand():
    items = [Item("Q", ("ab", "abcdefgh"), 1), Item("Q", ("xy", "z"), 0), Item("Q", ("xy", "abcdefgh"), 0)]
    table = {"ab": (-2.0, False), "abcdefgh": (-4.0, False), "xy": (-3.0, True), "z": (-2.0, False)}
    # item 1: raw -2 against -4 takes 0 (wrong); per character -1 against -0.5 takes 1 (right)
    # item 2: raw -3 against -2 takes 1 (wrong); per character -1.5 against -2 takes 0 (right)
    # item 3: raw -3 against -4 takes 0 (right); per character -1.5 against -0.5 takes 1 (wrong)
    result = score_benchmark(FakeModel(table), BYTES, items)
    assert result["n"] == 3 and result["acc"] == pytest.approx(1 / 3) and result["acc_norm"] == pytest.approx(2 / 3)
    assert result["stderr"] == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 2)) == result["acc_norm_stderr"]
    assert [row["pred"] for row in result["per_item"]] == [0, 1, 0] and "ppl" not in result
    assert [row["pred_norm"] for row in result["per_item"]] == [1, 0, 1]
    assert result["per_item"][0]["logprobs"] == [-2.0, -4.0]


def test_last_word_accuracy_and_perplexity_by_hand():
    items = [Item("the", ("cat",), 0), Item("the", ("dog",), 0)]
    table = {"cat": (-math.log(2), True), "dog": (-math.log(8), False)}
    result = score_benchmark(FakeModel(table), BYTES, items)
    assert (
        result["acc"] == 0.5 and result["acc_norm"] is None and result["ppl"] == pytest.approx(4.0)
    )  # exp of mean log 2, log 8
    table["dog"] = (-1e9, False)
    assert math.isfinite(score_benchmark(FakeModel(table), BYTES, items)["ppl"])


def test_equal_scores_go_to_the_first_choice_and_one_item_works():
    result = score_benchmark(FakeModel({"a": (-1.0, False), "b": (-1.0, False)}), BYTES, [Item("Q", ("a", "b"), 0)])
    assert result["acc"] == 1.0 and result["stderr"] == 0.0
    with pytest.raises(UserError, match="no items"):
        score_benchmark(FakeModel({}), BYTES, [])


def test_shortened_contexts_are_counted():
    items = [Item("a" * n, ("yes", "no!!"), 0) for n in (3, 4, 5, 60)]  # with end-of-text and " no!!": 9, 10, 11, 66
    model = FakeModel({"yes": (-1.0, False), "no!!": (-2.0, False)}, block_size=10)
    assert score_benchmark(model, BYTES, items)["truncated"] == 2
    assert [len(context) for context in model.contexts] == [4, 5, 5, 5]
    model.config.block_size = None
    assert score_benchmark(model, BYTES, items)["truncated"] == 0


# ---------------------------------------------------------------- the seam
def test_context_starts_with_end_of_text_and_spaces_move_to_the_choice():
    context, choices = encode_item(BYTES, Item("Answer:", ("yes", "no"), 0))
    assert context == [256, *b"Answer:"] and choices == [[*b" yes"], [*b" no"]]
    context, choices = encode_item(BYTES, Item("So ", ("yes",), 0))  # as lm-eval: "So" + "  yes"
    assert context == [256, *b"So"] and choices == [[*b"  yes"]]
    assert encode_item(BYTES, Item("", ("yes",), 0)) == ([256], [[*b" yes"]])


def test_choice_ids_are_the_tail_of_the_whole():
    # context "a\n", choice "\nb": the whole has one token "\n \n" across the seam, which neither part has alone
    enc = make_encoding("x", {bytes([b]): b for b in range(256)} | {b"\n ": 256, b"\n \n": 257})
    assert enc.encode_ordinary("a\n \nb") == [ord("a"), 257, ord("b")]
    assert encode_item(enc, Item("a\n", ("\nb",), 0)) == (
        [258, ord("a"), ord("\n")],
        [[ord("b")]],
    )  # as lm-eval cuts it
    # nothing is left behind the context's count: the choice is scored as it reads alone
    assert encode_item(enc, Item("a\n", ("\n",), 0))[1] == [[ord(" "), ord("\n")]]


def test_long_contexts_lose_their_oldest_tokens():
    item = Item("abcdefghij", ("xy", "z"), 0)
    model = FakeModel({"xy": (-1.0, True), "z": (-2.0, False)}, block_size=8)
    assert score_benchmark(model, BYTES, [item])["acc"] == 1.0
    assert model.contexts == [[256, *b"ghij"]]  # 1 + 4 + the longest choice, 3 = 8
    assert encode_item(BYTES, item, block_size=14)[0] == [256, *b"abcdefghij"]
    assert encode_item(BYTES, item, block_size=4)[0] == [256]
    with pytest.raises(UserError, match="3 tokens does not fit the context of 3"):
        encode_item(BYTES, item, block_size=3)


# ---------------------------------------------------------------- loading
def test_world_files(tmp_path):
    rows = [{"context": "Ivy lives in", "choices": ["Rome", " Oslo"], "gold": 1, "fact": "Ivy"}] * 3
    write(tmp_path / "bench_facts.jsonl", rows)
    write(tmp_path / "bench_lastword.jsonl", [{"context": "the cat saw the", "target": "dog", "fact": "f"}])
    assert load_benchmark("facts", tmp_path, "test", 2) == [Item("Ivy lives in", ("Rome", "Oslo"), 1, "Ivy")] * 2
    assert load_benchmark("lastword", tmp_path) == [Item("the cat saw the", ("dog",), 0, "f")]
    with pytest.raises(UserError, match="data.world"):
        load_benchmark("tools", tmp_path)


def test_answer_key_goes_through_the_labels(tmp_path):
    letters = {"question": "Why?", "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "C"}
    digits = {"question": "Why?", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "1"}
    write(tmp_path / "evals" / "arc_easy_test.jsonl", [letters, digits])
    assert [item.gold for item in load_benchmark("arc_easy", tmp_path)] == [2, 0]
    assert load_benchmark("arc_easy", tmp_path)[0].context == "Question: Why?\nAnswer:"
    stem = {"question_stem": "They are", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
    write(tmp_path / "evals" / "openbookqa_test.jsonl", [stem])
    assert load_benchmark("openbookqa", tmp_path) == [Item("They are", ("x", "y"), 1)]


def test_hellaswag_piqa_and_lambada_forms(tmp_path):
    row = {"activity_label": "Roof", "ctx_a": "A man [header] sits [title] up.", "ctx_b": "he", "label": "1"}
    write(tmp_path / "evals" / "hellaswag_val.jsonl.gz", [row | {"endings": ["[step] goes  up.", "falls."]}], gzip.open)
    (item,) = load_benchmark("hellaswag", tmp_path, "test")  # val stands in for test
    assert item == Item("Roof: A man sits. up. He", (" goes up.", "falls."), 1)
    write(tmp_path / "evals" / "piqa_val.jsonl", [{"goal": "Open it", "sol1": "push", "sol2": "pull", "label": 1}])
    assert load_benchmark("piqa", tmp_path, "val") == [Item("Question: Open it\nAnswer:", ("push", "pull"), 1)]
    write(tmp_path / "evals" / "lambada_test.jsonl.gz", [{"text": "I see the\n\nred cat"}], gzip.open)
    assert load_benchmark("lambada", tmp_path) == [Item("I see the\n\nred", ("cat",), 0)]
    with pytest.raises(UserError, match="no 'val' split"):  # a test set never stands in for validation
        load_benchmark("lambada", tmp_path, "val")


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Why?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "D"},
        {"question": "Why?", "choices": ["a"], "answerKey": "A"},
        {"question": "Why?"},
        {"question": "Why?", "choices": {"text": [], "label": ["A"]}, "answerKey": "A"},
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, row):
    good = {"question": "Why?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}
    write(tmp_path / "evals" / "arc_easy_val.jsonl", [good, row])
    with pytest.raises(UserError, match="arc_easy_val.jsonl:2"):
        load_benchmark("arc_easy", tmp_path, "val")


@pytest.mark.parametrize(
    "name, row",
    [
        ("facts", {"context": "x", "choices": "ab", "gold": 0}),  # one string is no list of choices
        ("facts", {"context": "x", "choices": ["a", 2], "gold": 0}),
        ("facts", {"context": "x", "choices": ["a", "b"], "gold": 0.5}),
        ("facts", {"context": "x", "choices": ["a", "b"], "gold": True}),
        ("facts", {"context": "x", "choices": ["a", "b"], "gold": "9" * 5000}),
        ("facts", {"context": ["x"], "choices": ["a", "b"], "gold": 0}),
        ("lastword", {"context": "x", "target": ["y"]}),
        ("arc_easy", {"question": "Q", "choices": {"text": "abc", "label": "ABC"}, "answerKey": "A"}),
        ("hellaswag", {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": "ab", "label": "1"}),
        ("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": 1.0}),
    ],
)
def test_items_of_another_kind_are_refused(tmp_path, name, row):
    files = list(REAL_FILES.get(name, {"test": f"bench_{name}.jsonl"}).values())
    path = tmp_path / files[-1]
    write(path, [row], gzip.open if path.suffix == ".gz" else open)
    with pytest.raises(UserError, match=f"{path.name}:1: not a {name} item"):
        load_benchmark(name, tmp_path)


def test_odd_files_are_read(tmp_path):
    """A byte order mark, a gzipped file under a plain name, integers of 5,000 digits in fields that nothing uses."""
    text = f'{{"context": "x", "choices": ["a", "b"], "gold": "1", "id": {"9" * 5000}}}\n'
    for data in (b"\xef\xbb\xbf" + text.encode(), gzip.compress(text.encode())):
        (tmp_path / "bench_facts.jsonl").write_bytes(data)
        assert load_benchmark("facts", tmp_path) == [Item("x", ("a", "b"), 1)]
    (tmp_path / "bench_facts.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(UserError, match="bench_facts.jsonl:1: nested too deep"):
        load_benchmark("facts", tmp_path)


def test_bad_names_and_empty_files(tmp_path, monkeypatch):
    monkeypatch.delenv("REAL_DATA", raising=False)
    with pytest.raises(UserError, match="'chess'"):
        load_benchmark("chess", tmp_path)
    with pytest.raises(UserError, match="set REAL_DATA"):
        load_benchmark("piqa", tmp_path)
    write(tmp_path / "bench_facts.jsonl", [])
    with pytest.raises(UserError, match="empty"):
        load_benchmark("facts", tmp_path)
    write(tmp_path / "bench_facts.jsonl", [{"context": "x", "choices": ["a", "b"], "gold": -1}])
    with pytest.raises(UserError, match="bench_facts.jsonl:1"):
        load_benchmark("facts", tmp_path)


@pytest.mark.skipif(not REAL_DATA, reason="REAL_DATA is not set: the real benchmarks are not at hand")
def test_real_files():
    counts = {name: len(load_benchmark(name)) for name in REAL_TASKS}
    assert counts == {
        "lambada": 5153,
        "hellaswag": 10042,
        "arc_easy": 2376,
        "arc_challenge": 1172,
        "piqa": 1838,
        "openbookqa": 500,
    }
    assert [len(load_benchmark(name, None, "val")) for name in ("arc_easy", "arc_challenge", "openbookqa")] == [
        570,
        299,
        500,
    ]
    assert len(load_benchmark("hellaswag", limit=1000)) == 1000
