"""What the kernel's control groups, versions 2 and 1, say of memory: as those of containers and of a cluster's jobs."""

import math
from collections.abc import Iterator
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")

MOUNTED = Path("/sys/fs/cgroup")

COUNTERS = ("memory.events", "memory.oom_control")
"""Files with a line `oom_kill`."""

LIMITS = ("memory.max", "memory.limit_in_bytes")
"""Files with a number of bytes, or the word max."""


def memory_limit_bytes() -> float:
    """What all processes of our group may take together: the smallest limit of it and of those around it, or inf."""
    files = (each / name for group in _groups() for each in (group, *group.parents) for name in LIMITS)
    texts = (file.read_text().strip() for file in files if file.is_file())
    return min((int(text) for text in texts if text.isdigit()), default=math.inf)


def oom_kills() -> int:
    """How often the kernel has killed a process of our group (else of the machine) because memory ran out."""
    files = [group / name for group in _groups() for name in COUNTERS] + [Path("/proc/vmstat")]
    return next((_counter(file, "oom_kill") for file in files if file.is_file()), 0)


def _groups() -> Iterator[Path]:
    """The folders of the groups that count our memory."""
    for line in MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.is_file() else []:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            yield MOUNTED / group.lstrip("/")
        elif "memory" in controllers.split(","):
            yield MOUNTED / "memory" / group.lstrip("/")


def _counter(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == name), 0)
