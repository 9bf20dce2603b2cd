"""timm's registry of models, without importing timm: a process of its own lists it once per version, into a file.

    python -m timmgate.config.registry FILE

writes that file. Importing timm takes seconds, and every cluster job parses the workflow.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate import module_environment
from timmgate.core.errors import ConfigError, last_words
from timmgate.core.files import write_text

if TYPE_CHECKING:
    from timmgate.config.builds import Build

DIGITS = 12
"""Of the digest of timm's files in the name of its list: they may change within a version."""

REFERENCE_AREA = 224 * 224
"""Input pixels that the cost of a model is relative to."""


@dataclass(frozen=True)
class Architecture:
    """What timm's default configuration says of an architecture; its family is the module that defines it."""

    family: str
    input_size: list[int]
    num_classes: int
    pretrained: bool


@dataclass(frozen=True)
class Registry:
    """All models of one version of timm, in timm's order.

    `tagged` maps every `arch.tag` to its input size, `renamed` every name that timm has retired to its successor.
    """

    timm: str
    architectures: dict[str, Architecture]
    tagged: dict[str, list[int]]
    renamed: dict[str, str | None]

    def __contains__(self, name: str) -> bool:
        return name in self.architectures or name in self.tagged

    def family(self, name: str) -> str:
        """The family of an `arch` or `arch.tag`."""
        return self.architectures[name.split(".", 1)[0]].family

    def relative_area(self, name: str) -> float:
        """Input pixels of an `arch` or `arch.tag`, in units of 224 x 224."""
        _, height, width = self.tagged[name] if name in self.tagged else self.architectures[name].input_size
        return height * width / REFERENCE_AREA


def load(cache: Path, build: "Build") -> Registry:
    """The registry of a build's timm, from a file in the folder `cache`, which is made if need be.

    Raises ConfigError if timm cannot be listed.
    """
    path = cache / f"timm-{build.facts['timm']}-{build.facts['sources']['timm'][:DIGITS]}.json"
    if not path.is_file() or path.stat().st_mtime <= Path(__file__).stat().st_mtime:
        _list_into(path, build)
    values = json.loads(path.read_text(encoding="utf-8"))
    architectures = {name: Architecture(**fields) for name, fields in values["architectures"].items()}
    return Registry(**{**values, "architectures": architectures})


def _list_into(path: Path, build: "Build") -> None:
    command = [build.options.python or sys.executable, "-m", "timmgate.config.registry", str(path)]
    lister = subprocess.run(command, env=module_environment(build.options.env), capture_output=True, text=True)
    if lister.returncode:
        raise ConfigError(f"suite: the models of timm {build.facts['timm']} cannot be listed: {last_words(lister)}")


def installed() -> Registry:
    """The registry of the timm that this process imports, without models that have no configuration, as of others."""
    import timm

    families = {name: family for family in timm.list_modules() for name in timm.list_models(module=family)}
    configs = {name: config for name in timm.list_models() if (config := timm.get_pretrained_cfg(name))}
    others = [name for name in timm.list_models(include_tags=True) if name not in configs]
    return Registry(
        timm=timm.__version__,
        architectures={
            name: Architecture(families[name], config.input_size, config.num_classes, timm.is_model_pretrained(name))
            for name, config in configs.items()
        },
        tagged={name: config.input_size for name in others if (config := timm.get_pretrained_cfg(name))},
        renamed=timm.models.get_deprecated_models(),
    )


def cost(known: Registry, model: str) -> float:
    """Millions of parameters times the relative area of the input. Builds the model, without memory for its parameters."""
    import timm
    import torch

    with torch.device("meta"):
        parameters: int = sum(parameter.numel() for parameter in timm.create_model(model).parameters())
    return parameters / 1e6 * known.relative_area(model)


def main() -> None:
    """List the installed timm into the file that the command line names."""
    text = json.dumps(asdict(installed()))
    write_text(Path(sys.argv[1]), text)


if __name__ == "__main__":
    main()
