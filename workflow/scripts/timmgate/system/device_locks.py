"""Which measurements may use a device: slots that a few of them hold beside each other.

Lock files in a folder of this machine, named by the UUID of a GPU, or by the type of any other device. The kernel takes a
lock back from a process that dies, whatever killed it.

* A device has slots: a GPU a few, a CPU its cores. A supervisor holds some of one device from before its worker starts, and
  so does the worker: they are free again when both are gone. A supervisor that waits for more than one of them holds the
  device's reservation lock, so that nobody else takes any. Slots are taken under the allocation lock, one supervisor at a
  time.
* A process that even SIGKILL does not end, because it hangs in a driver, keeps its locks. They are in the list `stuck`: else
  every other cell of the device would wait for them for ever.
"""

import math
import os
import random
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from timmgate.system.lock_files import folder, is_locked, lock_file, locked, path_of
from timmgate.system.process_tree import PROC, described, run_of, start_ticks

POLL_S = 0.2
"""Mean time between two looks for what is taken: short against the seconds of a measurement, long against a look."""


TELL_AFTER_S = 300.0
"""Seconds of a wait after which it is told what it is for: longer than most cells take. A choice."""


class StuckError(RuntimeError):
    """What is requested is held by a process that cannot be killed."""


@dataclass(frozen=True)
class SlotRequest:
    """What a supervisor asks for: `count` of the slots with these numbers, of one of the `devices`.

    Those who share a device must agree on its slots. Of two that are free the one that comes first in `slots` is taken.
    `cores` are those that belong to each device, in the same order, where the devices are parts of a CPU.
    """

    devices: tuple[str, ...]
    slots: tuple[int, ...]
    count: int = 1
    cores: tuple[tuple[int, ...], ...] = ()

    def of(self, *devices: str) -> "SlotRequest":
        """The same of these of its devices alone."""
        numbers = [number for number, device in enumerate(self.devices) if device in devices]
        cores = tuple(self.cores[number] for number in numbers) if self.cores else ()
        return replace(self, devices=tuple(self.devices[number] for number in numbers), cores=cores)

    def without(self, device: str) -> "SlotRequest":
        """The same of all its devices but this one."""
        return self.of(*(each for each in self.devices if each != device))


class SlotLease:
    """Slots of a device, for as long as the lease is not closed or any process that inherited `filenos` lives.

    Made under the reservation lock, which is given back as soon as there are enough.
    """

    def __init__(self, device: str, request: SlotRequest, reservation: BinaryIO):
        self.device, self._request, self._reservation = device, request, reservation
        self._files: dict[int, BinaryIO] = {}
        self._in_use = False

    @property
    def slots(self) -> list[int]:
        """The numbers of the slots."""
        return sorted(self._files)

    @property
    def cores(self) -> tuple[int, ...] | None:
        """The cores that belong to the device; None if all do."""
        return dict(zip(self._request.devices, self._request.cores, strict=False)).get(self.device)

    @property
    def filenos(self) -> list[int]:
        """File descriptors that the worker has to inherit."""
        return [file.fileno() for file in self._files.values()]

    @property
    def is_complete(self) -> bool:
        """Whether it has as many slots as are requested."""
        return len(self._files) == self._request.count

    def take(self) -> None:
        """Take what is free, as far as it is missing."""
        for slot in self._others():
            if not self.is_complete and (file := locked(self.device, _slot(slot))):
                os.truncate(file.fileno(), 1)  # tells the holders of other slots that and when we came
                os.utime(file.fileno())
                self._files[slot] = file
        if self.is_complete:
            self._in_use = any(is_locked(self.device, _slot(slot)) for slot in self._others())
            self._reservation.close()

    def was_shared(self) -> bool:
        """Whether somebody else had a slot of the device at any time since we have ours."""
        since_ns = max(os.fstat(number).st_mtime_ns for number in self.filenos)
        return self._in_use or any(_last_taken_ns(self.device, _slot(slot)) >= since_ns for slot in self._others())

    def _others(self) -> list[int]:
        return [slot for slot in self._request.slots if slot not in self._files]

    def close(self) -> None:
        """Give the slots back, unless a process that inherited `filenos` lives."""
        for file in (*self._files.values(), self._reservation):
            file.close()


def lease(request: SlotRequest) -> SlotLease:
    """Wait until what is requested can be had: on the emptiest device, so that a GPU is shared only when all are in use.

    Says once what it waits for, if that takes long. Raises StuckError if it never can, because processes that cannot be
    killed hold too much of every device.
    """
    wait = _Wait(request.devices)
    while not (made := _allocated(request)) or not _completed(made, request, wait):
        wait.a_moment()
    return made


def _completed(made: SlotLease, request: SlotRequest, wait: "_Wait") -> bool:
    """Wait under the reservation lock for what is missing; whether that came. If not, the lease is closed."""
    try:
        while not made.is_complete and not _lacks_slots(request, made.device):
            wait.a_moment()
            made.take()
    finally:
        if not made.is_complete:
            made.close()
    return made.is_complete


def _allocated(request: SlotRequest) -> SlotLease | None:
    """A lease with its slots, or with the reservation lock under which to wait for them; None if neither can be had now."""
    if not (allocation := locked("all", "allocation")):
        return None
    with allocation:
        devices = [device for device in request.devices if not _lacks_slots(request, device)]
        if not devices:
            raise StuckError(stuck_message(request.devices))
        free = {
            device: sum(not is_locked(device, _slot(slot)) for slot in request.slots)
            for device in devices
            if not is_locked(device, "reservation")
        }
        device = max(free, key=free.__getitem__, default=None)
        if device is None or (request.count == 1 and not free[device]):
            return None
        if not (reservation := locked(device, "reservation")):
            return None
        made = SlotLease(device, request, reservation)
        made.take()
        return made


def _lacks_slots(request: SlotRequest, device: str) -> bool:
    """Whether too few slots are left by what cannot be killed."""
    return len({_slot(slot) for slot in request.slots} - stuck(device).keys()) < request.count


def report_unkillable(pids: Iterable[int]) -> None:
    """Let everybody know which locks these processes hold that cannot be killed. Linux only; elsewhere it does nothing."""
    for pid in pids:
        for device, names in _locks_of(pid).items():
            with lock_file(device, "stuck") as file:
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
        lines = [line.split(" ") for line in path_of(device, "stuck").read_text().split("\n")[:-1]]
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


def _is_slot(name: str) -> bool:
    return name.startswith("slot")


def _last_taken_ns(device: str, name: str) -> int:
    """When a slot was taken last, by the file system's clock; 0 if it never was: then its file is empty."""
    with lock_file(device, name) as file:
        status = os.fstat(file.fileno())
    return status.st_mtime_ns if status.st_size else 0


class _Wait:
    """A wait for some devices."""

    def __init__(self, devices: Iterable[str]):
        self._devices, self._tell_at = list(devices), time.monotonic() + TELL_AFTER_S

    def a_moment(self) -> None:
        """Wait until the next look; at random, so that two that wait do not keep getting in each other's way."""
        if time.monotonic() >= self._tell_at:
            self._tell_at = math.inf
            print(
                f"a cell has waited for {TELL_AFTER_S / 60:.0f} minutes: {in_use(self._devices)}",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(random.uniform(0.5, 1.5) * POLL_S)


def in_use(devices: Iterable[str]) -> str:
    """Which runs have slots of each of these devices, as a stopped one keeps them. Linux only; elsewhere it names none."""
    locks = {int(entry.name): _locks_of(int(entry.name)) for entry in PROC.glob("[0-9]*")}
    runs = {
        device: sorted({run_of(pid) for pid, names in locks.items() if any(map(_is_slot, names.get(device, ())))})
        for device in devices
    }
    return "; ".join(f"{device} is in use by {', '.join(map(described, pids)) or 'others'}" for device, pids in runs.items())
