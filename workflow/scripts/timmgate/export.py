"""The results in the files of other tools: benchmarks/dynamo's accuracy CSV and timm's benchmark CSV."""

from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from timmgate.spec import Mode

SUITE = "timm_models"
"""What benchmarks/dynamo calls the suite of all timm models."""


def files(cells: pa.Table, modes: dict[str, Mode], device: str) -> dict[str, pa.Table]:
    """All files by name: two per mode."""
    exported = {}
    for mode, stem in stems(modes).items():
        of_mode = cells.filter(pc.equal(cells["mode"], mode))
        training = modes[mode].training
        exported[f"{stem}_{device}_accuracy.csv"] = accuracy(of_mode)
        exported[f"benchmark-{'train' if training else 'infer'}-{mode}-{device}.csv"] = benchmark(of_mode, training)
    return exported


def stems(modes: dict[str, Mode]) -> dict[str, str]:
    """By mode, the beginning of its file name: {backend}_{variant}_{suite}_{dtype}_{training or inference}.

    The variant is the mode's name. A mode with no other option than these goes without, unless there are two of the kind.
    """
    bare = {name: _stem(mode.backend, mode) for name, mode in modes.items() if not _has_more_options(mode)}
    taken = Counter(bare.values())
    return {
        name: bare[name] if taken[bare.get(name)] == 1 else _stem(f"{mode.backend}_{name}", mode)
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
            "batch_size": pc.fill_null(cells["batch_size"], 0),
            "accuracy": cells["accuracy"],
        }
    )


def benchmark(cells: pa.Table, training: bool) -> pa.Table:
    """timm's benchmark CSV, as far as an accuracy check knows it: the models that were loaded, with timm's units.

    Those are pixels, images, and millions of parameters.
    """
    loaded = cells.filter(pc.is_valid(cells["parameters"]))
    image_size = pc.list_element(loaded["input_size"], 2)
    millions = pc.round(pc.divide(pc.cast(loaded["parameters"], pa.float64()), 1e6), 2)
    if training:
        columns = {"train_batch_size": loaded["batch_size"], "train_img_size": image_size}
    else:
        columns = {"infer_img_size": image_size, "infer_batch_size": loaded["batch_size"]}
    return pa.table({"model": loaded["model"], **columns, "param_count": millions})
