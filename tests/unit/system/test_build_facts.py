"""What compiles: everything that can change a figure changes the facts of its environment, and nothing else does."""

import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

from timmgate import PACKAGE_ROOT
from timmgate.config.builds import Build
from timmgate.core.schemas import PROVENANCE
from timmgate.system import build_facts
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
    monkeypatch.setattr(build_facts, "SOURCES", ("compiler",))
    for name in os.environ:
        if build_facts.environment({name: ""}):
            monkeypatch.delenv(name)
    return folder


@pytest.fixture
def software(packages, tmp_path):
    """The digest of a build with the facts as they are now."""

    def find(**asked) -> str:
        importlib.invalidate_caches()
        return Build(facts=build_facts.find(tmp_path / "digests.json", **asked)).software

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
    monkeypatch.setattr(build_facts, "SOURCES", ("compiler", "single"))
    before = software()
    (packages / "single.py").write_text("2")
    assert software() != before


def test_a_file_that_did_not_change_is_not_read_again(packages, tmp_path):
    remembered = tmp_path / "digests.json"
    first = build_facts.find(remembered)
    known = json.loads(remembered.read_text())
    assert len(known) == 3
    remembered.write_text(json.dumps({file: [*status, "another"] for file, (*status, _) in known.items()}))
    assert build_facts.find(remembered)["sources"] != first["sources"]
    remembered.write_text("damaged")
    assert build_facts.find(remembered) == first


def test_a_file_that_another_build_links_to_is_not_read_again(packages, tmp_path, monkeypatch):
    build_facts.find(tmp_path / "digests.json")
    (packages / "linked").symlink_to(packages / "compiler")
    monkeypatch.setattr(build_facts, "SOURCES", ("linked",))
    monkeypatch.setattr(build_facts, "_digest", lambda file: pytest.fail(f"{file} was read"))
    importlib.invalidate_caches()
    build_facts.find(tmp_path / "digests.json")
    assert len(json.loads((tmp_path / "digests.json").read_text())) == 6


def test_what_is_gone_is_forgotten(packages, software, tmp_path):
    software()
    (packages / "compiler" / "_C.so").unlink()
    (packages / "compiler" / "new.py").touch()
    software()
    remembered = json.loads((tmp_path / "digests.json").read_text())
    assert sorted(Path(file).name for file in remembered) == ["__init__.py", "kernel.h", "new.py"]


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
    facts = build_facts.find(tmp_path / "digests.json")
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
        *(pattern.replace("*", "ANYTHING") for pattern in build_facts.IDENTITY_VARIABLES),
        "TORCHINDUCTOR_MAX_AUTOTUNE",
        "TORCHDYNAMO_DISABLE",
        "TORCHELSE",
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
    assert build_facts.environment({"HOME": "/root", name: "1"}) == {name: "1"}


@pytest.mark.parametrize(
    "name",
    [
        *(pattern.replace("*", "") for pattern in build_facts.OTHER_VARIABLES),
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
    assert build_facts.environment({name: "1"}) == {}


def test_what_each_worker_sets_by_itself_is_not_identity(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {})
    worker_main.set_environment(2, tmp_path)
    assert build_facts.environment(os.environ) == {}


def test_the_table_of_variables_in_the_documentation_is_that_of_the_code():
    rows = re.findall(r"^\| (`[^|]+`) \| (identity|policy) \|", PROTOCOL.read_text().split("| variable |")[1], re.MULTILINE)
    told = {
        kind: {name for names, each in rows if each == kind for name in re.findall(r"`([^`]+)`", names)} for _, kind in rows
    }
    assert told == {
        "identity": {*build_facts.IDENTITY_VARIABLES},
        "policy": {*build_facts.OTHER_VARIABLES, "TIMMGATE_LOCKS"},
    }


def test_every_fact_has_its_column(packages, tmp_path):
    facts, columns = build_facts.find(tmp_path / "digests.json"), {column.name for column in PROVENANCE}
    assert facts.keys() <= columns
    assert facts.keys() - {"torch", "timm"} == {*FACT_COLUMNS, "backends", "imports", "sources", "environment"}


def test_a_module_that_is_imported_first_is_part_of_it_with_its_files(packages, software):
    (packages / "acme").mkdir()
    (packages / "acme" / "__init__.py").touch()
    (packages / "acme" / "plugin.py").touch()
    found = [software(), software(imports=["acme.plugin"])]
    (packages / "acme" / "plugin.py").write_text("# edited\n")
    assert len({*found, software(imports=["acme.plugin"])}) == 3


@pytest.mark.parametrize("missing", [*build_facts.NEEDED, "acme"])
def test_a_missing_module_is_named(missing, packages, monkeypatch, tmp_path):
    monkeypatch.setattr(build_facts, "places", lambda module: [] if module != missing else packages_places(module))
    with pytest.raises(ModuleNotFoundError, match=f"there is no module {missing}"):
        build_facts.find(tmp_path / "digests.json", ["acme.plugin"])


def packages_places(module):
    raise ModuleNotFoundError(f"there is no module {module}")


def test_the_version_is_that_of_the_files_and_not_of_another_installation(packages, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # it would be the one that is found
    (packages / "torch").mkdir()
    (packages / "torch" / "__init__.py").touch()
    (packages / "torch" / "version.py").write_text("__version__ = '2.99.0.dev20990101+acme'\ngit_version = 'abc'\n")
    importlib.invalidate_caches()
    facts = build_facts.find(tmp_path / "digests.json")
    assert (facts["torch"], facts["torch_revision"]) == ("2.99.0.dev20990101+acme", "abc")


def test_a_variable_of_the_build_alone_is_part_of_it_whatever_it_is_called(software, monkeypatch):
    before = software()
    monkeypatch.setenv("ACME_LEVEL", "3")
    monkeypatch.setenv("TORCH_LOGS", "+dynamo")
    assert software() == before
    found = software(variables=["ACME_LEVEL", "TORCH_LOGS"])
    monkeypatch.setenv("TORCH_LOGS", "")
    assert found == software(variables=["ACME_LEVEL", "TORCH_LOGS"]) != before


def test_a_variable_without_a_text_is_not_the_same_as_none(software, monkeypatch):
    """Many of inductor's switches are on unless their variable is other than 1."""
    before = software(variables=["ACME_LEVEL"])
    monkeypatch.setenv("ACME_LEVEL", "")
    assert software(variables=["ACME_LEVEL"]) != before
    monkeypatch.setenv("TORCHINDUCTOR_ONLINE_SOFTMAX", "")
    assert len({before, software(), software(variables=["ACME_LEVEL"])}) == 3


def test_our_own_folder_on_the_search_path_is_not_part_of_it(packages, software, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    before = software()
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE_ROOT))
    assert software() == before
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PACKAGE_ROOT), "/elsewhere"]))
    assert software() != before


@pytest.mark.parametrize("command", ["", "no_such_compiler", "no_such_compiler -O2"])
def test_without_a_compiler_there_is_no_version_of_it(command):
    assert build_facts.compiler(command) is None


def test_a_compiler_with_options_is_known_by_its_first_line(tmp_path):
    program = tmp_path / "c++"
    program.write_text("#!/bin/sh\necho 'c++ 1.2'\necho more\n")
    program.chmod(0o755)
    assert build_facts.compiler(f"{program} -O2") == "c++ 1.2"
