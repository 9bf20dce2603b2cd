"""The rows of many cells to one table: one row per requested cell, whatever became of it."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from timmgate import rows

Key = tuple[str, str, str]
"""Device, mode and model of a cell."""


def merge(kind: str, files: dict[Key, Path]) -> tuple[pa.Table, dict[Key, str]]:
    """Read the files of schema `kind`, in the order given; also say which cells have no readable file, and why."""
    tables, problems = [rows.SCHEMAS[kind].empty_table()], {}
    for cell, path in files.items():
        try:
            tables.append(_read(kind, cell, path))
        except FileNotFoundError:
            problems[cell] = "no result file"
        except (pa.ArrowException, OSError) as error:
            problems[cell] = f"unreadable result file: {error}"
    return pa.concat_tables(tables), problems


def complete(cells: pa.Table, problems: dict[Key, str]) -> pa.Table:
    """Add a row `not_run` for every cell of `problems`, after the others."""
    missing = [
        {**dict(zip(("device", "mode", "model"), cell, strict=True)), "accuracy": "not_run", "accuracy_cause": problem}
        for cell, problem in problems.items()
    ]
    return pa.concat_tables([cells, rows.table("accuracy", missing)])


def cells_of(paths: Sequence[str]) -> dict[Key, Path]:
    """Files of cells by cell, from paths that end in {device}/{mode}/{model}/{file}."""
    return {Path(path).parts[-4:-1]: Path(path) for path in paths}


def _read(kind: str, cell: Key, path: Path) -> pa.Table:
    """One file, with the columns of its schema: null where an older file lacks one. Raises ArrowException or OSError."""
    schema = rows.SCHEMAS[kind]
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
    table = pa.concat_tables([schema.empty_table(), table], promote_options="permissive").select(schema.names).cast(schema)
    cells = list(zip(*(table[name].to_pylist() for name in ("device", "mode", "model")), strict=True))
    if set(cells) - {cell} or (kind != "evidence" and len(cells) != 1):
        raise pa.ArrowInvalid(f"it has {len(cells)} rows, and they are not those of this cell")
    return table
