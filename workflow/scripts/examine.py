"""Why one cell failed: a row that says so, and a row for each trial."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.diagnosis import examination, script
from timmgate.supervisor import job
from timmgate.tables import diagnosis, merge, parquet

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cell, run, weights = job.told(snakemake, compile_cache="cell")
    checks = snakemake.params.checks
    row = merge.row_of(cell.key, Path("results").joinpath(*cell.key), checks, run.accuracy_rule)
    folder = Path(snakemake.output.diagnosis).parent
    failed_cell = examination.failed_cell(cell, row, checks, run, weights, folder, Path(snakemake.log[0]))
    found = examination.examine(failed_cell)
    found.script = examination.write_script(script.case(cell, row, checks), failed_cell, found, weights)
    parquet.write(diagnosis.trials(cell, found), Path(snakemake.output.trials))
    parquet.write(diagnosis.summary(cell, failed_cell.spec.check, row, found), Path(snakemake.output.diagnosis))
    examination.forget(failed_cell)
