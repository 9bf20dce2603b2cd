"""Settings and a cell to the specs of its measurements. Knows no paths."""

from functools import cache
from importlib.metadata import version

from timmgate.settings import Settings
from timmgate.spec import Spec, Traits


def specs(settings: Settings, mode: str, model: str, traits: Traits) -> list[Spec]:
    """One spec per check that is asked for, in their order."""
    return [
        Spec(
            check=check,
            device=settings.device,
            mode=mode,
            model=model,
            weights=settings.weights,
            batch_size=settings.batch_size,
            options=settings.modes[mode],
            traits=traits,
            torch=_version("torch"),
            timm=_version("timm"),
        )
        for check in settings.checks
    ]


_version = cache(version)
