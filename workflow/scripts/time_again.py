"""One cell timed again, in fresh processes with empty compile caches, until they tell whether its figures got worse."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.supervisor import fresh_process, job
from timmgate.tables import parquet
from timmgate.tables.comparison import pairs
from timmgate.tables.gate import confirmation
from timmgate.weights import record

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cell, run, weights = job.told(snakemake, compile_cache="cell")
    times, found = snakemake.params.times, record.read_optional(weights)
    suspect = confirmation.Suspect.from_dict(snakemake.params.suspect)
    measured = []
    while len(measured) < times and not confirmation.is_settled(suspect, pairs.rows([cell], measured), times):
        with job.scratch(run) as cache:
            log = Path(snakemake.log[0]).with_suffix(f".{len(measured)}.log")
            ((_, outcome),) = fresh_process.again([cell.spec("performance")], replace(run, cache=cache), found, log)
        measured.append((len(measured), 0, outcome))
    parquet.write(pairs.table([cell], measured), Path(snakemake.output[0]))
