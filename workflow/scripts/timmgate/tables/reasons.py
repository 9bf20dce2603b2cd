"""Why a check did not pass: one sentence made of its evidence, and the class of that reason. Rows in, words out.

A row is that of a cell, with the columns of `schemas.CELLS`; leaves are its rows of the table of evidence.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from timmgate.core.checks import CHECKS, EAGER_1ST
from timmgate.core.plain_text import plain
from timmgate.core.schemas import PASSED, SHOWN_STATUS
from timmgate.core.verdict import MISMATCH, NOT_COMPUTED, OUTPUTS

Row = Mapping[str, Any]

EAGER_FAILED = (EAGER_1ST[0], "eager_2nd_run_fail")
NOTHING_TO_JUDGE_BY = ("eager_two_runs_differ", "eager_not_finite")
"""Statuses that eager itself is to blame for."""

REFUSED = ("UnknownBackendError", "UnsupportedDeviceError", "InductorOptionError")
"""Causes of a failure to run that are the request's."""

WITHOUT_REASON = (None, "not_applicable", *PASSED)

STATISTICS = {
    "rms": "its root mean square",
    "max": "its largest element",
    "projection": "its part along the tensor itself",
    "mean": "its mean",
    "contrast": "its part along what tells the samples apart",
}
"""Words for the statistics of an error; those of slices have the number of a dimension at their end."""

LEAF = (
    *("leaf", "kind", "compiled_relative_error", "eager_relative_error", "cosine", "accuracy", "message"),
    *("strict", "strict_message", "null_rms"),
)
"""Columns of the table of evidence that it is made of."""

GREAT = 1000
"""From here on a factor has thousands separators instead of digits that say nothing."""

HUGE = 1e7
"""And from here on a power of ten."""


class Reason(NamedTuple):
    """Why a check did not pass: in words, and the word of `schemas.REASON_CLASSES`, None for what is not measured yet."""

    sentence: str | None
    kind: str | None


def reason(row: Row, check: str, leaves: Sequence[Row] = ()) -> Reason:
    """The reason of a check; nothing for one that passed, does not apply or was not asked for."""
    found = _measured_once(row, check, leaves)
    if not found.sentence or not row[f"{check}_repeats"]:
        return found
    low, high = (row[f"{check}_fail_rate_{end}"] for end in ("low", "high"))
    again = f"{row[f'{check}_repeats_failed']} of {row[f'{check}_repeats']} fresh processes ({low:.0%} to {high:.0%})"
    kind = found.kind if row[f"{check}_recurrence"] == "deterministic" else "flaky"
    return Reason(f"{found.sentence}; it failed again in {again}", kind)


def _measured_once(row: Row, check: str, leaves: Sequence[Row]) -> Reason:
    status = row[SHOWN_STATUS[check]]
    if status in WITHOUT_REASON or (status == "not_run" and not row[f"{check}_cause"]):
        return Reason(None, None)
    if status == "fail_accuracy" and check == "performance":
        return Reason(_timed(row), "reference_missing" if row["timed_reference"] == "eager" else "compiler")
    if status == "fail_accuracy":
        leaf = next((each for each in leaves if each["leaf"] == deciding_leaf(row)), {})
        return Reason(_wrong(row, leaf, leaves), _class_of_wrong(row, leaf))
    if status in NOTHING_TO_JUDGE_BY:
        return Reason(f"{_first_line(row[f'{check}_message'])}; there is nothing to judge by", "eager_unstable")
    kind = "eager_unstable" if status in EAGER_FAILED else _class_of_ended(row, check, status)
    words = _ended(row, check)
    return Reason(words, kind) if words else Reason(None, None)


def by_eager(judged: Row, leaf: Row, before: Row) -> dict[str, str]:
    """Columns of a failure that is due to eager alone: nothing unless the baseline's limit allows the error of today.

    `leaf` and `before` are the rows of the worst tensor in the evidence of today and of the baseline.
    """
    error, eager, usual = leaf["compiled_rmse"], leaf["eager_rmse"], before["eager_rmse"]
    allowed = before["allowed_error"]
    if None in (error, eager, usual, allowed) or not eager < usual or error > allowed:
        return {}
    words = f"eager was {times(usual / eager) if eager else 'infinitely many times'} as far from float64 in the baseline"
    return {"reason": f"{judged['reason']}; {words}, which would have allowed it", "reason_class": "tolerance_artifact"}


def by_null_runs(row: Row) -> bool:
    """Whether null runs decided that a cell is wrong; else it was the dynamo rule."""
    return row["passed_by"] in ("strict", "both") and row["strict"] == "fail"


def deciding_leaf(row: Row) -> str | None:
    """The worst tensor by the rule that decided."""
    name: str | None = row["strict_worst_leaf"] if by_null_runs(row) else row["worst_leaf"]
    return name


def _class_of_wrong(row: Row, leaf: Row) -> str:
    if by_null_runs(row):
        return "compiler"
    if row["comparison"] == "cosine" and row["reference"] == "none":
        return "reference_missing"
    if row["strict"] == "pass":
        return "tolerance_artifact"
    margin = leaf.get("strict_margin")
    if row["strict"] == "undecided" and margin is not None and margin <= 1:
        return "amplified_rounding"
    return "compiler"


def _class_of_ended(row: Row, check: str, status: str) -> str:
    """The compiler's is what happens in a stage that runs it, or what it made, after eager ran."""
    stages = {stage.name for stage in CHECKS[check].stages if stage.failure == ("fail_to_run",)}
    is_compilers = status in ("fail_to_run", "OOM", "timeout") and row[f"{check}_stage"] in stages
    return "compiler" if is_compilers and row[f"{check}_cause"] not in REFUSED else "environment"


def _wrong(row: Row, leaf: Row, leaves: Sequence[Row]) -> str:
    """What an accuracy check found, from the worst tensor to how much there is of it."""
    name = _named(deciding_leaf(row) or "what was compiled", leaf)
    rule = _beyond_null_runs(row, leaf) if by_null_runs(row) else _beyond_dynamo(row, leaf)
    return "; ".join([f"{name} {_distance(row, leaf)}", *rule, *_extent(row, leaves), *_seeds(row)])


def _named(name: str, leaf: Row) -> str:
    """A tensor with its kind, unless the name begins with that."""
    kind = leaf.get("kind") or ""
    return name if name.startswith(kind.partition("_")[0]) else f"{name} ({kind.replace('_', ' ')})"


def _distance(row: Row, leaf: Row) -> str:
    """How far a tensor is off, and how far eager is."""
    if by_null_runs(row) and row["strict_worst_statistic"] == MISMATCH:
        return f"does not match: {leaf.get('strict_message') or row['strict_message']}"
    if row["comparison"] == "cosine" and not by_null_runs(row) and leaf.get("cosine") is not None:
        return f"points elsewhere than eager's: the cosine of both is {leaf['cosine']:.3g}, and must be at least 0.99"
    error, eager = leaf.get("compiled_relative_error"), leaf.get("eager_relative_error")
    if error is None or not math.isfinite(error):
        message = leaf.get("message") or leaf.get("strict_message") or row["strict_message"] or row["accuracy_message"]
        return f"is wrong: {_first_line(message)}" if message else "is wrong"
    if _vanishes(leaf):
        return f"is zero but for rounding, and {times(error / eager)} as far from that as eager"
    reference = "float64" if row["reference"] == "fp64" else "eager"
    words = f"is off from {reference} by {error:.2g} of its size"
    if not eager or not math.isfinite(eager):
        return words
    return f"{words}, {times(error / eager)} as far as eager ({eager:.2g})"


def _vanishes(leaf: Row) -> bool:
    """Whether eager has no digit of a tensor right, as of the gradient of a bias before a norm: its size says nothing."""
    eager = leaf.get("eager_relative_error")
    return eager is not None and math.isfinite(eager) and eager > 1


def _beyond_null_runs(row: Row, leaf: Row) -> Iterator[str]:
    statistic = row["strict_worst_statistic"]
    if statistic in (None, MISMATCH) or row["strict_margin"] is None:
        return
    nulls = f"{row['null_runs']} null runs" if row["null_runs"] else "null runs"
    words = f"{statistic_words(statistic)} is {times(row['strict_margin'])} what {nulls} allow"
    is_known = leaf.get("null_rms") is not None and not _vanishes(leaf)
    yield words + (f", which are off by {leaf['null_rms']:.2g} at most" if is_known else "")


def _beyond_dynamo(row: Row, leaf: Row) -> Iterator[str]:
    if row["margin"] is not None and math.isfinite(row["margin"]):
        yield f"that is {times(row['margin'])} what the dynamo rule allows"
    if row["reference"] == "none":
        yield f"float64 did not run ({_first_line(row['reference_error'])})"
    null_rms = leaf.get("null_rms")
    off = f"null runs are off by up to {null_rms:.2g}" if null_rms is not None else "null runs"
    if row["strict"] is None:
        error = _first_line(row["strict_error"])
        yield f"there are no null runs ({error})" if error else "there are no null runs"
    elif row["strict"] == "undecided":
        yield f"{off} and leave it undecided"
    else:
        yield f"{off} and find nothing wrong"


def _extent(row: Row, leaves: Sequence[Row]) -> Iterator[str]:
    """How many tensors fail, of which kinds, and whether the forward pass is right."""
    verdict = "strict" if by_null_runs(row) else "accuracy"
    judged = [leaf for leaf in leaves if leaf[verdict] is not None]
    failed = Counter(leaf["kind"].replace("_", " ") for leaf in judged if not leaf[verdict])
    if len(judged) > 1:
        kinds = ", ".join(f"{count} {kind}" for kind, count in failed.most_common())
        yield f"{failed.total()} of {len(judged)} tensors fail: {kinds}"
        forward = [leaf[verdict] for leaf in judged if leaf["kind"] in OUTPUTS]
        if row["training"] and forward and all(forward):
            yield "the prediction is right"


def _seeds(row: Row) -> Iterator[str]:
    seeds = row["strict_of_seeds"] or []
    if len(set(seeds)) > 1:
        yield f"it fails with {seeds.count('fail')} of {len(seeds)} seeds"


def _timed(row: Row) -> str:
    """What a performance check found of the output that it timed."""
    references = {"fp64": "float64", "extrapolated": "eager (whose error is that of batch 8)", "eager": "eager"}
    reference = references.get(row["timed_reference"], "eager")
    batch = row["timed_output_batch_size"] or row["performance_batch_size"]
    kind = (row["timed_output_kind"] or ("gradient" if row["training"] else "output")).replace("_", " ")
    what = f"what was timed ({kind}{f', batch size {batch}' if batch else ''})"
    error, margin = row["timed_output_error"], row["timed_output_margin"]
    if row["timed_output_kind"] in NOT_COMPUTED:
        return NOT_COMPUTED[row["timed_output_kind"]]
    if error is None or not math.isfinite(error):
        return f"{what} does not match {reference}"
    words = f"{what} is off from {reference} by {error:.2g} of its size"
    return words if margin is None else f"{words}, {times(margin)} what is allowed by eager's own error"


def _ended(row: Row, check: str) -> str:
    """How a check ended that has nothing to compare: the cause, the stage, and what had passed until then."""
    cause, stage, message = (row[f"{check}_{name}"] for name in ("cause", "stage", "message"))
    where = f" in the stage {stage}" if stage else ""
    words: str = ": ".join(filter(None, [f"{cause}{where}" if cause else "", _first_line(message)]))
    passed = [each.name for each in CHECKS[check].stages if row[f"{check}_{each.name}_s"] is not None]
    passed = passed[: passed.index(stage)] if stage in passed else []
    return f"{words}; {listed(passed)} passed" if passed else words


def times(factor: float) -> str:
    """A factor with the word for it, as `31 times` or `41,000 times`."""
    if not math.isfinite(factor):
        return "infinitely many times"
    if factor < GREAT:
        return f"{factor:.3g} times"
    return f"{float(f'{factor:.2g}'):,.0f} times" if factor < HUGE else f"{factor:.0e} times"


def statistic_words(name: str) -> str:
    """A statistic of an error in words."""
    if name.startswith("slice_"):
        _, what, dimension = name.split("_")
        return f"the largest {what} of a slice along dimension {dimension}"
    return STATISTICS.get(name, name)


def listed(words: Sequence[str]) -> str:
    """Words as a person lists them."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _first_line(text: str | None) -> str:
    return plain(next(iter((text or "").strip().splitlines()), ""))
