"""In words, what the figures of a run depend on beside its programs: part of every headline."""

ALLOCATORS = {"retain": "memory retained", "system": "memory left to the system"}
"""By what the key `allocator` may be, words for a headline."""


def condition_words(threads: int, allocator: str | None = None, relocate: bool | None = None) -> str:
    """As in "1 thread, memory retained"; `allocator` and `relocate` are those of a cell, None but on a CPU."""
    parts = [f"{threads} thread{'s' * (threads > 1)}"]
    if allocator is not None:
        parts.append(ALLOCATORS[allocator])
    if relocate is False:
        parts.append("tensors not moved")
    return ", ".join(parts)
