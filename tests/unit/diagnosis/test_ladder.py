"""Which variants are tried, and what follows: searches over tables of outcomes, without running anything."""

import pytest

from timmgate.core.diagnosis import BISECTED, LAYERS, Variant
from timmgate.core.diagnosis import CODE as CODE_LAYER
from timmgate.core.spec import Mode
from timmgate.diagnosis import ladder
from timmgate.diagnosis.ladder import TrialOutcome
from timmgate.diagnosis.switches import CODE_GENERATION, WHOLE_STAGES


def follow(mode: Mode, passing, applications: int = 40, culprit: int = 0, other=()) -> tuple[ladder.Finding, list[Variant]]:
    """The finding of a search in which these variants pass, and what was tried.

    A layer of which `passing` has a name is wrong in the application with the number `culprit`: it passes with fewer.
    """
    tried, search = [], ladder.search(mode)
    variant = next(search)
    while True:
        tried.append(variant)
        ended = "pass" if variant.name in passing else "other" if variant.name in other else "fail"
        if variant.layer in passing:
            ended = "pass" if variant.applications <= culprit else "fail"
        try:
            variant = search.send(TrialOutcome(ended, applications, f"application {variant.applications - 1}"))
        except StopIteration as stop:
            return stop.value, tried


BELOW_INDUCTOR = {"eager", "aot_eager", "aot_eager_decomp_partition"}
CODE = BELOW_INDUCTOR | {"without lowerings (bisector)", "loops interpreted"}


@pytest.mark.parametrize(
    ("passing", "layer", "switch"),
    [
        (set(), "capture", None),
        ({"captured anew in each call"}, "guards", "captured anew in each call"),
        ({"without guards"}, "guards", "without guards"),
        ({"eager"}, "aot_autograd", "eager"),
        ({"eager", "aot_eager"}, "partitioner", "aot_eager"),
        ({"eager", "aot_eager", "decompositions"}, "decompositions", "without decompositions (bisector)"),
        (BELOW_INDUCTOR, "inductor", None),
        (CODE | {"without vectors"}, "code_generation", "without vectors"),
        (CODE, "code_generation", "loops interpreted"),
        (BELOW_INDUCTOR | {"lowerings"}, "lowerings", "without lowerings (bisector)"),
        (BELOW_INDUCTOR | {"without post_grad", "post_grad"}, "post_grad", "without post_grad (bisector)"),
        (BELOW_INDUCTOR | {"without joint_graph", "joint_graph"}, "joint_graph", "without joint_graph (bisector)"),
        (BELOW_INDUCTOR | {"without joint_graph"}, "joint_graph", "without joint_graph"),
        (BELOW_INDUCTOR | {"without pre_grad"}, "pre_grad", "without pre_grad"),
        (BELOW_INDUCTOR | {"rounding where eager rounds"}, "inductor", "rounding where eager rounds"),
        ({"as it is, again"}, "capture", None),
        ({"as it is", "as it is, again"}, "flaky", None),
    ],
)  # fmt: skip
def test_the_layer_follows_from_what_passes(passing, layer, switch):
    found, _ = follow(Mode(), passing)
    assert (found.layer, found.switch) == (layer, switch)
    assert found.layer in LAYERS


@pytest.mark.parametrize("known", [{"applications": 0}, {"other": ("loops interpreted",)}])
def test_where_loops_cannot_be_interpreted_they_are_not_told_from_their_code(known):
    """As on accelerators: the trial ends as the cell does, and says nothing."""
    found, _ = follow(Mode(), BELOW_INDUCTOR | {"without lowerings (bisector)"}, **known)
    assert found.layer == "loops"


@pytest.mark.parametrize("culprit", [0, 1, 17, 39])
@pytest.mark.parametrize("layer", [*BISECTED, CODE_LAYER])
def test_the_application_that_it_takes_is_found_in_few_trials(layer, culprit):
    passing = {"eager", "aot_eager", layer, f"without {layer}"}
    if layer != "decompositions":
        passing.add("aot_eager_decomp_partition")
    if layer == CODE_LAYER:
        passing.add("without lowerings (bisector)")
    found, tried = follow(Mode(), passing, culprit=culprit)
    assert (found.layer, found.application) == (layer, f"application {culprit}")
    assert sum(variant.layer == layer for variant in tried) <= 8


def test_a_fault_in_inductor_is_told_from_one_below_it_by_one_trial():
    _, tried = follow(Mode(), BELOW_INDUCTOR | {"lowerings"})
    assert [variant.name for variant in tried[:2]] == ["as it is", "aot_eager_decomp_partition"]
    assert not {"eager", "aot_eager"} & {variant.name for variant in tried}


def test_freezing_is_to_blame_only_where_nothing_after_it_is():
    frozen = Mode(freezing=True)
    found, _ = follow(frozen, BELOW_INDUCTOR | {"without freezing"})
    assert (found.layer, found.conditions) == ("freezing", ("freezing",))
    found, _ = follow(frozen, BELOW_INDUCTOR | {"without freezing", "lowerings"})
    assert (found.layer, found.conditions) == ("lowerings", ("freezing",))
    found, _ = follow(frozen, BELOW_INDUCTOR | {"lowerings"})
    assert (found.layer, found.conditions) == ("lowerings", ())


def test_conditions_are_the_options_that_it_takes():
    mode = Mode(precision="amp", channels_last=True, dynamic=True)
    found, _ = follow(mode, BELOW_INDUCTOR | {"lowerings", "without precision", "without dynamic"})
    assert found.conditions == ("precision", "dynamic")
    assert not any(variant.options.get("precision") for variant in follow(Mode(), {"eager"})[1])


def test_a_backend_of_ones_own_and_what_is_below_it_have_conditions_too():
    found, _ = follow(Mode(backend="acme", precision="amp"), BELOW_INDUCTOR | {"without precision"})
    assert (found.layer, found.conditions) == ("backend", ("precision",))
    found, _ = follow(Mode(dynamic=True), {"eager", "without dynamic"})
    assert (found.layer, found.conditions) == ("aot_autograd", ("dynamic",))


def test_aot_inductor_is_inductor_where_what_is_exported_is_right():
    found, tried = follow(Mode(backend="aot_inductor"), BELOW_INDUCTOR | {"export", "lowerings"})
    assert found.layer == "lowerings" and tried[1].options == {"backend": "export"}


def test_cudagraphs_are_a_layer_of_their_own():
    found, _ = follow(Mode(cudagraphs=True), BELOW_INDUCTOR | {"without cudagraphs"})
    assert found.layer == "cudagraphs"


@pytest.mark.parametrize(
    ("backend", "passing", "layer"),
    [
        ("eager", set(), "capture"),
        ("aot_eager", {"eager"}, "aot_autograd"),
        ("aot_eager", set(), "capture"),
        ("aot_eager_decomp_partition", {"eager", "aot_eager", "decompositions"}, "decompositions"),
        ("acme", BELOW_INDUCTOR, "backend"),
        ("acme", {"eager", "aot_eager"}, "partitioner"),
        ("fault:scaled_output", BELOW_INDUCTOR, "backend"),
        ("export", BELOW_INDUCTOR, "capture"),
        ("aot_inductor", BELOW_INDUCTOR, "capture"),
    ],
)
def test_a_backend_that_is_not_inductor_has_the_layers_below_it(backend, passing, layer):
    found, tried = follow(Mode(backend=backend), passing)
    assert found.layer == layer
    assert not any(variant.settings for variant in tried)


def test_what_breaks_in_another_way_has_not_passed():
    """Leaving out a stage that the rest needs says nothing, and neither does a setting that this torch does not have."""
    other = {"without lowerings (bisector)", *(f"without {layer}" for layer in WHOLE_STAGES)}
    found, tried = follow(Mode(), BELOW_INDUCTOR | {"post_grad"}, other=other)
    assert (found.layer, found.switch) == ("post_grad", "without post_grad (bisector)")
    assert not {variant.name for variant in CODE_GENERATION[:2]} & {variant.name for variant in tried}


def test_a_backend_below_that_fails_otherwise_has_failed():
    found, _ = follow(Mode(), {"eager"}, other={"aot_eager", "aot_eager_decomp_partition"})
    assert found.layer == "aot_autograd"


def test_no_two_trials_have_one_name():
    mode = Mode(freezing=True, cudagraphs=True, channels_last=True, precision="amp")
    for passing in (BELOW_INDUCTOR, BELOW_INDUCTOR | {"lowerings"}, {"eager", "aot_eager"}):
        _, tried = follow(mode, passing)
        by_name = {variant.name: variant for variant in tried}
        assert all(by_name[variant.name] == variant for variant in tried)
