"""How a run ended, for programs: 0, 1 or 2, and why. Snakemake itself ends with 0 or 1.

    python -m timmgate.tables.gate.outcome --cores 2 --config device=cpu

runs Snakemake's target `gate` with these options and ends with the outcome.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

from timmgate.core.files import write_text

NAME = "outcome.json"
"""File in results/{device}."""


class ExitCode(IntEnum):
    """With what a run ends."""

    AS_EXPECTED = 0
    REGRESSION = 1
    WRONG_REQUEST = 2


def write(outcome: ExitCode, reasons: Sequence[str], path: Path) -> None:
    """Write the outcome and the sentences that say why."""
    text = json.dumps({"outcome": int(outcome), "meaning": outcome.name.lower(), "reasons": list(reasons)}, indent=1) + "\n"
    write_text(path, text)


def read(path: Path) -> tuple[ExitCode, list[str]] | None:
    """What `write` wrote; None where there is nothing, or nothing of that kind."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return ExitCode(values["outcome"]), values["reasons"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def main(options: list[str]) -> ExitCode:
    """Run the gate. What never came to an outcome of its own was refused before, or failed apart from it."""
    folder = _directory(options) / "results"
    before = _written(folder)
    code = subprocess.run([sys.executable, "-m", "snakemake", "gate", *options]).returncode
    if code == 0:
        return ExitCode.AS_EXPECTED
    found = [read(path) for path, time_ns in _written(folder).items() if time_ns != before.get(path)]
    outcome = max((each[0] for each in found if each), default=ExitCode.WRONG_REQUEST)
    return outcome or ExitCode.WRONG_REQUEST  # the gate passed, and something else did not


def _directory(options: list[str]) -> Path:
    """Snakemake's working directory."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-d", "--directory", type=Path, default=Path())
    return Path(parser.parse_known_args(options)[0].directory)


def _written(folder: Path) -> dict[Path, int]:
    """The outcomes in the folders of all devices, with the times of their last change in ns."""
    return {path: path.stat().st_mtime_ns for path in folder.glob(f"*/{NAME}")}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
