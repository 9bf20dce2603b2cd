"""Measures the checks of one cell by worker processes, and makes one `Outcome` of whatever becomes of each. Knows no torch.

A worker does the checks of a cell one after the other, for what they have in common: imports, and what the compiler left in
its cache. A check that does not come to a result ends the worker, and the next one gets a worker of its own.
"""

import contextlib
import os
import random
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from timmgate import claims, cores, gpus
from timmgate.attempts import LOST, Journal
from timmgate.claims import Claim, StuckError, Wanted
from timmgate.endings import OUT_OF_MEMORY, RETRYABLE, Ending, Verdict, classify, lacked_memory
from timmgate.follow import Limits, run_worker
from timmgate.logs import CappedLog
from timmgate.processes import kill_leftovers
from timmgate.spec import Spec

BACKOFF_S = 1.0
"""Longest pause before the second attempt; it doubles with every further one, and is drawn at random up to that."""


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

    @property
    def limits(self) -> Limits:
        """Of each check."""
        return Limits(self.timeout_s, self.memory_bytes)

    def wanted(self, device: str) -> Wanted:
        """The claim of a measurement on a torch device type: one slot of a GPU, or as many cores as it has threads."""
        if device != "cpu":
            return Wanted(tuple(gpus.names(device)), tuple(range(self.jobs_per_gpu)))
        mine = tuple(cores.available())
        return Wanted((device,), mine, min(self.threads, len(mine)))


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
    claims.give_up(kill_leftovers())
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
        try:
            with contextlib.closing(claims.claim(self._wanted)) as claim:
                self._journal.began(self._under_way[0].check)
                run_worker(command, claim, self._policy.limits, self._log, partial(self.ended, claim))
        except StuckError as error:
            self.ended(None, Ending(stage=None, trouble=("stuck", str(error))), goes_on=False)
        time.sleep(self._pause_s)

    def ended(self, claim: Claim | None, ending: Ending, goes_on: bool) -> None:
        """A check came to an end, if it had a device at all, and the worker goes on to the next one or not."""
        spec = self._under_way.pop(0)
        ending.facts["device_uuid"] = claim and gpus.uuid_of(claim.device)
        check, verdict = spec.check, classify(ending)
        self._journal.ended(check, ending, verdict)
        self._log.line(" ".join(filter(None, (f"{check}:", verdict.status, verdict.cause, verdict.message))))
        smaller = next_batch_size(self._batch_size or spec.requested_batch_size)
        times_in_vain = self._journal.in_vain[check]
        # On a CPU it is the cell's own limit that ends it.
        if lacked_memory(ending, verdict) and spec.device != "cpu" and claim.had_neighbours():
            self._wanted = replace(self._wanted, count=len(self._wanted.slots))
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
