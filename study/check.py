"""Is a result what its command asked for, and do its scores follow from its counts? Of a study's own files and of those
that it is given. Each check returns what is wrong, "" if nothing is."""

from collections.abc import Iterable

from data.files import UserError
from data.math_qa import TASKS
from evaluate import ACCURACY, mean_stderr, pass_at_k

COUNTS = ("strict", "flexible", "formatted", "finished")  # of each question, among its n samples


def evaluation_fault(result: dict, flags: dict) -> str:
    """`result`: what evaluate.py wrote; `flags`: those it was called with."""
    try:
        return next(filter(None, _evaluation_faults(result, flags)), "")
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        return f"it is garbled ({type(error).__name__}: {error})"


def _evaluation_faults(result: dict, flags: dict) -> Iterable[str]:
    settings = result["settings"]
    yield settings_fault(settings, flags)
    for part, asked_here in (("questions", True), ("benchmarks", False)):
        tasks = [task for task in settings["tasks"] if (task in TASKS) == asked_here]
        if set(result[part]) != set(tasks):
            yield f"its {part} are {' '.join(result[part]) or 'none'}, not {' '.join(tasks) or 'none'}"
    for task, found in result["questions"].items():
        yield _questions_fault(task, found, settings)
    leading = {name: bench[ACCURACY.get(name, "acc_norm")] for name, bench in result["benchmarks"].items()}
    for name, bench in result["benchmarks"].items():
        hits = [int(digit) for digit in bench["hits"]]
        if not hits or not set(hits) <= {0, 1} or len(bench["facts"]) != len(hits):
            yield f"the hits of {name} are no list of 0 and 1"
        elif differ(leading[name], sum(hits) / len(hits)):
            yield f"{name} scores {leading[name]}, its hits give {sum(hits) / len(hits)}"
    if leading and differ(result["general_average"], sum(leading.values()) / len(leading)):
        yield f"general_average is {result['general_average']}, its benchmarks give another"


def _questions_fault(task: str, found: dict, settings: dict) -> str:
    columns, n, limit = found["questions"], settings["n_samples"], settings["limit"]
    size = len(columns["qid"])
    if not 0 < size <= (limit or size) or size != found["n_questions"]:
        return f"{task} has {size} questions, {limit} were asked for"
    if any(len(column) != size for column in columns.values()) or set(columns["n"]) != {n}:
        return f"{task} does not hold {n} samples of each of {size} questions"
    if not all(type(c) is int and 0 <= c <= n for name in COUNTS for c in columns[name]):
        return f"{task} counts others than 0 to {n} completions a question"
    if any(sum(answers.values()) != n for answers in columns["answers"]):
        return f"the answers of {task} are not {n} a question"
    for scoring in ("flexible", "strict"):
        for k in settings["k"]:
            want, got = mean_stderr([pass_at_k(n, c, k) for c in columns[scoring]]), found[scoring][f"pass@{k}"]
            if any(differ(got[key], want[key]) for key in want):
                return f"{task} {scoring} pass@{k} is {got['value']}, its counts give {want['value']}"
    for rate, counted in (("format_rate", "formatted"), ("finish_rate", "finished")):
        if differ(found[rate], sum(columns[counted]) / size / n):
            return f"{rate} of {task} is {found[rate]}, its counts give another"
    return ""


def settings_fault(settings: dict, flags: dict) -> str:
    for name, value in flags.items():
        if settings.get(name) != value:
            return f"it was made with --{name.replace('_', '-')} {settings.get(name)}, not {value}"
    return ""


def differ(a: float, b: float) -> bool:
    return not abs(a - b) < 1e-9  # NaN differs from everything
