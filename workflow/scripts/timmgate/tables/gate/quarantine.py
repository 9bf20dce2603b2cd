"""Cells that may differ from the baseline for a while: a table with an issue and a date for each. Imports nothing heavy."""

from collections.abc import Collection, Mapping
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from timmgate.config.suites import lines
from timmgate.core.checks import CHECKS
from timmgate.core.errors import ConfigError, did_you_mean

COLUMNS = ("build", "mode", "model", "check", "issue", "until")
"""Of the table."""

OPTIONAL = ("build", "check")
"""May be absent or empty, which is all of them."""


class Entry(NamedTuple):
    """Names or globs of mode, model and build, a check or None, the issue, and the last day as YYYY-MM-DD."""

    mode: str
    model: str
    check: str | None
    issue: str
    until: str
    build: str = "*"

    def covers(self, mode: str, model: str, check: str, build: str | None = None) -> bool:
        """Whether it is about this check of this cell; `build` is None where the cell has no result."""
        names = (mode, self.mode), (model, self.model), (build or "", self.build)
        return all(fnmatchcase(*pair) for pair in names) and self.check in (None, check)


def load(path: Path, modes: Collection[str], models: Collection[str], builds: Collection[str]) -> list[Entry]:
    """The entries of a tab-separated table; `modes` and `builds` are those of the catalogues, `models` all that there are.

    Raises ConfigError.
    """
    if not path.is_file():
        raise ConfigError(f"quarantine: there is no file {str(path)!r}")
    rows = lines(path, lambda line: line.split("\t"), "a quarantine is a table in tab-separated text")
    if not rows:
        return []
    (place, header), *rows = rows
    for name in header:
        if name not in COLUMNS:
            raise ConfigError(f"{place}: unknown column {name!r}{did_you_mean(name, COLUMNS)}")
    if header[0] == "issue":
        raise ConfigError(f"{place}: the column 'issue' must not be the first, as a line that begins with # is a comment")
    for name in COLUMNS:
        if name not in header and name not in OPTIONAL:
            raise ConfigError(f"{place}: the column {name!r} is missing")
    for row_place, cells in rows:
        if len(cells) > len(header):
            raise ConfigError(f"{row_place}: the row has {len(cells)} cells, the header {len(header)}")
    known = {"mode": modes, "model": models, "build": builds}
    return [_entry(place, dict(zip(header, cells, strict=False)), known) for place, cells in rows]


def _entry(place: str, row: dict[str, str], known: Mapping[str, Collection[str]]) -> Entry:
    for name in COLUMNS:
        if name not in OPTIONAL and not row.get(name):
            raise ConfigError(f"{place}: the {name} is missing")
    for name, names in known.items():
        pattern = row.get(name) or "*"
        if not any(fnmatchcase(each, pattern) for each in names):
            raise ConfigError(f"{place}: there is no {name} {pattern!r}{did_you_mean(pattern, names)}")
    if row.get("check") and row["check"] not in CHECKS:
        raise ConfigError(f"{place}: there is no check {row['check']!r}{did_you_mean(row['check'], CHECKS)}")
    try:
        until = date.fromisoformat(row["until"])
    except ValueError:
        raise ConfigError(f"{place}: until is {row['until']!r}; it must be a date, as in 2026-12-31") from None
    return Entry(
        row["mode"], row["model"], row.get("check") or None, row["issue"], until.isoformat(), row.get("build") or "*"
    )
