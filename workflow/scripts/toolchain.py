"""What the compiler builds once per machine, in a folder that every cell's cache starts with."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate import module_environment
from timmgate.processes import die_with_run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    die_with_run(signal.SIGTERM)
    folder = Path(snakemake.output[0])
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "timmgate.caches", snakemake.wildcards.device, str(folder.absolute())]
    with Path(snakemake.log[0]).open("w") as log:
        # Without a compiler that works every cell has a row that says so: no reason to stop here.
        subprocess.run(command, env=module_environment(), stdout=log, stderr=subprocess.STDOUT, check=False)
