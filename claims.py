"""The claims of the paper, judged: docs/analysis_plan.md as code, with the statistics of stats.py. report.py writes
them up.

First reading a study, then one function a claim. What was not run is said so.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from common import UserError
from data.math_qa import parse_number
from evaluate import pass_at_k
from grid import PRESETS
from grid import amount as at
from model import PRESETS as SHAPES
from stats import Comparison, Difference, judge, partial, permutation_p, spearman

NAMES = {"base": "base", "rl": "RL", "sft": "SFT", "gold": "SFT-Gold", "sft_rl": "SFT→RL", "gold_rl": "Gold→RL",
         "parallel": "parallel"}  # fmt: skip
pass_of_counts = cache(pass_at_k)  # few counts, asked for very often

POOLS = tuple(PRESETS["lab"]["pools"])  # C3's primary pools of questions, whatever a preset runs of them


def read_json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def read_jsonl(path: Path) -> list[dict]:
    """Rows of a log; [] if there is none. A row cut off by a crash is left out."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


# ------------------------------------------------------------------------------------------------------- the study read
class Lab:
    """Evaluations of a study by what was evaluated, and the logs of its runs."""

    def __init__(self, folder: Path):
        self.folder, self.manifest = folder, read_json(folder / "runs.json")
        if not isinstance(self.manifest, dict) or "runs" not in self.manifest:
            raise UserError(f"{folder} holds no readable runs.json; give the folder that study.py --out wrote")
        self.runs = [r for r in self.manifest["runs"] if r["kind"] != "eval"]
        self.evals = [r for r in self.manifest["runs"] if r["kind"] == "eval"]
        for r in self.evals:
            r["result"] = read_json(folder / r["out"])
        main = [r for r in self.evals if r["base"] == "base" and r["group"] == "main"]
        self.few_shot = max((r["n_shot"] for r in main), default=8)
        self.planned = {m: sorted({r["tokens"] for r in main if r["method"] == m}) for m in NAMES}
        self.primary = self.manifest.get("primary") or self.planned["rl"]
        self.early, self.late = min(self.primary, default=0), max(self.primary, default=0)

    def find(self, **want) -> list[dict]:
        """Finished evaluations with these fields; unless said, of pre-training "base", group "main", test questions,
        no variant, T 0.6, after the last step. ... leaves a field open."""
        usual = dict(base="base", group="main", split="test", variant="", temperature=0.6, train_step=None)
        want = {k: v for k, v in (usual | want).items() if v is not ...}
        return [r for r in self.evals if r["result"] and all(r.get(k) == v for k, v in want.items())]

    def by_seed(self, method: str, tokens: int, n_shot: int = 0, **want) -> dict[int, dict]:
        return {r["seed"]: r["result"] for r in self.find(method=method, tokens=tokens, n_shot=n_shot, **want)}

    def asked_on_validation(self, tokens: int, base: str = "base") -> list[dict]:
        return self.find(method="base", tokens=tokens, base=base, split="val", group="shots", n_shot=...)

    def shots(self, tokens: int, base: str = "base") -> int | None:
        """The number of shots that validation questions prefer for the base at this checkpoint (pass@1); a study that
        asked only one on validation takes the paper's few-shot base."""
        planned = {r["n_shot"] for r in self.evals if (r["group"], r["tokens"], r["base"]) == ("shots", tokens, base)}
        found = self.asked_on_validation(tokens, base)
        if len(planned) < 2 or len(found) < 2:
            return self.few_shot
        return max(found, key=lambda r: value(r["result"], 1))["n_shot"]

    def base(self, tokens: int, n_shot: int | None | str = "best", **want) -> dict[None, dict]:
        """Its one evaluation, under the key None: a base has no post-training seed and is paired with every one."""
        n_shot = self.shots(tokens) if n_shot == "best" else n_shot
        found = {} if n_shot is None else self.by_seed("base", tokens, n_shot, **want)
        return dict.fromkeys([None], next(iter(found.values()))) if found else {}

    def log(self, method: str, tokens: int, seed: int, group: str = "main", variant: str = "") -> list[dict]:
        """metrics.jsonl of a run from pre-training "base"."""
        key = (method, "base", tokens, seed, group, variant)
        for r in self.runs:
            if (r["method"], r["base"], r.get("tokens"), r["seed"], r.get("group"), r.get("variant")) == key:
                return read_jsonl(self.folder / r["metrics"])
        return []

    def flops_per_token(self, base: str = "base") -> float:
        """Training FLOPs of a token at the model's whole context; a third of it is one forward pass."""
        model = next((r for r in self.runs if r["kind"] == "pretrain" and r["base"] == base), {})
        shape = SHAPES[model.get("preset", "world")]
        return shape.flops_per_token(shape.block_size)


def value(result: dict, k: int, scoring: str = "flexible", task: str = "gsm") -> float:
    return result["questions"][task][scoring][f"pass@{k}"]["value"]


def per_question(result: dict, k: int, scoring: str = "flexible", task: str = "gsm") -> np.ndarray:
    q = result["questions"][task]["questions"]
    return np.array([pass_of_counts(n, c, k) for n, c in zip(q["n"], q[scoring], strict=True)])


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


def scores(result: dict, metric, task: str) -> np.ndarray:
    """Of each question. metric: k of pass@k, or ("beyond", k): pass@k minus the shuffle control."""
    if isinstance(metric, int):
        return per_question(result, metric, task=task)
    return per_question(result, metric[1], task=task) - shuffled(result, metric[1], task)


def subtract(a: dict[int, dict], b: dict[int, dict], metric, task: str = "gsm") -> Difference | None:
    """a - b over the seeds that both have; a b of one shared result (key None) is taken from each of a's."""
    if None in b:
        b = dict.fromkeys(a, b[None])
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    if metric != "general":
        return of_rows([scores(a[s], metric, task) - scores(b[s], metric, task) for s in seeds])
    parts = []
    for name, bench in a[seeds[0]]["benchmarks"].items():
        facts = np.array(bench["facts"])
        hits = lambda r, name=name: np.array(list(map(int, r["benchmarks"][name]["hits"])))  # noqa: E731
        sums = np.array([np.bincount(facts, hits(a[s]) - hits(b[s])) for s in seeds])
        parts.append((sums, np.bincount(facts)))
    return Difference(parts) if parts else None


def of_rows(rows: list[np.ndarray]) -> Difference:
    return Difference([(np.array(rows), np.ones(len(rows[0])))])


# ----------------------------------------------------------------------------------------------------------- the claims
@dataclass
class Claim:
    key: str
    title: str
    statistic: str
    paper: str
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdict: str = ""
    points: list = field(default_factory=list)  # of its figure, where comparisons are none

    def add(self, name: str, difference: Difference | None, sign: int = 1, margin: float = 0.0, primary: bool = True,
            within: float = 0.0) -> None:  # fmt: skip
        self.comparisons.append(Comparison(name, difference, sign, margin, primary, within))

    def done(self) -> "Claim":
        self.verdict = judge(self.comparisons)
        main = [c for c in self.comparisons if c.primary]
        decided = [f"{c.name} ({c.verdict})" for c in main if c.verdict in ("reproduced", "contradicted")]
        if self.verdict in ("undecided", "mixed") and decided:
            self.notes.insert(0, f"Decided on their own: {'; '.join(decided)}.")
        run = sum(bool(c.difference) for c in main)
        if 0 < run < len(main):
            self.notes.insert(0, f"Partly run: {run} of {len(main)} primary comparisons.")
        return self


def c1(lab: Lab) -> Claim:
    statistic = "pass@1, RL − base (with the shots that validation prefers)"
    claim = Claim("C1", "RL works early", statistic, "above the 8-shot base: +13.8 at 4B, +26.1 at 10B")
    by_tokens = {}
    for t in lab.planned["rl"]:
        rl = lab.by_seed("rl", t)
        claim.add(f"{at(t)}: RL − base, best shots ({lab.shots(t)})", subtract(rl, lab.base(t), 1))
        by_tokens[t] = claim.comparisons[-1]
        for n in (lab.few_shot, 0):
            claim.add(f"{at(t)}: RL − base, {n}-shot", subtract(rl, lab.base(t, n), 1), primary=False)
    claim.done()
    claim.verdict = by_tokens[lab.early].verdict if lab.early in by_tokens else "not run"
    first = [at(t) for t, c in by_tokens.items() if c.verdict == "reproduced"]
    claim.notes.append(f"The claim's verdict is that of {at(lab.early)}.")
    claim.notes.append(f"Earliest checkpoint at which it is reproduced: {first[0] if first else 'none'}.")
    for t in by_tokens:
        if zero := lab.base(t, 0):
            q = zero[None]["questions"]["gsm"]["questions"]
            formatted, right = sum(q["formatted"]), sum(q["strict"])
            share = f"{100 * right / formatted:.1f} % of {formatted:,}" if formatted else "none was"
            claim.notes.append(f"{at(t)}: 0-shot base, right among completions in the right format: {share}.")
    claim.notes.append(no_signal(lab))
    return claim


def no_signal(lab: Lab) -> str:
    """Runs with fewer than 5 hits in their first 3 rollout batches."""
    weak, asked = [], 0
    for r in lab.runs:
        if r["method"] == "rl" and r.get("group") in ("main", "c8"):
            rows = read_jsonl(lab.folder / r["metrics"])[:3]
            asked += bool(rows)
            if rows and sum(row["reward/hits"] for row in rows) < 5:
                weak.append(r["name"])
    return f"No signal (fewer than 5 hits in the first 3 batches), of {asked} RL runs: {', '.join(weak) or 'none'}."


def c2(lab: Lab) -> Claim:
    claim = Claim("C2", "RL reaches SFT→RL", "pass@1, RL − SFT→RL, above −3", "−12.0 at 4B, −1.1 at 20B, +1.1 at 44B")
    for t in lab.planned["sft_rl"]:
        rl = lab.by_seed("rl", t)
        claim.add(f"{at(t)}: RL − SFT→RL", subtract(rl, lab.by_seed("sft_rl", t), 1), 1, -0.03, t in lab.primary)
    t = lab.late
    for variant, name in (("own", "SFT→RL with RL's own settings"), ("x40", "SFT→RL with 40 times RL's rate")):
        other = lab.by_seed("sft_rl", t, variant=variant, group="k2")
        claim.add(f"{at(t)}: RL − {name}", subtract(lab.by_seed("rl", t), other, 1), 1, -0.03, False)
    longer = lab.by_seed("rl", t, variant="total_updates", group="k2")
    moved = subtract(longer, lab.by_seed("sft_rl", t), 1)
    claim.add(f"{at(t)}: RL of SFT→RL's total updates − SFT→RL", moved, 1, -0.03, False)
    return claim.done()


def c3(lab: Lab) -> Claim:
    title, statistic = "RL beats SFT when demonstrations are scarce", "pass@1, RL − SFT (60 epochs); pass@32, Gold − RL"
    claim, t = Claim("C3", title, statistic, "all its questions: RL − SFT +17.0, Gold − RL +7.2 at 44B"), lab.late
    for n in POOLS:
        get = lambda method, kind="", n=n: lab.by_seed(method, t, variant=f"pool{n}{kind}", group="c3")  # noqa: E731
        claim.add(f"{n} questions, pass@1: RL − SFT 60 epochs", subtract(get("rl"), get("sft", "many"), 1))
        claim.add(f"{n} questions, pass@32: Gold − RL", subtract(get("gold", "many"), get("rl"), 32))
        claim.add(f"{n} questions, pass@1: RL − SFT 4 epochs", subtract(get("rl"), get("sft", "few"), 1), primary=False)
        shown = {"RL": get("rl"), "SFT 60 epochs": get("sft", "many"), "SFT 4 epochs": get("sft", "few")}
        shown |= {"Gold": get("gold", "many"), "base, best shots": lab.base(t)}
        levels = [f"{m} {mean_score(r, 1)} / {mean_score(r, 32)}" for m, r in shown.items() if r]
        if get("rl"):
            below = get("sft", "many") and lab.base(t) and mean(get("sft", "many")) < mean(lab.base(t))
            told = " SFT of 60 epochs ends below the base it came from." * bool(below)
            claim.notes.append(f"{n} questions, pass@1 / pass@32: {'; '.join(levels)}.{told}")
    rl, sft, gold = (lab.by_seed(m, t) for m in ("rl", "sft", "gold"))
    claim.add("all questions, pass@1: RL − SFT", subtract(rl, sft, 1), primary=False)
    claim.add("all questions, pass@32: Gold − RL", subtract(gold, rl, 32), primary=False)
    return claim.done()


def mean(found: dict, k: int = 1) -> float:
    """pass@k, mean over seeds."""
    return float(np.mean([value(r, k) for r in found.values()]))


def mean_score(found: dict, k: int) -> str:
    return f"{100 * mean(found, k):.1f}"


def ceiling(lab: Lab) -> list[str]:
    gold = lab.by_seed("gold", lab.late)
    if not gold or mean(gold, 32) < 0.95:
        return []
    return [f"Ceiling: SFT-Gold's pass@32 is {mean_score(gold, 32)} at {at(lab.late)}, over the 95 that the world's "
            "calibration wanted: there, differences between methods in pass@32 are squeezed."]  # fmt: skip


def pools(lab: Lab) -> list[int]:
    found = {r["variant"].removeprefix("pool") for r in lab.evals if r["group"] == "c3" and r["method"] == "rl"}
    return sorted(map(int, found))


def c4(lab: Lab) -> Claim:
    statistic = "hard pass@1 after RL, math-heavy − 4x model, − base"
    claim = Claim("C4", "Data mix beats scale on hard problems", statistic,
                  "gain at 20B: +14.3 mix, +8.6 scale, +6.1 base")  # fmt: skip

    def of_pretrainings(*names: str, gain: bool = False) -> list[np.ndarray]:
        """Of each pre-training of a kind: its RL seeds' mean score of each question, minus the base's if `gain`."""
        rows = []
        for name in names:
            found = lab.by_seed("rl", lab.late, base=name, group="c4", variant="hard")
            start = lab.base(lab.late, 8, base=name, group="c4", variant="hard_shots")
            if found and (start or not gain):
                mean = np.mean([per_question(r, 1, task="hard") for r in found.values()], axis=0)
                rows.append(mean - per_question(start[None], 1, task="hard") if gain else mean)
        return rows

    kinds = {"math-heavy": ("heavy", "heavy2"), "base": ("base", "base2"), "4x model": ("large",)}
    for gain in (False, True):
        got = {kind: of_pretrainings(*names, gain=gain) for kind, names in kinds.items()}
        what = "gain over the base" if gain else "hard pass@1 after RL"
        for a, b in (("math-heavy", "4x model"), ("math-heavy", "base"), ("4x model", "base")):
            rows = [x - y for x, y in zip(got[a], got[b], strict=False)]
            claim.add(f"{what}: {a} − {b}", of_rows(rows) if rows else None, primary=a == "math-heavy" and not gain)
        for i, (x, y) in enumerate(zip(got["math-heavy"], got["base"], strict=False)):
            pair = f"{what}: math-heavy − base, pre-training seed {lab.manifest['seed'] + i}"
            claim.add(pair, of_rows([x - y]), primary=False)
    for model in sum(kinds.values(), ()):
        for shots in ("hard", "gsm"):
            rl = lab.by_seed("rl", lab.late, base=model, group="c4", variant="hard")
            start = lab.base(lab.late, 8, base=model, group="c4", variant=f"{shots}_shots")
            claim.add(f"{model}: RL − base, 8 {shots} exemplars", subtract(rl, start, 1, "hard"), primary=False)
    claim.notes.append(
        "Seeds of the contrasts between models are pre-trainings (each the mean of its RL seeds): the 4x model has "
        "one, so its contrasts are estimates; two leave the t-interval one degree of freedom."
    )
    costs = [f"{r['base']} {tokens_of(r) * lab.flops_per_token(r['base']):.2g}"
             for r in lab.runs if r["kind"] == "pretrain"]  # fmt: skip
    claim.notes.append(f"FLOPs of pre-training, at equal tokens: {', '.join(costs)}.")
    return claim.done()


def tokens_of(run: dict) -> int:
    return run["config"]["steps"] * run["config"]["batch_tokens"]


def c5(lab: Lab) -> Claim:
    claim = Claim("C5", "Direct RL expands, RL after SFT sharpens", "pass@1, @8, @32: RL − base; SFT→RL − SFT",
                  "at 14B: direct +34.8 and +23.3 (pass@1, @32); after SFT +15.7 and −5.0")  # fmt: skip
    for t in lab.primary:
        rl, sft, both = (lab.by_seed(m, t) for m in ("rl", "sft", "sft_rl"))
        for k in (1, 8, 32):
            claim.add(f"{at(t)}: direct RL, pass@{k}", subtract(rl, lab.base(t), k), primary=k != 8)
            after = subtract(both, sft, k)
            claim.add(f"{at(t)}: after SFT, pass@{k}", after, 1 if k == 1 else -1, primary=k != 8)
        beyond = ("beyond", 32)
        for name, a, b in (("direct RL", rl, lab.base(t)), ("after SFT", both, sft)):
            sign = 1 if name == "direct RL" else -1
            claim.add(f"{at(t)}: {name}, pass@32 beyond shuffled answers", subtract(a, b, beyond), sign, primary=False)
        zero = subtract(rl, lab.base(t, 0), 32)
        claim.add(f"{at(t)}: direct RL, pass@32, against the 0-shot base", zero, primary=False)
        eight = subtract(rl, lab.base(t, lab.few_shot), 32)
        claim.add(f"{at(t)}: direct RL, pass@32, against the {lab.few_shot}-shot base", eight, primary=False)
    claim.notes += ceiling(lab)
    return claim.done()


def c6(lab: Lab) -> Claim:
    claim = Claim("C6", "RL keeps general skills, SFT does not", "six-benchmark average, method − base",
                  "RL +0.3, SFT −6.1 at 44B")  # fmt: skip
    for t in lab.primary:
        base = {s: r for s, r in lab.base(t, lab.few_shot).items() if r["benchmarks"]}
        for method in ("rl", "sft", "gold", "sft_rl", "gold_rl", "parallel"):
            moved, main = subtract(lab.by_seed(method, t), base, "general"), method in ("rl", "sft")
            claim.add(f"{at(t)}: {NAMES[method]} − base", moved, -1, 0.0, main, 0.015 if method == "rl" else 0.0)
    variants = {r["variant"]: float(r["variant"].split("x")[0]) for r in lab.evals if r["group"] == "k1"}
    for variant in sorted(variants, key=lambda v: (int(v.split("x")[1]), variants[v])):  # updates, then rate
        rate, updates = variant.split("x")
        moved = subtract(lab.by_seed("sft", lab.late, group="k1", variant=variant), base, "general")
        claim.add(f"{at(lab.late)}: SFT at rate {rate}, {updates} updates (K1) − base", moved, -1, primary=False)
    claim.notes.append("Whether SFT's loss of general skill is its objective's or its rate's is what control K1 asks.")
    claim.notes.append("The benchmarks are asked alike of every model: --n-shot concerns the questions alone.")
    return claim.done()


def c7(lab: Lab) -> Claim:
    claim = Claim("C7", "Parallel averaging has the best pass@32", "pass@32, parallel − RL, − SFT, − SFT→RL",
                  "+4.0, +10.7, +14.2 at 44B; −3.3 to Gold")  # fmt: skip
    for t in lab.planned["parallel"]:
        parallel = lab.by_seed("parallel", t)
        metrics = (32, 1, 8, ("beyond", 32), "general") if t in lab.primary else (32,)
        for metric in metrics:
            what = {"general": "general average", ("beyond", 32): "pass@32 beyond shuffled"}.get(metric)
            what = what or f"pass@{metric}"
            for method in ("rl", "sft", "sft_rl", "gold", "gold_rl"):
                if method in ("gold", "gold_rl") and t not in lab.primary:
                    continue
                main = metric == 32 and "gold" not in method and t in lab.primary
                moved = subtract(parallel, lab.by_seed(method, t), metric)
                claim.add(f"{at(t)}: {what}, parallel − {NAMES[method]}", moved, primary=main)
    claim.notes += ceiling(lab)
    return claim.done()


def c8(lab: Lab) -> Claim:
    claim = Claim("C8", "Seeds", "spread of RL over seeds (no verdict)", "one rerun of four collapsed at 4B",
                  verdict="not run")  # fmt: skip
    for t in lab.primary:
        found = lab.by_seed("rl", t) | lab.by_seed("rl", t, group="c8")
        if len(found) < 2:
            continue
        claim.verdict = "descriptive"
        last = {s: [r["reward/mean"] for g in ("main", "c8") for r in lab.log("rl", t, s, g)[-5:]] for s in found}
        last = {s: 100 * np.mean(rewards) for s, rewards in last.items() if rewards}
        got = np.array([100 * value(found[s], 1) for s in sorted(found)])
        base = [100 * value(r, 1) for r in lab.base(t).values()]
        failed = f"{sum(got < base[0])} below the base ({base[0]:.1f})" if base else "base not run"
        best = [max(np.random.default_rng(i).choice(got, 4, replace=False)) for i in range(1000) if len(got) >= 4]
        reward = f"{np.mean(list(last.values())):.1f}" if last else "not at hand"
        claim.notes.append(
            f"{at(t)}: {len(got)} seeds, pass@1 mean {got.mean():.1f}, sd {got.std(ddof=1):.1f}, range {got.min():.1f} "
            f"to {got.max():.1f}; mean of the best of 4 {f'{np.mean(best):.1f}' if best else '–'}; {failed}; training "
            f"reward over the last 5 batches {reward} (strict, T 1)."
        )
        claim.points += [
            (t, s, 100 * value(found[s], 1), last.get(s), base[0] if base else None) for s in sorted(found)
        ]
    return claim


def c9(lab: Lab) -> Claim:
    claim, t = Claim("C9", "Rollout budget", "pass@1, n = 64 − n = 5 at equal questions, hard split",
                     "a figure only (February): n = 64 ahead on hard questions"), lab.late  # fmt: skip
    get = lambda split, name: lab.by_seed("rl", t, variant=f"{split}_{name}", group="c9")  # noqa: E731
    planned = {r["variant"]: r["config"] for r in lab.runs if r.get("group") == "c9"}
    for split in ("hard", "easy"):
        equal = subtract(get(split, "many"), get(split, "few"), 1)
        claim.add(f"{split}: many − few completions, equal questions seen", equal, primary=split == "hard")
        claim.add(f"{split}: many − few, equal completions in all", subtract(get(split, "many"), get(split, "long"), 1),
                  primary=False)  # fmt: skip
    for variant, c in planned.items():
        done = len(lab.by_seed("rl", t, variant=variant, group="c9"))
        claim.notes.append(f"{variant}: {c['prompts_per_step']} prompts × {c['group_size']} completions a step, "
                           f"{c['steps']} steps; {done} seeds finished.")  # fmt: skip
    for row in lab.find(method="base", tokens=t, group="c9", split="train", temperature=1.0):
        q = row["result"]["questions"]["gsm"]["questions"]
        share = np.array(q["strict"]) / np.array(q["n"])
        easy, hard = sum(share >= 0.25), sum(share <= 0.125)
        parts = f"{easy} in a quarter or more (easy), {hard} in an eighth or less (hard)"
        parts += "; the easy ones are too few to say anything of easy questions" * int(easy < 30)
        claim.notes.append(
            f"{len(share)} training questions by the share of samples that the base gets right: {parts}."
        )
    return claim.done()


def signed(r: float) -> str:
    return "not defined" if math.isnan(r) else f"{r:+.2f}"


def c10(lab: Lab) -> Claim:
    """x: the base's validation scores (paper's few-shot base); y: RL's on test questions, mean over seeds."""
    claim = Claim("C10", "Base pass@k on validation foretells RL", "Spearman, base val pass@32 and RL test pass@1",
                  "rho 0.83 (pass@32 and pass@32)", verdict="not run")  # fmt: skip
    for base, t in sorted(
        {(r["base"], r["tokens"]) for r in lab.evals if r["method"] == "rl" and r["group"] == "main"}
    ):
        asked = dict(method="base", base=base, tokens=t, split="val", group="shots", n_shot=lab.few_shot)
        rl, found = lab.by_seed("rl", t, base=base), [r["result"] for r in lab.find(**asked)]
        if rl and found:
            y = {k: np.mean([value(r, k) for r in rl.values()]) for k in (1, 32)}
            x = {k: value(found[0], k) for k in (1, 8, 32)}
            claim.points.append(dict(base=base, tokens=t, x=x, y=y, loss=validation_loss(lab, base, t)))
    p = claim.points
    if len(p) < 3:
        return claim
    tokens = [math.log(q["tokens"]) for q in p]
    x, y = [q["x"][32] for q in p], [q["y"][1] for q in p]
    chance = permutation_p(x, y)
    claim.verdict = "estimate" if len(p) < 5 else "reproduced" if chance <= 0.025 else "undecided"
    models = len({q["base"] for q in p})
    claim.notes.append(f"{len(p)} checkpoints of {models} pre-trainings: rho {spearman(x, y):+.2f}, permutation p "
                       f"{chance:.3f}; partial given log-tokens {signed(partial(x, y, tokens))}.")  # fmt: skip
    if all(q["loss"] is not None for q in p):
        loss = [-q["loss"] for q in p]
        rho, chance, given = spearman(loss, y), permutation_p(loss, y), signed(partial(x, y, loss))
        claim.notes.append(f"Minus the validation loss as predictor: rho {rho:+.2f}, p {chance:.3f}; partial "
                           f"correlation of pass@32 and the outcome given it {given}.")  # fmt: skip
    claim.notes.append(f"Log-tokens as predictor: rho {spearman(tokens, y):+.2f}, p {permutation_p(tokens, y):.3f}. "
                       "All three rise with training, so a plain correlation proves little.")  # fmt: skip
    for k in (1, 8, 32):
        for out in (1, 32):
            rho = spearman([q["x"][k] for q in p], [q["y"][out] for q in p])
            claim.notes.append(f"base validation pass@{k} and RL's pass@{out}: rho {rho:+.2f}")
    return claim


def validation_loss(lab: Lab, base: str, tokens: int) -> float | None:
    """Of the pre-training run when it had read `tokens`."""
    run = next(r for r in lab.runs if r["kind"] == "pretrain" and r["base"] == base)
    for row in read_jsonl(lab.folder / run["metrics"]):
        if row.get("train/tokens") == tokens and "eval/loss" in row:
            return row["eval/loss"]
    return None


def c11(lab: Lab) -> Claim:
    claim = Claim("C11", "Few shots help the base", "base pass@1, 8-shot − 0-shot",
                  "44B, its figure of shots: 8-shot 14.0, 1-shot 17.5, 0-shot 4.2")  # fmt: skip
    for t in lab.planned["base"]:
        for n in sorted({r["n_shot"] for r in lab.evals if r["method"] == "base" and r["group"] == "main"} - {0})[::-1]:
            moved = subtract(lab.base(t, n), lab.base(t, 0), 1)
            claim.add(f"{at(t)}: {n}-shot − 0-shot", moved, primary=n == lab.few_shot and t in lab.primary)
    claim.notes.append("The base is one model: with one pre-training there is no second seed, so no verdict.")
    return claim.done()


CLAIMS: tuple[Callable[[Lab], Claim], ...] = (c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11)
