"""Two measurements that are timed side by side: each runs when it is given a turn, and waits while the other has one.

What slows a machine down for seconds, as a neighbour on its host or its own clock, then slows both down. Who gives the turns
has the device alone (`timing_lock`); a turn, and what is said after it, is one byte in a pipe.
"""

import operator
import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from timmgate.system import timing_lock

TURN, END = b"t", b"e"
ENOUGH, MORE = b"1", b"0"

POLL_S = 0.1
"""Time between two looks at who does not say anything."""


class TurnsError(ConnectionError):
    """Who gives or takes turns has ended."""


@contextmanager
def alone(device: str, turns: tuple[int, int] | None) -> Iterator[Callable[[bool], bool]]:
    """The device without others: for as long as we like, or with `turns` from our first turn on.

    `turns` are the file descriptors to read turns from and to answer to. Gives the function to call after each turn: told
    whether we have enough, it says whether another one follows, and returns when that begins.
    """
    if turns is None:
        with timing_lock.exclusive_device(device):
            yield operator.not_
        return
    reading, writing = turns

    def follows() -> bool:
        if not (said := os.read(reading, 1)):
            raise TurnsError("nobody gives turns any more")
        return said == TURN

    def goes_on(has_enough: bool) -> bool:
        os.write(writing, ENOUGH if has_enough else MORE)
        return follows()

    follows()
    yield goes_on


def give_turn(writing: int, reading: int, lives: Callable[[], bool]) -> bool:
    """Let a measurement have one turn; whether it has enough of them. Raises TurnsError if it ends instead.

    `lives` says whether it has not: a child that it has left may keep its end of the pipe open.
    """
    _say(writing, TURN)
    wait_for(reading, lives)
    if not (said := os.read(reading, 1)):
        raise TurnsError("it has ended in its turn")
    return said == ENOUGH


def give_no_more(writing: int) -> None:
    """Let a measurement go on without turns. Raises TurnsError if it has ended."""
    _say(writing, END)


def wait_for(reading: int, lives: Callable[[], bool]) -> None:
    """Wait until there is something to read from one that lives. Raises TurnsError if it does not any more."""
    while True:
        alive = lives()
        if select.select([reading], [], [], POLL_S if alive else 0)[0]:
            return
        if not alive:
            raise TurnsError("it has ended")


def _say(writing: int, word: bytes) -> None:
    try:
        os.write(writing, word)
    except BrokenPipeError:
        raise TurnsError("it has ended") from None
