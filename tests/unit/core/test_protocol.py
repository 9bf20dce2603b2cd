"""What worker and supervisor say to each other."""

import io
import json
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import specs
from timmgate.core.checks import ACCURACY
from timmgate.core.protocol import Reporter, ReportError, Request, parse
from timmgate.core.run_options import RunOptions

INT64 = st.integers(-(2**63), 2**63 - 1)
OF_TYPE = {
    "string": st.text(),
    "int64": INT64,
    "float64": st.floats(allow_nan=False) | st.integers(-(2**53), 2**53),
    "bool": st.booleans(),
    "timestamp": INT64,
    "list<string>": st.lists(st.text(), max_size=3),
    "list<int64>": st.lists(INT64, max_size=3),
}
DETAILS = st.fixed_dictionaries(
    {}, optional={column.name: st.none() | OF_TYPE[column.type] for column in ACCURACY.detail_columns}
)


def said(speak: Callable[[Reporter], object]) -> list[tuple[str, Any]]:
    """Kind and content of what a worker says in `speak(reporter)`, as the supervisor reads it."""
    stream = io.StringIO()
    reporter = Reporter(stream)
    reporter.check("accuracy")
    speak(reporter)
    return [parse(line)[:2] for line in stream.getvalue().encode().splitlines()[1:]]


def test_every_kind_of_message_arrives_as_it_was_sent():
    def speak(reporter):
        reporter.stage("load")
        reporter.columns(batch_size=8, input_size=[3, 160, 160])
        reporter.detail({"leaf": "output", "margin": 0.5, "strict": None})
        reporter.result("fail_accuracy", "comparison", "1 of 2 differs")
        reporter.failure("ValueError", "no", out_of_memory=False)

    assert said(speak) == [
        ("stage", "load"),
        ("columns", {"batch_size": 8, "input_size": [3, 160, 160]}),
        ("detail", {"leaf": "output", "margin": 0.5, "strict": None}),
        ("result", {"status": "fail_accuracy", "cause": "comparison", "message": "1 of 2 differs"}),
        ("failure", {"cause": "ValueError", "message": "no", "out_of_memory": False, "is_ours": False}),
    ]


@given(content=DETAILS)
def test_any_content_that_the_columns_can_hold_arrives_as_it_was_sent_on_one_line(content):
    assert said(lambda reporter: reporter.detail(content)) == [("detail", content)]


@pytest.mark.parametrize("number", [math.inf, -math.inf])
def test_infinite_numbers_arrive(number):
    assert said(lambda reporter: reporter.columns(margin=number)) == [("columns", {"margin": number})]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("margin", math.nan),
        ("margin", "0.5"),
        ("margin", True),
        ("margin", 10**400),
        ("leaves", 2**63),
        ("leaves", 8.0),
        ("leaves", math.nan),
        ("leaves", True),
        ("reference", b"fp64"),
        ("reference", 64),
        ("channels_last", 1),
        ("input_size", [3, 2**70, 160]),
        ("input_size", (3, 160, 160)),
        ("input_size", "3"),
        ("marginn", 0.5),
    ],
)
def test_what_has_no_column_or_does_not_fit_into_it_is_refused_where_it_is_reported(column, value):
    with pytest.raises(ReportError, match=column):
        said(lambda reporter: reporter.columns(**{column: value}))


@pytest.mark.parametrize("detail", [{"leaf": "output", "marginn": 0.5}, {"margin": math.nan}, {"shape": [1.5]}])
def test_a_detail_is_refused_in_the_same_way(detail):
    with pytest.raises(ReportError, match="evidence"):
        said(lambda reporter: reporter.detail(detail))


def test_a_request_arrives_as_it_was_sent(tmp_path):
    cell = specs.cell(options={"training": True}, traits={"skip_on": ["cuda"]}, batch_size=4, threads=2)
    run = RunOptions(threads=2, cache=tmp_path, weights=tmp_path / "weights.pth", memory_bytes=10**9)
    request = Request([cell.spec("accuracy"), cell.spec("performance")], run, timed_batch_size=3, messages=7, paused=8)
    assert Request.from_json(request.to_json()) == request
    assert [request.batch_size(spec) for spec in request.specs] == [4, 3]


@pytest.mark.parametrize("change", [{"colour": "red"}, {"run": {"colour": "red"}}])
def test_an_unknown_field_of_a_request_is_refused(change):
    request = json.loads(Request([specs.spec()], RunOptions()).to_json())
    with pytest.raises(TypeError, match="colour"):
        Request.from_json(json.dumps({**request, **change}))


def test_text_that_utf8_cannot_hold_arrives_as_text_that_it_can():
    ((_, content),) = said(lambda reporter: reporter.failure("OSError", "no file b\udcffd, é", out_of_memory=False))
    assert content["message"] == "no file b?d, é"


def test_every_message_carries_the_seconds_since_the_reporter_was_made():
    stream = io.StringIO()
    reporter = Reporter(stream, clock=iter((100.0, 100.5, 102.0, 104.0)).__next__)
    for stage in ("load", "eager", "compile"):
        reporter.stage(stage)
    assert [parse(line)[2] for line in stream.getvalue().encode().splitlines()] == [0.5, 2.0, 4.0]


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
        b'{"stage": "load", "columns": {}, "elapsed_s": 1.0}',
        b'{"stage": {"a": 1}, "elapsed_s": 1.0}',
        b'{"columns": "a", "elapsed_s": 1.0}',
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
