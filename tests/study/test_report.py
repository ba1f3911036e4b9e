"""The report's pages, from made-up evaluations.   pytest -q tests/study/test_report.py"""

import json
import re
from pathlib import Path

import pytest
from known_effects import LATE, changed, made_up

from common import UserError
from study import archive, report
from study.claims import judged, short_table
from study.plan import make_plan
from study.read import Lab, check_evaluation
from study.render import html, markdown, slug
from study.tasks import amount

ROOT = Path(__file__).resolve().parents[2]
TRIPLE = r"([+-]?\d+\.\d) \[([+-]?\d+\.\d), ([+-]?\d+\.\d)\]"
PNG = b"\x89PNG"
COMMITTED = [ROOT / "docs/results" / name for name in ("laptop", "lab")]


def pages(text: str) -> dict[str, str]:
    """Of report.md: key of the claim or control (else the heading) -> what stands under it."""
    return {part.split("\n")[0].split(". ")[0]: part for part in text.split("\n## ")[1:]}


def folded(page: str) -> dict[str, str]:
    """Of report.html the same; what folds away is in it."""
    return {part.split(">")[1].split(".")[0].split("<")[0]: part for part in page.split("<h2 ")[1:]}


# ---------------------------------------------------------------- what it holds
def test_every_claim_and_question_has_its_page(whole):
    text, page = (whole / "report.md").read_text(), folded((whole / "report.html").read_text())
    found = pages(text)
    for key in (f"C{i}" for i in range(1, 12)):
        assert found[key].count("](figures/") == (key not in ("C4", "C9")), key
        if key != "C4":
            assert "<summary>Commands, first seed" in page[key] and "python " in page[key], key
    for name in re.findall(r"\]\(figures/([^)]*)\)", text):
        assert (whole / "figures" / name).read_bytes()[:4] == PNG
    assert len(list((whole / "figures").iterdir())) == text.count("](figures/") == 14
    assert "Shuffle control" in page["C5"] and "Shuffle control" in page["C7"]
    assert "No signal" in page["C1"] and "strict @1" in text
    parts = ["What decides", "Beyond the text", "The paper's order", "What remains open", "C1", "Sensitivity"]
    places = [list(found).index(next(k for k in found if k.startswith(part))) for part in parts]
    assert places == sorted(places) and places[0] == 0
    assert "Mixed sources" not in text and "planned runs not run" not in "".join(page.values())


def test_what_folds_away_is_in_the_page_alone(whole):
    text, page = (whole / "report.md").read_text(), (whole / "report.html").read_text()
    for told in ("RL − base, 8-shot", "python train_rl.py", "SFT-Gold pass@32, late"):
        assert told not in text and told in page, told
    assert re.search(r"SFT-Gold pass@32, late</td><td data-name=\"target\">0 to 92</td>", page)
    assert page.count("<details>") == page.count("</details>") > 25


def test_three_questions_are_read_out_once(whole):
    """The first answer of each method; the fourth question and second answers are not shown."""
    page = (whole / "report.html").read_text()
    for i in range(3):
        assert page.count(f"Q{i}?\n") == 1
    assert "Q3?" not in page and "second by" not in page
    (told,) = re.findall(r"Q0\?\n(.*?)\n\n", page, re.S)
    for method in ("base", "rl", "sft", "gold", "sft_rl", "parallel"):
        assert f"| first by {method}" in told
    assert told.startswith("right answer            | 7\n3.1M base               | first by base\n3.1M RL ")


def test_the_first_lines_say_what_came_out(whole):
    """Title, a sentence a claim, the order of the methods, the claims table, the headline figure, how it was made."""
    parts = (whole / "report.md").read_text().split("\n\n")
    assert parts[0].startswith("# The claims of *RL Excursions") and parts[0].endswith("(preset `lab`)")
    assert len(parts[1].splitlines()) == 6 and all(line.startswith("- **") for line in parts[1].splitlines())
    assert parts[2].startswith("**Do the methods stand in the paper's order?** Kendall's tau (1: ")
    assert parts[3].startswith("|  | claim | measured | the paper | at 3.1M tokens | at 8.2M tokens | verdict |")
    assert len(parts[3].splitlines()) == 2 + 11 and "](figures/headline.png)" in parts[4]
    assert "Preset `lab`, first seed 1, on `2 x CPU`" in parts[6] and "1 minutes by the clock" in parts[6]


def test_the_head_says_which_code_made_what(whole):
    """Runs, source hash, hours and share of time of each stage."""
    text = (whole / "report.md").read_text()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if ".py` |" in line]
    found = {row[0]: row[1:] for row in rows}
    assert set(found) == {f"{name}.py" for name in ("train_pretrain", "train_sft", "train_rl", "merge", "evaluate")}
    assert found["train_pretrain.py"][:2] == ["3 of 3", "hash of train_pretrain.py"]
    assert abs(sum(int(row[-2].removesuffix(" %")) for row in found.values()) - 100) <= 3
    runs = json.loads((whole / "runs.json").read_text())["runs"]
    seconds = sum(r["seconds"] for r in runs if r["kind"] == "pretrain")
    cost = sum(t.cost for t in make_plan("lab", 1).tasks if t.kind == "pretrain")
    assert found["train_pretrain.py"][-1] == f"{seconds / cost:.1f}"
    assert float(found["evaluate.py"][2]) == pytest.approx(6 * sum(r["kind"] == "eval" for r in runs) / 3600, abs=0.01)
    assert "Commits `abc`" in text


def test_smoke_means_nothing_and_says_so(tmp_path, unseen):
    """No claim, no verdict: a banner, the scores, how it was made."""
    folder = made_up(tmp_path, "smoke")
    text = report.build(folder).read_text()
    page = (folder / "report.html").read_text()
    assert "> **These numbers mean nothing." in text and '<p class="banner">These numbers mean nothing.' in page
    for word in ("reproduced", "contradicted", "undecided", "estimate:", "verdict", "C1"):
        assert word not in text and word not in page, word
    assert "| SFT→RL | 1 |" in text and "`train_rl.py`" in text


# ---------------------------------------------------------------- size and form
@pytest.mark.parametrize("folder", ["whole", *COMMITTED])
def test_reports_are_small(folder, request):
    folder = request.getfixturevalue(folder) if isinstance(folder, str) else folder
    assert (folder / "report.md").stat().st_size <= 40_000
    assert (folder / "report.html").stat().st_size <= 3_000_000
    assert all(path.stat().st_size < 90_000 for path in (folder / "figures").iterdir())


@pytest.mark.parametrize("folder", COMMITTED)
def test_a_committed_study_is_one_file_beside_its_report(folder):
    names = {"README.md", "figures", "report.html", "report.md", archive.NAME}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / archive.NAME).stat().st_size <= 3_000_000
    shown = re.findall(r"\]\(figures/([^)]*)\)", (folder / "report.md").read_text())
    assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted(shown)


def test_page_is_self_contained(whole):
    page = (whole / "report.html").read_text()
    assert page.count("data:image/png;base64,") > 20 and not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<table>" in page and "**" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.S)
    assert '<meta name="viewport" content="width=device-width' in page
    for anchor in re.findall(r'href="#([^"]*)"', page):
        assert page.count(f'id="{anchor}"') == 1
    for anchor in re.findall(r"\]\(#([^)]*)\)", text := (whole / "report.md").read_text()):
        assert anchor in [slug(line.lstrip("# ")) for line in text.splitlines() if line.startswith("#")]


def test_nothing_from_runs_json_is_read_as_html(whole, tmp_path, unseen):
    evil = '<script>alert("1")</script>|`**x**'

    def change(manifest):
        manifest.update(preset=evil, machine=evil, commit=evil)
        for r in manifest["runs"]:
            r["command"] = f"python {evil} x.py"
        manifest["runs"][3] |= {"name": evil, "source": evil, "finished": False}

    folder = changed(whole, tmp_path / "evil", change)
    text, page = report.build(folder).read_text(), (folder / "report.html").read_text()
    assert "<script" not in page and "<script" not in text
    assert "&lt;script&gt;" in page and "script alert" in text


def test_blocks_by_hand():
    """Each kind of block in Markdown and in HTML; what is more, or code, folds away in the page alone."""
    table = ("table", ["a|b", "c"], [["**x** < 1", "[C1](#c1-x)"], ["`p|q`", "[plan](../plan.md)"]])
    blocks = [
        ("head", 2, "C1. A→B, now"),
        ("banner", "Mind"),
        ("text", "*so*\n  it is"),
        ("list", ["one", "two"]),
        table,
    ]
    blocks += [("more", "rest", [("text", "hidden")]), ("code", "commands", ["a < b", "c"]), ("table", ["a"], [])]
    text = markdown(blocks)
    assert text.startswith(
        "## C1. A→B, now\n\n> **Mind**\n\n*so* it is\n\n- one\n- two\n\n| a\\|b | c |\n| --- | --- |\n"
    )
    assert "| **x** &lt; 1 | [C1](#c1-x) |" in text and text.endswith("\n\nNot run.\n")
    assert "hidden" not in text and "commands" not in text
    page = html("t<", blocks, {})
    assert '<h2 id="c1-ab-now">C1. A→B, now</h2>' in page and "<title>t&lt;</title>" in page
    assert '<td data-name="a|b"><b>x</b> &lt; 1</td>' in page and '<a href="#c1-x">C1</a>' in page
    assert ">plan</td>" in page and "<summary>rest</summary>\n<p>hidden</p>" in page
    assert "<summary>commands</summary><pre>a &lt; b\nc</pre>" in page and "<li>two</li>" in page
    with pytest.raises(ValueError, match="no such block"):
        html("", [("heading", "x")], {})


# ---------------------------------------------------------------- what was not as it should be
def test_mixed_sources_are_flagged(tmp_path, whole):
    def change(manifest):
        for i, r in enumerate(r for r in manifest["runs"] if r["kind"] == "eval"):
            r["source"] = "one" if i else "two"
        manifest["runs"][0]["accepted"] = "one"

    mixed = Lab(changed(whole, tmp_path / "mixed", change))
    told = report.made_by(mixed)
    assert any("Mixed sources" in line for line in told[0][1]) and "`one`, `two`" in str(report.time_by_stage(mixed))
    assert any("1 runs of other code than today's were accepted" in line for line in told[0][1])
    assert "Mixed sources" not in str(report.made_by(Lab(whole)))


def test_other_code_of_another_stage_is_no_mix(tmp_path, whole):
    """Each stage has a hash of its own."""
    hashes = {row[0]: row[2] for row in report.time_by_stage(Lab(whole))[1][2]}
    assert len(set(hashes.values())) == 5


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"questions": ', "no readable evaluation"),
        ("[]", "dict is needed"),
        ('{"questions": [], "benchmarks": {}}', "'questions' must be dict"),
        ('{"questions": {"gsm": {"questions": {"n": [4], "strict": ["4"]}}}, "benchmarks": {}}', "list of 1 int"),
        ('{"questions": {}, "benchmarks": {"facts": {"hits": "12", "facts": [0, 1]}}}', "hits must be 0 or 1"),
        ('{"questions": {}, "benchmarks": {}, "movement": {"kl": NaN}}', "NaN is no number"),
        ('{"questions": {}, "benchmarks": {}, "movement": {"kl": 1}}', "'relative_distance' must be int or float"),
    ],
)
def test_a_broken_evaluation_counts_as_not_run(tmp_path, whole, content, why):
    """Whatever is wrong with it; the report names it and why."""

    def change(manifest):
        victim = next(r for r in manifest["runs"] if r["name"].startswith(f"rl-{amount(LATE)}-s1-test-0shot-main"))
        victim["out"] = "broken.json"

    folder = changed(whole, tmp_path / "broken", change)
    (folder / "broken.json").write_text(content)
    lab = Lab(folder)
    assert set(lab.by_seed("rl", LATE)) == {2, 3}
    assert len(lab.unreadable) == 1 and "broken.json" in lab.unreadable[0] and why in lab.unreadable[0]
    assert "1 evaluations could not be read and count as not run" in str(report.made_by(lab))


def test_what_evaluate_writes_passes_the_check(whole):
    lab = Lab(whole)
    assert not lab.unreadable
    for r in lab.evals:
        check_evaluation(r["result"], r["name"])


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        (("runs",), {}, "'runs' must be list"),
        (("preset",), None, "'preset' must be str, got nothing"),
        (("seed",), "1", "'seed' must be int"),
        (("primary",), [1.5], "'primary' must be numbers of tokens"),
        (("data", "blind_rules", "8"), "3", "'8' must be int or float"),
        (("events", "gsm/0"), "3", "'gsm/0' must be int"),
        (("runs", 5), "x", "run 5: an object is needed"),
        (("runs", 5, "tokens"), "many", "run 5: 'tokens' must be int"),
        (("runs", 5, "out"), ["a"], "run 5: 'out' must be str"),
        (("runs", 5, "out"), "../../secret.json", "not in the study's folder"),
        (("runs", 5, "method"), "ppo", "is no kind of run"),
        (("runs", 5, "seconds"), "long", "run 5: 'seconds' must be int or float"),
        (("runs", 0, "config"), {"steps": "six"}, "run 0: 'steps' must be int"),
        (("runs", 0, "preset"), "huge", "none of the models"),
    ],
)
def test_wrong_types_in_runs_json_end_in_a_sentence(tmp_path, cut_off, place, value, why):
    def change(manifest):
        for key in place[:-1]:
            manifest = manifest[key]
        manifest[place[-1]] = value

    folder = changed(cut_off, tmp_path / "wrong", change)
    try:
        told = "; ".join(Lab(folder).unreadable)
    except UserError as error:
        told = str(error)
    assert why in told and "\n" not in told and len(told) < 400


def test_a_folder_that_is_no_study(tmp_path):
    with pytest.raises(UserError, match="no runs.json or runs.json.gz there"):
        report.build(tmp_path)


def test_the_old_report_stays_until_the_new_one_is_written(tmp_path, unseen, monkeypatch):
    """A report that fails on the way, at any place, leaves what was there."""
    folder = made_up(tmp_path, "smoke")
    names = [report.build(folder), folder / "report.html", folder / "figures" / "headline.png"]
    before = [path.read_bytes() for path in names]
    for place in ("html", "markdown", "judged"):
        with monkeypatch.context() as patch:
            patch.setattr(report, place, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                report.build(folder)
        assert [path.read_bytes() for path in names] == before
    assert not [path for path in folder.rglob("*") if path.name.startswith(".tmp")]


def test_an_archive_gives_the_same_report(whole, tmp_path, unseen):
    """Packed, the study is judged and told as before, to the letter; of live samples only the first are read."""
    report.build(whole)
    archive.pack(whole, tmp_path / archive.NAME, [])
    place = re.compile(r"\[docs/analysis_plan.md\]\([^)]*\)")
    text = report.build(tmp_path).read_text()
    assert place.sub("", text) == place.sub("", (whole / "report.md").read_text())
    page, live = (tmp_path / "report.html").read_text(), (whole / "report.html").read_text()
    assert page == live


def test_figures_of_an_earlier_report_go(tmp_path, unseen):
    folder = made_up(tmp_path, "smoke")
    (folder / "figures").mkdir()
    for name in ("c1.png", "mine.png"):
        (folder / "figures" / name).write_bytes(PNG)
    report.build(folder)
    assert {path.name for path in (folder / "figures").iterdir()} == {"headline.png", "mine.png"}


def test_a_report_that_takes_a_while_says_how_far_it_is(tmp_path, unseen, monkeypatch, capsys):
    """A line where 5 seconds were silent; here, by the clock, each step takes 4."""
    ticks = iter(range(0, 10**6, 4))
    monkeypatch.setattr(report.time, "time", lambda: next(ticks))
    report.build(made_up(tmp_path, "laptop"))
    shown = capsys.readouterr().out
    assert re.search(r"report: claim \d of 11 judged\n", shown) and "figures drawn" in shown
    assert len(shown.splitlines()) < 40


def test_the_short_table_is_printed(whole, monkeypatch, capsys):
    before = (whole / "report.md").stat().st_mtime_ns
    monkeypatch.setattr("sys.argv", ["report", str(whole), "--claims"])
    report.main()
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head == "| claim of the paper | the paper | here | verdict |" and len(rows) == 11
    assert rows[1].startswith(
        "| RL alone gets as far as SFT followed by RL | −12.0 at 4B, +1.1 at 44B | pass@1, RL − SFT→RL"
    )
    assert (whole / "report.md").stat().st_mtime_ns == before


# ---------------------------------------------------------------- README
def numbers(text: str) -> list[str]:
    """Each "d [low, high]" in a text, in one spelling: signs written out, minus as a hyphen."""
    plain = re.sub(r"<[^>]*>", " ", text).replace("−", "-")

    def sign(x: str) -> str:
        return x if x[0] in "+-" else "+" + x

    return [f"{sign(d)} [{sign(low)}, {sign(high)}]" for d, low, high in re.findall(TRIPLE, plain)]


def committed(name: str) -> Lab:
    """A study of docs/results, if its results are of this plan."""
    place = ROOT / "docs/results" / name
    if "pool" not in archive.StudyFiles(place).manifest:
        pytest.skip("results of v10 not committed yet")
    return Lab(place)


def test_readme_has_the_table_of_the_lab():
    """What stands between <!-- claims --> and the next blank line after the table is what --claims prints."""
    lab = committed("lab")
    _, _, rest = (ROOT / "README.md").read_text().partition("<!-- claims -->\n")
    head, *rows = short_table(judged(lab), lab)
    assert rest.lstrip("\n").startswith(markdown([("table", head, rows)]))


def test_readme_says_what_the_reports_say():
    """Its intervals stand in the lab's report."""
    committed("lab")
    told = numbers((ROOT / "README.md").read_text())
    page = numbers((ROOT / "docs/results/lab/report.html").read_text())
    assert set(told) <= set(page), sorted(set(told) - set(page))


def test_a_wrong_interval_would_be_found():
    assert numbers("−0.1 [−0.3, 0.1] and 2.4 [+1.1, +3.7]") == ["-0.1 [-0.3, +0.1]", "+2.4 [+1.1, +3.7]"]
