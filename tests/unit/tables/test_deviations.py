"""Cells against measured tables: which figures moved, what cannot be compared, and what a quarantine covers."""

import json
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import merged
from timmgate.config import settings
from timmgate.core.errors import ConfigError
from timmgate.core.spec import PROTOCOL
from timmgate.core.thresholds import Thresholds
from timmgate.report import ci
from timmgate.tables import parquet
from timmgate.tables.gate import baseline, confirmation, deviations, judgement, measured_baseline, quarantine
from timmgate.tables.gate.baseline import Measured
from timmgate.tables.gate.outcome import ExitCode
from timmgate.tables.history import store

BOTH = ("accuracy", "performance")
FIGURES = {
    "eager_ms": 20.0,
    "compiled_ms": 10.0,
    "compile_cold_cpu_s": 30.0,
    "compiled_allocated_bytes": 10**9,
    "graph_breaks": 0,
}
CONFIG = yaml.safe_load((Path(__file__).parents[3] / "config" / "config.yaml").read_text())


def cell(model, **columns):
    ran = {"accuracy": "pass", "performance": "pass", "requested": True, "device_name": "one", "performance_batch_size": 32}
    about = {"device": "cpu", "build": "default", "mode": "inference", "model": model}
    return {**about, **ran, **FIGURES, **columns}


@pytest.fixture
def judged(tmp_path):
    """Judges cells against others, all of them as `cell` makes them; the classes that are not a pass, by model."""

    def judge(now, before, fresh=(), times=5):
        pq.write_table(merged.cells(before), tmp_path / "cells.parquet")
        measured, models = Measured("folder", str(tmp_path / "cells.parquet")), {"inference": [row["model"] for row in now]}
        found = judgement.against(merged.cells(now), BOTH, {}, measured, vars(Thresholds()), models, fresh, times)
        judge.rows = judgement.table(found).to_pylist()
        judge.suspects = judgement.suspects(merged.cells(now), measured, vars(Thresholds()), times)
        return {(row["model"], row["class"]) for row in judge.rows if row["class"] != "pass"}

    return judge


def many(rng, spread=0.005, **columns):
    return [cell(f"m{each}", compiled_ms=10 * rng.normal(1, spread), **columns) for each in range(40)]


def test_the_same_again_is_as_expected(judged):
    assert judged([cell("a"), cell("b")], [cell("a"), cell("b")]) == set()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"compiled_ms": 10.5}, "slower"),
        ({"compiled_ms": 9.5}, "faster"),
        ({"compile_cold_cpu_s": 34.0}, "slower_compile"),
        ({"compile_cold_cpu_s": 26.0}, "faster_compile"),
        ({"compiled_allocated_bytes": 1_060_000_000}, "more_memory"),
        ({"compiled_allocated_bytes": 940_000_000}, "less_memory"),
        ({"graph_breaks": 1}, "more_graph_breaks"),
    ],
)
def test_a_figure_that_moved_has_a_row(judged, change, name):
    assert judged([cell("a", **change), cell("b")], [cell("a"), cell("b")]) == {("a", name)}
    assert judgement.failed(judged.rows) == (name in judgement.FAILING)


def test_each_build_is_held_against_itself(judged):
    before = [cell("a"), cell("a", build="nightly", compiled_ms=20.0)]
    now = [cell("a"), cell("a", build="nightly", compiled_ms=22.0, accuracy="fail_accuracy")]
    assert judged(now, before) == {("a", "new_failure"), ("a", "slower")}
    assert {row["build"] for row in judged.rows if row["class"] != "pass"} == {"nightly"}
    assert [reason for reason in judgement.reasons(judged.rows) if reason.startswith("slower")] == [
        "slower nightly/inference/a performance"
    ]


def test_a_build_that_the_baseline_lacks_is_not_compared(judged):
    assert judged([cell("a", build="nightly")], [cell("a")]) == {("a", "not_comparable")}


def test_every_build_is_held_against_the_one_that_is_named(tmp_path):
    now = [cell("a"), cell("a", build="nightly", compiled_ms=11.0)]
    pq.write_table(merged.cells(now), tmp_path / "cells.parquet")
    measured = Measured("build", str(tmp_path / "cells.parquet"), "default")
    found = judgement.against(merged.cells(now), BOTH, {}, measured, vars(Thresholds()), {"inference": ["a"]})
    assert {(row["build"], row["class"]) for row in found if row["class"] != "pass"} == {("nightly", "slower")}


@pytest.mark.parametrize(
    ("options", "found"),
    [({"inductor_config": {"max_autotune": True}}, "slower"), ({"channels_last": True}, "not_comparable")],
)
def test_builds_may_differ_in_their_settings_and_not_in_the_mode(options, found, tmp_path):
    plain = {"inductor_config": {}, "channels_last": False}
    one = cell("a", options=json.dumps(plain))
    two = cell("a", build="nightly", compiled_ms=11.0, options=json.dumps(plain | options))
    pq.write_table(merged.cells([one, two]), tmp_path / "cells.parquet")
    measured = Measured("build", str(tmp_path / "cells.parquet"), "default")
    judged = judgement.against(merged.cells([two]), BOTH, {}, measured, vars(Thresholds()), {"inference": ["a"]})
    assert {row["class"] for row in judged if row["class"] != "pass"} == {found}


def test_a_faster_machine_hides_no_slowdown_in_a_few_cells(judged):
    """Eager of all is faster by 5 %, and compiled of none."""
    before = [cell(f"m{each}") for each in range(8)]
    found = judged([{**row, "eager_ms": 19.0} for row in before], before)
    assert {name for model, name in found if model} == {"slower"} and len([model for model, _ in found if model]) == 8


@pytest.mark.parametrize(
    "change", [{"compiled_ms": 10.2}, {"compile_cold_cpu_s": 32.0}, {"compiled_allocated_bytes": 1_040_000_000}]
)
def test_a_move_within_the_threshold_is_none(judged, change):
    assert judged([cell("a", **change)], [cell("a")]) == set()


def test_where_most_cells_moved_much_it_is_said_what_is_taken_for_noise(judged):
    """Else three of four cells that are slower by up to 40 % are as expected, without a word."""
    before, rng = [cell(f"m{each}") for each in range(40)], np.random.default_rng(1)
    now = [{**row, "compiled_ms": 10 * (1 + 0.4 * rng.random())} if number % 4 else row for number, row in enumerate(before)]
    assert (None, "noisy") in judged(now, before)
    assert "is taken for noise" in next(row["reason"] for row in judged.rows if row["class"] == "noisy")


def test_the_scatter_of_all_cells_is_the_noise(judged):
    rng = np.random.default_rng(1337)
    quiet, loud = many(rng), many(rng, 0.05)
    assert judged([{**quiet[0], "compiled_ms": 10.6}, *many(rng)[1:]], many(rng)) == {("m0", "slower")}
    assert len(judged(loud, many(rng, 0.05))) <= 1


def test_where_eager_alone_became_faster_compiled_is_not_slower(judged):
    assert judged([cell("a", eager_ms=18.0), cell("b")], [cell("a"), cell("b")]) == {("a", "eager_faster")}
    assert not judgement.failed(judged.rows)
    both = cell("a", eager_ms=18.0, compiled_ms=11.0)
    assert judged([both, cell("b")], [cell("a"), cell("b")]) == {("a", "slower")}


def test_a_process_that_is_slow_in_eager_and_compiled_alike_is_no_slower_cell(judged):
    slow = [cell(f"m{each}", eager_ms=20 * factor, compiled_ms=10 * factor) for each, factor in enumerate((1.0, 1.05, 0.95))]
    assert judged(slow, [cell(f"m{each}") for each in range(3)]) == set()


def test_a_cell_that_scatters_more_than_the_others_is_held_against_its_own_scatter():
    levels = [9, 11, 9, 11, 9, 11, 9, 11]
    before = {("inference", name): [cell(name) for _ in levels] for name in ("a", *map(str, range(20)))}
    before["inference", "a"] = [cell("a", compiled_allocated_bytes=level * 10**8) for level in levels]
    now = [cell("a", compiled_allocated_bytes=11 * 10**8), *(cell(str(each)) for each in range(20))]
    known = {column: None for rows in before.values() for row in rows for column in merged.cells([row]).column_names}
    baseline = measured_baseline.Baseline({key: [known | row for row in rows] for key, rows in before.items()})
    assert list(deviations.deviations([known | row for row in now], baseline, Thresholds())) == []
    moved = known | cell("a", compiled_allocated_bytes=20 * 10**8)
    assert [row["class"] for row in deviations.deviations([moved], baseline, Thresholds())] == ["more_memory"]


def again(model, *changes):
    """Fresh processes of a cell, as `pairs` has them."""
    about = {"build": "default", "mode": "inference", "model": model, "status": "pass"}
    about |= {"batch_size": 32}
    return [{**about, **FIGURES, **change} for change in changes]


@pytest.mark.parametrize(
    ("figure", "worse", "usual", "name"),
    [
        ("compiled_ms", 11.0, 10.1, "slower"),
        ("compile_cold_cpu_s", 40.0, 31.0, "slower_compile"),
        ("compiled_allocated_bytes", 2 * 10**9, 10**9, "more_memory"),
        ("graph_breaks", 2, 0, "more_graph_breaks"),
    ],
)
def test_what_fails_the_gate_must_do_so_in_fresh_processes_too(judged, figure, worse, usual, name):
    now, before = [cell("a", **{figure: worse}), cell("b")], [cell("a"), cell("b")]
    mostly_worse = again("a", {figure: worse}, {figure: usual}, {figure: worse})
    assert judged(now, before, mostly_worse) == {("a", name)}
    assert [*judged.suspects] == ["default/inference/a"]
    assert "in 3 fresh processes" in judged.rows[-1]["reason"]
    assert judged(now, before, again("a", {figure: worse}, {figure: usual}, {figure: usual})) == {("a", "not_confirmed")}
    assert not judgement.failed(judged.rows)


def test_what_is_a_little_slower_fails_only_if_fresh_processes_are_slower_still(judged):
    now, before = [cell("a", compiled_ms=10.15), cell("b")], [cell("a"), cell("b")]
    assert judged(now, before) == set() and [*judged.suspects] == ["default/inference/a"]
    assert judged(now, before, again("a", *[{"compiled_ms": 10.3}] * 5)) == {("a", "slower")}
    assert judged(now, before, again("a", {"compiled_ms": 9.0})) == set(), "nor is it faster, or anything to be told"


def test_what_was_not_suspected_is_not_judged_by_fresh_processes(judged):
    now, before = [cell("a", graph_breaks=1)], [cell("a")]
    fresh = again("a", *[{"graph_breaks": 0, "compiled_ms": 11.0}] * 5)
    assert judged(now, before, fresh) == {("a", "not_confirmed")}


@pytest.mark.parametrize(
    ("moves", "is_settled"),
    [
        ([], False),
        ([1.02], False),
        ([1.005], True),
        ([1.016, 1.015], False),
        ([1.016, 1.016, 1.016], True),
        ([1.023, 1.023, 1.023], False),
        ([1.04, 1.04], False),
        ([1.04, 1.04, 1.04], True),
        ([1.04, 1.04, 0.9], False),
    ],
)
def test_fresh_processes_end_once_they_have_told(moves, is_settled):
    suspect = confirmation.Suspect(32, {"relative_time": confirmation.Limit(0.5, 0.02)})
    fresh = again("a", *({"compiled_ms": 10 * move} for move in moves))
    assert confirmation.is_settled(suspect, fresh, 5) == is_settled
    for change in ({"status": "OOM"}, {"batch_size": 16}):
        (failed,) = again("a", {"compiled_ms": 9.0, **change})
        assert confirmation.is_settled(suspect, [failed, *fresh], 5) == is_settled, "one that failed says nothing"
        assert confirmation.is_settled(suspect, [failed] * 3, 5), "most failed"


@pytest.mark.parametrize("unknown", [None, 0])
def test_a_figure_that_no_fresh_process_knows_is_left_as_it_was_measured(judged, unknown):
    suspect = confirmation.Suspect(32, {"compiled_allocated_bytes": confirmation.Limit(10**9, 0.05)})
    fresh = again("a", *[{"compiled_allocated_bytes": unknown}] * 3)
    assert [confirmation.is_settled(suspect, fresh[:number], 8) for number in (1, 2, 3)] == [False, False, True]
    assert judged([cell("a", compiled_allocated_bytes=2 * 10**9)], [cell("a")], fresh) == {("a", "more_memory")}
    assert "unknown in 3 fresh processes" in judged.rows[-1]["reason"]


def test_fresh_processes_that_something_else_ended_say_nothing(judged):
    lost = again("a", *[{"status": "infra_error", "compiled_ms": None}] * 3)
    assert judged([cell("a", compiled_ms=10.15), cell("b")], [cell("a"), cell("b")], lost, times=3) == set()


def test_a_count_is_settled_by_one_process_that_has_no_more():
    suspect = confirmation.Suspect(32, {"graph_breaks": confirmation.Limit(2, 0.0)})
    assert confirmation.is_settled(suspect, again("a", {"graph_breaks": 2}), 3)
    assert not confirmation.is_settled(suspect, again("a", {"graph_breaks": 3}), 3)


def test_a_suspect_is_the_same_after_json_to_the_digits_that_make_a_difference():
    suspect = confirmation.Suspect(32, {"relative_time": confirmation.Limit(0.51234567, 0.0198026)})
    kept = confirmation.Suspect.from_dict(json.loads(json.dumps(suspect.rounded())))
    assert kept == confirmation.Suspect(32, {"relative_time": confirmation.Limit(0.5123, 0.020)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": "OOM", "compiled_ms": None}, "2 of 3 fresh processes could not time it so: 2 OOM"),
        ({"batch_size": 16}, "2 of 3 fresh processes could not time it so: 2 another batch size"),
    ],
)
def test_a_cell_that_most_fresh_processes_could_not_time_again_is_a_failure(judged, change, words):
    now, before = [cell("a", compiled_ms=10.15), cell("b")], [cell("a"), cell("b")]
    assert judged(now, before, again("a", change, {}, change), times=3) == {("a", "new_failure")}
    assert len(judged.rows) == 4, "a row for each check of each cell"
    assert [words in (row["reason"] or "") for row in judged.rows] == [False, True, False, False]
    assert judged(now, before, again("a", change, {}), times=3) == set(), "one of those that are allowed is no majority"


def test_whether_it_is_eager_that_moved_is_told_by_the_fresh_processes(judged):
    """The first process had a fast eager by chance; in all that followed compiled alone is slower."""
    before = [cell(f"m{each}") for each in range(20)]
    now = [cell("m0", eager_ms=18.8, compiled_ms=10.15), *before[1:]]
    assert judged(now, before) == {("m0", "eager_faster")}
    assert judged(now, before, again("m0", *[{"compiled_ms": 10.6}] * 5)) == {("m0", "slower")}


def test_an_older_table_without_some_figures_is_compared_in_the_others(judged, tmp_path):
    now = [cell("a", compiled_ms=11.0, compiled_allocated_bytes=2 * 10**9)]
    table = merged.cells([cell("a")]).drop_columns(["compiled_allocated_bytes", "graph_breaks"])
    pq.write_table(table, tmp_path / "older.parquet")
    measured = Measured("folder", str(tmp_path / "older.parquet"))
    found = judgement.against(merged.cells(now), BOTH, {}, measured, vars(Thresholds()), {"inference": ["a"]})
    assert [row["class"] for row in found if row["class"] != "pass"] == ["slower"]


def test_figures_of_another_protocol_are_said_not_to_be_comparable(judged, tmp_path):
    pq.write_table(merged.cells([cell("a", accuracy_protocol=1, performance_protocol=1)]), tmp_path / "older.parquet")
    measured = Measured("folder", str(tmp_path / "older.parquet"))
    found = judgement.against(merged.cells([cell("a")]), BOTH, {}, measured, vars(Thresholds()), {"inference": ["a"]})
    reasons = {row["check_name"]: row["reason"] for row in found if row["class"] == "not_comparable"}
    assert reasons == {check: f"{check}_protocol is {PROTOCOL}, in the baseline 1" for check in BOTH}
    assert judgement.outcome(found) == ExitCode.WRONG_REQUEST


A = ("inference", "a")


def on_machine(slow, rng, change=0.0):
    """A cell and fresh process on a machine that is slower by `slow`, by half as much again in compiled."""
    compiled_ms = 10 * (1 + slow) ** 1.5 * (1 + change) * rng.normal(1, 0.003)
    (fresh,) = again("a", {"eager_ms": 20 * (1 + slow), "compiled_ms": compiled_ms})
    return dict.fromkeys(merged.cells([cell("a")]).column_names) | cell("a") | fresh


@pytest.fixture
def of_nights():
    """A random generator and a baseline of a cell that was measured on slow and on fast machines."""
    rng = np.random.default_rng(5)
    return rng, measured_baseline.Baseline({A: [on_machine(rng.uniform(-0.1, 0.1), rng) for _ in range(20)]})


@pytest.mark.parametrize("slow", [-0.08, 0.0, 0.08])
def test_a_machine_that_slows_compiled_more_than_eager_makes_no_cell_slower_and_hides_none(slow, of_nights):
    rng, baseline = of_nights
    for change, classes in ((0.0, []), (0.04, ["slower"]), (-0.04, ["faster"])):
        found = list(deviations.deviations([on_machine(slow, rng, change)], baseline, Thresholds()))
        assert [row["class"] for row in found] == classes
        assert all(f"{change:+.0%}"[:2] in row["reason"] and "at this speed of eager" in row["reason"] for row in found)


@pytest.mark.parametrize("slow", [-0.08, 0.0, 0.08])
def test_fresh_processes_on_a_slower_machine_tell_as_soon(slow, of_nights):
    rng, baseline = of_nights
    now, times = on_machine(-slow, rng, 0.04), 9
    suspect = confirmation.Suspect.from_dict(deviations.suspects([now], baseline, Thresholds(), times)[A].rounded())
    for change, processes, classes in ((0.0, 1, ["not_confirmed"]), (0.06, 3, ["slower"])):
        ran = [on_machine(slow, rng, change) for _ in range(processes)]
        assert [confirmation.is_settled(suspect, ran[:number], times) for number in (processes - 1, processes)] == [
            False,
            True,
        ]
        assert [row["class"] for row in deviations.deviations([now], baseline, Thresholds(), {A: ran}, times)] == classes


def test_beyond_what_eager_was_in_the_history_nothing_is_assumed(of_nights):
    """A torch whose eager is 40 % slower, and whose compiled is not, is no slower cell; nor does it hide one."""
    rng, baseline = of_nights
    of_new_torch = on_machine(0.0, rng) | {"eager_ms": 28.0}
    assert [row["class"] for row in deviations.deviations([of_new_torch], baseline, Thresholds())] == ["eager_slower"]


@pytest.mark.parametrize("measurements", [1, 2, 8])
def test_however_few_measurements_a_baseline_has_healthy_nights_pass(measurements):
    """A baseline of one run that was low by chance makes every fresh process look worse."""
    rng, red, suspected, cells, times = np.random.default_rng(2), 0, 0, 100, 8
    known = dict.fromkeys(merged.cells([cell("a")]).column_names)
    keys = [("inference", f"m{each}") for each in range(cells)]

    def timed(name):
        return {**known, **cell(name, compiled_ms=10 * rng.normal(1, 0.01))}

    for _ in range(10):
        baseline = measured_baseline.Baseline({key: [timed(key[1]) for _ in range(measurements)] for key in keys})
        now, fresh = [timed(name) for _, name in keys], {}
        for key, suspect in deviations.suspects(now, baseline, Thresholds(), times).items():
            ran = fresh[key] = []
            while len(ran) < times and not confirmation.is_settled(suspect, ran, times):
                ran += again(key[1], {"compiled_ms": 10 * rng.normal(1, 0.01)})
        suspected += len(fresh)
        red += judgement.failed(deviations.deviations(now, baseline, Thresholds(), fresh, times))
    assert red <= 2, "one in fifty"
    assert 50 <= suspected <= 200, "one in ten"


@pytest.mark.parametrize(
    ("before", "since", "held_against"), [(0, 5, 5), (0, 40, 32), (30, 10, 8), (22, 18, 16), (37, 3, 32)]
)
def test_a_cell_that_changed_for_good_is_held_against_what_it_is_since_then(before, since, held_against):
    rng = np.random.default_rng(1)
    values = [level + rng.normal(0, 0.005) for level in [0.0] * before + [0.05] * since]
    assert deviations.latest_level(values) == values[-held_against:]


def test_fresh_processes_that_failed_or_of_another_build_confirm_nothing(judged):
    now, before = [cell("a", compiled_ms=11.0)], [cell("a")]
    fresh = again(
        "a", {"status": "OOM", "compiled_ms": None}, {"build": "nightly"}, {"compiled_ms": 11.0}, {"compiled_ms": 11.0}
    )
    assert judged(now, before, fresh) == {("a", "slower")}
    assert "in 2 fresh processes" in judged.rows[-1]["reason"]


@pytest.mark.parametrize(("recurrence", "name"), [("one_off", "one_off"), ("flaky", "new_failure"), (None, "new_failure")])
def test_a_failure_that_no_fresh_process_has_does_not_fail_the_gate(judged, recurrence, name):
    now = [cell("a", accuracy="fail_accuracy", accuracy_recurrence=recurrence), cell("b")]
    assert judged(now, [cell("a"), cell("b")]) == {("a", name)}
    assert judgement.failed(judged.rows) == (name == "new_failure")


def test_a_machine_that_is_slower_in_eager_too_makes_no_cell_slower_and_is_said(judged):
    rng = np.random.default_rng(1337)
    now = [{**row, "eager_ms": 21.6, "compiled_ms": 1.08 * row["compiled_ms"]} for row in many(rng)]
    assert judged(now, many(rng)) == {(None, "eager_slower")}
    assert not judgement.failed(judged.rows)


@pytest.mark.parametrize(
    "other", [{"device_name": "two"}, {"performance_batch_size": 16}, {"weights": "pretrained"}, {"performance_threads": 4}]
)
def test_what_was_measured_in_another_way_is_said_and_not_compared(judged, other):
    (name,) = other
    assert judged([cell("a"), cell("b", compiled_ms=90.0)], [cell("a"), cell("b", **other)]) == {("b", "not_comparable")}
    assert f"in the baseline {other[name]}" in judged.rows[-1]["reason"]
    assert judgement.outcome(judged.rows) == ExitCode.AS_EXPECTED


def test_a_baseline_of_another_machine_is_a_wrong_request(judged):
    judged([cell("a"), cell("b")], [cell("a", device_name="two"), cell("b", device_name="two")])
    assert judgement.outcome(judged.rows) == ExitCode.WRONG_REQUEST
    assert "Nothing was compared" in judgement.sentence(judged.rows)


def test_cells_that_were_not_judged_make_no_request_right(judged):
    skipped = cell("b", accuracy="pass_due_to_skip", performance="pass_due_to_skip", device_name=None)
    assert judged([cell("a"), skipped], [cell("a", device_name="other"), skipped]) == {("a", "not_comparable")}
    assert judgement.outcome(judged.rows) == ExitCode.WRONG_REQUEST


@pytest.mark.parametrize("changed", [{"device_name": "other"}, {"weights": "pretrained"}, {"accuracy_protocol": 1}])
def test_a_status_that_was_measured_in_another_way_is_not_expected(judged, changed):
    failing = {"accuracy": "fail_accuracy", "weights": "random"}
    now, before = [cell("a", **failing), cell("b")], [cell("a", **{**failing, **changed}), cell("b")]
    assert {("a", "new_failure"), ("a", "not_comparable")} <= judged(now, before)
    assert judgement.outcome(judged.rows) == ExitCode.REGRESSION
    judged(now[:1], before[:1])
    alone = [row for row in judged.rows if row["check_name"] == "accuracy"]
    assert judgement.outcome(alone) == ExitCode.WRONG_REQUEST


def test_what_failed_in_another_way_there_too_makes_no_baseline_comparable(judged):
    """One that runs out of memory on both machines is compared no more than the others."""
    failing = {"performance": "OOM"} | dict.fromkeys(FIGURES)
    now, before = [cell("a", **failing), cell("b")], [cell(model, device_name="other") for model in "ab"]
    before[0] |= failing
    judged(now, before)
    assert judgement.outcome(judged.rows) == ExitCode.WRONG_REQUEST


def test_protocols_of_the_checks_are_their_own(judged):
    failing = {"performance": "OOM", "performance_protocol": 3} | dict.fromkeys(FIGURES)
    now = [cell("a", accuracy_protocol=4, **failing)]
    found = judged(now, [cell("a", accuracy_protocol=5, **failing)])
    assert found == {("a", "expected_failure"), ("a", "not_comparable")}


def test_a_count_that_moved_takes_no_place_of_a_timing_that_may_be_chance(judged):
    before = [cell(f"m{each}") for each in range(100)]
    now = [cell(f"m{each}", graph_breaks=1) for each in range(20)]
    now += [cell(f"m{each}", compiled_ms=10.4 if each < 25 else 10.0) for each in range(20, 100)]
    judged(now, before)
    assert {f"default/inference/m{each}" for each in range(20, 25)} <= {*judged.suspects}


def test_a_baseline_of_accuracy_alone_is_a_baseline(judged):
    untimed = dict.fromkeys(FIGURES) | {"performance": None}
    judged([cell("a"), cell("b")], [cell("a", **untimed), cell("b", **untimed)])
    assert judgement.outcome(judged.rows) == ExitCode.AS_EXPECTED


def test_a_faster_eager_hides_no_compiled_that_is_slower_by_itself(judged):
    rng = np.random.default_rng(3)
    before = many(rng, 0.003)
    now = [cell("m0", eager_ms=18.0, compiled_ms=10.5), *before[1:]]
    assert ("m0", "slower") in judged(now, before)
    assert ("m0", "slower") in judged(now, before, again("m0", *[{"eager_ms": 18.0, "compiled_ms": 10.5}] * 8), times=8)


def test_on_an_accelerator_threads_say_nothing_of_times_but_of_compiling(judged):
    on_gpu = {"device": "cuda", "performance_threads": 4}
    now = [cell("a", **on_gpu, compiled_ms=11.0, compile_cold_cpu_s=60.0)]
    assert judged(now, [cell("a", **on_gpu | {"performance_threads": 8})]) == {("a", "slower")}
    assert judged([cell("a", performance_threads=4)], [cell("a", performance_threads=8)]) == {("a", "not_comparable")}


def test_a_figure_that_is_not_known_any_more_is_said_and_makes_no_request_wrong(judged):
    assert judged([cell("a", compiled_allocated_bytes=None)], [cell("a")]) == {("a", "not_comparable")}
    (row,) = [row for row in judged.rows if row["class"] == "not_comparable"]
    assert row["cause"] == "compiled_allocated_bytes" and judgement.outcome(judged.rows) == ExitCode.AS_EXPECTED


def test_where_very_many_got_worse_those_that_did_most_are_timed_again(judged):
    before = [cell(f"m{each}") for each in range(200)]
    now = [cell(f"m{each}", compiled_ms=11 + each / 100) for each in range(200)]
    judged(now, before)
    assert [*judged.suspects] == [f"default/inference/m{each}" for each in range(199, 159, -1)]


def test_statuses_of_the_baseline_are_what_is_expected(judged):
    before = [cell("a", accuracy="fail_accuracy"), cell("b"), cell("gone")]
    now = [cell("a", accuracy="fail_accuracy"), cell("b", performance="OOM"), cell("new")]
    assert judged(now, before) == {("a", "expected_failure"), ("b", "new_failure"), ("new", "not_comparable")}


def night(number):
    return datetime(2026, 11, 1, 2, tzinfo=timezone.utc) + timedelta(days=number)


def of_night(number, **columns):
    started = {
        f"{check}_{name}": value for check in BOTH for name, value in (("started_at", night(number)), ("identity", "i"))
    }
    return cell("a", **started, **columns)


def test_of_a_history_the_last_comparable_measurements_but_this_one_are_the_baseline(tmp_path):
    for number, ms in enumerate([99.0, 10.0, 9.8, 10.0, 10.4, 9.9, 10.0, 9.8, 10.1, 10.0, 9.9, 11.0]):
        store.record(merged.cells([of_night(number, compiled_ms=ms)]), tmp_path, night(number))
    now = merged.cells([of_night(11, compiled_ms=11.0)])
    before = measured_baseline.load(Measured("history", str(tmp_path)), now)
    assert len(before.rows["inference", "a"]) == 11
    (row,) = deviations.deviations(now.to_pylist(), before, Thresholds())
    assert (row["class"], row["reason"]) == (
        "slower",
        "relative_time 0.55, +10.0% against the baseline: compiled_ms 11, eager_ms 20",
    )
    run = sorted(path.stem for path in tmp_path.rglob("*.parquet"))[0]
    (row,) = deviations.deviations(
        now.to_pylist(), measured_baseline.load(Measured("history", str(tmp_path), run), now), Thresholds()
    )
    assert row["class"] == "faster"


def test_a_timing_counts_once_although_accuracy_was_measured_after_it(tmp_path):
    store.record(merged.cells([of_night(0)]), tmp_path, night(0))
    accuracy_alone = {**of_night(0), "accuracy_started_at": night(1), "accuracy": "fail_accuracy"}
    store.record(merged.cells([accuracy_alone]), tmp_path, night(1))
    now = merged.cells([of_night(5)])
    before = measured_baseline.load(Measured("history", str(tmp_path)), now)
    found = deviations.compare(now.to_pylist(), before)
    assert found.variance["relative_time"] == {("inference", "a"): deviations.variance_of_median(1)}
    assert before.expectations({"inference": ["a"]})["inference"]["a"].accuracy == "fail_accuracy"


def test_of_an_entry_the_check_that_is_still_the_current_one_is_left_out_and_the_other_counts(tmp_path):
    store.record(merged.cells([of_night(0)]), tmp_path, night(0))
    timed_anew = merged.cells([{**of_night(0), "performance_started_at": night(1), "compiled_ms": 11.0}])
    before = measured_baseline.load(Measured("history", str(tmp_path)), timed_anew)
    (row,) = deviations.deviations(timed_anew.to_pylist(), before, Thresholds())
    assert row["class"] == "slower"


def test_a_timing_alone_does_not_repeat_what_accuracy_was(tmp_path):
    """Else one failure would be two in succession, and so expected."""
    for number, status in enumerate(["pass", "pass", "fail_accuracy"]):
        store.record(merged.cells([of_night(number, accuracy=status)]), tmp_path, night(number))
    timed = {"performance_started_at": night(3), "accuracy_started_at": night(2), "accuracy": "fail_accuracy"}
    store.record(merged.cells([{**of_night(3), **timed}]), tmp_path, night(3))
    before = measured_baseline.load(Measured("history", str(tmp_path)), merged.cells([of_night(9)]))
    assert before.expectations({"inference": ["a"]})["inference"]["a"].accuracy == "pass"


@pytest.mark.parametrize("accuracy_alone", [False, True])
def test_of_a_history_that_another_machine_adds_to_only_ones_own_nights_count(tmp_path, accuracy_alone):
    """There the cell fails and takes half as long; here it gets slower."""
    for number in range(4):
        store.record(merged.cells([of_night(number)]), tmp_path, night(number))
        elsewhere = of_night(number + 0.5, device_name="other", compiled_ms=5.0, accuracy="fail_accuracy")
        untimed = dict.fromkeys((*FIGURES, "performance", "performance_started_at"))
        store.record(merged.cells([elsewhere | (untimed if accuracy_alone else {})]), tmp_path, night(number))
    now = merged.cells([of_night(9, compiled_ms=11.0)])
    before = measured_baseline.load(Measured("history", str(tmp_path)), now)
    assert before.expectations({"inference": ["a"]})["inference"]["a"].accuracy == "pass"
    found = deviations.compare(now.to_pylist(), before)
    assert found.variance["relative_time"] == {("inference", "a"): deviations.variance_of_median(4)}
    assert [row["class"] for row in deviations.deviations(now.to_pylist(), before, Thresholds())] == ["slower"]


def test_a_measurement_in_another_way_in_between_is_not_the_baseline(tmp_path):
    for number, batch in enumerate([32, 64]):
        columns = {"performance_batch_size": batch, "compiled_ms": 10.0 * batch / 32}
        store.record(merged.cells([of_night(number, **columns)]), tmp_path, night(number))
    now = merged.cells([of_night(5)])
    assert (
        list(
            deviations.deviations(
                now.to_pylist(), measured_baseline.load(Measured("history", str(tmp_path)), now), Thresholds()
            )
        )
        == []
    )


@pytest.mark.parametrize(("nights", "expected"), [("ppf", "pass"), ("ppff", "fail_accuracy"), ("pf", "fail_accuracy")])
def test_a_failure_is_expected_when_it_came_twice(nights, expected, tmp_path):
    """Else to run a failed night again would make it pass."""
    for number, letter in enumerate(nights):
        status = {"p": "pass", "f": "fail_accuracy"}[letter]
        store.record(merged.cells([of_night(number, accuracy=status)]), tmp_path, night(number))
    before = measured_baseline.load(Measured("history", str(tmp_path)), merged.cells([of_night(9)]))
    assert before.expectations({"inference": ["a"]})["inference"]["a"].accuracy == expected


def test_what_was_timed_and_wrong_is_no_level(tmp_path):
    for number in range(14):
        wrong = {"compiled_ms": 5.0, "performance": "fail_accuracy"} if number > 5 else {}
        store.record(merged.cells([of_night(number, **wrong)]), tmp_path, night(number))
    now = merged.cells([of_night(20)])
    before = measured_baseline.load(Measured("history", str(tmp_path)), now)
    assert list(deviations.deviations(now.to_pylist(), before, Thresholds())) == []


# Which tables a baseline names.


@pytest.fixture
def configured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda **changes: settings.load({**CONFIG, **changes})


@pytest.mark.parametrize("named", [".", "old", "old/results", "old/results/cpu"])
def test_results_are_found_in_a_working_directory_and_in_folders_of_results(tmp_path, configured, named):
    file = tmp_path / "old" / "results" / "cpu" / "cells.parquet"
    file.parent.mkdir(parents=True)
    parquet.write(merged.cells([]), file)
    found = baseline.measured(configured(baseline=named))
    assert (found is None) if named == "." else (found.kind == "folder" and Path(found.path).resolve() == file)


def test_a_baseline_of_another_device_is_refused(tmp_path, configured):
    (tmp_path / "old" / "cuda").mkdir(parents=True)
    (tmp_path / "old" / "cuda" / "cells.parquet").touch()
    for named in ("old", "old/cuda"):
        with pytest.raises(ConfigError, match=f"'{named}' has results of the device cuda, and this run is on cpu"):
            baseline.measured(configured(baseline=named))


def test_builds_and_runs_that_there_are_not_are_refused_with_near_ones(tmp_path, configured):
    (tmp_path / "results" / "cpu" / "release").mkdir(parents=True)
    assert baseline.measured(configured(baseline="build:release")).name == "release"
    with pytest.raises(ConfigError, match="no results of a build 'relaese' in results/cpu; did you mean release"):
        baseline.measured(configured(baseline="build:relaese"))
    with pytest.raises(ConfigError, match="history needs the key history_path"):
        baseline.measured(configured(baseline="history"))
    with pytest.raises(ConfigError, match="has no run 'first'"):
        baseline.measured(configured(baseline="history:first", history_path="kept"))


def test_a_history_without_entries_is_a_baseline_of_nothing_so_that_the_first_night_can_begin_it(tmp_path, configured):
    measured, cells = baseline.measured(configured(baseline="history", history_path="kept")), merged.cells([cell("a")])
    found = judgement.against(cells, BOTH, {}, measured, vars(Thresholds()), {"inference": ["a"]})
    judged = judgement.table(found).to_pylist()
    assert "not_comparable" in {row["class"] for row in judged} and judgement.outcome(judged) == ExitCode.WRONG_REQUEST


def test_tables_of_another_build_are_a_baseline_if_there_is_one_on_either_side(tmp_path, configured):
    (tmp_path / "old" / "cpu").mkdir(parents=True)
    path = tmp_path / "old" / "cpu" / "cells.parquet"
    parquet.write(merged.cells([cell("a", build="release", compiled_ms=5.0)]), path)
    measured, now = baseline.measured(configured(baseline="old")), merged.cells([cell("a")])
    assert measured.name == "release"
    loaded = measured_baseline.load(measured, now)
    found = {row["class"] for row in deviations.deviations(now.to_pylist(), loaded, Thresholds())}
    assert found == {"slower"}
    parquet.write(merged.cells([cell("a", build="release"), cell("a", build="nightly")]), path)
    with pytest.raises(ConfigError, match="has results of the builds nightly, release, and builds is default"):
        baseline.measured(configured(baseline="old"))


def test_evidence_that_is_cut_off_costs_a_remark_and_no_judgement(tmp_path):
    parquet.write(merged.cells([cell("a")]), tmp_path / "cells.parquet")
    (tmp_path / "now").mkdir()
    for folder in (tmp_path, tmp_path / "now"):
        (folder / "evidence.parquet").write_bytes(b"PAR1")
    now = merged.cells([cell("a", accuracy="fail_accuracy", passed_by="dynamo", worst_leaf="output")])
    measured, evidence = Measured("folder", str(tmp_path / "cells.parquet")), tmp_path / "now" / "evidence.parquet"
    first, *_ = judgement.against(now, BOTH, {}, measured, vars(Thresholds()), {"inference": ["a"]}, (), 0, evidence)
    assert first["class"] == "new_failure"


def test_a_count_of_one_night_is_no_baseline(tmp_path):
    """Neither is the night after it worse than that, nor what is worse from then on accepted."""
    for counts, now, classes in (((1, 1, 0), 1, set()), ((0, 0, 1), 1, {"more_graph_breaks"}), ((0, 1, 1), 1, set())):
        root = tmp_path / "".join(map(str, counts))
        for number, count in enumerate(counts):
            store.record(merged.cells([of_night(number, graph_breaks=count)]), root, night(number))
        cells = merged.cells([of_night(len(counts), graph_breaks=now)])
        before = measured_baseline.load(Measured("history", str(root)), cells)
        assert {row["class"] for row in deviations.deviations(cells.to_pylist(), before, Thresholds())} == classes


def test_what_was_measured_once_fails_in_few_nights_of_many_healthy_cells(judged):
    """Nothing is confirmed here, so that chance alone must hardly ever reach the limit."""
    rng, red = np.random.default_rng(0), 0
    for _ in range(20):
        before, now = ([cell(f"m{each}", compiled_ms=10 * rng.normal(1, 0.03)) for each in range(250)] for _ in range(2))
        red += any(name in judgement.FAILING for _, name in judged(now, before, times=0))
    assert red <= 2


@pytest.mark.parametrize("named", [".", "results", "results/cpu"])
def test_results_are_not_compared_with_themselves(tmp_path, configured, named):
    (tmp_path / "results" / "cpu" / "default").mkdir(parents=True)
    (tmp_path / "results" / "cpu" / "cells.parquet").touch()
    with pytest.raises(ConfigError, match="would be compared with themselves"):
        baseline.measured(configured(baseline=named))
    with pytest.raises(ConfigError, match="would be compared with itself"):
        baseline.measured(configured(baseline="build:default"))


# The quarantine.

HEADER = "mode\tmodel\tcheck\tissue\tuntil"


@pytest.fixture
def entries(tmp_path):
    def load(*lines):
        (tmp_path / "flaky.tsv").write_text("\n".join(lines) + "\n")
        return quarantine.load(
            tmp_path / "flaky.tsv", ["inference", "training"], ["a", "b", "test_vit"], ["default", "nightly"]
        )

    return load


def test_a_cell_in_quarantine_is_flaky_until_its_day_has_passed(judged, entries):
    judged([cell("a", performance="OOM"), cell("b", compiled_ms=12.0)], [cell("a"), cell("b")])
    listed = entries(HEADER, "inference\ta\t\tpytorch#189893\t2026-12-31", "*\tb\tperformance\t#2\t2026-12-31")
    during = list(judgement.quarantined(judged.rows, listed, date(2026, 12, 31)))
    assert not judgement.failed(during)
    assert "new_failure, in quarantine for pytorch#189893 until 2026-12-31" in {row["flaky"] for row in during}
    after = list(judgement.quarantined(judged.rows, listed, date(2027, 1, 1)))
    assert judgement.failed(after)
    assert "its quarantine for #2 ended on 2026-12-31" in {row["flaky"] for row in after}


def test_what_is_said_of_all_cells_is_in_no_quarantine(tmp_path, entries):
    before, now = ([cell(f"m{each}", eager_ms=eager_ms) for each in range(4)] for eager_ms in (20.0, 22.0))
    pq.write_table(merged.cells(before), tmp_path / "cells.parquet")
    measured, models = Measured("folder", str(tmp_path / "cells.parquet")), {"inference": [row["model"] for row in now]}
    found = judgement.against(merged.cells(now), BOTH, {}, measured, vars(Thresholds()), models)
    listed = entries(HEADER, "*\t*\t\t#1\t2026-12-31")
    rows = judgement.table(judgement.quarantined(found, listed, date(2026, 1, 1))).to_pylist()
    assert [(row["class"], row["mode"]) for row in rows if row["model"] is None] == [("eager_slower", None)]


def test_an_entry_covers_its_own_check_alone(judged, entries):
    judged([cell("a", performance="OOM")], [cell("a")])
    listed = entries(HEADER, "inference\ta\taccuracy\t#1\t2026-12-31")
    assert judgement.failed(judgement.quarantined(judged.rows, listed, date(2026, 1, 1)))


def test_an_entry_covers_its_own_build_alone(judged, entries):
    judged([cell("a", performance="OOM")], [cell("a")])
    nightly, default = (
        entries(f"build\t{HEADER}", f"{build}\tinference\ta\t\t#1\t2026-12-31") for build in ("nightly", "def*")
    )
    assert judgement.failed(judgement.quarantined(judged.rows, nightly, date(2026, 1, 1)))
    assert not judgement.failed(judgement.quarantined(judged.rows, default, date(2026, 1, 1)))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["mode\tmodel\tissue"], "the column 'until' is missing"),
        (
            ["issue\tmode\tmodel\tuntil"],
            "line 1: the column 'issue' must not be the first, as a line that begins with # is a",
        ),
        (["mode\tmodel\tissue\tuntill"], "unknown column 'untill'; did you mean until"),
        ([HEADER, "inference\ta\t\t\t2026-12-31"], "line 2: the issue is missing"),
        ([HEADER, "inference\ta\t\t#1\tsoon"], "line 2: until is 'soon'; it must be a date, as in 2026-12-31"),
        ([HEADER, "inferense\ta\t\t#1\t2026-12-31"], "no mode 'inferense'; did you mean inference"),
        ([HEADER, "inference\ttest_vitt\t\t#1\t2026-12-31"], "no model 'test_vitt'; did you mean test_vit"),
        ([HEADER, "inference\tresnet*\t\t#1\t2026-12-31"], "no model 'resnet\\*'"),
        ([f"build\t{HEADER}", "nightli\tinference\ta\t\t#1\t2026-12-31"], "no build 'nightli'; did you mean nightly"),
        ([HEADER, "inference\ta\tspeed\t#1\t2026-12-31"], "no check 'speed'"),
    ],
)
def test_a_mistake_in_a_quarantine_is_named_with_its_line(entries, lines, sentence):
    with pytest.raises(ConfigError, match=sentence):
        entries(*lines)


# For continuous integration.


def test_junit_has_a_case_for_each_cell_and_check(judged, tmp_path):
    judged(
        [cell("a", compiled_ms=12.0), cell("b"), cell("c", accuracy="OOM")],
        [cell("a"), cell("b", device_name="x"), cell("c")],
    )
    ci.write_junit(judged.rows, tmp_path / "gate.xml")
    suites = ElementTree.parse(tmp_path / "gate.xml").getroot()
    found = {(suite.get("name"), case.get("name")): [child.tag for child in case] for suite in suites for case in suite}
    assert found == {
        ("inference.accuracy", "a"): [],
        ("inference.accuracy", "b"): ["skipped"],
        ("inference.accuracy", "c"): ["failure"],
        ("inference.performance", "a"): ["failure"],
        ("inference.performance", "b"): ["skipped"],
        ("inference.performance", "c"): [],
    }
    assert [(suite.get("tests"), suite.get("failures"), suite.get("skipped")) for suite in suites] == [
        ("3", "1", "1"),
        ("3", "1", "1"),
    ]


def test_annotations_are_a_line_each_with_what_github_would_take_for_syntax_escaped(judged):
    judged(
        [cell("a", accuracy="OOM", accuracy_message="50 % full:\nno, more"), cell("b", compiled_ms=9.0)],
        [cell("a"), cell("b")],
    )
    error, warning = ci.annotations(judged.rows, "kept,old")
    assert error.startswith("::error file=kept%2Cold,title=new_failure inference/a accuracy::")
    assert "50 %25 full" in error
    assert warning.startswith("::warning file=kept%2Cold,title=faster inference/b performance::")


def test_a_new_failure_that_is_due_to_a_better_eager_says_so(tmp_path):
    leaf = {**{name: cell("a")[name] for name in ("device", "build", "mode", "model")}, "leaf": "output", "kind": "output"}
    folders, errors = {}, {"old": (4e-6, 1e-5), "new": (1e-6, 2e-6)}
    for name, (eager_rmse, allowed_error) in errors.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        row = {**leaf, "compiled_rmse": 5e-6, "eager_rmse": eager_rmse, "allowed_error": allowed_error}
        parquet.write(parquet.table([row], parquet.SCHEMAS["evidence"]), folders[name] / "evidence.parquet")
    parquet.write(merged.cells([cell("a")]), folders["old"] / "cells.parquet")
    wrong = {"worst_leaf": "output", "margin": 2.5, "comparison": "error", "reference": "fp64"}
    measured = Measured("folder", str(folders["old"] / "cells.parquet"))
    options = BOTH, {}, measured, vars(Thresholds()), {"inference": ["a"]}, (), 0, folders["new"] / "evidence.parquet"
    first, *_ = judgement.against(merged.cells([cell("a", accuracy="fail_accuracy", **wrong)]), *options)
    assert (first["class"], first["reason_class"]) == ("new_failure", "tolerance_artifact")
    assert "4 times" in first["reason"]
    by_nulls = {"strict": "fail", "strict_worst_leaf": "output", **wrong}
    first, *_ = judgement.against(merged.cells([cell("a", accuracy="fail_accuracy", **by_nulls)]), *options)
    assert first["reason_class"] == "compiler", "null runs know nothing of the baseline's eager"


def test_graph_breaks_of_another_machine_are_no_baseline(tmp_path):
    for number in range(9):
        other = {"device_name": "other", "graph_breaks": 0} if number % 2 else {}
        store.record(merged.cells([of_night(number, **{"graph_breaks": 2, **other})]), tmp_path, night(number))
    for now, classes in ((2, set()), (3, {"more_graph_breaks"})):
        cells = merged.cells([of_night(9, graph_breaks=now)])
        before = measured_baseline.load(Measured("history", str(tmp_path)), cells)
        found = deviations.deviations(cells.to_pylist(), before, Thresholds())
        assert {row["class"] for row in found} == classes


@pytest.mark.parametrize(("rule", "expected"), [("strict", "fail_accuracy"), ("dynamo", "pass")])
def test_accuracy_is_expected_by_the_rule_that_decides_today(tmp_path, rule, expected):
    both = {"accuracy": "pass", "strict": "fail"}
    before = merged.cells([cell("a", **both, accuracy_by_rule="pass", passed_by="dynamo")])
    parquet.write(before, tmp_path / "cells.parquet")
    now = merged.cells([cell("a", **both, accuracy_by_rule=expected, passed_by=rule)])
    loaded = measured_baseline.load(Measured("folder", str(tmp_path / "cells.parquet")), now)
    assert loaded.expectations({"inference": ["a"]})["inference"]["a"].accuracy == expected
