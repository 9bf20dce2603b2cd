"""Which cells have a figure that fails the gate, before it is confirmed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from timmgate.core.files import write_text
from timmgate.tables import gate

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    params, cells = snakemake.params, pq.read_table(snakemake.input.cells)
    found = gate.against(cells, params.checks, {}, params.measured, params.thresholds, params.models)
    text = json.dumps(gate.moved(found))
    write_text(Path(snakemake.output[0]), text)
