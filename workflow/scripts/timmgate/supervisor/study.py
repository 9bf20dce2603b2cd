"""Has a worker study one model in one mode with many runs, and hands its rows on."""

import json
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.core.study import StudyRequest
from timmgate.supervisor.capped_log import CappedLog
from timmgate.supervisor.cell import slot_request
from timmgate.supervisor.classification import classify
from timmgate.supervisor.monitor import Limits, Wiring, run_once
from timmgate.system.process_tree import die_with_run, interruptible
from timmgate.weights import record


class StudyError(SystemExit):
    """It ends the job with a sentence that says which study failed, and how."""


def rows(
    module: str, spec: Spec, run: RunOptions, weights: Path | None, log: Path, timeout_s: float, /, **options: Any
) -> list[dict[str, Any]]:
    """What the function `study` of a worker's module returns for a spec, the policy and its own `options`.

    `weights` is the file that says where the weights lie, unless they are drawn from the seed. The study has a device of its
    own, with the limits and locks of a measurement. What it printed is in the log, and of what it started nothing is left.
    Raises StudyError if it fails, or if there are no weights.
    """
    die_with_run(signal.SIGTERM)
    found = record.read_optional(weights)
    if found and (failure := found.failure()):
        raise StudyError(f"{spec.mode}/{spec.model}: {failure.message}")
    run = replace(run, weights=found.path if found else None)
    with interruptible(), tempfile.TemporaryDirectory() as folder, CappedLog(log) as stream:
        answer = Path(folder, "rows.json")
        request = StudyRequest(module, spec, run, answer, options)

        def start(wiring: Wiring) -> list[str]:
            own = replace(request, device_number=wiring.device_number)
            return [run.build.python or sys.executable, "-m", "timmgate.worker", "--study", own.to_json()]

        slots, limits = slot_request(spec.device, run), Limits(timeout_s, run.memory_bytes)
        end = run_once(start, slots, limits, stream, run.build.env)
        may_have_lacked_memory = end.was_shared and (end.oom_killed or spec.device != "cpu")  # it does not say
        if not answer.is_file() and may_have_lacked_memory:
            end = run_once(start, replace(slots, count=len(slots.slots)), limits, stream, run.build.env)
        if not answer.is_file():
            raise StudyError(f"{spec.mode}/{spec.model}: {module} failed ({classify(end)}); see {log}")
        written: list[dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))
        return written
