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
    return Path(find_spec(module(package)).origin).parent
