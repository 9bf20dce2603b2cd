"""Every fault that applies to one model in one mode, and which rules catch it."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.core.study import TIMEOUTS
from timmgate.supervisor import job, study
from timmgate.tables import parquet
from timmgate.tables.studies import common, power

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cell, run, weights = job.told(snakemake)
    asked = "timmgate.worker.power", cell.spec("accuracy"), run, weights, Path(snakemake.log[0])
    trials = study.rows(*asked, TIMEOUTS * run.timeout, places=snakemake.params.places)
    about = common.about(cell)
    parquet.write(power.table(about | trial for trial in trials), Path(snakemake.output[0]))
