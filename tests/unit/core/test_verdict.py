"""The strict verdict, from statistics of errors alone."""

import math

import pytest

from timmgate.core.verdict import (
    LeafErrors,
    NullRun,
    Statistic,
    independent,
    judge,
    left_out,
    limits,
    majority,
    multiplier_for,
    needed,
    status_by_rule,
)


def errors(
    rms: float = 1e-6, leaf: str = "output", kind: str = "output", floor: float = 0.0, **more
) -> dict[str, LeafErrors]:
    return {leaf: LeafErrors(leaf, kind, {"rms": Statistic(rms, floor)}, **more)}


def nulls(*values: float, **more) -> list[NullRun]:
    return [NullRun(f"family {number}", errors(value, **more)) for number, value in enumerate(values)]


@pytest.mark.parametrize(("rms", "strict"), [(0.0, "pass"), (8e-6, "pass"), (8.1e-6, "fail"), (math.inf, "fail")])
def test_an_error_may_be_m_times_the_largest_of_the_null_runs(rms, strict):
    verdict = judge(errors(rms), nulls(1e-6, 2e-6, 0.0), base=4)
    assert verdict.strict == strict
    assert verdict.margin == pytest.approx(rms / 8e-6)
    assert (verdict.worst_leaf, verdict.worst_statistic, verdict.null_runs) == ("output", "rms", 3)


def test_where_null_runs_are_exact_half_a_unit_in_the_last_place_is_allowed_and_no_more():
    assert judge(errors(5e-8, floor=6e-8), nulls(0.0, 0.0)).strict == "pass"
    assert judge(errors(7e-8, floor=6e-8), nulls(0.0, 0.0)).strict == "fail"
    assert judge(errors(1e-30), nulls(0.0, 0.0)).margin == math.inf


@pytest.mark.parametrize(("rms", "strict"), [(4.9e-6, "pass"), (5.1e-6, "fail")])
def test_the_rounding_of_the_result_comes_on_top_as_an_independent_error_does(rms, strict):
    assert judge(errors(rms, floor=3e-6), nulls(1e-6), base=4).strict == strict


def test_a_run_that_is_close_to_the_reference_is_right_however_far_off_null_runs_are():
    assert judge(errors(0.09), nulls(0.5)).strict == "pass"
    assert judge(errors(0.11), nulls(0.5)).strict == "undecided"


def test_means_that_are_near_0_by_chance_do_not_lower_the_limit():
    def with_mean(mean: float) -> dict[str, LeafErrors]:
        return {"w": LeafErrors("w", "gradient", {"rms": Statistic(1e-6, 0), "mean": Statistic(mean, 0, from_rms=0.1)})}

    null_runs = [NullRun("a", with_mean(1e-12)), NullRun("b", with_mean(-0.0))]
    assert judge(with_mean(3e-7), null_runs, base=4).strict == "pass"
    assert judge(with_mean(5e-7), null_runs, base=4).worst_statistic == "mean"


def with_projection(rms: float, projection: float, leaf: str = "output", kind: str = "output") -> dict[str, LeafErrors]:
    statistics = {"rms": Statistic(rms, 0.0), "projection": Statistic(projection, 0.0, from_rms=0.01)}
    return {leaf: LeafErrors(leaf, kind, statistics)}


@pytest.mark.parametrize(
    ("null", "strict"),
    [
        (with_projection(0.33, 0.33), "pass"),  # less than 1
        (with_projection(0.34, 0.34), "undecided"),
        (with_projection(2.0, 0.33), "pass"),  # noise that is not along the output: zeros would be seen
        (with_projection(0.33, 2.0), "pass"),
    ],
)
def test_an_output_is_undecided_if_zeros_instead_of_it_would_pass(null, strict):
    null_runs = [NullRun("a", null), NullRun("b", null)]
    verdict = judge(null, null_runs, base=3)
    assert verdict.strict == strict
    assert ("0.34 of its size" in verdict.leaves[0].message) == (strict == "undecided")


def test_an_output_that_would_be_undecided_fails_beyond_its_limit():
    verdict = judge(errors(100.0), nulls(0.4, 0.01))
    assert (verdict.strict, verdict.margin) == ("fail", pytest.approx(100 / 1.2))


def test_a_gradient_that_vanishes_is_judged_although_its_null_runs_are_as_large_as_it_is():
    assert judge(errors(1.5, vanishes=True), nulls(1.0, vanishes=True)).strict == "pass"
    assert judge(errors(1e4, vanishes=True), nulls(1.0, vanishes=True)).strict == "fail"


@pytest.mark.parametrize(("chaotic", "strict"), [(5, "pass"), (6, "undecided")])
def test_more_than_a_twentieth_of_undecided_leaves_makes_a_cell_undecided(chaotic, strict):
    null = {}
    for number in range(100):
        null |= errors(0.5 if number < chaotic else 1e-6, f"gradient.{number}", "gradient")
    assert judge(null, [NullRun("a", null), NullRun("b", null)]).strict == strict


@pytest.mark.parametrize(("other", "strict"), [(0.01, "pass"), (0.5, "undecided")])
def test_a_gradient_is_judged_if_that_of_either_loss_is(other, strict):
    def run(chaotic: float, twin: float) -> dict[str, LeafErrors]:
        pairs = [
            errors(chaotic, f"{loss}gradient.{number}", "gradient")
            for loss, chaotic in (("", chaotic), ("cotangent.", twin))
            for number in range(10)
        ]
        return {name: leaf for pair in (errors(0.001), *pairs) for name, leaf in pair.items()}

    runs = [NullRun(str(number), run(0.5, other), number) for number in range(3)]
    assert judge(run(0.5, other), runs).strict == strict


def test_a_leaf_that_fails_makes_a_cell_fail_although_others_are_undecided():
    null = errors(0.5) | errors(1e-6, "w", "gradient")
    verdict = judge(errors(0.5) | errors(1e-3, "w", "gradient"), [NullRun("a", null)])
    assert (verdict.strict, verdict.worst_leaf) == ("fail", "w")


def test_a_mismatch_fails_unless_a_null_run_has_it_too():
    special = {"output": LeafErrors("output", "output", mismatch="NaN")}
    assert judge(special, nulls(1e-6)).strict == "fail"
    assert judge(special, nulls(1e-6)).worst_statistic == "mismatch"
    assert judge(special, [*nulls(1e-6), NullRun("b", special)]).strict == "undecided"
    assert judge(errors(), [*nulls(1e-6), NullRun("b", special)]).strict == "undecided"


def test_a_leaf_that_is_missing_or_in_excess_fails():
    assert judge({}, nulls(1e-6)).strict == "fail"
    verdict = judge(errors() | errors(leaf="more"), nulls(1e-6))
    assert {leaf.leaf: leaf.strict for leaf in verdict.leaves} == {"output": True, "more": None}


def test_each_null_run_is_judged_by_those_of_other_families():
    null_runs = [*nulls(1e-6, 2e-6), NullRun("family 1", errors(5e-6))]
    first, second, third = null_runs
    assert list(left_out(null_runs)) == [(first, [second, third]), (second, [first]), (third, [first])]
    assert judge(errors(), null_runs, 1.0).null_scatter == pytest.approx(5.0)
    assert judge(errors(), nulls(1e-6), 1.0).null_scatter is None


def test_draws_that_err_each_in_its_own_way_judge_each_other():
    null_runs = [NullRun("outputs", errors(value), draw) for draw, value in enumerate((1e-6, 2e-6, 3e-6))]
    assert independent(null_runs) == 3
    assert [len(others) for _, others in left_out(null_runs)] == [2, 2, 2]
    assert judge(errors(), null_runs, 1.0).null_scatter == pytest.approx(1.5)


def test_kinks_judge_and_are_not_judged():
    kinks = NullRun("kinks", errors(5e-6))
    null_runs = [*nulls(1e-6, 2e-6), kinks]
    assert [(null.family, others[-1]) for null, others in left_out(null_runs)] == [("family 0", kinks), ("family 1", kinks)]


def test_the_multiplier_grows_with_what_is_compared_and_less_so_with_more_null_runs():
    assert multiplier_for(6, 9) < multiplier_for(600, 9) < multiplier_for(600, 4)


def test_draws_of_a_family_and_copies_of_another_are_not_independent():
    draws = [NullRun("family 0", errors(value)) for value in (1e-6, 2e-6, 3e-6)]
    copy, kinks = NullRun("copy", errors(1e-6)), NullRun("kinks", errors(5e-6))
    assert independent(draws) == independent([*draws, copy]) == independent([*draws, kinks]) == independent([]) == 1
    assert independent([*draws, copy, NullRun("other", errors(4e-6))]) == 2


def test_two_of_three_seeds_decide():
    assert majority(["fail", "pass", "fail"]) == "fail"
    assert majority(["fail", "pass", "pass"]) == "pass"
    assert majority(["fail", "pass", "undecided"]) == "undecided"


def test_a_limit_is_what_fails_also_where_a_leaf_that_passes_proves_nothing():
    null_runs = nulls(0.4, 0.01)
    allowed = limits(null_runs)["output"]["rms"]
    assert judge(errors(1.01 * allowed), null_runs).strict == "fail"
    assert judge(errors(0.99 * allowed), null_runs).strict == "undecided"


def test_what_is_needed_to_pass_is_the_multiplier_that_just_passes():
    run, null_runs = errors(5e-3, floor=3e-3), nulls(1e-3, 0.0)
    base, leaf, statistic = needed(run, null_runs)
    assert (base, leaf, statistic) == (pytest.approx(4.0), "output", "rms")
    assert judge(run, null_runs, base * 1.001).strict == "pass"
    assert judge(run, null_runs, base * 0.999).strict == "fail"
    assert needed(errors(1e-3, floor=2e-3), null_runs)[0] == 0.0
    special = {"output": LeafErrors("output", "output", mismatch="NaN")}
    assert needed(special, null_runs) == (math.inf, "output", "mismatch")
    assert needed(special, [*null_runs, NullRun("b", special)])[0] == 0.0, "that is undecided"
    assert needed(errors(math.nan), null_runs) == (math.inf, "output", "rms")


def test_nothing_can_be_judged_without_null_runs():
    with pytest.raises(ValueError, match="no null runs"):
        judge(errors(), [])


@pytest.mark.parametrize(
    ("accuracy", "strict", "by_strict", "by_dynamo", "by_both"),
    [
        ("pass", "pass", "pass", "pass", "pass"),
        ("pass", "fail", "fail_accuracy", "pass", "fail_accuracy"),
        ("fail_accuracy", "pass", "pass", "fail_accuracy", "fail_accuracy"),
        ("fail_accuracy", "undecided", "fail_accuracy", "fail_accuracy", "fail_accuracy"),
        ("pass_due_to_skip", "pass", "pass", "pass_due_to_skip", "pass_due_to_skip"),
        ("pass_due_to_skip", "fail", "fail_accuracy", "pass_due_to_skip", "fail_accuracy"),
        ("eager_two_runs_differ", "pass", "pass", "eager_two_runs_differ", "eager_two_runs_differ"),
    ],
)
def test_the_rule_that_decides_gives_the_status(accuracy, strict, by_strict, by_dynamo, by_both):
    decided = "dynamo" if strict == "undecided" else None
    assert status_by_rule(accuracy, strict, "strict") == (by_strict, decided or "strict")
    assert status_by_rule(accuracy, strict, "dynamo") == (by_dynamo, "dynamo")
    assert status_by_rule(accuracy, strict, "both") == (by_both, decided or "both")


@pytest.mark.parametrize("rule", ["strict", "dynamo", "both"])
@pytest.mark.parametrize("accuracy", ["fail_to_run", "timeout", "not_run", "not_applicable", "eager_not_finite", None])
def test_what_was_not_compared_keeps_its_status_and_no_rule_decided(accuracy, rule):
    assert status_by_rule(accuracy, None, rule) == (accuracy, None)


@pytest.mark.parametrize("rule", ["strict", "both"])
def test_without_null_runs_the_dynamo_rule_decides(rule):
    assert status_by_rule("pass", None, rule) == ("pass", "dynamo")
