"""The statuses of the merged cells as the expectations of later runs."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from timmgate.tables import parquet
from timmgate.tables.gate import judgement

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cells, params = pq.read_table(snakemake.input.cells), snakemake.params
    renewed = judgement.updated(cells, params.everything, params.expectations, params.checks)
    for file in map(Path, params.files):
        parquet.write_csv(renewed[file.stem], file)
