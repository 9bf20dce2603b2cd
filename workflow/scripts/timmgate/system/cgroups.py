"""What the kernel's control groups, versions 2 and 1, say of memory and cores, as in containers and a cluster's jobs."""

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


def cpu_quota_cores(root: Path = Path("/")) -> float | None:
    """How many cores' worth of time the smallest quota of our group and of those around it grants; None without one.

    `root` is the folder that /proc and /sys lie in.
    """
    quotas = [quota for group in _cpu_groups(root) if (quota := _quota_cores(group)) is not None]
    return min(quotas, default=None)


def cpu_stalls(root: Path = Path("/")) -> int | None:
    """How often our group, or one around it, had used up its quota and had to wait; None where nobody counts."""
    counts = [_counter(group / "cpu.stat", "nr_throttled") for group in _cpu_groups(root) if (group / "cpu.stat").is_file()]
    return sum(counts) if counts else None


def _quota_cores(group: Path) -> float | None:
    quota, period = group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"
    if (group / "cpu.max").is_file():
        words = (group / "cpu.max").read_text().split()
    elif quota.is_file() and period.is_file():
        words = [quota.read_text().strip(), period.read_text().strip()]
    else:
        return None
    return int(words[0]) / int(words[1]) if words[0].isdigit() else None  # no quota is the word max, or -1


def _cpu_groups(root: Path) -> Iterator[Path]:
    """The folders of the groups that limit our processors, and of those around them."""
    mounted = root / "sys/fs/cgroup"
    for group in _groups_of("cpu", root / "proc/self/cgroup", mounted):
        yield from (each for each in (group, *group.parents) if each.is_relative_to(mounted))


def _groups() -> Iterator[Path]:
    """The folders of the groups that count our memory."""
    return _groups_of("memory", MEMBERSHIP, MOUNTED)


def _groups_of(controller: str, membership: Path, mounted: Path) -> Iterator[Path]:
    """The folders of the groups that we are in, for a controller of version 1, or for all of them in version 2."""
    for line in membership.read_text().splitlines() if membership.is_file() else []:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            yield mounted / group.lstrip("/")
        elif controller in controllers.split(","):
            yield mounted / controller / group.lstrip("/")


def _counter(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == name), 0)
