"""All diagnoses in one table, and in the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from timmgate.report import diagnosis as terminal
from timmgate.tables import diagnosis, parquet

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    found = parquet.read_all(snakemake.input.diagnoses, diagnosis.SCHEMA)
    trials = parquet.read_all(snakemake.input.trials, diagnosis.TRIALS_SCHEMA)
    parquet.write(found, Path(snakemake.output.table))
    parquet.write_tsv(found, Path(snakemake.output.tsv))
    parquet.write(trials, Path(snakemake.output.trials))
    terminal.show(found.to_pylist(), Console())
