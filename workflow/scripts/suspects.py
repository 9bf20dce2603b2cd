"""Which cells may have a figure that got worse, and what it may be: fresh processes have to tell."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.core.files import write_text
from timmgate.tables import state
from timmgate.tables.gate import judgement

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    params = snakemake.params
    cells, _ = state.measured_today(snakemake.input.cells, params.checks, snakemake.config, Path(params.facts))
    found = judgement.suspects(cells, params.measured, params.thresholds, params.times)
    write_text(Path(snakemake.output[0]), json.dumps({cell: suspect.rounded() for cell, suspect in found.items()}))
