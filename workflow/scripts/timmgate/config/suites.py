"""Suite tables: which models there are, and what is special about each, as columns. Imports no torch and no timm."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from timmgate.config import registry
from timmgate.config.builds import Build
from timmgate.config.settings import WHOLE_REGISTRY
from timmgate.config.validation import coerce, schema, validate
from timmgate.core.errors import ConfigError, did_you_mean
from timmgate.core.spec import Traits

GLOB_CHARACTERS = frozenset("*?[")

SHIPPED = Path(__file__).parents[4] / "config" / "suites"


@dataclass(frozen=True)
class Suite:
    """A named table: model name to traits, in the table's order.

    `cost` is what a model costs relative to the others, 1 if it is not in there. `tagged` holds the models that only a
    pattern with a dot selects. `is_shipped` is false for a table of the user's own.
    """

    name: str
    models: dict[str, Traits]
    cost: dict[str, float] = field(default_factory=dict)
    tagged: dict[str, Traits] = field(default_factory=dict)
    is_shipped: bool = True

    def size(self, model: str) -> float | None:
        """Millions of parameters times input pixels over 224 x 224; None where the suite does not say."""
        return None if self.name == WHOLE_REGISTRY else self.cost.get(model)


def read(suite: str, folder: Path = SHIPPED, build: Build | None = None) -> Suite:
    """Read `folder`/{suite}.tsv, or the table at the path `suite`, or for `timm` the registry of the timm of `build`.

    Raises ConfigError naming file and line.
    """
    if suite == WHOLE_REGISTRY:
        assert build, "somebody's timm"
        return _whole_registry(build)
    path = table(suite, folder)
    return Suite(path.stem, *_models_and_cost(path), is_shipped=path.parent == folder)


def table(suite: str, folder: Path = SHIPPED) -> Path:
    """Where the table of a suite is. Raises ConfigError."""
    if suite == WHOLE_REGISTRY:
        raise ConfigError(f"suite: {suite!r} is timm's whole registry, which has no table")
    path = folder / f"{suite}.tsv"
    if not path.is_file():
        path = Path(suite)
    if not path.is_file():
        known = [*sorted(table.stem for table in folder.glob("*.tsv")), WHOLE_REGISTRY]
        raise ConfigError(f"suite: there is no table {suite!r} in {folder} and no such file{did_you_mean(suite, known)}")
    return path


def _whole_registry(build: Build) -> Suite:
    """Every architecture of the timm of a build, and under `tagged` all its weights, by `arch.tag`.

    All have the default traits, also where a shipped table has others: those belong to that suite.
    """
    known = registry.load(Path(".cache"), build)
    return Suite(
        WHOLE_REGISTRY,
        models=dict.fromkeys(known.architectures, Traits()),
        cost={name: known.relative_area(name) for name in [*known.architectures, *known.tagged]},
        tagged=dict.fromkeys(known.tagged, Traits()),
    )


def _models_and_cost(path: Path) -> tuple[dict[str, Traits], dict[str, float]]:
    (where, header), *rows = lines(path, _tab_separated, "a suite is a table in tab-separated text") or [("", [])]
    _check_header(header, where)
    models: dict[str, Traits] = {}
    cost: dict[str, float] = {}
    for where, cells in rows:
        if len(cells) != len(header):
            raise ConfigError(f"{where}: the row has {len(cells)} cells, the header {len(header)}")
        row = coerce({key: cell for key, cell in zip(header, cells, strict=True) if cell}, schema("suite"))
        validate(row, "suite", where)
        model, _ = row.pop("model"), row.pop("reason", None)
        if model in models:
            raise ConfigError(f"{where}: the model {model!r} is listed twice")
        if "cost" in row:
            cost[model] = row.pop("cost")
        models[model] = Traits(**row)
    if not models:
        raise ConfigError(f"{path}: the table lists no model")
    return models, cost


def lines(path: Path, split: Callable[[str], list[str]], contents: str) -> list[tuple[str, list[str]]]:
    """Place and cells, as `split` finds them, of every line of a table that is neither empty nor a comment.

    Raises ConfigError for a file that is not text; `contents` says what should have been in there.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: the file is not text, but {contents}") from None
    rows = [
        (f"{path}, line {number}", [cell.strip() for cell in split(line)])
        for number, line in enumerate(text.splitlines(), 1)
        if not line.startswith("#")
    ]
    return [(place, cells) for place, cells in rows if any(cells)]


def _tab_separated(line: str) -> list[str]:
    return line.split("\t")


def _check_header(header: list[str], where: str) -> None:
    known = list(schema("suite")["properties"])
    for column in header:
        if column not in known:
            raise ConfigError(f"{where}: unknown column {column!r}{did_you_mean(column, known)}")
        if header.count(column) > 1:
            raise ConfigError(f"{where}: the column {column!r} is there twice")
    if header and "model" not in header:
        raise ConfigError(f"{where}: the column 'model' is missing")


def select(suite: Suite, models: tuple[str, ...], exclude: tuple[str, ...]) -> dict[str, Traits]:
    """The suite's models that match one of `models` (names and globs; empty is all) and none of `exclude`.

    A glob may match nothing, so that one command serves several suites. Raises ConfigError for a name that the suite does
    not have, and when nothing is left.
    """
    everything = {**suite.models, **suite.tagged}
    wanted = [_matching("models", pattern, everything if "." in pattern else suite.models, suite) for pattern in models]
    unwanted = [_matching("exclude", pattern, everything, suite) for pattern in exclude]
    if models and not any(wanted):
        raise ConfigError(f"models: {', '.join(models)} matches no model of the suite {suite.name!r}")
    names = set[str]().union(*(wanted or [list(suite.models)])).difference(*unwanted)
    if not names:
        raise ConfigError(f"exclude: nothing is left of the suite {suite.name!r}")
    return {name: traits for name, traits in everything.items() if name in names}


def typed(suite: Suite, selected: Collection[str], models: Collection[str]) -> list[str]:
    """Of the selected models, those whose names somebody typed: in the key `models`, or in a table of their own."""
    return [name for name in selected if not suite.is_shipped or name in models]


def _matching(key: str, pattern: str, names: dict[str, Traits], suite: Suite) -> list[str]:
    matches = [name for name in names if fnmatchcase(name, pattern)]
    if not matches and not GLOB_CHARACTERS & set(pattern):
        near = did_you_mean(pattern, list(names))
        raise ConfigError(f"{key}: {pattern!r} matches no model of the suite {suite.name!r}{near}")
    return matches
