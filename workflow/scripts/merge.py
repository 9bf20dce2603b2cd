"""The rows and the details of all requested cells into one table of cells, and one table for each kind of details."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate import aggregate, attempts, rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    measured = {}
    for check, details in snakemake.params.checks.items():
        files = aggregate.cells_of(snakemake.input[check])
        measured[check] = aggregate.merge(check, files)
        beside = {cell: row.with_name(f"{details}.parquet") for cell, row in files.items()}
        lost = aggregate.merge_into(Path(snakemake.output[details]), details, beside)
        for cell, problem in lost.items():
            print(f"no {details} of {'/'.join(cell)}: {problem}", file=sys.stderr)
    journals = {cell: path.with_name(attempts.NAME) for cell, path in files.items()}
    rows.write(aggregate.attempts(journals), Path(snakemake.output.attempts))
    rows.write(aggregate.join(list(files), measured), Path(snakemake.output.cells))
