"""The report of `study.py --preset lab`: report.md, one self-contained report.html, figures.

    python report_lab.py runs/lab         # rebuilds them from runs/lab/runs.json and the evaluations it names

Every number comes from those files by code; claims.py has the statistics and the verdicts.
"""

import argparse
import base64
import re
from html import escape
from pathlib import Path

import numpy as np

import report
from claims import CLAIMS, Claim, Comparison, Lab, shuffled, value
from claims import megatokens as at
from common import run


# -------------------------------------------------------------------------------------------------- tables of controls
def movement_rows(lab: Lab) -> list[dict]:
    """K1: every run from the late checkpoint, with how far it moved and what became of general text."""
    t, rows = max(lab.primary, default=0), []
    for r in lab.evals:
        if (
            r["result"]
            and r["tokens"] == t
            and r["split"] == "test"
            and r["base"] == "base"
            and "movement" in r["result"]
        ):
            m = r["result"]["movement"]
            rows.append({
                **{k: r[k] for k in ("method", "variant", "seed", "group")}, "distance": m["relative_distance"],
                "kl": m["kl"], "loss": m["loss"] - m["loss_reference"], "pass@1": value(r["result"], 1),
                "pass@32": value(r["result"], 32), "general": r["result"].get("general_average"),
            })  # fmt: skip
    return rows


def control_table(lab: Lab, groups: tuple[str, ...]) -> str:
    """Means over seeds of each method and variant of these groups, in percent; movement beside."""
    rows, out = movement_rows(lab), []
    for key in dict.fromkeys((r["method"], r["variant"]) for r in rows if r["group"] in groups):
        mine = [r for r in rows if (r["method"], r["variant"]) == key]
        mean = lambda k, mine=mine: float(np.mean([r[k] for r in mine if r[k] is not None]))  # noqa: E731
        scores = [f"{100 * mean(k):.1f}" for k in ("pass@1", "pass@32", "general")]
        out.append(
            [" ".join(key).strip(), str(len(mine)), *scores, *(f"{mean(k):.4f}" for k in ("loss", "distance", "kl"))]
        )
    head = [
        "run",
        "seeds",
        "pass@1",
        "pass@32",
        "general",
        "general loss, change",
        "distance / norm",
        "KL, nats a token",
    ]
    return report.table(head, out) if out else "Not run yet."


def k1_note(lab: Lab) -> str:
    """SFT's general score at RL's distance, by linear interpolation over the SFT runs in order of distance."""
    rows = movement_rows(lab)
    sft = sorted(
        (r["distance"], r["general"], r["loss"]) for r in rows if r["method"] == "sft" and r["group"] in ("main", "k1")
    )
    out = []
    for method in ("rl", "parallel", "sft_rl"):
        mine = [r for r in rows if r["method"] == method and r["group"] == "main"]
        if not mine or len(sft) < 3:
            continue
        d, general, loss = (float(np.mean([r[k] for r in mine])) for k in ("distance", "general", "loss"))
        if not sft[0][0] <= d <= sft[-1][0]:
            out.append(
                f"{method} moved {d:.4f} of the weights' norm, outside SFT's {sft[0][0]:.4f} to {sft[-1][0]:.4f}."
            )
            continue
        there = [float(np.interp(d, [s[0] for s in sft], [s[i] for s in sft])) for i in (1, 2)]
        out.append(
            f"At {method}'s distance ({d:.4f} of the norm) SFT's general average would be {100 * there[0]:.1f} against "
            f"{100 * general:.1f}, its change of general loss {there[1]:+.4f} against {loss:+.4f} nats a token."
        )  # fmt: skip
    return "\n".join(f"- {line}" for line in out) or "Not run yet."


# ------------------------------------------------------------------------------------------------------------- figures
def lines(lab: Lab, ax, methods, get, title: str) -> None:
    """A method's mean over seeds against pre-training tokens; bars: range over seeds."""
    for method in methods:
        key = "base8" if method == "base" else method
        name, _, colour, style, marker, filled = report.METHODS[key]
        points = []
        for t in sorted(
            {r["tokens"] for r in lab.evals if r["method"] == method and r["group"] == "main" and r["base"] == "base"}
        ):
            found = lab.base(t) if method == "base" else lab.by_seed(method, t, n_shot=0)
            scores = [s for s in (get(r) for r in found.values()) if s is not None]
            if scores:
                points.append((t, 100 * np.mean(scores), 100 * min(scores), 100 * max(scores)))
        if points:
            x, mean, low, high = np.array(points).T
            face = colour if filled else "white"
            bars = np.maximum(0, [mean - low, high - mean])
            ax.errorbar(x, mean, bars, color=colour, ls=style, marker=marker, mfc=face, ms=4.5, lw=1.3, capsize=2,
                        label="base, best shots" if method == "base" else name)  # fmt: skip
    ax.set_xscale("log")
    ticks = sorted(
        {r["tokens"] for r in lab.evals if r["method"] == "base" and r["group"] == "main" and r["base"] == "base"}
    )
    ax.set_xticks(ticks, [at(t) for t in ticks])
    ax.minorticks_off()
    ax.set_title(title)
    ax.set_xlabel("pre-training tokens")


def draw_passk(lab: Lab):
    figure, axes = report.plt.subplots(1, 3, figsize=(10, 3.4))
    for ax, k in zip(axes, (1, 8, 32), strict=True):
        lines(lab, ax, ("base", "rl", "sft", "gold", "sft_rl", "parallel"), lambda r, k=k: value(r, k), f"pass@{k}, %")
        floor = next((r["result"]["questions"]["gsm"]["guess_floor"].get(str(k)) for r in lab.find()), None)
        if floor is not None:
            ax.axhline(100 * floor, color="#bbbbbb", lw=1, ls=(0, (1, 2)))
            ax.annotate("guess floor", (0.02, 100 * floor), xycoords=("axes fraction", "data"), fontsize=7, va="bottom")
        ax.set_ylim(bottom=0)
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def draw_general(lab: Lab):
    figure, ax = report.plt.subplots(figsize=(5, 3.4))
    get = lambda r: r.get("general_average") if r["benchmarks"] else None  # noqa: E731
    lines(lab, ax, ("rl", "sft", "gold", "sft_rl", "parallel"), get, "average of six general benchmarks, %")
    points = [(t, 100 * r["general_average"]) for t in lab.tokens() for r in lab.base(t, 8).values() if r["benchmarks"]]
    ax.plot(*zip(*points, strict=True), "o--", color="#777777", mfc="white", label="base") if points else None
    ax.legend(fontsize=7, frameon=False)
    return figure


def draw_forest(claim: Claim):
    """Estimates with their intervals; dotted: the margin. Filled: primary."""
    shown = [c for c in claim.comparisons if c.difference]
    if not shown:
        return None
    figure, ax = report.plt.subplots(figsize=(7, 0.6 + 0.24 * len(shown)))
    for y, c in enumerate(reversed(shown)):
        low, high = (100 * v for v in c.interval)
        ax.plot([low, high], [y, y], color="#555555", lw=1.4)
        ax.plot(100 * c.difference.estimate, y, "o", color="#111111", mfc="#111111" if c.primary else "white", ms=4.5)
        for m in (c.margin,) if not c.within else (-c.within, c.within):
            ax.plot([100 * m] * 2, [y - 0.4, y + 0.4], color="#a61c1c", ls=":", lw=1.2)
    ax.set_yticks(range(len(shown)), [f"{c.name}  ({c.seeds})" for c in reversed(shown)], fontsize=7)
    ax.set_xlabel("difference in points, 95 % interval (within: 90 %); in brackets: seeds", fontsize=8)
    return figure


def draw_dynamics(lab: Lab):
    figure, axes = report.plt.subplots(1, 2, figsize=(8, 3.2))
    for ax, k in zip(axes, (1, 32), strict=True):
        for method in ("rl", "sft_rl"):
            found = sorted(
                (r["train_step"], 100 * value(r["result"], k))
                for r in lab.find(method=method, group="dynamics", split="val")
            )
            if found:
                name, _, colour, style, marker, _ = report.METHODS[method]
                ax.plot(*zip(*found, strict=True), color=colour, ls=style, marker=marker, ms=4, label=name)
        ax.set_title(f"pass@{k} on validation questions, %")
        ax.set_xlabel("rollout batches")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


# ----------------------------------------------------------------------------------------------------------- the report
def interval_text(c: Comparison) -> str:
    if not c.difference:
        return "not run"
    low, high = c.interval
    return f"{100 * c.difference.estimate:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def claims_table(claims: list[Claim], links: bool = True) -> str:
    rows = []
    for claim in claims:
        main = [c for c in claim.comparisons if c.primary]
        ours = "<br>".join(f"{c.name}: {interval_text(c)}" for c in main if c.difference) or "–"
        seeds = ", ".join(dict.fromkeys(str(c.seeds) for c in main if c.difference)) or "–"
        link = f"[{claim.key}](#{claim.key.lower()})" if links else claim.key
        rows.append([link, claim.title, claim.statistic, claim.paper, ours, seeds, f"**{claim.verdict}**"])
    return report.table(
        ["", "claim", "primary statistic, points", "paper", "ours [95 % interval]", "seeds", "verdict"], rows
    )


def claim_page(claim: Claim, picture: str, extra: str) -> str:
    rows = [
        [c.name, interval_text(c), str(c.seeds or "–"), "primary" if c.primary else "", c.verdict]
        for c in claim.comparisons
    ]  # fmt: skip
    table = report.table(["comparison", "points [interval]", "seeds", "", "verdict"], rows) if rows else ""
    notes = "\n".join(f"- {n}" for n in claim.notes)
    head = f"## {claim.key}\n\n**{claim.title}.** Statistic: {claim.statistic}. Paper: {claim.paper}. "
    head += f"Verdict: **{claim.verdict}**."
    return "\n\n".join(part for part in (head, table, notes, picture, extra) if part)


def shuffle_table(lab: Lab) -> str:
    """pass@k of each method, of its own answers dealt to other questions, and the guess floor (first seed)."""
    rows = []
    for t in lab.primary:
        for method in ("base", "rl", "sft", "sft_rl", "parallel"):
            found = lab.base(t) if method == "base" else lab.by_seed(method, t, n_shot=0)
            for r in list(found.values())[:1]:
                cells = [f"{100 * value(r, k):.1f} / {100 * shuffled(r, k):.1f}" for k in (1, 8, 32)]
                floor = r["questions"]["gsm"]["guess_floor"]
                rows.append([at(t), method, *cells, " / ".join(f"{100 * floor[str(k)]:.1f}" for k in (1, 8, 32))])
    head = [
        "tokens",
        "method",
        "pass@1 / shuffled",
        "pass@8 / shuffled",
        "pass@32 / shuffled",
        "guess floor @1 / @8 / @32",
    ]
    return report.table(head, rows) if rows else "Not run yet."


def wide_table(lab: Lab) -> str:
    """C5 at both temperatures and to pass@256, 100 questions."""
    rows = []
    for r in lab.evals:
        if r["group"] == "wide" and r["result"]:
            cells = [f"{100 * value(r['result'], k):.1f}" for k in (1, 8, 32, 256)]
            rows.append([r["method"], str(r["temperature"]), *cells])
    return report.table(["method", "T", "pass@1", "@8", "@32", "@256"], rows) if rows else "Not run yet."


def samples(lab: Lab) -> str:
    """First sample of the first question, by method, at the late checkpoint: right or wrong."""
    t, out = max(lab.primary, default=0), []
    for n in (0, 4):
        lines = []
        for method in ("base", "rl", "sft", "sft_rl", "parallel"):
            for r in lab.find(method=method, tokens=t, seed=lab.manifest["seed"], n_shot=0)[:1]:
                rows = report.read_jsonl((lab.folder / r["out"]).with_suffix(".samples.jsonl"))
                if len(rows) > n:
                    lines = lines or [rows[n]["prompt"], f"right answer: {rows[n]['gold']}"]
                    lines.append(f"{method:<9}|{rows[n]['completion'].rstrip()}")
        out += ["```text", *lines, "```"] if lines else []
    return "\n".join(out) or "No sample files."


def commands(lab: Lab, groups: tuple[str, ...]) -> str:
    found = [
        r["command"] for r in lab.manifest["runs"] if r.get("group") in groups and r["kind"] != "eval" and r["finished"]
    ]
    shown = f"<details>\n<summary>{len(found)} training commands</summary>\n\n```sh\n"
    return shown + "\n".join(found) + "\n```\n\n</details>" if found else ""


def provenance(lab: Lab) -> str:
    m, evals = lab.manifest, [r for r in lab.evals if r["result"]]
    commits = sorted({str(r["result"].get("commit")) for r in evals})
    sources = sorted({str(r.get("source")) for r in evals if r.get("source")})
    mixed = " **Mixed sources.**" if len(sources) > 1 else ""
    hours = sum(r["seconds"] or 0 for r in m["runs"]) / 3600
    done = sum(r["finished"] for r in m["runs"])
    per = ", ".join(f"{at(t)}: {len(lab.by_seed('rl', t, n_shot=0))} of {lab.seeds(t)}" for t in lab.tokens())
    return " ".join([
        f"Preset `{m['preset']}`, first seed {m['seed']}.",
        f"{done} of {len(m['runs'])} planned runs finished, {hours:.1f} core hours (one thread a run, {m['jobs']} side",
        f"by side) on {m['machine']}. Commits {', '.join(commits)}; source hashes {', '.join(sources)}.{mixed}",
        f"Post-training seeds finished for direct RL: {per}.",
        f"One pre-training (seed {m['seed']}): every interval is conditional on it.",
        "Rules: [docs/analysis_plan.md](../../analysis_plan.md).",
    ])  # fmt: skip


def build(folder: str | Path) -> Path:
    """Write FOLDER/report.md, report.html and figures from FOLDER/runs.json; returns the report's path."""
    lab = Lab(Path(folder))
    (lab.folder / "figures").mkdir(exist_ok=True)
    claims = [claim(lab) for claim in CLAIMS]

    def picture(name: str, figure, caption: str) -> str:
        if figure is None:
            return ""
        figure.savefig(lab.folder / "figures" / f"{name}.png", dpi=140)
        report.plt.close(figure)
        return f"![{caption}](figures/{name}.png)"

    with report.plt.rc_context(report.STYLE):
        passk = picture(
            "passk", draw_passk(lab), "pass@k against pre-training tokens; mean over seeds, bars: their range"
        )
        general = picture("general", draw_general(lab), "Average of the general benchmarks")
        dynamics = picture("dynamics", draw_dynamics(lab), "Along direct RL and RL after SFT (validation questions)")
        pages = []
        for claim in claims:
            forest = picture(f"{claim.key.lower()}", draw_forest(claim), f"{claim.key}: differences and intervals")
            extra = ""
            if claim.key == "C5":
                extra = "\n\n".join([
                    dynamics, "### Shuffle control, for C5 and C7", shuffle_table(lab),
                    "### Temperature 1.0, pass@256", wide_table(lab),
                ])  # fmt: skip
            elif claim.key == "C6":
                extra = general
            elif claim.key in ("C3", "C4"):
                extra = commands(lab, (claim.key.lower(),))
            pages.append(claim_page(claim, forest, extra))
    controls = [
        "## Controls", "Exploratory; from the late checkpoint; means over seeds. Movement is against the base.",
        "### The methods of the paper", control_table(lab, ("main",)),
        "### K1: movement or objective?", control_table(lab, ("k1",)), k1_note(lab),
        "### K2: SFT→RL with other settings", control_table(lab, ("k2",)),
        "### K3: what makes parallel averaging work", control_table(lab, ("k3",)),
        "### K4: loss denominator, updates per batch", control_table(lab, ("k4",)),
        commands(lab, ("k1", "k2", "k3", "k4")),
    ]  # fmt: skip
    text = "\n\n".join([
        "# The claims, measured", provenance(lab), claims_table(claims), passk, *pages, *controls,
        "## Samples", samples(lab), "## Commands of the main grid", commands(lab, ("main",)),
    ])  # fmt: skip
    (lab.folder / "report.md").write_text(text + "\n")
    (lab.folder / "report.html").write_text(html(text, lab.folder))
    return lab.folder / "report.md"


def html(text: str, folder: Path) -> str:
    """The little Markdown that `build` writes, as one page with its figures inside."""

    def inline(s: str) -> str:
        s = escape(s)
        s = re.sub(r"!\[([^]]*)\]\(([^)]*)\)", lambda m: f'<img alt="{m[1]}" src="{embed(m[2])}">', s)
        s = re.sub(r"\[([^]]*)\]\((#[^)]*)\)", r'<a href="\2">\1</a>', s)
        s = re.sub(r"\[([^]]*)\]\(([^)]*)\)", r"\1 (\2)", s)
        s = s.replace("&lt;br&gt;", "<br>")
        return re.sub(r"`([^`]*)`", r"<code>\1</code>", re.sub(r"\*\*([^*]*)\*\*", r"<b>\1</b>", s))

    def embed(path: str) -> str:
        return "data:image/png;base64," + base64.b64encode((folder / path).read_bytes()).decode()

    out = []
    for block in re.split(r"\n\n(?![^`]*```\n\n</details>)", text):
        if block.startswith("#"):
            level, title = block.split(" ", 1)
            out.append(f'<h{len(level)} id="{title.lower()}">{inline(title)}</h{len(level)}>')
        elif block.startswith("|"):
            rows = [[inline(c.strip()) for c in line.strip("|").split(" | ")] for line in block.splitlines()]
            cells = lambda row, tag: "<tr>" + "".join(f"<{tag}>{c}</{tag}>" for c in row) + "</tr>"  # noqa: E731
            out.append("<table>" + cells(rows[0], "th") + "".join(cells(r, "td") for r in rows[2:]) + "</table>")
        elif block.startswith("- "):
            out.append("<ul>" + "".join(f"<li>{inline(line[2:])}</li>" for line in block.splitlines()) + "</ul>")
        elif block.startswith(("```", "<details>")):
            code = re.sub(r"```\w*\n?", "", re.sub(r"</?details>|<summary>.*</summary>", "", block)).strip()
            title = re.search(r"<summary>(.*)</summary>", block)
            pre = f"<pre>{escape(code)}</pre>"
            out.append(f"<details><summary>{title[1]}</summary>{pre}</details>" if title else pre)
        else:
            out.append(f"<p>{inline(block)}</p>")
    return HTML.format(body="\n".join(out))


HTML = """<!doctype html><meta charset="utf-8"><title>The claims, measured</title>
<style>body{{font:15px/1.45 sans-serif;max-width:62em;margin:2em auto;padding:0 1em}}
table{{border-collapse:collapse;font-size:13px}}
td,th{{border-bottom:1px solid #ddd;padding:3px 8px;text-align:left;vertical-align:top}}img{{max-width:100%}}
pre{{background:#f6f6f6;padding:8px;overflow:auto;font-size:12px}}</style>
{body}
"""


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", metavar="DIR", help="what study.py --preset lab --out wrote")
    print(f"wrote {build(p.parse_args().folder)}")


if __name__ == "__main__":
    run(main)
