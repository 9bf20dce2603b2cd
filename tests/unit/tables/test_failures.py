"""What an engineer should look at, out of a table of cells: what is listed, as what, and in which order."""

import pytest

import merged
from timmgate.core.checks import CHECKS
from timmgate.core.schemas import FAILED, PASSED, REPEATED
from timmgate.core.thresholds import Thresholds
from timmgate.tables import failures, parquet

BOTH = ("accuracy", "performance")
FINE = {
    **{"device": "cpu", "build": "default", "mode": "inference", "requested": True, "weights": "pretrained"},
    **{"accuracy": "pass", "performance": "pass", "comparison": "error", "reference": "fp64"},
    **{"speedup": 1.5, "speedup_ci_low": 1.4, "speedup_ci_high": 1.6, "compile_cold_s": 20.0, "compression_ratio": 1.2},
    **{"graph_breaks": 0, "recompiles": 0, "machine_drift": 1.0, "host": "a", "device_name": "a processor"},
}
"""A cell of which there is nothing to say."""


def table(*cells):
    """A table of such cells but for what is given; the models are called by their numbers."""
    rows = [{**FINE, "model": str(number), **cell} for number, cell in enumerate(cells)]
    return merged.cells(rows)


def found(*cells, checks=BOTH, **thresholds):
    return failures.failures(table(*cells), checks, Thresholds(**thresholds)).to_pylist()


def kinds(*cells, checks=BOTH, **thresholds):
    """Severity, kind and model of each row."""
    return [(row["severity"], row["kind"], row["model"]) for row in found(*cells, checks=checks, **thresholds)]


def test_a_healthy_run_has_nothing_to_look_at():
    assert found(FINE, FINE) == []


# Failures.


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("status", [*FAILED, "not_run"])
def test_every_status_that_is_no_pass_is_a_failure_of_one_kind(status, check):
    (row,) = found(FINE, {check: status})
    assert (row["severity"], row["model"], row["check_name"], row["status"]) == ("failure", "1", check, status)
    assert [status in kind.statuses for kind in failures.KINDS.values()].count(True) == 1


@pytest.mark.parametrize("status", [*PASSED, "not_applicable"])
def test_a_pass_a_skip_and_a_fault_that_does_not_apply_are_no_failures(status):
    assert all(severity == "note" for severity, *_ in kinds({"accuracy": status}))


def test_graph_breaks_are_looked_at_in_a_run_of_accuracy_alone_too():
    cells = {"graph_breaks": 3, "speedup": 0.5, "speedup_ci_high": 0.6}
    assert kinds(cells, checks=["accuracy"]) == [("warning", "graph_breaks", "0")]
    assert [kind for _, kind, _ in kinds(cells)] == ["slower", "graph_breaks"]


def test_what_was_not_requested_is_not_listed():
    assert found({"requested": False, "accuracy": "fail_accuracy"}, {"performance": "OOM"}, checks=["accuracy"]) == []


def test_a_failure_says_where_why_and_how_to_look_into_it():
    course = {"accuracy_stage": "compare", "accuracy_cause": "comparison"}
    course |= {"accuracy_reason": "the output is far off", "accuracy_reason_class": "compiler"}
    about = {"worst_leaf": "output", "margin": 1.5, "log": "logs/x.log", "command": "python -m timmgate.worker"}
    (row,) = found({"accuracy": "fail_accuracy", **course, **about})
    cell = {"device": "cpu", "build": "default", "mode": "inference", "model": "0"}
    assert row == {
        **{"severity": "failure", "kind": "wrong", "check_name": "accuracy", "status": "fail_accuracy", **cell},
        **{name.removeprefix("accuracy_"): value for name, value in course.items()},
        **{name: None for name, *_ in REPEATED},
        **about,
    }


def test_a_failure_by_null_runs_says_what_they_found_and_not_what_the_dynamo_rule_did():
    dynamo = {"accuracy": "pass", "worst_leaf": "loss", "margin": 0.1}
    strict = {"strict_worst_leaf": "output", "strict_margin": 5.0, "strict_worst_statistic": "rms"}
    (row,) = found({**dynamo, "strict": "fail", **strict})
    assert (row["kind"], row["status"], row["worst_leaf"], row["margin"]) == ("wrong", "fail_accuracy", "output", 5.0)
    assert row["cause"] == "null runs"
    assert "output" in row["reason"] and "5 times" in row["reason"] and "loss" not in row["reason"]


def test_what_null_runs_leave_undecided_is_weak_evidence():
    (row,) = found({"accuracy": "pass", "strict": "undecided"}, FINE)
    assert (row["severity"], row["kind"], row["cause"]) == ("note", "weak_evidence", "strict")
    assert row["reason"].startswith("1 of 2 cells")


def test_a_model_that_is_wrong_where_it_was_timed_says_how_far():
    wrong = {"performance": "fail_accuracy", "performance_cause": "timed output", "timed_output_margin": 7.0}
    (row,) = found({**wrong, "timed_output_ok": False, "worst_leaf": "output", "margin": 0.1})
    assert (row["kind"], row["check_name"], row["cause"]) == ("wrong", "performance", "timed output")
    assert (row["margin"], row["worst_leaf"]) == (7.0, None)


# Warnings.


@pytest.mark.parametrize(
    ("kind", "cell", "cause", "reason"),
    [
        (
            "slower",
            {"speedup": 0.9, "speedup_ci_low": 0.85, "speedup_ci_high": 0.93},
            "min_speedup=0.95",
            "0.9 [0.85, 0.93]",
        ),
        ("more_memory", {"compression_ratio": 0.85}, "min_compression_ratio=0.9", "compression_ratio 0.85"),
        ("slow_compile", {"compile_cold_s": 121.0}, "max_compile_s=120", "compile_cold_s 121"),
        ("graph_breaks", {"graph_breaks": 2, "graph_break_reasons": ["x", "x"]}, "max_graph_breaks=0", "graph_breaks 2: x"),
        ("recompiles", {"recompiles": 1}, "max_recompiles=0", "recompiles 1"),
        ("drifted_machine", {"machine_drift": 1.2}, "max_machine_drift=1.1", "machine_drift 1.2"),
        ("drifted_machine", {"machine_drift": 0.8}, "max_machine_drift=1.1", "machine_drift 0.8"),
        ("disturbed_machine", {"machine_busy_cores": 0.9}, "max_busy_cores=0.25", "machine_busy_cores 0.9"),
        ("disturbed_machine", {"machine_throttles": 3}, "machine_throttles", "3 times a core was slowed down"),
        ("disturbed_machine", {"machine_stalls": 2}, "machine_stalls", "2 times the control group"),
        ("disturbed_machine", {"machine_swapped_pages": 5}, "machine_swapped_pages", "5 pages were swapped"),
    ],
)
def test_a_figure_beyond_its_threshold_is_a_warning(kind, cell, cause, reason):
    (row,) = found(FINE, cell)
    assert (row["severity"], row["kind"], row["model"], row["check_name"]) == ("warning", kind, "1", "performance")
    assert (row["status"], row["cause"]) == ("pass", cause)
    assert reason in row["reason"]


@pytest.mark.parametrize(
    "cell",
    [
        {"speedup": 0.96, "speedup_ci_low": 0.95, "speedup_ci_high": 0.97},
        {"speedup": 0.8, "speedup_ci_low": 0.5, "speedup_ci_high": 1.1},
        {"compression_ratio": 0.9, "compile_cold_s": 120.0, "machine_drift": 1.1},
        {"machine_busy_cores": 0.25, "machine_throttles": 0, "machine_stalls": 0, "machine_swapped_pages": 0},
        {"speedup": None, "speedup_ci_high": None, "compression_ratio": None, "compile_cold_s": None, "graph_breaks": None},
    ],
    ids=["little slower", "perhaps slower", "at the line", "an idle machine", "not known"],
)
def test_a_figure_that_is_not_beyond_its_threshold_is_none(cell):
    assert found(cell) == []


def test_beside_an_accelerator_the_cells_of_other_gpus_disturb_nothing_until_no_core_is_free():
    assert found({"device": "cuda", "machine_busy_cores": 80.0, "machine_cores": 96}) == []
    (row,) = found({"device": "cuda", "machine_busy_cores": 95.5, "machine_cores": 96})
    assert row["kind"] == "disturbed_machine"


def test_thresholds_are_those_of_the_configuration():
    slow = {"compile_cold_s": 60.0, "graph_breaks": 3}
    assert kinds(slow, max_graph_breaks=5) == []
    assert kinds(slow, max_compile_s=30, max_graph_breaks=2) == [
        ("warning", "slow_compile", "0"),
        ("warning", "graph_breaks", "0"),
    ]


def test_figures_of_a_check_that_was_not_requested_are_no_warnings():
    assert found({"compile_cold_s": 500.0}, checks=["accuracy"]) == []


# Notes, and what is of the run.


def test_random_weights_are_one_note_however_many_cells_have_them():
    (row,) = found(*[{"weights": "random"}] * 3)
    assert (row["severity"], row["kind"], row["mode"], row["model"]) == ("note", "weak_evidence", None, None)
    assert row["reason"].startswith("3 of 3 cells have random weights")


def test_a_mode_that_compares_by_cosine_is_one_note():
    (row,) = found({"comparison": "cosine"}, {"comparison": "cosine"}, FINE)
    assert (row["kind"], row["model"]) == ("weak_evidence", None)
    assert row["reason"] == "2 of 3 cells are compared by cosine similarity: inference/0, inference/1"


def test_what_was_measured_by_the_dynamo_rule_alone_is_weak_evidence_where_another_one_is_asked_for():
    older = {"accuracy": "pass", "strict": None, "leaves": 9}
    cells = table(older, {**older, "strict": "pass"}, {**older, "accuracy": "timeout", "leaves": None})
    for rule, notes in (("strict", 1), ("both", 1), ("dynamo", 0)):
        found = failures.failures(cells, ["accuracy"], Thresholds(), rule).to_pylist()
        reasons = [row["reason"] for row in found if row["cause"] == "accuracy_rule"]
        assert len(reasons) == notes
        assert all(reason.startswith("1 of 3 cells were measured by the dynamo rule") for reason in reasons)


def test_a_model_without_a_reference_is_a_note_with_the_reason():
    (row,) = found({"comparison": "cosine", "reference": "none", "reference_error": "OutOfMemoryError: 80 GB"})
    assert (row["severity"], row["kind"], row["model"], row["reason"]) == (
        "note",
        "no_reference",
        "0",
        "OutOfMemoryError: 80 GB",
    )


def test_what_is_not_judged_is_one_note_a_check():
    (row,) = found({"accuracy": "pass_due_to_skip"}, FINE, {"accuracy": "pass_due_to_skip"})
    assert (row["kind"], row["check_name"]) == ("not_judged", "accuracy")
    assert row["reason"] == "2 of 3 cells are not judged: inference/0, inference/2"


def test_a_smaller_batch_than_requested_is_a_note():
    (row,) = found({"performance_batch_size": 16, "batch_size_requested": 64})
    assert (row["severity"], row["kind"], row["reason"]) == ("note", "smaller_batch", "16 images instead of 64")


@pytest.mark.parametrize("column", ["device_name", "driver", "accuracy_threads", "performance_threads"])
def test_cells_of_several_machines_are_one_warning_that_counts_them(column):
    values = (1, 2) if column.endswith("threads") else ("A", "B")
    (row,) = found(*({column: values[number % 3 == 0]} for number in range(5)))
    assert (row["severity"], row["kind"], row["model"]) == ("warning", "mixed_machines", None)
    assert (row["cause"], row["reason"]) == (column, f"{column} is {values[0]} in 3, {values[1]} in 2")


def test_cells_of_several_hosts_with_the_same_device_are_a_note():
    assert kinds({"host": "a"}, {"host": "b"}) == [("note", "several_hosts", None)]


def test_cells_without_a_row_make_no_mixture():
    assert kinds(FINE, {"accuracy": "not_run", "host": None, "device_name": None}, checks=["accuracy"]) == [
        ("failure", "not_measured", "1")
    ]


# Order and form.


def test_the_gravest_comes_first_and_of_a_kind_the_worst():
    rows = kinds(
        {"weights": "random", "graph_breaks": 1},
        {"accuracy": "fail_accuracy", "margin": 2.0},
        {"graph_breaks": 5, "compression_ratio": 0.5},
        {"accuracy": "fail_accuracy", "margin": float("nan")},
        {"accuracy": "fail_accuracy", "margin": 9.0},
        {"performance": "timeout"},
    )
    assert rows == [
        *(("failure", "wrong", model) for model in "341"),
        ("failure", "timeout", "5"),
        ("warning", "more_memory", "2"),
        ("warning", "graph_breaks", "2"),
        ("warning", "graph_breaks", "0"),
        ("note", "weak_evidence", None),
    ]


def test_every_kind_has_a_severity_and_kinds_stand_in_their_order():
    order = [failures.SEVERITIES.index(kind.severity) for kind in failures.KINDS.values()]
    assert order == sorted(order)


def test_nothing_to_look_at_gives_a_table_with_the_same_columns(tmp_path):
    empty = failures.failures(table(), BOTH, Thresholds())
    assert empty.schema == failures.failures(table({"accuracy": "timeout"}), BOTH, Thresholds()).schema
    parquet.write_tsv(empty, tmp_path / "failures.tsv")
    (header,) = (tmp_path / "failures.tsv").read_text().splitlines()
    assert header.split("\t")[:7] == ["severity", "kind", "device", "build", "mode", "model", "check_name"]
