"""User mistakes: exit code 2, one line that says what to do, and nothing lost.   pytest -q tests/test_errors.py"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from test_common import full_disk
from tiny import load, tiny_model, write_ckpt, write_jsonl

import common
from data.tokenizer import make_encoding
from data.tokens import write_meta

SFT = "--batch-size 2 --steps 2".split()
RL = "--prompts-per-step 2 --group-size 2 --max-new-tokens 4 --steps 2".split()
STAGES = {"train_sft": SFT, "train_rl": RL, "merge": [*RL, "--batch-size", "2"]}  # those that start from a checkpoint


@pytest.fixture
def own_world(world, tmp_path):
    return shutil.copytree(world, tmp_path / "world")


def test_a_mistake_on_the_real_command_line(tmp_path):
    """As a user sees it, from a shell: code 2, an empty stdout, one line on stderr, no traceback."""
    root = Path(common.__file__).parent
    flags = ["--init", str(tmp_path / "none.pt"), "--out", str(tmp_path / "run")]
    ended = subprocess.run([sys.executable, "train_rl.py", *flags], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "none.pt: no such checkpoint" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_no_world_is_made_before_a_mistake_is_told(refused, base, tmp_path, monkeypatch):
    """Making it takes 20 seconds."""
    monkeypatch.chdir(tmp_path)
    for name, flags, word in (
        ("train_sft", ["--init", "none.pt"], "none.pt"),
        ("merge", ["--init", "none.pt"], "none.pt"),
        ("train_pretrain", ["--batch-tokens", 8], "--batch-tokens 8"),
        ("evaluate", ["--ckpt", "none.pt"], "none.pt"),
        ("evaluate", ["--ckpt", base, "--tasks", "gsm", "poems"], "poems"),
    ):
        refused(name, *flags, words=(word,))
        assert not Path("data").exists(), name


def test_every_top_level_file_says_what_it_is_when_run():
    """A library names what to run instead; `python model.py` shows the shapes."""
    root = Path(common.__file__).parent
    for path in root.glob("*.py"):
        assert 'if __name__ == "__main__":' in path.read_text(), path
    for name, words in (("model", "gpt2       12 x"), ("common", "train_rl.py --help"), ("data/files", "data.world")):
        ended = forked.run([f"{name}.py"])
        assert words in ended.stdout and not ended.stderr


@pytest.mark.parametrize("name", STAGES)
def test_checkpoints_that_cannot_be_read(refused, world, base, tmp_path, name):
    (tmp_path / "cut.pt").write_bytes(base.read_bytes()[:-5000])
    torch.save({"a": torch.ones(2)}, tmp_path / "foreign.pt")
    for file, words in (("none.pt", ["no such"]), ("cut.pt", ["cut.pt"]), ("foreign.pt", ["foreign.pt"])):
        for flag in ("--init", "--resume"):
            refused(name, flag, tmp_path / file, "--data", world, "--out", tmp_path / "run", *STAGES[name], words=words)
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_cannot_be_read_in_the_other_entries(refused, world, base, tmp_path):
    (tmp_path / "cut.pt").write_bytes(base.read_bytes()[:-5000])
    for file in ("none.pt", "cut.pt"):
        refused("evaluate", "--ckpt", tmp_path / file, "--data", world, "--tasks", "gsm", words=(file,))
        refused("train_pretrain", "--resume", tmp_path / file, "--data", world, words=(file,))
        refused("merge", "--average", tmp_path / file, base, "--out", tmp_path / "m.pt", words=(file,))


@pytest.mark.parametrize("name", STAGES)
def test_checkpoint_of_another_shape(refused, world, base, tmp_path, name):
    ckpt = load(base)
    torch.save(ckpt | {"model_config": ckpt["model_config"] | {"n_layer": 3}}, tmp_path / "shape.pt")
    words = ("shape.pt", "do not fit")
    refused(
        name, "--init", tmp_path / "shape.pt", "--data", world, "--out", tmp_path / "run", *STAGES[name], words=words
    )


def other_tokenizer(folder):
    """The same world with two bytes swapped in the vocabulary: as many tokens, other ids."""
    swapped = make_encoding("swapped", {bytes([{65: 66, 66: 65}.get(b, b)]): b for b in range(256)})
    meta = {"kind": "text", "files": {}, "mixes": {"base": {}}, "val": "val.bin", "block_size": 96, "seed": 0}
    write_meta(folder, swapped, meta)


@pytest.mark.parametrize("name", STAGES)
def test_checkpoint_of_another_tokenizer(refused, own_world, base, tmp_path, name):
    other_tokenizer(own_world)
    words = (base, "'bytes'", "'swapped'")
    refused(name, "--init", base, "--data", own_world, "--out", tmp_path / "run", *STAGES[name], words=words)
    refused(
        "evaluate", "--ckpt", base, "--data", own_world, "--tasks", "gsm", "--out", tmp_path / "r.json", words=words
    )


@pytest.mark.parametrize("name", STAGES)
def test_init_with_resume(refused, ok, world, base, tmp_path, name):
    flags = [*STAGES[name], "--save-every", "1"]
    ok(name, "--init", base, "--data", world, "--out", tmp_path / "run", *flags)
    ckpt = tmp_path / "run/ckpt_000001.pt"
    refused(name, "--init", base, "--resume", ckpt, "--out", tmp_path / "other", words=("--init", "--resume"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ("train.jsonl", "empty")),
        ('{"problem": "1+1?",\n', ("train.jsonl:1", "JSON")),
        (
            '{"problem": "a", "generated_solution": "#### x", "expected_answer": "many", "problem_source": "gsm"}\n',
            ("train.jsonl:1", "'many'"),
        ),
    ],
    ids=["empty", "malformed", "unparsable gold"],
)
def test_question_files(refused, own_world, base, tmp_path, name, content, words):
    (own_world / "train.jsonl").write_text(content)
    refused(name, "--init", base, "--data", own_world, "--out", tmp_path / "run", *STAGES[name], words=words)
    assert not list(tmp_path.glob("run/*.pt"))


def test_question_files_of_evaluation(refused, own_world, base, tmp_path):
    good = (own_world / "test.jsonl").read_text()
    for content, word in (("", "empty"), (good + "{]\n", "test.jsonl:21"), (good.replace('"19"', '"?"'), "'?'")):
        (own_world / "test.jsonl").write_text(content)
        flags = ("--data", own_world, "--tasks", "gsm", "--out", tmp_path / "r.json")
        refused("evaluate", "--ckpt", base, *flags, words=("test.jsonl", word))


def test_evaluation_reads_every_file_before_it_samples(stage, own_world, base, tmp_path):
    """Half an hour of gsm must not be lost to a typo in the next task's file."""
    (own_world / "bench_facts.jsonl").write_text("{]\n")
    flags = ("--data", own_world, "--n-samples", "1", "--k", "1", "--max-new-tokens", "2", "--out", tmp_path / "r.json")
    ended = stage("evaluate", "--ckpt", base, *flags, "--tasks", "gsm", "facts")
    assert ended.code == 2 and "bench_facts.jsonl:1" in ended.err and "questions |" not in ended.out


def test_prompt_over_the_context(refused, world, base, tmp_path):
    """96 tokens: the longest prompt, end-of-text and `Q: 11+3?` newline `A:`, is 12. Refused where nothing fits, more
    than a twentieth of a score would be left out, or on request."""
    flags = ("--data", world, "--out", tmp_path / "run")
    for name in ("train_rl", "merge"):
        given = (*STAGES[name], "--max-new-tokens", "85", "--strict-length")
        refused(name, "--init", base, *flags, *given, words=("12 tokens + 85 new tokens", "96"))
    given = ("--data", world, "--tasks", "gsm", "--out", tmp_path / "r.json", "--max-new-tokens")
    refused("evaluate", "--ckpt", base, *given, "85", words=("12 tokens", "85", "96"))
    refused("evaluate", "--ckpt", base, *given, "40", "--n-shot", "3", words=("context of 96",))
    short = write_ckpt(tmp_path / "short.pt", tiny_model(block_size=24))
    refused("train_sft", "--init", short, *flags, *SFT, words=("24",))
    assert not list(tmp_path.glob("run/*.pt"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--group-size", "1"], ("--group-size 1", "try")),
        (["--updates-per-batch", "3"], ("--updates-per-batch 3", "2")),
        (["--updates-per-batch", "0"], ("--updates-per-batch 0",)),
        (["--temperature", "0"], ("--temperature 0",)),
        (["--temperature", "nan"], ("--temperature nan",)),
        (["--dual-clip", "0.5"], ("--dual-clip 0.5", "above 1")),
        (["--save-at", "3"], ("--save-at 3", "1 to 2")),
        (["--seed", "-1"], ("--seed -1",)),
        (["--device", "cpu:x"], ("--device cpu:x",)),
        (["--steps", "0"], ("--steps 0",)),
        (["--micro-batch-size", "0"], ("--micro-batch-size 0",)),
        (["--prompts-per-step", "0"], ("--prompts-per-step 0",)),
        (["--prompts-per-batch", "0"], ("--prompts-per-batch 0",)),
        (["--max-new-tokens", "0"], ("--max-new-tokens 0",)),
        (["--lr", "nan"], ("--lr nan",)),
        (["--kl-coef", "-1"], ("--kl-coef -1",)),
        (["--grad-clip", "-1"], ("--grad-clip -1",)),
        (["--weight-decay", "-0.1"], ("--weight-decay -0.1",)),
        (["--n-questions", "-5"], ("--n-questions -5",)),
        (["--save-every", "-1"], ("--save-every -1",)),
        (["--betas", "0.9", "1"], ("--betas 0.9 1.0", "below 1")),
        (["--task", "poems"], ("poems",)),
    ],
)
def test_rl_settings(refused, world, base, tmp_path, flags, words):
    refused("train_rl", "--init", base, "--data", world, "--out", tmp_path / "run", *RL, *flags, words=words)
    assert not list(tmp_path.glob("run/*.pt"))


def test_pretraining_settings(refused, world, tmp_path):
    flags = ("--data", world, "--out", tmp_path / "run", "--block-size", "32", "--steps", "4")
    refused("train_pretrain", *flags, "--save-tokens", "nan", words=("--save-tokens",))
    refused(
        "train_pretrain", *flags, "--save-tokens", "64", "--save-every", "2", words=("--save-tokens", "--save-every")
    )
    refused("train_pretrain", *flags, "--block-size", "1000", "--batch-tokens", "1000", words=("val.bin",))
    refused("merge", "--init", tmp_path, "--out", tmp_path / "run", "--weights", "nan", "1", words=("--weights",))
    assert not (tmp_path / "run").exists()


def test_epochs(refused, world, base, tmp_path):
    refused(
        "train_sft", "--init", base, "--data", world, "--out", tmp_path / "run", "--epochs", "0", words=("--epochs 0",)
    )
    assert not list(tmp_path.glob("run/*.pt"))


def test_evaluation_settings(refused, world, base, tmp_path):
    flags = ("--data", world, "--out", tmp_path / "r.json")
    refused("evaluate", "--ckpt", base, *flags, "--n-samples", "4", "--k", "1", "8", words=("--k 8", "--n-samples 4"))
    refused("evaluate", "--ckpt", base, *flags, "--k", "0", words=("--k",))
    for bad in (
        "--prompts-per-batch 0",
        "--max-new-tokens 0",
        "--temperature -1",
        "--temperature nan",
        "--top-p 0",
        "--limit -1",
        "--n-shot -1",
    ):
        refused("evaluate", "--ckpt", base, *flags, *bad.split(), words=(bad,))
    refused("evaluate", "--ckpt", base, *flags, "--tasks", "gsm", "poems", words=("poems", "hellaswag"))
    refused("evaluate", "--ckpt", base, *flags, "--tasks", "gsm", "--n-shot", "13", words=("--n-shot 13", "12"))
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("name", STAGES)
def test_data_folder_that_is_not_there(refused, base, tmp_path, name):
    words = (tmp_path / "nowhere",)
    refused(name, "--init", base, "--data", tmp_path / "nowhere", "--out", tmp_path / "run", *STAGES[name], words=words)


def test_unwritable_out(refused, world, base, tmp_path):
    """A path below a file, which nobody can make, root neither."""
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "run"
    for name, flags in STAGES.items():
        refused(name, "--init", base, "--data", world, "--out", out, *flags, words=("--out", out))
    pretrain = ("--data", world, "--preset", "tiny", "--block-size", "32", "--batch-tokens", "64", "--steps", "1")
    refused("train_pretrain", *pretrain, "--out", out, words=("--out", out))
    refused("merge", "--average", base, base, "--out", out / "m.pt", words=("--out", out))
    refused("evaluate", "--ckpt", base, "--data", world, "--out", out / "r.json", words=("--out", out))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_out_of_another_user(refused, world, base, tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o500)
    refused("train_sft", "--init", base, "--data", world, "--out", tmp_path / "theirs", *SFT, words=("--out",))


def test_evaluation_into_a_folder(refused, world, base, tmp_path):
    (tmp_path / "r.json").mkdir()
    flags = ("--tasks", "gsm", "--n-samples", "1", "--k", "1", "--max-new-tokens", "2")
    refused("evaluate", "--ckpt", base, "--data", world, *flags, "--out", tmp_path / "r.json", words=("--out",))


# ------------------------------------------------------------------------------------------------------- full disk
def test_full_disk_during_a_run(refused, ok, world, base, tmp_path):
    """The checkpoint of step 4 does not fit: that of step 2 is whole, and with space again it ends as it should."""
    flags = "--batch-size 2 --steps 4 --save-every 2".split()
    ok("train_sft", "--init", base, "--data", world, "--out", tmp_path / "whole", *flags)
    run = tmp_path / "run"
    with full_disk(50_000):
        line = refused("train_sft", "--init", base, "--data", world, "--out", run, *flags, words=("ckpt_000002.pt",))
    assert "free some space" in line and not list(run.glob("*.pt")) and not list(run.glob(".tmp*"))
    shutil.copy(tmp_path / "whole/ckpt_000002.pt", run)
    size = (run / "ckpt_000002.pt").stat().st_size
    with full_disk(size - 1000):
        refused("train_sft", "--resume", run / "ckpt_000002.pt", "--out", run, words=("ckpt_000004.pt",))
    assert [p.name for p in run.glob("*.pt")] == ["ckpt_000002.pt"]
    ok("train_sft", "--resume", run / "ckpt_000002.pt", "--out", run)
    a, b = (load(folder / "ckpt_000004.pt")["model"] for folder in (run, tmp_path / "whole"))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("free", [0, 600, 2500])
def test_full_disk_in_the_logs(refused, world, base, tmp_path, free):
    flags = ("--batch-size", "2", "--steps", "40", "--save-every", "100")
    with full_disk(free):
        refused("train_sft", "--init", base, "--data", world, "--out", tmp_path / "run", *flags, words=("space",))


def test_full_disk_for_a_report(refused, world, base, tmp_path):
    """The report of before stays."""
    (tmp_path / "r.json").write_text("before")
    flags = ("--tasks", "gsm", "--n-samples", "1", "--k", "1", "--max-new-tokens", "2", "--out", tmp_path / "r.json")
    with full_disk(100):
        refused("evaluate", "--ckpt", base, "--data", world, *flags, words=("space",))
    assert (tmp_path / "r.json").read_text() == "before"


# ------------------------------------------------------------------------------------------------------- not finite
def test_non_finite_rl_names_the_step(refused, world, base, tmp_path, monkeypatch):
    import train_rl

    real, calls = train_rl.grpo_gradient, []

    def broken(*args, **kw):
        calls.append(1)
        return real(*args, **kw) | ({"loss": float("nan")} if len(calls) == 3 else {})

    monkeypatch.setattr(train_rl, "grpo_gradient", broken)
    flags = [*RL, "--steps", "4", "--save-every", "2"]
    refused("train_rl", "--init", base, "--data", world, "--out", tmp_path / "run", *flags, words=("step 3", "nan"))
    assert [p.name for p in (tmp_path / "run").glob("*.pt")] == ["ckpt_000002.pt"]


@pytest.mark.parametrize("name", ["train_sft", "merge"])
def test_non_finite_gradient_is_not_saved(refused, world, base, tmp_path, monkeypatch, name):
    """A finite loss with an infinite gradient (an overflow in the backward) must not reach a checkpoint."""
    from train_sft import sft_gradient as real

    def broken(model, *args):
        stats = real(model, *args)
        next(model.parameters()).grad[0, 0] = float("inf")
        return stats

    monkeypatch.setattr(f"{name}.sft_gradient", broken)
    refused(name, "--init", base, "--data", world, "--out", tmp_path / "run", *STAGES[name], words=("step 1",))
    assert not list((tmp_path / "run").glob("*.pt"))


def test_benchmark_file_with_a_bad_row(refused, own_world, base, tmp_path):
    write_jsonl(own_world / "bench_facts.jsonl", [{"context": "a", "choices": ["b", "c"], "gold": 2}])
    flags = ("--data", own_world, "--tasks", "facts", "--out", tmp_path / "r.json")
    refused("evaluate", "--ckpt", base, *flags, words=("bench_facts.jsonl:1",))
