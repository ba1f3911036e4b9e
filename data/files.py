"""The one reader and writer of small files: text, JSON and JSONL, as they are, gzipped or as zstd, and rows of parquet.

Reading: UTF-8, with or without a byte order mark; whatever is wrong with a file becomes a `UserError` of one sentence.
Writing: UTF-8, to a temporary name in the same folder, synced, then renamed, so that a crash, a full disk or a bad
value leaves the old file whole.
"""

import gzip
import importlib
import io
import json
import math
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

BOM = b"\xef\xbb\xbf"
MEND = "mend the file or make it again"
ODD_ROWS = 0.01  # share of a file's rows that may be odd, and are left out


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence: what was got, what is needed, what to do."""


# ---------------------------------------------------------------- reading
def suffix(path: str | os.PathLike) -> str:
    """The kind of file that a name tells: ".jsonl" of Train.JSONL, of train.jsonl.gz and of train.jsonl.zst."""
    return Path(Path(path).name.lower().removesuffix(".gz").removesuffix(".zst")).suffix


def optional(name: str, path: str | os.PathLike) -> ModuleType:
    """A module that only some files need, which `path` is one of."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UserError(f"{path}: reading it needs {package}, which is not installed; pip install {package}") from None


class _ZstdFile(io.RawIOBase):
    """The text of a zstd file of one or more frames. EOFError where the last one is cut: zstandard's own reader takes
    that for the end."""

    def __init__(self, file: BinaryIO):
        self.file, self.zstd = file, importlib.import_module("zstandard")
        self.frame, self.packed, self.text = None, b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, out) -> int:
        while not self.text:
            packed = self.packed or self.file.read(1 << 17)
            if not packed and self.frame:
                raise EOFError("it ends within a frame")
            if not packed:
                return 0
            self.frame = self.frame or self.zstd.ZstdDecompressor().decompressobj()
            self.text, self.packed = memoryview(self.frame.decompress(packed)), b""
            if self.frame.eof:
                self.frame, self.packed = None, self.frame.unused_data
        size = min(len(out), len(self.text))
        out[:size], self.text = self.text[:size], self.text[size:]
        return size


@contextmanager
def open_bytes(
    path: str | os.PathLike, what: str = "file", mend: str = "check the path and that the file is whole"
) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked if it begins as gzip or zstd does, without a byte order mark."""
    broken: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    try:
        with open(path, "rb") as file:
            start = file.read(4)  # no UTF-8 text begins as one of these
            file.seek(0)
            unpacked = file
            if start[:2] == b"\x1f\x8b":
                unpacked = gzip.open(file)
            elif start == b"\x28\xb5\x2f\xfd":
                broken = (*broken, optional("zstandard", path).ZstdError)
                unpacked = io.BufferedReader(_ZstdFile(file), 1 << 20)
            with unpacked as opened:
                if opened.peek(3)[:3] == BOM:
                    opened.read(3)
                yield opened
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}; {mend}") from None
    except broken as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot read it ({why}); {mend}") from None


def read_text(path: str | os.PathLike) -> str:
    with open_bytes(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; convert the file") from None


def parse_json(data: bytes | str) -> Any:
    """json.loads with a ValueError for every fault. NaN and infinity are no JSON; an integer too long for Python to
    read stays text."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        try:
            return _DECODER.decode(text)
        except json.JSONDecodeError as error:
            place = f" at line {error.lineno}, column {error.colno}" if error.lineno > 1 else ""
            raise ValueError(f"not valid JSON: {error.msg}{place}") from None
        except ValueError:  # an integer of more digits than int() takes
            return _LONG_INTEGERS.decode(text)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except RecursionError:
        raise ValueError("nested too deep") from None


def _no_constant(name: str) -> None:
    raise json.JSONDecodeError(f"{name} is no number", "", 0)


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) < 4300 else digits


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_LONG_INTEGERS = json.JSONDecoder(parse_constant=_no_constant, parse_int=_integer)


def read_json(path: str | os.PathLike, what: str = "JSON", kind: type = dict, mend: str = MEND) -> Any:
    """The value in a JSON file, which must be of this `kind`. `what` the file should be and how to `mend` it are told
    when it is not."""
    with open_bytes(path, what, mend) as file:
        data = file.read()
    try:
        value = parse_json(data)
    except ValueError as error:
        raise UserError(f"{path}: no readable {what} ({error}); {mend}") from None
    if not isinstance(value, kind):
        raise UserError(f"{path}: no {what}, but {type(value).__name__} where {kind.__name__} is needed; {mend}")
    return value


def read_jsonl(
    path: str | os.PathLike, dropped: list[str] | None = None, whole: bool = False
) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a JSONL file; blank lines are passed over. A line that is no object (torn, not UTF-8,
    NUL bytes, ..) is a UserError with file and line or, where a list `dropped` is given, left out and told there.
    So is the end of a packed file that is cut or damaged, unless it must be `whole`."""
    number = 0
    try:
        with open_bytes(path) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = parse_json(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
                except ValueError as error:
                    if dropped is None:
                        raise UserError(f"{path}:{number}: {error}; mend or remove that line") from None
                    dropped.append(f"{path}:{number}: {error}")
                    continue
                yield number, row
    except UserError as error:
        if whole or dropped is None or not number:
            raise
        dropped.append(str(error))


def read_rows(
    path: str | os.PathLike, dropped: list[str] | None = None, whole: bool = False
) -> Iterator[tuple[str, dict]]:
    """(file and place, object) of a JSONL file, of a .json file that holds an array or one object, or of a parquet
    file; `dropped` and `whole` as in read_jsonl."""
    if suffix(path) == ".parquet":
        batches = ((list(batch), zip(*batch.values(), strict=True)) for batch in read_parquet(path))
        rows = (dict(zip(names, values, strict=True)) for names, table in batches for values in table)
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows, 1))
        return
    with open_bytes(path) as file:
        start = file.read(1000).lstrip() if suffix(path) == ".json" else b""
    if start.split(b"\n")[0].rstrip() == b"{":  # one object over several lines
        yield str(path), read_json(path, "JSON object")
        return
    if start[:1] != b"[":
        yield from ((f"{path}:{number}", row) for number, row in read_jsonl(path, dropped, whole))
        return
    for number, row in enumerate(read_json(path, "JSON array of objects", list), 1):
        if isinstance(row, dict):
            yield f"{path}: item {number}", row
            continue
        what = f"{path}: item {number}: expected a JSON object, got {type(row).__name__}"
        if dropped is None:
            raise UserError(f"{what}; mend or remove it")
        dropped.append(what)


def read_parquet(
    path: str | os.PathLike, columns: Iterable[str] | None = None, rows: int = 1000
) -> Iterator[dict[str, list]]:
    """Columns (None: all) of a parquet file, `rows` at a time: {column: values}. A column that the file lacks is left
    out."""
    parquet, broken = optional("pyarrow.parquet", path), optional("pyarrow", path).ArrowException
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            found = names if columns is None else [name for name in columns if name in names]
            for batch in file.iter_batches(rows, columns=found, use_threads=False):
                yield {name: column.to_pylist() for name, column in zip(found, batch.columns, strict=True)}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path and that the file is whole") from None
    except (OSError, broken) as error:
        raise UserError(f"{path}: no readable parquet file ({str(error)[:100]}); fetch it again") from None


def leave_out(odd: list[str], rows: int) -> None:
    """Tell that the `odd` ones of a file's `rows` are left out; UserError if they are more than ODD_ROWS of them."""
    if not odd:
        return
    count = f"{len(odd):,} of {rows:,} rows are odd"
    if len(odd) > ODD_ROWS * rows:
        raise UserError(f"{odd[0]} ({count}; at most {ODD_ROWS:.0%} may be, and are left out)")
    print(f"note: {count} and left out; the first: {odd[0]}", flush=True)


def field(row: dict, key: str, kind: type | tuple[type, ...], where: str | os.PathLike, mend: str = MEND) -> Any:
    """row[key], which must be of this kind: a bool is no number, a float may be written as an integer and is finite.
    `where`: the file, for the error."""
    value = row.get(key)
    kinds = (int, float) if kind is float else kind if isinstance(kind, tuple) else (kind,)
    good = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if not good or (isinstance(value, float) and not math.isfinite(value)):
        needed, got = " or ".join(k.__name__ for k in kinds), "nothing" if value is None else repr(value)[:60]
        raise UserError(f"{where}: {key!r} must be {needed}, got {got}; {mend}")
    return value


def counted(items: Iterable, what: str, seconds: float = 5.0) -> Iterator:
    """`items` as they come. Where they take longer than `seconds`, a line each so often says how far they are."""
    began = said = time.time()
    total = len(items) if hasattr(items, "__len__") else None
    for done, item in enumerate(items):
        if (now := time.time()) - said > seconds:
            said = now
            left = f"/{total:,} | {(now - began) / done * (total - done):.0f} s left" if total and done else ""
            print(f"{what} {done:,}{left}", flush=True)
        yield item


def inside(folder: str | os.PathLike, name: str, where: str | os.PathLike, below: bool = False) -> Path:
    """folder / name, where `where` (a file) names a file of its own folder, or with `below` of one in it: UserError for
    a path that leads away."""
    parts = name.split("/") if below else [name]
    if any(part in ("", ".", "..") or set(part) & set("/\\\0") for part in parts):
        raise UserError(f"{where}: {name!r:.60} is no name of a file in its own folder; {MEND}")
    return Path(folder) / name


# ---------------------------------------------------------------- writing
@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to write; it takes the place of `path` when the block ends, and is removed when it fails."""
    path = Path(os.path.realpath(path))  # a link stays, and its file is replaced
    if path.exists() and not path.is_file():  # a pipe or a device
        with open(path, "wb") as file:
            yield file
        return
    temporary = path.with_name(f".tmp_{os.getpid()}_{path.name[:50]}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C too
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """UTF-8; what UTF-8 cannot hold (half a surrogate pair) is written as \\udcff."""
    try:
        with replacing(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        mend = "what was there before is whole: free some space, or choose another path"
        raise UserError(f"{path} could not be written ({error.strerror}); {mend}") from error


def to_json(value: Any, where: str | os.PathLike = "value", **layout) -> str:
    """JSON text in ASCII; `layout` as of json.dumps. UserError if it holds NaN or infinity: JSON cannot."""
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError:
        raise UserError(f"{where}: {_not_finite(value)}, which JSON cannot hold; nothing was written") from None


def _not_finite(value: Any, name: str = "") -> str:
    """The first number in nested values that is not finite, with its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name or 'the value'} is {value}"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next(filter(None, (_not_finite(v, f"{name}/{k}".lstrip("/")) for k, v in items)), "")


def write_json(path: str | os.PathLike, value: Any, **layout) -> None:
    """One line a value, or as `layout` (of json.dumps) says."""
    write_text(path, to_json(value, path, **(layout or {"indent": 1})) + "\n")


def write_jsonl(path: str | os.PathLike, rows: Iterable[dict]) -> None:
    write_text(path, "".join(to_json(row, path) + "\n" for row in rows))


if __name__ == "__main__":
    print("The reader and writer of small files; the data itself is made by: python -m data.world --out data/world")
