"""What can be kept of a cell to look into it, beside its rows: words of the key `trace`."""

TRACES = {
    "profiler": "`eager.json`, `compiled.json`: what ran when in three iterations, in Chrome's format",
    "dynamo": "what TORCH_TRACE logs, for tlparse: all stages of a compilation; it has the model's code, and no weights",
    "code": "what inductor generated: output code, C++ and triton kernels",
}
"""By word, what its folder has."""
