"""Run plumbing shared by every stage: nothing of any method lives here."""

import sys


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence: what was got, what is needed, what to do."""


def run(main) -> None:
    """Call `main()`; a `UserError` becomes one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
