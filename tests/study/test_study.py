"""The command line of a study, from its first line to its last.   pytest -q tests/study/test_study.py"""

import json
import signal
import subprocess
import sys
import time

import pytest
from finished_runs import find, planned, write_all, write_result, write_run

import common
from data.files import UserError
from data.tokenizer import save_ranks
from study import __main__ as cli
from study import session, setup
from study.folder import HERE
from study.plan import make_plan
from study.read import Lab
from study.summary import MEANINGLESS, table


def call(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["study", *map(str, flags)])
    try:
        cli.carry_out(cli.begin())
    finally:
        while common.HELD:
            common.release(*common.HELD.pop())


@pytest.fixture
def world_there(tmp_path, monkeypatch):
    """A smoke study's folder with a world of today's code in it; its runs are made up. Returns the study's Folder."""
    data = tmp_path / "study" / "world"
    data.mkdir(parents=True)
    (data / "meta.json").write_text("{}")
    (data / "made_by").write_text(setup.code_hash())
    return planned("smoke", tmp_path / "study", data=session.data_identity(data))


@pytest.fixture
def no_runs(monkeypatch):
    """The runner finds everything done, or writes it; the report is not built."""

    def run(self):
        self.asked = [t.name for t in self.folder.to_do()]
        print("asked", *self.asked)
        write_all(self.folder, self.folder.to_do())
        return []

    monkeypatch.setattr(session.Runner, "run", run)
    monkeypatch.setattr(session.Study, "report", lambda self: None)


def test_the_first_line_comes_at_once():
    """Before torch is loaded: help and the plan must not keep anyone waiting."""
    script = "import sys; from study import __main__ as cli; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=HERE, capture_output=True).stdout == b"False False\n"
    began = time.time()
    shown = subprocess.Popen([sys.executable, "-m", "study", "--plan"], cwd=HERE, stdout=subprocess.PIPE, text=True)
    assert shown.stdout.readline().startswith("study laptop, first seed 1: 35 runs in runs/laptop, ")
    assert time.time() - began < 5
    shown.communicate()


def test_nothing_is_taken_over_unless_asked(monkeypatch):
    """`make study` measures: results that lie in docs/ are no part of it."""
    monkeypatch.setattr(sys, "argv", ["study", "--preset", "laptop"])
    assert cli.parse_args().known is None
    with pytest.raises(UserError, match="--known nowhere: no runs.json or runs.json.gz there; give a study's folder"):
        call(monkeypatch, "--known", "nowhere")
    for other in ("--plan", "--report-only"):
        with pytest.raises(UserError, match="give it without them first"):
            call(monkeypatch, "--known", HERE / "docs/results/lab", other)
    with pytest.raises(UserError, match="--jobs 0: at least one"):
        call(monkeypatch, "--jobs", 0)


def test_paths_are_the_callers(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study", "--out", "my runs/x"])
    assert cli.parse_args().out == tmp_path / "my runs" / "x"


def test_a_world_of_other_code_is_no_world(monkeypatch, world_there, capfd):
    """Else a study would report an old world's numbers as today's. Its own is made again, another is refused."""
    data, log = world_there.dir / "world", world_there.dir / "world.log"
    monkeypatch.setattr(setup, "world_command", lambda data, flags: ["python", "-c", "print('made')"])
    setup.make_world(data, [], log, own=False)
    for text in ("", "another\n"):
        (data / "made_by").write_text(text)
        with pytest.raises(UserError, match="other code.*remove it"):
            setup.make_world(data, [], log, own=False)
    assert not log.exists()
    setup.make_world(data, [], log, own=True)
    assert "other code" in capfd.readouterr().out and log.read_text().endswith("made\n")


def test_the_world_is_shown_while_it_is_made(tmp_path, capfd, monkeypatch):
    """Its tour goes to the terminal and to the log."""
    tour = "from pathlib import Path; Path('x').parent; print('gsm: a question'); print('Q: 1+1?')"
    monkeypatch.setattr(setup, "world_command", lambda data, flags: ["python", "-c", tour])
    setup.make_world(tmp_path / "world", [], tmp_path / "logs" / "world.log", own=True)
    assert "gsm: a question\nQ: 1+1?\n" in capfd.readouterr().out
    assert (tmp_path / "logs" / "world.log").read_text().endswith("gsm: a question\nQ: 1+1?\n")
    monkeypatch.setattr(setup, "world_command", lambda data, flags: ["python", "-c", "raise SystemExit(3)"])
    with pytest.raises(UserError, match=r"the world could not be made; see .*world.log"):
        setup.make_world(tmp_path / "world", [], tmp_path / "logs" / "world.log", own=True)


def test_real_data_needs_its_folder_and_is_prepared_in_the_studys(monkeypatch, tmp_path, capfd):
    monkeypatch.delenv("REAL_DATA", raising=False)
    with pytest.raises(UserError, match="REAL_DATA is not set: export REAL_DATA=path/to/data"):
        call(monkeypatch, "--preset", "real-small", "--out", tmp_path / "study")
    source = tmp_path / "real" / "general"
    source.mkdir(parents=True)
    (source / "a.txt").write_text("A line of text.\n" * 20_000)
    monkeypatch.setenv("REAL_DATA", str(tmp_path / "real"))
    flags = ["$REAL_DATA/general", "--tokenizer", str(HERE / "missing.bpe"), "--val-fraction", "0.4"]
    with pytest.raises(UserError, match="no corpus could be made; see .*corpus.log"):
        setup.make_corpus(tmp_path / "data", flags, tmp_path / "corpus.log")
    assert "missing.bpe" in capfd.readouterr().out
    save_ranks({bytes([b]): b for b in range(256)}, tmp_path / "bytes.tiktoken")
    flags[2] = str(tmp_path / "bytes.tiktoken")
    setup.make_corpus(tmp_path / "data", flags, tmp_path / "corpus.log")
    before = session.data_identity(tmp_path / "data")
    (tmp_path / "data" / "manifest.jsonl").write_text("of another machine\n")
    assert before == session.data_identity(tmp_path / "data") != ""


def test_devices(monkeypatch):
    monkeypatch.setattr(setup.torch.cuda, "is_available", lambda: False)
    assert setup.find_devices("auto") == setup.find_devices("cpu") == ("cpu",)
    with pytest.raises(UserError, match="--device cuda: torch finds no such device"):
        setup.find_devices("cuda")
    monkeypatch.setattr(setup.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(setup.torch.cuda, "device_count", lambda: 2)
    assert setup.find_devices("auto") == setup.find_devices("cuda") == ("cuda:0", "cuda:1")
    assert setup.find_devices("cuda:1") == ("cuda:1",) and setup.find_devices("cpu") == ("cpu",)
    with pytest.raises(UserError, match="--device cuda:2"):
        setup.find_devices("cuda:2")


def test_gpus_share_the_runs(monkeypatch, tmp_path):
    """One run a GPU, at addresses of their own; --jobs has the last word."""
    monkeypatch.setattr(session, "find_devices", lambda name: ("cuda:0", "cuda:1"))
    for flags, jobs in (([], 2), (["--jobs", "3"], 3)):
        monkeypatch.setattr(sys, "argv", ["study", "--preset", "smoke", "--out", str(tmp_path), *flags])
        made = session.Study(cli.parse_args(), make_plan("smoke", 1))
        assert made.jobs == jobs and made.folder.device == "cuda"
    task = made.folder.tasks[0]
    assert made.folder.address(task) != planned("smoke", data="").address(task)


def test_the_plan_is_printed_in_order(monkeypatch, capsys):
    call(monkeypatch, "--preset", "lab", "--plan", "--jobs", 2)
    shown = capsys.readouterr().out
    names = [t.name for t in planned("lab").tasks]
    assert [line.split()[2] for line in shown.splitlines() if " s  " in line] == names
    assert f"{len(names)} runs, 2 side by side" in shown and "runs | C1 C2 C3 C5 C6 C7: seed 3, early" in shown


def test_what_is_finished_costs_nothing_in_the_plan(monkeypatch, capsys, world_there):
    """Unless other code made it."""
    evals = [t for t in world_there.tasks if t.kind == "eval"]
    write_result(world_there, evals[0])
    write_result(world_there, evals[1], source="0ther")
    call(monkeypatch, "--preset", "smoke", "--plan", "--out", world_there.dir)
    lines = [line for line in capsys.readouterr().out.splitlines() if " s  " in line]
    assert [line.split()[2] for line in lines if line.split()[0] == "0"] == [evals[0].name]
    assert [line.split()[2] for line in lines if line.endswith("(made by other code)")] == [evals[1].name]


def test_a_finished_study_asks_for_nothing_and_what_is_broken_is_made_again(monkeypatch, capsys, world_there, no_runs):
    write_all(world_there)
    broken = world_there.path(world_there.tasks[1])
    broken.write_text("{")
    call(monkeypatch, "--preset", "smoke", "--out", world_there.dir)
    shown = capsys.readouterr().out
    assert f"asked {world_there.tasks[1].name}\n" in shown and f"{broken.name} is made again: " in shown
    assert "1 runs to do, about " in shown and "logs: " in shown
    call(monkeypatch, "--preset", "smoke", "--out", world_there.dir)
    assert "asked\n" in capsys.readouterr().out
    manifest = json.loads((world_there.dir / "runs.json").read_text())
    assert all(row["finished"] for row in manifest["runs"]) and manifest["device"] == "cpu"
    assert manifest["code"].keys() == {t.script for t in world_there.tasks}


def test_runs_of_other_code_are_named_and_made_again(monkeypatch, capsys, world_there, no_runs):
    """With what hangs on them; kept where that is asked for, and then in later calls too."""
    write_all(world_there)
    sft = find(world_there, "sft-")
    write_run(world_there, sft, source="0ther")
    flags = ("--preset", "smoke", "--out", world_there.dir)
    call(monkeypatch, *flags, "--accept-other-source")
    shown = capsys.readouterr().out
    assert f"kept, though other code than today's made them: {sft.name}, " in shown and "asked\n" in shown
    call(monkeypatch, *flags)
    assert "asked\n" in capsys.readouterr().out
    write_run(world_there, sft, source="third")
    call(monkeypatch, *flags)
    shown = capsys.readouterr().out
    assert f"made again, as other code than today's made them or what they start from: {sft.name}, " in shown
    asked = next(line for line in shown.splitlines() if line.startswith("asked")).split()[1:]
    assert {name.split("-")[0] for name in asked} == {"sft", "sft_rl"}
    assert (world_there.dir / "other_code" / "third").is_dir()


def test_stopped_says_how_to_go_on(monkeypatch, capsys, world_there):
    """One line, no traceback."""
    stop = KeyboardInterrupt("SIGTERM")
    monkeypatch.setattr(session.Runner, "run", lambda self: (_ for _ in ()).throw(stop))
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "--preset", "smoke", "--out", str(world_there.dir))
    assert ended.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == f"stopped; to go on: python -m study --preset smoke --out {world_there.dir}\n"


def test_the_table_at_the_end(monkeypatch, world_there, no_runs):
    write_all(world_there)
    call(monkeypatch, "--preset", "smoke", "--out", world_there.dir)
    shown = table(Lab(world_there.dir))
    lines = shown.splitlines()
    assert lines[1].split()[1] == "0.15M"
    assert [line.split()[0] for line in lines[2:7]] == ["base,", "RL", "SFT", "SFT→RL", "averaging"]
    assert lines[3].split() == ["RL", "4.7", "50.0", "75.0"] and MEANINGLESS in shown
