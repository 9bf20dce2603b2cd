"""Trials and the search of modules, on small models with faults in dynamo, which need no C++ compiler."""

import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo import guards, output_graph

import specs
from specs import spec
from timmgate.core.diagnosis import TrialRequest
from timmgate.core.protocol import Reporter, parse
from timmgate.core.run_options import RunOptions
from timmgate.diagnosis import ladder
from timmgate.worker.__main__ import diagnose
from timmgate.worker.diagnose import places
from timmgate.worker.faults import stack

EAGER = {"backend": "eager"}


@pytest.fixture
def try_(tmp_path):
    """Runs a trial here; its result and columns, with details under their own name."""

    def run(variant, model="small_stack", check="accuracy", known=None, cause=None, **options):
        cell = spec(check, model=model, options={**EAGER, **options}, batch_size=4)
        policy = RunOptions(cache=tmp_path / "cache")
        request = TrialRequest(cell, policy, variant, 4, tmp_path / "kept", known, cause, cause is None)
        said = io.StringIO()
        torch._dynamo.reset()
        try:
            diagnose(request, Reporter(said))
        finally:
            torch.use_deterministic_algorithms(False)
        found = {"details": []}
        for line in said.getvalue().splitlines():
            kind, content, _ = parse(line.encode())
            if kind == "detail":
                found["details"].append(content)
            elif kind in ("columns", "result"):
                found |= content
        return found

    return run


@pytest.fixture
def plant(monkeypatch):
    """Puts a fault into torch for the time of a test."""
    for cls in (guards.GuardBuilder, guards.CheckFunctionManager, output_graph.OutputGraph):
        for name, value in vars(cls).items():
            if (callable(value) and not name.startswith("__")) or name == "__init__":
                monkeypatch.setattr(cls, name, value)
    return lambda name: stack.FAULTS[name].apply()


def test_a_healthy_variant_passes_and_what_it_was_held_against_is_kept(try_, tmp_path):
    assert try_(ladder.REPEAT)["status"] == "pass"
    (kept,) = (tmp_path / "kept").iterdir()
    made = kept.stat().st_mtime_ns
    assert try_(ladder.REPEAT)["strict"] == "pass"
    assert kept.stat().st_mtime_ns == made


@pytest.mark.parametrize("training", [False, True])
def test_a_wrong_program_fails_and_its_module_is_found(training, try_, plant):
    plant("capture_relu")
    found = try_(ladder.REPEAT, training=training)
    assert (found["status"], found["strict"]) == ("fail_accuracy", "fail")
    assert found["message"]
    place = try_(ladder.REPEAT, known={}, training=training)
    assert (place["module"], place["module_class"], place["direction"]) == ("stem.act", "ReLU", "forward")
    told = {each["module"]: each.get("ended") for each in place["details"]}
    assert told == {"stem": "forward", "stem.conv": "pass", "stem.norm": "pass", "stem.act": "forward"}


def test_a_module_that_is_known_to_fail_is_not_tried_again(try_):
    place = try_(ladder.REPEAT, known={"stem": "pass", "pool": "raised"})
    assert (place["module"], place["direction"]) == ("pool", "raised")
    assert "stem" not in {each["module"] for each in place["details"]}


@pytest.mark.parametrize("in_eager", [None, "pass", "raised"])
def test_what_raised_is_tried_in_eager_too_unless_that_is_known(in_eager, try_):
    known = {"stem": "pass", "pool": "raised"} | ({"in eager": in_eager} if in_eager else {})
    place = try_(ladder.REPEAT, known=known)
    assert place["fails_in_eager"] == (in_eager == "raised")
    assert {"module": "in eager", "ended": "pass"} in place["details"] or in_eager


def test_where_a_crash_is_looked_for_a_program_that_runs_is_all_that_is_asked_for(try_, plant, tmp_path):
    plant("capture_relu")
    assert try_(ladder.REPEAT, cause="signal")["status"] == "pass"
    assert not (tmp_path / "kept").exists(), "neither reference nor null runs"
    place = try_(ladder.REPEAT, known={}, cause="signal")
    assert {each.get("ended") for each in place["details"]} == {None, "pass"}
    assert "module" not in place


def test_what_raises_says_where_in_torch(try_, plant):
    plant("guard_raises")
    with pytest.raises(Exception, match="no guard for a tensor"):
        try_(ladder.REPEAT, model="small_blocks")


@pytest.mark.parametrize("name", ["guard_constants", "guard_functions", "guard_booleans", "guard_nothing"])
def test_a_fault_of_guards_is_gone_when_each_call_is_captured_anew(name, try_, plant):
    plant(name)
    assert try_(ladder.REPEAT, model="small_blocks")["status"] == "fail_accuracy"
    assert try_(ladder.CAPTURED_ANEW, model="small_blocks")["status"] == "pass"


def test_without_guards_the_first_program_runs_everywhere(try_):
    assert try_(ladder.UNGUARDED, model="small_stack")["status"] == "pass"
    assert try_(ladder.UNGUARDED, model="small_blocks")["status"] == "fail_accuracy"


def test_what_is_compiled_again_and_again_fails_as_it_does_in_the_performance_check(try_, plant):
    plant("guard_expires")
    assert try_(ladder.REPEAT)["status"] == "pass"
    with pytest.raises(Exception, match="recompile"):
        try_(ladder.REPEAT, check="performance")


def test_a_setting_that_this_torch_does_not_have_is_not_applicable(try_):
    found = try_(ladder.Variant("v", settings={"no_such_setting": True}))
    assert found["status"] == "not_applicable"


def test_a_module_that_works_in_place_can_be_run_with_a_gradient_for_what_it_is_fed():
    cell, images = specs.spec(options={"training": True}), torch.randn(2, 3, 8, 8)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True))
    conv, relu = (fed for _, fed in places.candidates(cell, model, images, ""))
    assert (conv.in_place, relu.in_place) == (False, True)
    fed = relu.images.clone().requires_grad_()
    relu(fed).sum().backward()
    assert torch.equal(fed.grad, (relu.images > 0).float())


def test_an_exception_of_another_kind_than_the_cells_is_no_place(try_, plant):
    plant("guard_raises")
    assert try_(ladder.REPEAT, model="small_blocks", known={}, cause="signal").get("module") is None
    found = try_(ladder.REPEAT, model="small_blocks", known={}, cause="AssertionError")
    assert (found["direction"], found["fails_in_eager"]) == ("raised", False)


def test_a_module_that_cannot_be_run_as_null_runs_are_is_no_place_and_ends_nothing(try_, plant, monkeypatch):
    def break_(*_):
        raise RuntimeError("no such run")

    monkeypatch.setattr(places.strict_verdict, "prepare", break_)
    found = try_(ladder.REPEAT, known={"stem": "pass"})
    assert {"module": "pool", "ended": "pass"} in found["details"]


def test_a_module_of_a_cell_that_died_is_run_often(try_, monkeypatch):
    run, counted = places.strict_verdict.run, []
    monkeypatch.setattr(places.strict_verdict, "run", lambda *args: counted.append(1) or run(*args))
    try_(ladder.REPEAT, known={"stem": "pass", "pool": "pass"}, cause="ValueError")
    few, counted[:] = len(counted), []
    try_(ladder.REPEAT, known={"stem": "pass", "pool": "pass"}, cause="signal")
    assert len(counted) > 5 * few


class Inner(nn.Module):
    """One that is given a list."""

    def __init__(self):
        super().__init__()
        self.join = nn.Linear(4, 4)

    def forward(self, parts):
        return self.join(parts[0] + parts[1])


class Outer(nn.Module):
    """Blocks in lists, which are not called themselves, and a mean of its own."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), nn.ModuleDict({"a": nn.Linear(4, 4)})])
        self.inner, self.unused = Inner(), nn.ModuleList([nn.Linear(2, 2)])

    def forward(self, images):
        features = self.blocks[1]["a"](self.blocks[0](images))
        return self.inner([features, features]).mean(1, keepdim=True)


def test_modules_in_lists_and_of_modules_that_are_given_lists_are_tried_in_their_order():
    images = torch.randn(2, 3, 2, 2)
    names = [name for name, _ in places.candidates(spec(), Outer(), images, "")]
    assert names == ["blocks.0", "blocks.1.a", "inner.join"]


@pytest.mark.parametrize(("wrong", "found"), [(True, "forward"), (False, None)])
def test_where_no_module_goes_wrong_the_model_itself_is_tried(monkeypatch, wrong, found):
    monkeypatch.setattr(places, "make", lambda *_: (Outer(), torch.randn(2, 3, 2, 2)))
    tried = []

    def goes_wrong(spec, setup, fed, request, reporter):
        tried.append(type(fed.module).__name__)
        return "forward" if wrong and isinstance(fed.module, Outer) else "pass"

    monkeypatch.setattr(places, "goes_wrong", goes_wrong)
    reporter = SimpleNamespace(stage=lambda _: None, detail=lambda _: None, columns=lambda **_: None)
    place = places.search(spec(), None, SimpleNamespace(known={}, cause=None), reporter)
    assert tried[-1] == "Outer" and (place and place.direction) == found
