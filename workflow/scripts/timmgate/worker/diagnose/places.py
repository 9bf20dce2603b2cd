"""The smallest module that still goes wrong when it is compiled by itself and fed what it is fed in eager.

From the model down: of the modules in one that goes wrong, in the order in which they run, the first that goes wrong too. It
is judged as a whole model is, against its own float64 run and its own null runs, forward and in training backward.
"""

import copy
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from timmgate.core.diagnosis import IN_EAGER, RUNS_OF_A_CRASH, SIGNAL, TrialRequest
from timmgate.core.protocol import Reporter
from timmgate.core.spec import Spec
from timmgate.core.verdict import OUTPUTS
from timmgate.worker import backends, strict_verdict, torch_device
from timmgate.worker.calls import Call, first_calls, is_floats
from timmgate.worker.resource_errors import is_out_of_memory
from timmgate.worker.training_step import Setup, make

RUNS_S = 10.0
"""So long a module runs again that may have broken memory, unless it has run often enough before. A choice."""

WHOLE = ""
"""The name of the model itself."""

RAISED = "raised"
"""Where a module goes wrong that cannot be compiled, or not be run."""


@dataclass(frozen=True)
class Place:
    """A module with what it is fed, and where it goes wrong: `forward`, `backward` or `raised`."""

    fed: "Fed"
    direction: str


def search(spec: Spec, setup: Setup, request: TrialRequest, reporter: Reporter) -> Place | None:
    """Report each module that is tried, then the place as columns; None if no module fails by itself."""
    reporter.stage("load")
    model, images = make(spec, setup)
    module, place = "", None
    while True:
        for name, fed in candidates(spec, model, images, module):
            ended = request.known.get(name)
            if ended is None:
                reporter.detail({"module": name, "module_class": type(fed.module).__name__})
                ended = goes_wrong(spec, setup, fed, request, reporter)
                reporter.detail({"module": name, "ended": ended})
            if ended != "pass":
                module, place = name, Place(fed, ended)
                break
        else:
            break
    if place is None and request.cause is None:  # what crashes or hangs needs no proof that the whole does
        place, module = whole(spec, setup, model, images, request, reporter), None
    if place and module:
        kind = type(place.fed.module).__name__
        reporter.columns(module=module, module_class=kind, direction=place.direction)
        if place.direction == RAISED:
            reporter.columns(fails_in_eager=fails_in_eager(spec, place.fed, request, reporter))
    return place


def whole(
    spec: Spec, setup: Setup, model: nn.Module, images: Tensor, request: TrialRequest, reporter: Reporter
) -> Place | None:
    """The model itself, where none of its modules goes wrong: an operator of its own, or of two modules together."""
    fed, ended = Fed(model, (images,), {}), request.known.get(WHOLE)
    if ended is None:
        reporter.detail({"module": WHOLE, "module_class": type(model).__name__})
        ended = goes_wrong(spec, setup, fed, request, reporter)
        reporter.detail({"module": WHOLE, "ended": ended})
    return None if ended == "pass" else Place(fed, ended)


def fails_in_eager(spec: Spec, fed: "Fed", request: TrialRequest, reporter: Reporter) -> bool:
    """Whether a module ends in its null runs as the cell does, if that is not known."""
    ended = request.known.get(IN_EAGER)
    if ended is None:
        reporter.detail({"module": IN_EAGER})
        try:
            families = strict_verdict.families_of_a_module(spec, fed.images)
            strict_verdict.prepare(spec, fed, fed.images, families)
            if request.cause == SIGNAL:
                again_and_again(lambda: strict_verdict.prepare(spec, fed, fed.images, families))
            ended = "pass"
        except Exception as error:
            traceback.print_exc()
            ended = RAISED if is_cause(error, request) else "pass"
        reporter.detail({"module": IN_EAGER, "ended": ended})
    return ended != "pass"


def again_and_again(run: Callable[[], object]) -> None:
    """Run often: one that writes beyond its memory does not die of it each time."""
    begin = time.monotonic()
    for _ in range(RUNS_OF_A_CRASH):
        run()
        if time.monotonic() - begin > RUNS_S:
            break


def is_cause(error: Exception, request: TrialRequest) -> bool:
    """Whether an exception is of the kind that is looked for."""
    return request.cause == ("OOM" if is_out_of_memory(error) else type(error).__name__)


def judge_of(spec: Spec, fed: "Fed") -> strict_verdict.Judge | None:
    """What a module's own null runs allow; None where it cannot be run as null runs are."""
    for families in (None, strict_verdict.families_of_a_module(spec, fed.images)):
        try:
            return strict_verdict.prepare(spec, fed, fed.images, families)
        except Exception:
            traceback.print_exc()
    return None


def goes_wrong(spec: Spec, setup: Setup, fed: "Fed", request: TrialRequest, reporter: Reporter) -> str:
    """`pass`, or where it goes wrong: `forward`, `backward`, or `raised` where the compiler or what it compiled fails.

    Without null runs what it computes is not judged. An exception of another class than the cell's is none of the cell's:
    some modules cannot be compiled alone.
    """
    torch_device.set_deterministic(True)
    judge = judge_of(spec, fed) if request.null_runs else None
    torch_device.set_deterministic(False)
    with backends.compiling(spec, setup.cache, reporter):
        compiled = copy.deepcopy(fed)
        try:
            forward = backends.compile_model(spec, compiled, fed.images)
            # Some things are wrong from the second run on, or keep what the first one had.
            strict_verdict.run(spec, compiled, fed.images.flip(-1) if fed.images.ndim else fed.images, forward)
            leaves = strict_verdict.run_compiled(spec, fed, compiled, fed.images, forward)
            if request.cause == SIGNAL:
                again_and_again(lambda: strict_verdict.run(spec, compiled, fed.images, forward))
        except Exception as error:
            traceback.print_exc()
            return RAISED if is_cause(error, request) else "pass"
    wrong = [leaf.kind for leaf in judge.judge(leaves).leaves if leaf.strict is False] if judge else []
    if not wrong:
        return "pass"
    return "forward" if {*OUTPUTS} & {*wrong} else "backward"


class Fed(nn.Module):
    """A module with all that it is called with but for one tensor, `images`, which it is called with itself.

    One that works in place gets a copy, `in_place`: the images are a leaf, which autograd does not let it write to.
    """

    def __init__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], in_place: bool = False):
        super().__init__()
        self.module, self._others, self.training, self.in_place = module, [], module.training, in_place
        given = [*enumerate(args), *kwargs.items()]
        self._key = next(key for key, value in given if is_floats(value))
        self.images = next(value for key, value in given if key == self._key)
        for key, value in given:
            if key != self._key and isinstance(value, Tensor):
                self.register_buffer(f"given_{key}", value, persistent=False)
                value = None
            self._others.append((key, value))

    def forward(self, images: Tensor) -> Any:
        """The module's own."""
        first = images.clone() if self.in_place else images
        given = {key: first if key == self._key else getattr(self, f"given_{key}", value) for key, value in self._others}
        args = [value for key, value in given.items() if isinstance(key, int)]
        return self.module(*args, **{key: value for key, value in given.items() if isinstance(key, str)})


def children(model: nn.Module, module: str) -> set[str]:
    """Names of the modules in one."""
    return {f"{module}.{name}".removeprefix(".") for name, _ in model.get_submodule(module).named_children()}


def candidates(spec: Spec, model: nn.Module, images: Tensor, module: str) -> Iterator[tuple[str, Fed]]:
    """The modules in `module` with what they are fed, in order; those that are built as one before come last.

    In the place of one that is not called with a tensor, as a ModuleList or one that is given a list, those in it.
    """
    names, calls = children(model, module), dict[str, Call]()
    while names - calls.keys():
        calls = first_calls(spec, model, images, names)
        inner = {name: children(model, name) for name in names - calls.keys()}  # of those that are never called so
        names = {*calls}.union(*inner.values())
    seen, alike = set(), []
    for name, call in calls.items():
        fed = Fed(model.get_submodule(name), call.arguments, call.keywords, call.in_place)
        key = repr(fed.module), fed.images.shape
        if key in seen:
            alike.append((name, fed))
            continue
        seen.add(key)
        yield name, fed
    yield from alike
