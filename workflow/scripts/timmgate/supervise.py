"""Runs worker processes and turns whatever becomes of them into one `Outcome` per check. Knows no torch.

A worker does the checks of a cell one after the other, for what they have in common: imports, and what the compiler left in
its cache. A check that does not come to a result ends the worker, and the next one gets a worker of its own. A worker has a
session of its own; when it is over, for whatever reason, every process that it started is dead. While another measurement is
being timed on the device it is held still.
"""

import contextlib
import os
import random
import select
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil

from timmgate import claims, gpus, messages, module_environment
from timmgate.attempts import LOST, Journal
from timmgate.claims import Claim, HeldTime, Share
from timmgate.endings import OUT_OF_MEMORY, RETRYABLE, Ending, Verdict, classify, lacked_memory
from timmgate.logs import CappedLog
from timmgate.processes import (
    SUPERVISOR,
    become_subreaper,
    children_cpu_s,
    kill_all,
    kill_leftovers,
    mark,
    oom_kills,
    signal_all,
    tree_cpu_s,
    tree_rss_bytes,
)
from timmgate.spec import Spec

POLL_S = 0.05
"""Longest time between two looks at the deadline and at the worker."""

MEMORY_POLL_S = 0.25
"""Time between two looks at the memory of a worker."""

STACK_DUMP_S = 0.5
"""Time that a hung worker gets to write its Python stacks into the log before it is killed."""

DRAIN_S = 1.0
"""Longest time for what a dead worker's processes left in the pipe of their output."""

TEARDOWN_S = 10.0
"""Time that a worker gets to exit by itself after its last words."""

BACKOFF_S = 1.0
"""Longest pause before the second attempt; it doubles with every further one, and is drawn at random up to that."""

OWN_TIMING = ("queue", "timing")
"""Stages in which a worker waits for the device or has it alone: others hold still then, not it."""


@dataclass(frozen=True)
class Policy:
    """How to measure, as against what: none of it is part of a measurement's identity.

    `cache` is the folder of compile caches, with one for each program in it, or if `shared` one cache for all of them.
    `toolchain` has what the compiler builds once per machine. `timeout_s` is for one check, and
    `timing_limit_s` for the samples of the performance check. `memory_bytes` is for all processes of a worker together.
    """

    threads: int
    timeout_s: float
    attempts: int
    cache: Path
    weights: Path | None = None
    shared: bool = False
    toolchain: Path | None = None
    timing_limit_s: float = 15.0
    memory_bytes: int | None = None
    jobs_per_gpu: int = 2

    def wanted(self, device: str) -> claims.Wanted:
        """The claim that a measurement needs on a torch device type."""
        return claims.Wanted(tuple(gpus.names(device)), None if device == "cpu" else self.jobs_per_gpu)


@dataclass(frozen=True)
class Outcome:
    """The last attempt at a check: how it ended, its status, which attempt it was, and the seconds of all attempts."""

    ending: Ending
    verdict: Verdict
    attempt: int
    wall_s: float


def worker_command(specs: Sequence[Spec], policy: Policy, batch_size: int | None = None) -> list[str]:
    """The command that measures `specs`; TIMMGATE_WORKER in the environment replaces the worker itself."""
    worker = shlex.split(os.environ.get("TIMMGATE_WORKER", "")) or [sys.executable, "-m", "timmgate.worker"]
    options = {"--weights": policy.weights, "--toolchain": policy.toolchain, "--timed-batch-size": batch_size}
    given = [str(part) for name, value in options.items() if value is not None for part in (name, value)]
    shared = ["--shared-cache"] if policy.shared else []
    where = ["--threads", str(policy.threads), "--timing-limit", str(policy.timing_limit_s), "--cache", str(policy.cache)]
    return [*worker, *where, *given, *shared, *(spec.to_json() for spec in specs)]


def supervise(specs: Sequence[Spec], policy: Policy, log: Path, journal: Journal) -> list[Outcome]:
    """Measure the checks of one cell and always come back with an outcome for each. What workers print goes to `log`.

    What a second try can cure (`endings.RETRYABLE`) is tried up to `policy.attempts` times, those counted whose supervisor
    was lost; with 0 nothing is measured, and what has no outcome yet was lost. A timing that runs out of memory is tried
    with smaller batches. What runs out of memory beside a neighbour is first tried again with the whole device, for that
    says nothing about the model.
    """
    kill_leftovers()
    with CappedLog(log) as stream:
        cell = Cell(specs, policy, stream, journal)
        while cell.pending:
            cell.run_worker()
    return [cell.outcomes[spec.check] for spec in specs]


def in_vain(journal: Journal, check: str) -> Outcome:
    """The outcome of a check that is not tried any more: the last thing that is known of it."""
    known = journal.last_in_vain.get(check, asdict(LOST))
    verdict = Verdict(known["status"], known["cause"], known["message"])
    return Outcome(Ending(stage=known.get("stage")), verdict, journal.attempts[check], journal.wall_s[check])


class Cell:
    """The checks of one cell on the way to their outcomes."""

    def __init__(self, specs: Sequence[Spec], policy: Policy, log: CappedLog, journal: Journal):
        self._specs, self._policy, self._log, self._journal = specs, policy, log, journal
        self._under_way: list[Spec] = []
        self._batch_size: int | None = None
        self._pause_s = 0.0
        self._wanted = policy.wanted(specs[0].device)
        self.outcomes = {
            spec.check: in_vain(journal, spec.check) for spec in specs if journal.in_vain[spec.check] >= policy.attempts
        }

    @property
    def pending(self) -> list[Spec]:
        """The checks without an outcome."""
        return [spec for spec in self._specs if spec.check not in self.outcomes]

    def run_worker(self) -> None:
        """Give a worker what is pending, and follow it to its end.

        After trouble only the first of it, so that it is known which check the next trouble belongs to.
        """
        self._under_way, self._pause_s = self.pending[: 1 if self._journal.in_vain.total() else None], 0.0
        command = worker_command(self._under_way, self._policy, self._batch_size)
        number = self._journal.attempts[self._under_way[0].check] + 1
        self._log.line(f"{datetime.now(UTC):%F %T} attempt {number}: {shlex.join(command)}")
        with contextlib.closing(claims.claim(self._wanted)) as claim:
            self._journal.began(self._under_way[0].check)
            run_worker(command, claim, self._policy, self._log, partial(self.ended, claim))
        time.sleep(self._pause_s)

    def ended(self, claim: Claim, ending: Ending, goes_on: bool) -> None:
        """A check came to an end, and the worker goes on to the next one or not."""
        spec = self._under_way.pop(0)
        ending.facts["device_uuid"] = gpus.uuid_of(claim.device)
        check, verdict = spec.check, classify(ending)
        self._journal.ended(check, ending, verdict)
        self._log.line(" ".join(filter(None, (f"{check}:", verdict.status, verdict.cause, verdict.message))))
        smaller = next_batch_size(self._batch_size or spec.requested_batch_size)
        times_in_vain = self._journal.in_vain[check]
        if lacked_memory(ending, verdict) and claim.had_neighbours():
            self._wanted = replace(self._wanted, whole=True)
        elif verdict.status in OUT_OF_MEMORY and check == "performance" and smaller:
            self._batch_size = smaller
        elif verdict.status in RETRYABLE and times_in_vain < self._policy.attempts:
            self._pause_s = random.uniform(0, BACKOFF_S * 2 ** (times_in_vain - 1))
        else:
            self.outcomes[check] = Outcome(ending, verdict, self._journal.attempts[check], self._journal.wall_s[check])
        if goes_on:
            self._journal.began(self._under_way[0].check)


def next_batch_size(batch_size: int) -> int:
    """The next smaller batch size to try, 0 after 1: half way to the next power of two (timm.utils.decay_batch_step)."""
    if batch_size <= 1:
        return 0
    power = 1 << ((batch_size - 1).bit_length() - 1)
    step = max(power // 2, 1)
    return power + (batch_size - power - 1) // step * step


def run_worker(
    command: list[str], claim: Claim, policy: Policy, log: CappedLog, on_end: Callable[[Ending, bool], None]
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
        follower = Follower(worker, share, HeldTime(held), policy, on_end)
        try:
            returncode = follower.follow(said.reading, printed.reading, log)
            if returncode is None:
                dump_stacks(worker)
                drain(printed.reading, log, STACK_DUMP_S)
        finally:
            survivors = kill_all(worker, others)
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
        policy: Policy,
        on_end: Callable[[Ending, bool], None],
    ):
        self._worker, self._share, self._held, self._policy, self._on_end = worker, share, held, policy, on_end
        self.ending = self._begin()
        self.earlier_wall_s = self.earlier_cpu_s = 0.0
        self._began_elapsed_s, self._buffered = 0.0, b""
        self._start = self._last = time.monotonic()
        self._used_s, self._memory_looked_at = 0.0, 0.0
        self._is_held, self._held_since = False, 0.0

    def _begin(self) -> Ending:
        return Ending(timeout_s=self._policy.timeout_s, memory_bytes=self._policy.memory_bytes)

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
                if self.ending.trouble or self._used_s > self._limit_s() or self._is_over_memory():
                    self._stop_stage()
                    return None
                if was_alone and self.ending.stage not in OWN_TIMING:
                    may_run = self._share.may_run()
                self._hold_still_or_not(may_run)

    def _receive(self, chunk: bytes) -> None:
        *lines, self._buffered = (self._buffered + chunk).split(b"\n")
        for line in lines:
            self._take(line)

    def _is_over_memory(self) -> bool:
        if self._last - self._memory_looked_at > MEMORY_POLL_S:
            self._memory_looked_at = self._last
            self.ending.peak_rss_bytes = max(self.ending.peak_rss_bytes, tree_rss_bytes(self._worker.pid))
        return self.ending.is_over_memory

    def _limit_s(self) -> float:
        """Seconds for the check, or after its last words for the process to end."""
        return TEARDOWN_S if self.ending.result or self.ending.failure else self._policy.timeout_s

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
