"""Rollouts by workers through a folder.   pytest -q tests/test_mailbox.py"""

import sys
import threading
from types import SimpleNamespace

import many
import pytest
import torch
from test_torchrun import two_processes
from tiny import BYTES, EOT, read_jsonl, tiny_model

from common import HELD, UserError, release
from data.math_qa import StopStrings
from data.tokenizer import tokenizer_id
from tools import mailbox
from train_rl import grpo_loss

SETUP = SimpleNamespace(device="cpu", dtype="float32", kernels="torch", threads=0, seed=0)
SETTINGS = dict(n_samples=3, max_new_tokens=12, eos_id=EOT, temperature=1.0, seed=7)
PROMPTS = [list(range(40, 40 + n)) for n in (3, 9, 5, 14, 6)]


class Ended(BaseException):
    """Ends a worker's loop."""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(mailbox, "PATIENCE", 1.0)
    monkeypatch.setattr(mailbox, "PULSE", 0.05)
    yield
    while HELD:
        release(*HELD.pop())


@pytest.fixture
def workers(quick, tmp_path, monkeypatch):
    """workers(of, engine=...) starts workers in threads of this process, which end with the test."""
    over, threads = threading.Event(), []

    def rest(seconds: float) -> None:
        if over.wait(min(seconds, 0.01)):
            raise Ended

    real = mailbox.time
    monkeypatch.setattr(mailbox, "time", SimpleNamespace(monotonic=real.monotonic, time_ns=real.time_ns, sleep=rest))

    def until_over(work, *args) -> None:
        try:
            work(*args)
        except Ended:
            pass

    def start(of: int, engine=None, only: list | None = None, told: str = "ours"):
        for w in only or range(of):
            alive = (tmp_path / f"alive_{w}.json", {"engine": told, "of": of})
            jobs = [(mailbox.serve, (engine or mailbox.Ours(SETUP), tmp_path, w, of)), (mailbox.pulse, alive)]
            threads.extend(threading.Thread(target=until_over, args=(job, *args), daemon=True) for job, args in jobs)
        for thread in threads:
            if thread.ident is None:
                thread.start()

    yield start
    over.set()
    for thread in threads:
        thread.join()


def box(model, folder, world, **changes) -> mailbox.Box:
    args = SimpleNamespace(sampler=str(folder), data=str(world), prompts_per_batch=2, **changes)
    return mailbox.Box(model, tokenizer_id(BYTES), args)


@pytest.mark.parametrize("of", [1, 2])
@pytest.mark.parametrize("stops", [(), ("e", "q")])
def test_workers_draw_what_the_model_draws(workers, world, tmp_path, of, stops):
    """Bit for bit in float32, with and without stop strings; and after an update with the new weights."""
    model, stop = tiny_model(), StopStrings(BYTES, stops) if stops else None
    workers(of)
    asked, places = box(model, tmp_path, world), [4, 0, 3, 1, 2]
    for _ in range(2):
        ours = model.generate(PROMPTS, question_ids=places, stop=stop, return_logprobs=True, **SETTINGS)
        theirs = asked.generate(PROMPTS, question_ids=places, stop=stop, **SETTINGS)
        assert ours.completions() == theirs.completions()
        assert torch.equal(ours.lengths, theirs.lengths) and torch.equal(ours.finished, theirs.finished)
        real = torch.arange(ours.tokens.shape[1]) < ours.lengths[:, None]
        assert torch.equal(ours.logprobs * real, theirs.logprobs)
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(("re", "weights"))]
        with torch.no_grad():
            model.wte.weight.mul_(1.5)


def test_a_silent_worker_is_one_sentence(workers, world, tmp_path):
    with pytest.raises(UserError, match="worker 0 has been silent for 1 s.*python -m tools.mailbox"):
        box(tiny_model(), tmp_path, world)
    release(*HELD.pop())
    workers(2, only=[0])
    with pytest.raises(UserError, match="worker 1 has been silent"):
        box(tiny_model(), tmp_path, world)


def test_a_worker_that_dies_at_work_is_told(workers, world, tmp_path, monkeypatch):
    class Dies:
        def load(self, path):
            beats.clear()
            raise Ended

    beats, write = [True], mailbox.write_json
    monkeypatch.setattr(mailbox, "write_json", lambda path, *rest: beats and write(path, *rest))
    workers(1, engine=Dies())
    asked = box(tiny_model(), tmp_path, world)
    with pytest.raises(UserError, match="worker 0 has been silent"):
        asked.generate(PROMPTS, question_ids=range(5), **SETTINGS)


def test_a_slow_worker_is_waited_for(workers, world, tmp_path):
    """It samples longer than PATIENCE and gives signs of life meanwhile."""
    ours = mailbox.Ours(SETUP)

    class Slow:
        load = ours.load

        def sample(self, *given):
            threading.Event().wait(2.0)
            return ours.sample(*given)

    workers(1, engine=Slow())
    assert len(box(tiny_model(), tmp_path, world).generate(PROMPTS, question_ids=range(5), **SETTINGS).tokens) == 15


class Says:
    """An engine that gives these rows, whatever it is asked."""

    def __init__(self, rows=None, error=None):
        self.rows, self.error = rows, error

    def load(self, path):
        assert path.exists()

    def sample(self, prompts, places, r):
        if self.error:
            raise self.error
        return self.rows or [([65, 66, 67], [-1.0, -2.0, -3.0], False)] * (len(prompts) * r["n_samples"])


@pytest.mark.parametrize("engine, words", [
    (Says(error=UserError("no weights")), "failed: no weights"),
    (Says(error=RuntimeError("boom")), "failed: .*boom"),
    (Says([([65], [-1.0], True)]), "no 15 completions"),
    (Says([([65], [-1.0, -1.0], True)] * 15), "no 15 completions"),
    (Says([([65] * 13, [-1.0] * 13, True)] * 15), "no 15 completions"),
    (Says([([], [], True)] * 15), "no 15 completions"),
    (Says([([999], [-1.0], True)] * 15), "vocabulary"),
    (Says([([65], [float("nan")], True)] * 15), "not finite"),
])  # fmt: skip
def test_what_a_worker_may_not_send(workers, world, tmp_path, engine, words):
    workers(1, engine=engine)
    with pytest.raises(UserError, match=f"worker 0.*{words}"):
        box(tiny_model(), tmp_path, world).generate(PROMPTS, question_ids=range(5), **SETTINGS)


def test_an_engine_that_goes_on_past_a_stop_string_is_cut(workers, world, tmp_path):
    workers(1, engine=Says())
    asked = box(tiny_model(), tmp_path, world)
    out = asked.generate(PROMPTS, question_ids=range(5), stop=StopStrings(BYTES, ["B"]), **SETTINGS)
    assert out.completions() == [[65, 66]] * 15 and bool(out.finished.all())
    assert out.token_logprobs() == [[-1.0, -2.0]] * 15


def test_workers_that_disagree_and_a_second_trainer_are_refused(workers, world, tmp_path):
    workers(2, only=[0])
    workers(2, only=[1], told="vllm")
    with pytest.raises(UserError, match="its workers are"):
        box(tiny_model(), tmp_path, world)
    with pytest.raises(UserError, match="is being written by"):
        box(tiny_model(), tmp_path, world)


def test_files_of_a_dead_trainer_go(workers, world, tmp_path):
    for name in ("request_1-1.json", "reply_1-1_0.pt", "alive_7.json", ".tmp_9_weights_1-1/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{")
    workers(1)
    box(tiny_model(), tmp_path, world)
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith("_alive_0.json")}  # half-written
    assert left <= {".lock", "alive_0.json"}


def test_the_vllm_engine_asks_as_vllm_is_asked(monkeypatch, tmp_path):
    """Against a stand-in of its three calls: no more than that the code runs."""
    seen = []

    class LLM:
        def __init__(self, model, **settings):
            seen.append(("weights", model))

        def collective_rpc(self, name, args):
            seen.append((name, *args))

        def reset_prefix_cache(self):
            seen.append("forgets")

        def generate(self, asked, settings, use_tqdm):
            scores = [{5: SimpleNamespace(logprob=-1.0)}, {6: SimpleNamespace(logprob=-2.0)}]
            out = SimpleNamespace(token_ids=(5, 6), logprobs=scores, finish_reason="stop")
            return [SimpleNamespace(outputs=[out] * s.n) for s in settings]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=lambda **s: SimpleNamespace(**s)))
    engine, r = mailbox.VLLM(None), SETTINGS | {"stops": []}
    engine.load(tmp_path / "a")
    engine.load(tmp_path / "b")
    assert seen == [("weights", str(tmp_path / "a")), ("read_weights", str(tmp_path / "b")), "forgets"]
    assert engine.sample([[1], [2]], [0, 1], r) == [([5, 6], [-1.0, -2.0], True)] * 6
    with pytest.raises(UserError, match="--stop eos"):
        engine.sample([[1]], [0], r | {"stops": ["\n"]})


# ------------------------------------------------------------------------------------------------------- the correction
def gradient(policy, sampler, advantages, **settings):
    """Of the loss over all words, each counted as often as the sampler draws it."""
    theta = policy.clone().requires_grad_()
    logp = theta.log_softmax(-1)[:, None]
    drawn = sampler.log_softmax(-1)[:, None]
    given = dict(sampler_logprobs=drawn) if settings.pop("corrected") else {}
    clipping = dict(clip_low=0.2, clip_high=0.2, dual_clip=3.0) | settings
    ones, weights = torch.ones(len(policy), 1, dtype=torch.bool), drawn.exp()[:, 0]
    loss, stats = grpo_loss(logp, logp.detach(), advantages, ones, weights, **clipping, **given)
    loss.backward()
    return theta.grad, stats


def test_the_correction_gives_the_gradient_of_the_policy():
    """Five words, all enumerated, drawn from a distribution that is a little off the policy's. Without correction the
    gradient of the mean advantage is off by a third, with it right to the last digit; a low bound lets errors back."""
    policy = torch.tensor([0.2, -0.5, 1.1, 0.0, -1.3], dtype=torch.float64)
    sampler = policy + torch.tensor([0.5, -0.4, -0.3, 0.4, -0.2], dtype=torch.float64)
    advantages = torch.tensor([1.0, -0.4, -0.3, 0.9, 0.2], dtype=torch.float64)
    theta = policy.clone().requires_grad_()
    (-(theta.softmax(-1) * advantages).sum()).backward()

    def off(**settings) -> float:
        return float((gradient(policy, sampler, advantages, **settings)[0] - theta.grad).norm() / theta.grad.norm())

    assert off(corrected=False) > 0.3
    assert off(corrected=True, sampler_cap=2.0) < 1e-12
    assert 1e-3 < off(corrected=True, sampler_cap=1.1) < off(corrected=False)
    ratio = policy.softmax(-1) / sampler.softmax(-1)
    stats = gradient(policy, sampler, advantages, corrected=True)[1]
    assert stats["sampler_ratio_max"] == pytest.approx(float(ratio.max()))
    assert stats["clipped"] == 0 and stats["ratio_max"] == 1  # the clip looks at the policy's own steps alone


# -------------------------------------------------------------------------------------------------------- in the stages
RL = "--prompts-per-step 4 --group-size 3 --max-new-tokens 8 --updates-per-batch 2 --lr 0.02 --steps 2".split()


@pytest.mark.parametrize("name", ["train_rl", "merge"])
def test_a_run_with_workers_is_the_run_without(name, ok, workers, world, base, tmp_path, monkeypatch):
    """In float32: the same samples, and the loss to the rounding of a correction by exp(0 +- 1e-6)."""
    monkeypatch.setattr("train_rl.reward", lambda text, *_: float(sum(map(ord, text)) % 2))
    flags = ["--init", base, "--data", world, *RL, *(["--batch-size", "5"] if name == "merge" else [])]
    ok(name, *flags, "--out", tmp_path / "alone")
    workers(2)
    told = ok(name, *flags, "--out", tmp_path / "both", "--sampler", tmp_path).out
    assert "rollouts by 2 x ours" in told
    runs = [tmp_path / run for run in ("alone", "both")]
    alone, both = (read_jsonl(run / "metrics.jsonl") for run in runs)
    assert [row["completion/tokens"] for row in alone] == [row["completion/tokens"] for row in both]
    assert read_jsonl(runs[0] / "samples.jsonl") == read_jsonl(runs[1] / "samples.jsonl")
    assert all(abs(row["policy/sampler_kl"]) < 1e-6 and abs(row["policy/sampler_ratio_max"] - 1) < 1e-4 for row in both)
    assert "policy/sampler_kl" not in alone[0]
    for key in ("train/loss", "train/grad_norm"):
        assert [row[key] for row in both] == pytest.approx([row[key] for row in alone], rel=1e-3)


def test_a_sampler_that_is_off_shows(ok, workers, world, base, tmp_path, monkeypatch):
    monkeypatch.setattr("train_rl.reward", lambda text, *_: float(sum(map(ord, text)) % 2))
    ours = mailbox.Ours(SETUP)

    class Off:
        sample = ours.sample

        def load(self, path):
            ours.load(path)
            with torch.no_grad():
                ours.model.lm_head.weight.mul_(1.5)

    workers(1, engine=Off())
    ok("train_rl", "--init", base, "--data", world, *RL, "--out", tmp_path / "run", "--sampler", tmp_path)
    for row in read_jsonl(tmp_path / "run" / "metrics.jsonl"):
        assert row["policy/sampler_kl"] > 1e-4 and row["policy/sampler_ratio_max"] > 1.01


def test_flags_that_do_nothing_are_refused(refused, base, world, quick):
    refused("train_rl", "--init", base, "--data", world, "--sampler-cap", "2", words=("--sampler-cap", "--sampler"))
    given = ("--init", base, "--data", world, "--sampler", "nowhere", "--sampler-cap")
    refused("train_rl", *given, "0.5", words=("--sampler-cap 0.5", "at least 1"))


def test_two_processes_ask_as_one(ok, workers, world, base, tmp_path, monkeypatch):
    """torchrun: the first asks for all."""
    monkeypatch.setattr("train_rl.reward", many.scored)
    flags = ["--init", str(base), "--data", str(world), *RL, "--micro-batch-size", "2", "--sampler", str(tmp_path)]
    workers(2)
    ok("train_rl", *flags, "--out", tmp_path / "one")
    two_processes([["train_rl", *flags, "--out", str(tmp_path / "two")]], tmp_path)
    one, two = (read_jsonl(tmp_path / run / "metrics.jsonl") for run in ("one", "two"))
    assert read_jsonl(tmp_path / "one" / "samples.jsonl") == read_jsonl(tmp_path / "two" / "samples.jsonl")
    for key in ("completion/tokens", "reward/mean", "train/loss", "train/grad_norm", "policy/sampler_ratio_max"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=1e-4, abs=1e-6), key
