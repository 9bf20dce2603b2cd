"""Traces of one cell, a folder for each kind."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import builds
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Cell
from timmgate.supervisor import traces

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cell = Cell.from_dict(snakemake.params.cell)
    build = builds.load(Path(snakemake.resources.facts), cell.build)
    options = RunOptions.from_dict(json.loads(snakemake.resources.run_options))
    run = replace(options, threads=snakemake.threads, build=build.options)
    weights = Path(snakemake.input.weights) if snakemake.input.get("weights") else None
    folders = {kind: Path(folder) for kind, folder in snakemake.output.items()}
    traces.take(cell.spec(snakemake.params.check), run, weights, folders, Path(snakemake.log[0]))
