"""Makes the tables of what has been measured until now, also while a run goes on.

    python -m timmgate.tables results/cpu

Snakemake makes them once more when the run is complete, or in the next run.
"""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from timmgate.core.schemas import FAILED, SHOWN_STATUS
from timmgate.core.spec import CellKey
from timmgate.supervisor import stages
from timmgate.system.process_tree import RUN, die_with_run, interruptible
from timmgate.tables import by_cell, flag, index, merge, parquet, request, state
from timmgate.tables.request import Request

SECOND_NS = 10**9

MADE_OF_TABLES = ("gate.tsv", "history.tsv", "comparison.parquet")
"""What other targets make of the tables, and the report's page shows unless it is older than they are."""


def main(path: Path) -> str:
    """Make the tables in results/{device}, unless they are as they must be; a sentence about what is in them.

    Without a request every cell counts as requested. Exits with a sentence if there is neither a request nor a result.
    """
    folder = path.absolute()  # results may be a link: what it was asked for lies beside that
    files = index.find(folder) if folder.is_dir() else {}
    asked = request.load(folder) or Request(list(files))
    if not asked.cells:
        sys.exit(f"{path} has no results; name the folder of a device, such as results/cpu")
    if not files:
        return f"{path} has none of {len(asked.cells)} requested cells yet"
    os.chdir(folder.parents[1])  # where the run was started: what it was asked for speaks of files there
    identities = asked.identities()
    with index.alone(folder):
        if is_renewed := not is_up_to_date(folder):
            request.say_partial(folder)
            under_way = stages.under_way(folder.name)
            problems = merge.merge(folder, asked.cells, asked.checks, identities, asked.accuracy_rule, under_way)
            for (cell, check), problem in problems.items():
                print(f"{'/'.join(cell)} {check}: {problem}", file=sys.stderr)
        cells, _ = state.without_stale(pq.read_table(folder / "cells.parquet"), asked.checks, identities)
        if is_renewed:
            flag.write(folder, cells, asked.checks, asked.thresholds, asked.accuracy_rule)
            date_before(folder, index.find(folder))
    return sentence(path, cells.select(["requested", *(SHOWN_STATUS[check] for check in asked.checks)]))


def is_up_to_date(folder: Path) -> bool:
    """Whether the tables have what was measured, and were made since the last command asked for something."""
    paths = [folder / f"{name}.parquet" for name in ("cells", "failures")]
    asked = folder / request.NAME
    asked_ns = asked.stat().st_mtime_ns if asked.is_file() else 0
    return all(path.is_file() and path.stat().st_ctime_ns >= asked_ns for path in paths) and index.is_up_to_date(folder)


def date_before(folder: Path, files: Mapping[CellKey, Mapping[str, index.Stamp]]) -> None:
    """Give the tables a time before that of every file that they are made of: where it made none,
    Snakemake goes by that.

    What was made of earlier tables is dated before these.
    """
    oldest_ns = min(mtime_ns for stamps in files.values() for _, mtime_ns, _ in stamps.values()) - SECOND_NS
    names = [*(f"{name}.parquet" for name in (*parquet.SCHEMAS, "failures")), "failures.tsv", "summary.tsv"]
    earlier = [name for name in MADE_OF_TABLES if (folder / name).is_file()]
    for name, time_ns in [*((name, oldest_ns) for name in names), *((name, oldest_ns - SECOND_NS) for name in earlier)]:
        os.utime(folder / name, ns=(time_ns, time_ns))


def sentence(path: Path, cells: pa.Table) -> str:
    """How many of the requested cells are measured, and how many of these failed.

    All columns but `requested` are statuses.
    """
    statuses = [list(row.values()) for row in by_cell.requested(cells).drop_columns("requested").to_pylist()]
    measured = [of_cell for of_cell in statuses if not {None, "not_run"} & {*of_cell}]
    failed = sum(any(status in FAILED for status in of_cell) for of_cell in measured)
    return f"{path} has tables of {len(measured)} of {len(statuses)} requested cells; {failed} of them failed"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("name one folder, as in: python -m timmgate.tables results/cpu")
    if RUN in os.environ:
        die_with_run(signal.SIGTERM)
    with interruptible():  # no scratch file is left
        print(main(Path(sys.argv[1])))
