"""Builds: each environment's own Python says what it has, and what it cannot say is one sentence."""

import json
import sys
from pathlib import Path

import pytest

from timmgate.config import builds
from timmgate.config.builds import Build
from timmgate.core.build import BuildOptions
from timmgate.core.errors import ConfigError

OTHER_PYTHONS = sorted(Path.home().glob(".pyenv/versions/*/bin/python"))


@pytest.fixture
def python(tmp_path):
    """Makes a program that stands for the Python of an environment, out of the lines of a shell script."""

    def make(*lines: str, mode: int = 0o755, name: str = "python") -> str:
        path = tmp_path / "env" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(mode)
        return str(path)

    return make


def problem(tmp_path, **options) -> str:
    with pytest.raises(ConfigError) as refused:
        builds.find(tmp_path / "cache", "nightly", BuildOptions(**options))
    message = str(refused.value)
    assert "\n" not in message and message.startswith("build 'nightly': ")
    return message.removeprefix("build 'nightly': ")


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A folder of packages that stand for an environment: torch, timm and numpy with nothing in them."""
    folder = tmp_path / "packages"
    for name in ("torch", "timm", "numpy"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
        (folder / name / "version.py").write_text("__version__ = '9.9'\n")
    return folder


def test_the_facts_are_those_of_the_python_that_is_asked(environment, tmp_path):
    build = builds.find(tmp_path / "cache", "mine", BuildOptions(env={"PYTHONPATH": str(environment), "ACME": "1"}))
    assert (build.label, build.facts["torch"], build.facts["timm"]) == ("mine", "9.9", "9.9")
    assert build.facts["environment"] == {**build.facts["environment"], "ACME": "1", "PYTHONPATH": str(environment)}
    assert build.options.python is None


def test_an_edit_changes_the_digest_of_the_build_whose_file_it_is_and_no_other(environment, tmp_path):
    options = {"default": BuildOptions(), "mine": BuildOptions(env={"PYTHONPATH": str(environment)})}
    before = builds.find_all(options, tmp_path / "cache")
    (environment / "torch" / "kernel.py").write_text("1")
    after = builds.find_all(options, tmp_path / "cache")
    assert {label for label in options if before[label].software != after[label].software} == {"mine"}
    assert list(after) == ["default", "mine"]


def test_two_labels_of_the_same_environment_have_the_same_digest(tmp_path):
    found = builds.find_all({"one": BuildOptions(), "two": BuildOptions(python=sys.executable)}, tmp_path / "cache")
    assert found["one"].software == found["two"].software


def test_a_relative_python_is_found_from_the_working_directory_and_its_links_are_not_followed(tmp_path, monkeypatch):
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    assert builds.program(BuildOptions(python="env/bin/python"), "mine") == str(tmp_path / "env" / "bin" / "python")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert builds.program(BuildOptions(python="~/env/bin/python"), "mine") == str(tmp_path / "env" / "bin" / "python")
    monkeypatch.setenv("PATH", str(tmp_path / "env" / "bin"))
    assert builds.program(BuildOptions(python="python"), "mine") == str(tmp_path / "env" / "bin" / "python")


def test_a_python_that_is_not_there_is_refused(tmp_path):
    for python in ("/no/such/python", "~nobody-of-that-name/bin/python"):
        assert problem(tmp_path, python=python).startswith(f"python is {python!r}, which does not exist; it must")


def test_a_folder_of_an_environment_gets_the_python_in_it_as_a_hint(python, tmp_path):
    inside = python("exit 0")
    folder = str(Path(inside).parents[1])
    assert problem(tmp_path, python=folder) == f"python is {folder!r}, which is a folder; did you mean {inside}?"


def test_a_file_that_cannot_be_executed_is_refused(python, tmp_path):
    assert "which cannot be executed" in problem(tmp_path, python=python("exit 0", mode=0o644))


def test_a_program_that_does_not_start_is_refused(tmp_path):
    path = tmp_path / "python"
    path.write_bytes(b"\x7fELF of another machine")
    path.chmod(0o755)
    assert problem(tmp_path, python=str(path)) == f"{path} does not start (Exec format error)"


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["echo 'first' >&2", "echo 'no libpython' >&2", "exit 127"], "is no Python: no libpython"),
        (["exit 4"], "is no Python: exit code 4"),
        (["echo hello"], "is no Python: exit code 0"),
        (["kill -9 $$"], "is no Python: exit code -9"),
        (["echo Python 3 11", "echo 'no disk' >&2", "exit 1"], "could not say what it has: no disk"),
    ],
)
def test_a_program_that_is_no_python_is_refused(lines, sentence, python, tmp_path):
    path = python(*lines)
    assert problem(tmp_path, python=path) == f"{path} {sentence}"


def test_one_that_does_not_answer_is_refused(python, tmp_path, monkeypatch):
    monkeypatch.setattr(builds, "ANSWER_TIMEOUT_S", 0.2)
    path = python("exec sleep 600")
    assert problem(tmp_path, python=path) == f"{path} did not say within 0.2 s what it has"


def test_a_python_without_what_a_worker_needs_is_refused_by_the_name_of_what_is_missing(tmp_path):
    message = problem(tmp_path, import_=["acme_torch.plugin"])
    remedy = "install it there: a build needs torch, timm, numpy, and what it imports"
    assert message == f"there is no module acme_torch in {sys.executable}; {remedy}"


@pytest.mark.skipif(not OTHER_PYTHONS, reason="there are no other Pythons here")
@pytest.mark.parametrize("python", OTHER_PYTHONS, ids=lambda path: path.parents[1].name)
def test_an_older_python_is_told_so_and_a_newer_one_lacks_torch(python, tmp_path):
    version = tuple(map(int, python.parents[1].name.split(".")[:2]))
    if version < builds.OLDEST_PYTHON:
        assert problem(tmp_path, python=str(python)) == f"{python} is older than Python 3.10"
    elif version != sys.version_info[:2]:
        assert problem(tmp_path, python=str(python)).startswith(f"there is no module torch in {python}; install it there")


def test_jobs_read_what_the_main_process_found(tmp_path):
    options = BuildOptions(python="/envs/acme/bin/python", env={"A": "1"}, inductor_config={"b": True}, import_=["acme"])
    build = Build("vendor", options, {"torch": "2.9", "sources": {"torch": "abc"}})
    builds.save([build], tmp_path)
    assert builds.load(tmp_path, "vendor") == build
    assert builds.load(tmp_path, "vendor").software == build.software
    written = (tmp_path / "vendor.json").stat()
    builds.save([build], tmp_path)
    assert (tmp_path / "vendor.json").stat().st_ino == written.st_ino, "a job may be reading it"
    assert set(json.loads((tmp_path / "vendor.json").read_text())) == {"options", "facts"}


def test_what_is_printed_around_an_interpreter_does_not_matter(python, tmp_path):
    """As by a vendor's script that sets variables."""
    wrapper = python(f'echo "initializing the environment"; exec {sys.executable} "$@"')
    assert builds.find(tmp_path, "wrapped", BuildOptions(python=wrapper)).facts["torch"]


def test_a_path_that_begins_here_is_no_name_to_search_for(python, tmp_path, monkeypatch):
    Path(python(f'exec {sys.executable} "$@"')).rename(tmp_path / "python")
    monkeypatch.chdir(tmp_path)
    assert builds.program(BuildOptions(python="./python"), "here") == str(tmp_path / "python")
