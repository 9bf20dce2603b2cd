"""What the workflow asks an environment before it measures in it, and what that answers. Both are JSON objects."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from timmgate.core.spec import Mode


@dataclass(frozen=True, kw_only=True)
class Question:
    """Device type, the modes by name, the names of models that somebody typed, and where the toolchain goes.

    `software` is the digest of the build (`config.builds.Build.software`) and `imports` what it imports first, `answer` the
    file for the answer. `may_lack_models` says that other builds are asked too, so that this one may lack a model.
    `packages` are those of data that its worker reads, `threads` how many compilers may run at once.
    """

    device: str
    modes: Mapping[str, Mode]
    models: Sequence[str]
    software: str
    answer: Path
    toolchain: Path | None = None
    imports: Sequence[str] = ()
    may_lack_models: bool = False
    packages: Sequence[str] = ()
    threads: int = 1

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
    """What is wrong, one sentence each: none if cells can be measured. And what is known of the device.

    `unknown_models` are those of the question that this timm lacks, each with a sentence, if it may lack any. `devices` is
    how many there are of the type.
    """

    problems: Sequence[str] = field(default_factory=list)
    unknown_models: Mapping[str, str] = field(default_factory=dict)
    devices: int = 1

    def to_json(self) -> str:
        """JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Answer":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))
