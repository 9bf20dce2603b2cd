"""A cell that is timed in several fresh processes: all samples of one share its layout in memory, which each draws anew.

Those after the first find the compile cache filled. They measure speed again, and no cold compile.
"""

from dataclasses import replace
from pathlib import Path

from timmgate.core.outcome import RETRYABLE, Outcome
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.core.statistics import figures
from timmgate.supervisor import fresh_process, speedup
from timmgate.weights.record import Weights


def with_further(spec: Spec, outcome: Outcome, run: RunOptions, weights: Weights | None, log: Path) -> Outcome:
    """The outcome of a check of speed, with the samples of all `run.timing_processes`, on one device; others as they are.

    Each further process has a log beside `log`. One that does not pass, or computes something else, makes the outcome: a
    program that fails in one process of five does not pass. What something other than the model ended, or another batch
    size, ends the sampling alone, and the message says so.
    """
    if spec.check != "performance" or run.timing_processes == 1 or not outcome.result.details:
        return outcome
    samples = [{**row, "process": 0} for row in outcome.result.details]
    for number in range(1, run.timing_processes):
        if not _is_right(outcome):
            break
        again = fresh_process.once(spec, run, weights, log.with_suffix(f".{number}.log"), outcome.result.device)
        if stopped := _says_nothing(outcome, again):
            message = f"{number} of {run.timing_processes} processes: the next one had {stopped}"
            outcome = replace(outcome, verdict=replace(outcome.verdict, message=message))
            break
        wall_s = outcome.wall_s + again.wall_s
        if _is_right(again):
            outcome = replace(outcome, wall_s=wall_s)
        else:
            message = ": ".join(filter(None, [f"in process {number + 1} of {run.timing_processes}", again.verdict.message]))
            verdict = replace(again.verdict, message=message)
            outcome = replace(again, verdict=verdict, attempt=outcome.attempt, wall_s=wall_s)
        if again.verdict.status == "pass":  # of others a block may not be whole
            samples += [{**row, "process": number} for row in again.result.details]
    columns = outcome.result.columns
    eager_s, compiled_s = ([row[f"{side}_s"] for row in samples] for side in ("eager", "compiled"))
    images = columns.get("images_per_s") and columns["images_per_s"] * columns["compiled_ms"] / 1e3
    of_samples = figures(eager_s, compiled_s, images, columns.get("compile_cold_s"))
    columns = {**columns, **speedup.estimate(spec, samples), **of_samples}
    return replace(outcome, result=replace(outcome.result, details=samples, columns=columns))


def _is_right(outcome: Outcome) -> bool:
    return outcome.verdict.status == "pass" and outcome.result.columns.get("timed_output_ok") is not False


def _says_nothing(outcome: Outcome, again: Outcome) -> str | None:
    """Why another process says nothing of the cell; None if it does."""
    if again.verdict.status in RETRYABLE:
        return again.verdict.as_line
    batch_size = again.result.columns.get("batch_size")
    is_other = batch_size is not None and batch_size != outcome.result.columns.get("batch_size")
    return f"another batch size, {batch_size}" if is_other else None
