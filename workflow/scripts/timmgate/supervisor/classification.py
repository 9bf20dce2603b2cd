"""Which status an attempt at a check has. Pure: it has only what was seen, and no process."""

import signal

from timmgate.core.checks import CHECKS
from timmgate.core.outcome import OUT_OF_MEMORY, OUT_OF_MEMORY_WORDS, AttemptResult, Verdict

OWN_SIGNALS = frozenset(
    {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS}
)
"""Signals that a process brings upon itself. Any other signal came from outside."""


def classify(attempt: AttemptResult) -> Verdict:
    """The status of an attempt; `schemas.STATUSES` says what each means.

    The worker's own result stands even if its process did not end well afterwards.
    """
    if attempt.result is not None:
        return _judged(attempt)
    if attempt.supervisor_error is not None:
        return Verdict("infra_error", *attempt.supervisor_error)
    fail, out_of_memory = CHECKS[attempt.check].statuses(attempt.stage, attempt.visits[attempt.stage or ""])
    if attempt.failure is not None:
        status = out_of_memory if attempt.failure["out_of_memory"] or attempt.oom_killed else fail
        if attempt.failure.get("is_ours"):
            status = "infra_error"
        return Verdict(status, attempt.failure["cause"], attempt.failure["message"])
    if attempt.returncode is None:
        return _limit_reached(attempt, out_of_memory)
    if attempt.returncode >= 0:
        return Verdict("infra_error", f"exit code {attempt.returncode}", "the process ended without a result")
    name = signal_name(-attempt.returncode)
    if attempt.oom_killed:
        return Verdict(out_of_memory, name, "the kernel killed the process, out of memory")
    if -attempt.returncode in OWN_SIGNALS:
        return Verdict(fail, name, "the process died")
    return Verdict("infra_error", name, "the process was killed from outside")


def _judged(attempt: AttemptResult) -> Verdict:
    """The worker's own word, unless what was timed computes something else than eager."""
    verdict = Verdict(**(attempt.result or {}))
    if verdict.status == "pass" and attempt.columns.get("timed_output_ok") is False:
        off = attempt.columns.get("timed_output_margin")
        message = "the compiled output at the timed batch size is wrong"
        return Verdict("fail_accuracy", "timed output", message if off is None else f"{message}: {off:.3g} times the limit")
    return verdict


def _limit_reached(attempt: AttemptResult, out_of_memory: str) -> Verdict:
    survivors = f"; process {', '.join(map(str, attempt.survivors))} could not be killed" if attempt.survivors else ""
    if attempt.is_over_memory:
        used = f"the processes used {attempt.peak_rss_bytes / 1e9:.1f} GB"
        return Verdict(out_of_memory, f"limit of {(attempt.memory_bytes or 0) / 1e9:g} GB", used + survivors)
    return Verdict("timeout", f"limit of {attempt.timeout_s:g} s", f"it had not ended{survivors}")


def lacked_memory(attempt: AttemptResult, verdict: Verdict, device: str) -> bool:
    """Whether what had a neighbour may have lacked the memory that this one took, for its reference or null runs too.

    Without these the verdict is weaker. On a CPU it is the cell's own limit that ends it, unless the kernel does.
    """
    if attempt.oom_killed or device == "cpu":
        return attempt.oom_killed
    weaker = (str(attempt.columns.get(name)).lower() for name in ("reference_error", "strict_error"))
    return verdict.status in OUT_OF_MEMORY or any(words in error for error in weaker for words in OUT_OF_MEMORY_WORDS)


def signal_name(number: int) -> str:
    """SIGSEGV and the like; a number where there is no name, as of real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
