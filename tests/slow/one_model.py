"""Loads one model of a suite with random weights, runs one eager forward and one backward pass, and prints what it took.

python tests/slow/one_model.py dashboard-2024 mobilenetv2_100
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timmgate.config import suites
from timmgate.core.spec import Cell, Mode
from timmgate.worker import models, training_step

SUITES = Path(__file__).parents[2] / "config" / "suites"


def main(suite: str, model: str) -> dict[str, Any]:
    """Seconds of each step, number of parameters, and the largest resident size of this process in bytes."""
    traits, figures = suites.read(suite, SUITES).models[model], {"model": model}
    for training in (False, True):
        batch_size = 2 if training else 1  # BatchNorm cannot train on one value per channel, which some heads have
        cell = Cell(
            device="cpu",
            mode="m",
            model=model,
            weights="random",
            torch="",
            timm="",
            batch_size=batch_size,
            options=Mode(training=training),
            traits=traits,
        )
        spec = cell.spec("accuracy")
        made, figures["load_s"] = timed(models.create, spec)
        images = training_step.fresh(spec, models.images(spec, models.input_size(spec, made), batch_size))
        if training:
            _, figures["training_step_s"] = timed(training_step.iterate, spec, made, made, images)
        else:
            _, figures["forward_s"] = timed(made, images)
    figures["parameters"] = sum(parameter.numel() for parameter in made.parameters())
    figures["peak_rss_bytes"] = peak_rss_bytes()
    return figures


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What `work` returns for the arguments, and its seconds."""
    start = time.perf_counter()
    return work(*arguments), time.perf_counter() - start


def peak_rss_bytes() -> int:
    """VmHWM of this process; ru_maxrss would inherit the size of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
