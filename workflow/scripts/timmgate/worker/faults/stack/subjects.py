"""Two small models, entered with timm, that have everything which the faults break."""

import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional

CONFIG = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "interpolation": "bicubic"}


class Stem(nn.Module):
    """Convolution, norm and activation."""

    def __init__(self, width: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.act = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(images)))


class Attention(nn.Module):
    """One head, written out."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.softmax, self.proj = nn.Linear(width, 3 * width), nn.Softmax(-1), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).chunk(3, -1)
        return self.proj(self.softmax(query @ key.transpose(-2, -1) / tokens.shape[-1] ** 0.5) @ value)


class Mlp(nn.Module):
    """Two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(tokens)))


class Ends(nn.Module):
    """Mean and largest value of all tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens.mean(1), tokens.amax(1)], 1)


class SmallStack(nn.Module):
    """Something of a convolutional network, then something of a transformer."""

    def __init__(self, width: int = 20, classes: int = 11):
        super().__init__()
        self.stem, self.pool, self.gate = Stem(width), nn.AvgPool2d(3, 1, 1), nn.SiLU()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)
        self.hard = nn.Hardswish()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)
        self.ends, self.head = Ends(), nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.hard(self.conv(self.gate(self.pool(self.stem(images)))))
        tokens = features.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return self.head(self.ends(tokens))


class Block(nn.Module):
    """A step that depends on plain attributes: all blocks have their code in common, and each needs a program of its own."""

    def __init__(self, width: int, factor: float, act: str, keeps: bool):
        super().__init__()
        self.linear, self.factor, self.keeps = nn.Linear(width, width), factor, keeps
        self.act = getattr(functional, act)

    def forward(self, features: Tensor) -> Tensor:
        changed = self.act(self.linear(features)) * self.factor / features.shape[1]
        return features + changed if self.keeps else changed


class SmallBlocks(nn.Module):
    """Blocks with a graph break before each, so that only guards tell their programs apart."""

    def __init__(self, width: int = 16, classes: int = 11):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        kinds = (2.0, "relu", True), (20.0, "relu", True), (20.0, "gelu", True), (20.0, "gelu", False)
        self.blocks = nn.ModuleList(Block(width, *kind) for kind in kinds)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        for number, block in enumerate(self.blocks):
            torch._dynamo.graph_break()
            tokens = block(tokens[:, number:])
        return self.head(tokens.mean(1))


@register_model
def small_stack(pretrained: bool = False, **_: object) -> nn.Module:
    """`SmallStack` as timm makes it."""
    return _with_config(SmallStack())


@register_model
def small_blocks(pretrained: bool = False, **_: object) -> nn.Module:
    """`SmallBlocks` as timm makes it."""
    return _with_config(SmallBlocks())


def _with_config(model: nn.Module) -> nn.Module:
    model.pretrained_cfg = model.default_cfg = CONFIG
    return model
