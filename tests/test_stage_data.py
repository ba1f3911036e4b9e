"""What stages take of their data: rows that fit, exemplars that are not the question, counts that can sort, folders.
pytest -q tests/test_stage_data.py"""

import json
import shutil

import pytest
from tiny import BYTES, load, read_jsonl, row, tiny_model, write_ckpt, write_jsonl

import evaluate
from data.math_qa import load_questions
from data.pass_at_k import fitting
from data.tokenizer import tokenizer_id

RL = "--steps 1 --prompts-per-step 2 --group-size 2".split()
STAGES = {"train_sft": "--steps 1 --batch-size 2".split(), "train_rl": RL, "merge": [*RL, "--batch-size", "2"]}
QUICK = "--n-samples 2 --k 1 --max-new-tokens 12".split()


@pytest.fixture
def long_world(world, tmp_path):
    """The world with 30 more short questions in each split, and one question that is longer than any context."""
    shutil.copytree(world, tmp_path / "world")
    for split in ("train", "test"):
        path, rows = tmp_path / "world" / f"{split}.jsonl", [row(a, 4) for a in range(30)]
        long = row(1, 5) | {"problem": "1+5" * 40 + "?"}
        write_jsonl(path, [*rows[:10], long, *rows[10:], *read_jsonl(path)])
    return tmp_path / "world"


def test_fitting_by_hand(capsys):
    rows = [[1] * n for n in (5, 9, 6, 10)]
    assert fitting(rows, 0, 10, "rows", True) == [0, 1, 2, 3] and not capsys.readouterr().out
    assert fitting(rows, 2, 10, "rows", False) == [0, 2]
    assert "note: 2 of 4 rows do not fit the context of 10 (the first: number 2)" in capsys.readouterr().out
    for refuse in ({"strict": True}, {"strict": False, "most": 0.4}):
        with pytest.raises(evaluate.UserError, match="9 tokens|10 tokens|2 of 4 rows.*at most 40%"):
            fitting(rows, 2, 10, "rows", **refuse)
    with pytest.raises(evaluate.UserError, match="prompt of 10 tokens"):
        fitting(rows, 9, 10, "rows", strict=False)  # none fits


@pytest.mark.parametrize("name", STAGES)
def test_a_row_that_does_not_fit_is_left_out_and_counted(ok, refused, long_world, base, tmp_path, name):
    flags = ("--init", base, "--data", long_world, *STAGES[name])
    flags += ("--max-new-tokens", "8") if name != "train_sft" else ()  # SFT writes completions only when asked to
    shown = ok(name, *flags, "--out", tmp_path / "run").out
    what = "examples" if name == "train_sft" else "questions"
    assert f"note: 1 of 43 {what} do not fit the context of 96 (the first: number 11)" in shown
    assert ("42 examples" if name == "train_sft" else "42 gsm questions") in shown
    refused(name, *flags, "--strict-length", "--out", tmp_path / "strict", words=("exceeds", "96"))
    assert not list(tmp_path.glob("strict/*.pt"))


def test_a_score_says_over_how_many_questions_it_is(ok, refused, long_world, base, tmp_path):
    flags = ("--ckpt", base, "--data", long_world, "--tasks", "gsm", "hard", *QUICK, "--out", tmp_path / "r.json")
    shown = ok("evaluate", *flags).out
    result = json.loads((tmp_path / "r.json").read_text())["questions"]
    (long,) = [q.qid for q in load_questions(long_world, "gsm", "test") if len(q.problem) > 96]
    assert result["gsm"]["too_long"] == [long] and result["gsm"]["n_questions"] == 35
    assert long not in result["gsm"]["questions"]["qid"] and result["hard"]["too_long"] == []
    assert "over 35 of 36 questions: 1 do not fit the context" in shown
    refused("evaluate", *flags, "--strict-length", words=("exceeds the model's context of 96",))
    rows = [row(a, 4) | {"problem": f"{a}" * 100} for a in range(1, 5)]
    write_jsonl(long_world / "test.jsonl", [*rows, *read_jsonl(long_world / "test.jsonl")])
    refused("evaluate", *flags, words=("5 of 40 gsm questions", "at most 5%"))  # no score over what happens to fit


def test_answers_without_solutions_are_for_rl_alone(ok, refused, long_world, base, tmp_path):
    for split in ("train", "test"):
        rows = [{k: v for k, v in row(a, 2).items() if k != "generated_solution"} for a in range(9)]
        write_jsonl(long_world / f"{split}.jsonl", rows)
    flags = ("--init", base, "--data", long_world, "--out", tmp_path / "run")
    refused("train_sft", *flags, *STAGES["train_sft"], words=("no solutions", "train_rl.py"))
    refused("merge", *flags, *STAGES["merge"], words=("no solutions",))
    assert "9 gsm questions" in ok("train_rl", *flags, *STAGES["train_rl"], "--max-new-tokens", "8").out
    flags = ("--ckpt", base, "--data", long_world, "--tasks", "gsm", *QUICK, "--out", tmp_path / "r.json")
    refused("evaluate", *flags, "--n-shot", "1", words=("0 questions with solutions",))


def prompts_of(monkeypatch, ok, *flags) -> list[str]:
    """The texts that a model reads in an evaluation."""
    seen, real = [], evaluate.load_model

    def spying(*args):
        model = real(*args)
        generate = model.generate
        model.generate = lambda prompts, **kw: seen.extend(kw["prefix"] + p for p in prompts) or generate(prompts, **kw)
        return model

    monkeypatch.setattr(evaluate, "load_model", spying)
    ok("evaluate", *flags)
    return [BYTES.decode(ids) for ids in seen]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_question_never_stands_among_its_own_exemplars(ok, monkeypatch, world, tmp_path, split):
    """Tested on the training questions themselves, and on test questions that the training questions hold as well."""
    shutil.copytree(world, tmp_path / "world")
    if split == "test":
        shutil.copy(world / "train.jsonl", tmp_path / "world" / "test.jsonl")
    ckpt = write_ckpt(tmp_path / "long.pt", tiny_model(block_size=256))
    flags = ("--ckpt", ckpt, "--data", tmp_path / "world", "--tasks", "gsm", "--split", split, "--n-shot", "4")
    texts = prompts_of(monkeypatch, ok, *flags, *QUICK, "--out", tmp_path / "r.json")
    problems = [q.problem for q in load_questions(tmp_path / "world", "gsm", split)]
    assert len(texts) == len(problems) == 12
    heads = set()
    for text, problem in zip(texts, problems, strict=True):
        *shots, last = text.removeprefix("<|endoftext|>").split("Q: ")[1:]
        asked = [shot.split("\n")[0] for shot in shots]
        assert last == f"{problem}\nA:" and len(set(asked)) == 4 and problem not in asked
        heads.add(tuple(asked))
    assert len(heads) == 5  # one for all, and one for each of the four that stand in it


@pytest.mark.parametrize(
    "change, word",
    [
        ({"n_shot": 8}, "8 exemplars"),
        ({"temperature": 0.0}, "greedy"),
        ({"n_shot": None}, "'n_shot'"),
        ({"split": ["train"]}, "'split'"),
        ({"temperature": "1"}, "'temperature'"),
    ],
)
def test_counts_that_cannot_sort_questions_are_refused(refused, world, base, tmp_path, change, word):
    settings = {"split": "train", "n_shot": 0, "temperature": 1.0} | change
    counts = {"qid": ["gsm/0"], "strict": [1], "n": [2]}
    by = tmp_path / "by.json"
    by.write_text(json.dumps({"settings": settings, "questions": {"gsm": {"questions": counts}}}))
    flags = ("--init", base, "--data", world, *RL, "--only", "easy", "--by", by, "--out", tmp_path / "run")
    refused("train_rl", *flags, words=("by.json", word))


@pytest.mark.parametrize(
    "counts",
    [
        {"qid": ["gsm/0"], "strict": [1], "n": [0]},
        {"qid": ["gsm/0"], "strict": ["1"], "n": [2]},
        {"qid": ["gsm/0"], "strict": [3], "n": [2]},
        {"qid": ["gsm/0", "gsm/1"], "strict": [1], "n": [2]},
        {"qid": [["gsm/0"]], "strict": [1], "n": [2]},
        {"strict": [1], "n": [2]},
        [],
    ],
)
def test_counts_that_are_not_whole_are_refused(refused, world, base, tmp_path, counts):
    settings, by = {"split": "train", "n_shot": 0, "temperature": 1.0}, tmp_path / "by.json"
    by.write_text(json.dumps({"settings": settings, "questions": {"gsm": {"questions": counts}}}))
    flags = ("--init", base, "--data", world, *RL, "--only", "easy", "--by", by, "--out", tmp_path / "run")
    refused("train_rl", *flags, words=("by.json", "evaluate.py --split train"))


def test_a_folder_named_as_a_tokenizer_is_a_folder(ok, refused, world, tmp_path, monkeypatch):
    """--data world and --data gpt2 mean folders, though tokenizers have these names."""
    monkeypatch.chdir(tmp_path)
    shape = "--preset tiny --block-size 32 --batch-tokens 64 --steps 1".split()
    for name in ("world", "gpt2"):
        refused("train_pretrain", "--data", name, *shape, "--out", name + "_none", words=("no such data folder",))
        shutil.copytree(world, name)
        ok("train_pretrain", "--data", name, *shape, "--out", name + "_run")
        assert load(tmp_path / f"{name}_run" / "ckpt_000001.pt")["tokenizer"] == tokenizer_id(BYTES)
    flags = ("--init", "gpt2_run/ckpt_000001.pt", "--data", "gpt2", *RL, "--max-new-tokens", "8", "--out", "rl")
    assert "gsm questions" in ok("train_rl", *flags).out


def test_a_choice_too_long_is_refused_before_anything_is_sampled(stage, long_world, base, tmp_path):
    write_jsonl(long_world / "bench_facts.jsonl", [{"context": "Ann has", "choices": ["a hat", "x" * 100], "gold": 0}])
    flags = ("--ckpt", base, "--data", long_world, "--tasks", "gsm", "facts", *QUICK, "--out", tmp_path / "r.json")
    ended = stage("evaluate", *flags)
    assert ended.code == 2 and "does not fit the context of 96" in ended.err and "questions |" not in ended.out
