"""Settings and a cell to the specs of its measurements. Has no paths."""

from collections.abc import Callable, Mapping

from timmgate.config.builds import Build
from timmgate.config.settings import Settings
from timmgate.config.suites import Suite
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


def identities(
    settings: Settings, builds: Mapping[str, Build], suite: Suite
) -> Callable[[tuple[str, str, str, str], str], str | None]:
    """By (device, build, mode, model) and check, the identity by these settings; None for a cell that they do not know."""
    models = {**suite.models, **suite.tagged}

    def identity(key: tuple[str, str, str, str], check: str) -> str | None:
        device, label, mode, model = key
        is_known = device == settings.device and mode in settings.catalogue.get(label, ()) and model in models
        if not is_known:
            return None
        return cell(settings, builds[label], mode, model, models[model]).spec(check).identity()

    return identity
