"""Moderated t on simulated differences, whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from timmgate.tables.comparison import moderated

CELLS, PROCESSES = 5_000, 4


@pytest.fixture(scope="module")
def variances():
    """True variances of cells: as scattered as those of a chi-square of 8 degrees of freedom say."""
    return 0.01**2 * 8 / np.random.default_rng(1).chisquare(8, CELLS)


@pytest.fixture(scope="module")
def unchanged(variances):
    """Differences of processes of cells in which nothing changed."""
    return np.random.default_rng(2).normal(0, np.sqrt(variances)[:, None], (CELLS, PROCESSES))


def test_what_the_variances_have_in_common_is_found(unchanged):
    found = moderated.prior(np.var(unchanged, axis=1, ddof=1), [PROCESSES - 1] * CELLS)
    assert found.freedom == pytest.approx(8, rel=0.2)
    assert math.sqrt(found.variance) == pytest.approx(0.01, rel=0.05)


def test_equal_variances_are_pooled():
    same = np.random.default_rng(3).normal(0, 0.02, (CELLS, PROCESSES))
    found = moderated.prior(np.var(same, axis=1, ddof=1), [PROCESSES - 1] * CELLS)
    assert found.freedom > 50
    assert math.sqrt(found.variance) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("level", [0.05, 0.01, 0.001])
def test_false_alarms_are_as_rare_as_the_level_says(level, unchanged):
    alarms = sum(test.p <= level for test in moderated.tests(unchanged))
    assert stats.binomtest(alarms, CELLS, level).pvalue > 1e-3


def test_it_finds_more_than_students_t(unchanged):
    changed = unchanged + 0.03
    found = sum(test.p <= 0.001 for test in moderated.tests(changed))
    by_student = sum(stats.ttest_1samp(changed, 0, axis=1).pvalue <= 0.001)
    assert found > 3 * by_student


def test_the_interval_covers_the_truth_as_often_as_it_says(unchanged):
    intervals = [test.interval(0.95) for test in moderated.tests(unchanged + 0.02)]
    covered = sum(low <= 0.02 <= high for low, high in intervals)
    assert stats.binomtest(covered, CELLS, 0.95).pvalue > 1e-3


def test_the_power_that_it_claims_is_the_share_that_it_finds(unchanged):
    tests = moderated.tests(unchanged)
    assert not any(test.has_power(0.0, 0.001, 0.5) for test in tests)
    assert all(test.has_power(1.0, 0.001, 0.9) for test in tests)
    same = np.random.default_rng(4).normal(0.03, 0.01, (CELLS, PROCESSES))
    different = moderated.tests(same)
    found = np.mean([test.p <= 0.001 for test in different])
    claimed = [power for power in np.arange(0.05, 1, 0.05) if different[0].has_power(0.03, 0.001, power)]
    assert max(claimed) == pytest.approx(found, abs=0.1)


def test_few_cells_stand_for_themselves():
    (test, *_) = moderated.tests([[0.01, 0.02, 0.03]] * (moderated.FEW_CELLS - 1))
    assert test.p == pytest.approx(stats.ttest_1samp([0.01, 0.02, 0.03], 0).pvalue)
    assert test.freedom == 2


def test_cells_with_different_numbers_of_processes_go_together():
    rng = np.random.default_rng(5)
    found = moderated.tests([rng.normal(0, 0.01, 2 + number % 4) for number in range(200)])
    assert all(0 <= test.p <= 1 for test in found)


def test_a_cell_with_one_process_or_none_has_no_test():
    assert moderated.tests([[0.1], [], [0.1, 0.2]])[:2] == [None, None]


def test_differences_without_any_scatter_are_certain():
    zero, more = moderated.tests([[0.0, 0.0], [0.1, 0.1]])
    assert (zero.p, more.p) == (1.0, 0.0)
    assert zero.has_power(0.01, 0.001, 0.9)


def test_a_few_cells_of_one_variance_know_it_no_better_than_their_differences_say():
    rng, level = np.random.default_rng(6), 0.01
    tests = [test for _ in range(500) for test in moderated.tests(rng.normal(0, 0.01, (6, PROCESSES)))]
    assert max(test.freedom for test in tests) <= 6 * (PROCESSES - 1)
    alarms = sum(test.p <= level for test in tests)
    assert stats.binomtest(alarms, len(tests), 1.5 * level, alternative="greater").pvalue > 1e-3


def test_a_very_precise_cell_has_the_power_to_show_a_large_difference():
    """Where scipy's noncentral t is no number."""
    assert moderated.Test(0.0, 1.0, 20, 1.0).has_power(48.0, 0.0005, 0.8)
    assert not moderated.Test(0.0, 1.0, 20, 1.0).has_power(1.0, 0.0005, 0.8)


def test_what_has_no_variance_at_all_has_no_noise_if_it_is_exact_and_else_that_of_the_others():
    rng = np.random.default_rng(1)
    differences = [*rng.normal(0, 0.05, (10, 5)), np.full(5, 0.05)]
    (*_, exact), (*_, timed) = (moderated.tests(differences, is_exact) for is_exact in (True, False))
    assert exact.p == 0.0 and exact.mean == pytest.approx(0.05)
    assert timed.p > 0.001
