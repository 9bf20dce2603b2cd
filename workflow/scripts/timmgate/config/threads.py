"""How many threads a measurement gets where the key `threads` is a word."""

from collections.abc import Callable

from timmgate.system import cpu_topology

MOST = 32
"""Threads beyond which no compiler gets more by itself: inductor's own limit (torch/_inductor/config.py)."""

OF_A_JOB = 4
"""Threads that a cluster is asked for where nobody said how many; `--set-threads measure=8` changes it."""


def number(asked: int | str, device: str, jobs_per_gpu: int, cores: int | None, devices: Callable[[], int]) -> int:
    """A number as it is. `all`: all cores that we may use. `auto`: 1 on a CPU, elsewhere an equal share of the cores.

    Each of the `devices` has up to `jobs_per_gpu` measurements at once; all of them together get `cores`, which is None
    where every measurement is a job of its own on a cluster.
    """
    if isinstance(asked, int):
        return asked
    if asked == "all":
        return len(cpu_topology.available())
    if device == "cpu":
        return 1
    if cores is None:
        return OF_A_JOB
    return min(max(cores // (devices() * jobs_per_gpu), 1), MOST)
