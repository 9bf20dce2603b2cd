"""Statistics of the errors of leaves."""

import math

import pytest
import torch

from timmgate.core.verdict import NullRun, judge
from timmgate.worker.compare import Leaf
from timmgate.worker.leaf_errors import Reference

EPS = torch.finfo(torch.float32).eps


def errors_of(run, reference, kind: str = "output"):
    (errors,) = Reference([Leaf("leaf", kind, reference)], torch.float32).errors([Leaf("leaf", kind, run)]).values()
    return errors


def values(run, reference) -> dict[str, float]:
    return {name: statistic.value for name, statistic in errors_of(run, reference).statistics.items()}


REFERENCE = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
RMS = REFERENCE.square().mean().sqrt().item()


def test_a_scaled_leaf_has_its_factor_as_projection_and_rms():
    found = values(1.01 * REFERENCE, REFERENCE)
    assert found["projection"] == pytest.approx(0.01) and found["rms"] == pytest.approx(0.01)


def test_a_shifted_slice_has_its_shift_as_the_mean_of_a_slice():
    run = REFERENCE.clone()
    run[:, 2] += 0.5 * RMS
    found = values(run, REFERENCE)
    assert found["slice_mean_1"] == pytest.approx(0.5) and found["slice_rms_1"] == pytest.approx(0.5)
    assert found["slice_mean_0"] == pytest.approx(0.125) and found["mean"] == pytest.approx(0.125)


def test_one_element_shows_in_the_largest():
    run = REFERENCE.clone()
    run[3, 1, 2] -= 2 * RMS
    assert values(run, REFERENCE)["max"] == pytest.approx(2)


COMMON = 10 * torch.randn(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
SAMPLES = COMMON + 0.1 * torch.randn(8, 40, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def rounded(seed: int, by: float = 0.1) -> torch.Tensor:
    """The samples with an error like rounding, as large as what tells them apart."""
    return SAMPLES + by * torch.randn(8, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("mix_up", [lambda x: x.flip(0), lambda x: x.roll(1, 0)])
def test_samples_that_are_mixed_up_are_told_from_rounding_as_large_as_what_tells_them_apart(mix_up):
    samples, eager, again = ([Leaf("output", "output", each)] for each in (SAMPLES, rounded(1), rounded(2)))
    reference = Reference(samples, torch.bfloat16)
    nulls = [NullRun(str(seed), reference.errors(run)) for seed, run in enumerate((eager, again))]
    right, wrong = ([Leaf("output", "output", each)] for each in (rounded(5), mix_up(rounded(5))))
    found = [judge(reference.errors(run), nulls, base=1.75) for run in (right, wrong)]
    assert [verdict.strict for verdict in found] == ["pass", "fail"]
    assert found[1].worst_statistic == "contrast"


def test_what_tells_samples_apart_is_judged_of_outputs_in_half_precision():
    gradient, output = ([Leaf("leaf", kind, SAMPLES)] for kind in ("gradient", "output"))
    for run, dtype, is_judged in (
        (gradient, torch.bfloat16, False),
        (output, torch.bfloat16, True),
        (output, torch.float32, False),
    ):
        (errors,) = Reference(run, dtype).errors(run).values()
        assert ("contrast" in errors.statistics) == is_judged


def test_a_scalar_and_a_zero_have_statistics_too():
    assert values(torch.tensor(1.5), torch.tensor(1.0)) == {"rms": 0.5, "max": 0.5, "projection": 0.5, "mean": 0.5}
    assert set(values(torch.zeros(3), torch.zeros(3)).values()) == {0.0}


def test_special_values_must_be_where_the_reference_has_them_and_the_rest_is_judged():
    mask = torch.tensor([1.0, -math.inf, math.nan, 2.0])
    assert values(mask + 0.1, mask)["max"] > 0
    for run in (mask.abs(), mask.nan_to_num(nan=0.0), torch.zeros(4)):
        assert "NaN or Inf" in errors_of(run, mask).mismatch


@pytest.mark.parametrize(
    ("run", "reference"),
    [
        (torch.zeros(3, 1), torch.zeros(3)),
        ("one", "other"),
        (torch.zeros(()), None),
    ],
)
def test_what_no_rounding_explains_is_a_mismatch(run, reference):
    assert errors_of(run, reference).mismatch


def test_the_error_of_integers_is_the_root_of_the_share_that_differs():
    assert values(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == {"rms": 0.5}


def test_complex_numbers_are_compared_as_pairs_of_floats():
    one = torch.complex(torch.ones(4), torch.ones(4))
    assert values(one, one.to(torch.complex128))["rms"] == 0.0
    assert values(one * 1.5, one.to(torch.complex128))["rms"] == pytest.approx(0.5)


def test_equal_integers_and_words_have_no_error():
    assert values(torch.tensor(3), torch.tensor(3)) == {"rms": 0.0}
    assert values("word", "word") == {"rms": 0.0}


def test_leaves_are_matched_by_name_and_trees_taken_apart():
    run = [Leaf("output", "output", (torch.zeros(2), {"b": torch.zeros(2)})), Leaf("more", "buffer", torch.zeros(1))]
    reference = [Leaf("output", "output", [torch.zeros(2), {"b": torch.zeros(2)}]), Leaf("less", "buffer", torch.zeros(1))]
    found = Reference(reference, torch.float32).errors(run)
    assert {name: errors.mismatch for name, errors in found.items()} == {
        "output.0": "",
        "output.1.b": "",
        "less": "missing in the run",
        "more": "missing in the reference",
    }


def test_a_gradient_far_below_the_others_vanishes_and_is_measured_by_what_they_resolve():
    sizes = {"a": 1.0, "b": 2.0, "c": 1e-12}
    reference = [Leaf(name, "gradient", size * torch.ones(4, dtype=torch.float64)) for name, size in sizes.items()]
    found = Reference(reference, torch.float32).errors([Leaf("c", "gradient", torch.full((4,), 3 * EPS))])["c"]
    assert found.vanishes and found.statistics["rms"].value == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_vanishes_may_be_off_by_half_of_the_digits_of_the_others_and_no_more(dtype):
    eps = torch.finfo(dtype).eps
    sizes = {"a": 1.0, "b": 2.0, "c": 1e-20}
    reference = [Leaf(name, "gradient", size * torch.ones(4, dtype=torch.float64)) for name, size in sizes.items()]

    def run(error):
        return Reference(reference, dtype).errors([*reference[:2], Leaf("c", "gradient", torch.full((4,), error))])

    nulls = [NullRun("eager", run(eps)), NullRun("outputs", run(2 * eps))]
    assert judge(run(0.9 * eps**0.5), nulls).strict == "pass"
    assert judge(run(100 * eps**0.5), nulls).strict == "fail"


def test_where_most_gradients_are_zero_another_one_is_not_allowed_to_be_large():
    """As with timm's own initialization, whose last norms start at 0."""
    zeros = [Leaf(f"gradient.{number}", "gradient", torch.zeros(4, dtype=torch.float64)) for number in range(5)]
    expected = [*zeros, Leaf("gradient.head", "gradient", torch.full((4,), 0.01, dtype=torch.float64))]
    reference = Reference(expected, torch.float32)

    def of(value):
        run = [*(leaf.value.float() + value for leaf in zeros), expected[-1].value.float()]
        return reference.errors([Leaf(leaf.name, leaf.kind, each) for leaf, each in zip(expected, run, strict=True)])

    nulls = [NullRun(name, of(0.0)) for name in "ab"]
    assert judge(of(0.0), nulls).strict == "pass"
    assert judge(of(1e-3), nulls).strict == "fail"


def test_a_small_gradient_that_does_not_cancel_is_judged_in_half_precision_too():
    """Less than what bfloat16 resolves of the others, and yet known: null runs say how well."""
    sizes = {"a": 1.0, "b": 2.0, "c": 1e-3}
    reference = [Leaf(name, "gradient", size * torch.ones(4, dtype=torch.float64)) for name, size in sizes.items()]

    def run(value):
        return Reference(reference, torch.bfloat16).errors([*reference[:2], Leaf("c", "gradient", torch.full((4,), value))])

    nulls = [NullRun("eager", run(1.003e-3)), NullRun("outputs", run(0.996e-3))]
    assert judge(run(1.002e-3), nulls).strict == "pass"
    assert judge(run(0.0), nulls).strict == "fail"
