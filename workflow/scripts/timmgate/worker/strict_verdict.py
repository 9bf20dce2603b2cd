"""The strict verdict on a compiled model: its errors against those of null runs, on the same weights and images.

What is compared is one iteration of its own, on values that the compiled program has not seen, and without an optimizer,
whose first step would make rounding of small gradients into the learning rate; in training a second one gives the gradients
of another loss.
"""

import copy
import math
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from timmgate.core import verdict
from timmgate.core.spec import Spec, other_weights
from timmgate.core.verdict import CellVerdict, NullRun
from timmgate.worker import flops, iterations, models, null_runs, torch_device
from timmgate.worker.compare import Leaf, is_half
from timmgate.worker.cotangent import cotangent_leaves
from timmgate.worker.iterations import buffers_before, kept, leaves_of, without_parameters, written_to
from timmgate.worker.leaf_errors import Reference
from timmgate.worker.training_step import fresh, iterate

OF_A_WHOLE = ("halves", "folded")
"""Families of null runs that are about images and models as a whole: none of them applies to a module."""

REPEATS = 2
"""Further seeds of weights and images that a failure is tried with: it takes two of three."""

Examination = Callable[[int], verdict.Strict]
"""The verdict with another seed."""

ANOTHER_FUNCTION = 0.1
"""Where null runs are at most so much of eager's distance to float64 apart from eager, float64 computes something else.

Not in half precision, where eager itself may: bfloat16 cannot count beyond 256.
"""

Run = Callable[[Spec, torch.nn.Module, torch.Tensor], list[Leaf]]
"""What is judged."""


def run(spec: Spec, model: torch.nn.Module, images: torch.Tensor, forward: Callable[..., Any] | None = None) -> list[Leaf]:
    """What one iteration computes; in training also the gradients of a second loss. `model` is changed by training."""
    forward = model if forward is None else forward
    torch_device.seed_everything(spec.seed)
    given, images, before = images, fresh(spec, images), buffers_before(spec, model)
    returned = iterate(spec, model, forward, images)
    torch_device.synchronize(spec.device)  # what goes wrong there is to be raised here
    leaves = without_parameters(leaves_of(spec, model, images, returned))
    if not spec.options.training:
        return [*leaves, *written_to(before, model, given, images)]
    return kept(leaves) + cotangent_leaves(model, forward, images, lambda: models.autocast(spec, images), spec.seed)


def last_iteration(spec: Spec, model: torch.nn.Module, images: torch.Tensor) -> list[Leaf]:
    """What the last of two iterations computes, which the dynamo rule looks at, but for parameters."""
    return without_parameters(iterations.run(spec, model, images).leaves)


def other_values(spec: Spec, model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor]:
    """Model and images that a program which was compiled for these ones has not seen: what it keeps of them is wrong there.

    The images are mirrored, and fewer in a mode with dynamic shapes. In training parameters are moved, by
    `spec.other_weights`, and buffers are what one more batch leaves; at inference weights stay, which a compiler may make
    part of the program.
    """
    images = resized(spec, images)
    mirrored = torch.empty_like(images).copy_(images.flip(-1))
    if not spec.options.training:
        return model, mirrored
    other, generator = copy.deepcopy(model), torch_device.generator(images.device, spec.seed)
    with torch.no_grad(), models.autocast(spec, images):
        other(images.clone())  # a model may write to them
        null_runs.move(other, generator, other_weights(spec.options.precision))
    return other, mirrored


def resized(spec: Spec, images: torch.Tensor) -> torch.Tensor:
    """So many of these images as are judged: three of four, where the program is one for every number of them from 2 on."""
    fewer = max(2, len(images) - max(1, len(images) // 4))
    return images[:fewer] if spec.options.dynamic else images


def run_compiled(
    spec: Spec, original: torch.nn.Module, model: torch.nn.Module, images: torch.Tensor, forward: Callable[..., Any]
) -> list[Leaf]:
    """The same of a compiled model, which starts from the weights of `original` again."""
    if spec.options.training:
        models.set_state(model, models.state(original))
    return run(spec, model, images, forward)


@dataclass(frozen=True)
class Judge:
    """Knows the reference of a model, whether that is in float64, and what its null runs are off by.

    `base` is the multiplier of a single leaf.
    """

    reference: Reference
    nulls: list[NullRun]
    is_exact: bool
    base: float

    def judge(self, leaves: Iterable[Leaf]) -> CellVerdict:
        """The verdict on a run."""
        return verdict.judge(self.reference.errors(leaves), self.nulls, self.base)

    def limits(self) -> dict[str, dict[str, float]]:
        """By leaf, the largest value of each statistic that passes."""
        return verdict.limits(self.nulls, self.base)


def families_of_a_module(spec: Spec, inputs: torch.Tensor) -> list[str]:
    """Families of null runs that apply to a module by itself, which is called with these inputs first."""
    without = {*OF_A_WHOLE, *(["memory_format"] if inputs.ndim != 4 else [])}
    return [family for family in null_runs.default_families(models.computing_dtype(spec)) if family not in without]


def examine(
    spec: Spec, model: torch.nn.Module, images: torch.Tensor, compiled: list[Leaf], judged: Run | None = None
) -> CellVerdict:
    """The verdict on a compiled run of a model; `judged` is what eager does for it, by default `run`.

    Kinks cost as much as all other null runs together, and only ever raise a limit: where no leaf fails without them, none
    would with them.
    """
    judge = _without_kinks(spec, model, images, judged=judged)
    found = judge.judge(compiled)
    if found.strict == "fail":
        return _with_kinks(spec, model, images, judge, judged).judge(compiled)
    return found


def prepare(spec: Spec, model: torch.nn.Module, images: torch.Tensor, families: list[str] | None = None) -> Judge:
    """Run the reference and the null runs; where float64 does not run, the first eager run is the reference.

    `families` are those of the null runs, by default the ones for a whole model of its size.
    """
    return _with_kinks(spec, model, images, _without_kinks(spec, model, images, families))


def _without_kinks(
    spec: Spec, model: torch.nn.Module, images: torch.Tensor, families: list[str] | None = None, judged: Run | None = None
) -> Judge:
    one, dtype, exact = partial(judged or run, spec), models.computing_dtype(spec), None
    try:
        exact = null_runs.reference(one, model, images, dtype)
    except Exception:
        traceback.print_exc()
    cost = 0.0 if families else gmacs(spec, model, images)

    def held_against(leaves: list[Leaf], is_exact: bool) -> Judge:
        reference = Reference(leaves, dtype)
        nulls = measured(null_runs.null_runs(one, model, images, dtype, spec.seed, families, cost), reference)
        return Judge(reference, nulls, is_exact, multiplier(dtype, spec.options.training))

    # Not where it is made: an exception keeps what there was in float64. And of a copy: a run writes to buffers.
    if exact is None:
        return held_against(one(copy.deepcopy(model), images), False)
    found = held_against(exact, True)
    if is_half(dtype) or distance(found.nulls[:1]) <= verdict.CLOSE:
        return found
    try:
        by_eager = held_against(one(copy.deepcopy(model), images), False)
    except Exception:
        traceback.print_exc()
        return found
    return by_eager if distance(by_eager.nulls) <= ANOTHER_FUNCTION * distance(found.nulls[:1]) else found


def distance(nulls: Iterable[NullRun]) -> float:
    """The largest rms of an output's error; Inf where one cannot be compared."""
    outputs = (errors for null in nulls for errors in null.errors.values() if errors.kind in verdict.OUTPUTS)
    return max((each.statistics["rms"].value if not each.mismatch else math.inf for each in outputs), default=0.0)


def _with_kinks(spec: Spec, model: torch.nn.Module, images: torch.Tensor, judge: Judge, judged: Run | None = None) -> Judge:
    if not judge.is_exact:
        return judge
    reference = judge.reference
    runs = null_runs.kinks(partial(judged or run, spec), model, images, reference.dtype, spec.seed, reference.leaves)
    return replace(judge, nulls=judge.nulls + measured(runs, reference))


def multiplier(dtype: torch.dtype, training: bool) -> float:
    """That of a single leaf."""
    if not is_half(dtype):
        return verdict.MULTIPLIER
    return verdict.HALF_TRAINING_MULTIPLIER if training else verdict.HALF_MULTIPLIER


def measured(runs: Iterable[tuple[str, list[Leaf]]], reference: Reference) -> list[NullRun]:
    """The errors of null runs. In half precision each draw errs in a way of its own.

    There the errors of draws of `outputs` have a cosine of 0 to 0.3 with each other and with eager's, and up to twice its
    size. In float32 eager's own error, of sums in its order, is most of each.
    """
    return [
        NullRun(family, reference.errors(leaves), draw=number if is_half(reference.dtype) else 0)
        for number, (family, leaves) in enumerate(runs)
    ]


def gmacs(spec: Spec, model: torch.nn.Module, images: torch.Tensor) -> float:
    """Multiply-accumulate operations of a run in 1e9; a backward pass has twice those of the forward pass."""
    return flops.count(model, images[:1]).get("gmacs", 0.0) * len(images) * (6 if spec.options.training else 1)


def after_seeds(first: CellVerdict, again: Examination, seed: int) -> tuple[verdict.Strict, list[verdict.Strict]]:
    """The verdict after further seeds, where the first may have failed by chance, and that of every seed that was tried."""
    words: list[verdict.Strict] = [first.strict]
    if first.strict == "fail" and not verdict.is_certain(first):
        for repeat in range(1, REPEATS + 1):
            words.append(again(seed + repeat))
            if verdict.majority(words) != "undecided":
                break
        return verdict.majority(words), words
    return first.strict, words
