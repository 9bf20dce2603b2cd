"""Runs of one model in one mode that are right, and how near the strict limit they come."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.core.study import TIMEOUTS
from timmgate.supervisor import job, study
from timmgate.tables import parquet
from timmgate.tables.studies import calibration, common

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cell, run, weights = job.told(snakemake)
    asked = "timmgate.worker.calibration", cell.spec("accuracy"), run, weights, Path(snakemake.log[0])
    runs = study.rows(*asked, TIMEOUTS * run.timeout)
    about = common.about(cell)
    parquet.write(calibration.table(about | each for each in runs), Path(snakemake.output[0]))
