"""Random weights under which every part of a model matters.

Many architectures start with tensors that are constant: norms that are the identity, residual branches that end in a zero,
LayerScale of 1e-6, statistics of 0 and 1. A fault in what such a tensor multiplies changes nothing that can be seen. Here
each of them is drawn from a range in which its branch counts. Tensors that start random stay as they are.

Running statistics start as 0 and 1, which is not what the layers before them give: without training, activations shrink or
grow from layer to layer at inference, until terms alone are left. They are set near to what a batch gives, and so
activations are of order 1.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

CONSTANT_WITHIN = 1e-4
"""A tensor whose elements differ by less counts as constant: some tokens, biases and gates start at a random 1e-6."""

ADDITIVE = 0.02
"""Half the width of the range around its constant that a bias or shift is drawn from.

Terms are the same for all images. Norms after a pooling divide by what the terms add up to, so that with larger ones hardly
anything of the images is left in the logits: of 78 % of their root mean square in one model 1.5 % with 0.1.
"""

EMBEDDING_STD = 0.02
"""Standard deviation of tokens, position embeddings and tables of position biases, as timm has where it draws them."""

BRANCH_BELOW = 0.5
"""A factor that starts below this, other than a norm's or a weight's gain, scales a residual branch, as LayerScale does."""

FACTORS = ("weight", "gain", "gamma", "alpha", "scale", "ls", "temperature", "lambda", "gating", "v")
"""How names of factors begin or end, once digits are gone. All else that starts constant is a term, or an embedding."""

EMBEDDINGS = ("embed", "token", "pos", "table", "attention_biases", "query", "latent")
"""What names of embeddings have in them."""


@torch.no_grad()
def enliven(model: nn.Module, seed: int, images: Tensor) -> list[str]:
    """Draw, in place, every parameter of `model` that starts constant, and running statistics; returns their names.

    `images` is a batch (samples, *input_size) for the statistics. The model is in float32 on the CPU. Other buffers stay
    (masks, indices, counters).
    """
    generator = torch.Generator().manual_seed(seed)
    modules, drawn = dict(model.named_modules()), []
    for name, tensor in model.named_parameters():
        if tensor.numel() and _is_constant(tensor):
            tensor.copy_(_draw(name, modules[name.rpartition(".")[0]], tensor, generator))
            drawn.append(name)
    return drawn + _draw_statistics(model, images, generator)


def _draw_statistics(model: nn.Module, images: Tensor, generator: torch.Generator) -> list[str]:
    """Set all running statistics that start constant, each while a batch that has passed those before it is there.

    A mean is off by up to 0.1 standard deviations, a variance by a factor from 0.5 to 1.5. What the batch gives is first
    rounded, means to a quarter of a standard deviation and variances to a power of 2: torch's own rounding, which differs
    between machines, is then as good as never seen.
    """
    drawn, hooks = [], []

    def settle(norm: nn.Module, arguments: tuple[Tensor, ...], name: str, off: Tensor, factor: Tensor) -> None:
        variance, mean = torch.var_mean(arguments[0], [axis for axis in range(arguments[0].ndim) if axis != 1])
        deviation = torch.exp2(torch.log2(variance + norm.eps).round() / 2)
        norm.running_mean.copy_(((mean / deviation * 4).round() / 4 + off) * deviation)
        norm.running_var.copy_(deviation.square() * factor)
        drawn.extend((f"{name}.running_mean", f"{name}.running_var"))

    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            uniform = torch.rand((2, module.num_features), generator=generator)
            if _is_constant(module.running_var):
                arguments = {"name": name, "off": 0.2 * uniform[0] - 0.1, "factor": 0.5 + uniform[1]}
                hooks.append(module.register_forward_pre_hook(partial(settle, **arguments)))
    was_training = model.training
    if hooks:
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    model.train(was_training)
    return drawn


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
    if not _is_factor(leaf):
        return start + ADDITIVE * (2 * uniform - 1)
    if is_of_norm or leaf == "gain":
        return 0.5 + uniform  # also those that start at 0, to switch their branch off
    if abs(start) < BRANCH_BELOW:
        return 0.1 + 0.9 * uniform
    return start * (0.5 + uniform)


def _is_factor(leaf: str) -> bool:
    word = leaf.rstrip("_0123456789")
    return (
        any(word.startswith(factor) or word.endswith(f"_{factor}") for factor in FACTORS if len(factor) > 1) or word == "v"
    )
