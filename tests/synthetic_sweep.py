"""Tables such as a sweep of many models leaves, without measuring any: for what has to be tried with many cells.

python tests/synthetic_sweep.py /tmp/somewhere/results/cpu 1250    # so many models in eight modes
"""

import json
import math
import random
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import merged
from timmgate.core.checks import CHECKS
from timmgate.core.thresholds import Thresholds
from timmgate.tables import failures, parquet, summary

MODES = (
    *("inference", "inference-amp", "inference-bfloat16", "inference-freezing", "inference-channels-last"),
    *("inference-dynamic", "training", "training-amp"),
)
FAMILIES = ("resnet", "vit", "convnext", "efficientnet", "regnet", "swin", "mobilenetv3", "deit", "beit", "xcit", "nfnet")
SIZES = ("tiny", "small", "base", "large")
START = datetime(2026, 11, 25, 8, 0, tzinfo=UTC)
OPTIONS = {f"option_{number}": "value" for number in range(50)}
STATES = ("fail_accuracy", "fail_to_run", "timeout", "OOM")

Row = dict[str, Any]


def cells(models: int, modes: Sequence[str] = MODES, seed: int = 1) -> list[Row]:
    """Rows of `cells`, in the order of a run: most are fine, some fail in each way, some are worth a look."""
    chance = random.Random(seed)
    names = [f"{FAMILIES[n % len(FAMILIES)]}{n // len(FAMILIES)}_{SIZES[n % 4]}.in1k" for n in range(models)]
    return [_cell(name, mode, chance) for mode in modes for name in names]


def _cell(model: str, mode: str, chance: random.Random) -> Row:
    speedup = math.exp(chance.gauss(0.35, 0.22))
    eager_ms, cold_s = 10 ** chance.uniform(0.5, 2.5), 10 ** chance.uniform(0.9, 1.9)
    memory, margin = 10 ** chance.uniform(7, 9.5), min(0.98, abs(chance.gauss(0.2, 0.15)))
    width = chance.uniform(0.004, 0.03)
    began = START + timedelta(seconds=chance.uniform(0, 40_000))
    row: Row = {
        **{"device": "cpu", "build": "default", "mode": mode, "model": model, "architecture": model.split(".")[0]},
        **{"device_name": "a processor", "suite": "synthetic", "backend": "inductor", "training": "training" in mode},
        **{"precision": "float32", "options": '{"precision": "float32"}', "batch_size": 8, "input_size": [3, 224, 224]},
        **{"parameters": int(memory / 8), "weights": "random", "weights_hash": f"{chance.getrandbits(256):064x}"},
        **{"images": "noise", "seed": 1337, "protocol": 3, "requested": True, "stale": False, "counted": True},
        **{"accuracy": "pass", "reference": "fp64", "comparison": "error", "tolerance": 0.001, "leaves": 120},
        **{"leaves_failed": 0, "worst_leaf": "gradient.blocks.3.mlp.fc1.weight", "margin": margin, "top1_agreement": 1.0},
        **{"performance": "pass", "speedup": speedup, "speedup_ci_low": speedup * (1 - width), "noise_floor": 0.01},
        **{"speedup_ci_high": speedup * (1 + width), "samples": 60, "eager_ms": eager_ms, "compiled_ms": eager_ms / speedup},
        **{"verdict": "faster" if speedup > 1.02 else "slower" if speedup < 0.98 else "same", "timed_output_ok": True},
        **{"images_per_s": 8000 * speedup / eager_ms, "timed_output_margin": margin, "machine_drift": chance.gauss(1, 0.01)},
        **{"compile_cold_s": cold_s, "compile_cold_cpu_s": 1.6 * cold_s, "compile_warm_s": cold_s / 15},
        **{"dynamo_s": 0.95 * cold_s, "aot_autograd_s": 0.8 * cold_s, "inductor_s": 0.7 * cold_s, "codegen_s": 0.2 * cold_s},
        **{"eager_peak_bytes": int(memory), "compiled_peak_bytes": int(memory / 1.3), "compression_ratio": 1.3},
        **{"graph_breaks": 0, "unique_graphs": 1, "ops_captured": 400, "recompiles": 0, "host": "host", "torch": "2.14.1"},
        **{"timm": "1.0.31", "python": "3.11.2", "log": f"logs/cpu/default/{mode}/{model}.log"},
        **{"command": f"python -m timmgate.worker '{json.dumps({'model': model, 'mode': mode, 'options': OPTIONS})}'"},
    }
    if speedup > 1:
        row["break_even_iterations"] = 1000 * cold_s / (eager_ms - eager_ms / speedup)
    row |= {"strict": "pass", "strict_margin": margin / 2}
    for check in CHECKS:
        row |= {f"{check}_wall_s": 2 * cold_s, f"{check}_started_at": began, f"{check}_threads": 1, f"{check}_attempt": 1}
    if chance.random() < 0.02:
        row |= {
            "accuracy": chance.choice(STATES),
            "counted": False,
            "accuracy_stage": "compare",
            "accuracy_cause": "comparison",
        }
        row |= {"accuracy_message": "3 of 120 tensors differ", "leaves_failed": 3, "margin": 10 ** chance.uniform(0.1, 3)}
    row |= {"accuracy_by_rule": row["accuracy"], "passed": row["accuracy"] == "pass", "passed_by": "strict"}
    if chance.random() < 0.03:
        row |= {"graph_breaks": 2, "graph_break_reasons": ["data-dependent control flow", "call of an unknown function"]}
    return row


def details(cell: Row, leaves: int, samples: int, chance: random.Random) -> tuple[list[Row], list[Row]]:
    """Rows of evidence and of samples of a cell."""
    key = {name: cell[name] for name in ("device", "build", "mode", "model")}
    evidence = []
    for number in range(leaves):
        eager = 10 ** chance.uniform(-8, -4)
        margin = cell["margin"] * (1 if number == 0 else chance.random() ** 2)
        name = cell["worst_leaf"] if number == 0 else f"gradient.blocks.{number // 4}.norm{number % 4}.weight"
        errors = {"eager_rmse": eager, "allowed_error": 3 * eager + 1e-6, "compiled_rmse": margin * (3 * eager + 1e-6)}
        shape = {"shape": [64, 32], "dtype": "float32", "numel": 2048, "kind": "gradient"}
        rest = {"margin": margin, "error_ratio": errors["compiled_rmse"] / eager, "accuracy": margin <= 1, "cosine": 1.0}
        evidence.append({**key, "leaf": name, **shape, **errors, **rest})
    pairs = [
        {
            **key,
            **{"block": number // 2, "eager_first": number % 2 == 0},
            **{"eager_s": cell["eager_ms"] / 1e3 * chance.uniform(0.98, 1.03)},
            **{"compiled_s": cell["compiled_ms"] / 1e3 * chance.uniform(0.98, 1.03)},
        }
        for number in range(samples)
    ]
    return evidence, pairs


def write(
    folder: Path, models: int, modes: Sequence[str] = MODES, leaves: int = 40, samples: int = 60, seed: int = 1
) -> None:
    """All tables of such a run in `folder`, which is results/{device}."""
    rows, chance = cells(models, modes, seed), random.Random(seed)
    write_tables(folder, rows, [details(row, leaves, samples, chance) for row in rows])


def write_tables(folder: Path, rows: Sequence[Row], of_cells: Sequence[tuple[list[Row], list[Row]]] = ()) -> None:
    """The tables of these cells, and of their evidence and samples."""
    folder.mkdir(parents=True, exist_ok=True)
    table = merged.cells(rows)
    attempts = [
        {name: row[name] for name in ("device", "build", "mode", "model")}
        | {"check_name": check, "attempt": 1, "status": row.get(check), "wall_s": row.get(f"{check}_wall_s")}
        for row in rows
        for check in CHECKS
    ]
    found = {
        "cells": table,
        "attempts": parquet.table(attempts, parquet.SCHEMAS["attempts"]),
        "evidence": parquet.table([row for evidence, _ in of_cells for row in evidence], parquet.SCHEMAS["evidence"]),
        "samples": parquet.table([row for _, samples in of_cells for row in samples], parquet.SCHEMAS["samples"]),
        "failures": failures.failures(table, list(CHECKS), Thresholds()),
    }
    for name, each in found.items():
        parquet.write(each, folder / f"{name}.parquet")
    parquet.write_tsv(found["failures"], folder / "failures.tsv")
    parquet.write_tsv(summary.summary(table, list(CHECKS)), folder / "summary.tsv")


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
