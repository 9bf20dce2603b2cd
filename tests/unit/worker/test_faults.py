"""Faults in small models: what applies changes something, and without a fault nothing changes."""

import copy
import functools
import itertools
import math
from contextlib import nullcontext

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from timmgate.core.faults import FAULTS, Choice, FaultNotApplicable, choices, parse
from timmgate.core.spec import Mode, Spec
from timmgate.worker import backends, faults
from timmgate.worker.compare import Leaf
from timmgate.worker.faults.backend import FaultBackend
from timmgate.worker.faults.effect import effect_of
from timmgate.worker.faults.graph import EDITS


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Convolutions(nn.Module):
    """Convolutions, batch norms, pooling and a residual, as in a ResNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.block, self.again = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.head = nn.Linear(6, 6)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        x = x + self.again(F.silu(self.block(x)))
        x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return self.head(F.hardtanh(x, 0.0, 3.0).mean((2, 3)))


class Tokens(nn.Module):
    """Attention with a mask, layer norm, GELU, dropout and a table of relative positions, as in a transformer."""

    def __init__(self):
        super().__init__()
        self.token, self.table = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(9, 2))
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.register_buffer("index", torch.arange(25).reshape(5, 5) % 9)

    def forward(self, x):
        x = torch.cat((self.token.expand(len(x), -1, -1), x[:, :, :4, 0].transpose(1, 2).repeat(1, 1, 3)[..., :8]), 1)
        q, k, v = self.qkv(self.norm(x)).reshape(len(x), 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind()
        x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=self.table[self.index].permute(2, 0, 1)[None]).transpose(
            1, 2
        ).reshape(x.shape)
        return F.dropout(F.gelu(self.out(x)), 0.5, self.training)[:, 0]


class Images(nn.Module):
    """What moves and scales images."""

    def forward(self, x):
        x = F.pad(x, (1, 1, 1, 1)) * 0.5
        x = F.interpolate(torch.roll(x, 1, 2), scale_factor=1.5)
        x = F.interpolate(x, size=(6, 6), mode="bilinear")
        return x / (2 + x.abs())


class Signs(nn.Module):
    """What the sign of zero decides, and numbers that are denormal on the way."""

    def forward(self, x):
        return torch.copysign(x, F.relu(x)) + x * 1e-20 * 1e-22 * 1e22 * 1e20


IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))

MODELS = {"signs": Signs, "convolutions": Convolutions, "tokens": Tokens, "images": Images}
"""The smallest first: a fault is tried in them until it changes something."""

CASES = list(itertools.product(MODELS, (False, True)))


@functools.cache
def model(name: str) -> nn.Module:
    torch.manual_seed(1)
    made = MODELS[name]()
    for tensor in made.state_dict().values():
        if tensor.ndim == 1:
            tensor.add_(torch.rand_like(tensor))
    return made


def run(
    made: nn.Module, images: torch.Tensor, training: bool, compiler=None, exact: bool = False, dtype=torch.float32, amp=None
) -> list[Leaf]:
    """What two iterations compute, with a step of SGD after each; `compiler(model)` makes what is run."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    dtype = torch.float64 if exact else dtype
    made = copy.deepcopy(made).to(dtype).train(training)
    images = images.to(dtype, copy=True).requires_grad_(training)
    forward = compiler(made) if compiler else made
    parameters, found = dict(made.named_parameters()), {}
    for _ in range(2):
        images.grad = None
        with torch.set_grad_enabled(training), nullcontext() if amp is None or exact else torch.autocast("cpu", amp):
            output = forward(images)
        found |= {"output" if found else "first output": output.detach().clone()}
        if training:
            made.zero_grad()
            (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
            if parameters:
                torch.optim.SGD(made.parameters(), lr=0.1).step()
    if hasattr(forward, "check"):
        forward.check()
    found |= dict(made.named_buffers())
    if training:
        gradients = {name: weight.grad for name, weight in (*parameters.items(), ("images", images))}
        found |= {f"gradient of {name}": gradient for name, gradient in gradients.items() if gradient is not None}
    return [Leaf(name, "", tensor) for name, tensor in found.items()]


def broken_by(choice: Choice):
    return lambda made: faults.compile_model(str(choice), made)


def compiled_by(backend: FaultBackend | faults.Trials):
    return lambda made: torch.compile(made, backend=backend.compile)


@functools.cache
def healthy(name: str, training: bool, exact: bool) -> list[Leaf]:
    return run(model(name), IMAGES, training, exact=exact)


@functools.cache
def captured(name: str, training: bool) -> faults.Trials:
    trials = faults.Trials()
    run(model(name), IMAGES, training, compiled_by(trials))
    return trials


def identical(a: list[Leaf], b: list[Leaf]) -> bool:
    return all(x.name == y.name and torch.equal(x.value, y.value) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "size"), [("test_resnet", 64), ("test_vit", 160), ("test_convnext", 64)])
def test_without_a_fault_the_backend_is_eager(name, size, training):
    made, images = timm.create_model(name, drop_rate=0.0), torch.randn(2, 3, size, size)
    assert identical(run(made, images, training, compiled_by(faults.Trials())), run(made, images, training))


EDITING = [fault.name for fault in FAULTS.values() if fault.name in EDITS]


def test_every_fault_is_written():
    assert {fault.name for fault in FAULTS.values() if fault.has_places} == set(EDITS)


@pytest.mark.parametrize("name", [name for name in EDITING if name != "wrong-other-batch"])
def test_a_fault_changes_something_and_one_of_the_backward_pass_leaves_the_forward_pass_alone(name):
    fault = FAULTS[name]
    choice = Choice(fault, next(iter(fault.names.values())), "all")
    effects = {}
    for case in CASES:
        if not captured(*case).choose(choice):
            continue
        right, eager = healthy(*case, exact=fault.exact), healthy(*case, exact=False)
        wrong = run(model(case[0]), IMAGES, case[1], broken_by(choice), exact=fault.exact)
        effects[case] = effect_of(healthy(*case, exact=True), eager, right, wrong)
        if effects[case] > 0:
            break
    assert effects and max(effects.values()) > 0, effects
    assert not fault.backward or torch.equal(right[0].value, wrong[0].value)


@pytest.mark.parametrize(("name", "training"), [("scale-output-5", False), ("zero-gradient", True)])
def test_another_place_is_another_graph(name, training):
    made = {}
    for place in ("first", "middle", "last", "one", "all"):
        made[place] = FaultBackend(parse(f"fault:{name}@{place}"))
        run(model("convolutions"), IMAGES, training, compiled_by(made[place]))
    distinct = ("first", "middle", "last", "all")
    assert len({tuple(made[place].broken) for place in distinct}) == len(distinct)
    assert all({*backend.broken} <= {*made["all"].broken} for backend in made.values())


MODES = {
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "amp": {"amp": torch.bfloat16},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "case"),
    [("half-accumulation", "convolutions"), ("drop-skip", "convolutions"), ("softmax-axis", "tokens")],
)
def test_a_fault_runs_in_half_precision(name, case, mode):
    right = run(model(case), IMAGES, False, **MODES[mode])
    wrong = run(model(case), IMAGES, False, broken_by(parse(f"fault:{name}@all")), **MODES[mode])
    assert not identical(right, wrong)
    assert [leaf.value.dtype for leaf in right] == [leaf.value.dtype for leaf in wrong]


@pytest.mark.parametrize("name", ["batch-stride", "rotate-gradient", "keep-statistics"])
def test_a_fault_runs_with_channels_last_and_dynamic_shapes(name):
    made = copy.deepcopy(model("convolutions")).to(memory_format=torch.channels_last)
    images = IMAGES.to(memory_format=torch.channels_last)
    choice = parse(f"fault:{name}@first")
    wrong = run(made, images, True, lambda made: faults.compile_model(str(choice), made, dynamic=True))
    assert not identical(wrong, run(made, images, True))


def test_a_fault_that_has_nothing_to_break_says_so():
    with pytest.raises(FaultNotApplicable, match=r"fault:keep-statistics@first does not apply: no forward graph"):
        run(nn.ReLU(), IMAGES, False, broken_by(parse("fault:keep-statistics@first")))
    with pytest.raises(FaultNotApplicable, match="no backward graph of this model has a place for it"):
        run(nn.ReLU(), IMAGES, True, broken_by(parse("fault:other-dropout-mask")))


def test_a_fault_of_the_backward_pass_does_not_apply_at_inference():
    with pytest.raises(FaultNotApplicable, match="no backward graph"):
        run(model("images"), IMAGES, False, broken_by(parse("fault:zero-gradient")))


class InTwoGraphs(nn.Module):
    """A model that dynamo cuts in two, with something to break in the second part only."""

    def forward(self, x):
        x = x.reshape(len(x), -1)
        torch._dynamo.graph_break()
        return F.silu(x)


def test_a_fault_finds_its_place_in_a_later_graph():
    choice = parse("fault:drop-activation@first")
    output, _ = run(InTwoGraphs(), IMAGES, False, broken_by(choice))
    assert torch.equal(output.value, IMAGES.reshape(len(IMAGES), -1))


def test_the_effect_counts_changes_in_eagers_own_error():
    exact, eager = [Leaf("a", "", torch.zeros(4).double())], [Leaf("a", "", torch.full((4,), 0.5))]
    assert effect_of(exact, eager, exact, [Leaf("a", "", torch.full((4,), 1.0).double())]) == 2
    assert effect_of(exact, eager, exact, exact) == 0
    assert effect_of(exact, eager, exact, [Leaf("a", "", torch.full((4,), math.nan).double())]) == math.inf
    assert effect_of(exact, eager, exact, []) == math.inf


def test_the_effect_of_a_change_where_eager_has_no_error_is_counted_in_its_last_place():
    ones = [Leaf("a", "", torch.ones(4))]
    changed = [Leaf("a", "", torch.ones(4).double() + torch.finfo(torch.float32).eps)]
    assert effect_of(ones, ones, ones, changed) == 2


def spec(backend: str) -> Spec:
    return Spec(
        check="accuracy",
        device="cpu",
        mode="m",
        model="test_vit",
        weights="random",
        torch="2",
        timm="1",
        options=Mode(backend=backend),
    )


def test_a_fault_is_a_backend_like_any_other():
    compiled = backends.compile_model(spec("fault:scale-output-5"), nn.ReLU(), IMAGES)
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(compiled(IMAGES), 5 * F.relu(IMAGES))


def test_a_fault_that_is_not_known_is_refused_with_near_matches():
    with pytest.raises(backends.UnknownBackendError, match="no fault 'drop-skp'; did you mean drop-skip"):
        backends.check_backend(Mode(backend="fault:drop-skp"), "cpu")


def iterations(forward, made: nn.Module, images: torch.Tensor, training: bool) -> list[Leaf]:
    """Two iterations from the weights as they are; what they compute."""
    torch.manual_seed(0)
    images = images.clone().requires_grad_(training)
    for _ in range(2):
        made.zero_grad()
        with torch.set_grad_enabled(training):
            output = forward(images)
        if training:
            (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
    weights = [parameter.grad for parameter in made.parameters() if parameter.grad is not None] if training else []
    tensors = (output, *made.buffers(), *weights)
    return [Leaf("", "", tensor.detach().nan_to_num(nan=-1e9)) for tensor in tensors]  # NaN would not equal NaN


@pytest.mark.parametrize(
    ("first", "name", "training"),
    [(0, "convolutions", False), (25, "convolutions", True), (50, "tokens", False), (75, "tokens", True)],
)
def test_many_faults_on_one_captured_program_do_what_each_does_alone(first, name, training):
    original, trials = model(name).train(training), faults.Trials()
    torch._dynamo.reset()
    made = copy.deepcopy(original)
    forward = torch.compile(made, backend=trials.compile)
    right = iterations(forward, made, IMAGES, training)
    tried = [choice for choice in list(choices())[first::100] if choice.fault.family != "process"]
    applied = 0
    for choice in tried:
        made.load_state_dict(original.state_dict())
        applies = trials.choose(choice)
        found = iterations(forward, made, IMAGES, training)
        torch._dynamo.reset()
        alone = copy.deepcopy(original)
        try:
            assert identical(found, iterations(faults.compile_model(str(choice), alone), alone, IMAGES, training)), choice
        except FaultNotApplicable:
            assert not applies, choice
            continue
        assert applies, choice
        applied += 1
    assert applied > 2
    made.load_state_dict(original.state_dict())
    assert not trials.choose(None)
    assert identical(iterations(forward, made, IMAGES, training), right)
