"""All healthy runs in one table, and the false alarms and ratios of each kind."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from timmgate.report import calibration as terminal
from timmgate.tables import parquet
from timmgate.tables.studies import calibration

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    runs = parquet.read_all(snakemake.input, calibration.RUNS)
    summary = calibration.summary(runs)
    parquet.write(runs, Path(snakemake.output.runs))
    parquet.write_tsv(summary, Path(snakemake.output.summary))
    terminal.show(summary, Console())
