"""The files that the tables of a folder are made of, and an index beside them that remembers which these were."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from timmgate.core.build import RESERVED
from timmgate.core.checks import CHECKS
from timmgate.core.schemas import KEY
from timmgate.core.spec import CellKey
from timmgate.supervisor import journal
from timmgate.tables import parquet, repeats

Stamp = tuple[int, int, int]
"""Inode, time of change in ns and size of a file: another content has another one."""

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

TABLES: CellKey = ("", "", "", "")
"""What the index has the tables themselves under."""


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
    return read(folder) == find(folder)


def find(folder: Path) -> dict[CellKey, dict[str, Stamp]]:
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


def read(folder: Path) -> dict[CellKey, dict[str, Stamp]]:
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
    made_of: dict[CellKey, dict[str, Stamp]] = {}
    for *cell, file, inode, mtime_ns, size in zip(*(column.to_pylist() for column in index), strict=True):
        made_of.setdefault(tuple(cell), {})[file] = inode, mtime_ns, size
    return made_of if made_of.pop(TABLES, None) == _tables(folder) else {}


def write(folder: Path, files: Mapping[CellKey, Mapping[str, Stamp]]) -> None:
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
