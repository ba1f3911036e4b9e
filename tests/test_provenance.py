"""What made a run: source hash, commit, versions, device, in every file that a stage writes.
pytest -q tests/test_provenance.py"""

import json
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import forked
import pytest
from tiny import load

import common
from common import git_commit, save_checkpoint, source_files, source_hash

ROOT = Path(common.__file__).parent
STAGES = ("train_pretrain", "train_sft", "train_rl", "merge", "evaluate")
SFT = "--batch-size 2 --steps 2 --save-every 1".split()


@pytest.fixture
def code(tmp_path):
    """A copy of the project's code, to edit."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "docs", "tests", "bench", "*.pt", "*.bin", "runs")
    return shutil.copytree(ROOT, tmp_path / "code", ignore=ignored)


def edit(path: Path, line: str = "another_line = 1") -> None:
    path.write_text(path.read_text() + f"\n{line}\n")


@pytest.mark.parametrize("name", STAGES)
def test_source_is_what_the_stage_imports(name):
    names = {p.relative_to(ROOT).as_posix() for p in source_files(ROOT / f"{name}.py")}
    assert {f"{name}.py", "common.py", "stage.py", "model.py", "sample.py", "kernels/attention.py"} <= names
    assert {"data/tokenizer.py", "data/__init__.py", "kernels/dispatch.py"} <= names
    assert not any(file.startswith(("study/", "tests/", "bench/")) for file in names)
    assert ("train_rl.py" in names) == (name in ("train_rl", "merge"))  # merging takes both objectives


def test_source_hash_follows_the_edited_file(code):
    """A file changes the hashes of the stages that import it, through others too, and of no other stage."""
    before = {name: source_hash(code / f"{name}.py") for name in STAGES}
    assert before == {name: source_hash(ROOT / f"{name}.py") for name in STAGES}  # wherever the code lies
    for file, touched in (
        ("train_rl.py", {"train_rl", "merge"}),
        ("evaluate.py", {"evaluate"}),
        ("kernels/decode.py", set(STAGES)),
        ("study/plan.py", set()),
    ):
        edit(code / file)
        after = {name: source_hash(code / f"{name}.py") for name in STAGES}
        assert {name for name in STAGES if after[name] != before[name]} == touched, file
        before = after
    edit(code / "common.py", "# a comment, and\n\n# blank lines")
    path = code / "train_rl.py"
    told = path.read_text().replace('"""', '"""Told in other words. ', 1)
    path.write_text(told.replace("(\n", "(  # layout\n\n"))
    assert {name: source_hash(code / f"{name}.py") for name in STAGES} == before  # no other code
    path = code / "common.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # a checkout on Windows
    assert {name: source_hash(code / f"{name}.py") for name in STAGES} == before


def test_source_of_a_fork(code):
    """A copied stage that imports a file of its own, relative imports and packages included."""
    (code / "rewards").mkdir()
    (code / "rewards/__init__.py").write_text("from . import shaped\n")
    (code / "rewards/shaped.py").write_text("BONUS = 0.1\n")
    fork = code / "my_train_rl.py"
    fork.write_text((code / "train_rl.py").read_text() + "\n\ndef late():\n    import rewards\n")
    names = {p.relative_to(code).as_posix() for p in source_files(fork)}
    assert {"my_train_rl.py", "rewards/__init__.py", "rewards/shaped.py", "common.py"} <= names
    assert "train_rl.py" not in names
    before = source_hash(fork)
    edit(code / "train_rl.py")
    assert source_hash(fork) == before
    edit(code / "rewards/shaped.py")
    assert source_hash(fork) != before


def test_every_file_says_what_made_it(ok, world, base, tmp_path):
    run, source = tmp_path / "run", source_hash(ROOT / "train_sft.py")
    ok("train_sft", "--init", base, "--data", world, "--out", run, *SFT)
    ckpt, config = load(run / "ckpt_000002.pt"), json.loads((run / "config.json").read_text())
    assert config == ckpt["config"] and config["source"] == source and config["batch_size"] == 2
    assert config["device_used"] == "cpu" and config["dtype_used"] == "torch.float32" and config["earlier"] == []
    assert (config["commit"], config["dirty"]) == git_commit()
    assert config["versions"]["torch"] == ckpt["versions"]["torch"] and {"python", "numpy"} <= ckpt["versions"].keys()
    age = datetime.now().astimezone() - datetime.fromisoformat(config["date"])
    assert 0 <= age.total_seconds() < 600
    ok("merge", "--average", run / "ckpt_000001.pt", run / "ckpt_000002.pt", "--out", tmp_path / "mean.pt")
    assert load(tmp_path / "mean.pt")["config"]["source"] == source_hash(ROOT / "merge.py")
    out, quick = tmp_path / "r.json", "--n-samples 1 --k 1 --max-new-tokens 2 --tasks gsm".split()
    ok("evaluate", "--ckpt", run / "ckpt_000002.pt", "--data", world, "--out", out, *quick)
    report = json.loads(out.read_text())
    assert report["source"] == source_hash(ROOT / "evaluate.py") and report["settings"]["device_used"] == "cpu"
    assert {"commit", "dirty", "versions", "date"} <= report.keys()


def test_resume_says_what_makes_it_now(ok, world, base, tmp_path):
    """Other code, another device or dtype than those of the run so far: a note, and both are kept in the folder."""
    run = tmp_path / "run"
    ok("train_sft", "--init", base, "--data", world, "--out", run, *SFT)
    first, ckpt = run / "ckpt_000001.pt", load(run / "ckpt_000001.pt")
    same = ok("train_sft", "--resume", first, "--out", tmp_path / "same")
    assert "numbers may be others" not in same.out
    for key, value in (("source", "0123456789"), ("device_used", "cuda:0"), ("dtype_used", "torch.bfloat16")):
        save_checkpoint(first, ckpt | {"config": ckpt["config"] | {key: value}})
        shown = ok("train_sft", "--resume", first, "--out", tmp_path / key).out
        assert shown.count("numbers may be others") == 1 and f"the run had {value}" in shown
        config = json.loads((tmp_path / key / "config.json").read_text())
        assert config[key] != value and [part[key] for part in config["earlier"]] == [value]
        assert config["earlier"][0]["until_step"] == 1
        assert load(tmp_path / key / "ckpt_000002.pt")["config"]["earlier"] == config["earlier"]


@pytest.mark.parametrize("fault", ["missing", "hangs", "fails"])
def test_git_never_fails_a_run(monkeypatch, ok, world, base, tmp_path, fault):
    """No git, a git that does not answer, a folder that is no repository."""

    def broken(command, **how):
        if fault == "missing":
            raise FileNotFoundError(2, "No such file or directory", "git")
        if fault == "hangs":
            raise subprocess.TimeoutExpired(command, how["timeout"])
        return subprocess.CompletedProcess(command, 128, "", "fatal: not a git repository")

    monkeypatch.setattr(subprocess, "run", broken)
    ok("train_sft", "--init", base, "--data", world, "--out", tmp_path / "run", *SFT)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["commit"] is None and config["dirty"] is None and config["source"]
    quick = "--n-samples 1 --k 1 --max-new-tokens 2 --tasks gsm".split()
    ok("evaluate", "--ckpt", base, "--data", world, "--out", tmp_path / "r.json", *quick)
    assert json.loads((tmp_path / "r.json").read_text())["commit"] is None


def test_evaluation_needs_no_git_on_the_command_line(world, base, tmp_path):
    flags = "--n-samples 1 --k 1 --max-new-tokens 2 --tasks gsm --limit 1 --out".split()
    command = ["evaluate.py", "--ckpt", base, "--data", world, *flags, tmp_path / "r.json"]
    ended = forked.run(command, env={"PATH": "/nonexistent"})
    assert ended.returncode == 0 and json.loads((tmp_path / "r.json").read_text())["questions"], ended.stderr
