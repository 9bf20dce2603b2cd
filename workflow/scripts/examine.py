"""Why one cell failed: a row that says so, and a row for each trial."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import builds
from timmgate.core.spec import Cell
from timmgate.diagnosis import examination, script
from timmgate.supervisor import job
from timmgate.tables import diagnosis, merge, parquet

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    limits, cell = snakemake.resources, Cell.from_dict(snakemake.params.cell)
    policy = job.policy(snakemake, compile_cache="cell")
    build = builds.load(Path(limits.facts), cell.build)
    run = job.with_build(policy, cell, build.options, Path(limits.compile_cache))
    key, checks = (cell.device, cell.build, cell.mode, cell.model), snakemake.params.checks
    row = merge.row_of(key, Path("results").joinpath(*key), checks, run.accuracy_rule)
    weights = job.weights_file(snakemake)
    folder = Path(snakemake.output.diagnosis).parent
    patient = examination.patient(cell, row, checks, run, weights, folder, Path(snakemake.log[0]))
    found = examination.examine(patient)
    found.script = examination.write_script(script.case(cell, row, checks), patient, found, weights)
    parquet.write(diagnosis.trials(cell, found), Path(snakemake.output.trials))
    parquet.write(diagnosis.summary(cell, patient.spec.check, row, found), Path(snakemake.output.diagnosis))
