"""Ask on this machine whether what was requested is possible."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.supervisor import preflight

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    preflight.answer(Path(snakemake.input[0]), Path(snakemake.log[0]))
