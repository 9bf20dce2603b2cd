"""What the workflow asks an environment before it measures in it, and what that answers. Both are JSON objects."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from timmgate.core.spec import Mode


@dataclass(frozen=True, kw_only=True)
class Question:
    """Device type, the modes by name, the names of models that somebody typed, and where the toolchain goes.

    `software` is the digest of the build (`config.builds.Build.software`), `answer` the file for the answer.
    """

    device: str
    modes: Mapping[str, Mode]
    models: Sequence[str]
    software: str
    answer: Path
    toolchain: Path | None = None

    def to_json(self) -> str:
        """Canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, default=str)

    @classmethod
    def from_json(cls, text: str) -> "Question":
        """The inverse of `to_json`. Raises TypeError on an unknown field."""
        values = json.loads(text)
        modes = {name: Mode(**options) for name, options in values["modes"].items()}
        paths = {name: values[name] and Path(values[name]) for name in ("answer", "toolchain")}
        return cls(**{**values, **paths, "modes": modes})


@dataclass(frozen=True)
class Answer:
    """What is wrong, one sentence each: none if cells can be measured. And what is known of the device."""

    problems: Sequence[str] = field(default_factory=list)
    device_name: str | None = None
    driver: str | None = None

    def to_json(self) -> str:
        """JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Answer":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))
