"""One cell timed by two builds in turns, a row for each process."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import builds
from timmgate.core.spec import Cell
from timmgate.supervisor import job, turns
from timmgate.tables import parquet
from timmgate.tables.comparison import pairs
from timmgate.weights import record

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    limits, facts = snakemake.resources, Path(snakemake.resources.facts)
    policy = job.policy(snakemake)
    cells = [Cell.from_dict(each) for each in snakemake.params.cells]
    runs = [
        job.with_build(policy, cell, builds.load(facts, cell.build).options, Path(limits.shared_cache)) for cell in cells
    ]
    weights = record.read_optional(job.weights_file(snakemake))
    measured = turns.measure([cell.spec("performance") for cell in cells], runs, weights, Path(snakemake.log[0]))
    parquet.write(pairs.table(cells, measured), Path(snakemake.output[0]))
