"""The accuracy check: does the compiled model compute what eager computes, judged against float64?

The sequence is that of benchmarks/dynamo, with the protocol's repairs: a float64 reference, two eager runs that must agree,
the compiled run, and a comparison of every tensor.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch._dynamo.utils import counters

from timmgate.core.protocol import Reporter
from timmgate.core.spec import Spec
from timmgate.worker import backends, models, torch_device
from timmgate.worker.compare import Leaf, Rule, all_finite, compare_leaves
from timmgate.worker.training_step import Setup, fresh, gradient, iterate, load, make_optimizer

ITERATIONS = 2
"""Iterations of a run, of which the last is compared (benchmarks/dynamo --iterations)."""

INFERENCE_TOLERANCE = 1e-3
"""Tolerance at inference, but for freezing (benchmarks/dynamo timm_models)."""

NO_TOLERANCE = Rule(tolerance=0.0)
"""Two eager runs with the same seeds must agree exactly."""

Result = list[Leaf]
"""What one run computed: its output, or its loss, gradients, parameters and buffers."""


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
        eager = run(spec, copy.deepcopy(model), images)
        if bad := not_finite(eager) or not_finite(reference or []):
            reporter.result("eager_not_finite", "NaN or Inf", f"{bad} of eager or of its float64 reference is not finite")
            return
        reporter.stage("eager")
        again = run(spec, copy.deepcopy(model), images)
        if not spec.traits.nondeterministic and (different := differing(eager, again)):
            reporter.result("eager_two_runs_differ", "comparison", f"eager differs from itself in {', '.join(different)}")
            return
        reporter.stage("compile")
        torch_device.set_deterministic(False)  # what is judged is the program that the performance check times
        with backends.compiling(spec, setup.cache, reporter) as first_iteration:
            model = copy.deepcopy(model)
            forward = backends.compile_model(spec, model, images)
            reporter.stage("run")
            compiled = run(spec, model, images, forward, after_first=first_iteration.stop)
        reporter.columns(**backends.statistics())
        reporter.stage("compare")
        judge(spec, eager, compiled, reference, reporter)


def run_reference(spec: Spec, model: torch.nn.Module, images: torch.Tensor, reporter: Reporter) -> Result | None:
    """The same weights and images in float64; None, with the reason in the row, where that is not possible."""
    try:
        reference = run(spec, copy.deepcopy(model).double(), images.double())
    except Exception as error:
        reporter.columns(reference="none", reference_error=f"{type(error).__name__}: {error}")
        return None
    reporter.columns(reference="fp64")
    return reference


def run(
    spec: Spec,
    model: torch.nn.Module,
    images: torch.Tensor,
    forward: Callable[..., Any] | None = None,
    after_first: Callable[[], None] = lambda: None,
) -> Result:
    """Seed, iterate, and return what the last iteration computed. `model` is changed by training."""
    torch_device.seed_everything(spec.seed)
    images, optimizer = fresh(spec, images), make_optimizer(spec, model)
    for number in range(ITERATIONS):
        returned = iterate(spec, model, model if forward is None else forward, images, optimizer)
        if number == 0:
            after_first()
    torch_device.synchronize(spec.device)
    if not spec.options.training:
        return [Leaf("output", "output", returned)]
    return [
        Leaf("loss", "loss", returned),
        *(Leaf(f"gradient.{name}", "gradient", gradient(weight)) for name, weight in model.named_parameters()),
        *(Leaf(f"parameter.{name}", "parameter", weight.detach()) for name, weight in model.named_parameters()),
        *(Leaf(f"buffer.{name}", "buffer", buffer) for name, buffer in model.named_buffers()),
        Leaf("input_gradient", "input_gradient", gradient(images)),
    ]


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
        max_multiplier=spec.options.freezing and spec.options.precision == "bfloat16" and folded,
    )


def not_finite(result: Result) -> str | None:
    """Name of the first leaf with a NaN or Inf; buffers may have them by design, as masks do."""
    return next((leaf.name for leaf in result if leaf.kind != "buffer" and not all_finite(leaf.value)), None)


def differing(eager: Result, again: Result) -> list[str]:
    """Names of up to three leaves in which two runs are not equal."""
    return [leaf.leaf for leaf in compare_leaves(eager, again, None, NO_TOLERANCE) if not leaf.accuracy][:3]


def judge(spec: Spec, eager: Result, compiled: Result, reference: Result | None, reporter: Reporter) -> None:
    """Compare every leaf, report the evidence and the result."""
    how = rule(spec, reference is not None)
    leaves = compare_leaves(eager, compiled, reference, how)
    for leaf in leaves:
        reporter.detail(asdict(leaf))
    failed, worst = [leaf for leaf in leaves if not leaf.accuracy], max(leaves, key=lambda leaf: leaf.margin)
    reporter.columns(
        comparison="cosine" if how.cosine else "error",
        tolerance=how.tolerance,
        leaves=len(leaves),
        leaves_failed=len(failed),
        worst_leaf=worst.leaf,
        margin=worst.margin,
        top1_agreement=top1_agreement(eager, compiled),
    )
    if spec.options.training and spec.traits.nondeterministic:
        reporter.result("pass_due_to_skip", "eager training is not deterministic", "not judged, by the suite's table")
    elif failed:
        reporter.result(
            "fail_accuracy", "comparison", f"{len(failed)} of {len(leaves)} tensors differ; {worst.leaf}: {worst.message}"
        )
    else:
        reporter.result("pass")


def top1_agreement(eager: Result, compiled: Result) -> float | None:
    """Share of images whose largest logit is the same; None unless the output is one tensor of (images, classes)."""
    (logits, *_), (others, *_) = ([leaf.value for leaf in result] for result in (eager, compiled))
    if eager[0].kind != "output" or not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        return None
    return (logits.argmax(1) == others.argmax(1)).double().mean().item()
