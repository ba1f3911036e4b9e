"""The synthetic world: sums worked by hand, splits, floors, files.  pytest -q tests/data/test_world.py"""

import json
import random
import re
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

import evaluate
from common import UserError
from data import world, world_general, world_math, world_rules
from data.math_qa import extract_answer, few_shot_prefix, format_prompt, guess_floor, load_questions, template_for
from data.questions import Question
from data.tokenizer import decode, load_tokenizer
from data.world_math import STYLES

# Zoe has 7.2. Gains 4.1, loses 1.2, doubles, gains 2.2, keeps 1 of 2 parts.
CHAIN = ("gsm", (7, 2), (("+", 4, 1), ("-", 1, 2), ("*", 2, 2), ("+", 2, 2), ("/", 2, 2)))
HARD = ("hard", (9, 1), (("r+", 3, 1), ("r*", 2, 2), ("sum", 0, 0), ("-", 5, 3)))  # 9.1, 12.2, 24.4; 45.7; 40.4
FEW = {  # for speed
    "gsm": {"train": 1200, "val": 60, "test": 60},
    "hard": {"train": 300, "val": 20, "test": 20},
    "long": {"train": 0, "val": 10, "test": 20},
}


def answer(chain) -> str:
    return world_math.decimal(world_math.work(chain).sums[-1][3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_math, "N_QUESTIONS", FEW)
        world.build(out, seed=3, n_tokens=120_000)
    return out


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_styles_worked_by_hand():
    assert world_math.solution(CHAIN, "equations", []) == ("7.2+4.1=11.3-1.2=10.1*2=20.2+2.2=22.4/2=11.2", "11.2")
    assert world_math.solution(CHAIN, "running", []) == ("7.2>11.3>10.1>20.2>22.4>11.2", "11.2")
    assert world_math.solution(CHAIN, "nested", []) == ("(((((7.2+4.1)-1.2)*2)+2.2)/2)", "11.2")
    says = ["Zoe has 3.2 kg of rice.", "The rice triples.", "Zoe eats 4.", "How much now?"]
    chain = ("gsm", (3, 2), (("*", 3, 3), ("-", 4, 0)))
    assert world_math.solution(chain, "equations", says) == ("3.2*3=9.6-4=5.6", "5.6")
    text = "Zoe has 3.2 kg of rice. The rice triples: 9.6. Zoe eats 4: 5.6."
    assert world_math.solution(chain, "retold", says) == (text, "5.6")


def test_hard_chain_worked_by_hand():
    text = "9.1+3.1=12.2*2=24.4 9.1+12.2=21.3+24.4=45.7-5.3=40.4"
    assert world_math.solution(HARD, "equations", []) == (text, "40.4")
    assert world_math.solution(HARD, "nested", [])[0] == "(((9.1+(9.1+3.1))+((9.1+3.1)*2))-5.3)"
    says = ["A has 9.1.", "B has 3.1 more.", "C has twice B.", "Together.", "They lose 5.3.", "How much?"]
    text = "A has 9.1. B has 3.1 more: 12.2. C has twice B: 24.4. Together: 45.7. They lose 5.3: 40.4."
    assert world_math.solution(HARD, "retold", says)[0] == text


def test_wrong_work_carries_its_error_on():
    text, answer = world_math.solution(CHAIN, "equations", [], wrong=(0, (1, 0)))
    assert text == "7.2+4.1=12.3-1.2=11.1*2=22.2+2.2=24.4/2=12.2" and answer == "12.2"
    rng = random.Random(0)
    for _ in range(200):
        chain = world_math.draw_gsm(rng)
        spoiled = world_math.work(chain, world_math.draw_error(rng, chain)).sums
        assert spoiled != world_math.work(chain).sums
        assert all(world_math.fits(z, (99, 9)) for *_, z in spoiled)  # still reads as amounts: tenths have one digit


@pytest.mark.parametrize(
    "task, largest", [("gsm", world_math.GSM_MAX), ("long", world_math.GSM_MAX), ("hard", world_math.HARD_MAX)]
)
def test_chains_are_exact_and_in_range(task, largest):
    rng = random.Random(1)
    for _ in range(400):
        chain = world_math.DRAW[task](rng)
        for op, x, y, z in world_math.work(chain).sums:
            assert world_math.fits(z, largest)
            # no carry, no borrow: component-wise sums and the decimal sum agree
            a, b, c = (Fraction(world_math.decimal(pair)) for pair in (x, y, z))
            k = Fraction(y[0])
            assert c == {"+": a + b, "-": a - b, "*": a * k, "/": a / k}[op]
        assert arithmetic(world_math.work(chain).expression) == Fraction(answer(chain))


def arithmetic(text: str) -> Fraction:
    """Value of a fully bracketed expression such as "((7.2+4.1)*2)", one innermost bracket at a time."""
    values: list[Fraction] = []  # a bracket's value stands in the text as v<index>

    def value(token: str) -> Fraction:
        return values[int(token[1:])] if token[0] == "v" else Fraction(token)

    while "(" in text:
        found = re.search(r"\((v?[\d.]+)([-+*/])(v?[\d.]+)\)", text)
        a, op, b = value(found[1]), found[2], value(found[3])
        values.append({"+": a + b, "-": a - b, "*": a * b, "/": a / b}[op])
        text = text.replace(found[0], f"v{len(values) - 1}", 1)
    return value(text)


def test_gsm_answers_are_nearly_flat():
    """Drawn backwards from a uniform answer. Those that end in .5 or .7 are of gains and losses alone, hence rarer; for
    some that end in .1 a few events find no way back."""
    rng = random.Random(2)
    chains = [world_math.draw_gsm(rng) for _ in range(20_000)]
    answers = Counter(map(answer, chains))
    cells = world_math.GSM_MAX[0] * world_math.GSM_MAX[1]
    assert len(answers) > 0.95 * cells
    assert 1 / sum((n / 20_000) ** 2 for n in answers.values()) > 0.75 * cells  # effective number of answers
    scaled = [any(op in "*/" for op, *_ in chain[2]) for chain in chains]
    assert 0.83 < sum(scaled) / len(scaled) < 0.89
    ends = {answer(chain)[-1] for chain, s in zip(chains, scaled, strict=True) if not s}
    assert ends == {"5", "7"}


def test_questions_and_text_have_the_same_lengths_and_long_ones_are_beyond():
    rng = random.Random(6)
    asked = {len(world_math.draw_gsm(rng)[2]) for _ in range(300)}
    read = {len(world_math.train_chain(rng, "gsm")[2]) for _ in range(300)}
    assert asked == read == {2, 3, 4, 5, 6}
    assert {len(world_math.draw_long(rng)[2]) for _ in range(100)} == {7, 8, 9, 10}


def test_blind_rules_by_hand():
    def question(n: int, problem: str, answer: str) -> Question:
        return Question(f"gsm/{n}", problem, [], answer, "gsm")

    train = [question(n, f"A has {n}.5 kg. A buys 2. How much now?", f"{n + 2}.5") for n in range(3, 6)]
    train += [question(9, "A has 1.5 kg. A sells 1. A buys 2. How much now?", "4.5")]
    held = [question(0, "B has 9.5 l. B buys 2. How much now?", "11.5"), question(1, "B has 2.5 l. It doubles.", "5")]
    assert world_rules.numbers(held[0].problem) == [Fraction("9.5"), 2]
    read = world_rules.BLIND["first number"]
    assert [world_rules.passes(read, train, held, k) for k in (1, 8)] == [0.5, 0.5]  # 2 more; 2 or 3 more
    assert world_rules.passes(world_rules.BLIND["the most usual answers"], train, held, 8) == 0
    assert world_rules.best(world_rules.WIDER, train, held)[1] == ("first + last", 1.0)  # of which the second is chance
    assert world_rules.copied([*train, *held, question(2, "C has 7.5 m. C cuts 1.", "7.5")]) == 1


def test_blind_rules_get_nowhere():
    """The world's own questions: no rule of the family passes what the base should, and no answer can be copied."""
    rows = world_math.question_rows("gsm", 0)
    questions = {
        split: [Question("", r["problem"], [], r["expected_answer"], "gsm") for r in rows[split][:: len(STYLES)]]
        for split in rows
    }
    train, held = questions["train"], questions["val"] + questions["test"]
    best = world_rules.best(world_rules.BLIND, train, held)
    assert best[1][1] <= 0.015 and best[32][1] <= 0.15
    assert world_rules.copied(train + held) == 0
    floor = guess_floor([q.answer for q in train], [q.answer for q in questions["test"]], (1, 32))
    assert floor[1] <= 0.01 and floor[32] <= 0.1


def test_nobody_has_a_multiple_of_his_own():
    rng = random.Random(9)
    for _ in range(4000):
        for sentence in world_math.question_sentences(world_math.draw_hard(rng), rng):
            if found := re.fullmatch(r"(\w+) has .* (?:as|than) (\w+)\.", sentence):
                assert found[1] != found[2], sentence


def test_key_ignores_words_and_split_ignores_seed():
    rng = random.Random(0)
    assert world_math.chain_key(CHAIN) == "gsm 7.2 +4.1 -1.2 *2.2 +2.2 /2.2"
    assert len({" ".join(world_math.question_sentences(CHAIN, rng)) for _ in range(20)}) > 10
    assert {world_math.chain_split(world_math.draw_gsm(rng)) for _ in range(200)} == {"train", "val", "test"}


def chain_of(problem: str) -> str:
    """Read a gsm problem's text back into its canonical chain, knowing only the wordings."""
    start, *events = re.split(r"\.(?= )", problem.rsplit(" How much now?", 1)[0].rstrip("."))
    keys = ["gsm " + re.search(r"\d+\.\d", start).group()]
    losses = [word for skin in world_math.SKINS.values() for word in skin[2]]
    for event in events:
        part = re.search(r"(?:1 of|by|among) (\d)", event)
        if (amount := re.search(r"\d+(?:\.\d)?", event)) and not part:
            keys.append(f"{'-' if any(f' {word} ' in event for word in losses) else '+'}{amount.group()}")
            keys[-1] += "" if "." in amount.group() else ".0"
        else:
            k = part.group(1) if part else "3" if re.search("tripl|three", event) else "2"
            keys.append(f"{'/' if part else '*'}{k}.{k}")
    return " ".join(keys)


def test_problem_text_says_the_chain():
    rng = random.Random(5)
    for _ in range(300):
        chain = world_math.draw_gsm(rng)
        assert chain_of(" ".join(world_math.question_sentences(chain, rng))) == world_math.chain_key(chain)


def test_splits_are_disjoint_and_hold_in_pretraining_text(folder):
    rows = {split: read(folder / f"{split}.jsonl") for split in ("train", "val", "test")}
    keys = {split: {row["chain"] for row in rows[split]} for split in rows}
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["val"] and not keys["val"] & keys["test"]
    gsm_keys = {split: {key for key in keys[split] if key.startswith("gsm")} for split in keys}
    for row in rows["test"][::7]:
        if row["problem_source"] == "gsm":
            assert chain_of(row["problem"]) == row["chain"]

    enc = load_tokenizer(folder)
    text = decode(enc, np.fromfile(folder / "math.bin", np.uint16))
    problems = re.findall(r"[A-Z][a-z]+ has [^\n]*? How much now\?", text)
    found = {chain_of(problem) for problem in problems}
    assert len(found) > 100
    assert not found & (gsm_keys["test"] | gsm_keys["val"])
    hard_text = decode(enc, np.fromfile(folder / "hard.bin", np.uint16))
    held_out = [row["problem"].split(" has ", 1)[1] for row in rows["test"] + rows["val"]]
    assert not [problem for problem in held_out if problem in hard_text or problem in text]


def test_question_files(folder):
    for split in ("train", "val", "test"):
        rows = read(folder / f"{split}.jsonl")
        problems = [row["problem"] for row in rows[:: len(world_math.STYLES)]]
        for task, counts in FEW.items():
            mine = [row for row in rows if row["problem_source"] == task]
            assert len(mine) == counts[split] * len(world_math.STYLES)
        assert len(set(problems)) == len(problems)
        firsts = Counter(row["style"] for row in rows[:: len(world_math.STYLES)])
        assert min(firsts.values()) > len(problems) / 4 * 0.5  # the solution of plain SFT is of a random style
        for i, row in enumerate(rows):
            assert row["problem"] == problems[i // len(world_math.STYLES)]
            assert extract_answer(row["generated_solution"]) == row["expected_answer"]


def test_enough_questions():
    for task in ("gsm", "hard"):
        assert world_math.N_QUESTIONS[task]["test"] >= 400 and world_math.N_QUESTIONS[task]["val"] >= 300


def test_guess_floor(folder):
    floor = json.loads((folder / "meta.json").read_text())["guess_floor"]
    assert set(floor) == {"gsm", "hard", "long"}
    for task in floor:
        assert 0 < floor[task]["1"] <= 0.01 and floor[task]["8"] < floor[task]["32"] <= 0.12


def test_eight_exemplars_and_an_answer_fit_the_window(tmp_path, monkeypatch):
    """With the real number of questions and evaluate.py's defaults, in both tiers and with either's exemplars."""
    monkeypatch.setattr(world, "token_stream", lambda make, rng, enc, n, name="": np.zeros(n, np.uint16))  # not read
    world.build(tmp_path, seed=0, n_tokens=60_000)
    enc, args = load_tokenizer(tmp_path), evaluate.parser().parse_args(["--ckpt", "x"])
    template = template_for("gsm")
    for shot_task in ("gsm", "hard"):
        shots = few_shot_prefix(load_questions(tmp_path, shot_task, "train"), 8, args.shot_seed, template)
        for task, split in (("gsm", "test"), ("gsm", "val"), ("hard", "test"), ("hard", "val")):
            prompts = [shots + format_prompt(q, template) for q in load_questions(tmp_path, task, split)]
            longest = 1 + max(map(len, enc.encode_ordinary_batch(prompts)))
            assert longest + args.max_new_tokens <= world.BLOCK_SIZE, (task, shot_task)


def test_documents_start_with_end_of_text_and_numbers_are_one_token(folder):
    enc = load_tokenizer(folder)
    meta = json.loads((folder / "meta.json").read_text())
    for name, entry in meta["files"].items():
        ids = np.fromfile(folder / name, np.uint16)
        assert len(ids) == entry["tokens"] and ids[0] == enc.eot_token and ids.max() < enc.n_vocab
    for mix in meta["mixes"].values():
        assert sum(mix.values()) == pytest.approx(1) and set(mix) <= set(meta["files"])
    for n in range(world_math.HARD_MAX[0] + 1):
        assert len(enc.encode_ordinary(str(n))) == 1


def test_worksheets_are_joined_as_shots_are():
    rng = random.Random(4)
    sheets = [world_math.worksheet(rng, 0.0) for _ in range(300)]
    marked = [sheet for sheet in sheets if "####" in sheet]
    assert 0.15 < len(marked) / len(sheets) < 0.35
    one = r"Q: [^\n]+\nA: (?:[^\n]+ )?#### \d+\.\d\n"
    assert all(re.fullmatch(f"(?:{one}){{1,10}}", sheet) for sheet in marked)
    assert len({sheet.count("Q: ") for sheet in marked}) > 5


def test_benchmarks(folder):
    for name in ("lastword", "events", "facts", "twohop", "tools", "apply"):
        items = read(folder / f"bench_{name}.jsonl")
        assert len(items) >= 300 and len({item["fact"] for item in items}) >= 100
        if name == "lastword":
            assert all(set(item) == {"context", "target", "fact"} for item in items)
            continue
        gold = Counter(item["gold"] for item in items)
        assert max(gold.values()) - min(gold.values()) <= 1 and len(gold) == 4
        assert all(len(set(item["choices"])) == 4 for item in items)


def test_benchmarks_agree_with_the_text():
    facts = world_general.people_facts(0)
    rng = random.Random(0)
    text = "\n".join(world_general.document(rng, facts) for _ in range(30_000))
    items = world_general.benchmarks(0, facts)
    known = set(world_general.PEOPLE[:5])  # of the others little is told in so short a text
    untold = {
        f"{thing}:{trial}"
        for i, things in enumerate(world_general.THINGS.values())
        for j, thing in enumerate(things)
        for n, trial in enumerate(world_general.TRIALS)
        if not world_general.is_told(i, j, n)
    }
    assert 0.15 < len(untold) / len({item["fact"] for item in items["apply"]}) < 0.25
    for name in ("facts", "twohop", "tools", "apply"):
        told = [item for item in items[name] if item["fact"] not in untold]
        if name in ("facts", "twohop"):
            told = [item for item in told if item["fact"].split(":")[0] in known]
        for item in told[:60]:
            sentence = f"{item['context']} {item['choices'][item['gold']]}."
            if name in ("tools", "apply"):  # whoever does it
                who = next(word for word in sentence.split() if word in world_general.PEOPLE)
                sentence = re.escape(sentence).replace(who, r"\w+")
                assert re.search(sentence, text)
            else:
                assert sentence in text
    for item in items["apply"]:
        what = re.sub(r"^\w+", "", item["context"])
        assert (what in text) != (item["fact"] in untold)
    for item in items["lastword"]:
        last = item["context"].split(". ")[-1]
        assert item["target"] in item["context"].rsplit(". ", 1)[0]
        if last.startswith("Then") and " drops " in last:
            assert f"{last.split()[1]} takes the {item['target']}." in item["context"]


def test_same_seed_same_bytes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(world_math, "N_QUESTIONS", FEW)
    world.build(tmp_path, seed=3, n_tokens=120_000)
    for path in sorted(folder.iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_bad_arguments(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["world", "--out", str(tmp_path / "file" / "x")])
    with pytest.raises(UserError, match="cannot write"):
        world.main()
    monkeypatch.setattr("sys.argv", ["world", "--tokens", "5"])
    with pytest.raises(UserError, match="--tokens 5"):
        world.main()
    with pytest.raises(UserError, match="'long' has no training questions; train on 'gsm'"):
        load_questions(tmp_path, "long", "train")
