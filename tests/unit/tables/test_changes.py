"""Steps, drifts and settled statuses in series that a test makes itself: what is found, where, and what is not."""

import numpy as np
import pytest

from timmgate.tables.history import changes
from timmgate.tables.history.changes import Change

NIGHTS = 200


@pytest.fixture
def rng():
    return np.random.default_rng(1337)


def noisy(rng, levels, variation=0.01, series=1):
    """Logarithms of a figure with these relative levels, and noise."""
    return np.log(levels) + rng.normal(0, variation, (series, len(levels)))


def stairs(*steps, nights=NIGHTS):
    """Relative levels that start at 1, with (night, factor) for each step."""
    levels = np.ones(nights)
    for night, factor in steps:
        levels[night:] *= factor
    return levels


def found(values, runs=NIGHTS):
    return [change for _, change in changes.find(np.asarray(values), runs)]


def test_steps_are_found_where_they_are(rng):
    steps = [change for change in found(noisy(rng, stairs((60, 1.05), (120, 1 / 1.05)), 0.005)) if not change.is_drift]
    assert [NIGHTS + step.first for step in steps] == [60, 120]
    assert [step.step for step in steps] == pytest.approx([np.log(1.05), -np.log(1.05)], abs=0.003)


def injected(rng, series):
    """Series of 200 values with a coefficient of variation of 1 %, steps of 2 % at least 30 apart, and where these are."""
    everything, places = [], []
    for _ in range(series):
        number = rng.integers(1, 6)
        where = 30 * np.arange(1, number + 1) + np.sort(rng.integers(0, NIGHTS - 30 * (number + 1) + 1, number))
        factors = 1.02 ** rng.choice([-1.0, 1.0], number)
        everything.append(noisy(rng, stairs(*zip(where, factors, strict=True)))[0])
        places.append(where)
    return np.array(everything), places


def test_of_injected_steps_nearly_all_are_found_and_little_else(rng):
    values, places = injected(rng, 200)
    missing = {series: set(where) for series, where in enumerate(places)}
    wrong = right = 0
    for series, change in changes.find(values, NIGHTS):
        if change.is_drift:
            continue
        near = {place for place in missing[series] if abs(place - NIGHTS - change.first) <= 5}
        right, wrong = right + bool(near), wrong + (not near)
        missing[series] -= near
    assert 2 * right / (2 * right + wrong + sum(map(len, missing.values()))) >= 0.95


def test_healthy_series_have_no_changes(rng):
    assert len(found(noisy(rng, np.ones(365), series=1000), 365)) <= 1


@pytest.mark.parametrize("variation", [0.001, 0.003, 0.01])
def test_ten_steps_of_half_a_percent_are_found_as_a_drift(rng, variation):
    levels = stairs(*((20 * number, 1.005) for number in range(1, 11)), nights=220)
    drifts = [change for change in found(noisy(rng, levels, variation), 30) if change.is_drift]
    assert len(drifts) == 1
    assert drifts[0].step == pytest.approx(10 * np.log(1.005), abs=0.015)
    assert drifts[0].last < drifts[0].first - 60


@pytest.mark.parametrize("after", [1, 2])
def test_a_step_needs_two_successive_values(rng, after):
    assert len(found(noisy(rng, stairs((NIGHTS - after, 1.2))))) == (after == 2)


def test_single_outliers_are_no_changes(rng):
    values = noisy(rng, np.ones(NIGHTS))
    values[0, [20, 70, 71 + 30, 150, NIGHTS - 1]] += np.log([1.5, 0.5, 3.0, 1.2, 1.4])
    assert found(values) == []


def test_only_what_changed_lately_is_told(rng):
    values = noisy(rng, stairs((60, 1.1), (190, 1.1)))
    assert [NIGHTS + change.first for change in found(values, 30)] == [190]
    assert found(values, 5) == []


def test_a_figure_that_never_varies_changes_by_one_percent_and_not_by_less():
    same = np.zeros(40)
    jump = np.where(np.arange(40) < 30, 0.0, 1.0)
    assert found([same + 0.02 * jump])[0].first == -10
    assert found([same + 0.005 * jump]) == []


def test_short_series_and_series_of_different_lengths_are_possible(rng):
    long, short = noisy(rng, stairs((100, 1.1)), 0.002)[0], np.full(NIGHTS, np.nan)
    short[-6:] = np.log([1, 1, 1, 1.3, 1.3, 1.3])
    assert [(series, change.first) for series, change in changes.find(np.array([long, short]), NIGHTS)] == [
        (0, -100),
        (1, -3),
    ]
    assert found(np.zeros((1, 3))) == []
    assert found(np.zeros((0, 0))) == []
    assert found(np.full((2, 10), np.nan)) == []


def test_a_drift_is_made_of_small_steps_in_one_direction():
    up, down, large = 0.006, -0.006, 0.05
    assert [each.is_drift for each in changes._drifts([Change(-10, -9, up, -20, -5), Change(-5, -4, up, -9, 0)])] == [True]
    assert list(changes._drifts([Change(-10, -9, up, -20, -5), Change(-5, -4, down, -9, 0)])) == []
    assert list(changes._drifts([Change(-10, -9, large, -20, -5), Change(-5, -4, up, -9, 0)])) == []


def test_what_came_once_and_went_does_not_settle():
    codes = np.array([[-1, 0, 0, 1, 0, 0, 2, 2, 2, 1], [0, 1, 0, 1, 0, 1, 0, 1, 1, 1]])
    assert changes.settled(codes).tolist() == [[-1, 0, 0, 0, 0, 0, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]]
