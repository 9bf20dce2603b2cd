"""What changed in the history, since when and with which versions."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc
from rich.console import Console

from timmgate.report import history as terminal
from timmgate.tables import history, parquet, trends

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    params = snakemake.params
    entries = history.read(Path(params.history), trends.READ, pc.field("device") == params.device)
    found = trends.changed(entries, params.runs)
    parquet.write_tsv(found, Path(params.table))
    terminal.show(found.to_pylist(), trends.extent(entries, params.runs), Console())
    Path(snakemake.log[0]).write_text(f"{len(found)} changes. See {params.table}\n", encoding="utf-8")
