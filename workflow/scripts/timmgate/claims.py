"""Who may use a device now: a few measurements beside each other, or one that is being timed while all others hold still.

Lock files in a folder of this machine, named by the UUID of a GPU, or by the type of any other device. The kernel takes a
lock back from a process that dies, whatever killed it.

* A GPU has some slots. A supervisor holds one from before its worker starts, and so does the worker: a slot is free again
  when both are gone. Whoever waits for all slots shuts the GPU's `door`, so that no slot is taken any more. Slots are taken
  at a `desk`, one supervisor at a time. A CPU has no slots.
* A measurement that is being timed holds `turn` and then `busy`, alone. The supervisor of every other one shares `busy` with
  its like while its processes run, and looks at `turn` to see whether it has to hold them still.
"""

import fcntl
import os
import random
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import quote

POLL_S = 0.2
"""Mean time between two looks for what is taken: short against the seconds of a measurement, long against a look."""

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """What a supervisor asks for: one of the `slots` of one of the `devices`, or with `whole` all of that device's slots.

    Without slots (None) any number of measurements may use the first device. Those who share a GPU must agree on its slots.
    """

    devices: tuple[str, ...]
    slots: int | None = None
    whole: bool = False


class Claim:
    """A device, for as long as it is not closed or any process that inherited `filenos` lives.

    `files` are the locks that make the claim, `others` the slots that it leaves to others, `in_use` whether they have one.
    """

    def __init__(self, device: str, files: Sequence[BinaryIO] = (), others: Sequence[str] = (), in_use: bool = False):
        self.device, self._files, self._others, self._in_use = device, list(files), others, in_use
        for file in files:
            os.utime(file.fileno())  # tells the holders of other slots when we came

    @property
    def filenos(self) -> list[int]:
        """File descriptors that the worker has to inherit."""
        return [file.fileno() for file in self._files]

    def extend(self, names: Sequence[str]) -> None:
        """Wait for further locks of the device and add them to the claim."""
        self._files += [_patiently(lambda name=name: _locked(self.device, name)) for name in names]

    def had_neighbours(self) -> bool:
        """Whether somebody else had a slot of the device at any time since we have ours."""
        since_ns = max((os.fstat(number).st_mtime_ns for number in self.filenos), default=0)
        return self._in_use or any(_last_taken_ns(self.device, name) >= since_ns for name in self._others)

    def close(self) -> None:
        """Give the device back, unless a process that inherited `filenos` lives."""
        for file in self._files:
            file.close()


def claim(wanted: Wanted) -> Claim:
    """Wait until what is wanted can be had: on the emptiest device, so that a GPU is shared only when all are in use."""
    if wanted.slots is None:
        return Claim(wanted.devices[0])
    made = _patiently(lambda: _at_the_desk(wanted))
    if wanted.whole:
        made.extend(_slots(wanted))
    return made


def _at_the_desk(wanted: Wanted) -> Claim | None:
    """A claim to a slot, or to the door behind which to wait for all slots; None if that cannot be had now."""
    if not (desk := _locked("all", "desk")):
        return None
    with desk:
        free = {
            device: [name for name in _slots(wanted) if not _is_locked(device, name)]
            for device in wanted.devices
            if not _is_locked(device, "door")
        }
        device = max(free, key=lambda each: len(free[each]), default=None)
        if device is None:
            return None
        name = "door" if wanted.whole else next(iter(free[device]), None)
        file = name and _locked(device, name)
        if not file:
            return None
        others = [] if wanted.whole else [slot for slot in _slots(wanted) if slot != name]
        return Claim(device, [file], others, in_use=bool(set(others) - set(free[device])))


def _slots(wanted: Wanted) -> list[str]:
    return [f"slot{number}" for number in range(wanted.slots)]


def _last_taken_ns(device: str, name: str) -> int:
    with _lock_file(device, name) as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _patiently(attempt: Callable[[], T | None]) -> T:
    while (got := attempt()) is None:
        time.sleep(random.uniform(0.5, 1.5) * POLL_S)  # at random, lest two that wait keep getting in each other's way
    return got


@contextmanager
def quiet(device: str) -> Iterator[None]:
    """The device alone: wait for our turn, then until every other measurement is held still."""
    with _lock_file(device, "turn") as turn, _lock_file(device, "busy") as busy:
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(busy, fcntl.LOCK_EX)
        yield


class Share:
    """A supervisor's share in a device. Its worker has to inherit `fileno`, lest another is timed while it still dies."""

    def __init__(self, device: str):
        self._turn, self._busy = _lock_file(device, "turn"), _lock_file(device, "busy")

    def fileno(self) -> int:
        """File descriptor of the share."""
        return self._busy.fileno()

    def may_run(self) -> bool:
        """Whether our processes may run; if so we have the share. If not, hold them still and then release it."""
        if not _try(self._turn, fcntl.LOCK_SH):
            return False
        fcntl.flock(self._turn, fcntl.LOCK_UN)
        return _try(self._busy, fcntl.LOCK_SH)

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
    """Where the lock files of this machine and user are: TIMMGATE_LOCKS, or a folder in that of temporary files."""
    return Path(os.environ.get("TIMMGATE_LOCKS") or Path(tempfile.gettempdir(), f"timmgate-{os.getuid()}"))


def _lock_file(device: str, name: str) -> BinaryIO:
    folder().mkdir(mode=0o700, exist_ok=True)
    return (folder() / f"{quote(device, safe='')}.{name}").open("ab")


def _locked(device: str, name: str) -> BinaryIO | None:
    """The lock file, locked for us alone, or None if somebody else has it."""
    file = _lock_file(device, name)
    if _try(file, fcntl.LOCK_EX):
        return file
    file.close()
    return None


def _is_locked(device: str, name: str) -> bool:
    file = _locked(device, name)
    if file:
        file.close()
    return file is None


def _try(file: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
