"""What worker and supervisor say to each other: JSON lines over a pipe, one message a line.

`{"check": name}` when a check begins, `{"stage": name}` when a stage of it does, `{"facts": {column: value}}` as soon as
they are known, `{"detail": {...}}` per line of the check's second table, and at last `{"result": {...}}` or
`{"failure": {...}}`. A process that has several checks to do goes on to the next one after a result.
"""

import json
import time
from collections.abc import Callable
from typing import Any, TextIO

CONTENTS = {"check": str, "stage": str, "facts": dict, "detail": dict, "result": dict, "failure": dict}
"""Type of each kind of message's content."""


class Reporter:
    """The worker's end of the pipe. Every message carries the seconds since the reporter was made, by `clock`."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.perf_counter):
        self._stream = stream
        self.clock = clock
        self._start = clock()

    def check(self, name: str) -> None:
        """The check `name` begins."""
        self._send("check", name)

    def stage(self, name: str) -> None:
        """The stage `name` of `rows.STAGES` begins."""
        self._send("stage", name)

    def facts(self, **columns: Any) -> None:
        """Values of columns that are known from here on, also if the process dies later."""
        self._send("facts", columns)

    def detail(self, line: dict[str, Any]) -> None:
        """One line of the check's table in `spec.CHECKS`."""
        self._send("detail", line)

    def result(self, status: str, cause: str | None = None, message: str | None = None) -> None:
        """The verdict, a word of `rows.STATUSES`: the check is complete."""
        self._send("result", {"status": status, "cause": cause, "message": message})

    def failure(self, cause: str, message: str, out_of_memory: bool) -> None:
        """An exception ended the measurement in the current stage."""
        self._send("failure", {"cause": cause, "message": message, "out_of_memory": out_of_memory})

    def _send(self, kind: str, content: Any) -> None:
        self._stream.write(json.dumps({kind: content, "elapsed_s": self.clock() - self._start}) + "\n")
        self._stream.flush()


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
    ((kind, content),) = message.items()
    if not isinstance(content, CONTENTS.get(kind, ())):
        raise ValueError(f"no such kind of message: {kind}")
    return kind, content, elapsed_s
