"""Texts that models, compilers and processes wrote, made fit to be shown: they may hide things, or move a cursor."""

import re

HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
)
"""Characters that cannot be seen, or that change the direction of others; without tab and line feed."""

TERMINAL_CODE = re.compile("\x1b(\\[[0-9;?]*[A-Za-z]|\\][^\x07\x1b]*(\x07|\x1b\\\\)?)")
"""Colours, cursor and title: what begins with escape and [ or ]."""


def plain(text: str) -> str:
    """The text without codes for terminals; what it hides is spelt out, as `\\u202e`."""
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", TERMINAL_CODE.sub("", text.replace("\r\n", "\n")))
