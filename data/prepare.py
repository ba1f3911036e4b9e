"""Public files -> the files that the stages read; docs/data.md says what to fetch, and where it is found.

    python -m data.prepare corpus $REAL_DATA/general --math $REAL_DATA/gsm8k/train.jsonl --out data/real
    python -m data.prepare ready LIST --val FILE --tokenizer cl100k_base --out data/dolmino
    python -m data.prepare questions OMI2/train-*.parquet --source gsm8k augmented_gsm8k --out data/omi2
    python -m data.prepare contamination data/omi2 --exclude

Each command is a module of its own: `add_arguments(parser)` and `main(args)`.
"""

import argparse

from common import run
from data import contamination, prepare_corpus, prepare_questions, prepare_ready

COMMANDS = {"corpus": prepare_corpus, "ready": prepare_ready, "questions": prepare_questions}
COMMANDS |= {"contamination": contamination}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        about = module.__doc__.split("\n\n")[0]
        module.add_arguments(commands.add_parser(name, help=about.split(".")[0], description=about))
    args = parser.parse_args()
    COMMANDS[args.command].main(args)


if __name__ == "__main__":
    run(main)
