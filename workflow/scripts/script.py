"""The script of one cell, with its weights and inputs."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import builds
from timmgate.core.spec import Cell
from timmgate.diagnosis import script
from timmgate.supervisor import job
from timmgate.tables import merge

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cell, path = Cell.from_dict(snakemake.params.cell), Path(snakemake.output.script)
    build = builds.load(Path(snakemake.resources.facts), cell.build)
    run = job.policy(snakemake, build=build.options)
    weights = job.weights_file(snakemake)
    key = (cell.device, cell.build, cell.mode, cell.model)
    row = merge.row_of(key, path.parents[1], snakemake.params.checks, run.accuracy_rule)
    case = script.case(cell, row, snakemake.params.checks)
    script.write(case, run, weights, path.parent, Path(snakemake.log[0]))
