"""The cores of this machine: which ones a process may use, in which order to hand them out, and keeping a process on some.

A core here is what the kernel numbers as a CPU. Linux only; elsewhere there are as many cores, but nothing is bound to any.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

SYSTEM = Path("/sys/devices/system/cpu")


def available() -> list[int]:
    """Numbers of the cores that this process may use, for every physical one its first, node by node; then the second ones.

    So that cores which are neighbours in this list share no execution units, and memory if they can.
    """
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    allowed = os.sched_getaffinity(0)

    def place(core: int) -> tuple[int, int, int]:
        earlier_siblings = [other for other in _siblings(core) if other in allowed and other < core]
        return len(earlier_siblings), _node(core), core

    return sorted(allowed, key=place)


def _siblings(core: int) -> list[int]:
    """What shares a physical core with it, as the kernel lists it: 0,64 or 0-1 (sysfs-devices-system-cpu)."""
    path = SYSTEM / f"cpu{core}" / "topology" / "thread_siblings_list"
    ranges = [part.split("-") for part in path.read_text().strip().split(",")] if path.is_file() else []
    return [number for bounds in ranges for number in range(int(bounds[0]), int(bounds[-1]) + 1)]


def _node(core: int) -> int:
    """The number of its memory node (NUMA), 0 where there is only one."""
    return next((int(path.name.removeprefix("node")) for path in (SYSTEM / f"cpu{core}").glob("node[0-9]*")), 0)


@contextmanager
def bound(cores: Collection[int]) -> Iterator[None]:
    """Processes that this thread starts meanwhile stay on these cores. Raises OSError if they do not exist any more."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
