"""The stages on a folder of prepared questions.   pytest -q tests/test_prepared.py"""

import json

import pytest
from made_questions import made_rows, prepared, write
from tiny import BYTES, assert_same, load, read_jsonl, tiny_model, write_ckpt

import stage as stage_module
from data.files import UserError
from data.questions import Question, load_questions
from data.tokenizer import Encoding, folder_tokenizer, keep, make_encoding, tokenizer_id

RANKS = BYTES._mergeable_ranks | {b"Wh": 256}
RL = "--prompts-per-step 3 --group-size 3 --max-new-tokens 6".split()
STAGES = {
    "train_rl": RL,
    "train_sft": ["--batch-size", "5"],
    "train_sft --gold": ["--batch-size", "5"],
    "merge": [*RL, "--batch-size", "4", "--gold"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    prepared(path / "out", [write(path / "rows.jsonl", made_rows())])
    return path / "out"


@pytest.fixture(scope="module")
def long_base(tmp_path_factory):
    model = tiny_model(scale=1.0, block_size=192)
    return write_ckpt(tmp_path_factory.mktemp("ckpt") / "ckpt_000003.pt", model)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_does_on_the_folder_what_it_does_on_a_list(ok, folder, long_base, tmp_path, monkeypatch, name):
    script, *gold = name.split()
    flags = ("--init", long_base, "--data", folder, "--task", "openmath", "--steps", 3, *gold, *STAGES[name])
    shown = ok(script, *flags, "--out", tmp_path / "folder").out
    assert "54 openmath questions" in shown

    def listed(data, task, split):
        found = load_questions(data, task, split)
        return [Question(q.qid, q.problem, list(q.solutions), q.answer, q.source) for q in found]

    monkeypatch.setattr(stage_module, "load_questions", listed)
    ok(script, *flags, "--out", tmp_path / "list")
    a, b = (load(tmp_path / run / "ckpt_000003.pt") for run in ("folder", "list"))
    assert_same(a["model"], b["model"])
    losses = [
        [row.get("train/loss") for row in read_jsonl(tmp_path / run / "metrics.jsonl")] for run in ("folder", "list")
    ]
    assert losses[0] == losses[1]


def test_a_run_goes_on_and_other_questions_are_told(ok, folder, long_base, tmp_path):
    flags = ("--init", long_base, "--data", folder, "--task", "openmath", *STAGES["train_sft"])
    ok("train_sft", *flags, "--steps", 2, "--out", tmp_path / "run")
    assert "its batches may be others" not in ok("train_sft", "--resume", tmp_path / "run", "--steps", 3).out
    more = ("--steps", 4, "--n-questions", 9)
    assert "its batches may be others" in ok("train_sft", "--resume", tmp_path / "run", *more).out


def test_validation_and_choice_by_counts(ok, folder, long_base, tmp_path):
    flags = (
        "--ckpt",
        long_base,
        "--data",
        folder,
        "--tasks",
        "openmath",
        "--max-new-tokens",
        6,
        "--n-samples",
        2,
        "--k",
        1,
    )
    ok("evaluate", *flags, "--split", "val", "--out", tmp_path / "val.json")
    found = json.loads((tmp_path / "val.json").read_text())["questions"]["openmath"]
    assert found["questions"]["qid"] == [q.qid for q in load_questions(folder, "openmath", "val")]
    ok("evaluate", *flags, "--split", "train", "--limit", 7, "--temperature", 1, "--out", tmp_path / "train.json")
    flags = ("--init", long_base, "--data", folder, "--task", "openmath", "--steps", 1, *RL)
    by = ("--only", "hard", "--by", tmp_path / "train.json")
    assert "7 openmath questions" in ok("train_rl", *flags, *by, "--out", tmp_path / "rl").out


def test_questions_without_solutions_serve_rl_alone(ok, refused, long_base, tmp_path):
    rows = [{k: v for k, v in row.items() if k != "generated_solution"} for row in made_rows()]
    prepared(tmp_path / "data", [write(tmp_path / "rows.jsonl", rows)])
    flags = ("--init", long_base, "--data", tmp_path / "data", "--task", "openmath", "--steps", 1)
    ok("train_rl", *flags, *RL, "--out", tmp_path / "rl")
    for gold in ([], ["--gold"]):
        refused("train_sft", *flags, *gold, "--out", tmp_path / "sft", words=("no solutions, which SFT needs",))


def test_the_tokenizer_of_a_public_checkpoint_makes_a_folder_that_it_reads(ok, refused, base, tmp_path):
    own = Encoding("own", pat_str=r"\d|\D+", mergeable_ranks=RANKS, special_tokens={"</s>": 257, "<s>": 258}, eot=257)
    model = tiny_model(scale=1.0, block_size=192, vocab_size=259)
    public = write_ckpt(tmp_path / "public.pt", model, tokenizer=keep(own))
    flags = (write(tmp_path / "rows.jsonl", made_rows()), "--workers", 1, "--tokenizer")
    ok("data.prepare", "questions", *flags, public, "--out", tmp_path / "data")
    run = ("--init", public, "--task", "openmath", "--steps", 1, *RL, "--out", tmp_path / "run")
    ok("train_rl", *run, "--data", tmp_path / "data")
    assert tokenizer_id(folder_tokenizer(tmp_path / "data")) == tokenizer_id(own)
    prepared(tmp_path / "other", [tmp_path / "rows.jsonl"], BYTES)  # the checkpoint brings its own: not the folder's
    words = ("made with tokenizer 'own'", "but this data uses 'bytes'")
    refused("train_rl", *run[:-1], tmp_path / "run2", "--data", tmp_path / "other", words=words)
    refused(
        "data.prepare", "questions", *flags, base, "--out", tmp_path / "new", words=("the checkpoint names 'bytes'",)
    )


def test_another_tokenizer_than_the_folders_is_refused(refused, base, tmp_path):
    other = make_encoding("other", BYTES._mergeable_ranks | {b"ab": 256})
    prepared(tmp_path / "data", [write(tmp_path / "rows.jsonl", made_rows())], other)
    flags = ("--init", base, "--data", tmp_path / "data", "--task", "openmath", "--out", tmp_path / "run")
    refused("train_rl", *flags, words=("made with tokenizer 'bytes'", "but this data uses 'other'"))
    with pytest.raises(UserError, match="holds data that differs in its tokenizer; give the same"):
        prepared(tmp_path / "data", [tmp_path / "rows.jsonl"], BYTES)
