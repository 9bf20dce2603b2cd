"""The checks of one cell: measure them, and write a file for each, whatever becomes of them."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import builds
from timmgate.supervisor.job import Job, measure
from timmgate.tables.rows import writer

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    build = builds.load(Path(snakemake.resources.facts), snakemake.wildcards.build)
    job = Job.of_snakemake(snakemake, build.options)
    measure(job, writer(job, snakemake.resources.suite, build.facts))
