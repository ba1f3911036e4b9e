"""Finished work of another machine or call, taken over: evaluations, and logs of runs, at the addresses of this plan.

Nothing is trusted: a file must be a plain file inside the folder, readable, of the settings that its address names,
with scores that follow from its counts. Runs that other code made are refused unless they are accepted as they are.
"""

import math
from pathlib import Path

from common import source_hash
from data.files import UserError, read_jsonl, write_json, write_jsonl
from study.archive import StudyFiles, samples_of
from study.check import evaluation_fault, settings_fault
from study.folder import HERE, Folder, source_of_run
from study.manifest import check_places, kept_of
from study.tasks import Task

MEND = "mend it or leave --known out"


def take_over(folder: Folder, given: Path, accept_other_source: bool = False) -> int:
    """Copy what is finished in `given` (a study's folder or archive) and not here; returns how many runs. All is
    checked before anything is written."""
    theirs = Theirs(given, folder)
    if theirs.files.packed is None and theirs.files.folder.resolve() == folder.dir.resolve():
        return 0
    found = {task: theirs.finished_files(task) for task in folder.tasks if not folder.finished(task)}
    found = {task: files for task, files in found.items() if files}
    other = [task for task in found if not theirs.is_current(task)]
    if other and not accept_other_source:
        first = f"{other[0].name} by {theirs.source(other[0]) or 'unknown'}"
        raise UserError(
            f"--known {given}: {len(other)} of its runs were made by other code than today's ({first}); "
            "--accept-other-source takes them over all the same, and the report names them"
        )
    for task, files in found.items():
        for name, content in files.items():
            write = write_jsonl if name.endswith(".jsonl") else write_json
            (folder.dir / name).parent.mkdir(parents=True, exist_ok=True)
            write(folder.dir / name, content)
        folder.done[folder.out(task)] = kept_of(theirs.rows[folder.out(task)])
    folder.accept(other)
    return len(found)


class Theirs:
    """Another study, seen from this one's plan."""

    def __init__(self, given: Path, folder: Folder):
        self.given, self.folder, self.files = given, folder, StudyFiles(given)
        check_places(self.files.manifest, self.files.path, MEND)
        self.rows = {row["out"]: row for row in self.files.manifest["runs"]}
        self.today = {script: source_hash(HERE / script) for script in {task.script for task in folder.tasks}}

    def refuse(self, name: str, why: str) -> UserError:
        return UserError(f"--known {self.given}: {name}: {why}; {MEND}")

    def has(self, name: str) -> bool:
        if self.files.packed is None:
            path, root = self.files.place(name), self.files.folder
            if any(p.is_symlink() for p in [path, *path.parents[: len(path.relative_to(root).parts) - 1]]):
                raise self.refuse(name, "it is or lies behind a symbolic link, which may lead out of the folder")
            if path.exists() and not path.is_file():
                raise self.refuse(name, "it is no plain file")
        return self.files.has(name)

    def json(self, name: str) -> dict:
        value = self.files.json(name) if self.has(name) else {}
        if not isinstance(value, dict):
            raise self.refuse(name, "it is no JSON object")
        return value

    def lines(self, name: str) -> list[dict]:
        if not self.has(name):
            return []
        if self.files.packed is None:
            return [row for _, row in read_jsonl(self.files.place(name))]
        return self.files.rows(name)

    def finished_files(self, task: Task) -> dict[str, dict | list]:
        """Name -> content of what a finished run has left there, checked; empty if it is not finished there."""
        out = self.folder.out(task)
        if out not in self.rows:
            return {}
        if task.kind != "eval":
            return self.finished_log(task)
        result = self.json(out)
        if fault := result and evaluation_fault(result, task.flags):
            raise self.refuse(out, fault)
        samples = samples_of(self.rows[out])
        return {out: result, samples: self.lines(samples)} if result else {}

    def finished_log(self, task: Task) -> dict[str, dict | list]:
        names = [f"{Path(self.folder.out(task)).parent.as_posix()}/{file}" for file in ("metrics.jsonl", "config.json")]
        rows, config = self.lines(names[0]), self.json(names[1])
        if not rows or rows[-1].get("step") != task.flags["steps"]:
            return {}
        steps = [row.get("step") for row in rows]
        if not all(type(step) is int for step in steps) or sorted(set(steps)) != steps:
            raise self.refuse(names[0], "its steps do not go up one by one")
        numbers = [value for row in rows for value in row.values() if value is not None]
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers):
            raise self.refuse(names[0], "it holds other than finite numbers")
        if config and (fault := settings_fault(config, task.flags)):
            raise self.refuse(names[1], fault)
        return {names[0]: rows} | ({names[1]: config} if config else {})

    def source(self, task: Task) -> str | None:
        """Hash of the code that made it: as its own file says, else as runs.json says."""
        out = self.folder.out(task)
        own = self.json(out) if task.kind == "eval" else self.json(f"{Path(out).parent.as_posix()}/config.json")
        found = own.get("source") if task.kind == "eval" else source_of_run(own)
        return found or self.rows.get(out, {}).get("source")

    def is_current(self, task: Task) -> bool:
        """Did today's code make it, and all that it hangs on?"""
        return self.source(task) == self.today[task.script] and all(
            self.is_current(parent) for parent, _ in task.inputs.values() if parent.kind != "given"
        )
