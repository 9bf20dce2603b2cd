"""Faults that read elements from the wrong place, or write them there."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from timmgate.worker.faults.graph import (
    ATTENTION,
    CONVOLUTION,
    FACTORS,
    IS_LAYER,
    MAX_POOL,
    MEAN,
    SOFTMAX,
    Call,
    Captured,
    Node,
    argument,
    aten,
    breaks,
    breaks_result,
    calls,
    either,
    has_batch,
    has_kernel,
    has_padding,
    has_rows,
    is_float,
    is_image,
    nodes,
    value,
)
from timmgate.worker.faults.values import attention


@breaks_result("reverse-batch", nodes(has_batch))
def reverse_batch(out: Tensor, call: Call) -> Tensor:
    return out.flip(0)


@breaks_result("rotate-batch", nodes(has_batch))
def rotate_batch(out: Tensor, call: Call) -> Tensor:
    return out.roll(1, 0)


@breaks_result("broadcast-sample", nodes(has_batch))
def broadcast_sample(out: Tensor, call: Call) -> Tensor:
    return out[:1].expand_as(out).clone()


@breaks_result("lose-sample", nodes(has_batch))
def lose_sample(out: Tensor, call: Call) -> Tensor:
    out = out.clone()
    out[-1] = 0
    return out


@breaks_result("batch-stride", nodes(has_batch))
def batch_stride(out: Tensor, call: Call) -> Tensor:
    """Sample number i begins i elements too late; what is past the end is the last element."""
    samples, length = out.shape[0], out[0].numel()
    index = torch.arange(samples, device=out.device)[:, None] * (length + 1) + torch.arange(length, device=out.device)
    return out.reshape(-1)[index.clamp_(max=out.numel() - 1)].reshape(out.shape)


@breaks_result("zero-tail", nodes(has_rows))
def zero_tail(out: Tensor, call: Call) -> Tensor:
    out = out.clone()
    out[..., -int(call.size) :] = 0
    return out


@breaks_result("repeat-tail", nodes(has_rows))
def repeat_tail(out: Tensor, call: Call) -> Tensor:
    out = out.clone()
    out[..., -1] = out[..., 0]
    return out


@breaks_result("garbage-tail", nodes(has_rows))
def garbage_tail(out: Tensor, call: Call) -> Tensor:
    out = out.clone()
    out[..., -1] = 1e4
    return out


def channels(out: Tensor) -> Tensor:
    """A view of what a node returns with its channels last."""
    return out.movedim(1, -1) if out.ndim == 4 else out


@breaks_result("zero-channel", nodes(has_rows))
def zero_channel(out: Tensor, call: Call) -> Tensor:
    out = out.clone()
    channels(out)[..., 0] = 0
    return out


@breaks_result("swap-channels", nodes(has_rows))
def swap_channels(out: Tensor, call: Call) -> Tensor:
    out = out.clone()
    view = channels(out)
    if view.shape[-1] > 1:
        view[..., :2] = view[..., :2].flip(-1)
    return out


@breaks_result("misread-layout", nodes(is_image))
def misread_layout(out: Tensor, call: Call) -> Tensor:
    return out.permute(0, 2, 3, 1).reshape(out.shape)


@breaks("flip-kernel", nodes(has_kernel))
def flip_kernel(call: Call) -> Tensor:
    return call(weight=call["weight"].flip(-1))


def has_square_weight(node: Node, captured: Captured) -> bool:
    """Whether a node is a layer whose weight, but for the kernel, is square and larger than 1."""
    if not IS_LAYER(node, captured):
        return False
    rows, columns = value(argument(node, FACTORS[node.target][1])).shape[:2]
    return rows == columns > 1


@breaks("transpose-weight", nodes(has_square_weight))
def transpose_weight(call: Call) -> Any:
    name = FACTORS[call.operator][1]
    return call(**{name: call[name].transpose(0, 1)})


def x_of(call: Call) -> str:
    """What a convolution or pooling calls its input."""
    return "input" if call.operator is CONVOLUTION else "self"


@breaks("shift-padding", nodes(has_padding))
def shift_padding(call: Call) -> Any:
    return call(**{x_of(call): F.pad(call[x_of(call)], (1, -1, 0, 0))})


def pads_with_zeros(node: Node, captured: Captured) -> bool:
    """Whether a node is a padding, or a convolution or average pooling that pads."""
    return calls(aten.constant_pad_nd.default)(node, captured) or (has_padding(node, captured) and node.target != MAX_POOL)


@breaks("fill-padding", nodes(pads_with_zeros))
def fill_padding(call: Call) -> Any:
    if call.operator is aten.constant_pad_nd.default:
        widths = [max(width, 0) for width in call["pad"]]
        if call["self"].ndim == 4 and widths == list(call["pad"]) and len(widths) == 4:
            return F.pad(call["self"], widths, "replicate")
        return call(value=call["self"].flatten()[0].item())
    rows, columns = (list(call["padding"]) * 2)[:2]
    padded = F.pad(call[x_of(call)], (columns, columns, rows, rows), "replicate")
    return call(**{x_of(call): padded, "padding": [0, 0]})


@breaks("softmax-axis", nodes(either(calls(*ATTENTION), calls(*SOFTMAX))))
def softmax_axis(call: Call) -> Any:
    if call.operator in ATTENTION:
        return attention(call, lambda scores: scores.softmax(-2))
    axis = call["dim"] % call["self"].ndim
    return call(dim=axis - 1 if axis else axis + 1)


@breaks("permute-keys", nodes(calls(*ATTENTION)))
def permute_keys(call: Call) -> Any:
    return call(key=call["key"].roll(1, -2))


def reduces_several_axes(node: Node, captured: Captured) -> bool:
    """Whether a node is a mean over more than one axis."""
    return calls(MEAN)(node, captured) and len(argument(node, "dim") or ()) > 1


@breaks("mean-axis", nodes(reduces_several_axes))
def mean_axis(call: Call) -> Tensor:
    *others, last = (axis % call["self"].ndim for axis in call["dim"])
    x = call["self"].mean(last, keepdim=True)
    for axis in others:
        x = x.narrow(axis, 0, 1)
    return x if call["keepdim"] else x.squeeze((*others, last))


@breaks("swap-parts", nodes(calls(aten.cat.default), lambda node, captured: len(node.all_input_nodes) > 1))
def swap_parts(call: Call) -> Tensor:
    return call(tensors=call["tensors"][::-1])


GATHERS = (
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.embedding.default,
    aten.gather.default,
    aten.index_select.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.default,
    aten.upsample_bilinear2d.vec,
)
"""Operators that pick elements by index; AOTAutograd makes some of interpolations too."""


def gathers(node: Node, captured: Captured) -> bool:
    """Whether a node picks floating-point elements by index."""
    return calls(*GATHERS)(node, captured) and is_float(node)


@breaks_result("shift-index", nodes(gathers))
def shift_index(out: Tensor, call: Call) -> Tensor:
    return out.roll(1, -1 if out.ndim == 4 else 0)


@breaks_result("shift-roll", nodes(calls(aten.roll.default)))
def shift_roll(out: Tensor, call: Call) -> Tensor:
    return out.roll(1, (call["dims"] or [0])[0])
