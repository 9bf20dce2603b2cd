"""The verdict agrees with torch._dynamo.utils.same, and the figures beside it say what that verdict hides."""

import logging
import math
from collections import Counter
from dataclasses import asdict, dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import same
from torch.nn.functional import cosine_similarity

from timmgate.worker.compare import Leaf, Rule, all_finite, compare_leaf, compare_leaves, compare_trees

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
SHAPES = (
    *((), (0,), (3, 0), (1,), (9,), (2, 5), (11,), (499,), (5, 100), (501,), (999,), (10, 10, 10), (1001,)),
    *((4, 3, 1, 1), (1001, 1, 1, 1), (40, 30, 1, 1), (40, 30, 1, 2), (40, 30, 2, 1), (1200, 1, 1)),
)
TOLERANCES = (0.0, 1e-4, 1e-3, 1e-2, math.nextafter(2e-2, 0), 2e-2, math.nextafter(2e-2, 1), 4e-2, 8e-2, 0.16)
NONFINITE = (math.nan, math.inf, -math.inf)
RUNS = ("eager", "compiled", "reference")


@pytest.fixture(autouse=True)
def quiet_same():
    """`same` logs every mismatch, and mismatches are half of what is tried here."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def same_or_raises(eager, compiled, reference, rule):
    """The verdict of PyTorch's benchmarks, which count an exception as a mismatch."""
    try:
        return bool(
            same(
                eager,
                compiled,
                reference,
                cos_similarity=rule.cosine,
                tol=rule.tolerance,
                equal_nan=rule.equal_nan,
                use_larger_multiplier_for_smaller_tensor=rule.larger_multiplier,
                force_max_multiplier=rule.max_multiplier,
            )
        )
    except Exception:
        return False


@dataclass(frozen=True)
class Trio:
    """What makes one leaf of the three runs; `factor` is the error of compiled over the limit that it is aimed at."""

    seed: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    scale: float
    aim: str  # equality, closeness, rmse, cosine, or limit: the one of them that decides
    factor: float
    eager_noise: float  # relative to scale
    multiplier: float  # the one that the rmse error is aimed at, not what the rule picks
    reference: str  # float64, same dtype, none
    nonfinite: tuple[tuple[tuple[str, ...], float, int], ...]  # (runs, value, element)


TRIOS = st.builds(
    Trio,
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(3 * DTYPES[:4] + DTYPES),
    shape=st.sampled_from(SHAPES),
    scale=st.sampled_from((1e-5, 1.0, 1.0, 30.0)),
    aim=st.sampled_from(("limit", "limit", "limit", "limit", "limit", "equality", "closeness", "rmse", "cosine")),
    factor=st.sampled_from((0.5, 0.9, 0.99, 0.999999, 1.0, 1.000001, 1.01, 1.1, 2.0)),
    eager_noise=st.sampled_from((1e-3, 0.1, 0.3)),
    multiplier=st.sampled_from((2.0, 3.0, 3.0, 8.0, 10.0)),
    reference=st.sampled_from(("float64", "float64", "float64", "same dtype", "none")),
    nonfinite=st.one_of(
        st.just(()),
        st.just(()),
        st.just(()),
        st.lists(
            st.tuples(
                st.sampled_from([*((run,) for run in RUNS), RUNS[:2], RUNS[1:], RUNS]),
                st.sampled_from(NONFINITE),
                st.integers(0, 2),
            ),
            min_size=1,
            max_size=2,
        ).map(tuple),
    ),
)
RULES = st.builds(
    Rule,
    tolerance=st.sampled_from(TOLERANCES),
    cosine=st.sampled_from((False, False, False, True)),
    equal_nan=st.booleans(),
    larger_multiplier=st.booleans(),
    max_multiplier=st.sampled_from((False, False, False, True)),
)


def tensors(trio, rule):
    """Eager, compiled and reference of one leaf, compiled at `trio.factor` times one of the limits."""
    generator = torch.Generator().manual_seed(trio.seed)
    if not trio.dtype.is_floating_point:
        return integer_tensors(trio, generator)

    def noise():
        return torch.randn(trio.shape, generator=generator, dtype=torch.float64)

    exact = trio.scale * noise()
    eager = (exact + trio.eager_noise * trio.scale * noise()).to(trio.dtype)
    compiled = eager + perturbation(trio, rule, exact, eager, noise())
    runs = {"eager": eager, "compiled": compiled.to(trio.dtype), "reference": exact}
    if trio.reference == "same dtype":
        runs["reference"] = exact.to(trio.dtype)
    for names, value, element in trio.nonfinite:
        for name in names:
            runs[name].view(-1)[element : element + 1] = value
    return runs["eager"], runs["compiled"], None if trio.reference == "none" else runs["reference"]


def integer_tensors(trio, generator):
    exact = torch.randint(0, 100, trio.shape, generator=generator)
    eager = exact.to(trio.dtype)
    step = 0 if trio.aim == "equality" else 1 + trio.seed % 3
    compiled = eager.clone()
    compiled.view(-1)[:1] = compiled.view(-1)[:1] ^ (step > 0) if trio.dtype == torch.bool else exact.view(-1)[:1] + step
    reference = {"float64": exact.double() + trio.eager_noise, "same dtype": eager, "none": None}[trio.reference]
    return eager, compiled, reference


def deciding(trio, rule):
    if rule.cosine:
        return "cosine"
    return "rmse" if trio.reference == "float64" else "closeness"


def perturbation(trio, rule, exact, eager, direction):
    eager = eager.double()
    aim = trio.aim if trio.aim != "limit" else deciding(trio, rule)
    if aim == "closeness":
        return trio.factor * rule.tolerance * (1 + eager.abs()) * direction.sign()
    if aim == "cosine":
        orthogonal = direction - eager * ((direction * eager).sum() / (eager * eager).sum())
        tangent = math.sqrt(1 / (1 - min(trio.factor * 0.01, 0.5)) ** 2 - 1)
        return orthogonal * (tangent * eager.norm() / orthogonal.norm()).nan_to_num()
    if aim == "rmse":
        rmse = (eager - exact).square().mean().sqrt()
        target = trio.factor * (trio.multiplier * rmse + rule.tolerance / 10)
        return exact - eager + direction * (target / direction.square().mean().sqrt())
    return torch.zeros_like(eager)


def way(rule, evidence):
    """What a verdict hung on, roughly: for counting."""
    if rule.cosine and evidence.dtype != "bool":
        return "cosine"
    return "closeness" if evidence.allowed_error is None else "rmse"


def search(examples):
    return settings(max_examples=examples, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def test_verdict_and_margin_of_a_leaf_agree_with_same():
    seen, close = Counter(), Counter()

    @search(1200)
    @given(TRIOS, RULES)
    def agrees(trio, rule):
        eager, compiled, reference = tensors(trio, rule)
        expected = same_or_raises(eager, compiled, reference, rule)
        evidence = compare_leaf("output", "output", eager, compiled, reference, rule)
        assert evidence.accuracy == expected
        assert (evidence.margin <= 1.0) == expected
        assert bool(evidence.message) != expected
        event(f"{way(rule, evidence)} {expected}")
        seen[way(rule, evidence), expected] += 1
        close[way(rule, evidence), expected] += 0.5 <= evidence.margin <= 2.0

    agrees()
    for kind, enough in (("rmse", 80), ("closeness", 80), ("cosine", 40)):
        for verdict in (True, False):
            assert seen[kind, verdict] >= enough
            assert close[kind, verdict] >= enough / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(10,), (11,), (500,), (501,), (999,), (1000,), (1000, 1, 1), (1000, 1, 1, 1), (500, 1, 2, 1), (500, 1, 1, 2)],
    ids=str,
)
def test_rmse_limit_steps_where_that_of_same_does(shape, dtype):
    """Eager is off by 1.0 everywhere, compiled by a little less and more than each multiple that any rule allows."""
    exact, eager = torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=dtype)
    rules = [
        Rule(tolerance, larger_multiplier=larger, max_multiplier=largest)
        for tolerance in (1e-3, math.nextafter(2e-2, 0), 2e-2)
        for larger in (False, True)
        for largest in (False, True)
    ]
    for rule in rules:
        for error in (1.9, 2.1, 2.9, 3.1, 7.9, 8.1, 9.9, 10.1):
            compiled = torch.full(shape, -error, dtype=dtype)  # away from eager, so that closeness never passes
            evidence = compare_leaf("output", "output", eager, compiled, exact, rule)
            assert evidence.accuracy == same_or_raises(eager, compiled, exact, rule)


BRANCH = {
    "list": lambda runs: [list(run) for run in runs],
    "tuple": lambda runs: [tuple(run) for run in runs],
    "dict": lambda runs: [{f"key{i}": child for i, child in enumerate(run)} for run in runs],
    "mixed": lambda runs: [list(runs[0]), tuple(runs[1]), list(runs[2])],
}


@st.composite
def forests(draw, rule):
    """Eager, compiled and reference trees of one structure, the reference perhaps None."""
    all_equal = draw(st.booleans())

    def leaf(trio):
        return list(tensors(replace(trio, aim="equality", nonfinite=()) if all_equal else trio, rule))

    def join(branch, children):
        return BRANCH[branch](list(zip(*children, strict=True)) or [(), (), ()])

    def grow(children):
        return st.builds(join, st.sampled_from(sorted(BRANCH)), st.lists(children, max_size=3))

    plain = st.sampled_from([None, True, 3, "text", 0.5, math.nan]).map(lambda value: [value] * 3)
    eager, compiled, reference = draw(st.recursive(TRIOS.map(leaf) | TRIOS.map(leaf) | plain, grow, max_leaves=5))
    return eager, compiled, draw(st.sampled_from((reference, reference, None)))


def replaced(tree, change):
    """The tree with its first leaf, or itself where there is none, changed."""
    if isinstance(tree, dict) and tree:
        key = next(iter(tree))
        return {**tree, key: replaced(tree[key], change)}
    if isinstance(tree, (list, tuple)) and tree:
        return type(tree)((replaced(tree[0], change), *tree[1:]))
    return change(tree)


def other_dtype(leaf):
    return leaf.to(torch.int16) if isinstance(leaf, torch.Tensor) else leaf


CHANGES = {
    "none": lambda tree: tree,
    "first leaf is text": lambda tree: replaced(tree, lambda _: "text"),
    "first leaf is None": lambda tree: replaced(tree, lambda _: None),
    "wrapped": lambda tree: {"wrapped": tree},
    "first leaf of another dtype": lambda tree: replaced(tree, other_dtype),
    "longer": lambda tree: {**tree, "more": None} if isinstance(tree, dict) else [*tree, None],
    "shorter": lambda tree: dict(list(tree.items())[:-1]) if isinstance(tree, dict) else tree[:-1],
}


def test_verdict_of_a_tree_agrees_with_same():
    seen, changed = Counter(), Counter()

    @search(500)
    @given(st.data(), RULES, st.sampled_from([*["none"] * 8, *CHANGES]))
    def agrees(data, rule, change):
        eager, compiled, reference = data.draw(forests(rule))
        is_leaf = not isinstance(compiled, (dict, list, tuple))
        if not (is_leaf and change in ("longer", "shorter")):
            compiled = CHANGES[change](compiled)
        evidence = compare_trees(eager, compiled, reference, rule)
        expected = same_or_raises(eager, compiled, reference, rule)
        event(f"{change} {expected}")
        assert all(leaf.accuracy for leaf in evidence) == expected
        if not is_leaf:
            seen[expected] += 1
            changed[change, expected] += 1

    agrees()
    assert min(seen[True], seen[False]) >= 50
    assert all(changed[change, False] for change in CHANGES)


def ramp(*shape, dtype=torch.float32):
    return torch.linspace(-1.0, 2.0, math.prod(shape)).view(shape).to(dtype)


def judged(eager, compiled, reference=None, kind="output", **rule):
    evidence = compare_leaf(kind, kind, eager, compiled, reference, Rule(**{"tolerance": 1e-3, **rule}))
    assert evidence.accuracy == same_or_raises(eager, compiled, reference, Rule(**{"tolerance": 1e-3, **rule}))
    return evidence


def test_errors_are_taken_against_the_reference():
    reference = torch.tensor([3.0, 4.0], dtype=torch.float64)
    evidence = judged(reference.float() + 1.0, reference.float() + torch.tensor([2.0, 0.0]), reference)
    assert evidence.eager_rmse == 1.0
    assert evidence.compiled_rmse == pytest.approx(math.sqrt(2))
    assert evidence.eager_relative_error == pytest.approx(math.sqrt(2) / 5)
    assert evidence.compiled_relative_error == pytest.approx(2 / 5)
    assert evidence.error_ratio == pytest.approx(math.sqrt(2))
    assert evidence.allowed_error == pytest.approx(3 * 1.0 + 1e-4)
    assert evidence.margin == pytest.approx(math.sqrt(2) / 3.0001)
    assert evidence.max_abs_error == 1.0
    assert evidence.cosine == pytest.approx((5 * 4 + 4 * 5) / 41)
    assert (evidence.shape, evidence.dtype, evidence.numel) == ([2], "float32", 2)


def test_figures_without_a_reference_are_none():
    evidence = judged(ramp(5), ramp(5))
    assert (evidence.eager_rmse, evidence.compiled_rmse, evidence.error_ratio, evidence.allowed_error) == (None,) * 4
    assert (evidence.eager_relative_error, evidence.compiled_relative_error) == (None, None)
    assert (evidence.margin, evidence.max_abs_error, evidence.accuracy) == (0.0, 0.0, True)


def test_a_float64_tensor_is_its_own_reference():
    eager = ramp(5, dtype=torch.float64)
    evidence = judged(eager, eager + 0.5)
    assert (evidence.eager_rmse, evidence.compiled_rmse, evidence.accuracy) == (0.0, 0.5, False)


def test_quotients_by_zero_are_none():
    zeros = torch.zeros(4)
    evidence = judged(zeros, zeros + 1e-5, zeros.double())
    assert (evidence.eager_relative_error, evidence.compiled_relative_error) == (None, None)
    assert (evidence.error_ratio, evidence.cosine) == (None, None)


def test_tensors_without_elements_agree():
    evidence = judged(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.float64))
    assert (evidence.accuracy, evidence.margin, evidence.compiled_rmse, evidence.max_abs_error) == (True, 0.0, None, None)


def test_zero_tolerance_demands_equality():
    assert judged(ramp(5), ramp(5), tolerance=0.0).margin == 0.0
    large = torch.tensor([2**24 + 1, 7])  # equal in float32
    assert judged(large, large - torch.tensor([1, 0]), tolerance=0.0).margin == math.inf


def test_integers_and_booleans_are_compared():
    counts = torch.tensor([2, 1000])
    assert judged(counts, counts).accuracy
    assert not judged(counts, counts + 3, counts).accuracy
    mask = torch.tensor([True, False])
    assert judged(mask, mask, cosine=True).accuracy
    assert judged(mask, ~mask, tolerance=0.16, cosine=True).max_abs_error == 1.0


def test_a_complex_tensor_is_compared():
    eager = torch.complex(ramp(5), ramp(5).flip(0))
    assert judged(eager, eager).cosine == pytest.approx(1.0)
    assert judged(eager, eager + 1j).max_abs_error == pytest.approx(1.0)


def test_a_sparse_gradient_is_compared():
    evidence = judged(ramp(4, 3).to_sparse(), ramp(4, 3).to_sparse(), None, "gradient")
    assert evidence.accuracy
    assert not judged(ramp(4, 3).to_sparse(), ramp(4, 3), None, "gradient").accuracy


@pytest.mark.parametrize("wrong", [torch.zeros_like, torch.neg], ids=["zeroed", "sign flipped"])
def test_wrong_gradients_below_the_tolerance_pass_but_their_relative_error_shows(wrong):
    gradient = 1e-3 * ramp(20, 20)
    evidence = judged(gradient, wrong(gradient), gradient.double(), "gradient", tolerance=1e-2)
    assert evidence.accuracy
    assert evidence.margin < 0.5
    assert evidence.compiled_relative_error == pytest.approx(1.0 if wrong is torch.zeros_like else 2.0)
    assert evidence.cosine == (None if wrong is torch.zeros_like else pytest.approx(-1.0))


def test_one_large_error_passes_by_rmse_but_its_size_shows():
    exact = ramp(8, 1000).double()
    eager = (exact + 1e-2).bfloat16()
    compiled = eager.clone()
    compiled[3, 500] += 0.3
    evidence = judged(eager, compiled, exact)
    assert evidence.accuracy
    assert evidence.max_abs_error == pytest.approx(0.3, rel=0.02)


def test_one_nan_in_eager_excuses_any_number_in_compiled_but_counts_show():
    eager, reference = ramp(100), ramp(100).double()
    eager[0] = math.nan
    compiled = torch.full_like(eager, math.nan)
    evidence = judged(eager, compiled, reference)
    assert evidence.accuracy
    assert (evidence.margin, evidence.eager_nan, evidence.compiled_nan, evidence.compiled_rmse) == (1.0, 1, 100, None)
    assert not judged(eager, compiled, reference, equal_nan=False).accuracy


def test_one_inf_in_eager_excuses_any_finite_garbage_but_counts_show():
    eager, reference = ramp(100), ramp(100).double()
    eager[0] = math.inf
    evidence = judged(eager, torch.full_like(eager, 1e6), reference)
    assert evidence.accuracy
    assert (evidence.eager_inf, evidence.compiled_inf, evidence.eager_rmse) == (1, 0, math.inf)
    assert evidence.margin == 0.0
    assert evidence.compiled_relative_error > 1e5


def test_compiled_may_be_finite_where_eager_has_nan():
    eager, reference = ramp(100), ramp(100).double()
    eager[0] = math.nan
    assert judged(eager, ramp(100) + 1e-2, reference).accuracy
    evidence = judged(eager, ramp(100) + 1.0, reference)
    assert not evidence.accuracy
    assert 1.0 < evidence.margin < math.inf


def test_nan_in_compiled_alone_fails_outright():
    compiled = ramp(100)
    compiled[7] = math.nan
    evidence = judged(ramp(100), compiled, ramp(100).double())
    assert (evidence.accuracy, evidence.margin, evidence.max_abs_error) == (False, math.inf, math.inf)
    assert "1 NaN" in evidence.message


def test_a_reference_with_nan_is_no_excuse_unless_nan_equals_nan():
    reference = ramp(100).double()
    reference[0] = math.nan
    assert judged(ramp(100), ramp(100) + 1.0, reference).accuracy
    assert judged(ramp(100), ramp(100) + 1.0, reference, equal_nan=False).message


def test_cosine_passes_a_scaled_output_but_max_abs_error_shows():
    evidence = judged(ramp(50), 5 * ramp(50), cosine=True)
    assert evidence.accuracy
    assert evidence.max_abs_error == pytest.approx(8.0)
    assert judged(torch.tensor(0.5), torch.tensor(500.0), cosine=True, kind="loss").accuracy
    assert not judged(ramp(50), -ramp(50), cosine=True).accuracy


def test_cosine_keeps_the_figures_of_a_reference_that_it_does_not_judge_by():
    evidence = judged(ramp(50), 5 * ramp(50), ramp(50).double(), cosine=True)
    assert evidence.compiled_relative_error == pytest.approx(4.0)
    assert evidence.allowed_error is None


def test_cosine_decides_at_the_same_angle_as_same():
    eager = torch.tensor([1.0, 0.0])
    verdicts = Counter()
    for tangent in torch.linspace(0.142490, 0.142496, 200).tolist():
        compiled = torch.tensor([1.0, tangent])
        evidence = judged(eager, compiled, cosine=True, tolerance=1e-4)
        verdicts[evidence.accuracy] += 1
        assert abs(cosine_similarity(eager, compiled, dim=0).item() - 0.99) < 1e-6
    assert min(verdicts[True], verdicts[False]) > 20


@pytest.mark.parametrize(
    ("compiled", "word"),
    [
        (ramp(2, 3).double(), "dtype"),
        (ramp(2, 3).int(), "dtype"),
        (ramp(3, 2), "shape"),
        (ramp(1, 3), "shape"),
        (ramp(3), "shape"),
        (torch.empty(2, 3, device="meta"), "device"),
    ],
)
def test_another_dtype_shape_or_device_fails_outright(compiled, word):
    evidence = compare_leaf("output", "output", ramp(2, 3), compiled, None, Rule(1e-3))
    assert (evidence.accuracy, evidence.margin, evidence.shape) == (False, math.inf, [2, 3])
    assert word in evidence.message


def test_a_broadcastable_output_fails_though_same_accepts_it():
    sample = ramp(1, 3)
    batch = sample.expand(8, 3)
    assert same_or_raises(batch, sample, None, Rule(1e-3))
    assert not compare_leaf("output", "output", batch, sample, None, Rule(1e-3)).accuracy


def test_a_reference_of_another_shape_fails():
    evidence = compare_leaf("output", "output", ramp(2, 3), ramp(2, 3), ramp(3).double(), Rule(1e-3))
    assert not evidence.accuracy
    assert "reference" in evidence.message


def failures(eager, compiled, reference=None):
    evidence = compare_trees(eager, compiled, reference, Rule(1e-3))
    assert all(leaf.margin == math.inf and leaf.message for leaf in evidence if not leaf.accuracy)
    return [leaf.leaf for leaf in evidence if not leaf.accuracy]


def test_a_tree_is_compared_leaf_by_leaf():
    tree = {"logits": ramp(2, 3), "features": [ramp(2), (ramp(3), 0.25)], "note": None}
    names = [leaf.leaf for leaf in compare_trees(tree, tree, None, Rule(1e-3))]
    expected = ["logits", "features.0", "features.1.0", "features.1.1", "note"]
    assert names == [f"output.{name}" for name in expected]
    assert not failures(tree, tree)


def test_a_list_matches_a_tuple():
    assert not failures([ramp(2), ramp(3)], (ramp(2), ramp(3)), [ramp(2).double(), ramp(3).double()])


@pytest.mark.parametrize(
    ("eager", "compiled", "failed"),
    [
        (ramp(2), [ramp(2)], ["output"]),
        ([ramp(2)], ramp(2), ["output"]),
        ([ramp(2)], {0: ramp(2)}, ["output"]),
        ([ramp(2), ramp(3)], [ramp(2)], ["output.1"]),
        ([ramp(2)], [ramp(2), ramp(3)], ["output.1"]),
        ({"a": ramp(2), "b": ramp(2)}, {"a": ramp(2), "c": ramp(2)}, ["output.b", "output.c"]),
        ([ramp(2), [ramp(3)]], [ramp(2), []], ["output.1.0"]),
        (ramp(2), None, ["output"]),
        (None, ramp(2), ["output"]),
        (0.5, 1, ["output"]),
        (1, 2, ["output"]),
        ("a", "b", ["output"]),
        (object(), object(), ["output"]),
    ],
)
def test_another_structure_fails_where_the_trees_part(eager, compiled, failed):
    assert failures(eager, compiled) == failed
    assert not same_or_raises(eager, compiled, None, Rule(1e-3))


@pytest.mark.parametrize(
    ("reference", "failed"),
    [
        ([ramp(2).double()], ["output.1"]),  # `same` would not look at the second tensor at all
        ([ramp(2).double(), None], []),
        ([ramp(2).double(), "text"], ["output.1"]),
        ({"a": ramp(2).double()}, ["output"]),
        (ramp(2).double(), ["output"]),
        (None, []),
    ],
)
def test_a_reference_has_the_structure_of_eager(reference, failed):
    pair = [ramp(2), ramp(3)]
    assert failures(pair, pair, reference) == failed


def run(**values):
    return [Leaf(name, "gradient" if name.startswith("grad") else "output", value) for name, value in values.items()]


def test_leaves_of_two_runs_are_matched_by_name():
    eager, compiled = run(output=ramp(2, 3), grad=ramp(4)), run(grad=ramp(4), output=ramp(2, 3))
    evidence = compare_leaves(eager, compiled, run(output=ramp(2, 3).double(), grad=ramp(4).double()), Rule(1e-3))
    assert [(leaf.leaf, leaf.kind, leaf.accuracy) for leaf in evidence] == [
        ("output", "output", True),
        ("grad", "gradient", True),
    ]
    assert all(leaf.eager_rmse is not None for leaf in evidence)


def test_a_leaf_that_one_run_lacks_fails():
    both, one = run(output=ramp(2), grad=ramp(4)), run(output=ramp(2))
    for runs in ((both, one, None), (one, both, None), (both, both, one)):
        evidence = compare_leaves(*runs, Rule(1e-3))
        assert [(leaf.leaf, leaf.kind, leaf.accuracy) for leaf in evidence] == [
            ("output", "output", True),
            ("grad", "gradient", False),
        ]
        assert (evidence[1].shape, evidence[1].margin) == ([4], math.inf)
        assert "missing" in evidence[1].message


def test_two_leaves_of_one_name_are_refused():
    leaves = [*run(output=ramp(2)), *run(output=ramp(2))]
    with pytest.raises(ValueError, match="same name"):
        compare_leaves(leaves, leaves, None, Rule(1e-3))


def test_evidence_is_plain_data():
    (evidence,) = compare_leaves(run(output=ramp(2).requires_grad_()), run(output=ramp(2)), None, Rule(1e-3))
    plain = (str, int, float, bool, list, type(None))
    assert all(type(value) in plain for value in asdict(evidence).values())


def test_operands_are_left_alone():
    eager, compiled, reference = ramp(6, dtype=torch.float64), ramp(6, dtype=torch.float64) + 1, ramp(6).double()
    copies = [tensor.clone() for tensor in (eager, compiled, reference)]
    compare_leaf("output", "output", eager, compiled, reference, Rule(1e-3))
    assert all(torch.equal(*pair) for pair in zip(copies, (eager, compiled, reference), strict=True))


def test_finite_trees():
    assert all_finite([ramp(3), {"loss": 0.5, "steps": torch.tensor([1]), "note": None}])
    assert not all_finite([ramp(3), {"loss": math.inf}])
    assert not all_finite((ramp(3), [torch.tensor([1.0, math.nan]).half()]))
