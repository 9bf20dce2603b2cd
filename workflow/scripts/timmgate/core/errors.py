"""What is wrong with what a person wrote, in one sentence."""

from collections.abc import Collection
from difflib import get_close_matches
from subprocess import CompletedProcess


class ConfigError(ValueError):
    """What a person wrote cannot be meant: the message says what is wrong, where, and what would be right."""


def near_matches(word: object, known: Collection[str]) -> list[str]:
    """Up to three known words that are like `word`, the best first."""
    return get_close_matches(str(word), known, n=3, cutoff=0.6)


def did_you_mean(word: object, known: Collection[str]) -> str:
    """The near matches of `word` as the end of a sentence, or the known words if they are few and none is near."""
    known = list(known)
    if near := near_matches(word, known):
        return f"; did you mean {' or '.join(near)}?"
    return f"; known are {', '.join(known)}" if 0 < len(known) <= 20 else ""


def last_words(process: CompletedProcess[str]) -> str:
    """The last line of what a process that failed wrote to stderr, or its exit code."""
    return (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
