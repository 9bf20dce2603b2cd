"""Configuration: strings from the command line to typed values, and one clear sentence for whatever is wrong.

Imports neither torch nor Snakemake, so that it costs nothing while the workflow is parsed.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from timmgate.config import threads
from timmgate.core.build import RESERVED, TABLE_SUFFIXES, WORKERS_OWN, BuildOptions
from timmgate.core.checks import CHECKS
from timmgate.core.described import json_schemas
from timmgate.core.errors import ConfigError, did_you_mean
from timmgate.core.faults import PLACES
from timmgate.core.files import with_home
from timmgate.core.run_options import RunOptions
from timmgate.core.schemas import FAILED
from timmgate.core.spec import Mode, Traits
from timmgate.core.thresholds import Thresholds
from timmgate.core.traces import TRACES

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

INFERENCE_ONLY_BACKENDS = ("export", "aot_inductor")

PATHS = ("suite", "baseline", "quarantine", "history_path")
"""Keys with a path, or a word in its place."""

WHOLE_REGISTRY = "timm"
"""The suite that has no table: all that timm has."""

TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "a mapping of keys to values",
    "string": "a text",
}
"""JSON schema's words for types, in words for people."""

SCHEMAS = Path(__file__).parents[3] / "schemas"


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
        quarantine=values["quarantine"],
        history_path=values["history_path"],
        history_runs=values["history_runs"],
    )


def refuse_quotes(value: Any) -> None:
    """Raise ConfigError for a text of the command line's --config with a single quote in it, at any depth.

    Snakemake hands these values to the jobs of a cluster between single quotes: a shell would run what follows one.
    """
    if isinstance(value, str) and "'" in value:
        raise ConfigError(f"--config: {value!r} has a single quote; put it into a file and name that with --configfile")
    for inner in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        refuse_quotes(inner)


@cache
def schema(name: str) -> dict[str, Any]:
    """The JSON schema workflow/schemas/{name}.schema.yaml, with what the dataclasses of `core` say of their own fields."""
    rules: dict[str, Any] = yaml.safe_load((SCHEMAS / f"{name}.schema.yaml").read_text())
    if name == "suite":
        rules["properties"] |= json_schemas(Traits)
        return rules
    rules["properties"] |= json_schemas(RunOptions) | json_schemas(Thresholds)
    rules["properties"]["retry"]["items"] = {"enum": ["failed", *FAILED]}
    rules["properties"]["fault_places"]["items"] = {"enum": list(PLACES)}
    rules["properties"]["trace"]["items"] = {"enum": list(TRACES)}
    rules["properties"]["checks"]["items"] = {"enum": list(CHECKS)}
    rules["required"] = list(rules["properties"])
    definitions = {
        name: {"type": "object", "additionalProperties": False, "properties": json_schemas(described)}
        for name, described in (("mode", Mode), ("build", BuildOptions))
    }
    return {**rules, "$defs": definitions}


def coerce(value: Any, rule: dict[str, Any]) -> Any:
    """Give a value the type that its schema asks for, where the text allows it; otherwise leave it for validation.

    Snakemake hands over `--config x=true` as the string "true" and every leaf of a nested value as a string.
    """
    if "$ref" in rule:
        rule = schema("config")["$defs"][rule["$ref"].rsplit("/", 1)[1]]
    types = rule.get("type", [])
    types = [types] if isinstance(types, str) else types
    if "object" in types:
        return _object({} if value is None else value, rule)
    if "array" in types:
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        items = [item.strip() if isinstance(item, str) else item for item in items]
        return [coerce(item, rule.get("items", {})) for item in items if item not in (None, "")]
    if isinstance(value, str):
        return _from_text(value, types, rule)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _from_number(value, types)
    return value


def _object(value: Any, rule: dict[str, Any]) -> Any:
    if not isinstance(value, dict):
        return value
    known, others = rule.get("properties", {}), rule.get("additionalProperties")
    if not known and others is None:
        return _free(value)
    others = others if isinstance(others, dict) else {}
    return {str(key): coerce(item, known.get(key, others)) for key, item in value.items()}


def _free(value: Any) -> Any:
    """A value without a schema: every text in it becomes what YAML reads in it, as long as that is plain."""
    if isinstance(value, dict):
        return {str(key): _free(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_free(item) for item in value]
    if isinstance(value, str):
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            return value
        return read if isinstance(read, bool | int | float | None) else value
    return value


def _from_text(text: str, types: list[str], rule: dict[str, Any]) -> Any:
    nullable = "null" in types or None in rule.get("enum", [])
    if nullable and text.lower() in ("null", "none", "~", ""):
        return None
    if "boolean" in types and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for type_, convert in (("integer", int), ("number", float)):
        if type_ in types:
            try:
                return _from_number(convert(text), types)
            except ValueError:
                return text
    return text


def _from_number(number: float, types: list[str]) -> Any:
    if ("string" in types and "integer" not in types) or not math.isfinite(number):
        return str(number)
    return int(number) if "integer" in types and number == int(number) else number


def validate(values: dict[str, Any], schema_name: str, where: str) -> None:
    """Raise ConfigError for the first thing in `values` that the schema refuses; `where` begins the sentence."""
    from jsonschema import Draft202012Validator  # here, as a tenth of a second in each job of a cell is much

    errors = sorted(Draft202012Validator(schema(schema_name)).iter_errors(values), key=lambda e: list(map(str, e.path)))
    if errors:
        raise ConfigError(f"{where}: {_sentence(errors[0])}")


def _sentence(error: "ValidationError") -> str:
    place = ".".join(str(part) for part in error.absolute_path)
    rule: Any = error.schema
    found: Any = error.instance
    limit: Any = error.validator_value
    subject = f"{place} is {found!r}" if place else "the configuration"
    match error.validator:
        case "additionalProperties":
            known = list(rule["properties"])
            unknown = next(key for key in found if key not in known)
            inside = f" in {place}" if place else ""
            return f"unknown key {unknown!r}{inside}{did_you_mean(unknown, known)}"
        case "required":
            missing = next(key for key in limit if key not in found)
            return f"the key {missing!r} is missing"
        case "dependentRequired":
            given, needed = next((k, n) for k, names in limit.items() for n in names if k in found and n not in found)
            return f"{given} is set, so {needed} must be set too"
        case "enum":
            allowed = ["null" if word is None else str(word) for word in limit]
            return f"{subject}; it must be one of {', '.join(allowed)}"
        case "anyOf":
            kinds = [TYPES[each["type"]] if "type" in each else " or ".join(each["enum"]) for each in limit]
            return f"{subject}; it must be {', or '.join(kinds)}"
        case "type":
            types = [limit] if isinstance(limit, str) else limit
            return f"{subject}; it must be {' or '.join(TYPES[type_] for type_ in types)}"
        case "minimum" | "exclusiveMinimum":
            relation = "at least" if error.validator == "minimum" else "more than"
            return f"{subject}; it must be {relation} {limit}"
        case "minItems" | "minLength" | "minProperties":
            return f"{subject}; it must not be empty"
        case "pattern":
            return f"{place}: {found!r} must be {rule['form']}"
        case _:
            return f"{subject}: {error.message}"


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
    mode = Mode(**{**options, "inductor_config": inductor_config})
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
