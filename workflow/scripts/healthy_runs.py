"""Runs of one model in one mode that are right, and how near the strict limit they come."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import builds
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Cell
from timmgate.supervisor import study
from timmgate.tables import calibration, parquet

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cell, log = Cell.from_dict(snakemake.params.cell), Path(snakemake.log[0])
    build = builds.load(Path(snakemake.resources.facts), cell.build)
    options = RunOptions.from_dict(json.loads(snakemake.resources.run_options))
    run = replace(options, threads=snakemake.threads, build=build.options)
    weights = Path(snakemake.input.weights) if snakemake.input.get("weights") else None
    runs = study.rows("timmgate.worker.calibration", cell.spec("accuracy"), run, weights, log)
    about = {name: getattr(cell, name) for name in ("device", "mode", "model", "weights")}
    kind = {"precision": cell.options.precision, "training": cell.options.training}
    parquet.write(calibration.table(about | kind | each for each in runs), Path(snakemake.output[0]))
