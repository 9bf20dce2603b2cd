"""What worker and supervisor say to each other: one JSON object in, JSON lines over a pipe out, one message a line.

`{"check": name}` when a check begins, `{"stage": name}` when a stage of it does, `{"columns": {name: value}}` as soon as
they are known, `{"detail": {...}}` per row of the check's second table, and at the end `{"result": {...}}` or
`{"failure": {...}}`, the final message. `{"result_so_far": {...}}` is the result, with its details, should a limit end the
check from then on. A process that has several checks to do goes on to the next one after a result.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from timmgate.core.checks import CHECKS
from timmgate.core.described import fits
from timmgate.core.run_options import RunOptions
from timmgate.core.schemas import REPORTABLE, REPORTABLE_DETAILS, STATUSES
from timmgate.core.spec import Spec

CONTENTS = {
    **{"check": str, "stage": str, "columns": dict, "detail": dict},
    **{"result_so_far": dict, "result": dict, "failure": dict},
}
"""Type of each kind of message's content."""

RESULT = {"status", "cause", "message"}
"""What a result consists of."""


class ReportError(ValueError):
    """A worker reports what has no column, or what its column cannot hold: a mistake of ours, whatever the model is."""


@dataclass(frozen=True)
class Request:
    """What a worker is told: the checks of one cell, how to run them, and where to report.

    `timed_batch_size` is the images per batch of a check that shrinks, if not the spec's. `messages` is the file descriptor
    for messages, `paused` the one that tells how long the process was paused. `device_number` is which of several devices of
    the type is ours, where no environment variable hides the others. `turns` are the file descriptors to read turns from and
    to answer to, of what is timed side by side with another one (`timing_turns`).
    """

    specs: Sequence[Spec]
    run: RunOptions
    timed_batch_size: int | None = None
    messages: int = 1
    paused: int | None = None
    device_number: int | None = None
    turns: tuple[int, int] | None = None

    def to_json(self) -> str:
        """Canonical JSON."""
        values = {**vars(self), "specs": [spec.to_dict() for spec in self.specs], "run": self.run.to_dict()}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Request":
        """The inverse of `to_json`. Raises TypeError on an unknown field."""
        values = json.loads(text)
        specs, run = [Spec.from_dict(spec) for spec in values["specs"]], RunOptions.from_dict(values["run"])
        return cls(**{**values, "specs": specs, "run": run})

    @property
    def allocator(self) -> str | None:
        """The cell's, on a CPU."""
        return self.specs[0].allocator

    def batch_size(self, spec: Spec) -> int:
        """Images per batch of a check."""
        return (CHECKS[spec.check].shrinks and self.timed_batch_size) or spec.requested_batch_size

    def cache(self, spec: Spec) -> Path:
        """The compile cache of a check's program."""
        if self.run.shared_cache:
            return self.run.cache
        return self.run.cache / spec.program(self.batch_size(spec), self.run.threads)


class Reporter:
    """The worker's end of the pipe. Every message carries the seconds since the reporter was made, by `clock`.

    Methods raise ReportError for a name that no table has and for a value that its column cannot hold: there the mistake is.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.perf_counter):
        self._stream = stream
        self.clock = clock
        self._start = clock()
        self._check = ""

    def check(self, name: str) -> None:
        """The check `name` begins."""
        self._check = name
        self._send("check", name)

    def stage(self, name: str) -> None:
        """The stage `name` of the check begins."""
        self._send("stage", name)

    def columns(self, **columns: Any) -> None:
        """Values of columns that are known from here on, also if the process dies later."""
        _check_columns(columns, REPORTABLE[self._check], self._check)
        self._send("columns", columns)

    def detail(self, row: dict[str, Any]) -> None:
        """One row of the check's table of details."""
        self._check_detail(row)
        self._send("detail", row)

    def result_so_far(self, status: str, cause: str | None, message: str | None, details: Sequence[dict[str, Any]]) -> None:
        """The result, and the rows of the table of details, if time or memory does not suffice for the stage that began."""
        for row in details:
            self._check_detail(row)
        self._send("result_so_far", {"status": status, "cause": cause, "message": message, "details": details})

    def result(self, status: str, cause: str | None = None, message: str | None = None) -> None:
        """The status, a word of `schemas.STATUSES`: the check is complete."""
        self._send("result", {"status": status, "cause": cause, "message": message})

    def failure(self, cause: str, message: str, out_of_memory: bool, is_ours: bool = False) -> None:
        """An exception ended the measurement in the current stage; `is_ours` if this project raised it against itself."""
        content = {"cause": cause, "message": message, "out_of_memory": out_of_memory, "is_ours": is_ours}
        self._send("failure", content)

    def _check_detail(self, row: dict[str, Any]) -> None:
        table = CHECKS[self._check].details if self._check in CHECKS else self._check
        _check_columns(row, REPORTABLE_DETAILS[self._check], table)

    def _send(self, kind: str, content: Any) -> None:
        self._stream.write(json.dumps({kind: content, "elapsed_s": self.clock() - self._start}) + "\n")
        self._stream.flush()


def _check_columns(row: dict[str, Any], types: Mapping[str, str], table: str) -> None:
    for name, value in row.items():
        if name not in types:
            raise ReportError(f"{table} has no column {name}")
        if not fits(value, types[name]):
            raise ReportError(f"{table}: the column {name} of type {types[name]} cannot hold {value!r:.200}")


def parse(line: bytes) -> tuple[str, Any, float]:
    """Kind, content and `elapsed_s` of one line. Raises ValueError if it is none of these messages.

    Text that UTF-8 cannot hold, as in the name of a file of unknown encoding, gets question marks: tables are UTF-8.
    """
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    message = json.loads(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace"))
    elapsed_s = message.pop("elapsed_s", None)
    if len(message) != 1 or not isinstance(elapsed_s, float):
        raise ValueError("not one kind of message and elapsed_s")
    kind: str = next(iter(message))
    content: Any = message[kind]
    if kind not in CONTENTS or type(content) is not CONTENTS[kind]:
        raise ValueError(f"no such kind of message: {kind}")
    if kind == "result" and (set(content) != RESULT or content["status"] not in STATUSES):
        raise ValueError("not a status with its cause and message")
    if kind == "result_so_far" and (set(content) != {*RESULT, "details"} or content["status"] not in STATUSES):
        raise ValueError("not a status with its cause, message and details")
    if kind == "failure" and not {"cause", "message", "out_of_memory"} <= set(content):
        raise ValueError("not a failure with its cause and message")
    return kind, content, elapsed_s
