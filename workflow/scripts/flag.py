"""What an engineer should look at, and the figures of each mode, out of the merged cells."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from timmgate.tables import failures, parquet

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cells = pq.read_table(snakemake.input.cells)
    found = failures.failures(cells, snakemake.params.checks)
    parquet.write(found, Path(snakemake.output.failures))
    parquet.write_tsv(found, Path(snakemake.output.failures_tsv))
    parquet.write_tsv(failures.summary(cells, snakemake.params.checks), Path(snakemake.output.summary))
