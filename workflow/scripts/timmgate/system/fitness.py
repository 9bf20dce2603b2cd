"""Is this machine fit to time on? What would make timings worse, and what to do about it. Must not import torch."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from timmgate.system import cpu_topology, machine, process_tree
from timmgate.system.gpus import DRIVER_TIMEOUT_S

LOOK_S = 1.0
"""Time between two looks at what other processes use."""

BUSY_CORES = 0.1
"""Share of a core from which on another process counts as busy. A choice: ten times what an idle desktop shows."""

NAMED = 3
"""Busy processes that are named."""

SLOW_FOR = {
    "hw_slowdown": ("the hardware slows it down", "cool it, and look at its power supply"),
    "sw_thermal_slowdown": ("it is too hot", "cool it better"),
    "sw_power_cap": (
        "its power is capped",
        "raise nvidia-smi --power-limit, or lock a clock that it can hold: --lock-gpu-clocks",
    ),
}
"""By nvidia-smi's reason for a low clock (clocks_throttle_reasons), words for it, and what to do. An idle GPU has none."""


@dataclass(frozen=True)
class Finding:
    """Something that makes timings worse, and what to do about it; a sentence each."""

    what: str
    advice: str


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver tells it: `reasons` are keys of `SLOW_FOR`, `processes` the ids of those that use it."""

    uuid: str
    reasons: tuple[str, ...]
    processes: tuple[int, ...]


def findings(threads: int, root: Path = machine.ROOT) -> list[Finding]:
    """All that there is to say of this machine, for cells of so many threads; it takes `LOOK_S`."""
    facts, before = machine.facts(root), machine.process_times(root)
    time.sleep(LOOK_S)
    busy = machine.busiest(before, machine.process_times(root), LOOK_S, [os.getpid(), *process_tree.parents()])
    return [
        *of_clocks(facts),
        *of_cores(facts, threads, cpu_topology.physical()),
        *of_others(facts, busy),
        *of_heat(machine.hot_zones(root), machine.throttles(root)),
    ]


def of_clocks(facts: machine.Facts) -> Iterator[Finding]:
    """What lets the clock of the cores move."""
    if facts.governor and facts.governor != "performance":
        yield Finding(
            f"the clocks follow the load: the governor is {facts.governor}",
            "cpupower frequency-set --governor performance",
        )
    if facts.turbo:
        yield Finding(
            "turbo is on: the clock depends on temperature and on what other cores do",
            "switch it off for comparisons over days: write 1 to /sys/devices/system/cpu/intel_pstate/no_turbo, or 0 to "
            "/sys/devices/system/cpu/cpufreq/boost; the speedup of one run suffers little, as both sides are timed in turn",
        )


def of_cores(facts: machine.Facts, threads: int, physical: int) -> Iterator[Finding]:
    """What makes cores fewer than they look; `physical` are those of ours that share nothing."""
    if facts.quota_cores is not None and facts.quota_cores < facts.cores:
        yield Finding(
            f"the control group grants the time of {facts.quota_cores:g} cores, but shows {facts.cores}",
            "raise the quota (docker --cpus, a cluster's limit) or bind to cores instead (docker --cpuset-cpus)",
        )
    if facts.smt and threads > physical:
        yield Finding(
            f"a cell has {threads} threads, but there are {physical} physical cores: two threads share one",
            f"--config threads={physical}, or switch SMT off: write off to /sys/devices/system/cpu/smt/control",
        )
    if facts.counters is False:
        yield Finding(
            "the processor's counters cannot be read, as in most virtual machines: `perf` will not explain a difference",
            "timings are not worse for it, but a virtual machine has neighbours; look into differences elsewhere",
        )


def of_others(facts: machine.Facts, busy: Sequence[tuple[str, int, float]]) -> Iterator[Finding]:
    """What else works here: `busy` is name, process id and cores used of other processes, the busiest first."""
    if large := [each for each in busy if each[2] >= BUSY_CORES]:
        named = ", ".join(f"{name} ({pid}) {cores:.1f}" for name, pid, cores in large[:NAMED])
        more = f" and {len(large) - NAMED} more" if len(large) > NAMED else ""
        yield Finding(f"other processes use {sum(each[2] for each in large):.1f} cores: {named}{more}", "end them, or wait")
    if facts.swap_used_bytes:
        yield Finding(
            f"{facts.swap_used_bytes / 1e9:.1f} GB of memory are swapped out: coming back takes milliseconds",
            "find out what takes the memory, then swapoff --all && swapon --all",
        )


def of_heat(zones: Sequence[tuple[str, float, float]], throttles: int | None) -> Iterator[Finding]:
    """What is hot: `zones` are parts with degrees and limit, `throttles` how often a core was slowed down for its heat."""
    for name, temperature_c, limit_c in zones:
        yield Finding(
            f"{name} has {temperature_c:.0f} °C and is slowed down at {limit_c:.0f}", "let it cool, or cool it better"
        )
    if throttles:
        yield Finding(
            f"cores were slowed down for their heat {throttles} times since the machine was started", "cool it better"
        )


def of_cuda(uuids: Sequence[str], has_amd: bool) -> Iterator[Finding]:
    """That CUDA has no GPU: NVIDIA's driver shows none of these UUIDs, and there is not AMD's, whose GPUs show none."""
    if not uuids and not has_amd:
        yield Finding(
            "nothing can be measured on cuda: NVIDIA's driver shows no GPU",
            "look at nvidia-smi and CUDA_VISIBLE_DEVICES; a container needs the GPUs of its host (docker run --gpus all)",
        )


def of_gpus(uuids: Sequence[str], gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """What is wrong with each of these GPUs, as far as it is told."""
    told = {gpu.uuid for gpu in gpus}
    if untold := [uuid for uuid in uuids if uuid not in told]:
        yield Finding(f"clocks and processes are not known of {', '.join(untold)}", "see what nvidia-smi says of them")
    for gpu in gpus:
        if gpu.processes:
            named = ", ".join(map(str, gpu.processes))
            yield Finding(
                f"{gpu.uuid}: other processes use it: {named}", "end them, or leave it out of CUDA_VISIBLE_DEVICES"
            )
        for reason in gpu.reasons:
            yield Finding(f"{gpu.uuid}: its clock is low: {SLOW_FOR[reason][0]}", SLOW_FOR[reason][1])


def ask_gpus(uuids: Sequence[str]) -> list[Gpu]:
    """These GPUs as nvidia-smi tells them; none where it cannot be run or does not answer in time."""
    fields = ",".join(f"clocks_throttle_reasons.{reason}" for reason in SLOW_FOR)
    told = _nvidia_smi(f"--query-gpu=uuid,{fields}")
    used = _nvidia_smi("--query-compute-apps=gpu_uuid,pid")
    return [
        Gpu(
            uuid=uuid,
            reasons=tuple(reason for reason, word in zip(SLOW_FOR, words, strict=False) if word == "Active"),
            processes=tuple(int(pid) for other, pid in used if other == uuid),
        )
        for uuid, *words in told
        if uuid in uuids
    ]


def _nvidia_smi(query: str) -> list[list[str]]:
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines()] if done.returncode == 0 else []
