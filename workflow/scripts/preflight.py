"""Is what was requested possible here? If not, say why in a sentence for each reason and fail, so that no cell starts."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.supervisor import preflight
from timmgate.tables import outcome

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    said = Path(snakemake.params.outcome)
    if outcome.read(said):
        sys.exit(1)  # this run has had its answer: only a job that was killed is tried again
    answer = preflight.of_snakemake(snakemake)
    if answer.problems:
        outcome.write(outcome.Outcome.WRONG_REQUEST, answer.problems, said)
        sys.exit("\n".join(answer.problems))
