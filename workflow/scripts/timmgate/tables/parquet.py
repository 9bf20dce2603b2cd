"""Columns to Arrow schemas, rows to files: Parquet with units and meanings in the metadata, TSV and CSV beside it."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from timmgate import PACKAGE_ROOT
from timmgate.core.checks import CHECKS
from timmgate.core.described import Column
from timmgate.core.files import write_atomically
from timmgate.core.schemas import TABLES, row
from timmgate.core.spec import PROTOCOL
from timmgate.tables import without_pandas
from timmgate.tables.provenance import commit

without_pandas.settle()

ARROW_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "list<string>": pa.list_(pa.string()),
    "list<int64>": pa.list_(pa.int64()),
}
"""Arrow type by the words of `described.Column.type`."""

DETAILS = "details"
"""Column of a cell's file with the rows of the check's second table."""

COMPRESSION = "zstd"

UNITS = "a unit in the metadata of a field holds for every value of it; an empty one is a plain number or a text"


def schema(columns: Sequence[Column], *nested: pa.Field) -> pa.Schema:
    """The Arrow schema of columns; each field's metadata has unit, description and group."""
    return pa.schema([*map(_field, columns), *nested])


def _field(column: Column) -> pa.Field:
    metadata = {"unit": column.unit, "description": column.description, "group": column.group}
    return pa.field(column.name, ARROW_TYPES[column.type], metadata={key: text for key, text in metadata.items() if text})


def _nested(check: str) -> pa.Field:
    """The details of a check as a column: a list of structs."""
    record = CHECKS[check]
    return pa.field(DETAILS, pa.list_(pa.struct(list(schema(record.detail_columns)))))


SCHEMAS = {name: schema(columns) for name, columns in TABLES.items()}
"""Schema of each merged table."""

FILE_SCHEMAS = {name: schema(row(check), _nested(name)) for name, check in CHECKS.items()}
"""Schema of the file that a cell has for a check: one row, its details as a column of structs."""


def read_all(paths: Iterable[str | Path], schema: pa.Schema) -> pa.Table:
    """The rows of files of one schema; of those that an older workflow wrote, with nulls for what they lack."""
    return pa.concat_tables([schema.empty_table(), *map(pq.read_table, paths)], promote_options="default")


def table(rows: Sequence[dict[str, Any]], schema: pa.Schema, refused: Callable[[str], object] | None = None) -> pa.Table:
    """Rows as an Arrow table; a missing column is null.

    A value of the wrong type, or of a name that the schema does not have, raises ArrowException or KeyError; with `refused`
    it becomes null or is left out, and `refused` is told why in words.
    """
    for name in sorted(set().union(*rows) - set(schema.names)):
        if refused is None:
            raise KeyError(f"there is no column {name}")
        refused(f"there is no column {name}")
    return pa.table([_array([each.get(field.name) for each in rows], field, refused) for field in schema], schema=schema)


def _array(values: list[Any], field: pa.Field, refused: Callable[[str], object] | None) -> pa.Array:
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if refused is None:
            raise
        refused(f"column {field.name}: {error}")
        return pa.nulls(len(values), field.type)


def write(table: pa.Table, path: Path) -> None:
    """Write a Parquet file, with checksums, that is either complete or absent, also when the process is killed half way."""
    write_parts(table.schema, [table], path)


def write_cell(table: pa.Table, path: Path) -> None:
    """As `write`, of one row with its details, without units and meanings: of a hundred columns they would be most of the
    file, and the merge, which adds them, reads ten thousands of files.
    """
    details = [f"{DETAILS}.list.element.{field.name}" for field in table.schema.field(DETAILS).type.value_type]
    options = {"store_schema": False, "write_statistics": False, "use_dictionary": details}
    write_parts(table.schema, [table], path, compression=dict.fromkeys(details, COMPRESSION), **options)


def write_parts(schema: pa.Schema, parts: Iterable[pa.Table], path: Path, **options: Any) -> None:
    """As `write`, of a table that comes in parts, which need not be in memory together. `options` are the writer's."""
    about = {"protocol": str(PROTOCOL), "units": UNITS, "workflow_commit": commit(PACKAGE_ROOT) or ""}
    options = {"compression": COMPRESSION, **options}

    def fill(scratch: Path) -> None:
        with pq.ParquetWriter(scratch, schema, write_page_checksum=True, **options) as writer:
            writer.add_key_value_metadata(about)
            for part in parts:
                writer.write_table(part)

    write_atomically(path, fill)


def write_csv(table: pa.Table, path: Path) -> None:
    """Write a comma-separated file, quoted only where it must be, null as nothing, all or nothing."""

    def fill(scratch: Path) -> None:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table.column_names)
            writer.writerows(each.values() for each in table.to_pylist())

    write_atomically(path, fill)


def write_json_lines(records: Iterable[dict[str, Any]], path: Path) -> None:
    """Write one line of JSON for each record, all or nothing."""
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def write_tsv(table: pa.Table, path: Path) -> None:
    """Write a tab-separated file for people and shells: one line a row, nothing quoted, so that a copied cell is the cell.

    A tab or a line break within a value becomes a space.
    """

    def fill(scratch: Path) -> None:
        lines = [table.column_names, *(map(_plain, each.values()) for each in table.to_pylist())]
        scratch.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")

    write_atomically(path, fill)


def _plain(value: Any) -> str:
    return "" if value is None else re.sub(r"\s*[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+\s*", " ", str(value))
