"""Which jobs are to be done again: how often a rerun of each was requested, in a small file beside their results.

The number is a parameter of the job, and Snakemake redoes a job whose parameters change. The main process raises it, in
memory while the workflow is planned and in the file once it starts; jobs only read it. So an interruption loses nothing:
what was requested and is not done yet is done by the next run.
"""

import json
from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from timmgate.core.errors import ConfigError
from timmgate.core.files import write_text


class Retries:
    """The numbers by name, 0 for a name that is not there. A cell's name is `build/mode/model`."""

    def __init__(self, path: Path):
        self._path = path
        self._numbers = _read(path)
        self._saved = dict(self._numbers)

    def rerun_generation(self, name: str) -> int:
        """How often a rerun of `name` was requested."""
        return self._numbers.get(name, 0)

    def request(self, name: str, done: int | None = None) -> None:
        """Request a rerun of `name`; not if that was done since its result was made, which was at the number `done`."""
        if done is None or self.rerun_generation(name) <= done:
            self._numbers[name] = max(self.rerun_generation(name), done or 0) + 1

    def save(self) -> None:
        """Remember what was requested."""
        if self._numbers != self._saved:
            text = json.dumps(self._numbers, indent=1, sort_keys=True) + "\n"
            write_text(self._path, text)
            self._saved = dict(self._numbers)


def _read(path: Path) -> dict[str, int]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        remedy = "delete it, and the cells whose rerun was requested are measured once more"
        raise ConfigError(f"{path} is damaged ({error}); {remedy}") from None


def request_failed(
    retries: Retries, cells: Mapping[str, Mapping[str, str]], wanted: Collection[str], rule: str
) -> dict[str, bool]:
    """Request the cells that have a wanted status in a check; the cells, and whether it was for lack of weights.

    The arguments are as of `failed`.
    """
    found: dict[str, bool] = {}
    for cell, check, row in failed(cells, wanted, rule):
        retries.request(cell, row.get("retry"))
        found[cell] = found.get(cell, False) or row.get(f"{check}_stage") == "weights"
    return found


def failed(
    cells: Mapping[str, Mapping[str, str]], wanted: Collection[str], rule: str
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Cell, check, and some columns of the row, of each check that has a wanted status.

    `cells` maps a cell to the file of each check's row. `failed` among the wanted stands for all but a pass. A cell without
    a file is measured anyway; one with a file that cannot be read has failed. `rule` is the key `accuracy_rule`.
    """
    import pyarrow as pa  # only here: every job of a cluster imports this module
    import pyarrow.parquet as pq

    from timmgate.core.schemas import FAILED
    from timmgate.core.verdict import status_by_rule

    for cell, files in cells.items():
        for check, file in files.items():
            try:
                with pq.ParquetFile(file) as parquet:
                    row = parquet.read([check, "strict", f"{check}_stage", "retry"]).to_pylist()[0]
            except FileNotFoundError:
                continue
            except (pa.ArrowException, OSError, LookupError):
                row = {}
            status = row.get(check)
            if check == "accuracy":
                status, _ = status_by_rule(status, row.get("strict"), rule)
            if status is None or status in wanted or ("failed" in wanted and status in FAILED):
                yield cell, check, row


def without_record(files: Iterable[str], folder: Path) -> list[str]:
    """The files that Snakemake has no record of in its `folder`, so that it would not make them anew.

    A record is called like the file's path in base64, cut into parts of which all but the last have an @ in front.
    """
    records = {entry.relative_to(folder).as_posix().replace("/", "").replace("@", "") for entry in folder.glob("**/*")}
    return [file for file in files if urlsafe_b64encode(file.encode()).decode() not in records]
