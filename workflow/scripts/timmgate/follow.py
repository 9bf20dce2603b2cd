"""Runs one worker process to its end, whatever that is, and says how each check that it began ended. Knows no torch.

A worker has a session of its own; when it is over, for whatever reason, every process that it started is dead. While another
measurement is being timed on the device it is held still.
"""

import contextlib
import os
import select
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from timmgate import claims, gpus, messages, module_environment
from timmgate.claims import Claim, HeldTime, Share
from timmgate.control_groups import oom_kills
from timmgate.endings import Ending
from timmgate.logs import CappedLog
from timmgate.processes import (
    SUPERVISOR,
    become_subreaper,
    children_cpu_s,
    kill_all,
    mark,
    signal_all,
    tree_cpu_s,
    tree_rss_bytes,
)

POLL_S = 0.05
"""Longest time between two looks at the deadline and at the worker."""

LOOK_S = 0.25
"""Time between two looks at the memory of a worker, and at who else has its device."""

STACK_DUMP_S = 0.5
"""Time that a hung worker gets to write its Python stacks into the log before it is killed."""

DRAIN_S = 1.0
"""Longest time for what a dead worker's processes left in the pipe of their output."""

TEARDOWN_S = 10.0
"""Time that a worker gets to exit by itself after its last words."""

OWN_TIMING = ("queue", "timing")
"""Stages in which a worker waits for the device or has it alone: others hold still then, not it."""


@dataclass(frozen=True)
class Limits:
    """Of one check: `timeout_s` seconds, and `memory_bytes` for all processes of its worker together."""

    timeout_s: float
    memory_bytes: int | None = None


def run_worker(
    command: list[str], claim: Claim, limits: Limits, log: CappedLog, on_end: Callable[[Ending, bool], None]
) -> None:
    """Start `command` and follow it until it ends or a limit is reached. No process of it is left behind.

    `on_end` is told how each check that it began ended, at least one, and whether the worker goes on to another one.
    """
    oom_kills_before, others = oom_kills(), set(psutil.Process().children(recursive=True))
    cpu_before_s, start = children_cpu_s(), time.monotonic()
    become_subreaper()
    with (
        contextlib.closing(Share(claim.device)) as share,
        tempfile.TemporaryFile() as held,
        Pipe() as said,
        Pipe() as printed,
    ):
        while not share.may_run():
            time.sleep(POLL_S)
        try:
            worker = subprocess.Popen(
                [*command, "--messages", str(said.writing), "--held", str(held.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=printed.writing,
                stderr=subprocess.STDOUT,
                pass_fds=(said.writing, held.fileno(), share.fileno(), *claim.filenos),
                start_new_session=True,
                env={**module_environment(), **gpus.only(claim.device), SUPERVISOR: mark()},
            )
        except OSError as error:
            trouble = type(error).__name__, f"the worker could not be started: {error}"
            on_end(Ending(trouble=trouble, wall_s=time.monotonic() - start), False)
            return
        said.close_writing()
        printed.close_writing()
        follower = Follower(worker, share, HeldTime(held), limits, on_end)
        try:
            returncode = follower.follow(said.reading, printed.reading, log)
            if returncode is None:
                dump_stacks(worker)
                drain(printed.reading, log, STACK_DUMP_S)
        finally:
            survivors = kill_all(worker, others)
            claims.give_up(survivors)
            drain(printed.reading, log, DRAIN_S)
    ending = follower.ending
    ending.returncode, ending.survivors = returncode, survivors
    ending.oom_killed = worker.returncode == -signal.SIGKILL and oom_kills() > oom_kills_before
    ending.cpu_s = children_cpu_s() - cpu_before_s - follower.earlier_cpu_s
    ending.wall_s = time.monotonic() - start - follower.earlier_wall_s
    on_end(ending, False)


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
        share: Share,
        held: HeldTime,
        limits: Limits,
        on_end: Callable[[Ending, bool], None],
    ):
        self._worker, self._share, self._held, self._limits, self._on_end = worker, share, held, limits, on_end
        self.ending = self._begin()
        self.earlier_wall_s = self.earlier_cpu_s = 0.0
        self._began_elapsed_s, self._buffered = 0.0, b""
        self._start = self._last = time.monotonic()
        self._used_s, self._looked_at = 0.0, 0.0
        self._is_held, self._held_since = False, 0.0

    def _begin(self) -> Ending:
        return Ending(timeout_s=self._limits.timeout_s, memory_bytes=self._limits.memory_bytes)

    def follow(self, reading: int, printed: int, log: CappedLog) -> int | None:
        """Take in messages until the worker has ended (its return code) or has to be killed (None)."""
        with selectors.DefaultSelector() as selector:
            selector.register(reading, selectors.EVENT_READ, self._receive)
            selector.register(printed, selectors.EVENT_READ, log.write)
            while True:
                gone = self._worker.poll() is not None
                # Before reading: a worker says that it will wait for the device before it does so.
                was_alone = self.ending.stage in OWN_TIMING
                may_run = was_alone or self._share.may_run()
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
                if self.ending.trouble or self.ending.is_over_memory or self._used_s > self._limit_s():
                    self._stop_stage()
                    return None
                if was_alone and self.ending.stage not in OWN_TIMING:
                    may_run = self._share.may_run()
                self._hold_still_or_not(may_run)

    def _receive(self, chunk: bytes) -> None:
        *lines, self._buffered = (self._buffered + chunk).split(b"\n")
        for line in lines:
            self._take(line)

    def _look_around(self) -> None:
        """At what the worker uses, and whether it wants or has a device alone that it cannot have alone any more."""
        if self._last - self._looked_at > LOOK_S:
            self._looked_at = self._last
            self.ending.peak_rss_bytes = max(self.ending.peak_rss_bytes, tree_rss_bytes(self._worker.pid))
            if self.ending.stage in OWN_TIMING and self._share.is_stuck():
                self.ending.trouble = "stuck", claims.stuck_message([self._share.device])

    def _limit_s(self) -> float:
        """Seconds for the check, or after its last words for the process to end."""
        return TEARDOWN_S if self.ending.result or self.ending.failure else self._limits.timeout_s

    def _count_time(self) -> None:
        """Credit the time since the last call to the stage; what the worker spends held still or waiting does not count."""
        now = time.monotonic()
        passed_s, self._last = now - self._last, now
        if self._is_held:
            self.ending.held_s += passed_s
            return
        if self.ending.stage != "queue":
            self._used_s += passed_s
        if not (self.ending.result or self.ending.failure):
            seconds = self.ending.stage_s
            seconds[self.ending.stage] = seconds.get(self.ending.stage, 0.0) + passed_s

    def _stop_stage(self) -> None:
        if self.ending.worker_s is None:  # it did not come to say so itself
            self.ending.worker_s = sum(self.ending.stage_s.values())

    def _hold_still_or_not(self, may_run: bool) -> None:
        if self.ending.stage in OWN_TIMING:
            self._share.release()
            may_run = True
        if may_run and self._is_held:
            self._held.add(time.monotonic() - self._held_since)
            signal_all(self._worker, signal.SIGCONT)
            self._is_held = False
        elif not may_run and not self._is_held:
            self._held_since = time.monotonic()
            signal_all(self._worker, signal.SIGSTOP)
            self._share.release()
            self._is_held = True

    def _take(self, line: bytes) -> None:
        if self.ending.trouble:  # a message is lost, so that those after it are worth nothing
            return
        try:
            kind, content, elapsed_s = messages.parse(line)
        except ValueError as error:
            self.ending.trouble = "broken message", f"{line[:200]!r}: {error}"
            return
        self._count_time()
        match kind:
            case "check" if self.ending.result is not None:
                self._next_check(elapsed_s)
            case "stage":
                self.ending.stage = content
                self.ending.visits[content] += 1
            case "facts":
                self.ending.facts.update(content)
            case "detail":
                self.ending.details.append(content)
            case "result" | "failure":
                setattr(self.ending, kind, content)
                self.ending.worker_s = elapsed_s - self._began_elapsed_s
                self._used_s = 0.0

    def _next_check(self, elapsed_s: float) -> None:
        cpu_s, wall_s = tree_cpu_s(self._worker.pid), self._last - self._start
        self.ending.cpu_s, self.ending.wall_s = cpu_s - self.earlier_cpu_s, wall_s - self.earlier_wall_s
        self.earlier_cpu_s, self.earlier_wall_s = cpu_s, wall_s
        self._began_elapsed_s, self._used_s = elapsed_s, 0.0
        self._on_end(self.ending, True)
        self.ending = self._begin()


def dump_stacks(worker: subprocess.Popen) -> None:
    """Have a hung worker print where it hangs (it listens for SIGUSR1)."""
    with contextlib.suppress(ProcessLookupError):
        worker.send_signal(signal.SIGUSR1)
