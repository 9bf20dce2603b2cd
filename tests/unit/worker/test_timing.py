"""The intervals cover what they promise, and sampling and warm-up begin and end where they should.

Durations come from machines that exist on paper only: their clock is the sum of what they returned.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from itertools import count, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from timmgate.supervisor.speedup import estimate_samples, geometric_mean
from timmgate.worker import timing
from timmgate.worker.timing import Plan, Sample, collect, warm_up

CUDA = Plan(target=0.01, limit_s=15.0)
CPU = Plan(target=0.02, limit_s=15.0)
ENDLESS = Plan(target=0.0, limit_s=math.inf)


class Machine:
    """Runs iterations of `eager_s` seconds, compiled ones `speedup` times as fast, with relative `noise`.

    Iterations become slower linearly: after `drift_over` of them by a share of `drift`. One in 1 / `outliers` takes 1.5
    times as long.
    """

    def __init__(self, seed=0, speedup=1.0, noise=0.0, drift=0.0, drift_over=20, outliers=0.0, eager_s=0.05):
        self.random = np.random.default_rng(seed)
        self.nominal = {"E": eager_s, "C": eager_s / speedup}
        self.noise, self.drift, self.outliers = noise, drift / drift_over, outliers
        self.iterations: list[tuple[str, float]] = []

    def clock(self) -> float:
        return sum(duration for _, duration in self.iterations)

    def eager(self) -> float:
        return self._iterate("E")

    def compiled(self) -> float:
        return self._iterate("C")

    def collect(self, plan: Plan, seed: int = 0) -> list[Sample]:
        return collect(self.eager, self.compiled, plan, seed, self.clock)

    def _iterate(self, side: str) -> float:
        factor = math.exp(self.random.normal(0, self.noise)) * (1 + self.drift * len(self.iterations))
        factor *= 1.5 if self.random.random() < self.outliers else 1.0
        self.iterations.append((side, self.nominal[side] * factor))
        return self.iterations[-1][1]


def samples_of(log_ratios: Iterable[float], eager_s: float = 0.05) -> list[Sample]:
    """Samples with these logarithms of the speedup, eager being perfectly steady."""
    return [
        Sample(number // 2, (number // 2 + number) % 2 == 0, eager_s, eager_s / math.exp(ratio))
        for number, ratio in enumerate(log_ratios)
    ]


def collect_ratios(log_ratios: Iterable[float], plan: Plan) -> list[Sample]:
    """Collect from an eager side whose iterations have these logarithms of the speedup over a steady compiled one."""
    durations = (0.05 * math.exp(ratio) for ratio in log_ratios)
    return collect(lambda: next(durations), lambda: 0.05, plan, seed=0, clock=lambda: 0.0)


def half_width(samples: list[Sample]) -> float:
    found = estimate_samples(samples, seed=0)
    return math.log(found.speedup_ci_high / found.speedup_ci_low) / 2


def test_equal_sides_are_covered_as_often_as_promised_and_hardly_ever_told_apart():
    runs = 400
    found = [
        estimate_samples(Machine(seed=run, noise=0.015).collect((CUDA, CPU)[run % 2], seed=run), seed=run)
        for run in range(runs)
    ]
    covered = sum(one.speedup_ci_low <= 1.0 <= one.speedup_ci_high for one in found)
    told_apart = sum(one.verdict in ("faster", "slower") for one in found)
    assert stats.binom.ppf(0.01, runs, 0.95) <= covered < runs
    assert told_apart <= 0.05 * runs


@pytest.mark.parametrize("noise", [{"noise": 0.015, "outliers": 0.05}, {"noise": 0.01, "drift": 0.2}])
def test_ten_samples_with_outliers_or_drift_are_covered_as_well(noise):
    runs = 150
    found = [estimate_samples(Machine(seed=run, **noise).collect(replace(CPU, target=1.0)), seed=run) for run in range(runs)]
    assert {one.samples for one in found} == {10}
    assert sum(one.speedup_ci_low <= 1.0 <= one.speedup_ci_high for one in found) >= stats.binom.ppf(0.01, runs, 0.95)


@pytest.mark.parametrize(("speedup", "verdict"), [(1 / 1.03, "slower"), (1.03, "faster")])
def test_a_difference_of_three_percent_is_seen_on_a_quiet_machine(speedup, verdict):
    runs = 40
    machines = [Machine(seed=run, noise=0.005, speedup=speedup) for run in range(runs)]
    verdicts = [estimate_samples(machine.collect(CPU, seed), seed).verdict for seed, machine in enumerate(machines)]
    assert verdicts.count(verdict) >= 0.95 * runs


@pytest.mark.parametrize("drift", [0.1, 0.3, -0.2])
def test_a_machine_that_slows_down_favours_neither_side(drift):
    for seed in range(2):
        quiet = estimate_samples(Machine(drift=drift).collect(CPU, seed), seed)
        assert quiet.speedup == pytest.approx(1.0, abs=0.005)
    noisy = [
        estimate_samples(Machine(seed, noise=0.005, drift=drift).collect(CPU, seed), seed).speedup for seed in range(40)
    ]
    assert np.mean(noisy) == pytest.approx(1.0, abs=0.002)


def test_blocks_alternate_and_their_pairs_are_neighbours_in_time():
    machine = Machine(noise=0.01)
    samples = machine.collect(replace(CPU, target=1.0))
    sides = "".join(side for side, _ in machine.iterations)
    assert sides in (("ECCECEEC" * 3)[:20], ("CEECECCE" * 3)[:20])
    assert len(sides) == 2 * len(samples) == 20
    for number, sample in enumerate(samples):
        pair = machine.iterations[2 * number : 2 * number + 2]
        assert sample == Sample(number // 2, pair[0][0] == "E", dict(pair)["E"], dict(pair)["C"])


def test_the_seed_draws_the_kind_of_the_first_block():
    first = {seed: Machine().collect(CPU, seed)[0].eager_first for seed in range(20)}
    assert set(first.values()) == {True, False}
    assert first == {seed: Machine().collect(CPU, seed)[0].eager_first for seed in range(20)}


def test_a_perfect_machine_is_sampled_ten_times_and_for_half_a_second():
    assert len(Machine(eager_s=0.05).collect(CPU)) == 10
    assert len(Machine(eager_s=1 / 512).collect(CPU)) == 128


def test_sampling_stops_once_the_interval_is_as_narrow_as_asked():
    loose, tight = (Machine(seed=3, noise=0.02).collect(Plan(target, math.inf)) for target in (0.03, 0.01))
    assert 10 <= len(loose) < len(tight) < timing.MAX_SAMPLES
    assert half_width(loose) <= 0.03
    assert half_width(tight) <= 0.01 < half_width(tight[: len(tight) // 2])


def test_sampling_stops_at_the_limit_but_finishes_its_block():
    assert len(Machine(seed=1, noise=0.3, eager_s=0.99).collect(replace(CPU, limit_s=1.0))) == 2
    machine = Machine(seed=1, noise=0.1, eager_s=0.99)
    assert len(machine.collect(CPU)) % 2 == 0
    assert 15.0 <= machine.clock() < 15.0 + 4 * 1.5
    assert len(Machine().collect(replace(CPU, limit_s=0.0))) == 2


def test_sampling_stops_at_the_largest_number_of_samples(monkeypatch):
    looks, interval = [], timing.order_interval
    monkeypatch.setattr(timing, "order_interval", lambda values: looks.append(len(values)) or interval(values))
    narrowing = ((-1) ** number * 0.5 / (number + 1) for number in count())
    assert len(collect_ratios(narrowing, ENDLESS)) == timing.MAX_SAMPLES
    assert looks[0] == timing.MIN_SAMPLES
    assert len(looks) <= 15
    assert all(later >= 1.25 * earlier for earlier, later in pairwise(looks))


def test_sampling_stops_where_more_samples_do_not_help():
    widening = ((-1) ** number * 0.01 * (number + 1) for number in count())
    assert 40 <= len(collect_ratios(widening, ENDLESS)) <= 50


def test_a_model_is_warm_when_two_windows_agree():
    assert warm_up(lambda: 0.05) == 6
    assert warm_up(lambda: 1 / 1024) == 2 * 103


@pytest.mark.parametrize("cold", [1, 4, 7, 12, 20])
def test_a_model_that_becomes_faster_is_run_until_it_no_longer_does(cold):
    durations = (0.04 * max(1.0, 1.1 ** (cold - number)) for number in count())
    assert cold < warm_up(lambda: next(durations)) <= cold + 9


def test_one_slow_iteration_does_not_keep_a_model_cold():
    durations = iter([3.0, *[0.05] * 10])
    assert warm_up(lambda: next(durations)) == 6


def test_warming_up_ends_for_a_model_that_never_settles():
    short = (0.05 if number // 3 % 2 else 0.1 for number in count())
    assert warm_up(lambda: next(short)) == 3 * timing.WARMUP_WINDOWS
    long = (1.2 * 0.9**number for number in count())
    assert warm_up(lambda: next(long)) == 18
    assert warm_up(lambda: 1.2) == 6
    assert warm_up(lambda: 4.0) == 3


def test_outliers_are_kept_and_do_not_move_the_estimate():
    slow = iter([0.05] * 4 + [5.0] + [0.05] * 5)
    samples = collect(lambda: next(slow), lambda: 0.05, CPU, seed=0, clock=lambda: 0.0)
    assert [sample.eager_s for sample in samples].count(5.0) == 1
    found = estimate_samples(samples, seed=0)
    assert (found.samples, found.speedup, found.speedup_ci_low, found.speedup_ci_high) == (10, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("samples", [2, 4, 10, 40])
@pytest.mark.parametrize("ratios", [(0.5, 0.5), (0.0, 0.0)])
def test_samples_that_are_all_equal_have_an_interval_of_no_width(samples, ratios):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimate_samples(samples_of(ratios * (samples // 2)), seed=0)
    assert found.speedup_ci_low == found.speedup == found.speedup_ci_high == pytest.approx(math.exp(ratios[0]))
    assert found.noise_floor == 0.01


def test_equal_middle_samples_leave_an_interval():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimate_samples(samples_of([-0.3, -0.2, -0.1, 0.0, 0.0, 0.0, 0.0, 0.1, 0.2, 0.3]), seed=0)
    assert found.speedup_ci_low <= math.exp(-0.2) < found.speedup == 1.0 < math.exp(0.2) <= found.speedup_ci_high


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((0.02, 0.03), "faster"),
        ((-0.02, -0.03), "slower"),
        ((-0.004, 0.005), "same"),
        ((-0.02, 0.02), "ambiguous"),
        ((0.0, 0.02), "ambiguous"),
        ((-0.02, 0.0), "ambiguous"),
        ((0.008, 0.013), "ambiguous"),
    ],
)
def test_the_verdict_holds_the_whole_interval_against_the_floor(ratios, verdict):
    assert estimate_samples(samples_of(ratios * 10), seed=0).verdict == verdict


def test_a_handful_of_samples_has_no_verdict():
    assert [estimate_samples(samples_of([0.7] * number), seed=0).verdict for number in (2, 4, 6)] == ["ambiguous"] * 2 + [
        "faster"
    ]


def test_what_eager_differs_from_itself_raises_the_floor():
    unsteady = [
        replace(sample, eager_s=0.05 * (1.0, 1.06)[number % 2]) for number, sample in enumerate(samples_of([0.0] * 20))
    ]
    unsteady = [replace(sample, compiled_s=sample.eager_s * 1.03) for sample in unsteady]
    found = estimate_samples(unsteady, seed=0)
    assert found.noise_floor == pytest.approx(0.06, abs=0.01)
    assert (found.speedup, found.verdict) == (pytest.approx(1 / 1.03), "same")


@pytest.mark.parametrize("drift", [0.1, 0.3])
@pytest.mark.parametrize("samples", [10, 40])
def test_a_steady_drift_does_not_raise_the_floor(drift, samples):
    machine = Machine(drift=drift, drift_over=2 * samples)
    taken = [sample for _ in range(samples // 10) for sample in machine.collect(replace(CPU, target=1.0))]
    assert len(taken) == samples
    assert estimate_samples(taken, seed=0).noise_floor == pytest.approx(0.01, abs=0.002)


def test_the_same_seed_gives_the_same_estimate():
    samples = Machine(seed=5, noise=0.02).collect(CPU)
    assert estimate_samples(samples, seed=1) == estimate_samples(samples, seed=1)


@pytest.mark.parametrize("number", [0, 1, 11])
def test_samples_of_broken_blocks_are_refused(number):
    with pytest.raises(ValueError, match="blocks"):
        estimate_samples(samples_of([0.0] * number), seed=0)


DURATIONS = st.one_of(st.sampled_from([0.05, 0.051, 0.06]), st.floats(1e-5, 1e3))
PAIRS = st.lists(st.tuples(DURATIONS, DURATIONS), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS, factor=st.floats(1e-2, 1e2))
def test_the_interval_holds_the_speedup_and_a_slower_eager_scales_it(pairs, factor):
    samples = [
        Sample(number // 2, (number // 2 + number) % 2 == 0, eager_s, compiled_s)
        for number, (eager_s, compiled_s) in enumerate(pairs * 2)
    ]
    found = estimate_samples(samples, seed=0)
    scaled = estimate_samples([replace(sample, eager_s=factor * sample.eager_s) for sample in samples], seed=0)
    assert found.speedup_ci_low <= found.speedup <= found.speedup_ci_high
    assert found.noise_floor >= 0.01
    assert scaled.speedup == pytest.approx(factor * found.speedup, rel=1e-9)
    assert scaled.noise_floor == pytest.approx(found.noise_floor, rel=1e-6, abs=1e-9)


def test_the_geometric_mean_lies_within_its_interval():
    speedups = np.random.default_rng(0).lognormal(0.3, 0.2, 50)
    value, low, high = geometric_mean(list(speedups), seed=0)
    assert value == pytest.approx(stats.gmean(speedups))
    assert low < value < high
    assert math.log(high / low) == pytest.approx(2 * 1.96 * np.log(speedups).std() / 50**0.5, rel=0.2)


def test_the_geometric_means_interval_covers_what_it_promises():
    runs, models = 200, 40
    drawn = np.random.default_rng(1).lognormal(0.3, 0.2, (runs, models))
    intervals = [geometric_mean(list(speedups), seed)[1:] for seed, speedups in enumerate(drawn)]
    assert stats.binom.ppf(0.001, runs, 0.95) <= sum(low <= math.exp(0.3) <= high for low, high in intervals) < runs


def test_the_geometric_mean_can_be_clipped_from_below():
    assert geometric_mean([0.5, 2.0], seed=0)[0] == pytest.approx(1.0)
    value, low, high = geometric_mean([0.5, 2.0], seed=0, floor=1.0)
    assert (value, low, high) == pytest.approx((math.sqrt(2), 1.0, 2.0))
    assert geometric_mean([0.5, 0.7], seed=0, floor=1.0) == (1.0, 1.0, 1.0)


def test_the_geometric_mean_of_one_model_is_its_speedup_and_of_none_an_error():
    assert geometric_mean([1.7], seed=0) == (1.7, 1.7, 1.7)
    assert geometric_mean([1.7] * 3, seed=0) == (1.7, 1.7, 1.7)
    with pytest.raises(ValueError, match="no speedups"):
        geometric_mean([], seed=0)


def processes_of(rng, number, between, within=0.01, samples=40):
    """Samples of some processes, whose speedup of 2 scatters by `between`."""
    found = []
    for process in range(number):
        ratios = math.log(2) + rng.normal(0, between) + rng.normal(0, within, samples)
        found += [replace(sample, process=process) for sample in samples_of(ratios)]
    return found


def test_the_interval_of_several_processes_has_the_truth_and_that_of_one_has_not():
    rng, shares = np.random.default_rng(0), {}
    for number in (1, 5):
        found = [estimate_samples(processes_of(rng, number, between=0.01), seed=run) for run in range(100)]
        shares[number] = sum(each.speedup_ci_low <= 2 <= each.speedup_ci_high for each in found)
    assert shares[1] < 60
    assert shares[5] >= 90


def test_processes_that_happen_to_agree_are_no_better_known_than_their_samples():
    samples = processes_of(np.random.default_rng(1), 2, between=0.0, within=0.02)
    medians = [np.median([math.log(s.eager_s / s.compiled_s) for s in samples if s.process == p]) for p in (0, 1)]
    moved = [replace(s, compiled_s=s.compiled_s * math.exp(medians[s.process] - medians[0])) for s in samples]
    found, of_all = estimate_samples(moved, seed=0), estimate_samples([replace(s, process=0) for s in moved], seed=0)
    assert (found.speedup_ci_low, found.speedup_ci_high) == (of_all.speedup_ci_low, of_all.speedup_ci_high)
