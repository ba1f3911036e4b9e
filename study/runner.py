"""Runs what is not finished: independent runs side by side, each as soon as what it starts from and its cores are
there. Stages are called as a user would call them; what they print goes to logs/."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from common import git_commit, source_hash
from data.files import UserError, read_json
from study.folder import HERE, Folder
from study.tasks import Task, minutes, words

PATIENCE = 120  # seconds that stages get to save when the study is stopped
SILENCE = 30  # seconds without a line, after which it says where the running stages are
CLEAR = "\r\x1b[2K"  # what stands in the terminal's line
GLANCE = 3  # the same on a terminal, where one line is written over


@dataclass
class Running:
    task: Task
    process: subprocess.Popen
    slots: list[int]  # of --jobs
    began: float = field(default_factory=time.time)


class Runner:
    """`devices`: one is given to each run in turn. `limit`: minutes; 0 = none. `on_finished`: called after each."""

    def __init__(
        self,
        folder: Folder,
        data: Path,
        jobs: int = 1,
        limit: float = 0,
        devices: tuple[str, ...] = ("cpu",),
        on_finished: Callable[[], None] | None = None,
    ):
        self.folder, self.data, self.jobs, self.devices = folder, data, jobs, devices
        self.limit, self.on_finished = limit, on_finished
        self.todo: list[Task] = []
        self.running: list[Running] = []
        self.failed: list[str] = []
        self.began = self.last_line = time.time()
        self.done_cost = self.total_cost = 0.0
        self.sources = {name: source_hash(HERE / name) for name in dict.fromkeys(task.script for task in folder.tasks)}

    # -------------------------------------------------------------------------------------------------------- the loop
    def run(self) -> list[str]:
        """Run what is missing, `jobs` at a time; returns the names of runs that failed. A failed run stops what depends
        on it, not the rest; after `limit` minutes nothing new is begun. Stopped by Ctrl-C, SIGTERM or a closed terminal
        it lets the stages save and raises KeyboardInterrupt."""
        self.todo = self.folder.to_do()
        self.total_cost, self.began = sum(map(self.core_seconds, self.todo)), time.time()
        with Signals() as signals:
            try:
                while not signals.got and (self.running or self.next_up()):
                    self.begin()
                    time.sleep(0.5)
                    for run in [r for r in self.running if r.process.poll() is not None]:
                        self.running.remove(run)
                        self.end(run)
                    self.report_silence()
            finally:
                self.stop(signals)
        if signals.got:
            raise KeyboardInterrupt(signals.name)
        return self.failed + [f"{t.name} (a checkpoint that it needs was not written)" for t in self.todo]

    def next_up(self) -> list[Task]:
        """What can begin now, in the plan's order; but a pre-training, which takes long, waits until all that is before
        it in the plan has begun, or nothing else can."""
        if self.limit and time.time() - self.began > 60 * self.limit:
            self.todo = []
        ready = [task for task in self.todo if self.folder.ready(task)]
        return [t for t in ready if t.kind != "pretrain" or t is self.todo[0]] or ready[: int(not self.running)]

    def begin(self) -> None:
        free = sorted(set(range(self.jobs)) - {slot for run in self.running for slot in run.slots})
        for task in self.next_up() if free else []:
            taken = self.cores(task)
            if taken > len(free):
                break  # it waits for a core, and what is after it in the plan for its turn
            slots, free = free[:taken], free[taken:]
            self.todo.remove(task)
            self.running.append(Running(task, self.start(task, slots[0]), slots))
            if task.cost > 60:
                self.say(f"began {task.name}, about {minutes(task.seconds(taken))}: {shown(self.folder.log(task))}")

    def cores(self, task: Task) -> int:
        """Of --jobs; a GPU is given whole."""
        return task.cores(self.jobs) if self.devices[0] == "cpu" else 1

    def core_seconds(self, task: Task) -> float:
        return task.seconds(self.cores(task)) * self.cores(task)

    def start(self, task: Task, slot: int) -> subprocess.Popen:
        """In a session of its own, so that Ctrl-C reaches the study alone, which then stops it."""
        if (now := source_hash(HERE / task.script)) != self.sources[task.script]:
            self.sources[task.script] = now
            said = f"note: the code of {task.script} was edited; its runs from here on are made by the new code"
            self.say(f"{said}, and the next call makes those again that the old code made")
        command = self.command(task, slot)
        log = self.folder.log(task)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as out:
            out.write(f"$ {shlex.join(command)}\n")
            out.flush()
            env = {**os.environ, "OMP_NUM_THREADS": f"{self.cores(task)}", "PYTHONIOENCODING": "utf-8"}
            env["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [env.get("PYTHONPATH")])])  # for forks
            return subprocess.Popen(
                [sys.executable, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=HERE,
                env=env,
                start_new_session=True,
            )

    def command(self, task: Task, slot: int = 0, fresh: bool = False) -> list[str]:
        """The stage's command line; a run that was cut off goes on from its last checkpoint."""
        path, device = self.folder.path(task), self.devices[slot % len(self.devices)]
        out = path if task.kind == "eval" else path.parent
        if not fresh and self.folder.checkpoints(task):
            return ["python", task.script, "--resume", shown(out)]
        inputs = {flag: shown(self.folder.path(parent, name)) for flag, (parent, name) in task.inputs.items()}
        flags = {**inputs, "data": shown(self.data), **task.flags, "threads": self.cores(task)}
        flags |= {"device": device, "out": shown(out)}
        return ["python", task.script, *words(flags)]

    def end(self, run: Running) -> None:
        task, seconds = run.task, time.time() - run.began
        if run.process.returncode or (fault := self.folder.fault(task)):
            why = f"exit code {run.process.returncode}" if run.process.returncode else fault
            self.failed.append(task.name)
            self.todo = [t for t in self.todo if self.folder.ready(t) or not t.needs(task)]
            last = last_line(self.folder.log(task)).removeprefix("error: ")
            self.say(f"FAILED {task.name} ({why}): {last or 'it printed nothing'} | {shown(self.folder.log(task))}")
            return
        kept = self.folder.done.setdefault(self.folder.out(task), {})
        kept["seconds"] = round((kept.get("seconds") or 0.0) + seconds, 1)
        kept |= {"commit": git_commit()[0], "source": self.folder.source(task), "threads": self.cores(task)}
        if task.kind == "train" and not {"save_every", "save_at"} & task.flags.keys():
            for path in set(self.folder.checkpoints(task)) - {self.folder.path(task)}:
                path.unlink()  # it was kept for a crash, and no run starts from it
        self.done_cost += self.core_seconds(task)
        left = f"{len(self.todo) + len(self.running)} left, about {minutes(self.seconds_left())}"
        self.say(f"done  {task.name:<46} {outcome(self.folder, task):<44} | {minutes(seconds)} | {left}")
        if self.on_finished:
            self.on_finished()

    def stop(self, signals: "Signals") -> None:
        """Let the running stages save, for a while; a second signal, or the end of patience, kills them."""
        if self.running:
            saving = "run saves what it has" if len(self.running) == 1 else "runs save what they have"
            self.say(f"stopping: {len(self.running)} {saving} (Ctrl-C again ends it at once)")
        for run in self.running:
            run.process.terminate()
        began, before = time.time(), signals.got
        while any(run.process.poll() is None for run in self.running):
            if signals.got > before or time.time() - began > PATIENCE:
                for run in self.running:
                    run.process.kill()
            time.sleep(0.1)

    # ----------------------------------------------------------------------------------------------------- what it says
    def say(self, line: str) -> None:
        print(f"{CLEAR if sys.stdout.isatty() else ''}{line}", flush=True)
        self.last_line = time.time()

    def seconds_left(self) -> float:
        spent = {run.task: (time.time() - run.began) * len(run.slots) for run in self.running}
        under_way = sum(min(self.core_seconds(task), seconds) for task, seconds in spent.items())
        done = self.done_cost + under_way
        return (time.time() - self.began) / done * (self.total_cost - done) if done else self.total_cost / self.jobs

    def report_silence(self) -> None:
        quiet = time.time() - self.last_line
        if self.running and sys.stdout.isatty() and quiet > GLANCE:
            at = " || ".join(f"{run.task.name}: {last_line(self.folder.log(run.task))[:60]}" for run in self.running)
            print(f"{CLEAR}{at[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
            self.last_line = time.time()
        elif self.running and quiet > SILENCE:
            for run in self.running:
                self.say(f"      {run.task.name}: {last_line(self.folder.log(run.task))[:100]}")


class Signals:
    """While the block runs, SIGINT, SIGTERM and SIGHUP are counted instead of ending the process."""

    def __enter__(self):
        self.got, self.name = 0, ""
        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        self.before = {number: signal.signal(number, self.count) for number in [getattr(signal, n) for n in names]}
        return self

    def count(self, number: int, _frame) -> None:
        self.got += 1
        self.name = signal.Signals(number).name

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def outcome(folder: Folder, task: Task) -> str:
    """A finished run in a few words: an evaluation's scores, a training run's last reward or loss."""
    if task.kind != "eval":
        row = folder.last_row(task)
        named = {"reward/mean": "reward", "eval/loss": "validation loss", "train/loss": "loss"}
        return next((f"{name} {row[key]:.3f}" for key, name in named.items() if row.get(key) is not None), "")
    try:
        result = read_json(folder.path(task))
    except UserError:
        return ""
    told = []
    for name, found in result["questions"].items():
        at = {k: found["flexible"][f"pass@{k}"] for k in (1, 32) if f"pass@{k}" in found["flexible"]}
        told += [f"{name} " + " ".join(f"pass@{k} {100 * score['value']:.1f}" for k, score in at.items())]
    told += [f"general {100 * result['general_average']:.1f}"] if "general_average" in result else []
    return ", ".join(told)


def last_line(path: Path) -> str:
    """Of a log, without its beginning being read."""
    try:
        with open(path, "rb") as log:
            log.seek(max(0, path.stat().st_size - 4000))
            lines = log.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def shown(path: Path) -> str:
    """As seen from the folder of the stages, where commands run; a path elsewhere whole."""
    path = Path(path)
    return str(path.relative_to(HERE)) if path.is_relative_to(HERE) else str(path)
