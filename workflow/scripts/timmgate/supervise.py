"""Runs worker processes and turns whatever becomes of them into one `Outcome` per check. Knows no torch.

A worker does the checks of a cell one after the other, for what they have in common: imports, and what the compiler left in
its cache. A check that does not come to a result ends the worker, and the next one gets a worker of its own. A worker has a
session of its own; when it is over, for whatever reason, every process that it started is dead. While another measurement is
being timed on the device it is held still.
"""

import contextlib
import ctypes
import os
import random
import resource
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import psutil

from timmgate import claims, gpus, messages, module_environment
from timmgate.claims import Claim, HeldTime, Share
from timmgate.endings import OUT_OF_MEMORY, RETRYABLE, Ending, Verdict, classify, lacked_memory
from timmgate.spec import Spec

POLL_S = 0.05
"""Longest time between two looks at the deadline and at the worker."""

STACK_DUMP_S = 0.5
"""Time that a hung worker gets to write its Python stacks into the log before it is killed."""

TEARDOWN_S = 10.0
"""Time that a worker gets to exit by itself after its last words."""

BACKOFF_S = 1.0
"""Longest pause before the second attempt; it doubles with every further one, and is drawn at random up to that."""

OWN_TIMING = ("queue", "timing")
"""Stages in which a worker waits for the device or has it alone: others hold still then, not it."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


@dataclass(frozen=True)
class Policy:
    """How to measure, as against what: none of it is part of a measurement's identity.

    `cache` is the folder of compile caches, with one for each program in it, or if `shared` one cache for all of them.
    `toolchain` has what the compiler builds once per machine. `timeout_s` is for one check, and
    `timing_limit_s` for the samples of the performance check.
    """

    threads: int
    timeout_s: float
    attempts: int
    cache: Path
    weights: Path | None = None
    shared: bool = False
    toolchain: Path | None = None
    timing_limit_s: float = 15.0
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


def supervise(specs: Sequence[Spec], policy: Policy, log: Path) -> list[Outcome]:
    """Measure the checks of one cell and always come back with an outcome for each. What workers print goes to `log`.

    What a second try can cure (`endings.RETRYABLE`) is tried up to `policy.attempts` times. A timing that runs out of memory
    is tried with smaller batches. What runs out of memory beside a neighbour is first tried again with the whole device, for
    that says nothing about the model.
    """
    outcomes: dict[str, Outcome] = {}
    wanted = policy.wanted(specs[0].device)
    attempts, wall_s, batch_size = Counter(), Counter(), None
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream, interruptible():
        while pending := [spec for spec in specs if spec.check not in outcomes]:
            command = worker_command(pending, policy, batch_size)
            number = attempts[pending[0].check] + 1
            print(f"{datetime.now(UTC):%F %T} attempt {number}: {shlex.join(command)}", file=stream, flush=True)
            with contextlib.closing(claims.claim(wanted)) as claim:
                endings = run_worker(command, claim, policy.timeout_s, stream)
                had_neighbours = claim.had_neighbours()
            for spec, ending in zip(pending, endings, strict=False):
                verdict, check = classify(ending), spec.check
                ending.facts["device_uuid"] = gpus.uuid_of(claim.device)
                attempts[check] += 1
                wall_s[check] += ending.wall_s
                said = (f"{check}:", verdict.status, verdict.cause, verdict.message)
                print(" ".join(filter(None, said)), file=stream, flush=True)
                smaller = next_batch_size(batch_size or spec.requested_batch_size)
                if lacked_memory(ending, verdict) and had_neighbours:
                    wanted = replace(wanted, whole=True)
                elif verdict.status in OUT_OF_MEMORY and check == "performance" and smaller:
                    batch_size = smaller
                elif verdict.status in RETRYABLE and attempts[check] < policy.attempts:
                    time.sleep(random.uniform(0, BACKOFF_S * 2 ** (attempts[check] - 1)))
                else:
                    outcomes[check] = Outcome(ending, verdict, attempts[check], wall_s[check])
    return [outcomes[spec.check] for spec in specs]


def next_batch_size(batch_size: int) -> int:
    """The next smaller batch size to try, 0 after 1: half way to the next power of two (timm.utils.decay_batch_step)."""
    if batch_size <= 1:
        return 0
    power = 1 << ((batch_size - 1).bit_length() - 1)
    step = max(power // 2, 1)
    return power + (batch_size - power - 1) // step * step


def run_worker(command: list[str], claim: Claim, timeout_s: float, log: TextIO) -> list[Ending]:
    """Start `command` and follow it until it ends or a limit is reached; how each check that it began ended, at least one.

    No process of it is left behind.
    """
    ending = Ending(timeout_s=timeout_s)
    oom_kills_before, others = oom_kills(), set(psutil.Process().children(recursive=True))
    cpu_before_s, start = children_cpu_s(), time.monotonic()
    reading, writing = os.pipe()
    become_subreaper()
    with contextlib.closing(Share(claim.device)) as share, tempfile.TemporaryFile() as held:
        while not share.may_run():
            time.sleep(POLL_S)
        try:
            worker = subprocess.Popen(
                [*command, "--messages", str(writing), "--held", str(held.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(writing, held.fileno(), share.fileno(), *claim.filenos),
                start_new_session=True,
                env={**module_environment(), **gpus.only(claim.device)},
            )
        except OSError as error:
            os.close(reading)
            ending.trouble = type(error).__name__, f"the worker could not be started: {error}"
            return [ending]
        finally:
            os.close(writing)
        follower = Follower(worker, share, HeldTime(held), timeout_s)
        try:
            returncode = follower.follow(reading)
            if returncode is None:
                dump_stacks(worker)
        finally:
            os.close(reading)
            kill_all(worker, others)
    endings = follower.endings
    endings[-1].returncode = returncode
    endings[-1].oom_killed = worker.returncode == -signal.SIGKILL and oom_kills() > oom_kills_before
    endings[-1].cpu_s = children_cpu_s() - cpu_before_s - sum(ending.cpu_s for ending in endings[:-1])
    endings[-1].wall_s = time.monotonic() - start - sum(ending.wall_s for ending in endings[:-1])
    return endings


class Follower:
    """Takes in what a worker says and keeps the time of its stages; `endings` has one for each check that it began."""

    def __init__(self, worker: subprocess.Popen, share: Share, held: HeldTime, timeout_s: float):
        self._worker, self._share, self._held, self._timeout_s = worker, share, held, timeout_s
        self.endings = [Ending(timeout_s=timeout_s)]
        self._began, self._began_elapsed_s, self._cpu_s = time.monotonic(), 0.0, 0.0
        self._last, self._used_s = time.monotonic(), 0.0
        self._is_held, self._held_since = False, 0.0

    @property
    def ending(self) -> Ending:
        """Of the check that is under way."""
        return self.endings[-1]

    def follow(self, reading: int) -> int | None:
        """Take in messages until the worker has ended (its return code) or has to be killed (None)."""
        os.set_blocking(reading, False)
        buffered = b""
        with selectors.DefaultSelector() as selector:
            selector.register(reading, selectors.EVENT_READ)
            while True:
                gone = self._worker.poll() is not None
                # Before reading: a worker says that it will wait for the device before it does so.
                was_alone = self.ending.stage in OWN_TIMING
                may_run = was_alone or self._share.may_run()
                for _ in selector.select(0 if gone else POLL_S):
                    chunk = os.read(reading, 1 << 20)
                    if not chunk:
                        selector.unregister(reading)
                    *lines, buffered = (buffered + chunk).split(b"\n")
                    for line in lines:
                        self._take(line)
                    gone = gone and not chunk  # there may be more in the pipe of a process that is gone
                self._count_time()
                if gone:
                    self._stop_stage()
                    return self._worker.returncode
                if self.ending.trouble or self._used_s > self._limit_s():
                    self._stop_stage()
                    return None
                if was_alone and self.ending.stage not in OWN_TIMING:
                    may_run = self._share.may_run()
                self._hold_still_or_not(may_run)

    def _limit_s(self) -> float:
        """Seconds for the check, or after its last words for the process to end."""
        return TEARDOWN_S if self.ending.result or self.ending.failure else self._timeout_s

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
        cpu_s = tree_cpu_s(self._worker.pid)
        self.ending.cpu_s, self._cpu_s = cpu_s - self._cpu_s, cpu_s
        self.ending.wall_s, self._began = self._last - self._began, self._last
        self._began_elapsed_s, self._used_s = elapsed_s, 0.0
        self.endings.append(Ending(timeout_s=self._timeout_s))


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


def dump_stacks(worker: subprocess.Popen) -> None:
    """Let a hung worker write where it hangs (it listens for SIGUSR1)."""
    with contextlib.suppress(ProcessLookupError):
        worker.send_signal(signal.SIGUSR1)
        time.sleep(STACK_DUMP_S)


def kill_all(worker: subprocess.Popen, others: set[psutil.Process]) -> None:
    """Kill the worker's process group and everything else that it left behind, until nothing is left.

    Processes that left the group, as inductor's compile pool does, have become our children (see `become_subreaper`);
    `others` are children that were there before.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    while left := set(psutil.Process().children(recursive=True)) - others:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=POLL_S)


def children_cpu_s() -> float:
    """Processor seconds, user and system, of all descendants that have ended and been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def oom_kills() -> int:
    """How often the kernel has killed a process of our control group (else of the machine) for want of memory."""
    for group in _cgroup_counters():
        if group.is_file():
            return _counter(group, "oom_kill")
    vmstat = Path("/proc/vmstat")
    return _counter(vmstat, "oom_kill") if vmstat.is_file() else 0


def _cgroup_counters() -> Iterator[Path]:
    """Files with an `oom_kill` line: of control groups version 2, then of version 1."""
    membership = Path("/proc/self/cgroup")
    for line in membership.read_text().splitlines() if membership.is_file() else []:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            yield Path("/sys/fs/cgroup") / group.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield Path("/sys/fs/cgroup/memory") / group.lstrip("/") / "memory.oom_control"


def _counter(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == name), 0)


def die_with_parent(by: signal.Signals) -> None:
    """Ask the kernel to send us `by` when the thread that started us ends. Linux only; elsewhere it does nothing."""
    _prctl(PR_SET_PDEATHSIG, by)


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
