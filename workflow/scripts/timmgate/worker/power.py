"""What the accuracy check catches: every fault that applies to a model, judged by each rule.

The model is compiled once, and reference, eager and null runs are made once for each seed; then each fault is a run of the
compiled model.
"""

import copy
import math
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import torch

from timmgate.core.faults import PLACES, Choice, choices
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.core.verdict import CellVerdict, Strict
from timmgate.worker import accuracy, backends, compare, iterations, models, strict_verdict, torch_device
from timmgate.worker.compare import Leaf
from timmgate.worker.compile_cache import Cache
from timmgate.worker.faults import Trials
from timmgate.worker.faults.effect import effect_of
from timmgate.worker.iterations import Run
from timmgate.worker.resource_errors import is_out_of_memory
from timmgate.worker.training_step import Setup, make

WHOLE_PROGRAM = "process"
"""Family of the faults that have no place in a graph: they go through whole cells instead."""


@dataclass
class Trial:
    """One fault on one model.

    * `effect`: as in `faults.effect`, in units of eager's error; 0 is a mutant that is equivalent.
    * `dynamo`, `cosine`: caught by the dynamo rule, and by its cosine mode.
    * `strict`: the strict verdict after as many seeds as it takes; `strict_of_seeds` those of each.
    * `strict_margin`, `strict_worst_leaf`: of the first seed.
    * `error`: what its run raised, if it did; then every rule has caught it.
    """

    fault: str
    family: str
    size: str | None
    place: str | None
    backward: bool
    effect: float
    dynamo: bool
    cosine: bool
    strict: str
    strict_margin: float
    strict_worst_leaf: str
    strict_of_seeds: list[str] = field(default_factory=list)
    error: str | None = None


class Subject:
    """A model with the weights and images of one seed, compiled so that any fault can be put into it."""

    def __init__(self, spec: Spec, setup: Setup):
        self.spec = spec
        self.model, self.images = make(spec, setup)
        torch_device.set_deterministic(True)
        self.reference = accuracy.run_exact(spec, self.model, self.images)
        self.eager = iterations.run(spec, copy.deepcopy(self.model), self.images, original=self.model)
        again = iterations.run(spec, copy.deepcopy(self.model), self.images)
        self.repeats_itself = accuracy.repeats_itself(spec, self.eager, again)
        torch_device.set_deterministic(False)
        others = strict_verdict.other_values(spec, self.model, self.images)
        self.judge = strict_verdict.prepare(spec, *others)
        self.strict_eager = strict_verdict.run(spec, copy.deepcopy(others[0]), others[1])
        self.program = Program(spec, self.model, self.images, *others)
        exact = models.in_float64(self.model), self.images.double()
        self.exact = Program(spec, *exact, models.in_float64(others[0]), others[1].double())
        self.healthy_exact = self.exact.strict(None)

    def faults(self, places: Collection[str]) -> list[Choice]:
        """Those that apply, in these places."""
        chosen = (choice for choice in choices() if choice.place is None or choice.place in places)
        candidates = (choice for choice in chosen if choice.fault.family != WHOLE_PROGRAM)
        return [choice for choice in candidates if self.program.trials.choose(choice)]

    def both(self, choice: Choice) -> tuple[Run, list[Leaf]]:
        """The runs of the program with a fault that each rule looks at."""
        return self.program.both(choice, self.eager)

    def effect(self, choice: Choice, faulty: list[Leaf]) -> float:
        """How much a fault changes, over eager's error. `faulty` is its run in the precision of the mode."""
        healthy = self.strict_eager
        if choice.fault.exact:
            healthy, faulty = self.healthy_exact, self.exact.strict(choice)
        return effect_of(self.judge.reference.leaves, self.strict_eager, healthy, faulty)

    def judged(self, run: Run, strict_leaves: list[Leaf]) -> tuple[dict[str, bool], CellVerdict]:
        """Whether the dynamo rule, and its cosine mode, find a run wrong, and the strict verdict."""
        how = accuracy.rule(self.spec, has_reference=True)
        leaves, certain = iterations.compare_runs(self.eager, run, self.reference, how, self.repeats_itself)
        by_cosine = compare.compare_leaves(self.eager.leaves, run.leaves, self.reference.leaves, replace(how, cosine=True))
        differs = {"dynamo": leaves, "cosine": by_cosine}
        wrong = {name: not all(leaf.accuracy for leaf in each) for name, each in differs.items()}
        found = accuracy.with_certain(self.judge.judge(strict_leaves), certain)
        first_calls = accuracy.doubted(self.spec, leaves, run.leaves) if self.repeats_itself and not certain else None
        return wrong, accuracy.with_first_calls(found, self.spec, self.model, self.images, first_calls)


class Program:
    """A compiled model that runs with a fault."""

    def __init__(
        self,
        spec: Spec,
        model: torch.nn.Module,
        images: torch.Tensor,
        other_model: torch.nn.Module,
        other_images: torch.Tensor,
    ):
        self._spec, self._original, self._images = spec, model, images
        self._other_model, self._other_images = other_model, other_images
        self._model, self.trials = copy.deepcopy(model), Trials()
        torch._dynamo.reset()
        self._forward: Callable[..., Any] = torch.compile(self._model, backend=self.trials.compile)
        iterations.run(spec, self._model, images, self._forward)  # captures the graphs of both passes

    def strict(self, choice: Choice | None) -> list[Leaf]:
        """The leaves that the strict rule compares; not after the first call, as some faults are wrong only later."""
        self.trials.choose(choice)
        strict_verdict.run_compiled(self._spec, self._original, self._model, self._images, self._forward)
        model, images = self._other_model, self._other_images
        return strict_verdict.run_compiled(self._spec, model, self._model, images, self._forward)

    def both(self, choice: Choice, eager: Run) -> tuple[Run, list[Leaf]]:
        """The run of the dynamo rule and the leaves of the strict one, of one life of the fault; as of `run_program`."""
        self.trials.choose(choice)
        models.set_state(self._model, models.state(self._original))
        others = self._other_model, self._other_images
        return accuracy.run_program(self._spec, self._original, self._model, self._images, self._forward, others, eager)


def trials(spec: Spec, setup: Setup, places: Collection[str] = tuple(PLACES)) -> Iterator[Trial]:
    """Try every fault that applies to the model in the mode of `spec`, in each of these places."""
    torch.set_num_threads(setup.threads)
    with torch.set_grad_enabled(spec.options.training), backends.configured(spec):
        first = Subject(spec, setup)
        of_seed = cache(lambda seed: Subject(replace(spec, seed=seed), setup))
        for choice in first.faults(places):
            yield _try(first, choice, of_seed)


def _try(subject: Subject, choice: Choice, of_seed: Callable[[int], Subject]) -> Trial:
    about = {
        "fault": str(choice),
        "family": choice.fault.family,
        "size": None if choice.size is None else str(choice.size),
        "place": choice.place,
        "backward": choice.fault.backward,
    }
    try:
        run, strict_leaves = subject.both(choice)
    except Exception as error:
        if is_out_of_memory(error):
            raise  # not caught by any rule
        traceback.print_exc()
        told = f"{type(error).__name__}: {error}"[:200]
        return Trial(**about, effect=math.inf, dynamo=True, cosine=True, strict="fail", strict_margin=math.inf,
                     strict_worst_leaf="", strict_of_seeds=["fail"], error=told)  # fmt: skip
    by_dynamo, found = subject.judged(run, strict_leaves)
    effect = subject.effect(choice, strict_leaves)
    strict, of_seeds = strict_verdict.after_seeds(found, lambda seed: _verdict(of_seed(seed), choice), subject.spec.seed)
    return Trial(
        **about,
        **by_dynamo,
        effect=effect,
        strict=strict,
        strict_margin=found.margin,
        strict_worst_leaf=found.worst_leaf,
        strict_of_seeds=list(of_seeds),
    )


def _verdict(subject: Subject, choice: Choice) -> Strict:
    """The strict verdict on a fault with the weights and images of another seed."""
    try:
        return subject.judge.judge(subject.both(choice)[1]).strict
    except Exception as error:
        if is_out_of_memory(error):
            raise
        traceback.print_exc()
        return "fail"


def study(spec: Spec, run: RunOptions, device_number: int | None, places: Sequence[str]) -> list[dict[str, Any]]:
    """The trials of one model and mode, a `Trial` each."""
    setup = Setup.of(run, Cache(run.cache), spec.requested_batch_size, device_number)
    return [asdict(trial) for trial in trials(spec, setup, places)]
