"""What can be kept of a cell to look into it, beside its rows: words of the key `trace`."""

TRACES = {
    "profiler": "what ran when, of eager and of compiled, in Chrome's format: `eager.json` and `compiled.json`",
    "dynamo": "TORCH_TRACE's structured log of the compilation, for tlparse",
    "code": "the code that inductor generated",
}
"""By word, what its folder has."""
