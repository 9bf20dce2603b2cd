"""What users type: selections, values as text, files of their own; and mistakes, which are named before anything starts."""

import pytest

from conftest import ROOT
from workflow.conftest import TABLES


@pytest.mark.parametrize(
    ("config", "cells"),
    [
        (
            {"models": "test_vit,test_res*", "exclude": "*vit", "modes": "inference,training-amp"},
            {"inference/test_resnet", "training-amp/test_resnet"},
        ),
        (
            {
                "models": "[test_vit, 'test_*net']",
                "exclude": "[test_convnext, test_efficientnet, test_byobnet]",
                "modes": "[training]",
            },
            {"training/test_vit", "training/test_resnet", "training/test_nfnet"},
        ),
    ],
    ids=["as text", "as lists"],
)
def test_models_and_modes_are_chosen_by_names_and_globs(config, cells, project):
    assert project.planned(**config) == cells | TABLES


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
    alike = {"models": "test_vit", "modes": "inference", "checks": "performance", "threads": 2}
    printed = project.run(**alike)
    assert "each cell with 2 threads, memory left to the system, tensors not moved\n" in printed
    (row,) = project.table()
    assert (row["allocator"], row["relocate"], row["performance_threads"]) == ("system", False, 2)
    assert (row["weights"], row["speedup"]) == ("random-timm", pytest.approx(2.0))
    assert "but --cores 2 gives it fewer: its figures are not those of 3\n" in project.run(**{**alike, "threads": 3})


def test_a_file_of_ones_own_extends_the_catalogue(project):
    (project.folder / "mine.yaml").write_text("models: test_vit\nmode_catalogue: {mine: {dynamic: true}}\n")
    project.configfile = project.folder / "mine.yaml"
    assert project.planned(modes="mine,training") == {"mine/test_vit", "training/test_vit", *TABLES}


MISTAKES = {
    "unknown key": ({"devise": "cuda"}, "unknown key 'devise'; did you mean device?"),
    "numbered device": ({"device": "cuda:1"}, "device: 'cuda:1' must be a torch device type, without a number"),
    "unknown build": ({"builds": "nightly"}, "builds: there is no build 'nightly'; known are default"),
    "build without an environment": (
        {"build_catalogue": "{nightly: {python: /no/such/python}}", "builds": "nightly"},
        "build 'nightly': python is '/no/such/python', which does not exist; it must be the path of an environment's Python",
    ),
    "build without what it imports": (
        {"build_catalogue": "{vendor: {import: [acme_torch]}}", "builds": "default,vendor"},
        "build 'vendor': there is no module acme_torch in",
    ),
    "unknown mode": ({"modes": "inferense"}, "there is no mode 'inferense'; did you mean inference"),
    "unknown model": (
        {"models": "test_resnett"},
        "'test_resnett' matches no model of the suite 'tiny'; did you mean test_resnet",
    ),
    "unknown suite": ({"suite": "tinny"}, "did you mean tiny"),
    "no number": ({"threads": "many"}, "threads is 'many'; it must be"),
    "nothing left": ({"exclude": "*"}, "nothing is left of the suite 'tiny'"),
}


@pytest.mark.parametrize(("config", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_on_the_command_line_is_named_before_anything_starts(config, sentence, project):
    printed = project.run(code=1, **config)
    assert sentence in printed
    assert "Traceback" not in printed
    assert project.files() == set()
    assert project.worker.entries() == []


MISTAKEN_FILES = {
    "unknown option": (
        "{mine: {presicion: amp}}",
        "unknown key 'presicion' in mode_catalogue.mine; did you mean precision?",
    ),
    "freezing in training": ("{mine: {training: true, freezing: true}}", "mode 'mine': freezing works at inference only"),
}


@pytest.mark.parametrize(("catalogue", "sentence"), MISTAKEN_FILES.values(), ids=MISTAKEN_FILES)
def test_a_mistake_in_a_file_of_ones_own_is_named_before_anything_starts(catalogue, sentence, project):
    (project.folder / "mine.yaml").write_text(f"modes: [mine]\nmode_catalogue: {catalogue}\n")
    project.configfile = project.folder / "mine.yaml"
    assert sentence in project.run(code=1)
    assert project.files() == set()


MISTAKEN_SUITES = {
    "unknown column": ("model\tbatchsize\ntest_vit\t8\n", "line 1: ", "'batchsize'; did you mean batch_size"),
    "model twice": ("# mine\nmodel\ntest_vit\ntest_vit\n", "line 4: ", "'test_vit' is listed twice"),
    "wrong type": (
        "model\tbatch_size\n\ntest_vit\teight\n",
        "line 3: ",
        "batch_size is 'eight'; it must be",
    ),
}


@pytest.mark.parametrize(("table", "line", "sentence"), MISTAKEN_SUITES.values(), ids=MISTAKEN_SUITES)
def test_a_mistake_in_a_suite_is_named_with_file_and_line_before_anything_starts(table, line, sentence, project):
    (project.folder / "models.tsv").write_text(table)
    (said,) = (words for words in project.run(code=1, suite="models.tsv").splitlines() if sentence in words)
    assert f"models.tsv, {line}" in said
    assert project.files() == set()
