"""What the last command asked for, in a file beside the tables, so that they can be made without Snakemake."""

import json
import secrets
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

PARTIAL = ".partial"
"""File beside the tables with a word that changes when they come to be what Snakemake does not take them for: made of a
part, or of another request. The rule `merge` runs again where the word is not the one that it ran with.

To Snakemake a row that is as it was is no reason, although it is newer than the tables; and of a rule that failed it puts
the tables of before back, with a new date, and records that it is done.
"""


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


def partial(folder: Path) -> str:
    """The word of `PARTIAL` in results/{device}; none before a run has ever broken off."""
    file = folder / PARTIAL
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def say_partial(folder: Path) -> None:
    """Have the tables in results/{device} made again by the next run, whatever it asks for."""
    write_text(folder / PARTIAL, secrets.token_hex(4))


def say_made(folder: Path, word: str) -> None:
    """That the tables are what `merge` made with this word."""
    if word:
        write_text(folder / PARTIAL, word)
    else:
        (folder / PARTIAL).unlink(missing_ok=True)


def load(folder: Path) -> Request | None:
    """What `save` left in results/{device}; None where there is nothing."""
    try:
        values = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    requested = [(device, build, mode, model) for device, build, mode, model in values.pop("cells")]
    return Request(requested, thresholds=Thresholds(**values.pop("thresholds")), **values)
