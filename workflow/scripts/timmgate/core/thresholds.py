"""From where on a figure is worth a look. Policy: nothing is measured again when one of these changes."""

from dataclasses import dataclass

from timmgate.core.described import described


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Keys of the configuration: a cell with a figure beyond one of them is a warning in the table `failures`, or beyond one
    of the last three fails the gate against a baseline of measured tables.

    The defaults of the first three are the lines of benchmarks/dynamo's dashboard.
    """

    min_speedup: float = described(
        "A smaller speedup whose whole interval lies below 1 is a warning, `slower`.", default=0.95, minimum=0
    )
    max_compile_s: float = described(
        "Seconds of a cold compile; a longer one is a warning, `slow_compile`.", default=120, minimum=0
    )
    min_compression_ratio: float = described(
        "A smaller ratio of eager's peak memory to compiled's is a warning, `more_memory`.", default=0.9, minimum=0
    )
    max_graph_breaks: int = described("More graph breaks are a warning, `graph_breaks`.", default=0, minimum=0)
    max_recompiles: int = described("More recompiles are a warning, `recompiles`.", default=0, minimum=0)
    max_machine_drift: float = described(
        "A fixed kernel that took more than so many times longer, or shorter, after the samples than before them is a "
        "warning, `drifted_machine`.",
        default=1.1,
        minimum=1,
    )
    max_busy_cores: float = described(
        "More cores than this used by others, out of those that we may use, while samples were taken are a warning, "
        "`disturbed_machine`; so is every time that a core was too hot, a quota was used up, or memory was swapped.",
        default=0.25,
        minimum=0,
    )
    max_slowdown: float = described(
        "`compiled_ms` over `eager_ms` that is larger than in the baseline by more than this share, and than noise "
        "explains, fails the gate as `slower`.",
        default=0.02,
        exclusiveMinimum=0,
    )
    max_compile_growth: float = described(
        "The same of the processor seconds of a cold compile, `slower_compile`.", default=0.1, exclusiveMinimum=0
    )
    max_memory_growth: float = described(
        "The same of `compiled_allocated_bytes`, `more_memory`.", default=0.05, exclusiveMinimum=0
    )
