"""What two builds measured of one cell in turns: a row for each process."""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from timmgate.core.described import columns
from timmgate.core.outcome import Outcome
from timmgate.core.redact import shortened
from timmgate.core.schemas import CELLS, KEY, KEY_COLUMNS
from timmgate.core.spec import Cell
from timmgate.tables import parquet

FIGURES = (
    *("eager_ms", "compiled_ms", "compile_cold_cpu_s", "compile_warm_cpu_s", "eager_peak_bytes", "compiled_peak_bytes"),
    *("compiled_allocated_bytes", "graph_breaks", "timed_output_ok", "machine_drift"),
)
"""Columns of a performance check that a row has as a cell has them."""

BY_BLOCK = {"eager_ms": "eager_ratio", "compiled_ms": "compiled_ratio", "relative_time": "relative_ratio"}
"""Columns with the ratio of a figure to that of the other process of the turn, where both ran side by side."""

OF_CELLS = {column.name: column for column in CELLS}

COLUMNS = (
    *KEY_COLUMNS,
    *columns(
        "pair",
        [
            ("turn", "int64", "", "number of the process among those of its build, from 0"),
            ("position", "int64", "", "number of the process among those of both builds"),
            ("status", "string", "", "status of the performance check"),
            ("cause", "string", "", "why it did not pass"),
            ("message", "string", "", "what went wrong, in words"),
            ("identity", "string", "", "SHA-256 of everything that defines the measurement"),
            ("batch_size", "int64", "images", "batch size that ran"),
            *((name, OF_CELLS[name].type, OF_CELLS[name].unit, OF_CELLS[name].description) for name in FIGURES),
            *(
                (
                    name,
                    "float64",
                    "",
                    f"{figure} over that of the other process of the turn, the median over the blocks that both ran; null "
                    "where they ran one after the other",
                )
                for figure, name in BY_BLOCK.items()
            ),
            ("started_at", "timestamp", "", "when it began"),
            ("wall_s", "float64", "s", "duration of the process, or of both where they ran side by side"),
        ],
    ),
)

SCHEMA = parquet.schema(COLUMNS)


def table(cells: Sequence[Cell], measured: Iterable[tuple[int, int, Outcome]]) -> pa.Table:
    """`rows` in the schema `SCHEMA`."""
    return parquet.table(rows(cells, measured), SCHEMA)


def rows(cells: Sequence[Cell], measured: Iterable[tuple[int, int, Outcome]]) -> list[dict[str, Any]]:
    """A row for turn, side and outcome of each process, in their order; `cells` are those of both sides."""
    found = []
    for position, (turn, side, outcome) in enumerate(measured):
        cell, verdict, measured_columns = cells[side], outcome.verdict, outcome.result.columns
        found.append(
            {
                **{name: getattr(cell, name) for name in KEY},
                "turn": turn,
                "position": position,
                "status": verdict.status,
                "cause": verdict.cause,
                "message": shortened(verdict.message),
                "identity": cell.spec("performance").identity(),
                **{name: measured_columns.get(name) for name in ("batch_size", *FIGURES, *BY_BLOCK.values())},
                "started_at": outcome.result.started_at,
                "wall_s": outcome.wall_s,
            }
        )
    return found
