"""The merged cells in the files of other tools."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import pyarrow.parquet as pq

from timmgate.core.spec import Mode
from timmgate.tables import export, parquet

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    params, folder = snakemake.params, Path(snakemake.output[0])
    cells = pq.read_table(snakemake.input.cells)
    for build, options in params.builds.items():
        modes = {name: Mode(**of_mode) for name, of_mode in options.items()}
        of_build = cells.filter(pc.equal(cells["build"], build))
        for name, contents in export.files(of_build, modes, params.checks, params.device).items():
            write = parquet.write_json_lines if isinstance(contents, list) else parquet.write_csv
            write(contents, folder / (build if len(params.builds) > 1 else "") / name)
