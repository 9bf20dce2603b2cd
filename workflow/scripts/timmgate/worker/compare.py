"""Two tensors, or two trees of them, to numbers and a verdict.

The verdict is that of PyTorch's own compiler benchmarks, `torch._dynamo.utils.same` (torch 2.14), so that results can
be held against theirs. `same` answers with one bit; here every quantity that it looks at is returned as well. Where
`same` raises, the benchmarks count a mismatch; here it is a failed verdict.

Deliberate differences, all outside of what two runs of one model give when nothing is wrong:

* Shapes must be equal. `same` broadcasts: a batch compared with its first sample alone can pass.
* A reference must have eager's structure and shapes. `same` skips what lies past the end of a shorter reference list.
* A float may stand for a tensor, but a list of floats may not, nor an int. NumPy values, and the output classes that
  `same` knows by name, fail.
* A reference on another device is moved to eager's. Keys of a dictionary need not be sortable.
* `same` looks into inductor's configuration for an injected fault; the verdict here depends on the arguments alone.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from timmgate.worker.torch_device import as_real, with_float64

# The numbers of `same`. A multiplier is how often eager's own rmse the compiled run may have; see `multiplier`.
_MULTIPLIER = 2.0
_MULTIPLIER_HALF_PRECISION = 3.0
_MULTIPLIER_NOISY = 3.0
_NOISY_BELOW_NUMEL = 1000
_NOISY_FROM_TOLERANCE = 2e-2
_MULTIPLIER_SMALL = 8.0
_SMALL_BELOW_NUMEL = 1000 if TorchVersion(torch.__version__) >= "2.15.dev0" else 501
_MULTIPLIER_TINY = 10.0
_TINY_UP_TO_NUMEL = 10
_MULTIPLIER_MAX = 10.0
_BETTER_THAN_EAGER_TOLERANCE = 4e-2
_COSINE_EPS = 1e-6
_COSINE_LIMIT = 0.99
DISTANCE_LIMIT = math.sqrt(2 - 2 * _COSINE_LIMIT)
"""How far two vectors of length 1 are apart whose cosine similarity is at the limit."""

_MISSING = object()


@dataclass(frozen=True)
class Rule:
    """How a comparison is judged: the arguments of `same` that the benchmarks vary.

    `tolerance` is atol (in units of the tensor) and rtol at once, and a tenth of it is the absolute part of the rmse
    limit. `cosine` judges by direction and leaves the reference out. `equal_nan` lets NaN match NaN: the benchmarks
    set it but for plain float32 runs. `larger_multiplier` is `use_larger_multiplier_for_smaller_tensor`,
    `max_multiplier` is `force_max_multiplier`. `any_size`: the program is one for every number of images, and the strict
    rule looks at another one.
    """

    tolerance: float
    cosine: bool = False
    equal_nan: bool = True
    larger_multiplier: bool = False
    max_multiplier: bool = False
    any_size: bool = False


@dataclass(frozen=True)
class Leaf:
    """One named result of a run. `value` is a tensor or, where a model returns several, a tree of them."""

    name: str
    kind: str
    value: Any


@dataclass(frozen=True)
class LeafEvidence:
    """What comparing one leaf found: a row of the evidence table.

    Errors are in the units of the tensor; ratios and margins have none. A figure that does not exist (no float64
    reference, a division by zero) or is not a number (NaN among the elements, no elements) is None. Inf stays Inf.

    * `leaf`: path, such as `output`, `output.0`, `gradient.head.weight`.
    * `kind`: as the column of that name in the table of evidence (core.checks).
    * `shape`, `dtype`, `numel`: eager's. Where that is no tensor: [], the name of its type, 0.
    * `eager_rmse`, `compiled_rmse`: sqrt(mean((x - r)^2)) with r the float64 reference. Where none is given, a float64
      eager tensor is its own, as in `same`; other dtypes have none.
    * `eager_relative_error`, `compiled_relative_error`: ||x - r|| / ||r||, None where ||r|| is 0.
    * `error_ratio`: compiled_rmse / eager_rmse, None where eager_rmse is 0.
    * `allowed_error`: the largest compiled_rmse that passes, multiplier * eager_rmse + tolerance / 10. None without a
      reference, and where the rule does not look at it (cosine).
    * `margin`: error over its limit, at most 1.0 exactly when `accuracy`. A leaf may pass by elementwise closeness or
      by rmse (under `Rule.cosine` by cosine instead: (1 - cosine) / 0.01, in float32); the smaller margin counts.
      Inf where nothing can save it: another structure, dtype or shape, or NaN in compiled alone. 1.0 where it passes
      unmeasured, an rmse of NaN against NaN or Inf against Inf. 0.0 where an eager rmse of Inf allows anything finite.
    * `max_abs_error`: largest |compiled - eager|. Equal elements count 0, two NaN too; NaN on one side counts Inf.
    * `cosine`: cosine similarity of compiled and eager, None for a tensor that is zero or not finite.
    * `eager_nan`, `eager_inf`, `compiled_nan`, `compiled_inf`: numbers of such elements, 0 where nothing was compared.
    * `accuracy`: the verdict of `same`; None, as `margin` then, for a leaf that only the strict rule looks at.
    * `message`: why it failed, or "".
    * `strict`, `strict_margin`, `strict_statistic`, `null_rms`, `strict_message`: as in `verdict.LeafVerdict`; None without.
    """

    leaf: str
    kind: str
    shape: list[int] | None = None
    dtype: str | None = None
    numel: int | None = None
    eager_rmse: float | None = None
    compiled_rmse: float | None = None
    eager_relative_error: float | None = None
    compiled_relative_error: float | None = None
    error_ratio: float | None = None
    allowed_error: float | None = None
    margin: float | None = math.inf
    max_abs_error: float | None = None
    cosine: float | None = None
    eager_nan: int = 0
    eager_inf: int = 0
    compiled_nan: int = 0
    compiled_inf: int = 0
    accuracy: bool | None = False
    message: str = ""
    strict: bool | None = None
    strict_margin: float | None = None
    strict_statistic: str | None = None
    strict_message: str | None = None
    null_rms: float | None = None


def compare_leaves(
    eager: Iterable[Leaf], compiled: Iterable[Leaf], reference: Iterable[Leaf] | None, rule: Rule
) -> list[LeafEvidence]:
    """Compare the results of two runs, matched by name: in eager's order, then what the compiled run has in excess.

    `reference` is the float64 run, or None where there is none. A leaf that eager, compiled or a given reference lacks
    is failed evidence, never an exception. The runs agree when every leaf does.

    Raises ValueError when one run has two leaves of one name.
    """
    eager, compiled = _by_name(eager), _by_name(compiled)
    reference = None if reference is None else _by_name(reference)
    evidence = []
    for name, leaf in (eager | compiled).items():
        values = (_value(eager, name), _value(compiled, name), None if reference is None else _value(reference, name))
        evidence += compare_trees(*values, rule, leaf.kind, name)
    return evidence


def compare_trees(
    eager: Any, compiled: Any, reference: Any, rule: Rule, kind: str = "output", name: str = "output"
) -> list[LeafEvidence]:
    """Compare nested lists, tuples and dictionaries of tensors, floats and plain values; one evidence per leaf.

    As in `same`, a list matches a tuple, floats are judged like tensors of the default dtype, and str, int, bool, None
    and torch.device must be equal. `reference` is a tree of the same structure; None, as a whole or for any part, means
    no reference. A mismatch of structure is failed evidence at the place where the trees part, never an exception.
    `name` is the path of the root.
    """
    children = _children(eager)
    if children is None or not _same_container(eager, compiled):
        return [_compare_values(name, kind, eager, compiled, reference, rule)]
    if reference is not None and not _same_container(eager, reference):
        return [_failed(name, kind, eager, f"the fp64 reference is {_type_name(reference)}, not {_type_name(eager)}")]
    others = _children(compiled)
    references = dict.fromkeys(children) if reference is None else _children(reference)
    evidence = []
    for key in [*children, *(key for key in others if key not in children)]:
        values = (tree.get(key, _MISSING) for tree in (children, others, references))
        evidence += compare_trees(*values, rule, kind, f"{name}.{key}")
    return evidence


def compare_leaf(
    name: str, kind: str, eager: Tensor, compiled: Tensor, reference: Tensor | None, rule: Rule
) -> LeafEvidence:
    """Compare two tensors of any shape, dtype and layout, as `same` does, and measure by how much they differ.

    `reference` is what float64 arithmetic gives, of the same shape; one that is not float64 is not used (so for integer
    buffers). Figures are computed in float64, on eager's device or, where that has none, on the host. Another dtype, shape,
    device or layout is failed evidence, never an exception.
    """
    mismatch = _mismatch(eager, compiled, reference)
    if mismatch:
        return _failed(name, kind, eager, mismatch)
    eager, compiled = _strided(eager), _strided(compiled)
    reference = _usable(eager if reference is None else _strided(reference), eager)
    errors = {} if reference is None else _reference_errors(eager, compiled, reference, rule)
    margin = _margin(eager, compiled, reference, errors, rule)
    figures = errors | _differences(eager, compiled)
    evidence = LeafEvidence(
        name,
        kind,
        **_description(eager),
        **_nonfinite_counts(eager, compiled),
        **{column: None if math.isnan(figure) else figure for column, figure in figures.items()},
        margin=margin,
        accuracy=margin <= 1.0,
    )
    return evidence if evidence.accuracy else replace(evidence, message=_reason(evidence, rule))


def all_finite(tree: Any) -> bool:
    """Whether no tensor or float in a tree of lists, tuples and dictionaries holds NaN or Inf."""
    children = _children(tree)
    if children is not None:
        return all(all_finite(child) for child in children.values())
    if isinstance(tree, Tensor):
        return bool(torch.isfinite(_strided(tree)).all())
    return not isinstance(tree, float) or math.isfinite(tree)


def _by_name(leaves: Iterable[Leaf]) -> dict[str, Leaf]:
    leaves = list(leaves)
    by_name = {leaf.name: leaf for leaf in leaves}
    if len(by_name) < len(leaves):
        raise ValueError("two leaves of one run have the same name")
    return by_name


def _value(run: dict[str, Leaf], name: str) -> Any:
    return run[name].value if name in run else _MISSING


def _children(tree: Any) -> dict | None:
    """The children of a container by key or position, None for a leaf."""
    if isinstance(tree, dict):
        return tree
    return dict(enumerate(tree)) if isinstance(tree, (list, tuple)) else None


def _same_container(one: Any, other: Any) -> bool:
    return any(isinstance(one, types) and isinstance(other, types) for types in (dict, (list, tuple)))


def _compare_values(name: str, kind: str, eager: Any, compiled: Any, reference: Any, rule: Rule) -> LeafEvidence:
    """Compare what is not a pair of containers of one sort: tensors, plain values, or two things of different types."""
    numeric = (Tensor, float)
    for run, value in (("eager", eager), ("compiled", compiled), ("fp64 reference", reference)):
        if value is _MISSING:
            return _failed(name, kind, compiled if eager is _MISSING else eager, f"missing in the {run} run")
    if isinstance(eager, numeric) and isinstance(compiled, numeric):
        if not isinstance(reference, (*numeric, type(None))):
            return _failed(name, kind, eager, f"the fp64 reference is {_type_name(reference)}, not a tensor")
        return compare_leaf(name, kind, _tensor(eager), _tensor(compiled), _tensor(reference), rule)
    plain = (str, int, type(None), torch.device)  # bool is an int
    if not isinstance(eager, plain) or not isinstance(compiled, (*plain, float)):
        return _failed(name, kind, eager, f"cannot compare {_type_name(eager)} with compiled {_type_name(compiled)}")
    if eager != compiled:
        return _failed(name, kind, eager, f"compiled gives {compiled!r}, eager {eager!r}")
    return LeafEvidence(name, kind, **_description(eager), margin=0.0, accuracy=True)


def _failed(name: str, kind: str, value: Any, message: str) -> LeafEvidence:
    return LeafEvidence(name, kind, **_description(value), message=message)


def _description(value: Any) -> dict[str, Any]:
    if not isinstance(value, Tensor):
        return {"shape": [], "dtype": _type_name(value), "numel": 0}
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "numel": value.numel()}


def _type_name(value: Any) -> str:
    return type(value).__name__


def _tensor(value: Tensor | float | None) -> Tensor | None:
    return torch.tensor(value) if isinstance(value, float) else value


def _strided(tensor: Tensor) -> Tensor:
    tensor = with_float64(tensor.detach())
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _mismatch(eager: Tensor, compiled: Tensor, reference: Tensor | None) -> str:
    for quality in ("dtype", "layout", "device"):
        expected, actual = getattr(eager, quality), getattr(compiled, quality)
        if actual != expected:
            return f"compiled has {quality} {actual}, eager {expected}"
    if compiled.shape != eager.shape:
        return f"compiled has shape {list(compiled.shape)}, eager {list(eager.shape)}"
    if reference is not None and reference.shape != eager.shape:
        return f"the fp64 reference has shape {list(reference.shape)}, eager {list(eager.shape)}"
    return ""


def _usable(reference: Tensor, eager: Tensor) -> Tensor | None:
    """The reference on eager's device if `same` would look at it, else None."""
    if reference.dtype != torch.float64 or eager.dtype == torch.bool or eager.is_complex():
        return None
    return reference.to(eager.device)


def _rms(tensor: Tensor) -> float:
    """Root mean square as `same` takes it: the order of operations decides the last bit."""
    return torch.sqrt(torch.mean(torch.square(tensor))).item()


def _reference_errors(eager: Tensor, compiled: Tensor, reference: Tensor, rule: Rule) -> dict[str, float]:
    """The columns that come from the float64 reference; NaN where undefined."""
    scale = _rms(reference)
    eager_rmse, compiled_rmse = _rms(reference - eager), _rms(reference - compiled)
    allowed_error = math.nan if rule.cosine else multiplier(eager, rule) * eager_rmse + rule.tolerance / 10.0
    return {
        "eager_rmse": eager_rmse,
        "compiled_rmse": compiled_rmse,
        "eager_relative_error": _quotient(eager_rmse, scale),
        "compiled_relative_error": _quotient(compiled_rmse, scale),
        "error_ratio": _quotient(compiled_rmse, eager_rmse),
        "allowed_error": allowed_error,
    }


def _quotient(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _nonfinite_counts(eager: Tensor, compiled: Tensor) -> dict[str, int]:
    return {
        f"{run}_{kind}": int(test(tensor).sum())
        for run, tensor in (("eager", eager), ("compiled", compiled))
        for kind, test in (("nan", torch.isnan), ("inf", torch.isinf))
    }


def multiplier(tensor: Tensor, rule: Rule) -> float:
    """How often eager's rmse the compiled run may have, in the order in which `same` asks.

    In few elements, in 1x1 kernels and in models whose tolerance had to be raised, noise dominates the rmse.
    """
    if rule.max_multiplier:
        return _MULTIPLIER_MAX
    if rule.larger_multiplier and tensor.numel() <= _TINY_UP_TO_NUMEL:
        return _MULTIPLIER_TINY
    if rule.larger_multiplier and tensor.numel() < _SMALL_BELOW_NUMEL:
        return _MULTIPLIER_SMALL
    pointwise_kernel = tensor.ndim == 4 and tensor.shape[-1] == tensor.shape[-2] == 1
    if tensor.numel() < _NOISY_BELOW_NUMEL or pointwise_kernel or rule.tolerance >= _NOISY_FROM_TOLERANCE:
        return _MULTIPLIER_NOISY
    return _MULTIPLIER_HALF_PRECISION if is_half(tensor.dtype) else _MULTIPLIER


def is_half(dtype: torch.dtype) -> bool:
    """Whether a dtype is of half precision."""
    return dtype in (torch.float16, torch.bfloat16)


def _margin(eager: Tensor, compiled: Tensor, reference: Tensor | None, errors: dict[str, float], rule: Rule) -> float:
    """The smallest error over its limit among the ways to pass; at most 1.0 exactly when `same` says yes."""
    if eager.dtype == torch.bool:
        return _closeness_margin(eager.to(torch.uint8), compiled.to(torch.uint8), rule.tolerance, rule.equal_nan)
    if rule.cosine:
        eager, compiled = eager.flatten().to(torch.float32), compiled.flatten().to(torch.float32)
        return min(_closeness_margin(eager, compiled, rule.tolerance, True), cosine_margin(eager, compiled))
    margin = _closeness_margin(eager, compiled, rule.tolerance, rule.equal_nan)
    if reference is None:
        return margin
    if eager.isnan().any() and not compiled.isnan().any():  # compiled may then be better than eager
        expected = reference.to(compiled.dtype)
        margin = min(margin, _closeness_margin(expected, compiled, _BETTER_THAN_EAGER_TOLERANCE, rule.equal_nan))
    return min(margin, _rmse_margin(errors, rule.equal_nan))


def _closeness_margin(expected: Tensor, actual: Tensor, tolerance: float, equal_nan: bool) -> float:
    """Largest |expected - actual| / (tolerance + tolerance |actual|): at most 1.0 exactly when torch.allclose says yes.

    Errors and limits are taken in the tensors' own dtype, as torch.isclose does: in bfloat16 their rounding decides.
    Only the quotient, which cannot round across 1.0, is in float64.
    """
    if not expected.numel():
        return 0.0
    matching = expected == actual
    if equal_nan:
        matching |= expected.isnan() & actual.isnan()
    if not (actual.is_floating_point() or actual.is_complex()):
        actual = actual.to(torch.get_default_dtype())
    error = (expected - actual).abs()
    allowed = tolerance + (tolerance * actual).abs()
    ratio = (error.double() / allowed.double()).nan_to_num(nan=math.inf, posinf=math.inf)
    return ratio.masked_fill(matching, 0.0).max().item()


def cosine_margin(eager: Tensor, compiled: Tensor) -> float:
    cosine = torch.nn.functional.cosine_similarity(eager, compiled, dim=0, eps=_COSINE_EPS).item()
    return math.inf if math.isnan(cosine) else max(0.0, 1.0 - cosine) / (1.0 - _COSINE_LIMIT)


def _rmse_margin(errors: dict[str, float], equal_nan: bool) -> float:
    eager_rmse, compiled_rmse, allowed = errors["eager_rmse"], errors["compiled_rmse"], errors["allowed_error"]
    if math.isnan(eager_rmse) or math.isnan(compiled_rmse):
        return 1.0 if equal_nan and math.isnan(eager_rmse) and math.isnan(compiled_rmse) else math.inf
    if compiled_rmse == allowed:  # also 0 of 0, and Inf of Inf, which have no quotient
        return 1.0 if compiled_rmse else 0.0
    return compiled_rmse / allowed if allowed else math.inf


def _differences(eager: Tensor, compiled: Tensor) -> dict[str, float]:
    """The columns that compare the two runs with each other, in float64; NaN where undefined."""
    if not eager.numel():
        return {}
    eager, compiled = _wide(eager), _wide(compiled)
    matching = (eager == compiled) | (eager.isnan() & compiled.isnan())
    difference = (compiled - eager).abs_().masked_fill_(matching, 0.0).nan_to_num_(nan=math.inf, posinf=math.inf)
    cosine = torch.dot(eager, compiled) / (eager.norm() * compiled.norm())
    return {"max_abs_error": difference.max().item(), "cosine": cosine.clamp_(-1.0, 1.0).item()}


def _wide(tensor: Tensor) -> Tensor:
    return as_real(tensor).flatten().double()


def _reason(evidence: LeafEvidence, rule: Rule) -> str:
    """Why `same` refuses this leaf, in one sentence."""
    if rule.cosine and evidence.dtype != "bool":
        cosine = "undefined" if evidence.cosine is None else f"{evidence.cosine:.6g}, below 0.99"
        reason = f"cosine similarity of compiled and eager is {cosine}"
    elif evidence.allowed_error is not None and evidence.compiled_rmse is not None:
        reason = f"compiled has rmse {evidence.compiled_rmse:.3g} against fp64, allowed is {evidence.allowed_error:.3g}"
    else:
        reason = f"compiled is off by up to {evidence.max_abs_error:.3g} at tolerance {rule.tolerance:g}, "
        reason += "and there is no fp64 error to allow for it"
    nonfinite = (evidence.compiled_nan, evidence.compiled_inf, evidence.eager_nan, evidence.eager_inf)
    return reason + ("; compiled has {} NaN and {} Inf, eager {} and {}".format(*nonfinite) if any(nonfinite) else "")
