"""One measurement that is timed with a device to itself, while all others on it are paused.

A measurement that is being timed holds the device's timing queue lock and then its activity lock, alone. The supervisor of
every other one shares the activity lock with its like while its processes run, and looks at the queue to see whether it has
to pause them (SIGSTOP).
"""

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

from timmgate.system.device_locks import stuck
from timmgate.system.lock_files import lock_file, try_lock


@contextmanager
def exclusive_device(device: str) -> Iterator[None]:
    """The device alone: wait for our place in the timing queue, then until every other measurement is paused.

    A part of a device, as `cpu:0` of `cpu`, is alone in the part: others are timed in other parts meanwhile, but nobody on
    the whole.
    """
    with ExitStack() as stack:

        def take(name: str, lock: str, how: int) -> BinaryIO:
            file: BinaryIO = stack.enter_context(lock_file(name, lock))
            fcntl.flock(file, how)
            return file

        *whole, own = _levels(device)
        for name in whole:
            take(name, "part_timing", fcntl.LOCK_SH)
            queue = take(name, "timing_queue", fcntl.LOCK_SH)
            take(name, "activity", fcntl.LOCK_SH)
            fcntl.flock(queue, fcntl.LOCK_UN)  # who waits for the whole comes next
        take(own, "timing_queue", fcntl.LOCK_EX)
        take(own, "activity", fcntl.LOCK_EX)
        yield


@contextmanager
def no_timing(device: str) -> Iterator[None]:
    """Wait until nothing is timed on the device or a part of it, and let nothing be timed meanwhile; all else goes on."""
    with lock_file(device, "part_timing") as parts, lock_file(device, "timing_queue") as queue:
        fcntl.flock(parts, fcntl.LOCK_EX)
        fcntl.flock(queue, fcntl.LOCK_SH)
        yield


def _levels(device: str) -> list[str]:
    """The device, and before it the whole that it is a part of, if it is one."""
    whole, numbered, _ = device.partition(":")
    return [whole, device] if numbered else [device]


class ActivityLock:
    """A supervisor's part in the activity of a device, and of the whole that it is a part of.

    Its worker has to inherit `filenos`, so that nothing is timed while the worker still dies.
    """

    def __init__(self, device: str):
        self.device = device
        self._locks = [(lock_file(name, "timing_queue"), lock_file(name, "activity")) for name in _levels(device)]
        self._is_held = False

    @property
    def filenos(self) -> list[int]:
        """File descriptors of the locks."""
        return [activity.fileno() for _, activity in self._locks]

    def may_run(self) -> bool:
        """Whether our processes may run; if so we hold the locks. If not, pause them and then release them.

        Where what cannot be killed keeps others from the device, nothing is timed, and we need no lock.
        """
        if all(_shared(queue, activity) for queue, activity in self._locks):
            self._is_held = True
            return True
        if not self._is_held:
            self.release()  # what we got of them: we must not keep others waiting while we wait
        return self.is_stuck()

    def is_stuck(self) -> bool:
        """Whether nobody can have the device alone, because of what cannot be killed."""
        return any(stuck(name).keys() & {"timing_queue", "activity"} for name in _levels(self.device))

    def release(self) -> None:
        """Give the locks back, so that another measurement can be timed; `may_run` takes them again."""
        self._is_held = False
        for _, activity in self._locks:
            fcntl.flock(activity, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the locks back for good."""
        for queue, activity in self._locks:
            queue.close()
            activity.close()


def _shared(queue: BinaryIO, activity: BinaryIO) -> bool:
    """Whether nobody waits to be alone or is, so that we have a share in the activity now."""
    if not try_lock(queue, fcntl.LOCK_SH):
        return False
    fcntl.flock(queue, fcntl.LOCK_UN)
    return try_lock(activity, fcntl.LOCK_SH)


class PausedTime:
    """Seconds that a supervisor has paused its worker, in a file that both have open."""

    def __init__(self, file: BinaryIO | int):
        self._file = file if isinstance(file, int) else file.fileno()

    @property
    def seconds(self) -> float:
        """The sum until now."""
        return float(struct.unpack("d", os.pread(self._file, 8, 0) or bytes(8))[0])

    def add(self, seconds: float) -> None:
        """Add one pause to the sum."""
        os.pwrite(self._file, struct.pack("d", self.seconds + seconds), 0)

    def clock(self) -> float:
        """time.perf_counter(), but standing still while this process is paused."""
        return time.perf_counter() - self.seconds
