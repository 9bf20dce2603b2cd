"""The small files in which supervisors say what they do."""

import os

import pytest

from specs import cell
from timmgate.supervisor import stages

KEY = ("cpu", "default", "inference", "test_vit.in1k")


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return stages.of_cell(cell(build="default", model=KEY[-1]))


def test_what_a_supervisor_says_can_be_read(file):
    file.tell("accuracy", "compile", True)
    said = stages.read(stages.path_of(KEY))
    assert (said.check, said.stage, said.is_paused) == ("accuracy", "compile", True)
    assert stages.under_way("cpu") == {KEY}
    assert stages.under_way("cuda") == set()


def test_the_same_said_again_keeps_its_time(file):
    file.tell("accuracy", "compile")
    before = stages.path_of(KEY).stat().st_mtime_ns, stages.read(stages.path_of(KEY)).since_s
    file.tell("accuracy", "compile")
    assert (stages.path_of(KEY).stat().st_mtime_ns, stages.read(stages.path_of(KEY)).since_s) == before


def test_nothing_is_left_of_one_that_is_done(file):
    file.tell("accuracy", "compile")
    file.close()
    assert stages.read(stages.path_of(KEY)) is None
    assert not any(path.is_file() for path in stages.FOLDER.rglob("*"))


def test_what_was_left_is_forgotten(file):
    file.tell("accuracy", "compile")
    stages.forget("cpu")
    assert stages.under_way("cpu") == set()
    file.tell("accuracy", "run")
    assert stages.under_way("cpu") == {KEY}


def test_half_a_file_or_another_ones_is_nothing(file):
    path = stages.path_of(KEY)
    path.parent.mkdir(parents=True)
    for text in ("", '{"check": "acc', "[]", '{"other": 1}'):
        path.write_text(text)
        assert stages.read(path) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_costs_nothing(file, tmp_path):
    tmp_path.chmod(0o500)
    file.tell("accuracy", "compile")
    file.close()


def test_a_file_in_the_place_of_the_folder_costs_nothing(file):
    stages.FOLDER.parent.mkdir()
    stages.FOLDER.write_text("")
    file.tell("accuracy", "compile")
    file.close()
    assert stages.under_way("cpu") == set()
