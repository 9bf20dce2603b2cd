"""One cell timed again, in fresh processes with empty compile caches, until they tell whether its figures got worse."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import builds
from timmgate.core.spec import Cell
from timmgate.supervisor import job, turns
from timmgate.tables import confirmation, pairs, parquet
from timmgate.weights import record

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cell, times = Cell.from_dict(snakemake.params.cell), snakemake.params.times
    policy = job.policy(snakemake, compile_cache="cell")
    build = builds.load(Path(snakemake.resources.facts), cell.build)
    weights = record.read_optional(job.weights_file(snakemake))
    suspect = confirmation.Suspect.from_dict(snakemake.params.suspect)
    measured = []
    while len(measured) < times and not confirmation.is_settled(suspect, pairs.rows([cell], measured), times):
        with tempfile.TemporaryDirectory() as cache:
            run = job.with_build(policy, cell, build.options, Path(cache))
            log = Path(snakemake.log[0]).with_suffix(f".{len(measured)}.log")
            ((_, outcome),) = turns.again([cell.spec("performance")], run, weights, log)
        measured.append((len(measured), 0, outcome))
    parquet.write(pairs.table([cell], measured), Path(snakemake.output[0]))
