"""The target `report` and Snakemake's own report."""

import re
import zipfile

import pytest


@pytest.fixture(scope="module")
def reported(new_project, tmp_path_factory):
    """A finished run with its report; one of its cells has failed."""
    project = new_project(tmp_path_factory.mktemp("reported"), config={"models": "test_vit,test_resnet"})
    project.config |= {"modes": "inference", "checks": "accuracy,performance"}
    project.worker.behaviours["test_vit"] = "fail_accuracy"
    project.run("report")
    return project


def test_the_report_is_a_page_and_its_pictures(reported):
    page = (reported.folder / "results" / "cpu" / "report.html").read_text()
    assert "1 of 2 cells fails." in page
    pictures = {path.name for path in (reported.folder / "results" / "cpu" / "report").iterdir()}
    assert "speedups.svg" in pictures


def test_a_report_is_made_again_when_the_gate_has_spoken_and_not_otherwise(reported):
    assert reported.planned("report") == set()
    reported.run("gate", code=1)
    assert reported.planned("report") == {"report"}
    reported.run("report")
    assert "expected pass, got fail_accuracy" in (reported.folder / "results" / "cpu" / "report.html").read_text()


def test_snakemake_s_own_report_has_the_page_the_pictures_and_the_tables(reported):
    reported.run("report", "--report", "snakemake.zip")
    with zipfile.ZipFile(reported.folder / "snakemake.zip") as archive:
        names = {re.sub(".*/", "", name) for name in archive.namelist()}
        text = "".join(
            archive.read(name).decode("utf-8", "replace") for name in archive.namelist() if name.endswith(".html")
        )
    assert {"report.html", "speedups.svg", "failures.tsv", "summary.tsv"} <= names
    assert "Pictures" in text


def test_a_report_that_cannot_be_drawn_is_refused_before_anything_is_measured(project):
    (project.folder / "sitecustomize.py").write_text("import sys\nsys.modules['itables'] = None\n")
    project.environment = {"PYTHONPATH": str(project.folder)}
    run = project.start("report", modes="inference", models="test_vit")  # a Python of its own, which reads that file
    printed, _ = run.communicate(timeout=project.patience_s)
    assert run.returncode == 1
    assert "The report needs itables" in printed
    assert not project.worker.starts()
