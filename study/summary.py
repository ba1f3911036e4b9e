"""The study in a few lines for the terminal: every method from each primary checkpoint."""

from study.read import Lab, mean

ROWS = [("RL", "rl"), ("SFT", "sft"), ("SFT→RL", "sft_rl"), ("averaging", "parallel")]
MEANINGLESS = "smoke: these numbers mean nothing; this study shows that every stage runs"


def table(lab: Lab) -> str:
    lines = []
    for tokens in lab.primary:
        lines.append(f"\nfrom {tokens / 1e6:.2f}M pre-training tokens {'pass@1':>8} {'pass@32':>8} {'general':>8}")
        shots = lab.shots(tokens)
        rows = [(f"base, {shots}-shot", lab.base(tokens), lab.base(tokens, lab.few_shot))]
        rows += [(name, found := lab.by_seed(method, tokens), found) for name, method in ROWS]
        for name, found, with_benchmarks in rows:
            scores = [mean(found, k) if found else None for k in (1, 32)] + [general(with_benchmarks)]
            lines.append(f"  {name:<32}" + " ".join("       –" if s is None else f"{100 * s:8.1f}" for s in scores))
    lines += [f"\n{MEANINGLESS}"] if lab.manifest["preset"] == "smoke" else []
    return "\n".join(lines) + "\n"


def general(found: dict) -> float | None:
    """General skill, mean over seeds."""
    scores = [r["general_average"] for r in found.values() if "general_average" in r]
    return sum(scores) / len(scores) if scores else None
