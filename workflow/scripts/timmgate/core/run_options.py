"""How a cell is measured, as against what: none of it is part of a measurement's identity."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from timmgate.core.build import BuildOptions
from timmgate.core.described import described

USUAL_RETIMINGS = 8
"""By so many fresh processes at most the gate has a slower cell confirmed: of 2,000 healthy nights 10 were red, and without
any 3 of 10 (benchmarks/nights.py).
"""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The policy keys of the configuration, and what a job makes of them on the machine that it runs on.

    `threads` are those of torch, OpenMP and the compiler's own pool. `timeout` and `timing_limit` are seconds, `memory` is
    GB. `cache` is the folder of compile caches, with one for each program in it unless `compile_cache` is `shared`.
    `toolchain` has what the compiler builds once per machine. `weights` is a state dict, unless the weights are random.
    `memory_bytes` is for all processes of a worker together. `build` says where the worker runs and `devices` how many of
    the device type there are.
    """

    compile_cache: Literal["cell", "shared"] = described(
        "`cell` gives every cell a compile cache of its own; `shared` is one for the whole run, so that "
        "kernels that cells have in common are built once (the folder that TORCHINDUCTOR_CACHE_DIR names, if "
        "it is set).",
        default="cell",
    )
    jobs_per_gpu: int = described(
        "How many measurements may be on one GPU at once, so that it has work while one of them compiles; "
        "timing is alone in any case. With 1 none is disturbed while it tunes kernels or paused while another "
        "is timed. No limit on a CPU.",
        default=2,
        minimum=1,
    )
    timeout: int = described(
        "Seconds that one check of one cell may take; past that its processes are killed and its status is timeout.",
        default=1800,
        minimum=1,
    )
    timing_limit: int = described(
        "Seconds for the samples of one performance check, past which it takes the interval as wide as it is. Two that "
        "`snakemake compare` times side by side have twice as many together.",
        default=15,
        minimum=1,
    )
    memory: int | None = described(
        "GB (10^9 bytes) that the processes of one cell may occupy together. A cell that takes more is killed, and its "
        "status is that of running out of memory. A cluster is asked for as much. Two cells that are timed side by side may "
        "take twice as much. Null is an estimate by the model's size and batch.",
        default=None,
        minimum=1,
    )
    attempts: int = described(
        "How often each check of a cell is started at most when something other than the model ends it, also when it "
        "was killed without a result.",
        default=2,
        minimum=1,
    )

    accuracy_rule: Literal["strict", "dynamo", "both"] = described(
        "What decides whether a cell passed: `strict`, null runs; `dynamo`, the tolerances of benchmarks/dynamo, without "
        "null runs; `both`, either may fail it. Where strict is undecided, dynamo decides, as weak evidence.",
        default="strict",
    )
    timing_lanes: int | str = described(
        "On a CPU, how many cells can be timed at once, each on cores that share no cache and no memory with those of "
        "others and have nothing else to do then. `auto` is as many as the machine has such groups of cores "
        "([docs/accelerators.md](../docs/accelerators.md#many-cores)).",
        default=1,
        minimum=1,
        anyOf=[{"type": "integer"}, {"enum": ["auto"]}],
    )
    timing_processes: int = described(
        "Fresh processes that each cell is timed in, one after the other. The interval of one says how well that process is "
        "known, and another one lies outside of it in one of six cases; of several it is over processes, and holds for the "
        "next one.",
        default=1,
        minimum=1,
    )
    processes: int = described(
        "Fresh processes of each build that `snakemake compare` times a cell in, each side by side with one of the other "
        "build. More of them find smaller differences.",
        default=8,
        minimum=2,
    )

    confirm: int | str = described(
        "How often each failed cell is measured again, each time in a fresh process with an empty compile cache, to "
        "tell what is deterministic from what is flaky. `gate` does the same to cells that may be slower, or worse in "
        "another figure, than a measured baseline, at most so many times, and fails only where it is confirmed; of 20 "
        "cells at most, or a fifth of all if that is more. `auto` is 8 for these, and 0 for failed cells.",
        default="auto",
        minimum=0,
        anyOf=[{"type": "integer"}, {"enum": ["auto"]}],
    )

    threads: int = 1
    cache: Path = Path(".cache/inductor")
    weights: Path | None = None
    toolchain: Path | None = None
    memory_bytes: int | None = None
    build: BuildOptions = field(default_factory=BuildOptions)
    devices: int = 1

    @property
    def repeats(self) -> int:
        """How often a failed cell is measured again."""
        return 0 if isinstance(self.confirm, str) else self.confirm

    @property
    def retimings(self) -> int:
        """How often at most a cell is timed again that may have got worse than a measured baseline."""
        return USUAL_RETIMINGS if isinstance(self.confirm, str) else self.confirm

    @property
    def shared_cache(self) -> bool:
        """Whether all programs compile into one cache."""
        return self.compile_cache == "shared"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; paths are texts."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    def to_json(self) -> str:
        """Canonical JSON."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunOptions":
        """The inverse of `to_dict`. Raises TypeError on an unknown field."""
        paths = {name: Path(values[name]) for name in ("cache", "weights", "toolchain") if values.get(name) is not None}
        return cls(**{**values, **paths, "build": BuildOptions(**values.get("build", {}))})
