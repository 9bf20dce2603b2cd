"""Which cells may have a figure that got worse, and what it may be: fresh processes have to tell."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from timmgate.core.files import write_text
from timmgate.tables.gate import judgement

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cells = pq.read_table(snakemake.input.cells)
    params = snakemake.params
    found = judgement.suspects(cells, params.measured, params.thresholds, params.times)
    write_text(Path(snakemake.output[0]), json.dumps({cell: suspect.rounded() for cell, suspect in found.items()}))
