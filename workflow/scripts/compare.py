"""Two builds, or every build and a baseline, compared: a table, and what a person should know of it."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from timmgate.report import comparison as terminal
from timmgate.tables import parquet, state
from timmgate.tables.comparison import candidate, compare, pairs

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    params = snakemake.params
    if params.candidate:
        cells, stale = candidate.load(params.candidate), 0
    else:
        cells, stale = state.measured_today(snakemake.input.cells, params.checks, snakemake.config, Path(params.facts))
    cells = state.of_checks(cells, params.checks)
    if params.baseline:
        compared = compare.with_baseline(cells, params.builds, params.baseline, params.called)
    else:
        measured = parquet.read_all(snakemake.input.pairs, pairs.SCHEMA)
        compared = compare.compare(measured, cells, *params.builds)
    parquet.write(compared, Path(snakemake.output.table))
    parquet.write_tsv(compared, Path(snakemake.output.tsv))
    terminal.show(compared.to_pylist(), Console())
    if stale:
        print(state.said_of_stale(stale))
