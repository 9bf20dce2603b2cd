"""Faults of the backward graph. Its outputs are the gradients of parameters and of the images."""

from typing import Any

import torch
from torch import Tensor

from timmgate.worker.faults.graph import (
    Call,
    Captured,
    Node,
    aten,
    breaks,
    breaks_result,
    calls,
    has_batch,
    is_float,
    is_image,
    nodes,
    rewires,
    same,
    value,
    weaken,
)
from timmgate.worker.faults.values import lower


def identity(tensor: Tensor) -> Tensor:
    """Its argument."""
    return tensor


def gradients(captured: Captured) -> list[Node]:
    """Nodes that return the gradients, made for the purpose: what computes one may have other users too."""
    (output,) = captured.graph.find_nodes(op="output")
    found = []
    for gradient in dict.fromkeys(each for each in output.all_input_nodes if is_float(each)):
        with captured.graph.inserting_before(output):
            found.append(captured.graph.call_function(identity, (gradient,)))
        output.replace_input_with(gradient, found[-1])
    return found


@breaks_result("zero-gradient", gradients)
def zero_gradient(gradient: Tensor, call: Call) -> Tensor:
    return torch.zeros_like(gradient)


@breaks_result("negate-gradient", gradients)
def negate_gradient(gradient: Tensor, call: Call) -> Tensor:
    return -gradient


@breaks_result("scale-gradient", gradients)
def scale_gradient(gradient: Tensor, call: Call) -> Tensor:
    return gradient * call.size


@breaks_result("unwritten-gradient", gradients)
def unwritten_gradient(gradient: Tensor, call: Call) -> Tensor:
    gradient = gradient.clone()
    (gradient[-1:] if gradient.ndim else gradient).zero_()
    return gradient


@breaks_result("gradient-nan", gradients)
def gradient_nan(gradient: Tensor, call: Call) -> Tensor:
    return with_element(gradient, float("nan"))


@breaks_result("gradient-infinity", gradients)
def gradient_infinity(gradient: Tensor, call: Call) -> Tensor:
    return with_element(gradient, float("inf"))


def with_element(tensor: Tensor, element: float) -> Tensor:
    """The tensor with another element in its middle."""
    tensor = tensor.clone()
    tensor[tuple(length // 2 for length in tensor.shape)] = element
    return tensor


@breaks_result("lose-gradient-sample", nodes(has_batch))
def lose_gradient_sample(gradient: Tensor, call: Call) -> Tensor:
    gradient = gradient.clone()
    gradient[-1] = 0
    return gradient


@breaks_result("rotate-gradient", nodes(has_batch))
def rotate_gradient(gradient: Tensor, call: Call) -> Tensor:
    return gradient.roll(1, 0)


@breaks_result("misread-gradient", nodes(is_image))
def misread_gradient(gradient: Tensor, call: Call) -> Tensor:
    return gradient.permute(0, 2, 3, 1).reshape(gradient.shape)


def is_meeting(node: Node, captured: Captured) -> bool:
    """Whether a node adds two gradients of one shape."""
    adds = calls(aten.add.Tensor)(node, captured) and is_float(node)
    return adds and all(is_float(each) and same(value(each).shape, value(node).shape) for each in node.args[:2])


@rewires("lose-gradient-path", nodes(is_meeting))
def lose_gradient_path(node: Node, size: Any) -> None:
    weaken(node, 1, 0.0)


@breaks("double-gradient-path", nodes(is_meeting))
def double_gradient_path(call: Call) -> Tensor:
    return call(alpha=2)


ACTIVATIONS = {
    aten.silu_backward.default: lambda call: aten.silu(call["self"]),
    aten.gelu_backward.default: lambda call: aten.gelu(call["self"], approximate=call["approximate"]),
    aten.hardswish_backward.default: lambda call: aten.hardswish(call["self"]),
    aten.mish_backward.default: lambda call: aten.mish(call["self"]),
    aten.hardtanh_backward.default: lambda call: aten.hardtanh(call["self"], call["min_val"], call["max_val"]),
}
"""Derivatives of activations that are taken at the saved input, and the output."""

DERIVATIVES = (
    *ACTIVATIONS,
    aten.threshold_backward.default,
    aten.leaky_relu_backward.default,
    aten.sigmoid_backward.default,
    aten.tanh_backward.default,
    aten.hardsigmoid_backward.default,
)


@breaks("ignore-activation-gradient", nodes(calls(*DERIVATIVES)))
def ignore_activation_gradient(call: Call) -> Tensor:
    return call["grad_output"].clone()


@breaks("overwrite-saved", nodes(calls(*ACTIVATIONS)))
def overwrite_saved(call: Call) -> Tensor:
    return call(self=ACTIVATIONS[call.operator](call))


@breaks("first-of-pool-gradient", nodes(calls(aten.max_pool2d_with_indices_backward.default)))
def first_of_pool_gradient(call: Call) -> Tensor:
    return call(indices=torch.zeros_like(call["indices"]))


@breaks("other-dropout-mask", nodes(calls(aten.native_dropout_backward.default)))
def other_dropout_mask(call: Call) -> Tensor:
    return call(mask=call["mask"].roll(1, -1))


GRADIENT_PRODUCTS = (aten.mm.default, aten.bmm.default, aten.convolution_backward.default)


def is_more_precise(node: Node, captured: Captured) -> bool:
    """Whether a node is a product of the backward pass in float32 or float64."""
    return calls(*GRADIENT_PRODUCTS)(node, captured) and value(node).dtype in (torch.float32, torch.float64)


@breaks("lower-gradient-precision", nodes(is_more_precise))
def lower_gradient_precision(call: Call) -> Any:
    name = "grad_output" if "grad_output" in call else "self"
    return call(**{name: lower(call[name], call.size)})
