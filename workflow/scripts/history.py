"""What changed in the history, since when and with which versions."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from timmgate.report import history as terminal
from timmgate.tables import parquet
from timmgate.tables.history import trends

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    params = snakemake.params
    found, extent = trends.changed(Path(params.history), params.device, params.runs, params.accuracy_rule)
    parquet.write_tsv(found, Path(params.table))
    terminal.show(found.to_pylist(), extent, Console())
    Path(snakemake.log[0]).write_text(f"{len(found)} changes. See {params.table}\n", encoding="utf-8")
