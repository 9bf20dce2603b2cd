"""One check of one cell: supervise a worker, write its row and its evidence."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate import record, rows, weights
from timmgate.spec import Spec
from timmgate.supervise import Policy, die_with_parent, interruptible, supervise

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    die_with_parent(signal.SIGTERM)
    with interruptible():  # also while it writes: no scratch file is left
        spec, log = Spec.from_dict(snakemake.params.spec), Path(snakemake.log[0])
        limits = snakemake.resources
        given = weights.given(snakemake.input.get("weights"))
        cache = Path(limits.compile_cache).absolute()
        policy = Policy(snakemake.threads, limits.timeout_s, limits.attempts, cache, given and given.path)
        trouble = given and given.trouble()
        outcome = weights.not_started(trouble, log) if trouble else supervise(spec, policy, log)
        rows.write(rows.table("evidence", record.evidence(spec, outcome)), Path(snakemake.output.evidence))
        row = record.row(spec, policy, outcome, limits.suite, log)
        rows.write(rows.table(spec.check, [row]), Path(snakemake.output.row))
