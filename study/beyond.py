"""By number of events: does RL add anything beyond what pre-training read?"""

import numpy as np

from study.read import NAMES, Lab, per_question, subtract
from study.stats import Comparison
from study.tasks import amount as at

METHODS = ("base", "rl", "sft", "sft_rl", "parallel", "gold")
WITHIN = "gsm"


def found(lab: Lab, method: str) -> dict[int, dict]:
    return lab.base(lab.late) if method == "base" else lab.by_seed(method, lab.late)


def tasks(lab: Lab) -> list[str]:
    """The question sets asked at the late checkpoint: within the text's lengths, and beyond."""
    results = [r for m in METHODS for r in found(lab, m).values()]
    return list(dict.fromkeys(task for r in results for task in r["questions"]))


def by_events(lab: Lab, result: dict, task: str, k: int) -> dict[int, list[float]]:
    """Number of events -> scores of its questions."""
    qids, scores, out = result["questions"][task]["questions"]["qid"], per_question(result, k, task=task), {}
    for qid, score in zip(qids, scores, strict=True):
        if qid in lab.events:
            out.setdefault(lab.events[qid], []).append(float(score))
    return dict(sorted(out.items()))


def curve(lab: Lab, method: str, k: int) -> dict[int, tuple[float, int]]:
    """Number of events -> (mean over seeds, questions)."""
    each: dict[int, list[tuple[float, int]]] = {}
    for result in found(lab, method).values():
        for task in tasks(lab):
            if task in result["questions"]:
                for n, scores in by_events(lab, result, task, k).items():
                    each.setdefault(n, []).append((float(np.mean(scores)), len(scores)))
    return {n: (float(np.mean([s for s, _ in got])), got[0][1]) for n, got in sorted(each.items())}


def edge(lab: Lab) -> int | None:
    """The most events of a question within."""
    within = [n for qid, n in lab.events.items() if qid.startswith(f"{WITHIN}/")]
    return max(within, default=None)


def table(lab: Lab) -> tuple:
    rows = []
    for k in (1, 32):
        curves = {m: curve(lab, m, k) for m in METHODS}
        places = sorted({n for c in curves.values() for n in c})
        for m, c in curves.items():
            if c:
                rows.append([f"pass@{k}", NAMES[m], *(f"{100 * c[n][0]:.1f}" if n in c else "–" for n in places)])
    sizes = curve(lab, "base", 1) or curve(lab, "rl", 1)
    head = ["", "method", *(f"{n} events ({size})" for n, (_, size) in sizes.items())]
    return "table", head, rows if all(len(r) == len(head) for r in rows) else []


def differences(lab: Lab) -> tuple:
    """Between methods, on the questions within and beyond. Not registered: no verdict."""
    rows, columns = [], [(task, k) for task in tasks(lab) for k in (1, 32)]
    for a, b in (("rl", "base"), ("sft", "base"), ("rl", "sft"), ("rl", "sft_rl"), ("parallel", "rl")):
        moved = [subtract(found(lab, a), found(lab, b), k, task) for task, k in columns]
        if any(moved):
            name = f"{NAMES[a]} − {NAMES[b]}" + ", best shots" * (b == "base")
            rows.append([name, *(Comparison("", d).shown for d in moved)])
    where = {task: "within" if task == WITHIN else "beyond" for task, _ in columns}
    return "table", [f"from {at(lab.late)}", *(f"{where[task]}: pass@{k}" for task, k in columns)], rows


def said(lab: Lab) -> str:
    last = edge(lab)
    longer = f"Pre-training and `{WITHIN}` questions have at most {last} events. " if last else ""
    rl, base = found(lab, "rl"), found(lab, "base")
    beyond = [task for task in tasks(lab) if task != WITHIN]
    if not (rl and base and beyond):
        return f"{longer}Longer questions: not run."
    both = {k: subtract(rl, base, k, beyond[0]) for k in (1, 32)}
    told = "; ".join(f"pass@{k} {Comparison('', d).shown}" for k, d in both.items() if d)
    return f"{longer}On longer ones, RL − base (best shots), in points: {told}. Exploratory, without a verdict."
