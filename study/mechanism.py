"""How RL changes what a model writes: the rollouts' numbers at each step, and how answers to validation questions are
written, by the counts that evaluate.py keeps of a world's styles."""

from study.read import NAMES, Lab, value
from study.tasks import amount as at

NO_WORK = "no work"
SAID = (
    "Training reward is of the pool's questions, the test score of new ones. Far apart, they say that answers of the "
    "pool are memorised. In the figure, how an answer is worked: as equations, 16.3+2=18.3*2=36.6; running, "
    "16.3>18.3>36.6; nested, ((16.3+2)*2); retold in words; or not at all, no work."
)
KEYS = {"reward/mean": "reward", "policy/entropy": "entropy", "completion/len_mean": "length"}


def along(lab: Lab, method: str, tokens: int, key: str) -> dict[int, list[tuple[int, float]]]:
    """Seed -> (step, value) where it was logged."""
    found = {s: [(r["step"], r[key]) for r in log if key in r] for s, log in lab.logs(method, tokens).items()}
    return {s: log for s, log in found.items() if log}


def shares(result: dict, task: str = "gsm") -> dict[str, float]:
    """Of all answers: without work, and in each style; {} where they were not counted."""
    q = result["questions"][task]["questions"]
    total = sum(q["n"])
    out = {NO_WORK: sum(q["bare"]) / total} if "bare" in q else {}
    styles = result["questions"][task].get("styles", {})
    return out | {name: n / total for name, n in styles.items() if name != "none"}


def written(lab: Lab, method: str, tokens: int) -> dict[int, dict[str, float]]:
    """Step -> shares, of the first seed's run on validation questions. A style that no answer has at a step is 0."""
    rows = lab.find(method=method, tokens=tokens, group="dynamics", split="val", train_step=...)
    found = {r["train_step"]: shares(r["result"]) for r in rows}
    names = dict.fromkeys(name for s in found.values() for name in s)
    return {step: {name: s.get(name, 0.0) for name in names} for step, s in sorted(found.items()) if s}


def table(lab: Lab) -> tuple:
    """First and last tenth of each run, mean over seeds; the share without work at both ends of the first seed's.
    Beside the reward, which is of the pool's questions, pass@1 on test questions, strict as it is."""
    rows = []
    for t in lab.primary:
        for method in ("rl", "sft_rl", "parallel"):
            cells = []
            for key in KEYS:
                logs = list(along(lab, method, t, key).values())
                ends = [[mean(log[: max(1, len(log) // 10)]), mean(log[-max(1, len(log) // 10) :])] for log in logs]
                first, last = (sum(e[i] for e in ends) / len(ends) for i in (0, 1)) if ends else (None, None)
                cells.append(
                    "–" if first is None else f"{first:.2f} → {last:.2f}" if first < 10 else f"{first:.0f} → {last:.0f}"
                )
            path = [s[NO_WORK] for s in written(lab, method, t).values() if NO_WORK in s]
            cells.append(f"{100 * path[0]:.0f} → {100 * path[-1]:.0f} %" if path else "–")
            if any(cell != "–" for cell in cells):
                tested = [value(r, 1, "strict") for r in lab.by_seed(method, t).values()]
                cells.insert(1, f"{sum(tested) / len(tested):.2f}" if tested else "–")
                rows.append([at(t), NAMES[method], *cells])
    head = ["from", "method", "training reward (T 1)", "test pass@1, strict", "entropy, nats a token"]
    head += ["tokens a completion", "answers without work"]
    return "table", head, rows


def without_signal(lab: Lab) -> list[str]:
    """What part of RL's groups taught nothing, and of a batch's time was sampling: skipping such questions could save
    their product at most."""
    lines = []
    for t in lab.primary:
        logs = [row for log in lab.logs("rl", t).values() for row in log if "perf/sample_ms" in row]
        step = sum(row["perf/step_ms"] for row in logs)
        if step:
            flat = sum(row["reward/frac_zero_std_groups"] for row in logs) / len(logs)
            sampling = sum(row["perf/sample_ms"] for row in logs) / step
            told = f"{100 * flat:.0f} % of the groups are all right or all wrong and teach nothing"
            lines.append(f"RL from {at(t)}: {told}; sampling is {100 * sampling:.0f} % of a batch's time.")
    return lines


def mean(log: list[tuple[int, float]]) -> float:
    return sum(y for _, y in log) / len(log)
