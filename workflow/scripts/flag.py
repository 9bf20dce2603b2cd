"""What an engineer should look at, and the figures of each mode, out of the merged cells."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from timmgate.core.thresholds import Thresholds
from timmgate.tables import flag

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    cells, params = pq.read_table(snakemake.input.cells), snakemake.params
    thresholds = Thresholds(**params.thresholds)
    flag.write(Path(snakemake.input.cells).parent, cells, params.checks, thresholds, params.accuracy_rule)
