"""Fresh processes of a cell that may have got worse: when have they told? Needs the standard library alone."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from timmgate.tables.figures import JUDGED, Figure
from timmgate.tables.gate.eager_response import Response

SHARE = 0.5
"""Share of a threshold from which on a figure is measured again, and of a limit within which fresh processes clear it."""

MIN_BEYOND, BEYOND_FACTOR = 3, 1.5
"""So many fresh processes that are all beyond so many limits leave no doubt."""

Row = dict[str, Any]


class Limit(NamedTuple):
    """How far a figure may be from its `level` in the baseline, as `Figure.move` says it, without its `response`."""

    level: float
    limit: float
    response: Response = Response()


class Suspect(NamedTuple):
    """A cell that fresh processes are to tell about: the batch size that it was timed at, and the limits by figure."""

    batch_size: int
    limits: Mapping[str, Limit]

    def rounded(self) -> dict[str, Any]:
        """As JSON, to the digits that make a difference: what is equal then need not be timed again."""
        limits = {
            column: [float(f"{level:.4g}"), float(f"{limit:.2g}"), [round(each, 4) for each in response]]
            for column, (level, limit, response) in self.limits.items()
        }
        return {"batch_size": self.batch_size, "limits": limits}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Suspect":
        """What `rounded` made."""
        limits = {column: Limit(level, limit, Response(*of)) for column, (level, limit, of) in values["limits"].items()}
        return cls(values["batch_size"], limits)


def unusable(row: Row, batch_size: int) -> str | None:
    """Why a process says nothing of the figures of a cell, timed at a batch size; None if it does."""
    if row["status"] != "pass":
        return str(row["status"])
    return None if row["batch_size"] == batch_size else "another batch size"


def usable(rows: Iterable[Row], batch_size: int) -> list[Row]:
    """Those of fresh processes that can be compared."""
    return [row for row in rows if unusable(row, batch_size) is None]


def is_failing(fresh: Sequence[Row], batch_size: int, times: int) -> bool:
    """Whether most of the `times` processes that are allowed failed; a few of so many always may.

    What something other than the model ended says nothing.
    """
    return sum(unusable(row, batch_size) not in (None, "infra_error") for row in fresh) > times / 2


def is_settled(suspect: Suspect, fresh: Sequence[Row], times: int) -> bool:
    """Whether up to `times` fresh processes have shown of each figure that it is within its limit, or that it surely is not.

    It is within if their median is within half of the limit, or if most of the `times` are within it. It is not if three are
    beyond the limit by half again. What is only a little beyond takes all of them. Most of them failing is an answer too.
    """
    figures, told = {figure.column: figure for figure in JUDGED}, usable(fresh, suspect.batch_size)
    if is_failing(fresh, suspect.batch_size, times):
        return True
    return all(_is_clear(figures[column], limit, told, times) for column, limit in suspect.limits.items())


def _is_clear(figure: Figure, limit: Limit, fresh: Sequence[Row], times: int) -> bool:
    moves = [figure.move(value, limit.level) - limit.response.of(row) for row, value in figure.known_in(fresh)]
    if not moves:  # nor will more of them know it
        return len(fresh) >= MIN_BEYOND
    within = sum(move <= limit.limit for move in moves)
    is_far_beyond = len(moves) >= MIN_BEYOND and min(moves) > BEYOND_FACTOR * limit.limit
    return median(moves) <= SHARE * limit.limit or within > times / 2 or is_far_beyond
