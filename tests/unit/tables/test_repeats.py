"""Failed checks that were measured again: how often they fail, with an interval, and what that makes of their reason."""

from datetime import UTC, datetime

import pytest

import specs
from timmgate.core.outcome import AttemptResult, Outcome, Verdict
from timmgate.core.schemas import CELLS, RECURRENCES
from timmgate.tables import repeats, state

NOW, BEFORE = datetime(2026, 11, 25, tzinfo=UTC), datetime(2026, 11, 24, tzinfo=UTC)
CELL = {
    **{column.name: None for column in CELLS},
    **{"device": "cpu", "build": "default", "mode": "inference", "model": "test_vit"},
    **{"accuracy": "fail_to_run", "accuracy_by_rule": "fail_to_run", "accuracy_started_at": NOW},
    **{"accuracy_stage": "run", "accuracy_cause": "RuntimeError", "accuracy_message": "no kernel"},
}


def rows(*statuses, at=NOW, check="accuracy"):
    return [{"check_name": check, "status": status, "repeated_at": at} for status in statuses]


@pytest.mark.parametrize(
    ("statuses", "failed", "recurrence", "kind"),
    [
        (["fail_to_run"] * 5, 5, "deterministic", "compiler"),
        (["pass", "fail_to_run", "pass", "timeout"], 2, "flaky", "flaky"),
        (["pass"] * 5, 0, "one_off", "flaky"),
    ],
)
def test_how_often_it_fails_makes_it_deterministic_flaky_or_a_one_off(statuses, failed, recurrence, kind):
    found = state.derived(CELL, ["accuracy"], [], rows(*statuses))
    assert recurrence in RECURRENCES
    assert (found["accuracy_repeats"], found["accuracy_repeats_failed"]) == (len(statuses), failed)
    assert (found["accuracy_recurrence"], found["accuracy_reason_class"]) == (recurrence, kind)
    low, high = found["accuracy_fail_rate_low"], found["accuracy_fail_rate_high"]
    assert 0 <= low <= failed / len(statuses) <= high <= 1
    assert high - low > 0.3, "five repeats do not say much, and the interval says so"
    assert f"{failed} of {len(statuses)} fresh processes" in found["accuracy_reason"]
    assert "no kernel" in found["accuracy_reason"]


def test_repeats_of_an_earlier_measurement_of_another_check_and_of_a_passed_one_say_nothing():
    assert repeats.columns(CELL, "accuracy", rows("pass", at=BEFORE))["accuracy_repeats"] is None
    assert repeats.columns(CELL, "accuracy", rows("pass", check="performance"))["accuracy_repeats"] is None
    found = state.derived({**CELL, "accuracy_by_rule": "pass"}, ["accuracy"], [], rows("pass"))
    assert found["accuracy_reason"] is None


def test_a_repeat_that_something_else_ended_is_not_counted():
    assert repeats.columns(CELL, "accuracy", rows("infra_error", "fail_to_run"))["accuracy_repeats"] == 1
    lost = {**CELL, "accuracy_by_rule": "infra_error"}
    assert repeats.columns(lost, "accuracy", rows("infra_error", "pass"))["accuracy_repeats"] == 2


@pytest.mark.parametrize(("rule", "status"), [("strict", "fail_accuracy"), ("dynamo", "pass")])
def test_a_repeat_has_the_status_by_the_rule_that_was_asked_for(rule, status):
    outcome = Outcome(AttemptResult(columns={"strict": "fail"}), Verdict("pass"), attempt=1, wall_s=2.0)
    (row,) = repeats.table(CELL, 3, [(specs.spec(), outcome)], rule).to_pylist()
    assert (row["status"], row["number"], row["repeated_at"], row["model"]) == (status, 3, NOW, "test_vit")


def test_the_interval_of_a_share_is_wilsons():
    assert repeats.wilson(0, 5) == pytest.approx((0.0, 0.4345), abs=1e-3)
    assert repeats.wilson(3, 5) == pytest.approx((0.2307, 0.8824), abs=1e-3)
