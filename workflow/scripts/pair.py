"""One cell timed by two builds in turns, a row for each process."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import builds
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Cell
from timmgate.supervisor import turns
from timmgate.supervisor.job import with_build
from timmgate.tables import pairs, parquet
from timmgate.weights import record

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    limits, facts = snakemake.resources, Path(snakemake.resources.facts)
    policy = replace(RunOptions.from_dict(json.loads(limits.run_options)), threads=snakemake.threads)
    cells = [Cell.from_dict(each) for each in snakemake.params.cells]
    runs = [with_build(policy, cell, builds.load(facts, cell.build).options, Path(limits.compile_cache)) for cell in cells]
    weights = record.read_optional(Path(snakemake.input.weights) if snakemake.input.get("weights") else None)
    measured = turns.measure([cell.spec("performance") for cell in cells], runs, weights, Path(snakemake.log[0]))
    parquet.write(pairs.table(cells, measured), Path(snakemake.output[0]))
