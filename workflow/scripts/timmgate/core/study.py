"""What a worker is told that studies one model in one mode with many runs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec

TIMEOUTS = 20
"""Of the time limit of a check, how often a study of one model may take it: it has many runs."""


@dataclass(frozen=True)
class StudyRequest:
    """`module` is one of the worker, whose function `study(spec, run, device_number, **options)` returns rows.

    They go into the file `answer`, as a list of JSON objects. `device_number` is as in `protocol.Request`.
    """

    module: str
    spec: Spec
    run: RunOptions
    answer: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    device_number: int | None = None

    def to_json(self) -> str:
        """Canonical JSON."""
        about = {"spec": self.spec.to_dict(), "run": self.run.to_dict(), "answer": str(self.answer)}
        return json.dumps({**vars(self), **about}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "StudyRequest":
        """The inverse of `to_json`. Raises TypeError on an unknown field."""
        values = json.loads(text)
        spec, run = Spec.from_dict(values["spec"]), RunOptions.from_dict(values["run"])
        return cls(**{**values, "spec": spec, "run": run, "answer": Path(values["answer"])})
