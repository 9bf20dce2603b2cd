"""The checks of one cell: supervise a worker, write a row and its details for each."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate import record, rows, weights
from timmgate.spec import CHECKS, Spec
from timmgate.supervise import Policy, die_with_parent, interruptible, supervise

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    die_with_parent(signal.SIGTERM)
    with interruptible():  # also while it writes: no scratch file is left
        specs, log = list(map(Spec.from_dict, snakemake.params.specs)), Path(snakemake.log[0])
        limits, cell = snakemake.resources, snakemake.wildcards
        cache = Path(limits.compile_cache)
        if not limits.compile_cache_is_shared:
            cache = cache / cell.device / cell.mode / cell.model
        given = weights.given(snakemake.input.get("weights"))
        policy = Policy(
            threads=snakemake.threads,
            timeout_s=limits.timeout_s,
            attempts=limits.attempts,
            cache=cache.absolute(),
            weights=given and given.path,
            shared=limits.compile_cache_is_shared,
            toolchain=Path(snakemake.input.toolchain).absolute(),
            timing_limit_s=limits.timing_limit_s,
        )
        trouble = given and given.trouble()
        outcomes = [weights.not_started(trouble, log)] * len(specs) if trouble else supervise(specs, policy, log)
        provenance = record.provenance(specs, policy, log)
        for spec, outcome in zip(specs, outcomes, strict=True):
            details = CHECKS[spec.check]
            rows.write(rows.table(details, record.details(spec, outcome)), Path(snakemake.output[details]))
            row = record.row(spec, outcome, policy, limits.suite, provenance)
            rows.write(rows.table(spec.check, [row]), Path(snakemake.output[spec.check]))
