"""The requested cells that failed for a reason that may be the compiler's."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from timmgate.core.files import write_text
from timmgate.tables import diagnosis

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    found = diagnosis.candidates(pq.read_table(snakemake.input.cells), snakemake.params.checks)
    write_text(Path(snakemake.output[0]), json.dumps(found))
