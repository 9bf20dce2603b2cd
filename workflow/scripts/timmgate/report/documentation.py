"""Writes the tables of the documentation from the schemas, the defaults and the status words.

    python -m timmgate.report.documentation

Each table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; what is around them is written by hand.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from timmgate.config import validation
from timmgate.core import schemas
from timmgate.core.build import BuildOptions
from timmgate.core.described import defaults
from timmgate.core.diagnosis import LAYERS
from timmgate.core.faults import FAULTS, MISCOMPILATIONS, PLACES, Fault
from timmgate.core.spec import Mode, Traits
from timmgate.core.traces import TRACES
from timmgate.core.verdict import ALWAYS_WRONG
from timmgate.diagnosis.switches import CODE_GENERATION, PASSES
from timmgate.tables import diagnosis, failures, parquet, summary
from timmgate.tables.comparison import compare, pairs
from timmgate.tables.gate import judgement
from timmgate.tables.history import store, trends
from timmgate.tables.studies import calibration, power

ROOT = Path(__file__).parents[4]
PAGES = (
    ROOT / "README.md",
    ROOT / "config" / "README.md",
    ROOT / "config" / "expected" / "README.md",
    *(ROOT / "docs" / name for name in ("faults.md", "protocol.md", "reading-results.md", "tables.md", "your-own-torch.md")),
)

NO_DEFAULT, NO_COLUMNS = object(), pa.schema([])


def main() -> None:
    """Rewrite the tables of all pages."""
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


def rendered(page: str) -> str:
    """The page with every table as it should be now. Raises KeyError for a name that is not in `tables`."""
    current = tables()
    section = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
    return section.sub(lambda match: f"{match[1]}{current[match[2]]}{match[3]}", page)


def tables() -> dict[str, str]:
    """Every table in Markdown, by its name."""
    config, shipped = validation.schema("config"), yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    return {
        "keys": _properties("key", {name: config["properties"][name] for name in shipped}, shipped),
        "builds": _properties("option", config["$defs"]["build"]["properties"], defaults(BuildOptions)),
        "options": _properties("option", config["$defs"]["mode"]["properties"], defaults(Mode)),
        "suite": _properties("column", validation.schema("suite")["properties"], defaults(Traits)),
        "cells": _columns(parquet.SCHEMAS["cells"]),
        "evidence": _columns(parquet.SCHEMAS["evidence"]),
        "samples": _columns(parquet.SCHEMAS["samples"]),
        "attempts": _columns(parquet.SCHEMAS["attempts"]),
        "repeats": _columns(parquet.SCHEMAS["repeats"]),
        "failures": _columns(failures.SCHEMA),
        "summary": _columns(summary.SCHEMA),
        "gate": _columns(judgement.SCHEMA),
        "history": _columns(store.SCHEMA, besides=parquet.SCHEMAS["cells"]),
        "changes": _columns(trends.SCHEMA),
        "power": _columns(power.SUMMARY),
        "power_trials": _columns(power.TRIALS),
        "calibration": _columns(calibration.SUMMARY),
        "calibration_runs": _columns(calibration.RUNS),
        "pairs": _columns(pairs.SCHEMA),
        "comparison": _columns(compare.SCHEMA),
        "diagnosis": _columns(diagnosis.SCHEMA),
        "trials": _columns(diagnosis.TRIALS_SCHEMA),
        "layers": _words("layer", "what goes wrong", LAYERS),
        "switches": _switches(),
        "kinds": _kinds(),
        "faults": _table(("fault", "family", "what is wrong", "as in pytorch/pytorch"), list(map(_fault, FAULTS.values()))),
        "miscompilations": _table(
            ("pytorch/pytorch", "what it saw"), [(f"#{number}", said) for number, said in sorted(MISCOMPILATIONS.items())]
        ),
        "reasons": _words("class", "what it says", schemas.REASON_CLASSES),
        "statuses": _words("status", "meaning", schemas.STATUSES),
        "recurrences": _words("recurrence", "of a failed check", schemas.RECURRENCES),
        "always_wrong": _words("leaves", "what is wrong", {f"{word}...": said for word, said in ALWAYS_WRONG.items()}),
        "places": _words("place", "breaks", PLACES),
        "traces": _words("trace", "has", TRACES),
        "classes": _judged("a check of it", judgement.CLASSES),
        "moves": _judged("what moved", judgement.MOVES),
    }


def _words(title: str, said: str, meanings: Mapping[str, str]) -> str:
    return _table((title, said), [(f"`{word}`", meaning) for word, meaning in meanings.items()])


def _judged(said: str, meanings: Mapping[str, str]) -> str:
    """Classes of the gate, with which of them fail it."""
    lines = [(f"`{word}`", meaning, "yes" if word in judgement.FAILING else "no") for word, meaning in meanings.items()]
    return _table(("class", said, "fails the gate"), lines)


def _properties(title: str, properties: dict[str, Any], defaults: dict[str, Any]) -> str:
    lines = [
        (f"`{name}`", _values(rule), _default(defaults.get(name, NO_DEFAULT)), rule["description"])
        for name, rule in properties.items()
    ]
    return _table((title, "values", "default", "meaning"), lines)


def _fault(fault: Fault) -> tuple[str, ...]:
    names = ", ".join(f"`{name}`" for name in fault.names)
    return names, fault.family, fault.description, ", ".join(f"#{number}" for number in fault.issues)


def _values(rule: dict[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in rule:
        number, words = rule["anyOf"]
        return f"{_values({**number, 'minimum': rule['minimum']})}, or {_values(words)}"
    if "enum" in rule:
        return ", ".join("null" if word is None else f"`{word}`" for word in rule["enum"])
    types = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    words = " or ".join([rule.get("form", validation.TYPES[types[0]]), *(validation.TYPES[type_] for type_ in types[1:])])
    if "enum" in rule.get("items", {}):
        return f"{words} of {_values(rule['items'])}"
    if "minimum" in rule:
        return f"{words}, at least {rule['minimum']}"
    return f"{words}, more than {rule['exclusiveMinimum']}" if "exclusiveMinimum" in rule else words


def _default(value: Any) -> str:
    """A default as it is written in YAML, or nothing; a value of several lines is too long for a table."""
    if value is NO_DEFAULT:
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, width=80).removesuffix("\n...\n").strip()
    return "see config.yaml" if "\n" in text else f"`{text}`"


def _columns(schema: pa.Schema, besides: pa.Schema = NO_COLUMNS) -> str:
    """The columns of `schema`, but for those of another table, `besides`."""
    return _table(
        ("column", "type", "unit", "meaning"),
        [
            (
                f"`{field.name}`",
                re.sub(r"list<\w+: (.*)>", r"list of \1", str(field.type)),
                field.metadata.get(b"unit", b"").decode(),
                field.metadata[b"description"].decode(),
            )
            for field in schema
            if field.name not in besides.names
        ],
    )


def _kinds() -> str:
    return _table(
        ("kind", "severity", "meaning", "statuses"),
        [
            (f"`{kind.name}`", kind.severity, kind.meaning, ", ".join(f"`{status}`" for status in kind.statuses))
            for kind in failures.KINDS.values()
        ],
    )


def _switches() -> str:
    settings = {switch.name: switch.settings for switch in (*CODE_GENERATION, *PASSES)}
    return _table(("switch", "settings of inductor"), [(name, _assigned(each)) for name, each in settings.items()])


def _assigned(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={value}`" for key, value in settings.items())


def _table(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    cells = [header, ("---",) * len(header), *lines]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in cells)


if __name__ == "__main__":
    main()
