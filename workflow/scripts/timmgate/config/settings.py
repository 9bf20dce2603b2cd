"""Configuration: what a run is asked for, resolved in the catalogues; what contradicts itself gets one clear sentence.

Imports neither torch nor Snakemake, so that it costs nothing while the workflow is parsed.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from timmgate.config import threads
from timmgate.config.validation import coerce, schema, validate
from timmgate.core.build import RESERVED, TABLE_SUFFIXES, WORKERS_OWN, BuildOptions
from timmgate.core.checks import CHECKS
from timmgate.core.described import json_schemas
from timmgate.core.errors import ConfigError, did_you_mean
from timmgate.core.files import with_home
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import INFERENCE_ONLY_BACKENDS, Mode
from timmgate.core.thresholds import Thresholds
from timmgate.core.traces import TRACES

PATHS = ("suite", "baseline", "candidate", "quarantine", "history_path")
"""Keys with a path, or a word in its place."""

WHOLE_REGISTRY = "timm"
"""The suite that has no table: all that timm has."""


@dataclass(frozen=True)
class Settings:
    """The validated configuration; fields are the keys of config/config.yaml, resolved in the catalogues.

    `builds` are the requested ones by label, and `all_builds` all that the catalogue has. `catalogue` has, by label of a
    requested build, all modes that mean something, with the options that they have there; `modes` are the requested ones as
    the first build runs them: builds differ in `inductor_config` alone.
    """

    device: str
    suite: str
    models: tuple[str, ...]
    exclude: tuple[str, ...]
    shard: tuple[int, int] | None
    builds: dict[str, BuildOptions]
    all_builds: dict[str, BuildOptions]
    modes: dict[str, Mode]
    catalogue: dict[str, dict[str, Mode]]
    checks: tuple[str, ...]
    weights: str
    batch_size: int | None
    run: RunOptions
    allocator: Literal["retain", "system"]
    relocate: bool
    thresholds: Thresholds
    retry: tuple[str, ...]
    fault_places: tuple[str, ...]
    trace: tuple[str, ...]
    baseline: str | None
    candidate: str | None
    quarantine: str | None
    history_path: str | None
    history_runs: int


def load(config: dict[str, Any], cores: int | None = None, devices: Callable[[str], int] = lambda device: 1) -> Settings:
    """Coerce, validate and resolve a configuration. Raises ConfigError.

    `cores` are those that all measurements together may take, None on a cluster, and `devices` tells how many there are of a
    torch device type: both only matter where the number of threads depends on them.
    """
    values = coerce(config, schema("config"))
    validate(values, "config", where="config")
    values |= {name: with_home(values[name]) for name in PATHS if values[name]}
    for name in ("baseline", "candidate", "history_path"):
        if values[name] and {"{", "}"} & {*values[name]}:
            raise ConfigError(f"{name}: {values[name]!r} has a brace, which Snakemake takes for a wildcard; rename it")
    suite = values["suite"]
    if suite == "auto":
        suite = "tiny" if values["device"] == "cpu" else "dashboard-2024"
    all_builds = {label: BuildOptions.of_config(options) for label, options in values["build_catalogue"].items()}
    builds = {label: _build(label, all_builds) for label in values["builds"]}
    modes = {name: _mode(name, values, next(iter(builds.values()))) for name in values["modes"]}
    catalogue = {label: _catalogue(values, build) for label, build in builds.items()}
    return Settings(
        device=values["device"],
        suite=suite,
        models=tuple(values["models"]),
        exclude=tuple(values["exclude"]),
        shard=_shard(values["shard"]),
        builds=builds,
        all_builds=all_builds,
        modes=modes,
        catalogue=catalogue,
        checks=tuple(check for check in CHECKS if check in values["checks"]),
        weights=_weights(values["weights"], suite),
        batch_size=values["batch_size"],
        run=RunOptions(
            **{name: values[name] for name in json_schemas(RunOptions)}, threads=_threads(values, cores, devices)
        ),
        allocator=values["allocator"],
        relocate=values["relocate"],
        thresholds=Thresholds(**{name: values[name] for name in json_schemas(Thresholds)}),
        retry=tuple(values["retry"]),
        fault_places=tuple(values["fault_places"]),
        trace=tuple(kind for kind in TRACES if kind in values["trace"]),
        baseline=values["baseline"],
        candidate=values["candidate"],
        quarantine=values["quarantine"],
        history_path=values["history_path"],
        history_runs=values["history_runs"],
    )


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    part, parts = map(int, text.split("/"))
    if part > parts:
        raise ConfigError(f"shard is {text!r}; the part must be between 1 and {parts}")
    return part, parts


def _threads(values: dict[str, Any], cores: int | None, devices: Callable[[str], int]) -> int:
    device = values["device"]
    return threads.number(values["threads"], device, values["jobs_per_gpu"], cores, lambda: devices(device))


def _weights(weights: str, suite: str) -> str:
    if weights != "auto":
        return weights
    if suite.startswith("dashboard") and not Path(suite).suffix and "/" not in suite:  # and no table of one's own
        return "pretrained"
    return "packaged" if suite == "packaged" else "random"


def _build(label: str, catalogue: dict[str, BuildOptions]) -> BuildOptions:
    """Resolve one build of the catalogue and refuse what would have no effect, or a folder that is not its own."""
    if label not in catalogue:
        raise ConfigError(f"builds: there is no build {label!r}{did_you_mean(label, list(catalogue))}")
    if label in RESERVED or label.endswith(TABLE_SUFFIXES):
        raise ConfigError(f"build {label!r}: results/{{device}}/{label} is something else; give the build another label")
    for name in catalogue[label].env:
        if name in WORKERS_OWN:
            raise ConfigError(f"build {label!r}: {name} in env has no effect, as it is set by {WORKERS_OWN[name]}")
        if not name or "=" in name or "\0" in name + catalogue[label].env[name]:
            raise ConfigError(f"build {label!r}: {name!r} in env cannot be a variable of the environment")
    return catalogue[label]


def _catalogue(values: dict[str, Any], build: BuildOptions) -> dict[str, Mode]:
    """The modes as a build runs them."""
    modes = {}
    for name in values["mode_catalogue"]:
        with suppress(ConfigError):  # it is said of those that are requested
            modes[name] = _mode(name, values, build)
    return modes


def _mode(name: str, values: dict[str, Any], build: BuildOptions) -> Mode:
    """Resolve one mode of the catalogue and refuse combinations that mean nothing."""
    catalogue = values["mode_catalogue"]
    if name not in catalogue:
        raise ConfigError(f"modes: there is no mode {name!r}{did_you_mean(name, list(catalogue))}")
    options = catalogue[name]
    of_mode = options.get("inductor_config", {})
    inductor_config = {**values["inductor_config"], **build.inductor_config, **of_mode}
    ordered = dict(sorted(inductor_config.items()))  # in another order it is the same
    mode = Mode(**{**options, "inductor_config": ordered})
    problem = _contradiction(mode)
    if problem:
        raise ConfigError(f"mode {name!r}: {problem}")
    return mode


def _contradiction(mode: Mode) -> str | None:
    if mode.freezing and mode.training:
        return "freezing works at inference only; set training or freezing to false"
    if mode.training and mode.backend in INFERENCE_ONLY_BACKENDS:
        return f"the backend {mode.backend} compiles for inference only; set training to false"
    if mode.amp_dtype and mode.precision != "amp":
        return f"amp_dtype needs precision: amp, not {mode.precision}"
    if mode.use_eval_mode and not mode.training:
        return "use_eval_mode is an option of training; inference always runs in eval mode"
    if mode.optimizer in ("sgd", "adam") and not mode.training:
        return f"optimizer: {mode.optimizer} is an option of training"
    if mode.compile_mode != "default" and mode.backend != "inductor":
        return f"compile_mode belongs to the inductor backend, not to {mode.backend}"
    return None
