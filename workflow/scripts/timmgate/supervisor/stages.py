"""What each supervisor is doing, in a small file that it keeps renewing, for whoever watches the run.

The files lie in the working directory, so that they are seen across the machines of a cluster. To lose one costs nothing.
"""

import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from timmgate.core.spec import Cell, CellKey

FOLDER = Path(".cache", "stages")

SUFFIX = ".json"

WAITING = "waiting"
"""The stage of a cell that waits for a core or a slot of a GPU; all others are its worker's."""


@dataclass(frozen=True)
class Stage:
    """The stage that a check is in, whether its worker is paused because another cell is being timed, and since when."""

    check: str
    stage: str
    is_paused: bool = False
    since_s: float = 0.0


class StageFile:
    """The file of one cell, from its supervisor's point of view."""

    def __init__(self, path: Path):
        self._path = path
        self._told: tuple[str, str, bool] | None = None

    def tell(self, check: str, stage: str | None, is_paused: bool = False) -> None:
        """Let everybody know, if it has changed. `stage` is None where nobody knows it."""
        now = check, stage or "", is_paused
        if now != self._told:
            self._told = now
            self._write(json.dumps(asdict(Stage(*now, since_s=time.time()))))

    def _write(self, text: str) -> None:
        """As a whole or not at all; not synced, as it is worth nothing after a power failure."""
        scratch = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(self._path)

    def close(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def path_of(cell: CellKey) -> Path:
    """Where the file of a cell is, relative to the working directory."""
    *folders, model = cell
    return FOLDER.joinpath(*folders, f"{model}{SUFFIX}")


def of_cell(cell: Cell) -> StageFile:
    """The file of a cell, to write it."""
    return StageFile(path_of(cell.key))


def read(path: Path) -> Stage | None:
    """What a supervisor is doing; None if it has not said so yet, or is done."""
    try:
        return Stage(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def under_way(device: str) -> set[CellKey]:
    """The cells of a device that are being measured, as far as their supervisors say so; also of one that was killed."""
    found = set()
    for path in (FOLDER / device).glob(f"*/*/*{SUFFIX}"):
        build, mode, name = path.relative_to(FOLDER / device).parts
        found.add((device, build, mode, name.removesuffix(SUFFIX)))
    return found


def forget(device: str) -> None:
    """Remove what supervisors that were killed have left."""
    shutil.rmtree(FOLDER / device, ignore_errors=True)
