"""Runs one trial of a diagnosis in a worker process, with the limits, locks and devices of a measurement."""

import contextlib
import shlex
from dataclasses import replace

from timmgate.core.diagnosis import TrialRequest
from timmgate.core.outcome import AttemptResult, Verdict, now
from timmgate.supervisor.capped_log import CappedLog
from timmgate.supervisor.cell import slot_request, worker_program
from timmgate.supervisor.classification import classify, lacked_memory
from timmgate.supervisor.monitor import Limits, run_worker
from timmgate.system import device_locks, gpus
from timmgate.system.device_locks import SlotRequest, StuckError


def run(request: TrialRequest, log: CappedLog) -> tuple[AttemptResult, Verdict]:
    """What was seen of the trial, and its status. What the worker prints goes to the log, and where it hung.

    What runs out of memory beside a neighbour is tried again with the whole device, as in a measurement.
    """
    slots = slot_request(request.spec.device, request.run)
    attempt, was_shared = _once(request, slots, log)
    if was_shared and lacked_memory(attempt, classify(attempt), request.spec.device):
        attempt, _ = _once(request, replace(slots, count=len(slots.slots)), log)
    verdict = classify(attempt)
    log.line(" ".join(filter(None, (verdict.status, verdict.cause, verdict.message))))
    return attempt, verdict


def _once(request: TrialRequest, slots: SlotRequest, log: CappedLog) -> tuple[AttemptResult, bool]:
    """What was seen of the trial, and whether somebody else had a part of the device meanwhile."""
    ended: list[AttemptResult] = []
    policy, was_shared = request.run, False
    log.line(f"{now():%F %T} {request.variant.name}: {shlex.join(command(request))}")
    try:
        with contextlib.closing(device_locks.lease(slots)) as lease:
            own = replace(request, device_number=gpus.number_of(lease.device))

            def start(messages: int, paused: int) -> list[str]:
                return command(replace(own, messages=messages, paused=paused))

            limits, variables = (
                Limits(policy.timeout, policy.memory_bytes),
                {**policy.build.env, **request.variant.variables},
            )
            run_worker(start, lease, limits, log, lambda attempt, _: ended.append(attempt), variables=variables)
            was_shared = lease.was_shared()
    except StuckError as error:
        ended.append(AttemptResult(stage=None, supervisor_error=("stuck", str(error))))
    (attempt,) = ended
    return attempt, was_shared


def command(request: TrialRequest) -> list[str]:
    """The command of a worker that does a trial."""
    return [*worker_program(request.run.build), "--diagnose", request.to_json()]
