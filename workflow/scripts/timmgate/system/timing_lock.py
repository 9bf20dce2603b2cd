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
from contextlib import contextmanager
from typing import BinaryIO

from timmgate.system.device_locks import stuck
from timmgate.system.lock_files import lock_file, try_lock


@contextmanager
def exclusive_device(device: str) -> Iterator[None]:
    """The device alone: wait for our place in the timing queue, then until every other measurement is paused."""
    with lock_file(device, "timing_queue") as queue, lock_file(device, "activity") as activity:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(activity, fcntl.LOCK_EX)
        yield


@contextmanager
def no_timing(device: str) -> Iterator[None]:
    """Wait until nothing is timed on the device, and let nothing be timed meanwhile; all else goes on."""
    with lock_file(device, "timing_queue") as queue:
        fcntl.flock(queue, fcntl.LOCK_SH)
        yield


class ActivityLock:
    """A supervisor's part in the activity of a device.

    Its worker has to inherit `fileno`, so that nothing is timed while the worker still dies.
    """

    def __init__(self, device: str):
        self.device = device
        self._queue, self._activity = lock_file(device, "timing_queue"), lock_file(device, "activity")

    def fileno(self) -> int:
        """File descriptor of the lock."""
        return self._activity.fileno()

    def may_run(self) -> bool:
        """Whether our processes may run; if so we hold the lock. If not, pause them and then release it.

        Where what cannot be killed keeps others from the device, nothing is timed, and we need no lock.
        """
        if try_lock(self._queue, fcntl.LOCK_SH):
            fcntl.flock(self._queue, fcntl.LOCK_UN)
            if try_lock(self._activity, fcntl.LOCK_SH):
                return True
        return self.is_stuck()

    def is_stuck(self) -> bool:
        """Whether nobody can have the device alone, because of what cannot be killed."""
        return bool(stuck(self.device).keys() & {"timing_queue", "activity"})

    def release(self) -> None:
        """Give the lock back, so that another measurement can be timed; `may_run` takes it again."""
        fcntl.flock(self._activity, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the lock back for good."""
        self._queue.close()
        self._activity.close()


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
