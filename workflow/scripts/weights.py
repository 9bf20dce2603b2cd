"""The weights of one model: obtain them, write where they lie or why there are none."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.system.process_tree import die_with_run, interruptible
from timmgate.weights import record

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    die_with_run(signal.SIGTERM)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with Path(snakemake.log[0]).open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    output = Path(snakemake.output[0])
    model, source = snakemake.wildcards.model, snakemake.wildcards.source
    with interruptible():  # no scratch file is left
        found = record.obtain(model, source, output.parent.absolute(), snakemake.params.retry)
        print(found)
        record.write(found, output)
