"""Keeps secrets of the environment out of what is recorded."""

import os
import re

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH(?!OR)|(API|ACCESS|PRIVATE|SIGNING)_?KEY", re.IGNORECASE)
"""Environment variables with such a name hold secrets."""

SHORTEST = 8
"""Characters of the shortest value that is taken for a secret: `1` or `true` stand everywhere."""


def redacted(text: str) -> str:
    """The text, with the name of the variable in the place of every secret."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and SECRET_NAME.search(name) and value in text:
            text = text.replace(value, f"<{name}>")
    return text
