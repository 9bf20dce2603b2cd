"""Runs a worker module that studies one model in one mode with many runs, and hands its rows on."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from timmgate import module_environment
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.supervisor import cell
from timmgate.system import device_locks, gpus, process_tree
from timmgate.system.process_tree import die_with_run
from timmgate.weights import record


def rows(
    module: str, spec: Spec, run: RunOptions, weights: Path | None, log: Path, /, **options: Any
) -> list[dict[str, Any]]:
    """What `python -m module REQUEST FILE` writes into the file: a list of objects. It ends the job if that fails.

    `weights` is the file that says where the weights lie, unless they are drawn from the seed. `options` are the module's.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "rows.json")
        process(module, spec, run, weights, log, answer, **options).check_returncode()
        written: list[dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))
        return written


def process(
    module: str, spec: Spec, run: RunOptions, weights: Path | None, log: Path, answer: Path, /, **options: Any
) -> subprocess.CompletedProcess:
    """A process of the module, on a device of its own, that has ended; what it printed is in the log.

    It ends the job if there are no weights.
    """
    die_with_run(signal.SIGTERM)
    found = record.read_optional(weights)
    if found and (failure := found.failure()):
        sys.exit(f"{spec.mode}/{spec.model}: {failure.message}")
    run = replace(run, weights=found.path if found else None)
    request = json.dumps({"spec": spec.to_dict(), "run": run.to_dict(), **options})
    command = [run.build.python or sys.executable, "-m", module, request, str(answer)]
    with contextlib.closing(device_locks.lease(cell.slot_request(spec.device, run))) as lease, log.open("wb") as stream:
        environment = {**module_environment(run.build.env), **gpus.only(lease.device)}
        with process_tree.bound_to(lease.cores):
            return subprocess.run(command, env=environment, stdout=stream, stderr=subprocess.STDOUT, pass_fds=lease.filenos)
