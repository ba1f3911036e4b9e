"""The trials of `python -m study --preset tuning --seed 0` as a table, and the rates that the rule chooses.

    python -m study.tuning runs/tuning

The rule, alike for every method and at both checkpoints: of the trials within one standard error of the best pass@1 on
validation questions, the one with the least loss of general skill; of two alike, the lower rate.
"""

import argparse

from common import run
from study.read import NAMES, Lab, general_average
from study.render import markdown
from study.tasks import amount as at

METHODS = ("rl", "sft", "gold", "sft_rl", "parallel")


def trials(lab: Lab, method: str, tokens: int) -> dict[float, dict]:
    """Rate -> evaluation."""
    rows = lab.find(method=method, tokens=tokens, group="tuning", split="val", variant=...)
    return dict(sorted((float(r["variant"]), r["result"]) for r in rows))


def choose(found: dict[float, dict]) -> float | None:
    if not found:
        return None
    scores = {rate: r["questions"]["gsm"]["flexible"]["pass@1"] for rate, r in found.items()}
    best = max(scores.values(), key=lambda s: s["value"])
    near = [rate for rate, s in scores.items() if s["value"] >= best["value"] - best["stderr"]]
    return max(near, key=lambda rate: (round(general_average(found[rate]), 4), -rate))


def table(lab: Lab) -> tuple:
    rows = []
    for t in lab.primary:
        base = [r["result"] for r in lab.find(method="base", tokens=t, group="tuning", split="val")]
        rows += [[at(t), "base, 0-shot", "", *cells(r), ""] for r in base]
        for method in METHODS:
            found = trials(lab, method, t)
            for rate, result in found.items():
                chosen = "yes" * (rate == choose(found))
                rows.append([at(t), NAMES[method], f"{rate:g}", *cells(result), chosen])
    return "table", ["from", "method", "rate", "pass@1", "pass@8", "pass@32", "general", "chosen"], rows


def cells(result: dict) -> list[str]:
    scores = result["questions"]["gsm"]["flexible"]
    told = [f"{100 * scores[f'pass@{k}']['value']:.1f} ± {100 * scores[f'pass@{k}']['stderr']:.1f}" for k in (1, 8, 32)]
    return [*told, f"{100 * general_average(result):.1f}"]


def page(lab: Lab) -> str:
    lines = []
    for t in lab.primary:
        rates = {m: choose(trials(lab, m, t)) for m in METHODS}
        told = ", ".join(f"{m}={rate:g}" for m, rate in rates.items() if rate is not None)
        lines.append(f"rates at {at(t)}: {told or 'none yet'}")
        for m, rate in rates.items():
            tried = list(trials(lab, m, t))
            if rate is not None and len(tried) > 1 and rate in (tried[0], tried[-1]):
                lines.append(f"note: {NAMES[m]}'s lies at the edge of those tried")
    return markdown([table(lab)]) + "\n" + "\n".join(lines) + "\n"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("study", metavar="DIR", help="what `python -m study --preset tuning --out` wrote")
    print(page(Lab(p.parse_args().study)), end="")


if __name__ == "__main__":
    run(main)
