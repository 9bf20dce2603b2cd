"""What worker and supervisor say to each other."""

import io
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timmgate.core.protocol import Reporter, parse

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def said(speak) -> list[tuple]:
    """Kind and content of what a worker says in `speak(reporter)`, as the supervisor reads it."""
    stream = io.StringIO()
    speak(Reporter(stream))
    return [parse(line)[:2] for line in stream.getvalue().encode().splitlines()]


def test_every_kind_of_message_arrives_as_it_was_sent():
    def speak(reporter):
        reporter.stage("load")
        reporter.facts(batch_size=8, input_size=[3, 160, 160])
        reporter.detail({"leaf": "output", "margin": 0.5, "strict": None})
        reporter.result("fail_accuracy", "comparison", "1 of 2 differs")
        reporter.failure("ValueError", "no", out_of_memory=False)

    assert said(speak) == [
        ("stage", "load"),
        ("facts", {"batch_size": 8, "input_size": [3, 160, 160]}),
        ("detail", {"leaf": "output", "margin": 0.5, "strict": None}),
        ("result", {"status": "fail_accuracy", "cause": "comparison", "message": "1 of 2 differs"}),
        ("failure", {"cause": "ValueError", "message": "no", "out_of_memory": False}),
    ]


@given(content=st.dictionaries(st.text(), values, max_size=4))
def test_any_content_arrives_as_it_was_sent_on_one_line(content):
    stream = io.StringIO()
    Reporter(stream).detail(content)
    assert stream.getvalue().count("\n") == 1
    assert parse(stream.getvalue().encode())[:2] == ("detail", content)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_arrive(number):
    ((_, content),) = said(lambda reporter: reporter.facts(margin=number))
    assert repr(content["margin"]) == repr(number)


def test_text_that_utf8_cannot_hold_arrives_as_text_that_it_can():
    ((_, content),) = said(lambda reporter: reporter.failure("OSError", "no file b\udcffd, é", out_of_memory=False))
    assert content["message"] == "no file b?d, é"


def test_every_message_carries_the_seconds_since_the_reporter_was_made():
    stream = io.StringIO()
    reporter = Reporter(stream)
    for stage in ("load", "eager", "compile"):
        reporter.stage(stage)
    seconds = [parse(line)[2] for line in stream.getvalue().encode().splitlines()]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[0] < 1


def test_a_message_can_be_read_as_soon_as_it_is_sent():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb") as received:
        Reporter(stream).stage("load")
        assert parse(received.readline())[:2] == ("stage", "load")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b'{"stage": "load"',
        b'{"stage": "load"}',
        b'{"elapsed_s": 1.0}',
        b'{"stage": "load", "elapsed_s": "soon"}',
        b'{"stage": "load", "facts": {}, "elapsed_s": 1.0}',
        b'{"stage": {"a": 1}, "elapsed_s": 1.0}',
        b'{"facts": "a", "elapsed_s": 1.0}',
        b'{"verdict": "pass", "elapsed_s": 1.0}',
        b"[1, 2]",
        b"null",
        b"\xff\xfe\x00",
    ],
)
def test_a_line_that_is_no_message_is_refused(line):
    with pytest.raises(ValueError):
        parse(line)


def test_a_message_is_json_that_other_programs_can_read():
    stream = io.StringIO()
    Reporter(stream).stage("load")
    message = json.loads(stream.getvalue())
    assert message.pop("elapsed_s") >= 0
    assert message == {"stage": "load"}
