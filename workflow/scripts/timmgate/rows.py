"""What a result row holds: Arrow types, units and meanings in the fields' metadata, and the status words."""

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from timmgate.files import write_atomically

STATUSES = {
    "pass": "the compiled model computes what eager computes, by the tolerance rule of benchmarks/dynamo",
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
    "infra_error": "the process was killed from outside, or ended in a way that the model did not cause",
    "not_run": "requested, but there is no row yet",
}
"""Status words and what each means; where benchmarks/dynamo has a word it is used."""

PASSED = ("pass", "pass_due_to_skip")

STAGES = {
    "accuracy": ("import", "load", "reference", "eager", "compile", "run", "compare"),
    "performance": ("import", "load", "eager", "compile", "run", "compare", "warmup", "queue", "timing", "estimate"),
}
"""Stages of each check, in order of first appearance; compile and run alternate. `queue` is waiting for a quiet device."""

Column = tuple[str, pa.DataType, str, str]  # name, type, unit, description

KEY: list[Column] = [
    ("device", pa.string(), "", "torch device type"),
    ("mode", pa.string(), "", "name of the mode"),
    ("model", pa.string(), "", "timm model name, arch or arch.tag"),
]

IDENTITY: list[Column] = [
    *KEY,
    ("device_name", pa.string(), "", "name of the processor or accelerator"),
    ("device_uuid", pa.string(), "", "UUID of the GPU, or of the part of one, that it ran on; null without CUDA"),
    ("architecture", pa.string(), "", "timm architecture, the model name without its tag"),
    ("suite", pa.string(), "", "suite that the model was taken from"),
    ("backend", pa.string(), "", "compiler, by its torch.compile name"),
    ("training", pa.bool_(), "", "forward and backward pass, or inference"),
    ("precision", pa.string(), "", "float32, bfloat16, float16 or amp, as requested"),
    ("amp_dtype", pa.string(), "", "dtype of autocast where the model ran under it"),
    ("freezing", pa.bool_(), "", "inductor's freezing"),
    ("channels_last", pa.bool_(), "", "channels_last memory format"),
    ("dynamic", pa.bool_(), "", "compiled for dynamic shapes"),
    ("options", pa.string(), "", "all options of the mode, as JSON"),
    ("batch_size", pa.int64(), "images", "batch size that ran; of the performance check, where a cell has both"),
    ("batch_size_requested", pa.int64(), "images", "batch size that was asked for"),
    ("input_size", pa.list_(pa.int64()), "pixels", "channels, height and width of one image"),
    ("parameters", pa.int64(), "", "number of parameters"),
    ("weights", pa.string(), "", "where the weights come from"),
    ("weights_hash", pa.string(), "", "SHA-256 of the state dict as loaded, before any cast"),
    ("images", pa.string(), "", "noise, or with packaged weights photos"),
    ("seed", pa.int64(), "", "seed of all random number generators"),
    ("protocol", pa.int64(), "", "number of the measurement protocol"),
    ("retry", pa.int64(), "", "how often the cell had been asked for again when it was measured"),
]

ACCURACY: list[Column] = [
    ("accuracy", pa.string(), "", "status of the accuracy check"),
    ("strict", pa.string(), "", "verdict of the scale-aware rule; null, for it is not calibrated yet"),
    ("reference", pa.string(), "", "what both runs are compared with: fp64, or none if that failed"),
    ("reference_error", pa.string(), "", "why there is no float64 reference"),
    ("comparison", pa.string(), "", "error or cosine: how the leaves were judged"),
    ("tolerance", pa.float64(), "", "tolerance of the dynamo rule"),
    ("leaves", pa.int64(), "", "number of compared tensors"),
    ("leaves_failed", pa.int64(), "", "number of compared tensors that fail the dynamo rule"),
    ("worst_leaf", pa.string(), "", "compared tensor with the largest margin"),
    ("margin", pa.float64(), "", "largest error over allowed error, 1 is the limit"),
    ("strict_margin", pa.float64(), "", "the same by the strict rule; null, for it is not calibrated yet"),
    ("top1_agreement", pa.float64(), "", "share of images whose largest logit is the same in eager and compiled"),
]

PERFORMANCE: list[Column] = [
    ("performance", pa.string(), "", "status of the performance check"),
    ("verdict", pa.string(), "", "faster, slower, same or ambiguous: the speedup's interval against the noise floor"),
    ("speedup", pa.float64(), "", "exp of the median of log(eager time / compiled time) over paired samples"),
    ("speedup_ci_low", pa.float64(), "", "lower end of the speedup's 95 % interval"),
    ("speedup_ci_high", pa.float64(), "", "upper end of the speedup's 95 % interval"),
    ("noise_floor", pa.float64(), "", "difference of eager from itself that the samples do not rule out, at least 0.01"),
    ("samples", pa.int64(), "", "number of paired samples"),
    ("eager_ms", pa.float64(), "ms", "median duration of an eager iteration"),
    ("eager_p10_ms", pa.float64(), "ms", "10th percentile of the same"),
    ("eager_p90_ms", pa.float64(), "ms", "90th percentile of the same"),
    ("compiled_ms", pa.float64(), "ms", "median duration of a compiled iteration"),
    ("compiled_p10_ms", pa.float64(), "ms", "10th percentile of the same"),
    ("compiled_p90_ms", pa.float64(), "ms", "90th percentile of the same"),
    ("eager_images_per_s", pa.float64(), "1/s", "throughput of eager, from its median"),
    ("images_per_s", pa.float64(), "1/s", "throughput of compiled, from its median"),
    ("compile_cold_s", pa.float64(), "s", "first compiled iteration with an empty cache; null if the cache is shared"),
    ("compile_cold_cpu_s", pa.float64(), "s", "processor time of the same, with the compiler's processes"),
    ("compile_warm_s", pa.float64(), "s", "first compiled iteration after a reset, with that cache"),
    ("compile_warm_cpu_s", pa.float64(), "s", "processor time of the same, with the compiler's processes"),
    ("dynamo_s", pa.float64(), "s", "of the cold compile: dynamo, with all that it calls"),
    ("aot_autograd_s", pa.float64(), "s", "of the cold compile: AOTAutograd, with inductor"),
    ("inductor_s", pa.float64(), "s", "of the cold compile: inductor, with code generation"),
    ("codegen_s", pa.float64(), "s", "of the cold compile: inductor's code generation"),
    ("break_even_iterations", pa.float64(), "", "cold compile time over time saved per iteration; null if none is saved"),
    ("eager_peak_bytes", pa.int64(), "bytes", "peak memory of an eager iteration with its weights and images"),
    ("compiled_peak_bytes", pa.int64(), "bytes", "peak memory of a compiled iteration with its weights and images"),
    ("compression_ratio", pa.float64(), "", "eager_peak_bytes over compiled_peak_bytes"),
    ("graph_breaks", pa.int64(), "", "graph breaks of the model"),
    ("graph_break_reasons", pa.list_(pa.string()), "", "each of them in words"),
    ("unique_graphs", pa.int64(), "", "graphs that dynamo captured"),
    ("ops_captured", pa.int64(), "", "operators in them"),
    ("recompiles", pa.int64(), "", "compilations of code that was compiled before, as for another batch size"),
    ("cudagraph_skips", pa.int64(), "", "graphs that inductor would not run as CUDA graphs"),
    ("timed_output_ok", pa.bool_(), "", "compiled agrees with eager at the timed batch size"),
    ("timed_output_error", pa.float64(), "", "norm of compiled - eager over norm of eager; in training of all gradients"),
    ("gmacs", pa.float64(), "1e9", "multiply-accumulate operations of the forward pass of one image"),
    ("mactivations", pa.float64(), "1e6", "output elements of convolutions and matrix products in the same"),
    ("warmup_iterations", pa.int64(), "", "iterations of both sides in the stage warmup"),
    ("machine_drift", pa.float64(), "", "duration of a fixed kernel after the samples over its duration before them"),
    ("timing_started_at", pa.timestamp("us", tz="UTC"), "", "from here on nothing else of ours ran on the device"),
    ("timing_ended_at", pa.timestamp("us", tz="UTC"), "", "until here"),
]

PROVENANCE: list[Column] = [
    ("host", pa.string(), "", "host name"),
    ("torch", pa.string(), "", "torch version"),
    ("timm", pa.string(), "", "timm version"),
    ("python", pa.string(), "", "Python version"),
    ("snakemake", pa.string(), "", "Snakemake version"),
    ("commit", pa.string(), "", "git commit of the workflow, with -dirty if it was edited"),
    ("command", pa.string(), "", "shell command that repeats the measurement by hand"),
    ("log", pa.string(), "", "path of the log, relative to the working directory"),
]


def _endings(check: str) -> list[Column]:
    """Columns that every check has, with the check's name in front."""
    columns: list[Column] = [
        (
            "stage",
            pa.string(),
            "",
            "stage that the measurement ended in; weights if it had none; null if nobody knows",
        ),
        ("cause", pa.string(), "", "exception class, signal, exit code or limit; null after a pass"),
        ("message", pa.string(), "", "what went wrong, in words"),
        ("identity", pa.string(), "", "SHA-256 of everything that defines the measurement"),
        ("batch_size", pa.int64(), "images", "batch size that ran"),
        ("attempt", pa.int64(), "", "which attempt at the measurement this is, from 1; 0 if it never started"),
        ("started_at", pa.timestamp("us", tz="UTC"), "", "start of this attempt"),
        ("wall_s", pa.float64(), "s", "duration of all attempts, from outside, without the wait for a free GPU"),
        ("worker_s", pa.float64(), "s", "duration of this attempt inside the worker, without the time held still"),
        ("cpu_s", pa.float64(), "s", "processor time of this attempt's processes"),
        ("held_s", pa.float64(), "s", "time that this attempt was held still while another cell was timed"),
        ("peak_rss_bytes", pa.int64(), "bytes", "largest memory of all its processes together, sampled from outside"),
        ("threads", pa.int64(), "", "threads of torch, OpenMP and the compiler"),
        *((f"{stage}_s", pa.float64(), "s", f"time spent in the stage {stage}") for stage in STAGES[check]),
    ]
    return [(f"{check}_{name}", type_, unit, description) for name, type_, unit, description in columns]


EVIDENCE: list[Column] = [
    *KEY,
    ("leaf", pa.string(), "", "compared tensor"),
    ("kind", pa.string(), "", "output, loss, gradient, parameter, buffer or input_gradient"),
    ("shape", pa.list_(pa.int64()), "", "shape"),
    ("dtype", pa.string(), "", "dtype"),
    ("numel", pa.int64(), "", "number of elements"),
    ("eager_rmse", pa.float64(), "", "root mean square error of eager against float64"),
    ("compiled_rmse", pa.float64(), "", "root mean square error of compiled against float64"),
    ("eager_relative_error", pa.float64(), "", "norm of eager minus float64, over the norm of float64"),
    ("compiled_relative_error", pa.float64(), "", "norm of compiled minus float64, over the norm of float64"),
    ("error_ratio", pa.float64(), "", "compiled_rmse over eager_rmse"),
    ("allowed_error", pa.float64(), "", "compiled_rmse that the dynamo rule allows"),
    ("margin", pa.float64(), "", "error over allowed error by the dynamo rule, 1 is the limit"),
    ("max_abs_error", pa.float64(), "", "largest absolute difference of compiled and eager"),
    ("cosine", pa.float64(), "", "cosine similarity of compiled and eager"),
    ("eager_nan", pa.int64(), "", "NaN elements of eager"),
    ("eager_inf", pa.int64(), "", "infinite elements of eager"),
    ("compiled_nan", pa.int64(), "", "NaN elements of compiled"),
    ("compiled_inf", pa.int64(), "", "infinite elements of compiled"),
    ("accuracy", pa.bool_(), "", "passes the dynamo rule"),
    ("strict", pa.bool_(), "", "passes the strict rule; null, for it is not calibrated yet"),
    ("strict_margin", pa.float64(), "", "error over allowed error by the strict rule; null, for it is not calibrated yet"),
    ("message", pa.string(), "", "why it fails"),
]


SAMPLES: list[Column] = [
    *KEY,
    ("block", pa.int64(), "", "number of the ABBA block, from 0"),
    ("eager_first", pa.bool_(), "", "eager ran before compiled in this pair"),
    ("eager_s", pa.float64(), "s", "duration of the eager iteration"),
    ("compiled_s", pa.float64(), "s", "duration of the compiled iteration"),
]


ATTEMPTS: list[Column] = [
    *KEY,
    ("check", pa.string(), "", "accuracy or performance"),
    ("retry", pa.int64(), "", "how often the cell had been asked for again"),
    ("attempt", pa.int64(), "", "which attempt at the measurement this is, from 1; 0 if it never started"),
    ("status", pa.string(), "", "what became of it"),
    ("stage", pa.string(), "", "stage that it ended in; null if nobody knows"),
    ("cause", pa.string(), "", "exception class, signal, exit code or limit; lost if it left no trace; null after a pass"),
    ("message", pa.string(), "", "what went wrong, in words"),
    ("batch_size", pa.int64(), "images", "batch size that ran"),
    ("wall_s", pa.float64(), "s", "duration from outside"),
    ("peak_rss_bytes", pa.int64(), "bytes", "largest memory of all its processes together, sampled from outside"),
    ("host", pa.string(), "", "host name"),
    ("began_at", pa.timestamp("us", tz="UTC"), "", "when it began; null if it never started"),
    ("ended_at", pa.timestamp("us", tz="UTC"), "", "when it ended; null if it left no trace"),
]


def _schema(columns: list[Column]) -> pa.Schema:
    return pa.schema(
        pa.field(name, type_, metadata={"unit": unit, "description": description} if unit else {"description": description})
        for name, type_, unit, description in columns
    )


_OF_CHECK = {
    "accuracy": [*ACCURACY, *_endings("accuracy")],
    "performance": [*PERFORMANCE, *_endings("performance")],
}

SCHEMAS = {
    **{check: _schema([*IDENTITY, *columns, *PROVENANCE]) for check, columns in _OF_CHECK.items()},
    "evidence": _schema(EVIDENCE),
    "samples": _schema(SAMPLES),
    "attempts": _schema(ATTEMPTS),
    "cells": _schema([*IDENTITY, *_OF_CHECK["accuracy"], *_OF_CHECK["performance"], *PROVENANCE]),
}
"""Schema of each table. `accuracy` and `performance` hold one row a cell, as does `cells`, which joins them; `evidence`
holds one row per compared tensor, `samples` one per pair of timed iterations, `attempts` one per attempt at a check.
"""


def table(kind: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of schema `kind`; a missing column is null. Raises KeyError on a column it does not have."""
    schema = SCHEMAS[kind]
    for row in rows:
        unknown = set(row) - set(schema.names)
        if unknown:
            raise KeyError(f"{kind} rows have no column {', '.join(sorted(unknown))}")
    return pa.Table.from_pylist(rows, schema=schema)


def write(table: pa.Table, path: Path) -> None:
    """Write a Parquet file, with checksums, that is either complete or absent, also when the process is killed half way."""
    write_atomically(path, lambda scratch: pq.write_table(table, scratch, compression="zstd", write_page_checksum=True))


def write_csv(table: pa.Table, path: Path) -> None:
    """Write a comma-separated file, quoted only where it must be, null as nothing, all or nothing."""

    def fill(scratch: Path) -> None:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table.column_names)
            writer.writerows(row.values() for row in table.to_pylist())

    write_atomically(path, fill)


def write_tsv(table: pa.Table, path: Path) -> None:
    """Write a tab-separated file for people and spreadsheets, one line a row, all or nothing."""
    frame = table.to_pandas().replace(r"\s*[\t\r\n]+\s*", " ", regex=True)
    write_atomically(path, lambda scratch: frame.to_csv(scratch, sep="\t", index=False))
