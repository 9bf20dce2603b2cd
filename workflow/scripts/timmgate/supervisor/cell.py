"""Measures the checks of one cell by worker processes, and makes one `Outcome` of whatever becomes of each.

A worker does the checks of a cell one after the other, for what they have in common: imports, and what the compiler left in
its cache. A check that does not come to a result ends the worker, and the next one gets a worker of its own. Must not import
torch.
"""

import os
import random
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

from timmgate.core.build import BuildOptions
from timmgate.core.checks import CHECKS, EAGER_2ND, IMPORT
from timmgate.core.outcome import OUT_OF_MEMORY, RETRYABLE, AttemptResult, Outcome, Verdict, now
from timmgate.core.protocol import Request
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.supervisor.capped_log import CappedLog
from timmgate.supervisor.classification import classify, lacked_memory
from timmgate.supervisor.journal import LOST, Journal
from timmgate.supervisor.monitor import Limits, Wiring, run_worker
from timmgate.supervisor.stages import WAITING
from timmgate.system import cpu_topology, gpus
from timmgate.system.device_locks import SlotRequest
from timmgate.weights.record import STAGE as WEIGHTS

BACKOFF_S = 1.0
"""Longest pause before the second attempt; it doubles with every further one, and is drawn at random up to that."""

Tell = Callable[[str, str | None, bool], None]
"""Is told a check, its stage as far as that is known, and whether its worker is paused."""


def slot_request(device: str, run: RunOptions) -> SlotRequest:
    """What a measurement on a torch device type takes: one slot of a GPU, or as many cores as it has threads."""
    if device != "cpu":
        return SlotRequest(tuple(gpus.names(device, run.devices)), tuple(range(run.jobs_per_gpu)))
    first, *others = lanes = cpu_topology.lanes(run.timing_lanes)
    if run.threads > len(first):  # as on a node of a cluster, which nobody knew before
        first, *others = cpu_topology.lanes(1)
    if not others:
        return SlotRequest((device,), first, min(run.threads, len(first)))
    slots = tuple(range(len(first)))
    return SlotRequest(tuple(gpus.names(device, len(lanes))), slots, min(run.threads, len(slots)), tuple(lanes))


def worker_program(build: BuildOptions) -> list[str]:
    """The worker, run by the Python of a build; TIMMGATE_WORKER in the environment replaces it."""
    return shlex.split(os.environ.get("TIMMGATE_WORKER", "")) or [build.python or sys.executable, "-m", "timmgate.worker"]


def worker_command(request: Request) -> list[str]:
    """The command that measures."""
    return [*worker_program(request.run.build), request.to_json()]


def supervise(
    specs: Sequence[Spec],
    run: RunOptions,
    log: Path,
    journal: Journal,
    tell: Tell = lambda *_: None,
    device: str | None = None,
) -> list[Outcome]:
    """Measure the checks of one cell and always come back with an outcome for each. What workers print goes to `log`.

    `tell` is told which check is in which stage, and whether its worker is paused, again and again. `device` is the name of
    the only one that it may have, if not any of its type.

    What a second attempt can cure (`outcome.RETRYABLE`) is tried up to `run.attempts` times, those counted whose supervisor
    was lost; with 0 nothing is measured, and what has no outcome yet was lost. A timing that runs out of memory is tried
    with smaller batches. What runs out of memory beside a neighbour is first tried again with the whole device, for that
    says nothing about the model.
    """
    with CappedLog(log) as stream:
        slots = slot_request(specs[0].device, run)
        measurement = Measurement(specs, run, stream, journal, tell, slots.of(device) if device in slots.devices else slots)
        while measurement.pending:
            measurement.run_worker()
    return [measurement.outcomes[spec.check] for spec in specs]


def not_started(specs: Sequence[Spec], verdict: Verdict, log: Path, journal: Journal) -> list[Outcome]:
    """The outcomes of a measurement that was never started, because there are no weights; the file `log` says so."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"{verdict.status} {verdict.cause} {verdict.message}\n", encoding="utf-8")
    results = [AttemptResult(spec.check, stage=WEIGHTS) for spec in specs]
    for result in results:
        journal.never_began(result.check, result, verdict)
    return [Outcome(result, verdict, attempt=0, wall_s=0.0) for result in results]


def given_up(journal: Journal, check: str) -> Outcome:
    """The outcome of a check that is not tried any more: the last thing that is known of it."""
    known = journal.last_failed.get(check, asdict(LOST))
    verdict = Verdict(known["status"], known["cause"], known["message"])
    return Outcome(AttemptResult(check, stage=known.get("stage")), verdict, journal.attempts[check], journal.wall_s[check])


class Measurement:
    """The checks of one cell on the way to their outcomes."""

    def __init__(
        self, specs: Sequence[Spec], run: RunOptions, log: CappedLog, journal: Journal, tell: Tell, slots: SlotRequest
    ):
        self._specs, self._run, self._log, self._journal, self._tell = specs, run, log, journal, tell
        self._under_way: list[Spec] = []
        self._batch_size: int | None = None
        self._pause_s = 0.0
        self._slots = slots
        self.outcomes = {
            spec.check: given_up(journal, spec.check)
            for spec in specs
            if journal.failed_attempts[spec.check] >= run.attempts
        }

    @property
    def pending(self) -> list[Spec]:
        """The checks without an outcome."""
        return [spec for spec in self._specs if spec.check not in self.outcomes]

    def run_worker(self) -> None:
        """Give a worker what is pending, and follow it to its end.

        After a failed attempt only the first of it, so that it is known which check the next one belongs to.
        """
        self._under_way, self._pause_s = self.pending[: 1 if self._journal.failed_attempts.total() else None], 0.0
        request = Request(tuple(self._under_way), self._run, self._batch_size)
        number = self._journal.attempts[self._under_way[0].check] + 1
        self._log.line(f"{now():%F %T} attempt {number}: {shlex.join(worker_command(request))}")

        self._tell(self._under_way[0].check, WAITING, False)

        def start(wiring: Wiring) -> list[str]:
            self._journal.began(self._under_way[0].check)
            return worker_command(replace(request, **asdict(wiring)))

        limits = Limits(self._run.timeout, self._run.memory_bytes)
        run_worker(start, self._slots, limits, self._log, self.ended, self.looked_at, self._run.build.env)
        time.sleep(self._pause_s)

    def looked_at(self, stage: str | None, is_paused: bool) -> None:
        """The worker is in a stage of the check that is under way."""
        self._tell(self._under_way[0].check, stage, is_paused)

    def ended(self, attempt: AttemptResult, goes_on: bool) -> None:
        """A check came to an end, and the worker goes on to the next one or not."""
        spec = self._under_way.pop(0)
        check = attempt.check = spec.check
        attempt.columns["device_uuid"] = attempt.device and gpus.uuid_of(attempt.device)
        if check == "performance" and spec.device == "cpu":
            attempt.columns["timing_lanes"] = len(slot_request(spec.device, self._run).devices)
        settle_for_less(attempt)
        estimate(spec, attempt, self._log)
        verdict = classify(attempt)
        self._journal.ended(check, attempt, verdict)
        self._log.line(f"{check}: {verdict.as_line}")
        smaller = next_batch_size(self._batch_size or spec.requested_batch_size)
        if spec.options.training and smaller == 1:
            smaller = 0  # a batch norm over one value for each channel raises, and it would not be memory any more
        failed_attempts = self._journal.failed_attempts[check]
        if attempt.was_shared and lacked_memory(attempt, verdict, spec.device):
            self._slots = replace(self._slots, count=len(self._slots.slots))
        elif verdict.status in OUT_OF_MEMORY and CHECKS[check].shrinks and smaller:
            self._batch_size = smaller
        elif verdict.status in RETRYABLE and failed_attempts < self._run.attempts:
            if attempt.stage == IMPORT.name and attempt.device and spec.device != "cpu" and len(self._slots.devices) > 1:
                self._slots = self._slots.without(attempt.device)  # one that fails at once is always the emptiest
            self._pause_s = random.uniform(0, BACKOFF_S * 2 ** (failed_attempts - 1))
        else:
            self.outcomes[check] = Outcome(attempt, verdict, self._journal.attempts[check], self._journal.wall_s[check])
        if goes_on:
            self._journal.began(self._under_way[0].check)


def settle_for_less(attempt: AttemptResult) -> None:
    """Where a limit, or eager, ended a stage without which there is a result: that is the result, and a column says why.

    Eager runs may die of a signal where compiled was right, as of a bug in the kernels for another memory format.
    """
    so_far, column = attempt.result_so_far, CHECKS[attempt.check].cut_short
    if not so_far or not column or attempt.result:
        return
    end = classify(attempt)
    if attempt.reached_limit or end.status in EAGER_2ND:
        attempt.columns[column] = f"{end.status}: {end.cause}"
        attempt.result = {name: value for name, value in so_far.items() if name != "details"}
        attempt.details = so_far["details"]


def estimate(spec: Spec, attempt: AttemptResult, log: CappedLog) -> None:
    """Add what follows from a result's details to its columns. Here, as it takes scipy, which a worker need not have.

    An error here is ours: the status says so, and what was measured stays.
    """
    estimator = CHECKS[spec.check].estimator
    if attempt.result is None or estimator is None:
        return
    try:
        attempt.columns.update(import_module(estimator).estimate(spec, attempt.details))
    except Exception as error:
        log.line(traceback.format_exc())
        attempt.result = {"status": "infra_error", "cause": type(error).__name__, "message": f"in the estimate: {error}"}


def next_batch_size(batch_size: int) -> int:
    """The next smaller batch size to try, 0 after 1: half way to the next power of two (timm.utils.decay_batch_step)."""
    if batch_size <= 1:
        return 0
    power = 1 << ((batch_size - 1).bit_length() - 1)
    step = max(power // 2, 1)
    return power + (batch_size - power - 1) // step * step
