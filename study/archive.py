"""The small files of a study in one: runs.json.gz holds its runs.json, evaluations, logs and first samples.
The report is rebuilt from it and `--known` reads it; docs/results keeps studies so.

    python -m study.archive runs/lab --out runs.json.gz     # pack the folder of a study
    python -m study.archive runs.json.gz --out runs/lab     # make the folder again, without its checkpoints

It is one JSON object: {"manifest": runs.json, "lists": [...], "files": {name in the study's folder: content}}. An
evaluation's long lists that others hold too (questions, right answers, facts) stand in "lists" once, in its place
{"list": number}. A log is told by columns. Everything is kept as it was, but for the numbers of logs, which keep seven
digits (as float32 does), and for samples: of each evaluation the first answer to each of its first three questions. The
same files give the same bytes.
"""

import argparse
import gzip
import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from common import run
from data.files import UserError, read_json, read_jsonl, replacing, to_json, write_json, write_jsonl

NAME = "runs.json.gz"
SAMPLES, LONG, DIGITS = 3, 20, 7  # questions read out; items from which on a list is worth sharing; of a log's numbers
MEND = "pack it again with python -m study.archive"


class StudyFiles:
    """The files of a study by their names in its folder, alike of a folder and of an archive (or the folder in which
    it lies). `folder`: where a report belongs."""

    def __init__(self, path: str | Path):
        self.path = find(path)
        if self.path is None:
            raise UserError(f"{path}: no runs.json or {NAME} there; give the folder that `python -m study --out` wrote")
        self.folder, live = self.path.parent, self.path.name == "runs.json"
        whole = read_json(self.path, "study", mend="run python -m study again" if live else MEND)
        self.packed = None if live else unpacked(whole, self.path)
        self.manifest = whole if live else self.packed.pop("runs.json")

    def has(self, name: str) -> bool:
        return name in self.packed if self.packed is not None else self.place(name).is_file()

    def place(self, name: str) -> Path:
        """Of a live study."""
        return self.folder / inside(name, self.path)

    def json(self, name: str) -> dict | None:
        """An evaluation, or None if there is none; UserError if it cannot be read."""
        if not self.has(name):
            return None
        return self.packed[name] if self.packed is not None else read_json(self.place(name), "evaluation")

    def rows(self, name: str) -> list[dict]:
        """Rows of a log, [] if there is none. A row cut off by a crash is left out."""
        if not self.has(name):
            return []
        return self.packed[name] if self.packed is not None else [r for _, r in read_jsonl(self.place(name), [])]

    def copy(self, name: str, folder: Path) -> None:
        """The file, written into another study's folder."""
        target = folder / inside(name, self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            write_jsonl(target, self.rows(name))
        else:
            write_json(target, self.json(name))


def find(path: str | Path) -> Path | None:
    """The runs.json of a live study, else the archive there; `path` may also be that file."""
    path = Path(path)
    return next((f for f in (path / "runs.json", path / NAME, path) if f.is_file()), None)


def inside(name: Any, where: Path) -> str:
    """A file's name in a study's folder: relative, and without a way out of it."""
    if not isinstance(name, str) or not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise UserError(f"{where}: names the file {name!r:.60}, which is not in the study's folder; remove that entry")
    return name


def samples_of(run: dict) -> str:
    return run["out"].removesuffix(".json") + ".samples.jsonl"


def files_of(run: dict) -> list[str]:
    """Names of what a run has left, as far as it is kept."""
    if run["kind"] == "eval":
        return [run["out"], samples_of(run)]
    return [run["metrics"], run["metrics"].removesuffix("metrics.jsonl") + "config.json"]


# ---------------------------------------------------------------- packing
def pack(folder: Path, out: Path, also: list[str]) -> int:
    """Write the archive of a study; `also`: names of evaluations that runs.json does not name. Returns its bytes."""
    study, files = StudyFiles(folder), {}
    try:
        names = [name for run in study.manifest["runs"] for name in files_of(run)]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{study.path}: no list of runs with their files; run python -m study again") from None
    for name in [*names, *also]:
        if not name.endswith(".jsonl"):
            files[name] = study.json(name)
        elif rows := study.rows(name):
            files[name] = columns(first_answers(rows) if name.endswith(".samples.jsonl") else map(rounded, rows))
    times: dict[str, int] = {}
    for content in files.values():
        count_lists(content, times)
    numbers = {text: i for i, text in enumerate(text for text, n in times.items() if n > 1)}
    files = {name: share(content, numbers) for name, content in files.items() if content}
    whole = {"manifest": study.manifest, "lists": [json.loads(text) for text in numbers], "files": files}
    with replacing(out) as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as zipped:  # no name, no time
        zipped.write(to_json(whole, out, separators=(",", ":")).encode())
    return out.stat().st_size


def first_answers(samples: list[dict]) -> list[dict]:
    first: dict[tuple, dict] = {}
    for row in samples:
        first.setdefault((row.get("task"), row.get("prompt"), row.get("gold")), row)
    return list(first.values())[:SAMPLES]


def rounded(row: dict) -> dict:
    return {k: float(f"{v:.{DIGITS}g}") if isinstance(v, float) else v for k, v in row.items()}


def columns(rows: Iterable[dict]) -> dict:
    """Rows as {key: its values}; of a key that some rows lack, {"rows": which, "values": ..}."""
    rows, out = list(rows), {}
    for key in dict.fromkeys(k for row in rows for k in row):
        where = [i for i, row in enumerate(rows) if key in row]
        values = [rows[i][key] for i in where]
        out[key] = values if len(where) == len(rows) else {"rows": where, "values": values}
    return out


def rows_of(columns: dict) -> list[dict]:
    """What `columns` was made from."""
    whole = {k: v for k, v in columns.items() if isinstance(v, list)}
    rows = [dict(zip(whole, values, strict=True)) for values in zip(*whole.values(), strict=True)]
    for key in columns.keys() - whole.keys():
        for i, value in zip(columns[key]["rows"], columns[key]["values"], strict=True):
            rows[i][key] = value
    return rows


def count_lists(value: Any, times: dict[str, int]) -> None:
    if isinstance(value, dict):
        for v in value.values():
            count_lists(v, times)
    elif isinstance(value, list) and len(value) >= LONG:
        text = json.dumps(value)
        times[text] = times.get(text, 0) + 1


def share(value: Any, numbers: dict[str, int]) -> Any:
    """The value with each list that stands in `numbers` (by its text) named by its number."""
    if isinstance(value, dict):
        return {k: share(v, numbers) for k, v in value.items()}
    number = numbers.get(json.dumps(value)) if isinstance(value, list) and len(value) >= LONG else None
    return value if number is None else {"list": number}


def unshare(value: Any, lists: list) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {"list"}:
        return list(lists[value["list"]])  # its own, so that no reader changes another's
    return {k: unshare(v, lists) for k, v in value.items()}


def unpacked(whole: dict, path: Path) -> dict[str, Any]:
    """Name -> content (JSONL: rows) of an archive."""
    try:
        files = {name: unshare(content, whole["lists"]) for name, content in whole["files"].items()}
        files = {inside(n, path): rows_of(c) if n.endswith(".jsonl") else c for n, c in files.items()}
        return {**files, "runs.json": whole["manifest"]}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: no archive of a study ({type(error).__name__}: {error}); {MEND}") from None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("study", metavar="FOLDER_OR_ARCHIVE")
    p.add_argument("--out", required=True, metavar="FILE_OR_FOLDER", help="the archive or, of an archive, the folder")
    p.add_argument("--also", nargs="*", default=[], metavar="NAME", help="more evaluations in the folder to pack")
    args = p.parse_args()
    out, study = Path(args.out), StudyFiles(args.study)
    if study.packed is None:
        print(f"wrote {out}: {pack(Path(args.study), out, args.also):,} bytes")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there and not an empty folder; choose another")
    for name in study.packed:
        study.copy(name, out)
    write_json(out / "runs.json", study.manifest)
    print(f"wrote {out}: {len(study.packed)} files and runs.json")


if __name__ == "__main__":
    run(main)
