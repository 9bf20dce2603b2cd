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
    modes = {name: Mode(**options) for name, options in snakemake.params.modes.items()}
    cells, folder, builds = pq.read_table(snakemake.input.cells), Path(snakemake.output[0]), snakemake.params.builds
    for build in builds:
        of_build = cells.filter(pc.equal(cells["build"], build))
        for name, contents in export.files(of_build, modes, snakemake.params.device).items():
            write = parquet.write_json_lines if isinstance(contents, list) else parquet.write_csv
            write(contents, folder / (build if len(builds) > 1 else "") / name)
