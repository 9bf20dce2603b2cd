"""What the last command asked for, in a file beside the tables, so that they can be made without Snakemake."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timmgate.config import cells, settings
from timmgate.core.checks import CHECKS
from timmgate.core.errors import ConfigError
from timmgate.core.files import write_text
from timmgate.core.run_options import RunOptions
from timmgate.core.thresholds import Thresholds

if TYPE_CHECKING:
    from timmgate.config.cells import Identities
    from timmgate.core.spec import CellKey

NAME = ".request.json"


@dataclass(frozen=True)
class Request:
    """The requested cells and checks, and the policy by which the tables speak of them.

    Today's identities follow from `config`, Snakemake's configuration as it is, and `facts`, the folder with those of the
    builds.
    """

    cells: "Sequence[CellKey]"
    checks: Sequence[str] = tuple(CHECKS)
    thresholds: Thresholds = field(default_factory=Thresholds)
    accuracy_rule: str = RunOptions.accuracy_rule
    config: Mapping[str, Any] = field(default_factory=dict)
    facts: str = ""

    def save(self, folder: Path) -> None:
        """Leave it in results/{device}."""
        text = json.dumps(asdict(self), default=str)
        write_text(folder / NAME, text)

    def identities(self) -> "Identities":
        """The identities that cells would have today; of none where what defines them is not there any more."""
        try:
            return cells.identities(settings.load(dict(self.config)), Path(self.facts))
        except (ConfigError, OSError):
            return lambda cell, check: None


def load(folder: Path) -> Request | None:
    """What `save` left in results/{device}; None where there is nothing."""
    try:
        values = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    requested = [(device, build, mode, model) for device, build, mode, model in values.pop("cells")]
    return Request(requested, thresholds=Thresholds(**values.pop("thresholds")), **values)
