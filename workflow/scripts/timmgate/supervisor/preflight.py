"""Asks the environment and the device whether what was requested is possible, supervised like a measurement."""

import contextlib
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from timmgate.core.outcome import AttemptResult
from timmgate.core.preflight import Answer, Question
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Mode
from timmgate.supervisor.capped_log import CappedLog
from timmgate.supervisor.cell import slot_request, worker_program
from timmgate.supervisor.monitor import Limits, run_worker
from timmgate.system import device_locks
from timmgate.system.process_tree import die_with_run, interruptible, kill_leftovers


def toolchain_folder(device: str, build: str) -> Path:
    """Where what the compiler builds once per machine lies, relative to the working directory."""
    return Path(".cache", "toolchain", build, device)


def of_snakemake(snakemake: Any) -> Answer:
    """The answer for the rule `preflight`."""
    run, params = RunOptions.from_dict(json.loads(snakemake.resources.run_options)), snakemake.params
    device, build = snakemake.wildcards.device, snakemake.wildcards.build
    question = Question(
        device=device,
        modes={name: Mode(**options) for name, options in params.modes.items()},
        models=params.models,
        software=params.software,
        answer=Path(snakemake.output[0]).absolute(),
        toolchain=toolchain_folder(device, build).absolute(),
    )
    die_with_run(signal.SIGTERM)
    return ask(question, replace(run, threads=snakemake.threads), Path(snakemake.log[0]))


def ask(question: Question, run: RunOptions, log: Path) -> Answer:
    """The environment's own answer; one with a problem if it came to none."""
    ended: list[AttemptResult] = []
    question.answer.unlink(missing_ok=True)
    question.answer.parent.mkdir(parents=True, exist_ok=True)
    device_locks.report_unkillable(kill_leftovers())
    with CappedLog(log) as stream, interruptible():
        try:
            with contextlib.closing(device_locks.lease(slot_request(question.device, run))) as lease:
                command = [*worker_program(), "--preflight", question.to_json()]
                run_worker(lambda *_: command, lease, Limits(run.timeout), stream, lambda end, _: ended.append(end))
        except device_locks.StuckError as error:
            return Answer([str(error)])
    if question.answer.is_file():
        return Answer.from_json(question.answer.read_text(encoding="utf-8"))
    return Answer([f"{command[0]} cannot measure: it {_how(ended[-1])}; {log} has what it printed"])


def _how(end: AttemptResult) -> str:
    if end.supervisor_error:
        return ": ".join(end.supervisor_error)
    if end.returncode is None:
        return f"did not answer within {end.timeout_s:g} s"
    return f"ended with exit code {end.returncode} before it answered"
