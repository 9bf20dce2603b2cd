"""Failures and counts out of a table of cells."""

import pyarrow as pa
import pytest

from timmgate import flags, rows
from timmgate.rows import PASSED, STATUSES

FAILED = [status for status in STATUSES if status not in PASSED]


def cells(*statuses, mode="inference", device="cpu", **columns):
    """A table with a cell of each status; the models are called by their number."""
    return rows.table(
        "accuracy",
        [
            {"device": device, "mode": mode, "model": str(number), "accuracy": status, **columns}
            for number, status in enumerate(statuses)
        ],
    )


@pytest.mark.parametrize("status", FAILED)
def test_a_cell_that_did_not_pass_is_a_failure(status):
    failures = flags.failures(cells("pass", status)).to_pylist()
    assert [(row["model"], row["check"], row["status"]) for row in failures] == [("1", "accuracy", status)]


@pytest.mark.parametrize("status", PASSED)
def test_a_cell_that_passed_is_no_failure(status):
    assert flags.failures(cells(status)).num_rows == 0


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
    (failure,) = flags.failures(cells("fail_accuracy", **columns)).to_pylist()
    assert failure == {
        **{"device": "cpu", "mode": "inference", "model": "0", "check": "accuracy", "status": "fail_accuracy"},
        **{name.removeprefix("accuracy_"): value for name, value in columns.items()},
    }


def test_failures_are_in_the_order_of_the_cells():
    failures = flags.failures(cells("timeout", "pass", "OOM", "not_run", "fail_accuracy"))
    assert failures["model"].to_pylist() == ["0", "2", "3", "4"]


def test_nothing_failed_gives_an_empty_table_with_the_same_columns_and_types():
    assert flags.failures(cells("pass")).schema == flags.failures(cells("timeout", margin=1.0)).schema
    assert flags.failures(cells()).schema == flags.failures(cells("timeout", margin=1.0)).schema


def test_nothing_failed_gives_a_file_with_a_header(tmp_path):
    rows.write_tsv(flags.failures(cells("pass")), tmp_path / "failures.tsv")
    (header,) = (tmp_path / "failures.tsv").read_text().splitlines()
    assert header.split("\t")[:5] == ["device", "mode", "model", "check", "status"]


def test_every_status_is_counted():
    (counts,) = flags.summary(cells(*STATUSES, "pass", "timeout")).to_pylist()
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
    counts = flags.summary(table).to_pylist()
    assert [(row["device"], row["mode"], row["check"], row["cells"], row["passed"]) for row in counts] == [
        ("cpu", "training", "accuracy", 3, 1),
        ("cpu", "inference", "accuracy", 1, 1),
        ("cuda", "training", "accuracy", 1, 0),
    ]
    assert [row["timeout"] for row in counts] == [1, 0, 0]


def test_no_cells_give_an_empty_summary_with_a_column_for_every_status():
    summary = flags.summary(cells())
    assert summary.num_rows == 0
    assert set(STATUSES) < set(summary.column_names)
