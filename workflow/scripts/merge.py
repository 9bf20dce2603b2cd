"""The files of all cells of a folder into its tables: one of cells, one for each kind of details, one of attempts."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import builds, cells, settings, suites
from timmgate.core.build import DEFAULT
from timmgate.tables import index, merge

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    config = settings.load(snakemake.config)
    facts = Path(snakemake.params.facts)
    found = {label: builds.load(facts, label) for label in builds.needed(config)}
    suite = suites.read(config.suite, build=found.get(DEFAULT))
    requested = [Path(path).parts[-5:-1] for path in snakemake.input[config.checks[0]]]
    today = cells.identities(config, found, suite)
    folder = Path(snakemake.output.cells).parent
    with index.alone(folder):
        problems = merge.merge(folder, requested, config.checks, today, config.run.accuracy_rule)
    for (cell, check), problem in problems.items():
        print(f"{'/'.join(cell)} {check}: {problem}", file=sys.stderr)
