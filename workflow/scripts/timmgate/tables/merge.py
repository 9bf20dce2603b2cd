"""The files of all measured cells of a folder to its tables: one row per cell in `cells`, whatever became of it.

Nothing that was measured disappears: the tables hold every cell that the folder has a file for, beside those that the last
command requested. They are renewed where files have changed: an index remembers which files they were made of.
"""

import fcntl
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import reduce
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from timmgate.core.build import RESERVED
from timmgate.core.checks import CHECKS
from timmgate.core.schemas import KEY, OF_CHECK, OF_CHECKS, PASSED, REASON, REPEATED, SHOWN_STATUS
from timmgate.core.verdict import status_by_rule
from timmgate.supervisor import journal
from timmgate.tables import parquet, reasons, repeats

Key = tuple[str, str, str, str]
"""Device, build, mode and model of a cell."""

Stamp = tuple[int, int, int]
"""Inode, time of change in ns and size of a file: another content has another one."""

Problems = dict[tuple[Key, str], str]
"""By cell and check, why its file cannot be read."""

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

TABLES: Key = ("", "", "", "")
"""What the index has the tables themselves under."""

UNJUDGED = (None, "not_run", "not_applicable")
"""Statuses of an accuracy check that has neither passed nor failed."""

CELLS_AT_ONCE = 250
"""Cells that are in memory together where a table of many rows per cell is merged."""

OF_BOTH = {column.name for column in OF_CHECKS} - set().union(*OF_CHECK.values())
"""Columns of the program, which several checks have."""

LAST_CHECKS = {"batch_size", "batch_size_requested", *OF_BOTH}
"""Columns of several checks that are taken from the last of them."""

ROWS_AT_ONCE = 50_000
"""Fewest rows of a row group but the last."""


def merge(
    folder: Path,
    requested: Sequence[Key],
    checks: Collection[str],
    identities: Identities,
    rule: str = "strict",
    under_way: Collection[Key] = (),
) -> Problems:
    """Renew the tables in `folder`, which is results/{device}; what could not be read.

    `requested` are the cells and `checks` the checks that the last command asked for, `rule` is the key `accuracy_rule`.
    Cells that are `under_way` may be half done: the index does not know them, so that they are looked at again.
    """
    files = find(folder)
    problems: Problems = {}
    made_of = read_index(folder)
    changed = {cell for cell in {*files, *made_of} if files.get(cell) != made_of.get(cell)}
    (folder / INDEX).unlink(missing_ok=True)  # until all tables are of one state again
    renewed = {cell: folder.joinpath(*cell[1:]) for cell in files if cell in changed}

    def kept(name: str) -> Iterator[pa.Table]:
        return _without(folder / f"{name}.parquet", changed) if made_of else iter(())

    def write(name: str, parts: Iterable[pa.Table]) -> None:
        parquet.write_parts(parquet.SCHEMAS[name], _gathered(parts), folder / f"{name}.parquet")

    measured: dict[str, list[pa.Table]] = {check: [] for check in CHECKS}
    if changed or not made_of:
        for check, record in CHECKS.items():
            write(record.details, chain(kept(record.details), _details(check, renewed, measured[check], problems)))
        write("attempts", chain(kept("attempts"), [_attempts(renewed, under_way)]))
        write("repeats", chain(kept("repeats"), _repeats(folder, renewed, files)))
    rows = pa.concat_tables([*kept("cells"), join(list(renewed), measured, problems)])
    rows = _with_reasons(_in_order(rows, files, requested, checks, identities, rule), folder)
    parquet.write(rows, folder / "cells.parquet")
    write_index(folder, {cell: stamps for cell, stamps in files.items() if cell not in under_way})
    return problems


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until nobody else makes the tables in `folder`, where the file system can lock a folder."""
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def is_up_to_date(folder: Path) -> bool:
    """Whether the tables are made of exactly the files that there are now."""
    return read_index(folder) == find(folder)


def find(folder: Path) -> dict[Key, dict[str, Stamp]]:
    """The cells that results/{device} has a file for, sorted, with those files and their stamps."""
    cells: list[Any] = [(folder.name, *path.relative_to(folder).parts) for path in folder.glob("*/*/*/")]
    found = {}
    for cell in sorted(cell for cell in cells if cell[1] not in RESERVED):
        with os.scandir(folder.joinpath(*cell[1:])) as entries:
            files = {entry.name: entry.stat() for entry in entries if entry.name in FILES}
        if files:
            found[cell] = {name: _stamp(each) for name, each in sorted(files.items())}
    for path in sorted(folder.glob(f"{repeats.FOLDER}/*/*/*/*.parquet")):
        *cell, name = path.relative_to(folder / repeats.FOLDER).parts
        if (key := (folder.name, *cell)) in found:
            found[key][f"{repeats.FOLDER}/{name}"] = _stamp(path.stat())
    return found


def _stamp(file: os.stat_result) -> Stamp:
    return file.st_ino, file.st_mtime_ns, file.st_size


def read_index(folder: Path) -> dict[Key, dict[str, Stamp]]:
    """By cell, what the tables were made of; nothing if they have to be made anew.

    That is also if they are not the files that were written with the index, as Snakemake puts the ones before back in place
    when a merge is interrupted.
    """
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
    return made_of if made_of.pop(TABLES, None) == _tables(folder) else {}


def write_index(folder: Path, files: Mapping[Key, Mapping[str, Stamp]]) -> None:
    """Remember what the tables were made of."""
    rows = [
        (*cell, name, *stamp)
        for cell, stamps in [*files.items(), (TABLES, _tables(folder))]
        for name, stamp in stamps.items()
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), INDEX_SCHEMA, strict=True)]
    parquet.write(pa.table(arrays, schema=INDEX_SCHEMA), folder / INDEX)


def _tables(folder: Path) -> dict[str, Stamp]:
    """The files of the tables; without their times, which Snakemake sets to that of the end of its job."""
    found = {name: (folder / f"{name}.parquet").stat() for name in parquet.SCHEMAS}
    return {name: (each.st_ino, 0, each.st_size) for name, each in found.items()}


def join(cells: Sequence[Key], measured: Mapping[str, Sequence[pa.Table]], problems: Problems) -> pa.Table:
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
        for name in aligned.column_names:
            before = columns.get(name, aligned[name])
            both = pc.coalesce(aligned[name], before)
            columns[name] = both if name in LAST_CHECKS else pc.if_else(is_earlier, pc.coalesce(before, aligned[name]), both)
        reasons = pa.array([problems.get((cell, check)) for cell in cells], pa.string())
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
    rule: str,
) -> pa.Table:
    """The requested cells in their order, then the others, with what is derived of each (`schemas.STATE`)."""
    cells = [*requested, *sorted({*files} - {*requested})]
    rows = _aligned(rows, cells)
    asked = pa.array([True] * len(requested) + [False] * (len(cells) - len(requested)), pa.bool_())
    for check in CHECKS:
        status = pc.if_else(pc.equal(rows[check], "not_run"), None, rows[check])
        status = pc.if_else(pc.and_(asked, check in checks), pc.fill_null(status, "not_run"), status)
        rows = rows.set_column(rows.schema.get_field_index(check), rows.schema.field(check), status)
    stale = {check: _stale(rows, cells, check, identities) for check in CHECKS}
    pairs = zip(rows["accuracy"].to_pylist(), rows["strict"].to_pylist(), strict=True)
    statuses, rules = zip(*(status_by_rule(*pair, rule) for pair in pairs), strict=True) if cells else ((), ())
    accuracy = pa.array(statuses, pa.string())
    state = {
        "accuracy_by_rule": accuracy,
        "passed": pc.if_else(pc.is_in(accuracy, pa.array(UNJUDGED)), None, pc.is_in(accuracy, pa.array(PASSED))),
        "passed_by": pa.array(rules, pa.string()),
        "requested": asked,
        "stale": pa.array([_any(of_cell) for of_cell in zip(*stale.values(), strict=True)], pa.bool_()),
        "counted": _counted(rows, accuracy, stale),
    }
    for name, values in state.items():
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)
    return rows


def _with_reasons(rows: pa.Table, folder: Path) -> pa.Table:
    """The cells with why their checks did not pass, by their rows and their evidence in `folder`."""
    passed = (pc.is_in(rows[status], pa.array(reasons.WITHOUT_REASON)) for status in SHOWN_STATUS.values())
    numbers = pc.indices_nonzero(pc.invert(reduce(pc.and_, passed))).to_pylist()
    some = rows.take(pa.array(numbers, pa.int64()))
    leaves = of_cells(folder / "evidence.parquet", keys(some), reasons.LEAF)
    repeated = of_cells(folder / "repeats.parquet", keys(some))
    found: list[dict[str, Any]] = [{} for _ in range(len(rows))]
    for number, cell, row in zip(numbers, keys(some), some.to_pylist(), strict=True):
        details, again = ([*table[cell].to_pylist()] if cell in table else [] for table in (leaves, repeated))
        found[number] = derived(row, CHECKS, details, again)
    for name in (f"{check}_{name}" for check in CHECKS for name in (*REASON, *(name for name, *_ in REPEATED))):
        field = rows.schema.field(name)
        values = pa.array([each.get(name) for each in found], field.type)
        rows = rows.set_column(rows.schema.get_field_index(name), field, values)
    return rows


def derived(
    row: Mapping[str, Any], checks: Iterable[str], leaves: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Why the checks of a cell did not pass, and how often they fail again: columns of its row, out of its other tables."""
    found: dict[str, Any] = {}
    for check in checks:
        found |= repeats.columns(row, check, again)
        found |= zip((f"{check}_{name}" for name in REASON), reasons.reason({**row, **found}, check, leaves), strict=True)
    return found


def row_of(cell: Key, folder: Path, checks: Iterable[str], rule: str) -> dict[str, Any]:
    """The row of a cell in the table, out of its own files alone; `requested`, `stale` and `counted` are null."""
    problems: Problems = {}
    measured: dict[str, list[pa.Table]] = {}
    leaves: list[dict[str, Any]] = []
    for check in checks:
        file = _read_all(check, {cell: folder}, problems)
        measured[check] = [file.drop_columns([parquet.DETAILS])]
        leaves += file[parquet.DETAILS][0].as_py() if check == "accuracy" and len(file) else []
    row: dict[str, Any] = join([cell], measured, problems).to_pylist()[0]
    row["accuracy_by_rule"], row["passed_by"] = status_by_rule(row["accuracy"], row["strict"], rule)
    return row | derived(row, measured, leaves, [])


def of_cells(path: Path, wanted: Collection[Key], columns: Collection[str] | None = None) -> dict[Key, pa.Table]:
    """By cell, the rows of a table of details that belong to these cells; all columns, or those and the key."""
    owners = pa.array(["/".join(key) for key in wanted], pa.string())
    with pq.ParquetFile(path) as file:
        names = None if columns is None else [*KEY, *columns]
        parts = [file.schema_arrow.empty_table() if names is None else file.schema_arrow.empty_table().select(names)]
        for group in range(file.num_row_groups if wanted else 0):
            part = file.read_row_group(group, names)
            parts.append(part.filter(pc.is_in(pc.binary_join_element_wise(*(part[name] for name in KEY), "/"), owners)))
    rows, places = pa.concat_tables(parts).combine_chunks(), dict[Key, list[int]]()
    for place, key in enumerate(keys(rows)):
        places.setdefault(key, []).append(place)
    return {key: rows.take(of_cell) for key, of_cell in places.items()}


def _aligned(rows: pa.Table, cells: Sequence[Key]) -> pa.Table:
    """One row for each of the cells, in their order; all but the key is null where there is none."""
    numbers = {cell: number for number, cell in enumerate(keys(rows))}
    aligned = rows.take(pa.array([numbers.get(cell) for cell in cells], pa.int64()))
    for name, values in zip(KEY, zip(*cells, strict=True) if cells else [()] * len(KEY), strict=True):
        aligned = aligned.set_column(
            rows.schema.get_field_index(name), rows.schema.field(name), pa.array(values, pa.string())
        )
    return aligned


def without_stale(cells: pa.Table, checks: Collection[str], identities: Identities) -> pa.Table:
    """The cells, where a requested check that was measured with another identity than today's is `not_run`.

    So it is while a run goes on: the file of an earlier one lies there until the job that makes it anew begins.
    """
    asked = pc.fill_null(cells["requested"], False)
    for check in checks:
        is_stale = pc.and_(asked, pa.array(map(bool, _stale(cells, keys(cells), check, identities)), pa.bool_()))
        known = {check: "not_run", SHOWN_STATUS[check]: "not_run"} | ({"counted": False} if check == "performance" else {})
        for name in {*OF_CHECK[check], *OF_BOTH, *known}:
            number, field = cells.schema.get_field_index(name), cells.schema.field(name)
            cells = cells.set_column(
                number, field, pc.if_else(is_stale, pa.scalar(known.get(name), field.type), cells[name])
            )
    return cells


def _stale(rows: pa.Table, cells: Sequence[Key], check: str, identities: Identities) -> list[bool | None]:
    """Of each cell, whether its row of a check was measured with another identity than today's; None without one of both."""
    measured = rows[f"{check}_identity"].to_pylist()
    today = [identities(cell, check) if identity else None for cell, identity in zip(cells, measured, strict=True)]
    return [None if each is None else each != identity for each, identity in zip(today, measured, strict=True)]


def _any(of_checks: Iterable[bool | None]) -> bool | None:
    known = [each for each in of_checks if each is not None]
    return any(known) if known else None


def _counted(rows: pa.Table, accuracy: pa.Array, stale: Mapping[str, Sequence[bool | None]]) -> pa.ChunkedArray:
    """Whether a cell's speedup is in the means: timed, and neither its accuracy nor its timed output was found wrong.

    An accuracy that was never measured, or that is of an identity before that of the timing, says nothing of what was timed.
    """
    timed = pc.and_(pc.equal(rows["performance"], "pass"), pc.fill_null(rows["timed_output_ok"], True))
    is_earlier = [bool(one) and not other for one, other in zip(stale["accuracy"], stale["performance"], strict=True)]
    unknown = pc.or_(pc.is_null(accuracy), pa.array(is_earlier, pa.bool_()))
    return pc.fill_null(pc.and_(timed, pc.or_(unknown, pc.is_in(accuracy, pa.array(PASSED)))), False)


def _details(check: str, folders: Mapping[Key, Path], rows: list[pa.Table], problems: Problems) -> Iterator[pa.Table]:
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


def _attempts(folders: Mapping[Key, Path], under_way: Collection[Key]) -> pa.Table:
    """Every attempt at the cells that has ended; a cell that never began has none."""
    rows = [
        row
        for cell, folder in folders.items()
        for row in journal.rows_of(folder / journal.NAME, dict(zip(KEY, cell, strict=True)), cell in under_way)
    ]
    return parquet.table(rows, parquet.SCHEMAS["attempts"])


def _repeats(folder: Path, cells: Iterable[Key], files: Mapping[Key, Iterable[str]]) -> Iterator[pa.Table]:
    """What became of these cells in fresh processes; a file that cannot be read counts as one that is not there."""
    schema = parquet.SCHEMAS["repeats"]
    for cell in cells:
        for name in (Path(name) for name in files[cell]):
            if name.parent.name == repeats.FOLDER:
                with suppress(pa.ArrowException, OSError):
                    yield pq.read_table(folder.joinpath(repeats.FOLDER, *cell[1:], name.name), schema=schema)


def _without(path: Path, cells: Collection[Key]) -> Iterator[pa.Table]:
    """The row groups of a table, without the rows of these cells."""
    gone = pa.array(["/".join(cell) for cell in cells], pa.string())
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            part = file.read_row_group(group)
            owners = pc.binary_join_element_wise(*(part[name] for name in KEY), "/")
            yield part.filter(pc.invert(pc.is_in(owners, gone)))


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


def _read_all(check: str, folders: Mapping[Key, Path], problems: Problems) -> pa.Table:
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


def _read(check: str, cell: Key, path: Path) -> pa.Table:
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
