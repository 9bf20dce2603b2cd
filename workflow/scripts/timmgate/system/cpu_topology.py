"""Which cores of this machine a process may use, and in which order. A core here is what the kernel numbers as a CPU."""

import os
from itertools import chain
from pathlib import Path

SYSTEM = Path("/sys/devices/system/cpu")


def available() -> list[int]:
    """Numbers of the cores that this process may use, for every physical one its first, node by node; then the second ones.

    So that the first ones share no execution units, and memory if they can. Elsewhere than on Linux simply as many numbers.
    """
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    allowed = os.sched_getaffinity(0)

    def place(core: int) -> tuple[int, int, int]:
        earlier_siblings = [other for other in _siblings(core) if other in allowed and other < core]
        return len(earlier_siblings), _node(core), core

    return sorted(allowed, key=place)


def lanes(wanted: int | str) -> list[tuple[int, ...]]:
    """The cores that this process may use in `wanted` groups of one size, on each of which a cell can be timed at once.

    Two groups share neither a last-level cache nor a memory node, so that there may be fewer; `auto` is as many as can be
    without those that have less than half as many cores as the largest.
    One group has all cores in the order of `available`; of several, the larger ones leave cores out.
    """
    cores = available()
    if wanted == 1:
        return [tuple(cores)]
    domains: list[tuple[set[object], list[int]]] = []
    for core in cores:
        shared: set[object] = {("node", _node(core)), ("cache", _last_level_cache(core))}
        alike = [domain for domain in domains if domain[0] & shared]
        domains = [domain for domain in domains if domain not in alike]
        domains.append((shared.union(*(each for each, _ in alike)), [*chain(*(each for _, each in alike)), core]))
    most = max(len(each) for _, each in domains)
    domains = [domain for domain in domains if 2 * len(domain[1]) >= most]  # lanes are as small as the smallest one
    number = len(domains) if wanted == "auto" else min(int(wanted), len(domains))
    if number == 1:
        return [tuple(cores)]
    groups = [sorted(chain(*(each for _, each in domains[part::number])), key=cores.index) for part in range(number)]
    return [tuple(group[: min(map(len, groups))]) for group in groups]


def physical() -> int:
    """How many of the cores that this process may use share no execution units with an earlier one."""
    allowed = available()
    return sum(not any(other in allowed and other < core for other in _siblings(core)) for core in allowed)


def _siblings(core: int) -> list[int]:
    """What shares a physical core with it, as the kernel lists it: 0,64 or 0-1 (sysfs-devices-system-cpu)."""
    path = SYSTEM / f"cpu{core}" / "topology" / "thread_siblings_list"
    ranges = [part.split("-") for part in path.read_text().strip().split(",")] if path.is_file() else []
    return [number for bounds in ranges for number in range(int(bounds[0]), int(bounds[-1]) + 1)]


def _last_level_cache(core: int) -> str:
    """What shares the largest cache with a core, as the kernel lists it; empty where it does not tell."""
    caches = (SYSTEM / f"cpu{core}" / "cache").glob("index[0-9]*")
    levels = {int((cache / "level").read_text()): (cache / "shared_cpu_list").read_text().strip() for cache in caches}
    return levels[max(levels)] if levels else ""


def _node(core: int) -> int:
    """The number of its memory node (NUMA), 0 where there is only one."""
    return next((int(path.name.removeprefix("node")) for path in (SYSTEM / f"cpu{core}").glob("node[0-9]*")), 0)
