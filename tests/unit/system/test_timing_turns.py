"""Two that are timed in turns: each runs in its own only, and both end when neither wants more."""

import os
from contextlib import ExitStack
from threading import Thread

import pytest

from timmgate.system import timing_turns
from timmgate.system.timing_turns import TurnsError


@pytest.fixture
def ends():
    """Both pairs of ends of a measurement's pipes: its own, and those of who gives the turns."""
    numbers = os.pipe(), os.pipe()
    with ExitStack() as stack:
        (taken, gives), (answers, answered) = (
            [stack.enter_context(os.fdopen(number, mode, 0)) for number, mode in zip(pipe, ("rb", "wb"), strict=True)]
            for pipe in numbers
        )
        yield (taken, answered), (gives, answers)


def numbers_of(files):
    return tuple(file.fileno() for file in files)


def test_a_turn_is_waited_for_and_what_follows_it_is_told(ends):
    own, giver = map(numbers_of, ends)
    ran = []

    def measured():
        with timing_turns.alone("cpu", own) as goes_on:
            ran.append("first")
            assert goes_on(False)
            ran.append("second")
            assert not goes_on(True)
            ran.append("end")

    running = Thread(target=measured, daemon=True)
    running.start()
    assert ran == []
    assert not timing_turns.give_turn(*giver, running.is_alive)
    assert ran == ["first"]
    assert timing_turns.give_turn(*giver, running.is_alive)
    assert ran == ["first", "second"]
    timing_turns.give_no_more(giver[0])
    running.join(60)
    assert ran == ["first", "second", "end"]


def test_nobody_waits_for_who_has_ended(ends):
    own, giver = ends
    for file in own:
        file.close()
    gives, answers = numbers_of(giver)
    with pytest.raises(TurnsError):
        timing_turns.give_turn(gives, answers, lambda: True)
    with pytest.raises(TurnsError):
        timing_turns.give_no_more(gives)


def test_nobody_waits_for_who_has_ended_and_left_the_pipe_open(ends):
    _, giver = map(numbers_of, ends)
    with pytest.raises(TurnsError):
        timing_turns.give_turn(*giver, lambda: False)


def test_one_whose_turns_nobody_gives_any_more_ends(ends):
    own, giver = ends
    for file in giver:
        file.close()
    with pytest.raises(TurnsError), timing_turns.alone("cpu", numbers_of(own)):
        pytest.fail("it must not run")
