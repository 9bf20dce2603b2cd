"""What became of a check: one attempt as it was seen from outside, and the status that follows from it."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

OUT_OF_MEMORY = frozenset({"OOM", "eager_1st_run_OOM", "eager_2nd_run_OOM"})
"""Statuses that a smaller batch can cure, or a device without neighbours."""

OUT_OF_MEMORY_WORDS = (
    *("out of memory", "can't allocate memory", "not enough memory", "bad_alloc"),
    *("_status_alloc_failed", "_allocation_failed"),
    *("out_of_device_memory", "out_of_host_memory", "out_of_resources"),
)
"""How torch's allocators, CUDA, cuBLAS, cuDNN, the C++ library and Intel's driver say in a plain RuntimeError that memory is
short.
"""

RETRYABLE = frozenset({"infra_error"})
"""Statuses that a second attempt can cure."""


def now() -> datetime:
    """The time, UTC."""
    return datetime.now(timezone.utc)


@dataclass
class AttemptResult:
    """What the supervisor saw of one attempt at the check with the name `check`.

    `visits` counts how often each stage was entered. `columns` are what the worker reported of its row, `details` the rows
    of the check's second table. `result` and `failure` are the worker's final message, `result_so_far` is what the result is
    should a limit end the check (see `protocol`).
    `supervisor_error` is cause and message of what kept worker and supervisor from working together at all.
    `device` is the name of the one that it had (`gpus.names`), `device_number` which of several that is, as in
    `protocol.Request`; `was_shared` is whether somebody else had a part of it meanwhile.
    `returncode` is that of `subprocess.Popen` (negative: the signal that ended it), None when a limit was reached.
    `stage` is None where nobody knows it. `peak_rss_bytes` is of all processes of the worker together.
    """

    check: str = "accuracy"
    stage: str | None = "import"
    visits: Counter[str] = field(default_factory=Counter)
    columns: dict[str, Any] = field(default_factory=dict)
    details: list[dict[str, Any]] = field(default_factory=list)
    stage_s: dict[str, float] = field(default_factory=dict)
    started_at: datetime = field(default_factory=now)
    worker_s: float | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    paused_s: float = 0.0
    result_so_far: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    failure: dict[str, Any] | None = None
    supervisor_error: tuple[str, str] | None = None
    returncode: int | None = None
    timeout_s: float = 0.0
    memory_bytes: int | None = None
    peak_rss_bytes: int = 0
    oom_killed: bool = False
    survivors: tuple[int, ...] = ()
    device: str | None = None
    device_number: int | None = None
    was_shared: bool = False

    def take(self, kind: str, content: Any) -> None:
        """Take in a message of the worker (`protocol.CONTENTS`); those that are not about one attempt are nothing."""
        match kind:
            case "stage":
                self.stage = content
                self.visits[content] += 1
            case "columns":
                self.columns.update(content)
            case "detail":
                self.details.append(content)
            case "result_so_far" | "result" | "failure":
                setattr(self, kind, content)

    @property
    def reached_limit(self) -> bool:
        """Whether a limit of time or memory ended it, ours or the kernel's, and nothing that it said."""
        ended_by_itself = self.result or self.failure or self.supervisor_error
        return not ended_by_itself and (self.returncode is None or self.oom_killed)

    @property
    def is_over_memory(self) -> bool:
        """Whether more memory was used than `memory_bytes` allows."""
        return self.memory_bytes is not None and self.peak_rss_bytes > self.memory_bytes


@dataclass(frozen=True)
class Verdict:
    """The status word, why, and in words."""

    status: str
    cause: str | None = None
    message: str | None = None

    def __str__(self) -> str:
        """Why, and in words."""
        return ": ".join(filter(None, (self.cause, self.message)))

    @property
    def as_line(self) -> str:
        """The same with the status, for a log."""
        return " ".join(filter(None, (self.status, str(self))))


@dataclass(frozen=True)
class Outcome:
    """The last attempt at a check: what was seen of it, its status, its number, and the seconds of all attempts."""

    result: AttemptResult
    verdict: Verdict
    attempt: int
    wall_s: float
