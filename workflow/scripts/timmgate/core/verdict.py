"""Is a run wrong, or only rounded differently? Judged by null runs: eager again under changes that no one would call wrong.

Every run is described by its errors against one reference: a few statistics for each leaf (a tensor that is compared). A
statistic may be a multiple of the largest that the null runs have, and one rounding more: there is no tolerance to set by
hand. Needs the standard library alone; `worker.leaf_errors` measures the statistics.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

MULTIPLIER = 3.0
"""A statistic of a single leaf may be so many times the largest of the null runs. Chosen by `snakemake calibrate`."""

HALF_MULTIPLIER, HALF_TRAINING_MULTIPLIER = 1.75, 2.0
"""The same in half precision, where there are more independent null runs; in training most statistics are of gradients of
low rank, whose mean and projection are near 0 in any one of them by chance.
"""

CLOSE = 0.1
"""A leaf whose error's rms is at most this share of its size is right, however far off null runs are."""

CERTAIN = 3.0
"""So many limits are no chance: 3^-5 = 0.4 % of the cases where a healthy run is beyond its limit, with five sources."""

MISMATCH = "mismatch"
"""Statistic of a leaf that differs whatever the rounding."""

UNDECIDED_LEAVES = 0.05
"""A cell is undecided if more than this share of its leaves is; gradients of both losses to a tensor are one."""

OTHER_LOSS = "cotangent."
"""Before the name of a gradient that is of another loss: by the same backward pass, to the same tensor."""

OF_A_SAMPLE = ".sample"
"""End of the kind of a timed output that is wrong: of its worst sample."""

NOT_COMPUTED = {
    "kept": "the compiled program returned what it had computed of other images",
    "written": "the compiled program has written to weights, buffers or images that eager leaves, or left what eager writes",
    "changed": "the compiled program computes something else after it was timed than before",
}
"""By kind of a timed output, what is wrong although what is computed may be right."""

AlwaysWrong = Literal[
    "first_iteration", "last_iteration", "one_run", "whole_batch", "written", "type", "container", "without_gradient"
]
"""Word before the name of a leaf that is wrong by every rule."""

ALWAYS_WRONG: dict[AlwaysWrong, str] = {
    "first_iteration": (
        "is off in the first of the two iterations alone: by more than twice what the dynamo rule allows, and by more than "
        "twice what the last one is off by. A kernel that is tried out in the first call may write over its own inputs"
    ),
    "last_iteration": "is off in the last iteration alone, by the same measure: without an optimizer and random masks",
    "one_run": (
        "is off in one of two runs from the same weights alone, by the same measure: with an optimizer or random masks, "
        "where no iteration is like another one. Parameters are left out"
    ),
    "whole_batch": (
        "an output of the whole batch is off by more than twice what the dynamo rule allows: with dynamic shapes, where "
        "null runs have fewer images"
    ),
    "written": (
        "images, buffers, parameters before an optimizer steps them, or outputs of an earlier call: the program writes to "
        "them and eager does not; at inference also the reverse. CUDA graphs may write to outputs, and a model to its own"
    ),
    "type": "an output is of another class of tensors than eager's, which need not have been computed when it is returned",
    "container": "an output is in another container than eager's",
    "without_gradient": (
        "a parameter has no gradient where eager gives one, be it of zeros: an optimizer with weight decay passes it over. "
        "The reverse is right: AOTAutograd makes zeros of what nothing depends on"
    ),
}
"""By word, what is wrong; the first four of a model that repeats itself in eager."""

FIRST_CALLS = "first_calls"
"""Word before the name of a leaf that is wrong in the calls that the dynamo rule judges, and not in later ones."""

OUTPUTS = ("output", "prediction")
"""Kinds of leaves without which a cell is undecided."""

KINKS = "kinks"
"""Family that is no run, but shows what crossing the kinks of activations does to gradients."""

COMPARED = ("pass", "pass_due_to_skip", "fail_accuracy", "eager_two_runs_differ")
"""Statuses of an accuracy check with null runs."""

Strict = Literal["pass", "fail", "undecided"]


class Statistic(NamedTuple):
    """One figure of a leaf's error d = run - reference, over the leaf's scale.

    * `floor`: what half a unit in the last place of every element can make of it.
    * `from_rms`: what it is, over the rms of d, where the elements of d are independent. A few null runs may all have a
      mean near 0 by chance; so much more than their rms warrants, no limit is lowered by it.
    """

    value: float
    floor: float
    from_rms: float = 1.0


@dataclass(frozen=True)
class LeafErrors:
    """Errors of one leaf of a run against the reference.

    * `statistics`: by name; `rms` is always there (`worker.leaf_errors` says which others and what they are).
    * `vanishes`: the reference is zero but for rounding, as the gradient of a bias before a norm: its null runs are as
      large as the leaf without being chaotic.
    * `dtype`: of the run's tensor, or the type of what is none.
    * `mismatch`: what is different whatever the rounding (structure, NaN, Inf), or "". Then no statistics.
    """

    leaf: str
    kind: str
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    vanishes: bool = False
    mismatch: str = ""
    dtype: str = ""


Errors = Mapping[str, LeafErrors]
"""Errors of one run, by name of the leaf."""


@dataclass(frozen=True)
class NullRun:
    """Errors of one null run.

    Runs of one family differ in their random numbers alone: they share eager's error, and each adds little of its own. Where
    the random numbers are most of the error, as in half precision, `draw` tells them apart, and each counts as a family.
    """

    family: str
    errors: Errors
    draw: int = 0

    @property
    def source(self) -> tuple[str, int]:
        """What the run is independent of other runs by."""
        return self.family, self.draw


@dataclass(frozen=True)
class LeafVerdict:
    """What became of a leaf.

    * `strict`: whether it passes; None is undecided.
    * `margin`: largest statistic over its limit, at most 1 exactly if it passes; inf for a mismatch.
    * `statistic`: the name of that statistic, or `mismatch`.
    * `null_rms`: largest rms of a null run's error, over the leaf's scale.
    * `message`: why it fails or is undecided, or "".
    * `rms`, `eager_rms`: the same of this run and of the first null run, which is eager as it is; None for a mismatch.
    """

    leaf: str
    kind: str
    strict: bool | None
    margin: float
    statistic: str
    null_rms: float
    message: str = ""
    rms: float | None = None
    eager_rms: float | None = None


@dataclass(frozen=True)
class CellVerdict:
    """What became of a run.

    * `margin`: the largest of a decided leaf (of any, where none is decided); `worst_leaf` and `worst_statistic` are its.
    * `null_runs`: their number.
    * `null_scatter`: the same margin for the worst null run, judged by those independent of it: how near to its limit a run
      may be that is known to be right. None where there are no such runs.
    """

    strict: Strict
    margin: float
    worst_leaf: str
    worst_statistic: str
    null_runs: int
    null_scatter: float | None
    leaves: tuple[LeafVerdict, ...]


def judge(run: Errors, nulls: Sequence[NullRun], base: float = MULTIPLIER) -> CellVerdict:
    """Judge a run by null runs that have the same reference; `base` is the multiplier of a single leaf.

    Raises ValueError without null runs.
    """
    leaves = judge_leaves(run, nulls, base)
    decided = [leaf for leaf in leaves if leaf.strict is not None]
    worst = max(decided or leaves, key=lambda leaf: leaf.margin)
    names, judged = ({leaf.leaf.removeprefix(OTHER_LOSS) for leaf in some} for some in (leaves, decided))
    undecided = names - judged  # a gradient is judged, if that of either loss is
    if any(leaf.strict is False for leaf in leaves):
        strict: Strict = "fail"
    elif len(undecided) > UNDECIDED_LEAVES * len(names) or any(
        leaf.kind in OUTPUTS and leaf.strict is None for leaf in leaves
    ):
        strict = "undecided"
    else:
        strict = "pass"
    scatter = (judge_leaves(null.errors, others, base) for null, others in left_out(nulls))
    margins = [max((leaf.margin for leaf in each if leaf.strict is not None), default=0.0) for each in scatter]
    return CellVerdict(
        strict, worst.margin, worst.leaf, worst.statistic, len(nulls), max(margins, default=None), tuple(leaves)
    )


def judge_leaves(run: Errors, nulls: Sequence[NullRun], base: float = MULTIPLIER) -> list[LeafVerdict]:
    """The verdict on every leaf of the null runs, and on what the run has in excess."""
    if not nulls:
        raise ValueError("no null runs to judge by")
    multiplier = _multiplier(run, nulls, base)
    names = dict.fromkeys(name for errors in (*(null.errors for null in nulls), run) for name in errors)
    return [_judge_leaf(name, run.get(name), [null.errors.get(name) for null in nulls], multiplier) for name in names]


def left_out(nulls: Sequence[NullRun]) -> Iterator[tuple[NullRun, list[NullRun]]]:
    """Each null run with those that are independent of it, if there are any; kinks judge but are not judged."""
    if len({null.source for null in nulls if null.family != KINKS}) > 1:
        for null in nulls:
            if null.family != KINKS:
                yield null, [other for other in nulls if other.source != null.source]


def independent(nulls: Sequence[NullRun]) -> int:
    """Number of sources that say something of their own, at least 1.

    Some families repeat another bit for bit, as channels_last does in a transformer.
    """
    first: dict[tuple[str, int], tuple] = {}
    for null in nulls:
        if null.family != KINKS:
            first.setdefault(null.source, tuple(errors.statistics.get("rms") for errors in null.errors.values()))
    return max(1, len(set(first.values())))


def multiplier_for(statistics: int, sources: int, base: float = MULTIPLIER) -> float:
    """The multiplier for so many statistics (of all leaves together) and independent sources of null runs.

    That one of n statistics is more than m times the largest of k others alike has a chance of the order of n / m^k.
    So that this chance is the same for all models, m grows with the k-th root of n.
    """
    return float(base * max(1.0, statistics / 6) ** (1 / sources))


def _multiplier(errors: Errors, nulls: Sequence[NullRun], base: float) -> float:
    """The multiplier for the statistics of a run and these null runs."""
    return multiplier_for(sum(len(each.statistics) for each in errors.values()), independent(nulls), base)


def is_certain(found: CellVerdict) -> bool:
    """Whether a failure is none that chance makes.

    That a statistic is t times its limit by chance is t^k times rarer than that it is beyond it, with k independent null
    runs. A gradient may be, where rounding crosses a kink, and an integer that no null run moves; where NaN are, or which
    shape a leaf has, rounding does not decide.
    """
    failed = [leaf for leaf in found.leaves if leaf.strict is False]
    return any(
        leaf.statistic == MISMATCH or (CERTAIN < leaf.margin < math.inf and "gradient" not in leaf.kind) for leaf in failed
    )


def majority(verdicts: Iterable[Strict]) -> Strict:
    """The verdict on three seeds of weights and images: what two of them say, else undecided."""
    verdicts = list(verdicts)
    return next((word for word in ("fail", "pass") if verdicts.count(word) >= 2), "undecided")


def status_by_rule(accuracy: str | None, strict: str | None, rule: str) -> tuple[str | None, str | None]:
    """The status of the accuracy check by the key `accuracy_rule`, and what decided: strict, dynamo or both.

    `accuracy` is the status by the dynamo rule. Strict decides where it says pass or fail. A check that ended before
    anything was compared keeps its status, and nothing decided.
    """
    if accuracy not in COMPARED:
        return accuracy, None
    if rule == "dynamo" or strict not in ("pass", "fail"):
        return accuracy, "dynamo"
    if strict == "fail":
        return "fail_accuracy", rule
    return ("pass" if rule == "strict" else accuracy), rule


def _judge_leaf(name: str, errors: LeafErrors | None, nulls: Sequence[LeafErrors | None], multiplier: float) -> LeafVerdict:
    kind = next(each.kind for each in (errors, *nulls) if each)
    unusable = [null.mismatch if null else "missing" for null in nulls if null is None or null.mismatch]
    comparable = [null for null in nulls if null and not null.mismatch]
    null_rms = max((null.statistics["rms"].value for null in comparable), default=math.inf)
    if errors is None or errors.mismatch:
        message = errors.mismatch if errors else "missing in the run"
        return LeafVerdict(name, kind, None if unusable else False, math.inf, MISMATCH, null_rms, message)
    if unusable:
        return LeafVerdict(name, kind, None, math.inf, MISMATCH, null_rms, f"a null run: {unusable[0]}")
    if errors.dtype != comparable[0].dtype:
        message = f"{errors.dtype} instead of {comparable[0].dtype}"
        return LeafVerdict(name, kind, False, math.inf, MISMATCH, null_rms, message)
    allowed = _allowed(errors, comparable, multiplier)
    margins = {name: _margin(found.value, allowed[name]) for name, found in errors.statistics.items()}
    worst = max(margins, key=margins.__getitem__)
    strict: bool | None = margins[worst] <= 1.0
    message = "" if strict else f"{worst} of its error is {margins[worst]:.3g} times what null runs allow"
    if strict and not _proves_something(errors, allowed):
        strict, message = None, f"null runs are off by {null_rms:.2g} of its size, and zeros instead of it would pass"
    rms = errors.statistics["rms"].value, comparable[0].statistics["rms"].value
    return LeafVerdict(name, kind, strict, margins[worst], worst, null_rms, message, *rms)


def _allowed(leaf: LeafErrors, nulls: Sequence[LeafErrors], multiplier: float) -> dict[str, float]:
    """The largest value of each statistic that passes; the same for every run, as floors and ratios are the reference's.

    What null runs do and the rounding of the result are independent errors, whose squares add up.
    """
    sizes = _sizes(leaf, nulls)
    return {name: math.hypot(multiplier * sizes[name], found.floor) for name, found in leaf.statistics.items()}


def _sizes(leaf: LeafErrors, nulls: Sequence[LeafErrors]) -> dict[str, float]:
    """How large null runs make each statistic."""
    null_rms = max(null.statistics["rms"].value for null in nulls)
    return {
        name: max(found.from_rms * null_rms, *(null.statistics[name].value for null in nulls))
        for name, found in leaf.statistics.items()
    }


def _margin(value: float, allowed: float) -> float:
    """A statistic over its limit: 0 if it is 0, inf where the limit is 0 and the statistic is not."""
    if value == 0:
        return 0.0
    return value / allowed if allowed else math.inf


def _proves_something(leaf: LeafErrors, allowed: Mapping[str, float]) -> bool:
    """Whether the limits can tell a right leaf from a wrong one: zeros in its place, of rms and projection 1, fail.

    Or the run is close to the reference anyway, where eager may be far off: sums of many small terms in half precision.
    """
    zeros_fail = min(allowed["rms"], allowed.get("projection", math.inf)) < 1
    return leaf.vanishes or zeros_fail or leaf.statistics["rms"].value <= CLOSE


def limits(nulls: Sequence[NullRun], base: float = MULTIPLIER) -> dict[str, dict[str, float]]:
    """By leaf, the limit of each statistic. Leaves that have no statistics in some null run are left out."""
    eager = nulls[0].errors
    multiplier = _multiplier(eager, nulls, base)
    return {name: _allowed(eager[name], others, multiplier) for name in eager if (others := _comparable(name, nulls))}


def _comparable(name: str, nulls: Sequence[NullRun]) -> list[LeafErrors]:
    """The errors of a leaf in all null runs; none if it has no statistics in one of them."""
    found = [null.errors[name] for null in nulls if name in null.errors and not null.errors[name].mismatch]
    return found if len(found) == len(nulls) else []


def needed(run: Errors, nulls: Sequence[NullRun]) -> tuple[float, str, str]:
    """The smallest `base` with which a run does not fail, inf if there is none, and the leaf and statistic that need it."""
    unit = _multiplier(run, nulls, 1.0)
    found = [(0.0, "", "")]
    for name, errors in run.items():
        others = _comparable(name, nulls)
        if not others:  # undecided, whatever the run has
            continue
        if errors.mismatch:
            found.append((math.inf, name, MISMATCH))
            continue
        sizes = _sizes(errors, others)
        for statistic, (value, floor, _) in errors.statistics.items():
            if not value <= floor:
                excess, size = math.sqrt((value - floor) * (value + floor)), unit * sizes[statistic]
                found.append((excess / size if size and math.isfinite(excess) else math.inf, name, statistic))
    return max(found)
