"""The paper's presets against its protocol; its prompts; what a preset refuses.   pytest -q tests/test_presets.py"""

import json
import os

import numpy as np
import pytest
from tiny import BYTES, tiny_model, write_ckpt

import evaluate
import merge
import train_pretrain
import train_rl
import train_sft
from data.files import UserError
from data.math_qa import TEMPLATES, encode_prompts, format_prompt, format_target, paper_exemplars, question_prompts
from data.questions import Question
from data.tokenizer import keep, tokenizer_id

# docs of the protocol: PROTOCOL.md, by section. RL (4), SFT and SFT -> RL (5), parallel averaging (6), evaluation (7),
# pre-training (1), saving and filters (11).
ADAM = {"betas": [0.9, 0.999], "weight_decay": 0.01, "grad_clip": 1.0, "warmup_steps": 0}  # 4, 5, 6
RL = ADAM | {  # 4, 11
    "lr": 1e-6, "steps": 1560, "prompts_per_step": 512, "group_size": 32, "updates_per_batch": 4, "clip_low": 0.2,
    "clip_high": 0.2, "dual_clip": 3.0, "kl_coef": 1e-3, "temperature": 1.0, "max_prompt_tokens": 1024,
    "max_new_tokens": 2048, "loss_norm": "token", "adv_norm": "std", "stop": "eos", "save_every": 200,
    "task": "openmath", "template": "paper",
}  # fmt: skip
# 5
AFTER_SFT = RL | {
    "lr": 4e-5,
    "kl_coef": 0.0,
    "updates_per_batch": 1,
    "max_prompt_tokens": 512,
    "max_new_tokens": 512,
}  # 5
SFT = ADAM | {  # 5, 11
    "lr": 4e-5, "steps": 9500, "batch_size": 512, "max_prompt_tokens": 512, "max_target_tokens": 512,
    "sft_loss_norm": "sum", "save_every": 500, "gold": False, "task": "openmath", "template": "paper",
}  # fmt: skip
MERGE = ADAM | {  # 6, 11
    "lr": 1e-6, "sft_lr": 1e-6, "steps": 2200, "prompts_per_step": 512, "group_size": 32, "batch_size": 512,
    "kl_coef": 0.0, "updates_per_batch": 1, "max_prompt_tokens": 512, "max_new_tokens": 512, "max_target_tokens": 512,
    "sft_loss_norm": "sum", "save_every": 100, "stop": "eos", "template": "paper", "sync_every": 1,
}  # fmt: skip
PRETRAIN = {  # 1
    "block_size": 4096, "batch_tokens": 512 * 4096, "steps": 23842, "lr": 4e-4, "betas": [0.9, 0.95],
    "weight_decay": 0.1, "grad_clip": 1.0, "z_loss": 1e-5, "warmup_steps": 477, "save_every": 1000, "seed": 6198,
    "document_mask": False, "mix": "base",
}  # fmt: skip
EVALUATE = {"temperature": 0.6, "top_p": 0.95, "n_samples": 32, "max_new_tokens": 1024, "bench_limit": 1000, "limit": 0}
BY_GSM8K, BY_MATH = {"grader": "gsm8k"}, {"grader": "math"}
TABLE = [
    (train_rl, "paper", RL),
    (train_rl, "paper-math", RL | {"group_size": 64}),  # 4: 1B on 50B tokens; the others 32
    (train_rl, "paper-sft-rl", AFTER_SFT),
    (train_rl, "paper-gold", AFTER_SFT),
    (train_sft, "paper", SFT),
    (train_sft, "paper-math", SFT | {"lr": 5e-4, "max_prompt_tokens": 2560, "max_target_tokens": 1024}),  # 5
    (train_sft, "paper-gold", SFT | {"gold": True}),
    (train_sft, "paper-sft-rl", SFT | {"steps": 2000}),
    (merge, "paper", MERGE),
    (merge, "paper-math", MERGE | {"group_size": 64}),
    (merge, "paper-gold", MERGE | {"gold": True}),
    (merge, "paper-sft-rl", MERGE),
    (train_pretrain, "paper", PRETRAIN),
    (train_pretrain, "paper-math", PRETRAIN | {"steps": 28610, "mix": "math-heavy"}),  # 60B tokens / 2,097,152
    (train_pretrain, "paper-sft-rl", PRETRAIN),
    (train_pretrain, "paper-gold", PRETRAIN),
    (evaluate, "paper", EVALUATE | BY_GSM8K | {"tasks": ["gsm8k", *evaluate.REAL_TASKS]}),  # 7
    (evaluate, "paper-math", EVALUATE | BY_MATH | {"tasks": ["math", *evaluate.REAL_TASKS]}),
    (evaluate, "paper-sft-rl", EVALUATE | BY_GSM8K | {"tasks": ["gsm8k", *evaluate.REAL_TASKS]}),
    (evaluate, "paper-gold", EVALUATE | BY_GSM8K | {"tasks": ["gsm8k", *evaluate.REAL_TASKS]}),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "preset", "values"), TABLE, ids=[f"{s.__name__}-{p}" for s, p, _ in TABLE])
def test_presets_hold_the_papers_values(stage, preset, values):
    p = stage.parser()
    p.set_defaults(**stage.PRESETS[preset])
    args = vars(p.parse_args(["--preset", preset]))
    assert {name: args[name] for name in values} == values
    unknown = set(stage.PRESETS[preset]) - set(args)
    assert not unknown, unknown


def test_every_preset_is_tested():
    tested = {(stage, preset) for stage, preset, _ in TABLE}
    stages = (train_rl, train_sft, merge, train_pretrain, evaluate)
    assert tested == {(s, name) for s in stages for name in s.PRESETS if name != "laptop"}


def test_help_prints_what_a_preset_sets():
    text = train_rl.parser().format_help()
    assert "--preset paper: --lr 1e-06 --steps 1560" in text and "--template paper" in text
    assert "--preset paper-math: as paper, but --group-size 64" in text
    assert "--no-document-mask" in train_pretrain.parser().format_help()
    assert "--preset paper-gold: as paper, but --gold\n" in train_sft.parser().format_help()


# ------------------------------------------------------------------------------------------------------------ prompts
QUESTION = Question("q", "What is 2 + 3?", ["2+3=5.\nThe answer is \\boxed{5}."], "5", "x")


def test_the_papers_prompts_to_the_letter():
    boxed = "What is 2 + 3? Let's think step by step and output the final answer within \\boxed{}.\n"
    assert format_prompt(QUESTION, TEMPLATES["paper"]) == boxed
    assert format_target(QUESTION, QUESTION.solutions[0], TEMPLATES["paper"]) == QUESTION.solutions[0]
    base = 'Question: What is 2 + 3?\nAnswer: Let\'s think step by step and output the final answer after "####".\n'
    assert format_prompt(QUESTION, TEMPLATES["paper-base"]) == base
    assert all(not TEMPLATES[name].stops for name in ("paper", "paper-base", "paper-base-math"))


def test_nothing_stands_before_the_papers_prompts():
    plain, ours = TEMPLATES["paper"], TEMPLATES["boxed"]
    text = BYTES.encode_ordinary(format_prompt(QUESTION, plain))
    assert question_prompts(BYTES, [QUESTION], plain) == [text]
    assert question_prompts(BYTES, [QUESTION], ours) == [[BYTES.eot_token, *text]]
    assert encode_prompts(BYTES, ["ab"], begin=False) == ([], [BYTES.encode_ordinary("ab")])
    shared, rows = encode_prompts(BYTES, ["ab", "ac"], "shots", begin=False)
    assert shared == BYTES.encode_ordinary("shots") and rows == [BYTES.encode_ordinary(t) for t in ("ab", "ac")]
    assert train_sft.load_examples(BYTES, [QUESTION], plain, False)[0][0] == text


def gsm8k_file(folder, rows=7473):
    """A file of GSM8K's size with rows that can be told apart."""
    (folder / "gsm8k").mkdir()
    lines = [json.dumps({"question": f"Q{i}?", "answer": f"<<{i}={i}>>{i} it is.\n#### {i}"}) for i in range(rows)]
    (folder / "gsm8k/train.jsonl").write_text("\n".join(lines))


def test_the_papers_exemplars_are_eight_fixed_rows(tmp_path, monkeypatch):
    monkeypatch.delenv("REAL_DATA", raising=False)
    gsm8k_file(tmp_path)
    two = (
        "Question: Q1297?\nAnswer: <<1297=1297>>1297 it is.\n#### 1297\nQuestion: Q576?\nAnswer: <<576=576>>576 it is."
    )
    text = paper_exemplars(tmp_path, 8, TEMPLATES["paper-base"])
    assert text.startswith(two) and text.count("Question: ") == 8
    np.random.seed(42)
    drawn = np.random.choice(7473, 8, replace=False)
    assert [line for line in text.splitlines() if line[0] == "#"] == [f"#### {i}" for i in drawn]
    boxed = paper_exemplars(tmp_path, 1, TEMPLATES["paper-base-math"])
    assert boxed == "Question: Q1297?\nAnswer: <<1297=1297>>1297 it is.\n\\boxed{1297}\n"
    with pytest.raises(UserError, match="there are 8"):
        paper_exemplars(tmp_path, 9, TEMPLATES["paper-base"])


def test_exemplars_of_another_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("REAL_DATA", raising=False)
    gsm8k_file(tmp_path, rows=100)
    with pytest.raises(UserError, match="7,473 training rows"):
        paper_exemplars(tmp_path, 8, TEMPLATES["paper-base"])


@pytest.mark.skipif(not os.environ.get("REAL_DATA"), reason="REAL_DATA is not set: GSM8K is not at hand")
def test_the_first_exemplar_of_the_real_file():
    text = paper_exemplars(None, 1, TEMPLATES["paper-base"])
    assert text.startswith("Question: In Professor Plum's biology class") and text.endswith("<<8=8>>8.\n#### 8\n")


# ----------------------------------------------------------------------------------------------------------- refusals
@pytest.fixture(scope="module")
def of_world(tmp_path_factory):
    """A checkpoint of the synthetic world, as far as a preset looks at it."""
    tokenizer = tokenizer_id(BYTES) | {"name": "world"}
    return write_ckpt(tmp_path_factory.mktemp("world") / "ckpt_000001.pt", tiny_model(), tokenizer=tokenizer)


@pytest.mark.parametrize("script", ["train_rl", "train_sft", "merge"])
def test_a_world_checkpoint_is_refused(refused, world, of_world, tmp_path, script):
    flags = ("--init", of_world, "--data", world, "--out", tmp_path / "run", "--preset", "paper")
    refused(script, *flags, words=("--preset paper", "world's tokenizer", "drop --preset"))
    assert not (tmp_path / "run").exists()


def test_evaluation_refuses_a_world_checkpoint(refused, world, of_world):
    refused("evaluate", "--ckpt", of_world, "--data", world, "--preset", "paper", words=("world's tokenizer",))


@pytest.mark.parametrize(("parent", "template", "n_shot"), [(None, "paper-base", 8), ({"hash": "x"}, "paper", 0)])
def test_evaluation_asks_base_and_trained_models_differently(tmp_path, monkeypatch, parent, template, n_shot):
    ckpt = {"parent": parent, "tokenizer": {"name": "gpt2"}}
    of_math = "paper-base-math" if parent is None else "paper"
    for preset, flags, expected in (
        ("paper", [], (template, n_shot, "gsm8k")),
        ("paper-math", [], (of_math, n_shot, "math")),
        ("paper", ["--n-shot", "1"], (template, 1, "gsm8k")),
        ("paper", ["--template", "boxed"], ("boxed", 0, "gsm8k")),
        ("paper", ["--tasks", "openmath", "hellaswag"], (of_math, n_shot, "math")),
        ("paper-math", ["--tasks", "svamp"], (template, n_shot, "gsm8k")),
        ("paper", ["--tasks", "math500", "--grader", "ours"], (of_math, n_shot, "ours")),
        ("paper-math", ["--tasks", "lambada"], (template, n_shot, "math")),
    ):
        monkeypatch.setattr("sys.argv", ["evaluate.py", "--ckpt", "x.pt", "--preset", preset, *flags])
        args = evaluate.parse_args()
        evaluate.paper_prompts(args, ckpt)
        assert (args.template, args.n_shot, args.grader) == expected
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--ckpt", "x.pt", "--preset", "paper", "--tasks", "gsm8k", "math"])
    with pytest.raises(UserError, match="--tasks gsm8k math: .* for MATH; evaluate them one by one"):
        evaluate.paper_prompts(evaluate.parse_args(), ckpt)


PARENT = {"file": "x.pt", "stage": "convert", "step": 0, "tokens": 0, "hash": "x"}


@pytest.mark.parametrize(("parent", "preset", "n_shot"), [(None, "paper", 8), (PARENT, "paper-math", 0)])
def test_an_evaluation_is_named_by_its_preset_and_the_exemplars_it_chose(ok, tmp_path, parent, preset, n_shot):
    path = write_ckpt(tmp_path / "ckpt_000001.pt", tiny_model(), tokenizer=keep(BYTES), parent=parent)
    (tmp_path / "lambada_test.jsonl").write_text('{"text": "the cat sat on the mat"}\n')
    ok("evaluate", "--ckpt", path, "--data", tmp_path, "--preset", preset, "--tasks", "lambada")
    report = json.loads((tmp_path / f"ckpt_000001.{preset}_test_{n_shot}shot.json").read_text())
    assert report["settings"]["n_shot"] == n_shot


SMALL = ("--prompts-per-step", "2", "--group-size", "2", "--max-new-tokens", "4")


def test_the_templates_marker_decides_the_reward(ok, world, tmp_path, monkeypatch):
    """--template of the run, not its task, says how an answer is stated."""
    seen = []
    monkeypatch.setattr("train_rl.reward", lambda text, gold, template: seen.append(template.name) or 0.0)
    flags = ("--init", write_ckpt(tmp_path / "ckpt_000001.pt", tiny_model()), "--data", world, "--steps", "1")
    ok("train_rl", *flags, *SMALL, "--template", "boxed", "--out", tmp_path / "run")
    assert set(seen) == {"boxed"}


def test_limits_on_prompt_and_target(ok, refused, world, base, tmp_path):
    flags = ("--init", base, "--data", world, "--steps", "1", "--batch-size", "2")
    out = ok("train_sft", *flags, "--out", tmp_path / "a", "--max-target-tokens", "15").out
    assert "targets have over 15 tokens" in out
    refused("train_sft", *flags, "--out", tmp_path / "b", "--max-target-tokens", "1", words=("1",))
    out = ok("train_rl", *flags[:6], "--out", tmp_path / "c", *SMALL, "--max-prompt-tokens", "11").out
    assert "questions have over 11 tokens" in out
