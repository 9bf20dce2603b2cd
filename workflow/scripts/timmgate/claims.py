"""Who may use a device now: many measurements beside each other, or one that is being timed while all others hold still.

Two lock files a device, in a folder of this machine. A measurement that is being timed holds `turn` and then `busy`, alone.
The supervisor of every other one shares `busy` with its like while its processes run, and looks at `turn` to see whether
it has to hold them still. The kernel takes a lock back from a process that dies, whatever killed it.
"""

import fcntl
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def quiet(device: str) -> Iterator[None]:
    """The device alone: wait for our turn, then until every other measurement is held still."""
    with _lock_file(device, "turn") as turn, _lock_file(device, "busy") as busy:
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(busy, fcntl.LOCK_EX)
        yield


class Share:
    """A supervisor's share in a device."""

    def __init__(self, device: str):
        self._turn, self._busy = _lock_file(device, "turn"), _lock_file(device, "busy")

    def may_run(self) -> bool:
        """Whether our processes may run; if so we have the share. If not, hold them still and then release it."""
        if not _try(self._turn):
            return False
        fcntl.flock(self._turn, fcntl.LOCK_UN)
        return _try(self._busy)

    def release(self) -> None:
        """Give the share back, so that another measurement can be timed; `may_run` takes it again."""
        fcntl.flock(self._busy, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the share back for good."""
        self._turn.close()
        self._busy.close()


class HeldTime:
    """Seconds that a supervisor has held its worker still, in a file that both have open."""

    def __init__(self, file: BinaryIO | int):
        self._file = file if isinstance(file, int) else file.fileno()

    @property
    def seconds(self) -> float:
        """The sum until now."""
        return struct.unpack("d", os.pread(self._file, 8, 0) or bytes(8))[0]

    def add(self, seconds: float) -> None:
        """Add one pause to the sum."""
        os.pwrite(self._file, struct.pack("d", self.seconds + seconds), 0)

    def clock(self) -> float:
        """time.perf_counter(), but standing still while this process is held still."""
        return time.perf_counter() - self.seconds


def folder() -> Path:
    """Where the lock files of this machine and user are."""
    return Path(tempfile.gettempdir(), f"timmgate-{os.getuid()}")


def _lock_file(device: str, name: str) -> BinaryIO:
    folder().mkdir(mode=0o700, exist_ok=True)
    return (folder() / f"{device}.{name}").open("ab")


def _try(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
