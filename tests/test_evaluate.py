"""Evaluation: pass@k by hand, what the JSON holds, what results do not depend on.   pytest -q tests/test_evaluate.py"""

import itertools
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from tiny import BYTES, bigram_model, chain_table, read_jsonl, settings, tiny_model, write_ckpt

import evaluate
from common import Device, UserError, load_checkpoint
from data.checkpoints import weights_hash
from data.math_qa import load_questions
from data.pass_at_k import batches
from data.tokens import general_text, val_batches
from evaluate import mean_stderr, pass_at_k

QUICK = "--n-samples 4 --k 1 2 4 --max-new-tokens 12".split()


# ------------------------------------------------------------------------------------------------------- pass@k
@pytest.mark.parametrize(
    ("n", "c", "k", "want"),
    [
        (4, 2, 1, 0.5),  # the share of right ones
        (4, 2, 2, 5 / 6),  # of 6 pairs one holds none
        (4, 2, 3, 1.0),  # three of four always hold one
        (5, 1, 2, 0.4),  # 4 of 10 pairs hold it
        (10, 3, 4, 1 - 35 / 210),  # C(7, 4) / C(10, 4)
        (32, 0, 8, 0.0),
        (32, 32, 1, 1.0),
        (32, 1, 32, 1.0),
        (1, 0, 1, 0.0),
    ],
)
def test_pass_at_k_by_hand(n, c, k, want):
    assert pass_at_k(n, c, k) == pytest.approx(want, abs=1e-12)


def test_pass_at_k_counts_every_subset():
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if c <= n and k <= n:
            subsets = list(itertools.combinations(range(n), k))
            hits = sum(any(i < c for i in subset) for subset in subsets)
            assert pass_at_k(n, c, k) == pytest.approx(hits / len(subsets), abs=1e-12)


def test_pass_at_k_is_stable_for_many_samples():
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01, rel=1e-9)
    assert pass_at_k(10_000, 5_000, 100) == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 0, 5), (4, 4, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(UserError, match=f"pass@{k}"):
        pass_at_k(n, c, k)


def test_mean_and_standard_error_by_hand():
    """0, 1, 1, 0: mean 1/2, variance with ddof 1 1/3, standard error sqrt(1/12)."""
    got = mean_stderr([0.0, 1.0, 1.0, 0.0])
    assert got == {"value": 0.5, "stderr": pytest.approx(math.sqrt(1 / 12))}
    assert mean_stderr([0.25]) == {"value": 0.25, "stderr": 0.0}


# ------------------------------------------------------------------------------------------------------- the command
@pytest.fixture
def chain(tmp_path):
    """A checkpoint that answers `text` after the prompt's colon, whatever is asked."""

    def make(text: str, weights=()):
        table = chain_table(text, ":")
        for a, b, logit in weights:
            table[ord(a), ord(b)] = logit
        return write_ckpt(tmp_path / "ckpt_000003.pt", bigram_model(table))

    return make


def test_report_of_known_answers(ok, world, chain, tmp_path):
    """Always " 19" without a marker: flexible scoring gives it the one question with that sum, strict none."""
    ckpt, out = chain(" 19"), tmp_path / "r.json"
    shown = ok("evaluate", "--ckpt", ckpt, "--data", world, "--out", out, *QUICK).out
    report = json.loads(out.read_text())
    gsm, hard = report["questions"]["gsm"], report["questions"]["hard"]
    assert gsm["n_questions"] == 5 and gsm["questions"]["gold"] == ["19", "20", "21", "22", "23"]
    assert gsm["questions"]["flexible"] == [4, 0, 0, 0, 0] and gsm["format_rate"] == 0
    for k in (1, 2, 4):
        assert gsm["flexible"][f"pass@{k}"]["value"] == pytest.approx(0.2)
        assert gsm["flexible"][f"pass@{k}"]["stderr"] == pytest.approx(math.sqrt(0.2 * 0.8 / 4))
        assert gsm["strict"][f"pass@{k}"] == {"value": 0.0, "stderr": 0.0}
        assert hard["flexible"][f"pass@{k}"]["value"] == 0
    assert gsm["no_work_rate"] == 1 and "no work" in shown and gsm["styles"] == {"none": 20}
    assert gsm["finish_rate"] == 1 and {k: v[0] for k, v in gsm["questions"].items()} | {"qid": ""} == {
        "qid": "",
        "n": 4,
        "strict": 0,
        "flexible": 4,
        "formatted": 0,
        "finished": 4,
        "bare": 4,
        "answers": {"19": 4},
        "gold": "19",
    }
    assert gsm["guess_floor"].keys() == {"1", "2", "4"}
    assert set(report["benchmarks"]) == {"facts", "lastword"}
    facts, word = report["benchmarks"]["facts"], report["benchmarks"]["lastword"]
    assert report["general_average"] == pytest.approx((facts["acc_norm"] + word["acc"]) / 2)
    assert facts["n"] == 6 and word["ppl"] > 1 and {"acc", "stderr", "hits", "chance"} <= facts.keys()
    settings = {
        "n_samples": 4,
        "k": [1, 2, 4],
        "seed": 0,
        "temperature": 0.6,
        "top_p": 0.95,
        "n_shot": 0,
        "split": "test",
    }
    assert settings.items() <= report["settings"].items()
    assert report["settings"]["dtype_used"] == "torch.float32" and "commit" in report and "seconds" in report
    stored = load_checkpoint(ckpt)
    assert report["checkpoint"]["hash"] == weights_hash(stored["model"]) and report["checkpoint"]["tokens"] == 1234
    for word_ in ("pass@1", "±", "20.0", "flexible", "strict", "average", "sample |"):
        assert word_ in shown
    samples = read_jsonl(tmp_path / "r.samples.jsonl")
    assert {"task", "prompt", "completion", "extracted", "gold"} <= samples[0].keys()
    assert samples[0]["prompt"] == "16+3?" and samples[0]["completion"] == " 19" and samples[0]["extracted"] == "19"


def test_the_grader_is_chosen(ok, refused, world, chain, tmp_path, monkeypatch):
    """Always "x^19", an exponent: no answer to ours, the last number to GSM8K's scorer, no box to MATH's."""
    ckpt, counts = chain("x^19"), {}
    for grader in ("ours", "math", "gsm8k"):
        out = tmp_path / f"{grader}.json"
        shown = ok("evaluate", "--ckpt", ckpt, "--data", world, "--out", out, *QUICK, "--grader", grader).out
        gsm = json.loads(out.read_text())["questions"]["gsm"]
        counts[grader] = (gsm["questions"]["flexible"][0], gsm["questions"]["answers"][0])
        assert f"grader {grader}" in shown
    assert counts == {"ours": (0, {"": 4}), "math": (0, {"": 4}), "gsm8k": (4, {"19": 4})}
    monkeypatch.setitem(sys.modules, "math_verify", None)
    flags = ("--ckpt", ckpt, "--data", world, "--grader", "math-verify")
    refused("evaluate", *flags, words=("math-verify is not installed",))


def test_strict_scoring_and_unbiased_pass_at_k(ok, world, chain, tmp_path):
    r"""\boxed{19} or \boxed{18}, by chance: per-question counts say how often, and pass@k follows from them."""
    ckpt = chain("\\boxed{19}", [("1", "9", 1.0), ("1", "8", 1.0), ("8", "}", 30.0)])
    flags = ("--tasks", "gsm", "--n-samples", "12", "--k", "1", "3", "12", "--max-new-tokens", "12", "--top-p", "1")
    ok("evaluate", "--ckpt", ckpt, "--data", world, "--out", tmp_path / "r.json", *flags)
    gsm = json.loads((tmp_path / "r.json").read_text())["questions"]["gsm"]
    c = gsm["questions"]["strict"][0]
    assert 1 < c < 11 and gsm["questions"]["flexible"][0] == c and gsm["format_rate"] == 1
    for k in (1, 3, 12):
        want = (1 - math.comb(12 - c, k) / math.comb(12, k)) / 5
        assert gsm["strict"][f"pass@{k}"]["value"] == pytest.approx(want)
    assert gsm["questions"]["answers"][0] == {"18": 12 - c, "19": c}


def test_the_first_batch_is_an_eighth():
    assert batches(20, 8) == [range(0, 1), range(1, 9), range(9, 17), range(17, 20)]
    assert batches(20, 128) == [range(0, 16), range(16, 20)] and batches(3, 128) == [range(0, 3)]


def test_results_do_not_depend_on_batching(ok, world, base, tmp_path):
    """Nor does a limit, or another order of tasks, change a question's answers; another seed does."""
    answers = {}
    runs = {
        "all": [],
        "one": ["--prompts-per-batch", "1"],
        "three": ["--prompts-per-batch", "3"],
        "seed": ["--seed", "1"],
    }
    runs["limit"] = ["--limit", "2"]
    for name, flags in runs.items():
        given = (
            "--data",
            world,
            "--tasks",
            "hard",
            "gsm",
            "--n-shot",
            "2",
            "--temperature",
            "1",
            "--top-p",
            "1",
            *QUICK,
        )
        ok("evaluate", "--ckpt", base, "--out", tmp_path / f"{name}.json", *given, *flags)
        questions = json.loads((tmp_path / f"{name}.json").read_text())["questions"]
        samples = read_jsonl(tmp_path / f"{name}.samples.jsonl")
        answers[name] = [questions[t]["questions"]["answers"] for t in ("gsm", "hard")], samples
    assert answers["all"] == answers["one"] == answers["three"] != answers["seed"]
    assert [s["completion"] for s in answers["limit"][1]][:8] == [s["completion"] for s in answers["all"][1]][:8]


def test_few_shot_prefix_is_the_worksheet(ok, world, base, tmp_path, monkeypatch):
    """What the model reads: end-of-text, two worked training questions, the same for all, and the question."""
    seen = []
    real = evaluate.load_model

    def spying(*args):
        model = real(*args)
        generate = model.generate
        model.generate = lambda prompts, **kw: seen.append((prompts, kw)) or generate(prompts, **kw)
        return model

    monkeypatch.setattr(evaluate, "load_model", spying)
    flags = ("--tasks", "gsm", "--n-shot", "2", "--split", "val", *QUICK)
    ok("evaluate", "--ckpt", base, "--data", world, "--out", tmp_path / "r.json", *flags)
    ((prompts, settings),) = seen
    texts = [BYTES.decode(settings["prefix"] + p) for p in prompts]
    train = {q.problem: q for q in load_questions(world, "gsm", "train")}
    val = [q.problem for q in load_questions(world, "gsm", "val")]
    for text, problem in zip(texts, val, strict=True):
        assert text.startswith("<|endoftext|>Q: ") and text.endswith(f"\nQ: {problem}\nA:")
        shots = text.removeprefix("<|endoftext|>").split("Q: ")[1:-1]
        assert len(shots) == 2 and len(set(shots)) == 2
        for shot in shots:
            asked, answered = shot.split("\nA: ")
            assert answered == train[asked].solutions[0] + "\n"
    assert len({tuple(t.split("Q: ")[1:-1]) for t in texts}) == 1
    assert settings["question_ids"] == [0, 1, 2, 3] and settings["stop"]([*b"x\n"])


def test_greedy_reports_pass_at_1_only(ok, world, chain, tmp_path):
    out = tmp_path / "r.json"
    flags = ("--data", world, "--tasks", "gsm", "--temperature", "0", "--max-new-tokens", "12", "--out", out)
    ok("evaluate", "--ckpt", chain(" 19"), *flags)
    report = json.loads(out.read_text())
    assert set(report["questions"]["gsm"]["flexible"]) == {"pass@1"} and report["settings"]["n_samples"] == 1
    ok("evaluate", "--ckpt", chain(" 19"), *flags, "--n-samples", "1")  # said as well


def test_default_output_is_beside_the_checkpoint(ok, world, chain):
    ckpt = chain(" 19")
    ok("evaluate", "--ckpt", ckpt, "--data", world, "--tasks", "gsm", "--split", "val", "--n-shot", "1", *QUICK)
    names = sorted(p.name for p in Path(ckpt).parent.iterdir())
    assert names == ["ckpt_000003.pt", "ckpt_000003.val_1shot.json", "ckpt_000003.val_1shot.samples.jsonl"]


def test_guess_floor_is_of_the_tasks_own_answers(world):
    """Whatever set the exemplars come from."""
    args = settings(evaluate, "--ckpt", "x", "--data", world, n_shot=1, shot_seed=0, max_new_tokens=1, shot_task="hard")
    files = evaluate.read_task(BYTES, "gsm", 96, args)
    own = load_questions(world, "gsm", "train")
    assert files["train"] == own != load_questions(world, "hard", "train") and len(files["prefix"]) > 1


def test_movement_by_hand(world):
    """Bigram models: KL and loss are those of their tables' rows at the tokens read; the distance is of all weights."""
    tables = [torch.randn(257, 257, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    start, model = (bigram_model(t) for t in tables)
    text, cpu = general_text(world, 96, 0), Device(torch.device("cpu"), torch.float32)
    got = evaluate.movement(model, start, text, 256, cpu)
    rows = torch.cat(list(val_batches(world, 96, 4)))
    rows = rows[: round(0.8 * len(rows))]  # the general text; mathematics follows it
    p, q = (t.log_softmax(-1)[rows[:, :-1]] for t in tables)
    assert got["kl"] == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-3)
    assert got["loss"] == pytest.approx(-q.gather(-1, rows[:, 1:, None]).mean().item(), rel=1e-3)
    assert got["loss_reference"] == pytest.approx(-p.gather(-1, rows[:, 1:, None]).mean().item(), rel=1e-3)
    pairs = list(zip(model.parameters(), start.parameters(), strict=True))
    assert got["distance"] == pytest.approx(math.sqrt(sum((a - b).square().sum().item() for a, b in pairs)), rel=1e-5)
    same = evaluate.movement(start, start, text, 256, cpu)
    assert same["distance"] == same["kl"] == 0 and same["loss"] == same["loss_reference"] == got["loss_reference"]


def test_movement_reads_each_document_by_itself():
    """Its KL and losses over a row of two documents are those of the documents alone."""
    eot, cpu = 256, Device(torch.device("cpu"), torch.float32)
    one, two = (torch.cat((torch.tensor([eot]), torch.randint(256, (n,)))) for n in (7, 12))
    models = tiny_model(1), tiny_model(2)
    both = evaluate.movement(*models, torch.cat((one, two))[None], eot, cpu)
    parts = [evaluate.movement(*models, row[None], eot, cpu) for row in (torch.cat((one, two[:1])), two)]
    for key in ("kl", "loss", "loss_reference"):
        apart = (8 * parts[0][key] + 12 * parts[1][key]) / 20
        assert both[key] == pytest.approx(apart, rel=1e-5)
    whole = models[0](torch.cat((one, two))[None, :-1], torch.cat((one, two))[None, 1:]).item()
    assert abs(whole - both["loss"]) > 1e-3  # with the first document in sight


def test_reference_goes_into_the_report(ok, refused, world, base, tmp_path):
    common = ("--ckpt", base, "--data", world, "--tasks", "gsm", *QUICK)
    ok("evaluate", *common, "--reference", base, "--out", tmp_path / "r.json")
    moved = json.loads((tmp_path / "r.json").read_text())["movement"]
    assert moved["kl"] == moved["distance"] == 0 and moved["loss"] > 0
    other = write_ckpt(tmp_path / "other.pt", tiny_model(1, n_hidden=24))
    refused("evaluate", *common, "--reference", other, "--out", tmp_path / "s.json", words=("another model shape",))


def test_benchmarks_are_stored_in_little():
    """Hits by the normalised score; items of a fact share a number, an item without one has its own."""
    items = [{"pred": 0, "pred_norm": g, "gold": 1, "logprobs": [-1.0] * 4, "fact": f} for g, f in ((1, "a"), (2, "b"))]
    items += [{"pred": 0, "pred_norm": 1, "gold": 1, "logprobs": [-1.0, -2.0], "fact": "a"}]
    items += [{"pred": 0, "pred_norm": 1, "gold": 1, "logprobs": [-1.0, -2.0]}]
    got = evaluate.compact({"acc": 0.0, "per_item": items})
    assert got == {"acc": 0.0, "chance": 0.375, "hits": "1011", "facts": [0, 1, 0, 2]}
    words = [{"greedy": hit, "gold": 0, "logprobs": [-1.0]} for hit in (True, False)]
    assert evaluate.compact({"per_item": words}) == {"chance": 0.0, "hits": "10", "facts": [0, 1]}


def test_training_questions_sort_themselves_for_rl(ok, refused, world, chain, tmp_path):
    """A model that answers 9 to everything: of 12 training sums one (6 + 3) is easy and eleven are hard; RL trains on
    the one part or the other. The counts that sort are strict: without the marker nothing is easy."""
    flags = ("--tasks", "gsm", "--split", "train", "--temperature", "1", *QUICK)
    for name, text in (("marked", "\\boxed{9}"), ("bare", " 9")):
        ckpt = chain(text)
        ok("evaluate", "--ckpt", ckpt, "--data", world, *flags, "--out", tmp_path / f"{name}.json")
    rows = json.loads((tmp_path / "marked.json").read_text())["questions"]["gsm"]["questions"]
    assert sorted(rows["strict"]) == [0] * 11 + [4] and len(set(rows["qid"])) == 12
    rl = ("--init", ckpt, "--data", world, "--steps", "1", "--prompts-per-step", "2", "--group-size", "2")
    rl += ("--max-new-tokens", "12")
    for split, count in (("easy", 1), ("hard", 11)):
        by = ("--only", split, "--by", tmp_path / "marked.json")
        assert f"\n{count} gsm questions" in ok("train_rl", *rl, *by, "--out", tmp_path / split).out
    refused("train_rl", *rl, "--only", "easy", "--out", tmp_path / "x", words=("--by",))
    by = ("--only", "easy", "--by", tmp_path / "bare.json")
    refused("train_rl", *rl, *by, "--out", tmp_path / "x", words=("none of its 12 questions",))
    by = ("--only", "easy", "--by", tmp_path / "none.json")
    refused("train_rl", *rl, *by, "--out", tmp_path / "x", words=("none.json",))
    (tmp_path / "none.json").write_text("[]")
    refused("train_rl", *rl, *by, "--out", tmp_path / "x", words=("none.json",))
    flags = ("--tasks", "gsm", "--split", "val", "--temperature", "1", *QUICK)
    ok("evaluate", "--ckpt", ckpt, "--data", world, *flags, "--out", tmp_path / "val.json")
    by = ("--only", "hard", "--by", tmp_path / "val.json")
    refused("train_rl", *rl, *by, "--out", tmp_path / "x", words=("val questions", "--split train"))
