"""Runs one trial of a diagnosis in a worker process, with the limits, locks and devices of a measurement."""

import contextlib
import shlex
from dataclasses import replace

from timmgate.core.diagnosis import TrialRequest
from timmgate.core.outcome import AttemptResult, Verdict, now
from timmgate.supervisor.capped_log import CappedLog
from timmgate.supervisor.cell import slot_request, worker_program
from timmgate.supervisor.classification import classify
from timmgate.supervisor.monitor import Limits, run_worker
from timmgate.system import device_locks, gpus
from timmgate.system.device_locks import StuckError


def run(request: TrialRequest, log: CappedLog) -> tuple[AttemptResult, Verdict]:
    """What was seen of the trial, and its status. What the worker prints goes to the log, and where it hung."""
    ended: list[AttemptResult] = []
    policy = request.run
    log.line(f"{now():%F %T} {request.variant.name}: {shlex.join(command(request))}")
    try:
        with contextlib.closing(device_locks.lease(slot_request(request.spec.device, policy))) as lease:
            own = replace(request, device_number=gpus.number_of(lease.device))

            def start(messages: int, paused: int) -> list[str]:
                return command(replace(own, messages=messages, paused=paused))

            limits, variables = (
                Limits(policy.timeout, policy.memory_bytes),
                {**policy.build.env, **request.variant.variables},
            )
            run_worker(start, lease, limits, log, lambda attempt, _: ended.append(attempt), variables=variables)
    except StuckError as error:
        ended.append(AttemptResult(stage=None, supervisor_error=("stuck", str(error))))
    (attempt,) = ended
    verdict = classify(attempt)
    log.line(" ".join(filter(None, (verdict.status, verdict.cause, verdict.message))))
    return attempt, verdict


def command(request: TrialRequest) -> list[str]:
    """The command of a worker that does a trial."""
    return [*worker_program(request.run.build), "--diagnose", request.to_json()]
