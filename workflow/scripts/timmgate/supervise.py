"""Runs a worker process and turns whatever becomes of it into an `Ending`. Knows no torch and nothing of what is measured.

The worker gets a session of its own. When an attempt is over, for whatever reason, every process that it started is dead.
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
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import psutil

from timmgate import messages, module_environment
from timmgate.endings import RETRYABLE, Ending, Verdict, classify
from timmgate.spec import Spec

POLL_S = 0.05
"""Longest time between two looks at the deadline and at the worker."""

STACK_DUMP_S = 0.5
"""Time that a hung worker gets to write its Python stacks into the log before it is killed."""

TEARDOWN_S = 10.0
"""Time that a worker gets to exit by itself after its last words."""

BACKOFF_S = 1.0
"""Longest pause before the second attempt; it doubles with every further one, and is drawn at random up to that."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


@dataclass(frozen=True)
class Policy:
    """How to measure, as against what: none of it is part of a measurement's identity."""

    threads: int
    timeout_s: float
    attempts: int
    cache: Path
    weights: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """The last attempt: how it ended, its status, and the supervisor's own figures."""

    ending: Ending
    verdict: Verdict
    attempt: int
    started_at: datetime
    wall_s: float
    cpu_s: float


def worker_command(spec: Spec, policy: Policy) -> list[str]:
    """The command that measures `spec`; TIMMGATE_WORKER in the environment replaces the worker itself."""
    worker = shlex.split(os.environ.get("TIMMGATE_WORKER", "")) or [sys.executable, "-m", "timmgate.worker"]
    weights = ["--weights", str(policy.weights)] if policy.weights else []
    return [*worker, "--threads", str(policy.threads), "--cache", str(policy.cache), *weights, spec.to_json()]


def supervise(spec: Spec, policy: Policy, log: Path) -> Outcome:
    """Measure `spec` and always come back with an outcome; the worker's output goes to the file `log`.

    What a second try can cure (`endings.RETRYABLE`) is tried up to `policy.attempts` times.
    """
    start = time.perf_counter()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream, interruptible():
        for attempt in range(1, policy.attempts + 1):
            started_at, cpu_start_s = datetime.now(UTC), children_cpu_s()
            command = worker_command(spec, policy)
            print(f"{started_at:%F %T} attempt {attempt}: {shlex.join(command)}", file=stream, flush=True)
            ending = run_worker(command, policy.timeout_s, stream)
            verdict = classify(ending)
            print(" ".join(filter(None, (verdict.status, verdict.cause, verdict.message))), file=stream, flush=True)
            if verdict.status not in RETRYABLE or attempt == policy.attempts:
                break
            time.sleep(random.uniform(0, BACKOFF_S * 2 ** (attempt - 1)))
    return Outcome(ending, verdict, attempt, started_at, time.perf_counter() - start, children_cpu_s() - cpu_start_s)


def run_worker(command: list[str], timeout_s: float, log: TextIO) -> Ending:
    """One attempt: start `command`, follow its messages until it ends or the limit is reached, leave no process behind."""
    ending = Ending(timeout_s=timeout_s)
    oom_kills_before, others = oom_kills(), set(psutil.Process().children(recursive=True))
    reading, writing = os.pipe()
    become_subreaper()
    try:
        worker = subprocess.Popen(
            [*command, "--messages", str(writing)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            start_new_session=True,
            env=module_environment(),
        )
    except OSError as error:
        os.close(reading)
        ending.trouble = type(error).__name__, f"the worker could not be started: {error}"
        return ending
    finally:
        os.close(writing)
    try:
        clock = StageClock(ending)
        ending.returncode = _follow(worker, reading, timeout_s, ending, clock)
        clock.stop()
        if ending.returncode is None:
            dump_stacks(worker)
    finally:
        os.close(reading)
        kill_all(worker, others)
    if ending.worker_s is None:  # it did not come to say so itself
        ending.worker_s = sum(ending.stage_s.values())
    ending.oom_killed = worker.returncode == -signal.SIGKILL and oom_kills() > oom_kills_before
    return ending


def _follow(worker: subprocess.Popen, reading: int, timeout_s: float, ending: Ending, clock: "StageClock") -> int | None:
    """Take in messages until the worker has ended (its return code) or has to be killed (None)."""
    deadline = time.monotonic() + timeout_s
    os.set_blocking(reading, False)
    buffered = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while True:
            gone = worker.poll() is not None
            for _ in selector.select(0 if gone else POLL_S):
                chunk = os.read(reading, 1 << 20)
                if not chunk:
                    selector.unregister(reading)
                *lines, buffered = (buffered + chunk).split(b"\n")
                for line in lines:
                    _take(line, ending, clock)
                gone = gone and not chunk  # there may be more in the pipe of a process that is gone
            if gone:
                return worker.returncode
            if ending.result or ending.failure:
                deadline = min(deadline, time.monotonic() + TEARDOWN_S)
            if ending.trouble or time.monotonic() > deadline:
                return None


def _take(line: bytes, ending: Ending, clock: "StageClock") -> None:
    if ending.trouble:  # a message is lost, so that those after it are worth nothing
        return
    try:
        kind, content, elapsed_s = messages.parse(line)
    except ValueError as error:
        ending.trouble = "broken message", f"{line[:200]!r}: {error}"
        return
    match kind:
        case "stage":
            clock.enter(content)
        case "facts":
            ending.facts.update(content)
        case "evidence":
            ending.evidence.append(content)
        case "result" | "failure":
            setattr(ending, kind, content)
            ending.worker_s = elapsed_s
            clock.stop()


class StageClock:
    """Adds up the seconds of each stage; a stage can be entered several times."""

    def __init__(self, ending: Ending):
        self._ending, self._entered = ending, time.monotonic()

    def enter(self, stage: str) -> None:
        """The current stage ends and `stage` begins."""
        self.stop()
        self._entered = time.monotonic()
        self._ending.stage = stage
        self._ending.visits[stage] += 1

    def stop(self) -> None:
        """Credit the time since `enter` to the current stage, once."""
        if self._entered is not None:
            seconds = self._ending.stage_s
            seconds[self._ending.stage] = seconds.get(self._ending.stage, 0.0) + time.monotonic() - self._entered
            self._entered = None


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
