"""Counts and means of each mode, out of a table of cells."""

import pytest

import merged
from timmgate.core.schemas import PASSED, STATUSES
from timmgate.tables import parquet, summary

BOTH = ("accuracy", "performance")


def table(*cells):
    """A table of requested cells; the models are called by their numbers."""
    known = {"device": "cpu", "build": "default", "mode": "inference", "requested": True}
    rows = [{**known, "model": str(number), **cell} for number, cell in enumerate(cells)]
    return merged.cells(rows)


def summed_up(*cells, checks=("accuracy",)):
    return summary.summary(table(*cells), checks).to_pylist()


def timed(speedup, **columns):
    return {"accuracy": "pass", "performance": "pass", "counted": True, "speedup": speedup, **columns}


def figures(*cells):
    (row,) = summed_up(*cells, checks=["performance"])
    return row


def test_every_status_is_counted():
    (counts,) = summed_up(*({"accuracy": status} for status in [*STATUSES, "pass", "timeout"]))
    assert {status: counts[status] for status in STATUSES} == {
        status: 2 if status in ("pass", "timeout") else 1 for status in STATUSES
    }
    assert counts["cells"] == len(STATUSES) + 2
    assert counts["passed"] == len(PASSED) + 1


def test_each_build_and_mode_has_a_row_a_check_in_order_of_appearance():
    cells = [
        {"mode": "training", "accuracy": "pass"},
        {"mode": "inference", "accuracy": "pass"},
        {"mode": "training", "accuracy": "OOM", "build": "nightly"},
        {"mode": "training", "accuracy": "timeout"},
    ]
    counts = summed_up(*cells)
    assert [(row["build"], row["mode"], row["check_name"], row["cells"], row["passed"]) for row in counts] == [
        ("default", "training", "accuracy", 2, 1),
        ("default", "inference", "accuracy", 1, 1),
        ("nightly", "training", "accuracy", 1, 0),
    ]


def test_a_cell_can_fail_one_check_and_pass_the_other():
    counts = summed_up({"accuracy": "pass", "performance": "OOM"}, checks=BOTH)
    assert [(row["check_name"], row["passed"]) for row in counts] == [("accuracy", 1), ("performance", 0)]


def test_what_was_not_requested_is_in_no_count_and_no_mean():
    row = figures(timed(2.0), timed(8.0, requested=False))
    assert (row["cells"], row["counted"], row["speedup"]) == (1, 1, 2.0)


def test_no_cells_give_an_empty_summary_with_a_column_for_every_status():
    counted = summary.summary(table(), BOTH)
    assert counted.num_rows == 0
    assert set(STATUSES) < set(counted.column_names)


def test_speedups_have_a_geometric_mean_in_its_interval_and_one_that_counts_a_slowdown_as_nothing():
    row = figures(*map(timed, (0.5, 1.0, 2.0, 4.0)), timed(None, performance="OOM", counted=False))
    assert row["speedup"] == pytest.approx(2**0.5)
    assert row["speedup_clipped"] == pytest.approx(2**0.75)
    assert row["speedup_ci_low"] < row["speedup"] < row["speedup_ci_high"] <= 4
    assert (row["counted"], row["cells"]) == (4, 5)


def test_a_cell_that_does_not_count_is_in_no_mean():
    figure = {"compile_cold_s": 900.0, "compile_warm_s": 90.0, "compression_ratio": 0.1, "verdict": "faster"}
    fine = {"compile_cold_s": 9.0, "compile_warm_s": 0.9, "compression_ratio": 1.0, "verdict": "same"}
    row = figures(timed(1.0, **fine), timed(100.0, counted=False, **figure))
    assert (row["speedup"], row["speedup_clipped"], row["compression_ratio"]) == (1.0, 1.0, 1.0)
    assert (row["compile_cold_s"], row["compile_warm_s"], row["faster"], row["same"]) == (9.0, 0.9, 0, 1)


def test_where_every_cell_is_wrong_there_is_no_mean():
    row = figures(*[timed(1.283, accuracy="fail_accuracy", counted=False)] * 3)
    assert (row["speedup"], row["speedup_clipped"], row["compression_ratio"]) == (None, None, None)
    assert (row["counted"], row["cells"], row["passed"]) == (0, 3, 3)


def test_verdicts_graph_breaks_and_compile_times_of_a_mode_are_summed_up():
    row = figures(
        timed(1.5, verdict="faster", graph_breaks=0, compile_cold_s=10.0, compression_ratio=1.0),
        timed(1.5, verdict="faster", graph_breaks=3, compile_cold_s=90.0, compression_ratio=4.0),
        timed(1.5, verdict="ambiguous", graph_breaks=1, compile_cold_s=20.0),
    )
    assert (row["faster"], row["slower"], row["same"], row["ambiguous"]) == (2, 0, 0, 1)
    assert (row["graph_breaks"], row["compile_cold_s"]) == (4, 20.0)
    assert row["compression_ratio"] == pytest.approx(2.0)


def test_what_speedups_depend_on_is_said_once_each():
    here = {"performance_threads": 1, "allocator": "retain", "relocate": True}
    there = {"performance_threads": 2, "allocator": "system", "relocate": True}
    assert figures(timed(1.5), timed(2.0))["conditions"] is None
    assert figures(timed(1.5, **here), timed(2.0, **here))["conditions"] == "1 thread, memory retained"
    both = figures(timed(1.5, **here), timed(2.0, **there))["conditions"]
    assert both == "1 thread, memory retained; 2 threads, memory left to the system"


def test_counts_are_whole_numbers_in_the_file_beside_rows_that_have_none(tmp_path):
    made = summary.summary(table(timed(1.5, verdict="faster", graph_breaks=3)), BOTH)
    parquet.write_tsv(made, tmp_path / "summary.tsv")
    header, accuracy, performance = (line.split("\t") for line in (tmp_path / "summary.tsv").read_text().splitlines())
    texts = dict(zip(header, performance, strict=True))
    assert (texts["cells"], texts["counted"], texts["faster"], texts["graph_breaks"]) == ("1", "1", "1", "3")
    assert dict(zip(header, accuracy, strict=True))["counted"] == ""
