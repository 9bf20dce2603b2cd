"""Files that are complete or absent."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, fill: Callable[[Path], object]) -> None:
    """Call `fill` with a scratch path beside `path`, then move what it wrote into place.

    It is on the disk before it is in place: after a power failure the file is the new one, the old one or absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fill(scratch)
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, as `write_atomically` does."""
    write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def remove_scratch(folder: Path) -> None:
    """Remove what writers that were killed left in a folder in which nobody else writes now."""
    for path in folder.glob(".*.*.*"):
        if path.name.rsplit(".", 1)[1].isdigit():
            path.unlink(missing_ok=True)


def not_writable(folders: list[Path]) -> Path | None:
    """The first of these folders, or the nearest parent of one that there is not yet, in which no file can be made."""
    for folder in folders:
        existing = next(each for each in (folder, *folder.parents) if each.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            return existing
    return None


def with_home(text: str) -> str:
    """A path with the home folder in place of a ~ at its begin, as a shell has it: as it is, where there is no such user."""
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        return text
