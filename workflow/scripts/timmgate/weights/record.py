"""Where a model's weights lie, or why there are none: the JSON file that the rule `weights` leaves for every model.

Imports no torch and no timm. How weights are had is in the modules of `SOURCES`.
"""

import hashlib
import json
import time
import traceback
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from timmgate.core import files
from timmgate.core.outcome import Verdict

STAGE = "weights"
"""The stage that a measurement without weights ends in."""


SOURCES = {"pretrained": "timmgate.weights.hub", "packaged": "timmgate.weights.packaged"}
"""Modules with the function `fetch`, by the words of the key `weights`."""


class NoWeightsError(Exception):
    """The weights of a model cannot be had. The message is a sentence; `cause` is None where the class says enough."""

    def __init__(self, message: str, cause: str | None = None, attempts: int = 1):
        super().__init__(message)
        self.cause, self.attempts = cause, attempts


class WeightsFile(NamedTuple):
    """A state dict in a file, its SHA-256, where it came from, and how many attempts it took."""

    file: Path
    sha256: str
    origin: str
    attempts: int = 1


@dataclass(frozen=True)
class Weights:
    """What is known of one model's weights; `error` is cause and message where they could not be had.

    `retry` is how often they had been requested again (`tables.retries`), None if nobody knows.
    """

    model: str
    source: str
    file: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    origin: str | None = None
    attempts: int = 1
    seconds: float = 0.0
    error: dict[str, str] | None = None
    retry: int | None = 0

    @property
    def path(self) -> Path | None:
        """The file, if there is one."""
        return Path(self.file) if self.file else None

    def failure(self) -> Verdict | None:
        """Why a measurement cannot start with these weights, or None if it can."""
        if self.error:
            return Verdict("model_fail_to_load", self.error["cause"], self.error["message"])
        remedy = "retry=failed makes or fetches them again"
        path = self.path
        if path is None or not path.is_file():
            return Verdict("model_fail_to_load", "FileNotFoundError", f"the weights {self.file} are gone; {remedy}")
        if digest(path) != self.sha256:
            return Verdict("model_fail_to_load", "checksum", f"the weights {self.file} have changed; {remedy}")
        return None


def obtain(model: str, source: str, folder: Path, retry: int = 0) -> Weights:
    """Find, fetch or make the weights of a model; `folder` is for what is made. Never raises: the error is in the result."""
    start, weights = time.perf_counter(), Weights(model, source, retry=retry)
    try:
        found = import_module(SOURCES[source]).fetch(model, folder)
        size = found.file.stat().st_size
        weights = replace(weights, **{**found._asdict(), "file": str(found.file.absolute()), "bytes": size})
    except Exception as error:
        traceback.print_exc()
        cause = getattr(error, "cause", None) or type(error).__name__
        weights = replace(weights, attempts=getattr(error, "attempts", 1), error={"cause": cause, "message": str(error)})
    return replace(weights, seconds=time.perf_counter() - start)


def read(path: Path) -> Weights:
    """The inverse of `write`. A file that is damaged tells of no weights, and why."""
    try:
        return Weights(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        message = f"{path} is damaged ({error}); retry=failed makes it again"
        return Weights(path.stem, path.parent.name, error={"cause": "damaged file", "message": message}, retry=None)


def write(weights: Weights, path: Path) -> None:
    """Write the JSON file, all or nothing."""
    text = json.dumps(asdict(weights), indent=2) + "\n"
    files.write_text(path, text)


def read_optional(path: Path | None) -> Weights | None:
    """What the JSON file says; None where there is none, for random weights."""
    return read(path) if path else None


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
