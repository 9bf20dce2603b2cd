"""What an edit of the environment does: cells are measured again when what compiles them has changed, and only then."""

import os
from pathlib import Path

import pytest

from conftest import PATIENCE_S
from workflow.conftest import TABLES

CELLS = {"inference/test_vit", "inference/test_resnet", "special/test_vit", "special/test_resnet"}
ENTRY_POINTS = "[torch_dynamo_backends]\nacme = acme_compiler:compile\n"


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder for packages."""
    return tmp_path_factory.mktemp("packages")


def install(packages: Path, version: str, code: str) -> None:
    """Install a package that registers a compiler."""
    for old in packages.glob("*.dist-info"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    about = packages / f"acme_compiler-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-compiler\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    (packages / "acme_compiler").mkdir(exist_ok=True)
    (packages / "acme_compiler" / "__init__.py").write_text(code)


@pytest.fixture(scope="module")
def built(packages, new_project, tmp_path_factory):
    """A finished run of one model with a compiler of somebody's own installed."""
    install(packages, "1.0", "def compile(graph, inputs): return graph\n")
    search_path = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
    project = new_project(
        tmp_path_factory.mktemp("built"),
        config={"modes": "inference", "models": "test_vit"},
        environment={"PYTHONPATH": search_path},
    )
    project.run()
    return project


def test_the_row_says_which_compilers_were_installed_and_of_which_files(built):
    (row,) = built.table()
    assert row["backends"] == ["acme-compiler=1.0"]
    assert {"acme_compiler", "torch", "timm"} <= {each.partition("=")[0] for each in row["sources"]}
    assert built.planned() == set()


def test_another_version_of_a_compiler_is_measured_again(built, packages):
    install(packages, "2.0", "def compile(graph, inputs): return graph\n")
    assert built.planned() == {"inference/test_vit", *TABLES}
    install(packages, "1.0", "def compile(graph, inputs): return graph\n")
    assert built.planned() == set()


def test_an_edit_inside_an_installed_module_is_measured_again(built, packages):
    install(packages, "1.0", "def compile(graph, inputs): return graph.forward\n")
    assert built.planned() == {"inference/test_vit", *TABLES}
    built.run()
    assert len(built.worker.starts()) == 2
    assert built.planned() == set()


def test_a_build_that_changes_while_a_run_goes_on_is_told(built, packages):
    """As by an upgrade: its cells are recorded as of what it was when the run began."""
    edited = packages / "edited"
    built.worker.behaviours = {"*": f"wait:{edited}@load"}
    before = len(built.worker.starts())
    with built.start("--forcerun", "measure") as run:
        built.worker.wait_for_start(before + 1)
        install(packages, "3.0", "def compile(graph, inputs): return graph\n")
        edited.touch()
        printed, _ = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0 and "warning: the build default has changed since the run began" in printed
    built.worker.behaviours = {}
    assert built.planned() == {"inference/test_vit", *TABLES}
    assert "has changed" not in built.run()


def test_another_number_of_threads_is_measured_again_on_a_cpu(finished):
    assert finished.planned(threads=2) == CELLS | TABLES


@pytest.mark.parametrize("changed", [{"allocator": "system"}, {"relocate": "false"}], ids=["allocator", "relocate"])
def test_another_use_of_memory_is_measured_again_on_a_cpu(changed, finished):
    assert finished.planned(**changed) == CELLS | TABLES


def test_neither_threads_nor_the_use_of_memory_are_measured_again_on_an_accelerator(finished):
    on_cuda = {"device": "cuda", "models": "test_vit", "modes": "inference"}
    finished.run(**on_cuda)
    assert finished.planned(**on_cuda, threads=2, allocator="system", relocate="false") == set()
    assert {(row["allocator"], row["relocate"]) for row in finished.table(device="cuda")} == {(None, None)}


@pytest.mark.parametrize(
    ("variable", "value", "is_identity"),
    [
        ("TORCHINDUCTOR_MAX_AUTOTUNE", "1", True),
        ("TORCH_LOGS", "+dynamo", False),
    ],
)
def test_a_variable_that_changes_what_is_compiled_is_measured_again(variable, value, is_identity, finished, monkeypatch):
    monkeypatch.setenv(variable, value)
    assert finished.planned() == (CELLS | TABLES if is_identity else set())
