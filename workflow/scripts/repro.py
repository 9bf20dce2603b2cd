"""Where the scripts of the requested cells are, and how to run each."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import builds
from timmgate.diagnosis import script

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    for path in map(Path, snakemake.input):
        build = builds.load(Path(snakemake.params.facts), path.parts[-5])
        print(script.command(build.options, path))
