"""Locks that the processes of a machine and user share: files that the kernel locks (flock) until their holder dies."""

import fcntl
import os
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote


def folder() -> Path:
    """Where the lock files of this machine and user are: TIMMGATE_LOCKS, or a folder in /tmp.

    Not in TMPDIR, which on many clusters is another folder for each job.
    """
    return Path(os.environ.get("TIMMGATE_LOCKS") or f"/tmp/timmgate-{os.getuid()}")


def path_of(device: str, name: str) -> Path:
    """The file of a device's lock."""
    return folder() / f"{quote(device, safe='')}.{name}"


def lock_file(device: str, name: str) -> BinaryIO:
    """The file of a device's lock, open and not locked."""
    folder().mkdir(mode=0o700, exist_ok=True)
    return path_of(device, name).open("ab")


def locked(device: str, name: str) -> BinaryIO | None:
    """The lock file, locked for us alone, or None if somebody else has it."""
    file = lock_file(device, name)
    if try_lock(file, fcntl.LOCK_EX):
        return file
    file.close()
    return None


def is_locked(device: str, name: str) -> bool:
    """Whether somebody has the lock."""
    file = locked(device, name)
    if file:
        file.close()
    return file is None


def try_lock(file: BinaryIO, kind: int) -> bool:
    """Lock an open file if nobody stands in the way (`kind` is fcntl.LOCK_EX or LOCK_SH); whether it is locked."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
