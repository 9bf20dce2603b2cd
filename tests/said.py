"""What a worker says in this process: its messages, taken apart."""

import io
import json
from collections.abc import Callable
from typing import Any

from timmgate.core.protocol import Reporter


class Said:
    """Stages in order, columns, details, and the result; what was said is there also after an exception."""

    def __init__(self, check: str = "accuracy"):
        self._stream = io.StringIO()
        self.reporter = Reporter(self._stream)
        self.reporter.check(check)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]

    def _contents(self, kind: str) -> list[Any]:
        return [message[kind] for message in self.messages if kind in message]

    @property
    def stages(self) -> list[str]:
        return self._contents("stage")

    @property
    def columns(self) -> dict[str, Any]:
        return {name: value for content in self._contents("columns") for name, value in content.items()}

    @property
    def details(self) -> list[dict[str, Any]]:
        return self._contents("detail")

    @property
    def result(self) -> dict[str, Any] | None:
        return next(iter(self._contents("result")), None)


def listen(check: str, act: Callable[[Reporter], object]) -> Said:
    """What is said while `act` reports."""
    said = Said(check)
    act(said.reporter)
    return said
