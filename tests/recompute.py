"""Rows of a study's report from its raw archive, by another route: nothing of study/ is imported.

    python tests/recompute.py docs/results/lab        # prints each row, and whether report.md has it

Counts of right answers come straight from runs.json.gz; pass@k by binomial coefficients; the interval by its formula
with the standard library alone.
"""

import gzip
import json
import math
import sys
from pathlib import Path

T = {1: 0.0, 2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided 95 % by number of pre-trainings


def unpack(value, lists: list):
    """A list that several files share stands once in the archive, in its place {"list": number}."""
    if isinstance(value, dict):
        return lists[value["list"]] if set(value) == {"list"} else {k: unpack(v, lists) for k, v in value.items()}
    return value


class Raw:
    def __init__(self, folder: Path):
        whole = json.loads(gzip.decompress((folder / "runs.json.gz").read_bytes()))
        self.manifest, self.files = whole["manifest"], whole["files"]
        self.lists = whole["lists"]
        self.early, self.late = sorted(self.manifest["primary"])

    def evaluations(self, method: str, tokens: int, n_shot: int = 0, variant: str = "", group: str = "main",
                    split: str = "test") -> dict[int, dict]:  # fmt: skip
        """Seed -> content."""
        found = {}
        for run in self.manifest["runs"]:
            mine = (run["kind"], run["method"], run.get("tokens"), run.get("n_shot"), run.get("variant"))
            mine += (run.get("group"), run.get("split"), run.get("train_step"))
            if mine == ("eval", method, tokens, n_shot, variant, group, split, None) and run["out"] in self.files:
                found[run["seed"]] = unpack(self.files[run["out"]], self.lists)
        return found

    def best_shots(self, tokens: int) -> int:
        """By pass@1 on validation questions, mean over pre-trainings."""
        means = {}
        for n in sorted({r["n_shot"] for r in self.manifest["runs"] if r.get("group") == "shots"}):
            found = self.evaluations("base", tokens, n, group="shots", split="val").values()
            means[n] = sum(sum(passed(r, 1)) / len(passed(r, 1)) for r in found) / len(found)
        return max(means, key=means.get)

    def base(self, tokens: int) -> dict[int, dict]:
        return self.evaluations("base", tokens, self.best_shots(tokens))


def passed(result: dict, k: int) -> list[float]:
    """Of each question: 1 - C(n - c, k) / C(n, k)."""
    q = result["questions"]["gsm"]["questions"]
    return [1 - math.comb(n - c, k) / math.comb(n, k) for n, c in zip(q["n"], q["flexible"], strict=True)]


def told(means: list[float], question_variance: float) -> str:
    """Estimate and interval in points, of the seeds' means and the variance of their mean over questions."""
    n, estimate = len(means), sum(means) / len(means)
    spread = math.sqrt(sum((m - estimate) ** 2 for m in means) / (n - 1) / n) if n > 1 else 0.0
    half = math.sqrt((T[n] * spread) ** 2 + 1.96**2 * question_variance)
    low, high = max(-1.0, estimate - half), min(1.0, estimate + half)
    return f"{100 * estimate:+.1f} [{100 * low:.1f}, {100 * high:.1f}]".replace("-", "−")


def over_questions(rows: list[list[float]]) -> str:
    """rows[seed][question]: differences."""
    of_question = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    mean = sum(of_question) / len(of_question)
    variance = sum((d - mean) ** 2 for d in of_question) / (len(of_question) - 1) / len(of_question)
    return told([sum(row) / len(row) for row in rows], variance)


def minus(a: dict[int, dict], b: dict[int, dict], k: int) -> list[list[float]]:
    both = sorted(set(a) & set(b))
    return [[x - y for x, y in zip(passed(a[s], k), passed(b[s], k), strict=True)] for s in both]


def general(a: dict[int, dict], b: dict[int, dict]) -> str:
    """Six benchmarks; items of one fact are drawn together."""
    both, means, variance = sorted(set(a) & set(b)), [], 0.0
    names = list(a[both[0]]["benchmarks"])
    for s in both:
        shares = [[r["benchmarks"][n]["hits"] for r in (a[s], b[s])] for n in names]
        means.append(sum((x.count("1") - y.count("1")) / len(x) for x, y in shares) / len(names))
    for n in names:
        facts, sums, sizes = a[both[0]]["benchmarks"][n]["facts"], {}, {}
        for i, fact in enumerate(facts):
            moved = [int(a[s]["benchmarks"][n]["hits"][i]) - int(b[s]["benchmarks"][n]["hits"][i]) for s in both]
            sums[fact] = sums.get(fact, 0) + sum(moved) / len(both)
            sizes[fact] = sizes.get(fact, 0) + 1
        mean, size = sum(sums.values()) / len(facts), len(sums)
        rest = sum((sums[f] - mean * sizes[f]) ** 2 for f in sums)
        variance += rest * size / (size - 1) / len(facts) ** 2 / len(names) ** 2
    return told(means, variance)


def rows(folder: Path) -> list[str]:
    """Beginnings of the report's lines."""
    raw = Raw(folder)
    late, early = raw.late, raw.early
    at = {t: f"{t / 1e6:.1f}M" for t in (early, late)}
    rl, both = ({t: raw.evaluations(m, t) for t in at} for m in ("rl", "sft_rl"))
    few = max(r["n_shot"] for r in raw.manifest["runs"] if r["kind"] == "eval")
    closing = [
        [x - y for x, y in zip(new, old, strict=True)]
        for new, old in zip(minus(rl[late], both[late], 1), minus(rl[early], both[early], 1), strict=True)
    ]
    start = raw.evaluations("sft", late, variant="start")
    parallel, sft = raw.evaluations("parallel", late), raw.evaluations("sft", late)
    return [
        f"| {at[early]}: RL − base, best shots ({raw.best_shots(early)}) | "
        + over_questions(minus(rl[early], raw.base(early), 1)),
        f"| {at[late]} − {at[early]}: RL − SFT→RL | {over_questions(closing)}",
        f"| {at[late]}: after SFT, pass@32 | {over_questions(minus(both[late], start, 32))}",
        f"| {at[late]}: SFT − base | {general(sft, raw.evaluations('base', late, few))}",
        f"| {at[late]}: pass@32, parallel − RL | {over_questions(minus(parallel, rl[late], 32))}",
    ]


def main() -> None:
    folder = Path(sys.argv[1])
    report = (folder / "report.md").read_text(encoding="utf-8")
    found = {row: f"{row} |" in report for row in rows(folder)}
    for row, there in found.items():
        print("ok  " if there else "NOT ", row)
    sys.exit(not all(found.values()))


if __name__ == "__main__":
    main()
