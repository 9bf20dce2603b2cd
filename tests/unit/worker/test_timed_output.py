"""The judgement of the timed output: by which reference, how strict, and what it catches that 8 images do not show."""

import math
from pathlib import Path

import pytest
import torch

import specs
from said import listen
from timmgate.core.outcome import AttemptResult
from timmgate.core.spec import Spec
from timmgate.core.verdict import OF_A_SAMPLE
from timmgate.supervisor.classification import classify
from timmgate.worker import accuracy, performance, timed_output
from timmgate.worker.compile_cache import Cache
from timmgate.worker.training_step import Setup

IMAGES = 20
PLENTY, NOTHING = 10**12, 0


class Tiny(torch.nn.Module):
    """Convolution, normalisation, ReLU and a linear head over images of 3 x 8 x 8."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8 * 36, 10)

    def forward(self, images):
        return self.head(self.norm(self.convolution(images)).relu().flatten(1))


def spec(**options) -> Spec:
    return specs.spec("performance", options=options)


@pytest.fixture
def memory(monkeypatch):
    """Leaves room for so many images in float64, or says how many bytes are free."""

    def make(bytes_free: int) -> None:
        monkeypatch.setattr(timed_output, "free_bytes", lambda *_: bytes_free)

    return make


def judge(measured: Spec, compiled=lambda model: model, sizes=(IMAGES,), model: torch.nn.Module | None = None) -> dict:
    """The columns for a compiler, a function from the model to what runs in its place."""
    model = (model or Tiny()).train(measured.options.training)
    torch.manual_seed(1)
    images = torch.randn(max(sizes), 3, 8, 8)
    with torch.set_grad_enabled(measured.options.training):
        batches = [images[:size] for size in sizes]
        return timed_output.judge(measured, model, compiled(model), batches, 10**6, None)


def room_for(images: int, measured: Spec) -> int:
    """Bytes that leave room for so many images and no more."""
    model = Tiny()
    weights = timed_output.peak_memory.tensor_bytes(model) * (2 if measured.options.training else 1)
    return int(2 * (weights + (images + 0.5) * (10**6 - weights) / IMAGES))


BOTH = pytest.mark.parametrize("training", [False, True])


def wrong_except_for(size):
    """A compiler whose output is twice what it should be for the first image, at any other batch size than this."""

    def compile_(model):
        def forward(images):
            output = model(images)
            if len(images) == size:
                return output
            return torch.cat([2 * output[:1], output[1:]])

        return forward

    return compile_


@BOTH
def test_where_memory_admits_it_the_reference_is_float64_at_the_timed_batch_size(memory, training):
    memory(PLENTY)
    columns = judge(spec(training=training))
    assert columns["timed_reference"] == "fp64" and columns["timed_output_ok"]
    assert 0 < columns["timed_output_error"] < 1e-5, "eager's own error"
    assert 0 < columns["timed_output_margin"] < 0.1


def test_what_fits_goes_by_the_largest_batch_as_they_run_one_after_the_other(memory):
    one = spec(training=True)
    memory(room_for(IMAGES, one))
    batches = [torch.zeros(size, 3, 8, 8) for size in (IMAGES, 15, 10)]
    assert timed_output.images_that_fit(one, Tiny(), batches, 10**6, None) == IMAGES


class Remembering(Tiny):
    """One that returns a buffer, which it updates."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(10))

    def forward(self, images):
        logits = super().forward(images)
        self.seen.add_(logits.detach().sum(0))
        return logits, self.seen


@pytest.mark.parametrize(
    ("compiled", "is_right"),
    [
        (lambda model: lambda images: (model(images)[0], model.seen.clone()), True),
        (lambda model: lambda images: (model(images)[0], model.seen.mul_(1.1)), False),
    ],
)
def test_an_output_that_is_a_buffer_is_judged_as_it_was_returned(memory, compiled, is_right):
    memory(PLENTY)
    assert judge(spec(), compiled, model=Remembering())["timed_output_ok"] is is_right


def test_at_inference_float64_runs_in_slices_of_as_many_images_as_fit(memory, monkeypatch):
    seen, computed = [], timed_output.computed

    def spy(measured, model, forward, images, *rest):
        seen.extend([len(images)] if images.dtype == torch.float64 else [])
        return computed(measured, model, forward, images, *rest)

    monkeypatch.setattr(timed_output, "computed", spy)
    for room, slices in ((PLENTY, [8, 4, 4, 8, 8, 4]), (room_for(3, spec()), [3, 2, 1, 3, 3, 3, 3, 3, 3, 2])):
        seen.clear()
        memory(room)
        assert judge(spec())["timed_reference"] == "fp64"
        assert seen == slices


def test_in_training_what_does_not_fit_is_judged_by_eagers_error_with_8_images(memory):
    training = spec(training=True)
    memory(room_for(8, training))
    columns = judge(training)
    assert columns["timed_reference"] == "extrapolated" and columns["timed_output_ok"]
    memory(room_for(7, training))
    assert judge(training)["timed_reference"] == "eager"


@BOTH
@pytest.mark.parametrize(("room", "reference"), [(PLENTY, "fp64"), (8, "extrapolated"), (NOTHING, "eager")])
def test_what_is_wrong_at_any_other_batch_size_than_8_is_found(memory, training, room, reference):
    measured = spec(training=training)
    memory(room_for(room, measured) if room == 8 else room)
    columns = judge(measured, wrong_except_for(8))
    assert columns["timed_output_ok"] is False and columns["timed_output_margin"] > 1
    assert columns["timed_reference"] == ("fp64" if reference == "extrapolated" and not training else reference)


@pytest.mark.parametrize(("room", "reference"), [(PLENTY, "fp64"), (8, "extrapolated"), (NOTHING, "eager")])
def test_statistics_that_are_not_updated_at_any_other_batch_size_than_8_are_found(memory, room, reference):
    measured = spec(training=True)
    memory(room_for(room, measured) if room == 8 else room)

    def compile_(model):
        def forward(images):
            model.norm.momentum, before = model.norm.momentum if len(images) == 8 else 0.0, model.norm.momentum
            output = model(images)
            model.norm.momentum = before
            return output

        return forward

    columns = judge(measured, compile_)
    assert (columns["timed_output_ok"], columns["timed_output_kind"]) == (False, "buffer"), columns
    assert columns["timed_reference"] == reference


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_sample_of_many_in_the_place_of_another_is_found(memory, precision):
    memory(PLENTY)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32

    def replaced(model):
        def forward(images):
            output = model(images.to(dtype)).clone()
            output[-1] = output[0]
            return output

        return forward

    model = Tiny().to(dtype).train(False)
    torch.manual_seed(1)
    images = torch.randn(400, 3, 8, 8).to(dtype)
    with torch.no_grad():
        columns = timed_output.judge(spec(precision=precision), model, replaced(model), [images], 10**6, None)
        healthy = timed_output.judge(spec(precision=precision), model, model, [images], 10**6, None)
    assert (columns["timed_output_ok"], columns["timed_output_kind"]) == (False, "output.sample"), columns
    assert healthy["timed_output_ok"]


@BOTH
def test_buffers_are_left_as_they_were_and_of_the_batches_the_worst_is_named(memory, training):
    memory(PLENTY)
    model = Tiny()
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    columns = judge(spec(training=training), wrong_except_for(IMAGES), (IMAGES, 15, 10), model)
    assert columns["timed_output_batch_size"] == 10 and not columns["timed_output_ok"]
    assert all(buffer.equal(before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize(("null_error", "passes"), [(0.0, False), (0.1, True)])
def test_null_runs_say_what_is_healthy_in_training_and_only_where_eager_alone_does_not(
    memory, monkeypatch, null_error, passes
):
    memory(PLENTY)
    runs = []

    def rounded_differently(measured, model, images, reference):
        leaves = timed_output.computed(measured, model, model, images)
        runs.append({kind: [leaf * (1 + null_error) for leaf in each] for kind, each in leaves.items()})
        return runs

    monkeypatch.setattr(timed_output, "rounded_differently", rounded_differently)
    training = spec(training=True)
    assert judge(training)["timed_output_ok"] and not runs
    columns = judge(training, lambda model: lambda images: 1.05 * model(images))
    assert (columns["timed_output_ok"], len(runs)) == (passes, 1), columns


class AtTheKink(torch.nn.Module):
    """A ReLU and a linear head; some of what the ReLU gets of the images that `judge` takes is 0."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        images, fixed = torch.randn(IMAGES, 3, 8, 8), torch.zeros(IMAGES, 3, 8, 8)
        fixed[:8, :, 0, 0] = images[:8, :, 0, 0]
        self.register_buffer("fixed", fixed)
        self.head = torch.nn.Linear(3 * 8 * 8, 10)

    def forward(self, images, rounding=0.0):
        return self.head((images * (1 + rounding) - self.fixed[: len(images)]).relu().flatten(1))


@pytest.mark.parametrize(("room", "reference"), [(PLENTY, "fp64"), (8, "extrapolated")])
@pytest.mark.parametrize(
    ("are_looked_for", "factor", "passes"), [(True, 1.0, True), (False, 1.0, False), (True, 1.1, False)]
)
def test_a_gradient_may_jump_where_rounding_crosses_a_kink(
    memory, monkeypatch, room, reference, are_looked_for, factor, passes
):
    training = spec(training=True)
    memory(room if room == PLENTY else room_for(room, training))
    if not are_looked_for:
        monkeypatch.setattr(timed_output, "with_kinks_crossed", lambda *_: [])
    columns = judge(training, lambda model: lambda images: factor * model(images, 2**-22), model=AtTheKink())
    assert columns["timed_reference"] == reference
    assert columns["timed_output_ok"] is passes, columns


def test_a_backend_that_is_wrong_at_any_other_batch_size_than_8_passes_the_accuracy_check_and_fails_the_performance_check(
    monkeypatch,
):
    monkeypatch.setattr(Cache, "_use", lambda cache: None)
    monkeypatch.setitem(
        performance.backends.AHEAD_OF_TIME, "planted", lambda model, images, dynamic: wrong_except_for(8)(model)
    )

    def status(check: str, module, batch_size: int) -> tuple[str, str | None]:
        measured = specs.spec(check, options={"backend": "planted"}, batch_size=batch_size)
        setup = Setup(threads=1, cache=Cache(Path("unused")), batch_size=batch_size, timing_limit_s=0.1)
        said = listen(check, lambda reporter: module.measure(measured, setup, reporter))
        verdict = classify(AttemptResult(check, columns=said.columns, details=said.details, result=said.result))
        return verdict.status, verdict.cause

    assert status("accuracy", accuracy, 8) == ("pass", None)
    assert status("performance", performance, 8) == ("pass", None)
    assert status("performance", performance, 6) == ("fail_accuracy", "timed output")


def test_of_several_batches_the_worst_counts(memory):
    memory(PLENTY)
    assert judge(spec(dynamic=True), sizes=(20, 15, 10))["timed_output_ok"]
    assert judge(spec(dynamic=True), wrong_except_for(20), sizes=(20, 15, 10))["timed_output_ok"] is False


def test_every_tensor_that_a_model_returns_is_judged(memory):
    class Two(Tiny):
        def forward(self, images):
            logits = super().forward(images)
            return {"logits": logits, "features": logits * 2, "classes": logits.argmax(1)}

    def wrong(model):
        return lambda images: (returned := model(images)) | {"features": returned["features"] + (len(images) == IMAGES)}

    memory(PLENTY)
    assert judge(spec(), model=Two())["timed_output_ok"]
    assert judge(spec(), wrong, model=Two())["timed_output_ok"] is False


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "amp"])
@BOTH
def test_compiled_may_be_off_by_what_the_dynamo_rule_allows_over_eagers_own_error(memory, training, precision):
    """Rounding as a fused kernel does it, in float64 until the end, is far from the limit in every precision."""
    memory(PLENTY)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = Tiny().to(dtype).train(training)
    measured = spec(training=training, precision=precision)
    torch.manual_seed(1)
    images = torch.randn(IMAGES, 3, 8, 8).to(dtype)

    def fused(batch):
        parameters = {name: tensor.double() for name, tensor in model.state_dict(keep_vars=True).items()}
        with torch.autocast("cpu", enabled=False):
            output = torch.func.functional_call(model, parameters, (batch.double(),))
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(parameters[name])
        return output.to(torch.float32 if precision == "float32" else torch.bfloat16)

    with torch.set_grad_enabled(training):
        columns = timed_output.judge(measured, model, fused, [images], 10**6, None)
    assert columns["timed_output_ok"], columns
    assert columns["timed_output_margin"] < 1


def test_gradients_smaller_than_any_tolerance_are_judged_all_the_same(memory):
    """By the rule in units of the tensor, gradients of 1e-6 could be anything."""
    memory(PLENTY)
    measured = specs.spec("performance", options={"training": True}, traits={"scaled_loss": True})

    def without_gradients(model):
        def forward(images):
            output = model(images)
            return output.detach() + 0 * output

        return forward

    columns = judge(measured, without_gradients)
    assert columns["timed_output_error"] == pytest.approx(1.0) and columns["timed_output_margin"] > 100


def test_a_prediction_in_another_order_is_found_in_training_too(memory):
    """Neither the mean of the logits nor its gradients know the order of the samples."""
    memory(PLENTY)

    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(context, output):
            return output.flip(0)

        @staticmethod
        def backward(context, gradient):
            return gradient

    columns = judge(spec(training=True), lambda model: lambda images: Reversed.apply(model(images)))
    assert columns["timed_output_ok"] is False


def test_a_fault_in_the_input_gradient_alone_is_found(memory):
    memory(PLENTY)

    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(context, images):
            return images.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient.flip(0)

    columns = judge(spec(training=True), lambda model: lambda images: model(Reversed.apply(images)))
    assert columns["timed_output_ok"] is False


@pytest.mark.parametrize(
    "spoil",
    [
        lambda output: output.index_fill(1, torch.tensor([3]), math.nan),
        lambda output: output.index_fill(1, torch.tensor([3]), math.inf),
        lambda output: output[:1],
        lambda output: output[:, :5],
    ],
    ids=["NaN", "Inf", "one image", "half of the classes"],
)
@pytest.mark.parametrize("room", [PLENTY, NOTHING])
def test_what_is_not_finite_or_of_another_shape_is_wrong_by_any_reference(memory, room, spoil):
    memory(room)
    columns = judge(spec(), lambda model: lambda images: spoil(model(images)))
    assert columns["timed_output_ok"] is False
    assert columns["timed_output_margin"] == columns["timed_output_error"] == math.inf


def test_where_eager_is_not_finite_there_is_nothing_to_judge_by(memory):
    memory(PLENTY)
    model = Tiny()
    with torch.no_grad():
        model.head.bias.fill_(math.nan)
    assert judge(spec(), model=model) == {"timed_reference": "none"}


def test_a_mode_that_is_compared_by_cosine_is_so_here_too(memory):
    memory(PLENTY)
    columns = judge(spec(cosine=True), lambda model: lambda images: 1.5 * model(images))
    assert (columns["timed_reference"], columns["timed_output_ok"]) == ("eager", True)
    assert 0.5 <= columns["timed_output_error"] < 1


def test_where_directions_are_compared_each_sample_is_looked_at(memory):
    memory(PLENTY)

    def lost(model):
        return lambda images: torch.cat([torch.zeros(1, 10), model(images)[1:]])

    columns = judge(spec(cosine=True), lost, sizes=(100,))
    assert (columns["timed_output_ok"], columns["timed_output_kind"]) == (False, "output.sample")


def test_a_sample_of_almost_nothing_has_no_direction_to_be_judged_by(memory):
    memory(PLENTY)

    class Sparse(Tiny):
        def forward(self, images):
            return super().forward(images) * torch.cat([torch.full((1, 1), 1e-6), torch.ones(len(images) - 1, 1)])

    def off(model):
        return lambda images: model(images) + torch.cat([torch.full((1, 10), 1e-6), torch.zeros(len(images) - 1, 10)])

    assert judge(spec(cosine=True), off, model=Sparse())["timed_output_ok"]


def test_where_float64_does_not_fit_each_sample_is_looked_at(memory):
    training = spec(training=True)
    memory(room_for(12, training))

    def off(model):
        def forward(images):
            output = model(images)
            return torch.cat([output[:1] * 1.05, output[1:]])

        return forward

    columns = judge(training, off, sizes=(64,))
    assert (columns["timed_reference"], columns["timed_output_kind"]) == ("extrapolated", "prediction.sample")
    assert not columns["timed_output_ok"]


class Counting(Tiny):
    """Counts its calls in a buffer that its output does not depend on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += 1
        return super().forward(images)


def writes_to_images(model):
    def forward(images):
        output = model(images)
        images.data.zero_()
        return output

    return forward


def writes_to_a_buffer(model):
    def forward(images):
        output = model(images)
        model.norm.running_mean.add_(1)
        return output

    return forward


@pytest.mark.parametrize(
    ("compiled", "model", "training"),
    [
        (writes_to_images, Tiny, False),
        (writes_to_images, Tiny, True),
        (writes_to_a_buffer, Tiny, False),
        (lambda model: lambda images: Tiny.forward(model, images), Counting, False),
    ],
)
def test_what_a_program_writes_to_is_what_eager_writes_to(memory, compiled, model, training):
    memory(PLENTY)
    columns = judge(spec(training=training), compiled, model=model())
    assert (columns["timed_output_ok"], columns["timed_output_kind"]) == (False, "written")
    assert judge(spec(training=training), model=model())["timed_output_ok"]


def test_a_float64_run_that_fails_is_no_fault_of_the_compiler(memory):
    memory(PLENTY)

    class NoDouble(Tiny):
        def forward(self, images):
            if images.dtype == torch.float64:
                raise RuntimeError("no float64 here")
            return super().forward(images)

    columns = judge(spec(), model=NoDouble())
    assert (columns["timed_reference"], columns["timed_output_ok"]) == ("eager", True)


def test_what_the_process_may_take_is_its_limit_without_what_it_has():
    used = timed_output.tree_rss_bytes(timed_output.os.getpid())
    assert timed_output.free_bytes("cpu", used + 10**9) == pytest.approx(10**9, abs=2e8)
    assert timed_output.free_bytes("cpu", None) > timed_output.free_bytes("cpu", used)


class Several(Tiny):
    """Large features, small logits, an output that is of no image, classes and complex numbers."""

    def forward(self, images):
        features = self.convolution(images)
        logits = super().forward(images)
        return 30 * features, 0.01 * logits, self.head.weight.exp(), logits.argmax(1), torch.complex(logits, logits)


@pytest.mark.parametrize(("place", "is_seen"), [(None, False), (0, True), (1, True), (2, True), (4, True)])
def test_each_output_is_judged_by_itself(memory, place, is_seen):
    memory(PLENTY)

    def scaled(model):
        def forward(images):
            return tuple(each * 1.2 if number == place else each for number, each in enumerate(model(images)))

        return forward

    found = judge(spec(), scaled, model=Several())
    assert found["timed_output_ok"] is not is_seen
    assert found["timed_reference"] == "fp64"  # on all at once: in parts the third is another one
    if place:
        assert found["timed_output_kind"].removesuffix(OF_A_SAMPLE) == f"output.{place}"


def test_a_model_that_returns_integers_alone_is_judged_by_how_many_differ(memory):
    class Classes(Tiny):
        def forward(self, images):
            return super().forward(images).argmax(1)

    memory(PLENTY)
    assert judge(spec(), model=Classes())["timed_output_ok"] is True
    assert judge(spec(), lambda model: lambda images: model(images).roll(1), model=Classes())["timed_output_ok"] is False


class Standardized(Tiny):
    """One whose samples see each other."""

    def forward(self, images):
        logits = super().forward(images)
        return (logits - logits.mean(0)) / logits.std(0)


@pytest.mark.parametrize("room", [PLENTY, None])
def test_images_that_see_each_other_are_not_taken_apart(room, memory):
    memory(room_for(timed_output.ACCURACY_BATCH_SIZE, spec()) if room is None else room)
    found = judge(spec(), model=Standardized())
    assert found["timed_output_ok"] is True and found["timed_reference"] == ("fp64" if room else "extrapolated")
    assert judge(spec(), lambda model: lambda images: 1.1 * model(images), model=Standardized())["timed_output_ok"] is False


def test_what_eager_writes_to_a_buffer_at_inference_is_judged(memory):
    class Averaging(Tiny):
        def __init__(self):
            super().__init__()
            self.register_buffer("average", torch.zeros(10))

        def forward(self, images):
            logits = super().forward(images)
            self.average.mul_(0.9).add_(logits.detach().mean(0))
            return logits

    def twice(model):
        return lambda images: (model(images), model(images))[0]

    memory(PLENTY)
    assert judge(spec(), model=Averaging())["timed_output_ok"] is True
    found = judge(spec(), twice, model=Averaging())
    assert found["timed_output_ok"] is False and found["timed_output_kind"] == "buffer"


@BOTH
def test_a_model_without_parameters_is_judged(training, memory):
    class Pooled(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3)) ** 2

    memory(PLENTY)
    assert judge(spec(training=training), model=Pooled())["timed_output_ok"] is True
    wrong = judge(spec(training=training), lambda model: lambda images: 1.1 * model(images), model=Pooled())
    assert wrong["timed_output_ok"] is False


def test_an_output_too_few_is_wrong(memory):
    memory(PLENTY)
    found = judge(spec(), lambda model: lambda images: model(images)[:1], model=Several())
    assert found["timed_output_ok"] is False and found["timed_output_margin"] == math.inf


@pytest.mark.parametrize("empty", [False, True])
def test_an_output_of_zeros_or_of_nothing_has_no_direction_and_no_error(empty):
    class WithZeros(Tiny):
        def forward(self, images):
            logits = super().forward(images)
            return logits, logits[:0] if empty else 0.0 * logits.sum()

    assert judge(spec(cosine=True), model=WithZeros())["timed_output_ok"] is True
