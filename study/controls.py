"""What answers reach that know nothing of their question, the control beside pass@k; how long a question is."""

import re
from functools import cache

import numpy as np

from data.math_qa import parse_number
from evaluate import pass_at_k

pass_of_counts = cache(pass_at_k)  # few counts, asked for very often


def events_in(problem: str) -> int:
    """Of a question of the world: its sentences but the first, the start, and the last, what is asked."""
    return len(re.findall(r"[.?](?=\s|$)", problem)) - 2


def shuffled(result: dict, k: int, task: str = "gsm", shifts: int = 20) -> np.ndarray:
    """The shuffle control: pass@k of each question when its answers are those that the model gave to another, the one
    s further on; mean over `shifts` different s. Kept with the result, since it takes a while."""
    kept = result.setdefault("shuffled", {})
    if (k, task) in kept:
        return kept[k, task]
    q = result["questions"][task]["questions"]

    @cache
    def key(answer: str):
        number = parse_number(answer)
        return answer.strip() if number is None else number

    counts = []  # of each question: answer -> how often
    for answers in q["answers"]:
        counts.append({})
        for answer, times in answers.items():
            if answer:
                counts[-1][key(answer)] = counts[-1].get(key(answer), 0) + times
    size, gold = len(counts), [key(g) for g in q["gold"]]
    steps = [1 + i * (size - 1) // shifts for i in range(min(shifts, size - 1))]
    dealt = [[pass_of_counts(q["n"][i], counts[(i + s) % size].get(gold[i], 0), k) for s in steps] for i in range(size)]
    kept[k, task] = np.array(dealt).mean(1)
    return kept[k, task]
