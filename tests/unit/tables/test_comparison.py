"""Two builds compared on made-up processes, whose truth is known."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from timmgate.report import comparison as terminal
from timmgate.tables import parquet, state
from timmgate.tables.comparison import compare, pairs
from timmgate.tables.gate import measured_baseline

KEY_OF_M0 = {"device": "cpu", "mode": "inference", "model": "m0"}

NOISE = 0.005
"""Standard deviation of one process's median, relative."""


def processes(cell, build, numbers, rng, *, compiled=1.0, eager=1.0, **known):
    """Rows of some processes of a cell; `compiled` and `eager` are how many times longer they take."""
    for turn in numbers:
        scatter = np.exp(rng.normal(0, NOISE, 3))
        figures = {
            "eager_ms": 20.0 * eager * scatter[0],
            "compiled_ms": 10.0 * compiled * scatter[1],
            "compile_warm_cpu_s": 2.0 * scatter[2],
            "compiled_allocated_bytes": 10**9,
            "graph_breaks": 0,
            "batch_size": 8,
            "timed_output_ok": True,
        }
        about = {"device": "cpu", "build": build, "mode": "inference", "model": cell, "turn": turn, "status": "pass"}
        yield {**about, **figures, **known}


def compared(cells, changes=None, seed=0, count=5, measured=()):
    """Rows of a comparison of so many cells; `changes` are by cell what is different in the second build."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(cells):
        cell = f"m{number}"
        rows += processes(cell, "a", range(count), rng)
        rows += processes(cell, "b", range(count), rng, **(changes or {}).get(cell, {}))
    table = parquet.table(rows, pairs.SCHEMA)
    return compare.compare(table, parquet.table(list(measured), parquet.SCHEMAS["cells"]), "a", "b").to_pylist()


def of(rows, cell, figure="compiled_ms"):
    (row,) = [row for row in rows if row["model"] == cell and row["figure"] == figure]
    return row


def test_what_was_timed_with_other_software_than_todays_is_left_out_and_says_so():
    before = [{**KEY_OF_M0, "build": build, "performance": "pass", "performance_identity": "new"} for build in "ab"]
    (row,) = compared(1, {"m0": {"identity": "old"}}, measured=before)
    assert (row["verdict"], row["message"]) == ("left_out", "b was timed with other software or options than today's")
    lost = [{**KEY_OF_M0, "build": build, "performance": "not_run"} for build in "ab"]
    assert "left_out" in {row["verdict"] for row in compared(1, measured=lost)}


def test_nothing_is_found_where_nothing_changed():
    rows = list(itertools.chain.from_iterable(compared(40, seed=seed) for seed in range(10)))
    alarms = [row for row in rows if row["verdict"]]
    assert len(alarms) <= 5, "of 1200 tests at 0.0005"


def test_a_change_is_found_with_its_size_and_its_interval():
    row = of(compared(20, {"m3": {"compiled": 1.03}}), "m3")
    assert row["verdict"] == "slower"
    assert row["change"] == pytest.approx(0.03, abs=0.01)
    assert row["change_ci_low"] < row["change"] < row["change_ci_high"]
    assert row["value_after"] == pytest.approx(10.3, rel=0.01)
    assert (row["processes"], row["could_show"]) == (5, True)
    assert of(compared(20, {"m3": {"compiled": 1.03}}), "m3", "relative_time")["verdict"] == "slower"
    assert of(compared(20, {"m3": {"compiled": 0.97}}), "m3")["verdict"] == "faster"


def test_what_ran_side_by_side_is_compared_by_its_blocks_whatever_the_machine_did_between_turns():
    rng, rows = np.random.default_rng(0), []
    for number, compiled in enumerate([1.0, 1.03, *[1.0] * 10]):
        speeds = np.exp(rng.normal(0, 0.1, 5))
        for build, factor in (("a", 1.0), ("b", compiled)):
            for row, speed in zip(processes(f"m{number}", build, range(5), rng, compiled=factor), speeds, strict=True):
                own = {"eager_ms": row["eager_ms"] * speed**0.5, "compiled_ms": row["compiled_ms"] * speed}
                ratio = factor * np.exp(rng.normal(0, NOISE))
                rows.append({**row, **own, "compiled_ratio": ratio, "eager_ratio": 1.0, "relative_ratio": ratio})
    found = compare.compare(parquet.table(rows, pairs.SCHEMA), parquet.SCHEMAS["cells"].empty_table(), "a", "b").to_pylist()
    timed = [row for row in found if row["figure"] in ("relative_time", "compiled_ms", "eager_ms") and row["verdict"]]
    assert [(row["model"], row["figure"], row["verdict"]) for row in timed] == [
        ("m1", "relative_time", "slower"),
        ("m1", "compiled_ms", "slower"),
    ]
    assert (of(found, "m1", "relative_time")["moved"], of(found, "m1")["change"]) == (
        "compiled",
        pytest.approx(0.03, abs=0.01),
    )


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"compiled": 1.1}, "compiled"),
        ({"eager": 1.1}, "eager"),
        ({"compiled": 1.1, "eager": 1.1}, "both"),
        ({}, "neither"),
    ],
)
def test_it_is_told_whether_eager_or_compiled_moved(change, moved):
    assert of(compared(10, {"m1": change}), "m1", "relative_time")["moved"] == moved


def busy(cells, changes, count=5):
    """A comparison on a busy machine, where each process is slower or faster by percents, eager and compiled alike."""
    rng, rows = np.random.default_rng(3), []
    for number in range(cells):
        for build in "ab":
            change = changes.get(f"m{number}", 1.0) if build == "b" else 1.0
            for row in processes(f"m{number}", build, range(count), rng, compiled=change):
                factor = np.exp(rng.normal(0, 0.03))
                rows.append({**row, "eager_ms": row["eager_ms"] * factor, "compiled_ms": row["compiled_ms"] * factor})
    nothing = parquet.SCHEMAS["cells"].empty_table()
    return compare.compare(parquet.table(rows, pairs.SCHEMA), nothing, "a", "b").to_pylist()


def test_what_slows_eager_and_compiled_of_a_process_alike_hides_no_change_of_their_ratio():
    rows = busy(20, {"m3": 1.04})
    found = of(rows, "m3", "relative_time")
    assert (found["verdict"], found["moved"]) == ("slower", "either")
    assert of(rows, "m3")["verdict"] is None, "compiled alone scatters too much to tell"
    assert {row["model"] for row in rows if row["verdict"]} == {"m3"}
    assert "slower inference/m3 relative_time +" in printed(rows) and "moved: either" in printed(rows)


def test_more_memory_and_one_more_graph_break_are_found():
    rows = compared(10, {"m1": {"compiled_allocated_bytes": 11 * 10**8}, "m2": {"graph_breaks": 1}})
    assert of(rows, "m1", "compiled_allocated_bytes")["verdict"] == "more_memory"
    found = of(rows, "m2", "graph_breaks")
    assert (found["verdict"], found["value_before"], found["change"]) == ("more_graph_breaks", 0.0, 1.0)


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"status": "timeout", "cause": "limit"}, "b was not timed: timeout limit"),
        ({"timed_output_ok": False}, "b computes something else"),
        ({"batch_size": 4}, "batch sizes differ: [8] and [4]"),
    ],
)
def test_what_cannot_be_compared_is_counted_with_the_reason(known, reason):
    rows = compared(5, {"m1": known})
    assert compare.left_out(rows) == {reason: 1}
    assert not [row for row in rows if row["model"] == "m1" and row["figure"] == "compiled_ms"]
    assert len([row for row in rows if row["figure"] == "compiled_ms"]) == 4


def test_of_a_cell_whose_accuracy_failed_no_time_is_compared():
    wrong = {**KEY_OF_M0, "build": "b", "passed": False, "accuracy_by_rule": "fail_accuracy"}
    right = {**KEY_OF_M0, "build": "a", "passed": True, "accuracy_by_rule": "pass"}
    rows = compared(3, measured=[right, wrong])
    assert of(rows, "m0", "performance")["message"] == "b failed the accuracy check: fail_accuracy"
    assert {row["model"] for row in rows if row["figure"] == "relative_time"} == {"m1", "m2"}


def test_without_timings_statuses_are_compared():
    cells = [
        {**KEY_OF_M0, "build": build, "requested": True, "accuracy_by_rule": status, "passed": status == "pass"}
        for build, status in (("a", "pass"), ("b", "timeout"))
    ]
    table = parquet.table(cells, parquet.SCHEMAS["cells"])
    rows = compare.compare(pairs.SCHEMA.empty_table(), table, "a", "b").to_pylist()
    assert [(row["figure"], row["verdict"]) for row in rows] == [("accuracy", "new_failure"), ("performance", "left_out")]
    assert rows[0]["device"] == "cpu"


def test_one_process_is_too_few():
    assert compare.left_out(compared(3, count=1)) == {"there are fewer than two processes of each build": 3}


def test_few_processes_are_not_said_to_be_able_to_show_what_they_cannot():
    assert not any(row["could_show"] for row in compared(2, count=2) if row["figure"] == "compiled_ms")


def test_statuses_that_differ_are_told_and_figures_of_one_measurement_are_shown():
    measured = [
        {"device": "cpu", "build": build, "mode": "inference", "model": "m0", "accuracy_by_rule": status, "margin": margin}
        for build, status, margin in (("a", "pass", 0.5), ("b", "fail_accuracy", 2.0))
    ]
    rows = compared(2, measured=measured)
    assert of(rows, "m0", "accuracy")["message"] == "pass became fail_accuracy"
    shown = of(rows, "m0", "margin")
    assert (shown["value_before"], shown["value_after"], shown["change"], shown["verdict"]) == (0.5, 2.0, 3.0, None)


def printed(rows):
    console = Console(record=True, width=200)
    terminal.show(rows, console)
    return console.export_text()


def test_the_terminal_names_what_changed_what_was_left_out_and_what_no_alarm_means():
    text = printed(compared(20, {"m3": {"compiled": 1.05}, "m4": {"status": "OOM"}}))
    assert "b against a on cpu" in text
    assert "slower inference/m3 relative_time +" in text and "moved: compiled" in text
    assert "m3 compiled_ms" not in text, "it says the same"
    assert "19 of 20 cells compared; 1 left out: b was not timed: OOM." in text
    assert "would be found in 19 of 19 cells" in text


def test_a_comparison_of_nothing_says_so():
    nothing = compare.compare(pairs.SCHEMA.empty_table(), parquet.SCHEMAS["cells"].empty_table(), "a", "b")
    assert nothing.num_rows == 0
    assert "Nothing was compared." in printed(nothing.to_pylist())
    assert isinstance(nothing, pa.Table)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ("pass", "fail_to_run", "new_failure"),
        ("timeout", "pass", "fixed"),
        ("timeout", "OOM", "status"),
        ("pass", "pass", None),
    ],
)
def test_a_check_that_ends_otherwise_is_told(before, after, verdict):
    measured = [{**KEY_OF_M0, "build": build, "performance": status} for build, status in (("a", before), ("b", after))]
    rows = [row for row in compared(3, measured=measured) if row["figure"] == "performance"]
    assert [row["verdict"] for row in rows] == ([verdict] if verdict else [])
    assert all(row["message"] == f"{before} became {after}" for row in rows)


def apart(changes, before=None, ignored=(), **columns):
    """Rows of cells that differ from before by `changes`, by model; they scatter a little."""
    table, baseline = measured_apart(changes, before, ignored, **columns)
    return compare.apart(table, baseline, "monday", "b").to_pylist()


def measured_apart(changes, before=None, ignored=(), **columns):
    """The cells and what was measured of them before."""
    rng, figures = np.random.default_rng(1), ("eager_ms", "compiled_ms", "compile_cold_cpu_s", "compiled_allocated_bytes")
    cells, earlier = [], {}
    for number in range(20):
        model = f"m{number}"
        row = {"device": "cpu", "build": "b", "mode": "inference", "model": model, "performance_batch_size": 8}
        row |= {"accuracy": "pass", "performance": "pass", "graph_breaks": 0, "device_name": "one"}
        row |= {"eager_ms": 20.0, "compiled_ms": 10.0, "compile_cold_cpu_s": 30.0, "compiled_allocated_bytes": 10**9}
        cells.append({**row, **{name: row[name] * np.exp(rng.normal(0, NOISE)) for name in figures[:3]}, **columns})
        cells[-1] |= {name: row[name] * change for name, change in changes.get(model, {}).items()}
        earlier["inference", model] = [dict.fromkeys(parquet.SCHEMAS["cells"].names) | row | (before or {})]
    table = parquet.table(cells, parquet.SCHEMAS["cells"])
    return table, measured_baseline.Baseline(earlier, ignored)


def test_what_was_measured_apart_is_held_against_the_scatter_of_all_cells():
    rows = apart({"m3": {"compiled_ms": 1.05}, "m4": {"eager_ms": 0.9, "compiled_ms": 0.9}})
    assert {(row["model"], row["verdict"], row["moved"]) for row in rows if row["verdict"]} == {
        ("m3", "slower", "compiled"),
        ("m3", "slower", None),
        ("m4", "faster", None),
        ("m4", "eager_faster", None),
    }
    slower = of(rows, "m3")
    assert slower["change"] == pytest.approx(0.05, abs=0.01)
    assert slower["change_ci_low"] < 0.05 < slower["change_ci_high"]
    assert (slower["before"], slower["after"], slower["processes"]) == ("monday", "b", None)


def test_a_machine_that_became_slower_as_a_whole_slows_no_cell():
    everything = {f"m{number}": {"eager_ms": 1.1, "compiled_ms": 1.1} for number in range(20)}
    rows = apart(everything)
    assert [row for row in rows if row["verdict"] in ("slower", "faster")] == []
    assert "the +10.0% that eager of all moved is taken off" in printed(rows)


def test_on_a_slower_machine_it_is_told_which_side_of_a_cell_moved():
    slower = {f"m{number}": {"eager_ms": 1.1, "compiled_ms": 1.1} for number in range(20)}
    rows = apart(slower | {"m3": {"eager_ms": 1.1, "compiled_ms": 1.21}})
    moved = {row["model"]: row["moved"] for row in rows if row["figure"] == "relative_time"}
    assert moved == {model: "compiled" if model == "m3" else "neither" for model in slower}


def test_between_devices_no_change_has_a_verdict():
    ignored = measured_baseline.IGNORED["device"]
    rows = apart({}, {"device_name": "other", "compiled_ms": 5.0}, ignored)
    assert {row["verdict"] for row in rows} == {None}
    assert of(rows, "m0")["change"] == pytest.approx(1.0, abs=0.05)
    assert "no change of a time or of memory has a verdict" in printed(rows)


def test_what_cannot_be_compared_apart_is_left_out_with_the_reason():
    assert "20 left out: device_name is one, in the baseline other" in printed(apart({}, {"device_name": "other"}))
    assert "20 left out: it was not timed in the baseline" in printed(apart({}, {"performance": "OOM"}))
    crashed = apart({}, performance="fail_to_run", performance_cause="SIGSEGV")
    assert "20 left out: it was not timed: fail_to_run SIGSEGV" in printed(crashed)
    assert {row["message"] for row in crashed if row["verdict"] == "new_failure"} == {"pass became fail_to_run"}


def test_figures_of_a_check_that_is_not_requested_are_not_compared(monkeypatch):
    table, baseline = measured_apart({"m3": {"compiled_ms": 1.5}}, {"accuracy_by_rule": "pass"}, requested=True)
    table = table.set_column(table.schema.get_field_index("accuracy_by_rule"), "accuracy_by_rule", [["fail_accuracy"] * 20])
    monkeypatch.setattr(measured_baseline, "load", lambda *_: baseline)

    def verdicts(*checks):
        rows = compare.with_baseline(state.of_checks(table, checks), {"b": "b"}, None, "monday").to_pylist()
        return {row["figure"]: row["verdict"] for row in rows if row["model"] == "m3" and row["verdict"]}

    assert verdicts("accuracy") == {"accuracy": "new_failure", "performance": "left_out"}
    assert verdicts("performance")["compiled_ms"] == "slower"
