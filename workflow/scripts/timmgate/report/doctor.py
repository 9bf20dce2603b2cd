"""What there is to say of a machine that is to be timed on, as text."""

from collections.abc import Sequence
from dataclasses import asdict

from timmgate.system.fitness import Finding
from timmgate.system.machine import Facts

FIT = "nothing was found that would make timings worse\n"

ABOUT = {"governor": "governor", "turbo": "turbo", "smt": "SMT", "counters": "counters", "swap_used_bytes": "swap"}
"""Facts that a machine may not tell, and their words."""


def text(findings: Sequence[Finding], facts: Facts) -> str:
    """Two lines for each finding, what it is and what to do, and one for what the machine does not tell."""
    lines = [f"{finding.what}\n    {finding.advice}\n" for finding in findings] or [FIT]
    known = asdict(facts)
    untold = [word for name, word in ABOUT.items() if known[name] is None]
    return "".join(lines) + (f"this machine does not tell: {', '.join(untold)}\n" if untold else "")
