"""How well changes are found in series with injected steps, and how long a year of nights takes to ask.

    python benchmarks/history.py [--cells 10000] [--nights 365] [--folder DIR]

Steps: series of 200 values, 1 to 5 steps of 2 % at least 30 apart, a coefficient of variation of 1 %, matched within 5 (the
protocol of Hunter, arXiv 2301.03034). Drift: ten steps of 0.5 %. The year is written to the folder, unless it is there.
"""

import argparse
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa

from timmgate.tables import parquet
from timmgate.tables.history import changes, store, trends

SERIES, LENGTH, GAP, WITHIN = 2000, 200, 30, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(1337)
    print(steps(rng))
    for variation in (0.001, 0.003, 0.005, 0.01):
        print(drift(rng, variation))
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch, "history")
        if not folder.exists():
            write_year(folder, options.cells, options.nights, rng)
        print(ask(folder))


def steps(rng: np.random.Generator) -> str:
    """Precision, recall and F1 of injected steps."""
    values, places = np.zeros((SERIES, LENGTH)), []
    for series in values:
        number = rng.integers(1, 6)
        slack = LENGTH - GAP * (number + 1)
        where = GAP * np.arange(1, number + 1) + np.sort(rng.integers(0, slack + 1, number))
        for place in where:
            series[place:] += np.log(1.02) * rng.choice([-1, 1])
        series += np.log(rng.normal(1, 0.01, LENGTH))
        places.append(set(where))
    expected, right, wrong = sum(map(len, places)), 0, 0
    for series, change in changes.find(values, LENGTH):
        if not change.is_drift:
            near = {place for place in places[series] if abs(place - LENGTH - change.first) <= WITHIN}
            places[series] -= near
            right, wrong = right + bool(near), wrong + (not near)
    precision, recall = right / (right + wrong), right / expected
    f1 = 2 * precision * recall / (precision + recall)
    return f"{expected} steps of 2 % at 1 %: precision {precision:.3f}, recall {recall:.3f}, F1 {f1:.3f}"


def drift(rng: np.random.Generator, variation: float, series: int = 500) -> str:
    """How often ten steps of 0.5 % are reported as a drift."""
    values = np.log(rng.normal(1, variation, (series, 365)))
    for number in range(1, 11):
        values[:, 140 + 20 * number :] += np.log(1.005)
    told = {number for number, change in changes.find(values, 30) if change.is_drift}
    return f"ten steps of 0.5 % at {variation:.1%}: {len(told)} of {series} found"


def write_year(folder: Path, cells: int, nights: int, rng: np.random.Generator) -> None:
    """A history of cells that change twice a year each, by 2 to 20 %."""
    modes = ("inference", "inference-amp", "inference-freezing", "training")
    typical_ms, level = rng.uniform(5, 500, cells), np.zeros(cells)
    fixed = {
        "device": "cpu", "device_name": "a processor", "build": "default", "suite": "timm", "weights": "random",
        "timm": "1.0.31", "accuracy": "pass", "performance": "pass", "accuracy_batch_size": 8, "performance_batch_size": 32,
        "accuracy_threads": 1, "performance_threads": 1, "graph_breaks": 0,
    }  # fmt: skip
    for night in range(nights):
        at = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(days=night)
        changed = rng.random(cells) < 2 / 365
        level[changed] += rng.choice([-1, 1], changed.sum()) * rng.uniform(0.02, 0.2, changed.sum())
        starts = [at + timedelta(seconds=8 * number) for number in range(cells)]
        columns = {
            **{name: [value] * cells for name, value in fixed.items()},
            "torch": [f"2.16.0.dev{at:%Y%m%d}"] * cells,
            "mode": [modes[number % 4] for number in range(cells)],
            "options": [f"options of {modes[number % 4]}" for number in range(cells)],
            "model": [f"model_{number // 4}" for number in range(cells)],
            "accuracy_started_at": starts,
            "performance_started_at": starts,
            "accuracy_identity": [f"{night:032x}{number:032x}" for number in range(cells)],
            "performance_identity": [f"{night:032x}{number:031x}1" for number in range(cells)],
            "eager_ms": 2 * typical_ms * rng.normal(1, 0.01, cells),
            "compiled_ms": typical_ms * np.exp(level) * rng.normal(1, 0.01, cells),
            "compile_cold_cpu_s": typical_ms * rng.normal(1, 0.03, cells),
            "compiled_allocated_bytes": (1e7 * typical_ms).astype(int),
        }
        schema = parquet.SCHEMAS["cells"]
        arrays = [
            pa.array(columns[each.name], each.type) if each.name in columns else pa.nulls(cells, each.type)
            for each in schema
        ]
        store.write(pa.table(arrays, schema=schema), folder, at)


def ask(folder: Path) -> str:
    """How long the question takes."""
    began, cpu = time.perf_counter(), time.process_time()
    found, extent = trends.changed(folder, "cpu", 30)
    words = f"{time.perf_counter() - began:.1f} s, {time.process_time() - cpu:.1f} s of processor time"
    return f"{extent}: {len(found)} found in {words}"


if __name__ == "__main__":
    main()
