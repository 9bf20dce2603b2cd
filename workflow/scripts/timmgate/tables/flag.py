"""The tables that are made of the merged cells: what an engineer should look at, and the figures of each mode."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from timmgate.core.thresholds import Thresholds
from timmgate.tables import failures, parquet, summary


def write(folder: Path, cells: pa.Table, checks: Sequence[str], thresholds: Thresholds, accuracy_rule: str) -> None:
    """Make them in the folder of a device, beside the cells."""
    found = failures.failures(cells, checks, thresholds, accuracy_rule)
    parquet.write(found, folder / "failures.parquet")
    parquet.write_tsv(found, folder / "failures.tsv")
    parquet.write_tsv(summary.summary(cells, checks), folder / "summary.tsv")
