"""All trials of faults in one table, and the share that each rule catches."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from timmgate.report import power as terminal
from timmgate.tables import parquet
from timmgate.tables.studies import power

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    trials = parquet.read_all(snakemake.input, power.TRIALS)
    summary = power.summary(trials)
    parquet.write(trials, Path(snakemake.output.trials))
    parquet.write_tsv(summary, Path(snakemake.output.summary))
    terminal.show(summary, Console())
