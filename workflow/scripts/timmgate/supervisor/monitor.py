"""Runs one worker process to its end, whatever that is, and says how each check that it began ended. Must not import torch.

A worker has a session of its own; when it is over, for whatever reason, every process that it started is dead. While another
measurement is being timed on the device it is paused.
"""

import contextlib
import os
import re
import select
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from timmgate import module_environment
from timmgate.core import protocol
from timmgate.core.outcome import AttemptResult
from timmgate.supervisor.capped_log import CappedLog
from timmgate.system import device_locks, gpus, process_tree
from timmgate.system.cgroups import oom_kills
from timmgate.system.device_locks import SlotLease, SlotRequest, StuckError
from timmgate.system.process_tree import SUPERVISOR, children_cpu_s, signal_all, tree_cpu_s, tree_rss_bytes
from timmgate.system.timing_lock import ActivityLock, PausedTime

POLL_S = 0.05
"""Longest time between two looks at the deadline and at the worker."""

LOOK_S = 0.25
"""Time between two looks at the memory of a worker, and at who else has its device."""

STALL_S = 5.0
"""Longest time between two looks that counts as the worker's; usually it is `POLL_S`."""

STACK_DUMP_S = 0.5
"""Time that a hung worker gets to write its Python stacks into the log before it is killed."""

DRAIN_S = 1.0
"""Longest time for what a dead worker's processes left in the pipe of their output."""

TEARDOWN_S = 10.0
"""Time that a worker gets to exit by itself after its final message."""

KILLED = re.compile(r"signal 9\b|SIGKILL|\bKilled\b|BrokenProcessPool|terminated abruptly")
"""How compilers and pools of processes say that one of theirs was killed."""

OWN_TIMING = ("queue", "timing")
"""Stages in which a worker waits for the device or has it alone: others are paused then, not it."""


@dataclass(frozen=True)
class Limits:
    """Of one check: `timeout_s` seconds, and `memory_bytes` for all processes of its worker together."""

    timeout_s: float
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Wiring:
    """What a worker is given: file descriptors for its messages and for the time that it was paused, and a device.

    The fields of `protocol.Request` with these names.
    """

    messages: int
    paused: int
    device_number: int | None


def run_worker(
    start: Callable[[Wiring], list[str]],
    slots: SlotRequest,
    limits: Limits,
    log: CappedLog,
    on_end: Callable[[AttemptResult, bool], None],
    on_look: Callable[[str | None, bool], None] = lambda *_: None,
    variables: Mapping[str, str] | None = None,
) -> None:
    """Wait for a device, start a worker and follow it until it ends or a limit is reached. No process of it is left behind.

    `start` makes its command, as soon as it can start. `variables` are added to its environment.

    `on_end` is told how each check that it began ended, at least one, and whether the worker goes on to another one.
    `on_look` is told several times a second which stage it is in, and whether it is paused.
    """
    device_locks.report_unkillable(process_tree.kill_leftovers())
    try:
        lease = device_locks.lease(slots)
    except StuckError as error:
        on_end(AttemptResult(stage=None, supervisor_error=("stuck", str(error))), False)
        return

    def ended(attempt: AttemptResult, goes_on: bool) -> None:
        attempt.device, attempt.device_number = lease.device, gpus.number_of(lease.device)
        attempt.was_shared = lease.was_shared()
        on_end(attempt, goes_on)

    with contextlib.closing(lease):
        _run(start, lease, limits, log, ended, on_look, variables)


def run_once(
    start: Callable[[Wiring], list[str]],
    slots: SlotRequest,
    limits: Limits,
    log: CappedLog,
    variables: Mapping[str, str] | None = None,
) -> AttemptResult:
    """The same of a worker that has one thing to do: how that ended."""
    ended: list[AttemptResult] = []
    run_worker(start, slots, limits, log, lambda end, _: ended.append(end), variables=variables)
    (end,) = ended
    return end


def _run(
    start: Callable[[Wiring], list[str]],
    lease: SlotLease,
    limits: Limits,
    log: CappedLog,
    on_end: Callable[[AttemptResult, bool], None],
    on_look: Callable[[str | None, bool], None],
    variables: Mapping[str, str] | None,
) -> None:
    oom_kills_before, others = oom_kills(), process_tree.descendants()
    cpu_before_s, began = children_cpu_s(), time.monotonic()
    process_tree.become_subreaper()
    with (
        contextlib.closing(ActivityLock(lease.device)) as activity,
        tempfile.TemporaryFile() as paused,
        Pipe() as said,
        Pipe() as printed,
    ):
        while not activity.may_run():
            time.sleep(POLL_S)
        try:
            with process_tree.bound_to(lease.cores):
                worker = subprocess.Popen(
                    start(Wiring(said.writing, paused.fileno(), gpus.number_of(lease.device))),
                    stdin=subprocess.DEVNULL,
                    stdout=printed.writing,
                    stderr=subprocess.STDOUT,
                    pass_fds=(said.writing, paused.fileno(), *activity.filenos, *lease.filenos),
                    start_new_session=True,
                    env={**module_environment(variables), **gpus.only(lease.device), SUPERVISOR: process_tree.mark()},
                )
        except OSError as error:
            reason = type(error).__name__, f"the worker could not be started: {error}"
            on_end(AttemptResult(supervisor_error=reason, wall_s=time.monotonic() - began), False)
            return
        said.close_writing()
        printed.close_writing()
        follower = Follower(worker, activity, PausedTime(paused), limits, on_end, on_look)
        try:
            returncode = follower.follow(said.reading, printed.reading, log)
            if returncode is None:
                dump_stacks(worker)
                drain(printed.reading, log, STACK_DUMP_S)
        finally:
            survivors = process_tree.kill_all(worker, others)
            device_locks.report_unkillable(survivors)
            drain(printed.reading, log, DRAIN_S)
    attempt = follower.attempt
    attempt.returncode, attempt.survivors = returncode, survivors
    child = attempt.failure and KILLED.search(f"{attempt.failure['cause']}: {attempt.failure['message']}")
    attempt.oom_killed = bool(worker.returncode == -signal.SIGKILL or child) and oom_kills() > oom_kills_before
    attempt.cpu_s = children_cpu_s() - cpu_before_s - follower.earlier_cpu_s
    attempt.wall_s = time.monotonic() - began - follower.earlier_wall_s
    on_end(attempt, False)


class Pipe:
    """Both ends of a pipe, as a context manager; nothing blocks the reader."""

    def __enter__(self) -> "Pipe":
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self._open = {self.reading, self.writing}
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._open:
            os.close(end)

    def close_writing(self) -> None:
        """Leave the writing end to the process that got it."""
        self._open.discard(self.writing)
        os.close(self.writing)


def drain(reading: int, log: CappedLog, seconds: float) -> None:
    """Log what is in a pipe, and what comes in so many seconds."""
    deadline = time.monotonic() + seconds
    while select.select([reading], [], [], max(deadline - time.monotonic(), 0))[0]:
        chunk = os.read(reading, 1 << 20)
        log.write(chunk)
        if not chunk or time.monotonic() > deadline:
            return


class Follower:
    """Takes in what a worker says and keeps the time of its stages, check by check."""

    def __init__(
        self,
        worker: subprocess.Popen,
        activity: ActivityLock,
        paused: PausedTime,
        limits: Limits,
        on_end: Callable[[AttemptResult, bool], None],
        on_look: Callable[[str | None, bool], None],
    ):
        self._worker, self._activity, self._paused, self._limits = worker, activity, paused, limits
        self._on_end, self._on_look = on_end, on_look
        self.attempt = self._begin()
        self.earlier_wall_s = self.earlier_cpu_s = 0.0
        self._began_elapsed_s, self._buffered = 0.0, b""
        self._start = self._last = time.monotonic()
        self._used_s, self._looked_at = 0.0, 0.0
        self._is_paused, self._paused_since = False, 0.0

    def _begin(self) -> AttemptResult:
        return AttemptResult(timeout_s=self._limits.timeout_s, memory_bytes=self._limits.memory_bytes)

    def follow(self, reading: int, printed: int, log: CappedLog) -> int | None:
        """Take in messages until the worker has ended (its return code) or has to be killed (None)."""
        with selectors.DefaultSelector() as selector:
            selector.register(reading, selectors.EVENT_READ, self._receive)
            selector.register(printed, selectors.EVENT_READ, log.write)
            while True:
                gone = self._worker.poll() is not None
                # Before reading: a worker says that it will wait for the device before it does so.
                was_alone = self.attempt.stage in OWN_TIMING
                may_run = was_alone or self._activity.may_run()
                for key, _ in selector.select(0 if gone else POLL_S):
                    chunk = os.read(key.fd, 1 << 20)
                    if not chunk:
                        selector.unregister(key.fd)
                    key.data(chunk)
                    gone = gone and not (chunk and key.fd == reading)  # a process that is gone may have left more messages
                self._count_time()
                if gone:
                    self._stop_stage()
                    return self._worker.returncode
                self._look_around()
                if self.attempt.supervisor_error or self.attempt.is_over_memory or self._used_s > self._limit_s():
                    self._stop_stage()
                    return None
                if was_alone and self.attempt.stage not in OWN_TIMING:
                    may_run = self._activity.may_run()
                self._pause_or_resume(may_run)
                self._on_look(self.attempt.stage, self._is_paused)

    def _receive(self, chunk: bytes) -> None:
        *lines, self._buffered = (self._buffered + chunk).split(b"\n")
        for line in lines:
            self._take(line)

    def _look_around(self) -> None:
        """At what the worker uses, and whether it wants or has a device alone that it cannot have alone any more."""
        if self._last - self._looked_at > LOOK_S:
            self._looked_at = self._last
            self.attempt.peak_rss_bytes = max(self.attempt.peak_rss_bytes, tree_rss_bytes(self._worker.pid))
            if self.attempt.stage in OWN_TIMING and self._activity.is_stuck():
                self.attempt.supervisor_error = "stuck", device_locks.stuck_message([self._activity.device])

    def _limit_s(self) -> float:
        """Seconds for the check, or after its final message for the process to end."""
        return TEARDOWN_S if self.attempt.result or self.attempt.failure else self._limits.timeout_s

    def _count_time(self) -> None:
        """Credit the time since the last call to the stage; what the worker spends paused or waiting does not count.

        Neither does a longer gap than `STALL_S`: then we were suspended, and with us the worker, as by a cluster.
        """
        now = time.monotonic()
        passed_s, self._last = min(now - self._last, STALL_S), now
        if self._is_paused:
            self.attempt.paused_s += passed_s
            return
        if self.attempt.stage != "queue":
            self._used_s += passed_s
        if not (self.attempt.result or self.attempt.failure):
            seconds, stage = self.attempt.stage_s, self.attempt.stage or ""
            seconds[stage] = seconds.get(stage, 0.0) + passed_s

    def _stop_stage(self) -> None:
        if self.attempt.worker_s is None:  # it did not come to say so itself
            self.attempt.worker_s = sum(self.attempt.stage_s.values())

    def _pause_or_resume(self, may_run: bool) -> None:
        if self.attempt.stage in OWN_TIMING:
            self._activity.release()
            may_run = True
        if may_run and self._is_paused:
            self._paused.add(time.monotonic() - self._paused_since)
            signal_all(self._worker, signal.SIGCONT)
            self._is_paused = False
        elif not may_run and not self._is_paused:
            self._paused_since = time.monotonic()
            signal_all(self._worker, signal.SIGSTOP)
            self._activity.release()
            self._is_paused = True

    def _take(self, line: bytes) -> None:
        if self.attempt.supervisor_error:  # a message is lost, so that those after it are worth nothing
            return
        try:
            kind, content, elapsed_s = protocol.parse(line)
        except ValueError as error:
            self.attempt.supervisor_error = "broken message", f"{line[:200]!r}: {error}"
            return
        self._count_time()
        if kind == "check" and self.attempt.result is not None:
            self._next_check(elapsed_s)
        self.attempt.take(kind, content)
        if kind in ("result", "failure"):
            self.attempt.worker_s = elapsed_s - self._began_elapsed_s
            self._used_s = 0.0

    def _next_check(self, elapsed_s: float) -> None:
        cpu_s, wall_s = tree_cpu_s(self._worker.pid), self._last - self._start
        self.attempt.cpu_s, self.attempt.wall_s = cpu_s - self.earlier_cpu_s, wall_s - self.earlier_wall_s
        self.earlier_cpu_s, self.earlier_wall_s = cpu_s, wall_s
        self._began_elapsed_s, self._used_s = elapsed_s, 0.0
        self._on_end(self.attempt, True)
        self.attempt = self._begin()


def dump_stacks(worker: subprocess.Popen) -> None:
    """Have a hung worker print where it hangs (it listens for SIGUSR1)."""
    with contextlib.suppress(ProcessLookupError):
        worker.send_signal(signal.SIGUSR1)
