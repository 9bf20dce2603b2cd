"""One outcome to the file that is kept of it: one row, with the details of the check nested in it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from timmgate.core.checks import CHECKS
from timmgate.core.outcome import Outcome
from timmgate.core.protocol import Request
from timmgate.core.redact import redacted, shortened
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Cell, Spec
from timmgate.supervisor.job import Job, Write
from timmgate.tables import parquet, provenance

OPTION_COLUMNS = ("backend", "training", "precision", "freezing", "channels_last", "dynamic")
"""Options of a mode that are columns of the same name."""


def writer(job: Job, suite: str, facts: Mapping[str, Any]) -> Write:
    """What writes the file of a check of this job; `facts` are those of the build."""

    def write(spec: Spec, outcome: Outcome, run: RunOptions) -> None:
        request = Request([job.cell.spec(check) for check in job.files], run)
        around = {"suite": suite, "retry": job.retry, **provenance.columns(request, outcome, facts, job.log)}
        parquet.write_cell(table(spec, outcome, run, around), job.files[spec.check])

    return write


def table(spec: Spec, outcome: Outcome, run: RunOptions, around: dict[str, Any]) -> Any:
    """The one row of a check, in the schema of its file.

    What the schema refuses is left out and named in the message: as long as there is a disk, there is a row.
    """
    refused: list[str] = []
    check, result = CHECKS[spec.check], outcome.result
    nested = parquet.FILE_SCHEMAS[check.name].field(parquet.DETAILS)
    details = _details(result.details, nested.type.value_type, refused)
    row = {**identity(spec), **result.columns, **around, **course(spec, outcome, run), parquet.DETAILS: details}
    made = parquet.table([redacted(row)], parquet.FILE_SCHEMAS[check.name], refused.append)
    if not refused:
        return made
    remarks = "; ".join(filter(None, [row[f"{check.name}_message"], "left out of the row", *dict.fromkeys(refused)]))
    row |= {f"{check.name}_message": shortened(remarks)}
    return parquet.table([redacted(row)], parquet.FILE_SCHEMAS[check.name], lambda _: None)


def _details(rows: list[dict[str, Any]], struct: Any, refused: list[str]) -> list[dict[str, Any]]:
    """Rows that the struct can hold."""
    schema = pa.schema(list(struct))
    return parquet.table(rows, schema, refused.append).to_pylist() if rows else []


def key(cell: Cell) -> dict[str, str]:
    """The cell that a row belongs to."""
    return {"device": cell.device, "build": cell.build, "mode": cell.mode, "model": cell.model}


def identity(spec: Spec) -> dict[str, Any]:
    """What is known of a measurement before it starts."""
    options = asdict(spec.options)
    return {
        **key(spec),
        **{name: options[name] for name in OPTION_COLUMNS},
        "architecture": spec.model.split(".", 1)[0],
        "options": json.dumps(options, sort_keys=True),
        "batch_size_requested": spec.requested_batch_size,
        "weights": spec.weights,
        "allocator": spec.allocator,
        "relocate": spec.relocate,
        "seed": spec.seed,
        "protocol": spec.protocol,
        "torch": spec.torch,
        "timm": spec.timm,
    }


def course(spec: Spec, outcome: Outcome, run: RunOptions) -> dict[str, Any]:
    """How the check went, as the columns of `schemas.course`."""
    check, verdict, result = spec.check, outcome.verdict, outcome.result
    columns = {
        "stage": result.stage,
        "cause": verdict.cause,
        "message": shortened(verdict.message),
        "identity": spec.identity(),
        "protocol": spec.protocol,
        "batch_size": result.columns.get("batch_size"),
        "attempt": outcome.attempt,
        "started_at": result.started_at,
        "wall_s": outcome.wall_s,
        "worker_s": result.worker_s,
        "cpu_s": result.cpu_s,
        "paused_s": result.paused_s,
        "peak_rss_bytes": result.peak_rss_bytes or None,
        "threads": run.threads,
        **{f"{stage.name}_s": result.stage_s.get(stage.name) for stage in CHECKS[check].stages},
    }
    return {check: verdict.status, **{f"{check}_{name}": value for name, value in columns.items()}}
