"""The merged cells against what is expected of them; exit code 1 if the difference fails the gate."""

import os
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from rich.console import Console

from timmgate.report import ci
from timmgate.report import gate as terminal
from timmgate.tables import parquet, state
from timmgate.tables.gate import judgement, outcome

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    params = snakemake.params
    cells, stale = state.measured_today(snakemake.input.cells, params.checks, snakemake.config, Path(params.facts))
    again = [row for path in snakemake.input.timed_again for row in pq.read_table(path).to_pylist()]
    evidence = Path(snakemake.input.cells).with_name("evidence.parquet")
    asked = params.checks, params.expectations, params.measured, params.thresholds, params.models
    found = judgement.against(cells, *asked, again, params.times, evidence)
    table = judgement.table(judgement.quarantined(found, params.quarantine, date.today()))
    parquet.write_tsv(table, Path(params.table))
    judged = table.to_pylist()
    ci.write_junit(judged, Path(params.table).with_suffix(".xml"))
    terminal.show(judged, Console())
    if stale:
        print(state.said_of_stale(stale))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print(*ci.annotations(judged, params.place), sep="\n")
    Path(snakemake.log[0]).write_text(f"{judgement.sentence(judged)} See {params.table}\n", encoding="utf-8")
    ended = judgement.outcome(judged)
    outcome.write(ended, judgement.reasons(judged), Path(params.outcome))
    sys.exit(min(ended, 1))
