"""One call of `python -m study`: the world, what is there already, the runs, the report."""

import shlex
import time
from itertools import groupby
from pathlib import Path

from common import lock, writable_dir
from data.files import UserError
from study.clock import told
from study.folder import HERE, Folder, data_identity
from study.known import take_over
from study.manifest import header_of, kept_of, read_manifest, write_manifest
from study.runner import Runner, shown
from study.setup import corpus_command, find_devices, make_corpus, make_world, world_command
from study.tasks import Plan, Task, cores, words

NAMED = 6  # runs named in a line


class Session:
    """These tasks carried out in the folder --out. `args`: of the command line."""

    def __init__(self, args, tasks: list[Task], data: Path):
        self.args, self.data, self.began, self.earlier = args, data, time.time(), 0.0  # earlier: seconds of past calls
        self.devices = find_devices(args.device)
        kind = self.devices[0].split(":")[0]
        self.jobs = args.jobs or (cores() if kind == "cpu" else len(self.devices))
        self.folder = Folder(args.out, tasks, data_identity(data), kind)
        if (args.out / "runs.json").exists():
            old = read_manifest(args.out / "runs.json")
            self.earlier = float(old.get("seconds") or 0)
            self.folder.done = {row["out"]: kept_of(row) for row in old["runs"] if row.get("finished")}

    def run_missing(self, header: dict) -> list[str]:
        """Run what is not there, or not of today's code; returns the names of runs that failed. `header`: what
        runs.json says of the whole."""
        args, folder = self.args, self.folder
        self.put_in_order()

        def save() -> None:
            seconds = round(self.earlier + time.time() - self.began, 1)
            write_manifest(runner, header | {"seconds": seconds})

        runner = Runner(folder, self.data, self.jobs, args.minutes, self.devices, save)
        todo, logs = folder.to_do(), shown(args.out / "logs")
        print(f"{len(todo)} runs to do, {told(todo, self.jobs)} | logs: {logs}", flush=True)
        save()  # what was accepted is known from now on
        failed = runner.run()
        save()
        return failed

    def put_in_order(self) -> None:
        """Move away what cannot be used and what other code made, and say so."""
        for path, fault in self.folder.broken().items():
            print(f"{shown(path)} is made again: {fault}")
            path.replace(path.with_name(path.name + ".broken"))
        stale = self.folder.stale()
        if stale and self.args.accept_other_source:
            self.folder.accept(stale)
            print(f"kept, though other code than today's made them: {named(stale)}")
        elif stale:
            aside = shown(self.folder.set_aside(stale))
            print(f"made again, as other code than today's made them or what they start from: {named(stale)}")
            print(f"the old ones lie in {aside}, and may be removed; --accept-other-source would have kept them")


class Study(Session):
    """The runs of a preset, and its report."""

    def __init__(self, args, plan: Plan):
        corpus, own_world = "corpus" in plan.p, plan.p.get("world")
        data = args.out / "data" if corpus else args.out / "world" if own_world else HERE / "data" / "world"
        super().__init__(args, plan.tasks, data)
        self.plan = plan

    def run(self) -> None:
        args, folder = self.args, self.folder
        writable_dir(args.out)
        lock(args.out)
        setup = self.make_data()
        folder.data = data_identity(self.data)
        if args.known:
            print(f"{take_over(folder, Path(args.known), args.accept_other_source)} runs taken over from {args.known}")
        header = header_of(self.plan, self.jobs, folder.device, setup, self.data)
        failed = self.run_missing(header)
        self.report()
        refuse_failed(failed)

    def make_data(self) -> list[str]:
        """The world, or token files of real text, unless they are there; returns the command that makes them."""
        p, logs = self.plan.p, self.args.out / "logs"
        if "corpus" in p:
            make_corpus(self.data, p["corpus"], logs / "corpus.log")
            return corpus_command(self.data, p["corpus"])
        make_world(self.data, p["world"], logs / "world.log", own=bool(p["world"]))
        return world_command(self.data, p["world"])

    def report(self) -> None:
        from study import real, report, summary, tuning  # loads matplotlib
        from study.read import Lab
        from study.render import markdown

        if self.plan.preset == "tuning":
            print(tuning.page(Lab(self.folder.dir)))
            return
        print("writing the report and its figures", flush=True)
        path = report.build(self.folder.dir)
        lab = Lab(self.folder.dir)
        print(markdown([real.scores(lab), real.benchmarks(lab)]) if real.is_real(lab) else summary.table(lab))
        print(f"wrote {shown(path)}")

    def print_plan(self) -> None:
        """Every run in order, under the part of the plan that asks for it, and the time at which that part ends. What
        is finished costs nothing, unless other code made it."""
        folder, spent, place = self.folder, 0.0, []
        stale = folder.stale()
        for block, tasks in groupby(self.plan.tasks, key=lambda task: task.block):
            costs = [(task, 0.0 if folder.finished(task) and task not in stale else task.cost) for task in tasks]
            spent += sum(task.seconds(self.jobs) * task.cores(self.jobs) for task, cost in costs if cost)
            place.append(f"{spent / 60 / self.jobs:5.0f} min | {len(costs):3d} runs | {block}")
            print(f"\n# {block}")
            for task, cost in costs:
                why = "  (made by other code)" * (task in stale)
                print(f"{cost:6.0f} s  {task.name:<44} {task.script} {shlex.join(words(task.flags))}{why}")
        what = f"{len(self.plan.tasks)} runs, {self.jobs} side by side; with AVX-512 and bfloat16 done after about"
        print(f"\n{what}:", *place, sep="\n")
        left = [task for task in self.plan.tasks if not folder.finished(task) or task in stale]
        print(f"all of it: {told(self.plan.tasks, self.jobs)}")
        print(f"{len(left)} runs left: {told(left, self.jobs)}" if left else "0 runs left")


def named(tasks: list[Task]) -> str:
    names = ", ".join(task.name for task in tasks[:NAMED])
    return names + (f" and {len(tasks) - NAMED} more" if len(tasks) > NAMED else "")


def refuse_failed(names: list[str]) -> None:
    if names:
        what = "mend what their logs say, then run this again"
        raise UserError(f"{len(names)} run{'s' * (len(names) > 1)} failed ({', '.join(names)}): {what}")
