"""Weights under which every part of a model matters."""

import math

import pytest
import timm
import torch
from torch import nn

from timmgate.worker.lively_weights import enliven

NEGLIGIBLE = 1e-6
"""A gradient whose norm is this share of the median's is none."""


class Constant(nn.Module):
    """One parameter of each kind that starts constant, or nearly so."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.last_norm = nn.BatchNorm2d(8)
        nn.init.zeros_(self.last_norm.weight)
        self.gate = nn.Linear(8, 8)
        nn.init.normal_(self.gate.weight, std=1e-6)
        nn.init.ones_(self.gate.bias)
        self.gamma_1 = nn.Parameter(1e-5 * torch.ones(8))
        self.temperature = nn.Parameter(torch.ones(8, 1, 1))
        self.logit_scale = nn.Parameter(2.3 * torch.ones(8))
        self.skipinit_gain = nn.Parameter(torch.zeros(()))
        self.cls_token = nn.Parameter(1e-6 * torch.randn(1, 1, 8))
        self.attention_biases = nn.Parameter(torch.zeros(4, 4))
        self.register_buffer("mask", torch.ones(4, 4))
        self.register_buffer("index", torch.zeros(4, dtype=torch.long))

    def forward(self, images):
        return self.last_norm(self.norm(self.conv(100 * images)))


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other are slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def constant() -> Constant:
    torch.manual_seed(0)
    return Constant()


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("norm.weight", 0.5, 1.5),
        ("last_norm.weight", 0.5, 1.5),
        ("norm.bias", -0.02, 0.02),
        ("gate.bias", 0.98, 1.02),
        ("gamma_1", 0.1, 1.0),
        ("temperature", 0.5, 1.5),
        ("logit_scale", 1.15, 3.45),
        ("skipinit_gain", 0.1, 1.0),
        ("cls_token", -0.08, 0.08),
        ("attention_biases", -0.08, 0.08),
    ],
)
def test_a_tensor_that_starts_constant_is_drawn_from_the_range_of_its_kind(constant, name, low, high):
    drawn = enliven(constant, 1, IMAGES)
    values = constant.get_parameter(name)
    assert name in drawn
    assert values.min() >= low and values.max() <= high
    assert values.numel() == 1 or values.std() > 0.05 * (high - low)


def test_a_matrix_that_starts_at_nothing_gets_the_weights_of_a_layer(constant):
    enliven(constant, 1, IMAGES)
    assert constant.gate.weight.std().item() == pytest.approx(1 / math.sqrt(8), rel=0.3)


def test_what_starts_random_and_what_is_no_weight_stays(constant):
    kernel = constant.conv.weight.clone()
    enliven(constant, 1, IMAGES)
    assert torch.equal(constant.conv.weight, kernel)
    assert constant.mask.eq(1).all() and constant.index.eq(0).all()
    assert constant.norm.num_batches_tracked == 0 and constant.training


def test_running_statistics_make_activations_of_order_1_whatever_comes_in(constant):
    enliven(constant, 1, IMAGES)
    constant.norm.weight.data.fill_(1)
    assert constant.norm.running_var.min() > 100
    assert 0.5 < constant.eval().norm(constant.conv(100 * IMAGES)).std() < 2


def test_the_seed_decides_and_the_state_of_random_numbers_does_not():
    states = []
    for global_seed, seed in ((0, 1), (5, 1), (0, 2)):
        torch.manual_seed(0)
        model = Constant()
        torch.manual_seed(global_seed)
        enliven(model, seed, IMAGES)
        states.append(model.state_dict())
    same = [all(torch.equal(states[0][name], other[name]) for name in other) for other in states]
    assert same == [True, True, False]


@torch.no_grad()
def make_dense(model: nn.Module) -> None:
    """Draw every parameter without regard to what it is for."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))


def without_gradient(model: nn.Module, images: torch.Tensor, cotangent: torch.Tensor) -> set[str]:
    names, weights = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad((model(images) * cotangent).sum(), weights)
    sizes = torch.stack([gradient.norm() / math.sqrt(gradient.numel()) for gradient in gradients])
    return {name for name, size in zip(names, sizes, strict=True) if size < NEGLIGIBLE * sizes.median()}


@pytest.mark.parametrize(
    ("name", "training"), [("test_resnet", False), ("test_resnet", True), ("test_vit", False), ("test_convnext", False)]
)
def test_no_parameter_is_without_a_gradient_unless_the_architecture_makes_it_so(name, training):
    torch.manual_seed(1337)
    model = timm.create_model(name)
    images = torch.randn(2, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(4))
    enliven(model, 1337, images)
    model = model.double().train(training)
    output = model(images.double())
    assert output.isfinite().all() and 0.01 < output.square().mean().sqrt() < 10
    assert output.std(0).mean() > 0.01 * output.std(), "the images matter"
    random = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    cotangents = (random, torch.ones_like(output) / output.numel())
    lively = [without_gradient(model, images.double(), cotangent) for cotangent in cotangents]
    make_dense(model)
    dense = [without_gradient(model, images.double(), cotangent) for cotangent in cotangents]
    assert lively[0] <= dense[0] and lively[1] <= dense[1]
