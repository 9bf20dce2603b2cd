"""The files of all measured cells of a folder to its tables: one row per cell in `cells`, whatever became of it.

Nothing that was measured disappears: the tables hold every cell that the folder has a file for, beside those that the last
command requested. They are renewed where files have changed: an index remembers which files they were made of.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from timmgate.config.cells import Identities
from timmgate.core.checks import CHECKS
from timmgate.core.schemas import KEY
from timmgate.core.spec import CellKey
from timmgate.core.verdict import status_by_rule
from timmgate.supervisor import journal
from timmgate.tables import index, parquet, repeats, state
from timmgate.tables.by_cell import keys, without

Problems = dict[tuple[CellKey, str], str]
"""By cell and check, why its file cannot be read."""

CELLS_AT_ONCE = 250
"""Cells that are in memory together where a table of many rows per cell is merged."""

LAST_CHECKS = {"batch_size", "batch_size_requested", *state.OF_BOTH}
"""Columns of several checks that are taken from the last of them, but for those of a program of other software."""

SOFTWARE = ("protocol", "torch", "torch_revision", "timm", "triton", "cuda", "cudnn", "cxx")
"""Columns by which it is known that it is not the same."""

ROWS_AT_ONCE = 50_000
"""Fewest rows of a row group but the last."""


def merge(
    folder: Path,
    requested: Sequence[CellKey],
    checks: Collection[str],
    identities: Identities,
    rule: str,
    under_way: Collection[CellKey] = (),
) -> Problems:
    """Renew the tables in `folder`, which is results/{device}; what could not be read.

    `requested` are the cells and `checks` the checks that the last command asked for, `rule` is the key `accuracy_rule`.
    Cells that are `under_way` may be half done: the index does not know them, so that they are looked at again.
    """
    files = index.find(folder)
    problems: Problems = {}
    made_of = index.read(folder)
    changed = {cell for cell in {*files, *made_of} if files.get(cell) != made_of.get(cell)}
    (folder / index.INDEX).unlink(missing_ok=True)  # until all tables are of one state again
    renewed = {cell: folder.joinpath(*cell[1:]) for cell in files if cell in changed}

    def kept(name: str) -> Iterator[pa.Table]:
        return without(folder / f"{name}.parquet", changed) if made_of else iter(())

    def write(name: str, parts: Iterable[pa.Table]) -> None:
        parquet.write_parts(parquet.SCHEMAS[name], _gathered(parts), folder / f"{name}.parquet")

    measured: dict[str, list[pa.Table]] = {check: [] for check in CHECKS}
    if changed or not made_of:
        for check, record in CHECKS.items():
            write(record.details, chain(kept(record.details), _details(check, renewed, measured[check], problems)))
        write("attempts", chain(kept("attempts"), [_attempts(renewed, under_way)]))
        write("repeats", chain(kept("repeats"), _repeats(folder, renewed, files)))
    rows = pa.concat_tables([*kept("cells"), join(list(renewed), measured, problems)])
    rows = state.with_reasons(state.in_order(rows, files, requested, checks, identities, rule), folder)
    parquet.write(rows, folder / "cells.parquet")
    index.write(folder, {cell: stamps for cell, stamps in files.items() if cell not in under_way})
    return problems


def join(cells: Sequence[CellKey], measured: Mapping[str, Sequence[pa.Table]], problems: Problems) -> pa.Table:
    """One row per cell of `cells`, in their order, of the rows of each check.

    What two checks both say of the software and the machine is taken from the one that was measured later, what both say of
    the program and its batch size (`LAST_CHECKS`) from the last of them. A check without a row has no status; if its file
    could not be read, the cause says why.
    """
    schema = parquet.SCHEMAS["cells"]
    columns = dict(zip(KEY, map(pa.array, zip(*cells, strict=True)), strict=True)) if cells else {}
    latest = pa.nulls(len(cells), pa.timestamp("us", tz="UTC"))
    for check, parts in measured.items():
        rows = pa.concat_tables([_of_row(check).empty_table(), *parts])
        numbers = {cell: number for number, cell in enumerate(keys(rows))}
        aligned = rows.take(pa.array([numbers.get(cell) for cell in cells], pa.int64()))
        start = aligned[f"{check}_started_at"]
        is_earlier = pc.fill_null(pc.less(start, latest), False)
        latest = pc.if_else(is_earlier, latest, pc.coalesce(start, latest))
        is_outdated = pc.and_(is_earlier, _differ(aligned, columns))
        for name in aligned.column_names:
            before = columns.get(name, aligned[name])
            both = pc.coalesce(aligned[name], before)
            of_other = is_outdated if name in state.OF_BOTH else False if name in LAST_CHECKS else is_earlier
            columns[name] = pc.if_else(of_other, pc.coalesce(before, aligned[name]), both)
        reasons = pa.array([problems.get((cell, check)) for cell in cells], pa.string())
        columns[f"{check}_cause"] = pc.coalesce(columns[f"{check}_cause"], reasons)
    missing = {field.name: pa.nulls(len(cells), field.type) for field in schema if field.name not in columns}
    return pa.table({**columns, **missing}).select(schema.names).cast(schema)


def _differ(rows: pa.Table, others: Mapping[str, Any]) -> pa.Array:
    """Of each cell, whether two checks were measured with other software, as far as both say with what."""
    known = (pc.fill_null(pc.not_equal(rows[name], others[name]), False) for name in SOFTWARE if name in others)
    return reduce(pc.or_, known, pa.array([False] * len(rows), pa.bool_()))


def row_of(cell: CellKey, folder: Path, checks: Iterable[str], rule: str) -> dict[str, Any]:
    """The row of a cell in the table, out of its own files alone; `requested`, `stale`, `counted` and `passed` are null."""
    problems: Problems = {}
    measured: dict[str, list[pa.Table]] = {}
    leaves: list[dict[str, Any]] = []
    for check in checks:
        file = _read_all(check, {cell: folder}, problems)
        measured[check] = [file.drop_columns([parquet.DETAILS])]
        leaves += file[parquet.DETAILS][0].as_py() if check == "accuracy" and len(file) else []
    row: dict[str, Any] = join([cell], measured, problems).to_pylist()[0]
    row["accuracy_by_rule"], row["passed_by"] = status_by_rule(row["accuracy"], row["strict"], rule)
    return row | state.derived(row, measured, leaves, [])


def _details(check: str, folders: Mapping[CellKey, Path], rows: list[pa.Table], problems: Problems) -> Iterator[pa.Table]:
    """The details of these cells, in the schema of their table; the rows without them are appended to `rows`.

    Both in one pass: to read a file costs more than what is in it.
    """
    schema, remaining = parquet.SCHEMAS[CHECKS[check].details], iter(folders.items())
    while some := dict(islice(remaining, CELLS_AT_ONCE)):
        part = _read_all(check, some, problems)
        rows.append(part.drop_columns([parquet.DETAILS]))
        column = part[parquet.DETAILS].combine_chunks()
        owners, details = pc.list_parent_indices(column), pc.list_flatten(column)
        of_cell = {key: part[key].take(owners) for key in KEY}
        fields = {field.name: details.field(field.name) for field in details.type}
        yield pa.table({**of_cell, **fields}).select(schema.names).cast(schema)


def _of_row(check: str) -> pa.Schema:
    """The schema of a check's file without the details."""
    schema = parquet.FILE_SCHEMAS[check]
    return schema.remove(schema.get_field_index(parquet.DETAILS))


def _attempts(folders: Mapping[CellKey, Path], under_way: Collection[CellKey]) -> pa.Table:
    """Every attempt at the cells that has ended; a cell that never began has none."""
    rows = [
        row
        for cell, folder in folders.items()
        for row in journal.rows_of(folder / journal.NAME, dict(zip(KEY, cell, strict=True)), cell in under_way)
    ]
    return parquet.table(rows, parquet.SCHEMAS["attempts"])


def _repeats(folder: Path, cells: Iterable[CellKey], files: Mapping[CellKey, Iterable[str]]) -> Iterator[pa.Table]:
    """What became of these cells in fresh processes; a file that cannot be read counts as one that is not there."""
    schema = parquet.SCHEMAS["repeats"]
    for cell in cells:
        for name in (Path(name) for name in files[cell]):
            if name.parent.name == repeats.FOLDER:
                with suppress(pa.ArrowException, OSError):
                    yield pq.read_table(folder.joinpath(repeats.FOLDER, *cell[1:], name.name), schema=schema)


def _gathered(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in parts that are not too small: row groups of one cell each would add up to thousands."""
    some: list[pa.Table] = []
    for part in parts:
        some.append(part)
        if sum(map(len, some)) >= ROWS_AT_ONCE:
            yield pa.concat_tables(some).combine_chunks()
            some = []
    if some:
        yield pa.concat_tables(some).combine_chunks()


def _read_all(check: str, folders: Mapping[CellKey, Path], problems: Problems) -> pa.Table:
    """The files of a check; a cell whose file cannot be read is put into `problems`, and one without a file is left out."""
    tables = [parquet.FILE_SCHEMAS[check].empty_table()]
    for cell, folder in folders.items():
        try:
            tables.append(_read(check, cell, folder / f"{check}.parquet"))
        except FileNotFoundError:
            continue
        except (pa.ArrowException, OSError) as error:
            problems[cell, check] = f"unreadable result file: {error}"
    return pa.concat_tables(tables).combine_chunks()  # of one chunk per file all that follows is slow


def _read(check: str, cell: CellKey, path: Path) -> pa.Table:
    """One file, with the columns of its schema: null where an older file lacks one. Raises ArrowException or OSError."""
    schema = parquet.FILE_SCHEMAS[check]
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read(use_threads=False)
    if not table.schema.equals(schema):
        table = (
            pa.concat_tables([schema.empty_table(), table], promote_options="permissive").select(schema.names).cast(schema)
        )
    if keys(table) != [cell]:
        raise pa.ArrowInvalid(f"it has {len(table)} rows, and they are not that of this cell")
    return table
