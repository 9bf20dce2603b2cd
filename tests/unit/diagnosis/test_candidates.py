"""Which failed cells are worth a diagnosis."""

import pytest

from timmgate.diagnosis.candidates import failed_check


def cell(accuracy="pass", performance="pass", accuracy_stage=None, performance_stage=None):
    return {
        "accuracy_by_rule": accuracy,
        "accuracy_stage": accuracy_stage,
        "performance": performance,
        "performance_stage": performance_stage,
    }


@pytest.mark.parametrize(
    ("row", "check"),
    [
        (cell(), None),
        (cell("fail_accuracy", "fail_to_run", "compare", "compile"), "accuracy"),
        (cell(performance="fail_accuracy", performance_stage="timing"), "performance"),
        (cell("eager_1st_run_fail", accuracy_stage="eager"), None),
        (cell("model_fail_to_load", accuracy_stage="load"), None),
        (cell("infra_error", accuracy_stage="compile"), None),
        (cell("OOM", accuracy_stage="compile"), "accuracy"),
        (cell("timeout", accuracy_stage="eager"), None),
        (cell("timeout", accuracy_stage="load"), None),
        (cell("timeout", accuracy_stage="run"), "accuracy"),
        (cell(performance="timeout", performance_stage="warmup"), "performance"),
        (cell("not_applicable"), None),
        (cell("pass_due_to_skip", None), None),
    ],
)
def test_a_cell_is_a_candidate_if_it_failed_for_a_reason_that_may_be_the_compilers(row, check):
    assert failed_check(row, ["accuracy", "performance"]) == check


def test_only_checks_of_the_run_count():
    assert failed_check(cell("fail_accuracy", accuracy_stage="compare"), ["performance"]) is None
