"""Which jobs are to be done again: how often each was asked for again, in a small file beside their results.

The number is a parameter of the job, and Snakemake redoes a job whose parameters change. Whoever starts the workflow raises
it, in memory while the workflow is planned and in the file once it starts; jobs only read it. So an interruption loses
nothing: what was asked for and is not done yet is done by the next run.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from timmgate.files import is_whole_parquet, write_atomically
from timmgate.settings import ConfigError


class Retries:
    """The numbers by name, 0 for a name that is not there. A cell's name is `mode/model`."""

    def __init__(self, path: Path):
        self._path = path
        self._numbers = _read(path)
        self._saved = dict(self._numbers)

    def number(self, name: str) -> int:
        """How often `name` was asked for again."""
        return self._numbers.get(name, 0)

    def ask(self, name: str, done: int | None = None) -> None:
        """Ask for `name` again; not if that was done since its result was made, which was at the number `done`."""
        if done is None or self.number(name) <= done:
            self._numbers[name] = max(self.number(name), done or 0) + 1

    def save(self) -> None:
        """Remember what was asked for."""
        if self._numbers != self._saved:
            text = json.dumps(self._numbers, indent=1, sort_keys=True) + "\n"
            write_atomically(self._path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
            self._saved = dict(self._numbers)


def _read(path: Path) -> dict[str, int]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        remedy = "delete it, and the cells that were asked for again are measured once more"
        raise ConfigError(f"{path} is damaged ({error}); {remedy}") from None


def ask_for_failed(retries: Retries, cells: Mapping[str, Mapping[str, str]], wanted: Collection[str]) -> dict[str, bool]:
    """Ask for the cells that have a wanted status in a check; the cells, and whether it was for want of weights.

    `cells` maps a cell to the file of each check's row. `failed` among the wanted stands for all but a pass. A cell without
    a file is measured anyway; one with a file that cannot be read has failed.
    """
    import pyarrow as pa  # only here: every job of a cluster imports this module
    import pyarrow.parquet as pq

    from timmgate.rows import PASSED

    found: dict[str, bool] = {}
    for cell, files in cells.items():
        for check, file in files.items():
            try:
                with pq.ParquetFile(file) as parquet:
                    row = parquet.read([check, f"{check}_stage", "retry"]).to_pylist()[0]
            except FileNotFoundError:
                continue
            except (pa.ArrowException, OSError, LookupError):
                row = {}
            status = row.get(check)
            if status is None or status in wanted or ("failed" in wanted and status not in PASSED):
                retries.ask(cell, row.get("retry"))
                found[cell] = found.get(cell, False) or row.get(f"{check}_stage") == "weights"
    return found


def ask_for_damaged(retries: Retries, jobs: Mapping[str, Collection[tuple[str, ...]]]) -> list[str]:
    """Ask for the jobs with a file that is missing or no whole Parquet file, as after a power failure; those files.

    A job's files come in groups, and where the last of a group is not there, nothing was made yet.
    """
    damaged = {job: [file for group in groups for file in _damaged(*group)] for job, groups in jobs.items()}
    for job, files in damaged.items():
        if files:
            retries.ask(job)
    return [file for files in damaged.values() for file in files]


def _damaged(*group: str) -> list[str]:
    found = [file for file in group if not is_whole_parquet(file)]
    return [] if group[-1] in found and not Path(group[-1]).exists() else found
