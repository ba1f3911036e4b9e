r"""Math questions: templates, stop strings, loaders.   pytest -q tests/data/test_math_qa.py"""

import gzip
import json
import os
import sys

import pytest
import torch

from common import UserError, run
from data.math_qa import (
    TEMPLATES,
    Question,
    StopStrings,
    cut,
    encode_prompts,
    few_shot_prefix,
    few_shot_prefixes,
    format_prompt,
    format_target,
    guess_floor,
    load_questions,
    main,
    reward,
    reward_flexible,
    template_for,
)
from data.tokenizer import make_encoding, train_bpe

REAL_DATA = os.environ.get("REAL_DATA")
needs_real_data = pytest.mark.skipif(
    not REAL_DATA, reason="REAL_DATA is not set: the real question files are not at hand"
)
BYTES = make_encoding("bytes", {bytes([b]): b for b in range(256)})


# ---------------------------------------------------------------- templates
def test_guess_floor_by_hand():
    # training answers 1, 1, 2, 3 -> shares 1/2, 1/4, 1/4; test answers 1.0 and 9: only the first can be guessed
    floor = guess_floor(["1", "1", "2", "3"], ["1.0", "9"], [1, 2])
    assert floor == {1: 0.25, 2: 0.375}
    with pytest.raises(UserError, match="no training"):
        guess_floor([], ["1"], [1])


TRAIN = [
    Question(f"gsm/{n}", f"What is {n}+1?", [f"{n}+1={n + 1}. #### {n + 1}", "other"], str(n + 1), "gsm")
    for n in range(9)
]


def test_world_template_and_few_shot_are_joined_as_worksheets():
    world = template_for("gsm")
    assert template_for("hard") is world and template_for("world") is world
    q = TRAIN[4]
    assert format_prompt(q, world) == "Q: What is 4+1?\nA:"
    assert format_target(q, q.solutions[0], world) == " 4+1=5. #### 5\n"
    one = {q.qid: format_prompt(q, world) + format_target(q, q.solutions[0], world) for q in TRAIN}
    prefix = few_shot_prefix(TRAIN, 3, 7, world)
    assert prefix == few_shot_prefix(TRAIN, 3, 7, world) != few_shot_prefix(TRAIN, 3, 8, world)
    parts = ["Q:" + part for part in prefix.split("Q:")[1:]]
    assert len(set(parts)) == 3 and set(parts) <= set(one.values()) and "".join(parts) == prefix
    assert few_shot_prefix(TRAIN, 0, 7, world) == ""
    with pytest.raises(UserError, match="--n-shot 10.*9 questions"):
        few_shot_prefix(TRAIN, 10, 0, world)


def test_solutions_get_the_marker_of_the_template():
    q = Question("x", "P {b} \\frac{1}{2}", [], "5", "x")
    assert format_target(q, "2+3=5\n#### 5", TEMPLATES["boxed"]) == "2+3=5\nThe answer is \\boxed{5}."
    assert format_target(q, r"it is \boxed{5}", TEMPLATES["boxed"]) == r"it is \boxed{5}"
    assert format_target(q, r"it is \boxed{5}", TEMPLATES["gsm8k"]) == " it is \\boxed{5}\n#### 5\n"
    assert format_target(q, r"it is \boxed{5}", TEMPLATES["world"]) == " it is \\boxed{5} #### 5\n"
    prompt = format_prompt(q, TEMPLATES["boxed"])
    assert prompt.startswith("P {b} \\frac{1}{2} Let's think step by step") and prompt.endswith(r"\boxed{}." + "\n")


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if template.stops])
def test_a_run_on_completion_is_cut_to_its_own_answer(name):
    template = TEMPLATES[name]
    shots = few_shot_prefix(TRAIN, 4, 1, template)
    prompt, rest = format_prompt(TRAIN[0], template), few_shot_prefix(TRAIN[:1], 1, 0, template) + shots
    completion = cut(rest.removeprefix(prompt), template.stops)  # what a model trained on worksheets goes on to write
    assert reward(completion, TRAIN[0].answer) == 1.0 and reward_flexible(completion, TRAIN[0].answer) == 1.0


def test_the_tested_problem_is_no_exemplar_of_its_own():
    world, common = template_for("gsm"), few_shot_prefix(TRAIN, 3, 7, template_for("gsm"))
    for q, prefix in zip(TRAIN, few_shot_prefixes(TRAIN, TRAIN, 3, 7, world), strict=True):
        assert format_prompt(q, world) not in prefix and prefix.count("Q:") == 3
        assert (prefix == common) == (format_prompt(q, world) not in common)
    with pytest.raises(UserError, match="no exemplar of its own"):
        few_shot_prefix(TRAIN[:3], 3, 7, world, tested=TRAIN[0].problem)


def test_prefixes_of_each_prompt_are_encoded_whole():
    prefixes, prompts = ["Q: 1?\nA: #### 1\n", "Q: 1?\nA: #### 2\n"], ["Q: 2?\nA:", "Q: 1?\nA:"]
    shared, rows = encode_prompts(BYTES, prompts, prefixes)
    texts = [BYTES.decode(shared + row) for row in rows]
    assert texts == ["<|endoftext|>" + a + b for a, b in zip(prefixes, prompts, strict=True)]
    assert BYTES.decode(shared) == "<|endoftext|>Q: 1?\nA: #### "


def test_unknown_task():
    with pytest.raises(UserError, match="'chess'.*gsm8k"):
        template_for("chess")
    with pytest.raises(UserError, match="'chess'"):
        load_questions(None, "chess", "train")


@pytest.mark.parametrize("prefix", ["", "Q: 1?\nA: #### 1\n", "Question: 1?\nAnswer: 1\n#### 1\n\n"])
def test_encode_prompts_rebuilds_the_whole_encoding(prefix):
    enc = make_encoding("x", train_bpe(["Question: Q: A: #### 1\n\nQuestion: 2\n\n"] * 3, 330))
    prompts = ["Q: 2?\nA:", "Q: 25?\nA:", "\nQ"]
    shared, rows = encode_prompts(enc, prompts, prefix)
    assert [shared + row for row in rows] == [[enc.eot_token, *enc.encode_ordinary(prefix + p)] for p in prompts]
    assert all(rows) and shared[0] == enc.eot_token and (len(shared) > 5) == bool(prefix)
    shared, rows = encode_prompts(enc, ["Q", "Q"], prefix)
    assert all(rows)
    assert encode_prompts(enc, [], prefix) == ([enc.eot_token], [])


# ---------------------------------------------------------------- stop strings
def test_cut():
    assert cut("12\nQ: more\n", ["Q:", "\n"]) == "12" and cut("12", ["\n"]) == "12" and cut("x", []) == "x"


def test_stop_strings_across_tokens():
    stop = StopStrings(BYTES, ["Q:", "中"])
    assert stop.candidates.dtype == torch.bool and stop.candidates.shape == (257,)
    assert stop.candidates.nonzero().flatten().tolist() == [ord(":"), 0xAD]  # the last byte of each
    ids = list(b"12\nQ: x")
    assert [stop(ids[:n]) for n in range(1, 8)] == [False] * 4 + [True, True, False]  # the tail alone is looked at
    assert stop(list("a中".encode())) and not stop([256, 10**6]) and not stop([])
    assert stop.cut("12\nQ: x") == "12\n"


def test_stop_strings_inside_longer_tokens():
    enc = make_encoding("x", train_bpe(["ab:cd ab:cd ab:cd"], 262))
    token = next(i for i in range(256, enc.n_vocab - 1) if b"b" in enc.decode_single_token_bytes(i))
    stop = StopStrings(enc, ["b"])
    assert stop.candidates[token] and stop([token])
    nothing = StopStrings(enc, [])
    assert not nothing.candidates.any() and not nothing([token])
    with pytest.raises(UserError, match="empty"):
        StopStrings(enc, ["\n", ""])


# ---------------------------------------------------------------- loading
def world_row(problem, solution, answer, source="gsm"):
    return {"problem": problem, "generated_solution": solution, "expected_answer": answer, "problem_source": source}


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_world_rows_become_questions(tmp_path):
    rows = [
        world_row("P1", "b #### 12.05", "12.05"),
        world_row("P1", "a #### 12.05", "12.05"),
        world_row("H", "#### 3", "3", "hard"),
        world_row("P2", "#### 2", "2"),
    ]
    write(tmp_path / "test.jsonl", rows)
    gsm = load_questions(tmp_path, "gsm", "test")
    assert [(q.problem, q.solutions, q.answer, q.source) for q in gsm] == [
        ("P1", ["b #### 12.05", "a #### 12.05"], "12.05", "gsm"),
        ("P2", ["#### 2"], "2", "gsm"),
    ]
    assert len({q.qid for q in gsm}) == 2 and [q.problem for q in load_questions(tmp_path, "hard", "test")] == ["H"]


def test_real_schemas_from_a_path(tmp_path):
    write(tmp_path / "g.jsonl", [{"question": "Q?", "answer": "So <<1+1=2>>2 and 3 < 4.\n#### 1,200"}])
    (gsm,) = load_questions(tmp_path / "g.jsonl", "gsm8k", "test")
    assert gsm.solutions == ["So 2 and 3 < 4.\n#### 1,200"] and gsm.answer == "1,200"
    svamp = [
        {"ID": "c", "Body": "Dan had $ 3 left", "Question": "How much?", "Equation": "( 4.0 - 3.0 )", "Answer": 1.0}
    ]
    (tmp_path / "s.json").write_text(json.dumps(svamp))
    (question,) = load_questions(tmp_path / "s.json", "svamp", "test")
    assert (question.problem, question.answer) == ("Dan had $ 3 left. How much?", "1")
    write(tmp_path / "m.jsonl", [{"problem": "P", "solution": r"\boxed{1} or \boxed{\frac{1}{2}}"}])
    assert load_questions(tmp_path / "m.jsonl", "math", "test")[0].answer == r"\frac{1}{2}"


def test_openmath_groups_rows_and_leaves_out_wrong_samples(tmp_path):
    rows = [world_row("P", "s1", "x^2"), world_row("R", "r", "1"), world_row("P", "s2", "x^2")]
    rows += [world_row("P", "wrong", "x^2") | {"is_correct": False}]
    path = write(tmp_path / "o.jsonl", rows)
    assert [q.solutions for q in load_questions(path, "openmath", "train")] == [["s1", "s2"], ["r"]]


def test_validation_is_held_out_of_train(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"question": f"Q{n}", "answer": f"#### {n}"} for n in range(50)])
    train, val = (load_questions(path, "gsm8k", split) for split in ("train", "val"))
    assert len(train) == 45 and len(val) == 5
    assert sorted(int(q.answer) for q in train + val) == list(range(50))
    assert [q.qid for q in val] == [q.qid for q in load_questions(path, "gsm8k", "val")]


def test_golds_are_json_numbers_of_any_form(tmp_path):
    golds = {"5": "5", "2.50": "2.5", "1e-06": "0.000001", "1E3": "1000", "-0.1": "-0.1", "1e16": "1" + 16 * "0"}
    rows = [f'{{"Body": "B{n}.", "Question": "Q?", "Answer": {gold}}}' for n, gold in enumerate(golds)]
    (tmp_path / "s.json").write_text(f"[{', '.join(rows)}]")
    questions = load_questions(tmp_path / "s.json", "svamp", "test")
    assert [q.answer for q in questions] == list(golds.values())
    assert all(reward(f"#### {gold}", q.answer) for gold, q in zip(golds, questions, strict=True))


def test_odd_files_are_read(tmp_path):
    """A byte order mark, spaces for thousands, an id of 5,000 digits, answers without solutions; any case of suffix."""
    files = {
        "bom.JSONL": ("\ufeff" + '{"question": "1+1?", "answer": "#### 2"}\n', "gsm8k", "2"),
        "space.jsonl": ('{"question": "1000+1?", "answer": "#### 1 001"}\n', "gsm8k", "1001"),
        "thin.jsonl": ('{"question": "1000+1?", "answer": "#### 1\u202f001"}\n', "gsm8k", "1001"),
        "huge.jsonl": ('{"question": "1+1?", "answer": "#### 2", "id": %s}\n' % ("9" * 5000), "gsm8k", "2"),
        "only.json": ('[{"problem": "1+1?", "answer": 2}]', "gsm8k", "2"),
        "openmath.jsonl": ('{"problem": "1+1?", "expected_answer": "2"}', "openmath", "2"),
    }
    for name, (text, task, gold) in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        for path in (tmp_path / name, tmp_path / f"{name}.gz"):
            (question,) = load_questions(path, task, "train")
            assert reward(f"#### {gold}", question.answer) == 1.0, path
    (question,) = load_questions(tmp_path / "only.json", "gsm8k", "train")
    with pytest.raises(UserError, match="0 questions with solutions"):
        few_shot_prefix([question], 1, 0, TEMPLATES["gsm8k"])


def test_odd_rows_among_many_are_left_out_and_counted(tmp_path, capsys):
    rows = [world_row(f"P{n}", "s", str(n)) for n in range(300)]
    odd = [world_row("E", "s", ""), world_row("P7", "s", "8"), '{"problem": "torn']
    path = write(tmp_path / "test.jsonl", rows[:100] + odd + rows[100:])
    questions = load_questions(tmp_path, "gsm", "test")
    assert [(q.qid, q.answer) for q in questions] == [(f"gsm/{n}", str(n)) for n in range(300)]
    note = capsys.readouterr().out
    assert note.startswith("note: 3 of 303 rows are odd") and f"{path}:101: 'expected_answer'" in note
    write(path, rows + odd + [world_row("five", "s", "five")])
    with pytest.raises(UserError, match=r"test.jsonl:301: .*4 of 304 rows are odd; at most 1%"):
        load_questions(tmp_path, "gsm", "test")


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "the file is empty"),
        ([world_row("H", "s", "1", "hard")], "no row has problem_source 'gsm'"),
        ([world_row("P", "s", "1"), "{oops"], "test.jsonl:2: not valid JSON"),
        ([world_row("P", "s", "1"), "[1]"], "test.jsonl:2: expected a JSON object"),
        ([world_row("P", "s", "1"), "", world_row("R", "s", "twelve")], "test.jsonl:3: gold answer 'twelve'"),
        ([world_row("P", "s", None)], "test.jsonl:1: 'expected_answer'"),
        ([world_row("", "s", "1")], "test.jsonl:1: 'problem'"),
        ([world_row("P", "s", "1"), world_row("P", "t", "2")], "test.jsonl:2: .*earlier row"),
        ([{"question": "Q", "answer": "no marker"}], "test.jsonl:1: gold answer ''"),
        ([{"other": 1}], "test.jsonl:1: keys 'other'"),
    ],
)
def test_bad_question_files(tmp_path, rows, message):
    write(tmp_path / "test.jsonl", rows)
    with pytest.raises(UserError, match=message):
        load_questions(tmp_path, "gsm", "test")


def test_missing_files_and_splits(tmp_path, monkeypatch):
    monkeypatch.delenv("REAL_DATA", raising=False)
    with pytest.raises(UserError, match="data.world"):
        load_questions(tmp_path, "gsm", "train")
    with pytest.raises(UserError, match="set REAL_DATA"):
        load_questions(tmp_path, "gsm8k", "test")
    with pytest.raises(UserError, match="no 'train' split"):
        load_questions(tmp_path, "svamp", "train")
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(UserError, match="cut.jsonl.gz"):
        load_questions(tmp_path / "cut.jsonl.gz", "gsm8k", "test")


@needs_real_data
@pytest.mark.parametrize(
    "task, split, n",
    [
        ("gsm8k", "train", 6973),
        ("gsm8k", "val", 500),
        ("gsm8k", "test", 1319),
        ("svamp", "test", 1000),
        ("math", "test", 500),
    ]
    + [("math", "train", 4050), ("math", "val", 450), ("openmath", "train", 3)],
)
def test_real_files(task, split, n):
    questions = load_questions(None, task, split)
    assert len(questions) == n and len({q.qid for q in questions}) == n
    template = template_for(task)
    for q in questions:
        assert reward(format_target(q, q.solutions[0], template), q.answer) == 1.0, q.qid


BY_MARKER = [  # completion; strict, flexible with the marker "####"; with the marker "boxed"
    ("#### 5\n\\boxed{7}", (1, 1), (0, 0)),
    ("#### 7\n\\boxed{5}", (0, 0), (1, 1)),
    ("#### 5", (1, 1), (0, 1)),  # the last number
    ("#### 5\n7", (1, 1), (0, 0)),
    (r"\boxed{5}", (1, 1), (1, 1)),
    (r"\boxed{7} no, \boxed{5}", (1, 1), (1, 1)),
    (r"\boxed{5} no, \boxed{7", (1, 1), (1, 1)),  # never closed
    (r"\boxed{5", (0, 1), (0, 1)),
    ("so 5", (0, 1), (0, 1)),
    ("", (0, 0), (0, 0)),
]


@pytest.mark.parametrize("completion, by_hashes, by_box", BY_MARKER)
def test_the_marker_of_the_template_decides(completion, by_hashes, by_box):
    for names, scores in ((("world", "gsm8k", "svamp"), by_hashes), (("boxed", "math", "openmath"), by_box)):
        for name in names:
            for template in (name, template_for(name)):
                assert (reward(completion, "5", template), reward_flexible(completion, "5", template)) == scores
    assert reward(completion, "5") == by_hashes[0]  # the world's


def test_an_unknown_template_is_refused():
    with pytest.raises(UserError, match="'boxes': unknown; give one of"):
        reward("#### 5", "5", "boxes")


def test_command_line(tmp_path, monkeypatch, capsys):
    rows = [{"completion": "#### 5", "gold": "5"}, {"completion": "so 5", "gold": 5}]
    path = write(tmp_path / "c.jsonl", rows)
    monkeypatch.setattr(sys, "argv", ["math_qa", "score", str(path)])
    run(main)
    printed = capsys.readouterr().out
    assert "exact_match_strict 0.5000 | exact_match_flexible 1.0000 | parse_failure 0.5000" in printed
    monkeypatch.setattr(sys, "argv", ["math_qa", "score", str(path), "--template", "boxed"])
    run(main)
    assert "exact_match_strict 0.0000 | exact_match_flexible 1.0000 | parse_failure 1.0000" in capsys.readouterr().out
    write(path, [*rows, {"completion": 3, "gold": "5"}])
    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 2 and "c.jsonl:3" in capsys.readouterr().err
