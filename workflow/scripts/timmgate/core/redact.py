"""Keeps secrets of the environment out of rows and tables."""

import os
import re
from typing import Any

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH(?!OR)|(API|ACCESS|PRIVATE|SIGNING)_?KEY", re.IGNORECASE)
"""Environment variables with such a name hold secrets."""

SHORTEST = 8
"""Characters of the shortest value that is taken for a secret: `1` or `true` stand everywhere."""

MESSAGE_CHARACTERS = 2000
"""A message longer than this is cut; the log has the whole of it."""


def redacted(value: Any) -> Any:
    """The text, row or list with the name of the variable in the place of every secret; what is no text stays."""
    known = [(f"<{name}>", secret) for name, secret in os.environ.items() if SECRET_NAME.search(name)]
    known = [(name, secret) for name, secret in known if len(secret) >= SHORTEST]
    return _replaced(value, sorted(known, key=lambda variable: -len(variable[1])))  # one secret may begin another


def shortened(message: str | None) -> str | None:
    """A message as it is recorded: not too long, and without secrets of the environment."""
    return message and redacted(message)[:MESSAGE_CHARACTERS]


def _replaced(value: Any, known: list[tuple[str, str]]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(inner, known) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, known) for inner in value]
    if isinstance(value, str):
        for name, secret in known:
            value = value.replace(secret, name)
    return value
