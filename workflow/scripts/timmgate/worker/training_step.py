"""What both checks run again and again: a model on images, forward, and in training backward and an optimizer's step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from timmgate.core.protocol import Reporter
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import LEARNING_RATE, LOSS_SCALE, Spec
from timmgate.worker import models, torch_device
from timmgate.worker.compile_cache import Cache


@dataclass(frozen=True)
class Setup:
    """How to measure, as against what: threads, where the compiler keeps things, a state dict unless the weights are random.

    `batch_size` is the one to run with, `timing_limit_s` is for the samples of the performance check, and `memory_bytes` is
    what this process and its children may take of the host. `device_number` is which of several devices is ours, `turns`
    are as in `protocol.Request`. `strict` is whether the accuracy check makes null runs.
    """

    threads: int
    cache: Cache
    batch_size: int
    weights: Path | None = None
    timing_limit_s: float = RunOptions.timing_limit
    memory_bytes: int | None = None
    device_number: int | None = None
    turns: tuple[int, int] | None = None
    strict: bool = False

    @classmethod
    def of(
        cls,
        run: RunOptions,
        cache: Cache,
        batch_size: int,
        device_number: int | None,
        turns: tuple[int, int] | None = None,
    ) -> "Setup":
        """As the policy says."""
        limits = run.weights, run.timing_limit, run.memory_bytes
        return cls(run.threads, cache, batch_size, *limits, device_number, turns, strict=run.accuracy_rule != "dynamo")


def load(spec: Spec, setup: Setup, reporter: Reporter) -> tuple[torch.nn.Module, torch.Tensor]:
    """Model and images, cast as the mode says, on the device; what is known of them goes into the row."""
    model = models.create(spec, setup.weights)
    size, amp_dtype = models.input_size(spec, model), models.amp_dtype(spec)
    reporter.columns(
        device_name=torch_device.name(spec.device),
        batch_size=setup.batch_size,
        input_size=list(size),
        amp_dtype=str(amp_dtype).removeprefix("torch.") if amp_dtype else None,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights_hash=models.weights_hash(model),
        images=models.kind_of_images(spec),
    )
    return _cast(spec, model, models.images(spec, size, setup.batch_size))


def make(spec: Spec, setup: Setup) -> tuple[torch.nn.Module, torch.Tensor]:
    """Model and images, cast as the mode says, on the device."""
    model = models.create(spec, setup.weights)
    return _cast(spec, model, models.images(spec, models.input_size(spec, model), setup.batch_size))


def _cast(spec: Spec, model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor]:
    return models.cast(spec, model), images.to(models.cast_dtype(spec))


def cloned(tree: Any) -> Any:
    """A copy of a tree of tensors in lists, tuples and dictionaries."""
    return tree_map_only(torch.Tensor, torch.clone, tree)


def fresh(spec: Spec, images: torch.Tensor) -> torch.Tensor:
    """A copy of the images to iterate on; in training they get a gradient too."""
    return images.detach().clone().requires_grad_(spec.options.training)


def iterate(
    spec: Spec,
    model: torch.nn.Module,
    forward: Callable[..., Any],
    images: torch.Tensor,
    optimizer: torch.optim.Optimizer | None = None,
) -> Any:
    """One iteration: the output; in training output and loss, with gradients in the parameters and the images."""
    if not spec.options.training:
        with models.autocast(spec, images):
            return forward(images)
    model.zero_grad(set_to_none=True)
    images.grad = None
    with models.autocast(spec, images):
        output = forward(images)
        loss = mean_logit(output) / (LOSS_SCALE if spec.traits.scaled_loss else 1)
    loss.backward()
    if optimizer:
        optimizer.step()
    return tree_map_only(torch.Tensor, torch.Tensor.detach, output), loss.detach()


def mean_logit(output: Any) -> torch.Tensor:
    """The loss: mean of the logits (benchmarks/dynamo)."""
    output = logits(output)
    return output.sum() / output.numel()


def logits(output: Any) -> torch.Tensor:
    """The first tensor of what a model returns."""
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


def gradient(tensor: torch.Tensor) -> torch.Tensor:
    """The gradient of a leaf, dense; one that received none counts as zero (benchmarks/dynamo)."""
    if tensor.grad is None:
        return torch.zeros_like(tensor)
    return tensor.grad.to_dense() if tensor.grad.is_sparse else tensor.grad


def make_optimizer(spec: Spec, model: torch.nn.Module) -> torch.optim.Optimizer | None:
    """The optimizer of a training iteration, if it has one, and the model something to step."""
    parameters = list(model.parameters())
    match spec.optimizer() if parameters else None:
        case "sgd":
            return torch.optim.SGD(parameters, lr=LEARNING_RATE, foreach=True)
        case "adam":
            return torch.optim.Adam(parameters, lr=LEARNING_RATE, foreach=True, capturable=spec.device == "cuda")
    return None
