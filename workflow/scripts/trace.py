"""Traces of one cell, a folder for each kind."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.supervisor import job, traces

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cell, run, weights = job.told(snakemake)
    folders = {kind: Path(folder) for kind, folder in snakemake.output.items()}
    traces.take(cell.spec(snakemake.params.check), run, weights, folders, Path(snakemake.log[0]))
