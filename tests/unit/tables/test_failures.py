"""Failures and counts out of a table of cells."""

import pyarrow as pa
import pytest

from timmgate.core.schemas import PASSED, STATUSES
from timmgate.tables import failures, parquet

FAILED = [status for status in STATUSES if status not in PASSED]


def cells(*statuses, mode="inference", device="cpu", **columns):
    """A table with a cell of each status; the models are called by their number."""
    return parquet.table(
        "cells",
        [
            {"device": device, "mode": mode, "model": str(number), "accuracy": status, **columns}
            for number, status in enumerate(statuses)
        ],
    )


def failures(table):
    return failures.failures(table, ["accuracy"])


def summary(table):
    return failures.summary(table, ["accuracy"])


@pytest.mark.parametrize("status", FAILED)
def test_a_cell_that_did_not_pass_is_a_failure(status):
    failed = failures(cells("pass", status)).to_pylist()
    assert [(row["model"], row["check"], row["status"]) for row in failed] == [("1", "accuracy", status)]


@pytest.mark.parametrize("status", PASSED)
def test_a_cell_that_passed_is_no_failure(status):
    assert failures(cells(status)).num_rows == 0


def test_a_failure_says_where_why_and_how_to_look_into_it():
    columns = {
        "accuracy_stage": "compare",
        "accuracy_cause": "comparison",
        "accuracy_message": "1 of 2 tensors differ",
        "worst_leaf": "output",
        "margin": 1.5,
        "log": "logs/x.log",
        "command": "python -m timmgate.worker",
    }
    (failure,) = failures(cells("fail_accuracy", **columns)).to_pylist()
    assert failure == {
        **{"device": "cpu", "mode": "inference", "model": "0", "check": "accuracy", "status": "fail_accuracy"},
        **{name.removeprefix("accuracy_"): value for name, value in columns.items()},
    }


def test_failures_are_in_the_order_of_the_cells():
    failed = failures(cells("timeout", "pass", "OOM", "not_run", "fail_accuracy"))
    assert failed["model"].to_pylist() == ["0", "2", "3", "4"]


def test_nothing_failed_gives_an_empty_table_with_the_same_columns_and_types():
    assert failures(cells("pass")).schema == failures(cells("timeout", margin=1.0)).schema
    assert failures(cells()).schema == failures(cells("timeout", margin=1.0)).schema


def test_nothing_failed_gives_a_file_with_a_header(tmp_path):
    parquet.write_tsv(failures(cells("pass")), tmp_path / "failures.tsv")
    (header,) = (tmp_path / "failures.tsv").read_text().splitlines()
    assert header.split("\t")[:5] == ["device", "mode", "model", "check", "status"]


def test_every_status_is_counted():
    (counts,) = summary(cells(*STATUSES, "pass", "timeout")).to_pylist()
    assert {status: counts[status] for status in STATUSES} == {
        status: 2 if status in ("pass", "timeout") else 1 for status in STATUSES
    }
    assert counts["cells"] == len(STATUSES) + 2
    assert counts["passed"] == len(PASSED) + 1


def test_each_device_and_mode_has_a_row_in_order_of_appearance():
    table = pa.concat_tables(
        [
            cells("pass", "OOM", mode="training"),
            cells("pass", mode="inference"),
            cells("not_run", mode="training", device="cuda"),
            cells("timeout", mode="training"),
        ]
    )
    counts = summary(table).to_pylist()
    assert [(row["device"], row["mode"], row["check"], row["cells"], row["passed"]) for row in counts] == [
        ("cpu", "training", "accuracy", 3, 1),
        ("cpu", "inference", "accuracy", 1, 1),
        ("cuda", "training", "accuracy", 1, 0),
    ]
    assert [row["timeout"] for row in counts] == [1, 0, 0]


def test_no_cells_give_an_empty_summary_with_a_column_for_every_status():
    counted = summary(cells())
    assert counted.num_rows == 0
    assert set(STATUSES) < set(counted.column_names)


def timed(*speedups, **columns):
    """A table with a timed cell of each speedup."""
    return parquet.table(
        "cells",
        [
            {
                "device": "cpu",
                "mode": "inference",
                "model": str(number),
                "performance": "pass",
                "speedup": speedup,
                **columns,
            }
            for number, speedup in enumerate(speedups)
        ],
    )


def test_speedups_of_a_mode_have_a_geometric_mean_in_its_interval_and_one_that_counts_a_slowdown_as_nothing():
    (figures,) = failures.summary(timed(0.5, 1.0, 2.0, 4.0, None), ["performance"]).to_pylist()
    assert figures["speedup"] == pytest.approx(2**0.5)
    assert figures["speedup_clipped"] == pytest.approx(2**0.75)
    assert figures["speedup_ci_low"] < figures["speedup"] < figures["speedup_ci_high"] <= 4
    assert figures["cells"] == 5


def test_verdicts_graph_breaks_and_compile_times_of_a_mode_are_summed_up():
    cells_of_mode = [
        {"verdict": "faster", "graph_breaks": 0, "compile_cold_s": 10.0, "compression_ratio": 1.0},
        {"verdict": "faster", "graph_breaks": 3, "compile_cold_s": 90.0, "compression_ratio": 4.0},
        {"verdict": "ambiguous", "graph_breaks": 1, "compile_cold_s": 20.0},
    ]
    table = pa.concat_tables([timed(1.5, **columns) for columns in cells_of_mode])
    (figures,) = failures.summary(table, ["performance"]).to_pylist()
    assert (figures["faster"], figures["slower"], figures["same"], figures["ambiguous"]) == (2, 0, 0, 1)
    assert figures["graph_breaks"] == 4
    assert figures["compile_cold_s"] == 20.0
    assert figures["compression_ratio"] == pytest.approx(2.0)


def test_a_mode_in_which_nothing_was_timed_has_no_figures():
    (figures,) = failures.summary(timed(None), ["performance"]).to_pylist()
    assert figures["speedup"] is None and figures["compression_ratio"] is None and figures["faster"] == 0


def test_a_cell_can_fail_one_check_and_pass_the_other():
    table = parquet.table(
        "cells",
        [{"device": "cpu", "mode": "m", "model": "a", "accuracy": "pass", "performance": "OOM", "performance_stage": "run"}],
    )
    (failure,) = failures.failures(table, ["accuracy", "performance"]).to_pylist()
    assert (failure["check"], failure["status"], failure["stage"]) == ("performance", "OOM", "run")
    passed = failures.summary(table, ["accuracy", "performance"]).to_pylist()
    assert [(row["check"], row["passed"]) for row in passed] == [("accuracy", 1), ("performance", 0)]
