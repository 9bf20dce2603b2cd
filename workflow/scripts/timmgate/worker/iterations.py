"""A run, which is a few iterations, and what is wrong in it although the values that are compared are right.

The last iteration is compared by every rule. A program may be wrong in another one alone, as where a kernel that is tried
out in the first call writes over its own inputs; and it may write over what it should only read.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from timmgate.core.spec import Spec
from timmgate.core.verdict import OUTPUTS
from timmgate.worker import torch_device
from timmgate.worker.compare import Leaf, LeafEvidence, Rule, compare_leaves
from timmgate.worker.training_step import cloned, fresh, gradient, iterate, make_optimizer

ITERATIONS = 2
"""Iterations of a run, of which the last is compared (benchmarks/dynamo --iterations)."""

WORSE_FACTOR = 2.0
"""A leaf so many times beyond its limit, and so many times farther from it than in the other iteration, is wrong in one
alone: the dynamo rule's limit has false alarms, which elsewhere null runs and other seeds take back.
"""

Result = list[Leaf]
"""What an iteration computed: its output, or its prediction, loss, gradients, parameters and buffers."""


@dataclass(frozen=True)
class Run:
    """`leaves` are what the last iteration computed, `first` what is kept of the first one.

    `written` are names of images and of tensors of the model that are not as they were before the run, and of outputs that
    are not as they were after it.
    """

    leaves: Result
    first: Result
    written: frozenset[str]


def run(
    spec: Spec,
    model: torch.nn.Module,
    images: torch.Tensor,
    forward: Callable[..., Any] | None = None,
    original: torch.nn.Module | None = None,
    after_first: Callable[[], None] = lambda: None,
) -> Run:
    """Seed and iterate. `model` is changed by training; `original` is the one that it is a copy of, where that matters.

    Gradients of a first iteration are kept of compiled runs: where eager has the same ones in the last, they are known.
    """
    torch_device.seed_everything(spec.seed)
    given, images, optimizer = images, fresh(spec, images), make_optimizer(spec, model)
    kinds = {*OUTPUTS, "loss", "buffer"}
    if forward is not None and optimizer is None:
        kinds |= {"gradient", "input_gradient"}
    first: Result = []
    for number in range(ITERATIONS):
        returned = iterate(spec, model, model if forward is None else forward, images, optimizer)
        if number == 0:
            after_first()
            first = kept(leaf for leaf in leaves_of(spec, model, images, returned) if leaf.kind in kinds)
    torch_device.synchronize(spec.device)
    return Run(
        leaves_of(spec, model, images, returned),
        first,
        frozenset(_written(model, original, images, given, optimizer is not None)),
    )


def leaves_of(spec: Spec, model: torch.nn.Module, images: torch.Tensor, returned: Any) -> Result:
    """The leaves of an iteration, by what it returned and what is in the model and the images now."""
    if not spec.options.training:
        return [Leaf("output", "output", returned)]
    prediction, loss = returned
    return [
        Leaf("prediction", "prediction", prediction),
        Leaf("loss", "loss", loss),
        *(Leaf(f"gradient.{name}", "gradient", gradient(weight)) for name, weight in model.named_parameters()),
        *(Leaf(f"parameter.{name}", "parameter", weight.detach()) for name, weight in model.named_parameters()),
        *(Leaf(f"buffer.{name}", "buffer", buffer) for name, buffer in model.named_buffers()),
        Leaf("input_gradient", "input_gradient", gradient(images)),
    ]


def kept(leaves: Iterable[Leaf]) -> Result:
    """Copies of leaves that the next run would write into: buffers, gradients, outputs of a CUDA graph."""
    return [replace(leaf, value=cloned(leaf.value)) for leaf in leaves]


def before_another(found: Run, another: Callable[[], Result], may_reuse: bool) -> tuple[Run, Result]:
    """The run with copies of its leaves, and the leaves of another one of the same program, which comes after it.

    Outputs that this one writes over count as written to, unless the program may reuse their memory, as CUDA graphs do.
    """
    copies, leaves = kept(found.leaves), another()
    outputs = [(old, copy) for old, copy in zip(found.leaves, copies, strict=True) if old.kind in OUTPUTS and not may_reuse]
    lost = {old.name for old, copy in outputs if not _are_same(old.value, copy.value)}
    return replace(found, leaves=copies, written=found.written | lost), leaves


def _are_same(one: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(*map(torch.nan_to_num, pair)) for pair in pairs if isinstance(pair[0], torch.Tensor))


def _written(
    model: torch.nn.Module, original: torch.nn.Module | None, images: torch.Tensor, given: torch.Tensor, steps: bool
) -> Iterator[str]:
    """What is not as it was; not of parameters where an optimizer steps: whether rounding undoes a step is chance."""
    if not torch.equal(images, given):
        yield "images"
    before = _state(original, steps) if original is not None else {}
    for name, tensor in _state(model, steps).items():
        if name in before and _are_alike(tensor, before[name]) and not torch.equal(tensor, before[name]):
            yield name


def _are_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both can be compared: a compiler may discard the weights of its copy of a model, pack, cast or move them."""
    return type(one) is type(other) and all(
        getattr(one, quality) == getattr(other, quality) for quality in ("shape", "dtype", "layout", "device")
    )


def _state(model: torch.nn.Module, steps: bool) -> dict[str, torch.Tensor]:
    return dict(model.named_buffers()) | ({} if steps else dict(model.named_parameters()))


def compare_runs(
    eager: Run, compiled: Run, reference: Run | None, how: Rule, repeats_itself: bool
) -> tuple[list[LeafEvidence], list[LeafEvidence]]:
    """The evidence of the last iteration, and what is `wrong`, which is only known of a model that repeats itself."""
    last = compare_leaves(eager.leaves, compiled.leaves, reference.leaves if reference else None, how)
    return last, list(wrong(eager, compiled, reference, last, how)) if repeats_itself else []


def wrong(
    eager: Run, compiled: Run, reference: Run | None, last: Sequence[LeafEvidence], how: Rule
) -> Iterator[LeafEvidence]:
    """What is wrong whatever null runs say: in one iteration alone, or written to. `last` is the evidence of the last one.

    Eager, which repeats itself, is what the program is to be like: what it leaves as it is, the program must not write to.
    """
    is_repeated, by_name = _is_repeated(eager), {leaf.leaf: leaf for leaf in last}
    names = {leaf.name for leaf in _first(eager, is_repeated)} & {leaf.name for leaf in compiled.first}
    runs = (eager, compiled, None if how.cosine else reference)
    ours, theirs, exact = (
        [leaf for leaf in _first(each, is_repeated) if leaf.name in names] if each else None for each in runs
    )
    for leaf in compare_leaves(ours or [], theirs or [], exact, how):
        other = by_name.get(leaf.leaf)
        if _is_worse(leaf, other):
            yield replace(leaf, leaf=f"first_iteration.{leaf.leaf}", message=f"in the first iteration alone: {leaf.message}")
        elif is_repeated and other and _is_worse(other, leaf):
            yield replace(other, leaf=f"last_iteration.{leaf.leaf}", message=f"in the last iteration alone: {other.message}")
    for name in sorted(compiled.written - eager.written):
        message = "the compiled program has written to it, which eager has not"
        yield LeafEvidence(f"written.{name}", "written", message=message)


def _is_worse(leaf: LeafEvidence, other: LeafEvidence | None) -> bool:
    usual = other.margin if other and other.margin is not None else 1.0
    return leaf.margin is not None and leaf.margin > WORSE_FACTOR * max(1.0, usual)


def _is_repeated(eager: Run) -> bool:
    """Whether both iterations are the same: no optimizer has been there, and no random mask."""
    outputs = [[leaf for leaf in leaves if leaf.kind in OUTPUTS] for leaves in (eager.first, eager.leaves)]
    return all(leaf.accuracy for leaf in compare_leaves(*outputs, None, Rule(tolerance=0.0)))


def _first(run: Run, is_repeated: bool) -> Result:
    """The leaves of the first iteration, with the gradients of the last one where these are the same."""
    names = {leaf.name for leaf in run.first}
    same = [leaf for leaf in run.leaves if "gradient" in leaf.kind and leaf.name not in names] if is_repeated else []
    return [*run.first, *same]
