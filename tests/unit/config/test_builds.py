"""What compiles: everything that can change a figure changes the digest of a build, and nothing else does."""

import importlib
import json
import os
import re
from pathlib import Path

import pytest

from timmgate.config import builds
from timmgate.core.schemas import PROVENANCE
from timmgate.tables.provenance import FACT_COLUMNS
from timmgate.worker import __main__ as worker_main

PROTOCOL = Path(__file__).parents[3] / "docs" / "protocol.md"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of installed packages, the first of the search path; `compiler` is the one whose sources count."""
    folder = tmp_path / "packages"
    for name, text in {
        "compiler/__init__.py": "VERSION = 1\n",
        "compiler/nested/kernel.h": "int x;\n",
        "compiler/_C.so": "machine code",
        "compiler/notes.txt": "",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(builds, "SOURCES", ("compiler",))
    for name in os.environ:
        if builds.environment({name: ""}):
            monkeypatch.delenv(name)
    return folder


@pytest.fixture
def software(packages, tmp_path):
    """The digest of the build as it is now."""

    def find() -> str:
        importlib.invalidate_caches()
        return builds.find(tmp_path / "cache").software

    return find


@pytest.mark.parametrize("name", ["compiler/__init__.py", "compiler/nested/kernel.h", "compiler/_C.so"])
def test_an_edit_inside_an_installed_module_changes_the_digest(name, packages, software):
    before = software()
    (packages / name).write_text((packages / name).read_text().replace("1", "2").replace("x", "y").replace("m", "n"))
    assert software() != before


def test_a_new_file_and_a_new_name_change_it_too(packages, software):
    found = [software()]
    (packages / "compiler" / "new.py").touch()
    found.append(software())
    (packages / "compiler" / "new.py").rename(packages / "compiler" / "newer.py")
    assert len({*found, software()}) == 3


def test_what_is_no_source_and_what_is_only_touched_does_not_change_it(packages, software):
    before = software()
    (packages / "compiler" / "notes.txt").write_text("a note")
    (packages / "compiler" / "__pycache__").mkdir()
    (packages / "compiler" / "__pycache__" / "x.py").write_text("")
    for file in packages.rglob("*.*"):
        os.utime(file, (1, 1))
    assert software() == before


def test_links_are_followed_and_one_in_a_circle_ends(packages, software, tmp_path):
    elsewhere = tmp_path / "source tree"
    elsewhere.mkdir()
    (elsewhere / "kernel.py").write_text("1")
    (packages / "compiler" / "linked").symlink_to(elsewhere)
    (packages / "compiler" / "circle").symlink_to(packages / "compiler")
    before = software()
    (elsewhere / "kernel.py").write_text("2")
    assert software() != before


def test_a_module_that_is_a_single_file_counts(packages, monkeypatch, software):
    (packages / "single.py").write_text("1")
    monkeypatch.setattr(builds, "SOURCES", ("compiler", "single"))
    before = software()
    (packages / "single.py").write_text("2")
    assert software() != before


def test_a_file_that_did_not_change_is_not_read_again(packages, tmp_path):
    first = builds.find(tmp_path / "cache")
    remembered = tmp_path / "cache" / "digests.json"
    known = json.loads(remembered.read_text())
    assert len(known) == 3
    remembered.write_text(json.dumps({file: [*status, "another"] for file, (*status, _) in known.items()}))
    assert builds.find(tmp_path / "cache").facts["sources"] != first.facts["sources"]
    remembered.write_text("damaged")
    assert builds.find(tmp_path / "cache") == first


def register(packages: Path, version: str) -> None:
    """Install version `version` of a package that registers a backend."""
    for old in packages.glob("acme_compiler-*"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    folder = packages / f"acme_compiler-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-compiler\nVersion: {version}\n")
    (folder / "entry_points.txt").write_text("[torch_dynamo_backends]\nacme = acme.backend:compile\n")
    (packages / "acme").mkdir(exist_ok=True)
    for name in ("__init__.py", "backend.py"):
        (packages / "acme" / name).touch()


def test_the_version_and_the_sources_of_a_package_that_registers_a_backend_are_part_of_it(packages, software, tmp_path):
    found = [software()]
    register(packages, "1.0")
    found.append(software())
    facts = builds.find(tmp_path / "cache").facts
    assert facts["backends"] == {"acme-compiler": "1.0"} and set(facts["sources"]) == {"acme", "compiler"}
    register(packages, "2.0")
    found.append(software())
    (packages / "acme" / "backend.py").write_text("# edited\n")
    assert len({*found, software()}) == 4


def test_a_setting_of_inductor_in_the_environment_changes_it_and_a_log_setting_does_not(software, monkeypatch):
    before = software()
    monkeypatch.setenv("TORCH_LOGS", "+dynamo")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert software() == before
    monkeypatch.setenv("TORCHINDUCTOR_MAX_AUTOTUNE", "1")
    assert software() != before


@pytest.mark.parametrize(
    "name",
    [
        *(pattern.replace("*", "ANYTHING") for pattern in builds.IDENTITY_VARIABLES),
        "TORCHINDUCTOR_MAX_AUTOTUNE",
        "TORCHDYNAMO_DISABLE",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        "PYTORCH_CUDA_ALLOC_CONF",
        "TRITON_INTERPRET",
        "CUDA_LAUNCH_BLOCKING",
        "OMP_PROC_BIND",
        "KMP_AFFINITY",
        "MKL_CBWR",
        "DNNL_MAX_CPU_ISA",
        "ONEDNN_DEFAULT_FPMATH_MODE",
        "MALLOC_ARENA_MAX",
    ],
)
def test_a_variable_that_changes_what_is_compiled_or_run_is_identity(name):
    assert builds.environment({"HOME": "/root", name: "1"}) == {name: "1"}


@pytest.mark.parametrize(
    "name",
    [
        *(pattern.replace("*", "") for pattern in builds.OTHER_VARIABLES),
        "TORCH_LOGS_FORMAT",
        "TORCH_COMPILE_DEBUG_DIR",
        "CUDA_CACHE_PATH",
        "HOME",
        "PATH",
        "SLURM_JOB_ID",
        "TIMMGATE_LOCKS",
        "XTORCH",
        "CXXFLAGS_UNUSED",
    ],
)
def test_a_variable_that_says_where_things_are_or_what_is_printed_is_not(name):
    assert builds.environment({name: "1"}) == {}


def test_what_each_worker_sets_by_itself_is_not_identity(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {})
    worker_main.set_environment(2, tmp_path)
    assert builds.environment(os.environ) == {}


def test_the_table_of_variables_in_the_documentation_is_that_of_the_code():
    rows = re.findall(r"^\| (`[^|]+`) \| (identity|policy) \|", PROTOCOL.read_text().split("| variable |")[1], re.MULTILINE)
    told = {
        kind: {name for names, each in rows if each == kind for name in re.findall(r"`([^`]+)`", names)} for _, kind in rows
    }
    assert told == {"identity": {*builds.IDENTITY_VARIABLES}, "policy": {*builds.OTHER_VARIABLES, "TIMMGATE_LOCKS"}}


def test_jobs_read_what_the_main_process_found(packages, tmp_path):
    build = builds.find(tmp_path / "cache")
    builds.save(build, tmp_path / "facts")
    assert builds.load(tmp_path / "facts") == build
    assert builds.load(tmp_path / "facts").software == build.software
    written = (tmp_path / "facts" / "default.json").stat()
    builds.save(build, tmp_path / "facts")
    assert (tmp_path / "facts" / "default.json").stat().st_ino == written.st_ino, "a job may be reading it"


def test_every_fact_has_its_column(packages, tmp_path):
    facts, columns = builds.find(tmp_path / "cache").facts, {column.name for column in PROVENANCE}
    assert facts.keys() <= columns
    assert facts.keys() - {"torch", "timm"} == {*FACT_COLUMNS, "backends", "sources", "environment"}


@pytest.mark.parametrize("command", ["", "no_such_compiler", "no_such_compiler -O2"])
def test_without_a_compiler_there_is_no_version_of_it(command):
    assert builds.compiler(command) is None


def test_a_compiler_with_options_is_known_by_its_first_line(tmp_path):
    program = tmp_path / "c++"
    program.write_text("#!/bin/sh\necho 'c++ 1.2'\necho more\n")
    program.chmod(0o755)
    assert builds.compiler(f"{program} -O2") == "c++ 1.2"
