"""Which cells failed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.core.files import write_text
from timmgate.tables import repeats

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    files = {check: snakemake.input[check] for check in snakemake.params.checks}
    text = json.dumps(repeats.failed_cells(files, snakemake.params.accuracy_rule))
    write_text(Path(snakemake.output[0]), text)
