"""The performance check in this process, on a tiny model, with compilers of known speed."""

import io
import os
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

import specs
from said import Said, listen
from timmgate.core.checks import PERFORMANCE
from timmgate.core.protocol import Reporter
from timmgate.core.spec import Spec
from timmgate.supervisor.speedup import Estimate, estimate
from timmgate.system import timing_turns
from timmgate.worker import backends, models, performance
from timmgate.worker.compile_cache import Cache
from timmgate.worker.training_step import Setup

BATCH_SIZE = 4


def spec(model: str = "test_vit", traits: dict[str, Any] | None = None, **options: Any) -> Spec:
    return specs.spec("performance", model=model, options={"backend": "eager", **options}, traits=traits)


class ColdCache(Cache):
    """Leaves the compiler's cache as it is, and says that the first compilation is cold."""

    kept = None

    def _use(self):
        pass

    def keep_cold(self, costs):
        self.kept = self.kept or costs

    def cold(self):
        return dict(self.kept)


@pytest.mark.parametrize(("relocate", "moves"), [(True, True), (False, False), (None, False)])
def test_tensors_move_where_the_spec_says_so(relocate, moves):
    model, images = torch.nn.Linear(3, 2), torch.ones(4, 3)
    iterations = performance.Iterations(
        replace(spec(), relocate=relocate), model, [images], reporter=Reporter(io.StringIO())
    )
    before, values = (model.weight.data_ptr(), images.data_ptr()), model.weight.clone()
    iterations.relocate()
    after = model.weight.data_ptr(), images.data_ptr()
    assert [one != other for one, other in zip(before, after, strict=True)] == [moves, moves]
    assert torch.equal(model.weight, values)


def test_a_tensor_with_gaps_stays_where_it_is():
    model = torch.nn.Linear(3, 2)
    model.register_buffer("part", torch.ones(4, 6)[:, :3])
    iterations = performance.Iterations(replace(spec(), relocate=True), model, [], reporter=Reporter(io.StringIO()))
    before = model.part.stride(), model.part.data_ptr()
    iterations.relocate()
    assert (model.part.stride(), model.part.data_ptr()) == before


@pytest.mark.parametrize(("freezing", "beside"), [(False, 0), (True, 4 << 20)])
def test_what_freezing_makes_of_the_weights_belongs_to_the_memory_of_compiled(freezing, beside):
    model, images, kept = torch.nn.Linear(3, 2), torch.ones(4, 3), []
    with torch._inductor.config.patch(freezing=freezing):
        iterations = performance.Iterations(spec(), model, [images], reporter=Reporter(io.StringIO()))
    with iterations.constants_counted():
        kept.append(torch.ones(1 << 20))
        kept[0] = torch.ones(1 << 20)  # as the warm compilation's take the place of the cold one's
    eager, compiled = (iterations.memory(side)[1] for side in (model, lambda images: model(images)))
    assert compiled - eager == beside


def test_an_iteration_begins_again_with_the_weights_from_before_the_optimizer(monkeypatch):
    monkeypatch.setattr(performance, "make_optimizer", lambda spec, model: torch.optim.SGD(model.parameters(), lr=1.0))
    model, images = torch.nn.Linear(3, 2), torch.ones(4, 3)
    before = [weight.clone() for weight in model.parameters()]
    iterations = performance.Iterations(spec(training=True), model, [images], reporter=Reporter(io.StringIO()))
    iterations.run(model)
    assert not any(map(torch.equal, model.parameters(), before))
    iterations.begin_again()
    assert all(map(torch.equal, model.parameters(), before))


def measure(
    measured: Spec, limit_s: float = 0.1, batch_size: int = BATCH_SIZE, turns: tuple[int, int] | None = None
) -> Said:
    cache = ColdCache(Path("unused"))
    setup = Setup(threads=1, cache=cache, batch_size=batch_size, timing_limit_s=limit_s, turns=turns)
    return listen("performance", lambda reporter: performance.measure(measured, setup, reporter))


def estimated(said: Said) -> Estimate:
    """What the supervisor makes of the samples."""
    return Estimate(**estimate(spec(), said.details))


@pytest.fixture
def compiler(monkeypatch):
    """Replace the compiler by a function from the eager model to what is run in its place."""

    def install(wrap):
        monkeypatch.setattr(backends, "compile_model", lambda spec, model, images: wrap(model))
        monkeypatch.setattr(backends, "check_compiled", lambda spec: None)

    return install


@pytest.fixture(scope="module")
def null():
    """No compiler at all."""
    return measure(spec(backend="nothing"))


def test_what_a_program_keeps_of_the_images_that_it_was_compiled_with_is_wrong(compiler):
    def keeps_half(model):
        kept = []

        def forward(images):
            kept.append(model(images))
            return (kept[0] + kept[-1]) / 2

        return forward

    compiler(keeps_half)
    columns = measure(spec()).columns
    assert (columns["timed_output_ok"], columns["timed_output_kind"].removesuffix(".sample")) == (False, "output")


@pytest.mark.parametrize("options", [{}, {"training": True, "optimizer": "sgd"}])
def test_a_program_that_computes_something_else_from_some_call_on_is_wrong(compiler, options):
    def breaks(model):
        calls = []

        def forward(images):
            calls.append(1)
            return model(images) * (1 if len(calls) < 15 else 1.5)

        return forward

    compiler(breaks)
    columns = measure(spec(**options)).columns
    assert (columns["timed_output_ok"], columns["timed_output_kind"]) == (False, "changed")


class Wrong(torch.autograd.Function):
    """The identity, with a gradient that is too large."""

    @staticmethod
    def forward(context, tensor, factor):
        context.factor = factor
        return tensor.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * context.factor, None


@pytest.mark.parametrize("factor", [1.5, 1.005])
def test_a_backward_pass_that_is_another_one_from_some_call_on_is_judged_again(compiler, factor):
    """1.005 is within the dynamo rule's tolerance, and not what a healthy program is off by."""

    def breaks(model):
        calls = []

        def forward(images):
            calls.append(1)
            output = model(images)
            return output if len(calls) < 15 else Wrong.apply(output, factor)

        return forward

    compiler(breaks)
    columns = measure(spec(training=True)).columns
    assert (columns["timed_output_ok"], columns["timed_output_kind"]) == (False, "gradient")


class Rebuilding(torch.nn.Module):
    """One that makes a buffer of its own anew when it sees its first images, as ConViT does."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(8, 5)
        self.register_buffer("indices", torch.zeros(1))

    def forward(self, images):
        self.indices = torch.arange(8.0, device=images.device).expand(len(images), 8)
        return self.head(images.mean((1, 2))[:, :8] + self.indices)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_model_that_makes_a_buffer_anew_has_its_weights(monkeypatch, backend):
    monkeypatch.setattr(models, "create", lambda spec, weights=None: Rebuilding().eval())
    assert measure(spec(backend=backend)).columns["timed_output_ok"] is True


def test_a_model_of_which_nothing_is_compiled_is_no_measurement(monkeypatch):
    with pytest.raises(backends.NothingCompiledError), torch.compiler.set_stance("force_eager"):
        measure(spec())


def test_a_compiler_that_takes_the_weights_away_is_told(compiler):
    def packs(model):
        model.head.weight = torch.nn.Parameter(model.head.weight.bfloat16())
        return lambda images: torch.zeros(len(images), 1000)

    compiler(packs)
    with pytest.raises(RuntimeError, match="discarded, packed or moved the weights"):
        measure(spec())


def test_a_program_that_writes_to_a_weight_from_some_call_on_is_wrong(compiler):
    def spoils(model):
        calls = []

        def forward(images):
            calls.append(1)
            if len(calls) == 15:
                model.head.weight.data *= 1.5
            return model(images)

        return forward

    compiler(spoils)
    columns = measure(spec()).columns
    assert (columns["timed_output_ok"], columns["timed_output_kind"]) == (False, "written")


class Writing(torch.nn.Module):
    """One that writes to what its output depends on, in every call: to its images, or to a buffer of its own."""

    def __init__(self, to_images: bool):
        super().__init__()
        self.to_images, self.head = to_images, torch.nn.Linear(8, 5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += not self.to_images
        images = images.mul_(0.9) if self.to_images else images
        return self.head(images.mean((1, 2))[:, :8]) * (1 + self.calls)


@pytest.mark.parametrize("to_images", [True, False])
def test_what_eager_writes_to_is_no_change_of_the_program(compiler, to_images, monkeypatch):
    monkeypatch.setattr(models, "create", lambda spec, weights=None: Writing(to_images).eval())
    compiler(lambda model: model)
    assert measure(spec()).columns["timed_output_ok"] is True


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd"}, {"optimizer": "adam", "dynamic": True}])
def test_a_right_program_keeps_computing_the_same_though_an_optimizer_steps_the_weights(compiler, options):
    compiler(lambda model: lambda images: model(images))
    columns = measure(spec(training=True, **options)).columns
    assert columns["timed_output_ok"] is True and columns["timed_output_margin"] < 1


def test_eager_is_timed_in_its_own_precision_whatever_a_compiler_tells_torch(compiler, monkeypatch):
    seen, collect = [], performance.timing.collect

    def coarser(model):
        torch.set_float32_matmul_precision("medium")
        torch.backends.mkldnn.conv.fp32_precision = "bf16"
        torch.backends.cudnn.benchmark = True
        torch.set_default_dtype(torch.bfloat16)
        torch.set_num_threads(2)
        torch.set_autocast_enabled("cpu", True)
        return lambda images: model(images)

    def now():
        modes = torch.is_autocast_enabled("cpu"), torch.get_default_dtype(), torch.backends.cudnn.benchmark
        of_products = torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul.fp32_precision
        return *modes, *of_products, torch.backends.mkldnn.conv.fp32_precision, torch.get_num_threads()

    def look_and_collect(*given, **named):
        seen.append(now())
        return collect(*given, **named)

    monkeypatch.setattr(performance.timing, "collect", look_and_collect)
    torch.set_num_threads(1)
    before = now()
    compiler(coarser)
    measure(spec())
    assert seen == [before]


def test_a_program_that_writes_to_a_weight_is_wrong(compiler):
    def forgets(model):
        def forward(images):
            output = model(images)
            model.head.bias.data.zero_()
            return output

        return forward

    compiler(forgets)
    columns = measure(spec()).columns
    assert (columns["timed_output_ok"], columns["timed_output_kind"]) == (False, "written")


def test_a_program_that_returns_what_it_has_kept_of_other_images_is_wrong(compiler):
    def keeps(model):
        known = {}

        def forward(images):
            if id(images) not in known:
                known[id(images)] = images, model(images)
            return known[id(images)][1]

        return forward

    compiler(keeps)
    said = measure(spec())
    assert said.columns["timed_output_ok"] is False and said.columns["timed_output_kind"] == "kept"


def test_a_program_that_keeps_what_it_computed_of_smaller_batches_is_wrong(compiler):
    def keeps(model):
        known = {}

        def forward(images):
            if len(images) == 8:
                return model(images)
            return known.setdefault(len(images), model(images))

        return forward

    compiler(keeps)
    said = measure(spec(dynamic=True), batch_size=8)
    assert said.columns["timed_output_kind"] == "kept"


def test_a_program_that_knows_whether_its_images_have_changed_computes_in_every_timed_call(compiler):
    computed = []

    def remembers(model):
        known = {}

        def forward(images):
            key = id(images), images._version
            if key not in known:
                computed.append(key)
                known[key] = images, model(images)
            return known[key][1]

        return forward

    compiler(remembers)
    said = measure(spec())
    assert said.columns["timed_output_ok"] is True and len(computed) > len(said.details)


def test_the_stages_come_in_their_order_and_end_with_a_pass(null):
    assert null.result["status"] == "pass"
    first_visits = list(dict.fromkeys(null.stages))
    assert ["import", *first_visits] == [stage.name for stage in PERFORMANCE.stages]


def test_every_figure_is_there_from_the_worker_or_from_the_estimate(null):
    known = null.columns | estimate(spec(), null.details)
    figures = {column.name for column in PERFORMANCE.columns} - {"performance"}
    untold = {"machine_throttles", "machine_stalls", "machine_swapped_pages"}  # on some machines
    untold |= {"timing_lanes"}  # the supervisor's
    missing = {name for name in figures if known.get(name) is None} - {"break_even_iterations", *untold}
    assert missing == set()


def test_nothing_is_neither_faster_nor_slower(null):
    assert estimated(null).verdict in ("same", "ambiguous")
    assert estimated(null).speedup_ci_low <= estimated(null).speedup <= estimated(null).speedup_ci_high
    assert null.columns["timed_output_ok"] and null.columns["timed_reference"] == "fp64"
    assert 0 < null.columns["timed_output_error"] < 1e-5, "eager's own error"


def test_samples_are_pairs_in_abba_blocks(null):
    samples = null.details
    assert len(samples) >= 2
    assert Counter(Counter(sample["block"] for sample in samples).values()) == {2: len(samples) // 2}
    for first, second in zip(samples[::2], samples[1::2], strict=True):
        assert first["eager_first"] is not second["eager_first"]


def test_throughput_follows_from_latency_and_the_batch(null):
    assert null.columns["images_per_s"] == pytest.approx(BATCH_SIZE / null.columns["compiled_ms"] * 1e3)
    assert null.columns["eager_p10_ms"] <= null.columns["eager_ms"] <= null.columns["eager_p90_ms"]


def test_the_timed_window_is_recorded(null):
    seconds = (null.columns["timing_ended_at"] - null.columns["timing_started_at"]) / 1e6
    assert seconds >= sum(sample["eager_s"] + sample["compiled_s"] for sample in null.details)


def test_a_compiler_that_costs_time_is_slower(compiler):
    compiler(lambda model: lambda images: (time.sleep(0.02), model(images))[1])
    said = measure(spec())
    assert estimated(said).speedup < 1 and estimated(said).verdict != "faster"
    assert said.columns["break_even_iterations"] is None


def test_a_compiler_that_saves_time_is_faster_and_breaks_even(monkeypatch, compiler):
    create = performance.load

    def slow(*arguments):
        model, images = create(*arguments)
        model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
        return model, images

    monkeypatch.setattr(performance, "load", slow)
    compiler(lambda model: model.forward)  # without its hooks
    said = measure(spec())
    assert estimated(said).speedup > 1 and estimated(said).verdict != "slower"
    saved_s = (said.columns["eager_ms"] - said.columns["compiled_ms"]) / 1e3
    assert said.columns["break_even_iterations"] == pytest.approx(said.columns["compile_cold_s"] / saved_s)


@pytest.mark.parametrize("training", [False, True])
def test_an_output_that_is_off_at_the_timed_batch_size_is_told(compiler, training):
    compiler(lambda model: lambda images: model(images) * 1.05)
    said = measure(spec(training=training))
    assert said.columns["timed_output_ok"] is False
    assert said.columns["timed_output_error"] == pytest.approx(0.05, rel=0.01)
    assert said.columns["timed_output_margin"] > 10


def test_what_would_be_compiled_anew_while_samples_are_taken_is_an_error(monkeypatch, compiler):
    sizes = {"images": BATCH_SIZE}

    @contextmanager
    def then_smaller(device):
        sizes["images"] = BATCH_SIZE - 1
        yield

    def unstable(model):
        compiled = torch.compile(model, backend="eager", dynamic=False)
        return lambda images: compiled(images[: sizes["images"]])

    compiler(unstable)
    monkeypatch.setattr(performance.timing_turns.timing_lock, "exclusive_device", then_smaller)
    with pytest.raises(RuntimeError, match="recompile"):
        measure(spec())


def test_in_turns_samples_are_taken_in_each_turn_until_there_are_no_more(compiler):
    (taken, gives), (answers, answered) = os.pipe(), os.pipe()
    said = []

    def give():
        said.extend(timing_turns.give_turn(gives, answers, lambda: True) for _ in range(3))
        timing_turns.give_no_more(gives)

    compiler(lambda model: model.forward)
    Thread(target=give, daemon=True).start()
    measured = measure(spec(), limit_s=0.0, turns=(taken, answered))
    assert [detail["block"] for detail in measured.details] == [0, 0, 1, 1, 2, 2]
    assert said == [True, True, True], "the time was up at once"
    for number in (taken, gives, answers, answered):
        os.close(number)


def test_two_builds_draw_the_same():
    other = replace(spec(), software="another", build="other")
    assert performance.seed(other) == performance.seed(spec())
    assert performance.seed(spec("test_resnet")) != performance.seed(spec())


def test_a_dynamic_mode_runs_the_same_batch_sizes_on_both_sides(compiler):
    seen = {"eager": Counter(), "compiled": Counter()}

    def spy(model):
        model.register_forward_pre_hook(lambda _, inputs: seen["eager"].update([len(inputs[0])]))
        return lambda images: (seen["compiled"].update([len(images)]), model.forward(images))[1]

    compiler(spy)
    said = measure(spec(dynamic=True), batch_size=8)
    assert set(seen["eager"]) == set(seen["compiled"]) == {8, 6, 4}
    assert said.columns["images_per_s"] == pytest.approx(18 / said.columns["compiled_ms"] * 1e3)


@pytest.mark.parametrize(("batch_size", "sizes"), [(8, [8, 6, 4]), (3, [3, 2]), (2, [2]), (1, [1])])
def test_batch_sizes_of_a_dynamic_mode_are_distinct_and_at_least_two_where_there_are_two(batch_size, sizes):
    assert performance.batch_sizes(spec(dynamic=True), batch_size) == sizes
    assert performance.batch_sizes(spec(), batch_size) == [batch_size]


def test_graph_breaks_of_the_model_are_counted_with_their_reasons(monkeypatch):
    class Broken(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            images = images + 1
            torch._dynamo.graph_break("on purpose")
            return self.model(images)

    load = performance.load
    monkeypatch.setattr(performance, "load", lambda *a: (lambda made: (Broken(made[0]).eval(), made[1]))(load(*a)))
    said = measure(spec())
    assert said.columns["graph_breaks"] == len(said.columns["graph_break_reasons"]) == 1
    assert "on purpose" in said.columns["graph_break_reasons"][0]
    assert said.columns["unique_graphs"] == 2


@pytest.mark.parametrize("training", [False, True])
def test_a_plain_vit_has_one_graph_and_no_break_also_in_training(training):
    said = measure(spec(training=training))
    assert (said.columns["graph_breaks"], said.columns["unique_graphs"], said.columns["recompiles"]) == (0, 1, 0)
    assert said.columns["ops_captured"] > 20


def test_a_model_that_the_table_skips_is_not_timed():
    said = measure(spec(traits={"skip_on": ["cpu"], "skip_reason": "too slow"}))
    assert said.result["status"] == "pass_due_to_skip" and said.stages == ["load"]
