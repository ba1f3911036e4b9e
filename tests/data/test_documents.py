"""Documents and worksheets of files of every kind.   pytest -q tests/data/test_documents.py"""

import gzip
import json

import pytest
from tiny import BYTES

from common import UserError
from data.documents import question_task, read_documents, read_worksheets
from data.math_qa import few_shot_prefix, load_questions, template_for


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_long_text_files_become_several_documents(tmp_path):
    line = "x" * 99 + "\n"
    (tmp_path / "long.txt").write_text(line * 400)
    pieces = list(read_documents(tmp_path / "long.txt"))
    assert "".join(pieces) == line * 400 and len(pieces) == 3 and all(p.endswith("\n") for p in pieces)


def test_one_very_long_line_becomes_several_documents(tmp_path):
    line = "word " * 100_000
    (tmp_path / "long.txt").write_text(line)
    pieces = list(read_documents(tmp_path / "long.txt"))
    assert "".join(pieces) == line and max(map(len, pieces)) < 33_000 and len(pieces) > 20


def test_kinds_of_sources_by_name_in_any_case(tmp_path):
    """Markdown, arrays, gzipped text, capitals, a byte order mark, carriage returns."""
    row, text = json.dumps({"text": "To be."}), "To be."
    sources = {"a.md": text, "b.TXT": text, "c.txt.gz": text, "d.JSONL": row, "e.json": f"[{row}]", "f.json": row}
    sources |= {"g.json.gz": row, "h.JSONL.GZ": row, "i.txt": "\ufeff" + text}
    for name, content in sources.items():
        data = content.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
        assert list(read_documents(tmp_path / name)) == [text], name
    (tmp_path / "dos.txt").write_bytes(b"a\r\nb\r\n")
    assert list(read_documents(tmp_path / "dos.txt")) == ["a\nb\n"]


def test_odd_documents_among_many_are_left_out_and_counted(tmp_path, capsys):
    rows = [json.dumps({"text": f"Document {n}."}) for n in range(300)]
    (tmp_path / "web.jsonl").write_text("\n".join([*rows[:9], '{"txet": 1}', '{"text": "torn', *rows[9:]]))
    assert len(list(read_documents(tmp_path / "web.jsonl"))) == 300
    assert (
        f"note: 2 of 302 rows are odd and left out; the first: {tmp_path / 'web.jsonl'}:10" in capsys.readouterr().out
    )
    (tmp_path / "web.jsonl").write_text("\n".join([*rows, *['{"text": 3}'] * 4]))
    with pytest.raises(UserError, match="web.jsonl:301: .*4 of 304 rows are odd; at most 1%"):
        list(read_documents(tmp_path / "web.jsonl"))


def test_bad_sources(tmp_path):
    write_rows(tmp_path / "bad.jsonl", [{"text": "fine"}, {"txet": 1}])
    with pytest.raises(UserError, match="bad.jsonl:2"):
        list(read_documents(tmp_path / "bad.jsonl"))
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="latin.txt"):
        list(read_documents(tmp_path / "latin.txt"))
    with pytest.raises(UserError, match="unknown kind"):
        list(read_documents(tmp_path / "x.docx"))


def test_a_packed_file_that_is_cut_is_refused(tmp_path):
    """However many good rows stand before: half a file is not the file."""
    packed = {"gz": gzip.compress}
    try:
        import zstandard

        packed["zst"] = zstandard.ZstdCompressor().compress
    except ImportError:
        pass
    text = "".join(json.dumps({"text": f"Document {n}."}) + "\n" for n in range(20_000)).encode()
    for kind, pack in packed.items():
        path, whole = tmp_path / f"web.jsonl.{kind}", pack(text)
        path.write_bytes(whole)
        assert len(list(read_documents(path))) == 20_000
        path.write_bytes(whole[:-9])
        with pytest.raises(UserError, match=f"web.jsonl.{kind}: cannot read it"):
            list(read_documents(path))
        path.write_bytes(whole[:5000] + bytes(200) + whole[5200:])
        with pytest.raises(UserError, match=f"web.jsonl.{kind}"):
            list(read_documents(path))


def test_parquet(tmp_path):
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    path, texts = tmp_path / "web.parquet", [f"Document {n}." for n in range(2500)]
    parquet.write_table(pa.table({"id": list(range(2502)), "text": [*texts, None, " "]}), path)
    assert list(read_documents(path)) == texts and question_task(path) is None
    data = path.read_bytes()
    for damaged in (data[:-9], data[: len(data) // 2] + bytes(len(data) // 4) + data[len(data) * 3 // 4 :]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="no readable parquet file"):
            list(read_documents(path))
    parquet.write_table(pa.table({"question": ["1+1?"] * 20, "answer": ["#### 2"] * 20}), path)
    assert question_task(path) == "gsm8k" and len(load_questions(path, "gsm8k", "train")) == 1
    with pytest.raises(UserError, match='no column "text"'):
        list(read_documents(path))


def test_worksheets_are_few_shot_prompts_of_the_train_part(tmp_path):
    rows = [
        {"question": f"What is {n}+1?", "answer": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"} for n in range(80)
    ]
    path = write_rows(tmp_path / "train.jsonl", rows)
    sheets = list(read_worksheets(path, BYTES, 200, seed=1))
    train = load_questions(path, "gsm8k", "train")
    one = {few_shot_prefix([q], 1, 0, template_for("gsm8k")) for q in train}
    problems = [p for sheet in sheets for p in sheet.split("\n\n")[:-1]]
    assert {p + "\n\n" for p in problems} == one
    assert len(problems) == len(train) == 72  # the 8 validation questions stay out
    assert max(sheet.count("Question:") for sheet in sheets) > 1
    assert all(len(s.encode()) <= 200 for s in sheets)


def test_worksheets_hold_one_to_ten_problems(tmp_path):
    path = write_rows(tmp_path / "train.jsonl", [{"question": f"Q{n}?", "answer": f"#### {n}"} for n in range(400)])
    counts = [s.count("Question:") for s in read_worksheets(path, BYTES, 10**6, seed=0)]
    assert sum(counts) == 360 and set(counts[:-1]) == set(range(1, 11))  # every size occurs, no other


def test_answers_without_solutions_make_no_worksheets(tmp_path):
    path = write_rows(tmp_path / "only.jsonl", [{"problem": "1+1?", "expected_answer": "2"}])
    with pytest.raises(UserError, match="without solutions"):
        list(read_worksheets(path, BYTES, 100, seed=0))
    assert question_task(write_rows(path, [{"text": "1+1?", "question": "?"}])) is None  # a document
