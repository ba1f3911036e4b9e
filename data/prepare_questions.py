"""Files of questions -> a folder whose texts and tokens are read from disk."""

import argparse

from data.files import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", help="OpenMathInstruct-2 rows: .parquet or .jsonl, the latter also .gz, .zst"
    )
    parser.add_argument("--out", required=True, metavar="DIR")


def main(args: argparse.Namespace) -> None:
    raise UserError("preparing questions is not written yet; give the stages a .jsonl file")
