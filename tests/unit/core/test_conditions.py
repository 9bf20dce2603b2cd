"""The words of a headline."""

import pytest

from timmgate.core.conditions import condition_words


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ((1, "retain", True), "1 thread, memory retained"),
        ((8, "system", True), "8 threads, memory left to the system"),
        ((2, "system", False), "2 threads, memory left to the system, tensors not moved"),
        ((4, None, None), "4 threads"),
        ((4,), "4 threads"),
    ],
)
def test_what_is_known_is_said(known, expected):
    assert condition_words(*known) == expected
