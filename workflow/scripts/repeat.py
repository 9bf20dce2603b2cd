"""The failed checks of one cell once more, in a fresh process with an empty compile cache."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import builds
from timmgate.core.spec import Cell
from timmgate.supervisor import job, turns
from timmgate.tables import merge, parquet, repeats
from timmgate.weights import record

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    limits, cell, path = snakemake.resources, Cell.from_dict(snakemake.params.cell), Path(snakemake.output[0])
    policy = job.policy(snakemake, compile_cache="cell")
    build = builds.load(Path(limits.facts), cell.build)
    weights = record.read_optional(job.weights_file(snakemake))
    key = cell.device, cell.build, cell.mode, cell.model
    rows = Path(snakemake.input[0]).parent
    row = merge.row_of(key, rows, snakemake.params.checks, policy.accuracy_rule)
    checks = repeats.failed_checks(row, snakemake.params.checks)
    with tempfile.TemporaryDirectory() as cache:
        run = job.with_build(policy, cell, build.options, Path(cache))
        repeated = turns.again([cell.spec(check) for check in checks], run, weights, Path(snakemake.log[0]))
    table = repeats.table(row, int(snakemake.wildcards.number), repeated, policy.accuracy_rule)
    parquet.write(table, path)
