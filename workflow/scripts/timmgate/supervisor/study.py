"""Runs a worker module that studies one model in one mode with many runs, and hands its rows on."""

import contextlib
import json
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from timmgate import module_environment
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.supervisor import cell
from timmgate.supervisor.classification import signal_name
from timmgate.system import device_locks, gpus, process_tree
from timmgate.system.process_tree import die_with_run
from timmgate.system.timing_lock import ActivityLock
from timmgate.weights import record

TIMEOUTS = 20
"""Of the time limit of a check, how often a study of one model may take it: it has many runs. Its rules ask for as much."""


class StudyError(SystemExit):
    """It ends the job with a sentence that says which study failed, and how."""


def rows(
    module: str,
    spec: Spec,
    run: RunOptions,
    weights: Path | None,
    log: Path,
    /,
    timeout_s: float | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """What `python -m module REQUEST FILE` writes into the file: a list of objects. Raises StudyError if that fails.

    `weights` is the file that says where the weights lie, unless they are drawn from the seed. `options` are the module's.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "rows.json")
        if how := process(module, spec, run, weights, log, answer, timeout_s, **options):
            raise StudyError(f"{spec.mode}/{spec.model}: {module} {how}; see {log}")
        written: list[dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))
        return written


def process(
    module: str,
    spec: Spec,
    run: RunOptions,
    weights: Path | None,
    log: Path,
    answer: Path,
    timeout_s: float | None,
    /,
    **options: Any,
) -> str | None:
    """Run a process of the module on a device of its own until it ends; how it failed, in words, or None if it did not.

    It is paused while a measurement is timed on the device.
    What it printed is in the log, and of what it started nothing is left. Raises StudyError if there are no weights.
    """
    die_with_run(signal.SIGTERM)
    found = record.read_optional(weights)
    if found and (failure := found.failure()):
        raise StudyError(f"{spec.mode}/{spec.model}: {failure.message}")
    run = replace(run, weights=found.path if found else None)
    request = json.dumps({"spec": spec.to_dict(), "run": run.to_dict(), **options})
    command = [run.build.python or sys.executable, "-m", module, request, str(answer)]
    with (
        process_tree.interruptible(),
        contextlib.closing(device_locks.lease(cell.slot_request(spec.device, run))) as lease,
        contextlib.closing(ActivityLock(lease.device)) as activity,
        log.open("wb") as stream,
    ):
        environment = {**module_environment(run.build.env), **gpus.only(lease.device)}
        kept_open = [*activity.filenos, *lease.filenos]
        pausing = activity.may_run, activity.release
        returncode = process_tree.run(command, environment, stream, kept_open, lease.cores, timeout_s, *pausing)
    if returncode is None:
        return f"did not end in {timeout_s:.0f} s"
    if returncode < 0:
        return f"was killed by {signal_name(-returncode)}"
    return f"ended with exit code {returncode}" if returncode else None
