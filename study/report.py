"""The report of a study: report.md, one self-contained report.html, figures. `python -m study` calls `build`; alone:

    python -m study.report runs/lab                # from a study's folder, or from the runs.json.gz of docs/results/lab
    python -m study.report docs/results/lab --claims     # print the short table of the claims, as README has it

Every number comes from evaluations and logs by code; only the paper's own (paper.py, the claims) are typed in. The
claims judge, tables and figures show, render.py writes. What is not there yet is said to be not run. Exploratory rows,
samples and commands fold away in the page and are left out of report.md.
"""

import argparse
import time
from pathlib import Path

from common import run, writable_dir
from data.files import replacing, write_text
from study import figures, figures_conditions, figures_controls, real, tables
from study.archive import samples_of
from study.claims import MEANINGLESS, judged, sentences, short_table
from study.provenance import made_by, not_run
from study.read import Lab, general_average
from study.render import html, markdown, quoted
from study.stats import Claim
from study.tables import ORDER
from study.tasks import amount as at

PAPER = "*RL Excursions during Pre-Training* (arXiv 2606.04272)"
USED = {  # (groups, methods) of the runs behind a claim or control; None: all
    "C1": ({"main", "shots"}, {"rl", "base"}),
    "C2": ({"main", "k2"}, {"rl", "sft", "sft_rl"}),
    "C3": ({"c3"}, None),
    "C4": ({"c4"}, None),
    "C5": ({"main", "dynamics", "wide"}, {"rl", "sft", "sft_rl", "base"}),
    "C6": ({"main", "k1"}, set(ORDER)),
    "C7": ({"main", "k1"}, set(ORDER)),
    "C8": ({"main", "c8"}, {"rl"}),
    "C9": ({"c9"}, None),
    "C10": ({"main", "shots"}, {"rl", "base"}),
    "C11": ({"main", "shots"}, {"base"}),
    "K1": ({"k1"}, None),
    "K2": ({"k2"}, None),
    "K3": ({"k3"}, None),
    "K4": ({"k4"}, None),
}
CONTROLS = {
    "K1": (
        "Movement, not objective?",
        "SFT at several rates (first number) and lengths (second) beside every method of the main grid, and RL alone "
        "and SFT alone of K2 to K4.",
    ),
    "K2": (
        "Settings of SFT→RL",
        "own: SFT→RL at direct RL's own rate. total_updates: direct RL of as many updates as SFT→RL has in all, four a "
        "rollout batch.",
    ),
    "K3": (
        "What makes parallel averaging work",
        "At equal steps; parallel itself averages after each. sync_end: once at the end. plain_sum: weights 1 and 1. "
        "one_loss, alternate: one set of weights, one step on both losses or two in turn. half_rate: RL alone, SFT "
        "alone at half of parallel's rate. parallels_rate: SFT alone at the whole.",
    ),
    "K4": (
        "Loss denominator, updates a batch",
        "SFT by token sum under clipping; RL with four updates a batch.",
    ),
}
WORDS = [
    "Intervals: 95 %, the wider of a bootstrap over questions (facts) and a t-interval over seeds; C6's RL rows 90 %, "
    "against ±1.5 points. Differences are paired: same questions, and same seeds where both sides were trained (the "
    "base has one evaluation). They are over the seeds that both sides have, so they need not be the difference of two "
    "means in the tables. No score can differ by over 100 points: wider intervals end there.",
    "Verdicts: *reproduced* when the whole interval lies beyond the margin on the predicted side and Holm's correction "
    "over the claim's primary rows keeps it; *contradicted* on the other side; *mixed* when primary rows go both ways. "
    "*estimate*: one seed. *exploratory*: not primary. Behind these two stands where the interval lies: as predicted, "
    "opposite, or open (on both sides of the margin). C2's margin is −3: RL may be 3 points worse.",
    'Paper: its 1B model on GSM8K, unless said; 4B, 44B, ... are its pre-training tokens, "a figure of February" one '
    "of its earlier drafts.",
    "Questions: gsm is the world's ordinary tier (not GSM8K), hard its harder one; worksheets are pre-training "
    "documents of worked problems. First number and a usual change: blind answers that read one number of a question.",
    "Methods: SFT on one solution a question, SFT-Gold on all; SFT→RL, Gold→RL: RL from there; parallel: parallel "
    "averaging. base, best shots: with the number of exemplars that validation questions prefer, which stands in "
    "brackets behind. 4x model (large): 3.5 instead of 1.0 million parameters. heavy: the math-heavy mix; base2, "
    "heavy2: another pre-training seed.",
    "Movement: distance of the weights over their norm at the start; general loss and KL from the start on held-out "
    "general text, nats a token.",
    "Scores: T 0.6, top-p 0.95, 32 samples, flexible (what follows the final-answer marker, else the last number); "
    "strict: only what follows that marker, as in RL's reward. Training reward: T 1, strict. format: share of "
    "completions with the marker. Guess floor: answers drawn blindly from the training answers; shuffled: the model's "
    "own, dealt to other questions. ±: standard deviation over seeds.",
]
SAID_OF_SHUFFLING = (
    "Shuffle control: the same answers dealt to other questions. What exceeds it is knowledge of the question; to read "
    "its first number and guess a usual change is little of that, and reaches the last row."
)


# ---------------------------------------------------------------- the figures
def drawings(lab: Lab, claims: list[Claim], moved: list[dict]) -> dict[str, tuple]:
    """Name: (function, its arguments, caption). Those of a claim are named as it is; with _differences: all of them."""
    by_key = {c.key: c for c in claims}
    controls, conditions = figures_controls, figures_conditions
    drawn = {
        "headline": (figures.headline, lab, "The paper's numbers and this study's, mean over seeds; bars: their range"),
        "passk": (figures.passk, lab, "pass@k against pre-training tokens; mean over seeds, bars: their range"),
        "c1": (figures.passk, lab, ("base", "base0", "best", "rl"), "The base and direct RL; bars: range over seeds"),
        "c2": (figures.passk, lab, ("rl", "sft", "sft_rl"), "RL, SFT and SFT→RL; bars: range over seeds"),
        "c3": (conditions.pool_sizes, lab, "Few questions; bars: range over seeds"),
        "c4": (conditions.hard_tier, lab, "The hard tier, by pre-trained model; a point is a run"),
        "c5": (figures.expansion, lab, by_key["C5"], "What RL adds at each k; bars: 95 % intervals"),
        "c6": (figures.general, lab, "General skills; bars: range over seeds"),
        "c7": (figures.parallel, lab, "Parallel averaging beside the methods that it joins"),
        "c8": (conditions.seeds, lab, by_key["C8"], "RL seed by seed"),
        "c9": (conditions.budget, lab, "Few and many completions a question, first seed"),
        "c10": (conditions.diagnostic, lab, by_key["C10"], "The base's validation score and RL's outcome"),
        "c11": (conditions.shots, lab, "The base by number of exemplars"),
        "dynamics_late": (controls.dynamics, lab, lab.late, "Along RL and RL after SFT; first seed, validation"),
        "dynamics_early": (controls.dynamics, lab, lab.early, "The same from the early checkpoint"),
        "wide": (controls.wide, lab, "To pass@256"),
        "k1": (
            controls.movement,
            tables.moved_alone(moved),
            "General skill and loss against movement; points are runs",
        ),
        "pretraining": (conditions.pretraining, lab, "Pre-training: loss on held-out text"),
    }
    for key in ("K2", "K3", "K4"):
        caption = "Dots: seeds; stroke: mean; dotted: guess floor"
        drawn[key.lower()] = (controls.variants, lab, tables.control_rows(moved, key), caption)
    for c in claims:
        drawn[f"{c.key.lower()}_differences"] = (figures.forest, c, "Differences and intervals")
    return drawn


class Progress:
    """Says how far a report is, where that takes a while."""

    def __init__(self):
        self.said = time.time()

    def __call__(self, what: str) -> None:
        if time.time() - self.said > 5:
            print(f"report: {what}", flush=True)
            self.said = time.time()


class Drawn:
    """Draws what a report shows, once each."""

    def __init__(self, drawings: dict[str, tuple], tell: Progress):
        self.drawings, self.images, self.tell = drawings, {}, tell

    def __call__(self, name: str) -> list[tuple]:
        """The figure's block, none if there is nothing to draw yet."""
        function, *arguments, caption = self.drawings[name]
        image = figures.png(function, *arguments)
        if image is None:
            return []
        self.images[name] = image
        self.tell(f"{len(self.images)} of at most {len(self.drawings)} figures drawn")
        return [("figure", name, caption)]


# ---------------------------------------------------------------- its parts
def head(lab: Lab, claims: list[Claim], draw: Drawn) -> list[tuple]:
    title = f"The claims of {PAPER}, measured (preset {quoted(lab.manifest['preset'])})"
    if lab.manifest["preset"] in MEANINGLESS:
        said = "These numbers mean nothing. This preset runs every stage for a few steps, to show that all of it works."
        return [("head", 1, title), ("banner", said), *draw("headline"), *made_by(lab, judged=False)]
    return [
        ("head", 1, title),
        ("list", sentences(claims, lab)),
        tables.claims(claims, lab),
        *draw("headline"),
        ("text", "Differences are in points of percent, with 95 % intervals; what words mean stands [below](#words)."),
        *made_by(lab),
    ]


def still_open(claims: list[Claim]) -> list[str]:
    """What the claims table leaves undecided: primary comparisons without a verdict, and what no run could tell."""
    lines = []
    for claim in claims:
        asked = [c for c in claim.primary if c.verdict not in ("reproduced", "contradicted")]
        told = [f"{c.name} ({c.told}{f', {c.shown}' if c.difference else ''})" for c in asked]
        if not claim.comparisons and claim.verdict in ("estimate", "undecided", "not run"):
            told.append(claim.verdict)
        lines += [f"{claim.key} {claim.title}: {'; '.join(told)}."] if told else []
    return [
        *lines,
        "How another pre-training would come out: all but C4, and C10 where it has several, rests on one.",
        "How any of it carries over to larger models and to natural text: this is one synthetic world, and its models "
        "have 1 to 4 million parameters.",
    ]


def claim_page(lab: Lab, claim: Claim, draw: Drawn) -> list[tuple]:
    said = f"Measured: {claim.statistic}. The paper: {claim.paper}. Verdict: {tables.verdict(claim)}."
    blocks = [("head", 2, tables.heading(claim)), ("text", said), *draw(claim.key.lower())]
    blocks += [tables.differences(claim.primary)] if claim.primary else []
    blocks += [("list", claim.results)] if claim.results else []
    blocks += [("text", "What limits it:"), ("list", claim.limits)] if claim.limits else []
    exploratory = [c for c in claim.comparisons if not c.primary]
    rows = [tables.differences(exploratory)] if exploratory else []
    rows += [("list", claim.details)] if claim.details else []
    rows += draw(f"{claim.key.lower()}_differences") if exploratory else []
    more = [("more", "Exploratory rows and details", rows)] if rows else []
    if claim.key in ("C5", "C7"):
        more.append(("more", "Beside shuffled answers", [("text", SAID_OF_SHUFFLING), tables.shuffle(lab)]))
    if claim.key == "C5":
        more += along_and_wide(lab, draw)
    return [*blocks, *more, *commands(lab, claim.key)]


def along_and_wide(lab: Lab, draw: Drawn) -> list[tuple]:
    """Of C5: the way of RL, and pass@k to k = 256."""
    along = [*draw("dynamics_late")] + (draw("dynamics_early") if lab.early != lab.late else [])
    along += [("text", "The step that validation would have chosen, beside the last:"), tables.chosen(lab)]
    said = (
        "To pass@256 on the first 100 test questions, first seed; exploratory. T 1 comes with top-p 1, T 0.6 with "
        f"0.95; the base is asked with {lab.few_shot} shots and none, whatever number validation prefers."
    )
    wide = [("text", said), *draw("wide"), tables.wide(lab), tables.wide_differences(lab)]
    return [("more", "Along the runs", along), ("more", "To pass@256, at two temperatures", wide)]


def control_page(lab: Lab, key: str, moved: list[dict], draw: Drawn) -> list[tuple]:
    title, what = CONTROLS[key]
    mine = tables.moved_alone(moved) if key == "K1" else tables.control_rows(moved, key)
    blocks = [("head", 2, f"{key}. {title}"), ("text", f"Control. {what} From {at(lab.late)} tokens; exploratory.")]
    if not mine:
        return [*blocks, ("text", "Not run.")]
    blocks += draw(key.lower())
    if key != "K1":
        more = [("more", "Scores and movement", [tables.control(mine)])]
        return [*blocks, tables.control_differences(lab, key), *more, *commands(lab, key)]
    start = [general_average(r) for r in lab.base(lab.late, lab.few_shot).values() if r["benchmarks"]]
    main, whole = tables.k1_note(moved, *start, controls=False), tables.k1_note(moved, *start)
    rest = [line for line in whole if line not in main]
    more = [tables.control(mine)] + ([("list", rest)] if rest else [])
    return [*blocks, ("list", main), ("more", "Scores and movement", more), *commands(lab, key)]


def commands(lab: Lab, key: str) -> list[tuple]:
    """Of the first seed."""
    groups, methods = USED[key]
    mine = [r for r in lab.manifest["runs"] if r.get("group") in groups and r["seed"] == lab.manifest["seed"]]
    said = [r["command"] for r in mine if r["finished"] and (methods is None or r["method"] in methods)]
    what = f"Commands, first seed ({len(said)}; other seeds differ in --seed alone, and lack some settings)"
    return [("code", what, said)] if said else []


def samples(lab: Lab) -> list[tuple]:
    """The first answer to each of the first three test questions, right or wrong, by method and checkpoint."""
    late = {"base": {}, "RL": {"method": "rl"}, "SFT": {"method": "sft"}, "SFT-Gold": {"method": "gold"}}
    late |= {"SFT→RL": {"method": "sft_rl"}, "parallel": {"method": "parallel"}}
    few = dict(group="c3", variant="pool250"), dict(group="c3", variant="pool250many")
    late |= {"RL, 250 questions": {"method": "rl", **few[0]}, "SFT, 250 questions": {"method": "sft", **few[1]}}
    asked: dict[tuple, list[str]] = {}
    for tokens in dict.fromkeys([lab.early, lab.late]):
        for name, want in late.items():
            usual = dict(n_shot=0, seed=lab.manifest["seed"]) if want else dict(n_shot=lab.shots(tokens))
            found = lab.find(**{"method": "base", "tokens": tokens, **usual, **want})
            first: dict[tuple, str] = {}
            for row in lab.files.rows(samples_of(found[0])) if found else []:
                if row.get("task") == "gsm":
                    first.setdefault((str(row.get("prompt")), str(row.get("gold"))), str(row.get("completion")))
            for question, answer in list(first.items())[:3]:
                asked.setdefault(question, []).append(f"{at(tokens)} {name:<19}| {answer.strip()}")
    lines = []
    for (prompt, gold), answers in list(asked.items())[:3]:
        lines += [prompt, f"{'right answer':<24}| {gold}", *answers, ""]
    return (
        [("code", "What the models write: first answers to three questions, not chosen", lines[:-1])] if lines else []
    )


def appendix(lab: Lab, draw: Drawn) -> list[tuple]:
    said = "Paper / ours, at the paper's checkpoint nearest in fraction of training. Only patterns are comparable."
    return [
        ("more", "Beside the paper, number by number", [("text", said), tables.paper(lab)]),
        ("more", f"General benchmarks, {at(lab.late)} tokens", [tables.benchmark(lab)]),
        ("more", "Calibration of the world", [tables.calibration(lab), *draw("pretraining")]),
        *samples(lab),
        *not_run(lab),
    ]


# ---------------------------------------------------------------- the whole
def blocks(lab: Lab) -> tuple[list[tuple], Drawn]:
    """The report, and the figures drawn for it."""
    tell = Progress()
    if real.is_real(lab):
        draw = Drawn({"losses": (real.losses, lab, "Losses and rewards, step by step")}, tell)
        return real.blocks(lab, draw), draw
    claims, moved = judged(lab, tell), tables.movement(lab)
    draw = Drawn(drawings(lab, claims, moved), tell)
    out = head(lab, claims, draw)
    if lab.manifest["preset"] in MEANINGLESS:
        out += [("head", 2, "Every method from every checkpoint"), tables.score(lab), *samples(lab), *not_run(lab)]
        return out, draw
    out += [("head", 2, "What remains open"), ("list", still_open(claims))]
    out += [("head", 2, "Every method from every checkpoint"), *draw("passk"), tables.score(lab)]
    for claim in claims:
        out += claim_page(lab, claim, draw)
    for key in CONTROLS:
        out += control_page(lab, key, moved, draw)
    return [*out, ("head", 2, "Words"), ("list", WORDS), *appendix(lab, draw)], draw


def build(path: str | Path) -> Path:
    """Write report.md, report.html and figures of a study (its folder, or its archive) into its folder; returns the
    path of report.md. What was there before stays whole until the new file is written."""
    lab = Lab(path)
    writable_dir(lab.folder / "figures")
    whole, draw = blocks(lab)
    shown = [block[1] for block in whole if block[0] == "figure"]  # the page has the others
    for name in draw.drawings:
        path = lab.folder / "figures" / f"{name}.png"
        if name in shown:
            with replacing(path) as file:
                file.write(draw.images[name])
        else:  # of an earlier report
            path.unlink(missing_ok=True)
    title = real.TITLE if real.is_real(lab) else "The claims of the paper, measured"
    write_text(lab.folder / "report.html", html(title, whole, draw.images))
    write_text(lab.folder / "report.md", markdown(whole))
    return lab.folder / "report.md"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("study", metavar="DIR", help="what `python -m study --out` wrote, or a folder of docs/results")
    p.add_argument("--claims", action="store_true", help="print the short table of the claims and write nothing")
    args = p.parse_args()
    if args.claims:
        lab = Lab(args.study)
        head, *rows = short_table(judged(lab), lab)
        print(markdown([("table", head, rows)]), end="")
    else:
        print(f"wrote {build(args.study)}")


if __name__ == "__main__":
    run(main)
