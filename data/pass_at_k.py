"""Questions put to a model: completions sampled, read, scored, and pass@k of them. RL's rollouts, validation while
training and evaluation all come through here, so that they read a completion alike.

pass@k (Chen et al. 2021, eq. 1), n samples of which c are right, unbiased:  1 - C(n - c, k) / C(n, k).
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from data.files import UserError, field, read_json
from data.graders import same_answer, stated_answer
from data.math_qa import (
    Question,
    StopStrings,
    Template,
    encode_prompts,
    format_prompt,
    load_questions,
    reward,
    template_for,
)
from data.prepared import lengths, take
from data.tokenizer import decode
from model import check_context
from processes import PROCESSES, deal, gather

TEMPERATURE, TOP_P = 0.6, 0.95  # the paper's, of evaluation; rollouts have their own
LEFT_OUT = 0.05  # share of the questions of a score that may be too long for the context and are then left out
SPLITS = {"easy": (0.25, 1.0), "hard": (0.0, 0.125)}  # share of right samples: the paper's 16 to 64, at most 8 of 64
VALIDATION_SHOWN = {"pass@1": "eval/pass@1:.1%", "format": "eval/format:.0%"}  # on the console line of a stage


def pass_at_k(n_samples: int, n_correct: int, k: int) -> float:
    """Unbiased estimate of P(at least one of k samples is right) from n_correct right ones among n_samples.
    Raises UserError if k > n_samples, where no unbiased estimate exists."""
    if not 1 <= k <= n_samples or not 0 <= n_correct <= n_samples:
        raise UserError(f"pass@{k} of {n_correct} right among {n_samples} samples: needs 1 <= k <= n and 0 <= c <= n")
    return 1.0 - math.prod((n_samples - n_correct - i) / (n_samples - i) for i in range(k))


def fitting(
    rows, new_tokens: int, block_size: int, what: str, strict: bool, most: float = 1.0, longest: int = 0
) -> Sequence[int]:
    """Places of those `rows` (ids, or an array of their lengths) that fit the context with `new_tokens` more, and have
    at most `longest` ids (0: any number). The others are left out and counted in a note. UserError if there are any and
    `strict`, if they are more than the share `most`, or if nothing fits."""
    room, sizes = block_size - new_tokens, lengths(rows)
    fits = sizes <= min(room, longest or room)
    kept = np.flatnonzero(fits)
    if 0 < longest < room and sizes.max() > longest and (strict or not len(kept)):
        flag = f"--max-{'target' if what == 'targets' else 'prompt'}-tokens {longest}"
        raise UserError(f"{flag}: the {what} have up to {sizes.max()} tokens; raise it, or drop the long ones")
    if strict or not len(kept):  # told by the longest one's length
        check_context([range(sizes.max())], new_tokens, min(block_size, (longest or room) + new_tokens))
    if out := len(rows) - len(kept):
        first = int(fits.argmin()) + 1
        bound = f"have over {longest} tokens" if 0 < longest < room else f"do not fit the context of {block_size}"
        count = f"{out:,} of {len(rows):,} {what} {bound} (the first: number {first})"
        if out > most * len(rows):
            mend = "lower --n-shot or --max-new-tokens, or pre-train with a longer --block-size"
            raise UserError(f"{count}, and at most {most:.0%} may be left out of a score; {mend}")
        print(f"note: {count}: left out; --strict-length refuses them", flush=True)
    return kept.tolist() if isinstance(rows, list) else kept


def sample_texts(model, enc, prompts, places, stop: StopStrings | None, device, *, together: int, **settings):
    """Sample completions of `prompts` (ids), of those at `places`, `together` prompts at a time: memory and speed only.
    Yields for each of these prompts its completions (ids), which of them ended by end-of-text or a stop string, their
    texts, without end-of-text and cut before the stop string, and their log-probs, if asked for. `settings`: of
    GPT.generate. A prompt's draws depend on its place: one that comes twice is sampled anew."""
    for i in range(0, len(places), together):
        part = list(places[i : i + together])
        asked = [prompts[place] for place in part]
        with device.autocast():
            out = model.generate(asked, eos_id=enc.eot_token, stop=stop, question_ids=part, **settings)
        rows, finished = out.completions(), out.finished.tolist()
        texts = [decode(enc, [t for t in row if t != enc.eot_token]) for row in rows]
        texts = [stop.cut(text) for text in texts] if stop else texts
        found, G = (rows, finished, texts, out.token_logprobs()), len(rows) // len(part)
        yield from (tuple(x[j : j + G] for x in found) for j in range(0, len(rows), G))


def batches(n: int, together: int) -> list[range]:
    """Places 0 ... n - 1, `together` a process at a time; an eighth of that first, so that a count is shown soon."""
    size = together * PROCESSES
    ends = [0, *range(max(1, size // 8), n, size), n]
    return [range(a, b) for a, b in zip(ends, ends[1:], strict=False)]


def score_questions(
    model, enc, questions: list[Question], prompts, template, device, *, n_samples: int, grader="ours", **settings
):
    """Put `questions` to the model as `prompts` (ids). Yields for each question its counts of completions, {"n",
    "strict", "flexible", "formatted", "finished"}, and their texts. strict: the marker must be there (RL's reward);
    flexible: else the last number counts, too (the headline, as the paper's); formatted: a marker states an answer;
    finished: ended by end-of-text or a stop string of the `template`. `grader`: of data/graders.py. `settings`: of
    `sample_texts`."""
    stop, marker = StopStrings(enc, template.stops), template.marker
    for batch in batches(len(questions), settings["together"]):
        places, mine = deal(batch), []
        sampled = sample_texts(model, enc, prompts, places, stop, device, n_samples=n_samples, **settings)
        for place, (_, finished, texts, _) in zip(places, sampled, strict=True):
            gold = questions[place].answer
            strict, flexible = ([stated_answer(text, marker, last, grader) for text in texts] for last in (False, True))
            counts = {
                "n": n_samples,
                "strict": sum(same_answer(answer, gold, marker, grader) for answer in strict),
                "flexible": sum(same_answer(answer, gold, marker, grader) for answer in flexible),
                "formatted": sum(answer is not None for answer in strict),
                "finished": sum(finished),
            }
            mine.append((counts, texts))
        yield from gather(mine)


def choose(questions: list[Question], args) -> list[Question]:
    """Those of `questions` that the model of `--by` got right (strict) in a share of its samples that fits `--only`."""
    mend = "give the JSON of `evaluate.py --split train --temperature 1`"
    found = read_json(args.by, "evaluation", mend=mend)
    settings = field(found, "settings", dict, args.by, mend)
    split = field(settings, "split", str, args.by, mend)
    if split != "train":
        raise UserError(f"--by {args.by} counts {split} questions; {mend}")
    if shots := field(settings, "n_shot", int, args.by, mend):
        raise UserError(f"--by {args.by} was sampled with {shots} exemplars, and RL trains without; {mend}")
    if not field(settings, "temperature", float, args.by, mend):
        raise UserError(f"--by {args.by} is greedy: one answer tells no share of right ones; {mend}")
    task = field(field(found, "questions", dict, args.by, mend), args.task, dict, args.by, mend)
    counts = field(task, "questions", dict, args.by, mend)
    qids, right, n = (field(counts, key, list, args.by, mend) for key in ("qid", "strict", "n"))
    whole = len(qids) == len(right) == len(n) and all(isinstance(qid, str) for qid in qids)
    if not whole or not all(type(c) is type(k) is int and 0 <= c <= k > 0 for c, k in zip(right, n, strict=True)):
        raise UserError(f"--by {args.by} holds no whole counts of {args.task}; {mend}")
    share = {qid: c / k for qid, c, k in zip(qids, right, n, strict=True)}
    low, high = SPLITS[args.only]
    chosen = take(questions, [i for i, q in enumerate(questions) if low <= share.get(q.qid, -1.0) <= high])
    if not chosen:
        raise UserError(f"{args.by}: none of its {len(share)} questions is {args.only}; sample more questions")
    return chosen


class Validation:
    """Scores of the model in training on the first `--eval-questions` validation questions of its task, every
    `--eval-every` steps, before the first step and after the last. Test questions are never read.

    One completion of each question, sampled as evaluation samples: so `eval/pass@1` estimates the pass@1 that
    evaluate.py reports, which greedy decoding would not, and `evaluate.py --split val --n-samples 1 --k 1` gives the
    same number. The draws are those of the seed and the question, at every step: what differs between two steps is
    the model. Nothing of training is drawn from them, so the weights are the same with and without validation.
    """

    def __init__(self, args, enc, model, device, needed: bool = False):
        """`needed`: also without `--eval-every`, for `samples`."""
        self.args, self.enc, self.model, self.device = args, enc, model, device
        if not (args.eval_every or needed):
            return
        self.template = template_for(args.template or args.task)
        self.questions = load_questions(args.data, args.task, "val")[: args.eval_questions]
        texts = [format_prompt(q, self.template) for q in self.questions]
        prefix, self.prompts = encode_prompts(enc, texts, begin=self.template.begin)
        rows, block_size = [prefix + prompt for prompt in self.prompts], model.config.block_size
        kept = fitting(rows, args.max_new_tokens, block_size, "validation questions", args.strict_length, LEFT_OUT)
        self.questions, self.prompts = [self.questions[i] for i in kept], [self.prompts[i] for i in kept]
        print(f"validation: one completion of each of {len(self.questions)} questions", flush=True)
        self.sampling = dict(prefix=prefix, n_samples=1, temperature=TEMPERATURE, top_p=TOP_P, seed=args.seed)
        self.sampling |= dict(max_new_tokens=args.max_new_tokens, together=64)

    def due(self, step: int) -> bool:
        every = self.args.eval_every
        return every > 0 and (step % every == 0 or step == self.args.steps)

    def answers(self, count: int | None = None) -> Iterator:
        """(counts, [text]) of the first `count` questions, or of all."""
        questions, prompts = self.questions[:count], self.prompts[:count]
        return score_questions(self.model, self.enc, questions, prompts, self.template, self.device, **self.sampling)

    def scores(self) -> dict:
        rows = [counts for counts, _ in self.answers()]
        return {
            "eval/pass@1": sum(row["flexible"] for row in rows) / len(rows),
            "eval/format": sum(row["formatted"] for row in rows) / len(rows),
        }

    def samples(self, count: int = 3) -> list[dict]:
        """Rows of samples.jsonl for the first questions."""
        answered, template = zip(self.questions, self.answers(count), strict=False), self.template
        rows = [(format_prompt(q, template), text, q.answer) for q, (_, [text]) in answered]
        return [sample_row(*row, reward(*row[1:], template), template) for row in rows]


def sample_row(prompt: str, completion: str, gold: str, score: float, template: Template) -> dict:
    """What samples.jsonl keeps of a completion, for people."""
    extracted = stated_answer(completion, template.marker)
    return {"prompt": prompt, "completion": completion, "extracted": extracted, "gold": gold, "reward": score}


def readable(row: dict, longest: int = 300) -> str:
    """A row of samples.jsonl for the console: prompt and completion indented, each cut at `longest` characters."""

    def block(label: str, text: str) -> str:
        text = text.strip() if len(text) <= longest else text[:longest].strip() + " ..."
        return f"    {label:<11} " + text.replace("\n", "\n" + " " * 16)

    verdict = f"    gold {row['gold']}, extracted {row['extracted']}, reward {row['reward']:g}"
    return "\n".join([block("prompt:", row["prompt"]), block("completion:", row["completion"]), verdict])


if __name__ == "__main__":
    print("pass@k of questions; a checkpoint is scored by: python evaluate.py --help")
