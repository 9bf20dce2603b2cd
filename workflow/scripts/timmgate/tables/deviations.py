"""Cells held against cells that were measured before: which figures moved, by more than noise explains. Arrow in, rows out.

The noise comes from the comparison itself: most cells of a suite did not change, so the scatter of all differences is what
two measurements of the same thing differ by. It is a screening, of one measurement a cell: what it finds may be chance.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import stats

from timmgate.core.schemas import PASSED, SHOWN_STATUS
from timmgate.core.thresholds import Thresholds
from timmgate.tables import history
from timmgate.tables.baseline import Expectation, Expectations, Measured
from timmgate.tables.confirmation import CLEARLY, SHARE, Limit
from timmgate.tables.figures import EAGER, FIGURES, JUDGED, RELATIVE, Figure, comparable
from timmgate.tables.moderated import Test

MANY_CELLS = 10
"""Fewest cells whose differences say how much two measurements of the same differ."""

USUAL_NOISE = 0.01
"""Standard deviation of a difference where fewer cells are compared. Between processes 0.5 % to 1 % was seen on a CPU."""

SMALLEST_NOISE = 0.001
"""Least standard deviation of a difference: where most cells do not differ at all, still nobody looks at less. A choice."""

SCREENING = 2.81
"""Standard deviations from which on a difference is told: two-sided 0.005 of a normal distribution."""

MEDIAN_ERROR = 1.2533
"""Standard error of a median over that of a mean, of normal values: sqrt(pi / 2)."""

LAST = 32
"""Measurements of a history, at most, whose median is the baseline of a cell."""

LATEST = 8
"""So many, or all if there are fewer, are never too old."""

KNOWN = 5
"""Measurements from which on a cell of a history has a scatter of its own. A choice."""

CONFIRMING = 3.4
"""The same for the median of fresh processes: one-sided 0.0003, so that hardly one fails of some sixty figures that chance
has measured again in a night.
"""

TENTHS = 2.5631
"""Standard deviations between the outer tenths of a normal distribution, which a tenth of outliers does not move."""

SUSPICIOUS = 1.3
"""Standard deviations from which on a figure is measured again, where that is asked for. One cell in ten is, and of those
that got worse by three standard deviations all but one in twenty are.
"""

IGNORED = {
    "build": ("options",),  # the settings of a build are among them
    "device": ("device_name", "performance_threads", "allocator", "relocate"),
}
"""By kind of baseline, columns that may differ although figures are compared."""

Row = dict[str, Any]
Key = tuple[str, str]


@dataclass(frozen=True)
class Baseline:
    """What was measured before: by mode and model, the rows of `cells`, the latest last.

    `ignored` are columns that may differ although figures are compared.
    """

    rows: Mapping[Key, Sequence[Row]]
    ignored: tuple[str, ...] = ()

    def expectations(self, wanted: Mapping[str, Collection[str]]) -> Expectations:
        """The latest statuses, of these models by mode."""
        found: Expectations = {mode: {} for mode in wanted}
        for (mode, model), rows in self.rows.items():
            statuses = [rows[-1][SHOWN_STATUS[check]] for check in ("accuracy", "performance")]
            known = [None if status in (None, "not_run") else status for status in statuses]
            if model in wanted.get(mode, ()) and any(known):
                found[mode][model] = Expectation(known[0] or "pass", None, known[1])
        return found


def load(measured: Measured, cells: pa.Table) -> Baseline:
    """The rows of a baseline for `cells` of one build: those of the same build, unless `measured` is another one.

    Of a history, without the measurements that the table `cells` has itself.
    """
    if measured.kind == "history":
        return Baseline(_of_history(measured, cells))
    rows = pq.read_table(measured.path)
    if build := measured.name if measured.kind == "build" else _first(cells, "build"):
        rows = rows.filter(pc.equal(rows["build"], build))
    return Baseline({(row["mode"], row["model"]): [row] for row in rows.to_pylist()}, IGNORED.get(measured.kind, ()))


def _of_history(measured: Measured, cells: pa.Table) -> dict[Key, list[Row]]:
    where = (pc.field("device") == _first(cells, "device")) & (pc.field("build") == _first(cells, "build"))
    if measured.name:
        where &= pc.field("run") == measured.name
    starts = [name for name in cells.column_names if name.endswith("_started_at") and name != "timing_started_at"]
    own = {
        (row["mode"], row["model"], row[name])
        for row in cells.select(["mode", "model", *starts]).to_pylist()
        for name in starts
    }
    entries = history.read(Path(measured.path), NEEDED, where)
    found: dict[Key, list[Row]] = {}
    for row in entries.to_pylist():
        key = row["mode"], row["model"]
        if not any(row[name] is not None and (*key, row[name]) in own for name in starts):
            found.setdefault(key, []).append(row)
    order = {
        key: sorted(rows, key=lambda row: max(row[name] for name in starts if row[name])) for key, rows in found.items()
    }
    return {key: _filled(rows) for key, rows in order.items()}


def _first(cells: pa.Table, name: str) -> Any:
    """The value of a column that is the same in all rows; None without rows."""
    return cells[name][0].as_py() if len(cells) else None


def _filled(rows: list[Row]) -> list[Row]:
    """The last has what an earlier one has of a check that was not measured with it."""
    latest = {name: next((row[name] for row in reversed(rows) if row[name] is not None), None) for name in rows[-1]}
    return [*rows[:-1], latest]


NEEDED = tuple(
    dict.fromkeys(
        [
            *("run", "device", "build", "mode", "model", EAGER.column, "eager_p10_ms", "eager_p90_ms", "samples"),
            *("compiled_p10_ms", "compiled_p90_ms", *(figure.column for figure in FIGURES)),
            *(name for check in SHOWN_STATUS for name in (SHOWN_STATUS[check], f"{check}_started_at", *comparable(check))),
        ]
    )
)
"""Columns of a history that a baseline needs."""


COMPILED, *_, COUNTED = FIGURES
MOVING = (*JUDGED, COMPILED, EAGER)
"""Figures that are followed."""


@dataclass
class Comparison:
    """The cells of a baseline that are comparable, and the logarithms of how far each figure moved.

    `incomparable` says why a cell is not. `eager` is the median of eager's moves, which all cells have in common. `spread`
    is by figure how much each cell scattered in its baseline, where that has several measurements.
    """

    moves: dict[str, dict[Key, float]] = field(default_factory=lambda: {each.column: {} for each in MOVING})
    spread: dict[str, dict[Key, float]] = field(default_factory=lambda: {each.column: {} for each in MOVING})
    incomparable: dict[Key, str] = field(default_factory=dict)
    eager: float = 0.0

    def scatter(self, column: str, key: Key | None = None) -> float:
        """Standard deviation of a move where nothing changed: by the median absolute deviation of all cells, or that of the
        cell itself in the baseline, if it is more.
        """
        moves, own = list(self.moves[column].values()), self.spread[column].get(key, 0.0) if key else 0.0
        if len(moves) < MANY_CELLS:
            return max(USUAL_NOISE, own)
        return max(float(1.4826 * np.median(np.abs(np.array(moves) - np.median(moves)))), own)

    def own(self, column: str, key: Key) -> float | None:
        """How far a cell's figure moved, without what eager of all cells has in common; None if that is not known."""
        move = self.moves[column].get(key)
        return move if move is None or column != COMPILED.column else move - self.eager

    def is_eager(self, key: Key) -> bool:
        """Whether it is eager by itself that moved, and compiled did not: by more than noise, and than compiled twice."""
        eager, compiled = (self.moves[each.column].get(key, self.eager) - self.eager for each in (EAGER, COMPILED))
        return abs(eager) > max(SCREENING * self.scatter(EAGER.column, key), 2 * abs(compiled))

    def test(self, column: str, key: Key) -> Test:
        """Whether a figure that is known moved by more than the scatter of all cells."""
        move, error = self.own(column, key) or 0.0, max(self.scatter(column, key), SMALLEST_NOISE)
        freedom = max(len(self.moves[column]), MANY_CELLS) - 1
        return Test(move, error, freedom, float(2 * stats.t.sf(abs(move) / error, freedom)))


def compare(cells: Sequence[Row], baseline: Baseline) -> Comparison:
    """Hold rows of `cells` against a baseline, those whose performance check passed both times."""
    found = Comparison()
    for row in cells:
        key = row["mode"], row["model"]
        before = baseline.rows.get(key, [])
        if row["performance"] not in PASSED:
            continue
        if reason := _reason(row, before, baseline.ignored):
            found.incomparable[key] = reason
            continue
        alike = [each for each in before if not _differences(row, each, baseline.ignored)]
        for figure in MOVING:
            levels = [level for level in map(figure.of, alike) if level is not None]
            now = figure.of(row)
            if figure is COUNTED:
                if levels and now is not None:
                    found.moves[figure.column][key] = now - levels[-1]
            elif now and any(levels):
                logs = latest_level([math.log(level) for level in levels if level])
                found.moves[figure.column][key] = math.log(now) - median(logs)
                if len(logs) >= KNOWN:
                    found.spread[figure.column][key] = float(np.subtract(*np.quantile(logs, (0.9, 0.1))) / TENTHS)
    if len(found.moves[EAGER.column]) >= MANY_CELLS:
        found.eager = median(found.moves[EAGER.column].values())
    return found


def latest_level(values: Sequence[float]) -> Sequence[float]:
    """The last of successive logarithms, as many as lie on one level: of 32, 16 or 8, the most whose halves agree.

    Many say best where a cell lies, but not those from before it changed for good.
    """
    number = min(len(values), LAST)
    while number > LATEST:
        some, half = np.array(values[-number:]), number // 2
        noise = max(float(1.4826 * np.median(np.abs(np.diff(some)))) / math.sqrt(2), SMALLEST_NOISE)
        if abs(np.median(some[:half]) - np.median(some[half:])) <= SCREENING * MEDIAN_ERROR * noise * math.sqrt(4 / number):
            break
        number = max(LATEST, half)
    return values[-number:]


def _reason(row: Row, before: Sequence[Row], ignored: tuple[str, ...]) -> str | None:
    """Why no figure of a cell can be compared; None if they can."""
    timed = [each for each in before if each["performance"] in PASSED]
    if not before:
        return "the baseline has no such cell"
    if not timed:
        return "it was not timed in the baseline"
    if any(not _differences(row, each, ignored) for each in timed):
        return None
    return "; ".join(
        f"{name} is {row[name]}, in the baseline {timed[-1][name]}" for name in _differences(row, timed[-1], ignored)
    )


def _differences(row: Row, before: Row, ignored: tuple[str, ...]) -> list[str]:
    return [name for name in comparable("performance") if name not in ignored and row[name] != before[name]]


def deviations(
    cells: Sequence[Row], baseline: Baseline, thresholds: Thresholds, fresh: Mapping[Key, Sequence[Row]] | None = None
) -> Iterator[Row]:
    """A row, as the gate has them, for each figure that moved and each cell that could not be compared.

    `fresh` are rows of `suspects`, from processes after that: of what may have got worse their median alone decides.
    """
    found = compare(cells, baseline)
    if abs(found.eager) > math.log1p(thresholds.max_slowdown):
        words = f"eager of all cells moved by {math.expm1(found.eager):+.1%}, which was taken off compiled"
        name = EAGER.worse if found.eager > 0 else EAGER.better
        build = cells[0]["build"]
        yield {"build": build, "class": name, "check_name": "performance", "cause": EAGER.column, "reason": words}
    for row in cells:
        key = row["mode"], row["model"]
        about = {name: row.get(name) for name in ("build", "mode", "model", "log")} | {"check_name": "performance"}
        if key in found.incomparable:
            yield {**about, "class": "not_comparable", "reason": found.incomparable[key]}
        for figure, move, value in _moves(row, found):
            moved = _class_of(figure, move, key, found, thresholds)
            words = f"{figure.column} {value:.4g}, {_size(figure, move)} against the baseline"
            if figure is RELATIVE:
                words += f": {COMPILED.column} {row[COMPILED.column]:.4g}, {EAGER.column} {row[EAGER.column]:.4g}"
            again = [each for each in map(figure.of, (fresh or {}).get(key, ())) if each is not None]
            if again and _is_suspect(figure, move, key, found, thresholds):
                anew = _moved_again(figure, value, move, again)
                words += f"; {_size(figure, anew)} in {len(again)} fresh processes"
                confirmed = _class_of(figure, anew, key, found, thresholds, len(again))
                moved = confirmed if confirmed != figure.better else None
                if moved is None and _class_of(figure, move, key, found, thresholds) == figure.worse:
                    moved = "not_confirmed"
            if moved:
                yield {**about, "class": moved, "cause": figure.column, "reason": words}


def suspects(cells: Sequence[Row], baseline: Baseline, thresholds: Thresholds) -> dict[Key, dict[str, Limit]]:
    """By cell the figures that may have got worse, which fresh processes have to tell, and what they may be."""
    found = compare(cells, baseline)
    suspected: dict[Key, dict[str, Limit]] = {}
    for row in cells:
        key = row["mode"], row["model"]
        for figure, move, value in _moves(row, found):
            if _is_suspect(figure, move, key, found, thresholds):
                level = value - move if figure.threshold is None else value / math.exp(move)
                limit = _limit(figure, key, found, thresholds, CLEARLY)
                suspected.setdefault(key, {})[figure.column] = Limit(level, limit)
    return suspected


def _moves(row: Row, found: Comparison) -> Iterator[tuple[Figure, float, float]]:
    """The figures of a cell that are known now and in the baseline, with how far they moved and what they are."""
    for figure in JUDGED:
        move, value = found.own(figure.column, (row["mode"], row["model"])), figure.of(row)
        if move is not None and value is not None:
            yield figure, move, value


def _is_suspect(figure: Figure, move: float, key: Key, found: Comparison, thresholds: Thresholds) -> bool:
    """Whether a figure may have got worse by what is too much, though it was measured as less."""
    limit = 0.0 if figure.threshold is None else math.log1p(getattr(thresholds, figure.threshold))
    noise = 0.0 if figure.threshold is None else SUSPICIOUS * found.scatter(figure.column, key)
    return move > max(SHARE * limit, noise) or move > _limit(figure, key, found, thresholds)


def _size(figure: Figure, move: float) -> str:
    return f"{move:+.0f}" if figure.threshold is None else f"{math.expm1(move):+.1%}"


def _moved_again(figure: Figure, value: float, move: float, again: Sequence[float]) -> float:
    """How far the median of fresh measurements is from the baseline, from which `value` is by `move`."""
    return median(again) - value + move if figure.threshold is None else math.log(median(again) / value) + move


def _limit(figure: Figure, key: Key, found: Comparison, thresholds: Thresholds, fresh: int = 0) -> float:
    """How far a figure may move: the threshold, or what noise makes of one measurement, or of the median of `fresh` ones."""
    if figure.threshold is None:
        return 0.0
    errors = CONFIRMING * MEDIAN_ERROR / math.sqrt(fresh) if fresh else SCREENING
    return max(math.log1p(getattr(thresholds, figure.threshold)), errors * found.scatter(figure.column, key))


def _class_of(
    figure: Figure, move: float, key: Key, found: Comparison, thresholds: Thresholds, fresh: int = 0
) -> str | None:
    """The class of a figure that moved by more than the threshold and than noise; None for one that did not."""
    if abs(move) <= _limit(figure, key, found, thresholds, fresh):
        return None
    if figure is RELATIVE and found.is_eager(key):
        return EAGER.better if move > 0 else EAGER.worse
    return figure.worse if move > 0 else figure.better
