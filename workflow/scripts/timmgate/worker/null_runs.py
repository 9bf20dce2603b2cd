"""Null runs: eager again under changes that no one would call wrong, in families, and the reference that they are held to.

A family is a change of the model, of the images or of torch's settings that leaves what is computed the same but for
rounding. What a run is, and which leaves it gives, is the caller's: `Run`.
"""

import copy
import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from timmgate.core.verdict import KINKS
from timmgate.worker import models
from timmgate.worker.compare import Leaf, is_half
from timmgate.worker.memory_errors import is_out_of_memory
from timmgate.worker.torch_device import NarrowDraws

Run = Callable[[nn.Module, Tensor], list[Leaf]]
"""Seeds, runs a model, which it may change, on images, and returns its leaves."""

KINK_ULPS = 8
"""How far operands are moved to find kinks, in units of the float32 epsilon: so many more are crossed than by rounding."""

KINK_DRAWS = 2
"""Number of such null runs."""

LARGE_GMACS = 10.0
"""Multiply-accumulate operations of one run, in 1e9, above which there are fewer null runs: some seconds each on a core."""

FOLDING_ERROR = 1e-9
"""Relative error in float64 up to which folding norms into convolutions has left the model the same."""


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
        generator = torch.Generator(images.device).manual_seed(_stream(seed, number))
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
        generator = torch.Generator(images.device).manual_seed(seed)
        precision = 2 * sign * KINK_ULPS * torch.finfo(torch.float32).eps
        exact = copy.deepcopy(model).double()
        with torch.no_grad():
            for parameter in exact.parameters():
                parameter.copy_(jittered(parameter, generator, precision))
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
        return run(copy.deepcopy(model).double(), images.to(dtype).double())


class RoundedWeights(TorchFunctionMode):
    """Rounds the weights and biases of convolutions and linear layers to a dtype; gradients pass as if it did not."""

    LAYERS = (nn.functional.linear, nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call `function`, with rounded weights if it is a layer."""
        kwargs = kwargs or {}
        if function in self.LAYERS:
            args = (*args[:1], *(self._rounded(argument) for argument in args[1:3]), *args[3:])
            kwargs = {
                name: self._rounded(argument) if name in ("weight", "bias") else argument
                for name, argument in kwargs.items()
            }
        return function(*args, **kwargs)

    def _rounded(self, weight: Tensor | None) -> Tensor | None:
        if weight is None:
            return None
        return weight + (weight.to(self._dtype).to(weight.dtype) - weight).detach()


def eager(subject: Subject) -> bool:
    """Nothing changes."""
    return True


def operands(subject: Subject) -> bool:
    """Images and weights are moved by half a unit in the last place of the dtype that they are in, at random."""
    precision = torch.finfo(subject.images.dtype).eps
    subject.images = jittered(subject.images, subject.generator, precision)
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.copy_(jittered(parameter, subject.generator, torch.finfo(parameter.dtype).eps))
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


def jittered(tensor: Tensor, generator: torch.Generator, precision: float) -> Tensor:
    """`tensor` with random relative errors of up to half of `precision`, rounded to its dtype.

    With its own epsilon three of four elements stay, and the others become one of their neighbours.
    """
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    error = torch.rand(wide.shape, generator=generator, device=wide.device, dtype=wide.dtype).sub_(0.5).mul_(precision)
    return torch.addcmul(wide, wide, error).to(tensor.dtype)


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
    for tensor in models.state(subject.model):
        if tensor.ndim == 4:  # Module.to takes this for a layout of volumes too
            tensor.data = tensor.data.contiguous(memory_format=layout)
    subject.images = subject.images.contiguous(memory_format=layout)
    return True


def halves(subject: Subject) -> bool:
    """The batch in two halves, unless the samples of a batch depend on each other, or on random numbers."""
    model, images = subject.model, subject.images
    if len(images) < 2 or any(_mixes_samples(module) for module in model.modules()):
        return False
    forward = model.forward

    def in_halves(batch: Tensor) -> Any:
        return _joined([forward(half) for half in batch.chunk(2)])

    model.forward = in_halves
    return True


def _mixes_samples(module: nn.Module) -> bool:
    """BatchNorm, dropout, or timm's stochastic depth and dropping of patches, by the names of their probabilities."""
    probabilities = (getattr(module, name, 0) for name in ("p", "drop_prob", "prob"))
    is_random = any(isinstance(each, float) and each > 0 for each in probabilities)
    return module.training and (isinstance(module, _BatchNorm) or is_random)


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


class SequentialSums(TorchFunctionMode):
    """Adds biases and multiplies by factors outside of layers and norms, where the sum in their gradients is ours."""

    NORMS = (nn.functional.layer_norm, nn.functional.batch_norm, nn.functional.group_norm)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call `function`; a layer or norm without its vectors, which come afterwards."""
        kwargs = dict(kwargs or {})
        if function in RoundedWeights.LAYERS:
            bias = args[2] if len(args) > 2 else kwargs.pop("bias", None)
            args = (*args[:2], None, *args[3:]) if len(args) > 2 else args
            output = function(*args, **kwargs)
            return _affine(output, None, bias, -1 if function is nn.functional.linear else 1)
        if function in self.NORMS:
            given = inspect.signature(function).bind(*args, **kwargs).arguments
            vectors = given.pop("weight", None), given.pop("bias", None)
            return _affine(function(**given), *vectors, -1 if function is nn.functional.layer_norm else 1)
        name = getattr(function, "__name__", "").removeprefix("__").removesuffix("__")
        for tensor, vector in (args, args[::-1]) if name in ("mul", "rmul", "add", "radd") and not kwargs else ():
            if (axis := _axis_of_vector(tensor, vector)) is not None:
                vectors = (vector.flatten(), None) if name.endswith("mul") else (None, vector.flatten())
                return _affine(tensor, *vectors, axis)
        return function(*args, **kwargs)


def _axis_of_vector(tensor: Any, factor: Any) -> int | None:
    """The axis of `tensor`, from the end, along which a factor that is learned is a vector; None if it is none."""
    if not isinstance(factor, Tensor) or not factor.requires_grad or not isinstance(tensor, Tensor):
        return None
    longer = [axis - factor.ndim for axis, size in enumerate(factor.shape) if size > 1]
    is_vector = len(longer) == 1 and factor.numel() < tensor.numel() and factor.ndim <= tensor.ndim
    return longer[0] if is_vector and tensor.shape[longer[0]] == factor.numel() else None


def _affine(tensor: Tensor, factor: Tensor | None, bias: Tensor | None, axis: int) -> Tensor:
    """tensor * factor + bias along an axis."""
    if factor is not None:
        tensor = _Scale.apply(tensor, factor, axis) if factor.ndim == 1 else tensor * factor
    if bias is not None:
        tensor = _Add.apply(tensor, bias, axis) if bias.ndim == 1 else tensor + bias
    return tensor


def _along(vector: Tensor, axis: int, ndim: int) -> Tensor:
    shape = [1] * ndim
    shape[axis] = len(vector)
    return vector.reshape(shape)


def _summed(gradient: Tensor, axis: int) -> Tensor:
    """The sum over all axes but one, as a product with ones, which adds one after the other."""
    rows = gradient.movedim(axis, -1).flatten(0, -2)
    return rows.new_ones(1, len(rows)).mm(rows)[0]


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor, bias: Tensor, axis: int) -> Tensor:
        context.axis = axis
        return tensor + _along(bias, axis, tensor.ndim)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, _summed(gradient, context.axis), None


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor, factor: Tensor, axis: int) -> Tensor:
        context.axis = axis
        context.save_for_backward(tensor, factor)
        return tensor * _along(factor, axis, tensor.ndim)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        tensor, factor = context.saved_tensors
        return gradient * _along(factor, context.axis, tensor.ndim), _summed(gradient * tensor, context.axis), None


def folded(subject: Subject) -> bool:
    """Norms folded into the convolutions before them, in the dtype of the weights, where the norm is fixed.

    At inference only: gradients of folded weights are those of other parameters.
    """
    model, images = subject.model, subject.images
    pairs = [] if model.training or torch.is_grad_enabled() else _convolutions_before_norms(model, images)
    if not pairs:
        return False
    exact, folded_exact = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    _fold(folded_exact, pairs)
    before, after = _first(exact, images.double()), _first(folded_exact, images.double())
    if not (after - before).norm() <= FOLDING_ERROR * before.norm():
        return False  # a convolution has another consumer, or uses its weights in its own way
    _fold(model, pairs)
    return True


@torch.no_grad()
def _first(model: nn.Module, images: Tensor) -> Tensor:
    output = model(images)
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


@torch.no_grad()
def _convolutions_before_norms(model: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the norms that their outputs go into."""
    made_by: dict[int, tuple[str, Tensor]] = {}
    pairs, hooks = [], []

    def made(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        made_by[id(output)] = name, output

    def used(name: str, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if id(arguments[0]) in made_by:
            pairs.append((made_by[id(arguments[0])][0], name))

    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            hooks.append(module.register_forward_hook(partial(made, name)))
        elif isinstance(module, _BatchNorm) and module.running_var is not None:
            hooks.append(module.register_forward_pre_hook(partial(used, name)))
    model(images[:1])
    for hook in hooks:
        hook.remove()
    return pairs


@torch.no_grad()
def _fold(model: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Move what the norms do into the convolutions, and leave norms that do nothing."""
    for convolution, norm in ((model.get_submodule(one), model.get_submodule(other)) for one, other in pairs):
        factor = torch.rsqrt(norm.running_var + norm.eps)
        factor = factor if norm.weight is None else factor * norm.weight
        bias = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
        bias = bias * factor if norm.bias is None else bias * factor + norm.bias
        convolution.weight.mul_(factor.reshape(-1, *[1] * (convolution.weight.ndim - 1)))
        convolution.bias = nn.Parameter(bias)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        if norm.weight is not None:
            norm.weight.fill_(1)
            norm.bias.zero_()


FAMILIES: dict[str, Callable[[Subject], bool]] = {
    family.__name__: family for family in (eager, operands, outputs, memory_format, halves, sums, threads, library, folded)
}
"""The families by name. Each changes the subject and says whether it applies to it."""
