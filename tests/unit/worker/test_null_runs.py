"""Null runs and the strict verdict through them: what is only rounded passes, what is wrong fails."""

import copy
from collections.abc import Callable

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from timmgate.core import verdict
from timmgate.worker import strict_verdict
from timmgate.worker.compare import Leaf
from timmgate.worker.cotangent import cotangent_leaves
from timmgate.worker.leaf_errors import Reference
from timmgate.worker.null_runs import FAMILIES, jittered, kinks, null_runs, reference
from timmgate.worker.torch_device import NarrowDraws

SEED = 1337
SAMPLES = 8


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other are slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Case:
    """A small model in a precision, its images, its reference and its null runs."""

    def __init__(
        self, model: nn.Module, precision: str = "float32", training: bool = False, size: tuple[int, ...] = (3, 16, 16)
    ):
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self.is_amp, self.training = precision == "amp", training
        self.images = torch.randn(SAMPLES, *size, generator=torch.Generator().manual_seed(SEED))
        self.model = model.train(training)
        if precision == "bfloat16":
            self.model, self.images = self.model.bfloat16(), self.images.bfloat16()
        self.expected = reference(self.run, self.model, self.images, self.dtype)
        about = self.run, self.model, self.images, self.dtype, SEED
        self.null_leaves = [*self.null_runs(SEED), *kinks(*about, self.expected)]
        self.reference = Reference(self.expected, self.dtype)
        self.nulls = strict_verdict.measured(self.null_leaves, self.reference)

    def null_runs(self, seed: int) -> list[tuple[str, list[Leaf]]]:
        with torch.set_grad_enabled(self.training):
            return list(null_runs(self.run, self.model, self.images, self.dtype, seed))

    def autocast(self, images: Tensor):
        return torch.autocast("cpu", self.dtype, enabled=self.is_amp and images.dtype != torch.float64)

    def run(self, model: nn.Module, images: Tensor) -> list[Leaf]:
        if not self.training:
            with torch.no_grad(), self.autocast(images):
                return [Leaf("output", "output", model(images))]
        model.zero_grad(set_to_none=True)
        images = images.detach().clone().requires_grad_()
        with self.autocast(images):
            output = model(images)
            loss = output.sum() / output.numel()
        loss.backward()
        leaves = [Leaf("prediction", "prediction", output.detach()), Leaf("loss", "loss", loss.detach())]
        leaves += [Leaf(f"gradient.{name}", "gradient", weight.grad.clone()) for name, weight in model.named_parameters()]
        leaves += [Leaf(f"buffer.{name}", "buffer", buffer.clone()) for name, buffer in model.named_buffers()]
        return leaves + cotangent_leaves(model, model, images, lambda: self.autocast(images), SEED)

    def errors(self, leaves: list[Leaf]) -> verdict.Errors:
        return self.reference.errors(leaves)

    def eager(self) -> list[Leaf]:
        return self.null_leaves[0][1]

    def judge(self, leaves: list[Leaf]) -> verdict.CellVerdict:
        base = strict_verdict.multiplier(self.dtype, self.training)
        return strict_verdict.Judge(self.reference, self.nulls, True, base).judge(leaves)

    def judge_variant(self, model: nn.Module) -> verdict.CellVerdict:
        """The verdict on another way to compute the same: a model with the same weights."""
        model.load_state_dict(self.model.state_dict())
        model = model.to(next(self.model.parameters()).dtype).train(self.training)
        return self.judge(self.run(model, self.images))


def network(activation: type[nn.Module] = nn.GELU) -> nn.Module:
    """Two convolutions with norms, one of them on a skip connection, and a head."""
    torch.manual_seed(SEED)

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), activation())
            self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), activation())
            self.head = nn.Linear(16, 40)

        def forward(self, images):
            features = self.stem(images)
            return self.head((features + self.block(features)).mean((2, 3)))

    model = Residual()
    for norm in (model.stem[1], model.block[1]):
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def cases() -> Callable[..., Case]:
    """Makes each case once."""
    made = {}

    def case(precision: str = "float32", training: bool = False) -> Case:
        key = precision, training
        if key not in made:
            made[key] = Case(network(), precision, training)
        return made[key]

    return case


PRECISIONS = pytest.mark.parametrize("precision", ["float32", "bfloat16", "amp"])
CHECKS = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])


@PRECISIONS
@CHECKS
def test_healthy_variants_of_eager_pass(cases, precision, training):
    case = cases(precision, training)
    for family, leaves in case.null_runs(SEED + 100):
        found = case.judge(leaves)
        assert found.strict == "pass", (family, found.worst_leaf, found.worst_statistic, found.margin)


@PRECISIONS
@CHECKS
def test_the_families_are_those_that_apply(cases, precision, training):
    case = cases(precision, training)
    families = {null.family for null in case.nulls}
    expected = {"eager", "outputs", "memory_format", "library"}
    expected |= {"operands"} if precision == "float32" else set()
    expected |= {"sums"} if precision == "float32" and training else set()
    expected |= set() if training else {"halves", "folded"}  # with norms in training, samples depend on each other
    assert families == expected | ({"kinks"} if training and precision == "float32" else set())


@PRECISIONS
def test_model_images_and_settings_are_as_before_null_runs(precision):
    model, images = network(), torch.randn(2, 3, 16, 16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}, images.clone(), torch.get_num_threads()

    def run(model, images):
        return [Leaf("output", "output", model(images).detach())]

    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    assert len(list(null_runs(run, model, images, dtype, SEED))) >= 8
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in model.state_dict().items())
    assert torch.equal(images, before[1]) and torch.get_num_threads() == before[2]
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_changes_what_is_computed_by_rounding_alone(family):
    model, images = network().eval(), torch.randn(SAMPLES, 3, 16, 16)

    def run(model, images):
        return [Leaf("output", "output", model(images).detach())]

    (plain,) = run(model, images)
    with torch.set_grad_enabled(family == "sums"):  # which is about gradients alone
        ((_, (other,)),) = null_runs(run, model, images, torch.float32, SEED, [family])
    assert torch.allclose(plain.value, other.value, rtol=1e-4, atol=1e-5)
    assert torch.equal(plain.value, other.value) or family != "eager"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_jitter_moves_some_elements_to_a_neighbour(dtype):
    tensor = torch.randn(4000).to(dtype)
    moved = jittered(tensor, torch.Generator().manual_seed(1), torch.finfo(dtype).eps)
    neighbours = torch.stack([torch.nextafter(tensor, torch.tensor(side, dtype=dtype)) for side in (-torch.inf, torch.inf)])
    assert ((moved == tensor) | (moved == neighbours).any(0)).all()
    assert 0.1 < (moved != tensor).double().mean() < 0.5


def test_norms_are_not_folded_where_gradients_are_compared():
    """In eval mode too: those of folded weights are those of other parameters."""

    def run(model, images):
        return [Leaf("output", "output", model(images).detach())]

    asked = run, network().eval(), torch.randn(2, 3, 16, 16), torch.float32, SEED, ["folded"]
    assert not list(null_runs(*asked))
    with torch.no_grad():
        assert list(null_runs(*asked))


def test_a_family_that_raises_costs_its_own_runs_alone(monkeypatch):
    def fails(subject):
        raise RuntimeError("required rank 4 tensor to use channels_last format")

    def run(model, images):
        return [Leaf("output", "output", model(images).detach())]

    monkeypatch.setitem(FAMILIES, "memory_format", fails)
    asked = run, network().eval(), torch.randn(2, 3, 16, 16), torch.float32, SEED
    assert {"eager", "library"} <= {family for family, _ in null_runs(*asked)} <= {*FAMILIES} - {"memory_format"}
    with pytest.raises(RuntimeError, match="rank 4"):
        list(null_runs(*asked, ["memory_format"]))


def test_volumes_keep_their_layout():
    class Volumes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.volume = nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, 3, padding=1)

        def forward(self, images):
            return self.volume(self.conv(images).unsqueeze(1)).mean((2, 3, 4))

    def run(model, images):
        return [Leaf("output", "output", model(images).detach())]

    ((_, _),) = null_runs(run, Volumes(), torch.randn(2, 3, 8, 8), torch.float32, SEED, ["memory_format"])


@torch.no_grad()
def test_a_convolution_with_another_consumer_than_its_norm_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            nn.init.uniform_(self.norm.running_var, 2, 3)

        def forward(self, images):
            features = self.conv(images)
            return features + self.norm(features)

    def run(model, images):
        return [Leaf("output", "output", model(images).detach())]

    assert not list(null_runs(run, Shared().eval(), torch.randn(2, 3, 8, 8), torch.float32, SEED, ["folded"]))


def changed(leaves: list[Leaf], change: Callable[[Tensor], Tensor], kinds: tuple[str, ...]) -> list[Leaf]:
    """The leaves with the first one of these kinds changed that has more than one dimension."""
    target = next(leaf for leaf in leaves if leaf.kind in kinds and leaf.value.ndim > 1)
    return [Leaf(leaf.name, leaf.kind, change(leaf.value.clone()) if leaf is target else leaf.value) for leaf in leaves]


def one_element(tensor: Tensor) -> Tensor:
    tensor.view(-1)[7] += 0.1 * tensor.abs().max()
    return tensor


def one_channel_zero(tensor: Tensor) -> Tensor:
    return tensor.index_fill(1, torch.tensor([1]), 0)


def two_samples_swapped(tensor: Tensor) -> Tensor:
    return tensor[[1, 0, *range(2, len(tensor))]]


def one_nan(tensor: Tensor) -> Tensor:
    tensor.view(-1)[7] = torch.nan
    return tensor


@pytest.mark.parametrize(
    "fault",
    [lambda tensor: tensor * 1.01, one_element, one_channel_zero, two_samples_swapped, torch.neg, one_nan],
    ids=["scaled", "one_element", "one_channel_zero", "two_samples_swapped", "sign", "one_nan"],
)
@CHECKS
def test_a_fault_in_one_leaf_fails_in_float32(cases, training, fault):
    case = cases("float32", training)
    for kinds in (("gradient",), ("prediction",)) if training else (("output",),):
        found = case.judge(changed(case.eager(), fault, kinds))
        assert found.strict == "fail" and found.margin > 1


@pytest.mark.parametrize("fault", [one_channel_zero, two_samples_swapped, torch.neg, one_nan])
@pytest.mark.parametrize("precision", ["bfloat16", "amp"])
def test_a_gross_fault_in_the_output_fails_in_half_precision(cases, precision, fault):
    case = cases(precision)
    assert case.judge(changed(case.eager(), fault, ("output",))).strict == "fail"


class LowerPrecision(TorchFunctionMode):
    """Rounds the operands of convolutions and linear layers, as a unit of lower precision does."""

    def __init__(self, rounded: Callable[[Tensor], Tensor]):
        super().__init__()
        self._rounded = rounded

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.linear, F.conv2d):
            args = (*(argument + (self._rounded(argument) - argument).detach() for argument in args[:2]), *args[2:])
        return function(*args, **(kwargs or {}))


def as_tf32(tensor: Tensor) -> Tensor:
    """With 10 bits of mantissa, rounded to nearest."""
    return ((tensor.detach().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def as_bfloat16(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().to(tensor.dtype)


def as_float8(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float8_e5m2).to(tensor.dtype)


@pytest.mark.parametrize(
    ("precision", "rounded"),
    [("float32", as_tf32), ("float32", as_bfloat16), ("bfloat16", as_float8), ("amp", as_float8)],
    ids=["float32_as_tf32", "float32_as_bfloat16", "bfloat16_as_float8", "amp_as_float8"],
)
@CHECKS
def test_one_precision_lower_than_asked_for_fails(cases, precision, rounded, training):
    case = cases(precision, training)
    with LowerPrecision(rounded):
        leaves = case.run(copy.deepcopy(case.model), case.images)
    assert case.judge(leaves).strict == "fail"


class PatchesWithLayerScale(nn.Module):
    """pytorch#185676: under autocast inductor kept the sum of convolution and bias in float32 on its way to where patches
    and class token are joined, eager rounds it to bfloat16. LayerScale of 1e-5 makes the gradients before it small."""

    SIZE = 3, 16, 16

    def __init__(self, keeps_float32: bool = False):
        super().__init__()
        self.keeps_float32 = keeps_float32
        torch.manual_seed(SEED)
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, 24))
        self.norm, self.mix, self.last_norm = nn.LayerNorm(24), nn.Linear(24, 24), nn.LayerNorm(24)
        self.gamma = nn.Parameter(1e-5 * torch.ones(24))
        self.head = nn.Linear(24, 40)

    def embed(self, images: Tensor) -> Tensor:
        if not self.keeps_float32:
            return self.patches(images)
        half = [tensor.bfloat16().float() for tensor in (images, self.patches.weight, self.patches.bias)]
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(*half, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], 1)
        tokens = tokens + self.gamma * F.gelu(self.mix(self.norm(tokens)))
        return self.head(self.last_norm(tokens).mean(1))


class ExactGroupNorm(nn.GroupNorm):
    """Forward and backward in float64."""

    def forward(self, features: Tensor) -> Tensor:
        exact = F.group_norm(features.double(), self.num_groups, self.weight.double(), self.bias.double(), self.eps)
        return exact.to(features.dtype)


class GroupNormed(nn.Module):
    """pytorch#198210: gradients of a GroupNorm with 512 elements became more accurate in both, in eager by far more."""

    SIZE = 512, 8, 8

    def __init__(self, exact: bool = True):
        super().__init__()
        torch.manual_seed(SEED)
        self.norm, self.head = (ExactGroupNorm if exact else nn.GroupNorm)(32, 512), nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(0.45 + images)
        return self.head((features * features.abs()).mean((2, 3)))


class Scaled(nn.Module):
    """pytorch#132922: a scalar is the sum of many terms that nearly cancel; the order in which they are rounded decides."""

    SIZE = 3, 16, 16

    def __init__(self, reordered: bool = False):
        super().__init__()
        self.reordered = reordered
        torch.manual_seed(SEED)
        self.conv, self.gain, self.head = nn.Conv2d(3, 32, 3), nn.Parameter(torch.tensor(0.7)), nn.Linear(32, 40)

    def forward(self, images: Tensor) -> Tensor:
        if not self.reordered:
            return self.head((self.gain * F.gelu(self.conv(images))).mean((2, 3)))
        features = F.gelu(self.conv(images)).float()
        return self.head((features * self.gain).flatten(2).flip(2).sum(2) / features[0, 0].numel())


class Fused(nn.Module):
    """pytorch#109097: under autocast inductor keeps chains of pointwise operations in float32, eager rounds each of them."""

    SIZE = 3, 16, 16

    def __init__(self, fused: bool = False):
        super().__init__()
        self.fused = fused
        torch.manual_seed(SEED)
        self.stem, self.conv, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(32, 40)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = features.float() if self.fused else features
        features = features * torch.sigmoid(features) + F.hardtanh(features)
        features = self.conv(features)
        features = features.float() if self.fused else features
        return self.head((features * torch.sigmoid(features)).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "precision", "training"),
    [(PatchesWithLayerScale, "amp", True), (GroupNormed, "float32", True), (Scaled, "amp", True), (Fused, "amp", False)],
    ids=["pytorch#185676", "pytorch#198210", "pytorch#132922", "pytorch#109097"],
)
def test_what_was_published_as_an_alarm_that_is_only_rounding_passes(make, precision, training):
    case = Case(make(), precision, training, make.SIZE)
    found = case.judge_variant(make(make is not GroupNormed))
    assert found.strict == "pass", (found.worst_leaf, found.worst_statistic, found.margin)


def test_a_run_may_be_less_accurate_than_eager_by_a_factor():
    """As in pytorch#198210, where a multiple of eager's own error raised the alarm.

    This has a limit: with inputs that are further from 0, GroupNorm cancels more than any null run shows, and fails. At 0.5
    it does so with one seed of five on some processors; here 0.4 of the limit is the most of five.
    """
    case = Case(GroupNormed(), training=True, size=GroupNormed.SIZE)
    other = GroupNormed(exact=False)
    compiled, eager = case.errors(case.run(other, case.images)), case.nulls[0].errors
    ratios = [errors.statistics["rms"].value / eager[name].statistics["rms"].value for name, errors in compiled.items()]
    assert max(ratios) > 2
    assert case.judge_variant(other).strict == "pass"


class Kink(nn.Module):
    """A ReLU between two linear layers. `side` puts one of its elements on that side of the kink, whatever its sign."""

    ELEMENT = 2, 3

    def __init__(self, side: bool | None = None):
        super().__init__()
        self.side = side
        torch.manual_seed(SEED)
        self.one, self.two = nn.Linear(48, 64), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.one(images.flatten(1))
        positive = features > 0
        if self.side is not None:
            positive[self.ELEMENT] = self.side
        return self.two(features * positive)


def test_an_element_that_rounding_takes_over_the_kink_of_a_relu_is_no_fault():
    model = Kink()
    images = Case(model, size=(3, 4, 4)).images
    with torch.no_grad():
        model.one.bias[Kink.ELEMENT[1]] -= model.one(images.flatten(1))[Kink.ELEMENT]
    case = Case(model, training=True, size=(3, 4, 4))
    assert [case.judge_variant(Kink(side)).strict for side in (False, True)] == ["pass", "pass"]
    case.nulls = [null for null in case.nulls if null.family in ("eager", "memory_format")]
    assert "fail" in [case.judge_variant(Kink(side)).strict for side in (False, True)], "smooth changes do not show it"


class Vectors(nn.Module):
    """Biases, factors of norms, a LayerScale, and vectors outside of layers, on either side."""

    def __init__(self):
        super().__init__()
        self.stem, self.batch, self.layer, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.LayerNorm(36),
            nn.Linear(36, 5),
        )
        self.gamma, self.scale = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(5))
        self.shift, self.left = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(5))

    def forward(self, images: Tensor) -> Tensor:
        x = F.gelu(self.batch(self.stem(images))).mul(self.gamma.reshape(1, -1, 1, 1))
        x = x + self.shift.reshape(1, -1, 1, 1)
        return self.left + self.head(self.layer(x.flatten(2))) * self.scale


def gradients(model: nn.Module, images: Tensor) -> list[Leaf]:
    """Of the mean square of what the model returns."""
    model.zero_grad()
    model(images).square().mean().backward()
    return [Leaf(name, "gradient", weight.grad.clone()) for name, weight in model.named_parameters()]


def test_sums_in_order_change_the_gradients_of_vectors_by_rounding_alone():
    torch.manual_seed(SEED)
    model, images = Vectors(), torch.randn(64, 3, 8, 8)

    before = {leaf.name: leaf.value for leaf in gradients(copy.deepcopy(model), images)}
    ((_, after),) = null_runs(gradients, model, images, torch.float32, SEED, ["sums"])
    after = {leaf.name: leaf.value for leaf in after}
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-4)
    vectors = {name for name, value in before.items() if value.ndim == 1}
    changed = {name for name in vectors if not torch.equal(after[name], before[name])}
    assert len(changed) > len(vectors) / 2
    assert {"gamma", "shift", "left"} <= changed


def test_a_layer_that_is_called_with_names_and_an_operator_that_writes_in_place_are_summed_as_others():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.zeros(5))
            self.gamma = nn.Parameter(torch.ones(5))

        def forward(self, images: Tensor) -> Tensor:
            x = F.linear(images, weight=self.weight, bias=self.bias) * 1.0
            x.mul_(self.gamma)
            return x

    torch.manual_seed(SEED)
    model, images = Named(), torch.randn(64, 4)

    before = {leaf.name: leaf.value for leaf in gradients(copy.deepcopy(model), images)}
    ((_, after),) = null_runs(gradients, model, images, torch.float32, SEED, ["sums"])
    torch.testing.assert_close({leaf.name: leaf.value for leaf in after}, before, atol=1e-6, rtol=1e-4)


def test_a_head_of_zeros_hides_no_statistics():
    model, images = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)).train(), torch.randn(8, 4)
    nn.init.zeros_(model[1].weight)

    def run(model, images):
        return [Leaf("output", "output", model(images).detach())]

    assert list(null_runs(run, model, images, torch.float32, SEED, ["halves"])) == []


@pytest.mark.parametrize(("probability", "families"), [(0.5, []), (0.1, []), (0.0, ["halves"])])
def test_a_batch_whose_samples_are_dropped_at_random_is_not_halved(probability, families):
    model, images = nn.Sequential(nn.Linear(4, 4), DropPath(probability)).train(), torch.randn(8, 4)

    def run(model, images):
        return [Leaf("output", "output", model(images).detach())]

    assert [family for family, _ in null_runs(run, model, images, torch.float32, SEED, ["halves"])] == families


def test_masks_of_a_float64_model_are_those_of_float32():
    drawn = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(SEED)
        with NarrowDraws():
            drawn.append(torch.empty(100, dtype=dtype).bernoulli_(0.3))
    assert drawn[1].dtype == torch.float64 and torch.equal(drawn[0].double(), drawn[1])
