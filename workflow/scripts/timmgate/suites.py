"""Suite tables: which models there are, and what is special about each, as columns. Imports no torch and no timm."""

import csv
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from timmgate.settings import ConfigError, coerce, did_you_mean, schema, validate
from timmgate.spec import Traits


@dataclass(frozen=True)
class Suite:
    """A named table: model name to traits, in the table's order."""

    name: str
    models: dict[str, Traits]


def read(suite: str, folder: Path) -> Suite:
    """Read `folder`/{suite}.tsv, or the table at the path `suite`. Raises ConfigError naming file and line."""
    path = folder / f"{suite}.tsv"
    if not path.is_file():
        path = Path(suite)
    if not path.is_file():
        known = sorted(table.stem for table in folder.glob("*.tsv"))
        raise ConfigError(f"suite: there is no table {suite!r} in {folder} and no such file{did_you_mean(suite, known)}")
    return Suite(path.stem, _models(path))


def _models(path: Path) -> dict[str, Traits]:
    lines = path.read_text(encoding="utf-8").splitlines()
    table = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    models: dict[str, Traits] = {}
    for (number, _), cells in zip(table[1:], csv.DictReader([line for _, line in table], delimiter="\t"), strict=True):
        where = f"{path}, line {number}"
        if None in cells or None in cells.values():
            raise ConfigError(f"{where}: the row has not as many cells as the header")
        row = coerce({key: cell for key, cell in cells.items() if cell != ""}, schema("suite"))
        validate(row, "suite", where)
        model = row.pop("model")
        if model in models:
            raise ConfigError(f"{where}: the model {model!r} is listed twice")
        models[model] = Traits(**row)
    if not models:
        raise ConfigError(f"{path}: the table lists no model")
    return models


def select(suite: Suite, models: tuple[str, ...], exclude: tuple[str, ...]) -> dict[str, Traits]:
    """The suite's models that match one of `models` (names and globs; empty is all) and none of `exclude`.

    Raises ConfigError for a name or glob that matches nothing, and when nothing is left.
    """
    for key, patterns in (("models", models), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in suite.models):
                near = did_you_mean(pattern, list(suite.models))
                raise ConfigError(f"{key}: {pattern!r} matches no model of the suite {suite.name!r}{near}")
    chosen = {
        name: traits
        for name, traits in suite.models.items()
        if (not models or any(fnmatchcase(name, pattern) for pattern in models))
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not chosen:
        raise ConfigError(f"exclude: nothing is left of the suite {suite.name!r}")
    return chosen
