"""python sample.py: prompts in, completions and their log-probs out.   pytest -q tests/test_sample_cli.py"""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import EOT, bigram_model, chain_table, tiny_model, write_ckpt

from common import source_files

ROOT = Path(__file__).parent.parent
HEAD = re.compile(
    r"--- (\d+)/(\d+) \| (\d+) tokens, ended by (.+) \| log-prob (-?[0-9.]+), (-?[0-9.]+) a token\n(.*)\n"
)


@pytest.fixture
def chain(tmp_path, world):
    """A model that writes bcdef after a, then end-of-text; its run read `world`."""
    model = bigram_model(chain_table("bcdef", "a"))
    return write_ckpt(tmp_path / "chain.pt", model, config={"data": str(world)})


def test_completions_and_their_log_probs(ok, base, world):
    """Sums, means and single log-probs by the plain forward pass at temperature 1, though drawn at 0.6 and top-p."""
    given = ("--ckpt", base, "--data", world, "--max-new-tokens", "6", "--per-token", "--n-samples", "3")
    out = ok("sample", *given, "--prompt", "1+2?", "so").out
    heads = list(HEAD.finditer(out))
    assert [h.groups()[:2] for h in heads] == [("1", "3"), ("2", "3"), ("3", "3")] * 2
    assert out.index("\n1+2?\n") < heads[0].start() < heads[2].end() < out.index("\nso\n") < heads[3].start()
    model, drawn_with = tiny_model(scale=1.0), dict(temperature=0.6, top_p=0.95, seed=0)
    for n, prompt in enumerate(("1+2?", "so")):
        ids = [EOT, *prompt.encode()]
        drawn = model.generate([ids], n_samples=3, max_new_tokens=6, eos_id=EOT, question_ids=[n], **drawn_with)
        for head, row in zip(heads[3 * n :], drawn.completions(), strict=False):
            with torch.no_grad():
                logits = model(torch.tensor([ids + row]))[0, len(ids) - 1 : -1]
            want = logits.log_softmax(-1)[range(len(row)), row].tolist()
            _, _, count, end, total, mean, _ = head.groups()
            assert int(count) == len(row) and end == ("end-of-text" if row[-1] == EOT else "--max-new-tokens")
            assert float(total) == pytest.approx(sum(want), abs=6e-3)
            assert float(mean) == pytest.approx(sum(want) / len(row), abs=6e-4)
            shown = [float(x) for x in re.findall(r"^ +(-?\d+\.\d+)  ['\"]", out[head.end() :], re.MULTILINE)]
            assert shown[: len(row)] == pytest.approx(want, abs=6e-4)


def test_a_prompt_given_twice_is_sampled_anew_and_a_seed_repeats(ok, base, world):
    given = ("--ckpt", base, "--data", world, "--n-samples", "2", "--max-new-tokens", "8", "--prompt", "ab", "ab")
    out = ok("sample", *given).out
    assert len({h.group(7) for h in HEAD.finditer(out)}) == 4
    assert ok("sample", *given).out == out != ok("sample", *given, "--seed", "1").out


@pytest.mark.parametrize(
    ("flags", "text", "end"),
    [
        ([], "bcdef", "end-of-text"),
        (["--stop", "cd"], "b", "a stop string"),
        (["--stop", "zz", "e"], "bcd", "a stop string"),
        (["--max-new-tokens", "2"], "bc", "--max-new-tokens"),
        (["--prompt", "x" * 91 + "a"], "bcd", "the end of the context"),
    ],
)
def test_stopping(ok, chain, flags, text, end):
    """Greedily, with the tokenizer of the folder that the checkpoint names."""
    *_, head = HEAD.finditer(ok("sample", "--ckpt", chain, "--prompt", "a", "--greedy", *flags).out)
    assert head.group(1, 2, 4, 7) == ("1", "1", end, text)


def test_template(ok, world, tmp_path):
    """The question is put into the template's form, which also brings its stop strings; --stop replaces them."""
    model = bigram_model(chain_table(" 12\n34", ":"))  # after `A:`
    ckpt = write_ckpt(tmp_path / "a.pt", model, config={"data": str(world)})
    given = ("--ckpt", ckpt, "--prompt", "5+7?", "--template", "world", "--greedy")
    out = ok("sample", *given).out
    assert "\nQ: 5+7?\nA:\n" in out and HEAD.search(out).group(4, 7) == ("a stop string", " 12")
    assert "\n 12\n34\n" in ok("sample", *given, "--stop").out
    assert HEAD.search(ok("sample", *given, "--stop", "2").out).group(7) == " 1"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ("--prompt", "--interactive")),
        (["--prompt", ""], ("--prompt ''", "empty")),
        (["--prompt", "a", ""], ("--prompt ''", "empty")),
        (["--prompt", "a", "x" * 95], ("96 tokens", "context of 96", "shorten")),
        (["--prompt", "a", "--max-new-tokens", "0"], ("--max-new-tokens 0",)),
        (["--prompt", "a", "--n-samples", "0"], ("--n-samples 0",)),
        (["--prompt", "a", "--n-samples", "2", "--greedy"], ("--n-samples 2", "greedy")),
        (["--prompt", "a", "--n-samples", "2", "--temperature", "0"], ("--n-samples 2", "greedy")),
        (["--prompt", "a", "--temperature", "nan"], ("--temperature nan",)),
        (["--prompt", "a", "--top-p", "0"], ("--top-p 0",)),
        (["--prompt", "a", "--template", "poem"], ("poem", "world")),
        (["--prompt", "a", "--stop", ""], ("stop string ''",)),
        (["--prompt", "a", "--seed", "-1"], ("--seed -1",)),
        (["--prompt", "a", "--ckpt", "none.pt"], ("none.pt: no such",)),
        (["--prompt", "a", "--data", "nowhere"], ("nowhere",)),
    ],
)
def test_mistakes(refused, chain, flags, words):
    refused("sample", "--ckpt", chain, *flags, words=words)


def test_without_flags(refused):
    refused("sample", words=("needs flags", "python sample.py --ckpt checkpoints/world_base.pt"))
    refused("sample", "--prompt", "a", words=("--ckpt is missing",))


def test_every_prompt_is_read_before_one_is_completed(stage, chain):
    ended = stage("sample", "--ckpt", chain, "--prompt", "a", "--prompt", "x" * 95)
    assert ended.code == 2 and "leaves no room" in ended.err and "---" not in ended.out


def test_checkpoints_that_do_not_fit(refused, chain, world, tmp_path):
    """Finite weights whose activations overflow; a tokenizer that is not here, is another one, or knows more tokens."""
    ask = ("--prompt", "a")
    with torch.no_grad():
        (huge := tiny_model()).norm_f.weight.fill_(3e38)
    broken = write_ckpt(tmp_path / "huge.pt", huge, config={"data": str(world)})
    refused("sample", "--ckpt", broken, *ask, words=("not finite",))
    lost = write_ckpt(tmp_path / "lost.pt", tiny_model(), config={"data": str(tmp_path / "gone")})
    refused("sample", "--ckpt", lost, *ask, words=("lost.pt", "'bytes'", "--data"))
    other = write_ckpt(tmp_path / "o.pt", tiny_model(), tokenizer={"name": "o", "hash": "0", "n_vocab": 9})
    refused("sample", "--ckpt", other, "--data", world, *ask, words=("o.pt", "tokenizer 'o'", "--data"))
    small = write_ckpt(tmp_path / "small.pt", tiny_model(vocab_size=97), config={"data": str(world)})
    refused("sample", "--ckpt", small, *ask, words=("not among the model's 97",))


def test_interactive(ok, chain, monkeypatch):
    """Prompts until the input ends. An empty line and a mistake cost nothing; bytes that are not UTF-8 are read."""
    typed = b"a\n\n" + b"x" * 200 + b"\n\xff\xfea\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
    out = ok("sample", "--ckpt", chain, "--interactive", "--greedy", "--prompt", "fa").out
    assert [h.group(7) for h in HEAD.finditer(out)] == ["bcdef"] * 3
    assert out.count("error: ") == 1 and "201 tokens" in out


def test_control_characters_are_spelled_out(ok, world, tmp_path):
    """A completion cannot command the terminal."""
    ckpt = write_ckpt(tmp_path / "esc.pt", bigram_model(chain_table("b\x1b[2J\tc", "a")), config={"data": str(world)})
    out = ok("sample", "--ckpt", ckpt, "--prompt", "a", "--greedy", "--per-token").out
    assert "b\\x1b[2J\tc\n" in out and "\x1b" not in out


def command(ckpt, *flags, **settings) -> subprocess.Popen:
    env = os.environ | settings.pop("env", {})
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen([sys.executable, "sample.py", "--ckpt", ckpt, *flags], cwd=ROOT, env=env, **pipes)


def test_a_terminal_without_utf8(chain):
    """As a user sees it from a shell: an ASCII terminal, an argument that is no UTF-8."""
    process = command(chain, "--prompt", b"\xc3\xa9\xff a", "--greedy", env={"PYTHONIOENCODING": "ascii"})
    out, err = process.communicate()
    assert process.returncode == 0 and not err and b"\nbcdef\n" in out.replace(b"\r", b"") and out.isascii()


def test_ctrl_c_and_a_closed_pipe_end_quietly(chain):
    process = command(chain, "--interactive", "--greedy")
    process.stdin.write(b"a\n")
    process.stdin.flush()
    assert any(b"bcdef" in line for line in iter(process.stdout.readline, b""))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and not err
    process = command(chain, "--prompt", *["a"] * 40, "--n-samples", "20")
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=60)) == (b"", 0)


def test_help_and_what_runs_are_made_of(stage):
    """The command is no part of a training run: to change it makes no run stale."""
    ended = stage("sample", "--help")
    assert ended.code == 0 and "--interactive" in ended.out and "python sample.py --ckpt" in ended.out
    found = {path.name for path in source_files(ROOT / "train_rl.py")}
    assert "sample.py" in found and "complete.py" not in found
