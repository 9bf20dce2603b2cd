"""The checks of a cell: one record for each, with everything that the other rooms must know of it.

A check runs in the worker module of its name. To add one, write that module and its record here.
"""

from dataclasses import dataclass
from functools import cached_property

from timmgate.core.described import Column, columns, types

ANY_FAILURE = ("infra_error", "OOM")
"""Statuses of a failure that is not the model's, and of running out of memory, where nothing better is known."""


@dataclass(frozen=True)
class Stage:
    """A stage of a check, and whose a failure in it is.

    `failure` and `out_of_memory` are the status words of a failure, and of one for lack of memory, in the first visit of
    the stage; the last word holds for every later visit.
    """

    name: str
    failure: tuple[str, ...] = ("infra_error",)
    out_of_memory: tuple[str, ...] = ("OOM",)

    def statuses(self, visit: int) -> tuple[str, str]:
        """Both words for the visit with this number, from 1."""
        number = visit - 1
        return self.failure[min(number, len(self.failure) - 1)], self.out_of_memory[min(number, len(self.out_of_memory) - 1)]


IMPORT = Stage("import")
LOAD = Stage("load", ("model_fail_to_load",))
EAGER_1ST = ("eager_1st_run_fail", "eager_1st_run_OOM")
REFERENCE = Stage("reference", *((word,) for word in EAGER_1ST))
EAGER_2ND = ("eager_2nd_run_fail", "eager_2nd_run_OOM")
EAGER_TWICE = Stage("eager", *zip(EAGER_1ST, EAGER_2ND, strict=True))
NULL_RUNS = Stage("null_runs", *((word,) for word in EAGER_2ND))


def of_compiler(*names: str) -> tuple[Stage, ...]:
    """Stages that run the compiler or what it compiled."""
    return tuple(Stage(name, ("fail_to_run",)) for name in names)


@dataclass(frozen=True)
class Check:
    """One check.

    * `name`: also that of its worker module, and of the column with its status.
    * `columns`: what its worker may report of a cell; `details` names the table of many rows a cell that it may report,
      and `detail_columns` are its columns.
    * `stages`: in order of first appearance. Any other stage is nobody's fault that is known: `ANY_FAILURE`.
    * `width`: of the numbers that it keeps, in units of float32, for the estimate of memory.
    * `shrinks`: whether it is tried again with a smaller batch when memory runs out.
    * `suite_batch`: whether its batch size is the suite's; else it is `spec.ACCURACY_BATCH_SIZE`.
    * `cut_short`: the column for the limit that ended a check which had a result all the same; None: it has none.
    * `estimator`: module of the supervisor whose `estimate(spec, details)` adds columns to a result; None: none.
    """

    name: str
    columns: tuple[Column, ...]
    details: str
    detail_columns: tuple[Column, ...]
    stages: tuple[Stage, ...]
    width: int
    shrinks: bool = False
    suite_batch: bool = False
    cut_short: str | None = None
    estimator: str | None = None

    @property
    def module(self) -> str:
        """The worker module with its function `measure`."""
        return f"timmgate.worker.{self.name}"

    @cached_property
    def detail_types(self) -> dict[str, str]:
        """By name, the type of each column of its details."""
        return types(self.detail_columns)

    def statuses(self, stage: str | None, visit: int = 1) -> tuple[str, str]:
        """Status words of a failure in this stage, and of one for lack of memory."""
        for each in self.stages:
            if each.name == stage:
                return each.statuses(visit)
        return ANY_FAILURE


GRAPH = columns(
    "graph",
    [
        ("graph_breaks", "int64", "", "graph breaks of the model"),
        ("graph_break_reasons", "list<string>", "", "each of them in words"),
        ("unique_graphs", "int64", "", "graphs that dynamo captured"),
        ("ops_captured", "int64", "", "operators in them"),
        ("fallbacks_to_eager", "int64", "", "frames that dynamo began to capture and left to Python"),
        ("recompiles", "int64", "", "compilations of code that was compiled before, as for another batch size"),
        ("cudagraph_skips", "int64", "", "graphs that inductor would not run as CUDA graphs"),
    ],
)
"""What both checks count while the model is compiled; of a cell that has both, the figures of the later one count."""

ACCURACY = Check(
    name="accuracy",
    columns=columns(
        "accuracy",
        [
            (
                "accuracy",
                "string",
                "",
                "status of the accuracy check by the dynamo rule; `accuracy_by_rule` decides",
            ),
            ("reference", "string", "", "what both runs are compared with: fp64, or none if that failed"),
            ("reference_error", "string", "", "why there is no float64 reference"),
            ("comparison", "string", "", "error or cosine: how the leaves were judged"),
            ("tolerance", "float64", "", "tolerance of the dynamo rule"),
            ("leaves", "int64", "", "number of compared tensors"),
            ("leaves_failed", "int64", "", "number of compared tensors that fail the dynamo rule"),
            ("worst_leaf", "string", "", "compared tensor with the largest margin"),
            ("margin", "float64", "", "largest error over allowed error, 1 is the limit"),
            ("top1_agreement", "float64", "", "share of images whose largest logit is the same in eager and compiled"),
            ("strict", "string", "", "pass, fail or undecided: the verdict by null runs; null where there are none"),
            ("strict_margin", "float64", "", "largest statistic of an error over its limit by null runs, 1 is the limit"),
            ("strict_worst_leaf", "string", "", "compared tensor that it is of"),
            ("strict_worst_statistic", "string", "", "rms, max, projection, mean, contrast, slice_... or mismatch"),
            ("strict_message", "string", "", "why the strict verdict is fail"),
            ("strict_of_seeds", "list<string>", "", "the verdict with each seed that was tried; two of three decide"),
            ("strict_error", "string", "", "why there is no strict verdict"),
            ("leaves_undecided", "int64", "", "compared tensors whose null runs scatter too much to prove anything"),
            ("null_runs", "int64", "", "number of null runs"),
            (
                "null_scatter",
                "float64",
                "",
                "largest margin of a null run, judged by those independent of it: 1 is the limit",
            ),
        ],
    )
    + GRAPH,
    details="evidence",
    detail_columns=columns(
        "evidence",
        [
            ("leaf", "string", "", "compared tensor"),
            (
                "kind",
                "string",
                "",
                "output, prediction, loss, gradient, parameter, buffer, input_gradient, cotangent_gradient (of a second, "
                "random loss), written (what only one of both has written to) or type (outputs of another class of tensors)",
            ),
            ("shape", "list<int64>", "", "shape"),
            ("dtype", "string", "", "dtype"),
            ("numel", "int64", "", "number of elements"),
            ("eager_rmse", "float64", "", "root mean square error of eager against float64"),
            ("compiled_rmse", "float64", "", "root mean square error of compiled against float64"),
            (
                "eager_relative_error",
                "float64",
                "",
                "norm of eager minus float64, over the norm of float64; in the same run as the next",
            ),
            (
                "compiled_relative_error",
                "float64",
                "",
                "norm of compiled minus float64, over the norm of float64; in the strict rule's run where that alone fails",
            ),
            ("error_ratio", "float64", "", "compiled_rmse over eager_rmse"),
            ("allowed_error", "float64", "", "compiled_rmse that the dynamo rule allows"),
            ("margin", "float64", "", "error over allowed error by the dynamo rule, 1 is the limit"),
            ("max_abs_error", "float64", "", "largest absolute difference of compiled and eager"),
            ("cosine", "float64", "", "cosine similarity of compiled and eager"),
            ("eager_nan", "int64", "", "NaN elements of eager"),
            ("eager_inf", "int64", "", "infinite elements of eager"),
            ("compiled_nan", "int64", "", "NaN elements of compiled"),
            ("compiled_inf", "int64", "", "infinite elements of compiled"),
            ("accuracy", "bool", "", "passes the dynamo rule; null where only the strict rule looks at it"),
            ("message", "string", "", "why it fails"),
            ("strict", "bool", "", "passes the strict rule; null is undecided, or no null runs"),
            ("strict_margin", "float64", "", "largest statistic of its error over the limit by null runs, 1 is the limit"),
            ("strict_statistic", "string", "", "which statistic that is"),
            ("strict_message", "string", "", "why it fails the strict rule, or is undecided"),
            ("null_rms", "float64", "", "largest root mean square error of a null run, over the tensor's own"),
        ],
    ),
    stages=(IMPORT, LOAD, REFERENCE, EAGER_TWICE, *of_compiler("compile", "run"), Stage("compare"), NULL_RUNS),
    width=2,  # only this check has a float64 reference
    cut_short="strict_error",
)

PERFORMANCE = Check(
    name="performance",
    columns=(
        *columns(
            "performance",
            [
                ("performance", "string", "", "status of the performance check"),
                (
                    "verdict",
                    "string",
                    "",
                    "faster, slower, same or ambiguous: the speedup's interval against the noise floor",
                ),
                (
                    "speedup",
                    "float64",
                    "",
                    "exp of the median of log(eager time / compiled time) over paired samples; of several processes the "
                    "geometric mean",
                ),
                ("speedup_ci_low", "float64", "", "lower end of the speedup's 95 % interval; of one process, in that one"),
                ("speedup_ci_high", "float64", "", "upper end of the same"),
                (
                    "noise_floor",
                    "float64",
                    "",
                    "difference of eager from itself that the samples do not rule out, at least 0.01",
                ),
                ("samples", "int64", "", "number of paired samples"),
                ("timing_processes", "int64", "", "in how many fresh processes they were taken"),
                ("eager_ms", "float64", "ms", "median duration of an eager iteration"),
                ("eager_p10_ms", "float64", "ms", "10th percentile of the same"),
                ("eager_p90_ms", "float64", "ms", "90th percentile of the same"),
                ("compiled_ms", "float64", "ms", "median duration of a compiled iteration"),
                ("compiled_p10_ms", "float64", "ms", "10th percentile of the same"),
                ("compiled_p90_ms", "float64", "ms", "90th percentile of the same"),
                ("eager_images_per_s", "float64", "1/s", "throughput of eager, from its median"),
                ("images_per_s", "float64", "1/s", "throughput of compiled, from its median"),
                ("timed_output_ok", "bool", "", "compiled agrees with the reference at the timed batch size"),
                (
                    "timed_output_error",
                    "float64",
                    "",
                    "norm of compiled - reference over norm of reference, of the output; in training of the prediction, all "
                    "gradients, the input's or what all buffers changed by",
                ),
                (
                    "timed_output_kind",
                    "string",
                    "",
                    "of what: output; in training prediction, gradient, input_gradient or buffer; output.1 of several; "
                    "output.sample: its worst sample; kept: the program returned what it had computed of other images; "
                    "written: it has written to weights, buffers or images; changed: it computes something else after the "
                    "timing",
                ),
                (
                    "timed_output_batch_size",
                    "int64",
                    "images",
                    "of which batch, where a mode with dynamic shapes has several",
                ),
                ("timed_output_margin", "float64", "", "timed_output_error over the error that is allowed, 1 is the limit"),
                (
                    "timed_reference",
                    "string",
                    "",
                    "what compiled is held against: fp64 at the timed batch size, eager with an error extrapolated from "
                    "batch 8 (extrapolated), or eager by cosine similarity (eager); none where eager is not finite",
                ),
                ("gmacs", "float64", "1e9", "multiply-accumulate operations of the forward pass of one image"),
                ("mactivations", "float64", "1e6", "output elements of convolutions and matrix products in the same"),
                ("warmup_iterations", "int64", "", "iterations of both sides in the stage warmup"),
                (
                    "machine_drift",
                    "float64",
                    "",
                    "duration of a fixed kernel after the samples over its duration before them",
                ),
                (
                    "machine_busy_cores",
                    "float64",
                    "",
                    "cores that others used while samples were taken, out of machine_cores; a hypervisor's share too",
                ),
                (
                    "timing_lanes",
                    "int64",
                    "",
                    "on a CPU, how many cells could be timed at once, on different cores",
                ),
                ("machine_throttles", "int64", "", "how often a core was slowed down for its heat meanwhile"),
                ("machine_stalls", "int64", "", "how often the control group had used up its quota of time meanwhile"),
                ("machine_swapped_pages", "int64", "", "pages that the machine swapped in or out meanwhile"),
                ("timing_started_at", "timestamp", "", "from here on nothing else of ours ran on the device"),
                ("timing_ended_at", "timestamp", "", "until here"),
            ],
        ),
        *columns(
            "cost",
            [
                (
                    "compile_cold_s",
                    "float64",
                    "s",
                    "first compiled iteration with an empty cache; null if the cache is shared",
                ),
                ("compile_cold_cpu_s", "float64", "s", "processor time of the cold compile, with the compiler's processes"),
                ("compile_warm_s", "float64", "s", "first compiled iteration after a reset, with that cache"),
                ("compile_warm_cpu_s", "float64", "s", "processor time of the warm compile, with the compiler's processes"),
                ("dynamo_s", "float64", "s", "of the cold compile: dynamo, with all that it calls"),
                ("aot_autograd_s", "float64", "s", "of the cold compile: AOTAutograd, with inductor"),
                ("inductor_s", "float64", "s", "of the cold compile: inductor, with code generation"),
                ("codegen_s", "float64", "s", "of the cold compile: inductor's code generation"),
                (
                    "break_even_iterations",
                    "float64",
                    "",
                    "cold compile time over time saved per iteration; null if none is saved",
                ),
            ],
        ),
        *columns(
            "memory",
            [
                ("eager_peak_bytes", "int64", "bytes", "peak memory of an eager iteration with its weights and images"),
                ("compiled_peak_bytes", "int64", "bytes", "peak memory of a compiled iteration with its weights and images"),
                ("compression_ratio", "float64", "", "eager_peak_bytes over compiled_peak_bytes"),
                ("eager_allocated_bytes", "int64", "bytes", "of eager_peak_bytes, what torch's own allocator gave out"),
                (
                    "compiled_allocated_bytes",
                    "int64",
                    "bytes",
                    "of compiled_peak_bytes, what torch's own allocator gave out",
                ),
            ],
        ),
        *GRAPH,
    ),
    details="samples",
    detail_columns=columns(
        "samples",
        [
            ("process", "int64", "", "number of the fresh process, from 0"),
            ("block", "int64", "", "number of the ABBA block in its process, from 0"),
            ("eager_first", "bool", "", "eager ran before compiled in this pair"),
            ("eager_s", "float64", "s", "duration of the eager iteration"),
            ("compiled_s", "float64", "s", "duration of the compiled iteration"),
        ],
    ),
    stages=(
        IMPORT,
        LOAD,
        Stage("eager", *((word,) for word in EAGER_1ST)),
        *of_compiler("compile", "run", "compare", "warmup"),
        Stage("queue"),
        *of_compiler("timing"),
    ),
    width=1,
    shrinks=True,
    suite_batch=True,
    estimator="timmgate.supervisor.speedup",
)

CHECKS = {check.name: check for check in (ACCURACY, PERFORMANCE)}
"""The checks by name, in the order in which they run."""
