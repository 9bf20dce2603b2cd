"""The sentence and the class of why a check did not pass: what must be in them, by what was measured."""

import pytest

from timmgate.core.schemas import CELLS, FAILED, PASSED, REASON_CLASSES, SHOWN_STATUS
from timmgate.core.verdict import status_by_rule
from timmgate.tables import reasons

NOTHING = {column.name: None for column in CELLS}
LEAF = {
    **{"leaf": "gradient.fc.weight", "kind": "gradient", "compiled_relative_error": 0.03, "eager_relative_error": 2e-7},
    **{"cosine": 0.98, "accuracy": False, "message": "compiled has rmse 3, allowed is 1", "strict": False},
    **{"strict_message": "rms of its error is 12 times what null runs allow", "null_rms": 5e-7},
}
RIGHT = {**LEAF, "leaf": "prediction", "kind": "prediction", "accuracy": True, "strict": True}
BY_NULL_RUNS = {
    **{"accuracy": "fail_accuracy", "strict": "fail", "strict_worst_leaf": LEAF["leaf"], "strict_margin": 31234.0},
    **{"strict_worst_statistic": "rms", "null_runs": 9, "reference": "fp64", "comparison": "error", "training": True},
}
BY_DYNAMO = {
    **{"accuracy": "fail_accuracy", "worst_leaf": LEAF["leaf"], "margin": 7.5, "comparison": "error", "reference": "fp64"},
}


def found(check="accuracy", leaves=(), rule="strict", **columns):
    """The reason of a row with these columns."""
    row = {**NOTHING, **columns}
    row["accuracy_by_rule"], row["passed_by"] = status_by_rule(row["accuracy"], row["strict"], rule)
    return reasons.reason(row, check, leaves)


def ended(status, stage, check="accuracy", cause="RuntimeError", message="no kernel\nTraceback", passed=(), **columns):
    course = {f"{check}_stage": stage, f"{check}_cause": cause, f"{check}_message": message}
    return found(check, **{check: status, **course, **{f"{check}_{name}_s": 1.0 for name in passed}, **columns})


@pytest.mark.parametrize("check", SHOWN_STATUS)
@pytest.mark.parametrize("status", [None, "not_applicable", "not_run", *PASSED])
def test_what_did_not_fail_has_no_reason(check, status):
    assert found(check, **{check: status}) == (None, None)


@pytest.mark.parametrize("check", SHOWN_STATUS)
@pytest.mark.parametrize("status", FAILED)
def test_every_failure_has_one_sentence_of_one_line_and_a_class_whatever_else_is_known(check, status):
    sentence, kind = found(check, **{check: status, f"{check}_cause": "why", f"{check}_message": "one\ntwo"})
    assert sentence and "\n" not in sentence and "None" not in sentence
    assert kind in REASON_CLASSES


# Wrong.


def test_a_wrong_tensor_is_named_with_its_kind_its_distance_eagers_and_what_null_runs_do():
    sentence, kind = found(leaves=[RIGHT, LEAF], **BY_NULL_RUNS)
    assert kind == "compiler"
    for figure in ("gradient.fc.weight", "float64", "0.03", "150,000 times", "2e-07", "31,000 times", "5e-07"):
        assert figure in sentence
    assert "9 null runs" in sentence
    assert "(gradient)" not in sentence, "its name says so"
    other = {**LEAF, "leaf": "head.weight"}
    assert "head.weight (gradient)" in found(leaves=[other], **{**BY_NULL_RUNS, "strict_worst_leaf": "head.weight"}).sentence


def test_how_much_is_wrong_is_counted_by_kind_and_a_right_prediction_is_said():
    leaves = [RIGHT, LEAF, {**LEAF, "leaf": "gradient.x"}, {**LEAF, "leaf": "buffer.y", "kind": "buffer"}]
    sentence, _ = found(leaves=leaves, **BY_NULL_RUNS)
    assert "3 of 4 tensors" in sentence and "2 gradient" in sentence and "1 buffer" in sentence
    assert "the prediction is right" in sentence
    wrong_forward = [{**RIGHT, "strict": False}, *leaves[1:]]
    assert "prediction is right" not in found(leaves=wrong_forward, **BY_NULL_RUNS).sentence


def test_a_mismatch_says_what_does_not_match_and_has_no_figures_of_errors():
    leaf = {**LEAF, "strict_message": "shape [2] instead of [3]", "compiled_relative_error": None, "null_rms": 1e-7}
    mismatch = {"strict_worst_statistic": "mismatch", "strict_margin": float("inf")}
    sentence, kind = found(leaves=[leaf], **{**BY_NULL_RUNS, **mismatch})
    assert "shape [2] instead of [3]" in sentence and "times" not in sentence
    assert kind == "compiler"


def test_seeds_that_disagree_are_counted():
    sentence, _ = found(leaves=[LEAF], **BY_NULL_RUNS, strict_of_seeds=["fail", "pass", "fail"])
    assert "2 of 3 seeds" in sentence
    assert "seeds" not in found(leaves=[LEAF], **BY_NULL_RUNS, strict_of_seeds=["fail", "fail"]).sentence


def test_a_tensor_that_is_zero_but_for_rounding_has_no_size_to_be_off_by():
    zero = {**LEAF, "compiled_relative_error": 4e10, "eager_relative_error": 2e8, "null_rms": 7.1}
    sentence, _ = found(leaves=[zero], **BY_NULL_RUNS)
    assert "is zero but for rounding, and 200 times as far from that as eager" in sentence
    assert "of its size" not in sentence and "7.1" not in sentence


def test_without_float64_the_distance_is_from_eager():
    sentence, _ = found(leaves=[{**LEAF, "eager_relative_error": 0.0}], **{**BY_NULL_RUNS, "reference": "none"})
    assert "off from eager by 0.03" in sentence and "float64" not in sentence


@pytest.mark.parametrize(
    ("columns", "leaf", "rule", "kind", "words"),
    [
        ({"strict": None}, {}, "dynamo", "compiler", ["150,000 times", "7.5 times", "no null runs"]),
        ({"strict": None, "strict_error": "MemoryError: x"}, {}, "strict", "compiler", ["no null runs (MemoryError: x)"]),
        ({"strict": "pass"}, {}, "both", "tolerance_artifact", ["7.5 times", "5e-07"]),
        (
            {"strict": "undecided"},
            {"null_rms": 0.02, "strict_margin": 0.5},
            "strict",
            "amplified_rounding",
            ["0.02", "undecided"],
        ),
        ({"strict": "undecided"}, {"null_rms": 1e-4, "strict_margin": None}, "strict", "compiler", ["0.0001", "undecided"]),
        (
            {"comparison": "cosine", "reference": "none", "reference_error": "OutOfMemoryError: 80 GB"},
            {},
            "strict",
            "reference_missing",
            ["0.98", "0.99", "OutOfMemoryError: 80 GB"],
        ),
        ({"comparison": "cosine"}, {}, "strict", "compiler", ["0.98"]),
    ],
)
def test_what_the_dynamo_rule_decides_says_what_null_runs_say_of_it(columns, leaf, rule, kind, words):
    sentence, found_kind = found(leaves=[{**LEAF, **leaf}], rule=rule, **{**BY_DYNAMO, **columns})
    assert found_kind == kind
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("reference", "kind", "words"),
    [("fp64", "compiler", "float64"), ("extrapolated", "compiler", "batch 8"), ("eager", "reference_missing", "eager")],
)
def test_a_wrong_timed_output_has_its_batch_size_error_and_limit(reference, kind, words):
    timed = {"timed_reference": reference, "timed_output_error": 0.25, "timed_output_margin": 40.0}
    sentence, found_kind = found("performance", performance="fail_accuracy", performance_batch_size=64, **timed)
    assert found_kind == kind
    assert all(word in sentence for word in ("64", "0.25", "40 times", words))
    infinite = {**timed, "timed_output_error": float("inf"), "timed_output_margin": float("inf")}
    assert "does not match" in found("performance", performance="fail_accuracy", **infinite).sentence


# Ended without a result.


def test_a_crash_has_its_class_the_first_line_of_its_message_its_stage_and_what_passed_before():
    sentence, kind = ended("fail_to_run", "compile", passed=["import", "load", "reference", "eager", "compile"])
    assert kind == "compiler"
    assert sentence.startswith("RuntimeError in the stage compile: no kernel")
    assert "Traceback" not in sentence
    assert sentence.endswith("import, load, reference and eager passed")


@pytest.mark.parametrize(
    ("status", "stage", "kind"),
    [
        ("fail_to_run", "run", "compiler"),
        ("timeout", "compile", "compiler"),
        ("timeout", "eager", "environment"),
        ("OOM", "run", "compiler"),
        ("eager_2nd_run_OOM", "null_runs", "environment"),
        ("eager_2nd_run_fail", "null_runs", "eager_unstable"),
        ("eager_1st_run_OOM", "eager", "environment"),
        ("eager_1st_run_fail", "eager", "eager_unstable"),
        ("model_fail_to_load", "weights", "environment"),
        ("infra_error", None, "environment"),
    ],
)
def test_the_stage_says_whose_a_failure_is(status, stage, kind):
    assert ended(status, stage).kind == kind


def test_a_request_that_the_device_refuses_is_not_the_compilers_fault():
    assert ended("fail_to_run", "compile", cause="UnsupportedDeviceError").kind == "environment"


@pytest.mark.parametrize("status", ["eager_two_runs_differ", "eager_not_finite"])
def test_eager_that_is_no_judge_is_named(status):
    sentence, kind = ended(status, "eager", cause="comparison", message="eager differs from itself in output")
    assert kind == "eager_unstable"
    assert "eager differs from itself in output" in sentence and "nothing to judge by" in sentence


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1.5, "1.5 times"), (312.4, "312 times"), (41234, "41,000 times"), (3e9, "3e+09 times"), (float("inf"), "infinitely")],
)
def test_a_factor_is_readable(factor, words):
    assert reasons.times(factor).startswith(words)


@pytest.mark.parametrize("name", ["rms", "max", "projection", "mean", "contrast", "slice_mean_0", "slice_rms_1"])
def test_every_statistic_has_words(name):
    words = reasons.statistic_words(name)
    assert "_" not in words and words != name


@pytest.mark.parametrize(
    ("eager", "allowed", "is_due"),
    [(4e-6, 1e-5, True), (4e-6, 1e-6, False), (1e-9, 1e-5, False), (None, None, False)],
    ids=["eager got better", "worse anyway", "eager did not get better", "not known"],
)
def test_a_failure_that_the_baselines_eager_would_have_allowed_is_an_artifact(eager, allowed, is_due):
    leaf, before = {"compiled_rmse": 5e-6, "eager_rmse": 1e-6}, {"eager_rmse": eager, "allowed_error": allowed}
    found = reasons.by_eager({"reason": "it is off", "reason_class": "compiler"}, leaf, before)
    assert (found.get("reason_class") == "tolerance_artifact") == is_due
    assert not is_due or (found["reason"].startswith("it is off; ") and "4 times" in found["reason"])
