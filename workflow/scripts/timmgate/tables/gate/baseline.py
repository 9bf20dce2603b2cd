"""What is expected of every cell: files in the form of PyTorch's expected-accuracy files, or of Intel's.

Runs in every job: imports nothing heavy.
"""

import csv
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from timmgate.config import history_path
from timmgate.config.settings import Settings
from timmgate.config.suites import Suite, lines
from timmgate.core.build import RESERVED
from timmgate.core.errors import ConfigError, did_you_mean, near_matches
from timmgate.core.schemas import KEY, PASSED, SHOWN_STATUS, STATUSES
from timmgate.core.spec import Mode

PASSING = (*PASSED, "not_applicable", "eager_variation")
"""Statuses that are no failure, as on PyTorch's dashboard; the last one is a word of older files."""

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


class Measured(NamedTuple):
    """A baseline of measured tables: `kind` is folder, build, history, or device for a folder of another device's.

    `path` is where the tables lie, `name` the build, where it is not that of the cells, or the run of the history.
    """

    kind: str
    path: str
    name: str | None = None


Expectations = dict[str, dict[str, Expectation]]
"""By mode and model."""


def load(settings: Settings, suite: Suite, shipped: Path) -> Expectations:
    """The expectations of the requested modes: those of the configured baseline, else of the folder `shipped`.

    Measured tables have none: what was measured there is read later. A baseline is one file for every mode, or a folder of
    {device}/{mode}.csv, where a mode without a file has none. The shipped one covers several suites: of it, only the models
    of this suite are taken. Raises ConfigError.
    """
    if measured(settings):
        return {mode: {} for mode in settings.modes}
    baseline = Path(settings.baseline or shipped)
    if baseline.is_file():
        files = dict.fromkeys(settings.modes, baseline)
    else:
        files = {mode: baseline / settings.device / f"{mode}.csv" for mode in settings.modes}
        if settings.baseline and not any(map(Path.is_file, files.values())):
            wanted = " or ".join(f"{settings.device}/{mode}.csv" for mode in settings.modes)
            raise ConfigError(
                f"baseline: {settings.baseline!r} is neither a file nor a folder with {wanted}, nor one with "
                f"{settings.device}/cells.parquet"
            )
    expectations = {
        mode: read(path, precision_column(settings.device, settings.modes[mode]))
        for mode, path in files.items()
        if path.is_file()
    }
    return expectations if settings.baseline else restrict(expectations, _names(suite).__contains__)


def measured(
    settings: Settings, results: Path = Path("results"), any_device: bool = False, own: bool = True
) -> Measured | None:
    """The measured tables that the baseline names; None if it names expectations, or nothing.

    Raises ConfigError, also for a folder of another device's tables, unless it may be `any_device`, and for `results` where
    it is these that are held against it, its `own`.
    """
    if not settings.baseline:
        return None
    kind, _, name = settings.baseline.partition(":")
    if kind == "build":
        if list(settings.builds) == [name]:
            raise ConfigError(f"baseline: {name!r} is the build that is measured, and would be compared with itself")
        return _build(settings, name, results)
    found = tables(settings.baseline, settings.device, settings.history_path, "baseline", any_device)
    if found is None or found.kind == "history":
        return found
    if own and Path(found.path).resolve() == (results / settings.device / "cells.parquet").resolve():
        raise ConfigError(
            f"baseline: {settings.baseline!r} has the results of this very folder, which would be compared with themselves; "
            "copy those of an earlier run to another folder, or keep a history (history_path)"
        )
    return _of_builds(found, list(settings.builds))


def tables(place: str, device: str, history: str | None, key: str, any_device: bool) -> Measured | None:
    """What was measured before, by the value of a `key`: in a folder, or in the history; None if there are no tables.

    Raises ConfigError, also for a folder of another device's tables alone, unless it may be `any_device`.
    """
    kind, _, name = place.partition(":")
    return _history(history, name, key) if kind == "history" else _tables(Path(place), device, any_device, key)


def _of_builds(found: Measured, builds: Sequence[str]) -> Measured:
    """The tables with the build that the requested ones are held against: of one name, or the only one on both sides.

    Raises ConfigError where there is none, and for a file that is no table of cells.
    """
    known = builds_of(found.path, "baseline")
    if {*known} & {*builds} or not known:
        return found
    if len(known) == len(builds) == 1:
        return found._replace(name=known[0])
    raise ConfigError(
        f"baseline: {found.path} has results of the builds {', '.join(known)}, and builds is {', '.join(builds)}"
    )


def builds_of(path: str, key: str) -> list[str]:
    """The builds of a table of cells, which a `key` names. Raises ConfigError for a file that is none."""
    import pyarrow as pa  # few runs have such a baseline
    import pyarrow.parquet as pq

    try:
        lacking = sorted({*KEY, *SHOWN_STATUS.values()} - set(pq.read_schema(path).names))
        if not lacking:
            return sorted(set(pq.read_table(path, columns=["build"])["build"].to_pylist()))
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{key}: {path} cannot be read: {str(error).splitlines()[0]}") from None
    raise ConfigError(f"{key}: {path} is no table of cells: it has no column {lacking[0]}")


def _build(settings: Settings, name: str, results: Path) -> Measured:
    """What a build of this folder has measured, or will have in this run."""
    folder = results / settings.device
    known = sorted({*settings.builds, *(path.name for path in folder.glob("*/") if path.name not in RESERVED)})
    if name not in known:
        raise ConfigError(f"baseline: there are no results of a build {name!r} in {folder}{did_you_mean(name, known)}")
    return Measured("build", str(folder / "cells.parquet"), name)


def _history(path: str | None, name: str, key: str) -> Measured:
    if path is None:
        raise ConfigError(f"{key}: history needs the key history_path, the folder of the history")
    runs = [file.stem for file in history_path.files(Path(path))]
    if name and name not in runs:
        raise ConfigError(f"{key}: the history {path!r} has no run {name!r}{did_you_mean(name, runs)}")
    return Measured("history", path, name or None)


def _tables(place: Path, device: str, any_device: bool, key: str) -> Measured | None:
    """Tables in a folder of results, of one device or of several, or in the working directory of an earlier run."""
    for folder in (place, place / "results"):
        if (folder / device / "cells.parquet").is_file():
            return Measured("folder", str(folder / device / "cells.parquet"))
    if (place / "cells.parquet").is_file() and _device(place / "cells.parquet") == device:
        return Measured("folder", str(place / "cells.parquet"))
    found = [*place.glob("cells.parquet"), *place.glob("*/cells.parquet"), *place.glob("results/*/cells.parquet")]
    if len(found) == 1 and any_device:
        return Measured("device", str(found[0]))
    if found:
        others = ", ".join(sorted(map(_device, found)))
        raise ConfigError(f"{key}: {str(place)!r} has results of the device {others}, and this run is on {device}")
    return None


def _device(path: Path) -> str:
    """The device of a table of cells; by its folder where there are none, or the table is damaged."""
    import pyarrow as pa  # few runs have such a baseline
    import pyarrow.parquet as pq

    try:
        devices = pq.read_table(path, columns=["device"])["device"]
    except pa.ArrowInvalid:
        devices = ()
    return str(devices[0].as_py()) if len(devices) else path.resolve().parent.name


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
    if repeated := next((name for name in header if header.count(name) > 1), None):
        raise ConfigError(f"{place}: the column {repeated!r} is there twice")
    expectations: dict[str, Expectation] = {}
    for place, cells in rows:
        if len(cells) <= header.index(column):
            raise ConfigError(f"{place}: the row ends before the column {column!r}; is a comma missing?")
        row = dict(zip(header, cells, strict=False))
        model = row.get("name")
        accuracy, performance = (row.get(name, "").partition("#")[0].strip() for name in (column, "performance"))
        if not model:
            raise ConfigError(f"{place}: the name of the model is missing")
        if model in expectations:
            raise ConfigError(f"{place}: the model {model!r} is listed twice")
        for name, status in ((column, accuracy), ("performance", performance)):
            if status not in STATUSES and near_matches(status.lower(), STATUSES):  # others may have words of their own
                raise ConfigError(f"{place}: {name} is {status!r}{did_you_mean(status.lower(), STATUSES)}")
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
