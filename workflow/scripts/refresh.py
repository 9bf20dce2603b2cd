"""A suite's table renewed against the installed timm, and what changed."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.config import registry, suite_refresh

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    known = registry.installed()
    source, suite = Path(snakemake.input.table), Path(snakemake.output.table).stem
    table = source.read_text(encoding="utf-8-sig")
    changes = suite_refresh.compare(suite_refresh.models(table), known)
    report = suite_refresh.report(suite, suite_refresh.made_with(table), changes, known)
    renewed = suite_refresh.rewrite(table, changes, known.timm, partial(registry.cost, known))
    Path(snakemake.output.table).write_text(renewed, encoding="utf-8")
    Path(snakemake.output.report).write_text(report, encoding="utf-8")
    print(report)
