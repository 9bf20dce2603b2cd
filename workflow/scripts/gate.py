"""The merged cells against what is expected of them; exit code 1 if the difference fails the gate."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from rich.console import Console

from timmgate.report import gate as terminal
from timmgate.tables import gate, outcome, parquet

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    params = snakemake.params
    table = gate.judge(pq.read_table(snakemake.input.cells), params.expectations, params.checks)
    parquet.write_tsv(table, Path(params.table))
    judged = table.to_pylist()
    terminal.show(judged, Console())
    Path(snakemake.log[0]).write_text(f"{gate.sentence(judged)} See {params.table}\n", encoding="utf-8")
    outcome.write(outcome.Outcome(gate.failed(judged)), gate.reasons(judged), Path(params.outcome))
    sys.exit(gate.failed(judged))
