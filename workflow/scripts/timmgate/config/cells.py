"""Settings and a cell to the specs of its measurements."""

from collections.abc import Callable
from pathlib import Path

from timmgate.config import builds, suites
from timmgate.config.builds import Build
from timmgate.config.settings import Settings
from timmgate.core.build import DEFAULT
from timmgate.core.spec import Cell, Traits


def cell(settings: Settings, build: Build, mode: str, model: str, traits: Traits) -> Cell:
    """Everything that defines the measurements of one cell."""
    return Cell(
        device=settings.device,
        build=build.label,
        mode=mode,
        model=model,
        weights=settings.weights,
        batch_size=settings.batch_size,
        options=settings.catalogue[build.label][mode],
        traits=traits,
        torch=build.facts["torch"],
        timm=build.facts["timm"],
        software=build.software,
        threads=settings.run.threads if settings.device == "cpu" else None,
        allocator=settings.allocator if settings.device == "cpu" else None,
        relocate=settings.relocate if settings.device == "cpu" else None,
    )


Identities = Callable[[tuple[str, str, str, str], str], str | None]
"""By (device, build, mode, model) and check, the identity that it would have today; None for a cell that is not known."""


def identities(settings: Settings, facts: Path) -> Identities:
    """The identities by these settings, and by what a folder of facts says of the builds. Raises ConfigError and OSError."""
    found = {label: builds.load(facts, label) for label in builds.needed(settings)}
    suite = suites.read(settings.suite, build=found.get(DEFAULT))
    models = {**suite.models, **suite.tagged}

    def identity(key: tuple[str, str, str, str], check: str) -> str | None:
        device, label, mode, model = key
        is_known = device == settings.device and mode in settings.catalogue.get(label, ()) and model in models
        if not is_known:
            return None
        return cell(settings, found[label], mode, model, models[model]).spec(check).identity()

    return identity
