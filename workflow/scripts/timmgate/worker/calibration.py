"""How far runs that are known to be right come from the strict limit: what `core.verdict` has its multipliers from.

Null runs are judged by those independent of them; eager with another number of threads, AOTAutograd without a
compiler and the backend of the mode are judged by all of them.
"""

import copy
import math
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from timmgate.core import verdict
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.core.verdict import Errors
from timmgate.worker import accuracy, backends, iterations, null_runs, strict_verdict, torch_device
from timmgate.worker.compare import Leaf, LeafEvidence
from timmgate.worker.compile_cache import Cache
from timmgate.worker.training_step import Setup, make

SEEDS = 3
"""Of weights and images."""

BASELINE = "aot_eager"
"""Compiler that is tried beside that of the mode: it captures graphs and changes nothing in them."""


@dataclass
class HealthyRun:
    """One run that is right.

    * `run`: the left-out family, `threads`, or the backend.
    * `ratio`: what the multiplier of a single leaf has to be for the run to pass.
    * `worst_leaf`, `worst_statistic`: where that is.
    * `multiplier`: what it is.
    * `strict`: the verdict with it; `undecided` leaves of `leaves`.
    """

    seed: int
    run: str
    ratio: float
    worst_leaf: str
    worst_statistic: str
    multiplier: float
    strict: str
    leaves: int
    undecided: int


def runs(spec: Spec, setup: Setup) -> Iterator[HealthyRun]:
    """All healthy runs of a model in the mode of `spec`."""
    torch.set_num_threads(setup.threads)
    setup.cache.open()
    with torch.set_grad_enabled(spec.options.training), backends.configured(spec):
        for number in range(SEEDS):
            of_seed = replace(spec, seed=spec.seed + number)
            torch_device.set_deterministic(False)  # as null runs and compiled are in the accuracy check
            model, images = make(of_seed, setup)
            others = strict_verdict.other_values(of_seed, model, images)
            judge = strict_verdict.prepare(of_seed, *others)
            for null, independent in verdict.left_out(judge.nulls):
                yield _row(of_seed, null.family, null.errors, replace(judge, nulls=independent))
            for family, leaves in null_runs.null_runs(
                partial(strict_verdict.run, of_seed), *others, judge.reference.dtype, of_seed.seed, ["threads"]
            ):
                yield _row(of_seed, family, judge.reference.errors(leaves), judge)
            for backend, leaves, certain in _compiled(of_seed, model, images, others, number == 0):
                yield _row(of_seed, backend, judge.reference.errors(leaves), judge, certain)


def _compiled(
    spec: Spec,
    model: torch.nn.Module,
    images: torch.Tensor,
    others: tuple[torch.nn.Module, torch.Tensor],
    is_first: bool,
) -> Iterator[tuple[str, list[Leaf], list[LeafEvidence]]]:
    """Backend, leaves, and what is wrong whatever null runs say; that of the mode, which may take long, with one seed alone.

    A program is compiled and called with these images before it is judged on the other values, as in the accuracy check.
    """
    torch_device.set_deterministic(True)
    exact = accuracy.run_exact(spec, model, images)
    eager = iterations.run(spec, copy.deepcopy(model), images, original=model)
    torch_device.set_deterministic(False)
    for backend in dict.fromkeys([BASELINE, spec.options.backend] if is_first else [BASELINE]):
        compiled_spec = replace(spec, options=replace(spec.options, backend=backend))
        torch._dynamo.reset()
        try:
            compiled = copy.deepcopy(model)
            forward = backends.compile_model(compiled_spec, compiled, images)
            run, leaves = accuracy.run_program(spec, model, compiled, images, forward, others, eager)
        except Exception:  # a compiler that fails is a matter of the measurement
            traceback.print_exc()
            continue
        how = accuracy.rule(spec, has_reference=True)
        _, certain = iterations.compare_runs(eager, run, exact, how, repeats_itself=True)
        yield backend, leaves, certain


def _row(
    spec: Spec, run: str, errors: Errors, judge: strict_verdict.Judge, certain: Sequence[LeafEvidence] = ()
) -> HealthyRun:
    judged = verdict.judge(errors, judge.nulls, judge.base)
    undecided = sum(leaf.strict is None for leaf in judged.leaves)
    needed = (math.inf, certain[0].leaf, verdict.MISMATCH) if certain else verdict.needed(errors, judge.nulls)
    strict = "fail" if certain else judged.strict
    return HealthyRun(spec.seed, run, *needed, judge.base, strict, len(judged.leaves), undecided)


def study(spec: Spec, run: RunOptions, device_number: int | None) -> list[dict[str, Any]]:
    """The runs of one model and mode, a `HealthyRun` each."""
    setup = Setup.of(run, Cache(run.cache), spec.requested_batch_size, device_number)
    return [asdict(each) for each in runs(spec, setup)]
