"""Texts of others, made fit to be shown."""

import pytest

from timmgate.core.plain_text import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;a title\x07after", "after"),
        ("\x1b]8;;https://x\x1b\\link", "link"),
        ("a\u202eb", "a\\u202eb"),
        ("vit\u00ad", "vit\\u00ad"),
        ("vit\U000e0041", "vit\\ue0041"),
        ("\x1bc", "\\u001bc"),
        ("a\tb\r\nc é", "a\tb\nc é"),
    ],
)
def test_codes_of_terminals_go_and_what_is_hidden_is_spelt_out(text, shown):
    assert plain(text) == shown
