"""One cell timed once more, in a fresh process with an empty compile cache."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import builds
from timmgate.core.spec import Cell
from timmgate.supervisor import job, turns
from timmgate.tables import pairs, parquet
from timmgate.weights import record

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    limits, cell, number = snakemake.resources, Cell.from_dict(snakemake.params.cell), int(snakemake.wildcards.number)
    policy = job.policy(snakemake, compile_cache="cell")
    build = builds.load(Path(limits.facts), cell.build)
    weights = record.read_optional(job.weights_file(snakemake))
    with tempfile.TemporaryDirectory() as cache:
        run = job.with_build(policy, cell, build.options, Path(cache))
        ((_, outcome),) = turns.again([cell.spec("performance")], run, weights, Path(snakemake.log[0]))
    parquet.write(pairs.table([cell], [(number, 0, outcome)]), Path(snakemake.output[0]))
