"""What a build of the catalogue says of itself: where what compiles is, and what is different there."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timmgate.core.described import described
from timmgate.core.files import with_home

DEFAULT = "default"
"""The label of the environment that Snakemake itself runs in, unless the catalogue says otherwise."""

RESERVED = ("export", "pairs", "confirm", "power", "calibration", "report", "diagnosis")
"""Folders in results/{device} beside those of the builds."""

TABLE_SUFFIXES = (".parquet", ".tsv", ".json", ".csv", ".log", ".html", ".xml")
"""Ends of the files beside these folders."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Variables that a worker sets to the number of threads."""

WORKERS_OWN = {
    **dict.fromkeys((*THREAD_VARIABLES, "TORCHINDUCTOR_COMPILE_THREADS"), "the key threads"),
    "TORCHINDUCTOR_CACHE_DIR": "the key compile_cache",
    "TRITON_CACHE_DIR": "the key compile_cache",
    "CUBLAS_WORKSPACE_CONFIG": "the measurement protocol",
    "HF_HUB_OFFLINE": "the measurement protocol",
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "the measurement protocol",
    "CUDA_VISIBLE_DEVICES": "the lock of the GPU; set it for snakemake itself",
}
"""Variables that are set in every worker, whatever a build says, and by what."""


def names_builds(labels: Iterable[str | None]) -> bool:
    """Whether tables and pictures of cells say the build of each: unless all are of the default one, or of none."""
    return bool({*labels} - {None, DEFAULT})


def _with_homes(text: str) -> str:
    """A value of a variable, with the home folder for a ~ at the begin of each path in it, as a shell would have it."""
    return os.pathsep.join(with_home(each) if each.startswith("~/") else each for each in text.split(os.pathsep))


@dataclass(frozen=True)
class BuildOptions:
    """The options of a build."""

    python: str | None = described(
        "Python of the environment that has torch, timm and numpy, `~/nightly/bin/python`; null is the one that runs "
        "snakemake.",
        default=None,
        minLength=1,
    )
    env: dict[str, str] = described(
        "Environment variables for this build alone.", default_factory=dict, additionalProperties={"type": "string"}
    )
    inductor_config: dict[str, Any] = described(
        "Keys of torch._inductor.config, with dots, added to every mode. They win over the key `inductor_config`, and a "
        "mode's own win over them.",
        default_factory=dict,
    )
    import_: list[str] = described(
        "Modules to import before anything else, which register a backend or a device.",
        default_factory=list,
        items={
            "type": "string",
            "pattern": r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$",
            "form": "the name of a module, as in acme.torch_plugin",
        },
    )

    @classmethod
    def of_config(cls, values: dict[str, Any]) -> "BuildOptions":
        """The options as they are written in a configuration, where `import` is no word of Python's."""
        env = {name: _with_homes(text) for name, text in values.get("env", {}).items()}
        return cls(**{"import_" if name == "import" else name: value for name, value in (values | {"env": env}).items()})

    def import_places(self) -> list[str]:
        """Folders of what it imports beside its environment's: where a run was started, and its PYTHONPATH."""
        return [str(Path.cwd()), *filter(None, self.env.get("PYTHONPATH", "").split(os.pathsep))] if self.import_ else []

    def script_environment(self, threads: int, device: str) -> dict[str, str]:
        """Variables of a worker that change what is computed, for a script that repeats it without compile caches."""
        own = {THREAD_VARIABLES[0]: str(threads), "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        return {**own, **({} if device == "cpu" else {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}), **self.env}
