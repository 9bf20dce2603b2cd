"""What an engineer should look at, and the figures of each mode, out of the merged cells."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from timmgate.core.thresholds import Thresholds
from timmgate.tables import failures, parquet, summary

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cells, checks = pq.read_table(snakemake.input.cells), snakemake.params.checks
    found = failures.failures(cells, checks, Thresholds(**snakemake.params.thresholds))
    parquet.write(found, Path(snakemake.output.failures))
    parquet.write_tsv(found, Path(snakemake.output.failures_tsv))
    parquet.write_tsv(summary.summary(cells, checks), Path(snakemake.output.summary))
