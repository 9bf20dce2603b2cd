"""Dataclasses whose fields say what they mean and what they may be: the one description that schema and docs are made of."""

import math
import typing
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from types import UnionType
from typing import Any

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array"}


def described(description: str, *, default: Any = MISSING, default_factory: Any = MISSING, **limits: Any) -> Any:
    """A dataclass field that a user can set; `limits` are keywords of JSON Schema, such as `minimum`."""
    kind = {"default": default} if default is not MISSING else {"default_factory": default_factory}
    return field(**kind, metadata={"description": description, **limits})


def json_schemas(cls: type) -> dict[str, dict[str, Any]]:
    """By name, the JSON Schema (draft 2020-12) of each described field of the dataclass `cls`."""
    hints = typing.get_type_hints(cls)
    return {_name(each): _json_schema(each, hints[each.name]) for each in fields(cls) if "description" in each.metadata}


def defaults(cls: type) -> dict[str, Any]:
    """By name, the default of each described field of the dataclass `cls`."""
    return {_name(each): _default(each) for each in fields(cls) if "description" in each.metadata}


def _name(each: Field) -> str:
    """The field's name for users; one that is also a word of Python ends with an underscore in the code."""
    return each.name.removesuffix("_")


def _default(each: Field) -> Any:
    return each.default_factory() if each.default_factory is not MISSING else each.default


def _json_schema(each: Field, hint: Any) -> dict[str, Any]:
    return {"description": each.metadata["description"], **_type(hint), **dict(each.metadata)}


def _type(hint: Any) -> dict[str, Any]:
    parts = typing.get_args(hint) if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    words = [word for part in parts if typing.get_origin(part) is typing.Literal for word in typing.get_args(part)]
    if words:
        return {"enum": [*words, None] if type(None) in parts else words}
    names = ["null" if part is type(None) else JSON_TYPES[typing.get_origin(part) or part] for part in parts]
    return {"type": names[0] if len(names) == 1 else names}


@dataclass(frozen=True)
class Column:
    """One column of a table. `type` is a word of `tables.parquet.ARROW_TYPES`; `unit` is empty for a plain number."""

    name: str
    type: str
    unit: str
    description: str
    group: str = ""


INT64, EXACT_INT = range(-(2**63), 2**63), range(-(2**53), 2**53 + 1)


def fits(value: Any, type: str) -> bool:
    """Whether a column of that type can hold the value, a plain one as JSON has them. Null fits anywhere, NaN nowhere."""
    if value is None:
        return True
    if type.startswith("list<"):
        inner = type.removeprefix("list<").removesuffix(">")
        return isinstance(value, list) and all(fits(each, inner) for each in value)
    if type in ("string", "bool"):
        return isinstance(value, {"string": str, "bool": bool}[type])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if type == "float64":
        return not math.isnan(value) if isinstance(value, float) else value in EXACT_INT
    return isinstance(value, int) and value in INT64


def columns(group: str, rows: Iterable[tuple[str, str, str, str]]) -> tuple[Column, ...]:
    """Columns of one group, from their name, type, unit and description."""
    return tuple(Column(*row, group) for row in rows)


def types(of: Iterable[Column]) -> dict[str, str]:
    """By name, the type of each column."""
    return {column.name: column.type for column in of}
