"""Files of text -> documents, one after the other, in constant memory.

A file holds documents (.jsonl or .json in the Dolma form, {"text"} a line; .parquet with a column `text`; .txt or .md)
or questions (GSM8K, MATH, OpenMathInstruct-2), which become worksheets. Each but parquet may be gzipped or zstd.
"""

import io
import os
import random
from collections.abc import Iterator

import tiktoken

from common import UserError
from data.files import leave_out, open_bytes, optional, read_parquet, read_rows, suffix
from data.math_qa import format_prompt, format_target, template_for
from data.questions import load_questions

KINDS = (".jsonl", ".json", ".txt", ".md", ".parquet")
PIECE = 16_384  # characters of a plain text file that make one document


def check_kind(path: str | os.PathLike) -> None:
    """UserError for a file that cannot be read by its name, or not without a module that is not installed."""
    if suffix(path) not in KINDS:
        kinds = ".jsonl, .json, .txt or .md, each also with .gz or .zst, or .parquet"
        raise UserError(f"{path}: unknown kind of file; give {kinds}")
    if suffix(path) == ".parquet":
        optional("pyarrow.parquet", path)


def read_documents(path: str | os.PathLike) -> Iterator[str]:
    """Documents of a file. Plain text is cut at line ends, and within longer lines, into pieces of about 16,000
    characters, so that some can be held out. Odd rows are left out, if they are few."""
    if suffix(path) == ".parquet":
        yield from (text for columns in read_parquet(path, ["text"]) for text in _texts(columns, path))
    elif suffix(path) in (".jsonl", ".json"):
        yield from _rows_with_text(path)
    elif suffix(path) in (".txt", ".md"):
        yield from _pieces(path)
    else:
        check_kind(path)


def _texts(columns: dict[str, list], path: str | os.PathLike) -> Iterator[str]:
    if "text" not in columns:
        raise UserError(f'{path}: has no column "text"; give files of documents, or of questions')
    for text in columns["text"]:
        if not isinstance(text, str | None):
            raise UserError(f'{path}: its column "text" holds {type(text).__name__}; give files of documents')
        if text and text.strip():
            yield text


def _rows_with_text(path: str | os.PathLike) -> Iterator[str]:
    rows, without, odd = 0, 0, []
    for where, row in read_rows(path, odd, whole=True):
        rows += 1
        if not isinstance(row.get("text"), str):
            odd.append(f'{where}: needs a "text" string, has keys {sorted(row)!r:.80}; mend that row')
            without += 1
        elif row["text"].strip():
            yield row["text"]
    leave_out(odd, rows + len(odd) - without)


def _pieces(path: str | os.PathLike) -> Iterator[str]:
    piece, size = [], 0
    try:
        with open_bytes(path) as file:
            for line in io.TextIOWrapper(file, encoding="utf-8"):
                for start in range(0, len(line), PIECE):
                    piece.append(line[start : start + PIECE])
                    size += len(piece[-1])
                    if size >= PIECE:
                        yield "".join(piece)
                        piece, size = [], 0
        if "".join(piece).strip():
            yield "".join(piece)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; convert the file") from None


def question_task(path: str | os.PathLike) -> str | None:
    """The task that a file of questions belongs to; None of any other file."""
    if suffix(path) not in (".jsonl", ".json", ".parquet"):
        return None
    first = next((row for _, row in read_rows(path, [])), {})
    kinds = {"question": "gsm8k", "expected_answer": "openmath", "solution": "math"}
    return None if "text" in first else next((kinds[key] for key in kinds if key in first), None)


def read_worksheets(path: str | os.PathLike, enc: tiktoken.Encoding, max_tokens: int, seed: int) -> Iterator[str]:
    """Documents of 1 to 10 worked problems from a question file, joined exactly as few-shot prompts are and at most
    max_tokens long (a single longer problem stays whole). Only the train part: held-out validation questions
    (data.questions) do not enter pre-training."""
    task = question_task(path)
    if task is None:
        raise UserError(f"{path}: not a question file (GSM8K, MATH or OpenMathInstruct-2 rows); see data/questions.py")
    template, rng = template_for(task), random.Random(seed)
    sheet, used, wanted = "", 0, rng.randint(1, 10)
    questions = [question for question in load_questions(path, task, "train") if question.solutions]
    if not questions:
        raise UserError(f"{path}: answers without solutions, which make no worksheets; give a file with solutions")
    for question in questions:
        worked = format_prompt(question, template) + format_target(question, question.solutions[0], template)
        worked += template.shot_separator
        size = len(enc.encode_ordinary(worked))
        if sheet and (wanted == 0 or used + size > max_tokens):
            yield sheet
            sheet, used, wanted = "", 0, rng.randint(1, 10)
        sheet, used, wanted = sheet + worked, used + size, wanted - 1
    yield sheet
