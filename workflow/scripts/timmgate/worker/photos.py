"""Photographs of many things, for models with real weights."""

from PIL import Image

from timmgate.core import packages

FILES = (
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


def load() -> list[Image.Image]:
    """The photos, in colour. Raises ModuleNotFoundError with what to install."""
    if not packages.is_installed(packages.PHOTOS):
        raise ModuleNotFoundError(f"the photos are those of {packages.PHOTOS}: pip install {packages.PHOTOS}")
    folder = packages.folder(packages.PHOTOS) / "data"
    return [Image.open(folder / name).convert("RGB") for name in FILES]
