"""The strict verdict in the accuracy check: what it judges that the dynamo rule does not, and what the row says of it."""

import math
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import specs
from said import Said, listen
from timmgate.core.checks import ACCURACY
from timmgate.core.verdict import KINKS
from timmgate.worker import accuracy, backends, iterations, models, null_runs, strict_verdict
from timmgate.worker.compile_cache import Cache
from timmgate.worker.training_step import Setup


class Tiny(nn.Module):
    """Convolution, a smooth activation, pooling and a head over images of 3 x 16 x 16."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.convolution, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(nn.functional.gelu(self.convolution(images)).mean((2, 3)))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Small models of our own in place of timm's, drawn from the spec's seed."""
    monkeypatch.setattr(Cache, "_use", lambda cache: None)
    monkeypatch.setattr(models, "create", lambda spec, weights=None: Tiny(spec.seed).train(spec.options.training))
    monkeypatch.setattr(models, "input_size", lambda *_: (3, 16, 16))


def measure(monkeypatch, wrap, strict: bool = True, traits: dict[str, Any] | None = None, **options: Any) -> Said:
    """What the check says of a compiler, a function from the model to what runs in its place."""
    return measure_with(monkeypatch, lambda spec, model, images: wrap(model), strict, traits, **options)


def measure_with(
    monkeypatch, compile_model, strict: bool = True, traits: dict[str, Any] | None = None, **options: Any
) -> Said:
    """The same of one that knows the spec and the images too."""
    monkeypatch.setattr(backends, "compile_model", compile_model)
    monkeypatch.setattr(backends, "check_compiled", lambda spec: None)
    spec = specs.spec("accuracy", options={"backend": "eager", **options}, traits=traits)
    setup = Setup(threads=1, cache=Cache(Path("unused")), batch_size=8, strict=strict)
    return listen("accuracy", lambda reporter: accuracy.measure(spec, setup, reporter))


def same(model: nn.Module) -> nn.Module:
    return model


def one_sample_off(model: nn.Module):
    """Every image but the last is right, and that one is off by less than the tolerance of the dynamo rule."""
    return lambda images: torch.cat([model(images[:-1]), model(images[-1:]) * 1.0005])


class Reversed(torch.autograd.Function):
    """The images as they are, with their gradients in the wrong order."""

    @staticmethod
    def forward(context, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return gradient.flip(0)


BOTH = pytest.mark.parametrize("training", [False, True])


@BOTH
def test_what_computes_the_same_passes_and_the_row_says_by_how_many_null_runs(monkeypatch, training):
    said = measure(monkeypatch, same, training=training)
    assert said.columns["strict"] == "pass" and said.columns["strict_of_seeds"] == ["pass"]
    assert 0 <= said.columns["strict_margin"] <= 1 and said.columns["null_runs"] >= 8
    assert said.columns["leaves_undecided"] == 0 and said.columns["strict_message"] is None
    assert {detail["strict"] for detail in said.details if detail["kind"] != "parameter"} == {True}


def test_an_error_below_every_tolerance_passes_dynamo_and_fails_strict(monkeypatch):
    said = measure(monkeypatch, one_sample_off)
    assert said.result["status"] == "pass"
    assert said.columns["strict"] == "fail" and said.columns["strict_margin"] > 1
    assert said.columns["strict_worst_leaf"] == "output"
    assert "output" in said.columns["strict_message"] and "null runs allow" in said.columns["strict_message"]
    (detail,) = said.details
    assert detail["accuracy"] is True and detail["strict"] is False and detail["strict_message"]


def test_gradients_of_samples_mixed_up_are_seen_by_the_second_loss_alone(monkeypatch):
    def mixed_up(model):
        return lambda images: Reversed.apply(model(images))

    said = measure(monkeypatch, mixed_up, training=True)
    assert said.result["status"] == "pass"
    assert said.columns["strict"] == "fail" and said.columns["strict_worst_leaf"].startswith("cotangent.")
    mixed = {detail["leaf"] for detail in said.details if detail["strict"] is False}
    assert "cotangent.gradient.head.weight" in mixed and "gradient.head.weight" not in mixed
    assert all(detail["accuracy"] is None for detail in said.details if detail["kind"] == "cotangent_gradient")


def keeps_images(model):
    kept = []

    def forward(images):
        kept.append(images)
        return model(kept[0])

    return forward


def keeps_output(model):
    kept = []

    def forward(images):
        kept.append(model(images))
        return kept[0].clone()

    return forward


def wrong_in_call(number):
    def wrap(model):
        calls = []

        def forward(images):
            calls.append(1)
            return model(images) * (100 if len(calls) == number else 1)

        return forward

    return wrap


def writes_into_its_images(model):
    def forward(images):
        output = model(images)
        images.data.add_(1)
        return output

    return forward


def writes_into_its_weights(model):
    def forward(images):
        output = model(images)
        model.head.bias.data.add_(1e-6)
        return output

    return forward


def reuses_its_output(model):
    kept = []

    def forward(images):
        output = model(images)
        kept.append(output.detach())
        kept[0].copy_(output.detach())
        return output + (kept[0] - output).detach() if torch.is_grad_enabled() else kept[0]

    return forward


def no_gradient_at_first(model):
    calls = []

    def forward(images):
        calls.append(1)
        output = model(images)
        return output.detach() + (output - output.detach()) * (0 if len(calls) == 1 else 1)

    return forward


def keeps_weights(model):
    kept = {}

    def forward(images):
        for name, weight in model.named_parameters():
            kept.setdefault(name, weight.detach().clone())
        weights = {name: weight + (kept[name] - weight).detach() for name, weight in model.named_parameters()}
        return torch.func.functional_call(model, weights, images)

    return forward


def without_a_gradient_at_first(model):
    calls = []

    def forward(images):
        calls.append(1)
        name = "convolution.bias"
        weight = model.get_parameter(name)
        return torch.func.functional_call(model, {name: weight.detach() if len(calls) == 1 else weight}, images)

    return forward


SMALLER_THAN_THE_TOLERANCE = {"scaled_loss": True}
"""Traits that make gradients so."""


class Arena(torch.autograd.Function):
    """A weight as it is, whose gradient lies in memory that the next backward pass uses again."""

    @staticmethod
    def forward(context, weight: Tensor, memory: Tensor) -> Tensor:
        context.memory = memory
        return weight.view_as(weight)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        context.memory.copy_(gradient.reshape(-1))
        return context.memory.view(gradient.shape), None


def writes_over_a_gradient(model):
    name = "convolution.weight"
    memory = torch.empty(model.get_parameter(name).numel())

    def forward(images):
        return torch.func.functional_call(model, {name: Arena.apply(model.get_parameter(name), memory)}, images)

    return forward


def wrong_for_the_whole_batch(model):
    return lambda images: model(images) * (1.5 if len(images) == 8 else 1)


@pytest.mark.parametrize(
    ("wrap", "options"),
    [
        (keeps_images, {}),
        (without_a_gradient_at_first, {"training": True, "traits": SMALLER_THAN_THE_TOLERANCE}),
        (without_a_gradient_at_first, {"training": True, "optimizer": "sgd", "traits": SMALLER_THAN_THE_TOLERANCE}),
        (writes_over_a_gradient, {"training": True}),
        (wrong_for_the_whole_batch, {"dynamic": True}),
        (wrong_for_the_whole_batch, {"dynamic": True, "training": True}),
        (keeps_output, {}),
        (wrong_in_call(1), {}),
        (wrong_in_call(1), {"training": True}),
        (writes_into_its_images, {}),
        (writes_into_its_images, {"training": True}),
        (writes_into_its_weights, {}),
        (reuses_its_output, {}),
        (wrong_in_call(2), {}),
        (wrong_in_call(2), {"training": True}),
        (no_gradient_at_first, {"training": True}),
        (keeps_weights, {"training": True, "optimizer": "sgd"}),
    ],
)
def test_what_a_program_keeps_of_its_first_call_and_what_is_wrong_in_it_alone_fails(wrap, options, monkeypatch):
    assert measure(monkeypatch, wrap, **options).columns["strict"] == "fail"


def test_null_runs_do_not_compute_as_coarsely_as_a_compiler_tells_torch_to(monkeypatch):
    seen = []

    def coarser(model):
        torch.set_float32_matmul_precision("medium")
        torch.set_autocast_enabled("cpu", True)
        return model

    examine = strict_verdict.examine
    monkeypatch.setattr(strict_verdict, "examine", lambda *given: seen.append(now()) or examine(*given))

    def now():
        return torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")

    before = now()
    measure(monkeypatch, coarser)
    assert seen and {*seen} == {before} == {now()}


def test_a_mode_with_dynamic_shapes_is_judged_with_another_number_of_images(monkeypatch):
    sizes = []

    def for_its_own_size(model):
        def forward(images):
            sizes.append(len(images))
            return model(images) * (1 if len(images) == sizes[0] else 1.01)

        return forward

    assert measure(monkeypatch, for_its_own_size, dynamic=True).columns["strict"] == "fail"
    assert [*dict.fromkeys(sizes)] == [8, 6]
    assert measure(monkeypatch, same, dynamic=True).columns["strict"] == "pass"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_fails_however_exact_it_is(dtype, training, monkeypatch):
    said = measure(monkeypatch, lambda model: lambda images: model(images).to(dtype), training=training)
    assert said.columns["strict"] == "fail" and said.columns["strict_worst_statistic"] == "mismatch"


@pytest.mark.parametrize("wrap", [lambda out: out[:4], lambda out: (out,), lambda out: out.flatten()])
def test_another_shape_or_structure_is_the_compilers(wrap, monkeypatch):
    said = measure(monkeypatch, lambda model: lambda images: wrap(model(images)))
    assert said.result["status"] == "fail_accuracy" and said.columns["strict"] == "fail"


def beyond(monkeypatch, margin: float):
    """A compiler that is wrong by so many limits."""

    def by(share):
        def wrap(model):
            return lambda images: model(images) * torch.ones(10).index_fill(0, torch.tensor([3]), 1 + share)

        return wrap

    share = 1e-2
    return by(share * margin / measure(monkeypatch, by(share)).columns["strict_margin"])


@pytest.mark.parametrize(
    ("message", "strict"), [("not twice", "fail"), ("CUDA out of memory", "undecided"), ("std::bad_alloc", "undecided")]
)
def test_a_program_that_raises_with_another_seed_has_failed_with_it_unless_memory_ran_out(message, strict, monkeypatch):
    off = beyond(monkeypatch, 2.0)

    def compile_model(spec, model, images):
        if spec.seed != 1337:
            raise RuntimeError(message)
        return off(model)

    said = measure_with(monkeypatch, compile_model)
    assert said.result["status"] == "pass" and said.columns["strict"] == strict
    assert said.columns["strict_error"] == f"RuntimeError: {message}"


def test_a_failure_that_may_be_chance_is_undecided_where_nothing_else_can_be_made(monkeypatch):
    def make(spec, setup):
        raise RuntimeError("no more weights")

    monkeypatch.setattr(accuracy, "make", make)
    said = measure(monkeypatch, beyond(monkeypatch, 2.0))
    assert said.columns["strict"] == "undecided" and said.columns["strict_error"] == "RuntimeError: no more weights"


def test_a_failure_that_may_be_chance_needs_two_of_three_seeds(monkeypatch):
    """One that only the first seed shows is a chance that would repeat in every night."""
    seeds, off = [], beyond(monkeypatch, 2.0)

    def only_for_the_first(spec, model, images):
        seeds.append(spec.seed)
        return off(model) if len(seeds) == 1 else model

    said = measure(monkeypatch, off)
    assert said.columns["strict_of_seeds"] == ["fail", "fail"] and 1 < said.columns["strict_margin"] < 3
    said = measure_with(monkeypatch, only_for_the_first)
    assert said.columns["strict_of_seeds"] == ["fail", "pass", "pass"] and said.columns["strict"] == "pass"
    assert len(set(seeds)) == 3 and said.columns["strict_message"] is None


@pytest.mark.parametrize("factor", [1.5, math.nan])
def test_what_chance_does_not_make_needs_no_other_seed(factor, monkeypatch):
    """As of a race: a program that is wrong in one call and right in the next ones."""
    seeds = []

    def only_for_the_first(spec, model, images):
        seeds.append(spec.seed)
        return (lambda images: model(images) * factor) if len(seeds) == 1 else model

    said = measure_with(monkeypatch, only_for_the_first)
    assert (said.columns["strict"], said.columns["strict_of_seeds"], seeds) == ("fail", ["fail"], [1337])


def test_what_is_known_by_then_is_said_before_each_stage_that_a_limit_may_end(monkeypatch):
    columns, known = {}, []
    for message in measure(monkeypatch, beyond(monkeypatch, 2.0)).messages:
        columns.update(message.get("columns", {}))
        if so_far := message.get("result_so_far"):
            (leaf,) = so_far["details"]
            known.append((so_far["status"], leaf["strict"], columns.get("strict"), columns.get("strict_of_seeds")))
    assert known == [("pass", None, None, None), *[("pass", False, "undecided", ["fail"])] * 2]


def test_the_columns_of_the_row_are_those_of_the_first_seed(monkeypatch):
    first = measure(monkeypatch, same, strict=False).columns["weights_hash"]
    assert measure(monkeypatch, one_sample_off).columns["weights_hash"] == first


def test_training_that_eager_cannot_repeat_is_judged_all_the_same(monkeypatch):
    said = measure(monkeypatch, same, training=True, traits={"nondeterministic": True})
    assert said.result["status"] == "pass_due_to_skip" and said.columns["strict"] == "pass"
    wrong = measure(monkeypatch, lambda model: lambda images: 1.01 * model(images), training=True,
                    traits={"nondeterministic": True})  # fmt: skip
    assert wrong.result["status"] == "pass_due_to_skip" and wrong.columns["strict"] == "fail"


def test_without_float64_null_runs_are_held_against_eager(monkeypatch):
    run = strict_verdict.run

    def no_double(spec, model, images, forward=None):
        if images.dtype == torch.float64:
            raise RuntimeError("no float64 here")
        return run(spec, model, images, forward)

    monkeypatch.setattr(strict_verdict, "run", no_double)
    assert measure(monkeypatch, same).columns["strict"] == "pass"
    assert measure(monkeypatch, lambda model: lambda images: 1.001 * model(images)).columns["strict"] == "fail"
    of_model(monkeypatch, Normed)
    assert measure(monkeypatch, same, training=True).columns["strict"] == "pass"
    assert measure(monkeypatch, with_momentum(0.2), training=True).columns["strict"] == "fail"


def with_momentum(momentum: float):
    """A compiler whose running statistics move by another share than eager's, which is 0.1."""

    def compile_(model):
        model.norm.momentum = momentum
        return model

    return compile_


def test_null_runs_that_fail_leave_the_dynamo_rule_and_a_reason(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no null runs here")

    monkeypatch.setattr(null_runs, "null_runs", broken)
    said = measure(monkeypatch, same)
    assert said.result["status"] == "pass" and said.columns["strict_error"] == "RuntimeError: no null runs here"
    assert "strict" not in said.columns


def test_a_family_of_null_runs_that_fails_costs_its_own_runs_alone(monkeypatch):
    def broken(subject):
        raise RuntimeError("required rank 4 tensor to use channels_last format")

    usual = measure(monkeypatch, same).columns
    monkeypatch.setitem(null_runs.FAMILIES, "library", broken)
    columns = measure(monkeypatch, same).columns
    assert (columns["strict"], columns.get("strict_error")) == ("pass", None)
    assert 0 < columns["null_runs"] < usual["null_runs"]


def test_by_the_dynamo_rule_alone_nothing_runs_twice(monkeypatch):
    calls = []

    def counted(model):
        def forward(images):
            calls.append(1)
            return model(images)

        return forward

    said = measure(monkeypatch, counted, strict=False)
    assert len(calls) == iterations.ITERATIONS
    assert "strict" not in said.columns and "null_runs" not in said.stages


def test_a_large_run_gets_fewer_null_runs(monkeypatch):
    few = measure(monkeypatch, same).columns["null_runs"]
    monkeypatch.setattr(strict_verdict, "gmacs", lambda *_: 100.0)
    assert measure(monkeypatch, same).columns["null_runs"] < few


@pytest.mark.parametrize(("jump", "verdict"), [(0.0, "fail"), (0.1, "pass")])
def test_kinks_are_looked_for_where_it_fails_without_them_and_may_explain_it(monkeypatch, jump, verdict):
    looks = []

    def kinks(run, model, images, dtype, seed, expected):
        looks.append(seed)
        yield KINKS, [replace(leaf, value=leaf.value * (1 + jump)) for leaf in expected]

    monkeypatch.setattr(null_runs, "kinks", kinks)
    assert measure(monkeypatch, same, training=True).columns["strict"] == "pass" and not looks
    off = measure(monkeypatch, lambda model: lambda images: 1.01 * model(images), training=True)
    assert off.columns["strict"] == verdict and looks


def test_every_column_is_described(monkeypatch):
    said = measure(monkeypatch, one_sample_off)
    known = {column.name for column in ACCURACY.columns}
    assert {name for name in said.columns if name.startswith("strict")} <= known


def discard(model):
    class Erased(nn.Parameter):
        pass

    model.head.weight = Erased(torch.zeros(0))


@pytest.mark.parametrize("change", [discard, lambda model: model.double(), lambda model: model.to("meta")])
def test_weights_that_a_compiler_discards_casts_or_moves_are_not_written_to(change, monkeypatch):
    """As inductor does under freezing, if it is told to: the copy of the model is the compiler's."""

    def owns(model):
        weights, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        kept = {name: tensor.detach().clone() for name, tensor in (weights | buffers).items()}
        change(model)
        return lambda images: torch.func.functional_call(model, kept, images)

    assert measure(monkeypatch, owns).columns["strict"] == "pass"


def test_a_parameter_that_the_program_writes_to_is_seen_though_an_optimizer_steps_it(monkeypatch):
    def writes(model):
        def forward(images):
            model.head.bias.data.mul_(0.999)
            return model(images)

        return forward

    said = measure(monkeypatch, writes, training=True, optimizer="sgd")
    assert said.columns["strict"] == "fail"
    assert "written.head.bias" in {detail["leaf"] for detail in said.details if detail["strict"] is False}
    assert measure(monkeypatch, same, training=True, optimizer="sgd").columns["strict"] == "pass"


def wrong_in_call(number):
    def wrong(model):
        calls = []

        def forward(images):
            calls.append(None)
            return model(images) * (3.0 if len(calls) == number else 1.0)

        return forward

    return wrong


@pytest.mark.parametrize("call", [1, 2])
def test_what_is_wrong_in_one_call_alone_is_seen_though_an_optimizer_makes_the_calls_differ(monkeypatch, call):
    said = measure(monkeypatch, wrong_in_call(call), training=True, optimizer="sgd")
    assert said.columns["strict"] == "fail" and said.columns["strict_of_seeds"] == ["fail"]


class Standardized(Tiny):
    """One whose samples see each other, in no module that says so."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return (logits - logits.mean(0)) / logits.std(0)


class TwoOutputs(Tiny):
    """Logits, and what comes before a norm that can be folded into the convolution."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.norm = nn.BatchNorm2d(16)
        nn.init.uniform_(self.norm.running_var, 2.0, 3.0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.convolution(images)
        return self.head(nn.functional.gelu(self.norm(features)).mean((2, 3))), features


class PerRun(Tiny):
    """Logits, and an output that is of no image."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(images), self.head.weight.exp()


class Counting(Tiny):
    """One that writes to a buffer of its own, and returns it."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.register_buffer("seen", torch.zeros(10))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().forward(images)
        self.seen.add_(logits.detach().sum(0))
        return logits, self.seen


class Classes(Tiny):
    """The classes of all positions, which rounding decides where two are alike."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.convolution(images)
        return self.head(nn.functional.gelu(features).mean((2, 3))), features.argmax(1)


def of_model(monkeypatch, kind):
    monkeypatch.setattr(models, "create", lambda spec, weights=None: kind(spec.seed).train(spec.options.training))


def scaled(place):
    """A compiler that scales one of several outputs."""

    def scale(model):
        def forward(images):
            outputs = list(model(images))
            outputs[place] = outputs[place] * 1.05
            return tuple(outputs)

        return forward

    return scale


@pytest.mark.parametrize("kind", [Standardized, TwoOutputs, PerRun, Counting, Classes])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_unusual_models_that_are_compiled_right_pass(monkeypatch, kind, precision):
    of_model(monkeypatch, kind)
    said = measure(monkeypatch, same, precision=precision)
    assert said.columns["strict"] == "pass" and said.columns["leaves_undecided"] == 0


def test_a_null_run_that_is_another_model_hides_nothing(monkeypatch):
    of_model(monkeypatch, Standardized)
    assert measure(monkeypatch, lambda model: lambda images: model(images) * 1.05).columns["strict"] == "fail"
    of_model(monkeypatch, TwoOutputs)
    assert measure(monkeypatch, scaled(1)).columns["strict"] == "fail"


@BOTH
@pytest.mark.parametrize("place", [0, 1])
def test_every_output_is_judged(monkeypatch, place, training):
    of_model(monkeypatch, TwoOutputs)
    assert measure(monkeypatch, scaled(place), training=training).columns["strict"] == "fail"


def test_gradients_of_every_output_are_judged(monkeypatch):
    def reverses(model):
        def forward(images):
            logits, features = model(images)
            return logits, Reversed.apply(features)

        return forward

    of_model(monkeypatch, TwoOutputs)
    said = measure(monkeypatch, reverses, training=True)
    assert said.columns["strict"] == "fail" and said.columns["strict_worst_leaf"].startswith("cotangent.")


def test_classes_are_integers_of_a_dtype_and_many_of_another_class_are_wrong(monkeypatch):
    def changed(change):
        return lambda model: lambda images: (model(images)[0], change(model(images)[1]))

    of_model(monkeypatch, Classes)
    assert measure(monkeypatch, changed(lambda classes: classes.int())).columns["strict"] == "fail"
    assert measure(monkeypatch, changed(lambda classes: classes.roll(1, 0))).columns["strict"] == "fail"


class Halving(Tiny):
    """One that writes to its images."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.mul_(0.5))


@pytest.mark.parametrize("kind", [Halving, Counting])
def test_a_write_of_eagers_that_the_program_drops_is_seen(monkeypatch, kind):
    of_model(monkeypatch, kind)

    def drops(model):
        def forward(images):
            kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
            output = model(images.clone())
            for name, buffer in kept.items():
                model.get_buffer(name).copy_(buffer)
            return (output[0], output[1].clone()) if isinstance(output, tuple) else output

        return forward

    wrong = {leaf["leaf"] for leaf in measure(monkeypatch, drops).details if leaf["strict"] is False}
    assert any(name.startswith("written.") for name in wrong)
    assert measure(monkeypatch, same).columns["strict"] == "pass"


def test_an_output_of_another_class_of_tensors_need_not_have_been_computed(monkeypatch):
    class Lazy(Tensor):
        pass

    said = measure(monkeypatch, lambda model: lambda images: model(images).as_subclass(Lazy))
    assert said.columns["strict"] == "fail" and "a Lazy instead of a Tensor" in said.columns["strict_message"]


def test_an_output_in_another_container_cannot_be_used_as_eagers(monkeypatch):
    Named = namedtuple("Named", ["features", "logits"])

    class Several(Tiny):
        def forward(self, images):
            features = self.convolution(images)
            return Named(features, self.head(nn.functional.gelu(features).mean((2, 3))))

    of_model(monkeypatch, Several)
    said = measure(monkeypatch, lambda model: lambda images: tuple(model(images)))
    assert said.columns["strict"] == "fail" and "a tuple instead of a Named" in said.columns["strict_message"]
    assert measure(monkeypatch, same).columns["strict"] == "pass"


class Idle(Tiny):
    """One with a parameter that nothing depends on."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.idle = nn.Parameter(torch.ones(3))

    def forward(self, images):
        return super().forward(images) + 0.0 * self.idle.sum()


def test_a_gradient_that_the_program_lacks_is_wrong_although_it_is_zero(monkeypatch):
    """An optimizer with weight decay steps the one, and passes over the other."""
    of_model(monkeypatch, Idle)
    said = measure(monkeypatch, lambda model: lambda images: Tiny.forward(model, images), training=True)
    assert said.columns["strict"] == "fail"
    assert "without_gradient.idle" in {detail["leaf"] for detail in said.details if detail["strict"] is False}
    assert measure(monkeypatch, same, training=True).columns["strict"] == "pass"


class TwoHeads(Tiny):
    """One with an output that the loss does not see."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.other = nn.Linear(16, 7)

    def forward(self, images):
        features = nn.functional.gelu(self.convolution(images)).mean((2, 3))
        return {"logits": self.head(features), "others": [self.other(features)]}


@pytest.mark.parametrize("kind", [Idle, TwoHeads])
@pytest.mark.parametrize("training", [False, True])
def test_what_aot_autograd_makes_of_unusual_models_is_right(kind, training, monkeypatch):
    """It gives zeros to the gradients of a head that the loss does not see, which eager leaves out."""
    of_model(monkeypatch, kind)
    said = measure_with(
        monkeypatch, lambda spec, model, images: torch.compile(model, backend="aot_eager"), training=training
    )
    assert (said.result["status"], said.columns["strict"]) == ("pass", "pass")


class Normed(Tiny):
    """One with statistics, which eager does not write to at inference."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(nn.functional.gelu(self.norm(self.convolution(images))).mean((2, 3)))


def test_statistics_that_a_program_spoils_are_not_put_right_for_it(monkeypatch):
    """Where eager does not repeat itself nothing says that it has written to them; what it computes then does."""

    def spoils(model):
        def forward(images):
            model.norm.running_mean += 0.5
            return model(images)

        return forward

    class Restless(Normed):
        calls = 0

        def forward(self, images):
            Restless.calls += 1
            return super().forward(images) * (1 + 1e-7 * (Restless.calls % 3))

    of_model(monkeypatch, Restless)
    said = measure(monkeypatch, spoils)
    assert (said.result["status"], said.columns["strict"]) == ("eager_two_runs_differ", "fail")


def test_what_the_suite_says_of_training_excuses_nothing_at_inference(monkeypatch):
    def wrong_at_first(model):
        calls = []

        def forward(images):
            calls.append(1)
            return model(images) * (1.5 if len(calls) == 1 else 1)

        return forward

    assert measure(monkeypatch, wrong_at_first, traits={"nondeterministic": True}).columns["strict"] == "fail"


def test_a_buffer_that_a_model_makes_anew_at_its_first_call_stays_as_it_made_it(monkeypatch):
    """As ConViT's relative positions, whose shape is that of the images."""

    class Positions(Tiny):
        def __init__(self, seed: int):
            super().__init__(seed)
            self.register_buffer("positions", torch.zeros(1, 1))

        def forward(self, images: Tensor) -> Tensor:
            if self.positions.shape[1] != images.shape[2]:
                self.positions = torch.linspace(0, 1, images.shape[2], dtype=images.dtype)[None]
            return super().forward(images * (1 + self.positions))

    of_model(monkeypatch, Positions)
    said = measure(monkeypatch, same, training=True, optimizer="sgd")
    assert (said.result["status"], said.columns["strict"]) == ("pass", "pass")


@pytest.mark.parametrize("kind", [Halving, Counting])
def test_null_runs_are_of_the_model_and_images_that_the_reference_had_though_eager_writes_to_them(monkeypatch, kind):
    def wrong(model):
        def forward(images):
            output = model(images)
            return (output[0], output[1] * 1.05) if isinstance(output, tuple) else output * 1.05

        return forward

    of_model(monkeypatch, kind)
    said = measure(monkeypatch, wrong)
    assert said.columns["strict"] == "fail" and said.columns["null_scatter"] < 100


def test_one_output_that_is_the_models_own_excuses_no_other(monkeypatch):
    class WithWeight(Tiny):
        def forward(self, images):
            return super().forward(images), self.head.weight

    def reuses(model):
        memory = torch.empty(8, 10)

        def forward(images):
            logits, weight = model(images)
            return memory.copy_(logits), weight

        return forward

    of_model(monkeypatch, WithWeight)
    assert "written.output" in {leaf["leaf"] for leaf in measure(monkeypatch, reuses).details if leaf["strict"] is False}
    assert measure(monkeypatch, same).columns["strict"] == "pass"


def test_complex_outputs_that_are_conjugated_are_compared(monkeypatch):
    class Waves(Tiny):
        def forward(self, images):
            logits = super().forward(images)
            return torch.complex(logits, logits).conj()

    of_model(monkeypatch, Waves)
    assert measure(monkeypatch, same).columns["strict"] == "pass"
    assert measure(monkeypatch, lambda model: lambda images: model(images) * 1.05).columns["strict"] == "fail"


def wrong_until_call(number):
    """As where a graph is captured in the second call and replayed from the third on."""

    def wrong(model):
        calls = []

        def forward(images):
            calls.append(None)
            return model(images) * (1.5 if len(calls) <= number else 1.0)

        return forward

    return wrong


@pytest.mark.parametrize("options", [{}, {"training": True}, {"training": True, "optimizer": "sgd"}])
def test_what_is_wrong_in_both_calls_that_the_dynamo_rule_judges_fails(options, monkeypatch):
    said = measure(monkeypatch, wrong_until_call(2), **options)
    assert said.columns["strict"] == "fail"
    assert ("first_calls." in said.columns["strict_worst_leaf"]) is ("optimizer" not in options)


def test_calls_that_cannot_be_judged_leave_the_verdict_on_others(monkeypatch):
    examine = strict_verdict.examine

    def without_memory(spec, model, images, compiled, judged=None):
        if judged is not None:
            raise RuntimeError("out of memory")
        return examine(spec, model, images, compiled)

    monkeypatch.setattr(strict_verdict, "examine", without_memory)
    assert measure(monkeypatch, wrong_until_call(2)).columns["strict"] == "pass"


def test_a_program_that_is_nearer_to_float64_than_eager_in_half_precision_passes(monkeypatch):
    class Counting256(Tiny):
        """bfloat16 has no integers beyond 256 that are odd."""

        def forward(self, images, dtype=None):
            numbers = torch.arange(0, 3000, 300, dtype=dtype or images.dtype)
            return super().forward(images) + (numbers % 7).to(images.dtype)

    of_model(monkeypatch, Counting256)
    exact = measure(monkeypatch, lambda model: lambda images: model(images, torch.float32), precision="bfloat16")
    assert exact.columns["strict"] == "pass"


def test_buffers_that_a_compiler_discards_are_not_compared(monkeypatch):
    class Erased(Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            raise RuntimeError("this tensor was discarded")

    def discards(model):
        norm = model.norm
        values = {name: buffer.clone() for name, buffer in norm.named_buffers()}

        def forward(images):
            norm._buffers.update(values)
            output = model(images)
            norm._buffers["running_mean"] = torch.zeros(16).as_subclass(Erased)
            return output

        return forward

    of_model(monkeypatch, Normed)
    assert measure(monkeypatch, discards).columns["strict"] == "pass"


NOISE = {
    "like": torch.randn_like,
    "uniform": torch.rand_like,
    "in place": lambda tensor: torch.empty_like(tensor).normal_(),
    "of a dtype": lambda tensor: torch.randn(tensor.shape, dtype=tensor.dtype),
    "dropout": lambda tensor: nn.functional.dropout(torch.ones_like(tensor), 0.3),
}


def noisy(draw):
    class Noisy(Tiny):
        def forward(self, images):
            logits = super().forward(images)
            return logits + 0.1 * draw(logits)

    return Noisy


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("draw", NOISE.values(), ids=NOISE)
def test_float64_has_the_random_numbers_of_a_model_that_draws_them(draw, training, monkeypatch):
    of_model(monkeypatch, noisy(draw))
    said = measure(monkeypatch, same, training=training)
    assert said.columns["strict"] == "pass" and said.columns["null_scatter"] < 10
    assert (
        measure(monkeypatch, lambda model: lambda images: model(images) * 1.001, training=training).columns["strict"]
        == "fail"
    )


def test_random_numbers_that_a_program_keeps_are_wrong(monkeypatch):
    def keeps(model):
        torch.manual_seed(1337)
        noise = torch.randn(8, 10)
        return lambda images: Tiny.forward(model, images) + 0.1 * noise

    of_model(monkeypatch, noisy(torch.randn_like))
    assert measure(monkeypatch, keeps).columns["strict"] == "fail"


def test_where_float64_computes_something_else_eager_is_the_reference(monkeypatch):
    class Coarse(Tiny):
        """What it adds depends on the dtype, and on no rounding."""

        def forward(self, images):
            return super().forward(images) + (0.5 if images.dtype == torch.float64 else 0.0)

    of_model(monkeypatch, Coarse)
    assert measure(monkeypatch, same).columns["strict"] == "pass"
    assert measure(monkeypatch, lambda model: lambda images: model(images) * 1.01).columns["strict"] == "fail"


class Restless(Tiny):
    """One that eager cannot repeat."""

    calls = 0

    def __init__(self, seed: int):
        super().__init__(seed)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, images):
        Restless.calls += 1
        return super().forward(images) * (1 + 1e-7 * (Restless.calls % 3))


@pytest.mark.parametrize("what", ["images", "seen", "head.bias"])
def test_a_write_is_wrong_also_in_a_model_that_does_not_repeat_itself(what, monkeypatch):
    def writes(model):
        def forward(images):
            output = model(images)
            with torch.no_grad():
                written = (
                    images if what == "images" else model.get_buffer(what) if what == "seen" else model.get_parameter(what)
                )
                written += 1e-3
            return output

        return forward

    of_model(monkeypatch, Restless)
    said = measure(monkeypatch, writes)
    assert said.result["status"] == "eager_two_runs_differ"
    assert f"written.{what}" in {leaf["leaf"] for leaf in said.details if leaf["strict"] is False}


class Averaging(Tiny):
    """One that keeps an average which its output does not show."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.register_buffer("average", torch.zeros(10))

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        self.average.mul_(0.9).add_(logits.detach().mean(0))
        return logits


def test_what_eager_writes_to_a_buffer_at_inference_is_compared(monkeypatch):
    def twice(model):
        def forward(images):
            model(images)
            return model(images)

        return forward

    of_model(monkeypatch, Averaging)
    assert measure(monkeypatch, same).columns["strict"] == "pass"
    said = measure(monkeypatch, twice)
    assert said.columns["strict"] == "fail"
    assert "buffer.average" in {leaf["leaf"] for leaf in said.details if leaf["strict"] is False}


class Pooled(nn.Module):
    """One without parameters."""

    def __init__(self, seed: int):
        super().__init__()

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) ** 2


class Turning(Tiny):
    """One with a complex buffer, as of rotary position embeddings."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.register_buffer("turns", torch.polar(torch.ones(10), torch.arange(10.0)))

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return torch.view_as_real(logits.float() * self.turns).sum(-1).to(logits.dtype)


class Indexed(Tiny):
    """One with indices among its parameters."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.order = nn.Parameter(torch.arange(1_000_000, 1_000_010) - 1_000_000, requires_grad=False)
        self.far = nn.Parameter(torch.arange(9, -1, -1), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, self.far].relu()


class Remembering(Tiny):
    """One that makes a buffer in its first call."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.register_buffer("kept", None)

    def forward(self, images: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.linspace(0.5, 1.5, images.shape[-1], dtype=images.dtype)
        return super().forward(images * self.kept)


@pytest.mark.parametrize(
    "options", [{}, {"precision": "amp"}, {"precision": "bfloat16"}, {"training": True, "optimizer": "adam"}]
)
@pytest.mark.parametrize("kind", [Pooled, Turning, Indexed, Remembering])
def test_models_with_unusual_tensors_can_be_judged(kind, options, monkeypatch):
    of_model(monkeypatch, kind)
    assert measure(monkeypatch, same, **options).columns["strict"] == "pass"
    wrong = measure(monkeypatch, lambda model: lambda images: model(images) * 1.05, **options)
    assert wrong.columns["strict"] == "fail"


@pytest.mark.parametrize(("eager", "compiled"), [
    (lambda logits: torch.complex(logits, logits), lambda logits: torch.view_as_real(torch.complex(logits, logits))),
    (lambda logits: (logits, 3), lambda logits: (logits, torch.tensor(3))),
    (lambda logits: (logits, 3), lambda logits: (logits, 3.0)),
])  # fmt: skip
def test_the_same_values_in_another_type_are_wrong(eager, compiled, monkeypatch):
    class Typed(Tiny):
        def forward(self, images):
            return eager(super().forward(images))

    of_model(monkeypatch, Typed)
    said = measure(monkeypatch, lambda model: lambda images: compiled(Tiny.forward(model, images)))
    assert said.columns["strict"] == "fail"
    assert measure(monkeypatch, same).columns["strict"] == "pass"


def test_a_parameter_that_is_written_to_after_the_first_call_is_seen_though_an_optimizer_steps_it(monkeypatch):
    def writes(model):
        calls = []

        def forward(images):
            calls.append(None)
            output = model(images)
            if len(calls) > 1:
                with torch.no_grad():
                    model.head.bias += 1e-7
            return output

        return forward

    said = measure(monkeypatch, writes, training=True, optimizer="sgd")
    assert "written.head.bias" in {leaf["leaf"] for leaf in said.details if leaf["strict"] is False}


@pytest.mark.parametrize("precision", ["amp", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["head.weight", "convolution.weight"])
def test_a_weight_that_a_program_keeps_is_seen_in_training_in_half_precision(precision, name, monkeypatch):
    def keeps(model):
        kept = dict(model.named_parameters())[name].detach().clone()

        def forward(images):
            weight = dict(model.named_parameters())[name]
            return torch.func.functional_call(model, {name: weight + (kept - weight).detach()}, images)

        return forward

    options = {"training": True, "precision": precision}
    assert measure(monkeypatch, keeps, **options).columns["strict"] == "fail"
    assert measure(monkeypatch, same, **options).columns["strict"] == "pass"


def test_calls_that_fail_the_dynamo_rule_by_little_are_judged_by_null_runs_too(monkeypatch):
    calls = []

    def wrong(model):
        def forward(images):
            calls.append(None)
            return model(images) * (1.005 if len(calls) <= 2 else 1.0)

        return forward

    said = measure(monkeypatch, wrong)
    assert said.result["status"] == "fail_accuracy" and said.columns["margin"] < 2
    assert (said.columns["strict"], said.columns["strict_worst_leaf"]) == ("fail", "first_calls.output")


def test_a_model_that_writes_to_its_images_in_training_is_no_failure(monkeypatch):
    class Darkens(Tiny):
        def forward(self, images):
            with torch.no_grad():
                images.mul_(0.9)
            return super().forward(images)

    of_model(monkeypatch, Darkens)
    said = measure(monkeypatch, same, training=True)
    assert (said.result["status"], said.columns["strict"]) == ("pass", "pass")


def test_sparse_gradients_are_compared(monkeypatch):
    class Embeds(Tiny):
        def __init__(self, seed):
            super().__init__(seed)
            self.embedding = nn.Embedding(4, 10, sparse=True)

        def forward(self, images):
            return super().forward(images) + self.embedding((images.mean((1, 2, 3)) > 0).long())

    def off(model):
        model.embedding.weight.register_hook(lambda gradient: gradient * 1.01)
        return model

    of_model(monkeypatch, Embeds)
    said = measure(monkeypatch, same, training=True)
    assert (said.result["status"], said.columns["strict"]) == ("pass", "pass")
    assert measure(monkeypatch, off, training=True).columns["strict"] == "fail"


@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_counts_its_calls_is_undecided(training, monkeypatch):
    class Counts(Tiny):
        calls = 0

        def forward(self, images):
            self.calls += 1
            return super().forward(images) * (1.0 if self.calls < 3 else 1.5)

    of_model(monkeypatch, Counts)
    said = measure(monkeypatch, same, training=training)
    assert (said.result["status"], said.columns["strict"]) == ("pass", "undecided")
    assert "eager fails, too, where it is called as often" in said.columns["strict_error"]
    of_model(monkeypatch, Tiny)
    assert measure(monkeypatch, one_sample_off, training=training).columns["strict"] == "fail"
