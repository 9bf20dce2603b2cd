"""What the compiler builds once per machine, in a folder that every cell's cache starts with."""

import contextlib
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate import claims
from timmgate.endings import Ending
from timmgate.follow import run_worker
from timmgate.logs import CappedLog
from timmgate.processes import die_with_run, interruptible, kill_leftovers
from timmgate.supervise import Policy

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main() -> None:
    """Build, supervised like a measurement, and say what came of it in the log.

    Without a compiler that works every cell has a row that says so: no reason to stop here.
    """
    device, folder, limits = snakemake.wildcards.device, Path(snakemake.output[0]).absolute(), snakemake.resources
    folder.mkdir(parents=True, exist_ok=True)
    policy = Policy(snakemake.threads, limits.timeout_s, attempts=1, cache=folder, jobs_per_gpu=limits.jobs_per_gpu)
    command = [sys.executable, "-m", "timmgate.caches", device, str(folder)]
    claims.give_up(kill_leftovers())
    with CappedLog(Path(snakemake.log[0])) as log, interruptible():
        try:
            with contextlib.closing(claims.claim(policy.wanted(device))) as claim:
                run_worker(command, claim, policy.limits, log, lambda ending, _: ended(ending, folder, log))
        except claims.StuckError as error:
            log.line(str(error))


def ended(ending: Ending, folder: Path, log: CappedLog) -> None:
    """Say how, and keep nothing that is not whole."""
    if ending.returncode == 0:
        return
    killed = "limit", f"killed after {ending.timeout_s:g} s"
    cause, how = ending.trouble or (killed if ending.returncode is None else ("exit code", str(ending.returncode)))
    log.line(f"{cause}: {how}")
    shutil.rmtree(folder)
    folder.mkdir()


if __name__ == "__main__":
    die_with_run(signal.SIGTERM)
    main()
