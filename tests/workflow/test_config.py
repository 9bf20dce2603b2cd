"""What users type: selections, values as text, files of their own; and mistakes, which are named before anything starts."""

import os

import pytest

from conftest import ROOT
from workflow.conftest import TABLES


def test_models_and_modes_are_chosen_by_names_and_globs_in_texts_and_lists(project):
    config = {
        "models": "[test_vit, 'test_*net']",
        "exclude": "test_conv*,test_efficientnet,test_byobnet",
        "modes": "inference,training-amp",
    }
    models, modes = ("test_vit", "test_resnet", "test_nfnet"), ("inference", "training-amp")
    assert project.planned(**config) == {f"{mode}/{model}" for mode in modes for model in models} | TABLES


def test_values_from_the_command_line_are_what_they_say(project):
    mine = "{mine: {training: true, batch_size: 4, inductor_config: {max_fusion_size: 8}}}"
    project.run(mode_catalogue=mine, modes="mine", models="test_vit", threads="2", timeout="99", batch_size="null")
    (row,) = project.table()
    assert (row["mode"], row["training"], row["batch_size_requested"], row["accuracy_threads"]) == ("mine", True, 4, 2)
    assert '"inductor_config": {"max_fusion_size": 8}' in row["options"]
    assert '"precision": "float32"' in row["options"]
    (request,) = project.worker.requests()
    assert (request.run.threads, request.run.timeout) == (2, 99)


def test_what_figures_depend_on_is_said_before_and_with_every_speedup(project):
    printed = project.run(models="test_vit", modes="inference", checks="performance")
    assert "each cell with 1 thread, memory retained\n" in printed
    assert "speedup (1 thread, memory retained)" in printed
    project.configfile = ROOT / "config" / "like-dynamo.yaml"
    printed = project.run(models="test_vit", modes="inference", checks="performance", threads=2)
    assert "each cell with 2 threads, memory left to the system, tensors not moved\n" in printed
    (row,) = project.table()
    assert (row["allocator"], row["relocate"], row["performance_threads"]) == ("system", False, 2)
    assert (row["weights"], row["speedup"]) == ("random-timm", pytest.approx(2.0))


@pytest.mark.parametrize("options", [(), ("--set-threads", "measure=2"), ("--max-threads", "2")])
def test_figures_of_other_threads_than_the_key_says_are_not_measured(options, project):
    refused = project.run(*options, code=1, models="test_vit", modes="inference", threads=3)
    assert "threads is 3, but Snakemake's own options, as --cores, give a cell 2; set threads=2" in refused
    assert project.worker.starts() == []


def test_more_threads_than_the_machine_has_cores_are_refused(project):
    cores = len(os.sched_getaffinity(0)) + 1
    refused = project.run("--cores", str(cores), code=1, models="test_vit", modes="inference", threads=cores)
    assert f"threads is {cores}, but a cell is timed on {cores - 1} cores here (timing_lanes: 1)" in refused
    assert project.worker.starts() == []


def test_a_file_of_ones_own_extends_the_catalogue(project):
    (project.folder / "mine.yaml").write_text("models: test_vit\nmode_catalogue: {mine: {dynamic: true}}\n")
    project.configfile = project.folder / "mine.yaml"
    assert project.planned(modes="mine,training") == {"mine/test_vit", "training/test_vit", *TABLES}


MISTAKES = {
    "a key": ({"devise": "cuda"}, "unknown key 'devise'; did you mean device?"),
    "a model": ({"models": "test_resnett"}, "'test_resnett' matches no model of the suite 'tiny'; did you mean test_resnet"),
    "a build": (
        {"build_catalogue": "{nightly: {python: /no/such/python}}", "builds": "nightly"},
        "build 'nightly': python is '/no/such/python', which does not exist; it must be the path of an environment's Python",
    ),
    "a file of one's own": ({}, "unknown key 'presicion' in mode_catalogue.mine; did you mean precision?"),
    "a suite": ({"suite": "models.tsv"}, "models.tsv, line 4: the model 'test_vit' is listed twice"),
}
"""One of each place that finds mistakes; tests/unit/config/ has all sentences."""


@pytest.mark.parametrize(("config", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_before_anything_starts(config, sentence, project):
    (project.folder / "models.tsv").write_text("# mine\nmodel\ntest_vit\ntest_vit\n")
    if not config:
        (project.folder / "mine.yaml").write_text("modes: [mine]\nmode_catalogue: {mine: {presicion: amp}}\n")
        project.configfile = project.folder / "mine.yaml"
    printed = project.run(code=1, **config)
    assert sentence in printed
    assert "Traceback" not in printed
    assert project.files() == set()
    assert project.worker.entries() == []
