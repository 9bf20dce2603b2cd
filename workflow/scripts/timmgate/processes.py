"""Processes as the kernel sees them: what they use, how they end together, whom they die with. Knows no torch.

Linux has all of it; elsewhere the kernel's help is left out.
"""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

POLL_S = 0.05
"""Pause between two attempts to kill what is left of a worker, or two looks at it."""

UNKILLABLE_S = 30.0
"""Time after which a process that SIGKILL does not end, because the kernel itself hangs in a driver, is left to itself."""

LEFTOVERS_S = 5.0
"""The same for what a dead supervisor has left: it has probably tried before us."""

SHARE_OF_MACHINE = 0.9
"""Of its memory, for one cell."""

RUN = "TIMMGATE_RUN"
"""Environment variable with the process id of the Snakemake that started us."""

SUPERVISOR = "TIMMGATE_SUPERVISOR"
"""Environment variable of a worker and of everything that it starts: the `mark` of its supervisor."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def tree_cpu_s(pid: int) -> float:
    """Processor seconds, user and system, of a process, of its living descendants, and of all that these have waited for."""
    try:
        process = psutil.Process(pid)
        return sum(sum(each.cpu_times()[:4]) for each in (process, *process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0.0


def signal_all(worker: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to the worker's process group and to its descendants that left it."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        os.killpg(worker.pid, number)
        for process in psutil.Process(worker.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def machine_memory_bytes() -> int:
    """What the processes of a cell may take of this machine at most, so that they meet our limit and not the kernel's."""
    return int(SHARE_OF_MACHINE * psutil.virtual_memory().total)


def tree_rss_bytes(pid: int) -> int:
    """Memory in bytes that a process and its living descendants occupy, without files that the kernel can read again.

    On Linux anonymous and shared pages (RssAnon, RssShmem of proc(5)), elsewhere the whole resident sets.
    """
    return sum(map(_rss_bytes, _tree(pid)))


def _tree(pid: int) -> Iterator[int]:
    """The process and its descendants, by what its threads say of their children: psutil looks at every process there is."""
    threads = Path(f"/proc/{pid}/task")
    if not (threads / str(pid) / "children").exists():
        with contextlib.suppress(psutil.NoSuchProcess):
            yield from (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True)))
        return
    yield pid
    with contextlib.suppress(OSError):
        for thread in threads.iterdir():
            for child in (thread / "children").read_text().split():
                yield from _tree(int(child))


def _rss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError, psutil.NoSuchProcess):
        status = Path(f"/proc/{pid}/status")
        if not status.exists():
            return psutil.Process(pid).memory_info().rss
        lines = (line.split() for line in status.read_text().splitlines() if line.startswith(("RssAnon:", "RssShmem:")))
        return sum(int(kilobytes) << 10 for _, kilobytes, _ in lines)
    return 0


def kill_all(worker: subprocess.Popen, others: set[psutil.Process]) -> tuple[int, ...]:
    """Kill the worker's process group and everything else that it left behind, until nothing is left.

    Processes that left the group, as inductor's compile pool does, have become our children (see `become_subreaper`);
    `others` are children that were there before. Returns those that could not be killed.
    """
    deadline = time.monotonic() + UNKILLABLE_S
    while True:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(POLL_S)
        left = {child for child in psutil.Process().children(recursive=True) if child.pid != worker.pid} - others
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=POLL_S)
        stuck = [process.pid for process in left if process.is_running()]
        stuck += [worker.pid] if worker.returncode is None else []
        if (not left and not stuck) or time.monotonic() > deadline:
            return tuple(stuck)


def mark() -> str:
    """What tells this process from all others: its id, its start in clock ticks since boot, its namespace of ids."""
    return f"{os.getpid()} {start_ticks(os.getpid())} {_namespace()}"


def kill_leftovers() -> list[int]:
    """Kill every process of ours on this machine whose `SUPERVISOR` is dead, which cannot do so any more.

    They would keep the claim to a device, which nobody else could have then. Returns those that could not be killed. Linux
    only; elsewhere it does nothing.
    """
    left, deadline = {}, time.monotonic() + LEFTOVERS_S
    for process in psutil.process_iter() if sys.platform == "linux" else ():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == os.getuid() and _is_leftover(process.environ().get(SUPERVISOR)):
                left[process.pid] = start_ticks(process.pid)
                process.kill()
    while left := {pid: ticks for pid, ticks in left.items() if ticks and start_ticks(pid) == ticks}:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    return list(left)


def _is_leftover(supervisor: str | None) -> bool:
    match (supervisor or "").split():
        case [pid, ticks, namespace] if namespace == _namespace():
            return ticks != start_ticks(int(pid))
    return False


def start_ticks(pid: int) -> str | None:
    """When a process started, None if there is none or it is a zombie (proc(5), stat)."""
    with contextlib.suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else fields[18]
    return None


def _namespace() -> str | None:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return None


def children_cpu_s() -> float:
    """Processor seconds, user and system, of all descendants that have ended and been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def die_with_parent(by: signal.Signals) -> None:
    """Ask the kernel to send us `by` when the thread that started us ends. Linux only; elsewhere it does nothing."""
    _prctl(PR_SET_PDEATHSIG, by)


def die_with_run(by: signal.Signals) -> None:
    """Ask the kernel to send us `by` when Snakemake ends. Ends at once if it has ended already.

    Whoever was started by hand has no Snakemake to die with.
    """
    die_with_parent(by)
    run = os.environ.get(RUN)
    if run and int(run) not in {parent.pid for parent in psutil.Process().parents()}:
        raise SystemExit(f"Snakemake, process {run}, is gone")


def become_subreaper() -> None:
    """Ask the kernel to make orphans among our descendants our children. Linux only; elsewhere it does nothing."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first signal that asks us to end into SystemExit, and ignore the others, so that the clean-up is complete."""
    asking = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    previous = {each: signal.getsignal(each) for each in asking if signal.getsignal(each) != signal.SIG_IGN}

    def stop(number: int, _: Any) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for each in previous:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
