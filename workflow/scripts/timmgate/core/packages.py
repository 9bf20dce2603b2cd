"""Packages of data beside the code: where they are, without importing them."""

from importlib.util import find_spec
from pathlib import Path

PHOTOS = "scikit-image"
"""The package whose photos models see with packaged weights."""

MODULES = {PHOTOS: "skimage"}
"""Package to the module that it installs, where that is not the same word."""


def module(package: str) -> str:
    """The module that a package installs."""
    return MODULES.get(package, package.replace("-", "_"))


def is_installed(package: str) -> bool:
    """Whether it can be imported."""
    return find_spec(module(package)) is not None


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
