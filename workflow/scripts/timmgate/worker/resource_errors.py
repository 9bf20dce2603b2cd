"""Which exceptions say that memory ran out, or disk. Without torch."""

import errno
from collections.abc import Iterator

from timmgate.core.outcome import OUT_OF_MEMORY_WORDS

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

DISK_FULL_WORDS = ("no space left on device", "disk quota exceeded")
"""How compilers say it, in what torch quotes of their output."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or the one that it was raised from, says that host or device memory ran out."""
    for each in _chain(error):
        names = {cls.__name__ for cls in type(each).__mro__}
        if names & {"MemoryError", "OutOfMemoryError"}:
            return True
        if isinstance(each, RuntimeError) and any(words in str(each).lower() for words in OUT_OF_MEMORY_WORDS):
            return True
    return False


def is_disk_full(error: BaseException | None) -> bool:
    """Whether it says so of the disk that a compiler writes to."""
    return any(
        getattr(each, "errno", None) in DISK_FULL or any(words in str(each).lower() for words in DISK_FULL_WORDS)
        for each in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that led to it."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or getattr(error, "inner_exception", None) or error.__context__
