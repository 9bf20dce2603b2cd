"""The results in the files of other tools: benchmarks/dynamo's CSVs of both checks and timm's benchmark CSV."""

from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from timmgate.core.spec import Mode
from timmgate.tables.merge import requested

SUITE = "timm_models"
"""What benchmarks/dynamo calls the suite of all timm models."""


def files(cells: pa.Table, modes: dict[str, Mode], device: str) -> dict[str, pa.Table]:
    """All files by name, of the requested cells: one per mode and measured check for benchmarks/dynamo, and one per mode for
    timm.
    """
    exported, cells = {}, requested(cells)
    for mode, stem in stems(modes).items():
        of_mode = cells.filter(pc.equal(cells["mode"], mode))
        training = modes[mode].training
        for check, table_of in (("accuracy", accuracy), ("performance", performance)):
            if of_mode[check].null_count < len(of_mode):
                exported[f"{stem}_{device}_{check}.csv"] = table_of(of_mode)
        exported[f"benchmark-{'train' if training else 'infer'}-{mode}-{device}.csv"] = benchmark(of_mode, training)
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


def accuracy(cells: pa.Table) -> pa.Table:
    """benchmarks/dynamo's accuracy CSV, without the counters, which are not measured; its readers go by the header.

    A batch size of 0 is that suite's word for a model that was never run.
    """
    return pa.table(
        {
            "dev": cells["device"],
            "name": cells["model"],
            "batch_size": pc.fill_null(cells["accuracy_batch_size"], 0),
            "accuracy": cells["accuracy"],
        }
    )


def performance(cells: pa.Table) -> pa.Table:
    """benchmarks/dynamo's performance CSV: latency of compiled in ms, compile time in s, peak memory in GB.

    A cell that was not timed has zeros, as there. It has no compiled autograd, so that the columns of that are 0.
    """
    timed = pc.is_valid(cells["speedup"])
    reasons = [len(set(each or ())) for each in cells["graph_break_reasons"].to_pylist()]
    latency_s = pc.coalesce(cells["compile_cold_s"], cells["compile_warm_s"])
    columns = {
        "speedup": cells["speedup"],
        "abs_latency": cells["compiled_ms"],
        "compilation_latency": latency_s,
        "compression_ratio": cells["compression_ratio"],
        "eager_peak_mem": pc.divide(pc.cast(cells["eager_peak_bytes"], pa.float64()), 1e9),
        "dynamo_peak_mem": pc.divide(pc.cast(cells["compiled_peak_bytes"], pa.float64()), 1e9),
        "calls_captured": cells["ops_captured"],
        "unique_graphs": cells["unique_graphs"],
        "graph_breaks": cells["graph_breaks"],
        "unique_graph_breaks": pa.array(reasons, pa.int64()),
        "autograd_captures": pa.array([0] * len(cells), pa.int64()),
        "autograd_compiles": pa.array([0] * len(cells), pa.int64()),
        "cudagraph_skips": cells["cudagraph_skips"],
    }
    batch_size = pc.if_else(timed, cells["batch_size"], 0)
    figures = {name: pc.fill_null(pc.if_else(timed, column, None), 0) for name, column in columns.items()}
    return pa.table({"dev": cells["device"], "name": cells["model"], "batch_size": batch_size, **figures})


def benchmark(cells: pa.Table, training: bool) -> pa.Table:
    """timm's benchmark CSV of the compiled models, in its units: images per s, ms, pixels, 1e9 MACs, 1e6 activations.

    It has the models that were loaded, and of a run without the performance check no more than their sizes.
    """
    loaded = cells.filter(pc.is_valid(cells["parameters"]))
    prefix = "train" if training else "infer"
    timed = {
        f"{prefix}_samples_per_sec": pc.round(loaded["images_per_s"], 2),
        f"{prefix}_step_time": pc.round(loaded["compiled_ms"], 3),
    }
    sizes = {f"{prefix}_batch_size": loaded["batch_size"], f"{prefix}_img_size": pc.list_element(loaded["input_size"], 2)}
    counts = (
        {} if training else {"infer_gmacs": pc.round(loaded["gmacs"], 2), "infer_macts": pc.round(loaded["mactivations"], 2)}
    )
    if loaded["performance"].null_count == len(loaded):
        timed, counts = {}, {}
    millions = pc.round(pc.divide(pc.cast(loaded["parameters"], pa.float64()), 1e6), 2)
    return pa.table({"model": loaded["model"], **timed, **sizes, **counts, "param_count": millions})
