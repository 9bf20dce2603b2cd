"""Processes as the kernel sees them: what they use, how they end together, with which other one they die.

All of it is read from Linux's /proc (proc(5)). Elsewhere a process counts as having no descendants: what leaves the process
group of a worker is not found there, and limits of memory are not enforced.
"""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

POLL_S = 0.05
"""Pause between two attempts to kill what is left of a worker, or two looks at it."""

UNKILLABLE_S = 30.0
"""Time after which a process that SIGKILL does not end, because the kernel itself hangs in a driver, is left to itself."""

LEFTOVERS_S = 5.0
"""The same for what a dead supervisor has left: it has probably tried before us."""

MEMORY = ("VmSize", "RssAnon", "RssShmem")
"""Of a process: its address space, and the pages in memory that no file has."""

ALIKE = 0.01
"""Share by which these may differ between a process and its parent that are one to us. A choice."""

SHARE_OF_MACHINE = 0.9
"""Of its memory, for one cell."""

RUN = "TIMMGATE_RUN"
"""Environment variable with the process id of the Snakemake that started us."""

SUPERVISOR = "TIMMGATE_SUPERVISOR"
"""Environment variable of a worker and of everything that it starts: the `mark` of its supervisor."""

PROC = Path("/proc")

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def tree(pid: int) -> list[int]:
    """The process and its living descendants, by what its threads say of their children; itself alone without /proc."""
    found = [pid]
    with contextlib.suppress(OSError):
        for thread in (PROC / str(pid) / "task").iterdir():
            for child in (thread / "children").read_text().split():
                found += tree(int(child))
    return found


def tree_cpu_s(pid: int) -> float:
    """Processor seconds, user and system, of a process, of its living descendants, and of all that these have waited for."""
    return sum(_cpu_ticks(each) for each in tree(pid)) / os.sysconf("SC_CLK_TCK")


def _cpu_ticks(pid: int) -> int:
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) if fields else 0  # utime, stime, cutime, cstime


def _stat(pid: int) -> list[str]:
    """The fields of /proc/[pid]/stat from the third on, the state; none if there is no such process."""
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return []


def signal_all(worker: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to the worker's process group and to its descendants that left it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, number)
    for pid in tree(worker.pid)[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def machine_memory_bytes() -> int:
    """What the processes of a cell may take of this machine at most, so that they meet our limit and not the kernel's."""
    return int(SHARE_OF_MACHINE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def tree_rss_bytes(pid: int) -> int:
    """Memory in bytes that a process and its living descendants occupy, without files that the kernel can read again.

    Anonymous and shared pages: RssAnon and RssShmem of /proc/[pid]/status. What a process has in common with its parent
    counts once: until a new program begins in it, it has the memory of its parent (vfork), and a compiler starts many.
    """
    known = {each: memory for each in tree(pid) if (memory := _memory(each))}
    return sum(
        memory.sizes["RssAnon"] + memory.sizes["RssShmem"]
        for memory in known.values()
        if not (memory.parent in known and memory.is_of(known[memory.parent]))
    )


class _Memory(NamedTuple):
    """What is known of the memory of a process: its parent and command, and by the names of `MEMORY` bytes."""

    parent: int
    command: bytes
    sizes: Mapping[str, int]

    def is_of(self, parent: "_Memory") -> bool:
        """Whether it is that of its parent, which goes on while we read: the same program with as much memory."""
        sizes = ((self.sizes[name], parent.sizes[name]) for name in MEMORY)
        return self.command == parent.command and all(abs(one - other) <= ALIKE * other for one, other in sizes)


def _memory(pid: int) -> _Memory | None:
    """The memory of a process; None if it has none any more."""
    try:
        # The command first: after the memory it may be that of the new program.
        command = (PROC / str(pid) / "cmdline").read_bytes()
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return None
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    if any(name not in fields for name in MEMORY):
        return None
    return _Memory(int(fields["PPid"][0]), command, {name: int(fields[name][0]) << 10 for name in MEMORY})


Process = tuple[int, str | None]
"""A process, by its id and its start: an id is used again."""


def descendants() -> set[Process]:
    """The processes below this one."""
    return {(pid, start_ticks(pid)) for pid in tree(os.getpid())[1:]}


def kill_all(worker: subprocess.Popen, others: set[Process]) -> tuple[int, ...]:
    """Kill the worker's process group and everything else that it left behind, until nothing is left.

    Processes that left the group, as inductor's compile pool does, have become our children (see `become_subreaper`);
    `others` are descendants that were there before. Returns those that could not be killed.
    """
    deadline = time.monotonic() + UNKILLABLE_S
    while True:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(POLL_S)
        left = [pid for pid, _ in descendants() - others if pid != worker.pid]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # a child of a child: it becomes ours when that one is gone
                os.waitpid(pid, os.WNOHANG)
        if not left and worker.returncode is not None:
            return ()
        if time.monotonic() > deadline:
            return (*left, *([worker.pid] if worker.returncode is None else []))


def mark() -> str:
    """What tells this process from all others: its id, its start in clock ticks since boot, its namespace of ids.

    The machine sees the processes of its containers, but in their environment are ids as the container counts them: without
    the namespace, a supervisor outside would take the one inside for dead and kill its worker.
    """
    return f"{os.getpid()} {start_ticks(os.getpid())} {_namespace()}"


def kill_leftovers() -> list[int]:
    """Kill every process of ours on this machine whose `SUPERVISOR` is dead, which cannot do so any more.

    A worker dies with its supervisor, but what it started does not, as a compiler in a session of its own: that would keep
    the lease of the device, or run on beside the next cell. Returns those that could not be killed. Linux only; elsewhere it
    does nothing.
    """
    left, deadline = {}, time.monotonic() + LEFTOVERS_S
    for entry in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == os.getuid() and _is_leftover(_environment(entry).get(SUPERVISOR)):
                pid = int(entry.name)
                left[pid] = start_ticks(pid)
                os.kill(pid, signal.SIGKILL)
    while left := {pid: ticks for pid, ticks in left.items() if ticks and start_ticks(pid) == ticks}:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    return list(left)


def _environment(entry: Path) -> dict[str, str]:
    """The environment that a process was started with."""
    pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def run_of(pid: int) -> int:
    """The run that a process belongs to; itself where it belongs to none."""
    with contextlib.suppress(OSError):  # it has just ended
        return int(_environment(PROC / str(pid)).get(RUN) or pid)
    return pid


def described(pid: int) -> str:
    """A process in words, with the folder that it works in, and whether somebody has stopped it."""
    words = f"process {pid}"
    with contextlib.suppress(OSError):
        words = f"{words} in {(PROC / str(pid) / 'cwd').readlink()}"
    return f"{words} (stopped)" if _stat(pid)[:1] == ["T"] else words


def _is_leftover(supervisor: str | None) -> bool:
    match (supervisor or "").split():
        case [pid, ticks, namespace] if namespace == _namespace():
            return ticks != start_ticks(int(pid))
    return False


def start_ticks(pid: int) -> str | None:
    """When a process started, None if there is none or it is a zombie."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else None


def _namespace() -> str | None:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return None


def children_cpu_s() -> float:
    """Processor seconds, user and system, of all descendants that have ended and been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def die_with_parent(by: signal.Signals) -> None:
    """Ask the kernel to send us `by` when the thread that started us ends. Linux only; elsewhere it does nothing.

    So that a worker ends whose supervisor was killed by SIGKILL, as when memory runs out: there may be no other one that
    would look for leftovers, and the worker would keep the device.
    """
    _prctl(PR_SET_PDEATHSIG, by)


def die_with_run(by: signal.Signals) -> None:
    """Ask the kernel to send us `by` when Snakemake ends, also by SIGKILL. Ends at once if it has ended already.

    Otherwise cells would be measured on and on for a run that is over, beside those of the next one. What was started by
    hand has no Snakemake to die with.
    """
    die_with_parent(by)
    run = os.environ.get(RUN)
    if run and sys.platform == "linux" and int(run) not in parents():
        raise SystemExit(f"Snakemake, process {run}, is gone")


def parents() -> list[int]:
    """The processes above this one."""
    found, pid = [], os.getppid()
    while pid:
        found.append(pid)
        fields = _stat(pid)
        pid = int(fields[1]) if fields else 0
    return found


@contextlib.contextmanager
def bound_to(cores: Collection[int] | None) -> Iterator[None]:
    """What is started within may use only these cores; with None, those that we may. Linux only."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def become_subreaper() -> None:
    """Ask the kernel to make orphans among our descendants our children. Linux only; elsewhere it does nothing.

    So that `kill_all` finds what a worker that crashed has started in sessions of its own, as the compiler's pool of
    processes: else these would belong to the init process.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


@contextlib.contextmanager
def interruptible(note: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn the first signal that asks us to end into SystemExit, and ignore the others, so that the clean-up is complete.

    `note` is called before anything is cleaned up: Slurm kills what is left as soon as the first process of a job has ended.
    """
    asking = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    previous = {each: signal.getsignal(each) for each in asking if signal.getsignal(each) != signal.SIG_IGN}

    def stop(number: int, _: Any) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_IGN)
        note()
        raise SystemExit(128 + number)

    for each in previous:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
