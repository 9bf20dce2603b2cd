"""The files of all measured cells of a folder to its tables: one row per cell in `cells`, whatever became of it.

Nothing that was measured disappears: the tables hold every cell that the folder has a file for, beside those that the last
command requested. They are renewed where files have changed: an index remembers which files they were made of.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from timmgate.core.checks import CHECKS
from timmgate.core.schemas import PASSED
from timmgate.supervisor import journal
from timmgate.tables import parquet

KEY = ("device", "build", "mode", "model")

Key = tuple[str, str, str, str]
"""Device, build, mode and model of a cell."""

Stamp = tuple[int, int, int]
"""Inode, time of change in ns and size of a file: another content has another one."""

Identities = Callable[[Key, str], str | None]
"""The identity that a check of a cell would have today; None for a cell that today's configuration does not know."""

INDEX = ".index.parquet"
"""File beside the tables: what they were made of."""

INDEX_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in (*KEY, "file")),
        *((name, pa.int64()) for name in ("inode", "mtime_ns", "size")),
    ]
)

FILES = (*(f"{check}.parquet" for check in CHECKS), journal.NAME)
"""Files of a cell that the tables are made of."""

RESERVED = ("export", "pairs", "confirm")
"""Folders beside those of the builds."""

CELLS_AT_ONCE = 250
"""Cells that are in memory together where a table of many rows per cell is merged."""

FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True, pre_buffer=False)
)


def merge(folder: Path, requested: Sequence[Key], checks: Collection[str], identities: Identities) -> dict[Key, str]:
    """Renew the tables in `folder`, which is results/{device}; by cell, why a file of it cannot be read.

    `requested` are the cells and `checks` the checks that the last command asked for.
    """
    files, problems = find(folder), {}
    made_of = read_index(folder)
    changed = {cell for cell in {*files, *made_of} if files.get(cell) != made_of.get(cell)}
    (folder / INDEX).unlink(missing_ok=True)  # until all tables are of one state again
    renewed = {cell: folder.joinpath(*cell[1:]) for cell in files if cell in changed}

    def kept(name: str) -> Iterator[pa.Table]:
        return _without(folder / f"{name}.parquet", changed) if made_of else iter(())

    if changed or not made_of:
        for name, check in CHECKS.items():
            new = _details(name, {cell: path / f"{name}.parquet" for cell, path in renewed.items()})
            parquet.write_parts(
                parquet.SCHEMAS[check.details], chain(kept(check.details), new), folder / f"{check.details}.parquet"
            )
        attempts = chain(kept("attempts"), [_attempts(renewed)])
        parquet.write_parts(parquet.SCHEMAS["attempts"], attempts, folder / "attempts.parquet")
    rows = pa.concat_tables([*kept("cells"), _rows(renewed, problems)])
    parquet.write(_in_order(rows, files, requested, checks, identities), folder / "cells.parquet")
    write_index(folder, files)
    return problems


def find(folder: Path) -> dict[Key, dict[str, Stamp]]:
    """The cells that results/{device} has a file for, sorted, with those files and their stamps."""
    cells = [(folder.name, *path.relative_to(folder).parts) for path in folder.glob("*/*/*/")]
    found = {}
    for cell in sorted(cell for cell in cells if cell[1] not in RESERVED):
        with os.scandir(folder.joinpath(*cell[1:])) as entries:
            files = {entry.name: entry.stat() for entry in entries if entry.name in FILES}
        if files:
            found[cell] = {name: (each.st_ino, each.st_mtime_ns, each.st_size) for name, each in sorted(files.items())}
    return found


def read_index(folder: Path) -> dict[Key, dict[str, Stamp]]:
    """By cell, what the tables were made of; nothing if they have to be made anew."""
    try:
        for name, schema in parquet.SCHEMAS.items():
            if not pq.read_schema(folder / f"{name}.parquet").equals(schema):
                return {}
        index = pq.read_table(folder / INDEX, schema=INDEX_SCHEMA)
    except (OSError, pa.ArrowException):
        return {}
    made_of: dict[Key, dict[str, Stamp]] = {}
    for *cell, file, inode, mtime_ns, size in zip(*(column.to_pylist() for column in index), strict=True):
        made_of.setdefault(tuple(cell), {})[file] = inode, mtime_ns, size
    return made_of


def write_index(folder: Path, files: Mapping[Key, Mapping[str, Stamp]]) -> None:
    """Remember what the tables were made of."""
    rows = [(*cell, name, *stamp) for cell, stamps in files.items() for name, stamp in stamps.items()]
    columns = zip(*rows, strict=True) if rows else [()] * len(INDEX_SCHEMA)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, INDEX_SCHEMA, strict=True)]
    parquet.write(pa.table(arrays, schema=INDEX_SCHEMA), folder / INDEX)


def join(cells: Sequence[Key], measured: Mapping[str, pa.Table], problems: Mapping[Key, str]) -> pa.Table:
    """One row per cell of `cells`, in their order, with the row of each check.

    What two checks both say, as the versions or the batch size, is taken from the later one. A check without a row has no
    status, and the problem as its cause.
    """
    schema = parquet.SCHEMAS["cells"]
    columns = dict(zip(KEY, map(pa.array, zip(*cells, strict=True)), strict=True)) if cells else {}
    reasons = pa.array([problems.get(cell) for cell in cells], pa.string())
    for check, table in measured.items():
        numbers = {cell: number for number, cell in enumerate(keys(table))}
        aligned = table.take(pa.array([numbers.get(cell) for cell in cells], pa.int64()))
        for name in aligned.column_names:
            columns[name] = pc.coalesce(aligned[name], columns[name]) if name in columns else aligned[name]
        columns[f"{check}_cause"] = pc.coalesce(columns[f"{check}_cause"], reasons)
    missing = {field.name: pa.nulls(len(cells), field.type) for field in schema if field.name not in columns}
    return pa.table({**columns, **missing}).select(schema.names).cast(schema)


def keys(table: pa.Table) -> list[Key]:
    """The cells of a table, row by row."""
    return list(zip(*(table[name].to_pylist() for name in KEY), strict=True))


def requested(cells: pa.Table) -> pa.Table:
    """Of a table of cells, those that the last command requested."""
    return cells.filter(pc.fill_null(cells["requested"], False))


def _in_order(
    rows: pa.Table,
    files: Collection[Key],
    requested: Sequence[Key],
    checks: Collection[str],
    identities: Identities,
) -> pa.Table:
    """The requested cells in their order, then the others, with what is derived of each (`schemas.STATE`)."""
    cells = [*requested, *sorted({*files} - {*requested})]
    rows = _aligned(rows, cells)
    asked = pa.array([True] * len(requested) + [False] * (len(cells) - len(requested)))
    for check in CHECKS:
        status = pc.if_else(pc.equal(rows[check], "not_run"), None, rows[check])
        status = pc.if_else(pc.and_(asked, check in checks), pc.fill_null(status, "not_run"), status)
        rows = rows.set_column(rows.schema.get_field_index(check), rows.schema.field(check), status)
    stale = {check: _stale(rows, cells, check, identities) for check in CHECKS}
    state = {
        "requested": asked,
        "stale": pa.array([_any(of_cell) for of_cell in zip(*stale.values(), strict=True)], pa.bool_()),
        "counted": _counted(rows, pa.array(stale["accuracy"], pa.bool_())),
    }
    for name, values in state.items():
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)
    return rows


def _aligned(rows: pa.Table, cells: Sequence[Key]) -> pa.Table:
    """One row for each of the cells, in their order; all but the key is null where there is none."""
    numbers = {cell: number for number, cell in enumerate(keys(rows))}
    aligned = rows.take(pa.array([numbers.get(cell) for cell in cells], pa.int64()))
    for name, values in zip(KEY, zip(*cells, strict=True) if cells else [()] * len(KEY), strict=True):
        aligned = aligned.set_column(
            rows.schema.get_field_index(name), rows.schema.field(name), pa.array(values, pa.string())
        )
    return aligned


def _stale(rows: pa.Table, cells: Sequence[Key], check: str, identities: Identities) -> list[bool | None]:
    """Of each cell, whether its row of a check was measured with another identity than today's; None without one of both."""
    measured = rows[f"{check}_identity"].to_pylist()
    today = [identities(cell, check) if identity else None for cell, identity in zip(cells, measured, strict=True)]
    return [None if each is None else each != identity for each, identity in zip(today, measured, strict=True)]


def _any(of_checks: Iterable[bool | None]) -> bool | None:
    known = [each for each in of_checks if each is not None]
    return any(known) if known else None


def _counted(rows: pa.Table, accuracy_is_stale: pa.Array) -> pa.ChunkedArray:
    """Whether a cell's speedup is in the means: timed, and neither its accuracy nor its timed output was found wrong.

    An accuracy that was not asked for, or that is of another identity, says nothing of what was timed.
    """
    timed = pc.and_(pc.equal(rows["performance"], "pass"), pc.fill_null(rows["timed_output_ok"], True))
    unknown = pc.or_(pc.is_null(rows["accuracy"]), pc.fill_null(accuracy_is_stale, False))
    return pc.fill_null(pc.and_(timed, pc.or_(unknown, pc.is_in(rows["accuracy"], pa.array(PASSED)))), False)


def _rows(folders: Mapping[Key, Path], problems: dict[Key, str]) -> pa.Table:
    """One row per cell of its files; what cannot be read is put into `problems`."""
    measured = {}
    for check in CHECKS:
        schema = parquet.FILE_SCHEMAS[check]
        names = [name for name in schema.names if name != parquet.DETAILS]
        files = {cell: folder / f"{check}.parquet" for cell, folder in folders.items()}
        parts = _parts(check, {cell: file for cell, file in files.items() if file.is_file()}, names, problems)
        empty = pa.schema([schema.field(name) for name in names]).empty_table()
        measured[check] = pa.concat_tables([empty, *parts])
    return join(list(folders), measured, problems)


def _details(check: str, files: Mapping[Key, Path]) -> Iterator[pa.Table]:
    """The nested details of a check's files, in the schema of their table."""
    schema = parquet.SCHEMAS[CHECKS[check].details]
    for part in _parts(check, {cell: file for cell, file in files.items() if file.is_file()}, [*KEY, parquet.DETAILS], {}):
        column = part[parquet.DETAILS].combine_chunks()
        owners, rows = pc.list_parent_indices(column), pc.list_flatten(column)
        keys_ = {key: part[key].take(owners) for key in KEY}
        fields = {field.name: rows.field(field.name) for field in rows.type}
        yield pa.table({**keys_, **fields}).select(schema.names).cast(schema)


def _attempts(folders: Mapping[Key, Path]) -> pa.Table:
    """Every attempt at the cells; one that never began has none."""
    rows = [
        row
        for cell, folder in folders.items()
        for row in journal.rows_of(folder / journal.NAME, dict(zip(KEY, cell, strict=True)))
    ]
    return parquet.table(rows, parquet.SCHEMAS["attempts"])


def _without(path: Path, cells: Collection[Key]) -> Iterator[pa.Table]:
    """The row groups of a table, without the rows of these cells."""
    gone = pa.array(["/".join(cell) for cell in cells], pa.string())
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            part = file.read_row_group(group)
            owners = pc.binary_join_element_wise(*(part[name] for name in KEY), "/")
            yield part.filter(pc.invert(pc.is_in(owners, gone)))


def _parts(check: str, files: dict[Key, Path], names: list[str], problems: dict[Key, str]) -> Iterator[pa.Table]:
    """The columns `names` of the files of a check, in tables of `CELLS_AT_ONCE` cells.

    Where one of these cannot be read it goes on file by file, and the cell is put into `problems`.
    """
    remaining = iter(files.items())
    while some := dict(islice(remaining, CELLS_AT_ONCE)):
        try:
            yield _read_together(check, some, names)
        except (pa.ArrowException, OSError):
            yield _read_one_by_one(check, some, names, problems)


def _read_together(check: str, files: Mapping[Key, Path], names: list[str]) -> pa.Table:
    """Many files, several times faster than one by one. Raises ArrowException or OSError if anything is wrong with any."""
    schema, paths = parquet.FILE_SCHEMAS[check], list(map(str, files.values()))
    dataset = ds.FileSystemDataset.from_paths(paths, schema=schema, format=FORMAT, filesystem=LocalFileSystem())
    table = dataset.to_table(columns=[*names, "__filename"])
    if table["__filename"].to_pylist() != paths:
        raise pa.ArrowInvalid("there are cells with another number of rows than one")
    for column, values in zip(KEY, zip(*files, strict=True), strict=True):
        if table[column].to_pylist() != list(values):
            raise pa.ArrowInvalid("there are rows of other cells")
    return table.select(names).combine_chunks()  # of one chunk per file all that follows is slow


def _read_one_by_one(check: str, files: Mapping[Key, Path], names: list[str], problems: dict[Key, str]) -> pa.Table:
    schema = parquet.FILE_SCHEMAS[check]
    tables = [pa.schema([schema.field(name) for name in names]).empty_table()]
    for cell, path in files.items():
        try:
            tables.append(_read(check, cell, path).select(names))
        except (pa.ArrowException, OSError) as error:
            problems[cell] = f"unreadable result file: {error}"
    return pa.concat_tables(tables)


def _read(check: str, cell: Key, path: Path) -> pa.Table:
    """One file, with the columns of its schema: null where an older file lacks one. Raises ArrowException or OSError."""
    schema = parquet.FILE_SCHEMAS[check]
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
    table = pa.concat_tables([schema.empty_table(), table], promote_options="permissive").select(schema.names).cast(schema)
    if keys(table) != [cell]:
        raise pa.ArrowInvalid(f"it has {len(table)} rows, and they are not that of this cell")
    return table
