"""Suites beyond a small table: the whole of timm's registry, shards of a suite, and tables renewed against timm."""

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from timmgate.config import registry, suite_refresh, suites
from timmgate.core.spec import Traits
from workflow.conftest import TABLES

PLAN_CPU_S = 14.0


@pytest.fixture
def project(project, listed):
    """Timm's models have been listed in it."""
    shutil.copytree(listed, project.folder / ".cache", dirs_exist_ok=True)
    return project


def cells(project, **config):
    """The cells that would be measured."""
    return {job for job in project.planned(**config) if "/" in job}


def test_the_whole_registry_is_planned_within_seconds_of_processor_time(project, listed, installed, monkeypatch):
    monkeypatch.setenv("EXACT_FACTS", "1")
    known = registry.load(listed, installed)
    assert cells(project, suite="timm", modes="inference") == {f"inference/{name}" for name in known.architectures}
    assert 0 < project.last.cpu_s < PLAN_CPU_S


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ("test_vit?,resnet50.a1_in1k", {"test_vit2", "test_vit3", "test_vit4", "resnet50.a1_in1k"}),
        ("vit_tiny_patch16_384.augreg*", {"vit_tiny_patch16_384.augreg_in21k_ft_in1k"}),
    ],
)
def test_names_and_globs_select_architectures_or_with_a_dot_their_tags(project, models, expected):
    planned = project.planned(suite="timm", modes="inference", models=models)
    assert planned == {f"inference/{model}" for model in expected} | TABLES


def test_an_unknown_name_gets_near_matches_before_anything_starts(project):
    printed = project.run(code=1, suite="timm", models="resnet5O")
    assert "models: 'resnet5O' matches no model of the suite 'timm'; did you mean resnet50" in printed
    assert "Traceback" not in printed


def test_shards_divide_the_cells_of_a_dashboard(project):
    config = {"suite": "dashboard-2026", "modes": "inference,training", "weights": "random", "exclude": "deit_*"}
    shards = [cells(project, shard=f"{part}/3", **config) for part in (1, 2, 3)]
    assert set.union(*shards) == cells(project, **config)
    assert sum(map(len, shards)) == 2 * 16
    assert {cell.split("/")[1] for cell in shards[0]} == {"vit_base_patch14_dinov2.lvd142m"}


def test_an_empty_shard_is_refused_before_anything_starts(project):
    printed = project.run(code=1, shard="7/8")
    assert "shard: nothing is left for 7/8, for the selected models number only 6" in printed
    assert "Traceback" not in printed


@pytest.fixture(scope="session")
def refreshed(new_project, listed, installed, tmp_path_factory):
    """A project with a table mine.tsv that was refreshed, and what was printed. Change nothing.

    The table has one model of every family but vgg, among them one by its old name, and one model that never was.
    """
    project = new_project(tmp_path_factory.mktemp("refreshed"))
    families = suite_refresh.representatives(registry.load(listed, installed))
    del families["vgg"], families["nest"]
    rows = [f"{model}\t64\t\t\t1" for model in families.values()]
    rows[1:1] = ["jx_nest_base\t32\t0.05\tmeasured by hand\t", "resnet_of_yore\t16\t\t\t1"]
    columns = "model\tbatch_size\tfreezing_tolerance\treason\tcost"
    (project.folder / "mine.tsv").write_text("\n".join(["# my own", "# timm 0.9.0", columns, *rows, ""]))
    return project, project.run("refresh", suite="mine.tsv")


def read(path):
    return suites.read(str(path), Path())


def test_a_refresh_tells_in_the_terminal_and_in_a_file_what_changed(refreshed):
    project, printed = refreshed
    report = (project.folder / "refreshed" / "mine.txt").read_text()
    assert report in printed
    summary, renamed, removed, added, _ = report.splitlines()
    kept, timm = len(read(project.folder / "mine.tsv").models) - 2, version("timm")
    assert summary.startswith(
        f"Suite mine, made with timm 0.9.0, refreshed with timm {timm}: {kept} kept, 1 renamed, 1 removed"
    )
    assert renamed == "renamed  jx_nest_base -> nest_base_jx"
    assert removed.startswith("removed  resnet_of_yore: timm does not have it any more; did you mean ")
    assert added == "added    vgg11, for its family vgg"


def test_a_refreshed_table_keeps_what_was_set_by_hand_and_has_the_new_names(refreshed):
    project, _ = refreshed
    before, after = read(project.folder / "mine.tsv"), read(project.folder / "refreshed" / "mine.tsv")
    names = ["nest_base_jx" if name == "jx_nest_base" else name for name in before.models if name != "resnet_of_yore"]
    assert list(after.models) == [*names, "vgg11"]
    assert after.models["nest_base_jx"] == Traits(batch_size=32, freezing_tolerance=0.05)
    assert after.models["vgg11"] == Traits(batch_size=64)
    assert (after.cost["nest_base_jx"], after.cost["vgg11"]) == (68, 130)


def test_a_refresh_leaves_the_table_itself_alone(refreshed):
    project, _ = refreshed
    assert (project.folder / "mine.tsv").read_text().startswith("# my own\n# timm 0.9.0\nmodel\tbatch_size")
    assert "resnet_of_yore" in read(project.folder / "mine.tsv").models


def test_the_registry_itself_cannot_be_refreshed(project):
    printed = project.run("refresh", code=1, suite="timm")
    assert "suite: 'timm' is timm's whole registry, which has no table" in printed
