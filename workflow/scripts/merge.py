"""The rows and the evidence of all requested cells into one table each."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate import aggregate, rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cells, problems = aggregate.merge("accuracy", aggregate.cells_of(snakemake.input.rows))
    evidence, lost = aggregate.merge("evidence", aggregate.cells_of(snakemake.input.evidence))
    for cell, problem in lost.items():
        print(f"no evidence of {'/'.join(cell)}: {problem}", file=sys.stderr)
    rows.write(aggregate.complete(cells, problems), Path(snakemake.output.cells))
    rows.write(evidence, Path(snakemake.output.evidence))
