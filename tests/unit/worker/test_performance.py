"""The performance check in this process, on a tiny model, with compilers of known speed."""

import io
import json
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from timmgate.core import schemas
from timmgate.core.protocol import Reporter
from timmgate.core.spec import Mode, Spec, Traits
from timmgate.tables import parquet
from timmgate.worker import backends, performance
from timmgate.worker.compile_cache import Cache
from timmgate.worker.training_step import Setup

BATCH_SIZE = 4


def spec(model: str = "test_vit", **options) -> Spec:
    mode = Mode(**{"backend": "eager", **options})
    return Spec("performance", "cpu", "mode", model, "random", "2", "1", options=mode)


class Said:
    """What a measurement said."""

    def __init__(self, text: str):
        messages = [json.loads(line) for line in text.splitlines()]
        self.stages = [message["stage"] for message in messages if "stage" in message]
        self.samples = [message["detail"] for message in messages if "detail" in message]
        self.facts = {name: value for message in messages for name, value in message.get("facts", {}).items()}
        self.result = next((message["result"] for message in messages if "result" in message), None)


class ColdCache(Cache):
    """Leaves the compiler's cache as it is, and says that the first compilation is cold."""

    kept = None

    def _use(self):
        pass

    def keep_cold(self, costs):
        self.kept = self.kept or costs

    def cold(self):
        return dict(self.kept)


def measure(measured: Spec, limit_s: float = 1.0, batch_size: int = BATCH_SIZE) -> Said:
    stream = io.StringIO()
    setup = Setup(threads=1, cache=ColdCache(Path("unused")), batch_size=batch_size, timing_limit_s=limit_s)
    performance.measure(measured, setup, Reporter(stream))
    return Said(stream.getvalue())


@pytest.fixture
def compiler(monkeypatch):
    """Replace the compiler by a function from the eager model to what is run in its place."""

    def install(wrap):
        monkeypatch.setattr(backends, "compile_model", lambda spec, model, images: wrap(model))

    return install


@pytest.fixture(scope="module")
def null():
    """No compiler at all."""
    return measure(spec(backend="nothing"))


def test_the_stages_come_in_their_order_and_end_with_a_pass(null):
    assert null.result["status"] == "pass"
    first_visits = list(dict.fromkeys(null.stages))
    assert ["import", *first_visits] == list(schemas.STAGES["performance"])


def test_every_figure_is_there_and_fits_the_columns(null):
    columns = set(parquet.SCHEMAS["performance"].names)
    assert set(null.facts) <= columns
    figures = {name for name, *_ in schemas.PERFORMANCE} - {"performance"}
    missing = {name for name in figures if null.facts.get(name) is None} - {"break_even_iterations"}
    assert missing == set()


def test_nothing_is_neither_faster_nor_slower(null):
    assert null.facts["verdict"] in ("same", "ambiguous")
    assert null.facts["speedup_ci_low"] <= null.facts["speedup"] <= null.facts["speedup_ci_high"]
    assert null.facts["timed_output_ok"] and null.facts["timed_output_error"] == 0


def test_samples_are_pairs_in_abba_blocks_as_many_as_the_row_says(null):
    assert len(null.samples) == null.facts["samples"] >= 10
    assert Counter(Counter(sample["block"] for sample in null.samples).values()) == {2: len(null.samples) // 2}
    for first, second in zip(null.samples[::2], null.samples[1::2], strict=True):
        assert first["eager_first"] is not second["eager_first"]


def test_throughput_follows_from_latency_and_the_batch(null):
    assert null.facts["images_per_s"] == pytest.approx(BATCH_SIZE / null.facts["compiled_ms"] * 1e3)
    assert null.facts["eager_p10_ms"] <= null.facts["eager_ms"] <= null.facts["eager_p90_ms"]


def test_the_timed_window_is_recorded(null):
    seconds = (null.facts["timing_ended_at"] - null.facts["timing_started_at"]) / 1e6
    assert seconds >= sum(sample["eager_s"] + sample["compiled_s"] for sample in null.samples)


def test_a_compiler_that_costs_time_is_slower(compiler):
    compiler(lambda model: lambda images: (time.sleep(0.02), model(images))[1])
    said = measure(spec())
    assert said.facts["verdict"] == "slower" and said.facts["speedup_ci_high"] < 1
    assert said.facts["break_even_iterations"] is None


def test_a_compiler_that_saves_time_is_faster_and_breaks_even(monkeypatch, compiler):
    create = performance.load

    def slow(*arguments):
        model, images = create(*arguments)
        model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
        return model, images

    monkeypatch.setattr(performance, "load", slow)
    compiler(lambda model: model.forward)  # without its hooks
    said = measure(spec())
    assert said.facts["verdict"] == "faster" and said.facts["speedup_ci_low"] > 1
    saved_s = (said.facts["eager_ms"] - said.facts["compiled_ms"]) / 1e3
    assert said.facts["break_even_iterations"] == pytest.approx(said.facts["compile_cold_s"] / saved_s)


@pytest.mark.parametrize("training", [False, True])
def test_an_output_that_is_off_at_the_timed_batch_size_is_told(compiler, training):
    compiler(lambda model: lambda images: model(images) * 1.05)
    said = measure(spec(training=training))
    assert said.facts["timed_output_ok"] is False
    assert said.facts["timed_output_error"] == pytest.approx(0.05, rel=0.01)
    assert said.result["status"] == "pass", "it was timed; whether it is right is the accuracy check's to say"


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
    monkeypatch.setattr(performance.claims, "quiet", then_smaller)
    with pytest.raises(RuntimeError, match="recompile"):
        measure(spec())


def test_a_dynamic_mode_runs_the_same_batch_sizes_on_both_sides(compiler):
    seen = {"eager": Counter(), "compiled": Counter()}

    def spy(model):
        model.register_forward_pre_hook(lambda _, inputs: seen["eager"].update([len(inputs[0])]))
        return lambda images: (seen["compiled"].update([len(images)]), model.forward(images))[1]

    compiler(spy)
    said = measure(spec(dynamic=True), batch_size=8)
    assert set(seen["eager"]) == set(seen["compiled"]) == {8, 6, 4}
    assert said.facts["images_per_s"] == pytest.approx(18 / said.facts["compiled_ms"] * 1e3)


@pytest.mark.parametrize(("batch_size", "sizes"), [(8, [8, 6, 4]), (2, [2, 1]), (1, [1])])
def test_batch_sizes_of_a_dynamic_mode_are_distinct_and_at_least_one(batch_size, sizes):
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
    assert said.facts["graph_breaks"] == len(said.facts["graph_break_reasons"]) == 1
    assert "on purpose" in said.facts["graph_break_reasons"][0]
    assert said.facts["unique_graphs"] == 2


@pytest.mark.parametrize("training", [False, True])
def test_a_plain_vit_has_one_graph_and_no_break_also_in_training(training):
    said = measure(spec(training=training))
    assert (said.facts["graph_breaks"], said.facts["unique_graphs"], said.facts["recompiles"]) == (0, 1, 0)
    assert said.facts["ops_captured"] > 20


def test_a_model_that_the_table_skips_is_not_timed():
    said = measure(replace(spec(), traits=Traits(skip_on=["cpu"], skip_reason="too slow")))
    assert said.result["status"] == "pass_due_to_skip" and said.stages == ["load"]
