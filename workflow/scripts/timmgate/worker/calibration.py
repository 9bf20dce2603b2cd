"""How far runs that are known to be right come from the strict limit: what `core.verdict` has its multipliers from.

Null runs are judged by those independent of them; eager with another number of threads, AOTAutograd without a
compiler and the backend of the mode are judged by all of them.
"""

import copy
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from timmgate.core import verdict
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.core.verdict import Errors, NullRun
from timmgate.worker import backends, iterations, null_runs, strict_verdict, torch_device
from timmgate.worker.compare import Leaf
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
    torch_device.set_deterministic(False)  # as null runs and compiled are in the accuracy check
    setup.cache.open()
    with torch.set_grad_enabled(spec.options.training), backends.configured(spec):
        for number in range(SEEDS):
            of_seed = replace(spec, seed=spec.seed + number)
            model, images = make(of_seed, setup)
            others = strict_verdict.other_values(of_seed, model, images)
            judge = strict_verdict.prepare(of_seed, *others)
            for null, independent in verdict.left_out(judge.nulls):
                yield _row(of_seed.seed, null.family, null.errors, independent, judge.base)
            for name, leaves in _compared_with_all(of_seed, model, images, others, judge.reference.dtype, number == 0):
                yield _row(of_seed.seed, name, judge.reference.errors(leaves), judge.nulls, judge.base)


def _compared_with_all(
    spec: Spec,
    model: torch.nn.Module,
    images: torch.Tensor,
    others: tuple[torch.nn.Module, torch.Tensor],
    dtype: torch.dtype,
    is_first: bool,
) -> Iterator[tuple[str, list[Leaf]]]:
    """Runs that are no null runs; the backend of the mode, which may take long to compile, with the first seed alone.

    A program is compiled and called with these images before it is judged on the other values, as in the accuracy check.
    """
    yield from null_runs.null_runs(partial(strict_verdict.run, spec), *others, dtype, spec.seed, ["threads"])
    for backend in dict.fromkeys([BASELINE, spec.options.backend] if is_first else [BASELINE]):
        compiled_spec = replace(spec, options=replace(spec.options, backend=backend))
        torch._dynamo.reset()
        try:
            compiled = copy.deepcopy(model)
            forward = backends.compile_model(compiled_spec, compiled, images)
            iterations.run(spec, compiled, images, forward)
            leaves = strict_verdict.run_compiled(spec, others[0], compiled, others[1], forward)
        except Exception:  # a compiler that fails is a matter of the measurement
            traceback.print_exc()
            continue
        yield backend, leaves


def _row(seed: int, run: str, errors: Errors, nulls: list[NullRun], base: float) -> HealthyRun:
    judged = verdict.judge(errors, nulls, base)
    undecided = sum(leaf.strict is None for leaf in judged.leaves)
    return HealthyRun(seed, run, *verdict.needed(errors, nulls), base, judged.strict, len(judged.leaves), undecided)


def study(spec: Spec, run: RunOptions, device_number: int | None) -> list[dict[str, Any]]:
    """The runs of one model and mode, a `HealthyRun` each."""
    about = run.weights, run.timing_limit, run.memory_bytes, device_number
    setup = Setup(run.threads, Cache(run.cache), spec.requested_batch_size, *about, strict=True)
    return [asdict(each) for each in runs(spec, setup)]
