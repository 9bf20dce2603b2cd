"""Does compiled compute at the timed batch size what it should? The accuracy check, at another batch size, cannot know.

Where memory admits it, both sides are held against float64 on the same images: at inference in slices, where images do not
see each other. Else eager's error with 8 images tells how large an error is usual. Where even those have no float64, or the
mode asks for it, the direction is compared, as in the accuracy check.

The error that is allowed is that of the dynamo rule, made relative: multiplier * eager's error + tolerance / 10, and not an
error in the units of a tensor, for gradients may well be smaller than any tolerance. All leaves of a kind are one vector:
a single one, as the bias before a normalisation, may be zero but for rounding, and then has no relative error.
"""

import itertools
import math
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from timmgate.core.spec import ACCURACY_BATCH_SIZE, Spec
from timmgate.core.verdict import OF_A_SAMPLE, OUTPUTS
from timmgate.system.process_tree import machine_memory_bytes, tree_rss_bytes
from timmgate.worker import backends, compare, models, null_runs, peak_memory, torch_device
from timmgate.worker.accuracy import rule
from timmgate.worker.equivalence import are_the_same
from timmgate.worker.training_step import fresh, gradient, iterate

NULL_RUNS = ["outputs"] * 3
"""Families of the null runs."""

ROUNDINGS = 4
"""By so many the results of one program may differ, as where tensors lie may choose another kernel. A choice."""

INTEGERS_THAT_DIFFER = 0.02
"""Share of the integers of an output, as of classes, that may be others: rounding decides a draw. A choice."""

OF_MORE_SAMPLES = 2
"""So many times as far as the worst of the 8 images that tell how large an error is usual, the worst of a batch may be off.

A choice.
"""

Leaves = dict[str, list[Tensor]]
"""What one iteration computed, by kind: outputs, in training gradients and input gradient, and what buffers changed by."""


@dataclass(frozen=True)
class Judgement:
    """How far a `kind` of leaves is off: relative `error` against `reference`, and `margin`, that over what is allowed."""

    kind: str
    error: float
    margin: float
    reference: str


def judge(
    spec: Spec,
    model: torch.nn.Module,
    forward: Callable[..., Any],
    batches: Sequence[Tensor],
    eager_peak_bytes: int | None,
    memory_bytes: int | None,
) -> dict[str, Any]:
    """The columns `timed_...`: the worst of the batches of an iteration, of those where eager itself is finite.

    `eager_peak_bytes` is the peak of an eager iteration over all of them, `memory_bytes` what the process may take.
    """
    room = images_that_fit(spec, model, batches, eager_peak_bytes, memory_bytes)
    judgements = [(made, len(batch)) for batch in batches if (made := _judge_batch(spec, model, forward, batch, room))]
    if not judgements:
        return {"timed_reference": "none"}
    worst, images = max(judgements, key=lambda judged: judged[0].margin)
    return {
        "timed_output_ok": worst.margin <= 1.0,
        "timed_output_kind": worst.kind,
        "timed_output_error": worst.error,
        "timed_output_margin": worst.margin,
        "timed_output_batch_size": images,
        "timed_reference": worst.reference,
    }


def has_changed(spec: Spec, before: Sequence[Leaves], now: Sequence[Leaves]) -> bool:
    """Whether the outputs of some batch are others than before by more than the tolerance of the dynamo rule.

    Not gradients, which jump at kinks: another program is judged anew.
    """
    allowed = rule(spec, has_reference=True).tolerance + _roundings(spec)
    return any(error > max(allowed, least) for kind, error, least in _changes(before, now) if kind.startswith(OUTPUTS))


def is_another_program(spec: Spec, before: Sequence[Leaves], now: Sequence[Leaves]) -> bool:
    """Whether so much of what it computes has changed that another judgement could come of it: a tenth of the least that is
    allowed, which what an accelerator sums in any order stays below.
    """
    allowed = _floor(rule(spec, has_reference=True)) / 10 + _roundings(spec)
    return any(error > max(allowed, least) for _, error, least in _changes(before, now))


def _changes(before: Sequence[Leaves], now: Sequence[Leaves]) -> Iterator[tuple[str, float, float]]:
    """By kind, the relative error of each batch against what it was, where that is finite, and what any may have."""
    for was, is_now in zip(before, now, strict=True):
        for kind, leaves in was.items():
            if compare.all_finite(leaves):
                yield kind, relative_error(is_now.get(kind), leaves), _least(leaves)


def _roundings(spec: Spec) -> float:
    return ROUNDINGS * torch.finfo(models.computing_dtype(spec)).eps


def images_that_fit(
    spec: Spec, model: torch.nn.Module, batches: Sequence[Tensor], eager_peak_bytes: int | None, memory_bytes: int | None
) -> int:
    """With how many images one iteration in float64 fits into the memory that is left, by what an eager one took.

    As many as the accuracy check takes where that is not known.
    """
    if eager_peak_bytes is None:
        return ACCURACY_BATCH_SIZE
    dtypes = (models.cast_dtype(spec), models.amp_dtype(spec) or torch.float64)
    widening = torch.float64.itemsize / min(dtype.itemsize for dtype in dtypes)
    weights = peak_memory.tensor_bytes(model) * (2 if spec.options.training else 1)  # with their gradients
    per_image = max(eager_peak_bytes - weights, 1) / max(map(len, batches))  # one after the other
    return int((free_bytes(spec.device, memory_bytes) / widening - weights) / per_image)


def free_bytes(device: str, memory_bytes: int | None) -> int:
    """Memory of the device that we may take in addition; of the host's up to the limit of this process and its children."""
    if device == "cpu":
        return (memory_bytes or machine_memory_bytes()) - tree_rss_bytes(os.getpid())
    return torch_device.free_bytes(device)


def _judge_batch(
    spec: Spec, model: torch.nn.Module, forward: Callable[..., Any], images: Tensor, room: int
) -> Judgement | None:
    # In this order: memory that eager has just freed has the right values, which a program might not write.
    by_compiled, by_eager = set[str](), set[str]()
    compiled, eager = computed(spec, model, forward, images, by_compiled), computed(spec, model, model, images, by_eager)
    if not eager or not all(compare.all_finite(leaves) for leaves in eager.values()):
        return None
    if by_compiled - by_eager or (not spec.options.training and by_eager - by_compiled):
        return Judgement("written", math.inf, math.inf, "eager")
    how = rule(spec, has_reference=True)
    if how.cosine:
        return by_direction(eager, compiled, len(images))
    if exact := float64(spec, model, images, room, eager):
        judge_by = partial(_against, compiled, reference=exact, images=len(images), how=how)
        return _by_healthy_runs(judge_by, spec, model, images, eager, exact)
    few = images[:ACCURACY_BATCH_SIZE]
    usual = computed(spec, model, model, few) if len(few) < len(images) else {}
    if usual and (exact := float64(spec, model, few, room, usual)):
        judge_by = partial(_extrapolated, compiled, eager, reference=exact, images=(len(images), len(few)), how=how)
        return _by_healthy_runs(judge_by, spec, model, few, usual, exact)
    return by_direction(eager, compiled, len(images))


def _by_healthy_runs(
    judge_by: Callable[[Sequence[Leaves]], Judgement],
    spec: Spec,
    model: torch.nn.Module,
    images: Tensor,
    eager: Leaves,
    reference: Leaves,
) -> Judgement:
    """What is judged by `eager` and, only where that finds an error, by further runs too: they only ever raise a limit."""
    healthy = [eager]
    found = judge_by(healthy)
    for more in (rounded_differently, with_kinks_crossed):
        if found.margin > 1.0:
            healthy += more(spec, model, images, reference)
            found = judge_by(healthy)
    return found


def _extrapolated(
    compiled: Leaves,
    eager: Leaves,
    healthy: Sequence[Leaves],
    reference: Leaves,
    images: tuple[int, int],
    how: compare.Rule,
) -> Judgement:
    """By eager, and what some healthy runs are off by with fewer images, of which `reference` is the float64.

    Also of the worst of the samples. `images` are how many, and how many of the healthy runs.
    """
    whole = (
        (
            kind,
            relative_error(compiled.get(kind), eager[kind]),
            max(
                allowed_error(run[kind], reference[kind], how) + relative_error(run[kind], reference[kind])
                for run in healthy
            ),
        )
        for kind in eager
    )
    of_samples = (
        (
            f"{kind}{OF_A_SAMPLE}",
            sample_error(compiled[kind], leaves),
            OF_MORE_SAMPLES
            * max(
                _allowed_of_a_sample(run[kind], reference[kind], how) + sample_error(run[kind], reference[kind])
                for run in healthy
            ),
        )
        for kind, leaves in eager.items()
        if _has_samples(kind, compiled, leaves, images[0]) and _has_samples(kind, reference, reference[kind], images[1])
    )
    return _worst(itertools.chain(whole, of_samples), "extrapolated")


def _against(compiled: Leaves, healthy: Sequence[Leaves], reference: Leaves, images: int, how: compare.Rule) -> Judgement:
    """By a reference in float64, and what the worst of some healthy runs may be off by; also of the worst of the samples."""
    whole = (
        (kind, relative_error(compiled.get(kind), leaves), max(allowed_error(run[kind], leaves, how) for run in healthy))
        for kind, leaves in reference.items()
    )
    of_samples = (
        (
            f"{kind}{OF_A_SAMPLE}",
            sample_error(compiled[kind], leaves),
            max(_allowed_of_a_sample(run[kind], leaves, how) for run in healthy),
        )
        for kind, leaves in reference.items()
        if _has_samples(kind, compiled, leaves, images)
    )
    return _worst(itertools.chain(whole, of_samples), "fp64")


def _worst(errors: Iterator[tuple[str, float, float]], reference: str) -> Judgement:
    """The kind that is nearest to its limit, from error and allowed error of each."""
    kind, error, allowed = max(errors, key=lambda each: each[1] / each[2])
    return Judgement(kind, error, error / allowed, reference)


def computed(
    spec: Spec, model: torch.nn.Module, forward: Callable[..., Any], images: Tensor, written: set[str] | None = None
) -> Leaves:
    """What one iteration computes from the seed on; the buffers of the model are then as they were before.

    `written` gets the names of what it writes to: buffers, and `images`.
    """
    torch_device.seed_everything(spec.seed)
    given, images = images, fresh(spec, images)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    returned = iterate(spec, model, forward, images)
    tensors = {name: (buffer, before[name]) for name, buffer in model.named_buffers() if name in before}
    changes = [_change(*pair) for pair in tensors.values() if pair[0].is_floating_point()]
    if written is not None:
        pairs = {"images": (images, given)} | ({} if backends.has_own_tensors(spec) else tensors)
        written |= {name for name, pair in pairs.items() if not torch.equal(*pair)}
    outputs = _outputs("prediction", returned[0]) if spec.options.training else _outputs("output", returned)
    models.set_state(model, before)  # of which an output may be a view
    if not spec.options.training:
        is_written = any(change.any() for change in changes) and not backends.has_own_tensors(spec)
        return outputs | ({"buffer": changes} if is_written else {})
    return {
        **outputs,
        "gradient": [gradient(parameter).clone() for parameter in model.parameters()],
        "input_gradient": [gradient(images).clone()],
        **({"buffer": changes} if changes else {}),
    }


def _change(now: Tensor, before: Tensor) -> Tensor:
    """By how much a buffer has changed: what a batch adds to running statistics is small beside them."""
    return torch.where(now == before, torch.zeros_like(now), now - before)


def _outputs(kind: str, returned: Any) -> Leaves:
    """Copies of each tensor by itself, as one may be much larger than another; a CUDA graph writes into its place again."""
    leaves = [torch_device.as_real(leaf) for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
    names = [kind, *(f"{kind}.{number}" for number in range(1, len(leaves)))]
    return {name: [leaf.clone()] for name, leaf in zip(names, leaves, strict=False)}


def rounded_differently(spec: Spec, model: torch.nn.Module, images: Tensor, reference: Leaves) -> Iterator[Leaves]:
    """In training, what null runs compute: a gradient jumps where rounding takes an element over the kink of a ReLU."""
    if not spec.options.training:
        return iter(())
    run, dtype = partial(_computed_as_leaves, spec), models.computing_dtype(spec)
    runs = null_runs.null_runs(run, model, images, dtype, spec.seed, NULL_RUNS)
    return (_by_kind(leaves) for _, leaves in runs)


def with_kinks_crossed(spec: Spec, model: torch.nn.Module, images: Tensor, reference: Leaves) -> Iterator[Leaves]:
    """In training in float32, `reference` with what crossing kinks does to gradients: few null runs cross the same ones."""
    run, dtype = partial(_computed_as_leaves, spec), models.computing_dtype(spec)
    runs = null_runs.kinks(run, model, images, dtype, spec.seed, _as_leaves(reference))
    return (_by_kind(leaves) for _, leaves in runs)


def _computed_as_leaves(spec: Spec, model: torch.nn.Module, images: Tensor) -> list[compare.Leaf]:
    return _as_leaves(computed(spec, model, model, images))


def _as_leaves(by_kind: Leaves) -> list[compare.Leaf]:
    return [compare.Leaf(kind, kind, tensors) for kind, tensors in by_kind.items()]


def _by_kind(leaves: Sequence[compare.Leaf]) -> Leaves:
    return {leaf.kind: leaf.value for leaf in leaves}


def float64(spec: Spec, model: torch.nn.Module, images: Tensor, room: int, eager: Leaves) -> Leaves | None:
    """What `eager` would be in float64; None where that fails, or does not fit with `room` images at once.

    At inference it is made in parts, if that is the same: not of an output that is of no image, nor where images see each
    other, are counted in buffers, or get random numbers.
    """
    at_once = len(images) if spec.options.training or "buffer" in eager else min(ACCURACY_BATCH_SIZE, len(images), room)
    if not 0 < at_once <= room:
        return None
    try:
        with torch_device.NarrowDraws():
            exact_model = models.in_float64(model)
            if at_once < len(images) and not _can_be_in_parts(spec, exact_model, images[:at_once]):
                if len(images) > room:
                    return None
                at_once = len(images)
            exact = _in_parts(spec, exact_model, images.split(at_once))
            return exact if _shapes(exact) == _shapes(eager) else None
    except Exception:  # as the reference of the accuracy check: it is no fault of the compiler
        traceback.print_exc()
        return None
    finally:
        torch_device.release_free_memory(spec.device)


def _can_be_in_parts(spec: Spec, model: torch.nn.Module, images: Tensor) -> bool:
    """Whether a model in float64 makes the same of some images in one part as in two; not known of a single one."""
    if len(images) == 1:
        return True
    try:
        return are_the_same(_in_parts(spec, model, [images]), _in_parts(spec, model, images.tensor_split(2)))
    except Exception:  # an output that has no images to join
        return False


def _in_parts(spec: Spec, model: torch.nn.Module, parts: Sequence[Tensor]) -> Leaves:
    """What a float64 model computes of a batch, in one part or at inference in several."""
    results = [computed(spec, model, model, part.double()) for part in parts]
    if len(results) == 1:
        return results[0]
    return {name: [torch.cat([result[name][0] for result in results])] for name in results[0]}


def _shapes(leaves: Leaves) -> dict[str, list[torch.Size]]:
    return {name: [leaf.shape for leaf in of_kind] for name, of_kind in leaves.items()}


def relative_error(leaves: list[Tensor] | None, reference: list[Tensor]) -> float:
    """||leaves - reference|| / ||reference|| of all leaves as one vector; inf where it is no number, or there are none."""
    return math.inf if leaves is None else _quotient(_distance(leaves, reference), reference)


def allowed_error(eager: list[Tensor], reference: list[Tensor], how: compare.Rule) -> float:
    """What the dynamo rule allows compiled: eager's own error, by each leaf's multiplier, and a tenth of the tolerance.

    Of integers, where rounding decides between two of them, a share may differ in any case.
    """
    multipliers = [compare.multiplier(leaf, how) for leaf in eager]
    allowed = _quotient(_distance(eager, reference, multipliers), reference) + _floor(how)
    return max(allowed, _least(reference))


def _floor(how: compare.Rule) -> float:
    return how.tolerance / 10.0


def _allowed_of_a_sample(run: list[Tensor], reference: list[Tensor], how: compare.Rule) -> float:
    """What the worst sample may be off by, as `allowed_error` of the whole."""
    return compare.multiplier(run[0], how) * sample_error(run, reference) + _floor(how)


def _has_samples(kind: str, run: Leaves, reference: list[Tensor], images: int) -> bool:
    """Whether leaves of this kind are an output with a row for each of several images."""
    if not kind.startswith(OUTPUTS) or kind not in run:
        return False
    shape = reference[0].shape
    has_rows = run[kind][0].shape == shape and images > 1 and len(shape) > 1 and shape[0] == images
    return has_rows and reference[0].is_floating_point()


def sample_error(leaves: list[Tensor], reference: list[Tensor]) -> float:
    """The largest ||leaves[i] - reference[i]|| of the samples i of an output, over the root mean square of ||reference[i]||.

    One sample in the place of another is 1 or so, where the error of the whole is less the more samples there are.
    """
    norms = torch.linalg.vector_norm((torch_device.wide(leaves[0]) - torch_device.wide(reference[0])).flatten(1), dim=1)
    size = torch.linalg.vector_norm(torch_device.wide(reference[0])).item() / math.sqrt(len(norms))
    largest = norms.max().item()
    return largest / size if size else 0.0 if largest == 0 else math.inf


def by_direction(eager: Leaves, compiled: Leaves, images: int) -> Judgement:
    """Compiled against eager by cosine similarity, where nothing says how large an error is usual; also each sample."""
    judged = []
    for kind in eager:
        error = relative_error(compiled.get(kind), eager[kind])
        if not error or not math.isfinite(error):
            judged.append(Judgement(kind, error, math.inf if error else 0.0, "eager"))
            continue
        if not _are_floats(eager[kind]):
            judged.append(Judgement(kind, error, error / _least(eager[kind]), "eager"))
            continue
        margin = _turned(*(torch.cat([leaf.flatten().float() for leaf in side[kind]]) for side in (eager, compiled)))
        judged.append(Judgement(kind, error, margin, "eager"))
        if _has_samples(kind, compiled, eager[kind], images):
            error = sample_error(compiled[kind], eager[kind])
            margin = max(map(_turned, *(side[kind][0].flatten(1).float() for side in (eager, compiled))))
            margin = min(margin, error / compare.DISTANCE_LIMIT)  # of a row of almost nothing the direction is chance
            judged.append(Judgement(f"{kind}{OF_A_SAMPLE}", error, margin, "eager"))
    return max(judged, key=lambda made: made.margin)


def _turned(eager: Tensor, compiled: Tensor) -> float:
    """How far the direction is off, over the limit; of zeros, which have none, 0."""
    return 0.0 if torch.equal(eager, compiled) else compare.cosine_margin(eager, compiled)


def _least(leaves: list[Tensor]) -> float:
    """The relative error that leaves may have in any case: integers, between two of which rounding may decide."""
    return 0.0 if _are_floats(leaves) else math.sqrt(INTEGERS_THAT_DIFFER)


def _are_floats(leaves: list[Tensor]) -> bool:
    return all(leaf.is_floating_point() for leaf in leaves)


def _distance(leaves: list[Tensor], others: list[Tensor], weights: Sequence[float] = ()) -> float:
    """Norm of the difference of two vectors, each leaf of it by its weight, in float64; inf where shapes differ.

    Of integers the root of how many differ.
    """
    if any(leaf.shape != other.shape for leaf, other in zip(leaves, others, strict=True)):
        return math.inf
    if not _are_floats(others):
        return math.sqrt(sum(int((leaf != other).sum()) for leaf, other in zip(leaves, others, strict=True)))
    norms = [
        torch.linalg.vector_norm(torch_device.wide(leaf) - torch_device.wide(other)).item()
        for leaf, other in zip(leaves, others, strict=True)
    ]
    return math.hypot(*(norm * weight for norm, weight in zip(norms, weights or [1.0] * len(norms), strict=True)))


def _quotient(distance: float, reference: list[Tensor]) -> float:
    if _are_floats(reference):
        norm = math.hypot(*(torch.linalg.vector_norm(torch_device.wide(leaf)).item() for leaf in reference))
    else:
        norm = math.sqrt(sum(leaf.numel() for leaf in reference))
    if math.isnan(distance) or not norm:
        return 0.0 if distance == 0 else math.inf
    return distance / norm
