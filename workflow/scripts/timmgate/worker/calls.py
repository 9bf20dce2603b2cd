"""How modules are called when a model runs in eager: with what, and whether they write into it."""

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from timmgate.core.spec import Spec
from timmgate.worker import models, torch_device
from timmgate.worker.training_step import fresh


@dataclass(frozen=True)
class Call:
    """What a module was called with. `in_place`: it wrote into the first tensor of floats among it."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    in_place: bool = False


def is_floats(value: Any) -> bool:
    """Whether it is a tensor of floats."""
    return isinstance(value, Tensor) and value.is_floating_point()


def first_calls(spec: Spec, model: nn.Module, images: Tensor, names: Collection[str]) -> dict[str, Call]:
    """By name, the first call of each of these modules that gets a tensor of floats, in the order of these calls.

    Raises AttributeError for a module that there is not. The model stays as it is.
    """
    running, calls, versions = copy.deepcopy(model), dict[str, Call](), dict[str, int]()

    def watch(name: str) -> None:
        def before(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            fed = next(filter(is_floats, (*arguments, *keywords.values())), None)
            if name not in calls and fed is not None:
                calls[name], versions[name] = Call(_copy(arguments), _copy(keywords)), fed._version

        def after(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            if name in versions:
                fed = next(filter(is_floats, (*arguments, *keywords.values())))
                calls[name] = replace(calls[name], in_place=fed._version > versions.pop(name))

        module = running.get_submodule(name)
        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after, with_kwargs=True)

    for name in names:
        watch(name)
    torch_device.seed_everything(spec.seed)
    with torch.no_grad(), models.autocast(spec, images):
        running(fresh(spec, images))
    return calls


def _copy(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), tree)
