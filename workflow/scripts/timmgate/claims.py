"""Who may use a device now: a few measurements beside each other, or one that is being timed while all others hold still.

Lock files in a folder of this machine, named by the UUID of a GPU, or by the type of any other device. The kernel takes a
lock back from a process that dies, whatever killed it.

* A device has slots: a GPU a few, a CPU its cores. A supervisor holds some of one device from before its worker starts, and
  so does the worker: they are free again when both are gone. Whoever waits for more than one of them shuts the `door`, so
  that nobody else takes any. Slots are taken at a `desk`, one supervisor at a time.
* A measurement that is being timed holds `turn` and then `busy`, alone. The supervisor of every other one shares `busy` with
  its like while its processes run, and looks at `turn` to see whether it has to hold them still.
* A process that even SIGKILL does not end keeps its locks. They are in the list `stuck`, so that nobody waits for them.
"""

import fcntl
import os
import random
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

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

    def close(self) -> None:
        """Give the slots back, unless a process that inherited `filenos` lives."""
        for file in (*self._files.values(), self._door):
            file.close()


def claim(wanted: Wanted) -> Claim:
    """Wait until what is wanted can be had: on the emptiest device, so that a GPU is shared only when all are in use.

    Raises StuckError if it never can, because processes that cannot be killed hold too much of every device.
    """
    while not (made := _at_the_desk(wanted)) or not _completed(made, wanted):
        _pause()
    return made


def _completed(made: Claim, wanted: Wanted) -> bool:
    """Wait behind the door for what is missing; whether that came. If not, the claim is closed."""
    try:
        while not made.is_complete and not _lacks_slots(wanted, made.device):
            _pause()
            made.take()
    finally:
        if not made.is_complete:
            made.close()
    return made.is_complete


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
    return len({_slot(slot) for slot in wanted.slots} - stuck(device).keys()) < wanted.count


def give_up(pids: Iterable[int]) -> None:
    """Let everybody know which locks these processes hold, which cannot be killed. Linux only; elsewhere it does nothing."""
    for pid in pids:
        for device, names in _locks_of(pid).items():
            with _lock_file(device, "stuck") as file:
                file.write(f"{pid} {start_ticks(pid)} {' '.join(names)}\n".encode())


def _locks_of(pid: int) -> dict[str, list[str]]:
    """By device, the names of the lock files that a process has open, and so holds if it got them from its supervisor."""
    names: dict[str, list[str]] = {}
    ours = folder().resolve()
    for link in Path(f"/proc/{pid}/fd").glob("*"):  # none if it has ended after all
        with suppress(OSError):  # it has just been closed
            path = link.readlink()
            if path.parent == ours:
                device, _, name = path.name.rpartition(".")
                names.setdefault(unquote(device), []).append(name)
    return names


def stuck(device: str) -> dict[str, int]:
    """Names of the locks of a device that are held by processes which could not be killed and still live, and these."""
    try:
        lines = [line.split(" ") for line in _path(device, "stuck").read_text().split("\n")[:-1]]
    except FileNotFoundError:
        return {}
    return {name: int(pid) for pid, started, *names in lines if start_ticks(int(pid)) == started for name in names}


def stuck_message(devices: Iterable[str]) -> str:
    """Who holds what, and what is to be done about it."""
    pids = {device: ", ".join(map(str, sorted(set(stuck(device).values())))) for device in devices}
    held = "; ".join(f"process {those} cannot be killed and holds {device}" for device, those in pids.items())
    return f"{held}; reset the device, or start the machine again"


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

        Where what cannot be killed keeps others from the device, nothing is timed, and we need no share.
        """
        if _try(self._turn, fcntl.LOCK_SH):
            fcntl.flock(self._turn, fcntl.LOCK_UN)
            if _try(self._busy, fcntl.LOCK_SH):
                return True
        return self.is_stuck()

    def is_stuck(self) -> bool:
        """Whether nobody can have the device alone, because of what cannot be killed."""
        return bool(stuck(self.device).keys() & {"turn", "busy"})

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
    """Where the lock files of this machine and user are: TIMMGATE_LOCKS, or a folder in /tmp.

    Not in TMPDIR, which on many clusters is another folder for each job.
    """
    return Path(os.environ.get("TIMMGATE_LOCKS") or f"/tmp/timmgate-{os.getuid()}")


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
