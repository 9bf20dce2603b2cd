"""Settings and a suite to the specs of all requested measurements. Knows no paths."""

from importlib.metadata import version

from timmgate.settings import Settings
from timmgate.spec import Spec, Traits


def expand(settings: Settings, models: dict[str, Traits]) -> dict[tuple[str, str, str], Spec]:
    """One spec per (check, mode, model), modes outermost."""
    versions = {package: version(package) for package in ("torch", "timm")}
    return {
        (check, mode, model): Spec(
            check=check,
            device=settings.device,
            mode=mode,
            model=model,
            weights=settings.weights,
            batch_size=settings.batch_size,
            options=options,
            traits=traits,
            **versions,
        )
        for check in settings.checks
        for mode, options in settings.modes.items()
        for model, traits in models.items()
    }
