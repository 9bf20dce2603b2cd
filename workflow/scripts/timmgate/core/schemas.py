"""The tables: their columns with units and meanings, and the status words. Needs no Arrow: a worker reads it too."""

from timmgate.core.checks import CHECKS, Check
from timmgate.core.described import Column, columns, types
from timmgate.core.diagnosis import MODULE_COLUMNS, PLACES, REPORTED, TRIAL

STATUSES = {
    "pass": "the compiled model computes what eager computes, by the rule that `accuracy_rule` names",
    "pass_due_to_skip": "not judged, by the suite's table; the reason is in the cause",
    "fail_accuracy": "the compiled model computes something else",
    "fail_to_run": "compiling the model or running it compiled failed",
    "OOM": "out of memory while compiling or running compiled",
    "eager_1st_run_fail": "the first eager run, or the float64 reference's process, failed",
    "eager_1st_run_OOM": "out of memory in the first eager run",
    "eager_2nd_run_fail": "the second eager run failed",
    "eager_2nd_run_OOM": "out of memory in the second eager run",
    "eager_two_runs_differ": "two eager runs with the same seeds differ",
    "eager_not_finite": "eager or the float64 reference gave NaN or Inf: nothing to judge against",
    "model_fail_to_load": "the model could not be made: unknown name, missing weights, refused arguments",
    "timeout": "the time limit was reached",
    "not_applicable": "the fault that the mode asks for has nothing to break in this model",
    "infra_error": "the process was killed from outside, or ended in a way that the model did not cause",
    "not_run": "requested, but there is no row yet",
}
"""Status words and what each means; where benchmarks/dynamo has a word it is used."""

REASON_CLASSES = {
    "compiler": "off by more than rounding explains; or compiling, or what was compiled, crashed, hung or ran out of memory",
    "eager_unstable": "eager failed, differs from itself or is not finite: there is nothing to judge against",
    "reference_missing": "float64 did not run, and what was compiled points elsewhere than eager: weak evidence",
    "tolerance_artifact": "within what null runs do: eager is nearer to float64 by luck than the tolerance takes for usual",
    "amplified_rounding": "the model makes rounding so large that null runs allow as much",
    "flaky": "did not fail in every fresh process",
    "environment": "the machine, its memory, the weights or the request, and neither the model nor the compiler",
}
"""Classes of the reason why a check did not pass, and what each means."""

REASON = ("reason", "reason_class")
"""Of a check, the columns of `cells` that have its reason."""

RECURRENCES = {
    "deterministic": "it failed in every fresh process",
    "flaky": "it failed in some of them",
    "one_off": "it failed in none of them",
}
"""Words for how often a failed check fails again, and what each means."""

REPEATED = (
    ("repeats", "int64", "in how many fresh processes it was measured again; null if in none"),
    ("repeats_failed", "int64", "in how many of them it failed"),
    ("fail_rate_low", "float64", "lower end of the 95 % interval of the share that fails (Wilson)"),
    ("fail_rate_high", "float64", "upper end of the same"),
    ("recurrence", "string", f"{', '.join(RECURRENCES)}: whether it failed in all, some or none of them"),
)
"""Names of the columns of a failed check with what became of it in fresh processes, with types and meanings."""

PASSED = ("pass", "pass_due_to_skip")

SHOWN_STATUS = {check: f"{check}_by_rule" if check == "accuracy" else check for check in CHECKS}
"""By check, the column of `cells` with the status that tables, failures, means and gate speak of."""

FAILED = tuple(status for status in STATUSES if status not in (*PASSED, "not_applicable", "not_run"))

KEY_COLUMNS = columns(
    "identity",
    [
        ("device", "string", "", "torch device type"),
        ("build", "string", "", "label of what compiles"),
        ("mode", "string", "", "name of the mode"),
        ("model", "string", "", "timm model name, arch or arch.tag"),
    ],
)
"""Columns of every table by which its rows are joined to cells."""

KEY = tuple(column.name for column in KEY_COLUMNS)
"""What a row of any table belongs to: a cell."""

IDENTITY = (
    *KEY_COLUMNS,
    *columns(
        "identity",
        [
            ("device_name", "string", "", "name of the processor or accelerator"),
            ("device_uuid", "string", "", "UUID of the GPU, or of the part of one, that it ran on; null without CUDA"),
            ("architecture", "string", "", "timm architecture, the model name without its tag"),
            ("suite", "string", "", "suite that the model was taken from"),
            ("backend", "string", "", "compiler, by its torch.compile name"),
            ("training", "bool", "", "forward and backward pass, or inference"),
            ("precision", "string", "", "float32, bfloat16, float16 or amp, as requested"),
            ("amp_dtype", "string", "", "dtype of autocast where the model ran under it"),
            ("freezing", "bool", "", "inductor's freezing"),
            ("channels_last", "bool", "", "channels_last memory format"),
            ("dynamic", "bool", "", "compiled for dynamic shapes"),
            ("options", "string", "", "all options of the mode, as JSON"),
            ("batch_size", "int64", "images", "batch size that ran; of the performance check, where a cell has both"),
            ("batch_size_requested", "int64", "images", "batch size that was asked for"),
            ("input_size", "list<int64>", "pixels", "channels, height and width of one image"),
            ("parameters", "int64", "", "number of parameters"),
            ("weights", "string", "", "where the weights come from"),
            ("weights_hash", "string", "", "SHA-256 of the state dict as loaded, before any cast"),
            ("images", "string", "", "noise, or with packaged weights photos"),
            ("allocator", "string", "", "on a CPU, retain or system: whether freed memory was kept for the next tensor"),
            ("relocate", "bool", "", "on a CPU, tensors were moved to other addresses between samples"),
            ("seed", "int64", "", "seed of all random number generators"),
            ("protocol", "int64", "", "number of the measurement protocol"),
            ("retry", "int64", "", "how often the cell was requested again before it was measured"),
        ],
    ),
)


def reason_columns(check: str) -> list[tuple[str, str, str, str]]:
    """Columns of why a check did not pass."""
    return [
        (f"{check}_reason", "string", "", f"why {check} did not pass, in one sentence; null if it did"),
        (f"{check}_reason_class", "string", "", f"what kind of reason that is: {', '.join(REASON_CLASSES)}"),
        *((f"{check}_{name}", kind, "", f"of a failed {check} check, {text}") for name, kind, text in REPEATED),
    ]


STATE = columns(
    "state",
    [
        ("requested", "bool", "", "the last command asked for this cell; its tables, failures and gate speak of these"),
        ("stale", "bool", "", "measured with options or software that differ from today's; null if today's do not know it"),
        ("accuracy_by_rule", "string", "", "status of the accuracy check by the rule in `passed_by`"),
        ("passed", "bool", "", "passed the accuracy check, by that rule; null if it was not run or does not apply"),
        ("passed_by", "string", "", "strict, dynamo or both, the rule that decided; null if nothing was compared"),
        (
            "counted",
            "bool",
            "",
            "in the means: timed, its timed output not found wrong, and its accuracy passed, skipped or unknown",
        ),
        *(column for check in CHECKS for column in reason_columns(check)),
    ],
)
"""What the merge derives of a cell."""

PROVENANCE = columns(
    "provenance",
    [
        ("host", "string", "", "host name"),
        ("machine_cores", "int64", "", "cores that the measurement could use"),
        ("machine_quota_cores", "float64", "", "cores whose time its control group grants; null without a quota"),
        ("machine_governor", "string", "", "what chooses the clocks of the cores; null where the machine does not tell"),
        ("machine_turbo", "bool", "", "clocks may rise above the nominal one; null where the machine does not tell"),
        ("machine_smt", "bool", "", "physical cores have several hardware threads; null where the machine does not tell"),
        ("machine_counters", "bool", "", "the processor's counters can be read"),
        ("machine_swap_used_bytes", "int64", "bytes", "memory of the machine that was swapped out when the row was written"),
        ("torch", "string", "", "torch version"),
        ("torch_revision", "string", "", "git revision that torch was built from"),
        ("timm", "string", "", "timm version"),
        ("triton", "string", "", "triton version"),
        ("backends", "list<string>", "", "packages that register a compiler or a device with torch, each as name=version"),
        ("imports", "list<string>", "", "modules that the build imports first"),
        ("cuda", "string", "", "version of CUDA or ROCm that torch was built for"),
        ("cudnn", "string", "", "cuDNN version"),
        ("driver", "string", "", "version of the accelerator's driver"),
        ("cxx", "string", "", "C++ compiler that inductor uses"),
        ("environment", "list<string>", "", "environment variables that change what is compiled or run, each as NAME=value"),
        ("sources", "list<string>", "", "SHA-256 of the files of torch, triton, timm and compilers, each as module=digest"),
        ("python", "string", "", "Python version"),
        ("snakemake", "string", "", "Snakemake version"),
        ("commit", "string", "", "git commit of the workflow, with -dirty if it was edited"),
        ("command", "string", "", "shell command that repeats the measurement by hand"),
        ("log", "string", "", "path of the log, relative to the working directory"),
    ],
)

ATTEMPTS = (
    *KEY_COLUMNS,
    *columns(
        "attempts",
        [
            ("check_name", "string", "", "accuracy or performance"),
            ("retry", "int64", "", "how often the cell was requested again before"),
            ("attempt", "int64", "", "which attempt at the measurement this is, from 1; 0 if it never started"),
            ("status", "string", "", "what became of it"),
            ("stage", "string", "", "stage that it ended in; null if nobody knows"),
            (
                "cause",
                "string",
                "",
                "exception class, signal, exit code or limit; lost if it left no trace; null after a pass",
            ),
            ("message", "string", "", "what went wrong, as the worker or its supervisor put it: an exception's text"),
            ("strict", "string", "", "pass, fail or undecided: the verdict by null runs; null where there are none"),
            ("strict_message", "string", "", "why the strict verdict is fail"),
            ("batch_size", "int64", "images", "batch size that ran"),
            ("wall_s", "float64", "s", "duration from outside"),
            ("peak_rss_bytes", "int64", "bytes", "largest memory of all its processes together, sampled from outside"),
            ("host", "string", "", "host name"),
            ("began_at", "timestamp", "", "when it began; null if it never started"),
            ("ended_at", "timestamp", "", "when it ended; null if it left no trace"),
        ],
    ),
)


REPEATS = (
    *KEY_COLUMNS,
    *columns(
        "repeats",
        [
            ("check_name", "string", "", "accuracy or performance"),
            ("number", "int64", "", "number of the fresh process, from 1"),
            ("status", "string", "", "status of the check there, by the rule that was asked for"),
            ("stage", "string", "", "stage that it ended in"),
            ("cause", "string", "", "exception class, signal, exit code or limit; null after a pass"),
            ("message", "string", "", "what went wrong, as the worker or its supervisor put it"),
            ("repeated_at", "timestamp", "", "start of the measurement that was repeated"),
            ("began_at", "timestamp", "", "when it began"),
            ("wall_s", "float64", "s", "duration from outside"),
        ],
    ),
)


def course(check: Check) -> tuple[Column, ...]:
    """Columns of how a check went, which every check has, with its name in front."""
    rows = [
        (
            "stage",
            "string",
            "",
            "stage that the measurement ended in; weights if it had none; null if nobody knows",
        ),
        ("cause", "string", "", "exception class, signal, exit code or limit; null after a pass"),
        ("message", "string", "", "what went wrong, as the worker or its supervisor put it: an exception's text"),
        ("identity", "string", "", "SHA-256 of everything that defines the measurement"),
        ("protocol", "int64", "", "number of the protocol that it was measured by"),
        ("batch_size", "int64", "images", "batch size that ran"),
        ("attempt", "int64", "", "which attempt at the measurement this is, from 1; 0 if it never started"),
        ("started_at", "timestamp", "", "start of this attempt"),
        ("wall_s", "float64", "s", "duration of all attempts, from outside, without the wait for a free GPU"),
        ("worker_s", "float64", "s", "duration of this attempt inside the worker, without the time paused"),
        ("cpu_s", "float64", "s", "processor time of this attempt's processes"),
        ("paused_s", "float64", "s", "time that this attempt was paused while another cell was timed"),
        ("peak_rss_bytes", "int64", "bytes", "largest memory of all its processes together, sampled from outside"),
        ("threads", "int64", "", "threads of torch, OpenMP and the compiler"),
        *((f"{stage.name}_s", "float64", "s", f"time spent in the stage {stage.name}") for stage in check.stages),
    ]
    return columns(check.name, [(f"{check.name}_{name}", kind, unit, text) for name, kind, unit, text in rows])


def of_check(check: Check) -> tuple[Column, ...]:
    """Columns of a check's own row but those that all checks share; its course stands beside the columns of its name."""
    own = [column for column in check.columns if column.group == check.name]
    return (*own, *course(check), *(column for column in check.columns if column.group != check.name))


def row(check: Check) -> tuple[Column, ...]:
    """Columns of the file that a cell has for a check, but the nested rows of its details."""
    return (*IDENTITY, *of_check(check), *PROVENANCE)


_ALL = [column for check in CHECKS.values() for column in of_check(check)]

OF_CHECKS = tuple(reversed(dict.fromkeys(reversed(_ALL))))
"""The columns of all checks. What several of them measure, such as graph breaks, is there once, with the last of them."""

CELLS = (*IDENTITY, *STATE, *OF_CHECKS, *PROVENANCE)

OF_RULE = {"accuracy": {"accuracy_by_rule", "passed", "passed_by"}}
"""By check, what the merge derives of it by the key `accuracy_rule`."""

OF_CHECK = {
    name: {column.name for column in (*of_check(check), *columns("state", reason_columns(name)))}
    - {column.name for other in CHECKS.values() if other is not check for column in of_check(other)}
    | OF_RULE.get(name, set())
    for name, check in CHECKS.items()
}
"""By check, the columns of `cells` that are about it alone."""

HISTORY = (
    *columns(
        "entry",
        [
            ("run", "string", "", "run that added the entry; runs sort by their time"),
            ("recorded_at", "timestamp", "", "when that was"),
        ],
    ),
    *(column for column in CELLS if column.name not in ("protocol", "requested", "stale")),
)
"""Columns of an entry of the history. The folder that it lies in says by which protocol it was measured."""

TRIALS = (
    *KEY_COLUMNS,
    *columns(
        "trials",
        [
            ("number", "int64", "", "number of the trial, from 0, in the order in which they were asked for"),
            ("variant", "string", "", "what was different from the cell"),
            (
                "ended",
                "string",
                "",
                "pass; fail, as the cell does; other, in another way; eager, if not compiled; null: the search of modules",
            ),
            ("status", "string", "", "status of the trial, as of an accuracy check"),
            ("cause", "string", "", "exception class, signal, exit code or limit; null after a pass"),
            ("message", "string", "", "what went wrong, in words"),
            ("stage", "string", "", "stage that it ended in"),
        ],
    ),
    *REPORTED,
    *columns(
        "trials",
        [
            ("last_lines", "string", "", "the end of the log of a trial that crashed or hung, with its stacks"),
            ("started_at", "timestamp", "", "when it began"),
            ("wall_s", "float64", "s", "duration, from outside"),
            ("cpu_s", "float64", "s", "processor time of its processes"),
            ("log", "string", "", "path of its log, relative to the working directory"),
        ],
    ),
)
"""Columns of the trials of diagnosed cells."""

DIAGNOSIS = (
    *KEY_COLUMNS,
    *columns(
        "diagnosis",
        [
            ("check_name", "string", "", "the check that failed: accuracy or performance"),
            ("status", "string", "", "its status"),
            ("reason_class", "string", "", "class of the reason, as in `cells`"),
            ("reason", "string", "", "the reason, as in `cells`"),
            ("layer", "string", "", "where in the stack it goes wrong"),
            ("switch", "string", "", "what it passes with: the variant that told the layer; null if there is none"),
            ("application", "string", "", "the operator or pass of the layer that it takes to fail"),
            ("conditions", "list<string>", "", "options of the mode without which it passes"),
            *((each.name, each.type, each.unit, each.description) for each in REPORTED if each.name in MODULE_COLUMNS),
            ("raised_in", "string", "", "file, line and function of torch that raised the exception"),
            ("trials", "int64", "", "number of trials, without those of modules"),
            ("layer_s", "float64", "s", "duration of these trials"),
            ("place_s", "float64", "s", "duration of the search of modules"),
            ("cost", "float64", "", "duration of both over that of the check that failed"),
            ("log", "string", "", "path of the log of the cell as it is, relative to the working directory"),
            ("script", "string", "", "path of the script that repeats the cell with torch and timm alone"),
            ("module_script", "string", "", "path of one that repeats that module alone; null if there is none"),
            ("graph_script", "string", "", "path of one that repeats that graph with torch alone; null if there is none"),
        ],
    ),
)
"""Columns of the diagnoses, a row for each failed cell."""

TABLES = {
    "cells": CELLS,
    **{check.details: (*KEY_COLUMNS, *check.detail_columns) for check in CHECKS.values()},
    "attempts": ATTEMPTS,
    "repeats": REPEATS,
}
"""By name, the columns of each merged table. `cells` has one row a cell, each table of details one row for each compared
tensor or pair of timed iterations, `attempts` one for each attempt at a check, `repeats` one for each time that a failed
check was measured again to see whether it fails again.
"""

REPORTABLE = {check.name: types((*IDENTITY, *check.columns, *PROVENANCE)) for check in CHECKS.values()} | {
    TRIAL: types(REPORTED)
}
"""By check, and for a `trial` of a diagnosis, the columns that its worker may report, and the type of each."""

REPORTABLE_DETAILS = {check.name: check.detail_types for check in CHECKS.values()} | {TRIAL: types(PLACES)}
"""The same of their details."""
