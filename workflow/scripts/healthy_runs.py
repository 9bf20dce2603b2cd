"""Runs of one model in one mode that are right, and how near the strict limit they come."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import builds
from timmgate.core.spec import Cell
from timmgate.supervisor import job, study
from timmgate.tables import calibration, parquet

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cell, log = Cell.from_dict(snakemake.params.cell), Path(snakemake.log[0])
    build = builds.load(Path(snakemake.resources.facts), cell.build)
    run = job.policy(snakemake, build=build.options)
    weights = job.weights_file(snakemake)
    asked = "timmgate.worker.calibration", cell.spec("accuracy"), run, weights, log
    runs = study.rows(*asked, timeout_s=study.TIMEOUTS * run.timeout)
    about = {name: getattr(cell, name) for name in ("device", "mode", "model", "weights")}
    kind = {"precision": cell.options.precision, "training": cell.options.training}
    parquet.write(calibration.table(about | kind | each for each in runs), Path(snakemake.output[0]))
