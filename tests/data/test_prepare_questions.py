"""python -m data.prepare questions: what the folder holds, and what may go wrong on the way to it.
pytest -q tests/data/test_prepare_questions.py"""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from made_questions import BOXED, made_rows, prepared, write
from test_common import full_disk
from tiny import BYTES

from data import prepare_questions
from data.files import UserError
from data.math_qa import few_shot_prefix, question_prompts, template_for
from data.pass_at_k import fitting
from data.prepared import Prepared, take
from data.questions import Question, load_questions, questions_hash
from data.tokenizer import load_tokenizer, ranks_text
from train_sft import fitting_examples, load_examples

ROOT = Path(prepare_questions.__file__).parents[1]


def content(folder: Path) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "rows.jsonl", made_rows())


@pytest.fixture
def folder(tmp_path, rows):
    prepared(tmp_path / "out", [rows])
    return tmp_path / "out"


# ---------------------------------------------------------------- what the folder holds
def test_questions_and_their_solutions_are_those_of_the_rows(folder):
    by_problem = {}
    for row in made_rows():
        solutions = by_problem.setdefault(row["problem"], [])
        solutions += [row["generated_solution"]] if row["generated_solution"] not in solutions else []
    found = [*load_questions(folder, "openmath", "train"), *load_questions(folder, "openmath", "val")]
    assert {q.problem: list(q.solutions) for q in found} == by_problem and len(found) == 60
    assert len({q.qid for q in found}) == 60 and {q.source for q in found} == {"math", "gsm8k", "augmented_gsm8k"}
    assert all(q.answer == str(int(q.problem[8:].split()[0]) + int(q.problem[:-1].split()[-1])) for q in found)


def test_validation_questions_are_the_first_of_the_authors_permutation(folder):
    problems = list(dict.fromkeys(row["problem"] for row in made_rows()))
    math = [p for n, p in enumerate(problems) if n % 3 == 0]
    gsm = [p for n, p in enumerate(problems) if n % 3]
    order = {n: np.random.default_rng(42).permutation(n) for n in (20, 40)}
    expected = [math[i] for i in order[20][:2]] + [gsm[i] for i in order[40][:4]]  # a tenth of each kind
    assert [q.problem for q in load_questions(folder, "openmath", "val")] == expected
    train = [q.problem for q in load_questions(folder, "openmath", "train")]
    assert train == [p for p in problems if p not in expected]


@pytest.mark.parametrize("gold", [False, True])
def test_stages_take_from_the_folder_what_they_take_from_a_list(folder, gold):
    lazy = load_questions(folder, "openmath", "train")
    listed = [Question(q.qid, q.problem, list(q.solutions), q.answer, q.source) for q in lazy]
    assert list(question_prompts(BYTES, lazy, BOXED)) == question_prompts(BYTES, listed, BOXED)
    examples, expected = load_examples(BYTES, lazy, BOXED, gold), load_examples(BYTES, listed, BOXED, gold)
    assert list(examples) == expected and len(expected) > len(listed) * gold
    limit = sorted(len(p) + len(t) for p, t in expected)[len(expected) // 2]
    targets = sorted(len(t) for _, t in expected)
    args = Namespace(max_prompt_tokens=0, max_target_tokens=targets[-1] - 1, strict_length=False)
    fits = fitting_examples(expected, limit, args)
    assert list(fitting_examples(examples, limit, args)) == fits and 0 < len(fits) < len(expected)
    kept = fitting(question_prompts(BYTES, lazy, BOXED), 5, limit, "questions", False)
    assert [q.problem for q in take(lazy, kept)] == [listed[i].problem for i in kept]
    assert [q.qid for q in lazy[3:9]] == [q.qid for q in listed[3:9]] and lazy[-1].qid == listed[-1].qid
    assert few_shot_prefix(lazy, 3, 0, BOXED) == few_shot_prefix(listed, 3, 0, BOXED)


def test_the_hash_tells_what_was_chosen_from_what(folder, tmp_path, rows):
    lazy = load_questions(folder, "openmath", "train")
    prepared(tmp_path / "again", [rows])
    prepared(tmp_path / "shorter", [rows], max_solution=30)
    again, shorter = (load_questions(tmp_path / name, "openmath", "train") for name in ("again", "shorter"))
    assert questions_hash(again) == questions_hash(lazy)
    assert len({questions_hash(q) for q in (lazy, lazy[:9], lazy[1:], shorter)}) == 4


def test_sources_and_lengths_are_filtered_and_counted(tmp_path, rows):
    long = len(BYTES.encode_ordinary(BOXED.prompt.format(problem="What is 10 + 3?")))
    meta = prepared(tmp_path / "out", [rows], sources=["gsm8k", "augmented_gsm8k"], max_prompt=long - 1)
    train = {q.problem for q in load_questions(tmp_path / "out", "openmath", "train")}
    assert train == {f"What is {n} + {n % 7}?" for n in range(10) if n % 3}  # one digit is shorter; none is held out
    assert meta["counts"]["questions"] == 40 and meta["counts"]["questions too long"] == 34
    assert meta["counts"]["of source math"] == sum(row["problem_source"] == "math" for row in made_rows())
    target = len(BYTES.encode_ordinary(made_rows()[0]["generated_solution"])) + 1  # and end-of-text
    meta = prepared(tmp_path / "short", [rows], max_solution=target)
    kept = [t for _, t in load_questions(tmp_path / "short", "openmath", "train").examples(BYTES, BOXED, gold=True)]
    assert kept and max(map(len, kept)) == target


def test_odd_rows_are_left_out_and_counted(tmp_path, capsys):
    good = made_rows(400)
    other = dict(good[5], expected_answer="7", generated_solution="no")
    odd = [b"{", b"[1]", dict(good[0], problem=" "), {"problem": "P"}, dict(good[0], problem="\ud800")]
    same = dict(good[7], expected_answer=f" {good[7]['expected_answer']}.0 ", generated_solution="another way")
    wrong = dict(good[9], is_correct=False, generated_solution="bad")
    path = write(tmp_path / "rows.jsonl", [*good, *odd, other, same, wrong])
    counts = prepared(tmp_path / "out", [path])["counts"]
    assert counts["odd"] == 5 and counts["another answer than the question's first"] == 1 and counts["wrong"] == 1
    assert (
        f"5 of {len(good) + 8:,} rows are odd and left out; {path}:{len(good) + 1}: not valid JSON"
        in capsys.readouterr().out
    )
    texts = {
        text for split in ("train", "val") for q in Prepared(tmp_path / "out").questions(split) for text in q.solutions
    }
    assert "another way" in texts and not texts & {"no", "bad"}
    write(path, [*good[:50], *odd])
    with pytest.raises(UserError, match=r"rows.jsonl:51: not valid JSON.*5 of 55 rows are odd; at most 1% may be"):
        prepared(tmp_path / "refused", [path])


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet"])
def test_every_kind_of_file_gives_the_same_folder(tmp_path, rows, folder, kind):
    path, expected = tmp_path / f"rows.{kind}", content(folder)
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress(rows.read_bytes()))
    elif kind == "jsonl.zst":
        zstd = pytest.importorskip("zstandard", reason="zstandard is not installed")
        path.write_bytes(zstd.compress(rows.read_bytes()))
    else:
        arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(made_rows()), path, row_group_size=40)
    prepared(tmp_path / "other", [path])
    found = content(tmp_path / "other")
    del found["meta.json"], expected["meta.json"]  # they name the file
    assert found == expected


# ---------------------------------------------------------------- what may go wrong
def test_a_preparation_that_broke_off_goes_on_and_ends_the_same(tmp_path, rows, monkeypatch):
    second = write(tmp_path / "more.jsonl", [row | {"problem": row["problem"][5:]} for row in made_rows()])
    prepared(tmp_path / "whole", [rows, second])
    monkeypatch.setattr(prepare_questions, "CHUNK", 11)
    monkeypatch.setattr(prepare_questions, "NOTE_EVERY", -1.0)  # after every chunk
    add, left = prepare_questions.Writer.add_solutions, [0]

    def failing(self, *row):
        add(self, *row)
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_questions.Writer, "add_solutions", failing)
    refusals = 0
    for _ in range(20):
        left[0] = 3  # two chunks get through, the third is written and not noted
        try:
            prepared(tmp_path / "out", [rows, second])
            break
        except UserError as error:
            assert "No space left on device); free some space: the same command goes on" in str(error)
            assert not (tmp_path / "out" / "meta.json").exists()
            refusals += 1
    assert refusals > 5 and content(tmp_path / "out") == content(tmp_path / "whole")


def killed(process: int, progress: Path) -> None:
    """SIGKILL a child once it has written its next progress."""
    before = progress.read_bytes() if progress.exists() else b""
    while not progress.exists() or progress.read_bytes() == before:
        assert os.waitpid(process, os.WNOHANG) == (0, 0), "it ended before it could be killed: give it more rows"
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_a_killed_preparation_goes_on(tmp_path, monkeypatch, capsys):
    path, out = write(tmp_path / "rows.jsonl", made_rows(3000)), tmp_path / "out"
    monkeypatch.setattr(prepare_questions, "CHUNK", 200)
    monkeypatch.setattr(prepare_questions, "NOTE_EVERY", -1.0)
    prepared(tmp_path / "whole", [path])
    for _ in range(4):
        if not (child := os.fork()):
            prepared(out, [path])
            os._exit(0)
        killed(child, out / "progress.json")
    assert not (out / "meta.json").exists()
    capsys.readouterr()
    prepared(out, [path])
    assert "going on behind" in capsys.readouterr().out and content(out) == content(tmp_path / "whole")
    prepared(out, [path])
    assert "whole already: nothing to do" in capsys.readouterr().out


def test_workers_change_nothing_and_end_with_their_parent(tmp_path):
    (tmp_path / "bytes.tiktoken").write_bytes(ranks_text(BYTES._mergeable_ranks))
    path, out = write(tmp_path / "rows.jsonl", made_rows(3000)), tmp_path / "out"
    code = "import sys; from common import run; from data import prepare, prepare_questions as q; "
    code += "q.CHUNK, q.NOTE_EVERY = 50, -1.0; run(prepare.main)"
    flags = ["questions", path, "--tokenizer", tmp_path / "bytes.tiktoken", "--out", out, "--workers", "2"]
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, flags)], cwd=ROOT, stdout=subprocess.PIPE)
    killed(process.pid, out / "progress.json")
    process.stdout.read()  # returns when no worker holds it any more
    files, enc = [path], load_tokenizer(tmp_path / "bytes.tiktoken")
    prepared(out, files, enc)
    prepared(tmp_path / "whole", files, enc)
    assert content(out) == content(tmp_path / "whole")


def test_a_worker_that_was_ended_is_one_sentence(tmp_path, rows, monkeypatch):
    class Pool:
        def __init__(self, *_settings):
            pass

        def submit(self, *_work):
            raise BrokenProcessPool

        def shutdown(self, cancel_futures):
            assert cancel_futures

    monkeypatch.setattr(prepare_questions, "ProcessPoolExecutor", Pool)
    with pytest.raises(UserError, match="memory runs out; lower --workers: the same command goes on"):
        prepared(tmp_path / "out", [rows], workers=2)


def test_a_full_disk_is_one_sentence(tmp_path):
    path = write(tmp_path / "rows.jsonl", made_rows(3000))
    with full_disk(200_000), pytest.raises(UserError, match="cannot write .*; free some space: the same command"):
        prepared(tmp_path / "out", [path])
    assert not (tmp_path / "out" / "meta.json").exists()
    prepared(tmp_path / "out", [path])
    prepared(tmp_path / "whole", [path])
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_other_settings_are_refused_where_a_folder_is_begun_or_whole(folder, tmp_path, rows):
    other = write(tmp_path / "other.jsonl", made_rows(61))
    given = (
        ([rows], {"max_prompt": 99}, "filters"),
        ([other], {}, "inputs"),
        ([rows], {"sources": ["math"]}, "filters"),
    )
    for state in ("whole", "begun"):
        for files, settings, name in given:
            with pytest.raises(
                UserError, match=f"holds data that differs in its {name}; give the same again, or a new"
            ):
                prepared(folder, files, **settings)
        if state == "whole":
            (folder / "meta.json").rename(folder / "progress.json")
            settings = json.loads((folder / "progress.json").read_text())
            (folder / "progress.json").write_text(json.dumps({"settings": settings}))
    for broken in ({}, {"settings": 1}):
        (folder / "progress.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match="differs in its format"):
            prepared(folder, [rows])


def test_questions_of_other_kinds_are_one_sentence(tmp_path):
    path = write(tmp_path / "gsm8k.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}] * 9)
    with pytest.raises(UserError, match=r"gsm8k.jsonl:1: no 'expected_answer', which OpenMathInstruct-2's rows have"):
        prepared(tmp_path / "out", [path])


def test_broken_and_unknown_files_are_one_sentence(tmp_path, rows):
    text = rows.read_bytes() * 20
    broken = {"torn.jsonl.gz": gzip.compress(text)[:-20], "x.csv": b"a,b", "x.parquet": b"PAR1", "dir.jsonl": None}
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data) if data is not None else (tmp_path / name).mkdir()
        with pytest.raises(
            UserError, match=f"{name}: (cannot read it|unknown kind|no readable parquet|reading it needs)"
        ):
            prepared(tmp_path / f"of_{name}", [tmp_path / name])
    with pytest.raises(UserError, match="none.jsonl: cannot read it"):
        prepared(tmp_path / "none", [tmp_path / "none.jsonl"])
    with pytest.raises(UserError, match="--source gsm; the rows' sources are math, gsm8k, augmented_gsm8k; give"):
        prepared(tmp_path / "sources", [rows], sources=["gsm"])


def test_a_damaged_folder_is_refused(folder):
    for name, change in {
        "problem.data": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "target.at": lambda path: path.unlink(),
        "train.rows": lambda path: path.write_bytes(b"123"),
        "meta.json": lambda path: path.write_text(path.read_text().replace('"format": 1', '"format": 9')),
    }.items():
        kept = (folder / name).read_bytes()
        change(folder / name)
        with pytest.raises(UserError, match=f"{name}: .*prepare questions"):
            load_questions(folder, "openmath", "train")
        (folder / name).write_bytes(kept)
    with pytest.raises(UserError, match="has no 'test' split"):
        load_questions(folder, "openmath", "test")
    with pytest.raises(UserError, match="give --task openmath"):
        load_questions(folder, "gsm", "train")
    with pytest.raises(UserError, match="tokens of the template 'boxed', but 'world' is asked for"):
        question_prompts(BYTES, load_questions(folder, "openmath", "train"), template_for("world"))
