"""What of this machine makes timings worse, as Linux tells it. Must not import torch.

Functions take the folder that /proc and /sys lie in: `/`, but in tests. What a machine does not tell is None, as in virtual
machines, in containers and elsewhere than on Linux.
"""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from timmgate.system import cgroups, cpu_topology

ROOT = Path("/")

TURBO = {"devices/system/cpu/intel_pstate/no_turbo": "0", "devices/system/cpu/cpufreq/boost": "1"}
"""Files below /sys, and what stands in each where the clock may rise above its nominal value."""

COUNTERS = ("cpu*", "armv*_pmuv3*", "armv*_cortex*")
"""Names below /sys/bus/event_source/devices of the processor's own counters."""

NEAR_LIMIT_C = 10
"""Degrees below its limit from which on a part counts as hot. A choice."""

IDLE_COLUMNS = (3, 4)
"""Of a line of /proc/stat: idle, and waiting for a disk."""

FIRST_GUEST_COLUMN = 8
"""From here on times are in an earlier column already (proc_stat(5))."""


@dataclass(frozen=True)
class Facts:
    """What stays as it is while a cell is measured: columns of its row with `machine_` in front.

    `cores` are those that we may use. `quota_cores` is how many of them the control group grants, None without a quota.
    """

    cores: int
    quota_cores: float | None
    governor: str | None
    turbo: bool | None
    smt: bool | None
    counters: bool | None
    swap_used_bytes: int | None


@dataclass(frozen=True)
class Activity:
    """Sums since the machine was started: processor seconds of all on some cores, and of this process; and events.

    `throttles` is how often a core was slowed down for its heat, `stalls` how often the control group had used up its quota,
    `swapped_pages` what went to or came from the disk.
    """

    at_s: float
    busy_s: float | None
    own_s: float
    throttles: int | None
    stalls: int | None
    swapped_pages: int | None


def facts(root: Path = ROOT) -> Facts:
    """What there is to know of this machine."""
    quota_cores = cgroups.cpu_quota_cores(root)
    return Facts(
        cores=len(cpu_topology.available()),
        quota_cores=quota_cores,
        governor=governor(root),
        turbo=turbo(root),
        smt=_flag(root / "sys/devices/system/cpu/smt/active"),
        counters=has_counters(root),
        swap_used_bytes=swap_used_bytes(root),
    )


def governor(root: Path = ROOT) -> str | None:
    """What chooses the clocks of the cores; several words if they differ."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    return ", ".join(sorted({text for text in map(_text, files) if text})) or None


def turbo(root: Path = ROOT) -> bool | None:
    """Whether clocks rise above the nominal one while few cores work and all is cool."""
    for name, on in TURBO.items():
        if text := _text(root / "sys" / name):
            return text == on
    return None


def has_counters(root: Path = ROOT) -> bool | None:
    """Whether the processor's counters, of instructions and cache misses, can be read here."""
    devices = root / "sys/bus/event_source/devices"
    return any(any(devices.glob(name)) for name in COUNTERS) if devices.is_dir() else None


def swap_used_bytes(root: Path = ROOT) -> int | None:
    """Memory that is on disk."""
    kilobytes = dict(line.split(":", 1) for line in (_text(root / "proc/meminfo") or "").splitlines() if ":" in line)
    try:
        total, free = (int(kilobytes[name].split()[0]) for name in ("SwapTotal", "SwapFree"))
    except (KeyError, ValueError, IndexError):
        return None
    return (total - free) * 1024


def hot_zones(root: Path = ROOT) -> list[tuple[str, float, float]]:
    """Parts that are near the temperature at which they are slowed down: name, degrees Celsius, and that limit."""
    found = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone[0-9]*")):
        temperature_c = _celsius(zone / "temp")
        trips = [trip for trip in zone.glob("trip_point_*_type") if _text(trip) in ("passive", "hot", "critical")]
        limits_c = [_celsius(trip.with_name(trip.name.replace("_type", "_temp"))) for trip in trips]
        limit_c = min((limit for limit in limits_c if limit is not None and limit > 0), default=None)
        if temperature_c is not None and limit_c is not None and temperature_c > limit_c - NEAR_LIMIT_C:
            found.append((_text(zone / "type") or zone.name, temperature_c, limit_c))
    return found


def activity(cores: Iterable[int], root: Path = ROOT) -> Activity:
    """The sums of now, where `cores` are those whose time counts."""
    return Activity(
        at_s=time.perf_counter(),
        busy_s=busy_s(cores, root),
        own_s=time.process_time(),
        throttles=throttles(root),
        stalls=cgroups.cpu_stalls(root),
        swapped_pages=swapped_pages(root),
    )


def disturbance(before: Activity, after: Activity) -> dict[str, float | int | None]:
    """What others did to this process between two moments, as columns of a row."""
    elapsed_s, own_s = after.at_s - before.at_s, after.own_s - before.own_s
    both = None if before.busy_s is None or after.busy_s is None else after.busy_s - before.busy_s
    events = {
        f"machine_{name}": None if None in pair else pair[1] - pair[0]
        for name in ("throttles", "stalls", "swapped_pages")
        for pair in [(getattr(before, name), getattr(after, name))]
    }
    return {"machine_busy_cores": None if both is None else max(0.0, both - own_s) / elapsed_s, **events}


def busy_s(cores: Iterable[int], root: Path = ROOT) -> float | None:
    """Seconds that these cores were not idle, those included that a hypervisor gave to others; None without /proc/stat."""
    names = {f"cpu{core}" for core in cores}
    lines = [line.split() for line in (_text(root / "proc/stat") or "").splitlines()]
    ours = [list(map(int, line[1:])) for line in lines if line and line[0] in names]
    ticks = [sum(n for i, n in enumerate(line[:FIRST_GUEST_COLUMN]) if i not in IDLE_COLUMNS) for line in ours]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def throttles(root: Path = ROOT) -> int | None:
    """How often cores were slowed down for their heat."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    counts = [int(text) for text in map(_text, files) if text and text.isdigit()]
    return sum(counts) if counts else None


def swapped_pages(root: Path = ROOT) -> int | None:
    """Pages that were written to the swap and read from it."""
    lines = [line.split() for line in (_text(root / "proc/vmstat") or "").splitlines()]
    counts = [int(line[1]) for line in lines if line[:1] in (["pswpin"], ["pswpout"])]
    return sum(counts) if counts else None


def process_times(root: Path = ROOT) -> dict[int, tuple[str, float]]:
    """By process id, the name of each process and its processor seconds."""
    found = {}
    for entry in (root / "proc").glob("[0-9]*"):
        name, _, rest = (_text(entry / "stat") or "").partition("(")[2].rpartition(")")
        fields = rest.split()
        with suppress(ValueError, IndexError):
            found[int(entry.name)] = name, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def busiest(
    before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]], elapsed_s: float, ours: Sequence[int]
) -> list[tuple[str, int, float]]:
    """Processes but `ours` that worked between two looks: name, process id and cores that each used, the busiest first."""
    used = [
        (name, pid, (cpu_s - before[pid][1]) / elapsed_s)
        for pid, (name, cpu_s) in after.items()
        if pid in before and pid not in ours
    ]
    return sorted((each for each in used if each[2] > 0), key=lambda each: -each[2])


def _flag(path: Path) -> bool | None:
    text = _text(path)
    return None if text is None else text == "1"


def _celsius(path: Path) -> float | None:
    with suppress(TypeError, ValueError):
        return int(_text(path)) / 1000  # type: ignore[arg-type]
    return None


def _text(path: Path) -> str | None:
    """What stands in a file; None if there is none that we may read, as where a driver answers with an error."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
