"""A suite's table renewed against timm's registry: new names for old ones, gone ones out, one model for every family.

What was set by hand stays: the models that timm still has, their order and columns, the comments. Imports no torch and no
timm.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from timmgate.config.registry import Registry
from timmgate.core.errors import did_you_mean

MADE_WITH = re.compile(r"# timm (\S+)\s*")
"""The comment line of a table that says which version of timm it was made with."""

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Changes:
    """What becomes of a table's models: `renamed` maps old to new names, `removed` a name to the reason."""

    kept: list[str]
    renamed: dict[str, str]
    removed: dict[str, str]
    added: list[str]


def compare(models: list[str], known: Registry) -> Changes:
    """What timm's registry makes of a list of models."""
    kept = [model for model in models if model in known]
    renamed: dict[str, str] = {}
    removed: dict[str, str] = {}
    for model in models:
        new = known.renamed.get(model)
        if model in known:
            continue
        if new is None or new not in known:
            removed[model] = f"timm does not have it any more{did_you_mean(model, list(known.architectures))}"
        elif new in kept or new in renamed.values():
            removed[model] = f"timm calls it {new} now, and the table has that already"
        else:
            renamed[model] = new
    present = {known.family(model) for model in [*kept, *renamed.values()]}
    added = [model for family, model in representatives(known).items() if family not in present]
    return Changes(kept, renamed, removed, added)


def representatives(known: Registry) -> dict[str, str]:
    """For every family that has pretrained weights, the architecture that stands for it.

    It is the first in timm's order among those that classify ImageNet at 224 x 224, or come closest to that.
    """
    closeness: dict[str, dict[str, tuple[bool, float]]] = {}
    for name, architecture in known.architectures.items():
        if architecture.pretrained and not name.startswith("test_"):
            foreign = architecture.num_classes != IMAGENET_CLASSES
            closeness.setdefault(architecture.family, {})[name] = (foreign, abs(known.relative_area(name) - 1))
    return {family: min(names, key=names.__getitem__) for family, names in sorted(closeness.items())}


def models(table: str) -> list[str]:
    """The models that the text of a valid table lists."""
    _, _, rows = _parse(table)
    return [row["model"] for row in rows]


def made_with(table: str) -> str | None:
    """The version of timm that the text of a table names."""
    return next((match[1] for match in map(MADE_WITH.fullmatch, table.splitlines()) if match), None)


def rewrite(table: str, changes: Changes, timm: str, cost: Callable[[str], float]) -> str:
    """The text of a valid table after the changes; where its column `cost` is empty or missing, `cost` fills it in."""
    remarks, columns, rows = _parse(table)
    batch_sizes = Counter(row["batch_size"] for row in rows if row.get("batch_size"))
    most_common = next((size for size, _ in batch_sizes.most_common(1)), "")
    rows = [row for row in rows if row["model"] not in changes.removed]
    rows += [{"model": model, "batch_size": most_common} for model in changes.added]
    for row in rows:
        row["model"] = changes.renamed.get(row["model"], row["model"])
        row["cost"] = row.get("cost") or _two_digits(cost(row["model"]))
    columns = columns if "cost" in columns else [*columns, "cost"]
    lines = ["\t".join(row.get(column, "") for column in columns) for row in rows]
    return "\n".join([*remarks, f"# timm {timm}", "\t".join(columns), *lines, ""])


def _parse(table: str) -> tuple[list[str], list[str], list[dict[str, str]]]:
    """Comments but the one on timm's version, columns, and rows of a valid table."""
    lines = [line for line in table.splitlines() if line.strip() and not MADE_WITH.fullmatch(line)]
    columns, *rows = [[cell.strip() for cell in line.split("\t")] for line in lines if not line.startswith("#")]
    return (
        [line for line in lines if line.startswith("#")],
        columns,
        [dict(zip(columns, cells, strict=True)) for cells in rows],
    )


def _two_digits(number: float) -> str:
    return f"{float(f'{number:.2g}'):g}"


def report(suite: str, since: str | None, changes: Changes, known: Registry) -> str:
    """The changes in words, since the version of timm that the table was made with."""
    version = f"timm {since}" if since else "a timm that its table does not name"
    numbers = f"{len(changes.kept)} kept, {len(changes.renamed)} renamed, {len(changes.removed)} removed"
    lines = [
        f"Suite {suite}, made with {version}, refreshed with timm {known.timm}: {numbers}, {len(changes.added)} added.",
        *(f"renamed  {old} -> {new}" for old, new in changes.renamed.items()),
        *(f"removed  {model}: {reason}" for model, reason in changes.removed.items()),
        *(f"added    {model}, for its family {known.family(model)}" for model in changes.added),
    ]
    if changes.added:
        lines.append("What was added has the table's most common batch size, if it has any, and no special case.")
    return "\n".join([*lines, ""])
