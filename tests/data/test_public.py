"""Public sets under the names that people have on disk.   pytest -q tests/data/test_public.py"""

import json

import pytest

from common import UserError
from data.benchmarks import load_benchmark
from data.public import PUBLISHED
from data.questions import load_questions

CHOICES = {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}
GSM8K = [{"question": f"{n}+1?", "answer": f"<<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"} for n in range(30)]
MATH = [
    {"problem": f"{n}+1?", "level": "Level 1", "type": "Algebra", "solution": f"\\boxed{{{n + 1}}}"} for n in range(30)
]
SVAMP = [{"Body": "One.", "Question": "How many?", "Equation": "1", "Answer": "1", "ID": "chal-1"}]
HELLASWAG = [{"activity_label": "x", "ctx_a": "a", "ctx_b": "b", "endings": ["1", "2", "3", "4"], "label": "2"}]
ARC = [{"question": "Why?", "choices": CHOICES, "answerKey": "B"}]
OPENBOOK = [{"question_stem": "Why", "choices": CHOICES, "answerKey": "B"}]
PIQA = [{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}]
LAMBADA = [{"text": "I see the red cat"}]
BENCHMARKS = {
    "lambada": (LAMBADA, "lambada_openai/default/test/0000.parquet", "lambada_openai/data/lambada_test.jsonl"),
    "hellaswag": (HELLASWAG, "hellaswag/data/validation-00000-of-00001.parquet", "hellaswag_val.jsonl"),
    "arc_easy": (ARC, "ai2_arc/ARC-Easy/test-00000-of-00001.parquet"),
    "arc_challenge": (ARC, "allenai/ai2_arc/ARC-Challenge/test-00000-of-00001.parquet"),
    "piqa": (PIQA, "piqa/piqa_validation.parquet", "ybisk/piqa/plain_text/validation-00000-of-00001.parquet"),
    "openbookqa": (OPENBOOK, "datasets--allenai--openbookqa/snapshots/abc/main/test-00000-of-00001.parquet"),
}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def only_here(monkeypatch):
    monkeypatch.delenv("REAL_DATA", raising=False)


@pytest.mark.parametrize("root", ["gsm8k", "openai/gsm8k", "datasets--openai--gsm8k/snapshots/0f3a"])
def test_gsm8k_as_its_hub_repository(tmp_path, root, monkeypatch):
    for split in ("train", "test"):
        write(tmp_path / root / "main" / f"{split}-00000-of-00001.parquet", GSM8K)
    monkeypatch.setenv("REAL_DATA", str(tmp_path))
    assert len(load_questions(None, "gsm8k", "test")) == 30 and len(load_questions("elsewhere", "gsm8k", "train")) == 27
    assert load_questions(None, "gsm8k", "test")[3].answer == "4"


def test_gsm8k_as_its_authors_repository(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "grade-school-math/grade_school_math/data" / f"{split}.jsonl", GSM8K)
    assert len(load_questions(tmp_path, "gsm8k", "test")) == 30


def test_math_as_a_folder_of_problems(tmp_path):
    """One object a file, over several lines; the real split comes before MATH-500 and its complement."""
    for split, rows in (("train", MATH), ("test", MATH[:7])):
        for n, row in enumerate(rows):
            write(tmp_path / "MATH" / split / ("algebra" if n % 2 else "geometry") / f"{n}.json", [])
            path = tmp_path / "MATH" / split / ("algebra" if n % 2 else "geometry") / f"{n}.json"
            path.write_text(json.dumps(row, indent=4 if n % 3 else None))
    write(tmp_path / "math" / "math500_test.jsonl", MATH)
    assert len(load_questions(tmp_path, "math", "test")) == 7
    assert len(load_questions(tmp_path, "math", "train")) == 27 and len(load_questions(tmp_path, "math", "val")) == 3


def test_math_as_its_hub_repository(tmp_path):
    for subject, rows in (("algebra", MATH[:20]), ("geometry", MATH[20:])):
        for split in ("train", "test"):
            write(tmp_path / "hendrycks_math" / subject / f"{split}-00000-of-00001.parquet", rows)
    assert [q.problem for q in load_questions(tmp_path, "math", "test")] == [row["problem"] for row in MATH]


def test_math_500_goes_by_its_own_name(tmp_path, capsys):
    write(tmp_path / "MATH-500" / "test.jsonl", [row | {"answer": "7"} for row in MATH])
    assert len(load_questions(tmp_path, "math500", "test")) == 30
    with pytest.raises(UserError, match="MATH/test/.*hendrycks_math/.*math500_test.jsonl: not found"):
        load_questions(tmp_path, "math", "test")
    with pytest.raises(UserError, match="'math500' has no 'train' split"):
        load_questions(tmp_path, "math500", "train")
    write(tmp_path / "math" / "math500_test.jsonl", MATH)
    assert len(load_questions(tmp_path, "math", "test")) == 30
    assert "MATH's 5,000 test questions were not found; these are the 500 of MATH-500" in capsys.readouterr().out


def test_train_and_test_are_of_one_publication(tmp_path):
    """The 4,500 problems beside MATH-500 are test problems of MATH: never its train where the real test is there."""
    write(tmp_path / "math" / "math_train_4500.jsonl", MATH)
    write(tmp_path / "MATH" / "test" / "algebra" / "1.json", MATH[:1])
    with pytest.raises(UserError, match=r"MATH/train/\*/\*.json: not found"):
        load_questions(tmp_path, "math", "train")


def test_svamp_in_two_files(tmp_path):
    for split, n in (("train", 2), ("test", 3)):
        rows = [{**SVAMP[0], "Body": f"{split} {i}."} for i in range(n)]
        write(tmp_path / "SVAMP" / "data" / f"{split}-00000-of-00001.parquet", rows)
    assert len(load_questions(tmp_path, "svamp", "test")) == 5


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks(tmp_path, name):
    rows, *files = BENCHMARKS[name]
    for place, file in enumerate(files):
        write(tmp_path / str(place) / file, rows)
        (item,) = load_benchmark(name, tmp_path / str(place), "test")
        assert item.gold == (0 if name == "lambada" else 2 if name == "hellaswag" else 1)


@pytest.mark.parametrize(
    "name, file",
    [
        ("arc_easy", "ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Test.jsonl"),
        ("openbookqa", "OpenBookQA-V1-Sep2018/Data/Main/test.jsonl"),
    ],
)
def test_benchmarks_as_their_authors_wrote_them(tmp_path, name, file):
    pairs = [{"text": text, "label": label} for text, label in zip("abcd", "ABCD", strict=True)]
    write(tmp_path / file, [{"id": "1", "question": {"stem": "Why?", "choices": pairs}, "answerKey": "C"}])
    (item,) = load_benchmark(name, tmp_path)
    assert (item.choices, item.gold) == (("a", "b", "c", "d"), 2) and "Why?" in item.context
    write(tmp_path / file, [{"id": "1", "question": {"stem": "Why?"}, "answerKey": "C"}])
    with pytest.raises(UserError, match=f"not a {name} item"):
        load_benchmark(name, tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_was_looked_for_is_told(tmp_path, name):
    load = load_benchmark if name in BENCHMARKS else lambda name, folder: load_questions(folder, name, "test")
    with pytest.raises(UserError) as error:
        load(name, tmp_path)
    looked = [layout.get("test") or layout["val"] for layout in PUBLISHED[name]]
    assert all(pattern in str(error.value) for pattern in looked) and str(tmp_path) in str(error.value)


def test_a_folder_that_is_not_there_is_refused_whatever_real_data_has(tmp_path, monkeypatch):
    (tmp_path / "multi_solution").mkdir()
    row = {"problem": "1+1?", "generated_solution": "2", "expected_answer": "2", "problem_source": "gsm8k"}
    (tmp_path / "multi_solution/openmathinstruct2_rows.jsonl").write_text(json.dumps(row))
    monkeypatch.setenv("REAL_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("data/omi", "rows.jsonl"):
        with pytest.raises(UserError, match=f"--data {name}: no such file or folder; check the path"):
            load_questions(name, "openmath", "train")
    assert len(load_questions("data/world", "openmath", "train")) == 1  # the default of --data
