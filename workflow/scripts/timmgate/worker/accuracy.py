"""The accuracy check: does the compiled model compute what eager computes, judged against float64?

The sequence is that of benchmarks/dynamo, with the protocol's repairs: a float64 reference, two eager runs that must agree,
the compiled run, and a comparison of every tensor. Null runs and the strict verdict come after it.
"""

import copy
import math
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch._dynamo.utils import counters

from timmgate.core.protocol import Reporter, ReportError
from timmgate.core.spec import Spec
from timmgate.core.verdict import FIRST_CALLS, MISMATCH, CellVerdict, LeafVerdict, Strict, is_certain
from timmgate.worker import backends, iterations, models, strict_verdict, torch_device
from timmgate.worker.compare import LeafEvidence, Rule, all_finite, compare_leaves
from timmgate.worker.iterations import Result, Run, run
from timmgate.worker.resource_errors import is_disk_full, is_out_of_memory
from timmgate.worker.training_step import Setup, load, make

INFERENCE_TOLERANCE = 1e-3
"""Tolerance at inference, but for freezing (benchmarks/dynamo timm_models)."""

NO_TOLERANCE = Rule(tolerance=0.0)
"""Two eager runs with the same seeds must agree exactly."""


def measure(spec: Spec, setup: Setup, reporter: Reporter) -> None:
    """Run the check and report stages, columns, evidence and result."""
    torch.set_num_threads(setup.threads)
    torch_device.set_deterministic(True)
    reporter.stage("load")
    if models.skipped(spec):
        reporter.result("pass_due_to_skip", spec.traits.skip_reason, "not run here, by the suite's table")
        return
    model, images = load(spec, setup, reporter)
    with torch.set_grad_enabled(spec.options.training), backends.configured(spec):
        reporter.stage("reference")
        reference = run_reference(spec, model, images, reporter)
        reporter.stage("eager")
        eager = run(spec, copy.deepcopy(model), images, original=model)
        if bad := not_finite(eager.leaves) or not_finite(reference.leaves if reference else []):
            reporter.result("eager_not_finite", "NaN or Inf", f"{bad} of eager or of its float64 reference is not finite")
            return
        reporter.stage("eager")
        again = run(spec, copy.deepcopy(model), images)
        different = [] if is_nondeterministic(spec) else differing(eager.leaves, again.leaves)
        if different and not setup.strict:
            reporter.result("eager_two_runs_differ", "comparison", _differs_from_itself(different))
            return
        others = strict_verdict.other_values(spec, model, images) if setup.strict else None
        reporter.stage("compile")
        torch_device.set_deterministic(False)  # what is judged is the program that the performance check times
        compiled, strict_leaves = run_compiled(spec, setup, model, images, others, eager, reporter)
        reporter.stage("compare")
        how = rule(spec, reference is not None)
        is_alike = not different and not is_nondeterministic(spec)
        leaves, certain = iterations.compare_runs(eager, compiled, reference, how, is_alike)
        leaves += certain
        report_dynamo(spec, leaves, eager.leaves, compiled.leaves, reference is not None, reporter)
        writes = replace(eager, first=[], leaves=[])
        first_calls = doubted(spec, leaves, compiled.leaves) if is_alike and not certain else None
        del eager, again, compiled, reference
        strict = {}
        if setup.strict:

            def keep(strict: dict[str, LeafVerdict]) -> None:
                """Say what the result is should a limit end the check from here on."""
                details = [asdict(leaf) for leaf in with_strict(leaves, strict)]
                reporter.result_so_far(*result(spec, leaves, different), details)

            judged = Judged(model, images, first_calls, *others, strict_leaves)
            strict = judge_strictly(spec, setup, judged, certain, writes, reporter, keep)
        for leaf in with_strict(leaves, strict):
            reporter.detail(asdict(leaf))
        reporter.result(*result(spec, leaves, different))


def run_compiled(
    spec: Spec,
    setup: Setup,
    model: torch.nn.Module,
    images: torch.Tensor,
    others: tuple[torch.nn.Module, torch.Tensor] | None,
    eager: Run | None,
    reporter: Reporter,
) -> tuple[Run, Result]:
    """Compile a copy of the model, and run it; the arguments are as of `run_program`."""
    compiled = copy.deepcopy(model)
    with backends.compiling(spec, setup.cache, reporter) as first_iteration:
        forward = backends.compile_model(spec, compiled, images)
        reporter.stage("run")

        def after_run() -> None:
            reporter.columns(**backends.statistics())
            backends.check_compiled(spec)

        return run_program(spec, model, compiled, images, forward, others, eager, first_iteration.stop, after_run)


def run_program(
    spec: Spec,
    model: torch.nn.Module,
    compiled: torch.nn.Module,
    images: torch.Tensor,
    forward: Callable[..., Any],
    others: tuple[torch.nn.Module, torch.Tensor] | None,
    eager: Run | None,
    after_first: Callable[[], None] = lambda: None,
    after_run: Callable[[], None] = lambda: None,
) -> tuple[Run, Result]:
    """Run a compiled copy of the model as eager is run, then as null runs are, on `others`, if there are any.

    Where the iterations of `eager` differ, as with an optimizer or random masks, it is run twice from the same weights: else
    what goes wrong in one call alone would not be seen. At inference, buffers that eager writes to get the values that they
    had; others are what the program has made of them.
    """
    found = run(spec, compiled, images, forward, original=model, after_first=after_first)
    may_reuse = backends.reuses_outputs(spec)
    after_run()

    def begin_again() -> None:
        if spec.options.training:
            models.set_state(compiled, models.state(model))
        elif eager:
            iterations.restore(found.written & eager.written, compiled, model)

    def once_more() -> Result:
        begin_again()
        kinds = {leaf.kind for leaf in found.first}
        return iterations.kept(leaf for leaf in run(spec, compiled, images, forward).leaves if leaf.kind in kinds)

    if eager and not iterations.are_equal(eager):
        found, again = iterations.before_another(found, compiled, once_more, may_reuse)
        found = replace(found, again=again)
    if others is None:
        return found, []

    def strictly() -> Result:
        begin_again()
        return strict_verdict.run_compiled(spec, others[0], compiled, others[1], forward)

    found, leaves = iterations.before_another(found, compiled, strictly, may_reuse)
    if spec.options.training and not backends.has_own_tensors(spec):  # no optimizer steps there
        found = replace(found, written=found.written | iterations.changed_parameters(compiled, others[0]))
    return found, leaves


def run_reference(spec: Spec, model: torch.nn.Module, images: torch.Tensor, reporter: Reporter) -> Run | None:
    """The same weights and images in float64; None, with the reason in the row, where that is not possible."""
    try:
        reference = run_exact(spec, model, images)
    except Exception as error:
        reporter.columns(reference="none", reference_error=f"{type(error).__name__}: {error}")
        return None
    reporter.columns(reference="fp64")
    return reference


def run_exact(spec: Spec, model: torch.nn.Module, images: torch.Tensor) -> Run:
    """A run of a copy of the model in float64, with the random masks of a run in float32."""
    with torch_device.NarrowDraws():
        return run(spec, models.in_float64(model), images.double())


def rule(spec: Spec, has_reference: bool) -> Rule:
    """How the leaves are judged (benchmarks/dynamo's choice of tolerance, cosine and multipliers)."""
    if spec.options.training:
        tolerance = spec.traits.training_tolerance
    else:
        tolerance = spec.traits.freezing_tolerance if spec.options.freezing else INFERENCE_TOLERANCE
    folded = counters["inductor"]["binary_folding_conv"] > 0
    return Rule(
        tolerance=tolerance,
        cosine=spec.options.cosine or not has_reference,
        equal_nan=spec.options.precision != "float32",
        larger_multiplier=spec.traits.larger_multiplier,
        any_size=spec.options.dynamic,
        max_multiplier=spec.options.freezing and spec.options.precision == "bfloat16" and folded,
    )


def not_finite(result: Result) -> str | None:
    """Name of the first leaf with a NaN or Inf; buffers may have them by design, as masks do."""
    return next((leaf.name for leaf in result if leaf.kind != "buffer" and not all_finite(leaf.value)), None)


def differing(eager: Result, again: Result) -> list[str]:
    """Names of up to three leaves in which two runs are not equal."""
    return [leaf.leaf for leaf in compare_leaves(eager, again, None, NO_TOLERANCE) if not leaf.accuracy][:3]


def is_nondeterministic(spec: Spec) -> bool:
    """Whether the suite's table says that eager does not repeat itself, which it says of training."""
    return spec.options.training and spec.traits.nondeterministic


def repeats_itself(spec: Spec, eager: Run, again: Run) -> bool:
    """Whether two eager runs are equal, and nothing says that others may not be."""
    return not is_nondeterministic(spec) and not differing(eager.leaves, again.leaves)


def report_dynamo(
    spec: Spec, leaves: list[LeafEvidence], eager: Result, compiled: Result, has_reference: bool, reporter: Reporter
) -> None:
    """The columns of the dynamo rule."""
    how, worst = rule(spec, has_reference), max(leaves, key=lambda leaf: leaf.margin)
    reporter.columns(
        comparison="cosine" if how.cosine else "error",
        tolerance=how.tolerance,
        leaves=len(leaves),
        leaves_failed=sum(not leaf.accuracy for leaf in leaves),
        worst_leaf=worst.leaf,
        margin=worst.margin,
        top1_agreement=top1_agreement(eager, compiled),
    )


def result(spec: Spec, leaves: list[LeafEvidence], different: list[str]) -> tuple[str, str | None, str | None]:
    """Status, cause and message of the dynamo rule."""
    failed, worst = [leaf for leaf in leaves if not leaf.accuracy], max(leaves, key=lambda leaf: leaf.margin)
    if different:
        return "eager_two_runs_differ", "comparison", _differs_from_itself(different)
    if is_nondeterministic(spec):
        return "pass_due_to_skip", "eager training is not deterministic", "not judged, by the suite's table"
    if failed:
        message = f"{len(failed)} of {len(leaves)} tensors differ; {worst.leaf}: {worst.message}"
        return "fail_accuracy", "comparison", message
    return "pass", None, None


def _differs_from_itself(leaves: list[str]) -> str:
    return f"eager differs from itself in {', '.join(leaves)}"


def doubted(spec: Spec, leaves: list[LeafEvidence], compiled: Result) -> Result | None:
    """What came of the calls that the dynamo rule judges, where that fails: only they may have been wrong.

    The strict rule does not look at them. With an optimizer another run from the same weights tells.
    """
    fails = any(leaf.accuracy is False for leaf in leaves)
    return iterations.without_parameters(compiled) if fails and spec.optimizer() == "none" else None


def with_first_calls(
    found: CellVerdict, spec: Spec, model: torch.nn.Module, images: torch.Tensor, compiled: Result | None
) -> CellVerdict:
    """The verdict with what is wrong in the calls that are `doubted`, if any are; as it was where these cannot be judged."""
    if compiled is None or found.strict == "fail":
        return found
    try:
        first = strict_verdict.examine(spec, model, images, compiled, strict_verdict.last_iteration)
    except Exception:
        traceback.print_exc()
        return found
    wrong = (leaf for leaf in first.leaves if leaf.strict is False)
    return with_wrong(found, [replace(leaf, leaf=f"{FIRST_CALLS}.{leaf.leaf}") for leaf in wrong])


@dataclass(frozen=True)
class Judged:
    """What the strict rule looks at: what came of values that the program had not seen before, and of what is `doubted`."""

    model: torch.nn.Module
    images: torch.Tensor
    doubted: Result | None
    other_model: torch.nn.Module
    other_images: torch.Tensor
    compiled: Result

    def of_other_values(self, spec: Spec) -> CellVerdict:
        """The verdict on the one."""
        return strict_verdict.examine(spec, self.other_model, self.other_images, self.compiled)

    def of_all(self, spec: Spec, found: CellVerdict) -> CellVerdict:
        """That verdict with the other."""
        return with_first_calls(found, spec, self.model, self.images, self.doubted)


def judge_strictly(
    spec: Spec,
    setup: Setup,
    judged: Judged,
    certain: list[LeafEvidence],
    writes: Run,
    reporter: Reporter,
    keep: Callable[[dict[str, LeafVerdict]], None],
) -> dict[str, LeafVerdict]:
    """The strict verdict on every leaf, by name; nothing, with the reason in the row, where null runs are not possible.

    `certain` is what is wrong whatever null runs say, and `writes` what eager writes to. `keep` says what is known when a
    stage begins.

    A failure may be chance: then two of three seeds decide, and until these are tried it is undecided.
    """

    def examine(seed: int) -> Strict:
        """The verdict with another seed; it compiles again, as weights may be part of the program.

        A program that raises has failed, unless memory or a disk is full; with anything else that raises it is undecided.
        """
        other, of_program = replace(spec, seed=seed), False
        try:
            model, images = make(other, setup)
            others = strict_verdict.other_values(other, model, images)
            reporter.stage("compile")
            keep(leaves)
            of_program = True
            found, compiled = run_compiled(other, setup, model, images, others, writes, reporter)
            of_program = False
            reporter.stage("null_runs")
            keep(leaves)
            first_calls = None if judged.doubted is None else iterations.without_parameters(found.leaves)
            again = Judged(model, images, first_calls, *others, compiled)
            return again.of_all(other, again.of_other_values(other)).strict
        except Exception as error:
            traceback.print_exc()
            reporter.columns(strict_error=f"{type(error).__name__}: {error}")
            is_ours = isinstance(error, ReportError) or is_out_of_memory(error) or is_disk_full(error)
            return "fail" if of_program and not is_ours else "undecided"

    reporter.stage("null_runs")
    keep({})
    try:
        found = with_certain(judged.of_other_values(spec), certain)
    except Exception as error:
        traceback.print_exc()
        reporter.columns(strict_error=f"{type(error).__name__}: {error}")
        return {}
    leaves = report_strict(found, reporter)
    if judged.doubted is not None:
        keep(leaves)
        found = judged.of_all(spec, found)
        leaves = report_strict(found, reporter)
    if found.strict == "fail" and not certain and counts_its_calls(spec, judged, writes):
        reporter.columns(strict="undecided", strict_error=COUNTS_ITS_CALLS)
        return leaves
    strict, of_seeds = strict_verdict.after_seeds(found, examine, spec.seed)
    message = f"{found.worst_leaf}: {leaves[found.worst_leaf].message}" if strict == "fail" else None
    reporter.columns(strict=strict, strict_of_seeds=of_seeds, strict_message=message)
    return leaves


COUNTS_ITS_CALLS = "eager fails, too, where it is called as often: the model keeps something of its calls that is no buffer"
"""`strict_error` where that is so."""


def counts_its_calls(spec: Spec, judged: Judged, writes: Run) -> bool:
    """Whether eager fails too where it is called as often as the program was: null runs are of models that were not.

    Mostly it gives what it gives in its first call, and no null runs are needed to tell.
    """
    again, others = copy.deepcopy(judged.model), (judged.other_model, judged.other_images)
    try:
        _, leaves = run_program(spec, judged.model, again, judged.images, again, others, writes)
        if not differing(strict_verdict.run(spec, copy.deepcopy(others[0]), others[1]), leaves):
            return False
        return replace(judged, compiled=leaves).of_other_values(spec).strict == "fail"
    except Exception:
        traceback.print_exc()
        return False


def report_strict(found: CellVerdict, reporter: Reporter) -> dict[str, LeafVerdict]:
    """The columns of the strict rule, and its leaves. What may be chance is undecided until other seeds are tried."""
    reporter.columns(
        strict="undecided" if found.strict == "fail" and not is_certain(found) else found.strict,
        strict_margin=found.margin,
        strict_worst_leaf=found.worst_leaf,
        strict_worst_statistic=found.worst_statistic,
        strict_of_seeds=[found.strict],
        leaves_undecided=sum(leaf.strict is None for leaf in found.leaves),
        null_runs=found.null_runs,
        null_scatter=found.null_scatter,
    )
    return {leaf.leaf: leaf for leaf in found.leaves}


def with_certain(found: CellVerdict, certain: list[LeafEvidence]) -> CellVerdict:
    """The verdict with what is wrong by every rule, if anything is."""
    return with_wrong(
        found,
        [LeafVerdict(leaf.leaf, leaf.kind, False, leaf.margin or math.inf, MISMATCH, 0.0, leaf.message) for leaf in certain],
    )


def with_wrong(found: CellVerdict, wrong: list[LeafVerdict]) -> CellVerdict:
    """The verdict with further leaves that are wrong, if there are any."""
    if not wrong:
        return found
    leaves = (*found.leaves, *wrong)
    worst = max((leaf for leaf in leaves if leaf.strict is False), key=lambda leaf: leaf.margin)
    about = {"margin": worst.margin, "worst_leaf": worst.leaf, "worst_statistic": worst.statistic}
    return replace(found, strict="fail", leaves=leaves, **about)


def with_strict(leaves: list[LeafEvidence], strict: dict[str, LeafVerdict]) -> Iterator[LeafEvidence]:
    """The evidence with the strict verdicts, then the leaves that only the strict rule looks at."""
    for leaf in leaves:
        found = strict.get(leaf.leaf)
        errors = _errors(found) if found and found.strict is False and leaf.accuracy else {}
        yield replace(leaf, **_strict_columns(found), **errors)
    known = {leaf.leaf for leaf in leaves}
    for name, found in strict.items():
        if name not in known:
            yield LeafEvidence(name, found.kind, margin=None, accuracy=None, **_errors(found), **_strict_columns(found))


def _errors(found: LeafVerdict) -> dict[str, Any]:
    """Errors in the iteration that the strict rule looks at."""
    return {"compiled_relative_error": found.rms, "eager_relative_error": found.eager_rms}


def _strict_columns(found: LeafVerdict | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        "strict": found.strict,
        "strict_margin": found.margin,
        "strict_statistic": found.statistic,
        "strict_message": found.message,
        "null_rms": found.null_rms,
    }


def top1_agreement(eager: Result, compiled: Result) -> float | None:
    """Share of images whose largest logit is the same; None unless the output is one tensor of (images, classes)."""
    logits, others = eager[0].value, compiled[0].value
    if not all(isinstance(each, torch.Tensor) and each.is_floating_point() for each in (logits, others)):
        return None
    if logits.ndim != 2 or not logits.shape[1] or (others.shape, others.device) != (logits.shape, logits.device):
        return None
    return (logits.argmax(1) == others.argmax(1)).sum().item() / len(logits)
