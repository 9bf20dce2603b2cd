"""The checks of one cell: supervise a worker, write a row and its details for each."""

import math
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate import attempts, estimates, files, record, rows, weights
from timmgate.control_groups import memory_limit_bytes
from timmgate.processes import die_with_run, interruptible, machine_memory_bytes
from timmgate.spec import CHECKS, Spec
from timmgate.supervise import Policy, supervise

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main() -> None:
    """Measure and write, unless we are asked to end."""
    specs, log = list(map(Spec.from_dict, snakemake.params.specs)), Path(snakemake.log[0])
    limits, retry = snakemake.resources, snakemake.params.retry
    cell = "" if limits.compile_cache_is_shared else "/".join(snakemake.wildcards)
    given = weights.given(snakemake.input.get("weights"))
    job_bytes = min(limits.mem_mb * 10**6 if limits.mem_is_limit else math.inf, memory_limit_bytes())
    supervision_bytes = estimates.SUPERVISION_MB * 10**6
    policy = Policy(
        threads=snakemake.threads,
        timeout_s=limits.timeout_s,
        attempts=limits.attempts,
        cache=Path(limits.compile_cache, cell).absolute(),
        weights=given and given.path,
        shared=limits.compile_cache_is_shared,
        toolchain=Path(snakemake.input.toolchain).absolute(),
        timing_limit_s=limits.timing_limit_s,
        jobs_per_gpu=limits.jobs_per_gpu,
        memory_bytes=min(job_bytes - supervision_bytes, machine_memory_bytes()),
    )
    folder = Path(snakemake.output[0]).parent
    details = {spec.check: folder / f"{CHECKS[spec.check]}.parquet" for spec in specs}
    files.remove_scratch(folder)
    for file in details.values():  # Snakemake has removed the rows that they belong to
        file.unlink(missing_ok=True)
    journal = attempts.Journal(folder / attempts.NAME, retry)
    if journal.error and not limits.attempts:
        sys.exit(f"{'/'.join(snakemake.wildcards)}: {journal.error}")  # this was no loss: another run may well measure it
    with interruptible(), journal.kept():  # also while it writes: no scratch file is left
        if limits.attempts and job_bytes <= supervision_bytes:
            raise OSError(f"the job has {job_bytes // 10**6} MB, but its supervisor alone takes {estimates.SUPERVISION_MB}")
        trouble = given and given.trouble()
        outcomes = weights.not_started(specs, trouble, log, journal) if trouble else supervise(specs, policy, log, journal)
        provenance = record.provenance(specs, policy, log, retry)
        for spec, outcome in zip(specs, outcomes, strict=True):
            rows.write(rows.table(CHECKS[spec.check], record.details(spec, outcome)), details[spec.check])
            row = record.row(spec, outcome, policy, limits.suite, provenance)
            rows.write(rows.table(spec.check, [row]), Path(snakemake.output[spec.check]))


if __name__ == "__main__":
    die_with_run(signal.SIGTERM)
    try:
        main()
    except OSError as error:  # a full disk, as a rule: nothing to write a row on, and worth another try
        sys.exit(f"{'/'.join(snakemake.wildcards)}: {error}")
