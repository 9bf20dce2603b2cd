"""Cells held against cells that were measured before: which figures moved, by more than noise explains. Arrow in, rows out.

The noise comes from the comparison itself: most cells of a suite did not change, so the scatter of all differences is what
two measurements of the same thing differ by. It is a screening, of one measurement a cell: what it finds may be chance.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, median

import numpy as np

from timmgate.core.schemas import PASSED
from timmgate.core.thresholds import Thresholds
from timmgate.tables.comparison.moderated import Test, two_sided
from timmgate.tables.figures import COMPILE_COLD, COMPILED, EAGER, GRAPH_BREAKS, JUDGED, RELATIVE, Figure
from timmgate.tables.gate.confirmation import SHARE, Limit, Suspect, is_failing, unusable, usable
from timmgate.tables.gate.eager_response import Response, learn
from timmgate.tables.gate.measured_baseline import ABSENT, Baseline, ModeModel, Row, differences, in_words, last_twice

MANY_CELLS = 10
"""Fewest cells whose differences say how much two measurements of the same differ."""

USUAL_NOISE = 0.01
"""Standard deviation of a difference where fewer cells are compared. Between processes 0.5 % to 1 % was seen on a CPU."""

SMALLEST_NOISE = 0.001
"""Least standard deviation of a difference: where most cells do not differ at all, still nobody looks at less. A choice."""

REPORT_SIGMAS = 2.81
"""Standard deviations from which on eager has moved, or a level is another one: two-sided 0.005 of a normal distribution."""

MAX_FALSE_ALARMS = 0.02
"""How many healthy figures, of all that are compared in a night, may fail."""

MAX_HISTORY = 32
"""Measurements of a history, at most, whose median is the baseline of a cell."""

MIN_HISTORY = 8
"""So many, or all if there are fewer, are never too old."""

MUCH_NOISE = 0.1
"""A relative change that must not be taken for noise without a word. A choice."""

SEVERAL_CELLS = 3
"""Cells from which on their eager says what the machine did. A choice."""

MIN_FOR_OWN_SCATTER = 5
"""Measurements from which on a cell of a history has a scatter of its own. A choice."""

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

Z_P10_TO_P90 = 2.5631
"""Standard deviations between the outer tenths of a normal distribution, which a tenth of outliers does not move."""

RETIME_SIGMAS = 1.3
"""Standard deviations from which on a figure is measured again. One cell in ten is, and of those
that got worse by three standard deviations all but one in twenty are.
"""

SUSPECT_SHARE, MIN_SUSPECTS = 0.2, 20
"""Of the cells, so many are timed again at most, and at least so many may be. In a healthy night it is one in ten; of a
torch that is slower everywhere the first measurements tell enough.
"""

MOVING = (*JUDGED, COMPILED, EAGER)
"""Figures that are followed."""

RESPONDING = (RELATIVE, COMPILE_COLD)
"""Figures that go with eager's time although they are no times of an iteration: a slow machine moves them too."""

SHARE_OF_MINUTES = 0.5
"""Share of the variance of one measurement that processes of the same minutes have in common, so that more of them do not
make it smaller. Of twelve cells that were timed at three times of two hours it was half.
"""


@dataclass
class Comparison:
    """The cells of a baseline that are comparable, and the logarithms of how far each figure moved.

    `incomparable` says why a cell is not, `unknown` which figures of one are known in the baseline alone. `eager` is the
    median of eager's moves, which all cells have in common. `spread` is by figure how much each cell scattered in its
    baseline, where that has several measurements. `variance` is that of the baseline of a figure, over that of one
    measurement. `responses` are, by figure, how it goes with eager's time, which is taken off its moves.
    """

    moves: dict[str, dict[ModeModel, float]] = field(default_factory=lambda: {each.column: {} for each in MOVING})
    spread: dict[str, dict[ModeModel, float]] = field(default_factory=lambda: {each.column: {} for each in MOVING})
    variance: dict[str, dict[ModeModel, float]] = field(default_factory=lambda: {each.column: {} for each in MOVING})
    incomparable: dict[ModeModel, str] = field(default_factory=dict)
    unknown: dict[ModeModel, list[Figure]] = field(default_factory=dict)
    responses: dict[str, dict[ModeModel, Response]] = field(default_factory=lambda: {each.column: {} for each in MOVING})
    eager: float = 0.0
    _pooled: dict[str, float] = field(default_factory=dict)

    def scatter(self, column: str, key: ModeModel | None = None) -> float:
        """Standard deviation of a move where nothing changed: by the median absolute deviation of all cells, or that of the
        cell itself in the baseline, if it is more.
        """
        if column not in self._pooled:  # once, as each cell asks
            moves = np.array(list(self.moves[column].values()))
            is_known = len(moves) >= MANY_CELLS
            scatter = MAD_TO_SIGMA * np.median(np.abs(moves - np.median(moves))) if is_known else USUAL_NOISE
            self._pooled[column] = float(scatter)
        return max(self._pooled[column], self.spread[column].get(key, 0.0) if key else 0.0)

    def chance(self, column: str, key: ModeModel, times: int) -> float:
        """How far one measurement, or the median of `times` fresh processes, may be from the baseline where nothing changed.

        The baseline has an error too, which does not shrink with them: where it was low by chance, all of them look worse;
        and so they do by what their minutes have in common. It is a normal quantile, so that of all figures that are
        compared together fewer than `MAX_FALSE_ALARMS` are beyond it.
        """
        compared = sum(len(self.moves[figure.column]) for figure in JUDGED)
        before = self.variance[column].get(key, 1.0)
        again = SHARE_OF_MINUTES + (1 - SHARE_OF_MINUTES) * variance_of_median(times) if times else 1.0
        ratio = (again + before) / (1 + before)
        return -NormalDist().inv_cdf(MAX_FALSE_ALARMS / max(1, compared)) * math.sqrt(ratio) * self.scatter(column, key)

    def own(self, column: str, key: ModeModel) -> float | None:
        """How far a cell's figure moved, compiled's time without what eager of all cells has in common; None is unknown."""
        move = self.moves[column].get(key)
        return move if move is None or column != COMPILED.column else move - self.eager

    def response(self, figure: Figure, key: ModeModel) -> Response:
        """How a figure of a cell goes with eager's time."""
        return self.responses[figure.column].get(key, Response())

    def of_eager(self, key: ModeModel, limit: float, anew: Mapping[str, float | None] | None = None) -> str | None:
        """The class of a cell whose eager moved: by more than noise, and than compiled twice, which is no slower by `limit`.

        `anew` is how far figures moved in fresh processes, which count where there are any. None if it is not eager.
        """
        own = anew or {each.column: self.own(each.column, key) for each in (EAGER, COMPILED)}
        eager, compiled = own[EAGER.column], own[COMPILED.column]
        if eager is None or compiled is None:
            return None
        eager -= self.eager
        noise = max(REPORT_SIGMAS * self.scatter(EAGER.column, key), 2 * abs(compiled))
        return (EAGER.worse if eager > 0 else EAGER.better) if compiled <= limit and abs(eager) > noise else None

    def test(self, column: str, key: ModeModel, common: float = 0.0) -> Test:
        """Whether a figure that is known moved by more than the scatter of all cells, without what is `common` to them."""
        move, error = (self.own(column, key) or 0.0) - common, max(self.scatter(column, key), SMALLEST_NOISE)
        freedom = max(len(self.moves[column]), MANY_CELLS) - 1
        return Test(move, error, freedom, two_sided(move / error, freedom))


def compare(cells: Sequence[Row], baseline: Baseline) -> Comparison:
    """Hold rows of `cells` against a baseline, those whose performance check passed both times."""
    found = Comparison()
    for row in cells:
        key = row["mode"], row["model"]
        before = baseline.rows.get(key, [])
        if row["performance"] not in PASSED:
            continue
        timed = [(each, differences(row, each, baseline.ignored)) for each in before if each["performance"] in PASSED]
        alike = [each for each, different in timed if not different]
        if not alike:
            found.incomparable[key] = _reason(row, before, timed)
            continue
        of_threads = [each for each in alike if each["performance_threads"] == row["performance_threads"]]
        for figure in MOVING:
            same = of_threads if figure is COMPILE_COLD else alike
            now = figure.of(row)
            if now is None and any(figure.of(each) is not None for each in same):
                found.unknown.setdefault(key, []).append(figure)
            known = figure.known_in(same)
            if figure is GRAPH_BREAKS:
                if known and now is not None:
                    found.moves[figure.column][key] = now - last_twice([value for _, value in known])
            elif now and known:
                if figure in RESPONDING:
                    found.responses[figure.column][key] = learn(figure, [each for each, _ in known[-MAX_HISTORY:]])
                response = found.response(figure, key)
                logs = latest_level([math.log(value) - response.of(each) for each, value in known])
                variance = variance_of_median(len(logs)) + response.variance(row)
                found.moves[figure.column][key] = math.log(now) - response.of(row) - median(logs)
                found.variance[figure.column][key] = variance
                if len(logs) >= MIN_FOR_OWN_SCATTER:
                    found.spread[figure.column][key] = spread(logs) * math.sqrt(1 + variance)
    if len(found.moves[EAGER.column]) >= SEVERAL_CELLS:
        found.eager = median(found.moves[EAGER.column].values())
    return found


def variance_of_median(number: int) -> float:
    """Variance of the median of so many normal values, over that of one: pi / 2 over their number, from three on."""
    return 1 / number if number < 3 else math.pi / 2 / number


def spread(values: Sequence[float]) -> float:
    """Standard deviation of one measurement, by the outer tenths; of n values they lie nearer by 1.5 / n (simulated)."""
    return float(np.subtract(*np.quantile(values, (0.9, 0.1))) / Z_P10_TO_P90 / (1 - 1.5 / len(values)))


def latest_level(values: Sequence[float]) -> Sequence[float]:
    """The last of successive logarithms, as many as lie on one level: at most 32, half of them and so on down to 8, the most
    whose halves agree.

    Many say best where a cell lies, but not those from before it changed for good.
    """
    number = min(len(values), MAX_HISTORY)
    while number > MIN_HISTORY:
        some, half = np.array(values[-number:]), number // 2
        noise = max(float(MAD_TO_SIGMA * np.median(np.abs(np.diff(some)))) / math.sqrt(2), SMALLEST_NOISE)
        error = noise * math.sqrt(2 * variance_of_median(half))
        if abs(np.median(some[:half]) - np.median(some[half:])) <= REPORT_SIGMAS * error:
            break
        number = max(MIN_HISTORY, half)
    return values[-number:]


def _reason(row: Row, before: Sequence[Row], timed: Sequence[tuple[Row, Sequence[str]]]) -> str:
    """Why no figure of a cell can be compared with what was `timed` before, each with the columns that are different."""
    if not before:
        return ABSENT
    if not timed:
        return "it was not timed in the baseline"
    return in_words(row, *timed[-1])


def deviations(
    cells: Sequence[Row],
    baseline: Baseline,
    thresholds: Thresholds,
    fresh: Mapping[ModeModel, Sequence[Row]] | None = None,
    times: int = 0,
) -> Iterator[Row]:
    """A row, as the gate has them, for each figure that moved and each cell that could not be compared.

    `fresh` are rows of `suspects`, from up to `times` processes after that: of what may have got worse their median alone
    decides. A cell that fails in most of `times` has a `new_failure` too.
    """
    found = compare(cells, baseline)
    builds = {row["build"] for row in cells}
    of_all = {"build": builds.pop() if len(builds) == 1 else None, "mode": None, "model": None, "check_name": "performance"}
    if abs(found.eager) > math.log1p(thresholds.max_slowdown):
        words = f"eager of all cells moved by {math.expm1(found.eager):+.1%}, which was taken off compiled"
        name = EAGER.worse if found.eager > 0 else EAGER.better
        yield {**of_all, "class": name, "cause": EAGER.column, "reason": words}
    noise = REPORT_SIGMAS * found.scatter(RELATIVE.column)
    if noise > math.log1p(MUCH_NOISE):
        words = f"most cells moved, so that less than {math.expm1(noise):+.0%} against the baseline is taken for noise"
        yield {**of_all, "class": "noisy", "cause": RELATIVE.column, "reason": words}
    for row in cells:
        key = row["mode"], row["model"]
        about = {name: row.get(name) for name in ("build", "mode", "model", "log")} | {"check_name": "performance"}
        if key in found.incomparable:
            yield {**about, "class": "not_comparable", "reason": found.incomparable[key]}
        for figure in found.unknown.get(key, []):
            words = f"{figure.column} is not known, and was in the baseline"
            yield {**about, "class": "not_comparable", "cause": figure.column, "reason": words}
        ran, batch_size = (fresh or {}).get(key, ()), row["performance_batch_size"]
        again = usable(ran, batch_size)
        if is_failing(ran, batch_size, times):
            yield {**about, "class": "new_failure", "reason": _failed(ran, batch_size)}
        anew = {each.column: _moved_again(each, row, found, again) for each in MOVING}
        of_eager = found.of_eager(key, _limit(COMPILED, key, found, thresholds))
        of_eager_again = found.of_eager(key, _limit(COMPILED, key, found, thresholds, times), anew)
        for figure, move, value in _moves(row, found):
            moved = _class_of(figure, move, _limit(figure, key, found, thresholds), of_eager)
            words = f"{figure.column} {value:.4g}, {_size(figure, move)} against the baseline"
            if found.response(figure, key).slope:
                words += " at this speed of eager"
            if figure is RELATIVE:
                words += f": {COMPILED.column} {row[COMPILED.column]:.4g}, {EAGER.column} {row[EAGER.column]:.4g}"
            move_again = anew[figure.column]
            if again and move_again is None:
                words += f"; unknown in {len(again)} fresh processes"
            elif move_again is not None and _is_suspect(figure, move, key, found, thresholds):
                words += f"; {_size(figure, move_again)} in {len(again)} fresh processes"
                confirmed = _class_of(figure, move_again, _limit(figure, key, found, thresholds, times), of_eager_again)
                was, moved = moved, confirmed if confirmed != figure.better else None
                if moved is None and was == figure.worse:
                    moved = "not_confirmed"
            if moved:
                yield {**about, "class": moved, "cause": figure.column, "reason": words}


def suspects(cells: Sequence[Row], baseline: Baseline, thresholds: Thresholds, times: int) -> dict[ModeModel, Suspect]:
    """The cells with figures that may have got worse, which up to `times` fresh processes have to tell.

    Where there are very many, those that moved most against their limits, as a count of graph breaks is the same in each:
    of the others the first measurement counts.
    """
    found = compare(cells, baseline)
    suspected: dict[ModeModel, Suspect] = {}
    excess: dict[ModeModel, float] = {}
    for row in cells:
        key, limits = (row["mode"], row["model"]), {}
        for figure, move, value in _moves(row, found):
            if _is_suspect(figure, move, key, found, thresholds):
                response = found.response(figure, key)
                level = value - move if figure.is_count else value / math.exp(move + response.of(row))
                limits[figure.column] = Limit(level, _limit(figure, key, found, thresholds, times), response)
                one = _limit(figure, key, found, thresholds)
                excess[key] = max(excess.get(key, 0.0), move / one if one else 0.0)
        if limits:
            suspected[key] = Suspect(row["performance_batch_size"], limits)
    most = max(MIN_SUSPECTS, round(SUSPECT_SHARE * len(cells)))
    return {key: suspected[key] for key in sorted(suspected, key=lambda key: -excess[key])[:most]}


def _failed(ran: Sequence[Row], batch_size: int) -> str:
    """What became of a cell that passed, and did not in fresh processes."""
    why = Counter(reason for row in ran if (reason := unusable(row, batch_size)))
    words = ", ".join(f"{count} {reason}" for reason, count in why.most_common())
    return f"it passed, and {why.total()} of {len(ran)} fresh processes could not time it so: {words}"


def _moves(row: Row, found: Comparison) -> Iterator[tuple[Figure, float, float]]:
    """The figures of a cell that are known now and in the baseline, with how far they moved and what they are."""
    for figure in JUDGED:
        move, value = found.own(figure.column, (row["mode"], row["model"])), figure.of(row)
        if move is not None and value is not None:
            yield figure, move, value


def _is_suspect(figure: Figure, move: float, key: ModeModel, found: Comparison, thresholds: Thresholds) -> bool:
    """Whether a figure may have got worse by what is too much, though it was measured as less."""
    if figure.is_count:
        return move > 0
    return move > max(SHARE * _threshold(figure, thresholds), RETIME_SIGMAS * found.scatter(figure.column, key))


def _size(figure: Figure, move: float) -> str:
    return f"{move:+g}" if figure.is_count else f"{math.expm1(move):+.1%}"


def _moved_again(figure: Figure, row: Row, found: Comparison, again: Sequence[Row]) -> float | None:
    """How far the median of fresh measurements is from the baseline, from which that of `row` is by a known move."""
    move, value = found.own(figure.column, (row["mode"], row["model"])), figure.of(row)
    known, response = figure.known_in(again), found.response(figure, (row["mode"], row["model"]))
    if move is None or value is None or not known:
        return None
    return median(figure.move(again, value) - response.of(each) for each, again in known) + response.of(row) + move


def _threshold(figure: Figure, thresholds: Thresholds) -> float:
    """By how much a figure may move, as a logarithm; 0 for a count."""
    return 0.0 if figure.threshold is None else math.log1p(getattr(thresholds, figure.threshold))


def _limit(figure: Figure, key: ModeModel, found: Comparison, thresholds: Thresholds, times: int = 0) -> float:
    """How far a figure may move: the threshold, what noise makes of one measurement or the median of `times` fresh ones."""
    if figure.is_count:
        return 0.0
    return max(_threshold(figure, thresholds), found.chance(figure.column, key, times))


def _class_of(figure: Figure, move: float, limit: float, of_eager: str | None) -> str | None:
    """The class of a figure that moved by more than its limit; None for one that did not."""
    if abs(move) <= limit:
        return None
    if figure is RELATIVE and of_eager:
        return of_eager
    return figure.worse if move > 0 else figure.better
