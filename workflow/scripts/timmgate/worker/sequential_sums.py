"""Gradients of biases and factors summed one after the other, as loops do, and not in pairs as eager does."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from timmgate.worker.rounded_weights import LAYERS


class SequentialSums(TorchFunctionMode):
    """Adds biases and multiplies by factors outside of layers and norms, where the sum in their gradients is ours."""

    NORMS = (nn.functional.layer_norm, nn.functional.batch_norm, nn.functional.group_norm)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call `function`; a layer or norm without its vectors, which come afterwards."""
        kwargs = dict(kwargs or {})
        if function in LAYERS:
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
