"""One trial of a diagnosis: the accuracy check's verdict on a variant of a cell, with one seed.

    python -m timmgate.worker --diagnose '{"spec": {...}, "variant": {"name": "eager", ...}, ...}'

Reference and null runs are made by the first trial and kept for the others.
"""

import copy
import hashlib
import json
import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from timmgate.core.diagnosis import TrialRequest
from timmgate.core.files import write_atomically
from timmgate.core.protocol import Reporter
from timmgate.core.spec import Mode, Spec
from timmgate.core.verdict import status_by_rule
from timmgate.worker import accuracy, backends, iterations, strict_verdict, torch_device
from timmgate.worker.compile_cache import SeededCache
from timmgate.worker.diagnose import applications, graphs, places, tricks
from timmgate.worker.iterations import Result, Run, kept
from timmgate.worker.iterations import run as run_iterations
from timmgate.worker.strict_verdict import Judge
from timmgate.worker.training_step import Setup, fresh, iterate, make

COMPILER_OPTIONS = ("backend", "freezing", "compile_mode", "cudagraphs", "inductor_config")
"""Options of a mode that reference, eager and null runs do not depend on."""

TIMED_ITERATIONS = 3
"""Iterations that must not compile again, of a cell that failed in its performance check."""

UNCACHED = {"fx_graph_cache": False, "fx_graph_remote_cache": False}
"""Compiled graphs are not taken from a cache: its keys know neither tricks nor what is left out. Kernels may be."""


def run(request: TrialRequest, reporter: Reporter) -> None:
    """Judge the variant, or search the places, and report stages, columns and result."""
    spec, policy = request.variant.of(request.spec), request.run
    torch.set_num_threads(policy.threads)
    setup = Setup.of(policy, SeededCache(policy.cache, policy.toolchain), request.batch_size, request.device_number)
    try:
        backends.check_inductor_config(request.variant.settings)
    except backends.InductorOptionError as error:
        reporter.result("not_applicable", "setting", str(error))
        return
    with torch.set_grad_enabled(spec.options.training), backends.configured(spec), uncached():
        if request.known is not None:
            place = places.search(spec, setup, request, reporter)
            if place and place.direction != places.RAISED and graphs.can_be_searched(spec):
                graphs.search(spec, setup, place, request, reporter)
            reporter.result("pass")
            return
        try:
            judge(spec, setup, request, reporter)
        except Exception as error:
            reporter.columns(raised_in=raised_in(error))
            raise


def judge(spec: Spec, setup: Setup, request: TrialRequest, reporter: Reporter) -> None:
    """Compile and run the variant, and report the verdict on it; where no wrong result is looked for, that it ran."""
    reporter.stage("load")
    torch_device.set_deterministic(True)
    model, images = make(spec, setup)
    reporter.stage("reference")
    others = strict_verdict.other_values(spec, model, images) if setup.strict else None
    known = None if request.cause else expected(spec, setup, model, images, others, request.kept)
    reporter.stage("compile")
    torch_device.set_deterministic(False)
    with tricks.TRICKS[request.variant.trick](), applications.counted(request.variant, reporter) as begin:
        eager = known and known.eager
        compiled, strict_leaves = run_compiled(spec, setup, model, images, others, eager, reporter, begin)
        if known is None:
            reporter.result("pass")
            return
        reporter.stage("compare")
        how = accuracy.rule(spec, known.reference is not None)
        leaves, certain = iterations.compare_runs(known.eager, compiled, known.reference, how, known.repeats_itself)
        first_calls = accuracy.doubted(spec, leaves, compiled.leaves) if known.repeats_itself and not certain else None
        leaves += certain
    worst = max(leaves, key=lambda leaf: leaf.margin)
    reporter.columns(margin=worst.margin, worst_leaf=worst.leaf)
    status, strict, message = "pass" if all(leaf.accuracy for leaf in leaves) else "fail_accuracy", None, worst.message
    if known.judge:
        found = accuracy.with_certain(known.judge.judge(strict_leaves), certain)
        found = accuracy.with_first_calls(found, spec, model, images, first_calls)
        strict = found.strict
        message = message or next((leaf.message for leaf in found.leaves if leaf.strict is False), "")
        reporter.columns(strict=strict, strict_margin=found.margin, strict_worst_leaf=found.worst_leaf)
    status, _ = status_by_rule(status, strict, request.run.accuracy_rule)
    reporter.result(status, None if status == "pass" else "comparison", message if status != "pass" else None)


def run_compiled(
    spec: Spec,
    setup: Setup,
    model: torch.nn.Module,
    images: torch.Tensor,
    others: tuple[torch.nn.Module, torch.Tensor] | None,
    eager: Run | None,
    reporter: Reporter,
    begin: Callable[[], None],
) -> tuple[Run, Result]:
    """As `accuracy.run_compiled`, and in a performance check some iterations more that must not compile anything."""
    with backends.compiling(spec, setup.cache, reporter):
        begin()
        compiled = copy.deepcopy(model)
        forward = backends.compile_model(spec, compiled, images)
        found, strict = accuracy.run_program(spec, model, compiled, images, forward, others, eager)
        backends.check_compiled(spec)
        found, strict = replace(found, leaves=kept(found.leaves)), kept(strict)
        if spec.check == "performance":
            with torch.compiler.set_stance("fail_on_recompile"):
                again = fresh(spec, images)
                for _ in range(TIMED_ITERATIONS):
                    iterate(spec, compiled, forward, again)
        return found, strict


@dataclass(frozen=True)
class Expected:
    """What a compiled run is held against: eager and float64, and null runs, if the rule takes any.

    `repeats_itself` is whether two eager runs are equal.
    """

    eager: Run
    reference: Run | None
    judge: Judge | None
    repeats_itself: bool


def expected(
    spec: Spec,
    setup: Setup,
    model: torch.nn.Module,
    images: torch.Tensor,
    others: tuple[torch.nn.Module, torch.Tensor] | None,
    folder: Path,
) -> Expected:
    """What trials with the same model, images and eager mode have in common, out of the folder or made now.

    Null runs are made of `others`, if there are any.
    """
    defaults = {name: getattr(Mode(), name) for name in COMPILER_OPTIONS}
    plain = replace(spec, options=replace(spec.options, **defaults))
    about = json.dumps([plain.to_dict(), setup.batch_size, setup.strict, torch.get_num_threads()], sort_keys=True)
    file = folder / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.pickle"
    if file.is_file():
        return pickle.loads(file.read_bytes())
    try:
        reference = accuracy.run_exact(spec, model, images)
    except Exception:
        traceback.print_exc()
        reference = None
    eager = run_iterations(spec, copy.deepcopy(model), images, original=model)
    repeats_itself = accuracy.repeats_itself(spec, eager, run_iterations(spec, copy.deepcopy(model), images))
    found = Expected(eager, reference, null_runs(spec, *others) if others else None, repeats_itself)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda scratch: scratch.write_bytes(pickle.dumps(found)))
    return found


def null_runs(spec: Spec, model: torch.nn.Module, images: torch.Tensor) -> Judge | None:
    """What null runs allow; None where they are not possible, as in the accuracy check."""
    try:
        return strict_verdict.prepare(spec, model, images)
    except Exception:
        traceback.print_exc()
        return None


@contextmanager
def uncached() -> Iterator[None]:
    """Compile graphs although they were compiled before."""
    known = {name: value for name, value in UNCACHED.items() if name in torch._inductor.config._config}
    functorch = {"enable_autograd_cache": False} if hasattr(torch._functorch.config, "enable_autograd_cache") else {}
    with torch._inductor.config.patch(known), torch._functorch.config.patch(functorch):
        yield


def raised_in(error: BaseException) -> str | None:
    """The innermost place in torch's own files that an exception, or the first one that led to it, went through."""
    root, places = Path(torch.__file__).parent, []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(root)]
        if frames:
            places.append(f"torch/{Path(frames[-1].filename).relative_to(root)}:{frames[-1].lineno} {frames[-1].name}")
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return places[-1] if places else None
