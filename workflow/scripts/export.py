"""The merged cells in the files of other tools."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from timmgate.core.spec import Mode
from timmgate.tables import export, parquet

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    modes = {name: Mode(**options) for name, options in snakemake.params.modes.items()}
    cells = pq.read_table(snakemake.input.cells)
    for name, contents in export.files(cells, modes, snakemake.params.device).items():
        write = parquet.write_json_lines if isinstance(contents, list) else parquet.write_csv
        write(contents, Path(snakemake.output[0], name))
