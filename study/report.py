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
from study import agreement, axis, beyond, figures, figures_conditions, figures_runs, mechanism, real, tables
from study.archive import samples_of
from study.claims import MEANINGLESS, judged, sentences, short_table
from study.provenance import made_by, not_run, time_by_stage
from study.read import Lab
from study.render import html, markdown, quoted
from study.stats import Claim
from study.tasks import amount as at

PAPER = "*RL Excursions during Pre-Training* (arXiv 2606.04272)"
USED = {  # (groups, methods) of the runs behind a claim; None: all
    "C1": ({"main", "shots"}, {"rl", "base"}),
    "C2": ({"main"}, {"rl", "sft", "sft_rl"}),
    "C3": ({"main"}, {"rl", "sft", "gold"}),
    "C4": (set(), None),
    "C5": ({"main", "dynamics"}, {"rl", "sft", "sft_rl", "base"}),
    "C6": ({"main"}, None),
    "C7": ({"main"}, None),
    "C8": ({"main", "c8"}, {"rl"}),
    "C9": ({"c9"}, None),
    "C10": ({"main", "shots"}, {"rl", "base"}),
    "C11": ({"main", "shots"}, {"base"}),
}
WORDS = [
    "Unit: a pre-training with the post-training from it, three in the lab. Intervals: 95 %, over pre-trainings and "
    "questions (facts) together: the root of both half-widths' squares, t over pre-trainings; of one, over questions "
    "alone. C6's RL row: 90 %, reproduced when it lies within ±1.5 points. Differences are paired: same question, "
    "same pre-training. `python -m study.coverage` simulates how often such intervals hold the truth.",
    "Verdicts, of registered rows alone: *reproduced* when the whole interval lies beyond the margin on the predicted "
    "side and the estimate is at least 3 points from it (general skill: 1.5), *contradicted* on the other side, "
    "*absent* when the interval rules out an effect of that size on either side, *undecided* else. A claim of several "
    "rows holds if all do; *mixed*: one reproduced, one contradicted or absent. *estimate*: one pre-training; behind "
    "it stands where the interval lies. *descriptive*: the plan gives no verdict. C2's first row has the margin −3 "
    "and no smallest effect: any interval above −3 reproduces it.",
    'Paper: its 1B model on GSM8K, unless said; 4B, 44B, ... are its pre-training tokens, "a figure of February" one '
    "of its earlier drafts.",
    "Questions: gsm is the world's tier (not GSM8K), long the same with more events than any text that was read. The "
    "best blind rule reads one or two numbers of a question and none of its words.",
    "Methods: all on one pool of questions. SFT on one solution a question, SFT-Gold on all, as many updates; SFT→RL: "
    "RL from an early step of SFT; parallel: parallel averaging. base, best shots: with the number of exemplars that "
    "validation questions prefer, which stands in brackets behind.",
    "Scores: T 0.6, top-p 0.95, 32 samples, flexible (what follows the final-answer marker, else the last number); "
    "strict: only what follows that marker, as in RL's reward. Training reward: T 1, strict. format: share of "
    "completions with the marker. Guess floor: answers drawn blindly from the training answers; shuffled: the model's "
    "own, dealt to other questions. ±: standard deviation over pre-trainings.",
]
SAID_OF_SHUFFLING = (
    "Shuffle control: the same answers dealt to other questions. What exceeds it is knowledge of the question. Below: "
    "what a rule reaches that reads no word."
)


# ---------------------------------------------------------------- the figures
def drawings(lab: Lab, claims: list[Claim]) -> dict[str, tuple]:
    """Name: (function, its arguments, caption). Those of a claim are named as it is; with _differences: all of them."""
    by_key = {c.key: c for c in claims}
    runs, conditions = figures_runs, figures_conditions
    drawn = {
        "headline": (
            figures.headline,
            lab,
            "The paper's numbers and this study's, mean over seeds; bars: range (none: one seed)",
        ),
        "axis": (conditions.what_decides, lab, "Questions with a solution, passes over them, and every method"),
        "events": (conditions.events, lab, "By number of events, mean over pre-trainings"),
        "passk": (
            figures.passk,
            lab,
            "pass@k against pre-training tokens; mean over seeds; bars: range (none: one seed)",
        ),
        "c1": (figures.passk, lab, ("base", "base0", "best", "rl"), "The base and direct RL; bars: range"),
        "c2": (figures.passk, lab, ("rl", "sft", "sft_rl"), "RL, SFT and SFT→RL; bars: range"),
        "c3": (figures.passk, lab, ("rl", "sft", "gold"), "RL, SFT and SFT-Gold on one pool; bars: range"),
        "c5": (figures.expansion, lab, by_key["C5"], "What RL adds at each k; bars: 95 % intervals"),
        "c6": (figures.general, lab, "General skills; bars: range over pre-trainings"),
        "c7": (
            figures.parallel,
            lab,
            "Parallel averaging beside the methods that it joins; bars: range (none: one seed)",
        ),
        "c8": (conditions.seeds, lab, by_key["C8"], "RL run by run"),
        "c10": (conditions.diagnostic, lab, by_key["C10"], "The base's validation score and RL's outcome"),
        "c11": (conditions.shots, lab, "The base by number of exemplars"),
        "dynamics_late": (runs.dynamics, lab, lab.late, "Along RL, SFT→RL and averaging; validation, first seed"),
        "dynamics_early": (runs.dynamics, lab, lab.early, "The same from the early checkpoint"),
        "mechanism": (runs.mechanism, lab, "What RL changes in what is written, step by step"),
        "pretraining": (conditions.pretraining, lab, "Pre-training: loss on held-out text"),
    }
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
def head(lab: Lab, claims: list[Claim], hot: list[Claim], draw: Drawn) -> list[tuple]:
    title = f"The claims of {PAPER}, measured (preset {quoted(lab.manifest['preset'])})"
    if lab.manifest["preset"] in MEANINGLESS:
        said = "These numbers mean nothing. This preset runs every stage for a few steps, to show that all of it works."
        return [("head", 1, title), ("banner", said), *draw("headline"), *made_by(lab, judged=False)]
    return [
        ("head", 1, title),
        ("list", sentences(claims, hot, lab)),
        ("text", agreement.headline(lab)),
        tables.claims(claims, lab),
        *draw("headline"),
        ("text", "Differences are in points of percent, with 95 % intervals; what words mean stands [below](#words)."),
        *made_by(lab),
    ]


def what_decides(lab: Lab, draw: Drawn) -> list[tuple]:
    return [
        ("head", 2, "What decides"),
        ("text", axis.said(lab)),
        *draw("axis"),
        *([("list", axis.sentences(lab)), axis.table(lab), axis.difference_table(lab)] if axis.read(lab).pools else []),
    ]


def beyond_the_text(lab: Lab, draw: Drawn) -> list[tuple]:
    return [
        ("head", 2, "Beyond the text"),
        ("text", beyond.said(lab)),
        *draw("events"),
        beyond.differences(lab),
        ("more", "By number of events (questions)", [beyond.table(lab)]),
    ]


def order_and_cost(lab: Lab) -> list[tuple]:
    said = (
        "Tau is 1 where the methods (base, RL, SFT, SFT-Gold, SFT→RL, averaging) stand in the paper's order, −1 in "
        "the opposite one; the paper's checkpoint is that whose base has the nearest pass@1. By chance: the share of "
        "random orders that agree as well."
    )
    cost = (
        "What each method took, mean over pre-trainings; SFT→RL with the SFT before it. Right answers seen: rewarded "
        "completions, and demonstrations read. A sampled token counts as a forward pass; prompts are left out."
    )
    return [
        ("head", 2, "The paper's order, and what it costs"),
        ("text", said),
        agreement.table(lab),
        ("text", cost),
        agreement.compute(lab),
    ]


def checks(lab: Lab, claims: list[Claim], hot: list[Claim], draw: Drawn) -> list[tuple]:
    others = {"RL at half its rate": judged(lab.viewed_as("half")), "asked at T 1": hot}
    said = (
        "The registered rows again, with direct RL at half its rate (at the early checkpoint from the first "
        "pre-training alone), and with every model asked at T 1 and top-p 1 (the first 200 test questions). –: that "
        "row does not change, or was not run so."
    )
    along = [*draw("dynamics_late")] + (draw("dynamics_early") if lab.early != lab.late else [])
    return [
        ("head", 2, "Sensitivity"),
        ("text", said),
        tables.sensitivity(claims, others),
        ("head", 2, "Where RL stops, and what it changes"),
        ("list", agreement.slopes(lab) + mechanism.without_signal(lab)),
        *draw("mechanism"),
        ("text", mechanism.SAID),
        mechanism.table(lab),
        ("more", "Along the runs", along),
        ("more", "How far each method moved", [tables.movement(lab)]),
    ]


def still_open(claims: list[Claim]) -> list[str]:
    """What the claims table leaves undecided: primary comparisons without a verdict, and what no run could tell."""
    lines = []
    for claim in claims:
        asked = [c for c in claim.primary if c.verdict not in ("reproduced", "contradicted", "absent")]
        told = [f"{c.name} ({c.told}{f', {c.shown}' if c.difference else ''})" for c in asked]
        if not claim.comparisons and claim.verdict in ("no claim", "not run"):
            told.append(claim.verdict)
        lines += [f"{claim.key} {claim.title}: {'; '.join(told)}."] if told else []
    return [
        *lines,
        "How any of it carries over to larger models and to natural text: this is one synthetic world, and its models "
        "have a million parameters.",
    ]


def claim_page(lab: Lab, claim: Claim, draw: Drawn) -> list[tuple]:
    said = f"Measured: {claim.statistic}. The paper: {claim.paper}. Verdict: {tables.verdict(claim)}."
    blocks = [("head", 2, tables.heading(claim)), ("text", said)]
    blocks += draw(claim.key.lower()) if claim.key.lower() in draw.drawings else []
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
    return [*blocks, *more, *commands(lab, claim.key)]


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
    asked: dict[tuple, list[str]] = {}
    for tokens in dict.fromkeys([lab.early, lab.late]):
        for name, want in late.items():
            usual = dict(n_shot=0 if want else lab.shots(tokens), seed=lab.manifest["seed"])
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
    claims = judged(lab, tell)
    draw = Drawn(drawings(lab, claims), tell)
    hot = judged(lab.viewed_as("hot"), tell)
    out = head(lab, claims, hot, draw)
    if lab.manifest["preset"] in MEANINGLESS:
        out += [("head", 2, "Every method from every checkpoint"), tables.score(lab)]
        return [*out, *time_by_stage(lab), *samples(lab), *not_run(lab)], draw
    out += what_decides(lab, draw) + beyond_the_text(lab, draw) + order_and_cost(lab)
    out += [("head", 2, "What remains open"), ("list", still_open(claims))]
    said = "Rows of other numbers of seeds are of other pre-trainings; the order above is of shared ones."
    out += [("head", 2, "Every method from every checkpoint"), *draw("passk"), ("text", said), tables.score(lab)]
    for claim in claims:
        out += claim_page(lab, claim, draw)
    out += checks(lab, claims, hot, draw) + [("head", 2, "Words"), ("list", WORDS)]
    return [*out, *time_by_stage(lab), *appendix(lab, draw)], draw


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
