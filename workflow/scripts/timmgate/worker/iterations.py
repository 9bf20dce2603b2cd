"""A run, which is a few iterations, and what is wrong in it although the values that are compared are right.

The last iteration is compared by every rule. A program may be wrong in another one alone, as where a kernel that is tried
out in the first call writes over its own inputs; and it may write over what it should only read.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_structure

from timmgate.core.spec import Spec
from timmgate.core.verdict import OUTPUTS, AlwaysWrong
from timmgate.worker import backends, models, torch_device
from timmgate.worker.compare import Leaf, LeafEvidence, Rule, compare_leaves
from timmgate.worker.training_step import cloned, fresh, gradient, iterate, make_optimizer

ITERATIONS = 2
"""Iterations of a run, of which the last is compared (benchmarks/dynamo --iterations)."""

GRADIENTS = ("gradient", "input_gradient")
"""Kinds of leaves."""

KINK_TOLERANCE = 1.0
"""Tolerance of gradients in units of their own size, where one that crosses the kink of an activation jumps in one iteration
alone: a tenth of it is what the root mean square may be off by. Jumps of 0.3 % were seen. A choice.
"""

WORSE_FACTOR = 2.0
"""A leaf so many times beyond its limit, and so many times farther from it than in the other iteration, is wrong in one
alone: the dynamo rule's limit has false alarms, which elsewhere null runs and other seeds take back.
"""

Result = list[Leaf]
"""What an iteration computed: its output, or its prediction, loss, gradients, parameters and buffers."""


@dataclass(frozen=True)
class Run:
    """`leaves` are what the last iteration computed, `first` what is kept of the first one.

    `again` is what the last iteration of another run from the same weights computed, where one was made.
    `written` are names of images and of tensors of the model that are not as they were before the run, and of outputs that
    are not as they were after it; `unwritten` are names of images and tensors that are. `ungraded` are names of the
    parameters that got no gradient, not even zeros: an optimizer passes them over.
    """

    leaves: Result
    first: Result
    written: frozenset[str]
    unwritten: frozenset[str]
    ungraded: frozenset[str] = frozenset()
    again: Result | None = None


def run(
    spec: Spec,
    model: torch.nn.Module,
    images: torch.Tensor,
    forward: Callable[..., Any] | None = None,
    original: torch.nn.Module | None = None,
    after_first: Callable[[], None] = lambda: None,
) -> Run:
    """Seed and iterate. `model` is changed by training; `original` is the one that it is a copy of, where that matters.

    Gradients of a first iteration are kept of compiled runs: where eager has the same ones in the last, they are known. With
    an optimizer it has not, and they are kept of all. What an optimizer steps is looked at before its first step.
    """
    torch_device.seed_everything(spec.seed)
    given, images, optimizer = images, fresh(spec, images), make_optimizer(spec, model)
    before = buffers_before(spec, model)
    kinds = {*OUTPUTS, "loss", "buffer", "images"}
    if forward is not None or optimizer is not None:
        kinds |= {*GRADIENTS}
    first: Result = []
    changed: dict[str, bool] = {}
    if optimizer and original is not None:
        before_step = optimizer.register_step_pre_hook(
            lambda *_: changed.update(_changed(dict(model.named_parameters()), dict(original.named_parameters())))
        )
    for number in range(ITERATIONS):
        returned = iterate(spec, model, model if forward is None else forward, images, optimizer)
        if number == 0:
            after_first()
            if optimizer and original is not None:
                before_step.remove()
            found = [*leaves_of(spec, model, images, returned), *written_to(before, model, given, images)]
            first = kept(leaf for leaf in found if leaf.kind in kinds)
    torch_device.synchronize(spec.device)
    changed["images"] = not torch.equal(images, given)
    if original is not None:
        changed |= _changed(_state(model, optimizer is not None), _state(original, optimizer is not None))
    if forward is not None and backends.has_own_tensors(spec):
        changed = {"images": changed["images"]}
    names = {is_changed: frozenset(name for name in changed if changed[name] == is_changed) for is_changed in (True, False)}
    weights = model.named_parameters() if spec.options.training else ()
    ungraded = frozenset(name for name, weight in weights if weight.grad is None)
    leaves = [*leaves_of(spec, model, images, returned), *written_to(before, model, given, images)]
    return Run(leaves, first, names[True], names[False], ungraded)


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


def buffers_before(spec: Spec, model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """Copies of the buffers, for `written_to`; None in training, where all are leaves, and where a program has its own."""
    if spec.options.training or backends.has_own_tensors(spec):
        return None
    buffers = {name: buffer for name, buffer in model.named_buffers() if type(buffer) is torch.Tensor}  # not discarded
    return {name: buffer.clone() for name, buffer in buffers.items()}


def written_to(
    before: Mapping[str, torch.Tensor] | None, model: torch.nn.Module, given: torch.Tensor, images: torch.Tensor
) -> Result:
    """At inference, the buffers and images that are not as they were `before`: leaves like an output."""
    if before is None:
        return []
    changed = _changed(dict(model.named_buffers()), before)
    buffers = [Leaf(f"buffer.{name}", "buffer", buffer) for name, buffer in model.named_buffers() if changed.get(name)]
    return buffers if torch.equal(images, given) else [*buffers, Leaf("images", "images", images)]


def changed_parameters(model: torch.nn.Module, original: torch.nn.Module) -> frozenset[str]:
    """Names of the parameters that are not those of the original."""
    changed = _changed(dict(model.named_parameters()), dict(original.named_parameters()))
    return frozenset(name for name, is_changed in changed.items() if is_changed)


def without_parameters(leaves: Iterable[Leaf]) -> Result:
    """What null runs are compared in: an optimizer may make a learning rate of the rounding of a gradient."""
    return [leaf for leaf in leaves if leaf.kind != "parameter"]


def kept(leaves: Iterable[Leaf]) -> Result:
    """Copies of leaves that the next run would write into: buffers, gradients, outputs of a CUDA graph."""
    return [replace(leaf, value=cloned(leaf.value)) for leaf in leaves]


def before_another(found: Run, model: torch.nn.Module, another: Callable[[], Result], may_reuse: bool) -> tuple[Run, Result]:
    """The run with copies of its leaves, and the leaves of another one of the same program, which comes after it.

    Outputs and gradients that this one writes over count as written to, unless the program may reuse their memory, as CUDA
    graphs do, or the model returns a tensor of its own.
    """
    own = {*map(_storage, models.state(model).values()), None}
    outputs = [leaf for leaf in found.leaves if leaf.kind in (*OUTPUTS, *GRADIENTS) and not may_reuse]
    copies = {leaf.name: leaf for leaf in kept(found.leaves)}
    leaves = another()
    lost = {leaf.name for leaf in outputs if not _are_same(leaf.value, copies[leaf.name].value, own)}
    return replace(found, leaves=list(copies.values()), written=found.written | lost), leaves


def _storage(tensor: torch.Tensor) -> int | None:
    """Where the elements of a tensor lie; None where there is no such place."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (NotImplementedError, RuntimeError):
        return None


def restore(names: Collection[str], model: torch.nn.Module, original: torch.nn.Module) -> None:
    """Give buffers of a model the values that they have in the original."""
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, buffer in original.named_buffers():
            if name in names:
                buffers[name].copy_(buffer)


def _are_same(output: Any, copy: Any, own: Collection[int | None]) -> bool:
    """Whether an output is as it was, but for tensors of the model's own, by where they lie."""
    pairs = zip(tree_leaves(output), tree_leaves(copy), strict=True)
    tensors = (pair for pair in pairs if isinstance(pair[0], torch.Tensor) and _storage(pair[0]) not in own)
    return all(torch.equal(*map(torch.nan_to_num, pair)) for pair in tensors)


def _changed(now: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> dict[str, bool]:
    """By name, whether a tensor is another one than before, of those that can be compared."""
    both = {name: (tensor, before[name]) for name, tensor in now.items() if name in before}
    return {name: not torch.equal(*pair) for name, pair in both.items() if _are_alike(*pair)}


def _are_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both can be compared: a compiler may discard the weights of its copy of a model, pack, cast or move them."""
    return type(one) is type(other) and all(
        getattr(one, quality) == getattr(other, quality) for quality in ("shape", "dtype", "layout", "device")
    )


def _state(model: torch.nn.Module, steps: bool) -> dict[str, torch.Tensor]:
    """Tensors of a model; not its parameters where an optimizer steps: whether rounding undoes a step is chance."""
    return dict(model.named_buffers()) | ({} if steps else dict(model.named_parameters()))


def compare_runs(
    eager: Run, compiled: Run, reference: Run | None, how: Rule, repeats_itself: bool
) -> tuple[list[LeafEvidence], list[LeafEvidence]]:
    """The evidence of the last iteration, and what is wrong by every rule (`verdict.ALWAYS_WRONG`).

    Which values are wrong is only known of a model that repeats itself.
    """
    last = compare_leaves(eager.leaves, compiled.leaves, reference.leaves if reference else None, how)
    found = list(_wrong_values(eager, compiled, reference, last, how)) if repeats_itself else []
    return last, found + list(_wrong_whatever_the_values(eager, compiled))


def _wrong_values(
    eager: Run, compiled: Run, reference: Run | None, last: Sequence[LeafEvidence], how: Rule
) -> Iterator[LeafEvidence]:
    """Leaves with wrong values, by `last`, the evidence of the last iteration, and others."""
    reference = None if how.cosine else reference
    by_name = {leaf.leaf: leaf for leaf in last}
    yield from _in_one_iteration(eager, compiled, reference, by_name, how)
    yield from _in_one_run(eager, compiled, reference, by_name, how)
    if how.any_size:
        yield from _of_the_whole_batch(last)


def _wrong_whatever_the_values(eager: Run, compiled: Run) -> Iterator[LeafEvidence]:
    """What no random number excuses."""
    yield from _written_to(eager, compiled)
    yield from _of_another_type(eager, compiled)
    yield from _in_another_container(eager, compiled)
    yield from _without_gradient(eager, compiled)


def _in_one_iteration(
    eager: Run, compiled: Run, reference: Run | None, last: Mapping[str, LeafEvidence], how: Rule
) -> Iterator[LeafEvidence]:
    """What is wrong in the first iteration alone; or in the last one alone, where both compute the same.

    Gradients are looked at in units of their own size too, as the tolerance, which is absolute, is larger than many of them;
    and only so where the iterations differ, as one of them alone may cross a kink then.
    """
    is_repeated = are_equal(eager)
    names = {leaf.name for leaf in _first(eager, is_repeated)} & {leaf.name for leaf in compiled.first}
    runs = [each for each in (eager, compiled, reference) if each]
    first = [[leaf for leaf in _first(each, is_repeated) if leaf.name in names] for each in runs]
    as_they_are = [leaf for leaf in _compared(first, how) if is_repeated or leaf.kind not in GRADIENTS]
    found = [*_in_one_alone(as_they_are, last, is_repeated)]
    if reference:
        sizes, much = _sizes(first[0], first[-1]), replace(how, tolerance=KINK_TOLERANCE)
        others = {leaf.leaf: leaf for leaf in _in_units([each.leaves for each in runs], sizes, much)}
        found += _in_one_alone(_in_units(first, sizes, much), others, is_repeated)
    yield from {leaf.leaf: leaf for leaf in found}.values()


def _in_one_alone(
    first: Iterable[LeafEvidence], last: Mapping[str, LeafEvidence], is_repeated: bool
) -> Iterator[LeafEvidence]:
    """What is wrong in one of two iterations, by the evidence on both."""
    for leaf in first:
        other = last.get(leaf.leaf)
        if _is_worse(leaf, other):
            yield _alone("first_iteration", leaf, "in the first iteration alone")
        elif is_repeated and other and _is_worse(other, leaf):
            yield _alone("last_iteration", other, "in the last iteration alone")


def _sizes(eager: Result, reference: Result) -> dict[str, float]:
    """Root mean squares of gradients, but for those that are all rounding in eager, as of a bias before a normalisation."""
    found = {}
    for ours, exact in zip(eager, reference, strict=True):
        if ours.kind in GRADIENTS:
            one, other = torch_device.wide(ours.value), torch_device.wide(exact.value)
            size, error = (float(each.square().mean().sqrt()) for each in (other, one - other))
            found |= {ours.name: size} if size > error else {}
    return found


def _compared(runs: Sequence[Result], how: Rule) -> list[LeafEvidence]:
    """The evidence on leaves of eager, compiled and, if there is one, a reference."""
    eager, compiled, *exact = runs
    return compare_leaves(eager, compiled, exact[0] if exact else None, how)


def _in_units(runs: Sequence[Result], sizes: Mapping[str, float], how: Rule) -> Iterator[LeafEvidence]:
    """The same of those that have a size, each over that: one by one, as copies of all gradients take much memory."""
    by_name = [{leaf.name: leaf for leaf in leaves} for leaves in runs]
    for name, size in sizes.items():
        leaves = (each[name] for each in by_name)
        yield from _compared([[replace(leaf, value=leaf.value / size)] for leaf in leaves], how)


def _in_one_run(
    eager: Run, compiled: Run, reference: Run | None, last: Mapping[str, LeafEvidence], how: Rule
) -> Iterator[LeafEvidence]:
    """What is wrong in the last iteration of one of two runs from the same weights, where there are two.

    Not of parameters: an optimizer may make a learning rate of the rounding of a gradient.
    """
    kinds = {leaf.kind for leaf in compiled.first}
    ours, theirs, exact = (
        None if leaves is None else [leaf for leaf in leaves if leaf.kind in kinds]
        for leaves in (eager.leaves, compiled.again, reference and reference.leaves)
    )
    for leaf in compare_leaves(ours or [], theirs, exact, how) if theirs is not None else ():
        other = last.get(leaf.leaf)
        wrong_one = leaf if _is_worse(leaf, other) else other if other and _is_worse(other, leaf) else None
        if wrong_one:
            yield _alone("one_run", wrong_one, "in one of two equal runs")


def _of_the_whole_batch(last: Sequence[LeafEvidence]) -> Iterator[LeafEvidence]:
    """Outputs that are wrong for all images, where null runs have fewer of them."""
    for leaf in last:
        if leaf.kind in OUTPUTS and _is_worse(leaf, None):
            yield _alone("whole_batch", leaf, "with all images")


def _written_to(eager: Run, compiled: Run) -> Iterator[LeafEvidence]:
    """What eager leaves as it is, and the program does not; at inference also the reverse, in training those are leaves."""
    for name in sorted(compiled.written - eager.written):
        message = "the compiled program has written to it, which eager has not"
        yield LeafEvidence(_wrong("written", name), "written", message=message)
    at_inference = any(leaf.kind == "output" for leaf in eager.leaves)
    for name in sorted(eager.written & compiled.unwritten) if at_inference else ():
        message = "eager has written to it, which the compiled program has not"
        yield LeafEvidence(_wrong("written", name), "written", message=message)


def _of_another_type(eager: Run, compiled: Run) -> Iterator[LeafEvidence]:
    """Outputs of a class of tensors that is not eager's: they need not have been computed when they are returned."""
    theirs = {leaf.name: tree_leaves(leaf.value) for leaf in compiled.leaves}
    for leaf in eager.leaves:
        for one, other in zip(tree_leaves(leaf.value), theirs.get(leaf.name, []), strict=False):
            if leaf.kind in OUTPUTS and isinstance(other, torch.Tensor) and type(other) not in (type(one), torch.Tensor):
                message = f"a {type(other).__name__} instead of a {type(one).__name__}"
                yield LeafEvidence(_wrong("type", leaf.name), "type", message=message)


def _in_another_container(eager: Run, compiled: Run) -> Iterator[LeafEvidence]:
    """Outputs in containers that cannot be used as eager's: a list instead of a tuple with names, say."""
    theirs = {leaf.name: leaf.value for leaf in compiled.leaves}
    for leaf in eager.leaves:
        if leaf.kind in OUTPUTS and leaf.name in theirs and tree_structure(leaf.value) != tree_structure(theirs[leaf.name]):
            one, other = (type(value).__name__ for value in (leaf.value, theirs[leaf.name]))
            message = f"a {other} instead of a {one}" if one != other else f"a {one} of another structure"
            yield LeafEvidence(_wrong("container", leaf.name), "type", message=message)


def _without_gradient(eager: Run, compiled: Run) -> Iterator[LeafEvidence]:
    """Parameters that eager gives a gradient, be it of zeros, and the program none: an optimizer passes them over.

    Not the reverse: AOTAutograd makes zeros of the gradients of outputs that nothing is made of.
    """
    known = {leaf.name for leaf in eager.leaves if leaf.kind == "gradient"}
    for name in sorted(compiled.ungraded - eager.ungraded):
        if f"gradient.{name}" in known:
            yield LeafEvidence(_wrong("without_gradient", name), "gradient", message="no gradient, where eager gives one")


def _alone(word: AlwaysWrong, leaf: LeafEvidence, where: str) -> LeafEvidence:
    """The evidence on a leaf that is wrong there alone."""
    return replace(leaf, leaf=_wrong(word, leaf.leaf), message=f"{where}: {leaf.message}")


def _wrong(word: AlwaysWrong, leaf: str) -> str:
    """The name under which the leaf is wrong."""
    return f"{word}.{leaf}"


def _is_worse(leaf: LeafEvidence, other: LeafEvidence | None) -> bool:
    usual = other.margin if other and other.margin is not None else 1.0
    return leaf.margin is not None and leaf.margin > WORSE_FACTOR * max(1.0, usual)


def are_equal(eager: Run) -> bool:
    """Whether both iterations are the same: no optimizer has been there, and no random mask."""
    outputs = [[leaf for leaf in leaves if leaf.kind in OUTPUTS] for leaves in (eager.first, eager.leaves)]
    return all(leaf.accuracy for leaf in compare_leaves(*outputs, None, Rule(tolerance=0.0)))


def _first(run: Run, is_repeated: bool) -> Result:
    """The leaves of the first iteration, with the gradients of the last one where these are the same."""
    names = {leaf.name for leaf in run.first}
    same = [leaf for leaf in run.leaves if "gradient" in leaf.kind and leaf.name not in names] if is_repeated else []
    return [*run.first, *same]
