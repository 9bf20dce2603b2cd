"""Which variants of a failed cell are tried, in which order, and what follows from how they end. Pure: it runs nothing.

A search is a generator: it yields a variant, is sent its outcome, and returns what it found. Any search can so be replayed
from outcomes that are known, and tested with outcomes that are made up.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from timmgate.core.diagnosis import BISECTED, CODE, Variant
from timmgate.core.spec import INDUCTOR_BACKENDS, Mode
from timmgate.diagnosis.switches import CODE_GENERATION, PASSES, WHOLE_STAGES

REPEAT = Variant("as it is")
AGAIN = Variant("as it is, again")
DYNAMO = Variant("eager", options={"backend": "eager"})
AOT = Variant("aot_eager", options={"backend": "aot_eager"})
DECOMPOSED = Variant("aot_eager_decomp_partition", options={"backend": "aot_eager_decomp_partition"})
RUNGS = (DYNAMO, AOT, DECOMPOSED)
"""Backends that end after one layer more each, and run eager from there on."""

EXPORTED = Variant("export", options={"backend": "export"})
"""What torch.export captures, as it is; aot_inductor begins with it, and not with dynamo."""

GUARDS = ("torch/_dynamo/guards.py", "torch/_guards.py", "torch/_dynamo/eval_frame.py")
"""Files that an exception of guards comes from; of the last one, that a program is compiled anew where that is refused."""

CAPTURED_ANEW = Variant("captured anew in each call", options={"backend": "eager"}, trick="captured_anew")
UNGUARDED = Variant("without guards", options={"backend": "eager"}, trick="unguarded")
INTERPRETED = Variant("loops interpreted", layer=CODE)

CONDITIONS: dict[str, Mapping[str, Any]] = {
    "freezing": {"freezing": False},
    "cudagraphs": {"cudagraphs": False},
    "compile_mode": {"compile_mode": "default"},
    "channels_last": {"channels_last": False},
    "precision": {"precision": "float32"},
    "dynamic": {"dynamic": False},
}
"""Options of a mode that are left out, one at a time, to see whether it takes them to fail."""

Ending = Literal["pass", "fail", "other", "eager"]


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended: `fail` as the cell does, `other` in another way, `eager` before anything was compiled.

    `applications`, `application` and `raised_in` are reported.
    """

    ended: Ending
    applications: int = 0
    application: str | None = None
    raised_in: str | None = None


@dataclass(frozen=True)
class Finding:
    """What a search found: a layer, the variant that it passes with, the application of the layer that it takes, and the
    options of the mode that it takes. `variant` is the least that still fails.
    """

    layer: str
    switch: str | None = None
    application: str | None = None
    conditions: tuple[str, ...] = ()
    variant: Variant = REPEAT


Search = Generator[Variant, TrialOutcome, Finding]


def search(mode: Mode) -> Search:
    """Where a cell of this mode goes wrong, and which of its options that takes."""
    first = yield REPEAT
    if first.ended == "pass" and (first := (yield AGAIN)).ended == "pass":
        return Finding("flaky")
    if first.ended == "eager":
        return Finding("eager")
    found = yield from _layer(mode, first)
    conditions = []
    for option in conditions_of(mode):
        if (yield without(option)).ended == "pass":
            conditions.append(option)
    if found.layer == "inductor" and "cudagraphs" in conditions:
        found = Finding("cudagraphs", without("cudagraphs").name)
    return replace(found, conditions=tuple(conditions))


def _layer(mode: Mode, first: TrialOutcome) -> Search:
    """The layer that goes wrong, and what of it; `first` is how the cell failed."""
    if mode.backend == EXPORTED.name:
        return Finding("capture")
    if mode.backend == "aot_inductor" and (yield EXPORTED).ended != "pass":
        return Finding("capture", variant=EXPORTED)
    below = [rung for rung in RUNGS if mode.backend in (*INDUCTOR_BACKENDS, *_after(rung))]
    if mode.backend not in (*INDUCTOR_BACKENDS, *(rung.name for rung in RUNGS)):
        below = list(RUNGS)
    if below and (highest := (yield below[-1])).ended != "pass":
        return (yield from _lowest(below, highest))
    if mode.backend not in INDUCTOR_BACKENDS:
        return (yield from _of_rung(mode.backend, first))
    return (yield from _inductor(mode.freezing and (yield without("freezing")).ended == "pass"))


def without(option: str) -> Variant:
    """The cell without one of `CONDITIONS`."""
    return Variant(f"without {option}", options=CONDITIONS[option])


WITHOUT = tuple(without(option) for option in CONDITIONS if option not in ("freezing", "cudagraphs"))
"""Variants that tell of a condition alone, and not of a layer: one that says nothing ends no search."""


def conditions_of(mode: Mode) -> list[str]:
    """The conditions that a mode has."""
    return [option for option, off in CONDITIONS.items() if any(getattr(mode, name) != value for name, value in off.items())]


def _after(rung: Variant) -> list[str]:
    """Names of the rungs above one."""
    return [above.name for above in RUNGS[RUNGS.index(rung) + 1 :]]


def _lowest(rungs: Sequence[Variant], failed: TrialOutcome) -> Search:
    """The lowest rung that fails, of which the last is known to have failed so."""
    failing = rungs[-1], failed
    for rung in rungs[:-1]:
        outcome = yield rung
        if outcome.ended != "pass":
            failing = rung, outcome
            break
    return (yield from _of_rung(failing[0].name, failing[1]))


def _of_rung(backend: str, failed: TrialOutcome) -> Search:
    """What is wrong with the last layer that a backend has, which failed so."""
    if backend == DYNAMO.name:
        if (failed.raised_in or "").startswith(GUARDS):
            return Finding("guards", variant=DYNAMO)
        for variant in (CAPTURED_ANEW, UNGUARDED):
            if (yield variant).ended == "pass":
                return Finding("guards", variant.name, variant=DYNAMO)
        return Finding("capture", variant=DYNAMO)
    if backend == AOT.name:
        return Finding("aot_autograd", DYNAMO.name, variant=AOT)
    if backend == DECOMPOSED.name:
        off = yield left("decompositions", 0)
        if off.ended != "pass":
            return Finding("partitioner", AOT.name, variant=DECOMPOSED)
        return (yield from bisect("decompositions", off.applications, DECOMPOSED))
    return Finding("backend")


def _inductor(frozen: bool) -> Search:
    """Which part of inductor it is, where everything before it is right."""
    off = yield left("lowerings", 0)
    if off.ended == "pass":
        return (yield from _loops(off.applications))
    for layer, setting in WHOLE_STAGES.items():
        for switch in (Variant(f"without {layer}", settings=setting), left(layer, 0)):
            outcome = yield switch
            if outcome.ended == "pass":
                return (yield from _passes(layer, switch))
            if outcome.ended == "fail":  # the stage can be left out, and it is not that
                break
    if frozen:
        return Finding("freezing", without("freezing").name)
    for variant in PASSES:
        if (yield variant).ended == "pass":
            return Finding("inductor", variant.name)
    return Finding("inductor")


def _loops(applications: int) -> Search:
    """What is wrong with the loops that operators become: what they compute, or the code that is made of them."""
    interpreted = yield INTERPRETED
    if interpreted.ended == "pass":
        found = yield from bisect(CODE, interpreted.applications, REPEAT)
        for variant in CODE_GENERATION:
            if (yield variant).ended == "pass":
                return replace(found, switch=variant.name)
        return found
    found = yield from bisect("lowerings", applications, REPEAT)
    # Where loops could not be interpreted, as on accelerators, nothing tells them from the code that is made of them.
    was_tried = interpreted.ended == "fail" and interpreted.applications
    return found if was_tried else replace(found, layer="loops")


def _passes(layer: str, switch: Variant) -> Search:
    """Which pass of a layer it is."""
    outcome = yield left(layer, 0)
    if outcome.ended == "pass" and outcome.applications:
        return (yield from bisect(layer, outcome.applications, REPEAT))
    return Finding(layer, switch.name)  # a pass that the bisector does not know


def left(layer: str, applications: int, base: Variant = REPEAT) -> Variant:
    """The cell with only so many applications of a layer left."""
    if layer == CODE:
        name = f"{applications} groups of loops compiled" if applications else INTERPRETED.name
        return replace(INTERPRETED, name=name, applications=applications)
    options = {"backend": BISECTED[layer][0]} if layer == "decompositions" else base.options
    name = f"without {layer}" if applications == 0 else f"{applications} of {layer}"
    return Variant(f"{name} (bisector)", options=options, layer=layer, applications=applications)


def bisect(layer: str, applications: int, variant: Variant) -> Search:
    """The first application of a layer that it takes to fail: without any it passes, with all it fails."""
    switch = left(layer, 0).name
    passing, failing, application = 0, applications, None
    while failing - passing > 1:
        middle = (passing + failing) // 2
        outcome = yield left(layer, middle)
        if outcome.ended == "pass":
            passing = middle
        else:
            failing, application = middle, outcome.application
    if application is None:
        application = (yield left(layer, failing)).application
    return Finding(layer, switch, application, variant=variant)
