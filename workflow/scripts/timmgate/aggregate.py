"""The rows of many cells to one table: one row per requested cell, whatever became of it."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from timmgate import attempts as journal
from timmgate import rows
from timmgate.spec import CHECKS

KEY = ("device", "mode", "model")

CELLS_AT_ONCE = 250
"""Cells that are in memory together where a table of many rows per cell is merged."""

FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True, pre_buffer=False)
)

Key = tuple[str, str, str]
"""Device, mode and model of a cell."""


def merge(kind: str, files: dict[Key, Path]) -> tuple[pa.Table, dict[Key, str]]:
    """Read the files of schema `kind`, in the order given; also say which cells have no readable file, and why."""
    problems: dict[Key, str] = {}
    return pa.concat_tables([rows.SCHEMAS[kind].empty_table(), *_parts(kind, files, problems)]), problems


def merge_into(path: Path, kind: str, files: dict[Key, Path]) -> dict[Key, str]:
    """As `merge`, into a Parquet file, with no more than `CELLS_AT_ONCE` cells in memory. Returns the problems."""
    problems: dict[Key, str] = {}
    rows.write_parts(rows.SCHEMAS[kind], _parts(kind, files, problems), path)
    return problems


def attempts(files: dict[Key, Path]) -> pa.Table:
    """Every attempt at the cells, of whose journals the files are; a cell that never began has none."""
    found = [row for cell, path in files.items() for row in journal.rows_of(path, dict(zip(KEY, cell, strict=True)))]
    return rows.table("attempts", found)


def join(cells: Sequence[Key], measured: dict[str, tuple[pa.Table, dict[Key, str]]]) -> pa.Table:
    """One row per cell of `cells`, with the rows of each check that `merge` gave, in their order.

    What two checks both say, as the versions or the batch size, is taken from the later one. A cell whose row is missing has
    the status `not_run` and the reason as its cause.
    """
    schema = rows.SCHEMAS["cells"]
    columns = dict(zip(KEY, map(pa.array, zip(*cells, strict=True)), strict=True)) if cells else {}
    for check, (table, problems) in measured.items():
        numbers = {cell: number for number, cell in enumerate(_keys(table))}
        aligned = table.take(pa.array([numbers.get(cell) for cell in cells], pa.int64()))
        for name in aligned.column_names:
            columns[name] = pc.coalesce(aligned[name], columns[name]) if name in columns else aligned[name]
        columns[check] = pc.fill_null(columns[check], "not_run")
        reasons = pa.array([problems.get(cell) for cell in cells], pa.string())
        columns[f"{check}_cause"] = pc.coalesce(columns[f"{check}_cause"], reasons)
    missing = {field.name: pa.nulls(len(cells), field.type) for field in schema if field.name not in columns}
    return pa.table({**columns, **missing}).select(schema.names).cast(schema)


def cells_of(paths: Sequence[str]) -> dict[Key, Path]:
    """Files of cells by cell, from paths that end in {device}/{mode}/{model}/{file}."""
    return {Path(path).parts[-4:-1]: Path(path) for path in paths}


def _parts(kind: str, files: dict[Key, Path], problems: dict[Key, str]) -> Iterator[pa.Table]:
    """The files in tables of `CELLS_AT_ONCE` cells. Where one of these cannot be read it goes on file by file, and the
    cells that have no readable file are put into `problems`.
    """
    remaining = iter(files.items())
    while some := dict(islice(remaining, CELLS_AT_ONCE)):
        try:
            yield _read_together(kind, some)
        except (pa.ArrowException, OSError):
            yield _read_one_by_one(kind, some, problems)


def _read_together(kind: str, files: dict[Key, Path]) -> pa.Table:
    """Many files, several times faster than one by one. Raises ArrowException or OSError if anything is wrong with any."""
    schema, names = rows.SCHEMAS[kind], list(map(str, files.values()))
    dataset = ds.FileSystemDataset.from_paths(names, schema=schema, format=FORMAT, filesystem=LocalFileSystem())
    table = dataset.to_table(columns=[*schema.names, "__filename"])
    owners = pc.index_in(table["__filename"], pa.array(names))
    for column, values in zip(KEY, zip(*files, strict=True), strict=True):
        if not pc.all(pc.equal(table[column], pa.array(values).take(owners)), skip_nulls=False).as_py():
            raise pa.ArrowInvalid("there are rows of other cells")
    if kind in CHECKS and owners.to_pylist() != list(range(len(files))):
        raise pa.ArrowInvalid("there are cells with another number of rows than one")
    return table.select(schema.names).combine_chunks().cast(schema)  # of one chunk per file all that follows is slow


def _read_one_by_one(kind: str, files: dict[Key, Path], problems: dict[Key, str]) -> pa.Table:
    tables = [rows.SCHEMAS[kind].empty_table()]
    for cell, path in files.items():
        try:
            tables.append(_read(kind, cell, path))
        except FileNotFoundError:
            problems[cell] = "no result file"
        except (pa.ArrowException, OSError) as error:
            problems[cell] = f"unreadable result file: {error}"
    return pa.concat_tables(tables)


def _read(kind: str, cell: Key, path: Path) -> pa.Table:
    """One file, with the columns of its schema: null where an older file lacks one. Raises ArrowException or OSError."""
    schema = rows.SCHEMAS[kind]
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
    table = pa.concat_tables([schema.empty_table(), table], promote_options="permissive").select(schema.names).cast(schema)
    cells = _keys(table)
    if set(cells) - {cell} or (kind in CHECKS and len(cells) != 1):
        raise pa.ArrowInvalid(f"it has {len(cells)} rows, and they are not those of this cell")
    return table


def _keys(table: pa.Table) -> list[Key]:
    return list(zip(*(table[name].to_pylist() for name in KEY), strict=True))
