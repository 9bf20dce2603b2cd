"""Weights rounded as autocast does: no run in half precision rounds them in another way, so that a reference does too."""

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LAYERS = (nn.functional.linear, nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
"""Functions of what is computed in half precision, with weight and bias as second and third argument."""


class RoundedWeights(TorchFunctionMode):
    """Rounds the weights and biases of convolutions and linear layers to a dtype; gradients pass as if it did not."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call `function`, with rounded weights if it is a layer."""
        kwargs = kwargs or {}
        if function in LAYERS:
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
