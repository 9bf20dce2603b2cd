"""One measurement: its JSON, its identity, its batch size."""

import json
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specs
from timmgate.core.spec import Cell, Mode, Spec, Traits

SPEC = specs.spec()

PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=4,
)
MODES = st.builds(Mode, inductor_config=st.dictionaries(st.text(max_size=5), PLAIN, max_size=3))
SPECS = st.builds(
    Spec,
    check=st.sampled_from(["accuracy", "performance"]),
    options=MODES,
    traits=st.builds(Traits, training_tolerance=st.floats(0, 1)),
)


@settings(max_examples=60, deadline=None)
@given(SPECS)
def test_a_spec_survives_json(spec):
    again = Spec.from_dict(json.loads(spec.to_json()))
    assert again == spec
    assert again.to_json() == spec.to_json()
    assert again.identity() == spec.identity()


@settings(max_examples=60, deadline=None)
@given(SPECS)
def test_the_dict_of_a_spec_is_plain_data(spec):
    assert json.loads(json.dumps(spec.to_dict())) == spec.to_dict()
    assert Spec.from_dict(spec.to_dict()) == spec


@settings(max_examples=60, deadline=None)
@given(SPECS, SPECS)
def test_different_specs_have_different_identities_but_for_the_name_of_the_build(one, other):
    assert (one.identity() == other.identity()) == (one == replace(other, build=one.build))


def another(value):
    """A value of the same type that is not equal; something where there is nothing."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return {str: f"{value}x", list: ["x"], dict: {"x": 1}}.get(type(value), "x")


PARTS = {"": SPEC, "options": SPEC.options, "traits": SPEC.traits}
FIELDS = [
    (part, field.name) for part, whole in PARTS.items() for field in fields(whole) if field.name not in (*PARTS, "build")
]


@pytest.mark.parametrize(("part", "name"), FIELDS, ids=[f"{part}.{name}" for part, name in FIELDS])
def test_the_identity_changes_with_every_field(part, name):
    whole = PARTS[part]
    changed = replace(whole, **{name: another(getattr(whole, name))})
    spec = replace(SPEC, **{part: changed}) if part else changed
    assert spec.identity() != SPEC.identity()


def test_the_name_of_a_build_is_not_what_is_measured():
    assert replace(SPEC, build="nightly").identity() == SPEC.identity()


def test_a_program_is_one_for_both_checks_and_another_for_another_batch_or_number_of_threads():
    timed = replace(SPEC, check="performance")
    assert SPEC.program(8, 1) == timed.program(8, 1)
    assert len({SPEC.program(8, 1), SPEC.program(4, 1), SPEC.program(8, 2), replace(SPEC, software="x").program(8, 1)}) == 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (replace(SPEC, torch="1", timm="2"), replace(SPEC, torch="2", timm="1")),
        (replace(SPEC, batch_size=4), replace(SPEC, options=Mode(batch_size=4))),
        (replace(SPEC, options=Mode(freezing=True)), replace(SPEC, options=Mode(dynamic=True))),
        (
            replace(SPEC, traits=Traits(training_tolerance=0.1, freezing_tolerance=0.2)),
            replace(SPEC, traits=Traits(training_tolerance=0.2, freezing_tolerance=0.1)),
        ),
        (
            replace(SPEC, options=Mode(inductor_config={"a": 1, "b": 2})),
            replace(SPEC, options=Mode(inductor_config={"a": 2, "b": 1})),
        ),
        (
            replace(SPEC, options=Mode(inductor_config={"a": True})),
            replace(SPEC, options=Mode(inductor_config={"a": "True"})),
        ),
    ],
)
def test_the_identity_changes_when_values_change_places(one, other):
    assert one.identity() != other.identity()


def test_the_identity_does_not_depend_on_the_order_of_inductor_options():
    one, other = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    assert (
        replace(SPEC, options=Mode(inductor_config=one)).identity()
        == replace(SPEC, options=Mode(inductor_config=other)).identity()
    )


def test_fields_that_have_defaults_may_be_left_out():
    needed = {name: value for name, value in asdict(SPEC).items() if name not in ("options", "traits", "seed", "protocol")}
    assert Spec.from_dict(needed) == SPEC
    assert Spec.from_dict({**needed, "options": {"freezing": True}}).options == Mode(freezing=True)


def test_a_cell_survives_json_and_has_a_spec_for_each_check():
    cell = specs.cell(options={"freezing": True}, threads=2)
    assert Cell.from_dict(json.loads(cell.to_json())) == cell
    assert cell.spec("performance") == Spec(check="performance", **vars(cell))


@pytest.mark.parametrize(
    "change",
    [{"colour": "red"}, {"options": {"colour": "red"}}, {"traits": {"colour": "red"}}, {"model": None}],
    ids=["unknown field", "unknown option", "unknown trait", "missing field"],
)
def test_unknown_and_missing_fields_are_refused(change):
    values = {name: value for name, value in {**SPEC.to_dict(), **change}.items() if value is not None}
    with pytest.raises(TypeError, match=r"colour|model"):
        Spec.from_dict(values)


def batch_size(check="accuracy", user=None, mode=None, training=False, **traits):
    options = Mode(batch_size=mode, training=training)
    return replace(SPEC, check=check, batch_size=user, options=options, traits=Traits(**traits)).requested_batch_size


def test_the_accuracy_check_takes_8_images_whatever_the_suite_says_of_performance():
    assert batch_size(batch_size=128, batch_divisor=2) == 8


def test_a_model_that_does_not_fit_in_float64_trains_with_fewer_images_in_the_accuracy_check():
    assert batch_size(training=True, training_accuracy_batch_size=2) == 2
    assert batch_size(training=False, training_accuracy_batch_size=2) == 8
    assert batch_size("performance", training=True, training_accuracy_batch_size=2, batch_size=64) == 64


@pytest.mark.parametrize(("size", "divisor", "expected"), [(128, 1, 128), (128, 2, 64), (7, 2, 3), (1, 2, 1)])
def test_the_performance_check_takes_the_batch_size_of_the_suite_over_its_divisor_and_at_least_one(size, divisor, expected):
    assert batch_size("performance", batch_size=size, batch_divisor=divisor) == expected


@pytest.mark.parametrize("check", ["accuracy", "performance"])
def test_the_mode_overrides_the_suite_and_the_user_both(check):
    suite = {"batch_size": 64, "batch_divisor": 4, "training_accuracy_batch_size": 4, "training": True}
    assert batch_size(check, mode=3, **suite) == 3
    assert batch_size(check, user=5, mode=3, **suite) == 5
