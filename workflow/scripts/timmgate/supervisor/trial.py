"""Runs one trial of a diagnosis in a worker process, with the limits, locks and devices of a measurement."""

import shlex
from dataclasses import asdict, replace

from timmgate.core.diagnosis import TrialRequest
from timmgate.core.outcome import AttemptResult, Verdict, now
from timmgate.supervisor.capped_log import CappedLog
from timmgate.supervisor.cell import slot_request, worker_program
from timmgate.supervisor.classification import classify, lacked_memory
from timmgate.supervisor.monitor import Limits, Wiring, run_once
from timmgate.system.device_locks import SlotRequest


def run(request: TrialRequest, log: CappedLog) -> tuple[AttemptResult, Verdict]:
    """What was seen of the trial, and its status. What the worker prints goes to the log, and where it hung.

    What runs out of memory beside a neighbour is tried again with the whole device, as in a measurement.
    """
    slots = slot_request(request.spec.device, request.run)
    attempt = _once(request, slots, log)
    if attempt.was_shared and lacked_memory(attempt, classify(attempt), request.spec.device):
        attempt = _once(request, replace(slots, count=len(slots.slots)), log)
    verdict = classify(attempt)
    log.line(verdict.as_line)
    return attempt, verdict


def _once(request: TrialRequest, slots: SlotRequest, log: CappedLog) -> AttemptResult:
    """What was seen of the trial."""
    policy = request.run
    log.line(f"{now():%F %T} {request.variant.name}: {shlex.join(command(request))}")

    def start(wiring: Wiring) -> list[str]:
        return command(replace(request, **asdict(wiring)))

    limits, variables = Limits(policy.timeout, policy.memory_bytes), {**policy.build.env, **request.variant.variables}
    return run_once(start, slots, limits, log, variables)


def command(request: TrialRequest) -> list[str]:
    """The command of a worker that does a trial."""
    return [*worker_program(request.run.build), "--diagnose", request.to_json()]
