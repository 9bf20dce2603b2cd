"""The accuracy check in this process, on a tiny model, with compilers that are right and compilers that are wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch

import specs
from said import Said, listen
from timmgate.core.checks import ACCURACY
from timmgate.core.spec import Spec
from timmgate.worker import accuracy, backends, training_step
from timmgate.worker.compile_cache import Cache
from timmgate.worker.training_step import Setup

MODEL = "test_vit"


def spec(model: str = MODEL, traits: dict[str, Any] | None = None, device: str = "cpu", **options) -> Spec:
    mode = {"backend": "eager", "batch_size": 2, **options}
    return specs.spec("accuracy", device=device, model=model, options=mode, traits=traits)


@pytest.fixture(autouse=True)
def no_cache_of_our_own(monkeypatch):
    """Leave the tests' compile cache as it is."""
    monkeypatch.setattr(Cache, "_use", lambda cache: None)


def setup(measured: Spec, strict: bool = False) -> Setup:
    return Setup(threads=1, cache=Cache(Path("unused")), batch_size=measured.requested_batch_size, strict=strict)


def measure(measured: Spec, strict: bool = False) -> Said:
    return listen("accuracy", lambda reporter: accuracy.measure(measured, setup(measured, strict), reporter))


@pytest.fixture
def compiler(monkeypatch):
    """Replace the compiler by a function from the eager model to what is run in its place."""

    def install(wrap):
        monkeypatch.setattr(backends, "compile_model", lambda spec, model, images: wrap(model))
        monkeypatch.setattr(backends, "check_compiled", lambda spec: None)

    return install


def test_the_null_compiler_passes_at_inference_with_no_error_at_all():
    said = measure(spec(), strict=True)
    assert said.result == {"status": "pass", "cause": None, "message": None}
    stages = ["load", "reference", "eager", "eager", "compile", "run", "compile", "run", "compare", "null_runs"]
    assert said.stages == stages
    assert list(dict.fromkeys(["import", *said.stages])) == [stage.name for stage in ACCURACY.stages]
    assert said.columns["reference"] == "fp64" and said.columns["top1_agreement"] == 1.0 and said.columns["margin"] == 0.0
    (output,) = said.details
    assert (output["leaf"], output["kind"], output["shape"]) == ("output", "output", [2, 1000])
    assert 0 < output["eager_relative_error"] == output["compiled_relative_error"] < 1e-5


@pytest.mark.parametrize("options", [{"precision": "amp"}, {"freezing": True}, {"training": True}])
def test_the_null_compiler_passes_in_every_default_mode(options):
    said = measure(spec(**options), strict=True)
    assert said.result == {"status": "pass", "cause": None, "message": None}
    assert (said.columns["reference"], said.columns["margin"]) == ("fp64", 0.0)


def test_training_compares_prediction_loss_every_gradient_parameter_buffer_and_the_input_gradient():
    said = measure(spec("test_resnet", training=True, backend="nothing"))
    model = accuracy.models.create(spec("test_resnet"))
    parameters, buffers = len(list(model.parameters())), len(list(model.buffers()))
    kinds = [leaf["kind"] for leaf in said.details]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "prediction": 1,
        "loss": 1,
        "gradient": parameters,
        "parameter": parameters,
        "buffer": buffers,
        "input_gradient": 1,
    }
    assert said.result["status"] == "pass" and said.columns["top1_agreement"] == 1.0
    input_gradient = said.details[-1]
    assert input_gradient["shape"] == [2, 3, 160, 160] and input_gradient["eager_rmse"] is not None


def test_an_output_that_is_off_fails_and_the_message_names_it(compiler):
    compiler(lambda model: lambda images: model(images) * 1.05)
    said = measure(spec())
    assert said.result["status"] == "fail_accuracy"
    assert "1 of 1 tensors differ; output: compiled has rmse" in said.result["message"]
    assert said.columns["margin"] > 1 and said.columns["leaves_failed"] == 1


def test_zeroed_gradients_show_in_the_evidence_although_the_tolerance_rule_lets_them_pass(compiler):
    def without_gradients(model):
        def forward(images):
            output = model(images)
            return output.detach() + 0 * output

        return forward

    compiler(without_gradients)
    said = measure(spec(training=True, traits={"scaled_loss": True}))
    gradients = [leaf for leaf in said.details if leaf["kind"] == "gradient"]
    assert said.result["status"] == "pass", "the reference suite's known blind spot"
    assert {leaf["compiled_relative_error"] for leaf in gradients if leaf["eager_relative_error"] is not None} == {1.0}


@pytest.mark.parametrize(("bad", "count"), [(float("nan"), "compiled_nan"), (float("inf"), "compiled_inf")])
def test_one_element_that_is_not_finite_fails(compiler, bad, count):
    def spoiled(model):
        return lambda images: model(images).index_fill(1, torch.tensor([3]), bad)

    compiler(spoiled)
    said = measure(spec())
    assert said.result["status"] == "fail_accuracy"
    assert said.details[0][count] == 2


def test_an_eager_model_that_is_not_finite_has_a_status_of_its_own(monkeypatch):
    create = accuracy.models.create

    def broken(measured, weights):
        model = create(measured, weights)
        with torch.no_grad():
            model.head.weight.fill_(float("nan"))
        return model

    monkeypatch.setattr(accuracy.models, "create", broken)
    said = measure(spec())
    assert said.result["status"] == "eager_not_finite"
    assert "output" in said.result["message"]
    assert "compile" not in said.stages


class Restless(torch.nn.Module):
    """Adds to the output a number that no seed controls."""

    calls = 0

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        Restless.calls += 1
        return self.model(images) + Restless.calls


@pytest.fixture
def restless_model(monkeypatch):
    create = accuracy.models.create
    monkeypatch.setattr(
        accuracy.models, "create", lambda measured, _: Restless(create(measured)).train(measured.options.training)
    )
    monkeypatch.setattr(accuracy.models, "input_size", lambda *_: (3, 160, 160))


def test_two_eager_runs_that_differ_are_told(restless_model):
    said = measure(spec())
    assert said.result["status"] == "eager_two_runs_differ"
    assert said.result["message"] == "eager differs from itself in output"


def test_a_model_known_to_be_nondeterministic_is_compiled_and_run_in_training_but_not_judged(restless_model):
    said = measure(spec(training=True, traits={"nondeterministic": True}))
    assert said.result["status"] == "pass_due_to_skip"
    assert "deterministic" in said.result["cause"]
    assert said.stages[-1] == "compare" and said.details


def test_a_reference_that_cannot_be_had_is_said_and_the_comparison_is_by_cosine(monkeypatch, compiler):
    run = accuracy.run

    def no_double(measured, model, images, *forward, **options):
        if images.dtype == torch.float64:
            raise RuntimeError("no float64 here")
        return run(measured, model, images, *forward, **options)

    monkeypatch.setattr(accuracy, "run", no_double)
    said = measure(spec())
    assert said.columns["reference"] == "none"
    assert said.columns["reference_error"] == "RuntimeError: no float64 here"
    assert said.columns["comparison"] == "cosine"
    assert said.details[0]["eager_rmse"] is None


@pytest.mark.parametrize(
    ("options", "traits", "expected"),
    [
        ({}, {}, 1e-3),
        ({"freezing": True}, {}, 1e-3),
        ({"freezing": True}, {"freezing_tolerance": 8e-2}, 8e-2),
        ({}, {"freezing_tolerance": 8e-2, "training_tolerance": 4e-2}, 1e-3),
        ({"training": True}, {}, 1e-2),
        ({"training": True}, {"freezing_tolerance": 8e-2, "training_tolerance": 4e-2}, 4e-2),
    ],
)
def test_the_tolerance_follows_the_mode_and_the_suite(options, traits, expected):
    assert accuracy.rule(spec(traits=traits, **options), has_reference=True).tolerance == expected


def test_nan_may_match_nan_in_every_precision_but_float32():
    judged = {
        name: accuracy.rule(spec(precision=name), True).equal_nan for name in ("float32", "bfloat16", "float16", "amp")
    }
    assert judged == {"float32": False, "bfloat16": True, "float16": True, "amp": True}


@pytest.mark.parametrize(
    ("device", "options", "traits", "expected"),
    [
        ("cpu", {"training": True}, {}, None),
        ("cuda", {"training": True}, {}, torch.optim.Adam),
        ("cuda", {"training": True}, {"training_optimizer": "sgd"}, torch.optim.SGD),
        ("cuda", {"training": True}, {"accuracy_optimizer": "sgd"}, torch.optim.SGD),
        ("cuda", {"training": True}, {"training_optimizer": "none"}, None),
        ("cuda", {}, {}, None),
        ("cpu", {"training": True, "optimizer": "sgd"}, {}, torch.optim.SGD),
        ("cpu", {"training": True, "optimizer": "adam"}, {}, torch.optim.Adam),
        ("cuda", {"training": True, "optimizer": "none"}, {}, None),
    ],
)
def test_the_optimizer_is_the_suites_on_cuda_and_none_elsewhere_unless_the_mode_says(device, options, traits, expected):
    model = torch.nn.Linear(2, 2)
    optimizer = training_step.make_optimizer(spec(device=device, traits=traits, **options), model)
    assert type(optimizer) is (expected or type(None))
    assert optimizer is None or optimizer.defaults["lr"] == 0.01


def test_an_optimizer_moves_the_parameters():
    still, moved = (measure(spec(training=True, backend="nothing", optimizer=optimizer)) for optimizer in ("none", "sgd"))
    norms = [next(leaf for leaf in said.details if leaf["kind"] == "loss") for said in (still, moved)]
    assert still.result["status"] == moved.result["status"] == "pass"
    assert norms[0]["eager_rmse"] != norms[1]["eager_rmse"]


def test_the_loss_is_the_mean_of_the_first_tensor_and_is_divided_for_models_that_ask_for_it():
    logits = torch.arange(6.0).reshape(2, 3)
    assert training_step.mean_logit((logits, torch.zeros(1))) == training_step.mean_logit({"logits": logits}) == 2.5
    plain, scaled = (
        measure(spec(training=True, backend="nothing", traits={"scaled_loss": scaled})) for scaled in (False, True)
    )
    gradients = [next(leaf for leaf in said.details if leaf["kind"] == "input_gradient") for said in (plain, scaled)]
    assert gradients[0]["eager_rmse"] == pytest.approx(1000 * gradients[1]["eager_rmse"], rel=0.5)


def test_the_float64_reference_and_the_runs_drop_the_same_elements(monkeypatch):
    create = accuracy.models.create
    monkeypatch.setattr(accuracy.models, "input_size", lambda *_: (3, 160, 160))
    monkeypatch.setattr(
        accuracy.models, "create", lambda what, _: torch.nn.Sequential(create(what), torch.nn.Dropout(0.5)).train()
    )
    said = measure(spec(training=True, backend="nothing"))
    head = next(leaf for leaf in said.details if leaf["leaf"] == "gradient.0.head.weight")
    assert head["eager_relative_error"] < 1e-3, "another mask would be off by as much as the gradient itself"


def test_a_model_that_the_table_skips_on_this_machine_is_not_run():
    said = measure(spec(traits={"skip_on": ["cpu"], "skip_reason": "too slow"}))
    assert said.result == {
        "status": "pass_due_to_skip",
        "cause": "too slow",
        "message": "not run here, by the suite's table",
    }
    assert said.stages == ["load"]


def test_a_model_of_which_nothing_is_compiled_has_not_been_run():
    with pytest.raises(backends.NothingCompiledError), torch.compiler.set_stance("force_eager"):
        measure(spec())


def test_an_exception_while_compiling_leaves_the_stage_compile(monkeypatch):
    def refuse(graph, inputs):
        raise RuntimeError("no")

    monkeypatch.setattr(backends, "compile_model", lambda spec, model, images: torch.compile(model, backend=refuse))
    said = Said()
    with pytest.raises(Exception, match="no"):
        accuracy.measure(spec(), setup(spec()), said.reporter)
    assert said.stages[-1] == "compile"
