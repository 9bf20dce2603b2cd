"""The files of all cells of a folder into its tables: one of cells, one for each kind of details, one of attempts."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import cells, settings
from timmgate.tables import index, merge, request

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    config = settings.load(snakemake.config)
    today = cells.identities(config, Path(snakemake.params.facts))
    requested = [Path(path).parts[-5:-1] for path in snakemake.input[config.checks[0]]]
    folder = Path(snakemake.output.cells).parent
    with index.alone(folder):
        problems = merge.merge(folder, requested, config.checks, today, config.run.accuracy_rule)
        request.say_made(folder, snakemake.params.partial)
    for (cell, check), problem in problems.items():
        print(f"{'/'.join(cell)} {check}: {problem}", file=sys.stderr)
