"""The failed checks of one cell once more, in a fresh process with an empty compile cache."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.supervisor import fresh_process, job
from timmgate.tables import merge, parquet, repeats
from timmgate.weights import record

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cell, run, weights = job.told(snakemake, compile_cache="cell")
    rows = Path(snakemake.input[0]).parent
    row = merge.row_of(cell.key, rows, snakemake.params.checks, run.accuracy_rule)
    specs = [cell.spec(check) for check in repeats.failed_checks(row, snakemake.params.checks)]
    with job.scratch(run) as cache:
        own = replace(run, cache=cache)
        repeated = fresh_process.again(specs, own, record.read_optional(weights), Path(snakemake.log[0]))
    table = repeats.table(row, int(snakemake.wildcards.number), repeated, run.accuracy_rule)
    parquet.write(table, Path(snakemake.output[0]))
