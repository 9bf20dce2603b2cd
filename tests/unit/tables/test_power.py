"""Counts of what each rule catches, and of false alarms of runs that are right."""

import math

import pytest
from rich.console import Console

from timmgate.report import calibration as shown_calibration
from timmgate.report import power as shown_power
from timmgate.tables.studies import calibration, power

MODE = {"device": "cpu", "mode": "m", "model": "a", "weights": "random", "precision": "float32", "training": False}


def trial(effect, strict="fail", dynamo=True, cosine=False, family="values", **mode):
    found = {"fault": "fault:x", "family": family, "effect": effect, "strict": strict, "dynamo": dynamo, "cosine": cosine}
    return MODE | mode | found


def counts(*trials, family="all", low=0.0, high=math.inf, **mode):
    """By rule, (caught, applicable) of the row of the summary."""
    wanted = {"family": family, "effect_from": low, "effect_below": high, **mode}
    rows = power.summary(power.table(trials)).to_pylist()
    chosen = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    assert len(chosen) == len(power.RULES)
    return {row["rule"]: (row["caught"], row["applicable"]) for row in chosen}


def test_a_fault_is_caught_by_what_finds_it_wrong_and_an_undecided_cell_has_not_caught_it():
    trials = [trial(5.0), trial(5.0, strict="undecided", dynamo=False), trial(5.0, strict="pass", cosine=True)]
    assert counts(*trials) == {"strict": (1, 3), "dynamo": (2, 3), "cosine": (1, 3)}


def test_an_equivalent_mutant_is_not_counted():
    assert counts(trial(0.0, strict="pass", dynamo=False), trial(2.0))["strict"] == (1, 1)


@pytest.mark.parametrize(("low", "applicable"), [(0.0, 4), (1.0, 3), (3.0, 2)])
def test_faults_are_counted_from_an_effect_on(low, applicable):
    trials = [trial(effect) for effect in (0.5, 1.0, 3.0, math.inf)]
    assert counts(*trials, low=low)["strict"] == (applicable, applicable)


def test_the_curve_has_every_fault_in_one_range_of_effect():
    trials = [trial(effect, strict="fail" if effect > 2 else "pass") for effect in (0.1, 0.5, 2.0, 50.0, 5000.0, math.inf)]
    ranges = [pair for pair in zip(power.CURVE, power.CURVE[1:], strict=False) if pair != (0.0, math.inf)]
    found = [counts(*trials, low=low, high=high)["strict"] for low, high in ranges]
    assert sum(applicable for _, applicable in found) == len(trials)
    assert found[-1] == (2, 2) and found[0] == (0, 1)


def test_kinds_of_modes_weights_and_families_are_apart():
    trials = [trial(5.0), trial(5.0, weights="random-timm", strict="pass"), trial(5.0, family="state", training=True)]
    assert counts(*trials, weights="random", training=False)["strict"] == (1, 1)
    assert counts(*trials, weights="random-timm")["strict"] == (0, 1)
    assert counts(*trials, training=True, family="state")["strict"] == (1, 1)


def test_the_interval_is_wilsons():
    (row,) = [
        row
        for row in power.summary(power.table([trial(5.0)] * 10)).to_pylist()
        if (row["family"], row["effect_from"], row["effect_below"], row["rule"]) == ("all", 0.0, math.inf, "strict")
    ]
    assert (row["share"], row["share_ci_high"]) == (1.0, pytest.approx(1.0))
    assert row["share_ci_low"] == pytest.approx(10 / (10 + 1.959964**2), rel=1e-4)


def test_what_is_printed_has_every_kind_and_rule():
    console = Console(record=True, width=120, file=None)
    shown_power.show(power.summary(power.table([trial(5.0), trial(0.5, dynamo=False)])), console)
    text = console.export_text()
    assert "2 of 2, 100.0%" in text and "1 of 2, 50.0%" in text and "effect of 3 or more" in text


def healthy(strict="pass", ratio=1.0, run="halves", model="a", seed=1, **mode):
    return MODE | mode | {"model": model, "seed": seed, "run": run, "ratio": ratio, "strict": strict, "multiplier": 2.5}


def test_false_alarms_are_counted_by_run_and_bounded_by_pairs_of_model_and_seed():
    runs = [healthy("fail"), healthy("fail"), healthy(seed=2), healthy("undecided", model="b"), healthy(run="threads")]
    by_run = {row["run"]: row for row in calibration.summary(calibration.table(runs)).to_pylist()}
    row = by_run["halves"]
    assert (row["runs"], row["clusters"], row["false_alarms"], row["undecided"]) == (4, 3, 2, 1)
    assert 1 / 3 < row["false_alarms_ci_high"] < 1
    assert (by_run["threads"]["runs"], by_run["threads"]["false_alarms"]) == (1, 0)


def test_ratios_have_their_quantiles():
    rows = calibration.summary(calibration.table([healthy(ratio=float(number)) for number in range(101)])).to_pylist()
    assert [rows[0][name] for name in ("ratio_p50", "ratio_p95", "ratio_p99", "ratio_max")] == [50.0, 95.0, 99.0, 100.0]
    console = Console(record=True, width=120, file=None)
    shown_calibration.show(calibration.summary(calibration.table([healthy()])), console)
    assert "halves" in console.export_text()
