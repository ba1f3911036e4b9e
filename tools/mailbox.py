"""Rollouts by other processes: `train_rl.py --sampler BOX` (and merge.py) puts weights and prompts into the folder BOX,
workers answer.

    python -m tools.mailbox /dev/shm/box --worker 0 --of 2 --device cuda:6      # one on each GPU that only samples
    python -m tools.mailbox /dev/shm/box --worker 1 --of 2 --device cuda:7
    torchrun --nproc-per-node 6 train_rl.py --sampler /dev/shm/box --init ...   # before or after them

`--engine ours` is this repository's sampler: in float32 its completions and log-probs are those of a run without
workers, bit for bit. `--engine vllm` needs an environment of its own (vLLM pins another torch), a model whose shape
Hugging Face knows, and `--stop eos`, since it sees no text. **We have never run it.** It rounds in its own way and
draws its own random numbers; the objective corrects for the former by the log-probs that come with the tokens
(train_rl.py, `grpo_loss`).

Files, each written under another name and renamed, so that what is there is whole; n: of a request, w: of a worker
    alive_{w}.json       {"engine", "of"}, written anew every second
    weights_{n}          a file {"model", "model_config"}; for vLLM a Hugging Face folder
    request_{n}.json     prompts (ids), the place of each, on which its draws depend, and settings of `generate`
    reply_{n}_{w}.pt     of the prompts [w::of]: their completions one after the other, or {"error": what}
The trainer removes what belongs to a request once all have answered. A worker keeps nothing: it may die and come back.
"""

import argparse
import contextlib
import importlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import torch

from common import UserError, explain, lock, run, setup, writable_dir
from data.files import field, read_json, replacing, write_json
from data.math_qa import StopStrings
from data.tokenizer import tokenizer_of
from model import load_model
from processes import RANK, deal, gather
from sample import Rollout
from stage import add_system_args

PATIENCE = 120.0  # seconds without a sign of life until a worker counts as dead
PULSE = 1.0  # seconds between two
Sample = tuple[list[int], list[float], bool]  # a completion's tokens, their log-probs, and whether it ended by itself


# ---------------------------------------------------------------------------------------------------------- the trainer
class Box:
    """Stands where a model draws completions: it has the model's `generate`, done by the workers of a folder."""

    def __init__(self, model, tokenizer: dict, args):
        """Waits for the workers of args.sampler. tokenizer: its identity. Of many processes the first one asks."""
        self.folder, self.model, self.tokenizer, self.args = Path(args.sampler), model, tokenizer, args
        self.asked, self.started = 0, f"{time.time_ns():x}"
        if RANK:
            return
        writable_dir(self.folder)
        lock(self.folder)
        for kind in (".tmp_*_weights", "alive", "request", "reply", "weights"):  # of a trainer and workers that died
            for path in self.folder.glob(f"{kind}_*"):
                remove(path)
        print(f"waiting for the workers of {self.folder}", flush=True)
        first = self.alive(0)
        told = [first, *(self.alive(w) for w in range(1, first[1]))]
        if any(other != first for other in told):
            mend = "start all with one --engine and one --of"
            raise UserError(f"--sampler {self.folder}: its workers are (engine, of) {told}; {mend}")
        self.engine, self.workers = first
        print(f"rollouts by {self.workers} x {self.engine} through {self.folder}", flush=True)

    def alive(self, w: int) -> tuple[str, int]:
        """(engine, number of workers), as worker w tells."""
        path = self.folder / f"alive_{w}.json"
        self.wait_for(path, w)
        told = read_json(path, "sign of life")
        return field(told, "engine", str, path), field(told, "of", int, path)

    def wait_for(self, path: Path, w: int) -> None:
        """UserError if the worker that writes `path` gives no sign of life for PATIENCE seconds of this clock."""
        sign, since = None, time.monotonic()
        while not path.exists():
            with contextlib.suppress(FileNotFoundError):
                last, sign = sign, (self.folder / f"alive_{w}.json").stat().st_mtime_ns
                since = since if last == sign else time.monotonic()
            if time.monotonic() - since > PATIENCE:
                start = f"python -m tools.mailbox {self.folder} --worker {w} --of N"
                what = f"worker {w} has been silent for {PATIENCE:.0f} s"
                raise UserError(f"--sampler {self.folder}: {what}; look at its output, or start it: {start}")
            time.sleep(0.02)

    def generate(self, prompts, *, question_ids, stop=None, return_logprobs=True, **settings) -> Rollout:
        """As GPT.generate, with log-probs in any case. All processes call it, each with its share of the prompts."""
        places, prompts = zip(*gather(list(zip(question_ids, prompts, strict=True))), strict=True)
        request = settings | dict(prompts=prompts, places=places, together=self.args.prompts_per_batch)
        request |= dict(stops=stop.stops if stop else (), data=os.path.abspath(self.args.data))
        groups = gather([self.ask(request) if RANK == 0 else None])[0]
        rows = [cut(row, stop) for group in deal(groups) for row in group]
        lengths = torch.tensor([len(tokens) for tokens, _, _ in rows])
        grid = torch.arange(int(lengths.max())) < lengths[:, None]
        tokens = torch.zeros(grid.shape, dtype=torch.long)
        logprobs = torch.zeros(grid.shape)
        tokens[grid] = torch.tensor([t for row, _, _ in rows for t in row])
        logprobs[grid] = torch.tensor([x for _, row, _ in rows for x in row])
        return Rollout(tokens, lengths, torch.tensor([ended for _, _, ended in rows]), logprobs)

    def ask(self, request: dict) -> list[list[Sample]]:
        """The completions of each prompt."""
        self.asked += 1
        n = f"{self.started}-{self.asked}"
        weights, question = self.folder / f"weights_{n}", self.folder / f"request_{n}.json"
        self.export(weights)
        write_json(question, request)
        replies, G = [], request["n_samples"]
        for w in range(self.workers):
            path = self.folder / f"reply_{n}_{w}.pt"
            self.wait_for(path, w)
            replies.append(self.unpack(path, w, request))
        for path in (question, weights, *(self.folder / f"reply_{n}_{w}.pt" for w in range(self.workers))):
            remove(path)
        places = range(len(request["prompts"]))
        return [replies[i % self.workers][i // self.workers * G :][:G] for i in places]

    def export(self, path: Path) -> None:
        weights = {name: x.detach().float().cpu() for name, x in self.model.state_dict().items()}
        ckpt = {"model": weights, "model_config": dict(vars(self.model.config)), "tokenizer": self.tokenizer}
        if self.engine == "ours":
            save(path, ckpt)
            return
        temporary = path.with_name(f".tmp_{os.getpid()}_{path.name}")
        importlib.import_module("tools.convert").to_hf(ckpt, temporary, torch.bfloat16)
        os.replace(temporary, path)

    def unpack(self, path: Path, w: int, request: dict) -> list[Sample]:
        reply, who = torch.load(path, weights_only=True), f"--sampler {self.folder}: worker {w}"
        if "error" in reply:
            raise UserError(f"{who} failed: {reply['error']}")
        tokens, logprobs, lengths, finished = (reply[k].tolist() for k in ("tokens", "logprobs", "lengths", "finished"))
        wanted = len(request["prompts"][w :: self.workers]) * request["n_samples"]
        whole = len(lengths) == len(finished) == wanted and sum(lengths) == len(tokens) == len(logprobs)
        whole = whole and all(0 < n <= request["max_new_tokens"] for n in lengths)
        if not whole or not all(0 <= t < self.model.config.vocab_size for t in tokens):
            raise UserError(
                f"{who} sent no {wanted} completions of this vocabulary; see which engine and weights it has"
            )
        if not bool(torch.isfinite(reply["logprobs"]).all()):
            raise UserError(f"{who} sent log-probs that are not finite; see which engine and dtype it has")
        ends = torch.tensor(lengths).cumsum(0).tolist()
        return [
            (tokens[end - n : end], logprobs[end - n : end], ended)
            for n, end, ended in zip(lengths, ends, finished, strict=True)
        ]


def cut(row: Sample, stop: StopStrings | None) -> Sample:
    """A completion up to the token that completes a stop string: an engine may go on."""
    tokens, logprobs, ended = row
    for i in range(len(tokens)) if stop else ():
        if tokens[i] < len(stop.candidates) and stop.candidates[tokens[i]] and stop(tokens[: i + 1]):
            return tokens[: i + 1], logprobs[: i + 1], True
    return tokens, logprobs, ended


# ---------------------------------------------------------------------------------------------------------- the workers
class Ours:
    """`GPT.generate` on this worker's device."""

    def __init__(self, args):
        self.device, self.kernels, self.model = setup(args), args.kernels, None

    def load(self, path: Path) -> None:
        ckpt = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        self.tokenizer = ckpt["tokenizer"]
        if self.model and vars(self.model.config) == ckpt["model_config"]:
            self.model.load_state_dict(ckpt["model"])
        else:
            self.model = load_model(ckpt, path, self.device.device, self.kernels)

    def sample(self, prompts: list[list[int]], places: list[int], r: dict) -> list[Sample]:
        stop = StopStrings(tokenizer_of(self.tokenizer, r["data"], "the sampler"), r["stops"]) if r["stops"] else None
        settings = {k: r[k] for k in ("n_samples", "max_new_tokens", "eos_id", "temperature", "seed")}
        rows = []
        for i in range(0, len(prompts), r["together"]):
            part = slice(i, i + r["together"])
            with self.device.autocast():
                out = self.model.generate(
                    prompts[part], question_ids=places[part], stop=stop, return_logprobs=True, **settings
                )
            scored = zip(out.completions(), out.logprobs.tolist(), out.finished.tolist(), strict=True)
            rows += [(tokens, logprobs[: len(tokens)], ended) for tokens, logprobs, ended in scored]
        return rows


class Weights:
    """What vLLM's workers get as an extension: new weights for the model that they hold."""

    def read_weights(self, folder: str) -> None:
        from safetensors.torch import load_file

        for file in sorted(Path(folder).glob("*.safetensors")):
            self.model_runner.model.load_weights(load_file(file).items())


class VLLM:
    """vLLM on this worker's GPU (CUDA_VISIBLE_DEVICES). Never run by us."""

    def __init__(self, args):
        self.llm = None

    def load(self, path: Path) -> None:
        from vllm import LLM

        if self.llm:
            self.llm.collective_rpc("read_weights", args=(str(path),))
            self.llm.reset_prefix_cache()  # its keys are of the old weights
            return
        settings = dict(skip_tokenizer_init=True, worker_extension_cls="tools.mailbox.Weights", dtype="bfloat16")
        self.llm = LLM(model=str(path), logprobs_mode="processed_logprobs", **settings)

    def sample(self, prompts: list[list[int]], places: list[int], r: dict) -> list[Sample]:
        from vllm import SamplingParams

        if r["stops"]:
            raise UserError("--engine vllm sees no text, so it cannot stop at strings; train with --stop eos")
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        ends = r["eos_id"] if isinstance(r["eos_id"], list) else [r["eos_id"]]
        settings = [
            SamplingParams(
                n=r["n_samples"],
                temperature=r["temperature"],
                max_tokens=r["max_new_tokens"],
                stop_token_ids=ends,
                logprobs=0,  # of the drawn token alone
                detokenize=False,
                seed=(r["seed"] * 1_000_003 + place) % 2**63,
            )
            for place in places
        ]
        found = self.llm.generate(asked, settings, use_tqdm=False)
        outs = [out for request in found for out in request.outputs]
        return [
            (
                list(out.token_ids),
                [at[token].logprob for at, token in zip(out.logprobs, out.token_ids, strict=True)],
                out.finish_reason == "stop",
            )
            for out in outs
        ]


ENGINES = {"ours": Ours, "vllm": VLLM}


def serve(engine, box: Path, w: int, of: int) -> None:
    """Answer requests for ever."""
    while True:
        for question in box.glob("request_*.json"):
            n = question.stem.removeprefix("request_")
            answer = box / f"reply_{n}_{w}.pt"
            with contextlib.suppress(FileNotFoundError):  # the trainer ended, and another removed its files
                if not answer.exists():
                    request = json.loads(question.read_text())
                    save(answer, answered(engine, box / f"weights_{n}", request, w, of))
        time.sleep(0.02)


def answered(engine, weights: Path, r: dict, w: int, of: int) -> dict:
    """The reply to a request; where this worker fails, what the trainer is to say."""
    try:
        engine.load(weights)
        rows = engine.sample(r["prompts"][w::of], r["places"][w::of], r)
    except (UserError, RuntimeError) as error:
        print(line := explain(error)[0].removeprefix("error: ") or repr(error), flush=True)
        return {"error": line}
    return {
        "tokens": torch.tensor([t for tokens, _, _ in rows for t in tokens], dtype=torch.int32),
        "logprobs": torch.tensor([x for _, logprobs, _ in rows for x in logprobs]),
        "lengths": torch.tensor([len(tokens) for tokens, _, _ in rows]),
        "finished": torch.tensor([ended for _, _, ended in rows]),
    }


def pulse(path: Path, told: dict) -> None:
    """Give signs of life from a thread of their own: sampling takes longer than PATIENCE."""
    while True:
        with contextlib.suppress(OSError, UserError):
            write_json(path, told)
        time.sleep(PULSE)


# ------------------------------------------------------------------------------------------------------------- plumbing
def save(path: Path, value: dict) -> None:
    with replacing(path) as file:
        torch.save(value, file)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(prog="python -m tools.mailbox", description=__doc__, formatter_class=raw)
    p.add_argument(
        "box", metavar="BOX", help="a folder that trainer and workers see; in memory, /dev/shm, it is fastest"
    )
    p.add_argument("--worker", type=int, default=0, help="which of the workers this is, from 0")
    p.add_argument("--of", type=int, default=1, help="how many there are")
    p.add_argument("--engine", default="ours", choices=list(ENGINES))
    add_system_args(p)
    args = p.parse_args()
    if not 0 <= args.worker < args.of:
        raise UserError(f"--worker {args.worker} --of {args.of}: workers are numbered from 0 to {args.of - 1}")
    box = Path(args.box)
    writable_dir(box)
    engine = ENGINES[args.engine](args)
    told = {"engine": args.engine, "of": args.of}
    threading.Thread(target=pulse, args=(box / f"alive_{args.worker}.json", told), daemon=True).start()
    print(f"worker {args.worker} of {args.of} waits for requests in {box}; Ctrl-C ends it", flush=True)
    serve(engine, box, args.worker, args.of)


if __name__ == "__main__":
    run(main)
