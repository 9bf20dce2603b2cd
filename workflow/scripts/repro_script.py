"""The script of one cell, with its weights and inputs."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.diagnosis import script
from timmgate.supervisor import job
from timmgate.tables import merge

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cell, run, weights = job.told(snakemake)
    path = Path(snakemake.output.script)
    row = merge.row_of(cell.key, path.parents[1], snakemake.params.checks, run.accuracy_rule)
    case = script.case(cell, row, snakemake.params.checks)
    script.write(case, run, weights, path.parent, Path(snakemake.log[0]))
