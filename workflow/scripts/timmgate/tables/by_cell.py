"""Rows of a table by the cells that they belong to."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from timmgate.core.schemas import KEY
from timmgate.core.spec import CellKey


def keys(table: pa.Table) -> list[CellKey]:
    """The cells of a table, row by row."""
    return list(zip(*(table[name].to_pylist() for name in KEY), strict=True))


def belong(rows: pa.Table, cells: Collection[CellKey]) -> pa.ChunkedArray:
    """Row by row, whether it is of one of these cells."""
    owners = pc.binary_join_element_wise(*(rows[name] for name in KEY), "/")
    return pc.is_in(owners, pa.array(["/".join(cell) for cell in cells], pa.string()))


def requested(cells: pa.Table) -> pa.Table:
    """Of a table of cells, those that the last command requested."""
    return cells.filter(pc.fill_null(cells["requested"], False))


def of_cells(path: Path, wanted: Collection[CellKey], columns: Collection[str] | None = None) -> dict[CellKey, pa.Table]:
    """By cell, the rows of a table of details that belong to these cells; all columns, or those and the key."""
    with pq.ParquetFile(path) as file:
        names = None if columns is None else [*KEY, *columns]
        parts = [file.schema_arrow.empty_table() if names is None else file.schema_arrow.empty_table().select(names)]
        for group in range(file.num_row_groups if wanted else 0):
            part = file.read_row_group(group, names)
            parts.append(part.filter(belong(part, wanted)))
    rows, places = pa.concat_tables(parts).combine_chunks(), dict[CellKey, list[int]]()
    for place, key in enumerate(keys(rows)):
        places.setdefault(key, []).append(place)
    return {key: rows.take(of_cell) for key, of_cell in places.items()}


def aligned(rows: pa.Table, cells: Sequence[CellKey]) -> pa.Table:
    """One row for each of the cells, in their order; all but the key is null where there is none."""
    numbers = {cell: number for number, cell in enumerate(keys(rows))}
    found = rows.take(pa.array([numbers.get(cell) for cell in cells], pa.int64()))
    for name, values in zip(KEY, zip(*cells, strict=True) if cells else [()] * len(KEY), strict=True):
        found = found.set_column(rows.schema.get_field_index(name), rows.schema.field(name), pa.array(values, pa.string()))
    return found


def without(path: Path, cells: Collection[CellKey]) -> Iterator[pa.Table]:
    """The row groups of a table, without the rows of these cells."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            part = file.read_row_group(group)
            yield part.filter(pc.invert(belong(part, cells)))
