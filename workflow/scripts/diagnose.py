"""All diagnoses in one table, and in the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from timmgate.report import diagnosis as terminal
from timmgate.tables import diagnosis, parquet

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    found = pa.concat_tables(
        [diagnosis.SCHEMA.empty_table(), *map(pq.read_table, snakemake.input.diagnoses)], promote_options="default"
    )
    trials = pa.concat_tables(
        [diagnosis.TRIALS_SCHEMA.empty_table(), *map(pq.read_table, snakemake.input.trials)], promote_options="default"
    )
    parquet.write(found, Path(snakemake.output.table))
    parquet.write_tsv(found, Path(snakemake.output.tsv))
    parquet.write(trials, Path(snakemake.output.trials))
    terminal.show(found.to_pylist(), Console())
