"""pass@k of a world's questions by their number of events, from what evaluate.py wrote.

python -m tools.by_events runs/base/val.json                # counts in the folder that was evaluated
python -m tools.by_events runs/base/val.json --task long --data data/world
"""

import argparse
from collections import defaultdict
from pathlib import Path

from common import UserError, run
from data.files import field, read_json, read_rows
from data.pass_at_k import pass_at_k
from evaluate import mean_stderr, percent


def events_of(path: Path, task: str) -> dict[str, int]:
    """qid -> number of events, of a world's file of questions."""
    chains: dict[str, str] = {}
    for where, row in read_rows(path):
        if row.get("problem_source") == task:
            chains.setdefault(field(row, "problem", str, where), field(row, "chain", str, where))
    return {f"{task}/{i}": len(chain.split()) - 2 for i, chain in enumerate(chains.values())}


def by_events(evaluation: Path, task: str, data: str | None) -> tuple[list[int], dict[int, dict[int, dict]]]:
    """(every k, number of events -> {k: mean and error of flexible pass@k, 0: how many questions})."""
    mend = "give the JSON file that evaluate.py wrote"
    found = read_json(evaluation, "evaluation", mend=mend)
    settings, tasks = (field(found, name, dict, evaluation, mend) for name in ("settings", "questions"))
    if task not in tasks:
        raise UserError(f"{evaluation}: no task {task!r} in it; it has {', '.join(tasks)}")
    events = events_of(Path(data or settings["data"]) / f"{settings['split']}.jsonl", task)
    rows, ks = tasks[task]["questions"], settings["k"]
    groups = defaultdict(list)
    for qid, n, right in zip(rows["qid"], rows["n"], rows["flexible"], strict=True):
        if qid not in events:
            raise UserError(f"{evaluation}: its question {qid} is not in the data folder; name its own with --data")
        groups[events[qid]].append((n, right))
    table = {
        count: {k: mean_stderr([pass_at_k(n, right, k) for n, right in groups[count]]) for k in ks}
        | {0: len(groups[count])}
        for count in sorted(groups)
    }
    return ks, table


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m tools.by_events", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("evaluations", nargs="+", metavar="FILE.json", help="of evaluate.py")
    p.add_argument("--task", default="gsm", help="question set (default gsm)")
    p.add_argument("--data", help="the world's folder; default: where it lay")
    args = p.parse_args()
    for path in args.evaluations:
        ks, table = by_events(Path(path), args.task, args.data)
        print(f"{path}\n{'events':>8}{'questions':>11}" + "".join(f"{f'pass@{k}':>16}" for k in ks))
        for count, row in table.items():
            print(f"{count:>8}{row[0]:>11}" + "".join(f"{percent(**row[k]):>16}" for k in ks))


if __name__ == "__main__":
    run(main)
