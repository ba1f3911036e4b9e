"""What lies in a study's folder: where each run is, whether it is finished, which code made it.

runs/NAME-ADDRESS and evals/NAME-ADDRESS.json hold the runs, logs/ what they printed. A run's address is a hash of its
script, the flags that the plan gives it, its parents' addresses, the content of the data, and the kind of device unless
that is the CPU. It hangs neither on code nor on a script's defaults, so that a new flag or another default moves
nothing; instead every run records the hash of the code that made it (common.source_hash: of what its script imports,
without comments and layout), and a run of other code than today's is stale.
"""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

from common import source_hash
from data.files import UserError, read_json, read_jsonl
from data.prepare_corpus import MANIFEST
from study.check import evaluation_fault
from study.tasks import Task

HERE = Path(__file__).resolve().parent.parent  # where the stages lie
WATCHING = ("eval_every", "eval_tokens", "prompts_per_batch")  # flags that change no number of a run


def data_identity(folder: Path) -> str:
    """Hash of what training and evaluation read of a data folder; "" if there is none."""
    if not (folder / "meta.json").is_file():
        return ""
    meta = read_json(folder / "meta.json")
    digest = hashlib.sha256()
    read = [meta.get(key) for key in ("files", "mixes", "val", "block_size")]
    digest.update(json.dumps(read, sort_keys=True).encode())
    for path in sorted(path for kind in ("bin", "jsonl", "tiktoken") for path in folder.glob(f"*.{kind}")):
        if path.name == MANIFEST:  # how the tokens were made, not what they are
            continue
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


class Folder:
    """The runs of these tasks in a folder. `data`: identity of the data, `device`: its kind (cpu, cuda, mps)."""

    def __init__(self, path: Path, tasks: list[Task], data: str = "", device: str = "cpu"):
        self.dir, self.tasks, self.data, self.device = Path(path), tasks, data, device
        self.done: dict[str, dict] = {}  # output -> what runs.json keeps of a finished run: seconds, commit, source
        self._addresses: dict[Task, str] = {}
        self._results: dict[Path, tuple] = {}

    # ------------------------------------------------------------------------------------------------------- addresses
    def address(self, task: Task) -> str:
        if task.kind == "given":
            return task.record["address"]
        if task not in self._addresses:
            flags = {name: value for name, value in task.flags.items() if name not in WATCHING}
            parents = {flag: [self.address(parent), file] for flag, (parent, file) in task.inputs.items()}
            parts = [task.script, flags, parents, self.data, *([self.device] if self.device != "cpu" else [])]
            text = json.dumps(parts, sort_keys=True)
            self._addresses[task] = hashlib.sha256(text.encode()).hexdigest()[:10]
        return self._addresses[task]

    def path(self, task: Task, name: str | None = None) -> Path:
        """The task's output, or another file in its run folder. A "given" task is a checkpoint that lies elsewhere."""
        if task.kind == "given":
            return Path(task.record["path"])
        place = f"{task.name}-{self.address(task)}"
        if task.kind == "eval":
            return self.dir / "evals" / f"{place}.json"
        return self.dir / "runs" / place / (name or task.out)

    def out(self, task: Task) -> str:
        """Its output relative to the study's folder: the run's key in runs.json."""
        return self.path(task).relative_to(self.dir).as_posix()

    def log(self, task: Task) -> Path:
        return self.dir / "logs" / f"{task.name}-{self.address(task)}.log"

    # -------------------------------------------------------------------------------------------------------- finished
    def fault(self, task: Task, name: str | None = None) -> str:
        """Why a file of the task cannot be used, "" if it can: an evaluation whose scores follow from its counts, a
        checkpoint that is a whole file."""
        path = self.path(task, name)
        if not path.is_file():
            return "it is not there"
        if task.kind == "eval":
            return self._read(task)[0]
        return "" if zipfile.is_zipfile(path) else "it is no whole checkpoint"

    def _read(self, task: Task) -> tuple[str, str | None]:
        """(what is wrong with an evaluation, hash of the code that made it), read again only when its file changed."""
        path = self.path(task)
        stat = path.stat()
        if self._results.get(path, [None])[0] != (stat.st_mtime_ns, stat.st_size):
            try:
                result = read_json(path, "evaluation")
                found = evaluation_fault(result, task.flags), known(result.get("source"))
            except UserError as error:
                found = str(error), None
            self._results[path] = (stat.st_mtime_ns, stat.st_size), found
        return self._results[path][1]

    def broken(self) -> dict[Path, str]:
        """Evaluations and checkpoints that are there but cannot be used, and why."""
        found = {}
        for task in self.tasks:
            if task.kind == "eval" and self.path(task).is_file() and (fault := self.fault(task)):
                found[self.path(task)] = fault
            for path in self.checkpoints(task):
                if fault := self.fault(task, path.name):
                    found[path] = fault
        return found

    def checkpoints(self, task: Task) -> list[Path]:
        """Of a training run, by step."""
        return [] if task.kind == "eval" else sorted(self.path(task).parent.glob("ckpt_*.pt"))

    def finished(self, task: Task) -> bool:
        """Its output is there and consistent; or, of a run taken over without checkpoints, the log to the last step."""
        if not self.fault(task):
            return True
        logged = task.kind != "eval" and not self.path(task).exists()
        return logged and self.last_row(task).get("step") == task.flags["steps"]

    def last_row(self, task: Task) -> dict:
        """Of a training run's metrics; empty if it has none yet."""
        path, rows = self.path(task, "metrics.jsonl"), []
        if path.is_file():
            rows = [row for _, row in read_jsonl(path, dropped=[])]
        return rows[-1] if rows else {}

    def ready(self, task: Task) -> bool:
        """Is what it starts from there?"""
        return not any(self.fault(parent, file) for parent, file in task.inputs.values())

    def to_do(self) -> list[Task]:
        """What is not finished, and what that needs, in the plan's order. Checkpoints are made again only for runs that
        start from them."""
        wanted: dict[Task, None] = {}

        def want(task: Task) -> None:
            if task not in wanted and self.fault(task):
                for parent, file in task.inputs.values():
                    if self.fault(parent, file):
                        want(parent)
                wanted[task] = None

        for task in self.tasks:
            if not self.finished(task):
                want(task)
        return list(wanted)

    # ------------------------------------------------------------------------------------------------- the code behind
    def source(self, task: Task) -> str | None:
        """Hash of the code that made what lies there, finished or not; None if it is not known, or not one."""
        if task.kind == "eval":
            return self._read(task)[1] if self.path(task).is_file() else None
        try:
            return source_of_run(read_json(self.path(task, "config.json")))
        except UserError:
            return None

    def stale(self) -> list[Task]:
        """What other code than today's made, and what hangs on that; but not what was accepted as it is."""
        found, affected = [], set()  # affected: what lies there, and what would start from it
        today = {script: source_hash(HERE / script) for script in {task.script for task in self.tasks}}
        for task in self.tasks:
            kept, source = self.done.get(self.out(task), {}), self.source(task)
            current = source == today[task.script] or ("accepted" in kept and kept["accepted"] == source)
            left = self.path(task) if task.kind == "eval" else self.path(task, "config.json")
            begun = left.exists() or bool(self.checkpoints(task))
            if (begun and not current) or any(parent in affected for parent, _ in task.inputs.values()):
                affected.add(task)
                found += [task] if begun else []
        return found

    def accept(self, tasks: list[Task]) -> None:
        """Take these as they are, whatever code made them; runs.json says so, and which code it was."""
        for task in tasks:
            self.done.setdefault(self.out(task), {})["accepted"] = self.source(task)

    def set_aside(self, tasks: list[Task]) -> Path:
        """Move what lies there of these tasks to other_code/SOURCE, what hangs on others first: cut off anywhere, the
        rest is still stale."""
        for task in reversed(tasks):
            self.done.pop(self.out(task), None)
            aside, path = self.dir / "other_code" / (self.source(task) or "unknown"), self.path(task)
            whole = [path, path.with_suffix(".samples.jsonl")] if task.kind == "eval" else [path.parent]
            for old in [*whole[::-1], self.log(task)]:
                new = aside / old.relative_to(self.dir)
                if old.exists():
                    new.parent.mkdir(parents=True, exist_ok=True)
                    shutil.rmtree(new) if new.is_dir() else new.unlink(missing_ok=True)
                    old.rename(new)
        return self.dir / "other_code"


def source_of_run(config: dict) -> str | None:
    """From a run folder's config.json: the one hash of all calls that made it (`earlier`: before each --resume)."""
    earlier = config.get("earlier", [])
    calls = [config, *earlier] if isinstance(earlier, list) else []
    sources = [call.get("source") if isinstance(call, dict) else None for call in calls]
    return known(sources[0]) if sources and sources.count(sources[0]) == len(sources) else None


def known(source) -> str | None:
    """A hash as common.source_hash writes it; None for what a hand has put there, which may be a path."""
    return source if isinstance(source, str) and source.isalnum() else None
