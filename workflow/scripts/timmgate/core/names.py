"""Names of timm models, and of cells."""

from collections.abc import Mapping
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from timmgate.core.build import DEFAULT


class UnknownModelError(ValueError):
    """timm has no model of that name; the message has near matches."""


def check_name(name: str, timm: ModuleType) -> None:
    """Raise UnknownModelError unless `timm` can create `name`, an architecture with or without a pretrained tag.

    `timm` is the module itself: this room must not import it.
    """
    if timm.is_model(name) and ("." not in name or name in timm.list_models(name, include_tags=True)):
        return
    tags = timm.list_models(f"{name.split('.')[0]}.*", pretrained=True)
    near = get_close_matches(name, tags or timm.list_models() + timm.list_models(pretrained=True), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UnknownModelError(f"timm {timm.__version__} has no model {name!r}{hint}")


def cell_name(row: Mapping[str, Any]) -> str:
    """A cell in a sentence, by its columns: mode/model, with the build in front unless that is the default one."""
    build = row.get("build")
    return "/".join([*([build] if build not in (None, DEFAULT) else []), row["mode"], row["model"]])
