"""What was newly measured of the merged cells into the history."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.core.files import write_text
from timmgate.tables.history import store

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    root = Path(snakemake.params.history)
    added = store.record_tables(Path(snakemake.input.cells).parent, root)
    text = json.dumps({"history": str(root.absolute()), "added": added}) + "\n"
    write_text(Path(snakemake.output[0]), text)
