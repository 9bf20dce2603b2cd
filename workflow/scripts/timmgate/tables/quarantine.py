"""Cells that may differ from the baseline for a while: a table with an issue and a date for each. Imports nothing heavy."""

from collections.abc import Collection
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from timmgate.config.suites import lines
from timmgate.core.checks import CHECKS
from timmgate.core.errors import ConfigError, did_you_mean

COLUMNS = ("mode", "model", "check", "issue", "until")
"""Of the table; `check` may be absent or empty, which is both."""


class Entry(NamedTuple):
    """Names or globs of mode and model, a check or None, the issue, and the last day as YYYY-MM-DD."""

    mode: str
    model: str
    check: str | None
    issue: str
    until: str

    def covers(self, mode: str, model: str, check: str) -> bool:
        """Whether it is about this check of this cell."""
        return fnmatchcase(mode, self.mode) and fnmatchcase(model, self.model) and self.check in (None, check)


def load(path: Path, modes: Collection[str]) -> list[Entry]:
    """The entries of a tab-separated table; `modes` are those of the catalogue. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"quarantine: there is no file {str(path)!r}")
    rows = lines(path, lambda line: line.split("\t"), "a quarantine is a table in tab-separated text")
    if not rows:
        return []
    (place, header), *rows = rows
    for name in header:
        if name not in COLUMNS:
            raise ConfigError(f"{place}: unknown column {name!r}{did_you_mean(name, COLUMNS)}")
    for name in COLUMNS:
        if name not in header and name != "check":
            raise ConfigError(f"{place}: the column {name!r} is missing")
    return [_entry(place, dict(zip(header, cells, strict=False)), modes) for place, cells in rows]


def _entry(place: str, row: dict[str, str], modes: Collection[str]) -> Entry:
    for name in COLUMNS:
        if name != "check" and not row.get(name):
            raise ConfigError(f"{place}: the {name} is missing")
    if not any(fnmatchcase(mode, row["mode"]) for mode in modes):
        raise ConfigError(f"{place}: there is no mode {row['mode']!r}{did_you_mean(row['mode'], modes)}")
    if row.get("check") and row["check"] not in CHECKS:
        raise ConfigError(f"{place}: there is no check {row['check']!r}{did_you_mean(row['check'], CHECKS)}")
    try:
        until = date.fromisoformat(row["until"])
    except ValueError:
        raise ConfigError(f"{place}: until is {row['until']!r}; it must be a date, as in 2026-12-31") from None
    return Entry(row["mode"], row["model"], row.get("check") or None, row["issue"], until.isoformat())
