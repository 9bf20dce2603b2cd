"""Several builds in one run: each with its own Python, variables and inductor settings, and measured again by itself."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from timmgate.core.packages import places
from workflow.conftest import environment


def catalogue(**builds: Mapping) -> dict[str, str]:
    """The keys of the configuration for these builds, in their order."""
    return {"builds": ",".join(builds), "build_catalogue": json.dumps(builds)}


def rows(project, build: str) -> dict[str, dict]:
    """The rows of a build, by mode/model."""
    return {f"{row['mode']}/{row['model']}": row for row in project.table() if row["build"] == build}


def planned(project, **config) -> dict[str, set[str]]:
    """By build, the cells that a run would measure."""
    printed = project.run("--dry-run", **config)
    found: dict[str, set[str]] = {}
    for build, cell in re.findall(r"wildcards: device=cpu, build=(\S+), mode=(\S+, model=\S+)", printed):
        found.setdefault(build, set()).add(cell.replace(", model=", "/"))
    return found


# One run of two builds, of which one is an environment of its own.


@pytest.fixture(scope="module")
def two(new_project, tmp_path_factory):
    """A finished run, and its tables for other tools. Change nothing."""
    folder = tmp_path_factory.mktemp("two")
    nightly = {
        "python": str(environment(folder, "nightly")),
        "env": {"ACME_LEVEL": 3, "TORCH_LOGS": "+dynamo"},
        "inductor_config": {"max_autotune": True},
        "import": ["acme_plugin"],
    }
    (folder / "acme_plugin.py").write_text("# registers a device\n")
    release = {"python": str(environment(folder, "release"))}
    builds = catalogue(release=release, nightly=nightly)
    project = new_project(
        folder,
        config={**builds, "modes": "inference", "models": "test_vit,test_resnet", "checks": "accuracy,performance"},
        environment={"TIMMGATE_WORKER": ""},
    )
    project.printed = project.run()
    project.run("export")
    return project


def test_every_build_has_a_row_for_every_cell(two):
    assert [(row["build"], row["model"], row["accuracy"], row["performance"]) for row in two.table()] == [
        (build, model, "pass", "pass") for build in ("release", "nightly") for model in ("test_vit", "test_resnet")
    ]
    assert all(two.file("inference/test_vit", build=build).is_file() for build in ("release", "nightly"))
    assert planned(two) == {}


def test_every_cell_is_measured_by_the_python_of_its_build_with_its_variables(two):
    requests, starts = two.worker.requests(), two.worker.starts()
    found = {(request.specs[0].build, json.dumps(start["acme"])) for request, start in zip(requests, starts, strict=True)}
    assert found == {
        ("release", json.dumps({"ACME_HOME": "release"})),
        ("nightly", json.dumps({"ACME_HOME": "nightly", "ACME_LEVEL": "3"})),
    }


def test_the_worker_is_told_what_to_import_and_with_which_settings_to_compile(two):
    for request in two.worker.requests():
        is_nightly = request.specs[0].build == "nightly"
        assert request.run.build.import_ == (["acme_plugin"] if is_nightly else [])
        assert request.specs[0].options.inductor_config == ({"max_autotune": True} if is_nightly else {})


def test_each_build_is_asked_once_and_has_compile_caches_of_its_own(two):
    assert len(two.worker.preflights()) == 2
    caches = {
        (request.specs[0].build, request.run.cache.parts[-3], request.run.toolchain) for request in two.worker.requests()
    }
    assert {(build, folder) for build, folder, _ in caches} == {("release", "release"), ("nightly", "nightly")}
    assert len({toolchain for *_, toolchain in caches}) == 2


def test_a_row_says_what_is_different_in_its_build_and_how_to_repeat_it(two):
    release, nightly = rows(two, "release")["inference/test_vit"], rows(two, "nightly")["inference/test_vit"]
    assert "ACME_LEVEL=3" in nightly["environment"]
    assert not [each for each in release["environment"] if each.startswith("ACME")]
    assert (release["imports"], nightly["imports"]) == ([], ["acme_plugin"])
    assert {each.split("=")[0] for each in nightly["sources"]} > {"acme_plugin", "torch"}
    words = shlex.split(nightly["command"])
    assert {"ACME_LEVEL=3", "TORCH_LOGS=+dynamo"} < {*words}
    assert words[words.index("-m") - 1] == str(two.folder / "nightly" / "bin" / "python")
    assert release["accuracy_identity"] != nightly["accuracy_identity"]


def test_the_terminal_has_a_row_for_each_build(two):
    assert re.search(r"│ release +│ inference +│ +2 │ +2 │", two.printed)
    assert re.search(r"│ nightly +│ inference +│ +2 │ +2 │", two.printed)


def test_other_tools_get_a_folder_for_each_build(two):
    files = {path.parent.name for path in (two.folder / "results/cpu/export").rglob("*.csv")}
    assert files == {"release", "nightly"}


def test_the_gate_judges_each_build(two):
    (two.folder / "expected.csv").write_text("name,accuracy\ntest_vit,fail_accuracy\ntest_resnet,pass\n")
    printed = two.run("gate", baseline="expected.csv")
    found = re.findall(r"new_pass (\S+) (\w+)", printed)
    assert found == [("release/inference/test_vit", "accuracy"), ("nightly/inference/test_vit", "accuracy")]


def test_the_expectations_of_several_builds_cannot_be_written(two):
    printed = two.run("update_expected", code=1)
    assert "update_expected writes the statuses of one build, but builds is release, nightly" in printed


def test_one_build_alone_leaves_the_rows_of_the_other_in_the_tables(two, copy_of, tmp_path):
    project = copy_of(two, tmp_path)
    project.run(builds="release")
    assert [(row["build"], row["requested"], row["stale"]) for row in project.table()] == [
        *[("release", True, False)] * 2,
        *[("nightly", False, None)] * 2,
    ]


# What makes which build's cells be measured again.


@pytest.fixture
def source_tree(tmp_path) -> Path:
    """A folder with a torch of which torch/_inductor is a copy, and the rest links to the installed one."""
    folder, (installed,) = tmp_path / "source_tree", places("torch")
    for name in ("torch", "torch/_inductor"):
        (folder / name).mkdir(parents=True)
        for each in (installed.parent / name).iterdir():
            if each.name not in ("_inductor", "__pycache__"):
                (folder / name / each.name).symlink_to(each)
    return folder


def edit(folder: Path, text: str) -> None:
    """Replace the link to a source file by a file with that at its end."""
    (installed,) = places("torch")
    file = folder / "torch" / "_inductor" / "lowering.py"
    file.unlink()
    file.write_text((installed / "_inductor" / "lowering.py").read_text() + text)


def test_an_edit_of_one_source_file_measures_exactly_that_builds_cells_again(new_project, source_tree, tmp_path):
    builds = catalogue(installed={}, tree={"env": {"PYTHONPATH": str(source_tree)}})
    project = new_project(tmp_path, config={**builds, "modes": "inference", "models": "test_vit"})
    project.run()
    edit(source_tree, "\n# edited\n")
    assert planned(project) == {"tree": {"inference/test_vit"}}
    project.run()
    assert [request.specs[0].build for request in project.worker.requests()[2:]] == ["tree"]
    edit(source_tree, "\n# edited\n")
    assert planned(project) == {}, "the same content again"
    (installed,), (tree,) = (rows(project, build).values() for build in ("installed", "tree"))
    assert installed["torch"] == tree["torch"]
    assert installed["accuracy_identity"] != tree["accuracy_identity"]


@pytest.fixture(scope="module")
def alike(new_project, tmp_path_factory):
    """A finished run of one model with the same torch under two labels. Change nothing."""
    config = {**catalogue(one={}, two={}), "modes": "inference", "models": "test_vit"}
    project = new_project(tmp_path_factory.mktemp("alike"), config=config)
    project.run()
    return project


def test_the_same_torch_under_two_labels_is_the_same_measurement(alike):
    (one,), (two,) = (rows(alike, build).values() for build in ("one", "two"))
    assert one["accuracy_identity"] == two["accuracy_identity"]


@pytest.mark.parametrize("change", [{"env": {"ACME_LEVEL": 1}}, {"inductor_config": {"max_autotune": True}}])
def test_a_variable_and_a_setting_of_one_build_measure_its_cells_again(change, alike):
    assert planned(alike, **catalogue(one={}, two=change)) == {"two": {"inference/test_vit"}}


def test_a_variable_that_changes_nothing_of_what_is_compiled_measures_nothing_again(alike):
    assert planned(alike, **catalogue(one={}, two={"env": {"TORCH_LOGS": "+dynamo"}})) == {}


# What is possible in which build.


@pytest.fixture
def pair(project):
    """A project for two builds of the same torch and one model, in which nothing has run."""
    project.config = {"modes": "inference", "models": "test_vit"}
    return project


def builds_with(**variables: str) -> dict[str, str]:
    """Two builds, the second with these variables."""
    return catalogue(one={}, two={"env": variables})


def test_a_problem_of_one_build_ends_the_run_and_says_whose_it_is(pair):
    printed = pair.run(code=1, **builds_with(FAKE_PREFLIGHT="there is no such backend"))
    assert printed.rstrip().endswith("build 'two': there is no such backend")
    assert pair.worker.starts() == []


def test_a_model_that_every_build_lacks_is_refused(pair, monkeypatch):
    monkeypatch.setenv("FAKE_UNKNOWN", "test_vit")
    printed = pair.run(code=1, **builds_with())
    assert printed.rstrip().endswith("models: this timm has no model 'test_vit'")
    assert pair.worker.starts() == []


def test_what_failed_in_one_build_is_measured_again_there_and_no_other_build_is_asked(pair):
    pair.run(**builds_with(FAKE_UNKNOWN="test_vit", FAKE_WORKER='{"test_vit": "raise@compile"}'))
    assert len(pair.worker.starts()) == 2, "a model that one build lacks is measured there all the same"
    printed = pair.run(**builds_with(FAKE_UNKNOWN="test_vit", FAKE_WORKER="{}"), retry="failed")
    assert printed.count("retry: 1 of 2 cells") == 1
    assert [request.specs[0].build for request in pair.worker.requests()[2:]] == ["two"]
    assert len(pair.worker.preflights()) == 3


def test_several_devices_that_are_not_cudas_are_used_at_once_and_each_by_its_number(pair, monkeypatch):
    monkeypatch.setenv("FAKE_DEVICES", "2")
    pair.worker.behaviours = {"*": "meet:2@load"}
    pair.run(device="acme", jobs_per_gpu=1, threads=1, weights="random", suite="tiny", models="test_vit,test_resnet")
    assert {request.device_number for request in pair.worker.requests()} == {0, 1}
    requests = [json.loads(shlex.split(row["command"])[-1]) for row in pair.table(device="acme")]
    assert {request["device_number"] for request in requests} == {0, 1}


def test_a_single_device_has_no_number(pair):
    pair.run(device="acme", weights="random", suite="tiny")
    assert [request.device_number for request in pair.worker.requests()] == [None]


def test_the_whole_registry_is_that_of_the_default_build(pair, tmp_path):
    """In its timm there are two models; the other build, which is measured, is not asked what there is."""
    timm = tmp_path / "packages" / "timm"
    (timm / "models").mkdir(parents=True)
    (timm / "version.py").write_text("__version__ = '9.9'\n")
    (timm / "__init__.py").write_text(SMALL_TIMM)
    default = {"env": {"PYTHONPATH": str(timm.parent)}}
    builds = {"builds": "other", "build_catalogue": json.dumps({"default": default, "other": {}})}
    del pair.config["models"]
    assert planned(pair, suite="timm", **builds) == {"other": {"inference/small", "inference/large"}}


SMALL_TIMM = """\
from types import SimpleNamespace
__version__ = "9.9"
models = SimpleNamespace(get_deprecated_models=lambda: {})
def list_modules(): return ["family"]
def list_models(module=None, include_tags=False): return ["small", "large"]
def get_pretrained_cfg(name): return SimpleNamespace(input_size=(3, 8, 8), num_classes=10)
def is_model_pretrained(name): return False
"""
