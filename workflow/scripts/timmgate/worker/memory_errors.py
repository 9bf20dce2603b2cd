"""Which exceptions say that memory ran out. Without torch."""

OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "_status_alloc_failed")
"""How torch's allocators, CUDA, cuBLAS and cuDNN say in a plain RuntimeError that memory is short."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or the one that it was raised from, says that host or device memory ran out."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        names = {cls.__name__ for cls in type(error).__mro__}
        if names & {"MemoryError", "OutOfMemoryError"}:
            return True
        if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY_WORDS):
            return True
        error = error.__cause__ or getattr(error, "inner_exception", None) or error.__context__
    return False
