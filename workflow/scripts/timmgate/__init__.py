"""Does a compiler compute the right thing on timm's vision models? The library behind the workflow's rules."""

import os
from collections.abc import Mapping
from pathlib import Path

PACKAGE_ROOT = Path(__file__).parents[1]
"""The folder that this package is imported from."""


def module_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment with these variables, for a child that runs a module of this package.

    It finds the package where we did.
    """
    environment = {**os.environ, **(variables or {})}
    folders = [str(PACKAGE_ROOT), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    return {**environment, "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, folders)))}
