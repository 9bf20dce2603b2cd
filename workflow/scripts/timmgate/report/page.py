"""The report: one HTML file of the tables of a run. It needs no server and no network.

python -m timmgate.report.page results/cpu [report.html]
"""

import base64
import gzip
import hashlib
import importlib.metadata
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
import vl_convert
from markupsafe import Markup
from rich.text import Text

from timmgate import PACKAGE_ROOT
from timmgate.core.build import names_builds
from timmgate.core.files import write_text
from timmgate.core.schemas import KEY
from timmgate.report import comparison, pictures
from timmgate.report import gate as gate_lines
from timmgate.report import history as history_lines
from timmgate.report import page_data as of_tables
from timmgate.report.page_data import page_data, plain
from timmgate.tables.failures import KINDS
from timmgate.tables.figures import EAGER, FIGURES
from timmgate.tables.gate import judgement
from timmgate.tables.summary import VERDICTS

TEMPLATES = PACKAGE_ROOT.parent / "report" / "page"

NEEDED = (*(f"{name}.parquet" for name in ("cells", "failures", "evidence", "samples", "attempts")), "summary.tsv")
"""Tables without which there is no page."""

LISTED = 30
"""Cells of a kind that the headline lists; the board shows the others."""

BETTER = {"new_pass", "fixed", EAGER.better, *(figure.better for figure in FIGURES)}
"""Classes and verdicts that are a change to the better."""

CHANGES = 15
"""Changes of a table that it lists."""

OPENED = 12
"""Cells of a kind of failure up to which its list is open."""

FACTS = {
    "device_name": "device",
    "host": "host",
    "torch": "torch",
    "timm": "timm",
    "triton": "triton",
    "cuda": "CUDA",
    "driver": "driver",
    "cxx": "compiler",
    "python": "python",
    "suite": "suite",
    "weights": "weights",
    "protocol": "protocol",
    "commit": "workflow",
}
"""Columns of which the headline says the value, and what it calls them."""

FULL_HASH = r"^([0-9a-f]{10})[0-9a-f]+"
"""A commit, of which the first digits are enough; what follows, as `-dirty`, is not to be lost."""

FACT_LENGTH = 60
"""Signs of such a value, at most."""

TSV_TYPES = {
    **dict.fromkeys(("build", "mode", "model", "before", "after"), str),
    **dict.fromkeys(("models", "measured_since"), "Int64"),
}
"""Types of columns that pandas would not guess."""

TIMES = {"since"}
"""Columns that are times."""

Row = dict[str, Any]


def write(folder: Path, path: Path) -> None:
    """Write the page of the tables in `folder`, which is results/{device}."""
    page = render(folder)
    write_text(path, page)


def render(folder: Path) -> str:
    """The page of the tables in `folder`, which is results/{device}: `cells`, `failures`, their like and `summary.tsv`."""
    data, summary = page_data(folder), read_summary(folder)
    cells = pd.read_parquet(folder / "cells.parquet", dtype_backend="numpy_nullable")
    figures = [each for each in pictures.PICTURES if data["cells"].keys() >= {*each.needs}]  # of what was measured
    data["figures"] = [about(each) for each in figures]
    data["of_cell"] = [about(each) for each in pictures.OF_CELL]
    return environment().get_template("page.html.j2").render(
        title=f"timmgate report: {folder.name}",
        device=folder.name,
        **headline(data, cells, summary),
        changes=changes(folder),
        detections=[Markup(drawn) for drawn in pictures.detections(power(folder), light_colours())],
        figures=figures,
        footer=footer(),
        table_css=Markup(packaged("itables", "html/dt_bundle.css")),
        page_css=Markup(own("page.css")),
        scripts=scripts(),
        data=Markup(base64.b64encode(gzip.compress(json.dumps(data, allow_nan=False).encode(), mtime=0)).decode()),
    )  # fmt: skip


def write_pictures(folder: Path, target: Path) -> None:
    """Write the pictures of all cells of the tables in `folder` as SVG files."""
    columns = {name: unpacked(values) for name, values in page_data(folder)["cells"].items()}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    target.mkdir(parents=True, exist_ok=True)
    for picture in pictures.PICTURES:
        complete = [row for row in rows if picture.has(row)]
        if complete:
            drawn = pictures.svg(picture, complete, light_colours())
            (target / f"{picture.name}.svg").write_text(drawn, encoding="utf-8")


def environment() -> jinja2.Environment:
    """Jinja with everything escaped that is no markup of ours."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def own(name: str) -> str:
    """A file of the page."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def packaged(distribution: str, name: str) -> str:
    """A file of an installed Python package."""
    return Path(str(importlib.metadata.distribution(distribution).locate_file(f"{distribution}/{name}"))).read_text(
        encoding="utf-8"
    )


def scripts() -> list[Row]:
    """The page's scripts in order, each with the digest by which the page's own policy lets it run, and nothing else.

    DataTables comes out of itables, as a module of which one export is needed; Vega out of vl-convert.
    """
    tables, exported = re.subn(
        r"export\{(?:[^}]*,)?(\w+) as jQuery\b[^}]*\};?", r"window.jQuery=\1;", packaged("itables", "html/dt_bundle.js")
    )
    if exported != 1:
        raise RuntimeError("the bundle of itables does not export jQuery as expected")
    texts = [(vl_convert.javascript_bundle(), False), (tables, True), (own("page.js"), True)]
    return [script(text.replace("</script", "<\\/script"), module) for text, module in texts]


def script(text: str, module: bool) -> Row:
    """A script as the template has it."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"text": Markup(text), "module": module, "sha256": digest}


def about(picture: pictures.Picture) -> Row:
    """What the page needs to draw a picture."""
    shown = {name: getattr(picture, name) for name in ("name", "title", "caption", "rows", "needs", "reads", "counted")}
    return {**shown, "spec": picture.spec()}


def footer() -> str:
    """Which libraries are in the page."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("itables", "altair")]
    return f"Drawn with DataTables and Vega ({', '.join(versions)}, vl-convert {vl_convert.__version__})."


def read_summary(folder: Path) -> list[Row]:
    """The rows of summary.tsv; what is empty is None."""
    return read_tsv(folder / "summary.tsv", folder / "summary.tsv")


def read_tsv(path: Path, newer_than: Path) -> list[Row]:
    """The rows of a table that a person asked for beside the others; none where it is gone, or older than those."""
    if not path.is_file() or path.stat().st_mtime_ns < newer_than.stat().st_mtime_ns:
        return []
    table = pd.read_csv(path, sep="\t", na_values=[""], keep_default_na=False, dtype=TSV_TYPES)
    for name in TIMES & {*table}:
        table[name] = pd.to_datetime(table[name])
    return table.astype(object).where(table.notna(), None).to_dict("records")


def changes(folder: Path) -> list[Row]:
    """What is not as the gate expects, what changed in the history, and what differs between two builds: each with a title,
    lines in words, the gravest first, and sentences that say what they are worth. None of a table that there is not.
    """
    cells, found = folder / "cells.parquet", []
    if judged := read_tsv(folder / "gate.tsv", cells):
        unexpected = [row for row in judged if row["class"] not in judgement.AS_EXPECTED]
        lines = [(change_state(row["class"], judgement.FAILING), gate_lines.line(row)) for row in unexpected]
        found.append(section("Against the baseline", lines, [judgement.sentence(judged)], "gate.tsv"))
    if changed := read_tsv(folder / "history.tsv", cells):
        lines = [(change_state(row["class"], history_lines.WORSE), history_lines.line(row)) for row in changed]
        found.append(section("In the history", lines, [], "history.tsv"))
    for (before, after), rows in groupby(of_tables.comparison(folder), itemgetter("before", "after")):
        of_build = list(rows)
        lines = [(change_state(row["verdict"], comparison.WORSE), comparison.line(row)) for row in comparison.told(of_build)]
        found.append(section(f"{after} against {before}", lines, comparison.sentences(of_build), "comparison.tsv"))
    return found


def section(title: str, lines: Sequence[tuple[str, Text]], sentences: Sequence[str], table: str) -> Row:
    """What a table of changes says, of which the page lists the `CHANGES` gravest; `lines` are states and words."""
    order = ("failure", "note", "pass")
    gravest = sorted(lines, key=lambda line: order.index(line[0]))
    return {
        "title": plain(title),
        "rows": [{"state": state, "words": plain(words.plain)} for state, words in gravest[:CHANGES]],
        "more": max(0, len(gravest) - CHANGES),
        "table": table,
        "sentences": plain(sentences),
    }


def change_state(name: str, worse: Collection[str]) -> str:
    """The sign of a class of change: to the worse, to the better, or neither."""
    return "failure" if name in worse else "pass" if name in BETTER else "note"


def power(folder: Path) -> list[Row]:
    """The rows of a study of faults, if there was one."""
    path = folder / "power.tsv"
    return read_tsv(path, path) if path.is_file() else []


def headline(data: Row, cells: pd.DataFrame, summary: Sequence[Row]) -> Row:
    """What the page says before anything else: the template's own variables."""
    requested = cells[cells["requested"].fillna(False)]
    columns = {name: unpacked(values) for name, values in data["cells"].items()}
    of_request = [number for number, asked in enumerate(cells["requested"].fillna(False)) if asked]
    states = Counter(columns["state"][number] for number in of_request)
    groups, notes = findings(data, columns)
    checks = list(dict.fromkeys(row["check_name"] for row in summary))
    return {
        "verdict": verdict(states),
        "lead": lead(requested, states, checks),
        "facts": [*facts(requested), *conditions(summary)],
        "checks": checks,
        "names_builds": names_builds(requested["build"]),
        **summary_rows(summary),
        "groups": groups,
        "notes": notes,
    }


def unpacked(column: Any) -> list[Any]:
    """The values of a column as `page_data.packed` makes it."""
    if isinstance(column, dict):
        return [None if code is None else column["words"][code] for code in column["codes"]]
    return list(column)


def verdict(states: Counter[str]) -> str:
    """The first sentence."""
    total = states.total()
    cells = f"{total:,} cell{'s' * (total != 1)}"
    if not total:
        return "No cell was requested."
    if states["failure"]:
        return f"{states['failure']:,} of {cells} fail{'s' * (states['failure'] == 1)}."
    if states["not_run"]:
        return f"{states['not_run']:,} of {cells} {'have' if states['not_run'] != 1 else 'has'} no result."
    if states["skipped"] == total:
        return f"Of {cells} none was judged."
    if states["skipped"]:
        were = "was" if states["skipped"] == 1 else "were"
        return f"{total - states['skipped']:,} of {cells} pass, {states['skipped']:,} {were} not judged."
    return f"All {cells} pass." if total != 1 else "The only cell passes."


def lead(requested: pd.DataFrame, states: Counter[str], checks: Sequence[str]) -> str:
    """The second sentence: what was measured, and when."""
    words = [" in ".join(_counted(requested[name].nunique(), name) for name in ("model", "mode"))]
    if requested["build"].nunique() > 1:
        words.append(f"{requested['build'].nunique()} builds")
    parts = [f"{' and '.join(checks)} of {', '.join(words)}"]
    if states["warning"]:
        parts.append(f"{states['warning']:,} pass{'es' * (states['warning'] == 1)} with a warning")
    if states["not_run"] and states["failure"]:
        parts.append(f"{states['not_run']:,} without a result")
    started = pd.concat(
        [requested[f"{check}_started_at"] for check in checks] or [pd.Series(dtype="datetime64[us]")]
    ).dropna()
    if len(started):
        first, last = started.min(), started.max()
        until = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M}"
        parts.append(f"measured {first:%Y-%m-%d %H:%M} to {until} UTC")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def facts(requested: pd.DataFrame) -> list[Row]:
    """Where and with what it ran; of several values how often each."""
    found = []
    for column, name in FACTS.items():
        values = requested[column].dropna()
        if column == "commit":
            values = values.str.replace(FULL_HASH, r"\1", regex=True)
        counts = Counter(str(value)[:FACT_LENGTH] for value in values)
        told = [f"{value} ({count})" if len(counts) > 1 else value for value, count in counts.most_common()]
        if told:
            found.append({"name": name, "values": plain(told)})
    return found


def conditions(summary: Sequence[Row]) -> list[Row]:
    """What speedups depend on beside the programs."""
    found = list(dict.fromkeys(row["conditions"] for row in summary if row.get("conditions")))
    return [{"name": "timed with", "values": plain(found)}] if found else []


def summary_rows(summary: Sequence[Row]) -> Row:
    """A row for each build and mode with its checks, and where 1 lies on the scale of speedups, in percent."""
    ends = [row[name] for row in summary for name in ("speedup_ci_low", "speedup_ci_high", "speedup") if row[name]]
    low, high = math.log(min([0.9, *ends])), math.log(max([1.1, *ends]))

    def place(speedup: float) -> float:
        return round(4 + 92 * (math.log(speedup) - low) / (high - low), 2)

    rows: dict[tuple[str, str], Row] = {}
    for row in summary:
        of_mode = rows.setdefault((row["build"], row["mode"]), {"build": plain(row["build"]), "mode": plain(row["mode"])})
        of_mode[row["check_name"]] = {"passed": int(row["passed"]), "cells": int(row["cells"]), **timed(row, place)}
    return {"summary": list(rows.values()), "one": place(1.0)}


def timed(row: Row, place: Any) -> Row:
    """The figures of a mode as texts."""

    def text(name: str, form: str) -> str:
        return "" if row[name] is None else format(row[name], form)

    known = row["speedup"] and row["speedup_ci_low"] and row["speedup_ci_high"]
    span = [place(row[name]) for name in ("speedup_ci_low", "speedup_ci_high", "speedup")] if known else None
    return {
        "speedup": text("speedup", ".2f"),
        "low": text("speedup_ci_low", ".2f"),
        "high": text("speedup_ci_high", ".2f"),
        "range": span and {"low": span[0], "width": round(span[1] - span[0], 2), "mean": span[2]},
        "counted": text("counted", ".0f"),
        "verdicts": " / ".join(text(name, ".0f") for name in VERDICTS) if row["counted"] else "",
        "cold": text("compile_cold_s", ".1f"),
        "warm": text("compile_warm_s", ".1f"),
        "memory": text("compression_ratio", ".2f"),
        "breaks": text("graph_breaks", ".0f"),
    }


def findings(data: Row, columns: dict[str, list[Any]]) -> tuple[list[Row], list[Row]]:
    """What needs a look, by kind in order of gravity, and the notes on the run."""
    groups: list[Row] = []
    for kind in KINDS.values():
        of_kind = [row for row in data["findings"] if row["kind"] == kind.name]
        first: dict[int | None, Row] = {}  # of both checks of a cell the graver
        for row in of_kind:
            first.setdefault(row["cell"], row)
        rows = list(first.values())
        if not rows or (kind.severity == "note" and all(row["cell"] is None for row in rows)):
            continue
        of_cells = sum(row["cell"] is not None for row in rows)
        groups.append(
            {
                "kind": kind.name,
                "severity": kind.severity,
                "meaning": plain(kind.meaning.replace("`", "")),
                "rows": [listed(row, columns) for row in rows[:LISTED]],
                "more": max(0, len(rows) - LISTED),
                "of_cells": of_cells,
                "open": kind.severity == "failure" and len(rows) <= OPENED,
            }
        )
    notes = [listed(row, columns) for row in data["findings"] if row["severity"] == "note" and row["cell"] is None]
    return groups, notes


def listed(finding: Row, columns: dict[str, list[Any]]) -> Row:
    """A finding as the headline has it: its cell, if it is of one, and the figures in words."""
    reason = finding["reason"] or ""
    check = finding["check_name"] if finding["severity"] == "failure" else ""
    shown = {"kind": finding["kind"], "words": ": ".join(filter(None, (check, reason))), "cell": None}
    if finding["cell"] is None:
        return {**shown, "words": reason}
    device, build, mode, model = (columns[name][finding["cell"]] for name in KEY)
    return {**shown, "cell": {"id": cell_id(device, build, mode, model), "build": build, "mode": mode, "model": model}}


def cell_id(*key: str) -> str:
    """How links name a cell."""
    return "/".join(quote(part, safe="") for part in key)


def light_colours() -> dict[str, str]:
    """By name, the colours of the page in the light."""
    return dict(re.findall(r"--([\w-]+): light-dark\((#\w+),", own("page.css")))


def main(arguments: Sequence[str]) -> None:
    """Write the page beside the tables, or where the second argument says."""
    if len(arguments) not in (1, 2) or not all(Path(arguments[0], name).is_file() for name in NEEDED):
        sys.exit(
            "name a folder that has tables, as python -m timmgate.tables makes them: "
            "python -m timmgate.report.page results/cpu"
        )
    folder = Path(arguments[0])
    path = Path(arguments[1]) if len(arguments) > 1 else folder / "report.html"
    write(folder, path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
