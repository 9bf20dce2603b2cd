"""Core, system and worker run in an environment with torch, timm and numpy and nothing else, on Python 3.10."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from timmgate import PACKAGE_ROOT

FILES = [
    PACKAGE_ROOT / "timmgate" / "__init__.py",
    *sorted(file for room in ("core", "system", "worker") for file in (PACKAGE_ROOT / "timmgate" / room).glob("*.py")),
]
THIRD_PARTY = {"torch", "timm", "numpy"}
NEWER_THAN_3_10 = {"UTC", "file_digest", "tomllib", "Self", "LiteralString", "StrEnum", "assert_never", "chdir", "batched"}
"""Members of the standard library that came with 3.11 or 3.12."""

EACH_FILE = pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level modules that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@EACH_FILE
def test_nothing_is_imported_but_the_standard_library_torch_timm_and_numpy(file: Path):
    with_these = {"photos.py": {"PIL"}, "repro.py": {"safetensors"}, "preflight.py": {"triton"}}  # come with timm and torch
    allowed = THIRD_PARTY | with_these.get(file.name, set())
    for module in imported(ast.parse(file.read_text())):
        room = module.split(".")[:2]
        assert room[0] in sys.stdlib_module_names | allowed | {"timmgate"}
        assert room[0] != "timmgate" or room in (
            ["timmgate"],
            ["timmgate", "core"],
            ["timmgate", "system"],
            ["timmgate", "worker"],
        )


@EACH_FILE
def test_torch_and_timm_are_imported_by_the_worker_alone(file: Path):
    if file.parent.name != "worker":
        assert not {module.split(".")[0] for module in imported(ast.parse(file.read_text()))} & {"torch", "timm"}


@EACH_FILE
def test_the_syntax_and_the_names_are_those_of_python_3_10(file: Path):
    tree = ast.parse(file.read_text(), feature_version=(3, 10))
    members = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    members |= {each.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for each in node.names}
    assert not members & NEWER_THAN_3_10
    assert not {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & {"ExceptionGroup", "BaseExceptionGroup"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.TryStar)]
