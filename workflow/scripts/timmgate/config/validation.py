"""Values of a configuration by their JSON schema: what the command line hands over as texts gets its type, and whatever is
wrong one clear sentence.
"""

import json
import math
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

from timmgate import PACKAGE_ROOT
from timmgate.core.build import BuildOptions
from timmgate.core.checks import CHECKS
from timmgate.core.described import json_schemas
from timmgate.core.errors import ConfigError, did_you_mean
from timmgate.core.faults import PLACES
from timmgate.core.run_options import RunOptions
from timmgate.core.schemas import FAILED
from timmgate.core.spec import Mode, Traits
from timmgate.core.thresholds import Thresholds
from timmgate.core.traces import TRACES

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

SCHEMAS = PACKAGE_ROOT.parent / "schemas"

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
    """A value without a schema: every text in it that can say but one number, true, false or null becomes that.

    So no other word that YAML has for these, as `off`, and no version that another number equals, as `12.10`.
    """
    if isinstance(value, dict):
        return {str(key): _free(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_free(item) for item in value]
    if isinstance(value, str):
        try:
            read = json.loads(value.lower())
        except ValueError:
            return value
        return read if isinstance(read, bool | int | float | None) and json.dumps(read) == value.lower() else value
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
        case "maximum":
            return f"{subject}; it must be at most {limit}"
        case "minItems" | "minLength" | "minProperties":
            return f"{subject}; it must not be empty"
        case "pattern":
            return f"{place}: {found!r} must be {rule['form']}"
        case _:
            return f"{subject}: {error.message}"
