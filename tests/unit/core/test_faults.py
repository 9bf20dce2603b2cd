"""Names, sizes and places of the faults."""

import pytest

from timmgate.core import faults
from timmgate.core.faults import FAULTS, MISCOMPILATIONS, NAMES, UnknownFaultError, choices, parse


def test_there_are_enough_and_every_family_has_some():
    assert len(list(choices())) >= 100
    families = {"values", "indices", "structure", "gradients", "state", "special", "process"}
    assert {fault.family for fault in FAULTS.values()} == families


def test_enough_are_modelled_on_published_cases():
    assert sum(bool(fault.issues) for fault in FAULTS.values()) >= 30
    assert {number for fault in FAULTS.values() for number in fault.issues} == set(MISCOMPILATIONS)


def test_every_choice_is_what_its_name_means():
    names = [str(choice) for choice in choices()]
    assert len(names) == len(set(names))
    assert [parse(name) for name in names] == list(choices())


def test_a_fault_without_a_place_is_in_the_middle():
    assert parse("fault:drop-skip") == parse("fault:drop-skip@middle")


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("fault:drop-skp", "no fault 'drop-skp'; did you mean drop-skip"),
        ("fault:scale-output", "no fault 'scale-output'; its sizes are scale-output-5, scale-output-1.1"),
        ("fault:drop-skip@frist", "no place 'frist' for a fault; did you mean first"),
        ("fault:kill@first", "the fault 'kill' has no places"),
        ("fault", "not of the form fault:"),
    ],
)
def test_what_is_no_fault_is_refused_with_near_matches(backend, message):
    with pytest.raises(UnknownFaultError, match=message):
        parse(backend)


def test_names_can_be_parts_of_paths_and_of_backends():
    assert all(name.replace("-", "").replace(".", "").replace("_", "").isalnum() for name in NAMES)
    assert faults.is_fault("fault:kill") and not faults.is_fault("inductor")
