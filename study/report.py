"""The report of a study: report.md, one self-contained report.html, figures. `python -m study` calls
`build`; alone it runs as

    python -m study.report runs/lab         # rebuilds them from runs/lab/runs.json and the evaluations that it names

Every number comes from those files by code; only the paper's own (paper.py, claims.py) are typed in. claims.py judges,
figures.py draws, tables.py tabulates. What is not there yet is said to be not run.
"""

import argparse
import base64
import os
import re
from html import escape
from pathlib import Path

from common import run, writable_dir
from study import figures, tables
from study.archive import samples_of
from study.claims import CLAIMS, Claim, at
from study.read import Lab
from study.tables import ORDER, interval, verdict

# A report is a list of blocks: ("head", level, text), ("text", text), ("list", lines), ("table", head, rows),
# ("figure", name, caption), ("code", summary, lines).
FIGURES = {  # of each claim, besides the forest of its differences
    "C1": ["c1"], "C2": ["c2"], "C3": ["c3"], "C4": ["c4"], "C5": ["dynamics_late", "dynamics_early", "wide"],
    "C6": ["general"], "C7": ["parallel"], "C8": ["c8"], "C9": ["c9"], "C10": ["c10"], "C11": ["c11"],
}  # fmt: skip
USED = {  # (groups, methods) of the runs behind a claim; None: all
    "C1": ({"main", "shots"}, {"rl", "base"}), "C2": ({"main", "k2"}, {"rl", "sft", "sft_rl"}), "C3": ({"c3"}, None),
    "C4": ({"c4"}, None), "C5": ({"main", "dynamics", "wide"}, {"rl", "sft", "sft_rl", "base"}),
    "C6": ({"main", "k1"}, set(ORDER)), "C7": ({"main", "k1"}, set(ORDER)),
    "C8": ({"main", "c8"}, {"rl"}), "C9": ({"c9"}, None),
    "C10": ({"main", "shots"}, {"rl", "base"}), "C11": ({"main", "shots"}, {"base"}),
    "K1": ({"k1"}, None), "K2": ({"k2"}, None), "K3": ({"k3"}, None), "K4": ({"k4"}, None),
}  # fmt: skip
MAIN = [("base", {}), ("RL", dict(method="rl")), ("SFT", dict(method="sft")), ("parallel", dict(method="parallel"))]
SHOWN = {  # whose answers are read out, where they are not those of MAIN
    "C2": [("RL", dict(method="rl")), ("SFT→RL", dict(method="sft_rl"))],
    "C3": [("RL", dict(method="rl", group="c3", variant="pool250")),
           ("SFT, 60 epochs", dict(method="sft", group="c3", variant="pool250many")),
           ("SFT-Gold", dict(method="gold", group="c3", variant="pool250many"))],
    "C4": [(f"RL, {model}", dict(method="rl", group="c4", variant="hard", base=model))
           for model in ("base", "heavy", "large")],
    "C9": [("n = 64", dict(method="rl", group="c9", variant="hard_many")),
           ("n = 5", dict(method="rl", group="c9", variant="hard_few"))],
}  # fmt: skip
CONTROLS = {
    "K1": ("movement, not objective?", "SFT at several rates (first number) and lengths (second) "
           "beside every method of the main grid, and RL alone and SFT alone of K2 to K4 (commands there)."),
    "K2": ("settings of SFT→RL",
           "own: SFT→RL at direct RL's own rate. total_updates: direct RL of as many updates as SFT→RL has in all, "
           "four a rollout batch."),
    "K3": ("what makes parallel averaging work",
           "At equal steps; parallel itself averages after each. sync_end: once at the end. "
           "plain_sum: weights 1 and 1. one_loss, alternate: one set of weights, one step on both losses or two in "
           "turn. half_rate: RL alone, SFT alone at half of parallel's rate. parallels_rate: SFT alone at the whole."),
    "K4": ("loss denominator, updates a batch", "SFT by token sum under clipping; RL with four updates a batch."),
}  # fmt: skip


LEGEND = """
- Intervals: 95 %, the wider of a bootstrap over questions (facts) and a t-interval over seeds; C6's RL rows 90 %,
  against ±1.5 points. Differences are paired: same questions, and same seeds where both sides were trained (the base
  has one evaluation). They are over the seeds that both sides have, so they need not be the difference of two means in
  the tables. No score can differ by over 100 points: wider intervals end there.
- Verdicts: *reproduced* when the whole interval lies beyond the margin on the predicted side and Holm's correction
  over the claim's primary rows keeps it; *contradicted* on the other side; *mixed* when primary rows go both ways.
  *estimate*: one seed. *exploratory*: not primary. Behind these two stands where the interval lies: as predicted,
  opposite, or open (on both sides of the margin). C2's margin is −3: RL may be 3 points worse.
- Paper: its 1B model on GSM8K, unless said; 4B, 44B, ... are its pre-training tokens, "a figure of February" one of its
  earlier drafts.
- Questions: gsm is the world's ordinary tier (not GSM8K), hard its harder one; worksheets are pre-training documents of
  worked problems. First number and a usual change: blind answers that read one number of the question.
- Methods: SFT on one solution a question, SFT-Gold on all; SFT→RL, Gold→RL: RL from there; parallel: parallel
  averaging. base, best shots: with the number of exemplars that validation questions prefer. 4x model
  (large): 3.5 instead of 1.0 million parameters. heavy: the math-heavy mix; base2, heavy2: another
  pre-training seed. In brackets behind "best shots": how many.
- Movement: distance of the weights over their norm at the start; general loss and KL from the start on held-out general
  text, nats a token.
- Scores: T 0.6, top-p 0.95, 32 samples; training reward: T 1, strict. format: share of completions with the
  final-answer marker. Guess floor: answers drawn blindly from the training answers; shuffled: the model's own, dealt
  to other questions.
"""


# ---------------------------------------------------------------------------------------------------------------- texts
def provenance(lab: Lab) -> tuple[list[tuple], list[tuple]]:
    """What stands above the claims, and the list of what was not run, which goes to the end."""
    m, evals = lab.manifest, [r for r in lab.evals if r["result"]]
    commits = sorted({str(r["result"].get("commit")) for r in evals})
    made_by = [("evaluate.py", r["result"].get("source")) for r in evals]
    made_by += [(r["command"].split()[1], r.get("source")) for r in m["runs"] if r["finished"]]
    made_by = sorted({(script, source) for script, source in made_by if source})  # each script has a hash of its own
    sources, mixed = sorted({source for _, source in made_by}), len(made_by) > len(dict(made_by))
    hours, done = sum(r["seconds"] or 0 for r in m["runs"]) / 3600, sum(r["finished"] for r in m["runs"])
    seeds = [f"{at(t)}: {len(lab.by_seed('rl', t))}" for t in lab.planned["rl"]]
    missing = [r["name"] for r in m["runs"] if not r["finished"]]
    plan = os.path.relpath(Path(__file__).parent.parent / "docs" / "analysis_plan.md", lab.folder)
    lines = [
        f"Preset `{m['preset']}`, first seed {m['seed']}, on {m['machine']}: {done} of {len(m['runs'])} planned runs "
        f"finished, {hours:.1f} core hours, one thread a run, {m['jobs']} side by side.",
        f"Commits {', '.join(commits) or '–'}; source hashes {', '.join(sources) or '–'}."
        + " **Mixed sources: the runs are not all of one code** (a README.md beside this report says more)."
        * mixed,
        f"Seeds of direct RL by checkpoint, without C8's: {', '.join(seeds) or 'none'}. One pre-training unless said: "
        "intervals are conditional on it. With one seed a row is an *estimate*, never a verdict.",
        f"Rules: [docs/analysis_plan.md]({plan}), dated; what was changed after first results were in "
        "sight stands at its end. Scores are flexible; strict: only what follows the "
        "final-answer marker counts, as in RL's reward. ±: standard deviation over seeds.",
    ]  # fmt: skip
    return [("list", lines)], [("code", f"{len(missing)} planned runs not run", missing)] if missing else []


def still_open(claims: list[Claim]) -> list[str]:
    """What the claims table leaves undecided: primary comparisons without a verdict, and what no run could tell."""
    lines = []
    for claim in claims:
        asked = [c for c in claim.comparisons if c.primary and c.verdict not in ("reproduced", "contradicted")]
        told = [f"{c.name} ({verdict(c)}{f', {interval(c)}' if c.difference else ''})" for c in asked]
        told += (
            [claim.verdict] if not claim.comparisons and claim.verdict in ("estimate", "undecided", "not run") else []
        )
        lines += [f"{claim.key} {claim.title}: {'; '.join(told)}."] if told else []
    return [
        *lines,
        "How another pre-training would come out: all but C4, and C10 where it has several, rests on one.",
        "How any of it carries over to larger models and to natural text: this is one synthetic world, and its models "
        "have 1 to 4 million parameters.",
    ]


def told_of(lab: Lab, key: str) -> tuple[int, int]:
    """(checkpoint, seed) whose answers a claim shows; claims of the same methods take different seeds."""
    tokens, seeds = lab.early if key == "C1" else lab.late, sorted(lab.by_seed("parallel", lab.late))
    return tokens, lab.manifest["seed"] if key in SHOWN or not seeds else seeds[int(key[1:]) % len(seeds)]


def read_out(lab: Lab, key: str) -> list[str]:
    """First answer to each of the first three questions, right or wrong, by method, at the claim's checkpoint."""
    tokens, seed, asked = *told_of(lab, key), {}
    for name, want in SHOWN.get(key, MAIN):
        usual = dict(n_shot=0, seed=seed) if want else dict(n_shot=lab.shots(tokens))
        found = lab.find(**{"method": "base", "tokens": tokens, **usual, **want})
        for row in lab.files.rows(samples_of(found[0])) if found else []:
            asked.setdefault((row["task"], row["prompt"], row["gold"]), {}).setdefault(name, row["completion"].strip())
    out = []
    for (_, prompt, gold), answers in list(asked.items())[:3]:
        out += [prompt, f"{'right answer':<15}| {gold}", *(f"{n:<15}| {a}" for n, a in answers.items()), ""]
    return out[:-1]


def commands(lab: Lab, key: str) -> list[str]:
    """Of the first seed."""
    groups, methods = USED[key]
    return [r["command"] for r in lab.manifest["runs"] if r.get("group") in groups and r["finished"]
            and (methods is None or r["method"] in methods) and r["seed"] == lab.manifest["seed"]]  # fmt: skip


def claim_page(lab: Lab, claim: Claim, draw) -> list[tuple]:
    head = f"**{claim.title}.** Statistic: {claim.statistic}. Paper: {claim.paper}. Verdict: **{claim.verdict}**."
    blocks = [("head", 2, claim.key), ("text", head)]
    blocks += [draw(name) for name in FIGURES[claim.key]] + [draw(f"{claim.key.lower()}_differences")]
    rows = [[c.name, interval(c), c.predicted, str(c.seeds or "–"), "primary" if c.primary else "", verdict(c)]
            for c in claim.comparisons]  # fmt: skip
    head = ["comparison", "points [interval]", "predicted", "seeds", "", "verdict"]
    blocks += [("table", head, rows)] if rows else []
    blocks += [("list", claim.notes)] if claim.notes else []
    if claim.key in ("C5", "C7"):
        said = (
            "Shuffle control: the same answers dealt to other questions. What exceeds it is knowledge of the question; "
            "to read its first number and guess a usual change is little of that, and reaches the last row."
        )
        blocks += [("text", said), tables.shuffle(lab)]
    if claim.key == "C5":
        said = (
            "To pass@256 on the first 100 test questions, first seed; exploratory. T 1 comes with top-p 1, T 0.6 with "
            f"0.95; the base is asked with {lab.few_shot} shots and none, whatever number validation prefers."
        )
        blocks += [("text", said)]
        blocks += [tables.wide(lab), tables.wide_differences(lab)]
        blocks += [("text", "The step that validation would have chosen, beside the last:"), tables.chosen(lab)]
    if told := read_out(lab, claim.key):
        tokens, seed = told_of(lab, claim.key)
        said = f"Samples, from {at(tokens)} tokens, seed {seed}: first answers to the first questions, not chosen"
        blocks.append(("code", said, told))
    if said := commands(lab, claim.key):
        what = f"Commands, first seed ({len(said)}; other seeds differ in --seed alone, and lack some settings)"
        blocks.append(("code", what, said))
    return blocks


def control_page(lab: Lab, key: str, rows: list[dict], draw) -> list[tuple]:
    title, what = CONTROLS[key]
    mine = tables.moved_alone(rows) if key == "K1" else tables.control_rows(rows, key)
    blocks = [
        ("head", 2, key),
        (
            "text",
            f"**Control: {title}{'' if title[-1] == '?' else '.'}** {what} From {at(lab.late)} tokens; exploratory.",
        ),
    ]
    if not mine:
        return [*blocks, ("text", "Not run.")]
    blocks += [draw(key.lower()), tables.control(mine)]
    base = [figures.general_average(r) for r in lab.base(lab.late, lab.few_shot).values() if r["benchmarks"]]
    blocks += [("list", tables.k1_note(rows, *base))] if key == "K1" else []
    blocks += [tables.control_differences(lab, key)] if key != "K1" else []
    return [*blocks, ("code", "Commands, first seed", commands(lab, key))]


# ---------------------------------------------------------------------------------------------------------- the report
def build(folder: str | Path) -> Path:
    """Write FOLDER/report.md, report.html and figures from FOLDER/runs.json; returns the report's path."""
    lab = Lab(Path(folder))
    writable_dir(lab.folder / "figures")
    claims, rows = [claim(lab) for claim in CLAIMS], tables.movement(lab)
    by_key = {c.key: c for c in claims}
    drawn = {  # name: (drawing, its arguments, caption)
        "passk": (figures.passk, (lab,), "pass@k against pre-training tokens; mean over seeds, bars: their range"),
        "c1": (figures.passk, (lab, ("base", "base0", "rl")), "The base and direct RL"),
        "c2": (figures.passk, (lab, ("rl", "sft", "sft_rl")), "RL, SFT and SFT→RL"),
        "c3": (figures.pool_sizes, (lab,), "Few questions; bars: range over seeds"),
        "c4": (figures.hard_tier, (lab,), "The hard tier, by pre-trained model; a point is a run"),
        "dynamics_late": (figures.dynamics, (lab, lab.late), "Along RL and RL after SFT; first seed, validation"),
        "dynamics_early": (figures.dynamics, (lab, lab.early), "The same from the early checkpoint"),
        "wide": (figures.wide, (lab,), "To pass@256"),
        "general": (figures.general, (lab,), "General skills; bars: range over seeds"),
        "parallel": (figures.parallel, (lab,), "Parallel averaging beside the methods that it joins"),
        "c8": (figures.seeds, (lab, by_key["C8"]), "RL seed by seed"),
        "c9": (figures.budget, (lab,), "Few and many completions a question, first seed"),
        "c10": (figures.diagnostic, (lab, by_key["C10"]), "The base's validation score and RL's outcome"),
        "c11": (figures.shots, (lab,), "The base by number of exemplars"),
        "k1": (figures.movement, (tables.moved_alone(rows),),
               "General skill against movement; points are runs; the axis of loss is linear below 0.1"),
        **{k.lower(): (figures.variants, (lab, tables.control_rows(rows, k)),
                       "Dots: seeds; stroke: mean; dotted: guess floor")
           for k in ("K2", "K3", "K4")},
        "pretraining": (figures.pretraining, (lab,), "Pre-training: loss on held-out text"),
        **{f"{c.key.lower()}_differences": (figures.forest, (c,), "Differences and intervals") for c in claims},
    }  # fmt: skip

    def draw(name: str) -> tuple:
        function, arguments, caption = drawn[name]
        path = lab.folder / "figures" / f"{name}.png"
        with figures.plt.rc_context(figures.STYLE):
            figure = function(*arguments)
            if figure is None:
                path.unlink(missing_ok=True)
                return "text", ""
            figure.savefig(path, dpi=120)
            figures.plt.close(figure)
        return "figure", name, caption

    above, not_run = provenance(lab)
    paper = "*RL Excursions during Pre-Training* (arXiv 2606.04272)"
    blocks = [("head", 1, f"The claims of {paper}, measured (preset {lab.manifest['preset']})"), *above,
              tables.claims(claims), ("list", [" ".join(part.split()) for part in LEGEND.split("\n- ")[1:]]),
              draw("passk"), ("head", 2, "What remains open"), ("list", still_open(claims)),
              ("head", 2, "Every method from every checkpoint"), tables.score(lab)]  # fmt: skip
    for claim in claims:
        blocks += claim_page(lab, claim, draw)
    for key in CONTROLS:
        blocks += control_page(lab, key, rows, draw)
    blocks += [
        ("head", 2, "Beside the paper"),
        ("text", "Paper / ours, at the paper's checkpoint nearest in fraction of training. Absolute values are not "
                 "comparable, since model, data and questions differ; only patterns are."),
        tables.paper(lab), ("head", 2, f"General benchmarks, {at(lab.late)} tokens"), tables.benchmark(lab),
        ("head", 2, "Calibration of the world"), tables.calibration(lab), draw("pretraining"),
        ("text", "Every command of every run, in order, stands in runs.json."), *not_run,
    ]  # fmt: skip
    blocks = [b for b in blocks if b != ("text", "")]
    (lab.folder / "report.md").write_text("\n\n".join(map(markdown, blocks)) + "\n")
    (lab.folder / "report.html").write_text(PAGE.format(body="\n".join(html(b, lab.folder) for b in blocks)))
    return lab.folder / "report.md"


def markdown(block: tuple) -> str:
    kind, *parts = block
    if kind == "head":
        return f"{'#' * parts[0]} {parts[1]}"
    if kind == "list":
        return "\n".join(f"- {line}" for line in parts[0])
    if kind == "table":
        head, rows = parts
        return (
            "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
            if rows
            else "Not run."
        )
    if kind == "figure":
        return f"![{parts[1]}](figures/{parts[0]}.png)\n\n*{parts[1]}.*"
    if kind == "code":
        return "\n".join([f"<details>\n<summary>{parts[0]}</summary>\n", "```text", *parts[1], "```\n", "</details>"])
    return parts[0]


def html(block: tuple, folder: Path) -> str:
    kind, *parts = block
    if kind == "head":
        return f'<h{parts[0]} id="{parts[1].lower()}">{inline(parts[1])}</h{parts[0]}>'
    if kind == "list":
        return "<ul>" + "".join(f"<li>{inline(line)}</li>" for line in parts[0]) + "</ul>"
    if kind == "table":
        row = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{inline(c)}</{tag}>" for c in cells) + "</tr>"  # noqa: E731
        return (
            "<table>" + row(parts[0], "th") + "".join(row(r, "td") for r in parts[1]) + "</table>"
            if parts[1]
            else "Not run."
        )
    if kind == "figure":
        data = base64.b64encode((folder / "figures" / f"{parts[0]}.png").read_bytes()).decode()
        image = f'<img alt="{escape(parts[1])}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{escape(parts[1])}.</figcaption></figure>"
    if kind == "code":
        return f"<details><summary>{escape(parts[0])}</summary><pre>{escape(chr(10).join(parts[1]))}</pre></details>"
    return f"<p>{inline(parts[0])}</p>"


def inline(s: str) -> str:
    """Bold, emphasis, code and links of the Markdown that the blocks hold; a link out of the page becomes its text."""
    s = escape(s).replace("&lt;br&gt;", "<br>")
    s = re.sub(r"\[([^]]*)\]\((#[^)]*)\)", r'<a href="\2">\1</a>', s)
    s = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", s)
    s = re.sub(r"\*\*([^*]*)\*\*", r"<b>\1</b>", s)
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", re.sub(r"\*([^*]+)\*", r"<i>\1</i>", s))


PAGE = """<!doctype html><meta charset="utf-8"><title>The claims of the paper, measured</title>
<style>body{{font:15px/1.45 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}}
table{{border-collapse:collapse;font-size:13px;margin:1em 0}}
td,th{{border-bottom:1px solid #ddd;padding:3px 8px;text-align:left;vertical-align:top}}
img{{max-width:100%}}figure{{margin:1em 0}}figcaption{{font-size:13px;color:#555}}
pre{{background:#f6f6f6;padding:8px;overflow:auto;font-size:12px}}</style>
{body}
"""


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", metavar="DIR", help="what `python -m study --out` wrote")
    print(f"wrote {build(p.parse_args().folder)}")


if __name__ == "__main__":
    run(main)
