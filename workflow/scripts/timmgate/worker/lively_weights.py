"""Random weights under which every part of a model matters.

Many architectures start with tensors that are constant: norms that are the identity, residual branches that end in a zero,
LayerScale of 1e-6, statistics of 0 and 1. A fault in what such a tensor multiplies changes nothing that can be seen. Here
each of them is drawn from a range in which its branch counts and activations stay of order 1. Tensors that start random
stay as they are.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

CONSTANT_WITHIN = 1e-4
"""A tensor whose elements differ by less counts as constant: some tokens, biases and gates start at a random 1e-6."""

ADDITIVE = 0.1
"""Half the width of the range around its constant that a bias, shift or running mean is drawn from."""

EMBEDDING_STD = 0.1
"""Standard deviation of tokens, position embeddings and tables of position biases."""

BRANCH_BELOW = 0.5
"""A factor that starts below this, other than a norm's or a weight's gain, scales a residual branch, as LayerScale does."""

FACTORS = ("weight", "gain", "gamma", "alpha", "scale", "ls", "temperature", "lambda", "gating", "v")
"""How names of factors begin or end, once digits are gone. All else that starts constant is a term, or an embedding."""

EMBEDDINGS = ("embed", "token", "pos", "table", "attention_biases", "query", "latent")
"""What names of embeddings have in them."""


@torch.no_grad()
def enliven(model: nn.Module, seed: int) -> list[str]:
    """Draw, in place, every tensor of `model` that starts constant; returns the names of those tensors.

    Draws come from a CPU generator, in the order of the model's parameters and buffers: equal on every device. Buffers
    other than running means and variances stay (masks, indices, counters), and so do integers.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for name, owner, tensor in _candidates(model):
        if _is_constant(tensor):
            tensor.copy_(_draw(name, owner, tensor, generator))
            drawn.append(name)
    return drawn


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Parameters, and the statistics of norms, with the module that owns them."""
    modules = dict(model.named_modules())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        leaf = name.rpartition(".")[2]
        is_statistic = leaf in ("running_mean", "running_var")
        if tensor.is_floating_point() and tensor.numel() and (isinstance(tensor, nn.Parameter) or is_statistic):
            yield name, modules[name.rpartition(".")[0]], tensor


def _is_constant(tensor: Tensor) -> bool:
    return bool(tensor.max() - tensor.min() < CONSTANT_WITHIN)


def _draw(name: str, owner: nn.Module, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A tensor like this one, by what it is for: a kernel, an embedding, a factor, or a term."""
    leaf, start = name.rpartition(".")[2], tensor.reshape(-1)[0].item()
    is_of_norm = "norm" in type(owner).__name__.lower()
    if leaf == "weight" and tensor.ndim >= 2 and not is_of_norm:
        fan_in = tensor[0].numel()
        return torch.randn(tensor.shape, generator=generator) / math.sqrt(fan_in)
    if any(word in leaf for word in EMBEDDINGS):
        return start + EMBEDDING_STD * torch.randn(tensor.shape, generator=generator)
    uniform = torch.rand(tensor.shape, generator=generator)
    if leaf == "running_var":
        return 0.5 + uniform
    if not _is_factor(leaf):
        return start + ADDITIVE * (2 * uniform - 1)
    if is_of_norm or leaf == "gain":
        return 0.5 + uniform  # also those that start at 0, to switch their branch off
    if abs(start) < BRANCH_BELOW:
        return 0.1 + 0.9 * uniform
    return start * (0.5 + uniform)


def _is_factor(leaf: str) -> bool:
    word = leaf.rstrip("_0123456789")
    return any(word.startswith(factor) or word.endswith(f"_{factor}") for factor in FACTORS if len(factor) > 1) or word == "v"
