"""What is expected of every cell: files in the form of PyTorch's expected-accuracy files, or of Intel's.

Runs in every job: imports nothing heavy.
"""

import csv
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from timmgate.config.settings import Settings
from timmgate.config.suites import Suite, lines
from timmgate.core.errors import ConfigError
from timmgate.core.schemas import PASSED
from timmgate.core.spec import Mode

PASSING = (*PASSED, "eager_variation")
"""Statuses that count as passed, as on PyTorch's dashboard; the last one is a word of older files."""

AMP_COLUMNS = {"bfloat16": "amp_bf16", "float16": "amp_fp16"}
"""Intel's column by autocast's dtype; the other precisions are columns themselves."""


ANY = "any"
"""What the performance check of a model with an expected failure of accuracy may end with."""


class Expectation(NamedTuple):
    """What is expected of a model: its status of accuracy, why it may vary if it does, and a status of performance.

    Without one of its own, performance is expected to pass where accuracy is.
    """

    accuracy: str
    flaky: str | None = None
    performance: str | None = None

    def of(self, check: str) -> str:
        """The status that is expected of a check, or `ANY`."""
        if check == "accuracy":
            return self.accuracy
        return self.performance or ("pass" if self.accuracy in PASSING else ANY)


Expectations = dict[str, dict[str, Expectation]]
"""By mode and model."""


def load(settings: Settings, suite: Suite, shipped: Path) -> Expectations:
    """The expectations of the requested modes: those of the configured baseline, else of the folder `shipped`.

    A baseline is one file for every mode, or a folder of {device}/{mode}.csv, where a mode without a file has none. The
    shipped one covers several suites: of it, only the models of this suite are taken. Raises ConfigError.
    """
    baseline = Path(settings.baseline or shipped)
    if baseline.is_file():
        files = dict.fromkeys(settings.modes, baseline)
    else:
        files = {mode: baseline / settings.device / f"{mode}.csv" for mode in settings.modes}
        if settings.baseline and not any(map(Path.is_file, files.values())):
            wanted = " or ".join(f"{settings.device}/{mode}.csv" for mode in settings.modes)
            raise ConfigError(f"baseline: {settings.baseline!r} is neither a file nor a folder with {wanted}")
    expectations = {
        mode: read(path, precision_column(settings.device, settings.modes[mode]))
        for mode, path in files.items()
        if path.is_file()
    }
    return expectations if settings.baseline else restrict(expectations, _names(suite).__contains__)


def precision_column(device: str, mode: Mode) -> str:
    """The column of a mode in Intel's files."""
    if mode.precision != "amp":
        return mode.precision
    return AMP_COLUMNS[mode.amp_dtype or ("bfloat16" if device == "cpu" else "float16")]


def read(path: Path, column: str) -> dict[str, Expectation]:
    """Expectations by model, from the column `accuracy`, else from `column`. An empty cell is none. Raises ConfigError.

    The columns `performance` and `flaky` may be absent. Blank lines, and lines that begin with #, are skipped, and so is a #
    and what follows in the cell of a status.
    """
    (place, header), *rows = lines(path, _comma_separated, "expectations are a table in comma-separated text") or [
        (str(path), [])
    ]
    if "name" not in header:
        raise ConfigError(f"{place}: the column 'name' is missing")
    if "accuracy" in header:
        column = "accuracy"
    elif column not in header:
        raise ConfigError(f"{place}: there is no column 'accuracy', nor {column!r} as in Intel's files")
    expectations: dict[str, Expectation] = {}
    for place, cells in rows:
        row = dict(zip(header, cells, strict=False))
        model = row.get("name")
        accuracy, performance = (row.get(name, "").partition("#")[0].strip() for name in (column, "performance"))
        if not model:
            raise ConfigError(f"{place}: the name of the model is missing")
        if model in expectations:
            raise ConfigError(f"{place}: the model {model!r} is listed twice")
        if accuracy or performance:
            expectations[model] = Expectation(accuracy or "pass", row.get("flaky") or None, performance or None)
    return expectations


def _comma_separated(line: str) -> list[str]:
    return next(csv.reader([line]), [])


def asked_for(everything: Expectations, settings: Settings, suite: Suite, requested: Collection[str]) -> Expectations:
    """Without the models that `models`, `exclude` and `shard` leave out; a model that the suite lacks is in every shard."""
    known = _names(suite)

    def is_asked_for(model: str) -> bool:
        if model in known:
            return model in requested
        chosen = not settings.models or any(fnmatchcase(model, pattern) for pattern in settings.models)
        return chosen and not any(fnmatchcase(model, pattern) for pattern in settings.exclude)

    return restrict(everything, is_asked_for)


def restrict(expectations: Expectations, keep: Callable[[str], bool]) -> Expectations:
    """The expectations of the models that `keep` is true for."""
    return {mode: {name: each for name, each in models.items() if keep(name)} for mode, models in expectations.items()}


def _names(suite: Suite) -> set[str]:
    return {*suite.models, *suite.tagged}
