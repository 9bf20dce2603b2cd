"""How a measurement ended, and which status that is. Pure: knows nothing of processes."""

import signal
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

OWN_SIGNALS = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
"""Signals that a process brings upon itself. Any other signal came from outside."""

FAILURE = {
    "load": ("model_fail_to_load", "OOM"),
    "reference": ("eager_1st_run_fail", "eager_1st_run_OOM"),
    "eager": ("eager_1st_run_fail", "eager_1st_run_OOM"),
    "compile": ("fail_to_run", "OOM"),
    "run": ("fail_to_run", "OOM"),
    "warmup": ("fail_to_run", "OOM"),
    "timing": ("fail_to_run", "OOM"),
}
"""Stage to the statuses of a failure that the model or the compiler caused, and of one for want of memory."""

SECOND_EAGER_FAILURE = ("eager_2nd_run_fail", "eager_2nd_run_OOM")

OUT_OF_MEMORY = frozenset({"OOM", "eager_1st_run_OOM", "eager_2nd_run_OOM"})
"""Statuses that a smaller batch can cure, or a device without neighbours."""

RETRYABLE = frozenset({"infra_error"})
"""Statuses that a second try can cure."""


@dataclass
class Ending:
    """What the supervisor saw of one attempt at one check.

    `visits` counts how often each stage was entered. `details` are the lines
    of the check's second table. `result` and `failure` are the worker's last words (see `messages`).
    `trouble` is cause and message of what kept worker and supervisor from working together at all.
    `returncode` is that of `subprocess.Popen` (negative: the signal that ended it), None when a limit was reached.
    `stage` is None where nobody knows it. `peak_rss_bytes` is of all processes of the worker together.
    """

    stage: str | None = "import"
    visits: Counter[str] = field(default_factory=Counter)
    facts: dict[str, Any] = field(default_factory=dict)
    details: list[dict[str, Any]] = field(default_factory=list)
    stage_s: dict[str, float] = field(default_factory=dict)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    worker_s: float | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    held_s: float = 0.0
    result: dict[str, Any] | None = None
    failure: dict[str, Any] | None = None
    trouble: tuple[str, str] | None = None
    returncode: int | None = None
    timeout_s: float = 0.0
    memory_bytes: int | None = None
    peak_rss_bytes: int = 0
    oom_killed: bool = False
    survivors: tuple[int, ...] = ()

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


def classify(ending: Ending) -> Verdict:
    """The status of an attempt; `rows.STATUSES` says what each means.

    The worker's own result stands even if its process did not end well afterwards.
    """
    if ending.result is not None:
        return Verdict(**ending.result)
    if ending.trouble is not None:
        return Verdict("infra_error", *ending.trouble)
    fail, out_of_memory = FAILURE.get(ending.stage, ("infra_error", "OOM"))
    if ending.stage == "eager" and ending.visits["eager"] == 2:
        fail, out_of_memory = SECOND_EAGER_FAILURE
    if ending.failure is not None:
        status = out_of_memory if ending.failure["out_of_memory"] else fail
        return Verdict(status, ending.failure["cause"], ending.failure["message"])
    if ending.returncode is None:
        return _limit_reached(ending, out_of_memory)
    if ending.returncode >= 0:
        return Verdict("infra_error", f"exit code {ending.returncode}", f"ended without a result in stage {ending.stage}")
    name = _signal_name(-ending.returncode)
    if ending.oom_killed:
        return Verdict(out_of_memory, name, f"killed by the kernel for want of memory in stage {ending.stage}")
    if -ending.returncode in OWN_SIGNALS:
        return Verdict(fail, name, f"the process died of {name} in stage {ending.stage}")
    return Verdict("infra_error", name, f"the process was killed from outside in stage {ending.stage}")


def _limit_reached(ending: Ending, out_of_memory: str) -> Verdict:
    survivors = f"; process {', '.join(map(str, ending.survivors))} could not be killed" if ending.survivors else ""
    if ending.is_over_memory:
        used = f"used {ending.peak_rss_bytes / 1e9:.1f} GB in stage {ending.stage}"
        return Verdict(out_of_memory, f"limit of {ending.memory_bytes / 1e9:g} GB", used + survivors)
    hung = f"still in stage {ending.stage} after the limit"
    return Verdict("timeout", f"limit of {ending.timeout_s:g} s", hung + survivors)


def lacked_memory(ending: Ending, verdict: Verdict) -> bool:
    """Whether the attempt ran out of memory, or the float64 reference did, without which the verdict is a weaker one."""
    return verdict.status in OUT_OF_MEMORY or "out of memory" in str(ending.facts.get("reference_error")).lower()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
