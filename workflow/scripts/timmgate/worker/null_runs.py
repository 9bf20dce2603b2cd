"""Null runs: eager again under changes that no one would call wrong, in families, and the reference that they are held to.

A family is a change of the model, of the images or of torch's settings that leaves what is computed the same but for
rounding. What a run is, and which leaves it gives, is the caller's: `Run`.
"""

import copy
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from timmgate.core.verdict import KINKS
from timmgate.worker import folding, models, torch_device
from timmgate.worker.compare import Leaf, is_half
from timmgate.worker.equivalence import are_the_same
from timmgate.worker.resource_errors import is_out_of_memory
from timmgate.worker.rounded_weights import RoundedWeights
from timmgate.worker.sequential_sums import SequentialSums
from timmgate.worker.torch_device import NarrowDraws

Run = Callable[[nn.Module, Tensor], list[Leaf]]
"""Seeds, runs a model, which it may change, on images, and returns its leaves."""

KINK_ULPS = 8
"""How far operands are moved to find kinks, in units of the float32 epsilon: so many more are crossed than by rounding."""

KINK_DRAWS = 2
"""Number of such null runs."""

LARGE_GMACS = 10.0
"""Multiply-accumulate operations of one run, in 1e9, above which there are fewer null runs: some seconds each on a core."""


@dataclass
class Subject:
    """What a family may change: a copy of the model and the images, and in `settings` torch's, for the time of the run."""

    model: nn.Module
    images: Tensor
    dtype: torch.dtype
    generator: torch.Generator
    settings: AbstractContextManager[Any] | None = None


def null_runs(
    run: Run,
    model: nn.Module,
    images: Tensor,
    dtype: torch.dtype,
    seed: int,
    families: list[str] | None = None,
    gmacs: float = 0.0,
) -> Iterator[tuple[str, list[Leaf]]]:
    """Family and leaves of every null run that applies to the model, one after the other, plain eager first.

    `dtype` is what convolutions and matrix products compute in, under autocast its dtype. `families` are names of
    `FAMILIES`, one of them for each run, by default `default_families` for `gmacs`; of these, those that raise are left out,
    but for plain eager and a lack of memory. Model and images are left as they are.
    """
    for number, family in enumerate(default_families(dtype, gmacs) if families is None else families):
        generator = torch_device.generator(images.device, _stream(seed, number))
        subject = Subject(copy.deepcopy(model), images.detach().clone(), dtype, generator)
        try:
            leaves = _null_run(run, family, subject)
        except Exception as error:
            if families is not None or number == 0 or is_out_of_memory(error):
                raise
            traceback.print_exc()
            continue
        if leaves is not None:
            yield family, leaves


def _null_run(run: Run, family: str, subject: Subject) -> list[Leaf] | None:
    """The leaves of one null run; None if the family does not apply."""
    if not FAMILIES[family](subject):
        return None
    with subject.settings or nullcontext():
        return run(subject.model, subject.images)


def _stream(seed: int, number: int) -> int:
    """The seed of one null run: no other seed of weights and images has the same random numbers."""
    return 1000 * seed + number


def kinks(
    run: Run, model: nn.Module, images: Tensor, dtype: torch.dtype, seed: int, expected: list[Leaf]
) -> Iterator[tuple[str, list[Leaf]]]:
    """For float32 runs with gradients, runs of the family `kinks`: off by what crossing them does to gradients alone.

    They are computed in float64; `expected` are the leaves of `reference`.
    Rounding can take an element over the kink of a ReLU. The output hardly changes, but a gradient loses or gains a term:
    a jump, thousands of times what rounding does else, in few runs and anywhere. Operands moved by +e and by -e change
    what is smooth by opposite amounts, so that the sum of both runs, less the reference, has what is due to jumps alone.
    """
    if dtype == torch.float32 and any("gradient" in leaf.kind for leaf in expected):
        for draw in range(KINK_DRAWS):
            yield KINKS, _kinks(run, model, images, expected, _stream(seed, draw))


def _kinks(run: Run, model: nn.Module, images: Tensor, expected: list[Leaf], seed: int) -> list[Leaf]:
    moved = []
    for sign in (1, -1):
        generator = torch_device.generator(images.device, seed)
        precision = 2 * sign * KINK_ULPS * torch.finfo(torch.float32).eps
        exact = models.in_float64(model)
        move(exact, generator, precision)
        with NarrowDraws():
            moved.append(run(exact, jittered(images.double(), generator, precision)))
    return [
        Leaf(leaf.name, leaf.kind, _sum(plus.value, minus.value, leaf.value))
        for leaf, plus, minus in zip(expected, *moved, strict=True)
    ]


def _sum(plus: Any, minus: Any, expected: Any) -> Any:
    """plus + minus - expected, for tensors of floats, and trees of them; what else there is, as expected."""
    if isinstance(expected, (list, tuple)):
        return [_sum(*each) for each in zip(plus, minus, expected, strict=True)]
    if isinstance(expected, dict):
        return {key: _sum(plus[key], minus[key], expected[key]) for key in expected}
    if not isinstance(expected, Tensor) or not expected.is_floating_point():
        return expected
    return torch.where(torch.isfinite(expected), plus + minus - expected, expected)


def default_families(dtype: torch.dtype, gmacs: float = 0.0) -> list[str]:
    """The families to run, those with random numbers several times; fewer where a run has much to compute.

    `gmacs` are multiply-accumulate operations of a run, in 1e9. In half precision operands stay: no run has another rounding
    of the weights than the reference (but `folded`). Other threads never stood out in calibration, and are slow.
    """
    half = is_half(dtype)
    if gmacs > LARGE_GMACS:
        return [
            "eager",
            *(["outputs"] * 4 if half else ["operands", "operands", "outputs", "outputs"]),
            "memory_format",
            "sums",
        ]
    random = ["outputs"] * 6 if half else [*["operands"] * 3, *["outputs"] * 3]
    return ["eager", *random, "memory_format", "halves", "sums", "library", "folded"]


def reference(run: Run, model: nn.Module, images: Tensor, dtype: torch.dtype) -> list[Leaf]:
    """The leaves in float64, with weights of convolutions and matrix products, and images, rounded to the computing dtype.

    All runs round them in the same way, and so this rounding is no error. In float32 nothing is rounded.
    """
    with NarrowDraws(), RoundedWeights(dtype) if is_half(dtype) else nullcontext():
        return run(models.in_float64(model), images.to(dtype).double())


def eager(subject: Subject) -> bool:
    """Nothing changes."""
    return True


def operands(subject: Subject) -> bool:
    """Images and weights are moved by half a unit in the last place of the dtype that they are in, at random."""
    precision = torch.finfo(subject.images.dtype).eps
    subject.images = jittered(subject.images, subject.generator, precision)
    move(subject.model, subject.generator)
    return True


def outputs(subject: Subject) -> bool:
    """What modules without children return is moved so in the computing dtype, and on the way back its gradient."""
    jitter = partial(jittered, generator=subject.generator, precision=torch.finfo(subject.dtype).eps)

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        is_float = isinstance(output, Tensor) and output.is_floating_point()
        return _Jitter.apply(output, jitter) if is_float else output

    for module in subject.model.modules():
        if not any(module.children()) and not isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd)):
            module.register_forward_hook(hook)
    return True


@torch.no_grad()
def move(model: nn.Module, generator: torch.Generator, precision: float | None = None) -> None:
    """Jitter the parameters that are floats, by the precision of each where none is given; indices stay."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.copy_(jittered(parameter, generator, precision or torch.finfo(parameter.dtype).eps))


def jittered(tensor: Tensor, generator: torch.Generator, precision: float) -> Tensor:
    """`tensor` with random relative errors of up to half of `precision`, rounded to its dtype.

    With its own epsilon three of four elements stay, and the others become one of their neighbours.
    """
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    error = torch.rand(wide.shape, generator=generator, device=generator.device, dtype=wide.dtype).sub_(0.5).mul_(precision)
    return torch.addcmul(wide, wide, error.to(wide.device)).to(tensor.dtype)


class _Jitter(torch.autograd.Function):
    """Moves a tensor on the way forward, and its gradient on the way back."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, jitter: Callable[[Tensor], Tensor]) -> Tensor:
        context.jitter = jitter
        return jitter(tensor)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return context.jitter(gradient), None


def memory_format(subject: Subject) -> bool:
    """channels_last, or contiguous where the images are channels_last already; of what has height and width only."""
    if subject.images.ndim != 4:
        return False
    is_last = subject.images.is_contiguous(memory_format=torch.channels_last) and not subject.images.is_contiguous()
    layout = torch.contiguous_format if is_last else torch.channels_last
    for tensor in models.state(subject.model).values():
        if tensor.ndim == 4:  # Module.to takes this for a layout of volumes too
            tensor.data = tensor.data.contiguous(memory_format=layout)
    subject.images = subject.images.contiguous(memory_format=layout)
    return True


def halves(subject: Subject) -> bool:
    """The batch in two halves, unless samples depend on each other, on random numbers, or on what is kept of a call."""
    if len(subject.images) < 2 or any(map(_mixes_samples, subject.model.modules())):
        return False
    exact, apart, images = models.in_float64(subject.model), models.in_float64(subject.model), subject.images.double()
    with torch.no_grad():
        whole, parts = exact(images), _in_halves(apart, images)
    if not are_the_same([whole, *exact.buffers()], [parts, *apart.buffers()]):
        return False
    subject.model.forward = partial(_in_halves, subject.model.forward)
    return True


def _mixes_samples(module: nn.Module) -> bool:
    """BatchNorm, dropout, or timm's stochastic depth and dropping of patches, by the names of their probabilities.

    In float64 the output tells of the others, but not always of these: a head of zeros hides statistics, and a random mask
    may come twice.
    """
    probabilities = (getattr(module, name, 0) for name in ("p", "drop_prob", "prob"))
    is_random = any(isinstance(each, float) and each > 0 for each in probabilities)
    return module.training and (isinstance(module, _BatchNorm) or is_random)


def _in_halves(forward: Callable[[Tensor], Any], batch: Tensor) -> Any:
    return _joined([forward(half) for half in batch.chunk(2)])


def _joined(parts: list[Any]) -> Any:
    """Trees of tensors, joined along the batch."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], dict):
        return {key: _joined([part[key] for part in parts]) for key in parts[0]}
    return type(parts[0])(_joined(list(each)) for each in zip(*parts, strict=True))


def threads(subject: Subject) -> bool:
    """Another number of threads: two, or one where there are several. CPU only."""
    if subject.images.device.type != "cpu":
        return False
    subject.settings = _with_threads(2 if torch.get_num_threads() == 1 else 1)
    return True


@contextmanager
def _with_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def library(subject: Subject) -> bool:
    """Without oneDNN on a CPU, without cuDNN on a GPU: torch's own kernels."""
    device = subject.images.device.type
    if device == "cpu":
        subject.settings = torch.backends.mkldnn.flags(enabled=False)
    elif device == "cuda":
        subject.settings = torch.backends.cudnn.flags(enabled=False)
    return subject.settings is not None


def sums(subject: Subject) -> bool:
    """In training, gradients of biases and factors summed over samples and positions one after the other. float32 only.

    Eager sums in pairs, with an error that hardly grows with their number. Compilers write loops.
    """
    if subject.dtype != torch.float32 or not torch.is_grad_enabled():
        return False
    subject.settings = SequentialSums()
    return any(parameter.ndim == 1 for parameter in subject.model.parameters())


def folded(subject: Subject) -> bool:
    """Norms folded into the convolutions before them, where the norm is fixed.

    At inference only: gradients of folded weights are those of other parameters.
    """
    if subject.model.training or torch.is_grad_enabled():
        return False
    return folding.fold(subject.model, subject.images)


FAMILIES: dict[str, Callable[[Subject], bool]] = {
    family.__name__: family for family in (eager, operands, outputs, memory_format, halves, sums, threads, library, folded)
}
"""The families by name. Each changes the subject and says whether it applies to it."""
