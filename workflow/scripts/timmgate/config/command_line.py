"""The command line that Snakemake was called with."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any


def options_alone(arguments: Sequence[str]) -> list[str]:
    """A command line of Snakemake without its targets, which it takes in one place only.

    A word that is a target may also be the value of an option: that one stays.
    """
    from snakemake.cli import get_argument_parser  # by whom it is called, or not at all

    parser = get_argument_parser()

    def options(words: Sequence[str]) -> dict[str, Any] | None:
        """What they mean, in values that can be compared; None if they mean nothing."""
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
            parsed = vars(parser.parse_args(words))
            return {name: getattr(value, "__dict__", value) for name, value in parsed.items() if name != "targets"}
        return None

    left = list(arguments)
    if "--" in left:  # what follows are targets
        del left[left.index("--") :]
    meant = options(left)
    for target in parser.parse_args(left).targets:
        places = [number for number, word in enumerate(left) if word == target]
        shorter = ([*left[:place], *left[place + 1 :]] for place in reversed(places))
        left = next(words for words in shorter if options(words) == meant)
    return left
