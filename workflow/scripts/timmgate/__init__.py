"""Does a compiler compute the right thing on timm's vision models? The library behind the workflow's rules."""

import os
from pathlib import Path

PACKAGE_ROOT = Path(__file__).parents[1]
"""The folder that this package is imported from."""


def module_environment() -> dict[str, str]:
    """Our environment, for a child that runs a module of this package: it finds the package where we did."""
    search_path = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": search_path}
