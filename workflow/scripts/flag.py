"""Failures and counts per mode out of the merged cells."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from timmgate import flags, rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cells = pq.read_table(snakemake.input.cells)
    failures = flags.failures(cells, snakemake.params.checks)
    rows.write(failures, Path(snakemake.output.failures))
    rows.write_tsv(failures, Path(snakemake.output.failures_tsv))
    rows.write_tsv(flags.summary(cells, snakemake.params.checks), Path(snakemake.output.summary))
