"""Where the history lies, and what may be wrong with that. Runs in every job: imports nothing heavy."""

import os
from importlib.util import find_spec
from pathlib import Path

from timmgate.core.errors import ConfigError
from timmgate.core.spec import PROTOCOL

PREFIX = "protocol="

MAGIC = b"PAR1"
"""What a Parquet file begins and ends with."""


def folder(root: Path, month: str) -> Path:
    """Where entries of today's protocol lie that started in a month, as 2026-11."""
    return root / f"{PREFIX}{PROTOCOL}" / f"month={month}"


def files(root: Path) -> list[Path]:
    """The files with entries of today's protocol, those of the first runs first."""
    return sorted((root / f"{PREFIX}{PROTOCOL}").glob("month=*/*.parquet"))


def refuse(root: Path) -> None:
    """Raise ConfigError if this cannot be the folder of a history, or has entries of a protocol that is not known here, or a
    file that is cut off: what was measured could not be added, and would be missing from the history.
    """
    if root.exists() and not root.is_dir():
        raise ConfigError(f"history_path: {str(root)!r} is a file; it must be a folder, or the name of a new one")
    numbers = [path.name.removeprefix(PREFIX) for path in root.glob(f"{PREFIX}*")]
    newest = max((int(number) for number in numbers if number.isdecimal()), default=0)
    if newest > PROTOCOL:
        raise ConfigError(
            f"history_path: {str(root)!r} has entries of protocol {newest}, but this workflow measures by protocol "
            f"{PROTOCOL}; use a newer workflow, or another folder"
        )
    for file in files(root):
        if not _is_whole(file):
            raise ConfigError(
                f"history_path: {str(file)!r} is no whole Parquet file, as after a copy that broke off; copy it again, or "
                "move it out of the history, which goes on without that run"
            )


def _is_whole(file: Path) -> bool:
    with file.open("rb") as stream:
        begins = stream.read(len(MAGIC)) == MAGIC
        stream.seek(-min(len(MAGIC), file.stat().st_size), os.SEEK_END)
        return begins and stream.read() == MAGIC


def to_ask(path: str | None) -> Path:
    """The folder of a history that can be asked what changed. Raises ConfigError."""
    if path is None:
        raise ConfigError("history: there is none without the key history_path; set it to a folder, and measure")
    if not files(Path(path)):
        raise ConfigError(f"history_path: {path!r} has no entries yet; runs that measure something add them")
    if not find_spec("ruptures"):
        raise ConfigError("history needs the package ruptures: pip install -c requirements.lock -e '.[history]'")
    return Path(path)
