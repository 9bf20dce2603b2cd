"""The results in the files of other tools: benchmarks/dynamo's CSVs of both checks, the records that it writes beside them
for PyTorch's benchmark database, and timm's benchmark CSV.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from timmgate.core.schemas import PASSED
from timmgate.core.spec import Mode
from timmgate.tables import state
from timmgate.tables.by_cell import requested

SUITE = "timm_models"
"""What benchmarks/dynamo calls the suite of all timm models."""


File: TypeAlias = pa.Table | list[dict[str, Any]]
"""The rows of a CSV, or the lines of a file of JSON."""


def files(cells: pa.Table, modes: dict[str, Mode], checks: Collection[str], device: str) -> dict[str, File]:
    """All files by name, of the requested cells of one build: two per mode and requested check for benchmarks/dynamo, and
    one per mode for timm.
    """
    exported: dict[str, File] = {}
    cells = state.of_checks(requested(cells), checks)
    for mode, stem in stems(modes).items():
        of_mode = cells.filter(pc.equal(cells["mode"], mode))
        training = modes[mode].training
        for check, table_of in (("accuracy", accuracy), ("performance", performance)):
            if check in checks:
                table = table_of(of_mode)
                exported[f"{stem}_{device}_{check}.csv"] = rounded(table)
                exported[f"{stem}_{device}_{check}.json"] = list(records(table, of_mode, modes[mode]))
        name = f"benchmark-{'train' if training else 'infer'}-{mode}-{device}.csv"
        exported[name] = benchmark(of_mode, training, "performance" in checks)
    return exported


def stems(modes: dict[str, Mode]) -> dict[str, str]:
    """By mode, the beginning of its file name: {backend}_{variant}_{suite}_{dtype}_{training or inference}.

    The variant is the mode's name. A mode with no other option than these goes without, unless there are two of the kind.
    """
    bare = {name: _stem(mode.backend, mode) for name, mode in modes.items() if not _has_more_options(mode)}
    taken = Counter(bare.values())
    return {
        name: bare[name] if taken[bare.get(name, "")] == 1 else _stem(f"{mode.backend}_{name}", mode)
        for name, mode in modes.items()
    }


def _stem(variant: str, mode: Mode) -> str:
    return f"{variant}_{SUITE}_{mode.precision}_{'training' if mode.training else 'inference'}"


def _has_more_options(mode: Mode) -> bool:
    return mode != replace(Mode(), backend=mode.backend, precision=mode.precision, training=mode.training)


def counters(cells: pa.Table) -> dict[str, pa.Array]:
    """The columns of what dynamo counted, 0 where it counted nothing; of compiled autograd there is none."""
    nothing = pa.array([0] * len(cells), pa.int64())
    reasons = [len(set(each or ())) for each in cells["graph_break_reasons"].to_pylist()]
    columns = {
        "calls_captured": cells["ops_captured"],
        "unique_graphs": cells["unique_graphs"],
        "fallbacks_to_eager": cells["fallbacks_to_eager"],
        "graph_breaks": cells["graph_breaks"],
        "unique_graph_breaks": pa.array(reasons, pa.int64()),
        "autograd_captures": nothing,
        "autograd_compiles": nothing,
        "cudagraph_skips": cells["cudagraph_skips"],
    }
    return {name: pc.fill_null(column, 0) for name, column in columns.items()}


def latency_s(cells: pa.Table) -> pa.ChunkedArray:
    """Seconds of the first compile that is known."""
    return pc.coalesce(cells["compile_cold_s"], cells["compile_warm_s"])


def accuracy(cells: pa.Table) -> pa.Table:
    """benchmarks/dynamo's accuracy CSV: status, counters, compile time in s.

    A batch size of 0 is that suite's word for a model that was never run.
    """
    return pa.table(
        {
            "dev": cells["device"],
            "name": cells["model"],
            "batch_size": pc.fill_null(cells["accuracy_batch_size"], 0),
            "accuracy": cells["accuracy"],
            **counters(cells),
            "compilation_latency": pc.fill_null(latency_s(cells), 0.0),
        }
    )


def performance(cells: pa.Table) -> pa.Table:
    """benchmarks/dynamo's performance CSV: latency of compiled in ms, compile time in s, peak memory in GB.

    A cell that was not timed, or whose result is wrong by the rule of the accuracy CSV, has zeros, as there.
    """
    is_right = pc.and_(
        pc.is_in(pc.coalesce(cells["accuracy"], "not_run"), pa.array([*PASSED, "not_run"])),
        pc.fill_null(cells["timed_output_ok"], True),
    )
    counts = pc.and_(pc.is_valid(cells["speedup"]), is_right)
    columns = {
        "batch_size": cells["batch_size"],
        "speedup": cells["speedup"],
        "abs_latency": cells["compiled_ms"],
        "compilation_latency": latency_s(cells),
        "compression_ratio": cells["compression_ratio"],
        "eager_peak_mem": pc.divide(pc.cast(cells["eager_peak_bytes"], pa.float64()), 1e9),
        "dynamo_peak_mem": pc.divide(pc.cast(cells["compiled_peak_bytes"], pa.float64()), 1e9),
        **counters(cells),
    }
    figures = {name: pc.fill_null(pc.if_else(counts, column, None), 0) for name, column in columns.items()}
    return pa.table({"dev": cells["device"], "name": cells["model"], **figures})


def rounded(table: pa.Table) -> pa.Table:
    """The same with numbers as benchmarks/dynamo writes them: six digits after the point."""
    columns = {
        name: [f"{value:.6f}" for value in column.to_pylist()] if pa.types.is_floating(column.type) else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return pa.table(columns)


def records(table: pa.Table, cells: pa.Table, mode: Mode) -> Iterator[dict[str, Any]]:
    """The same as records of PyTorch's benchmark database: one for each model and metric, in the schema of its version 3.

    `table` is the CSV of these cells. A metric that is a text stands in `extra_info`, as the database has numbers alone.
    """
    for row, cell in zip(table.to_pylist(), cells.to_pylist(), strict=True):
        about = _about(row, cell, mode)
        for name, value in row.items():
            if name not in ("dev", "name", "batch_size"):
                values = {"benchmark_values": [value]}
                yield {**about, "metric": {"name": name, **({"extra_info": values} if isinstance(value, str) else values)}}


def _about(row: dict[str, Any], cell: dict[str, Any], mode: Mode) -> dict[str, Any]:
    """What is said in every record of a cell."""
    options = {name: value for name, value in asdict(mode).items() if name not in ("backend", "precision", "training")}
    settings = {"device": row["dev"], "quantization": "", "batch_size": row["batch_size"], "mode": cell["mode"]}
    settings |= {"build": cell["build"], **options}
    gpu = {"gpu_info": cell["device_name"] or "", "gpu_count": 1} if row["dev"] != "cpu" else {}
    return {
        "benchmark": {
            "name": "TorchInductor",
            "mode": "training" if mode.training else "inference",
            "dtype": mode.precision,
            "extra_info": {name: _text(value) for name, value in settings.items()},
        },
        "model": {"name": row["name"], "type": "OSS model", "backend": mode.backend, "origins": [SUITE]},
        "runners": [
            {
                "name": row["dev"],
                "type": cell["device_name"] or "",
                "cpu_info": cell["device_name"] or "" if row["dev"] == "cpu" else "",
                **gpu,
                "extra_info": {"hostname": cell["host"] or "", "driver": cell["driver"] or ""},
            }
        ],
        "dependencies": {
            "pytorch": _dependency("pytorch/pytorch", cell["torch"], cell["torch_revision"]),
            "timm": _dependency("huggingface/pytorch-image-models", cell["timm"], None),
            "triton": _dependency("triton-lang/triton", cell["triton"], None),
        },
    }


def _dependency(repository: str, version: str | None, revision: str | None) -> dict[str, Any]:
    return {"repo": repository, "branch": "", "sha": revision or "", "version": version or "", "extra_info": {}}


def _text(value: Any) -> str:
    """A value for one of the database's maps of texts."""
    return value if isinstance(value, str) else json.dumps(value)


def benchmark(cells: pa.Table, training: bool, is_timed: bool) -> pa.Table:
    """timm's benchmark CSV of the compiled models, in its units: images per s, ms, pixels, 1e9 MACs, 1e6 activations.

    It has the models that were loaded, and of a run without the performance check no more than their sizes. Of a model that
    does not count, as what was timed is wrong, there are no times.
    """
    loaded = cells.filter(pc.is_valid(cells["parameters"]))
    prefix = "train" if training else "infer"
    timed = {
        name: pc.if_else(pc.fill_null(loaded["counted"], False), values, None)
        for name, values in (
            (f"{prefix}_samples_per_sec", pc.round(loaded["images_per_s"], 2)),
            (f"{prefix}_step_time", pc.round(loaded["compiled_ms"], 3)),
        )
    }
    sizes = {f"{prefix}_batch_size": loaded["batch_size"], f"{prefix}_img_size": pc.list_element(loaded["input_size"], 2)}
    counts = (
        {} if training else {"infer_gmacs": pc.round(loaded["gmacs"], 2), "infer_macts": pc.round(loaded["mactivations"], 2)}
    )
    if not is_timed:
        timed, counts = {}, {}
    millions = pc.round(pc.divide(pc.cast(loaded["parameters"], pa.float64()), 1e6), 2)
    return pa.table({"model": loaded["model"], **timed, **sizes, **counts, "param_count": millions})
