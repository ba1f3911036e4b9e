"""Did two studies come out the same? Evaluations, samples and logs of the runs that both have finished, by name.

    python -m tools.same_runs runs/smoke docs/results/laptop      # folders or archives, of any version of this code

Scores, counts, answers, weights' hashes and metrics must be equal to the last bit (to seven digits where an archive,
which rounds and thins its logs, is one of the two). Times, paths and the hash of the code are left out; what only one
of the two records is named. Ends with exit code 1 if anything differs. `--without answers`: of two versions that read
answers differently, all but which answers were read.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from common import run
from study.archive import StudyFiles, samples_of

RESULTS = ("checkpoint", "questions", "benchmarks", "general_average", "movement")  # of an evaluation
LEFT_OUT = ("file", "parent", "source")  # names of files and of code, at any depth
WHOLE = ("answers",)  # dictionaries whose keys are results
DIGITS = 1e-6


def differences(a: Any, b: Any, left_out: Iterable[str], rounded: bool, where: str = "") -> Iterator[str]:
    """Of nested values, in what both have; "+ key" and "- key" for what only b or only a has."""
    if isinstance(a, dict) and isinstance(b, dict) and not where.rpartition("/")[0].endswith(WHOLE):
        for key in [k for k in {**a, **b} if k not in left_out and not str(k).startswith("perf/")]:
            if key in a and key in b:
                yield from differences(a[key], b[key], left_out, rounded, f"{where}/{key}")
            else:
                yield f"{'-' if key in a else '+'} {where}/{key}"
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, left_out, rounded, f"{where}/{i}")
    elif a != b and not (rounded and isinstance(a, float) and math.isclose(a, b, rel_tol=DIGITS)):
        yield f"{where}: {a!r:.60} | {b!r:.60}"


def results_of(study: StudyFiles, row: dict, thinned: bool) -> dict:
    if row["kind"] != "eval":
        rows = study.rows(row["metrics"])
        return {
            "log": {line["step"]: line for line in rows},
            "steps": 0 if thinned else [line["step"] for line in rows],
        }
    found = study.json(row["out"]) or {}
    samples = {(line.get("task"), line.get("prompt")): line for line in reversed(study.rows(samples_of(row)))}
    return {key: found[key] for key in RESULTS if key in found} | {"first samples": samples}


def compare(a: StudyFiles, b: StudyFiles, without: Iterable[str] = ()) -> bool:
    """Print what is equal and what differs; True if nothing differs. `without`: keys left out at any depth."""
    finished = [{row["name"]: row for row in s.manifest["runs"] if row["finished"]} for s in (a, b)]
    both = [name for name in finished[0] if name in finished[1]]
    archived = a.packed is not None or b.packed is not None
    equal, only = {"eval": 0, "log": 0}, set()
    for name in both:
        x, y = (results_of(s, found[name], archived) for s, found in zip((a, b), finished, strict=True))
        if "log" in x:
            steps = x["log"].keys() & y["log"].keys()
            x["log"], y["log"] = ({step: r["log"][step] for step in steps} for r in (x, y))
        told = list(differences(x, y, {*LEFT_OUT, *without}, archived))
        only |= {line[0] + line.rsplit("/", 1)[-1] for line in told if line[0] in "+-"}
        if different := [line for line in told if line[0] not in "+-"]:
            print(f"DIFFERENT {name}: {different[0]}" + f" and {len(different) - 1} more" * (len(different) > 1))
        else:
            equal["log" if "log" in x else "eval"] += 1
    for number, study in enumerate((a, b)):
        if alone := [name for name in finished[number] if name not in both]:
            print(f"finished only in {study.path}: {len(alone)} runs ({alone[0]}, ..)")
    for sign, study in (("-", a), ("+", b)):
        if keys := sorted(key[1:] for key in only if key[0] == sign):
            print(f"recorded only in {study.path}: {' '.join(keys[:12])}" + " .." * (len(keys) > 12))
    print(f"{len(both)} runs in both: {equal['eval']} evaluations and {equal['log']} logs equal", end=", ")
    print(f"{len(both) - sum(equal.values())} different")
    return bool(both) and sum(equal.values()) == len(both)


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m tools.same_runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("a", metavar="A", help="a study's folder or archive")
    p.add_argument("b", metavar="B", help="another")
    p.add_argument("--without", nargs="+", default=[], metavar="KEY", help="leave these out, at any depth")
    args = p.parse_args()
    sys.exit(0 if compare(StudyFiles(args.a), StudyFiles(args.b), args.without) else 1)


if __name__ == "__main__":
    run(main)
