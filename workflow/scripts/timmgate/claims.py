"""Who may use a device now: a few measurements beside each other, or one that is being timed while all others hold still.

Lock files in a folder of this machine, named by the UUID of a GPU, or by the type of any other device. The kernel takes a
lock back from a process that dies, whatever killed it.

* A device has slots: a GPU a few, a CPU its cores. A supervisor holds some of one device from before its worker starts, and
  so does the worker: they are free again when both are gone. Whoever waits for more than one of them shuts the `door`, so
  that nobody else takes any. Slots are taken at a `desk`, one supervisor at a time.
* A measurement that is being timed holds `turn` and then `busy`, alone. The supervisor of every other one shares `busy` with
  its like while its processes run, and looks at `turn` to see whether it has to hold them still.
* A process that even SIGKILL does not end keeps its slots. They are in the list `stuck`, so that nobody waits for them.
"""

import fcntl
import os
import random
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from timmgate.processes import start_ticks

POLL_S = 0.2
"""Mean time between two looks for what is taken: short against the seconds of a measurement, long against a look."""


class StuckError(RuntimeError):
    """What is wanted is held by a process that cannot be killed."""


@dataclass(frozen=True)
class Wanted:
    """What a supervisor asks for: `count` of the slots with these numbers, of one of the `devices`.

    Those who share a device must agree on its slots. Of two that are free the one that comes first in `slots` is taken.
    """

    devices: tuple[str, ...]
    slots: tuple[int, ...]
    count: int = 1


class Claim:
    """Slots of a device, for as long as the claim is not closed or any process that inherited `filenos` lives.

    Made behind the `door`, which opens as soon as there are enough.
    """

    def __init__(self, device: str, wanted: Wanted, door: BinaryIO):
        self.device, self._wanted, self._door = device, wanted, door
        self._files: dict[int, BinaryIO] = {}
        self._in_use = False

    @property
    def slots(self) -> list[int]:
        """The numbers of the slots."""
        return sorted(self._files)

    @property
    def filenos(self) -> list[int]:
        """File descriptors that the worker has to inherit."""
        return [file.fileno() for file in self._files.values()]

    @property
    def is_complete(self) -> bool:
        """Whether it has as many slots as are wanted."""
        return len(self._files) == self._wanted.count

    def take(self) -> None:
        """Take what is free, as far as it is missing."""
        for slot in self._others():
            if not self.is_complete and (file := _locked(self.device, _slot(slot))):
                os.utime(file.fileno())  # tells the holders of other slots when we came
                self._files[slot] = file
        if self.is_complete:
            self._in_use = any(_is_locked(self.device, _slot(slot)) for slot in self._others())
            self._door.close()

    def had_neighbours(self) -> bool:
        """Whether somebody else had a slot of the device at any time since we have ours."""
        since_ns = max(os.fstat(number).st_mtime_ns for number in self.filenos)
        return self._in_use or any(_last_taken_ns(self.device, _slot(slot)) >= since_ns for slot in self._others())

    def _others(self) -> list[int]:
        return [slot for slot in self._wanted.slots if slot not in self._files]

    def give_up(self, pids: Iterable[int]) -> None:
        """Let everybody know that these processes, which inherited the claim, cannot be killed."""
        for pid in pids:
            with _lock_file(self.device, "stuck") as file:
                file.write(f"{pid} {start_ticks(pid)} {' '.join(map(str, self.slots))}\n".encode())

    def close(self) -> None:
        """Give the slots back, unless a process that inherited `filenos` lives."""
        for file in (*self._files.values(), self._door):
            file.close()


def claim(wanted: Wanted) -> Claim:
    """Wait until what is wanted can be had: on the emptiest device, so that a GPU is shared only when all are in use.

    Raises StuckError if it never can, because processes that cannot be killed hold too much of every device.
    """
    while (made := _at_the_desk(wanted)) is None:
        _pause()
    try:
        while not made.is_complete:
            if _lacks_slots(wanted, made.device):
                raise StuckError(stuck_message([made.device]))
            _pause()
            made.take()
    except BaseException:
        made.close()
        raise
    return made


def _at_the_desk(wanted: Wanted) -> Claim | None:
    """A claim that has its slots, or that has the door behind which to wait for them; None if neither can be had now."""
    if not (desk := _locked("all", "desk")):
        return None
    with desk:
        devices = [device for device in wanted.devices if not _lacks_slots(wanted, device)]
        if not devices:
            raise StuckError(stuck_message(wanted.devices))
        free = {
            device: sum(not _is_locked(device, _slot(slot)) for slot in wanted.slots)
            for device in devices
            if not _is_locked(device, "door")
        }
        device = max(free, key=free.get, default=None)
        if device is None or (wanted.count == 1 and not free[device]):
            return None
        if not (door := _locked(device, "door")):
            return None
        made = Claim(device, wanted, door)
        made.take()
        return made


def _lacks_slots(wanted: Wanted, device: str) -> bool:
    """Whether too few slots are left by what cannot be killed."""
    lost = {slot for slots in stuck(device).values() for slot in slots}
    return len(set(wanted.slots) - lost) < wanted.count


def stuck(device: str) -> dict[int, list[int]]:
    """Processes that could not be killed and still live, and the slots of the device that they hold."""
    try:
        lines = [line.split() for line in _path(device, "stuck").read_text().splitlines()]
    except FileNotFoundError:
        return {}
    return {int(pid): list(map(int, slots)) for pid, started, *slots in lines if start_ticks(int(pid)) == started}


def stuck_message(devices: Iterable[str]) -> str:
    """Who holds what, and what is to be done about it."""
    held = [f"process {', '.join(map(str, stuck(device)))} cannot be killed and holds {device}" for device in devices]
    return f"{'; '.join(held)}; reset the device, or start the machine again"


def _slot(number: int) -> str:
    return f"slot{number}"


def _last_taken_ns(device: str, name: str) -> int:
    with _lock_file(device, name) as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _pause() -> None:
    time.sleep(random.uniform(0.5, 1.5) * POLL_S)  # at random, lest two that wait keep getting in each other's way


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
        self.device = device
        self._turn, self._busy = _lock_file(device, "turn"), _lock_file(device, "busy")

    def fileno(self) -> int:
        """File descriptor of the share."""
        return self._busy.fileno()

    def may_run(self) -> bool:
        """Whether our processes may run; if so we have the share. If not, hold them still and then release it.

        Where something cannot be killed nothing is timed, and we need no share.
        """
        if _try(self._turn, fcntl.LOCK_SH):
            fcntl.flock(self._turn, fcntl.LOCK_UN)
            if _try(self._busy, fcntl.LOCK_SH):
                return True
        return bool(stuck(self.device))

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


def _path(device: str, name: str) -> Path:
    return folder() / f"{quote(device, safe='')}.{name}"


def _lock_file(device: str, name: str) -> BinaryIO:
    folder().mkdir(mode=0o700, exist_ok=True)
    return _path(device, name).open("ab")


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
