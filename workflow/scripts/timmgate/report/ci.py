"""What the gate found, for the programs of continuous integration: JUnit XML and annotations of GitHub."""

from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from timmgate.core.build import DEFAULT
from timmgate.core.files import write_atomically
from timmgate.report.gate import line
from timmgate.tables.gate import judgement


def write_junit(judged: list[dict[str, Any]], path: Path) -> None:
    """A suite for each build, mode and check, a case for each cell: failed, skipped (flaky or not comparable) or passed."""
    root = ElementTree.Element("testsuites", name="timmgate")
    for suite_name, rows in groupby(sorted(judged, key=_suite), key=_suite):
        cases = [list(of_model) for _, of_model in groupby(sorted(rows, key=_model), key=_model)]
        failed = [case for case in cases if judgement.failed(case)]
        skipped = [case for case in cases if case not in failed and any(map(_is_skipped, case))]
        counts = {"tests": len(cases), "failures": len(failed), "skipped": len(skipped)}
        suite = ElementTree.SubElement(
            root, "testsuite", name=suite_name, **{name: str(count) for name, count in counts.items()}
        )
        for case in cases:
            element = ElementTree.SubElement(suite, "testcase", classname=suite_name, name=_model(case[0]))
            for row in case:
                if row["class"] in judgement.FAILING or (case in skipped and _is_skipped(row)):
                    kind = "failure" if row["class"] in judgement.FAILING else "skipped"
                    attributes = {"message": _xml(line(row).plain), **({"type": row["class"]} if kind == "failure" else {})}
                    ElementTree.SubElement(element, kind, attributes)
    tree = ElementTree.ElementTree(root)
    write_atomically(path, lambda scratch: tree.write(scratch, encoding="utf-8", xml_declaration=True))


def _is_skipped(row: dict[str, Any]) -> bool:
    """Whether it was not judged: it may vary, or there is nothing to compare it with, and not just one figure of it."""
    return row["class"] == "flaky" or (row["class"] == "not_comparable" and not row.get("cause"))


def _suite(row: dict[str, Any]) -> str:
    """The build is part of the name unless it is the default one."""
    build = [row["build"]] if row["build"] not in (None, DEFAULT) else []
    return ".".join([*build, row["mode"] or "all", row["check_name"]])


def _model(row: dict[str, Any]) -> str:
    return row["model"] or "all"


def _xml(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return "".join(character for character in text if character in "\t\n\r" or character >= " ")


def annotations(judged: list[dict[str, Any]], file: str) -> list[str]:
    """Lines that GitHub shows as errors and warnings at a file, here the baseline: one for whatever is not as expected."""
    lines = []
    for row in judged:
        if row["class"] not in judgement.AS_EXPECTED:
            level = "error" if row["class"] in judgement.FAILING else "warning"
            title = f"{row['class']} {judgement.place(row)}"
            lines.append(f"::{level} file={_property(file)},title={_property(title)}::{_escaped(line(row).plain)}")
    return lines


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
