"""Names and values that mean something to a shell, to Snakemake or to a file system are names and values, or are refused."""

import subprocess
from pathlib import Path

import pytest
import yaml

from timmgate.config import settings, suites
from timmgate.core import errors

ROOT = Path(__file__).parents[2]
HOSTILE = "a b;$(touch pwned)`touch pwned`'q\"d&|<>{x}%#é"
NO_NAMES = ["../../escape", "a/b", "a b", "a;b", "$(touch pwned)", "'", '"', "-n", ".hidden", "{x}", "a\\b"]
FORM = "must be a name of letters, digits, dots, dashes and underscores"


@pytest.fixture
def hostile(new_project, tmp_path):
    """A project in a folder whose name would do harm in a shell, beside which nothing may be made."""
    folder = tmp_path / HOSTILE.replace("{x}", "")
    folder.mkdir()
    return new_project(folder, config={"modes": "inference", "models": "test_vit"})


def names_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def test_the_working_directory_and_the_caches_may_have_any_name(hostile, tmp_path, monkeypatch):
    cache = hostile.folder / "cache $(touch pwned)"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    hostile.run(compile_cache="shared")
    assert hostile.statuses() == {"inference/test_vit": "pass"}
    (request,) = hostile.worker.requests()
    assert request.run.cache == cache
    (row,) = hostile.table()
    subprocess.run(row["command"], shell=True, cwd=tmp_path, capture_output=True, check=True)
    assert "pwned" not in names_below(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {hostile.folder.name}
    assert {Path(file).parts[0] for file in hostile.files()} == {"results", "logs"}


def test_a_suite_may_be_a_file_of_any_name(project):
    (project.folder / f"{HOSTILE}.tsv").write_text("model\ntest_vit\n")
    (project.folder / "mine.yaml").write_text(f"suite: >-\n  {HOSTILE}.tsv\n")
    project.configfile = Path("mine.yaml")
    project.run(modes="inference")
    (row,) = project.table()
    assert row["suite"] == HOSTILE
    assert "pwned" not in names_below(project.folder)


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_model_that_is_no_name_is_refused(name, tmp_path):
    (tmp_path / "mine.tsv").write_text(f"model\n{name}\n")
    with pytest.raises(errors.ConfigError, match=rf"mine\.tsv, line 2: model: .* {FORM}"):
        suites.read(str(tmp_path / "mine.tsv"), tmp_path)


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_mode_that_is_no_name_is_refused(name):
    config = {**yaml.safe_load((ROOT / "config" / "config.yaml").read_text()), "mode_catalogue": {name: {}}, "modes": [name]}
    with pytest.raises(errors.ConfigError, match=FORM):
        settings.load(config)


def test_a_pattern_is_a_pattern(project):
    printed = project.run("--dry-run", code=1, models="$(touch pwned);../../etc/passwd")
    assert "'$(touch pwned);../../etc/passwd' matches no model of the suite 'tiny'" in printed
    assert "pwned" not in names_below(project.folder)


def test_a_value_that_would_end_a_quotation_on_a_cluster_belongs_in_a_file(project):
    printed = project.run("--dry-run", code=1, models="test_*' ; touch pwned '")
    assert "has a single quote; put it into a file and name that with --configfile" in printed
    printed = project.run("--dry-run", code=1, inductor_config="{a'b: 1}")
    assert "has a single quote" in printed
