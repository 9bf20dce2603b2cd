"""The rows of many cells to one table: one row per requested cell, whatever became of it."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from timmgate import rows

Key = tuple[str, str, str]
"""Device, mode and model of a cell."""


def merge(kind: str, files: dict[Key, Path]) -> tuple[pa.Table, dict[Key, str]]:
    """Read the files of schema `kind`, in the order given; also say which cells have no readable file, and why."""
    problems = {cell: problem for cell, path in files.items() if (problem := _problem(path))}
    readable = [str(path) for cell, path in files.items() if cell not in problems]
    schema = rows.SCHEMAS[kind]
    if not readable:
        return schema.empty_table(), problems
    return ds.dataset(readable, schema=schema, format="parquet").to_table(), problems


def complete(cells: pa.Table, problems: dict[Key, str]) -> pa.Table:
    """Add a row `not_run` for every cell of `problems`."""
    missing = [
        {**dict(zip(("device", "mode", "model"), cell, strict=True)), "accuracy": "not_run", "accuracy_cause": problem}
        for cell, problem in problems.items()
    ]
    return pa.concat_tables([cells, rows.table("accuracy", missing)])


def cells_of(paths: Sequence[str]) -> dict[Key, Path]:
    """Files of cells by cell, from paths that end in {device}/{mode}/{model}/{file}."""
    return {Path(path).parts[-4:-1]: Path(path) for path in paths}


def _problem(path: Path) -> str | None:
    """Why a file cannot be read, or None."""
    if not path.is_file():
        return "no result file"
    try:
        pq.ParquetFile(path).close()
    except (pa.ArrowException, OSError) as error:
        return f"unreadable result file: {error}"
    return None
