"""Complete prompts with a checkpoint, and show how likely it finds what it wrote.

    python sample.py --ckpt checkpoints/world_base.pt --prompt "The home of Sue is"
    python sample.py --ckpt CKPT --template world --prompt "Zoe has 17.3 m of rope. Zoe adds 3. How much now?"
    python sample.py --ckpt CKPT --template world --interactive --greedy --per-token

The log-prob of a completion is the model's own, over the whole vocabulary at temperature 1, whatever it was drawn with;
it counts the end-of-text or the token that completed a stop string. With --template a prompt is a question, which is
written and stopped as training wrote it.
"""

import argparse
import contextlib
import importlib
import itertools
import sys
from pathlib import Path

import torch

from common import UserError, explain, load_checkpoint, run, setup
from data.math_qa import TEMPLATES, StopStrings, template_for
from data.pass_at_k import TEMPERATURE, TOP_P
from data.tokenizer import check_tokenizer, decode, folder_tokenizer, kept_tokenizer, named_tokenizer
from model import load_model
from sample import check_draw
from stage import WORLD, add_system_args, check_numbers, describe_model, need_flags, world_if_absent


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("sample.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument_group("Input and output").add_argument
    add("--ckpt", metavar="CKPT", help="a checkpoint of any stage")
    add(
        "--prompt",
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT",
        help="one or more; each is completed by itself",
    )
    add("--interactive", action="store_true", help="ask for prompts, a line each, until Ctrl-D")
    add("--template", help=f"prompts are questions, put into this form: {' | '.join(TEMPLATES)}")
    add("--data", metavar="DIR", help="whose tokenizer is used; default: what the checkpoint records")
    add("--per-token", action="store_true", help="also show each token with its log-prob")
    add = p.add_argument_group("Sampling").add_argument
    add("--n-samples", type=int, help="completions of each prompt; default: 4, with --greedy 1")
    add("--max-new-tokens", type=int, default=112, help="longest completion in tokens; less where the context ends")
    add("--temperature", type=float, default=TEMPERATURE, help="0 = greedy")
    add("--top-p", type=float, default=TOP_P, help="sample from the likeliest ids of this mass; 1 = all")
    add("--greedy", action="store_const", dest="temperature", const=0.0, help="the likeliest token each time")
    add("--stop", nargs="*", metavar="STRING", help="end before these; default: the template's; alone: nowhere")
    add_system_args(p)
    return p


def parse_args() -> argparse.Namespace:
    need_flags(parser())
    args = parser().parse_args()
    if args.ckpt is None:
        raise UserError("--ckpt is missing: give a ckpt_*.pt file that a training stage wrote")
    check_numbers(args)
    check_draw(args.temperature, args.top_p)
    if not args.prompt and not args.interactive:
        raise UserError('nothing to complete; give --prompt "some text", or --interactive')
    if "" in args.prompt:
        raise UserError("--prompt '': empty, so there is nothing to go on from; give it some text")
    if args.n_samples is None:
        args.n_samples = 1 if args.temperature == 0 else 4
    if args.n_samples < 1 or (args.n_samples > 1 and args.temperature == 0):
        why = "at least 1 is needed" if args.n_samples < 1 else "greedy completions are all alike; leave it out"
        raise UserError(f"--n-samples {args.n_samples}: {why}")
    return args


def tokenizer_of(ckpt: dict, args):
    """The tokenizer that lies in the checkpoint, else that of --data, else of the data folder that the checkpoint's run
    read, else the one it names."""
    if "ranks" in ckpt["tokenizer"]:
        return kept_tokenizer(ckpt["tokenizer"], args.ckpt)
    name, folder = ckpt["tokenizer"].get("name"), args.data or ckpt["config"].get("data") or WORLD
    try:
        here = args.data or Path(folder, "meta.json").is_file()
        enc = folder_tokenizer(folder) if here else named_tokenizer(name)
    except UserError as error:
        if args.data:
            raise
        if folder != WORLD:
            what = f"neither its data folder {folder} nor its tokenizer {name!r} is found here"
            raise UserError(f"{args.ckpt}: {what}; give a folder with that tokenizer by --data") from error
        world_if_absent(folder)
        enc = folder_tokenizer(folder)
    check_tokenizer(enc, ckpt["tokenizer"], args.ckpt)
    return enc


def readable(text: str) -> str:
    """Text for a terminal: control characters, which could command it, are spelled out."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class Session:
    """A checkpoint and the settings with which prompts are completed."""

    def __init__(self, args):
        self.args, ckpt = args, load_checkpoint(args.ckpt)
        self.template = template_for(args.template) if args.template else None
        self.device = setup(args)
        self.enc = tokenizer_of(ckpt, args)
        stops = self.template.stops if self.template and args.stop is None else args.stop or ()
        self.stop = StopStrings(self.enc, stops)
        self.model = load_model(ckpt, args.ckpt, self.device.device, args.kernels)
        describe_model(self.model, args.ckpt, ckpt)

    def encode(self, text: str) -> tuple[str, list[int]]:
        """The prompt of a text, and its ids after an end-of-text, as documents begin in training."""
        prompt = self.template.prompt.format(problem=text) if self.template else text
        ids, limit = [self.enc.eot_token, *self.enc.encode_ordinary(prompt)], self.model.config.block_size
        if len(ids) >= limit:
            raise UserError(f"prompt of {len(ids)} tokens leaves no room in the context of {limit}; shorten it")
        return prompt, ids

    @torch.no_grad()
    def complete(self, prompt: str, ids: list[int], number: int) -> None:
        """Sample completions of a prompt and print them. `number`: of the prompt, each has draws of its own."""
        args, room = self.args, self.model.config.block_size - len(ids)
        settings = {name: getattr(args, name) for name in ("n_samples", "temperature", "top_p", "seed")}
        settings |= dict(max_new_tokens=min(args.max_new_tokens, room), eos_id=self.enc.eot_token, stop=self.stop)
        with self.device.autocast():
            out = self.model.generate([ids], question_ids=[number], **settings)
            rows = out.completions()
            logprobs = self.model.completion_logprobs([ids] * len(rows), rows)[0].tolist()
        print(f"\n{readable(prompt)}")
        for i, row in enumerate(rows):
            end = "--max-new-tokens" if args.max_new_tokens <= room else "the end of the context"
            if out.finished[i]:
                end = "end-of-text" if row[-1] == self.enc.eot_token else "a stop string"
            own = logprobs[i][: len(row)]
            score = f"log-prob {sum(own):.2f}, {sum(own) / len(row):.3f} a token"
            print(f"--- {i + 1}/{len(rows)} | {len(row)} tokens, ended by {end} | {score}")
            print(readable(self.stop.cut(decode(self.enc, [t for t in row if t != self.enc.eot_token]))))
            if args.per_token:
                for token, logprob in zip(row, own, strict=True):
                    print(f"{logprob:10.3f}  {decode(self.enc, [token])!r}")

    def ask(self) -> None:
        """A prompt a line, until the input ends. A mistake costs that prompt only."""
        sys.stdin.reconfigure(errors="replace")
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # arrow keys and a history; not on every system
        print("\nA prompt a line; Ctrl-D ends.")
        for number in itertools.count(len(self.args.prompt)):
            try:
                if text := input("> "):
                    self.complete(*self.encode(text), number)
            except UserError as error:
                print(f"error: {error}")
            except EOFError:
                return print()


def main() -> None:
    args = parse_args()
    try:
        session = Session(args)
        for number, prompt in enumerate([session.encode(text) for text in args.prompt]):
            session.complete(*prompt, number)
        if args.interactive:
            session.ask()
    except KeyboardInterrupt as error:  # no file was written: there is nothing to say
        print()
        sys.exit(explain(error)[1])


if __name__ == "__main__":
    run(main)
