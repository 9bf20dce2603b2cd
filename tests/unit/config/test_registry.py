"""timm's registry as a file: what is in it, when it is written, and the suite that it makes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm

from timmgate import module_environment
from timmgate.config import builds, registry, suites
from timmgate.config.builds import Build
from timmgate.config.registry import Architecture, Registry
from timmgate.core.build import BuildOptions
from timmgate.core.errors import ConfigError
from timmgate.core.spec import Traits

NOBODYS = Build(facts={"timm": "1.2.3", "sources": {"timm": "0123456789abcdef"}})
EMPTY = {"timm": "1", "architectures": {}, "tagged": {}, "renamed": {}}


@pytest.fixture(scope="module")
def folder(installed, listed, tmp_path_factory):
    """A working directory in which the installed timm was listed. Change nothing."""
    folder = tmp_path_factory.mktemp("listed")
    shutil.copytree(listed, folder / ".cache")
    builds.save([installed], folder / "builds")
    return folder


@pytest.fixture(scope="module")
def known(listed, installed):
    return registry.load(listed, installed)


@pytest.fixture
def suite(folder, installed, monkeypatch):
    """The suite of the whole registry."""
    monkeypatch.chdir(folder)
    return suites.read("timm", Path("no tables"), installed)


def test_the_list_has_all_architectures_in_timms_order(known):
    assert list(known.architectures) == [name for name in timm.list_models() if timm.get_pretrained_cfg(name)]


def test_the_list_has_all_pretrained_tags(known):
    with_tags = [name for name in timm.list_models(include_tags=True) if "." in name]
    assert list(known.tagged) == with_tags


def test_an_architecture_has_the_facts_of_its_default_configuration(known):
    assert known.architectures["resnet50"] == Architecture("resnet", [3, 224, 224], 1000, True)
    assert known.architectures["vit_base_patch14_dinov2"] == Architecture("vision_transformer", [3, 518, 518], 0, True)


def test_a_name_that_timm_has_retired_leads_to_its_successor(known):
    assert known.renamed["jx_nest_base"] == "nest_base_jx"
    assert "jx_nest_base" not in known
    assert "nest_base_jx" in known


def test_the_area_is_that_of_the_tag():
    small, large = [3, 112, 224], [3, 448, 448]
    known = Registry("1", {"net": Architecture("nets", small, 10, True)}, {"net.large": large}, {})
    assert (known.relative_area("net"), known.relative_area("net.large")) == (0.5, 4.0)
    assert known.family("net.large") == "nets"


def test_a_models_cost_is_its_parameters_in_millions_times_its_input_area(known):
    parameters = sum(parameter.numel() for parameter in timm.create_model("test_vit").parameters())
    assert registry.cost(known, "test_vit") == pytest.approx(parameters / 1e6 * (160 / 224) ** 2)


def test_a_list_that_is_there_is_read_without_importing_torch_or_timm(folder):
    program = """\
import sys
from pathlib import Path
from timmgate.config import builds, suites
assert len(suites.read("timm", Path(), builds.load(Path("builds"))).models) > 1000
print({"torch", "timm"} & set(sys.modules))
"""
    command, environment = [sys.executable, "-c", program], module_environment()
    before = {path: path.stat().st_mtime_ns for path in (folder / ".cache").iterdir()}
    printed = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout
    assert printed == "set()\n"
    assert {path: path.stat().st_mtime_ns for path in (folder / ".cache").iterdir()} == before


@pytest.fixture
def listings(monkeypatch):
    """How often a timm is listed, without listing any."""
    listed = []

    def list_into(path, build):
        listed.append(build)
        path.write_text(json.dumps(EMPTY))

    monkeypatch.setattr(registry, "_list_into", list_into)
    return listed


def test_each_version_and_each_edit_of_timm_is_listed_once(tmp_path, listings):
    edited = replace(NOBODYS, facts={**NOBODYS.facts, "sources": {"timm": "edited"}})
    other = replace(NOBODYS, facts={**NOBODYS.facts, "timm": "1.2.4"})
    for build in [NOBODYS, edited, other] * 2:
        assert registry.load(tmp_path, build) == Registry(**EMPTY)
    assert listings == [NOBODYS, edited, other]


def test_a_list_older_than_what_makes_it_is_made_anew(tmp_path, listings):
    registry.load(tmp_path, NOBODYS)
    (file,) = tmp_path.iterdir()
    os.utime(file, (0, 0))
    registry.load(tmp_path, NOBODYS)
    assert len(listings) == 2


def test_a_timm_that_cannot_be_imported_is_told_in_one_sentence(tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise ImportError('broken on purpose')")
    build = replace(NOBODYS, options=BuildOptions(env={"PYTHONPATH": str(tmp_path)}))
    with pytest.raises(
        ConfigError, match=r"^suite: the models of timm .* cannot be listed: ImportError: broken on purpose$"
    ):
        registry.load(tmp_path / "cache", build)
    assert not (tmp_path / "cache").exists()


def test_the_whole_registry_as_a_suite_is_its_architectures_without_special_cases(suite, known):
    assert suite.name == "timm"
    assert suites.select(suite, (), ()) == dict.fromkeys(known.architectures, Traits())
    assert suite.models["levit_128"] == Traits()


def test_a_pattern_without_a_dot_selects_architectures(suite):
    selected = list(suites.select(suite, ("resnet18", "test_vi*"), ()))
    assert selected == ["resnet18", *(name for name in suite.models if name.startswith("test_vi"))]
    assert "test_vit" in selected


def test_a_pattern_with_a_dot_selects_pretrained_tags(suite):
    assert list(suites.select(suite, ("test_vit.r160_in1k",), ())) == ["test_vit.r160_in1k"]
    selected = suites.select(suite, ("vit_tiny_patch16*.augreg*",), ("*384*",))
    assert list(selected) == ["vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"]


def test_what_is_excluded_is_excluded_with_its_tags(suite):
    assert list(suites.select(suite, ("test_vit?.*",), ("test_vit[34]*",))) == ["test_vit2.r160_in1k"]


def test_a_misspelt_tag_gets_near_matches(suite):
    with pytest.raises(ConfigError, match=r"'resnet50.a1_in1' matches no model of the suite 'timm'; did you mean resnet50"):
        suites.select(suite, ("resnet50.a1_in1",), ())


def test_the_cost_of_a_model_of_the_registry_is_its_input_area_which_tells_no_size(suite):
    assert suite.cost["resnet50"] == 1.0
    assert suite.cost["vit_base_patch14_dinov2.lvd142m"] == pytest.approx((518 / 224) ** 2)
    assert suite.size("resnet50") is None


def test_the_registry_has_no_table_to_refresh():
    with pytest.raises(ConfigError, match="whole registry, which has no table"):
        suites.table("timm", Path())
