"""What worker and supervisor say to each other: JSON lines over a pipe, one message a line.

`{"stage": name}` when a stage begins, `{"facts": {column: value}}` as soon as they are known, `{"evidence": {...}}` per
compared tensor, and at last `{"result": {...}}` or `{"failure": {...}}`.
"""

import json
import time
from typing import Any, TextIO

CONTENTS = {"stage": str, "facts": dict, "evidence": dict, "result": dict, "failure": dict}
"""Type of each kind of message's content."""


class Reporter:
    """The worker's end of the pipe. Every message carries the seconds since the reporter was made."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._start = time.perf_counter()

    def stage(self, name: str) -> None:
        """The stage `name` of `rows.STAGES` begins."""
        self._send("stage", name)

    def facts(self, **columns: Any) -> None:
        """Values of columns that are known from here on, also if the process dies later."""
        self._send("facts", columns)

    def evidence(self, leaf: dict[str, Any]) -> None:
        """One compared tensor, as a row of the evidence table."""
        self._send("evidence", leaf)

    def result(self, status: str, cause: str | None = None, message: str | None = None) -> None:
        """The verdict, a word of `rows.STATUSES`: the measurement is complete."""
        self._send("result", {"status": status, "cause": cause, "message": message})

    def failure(self, cause: str, message: str, out_of_memory: bool) -> None:
        """An exception ended the measurement in the current stage."""
        self._send("failure", {"cause": cause, "message": message, "out_of_memory": out_of_memory})

    def _send(self, kind: str, content: Any) -> None:
        self._stream.write(json.dumps({kind: content, "elapsed_s": time.perf_counter() - self._start}) + "\n")
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
