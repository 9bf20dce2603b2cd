"""What was measured over months: an append-only data set of Parquet files that pandas, DuckDB and pyarrow can read.

    {root}/protocol=N/month=2026-11/20261125T141703Z-5f0c9a17.parquet

A file has the entries that one run added, a row for each cell of which something was newly measured. No file is ever
changed. Figures of different protocols mean different things, so each protocol has a folder.
"""

import secrets
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from timmgate.config import history_path
from timmgate.core import schemas
from timmgate.core.checks import CHECKS
from timmgate.core.spec import PROTOCOL
from timmgate.tables import parquet

SCHEMA = parquet.schema(schemas.HISTORY)


def record(cells: pa.Table, root: Path, at: datetime) -> int:
    """Add what is not in the history yet of a table of cells, by today's protocol; how many entries that were.

    A measurement of a check is known by its identity and its start, and stands in one entry only: what an entry has of a
    check that was recorded before is null.
    """
    entries = cells
    new = {
        check: pc.and_(
            pc.and_(pc.is_valid(cells[f"{check}_started_at"]), pc.invert(_known(cells, check, root))),
            pc.fill_null(pc.equal(cells[f"{check}_protocol"], PROTOCOL), False),
        )
        for check in CHECKS
    }
    for check, is_new in new.items():
        for name in schemas.OF_CHECK[check]:
            kept = pc.if_else(is_new, entries[name], pa.scalar(None, entries[name].type))
            entries = entries.set_column(entries.schema.get_field_index(name), entries.schema.field(name), kept)
    entries = entries.filter(pc.or_kleene(*new.values()))
    if len(entries):
        write(entries, root, at)
    return len(entries)


def record_tables(folder: Path, root: Path) -> int:
    """Add what is not in the history yet of the tables in results/{device}; how many entries that were."""
    return record(pq.read_table(folder / "cells.parquet"), root.absolute(), datetime.now(timezone.utc))


def write(entries: pa.Table, root: Path, at: datetime) -> None:
    """Add these rows of a table of cells, as the entries of one run: a file for each month that they started in."""
    run = f"{at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    about = {"run": pa.array([run] * len(entries)), "recorded_at": pa.array([at] * len(entries))}
    written = pa.table({**about, **{name: entries[name] for name in SCHEMA.names if name not in about}}).cast(SCHEMA)
    months = pc.strftime(start(written), "%Y-%m")
    for month in pc.unique(months).to_pylist():
        parquet.write(written.filter(pc.equal(months, month)), history_path.folder(root, month) / f"{run}.parquet")


def _known(cells: pa.Table, check: str, root: Path) -> pa.Array:
    """Whether each cell's measurement of a check is in the history."""
    names = [f"{check}_identity", f"{check}_started_at"]
    recorded = read(root, names, pc.field(names[1]).isin(cells[names[1]].drop_null().combine_chunks()))
    known = set(zip(*(recorded[name].to_pylist() for name in names), strict=True))
    return pa.array([pair in known for pair in zip(*(cells[name].to_pylist() for name in names), strict=True)], pa.bool_())


def start(entries: pa.Table) -> pa.ChunkedArray:
    """When the last newly measured check of each entry started."""
    return pc.coalesce(*(entries[f"{check}_started_at"] for check in reversed(CHECKS)))


def read(
    root: Path, columns: Sequence[str], where: pc.Expression | None = None, runs: Collection[str] | None = None
) -> pa.Table:
    """These columns of the entries of today's protocol, of all runs or of some, those that were added first before others.

    Texts, of which few different ones come again, are read as dictionaries.
    """
    files = [str(file) for file in history_path.files(root) if runs is None or file.stem in runs]
    if not files:
        return pa.schema([SCHEMA.field(name) for name in columns]).empty_table()
    texts = {field.name for field in SCHEMA if pa.types.is_string(field.type)}
    kinds = {field.name: pa.dictionary(pa.int32(), pa.string()) if field.name in texts else field.type for field in SCHEMA}
    form = ds.ParquetFileFormat(dictionary_columns=texts)
    return ds.dataset(files, schema=pa.schema(list(kinds.items())), format=form).to_table(list(columns), filter=where)
