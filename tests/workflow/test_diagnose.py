"""Failed cells diagnosed: the requested ones alone, trial by trial in processes of their own, and told in words."""

import json
import os
import signal

import pytest

from conftest import wait_until
from workflow.conftest import environment

INDUCTOR = dict.fromkeys(["aot_eager_decomp_partition", "without lowerings (bisector)"], "pass")


@pytest.fixture
def project(project):
    """As everywhere, without torch for the scripts of modules."""
    project.config["build_catalogue"] = json.dumps({"default": {"python": str(environment(project.folder, "own"))}})
    return project


def diagnosed(project, endings, *options, code=0, **config):
    project.environment["FAKE_DIAGNOSIS"] = json.dumps(endings)
    return project.run("diagnose", *options, code=code, **{"models": "test_vit,test_resnet", "modes": "inference", **config})


def trials(project):
    return [entry["trial"] for entry in project.worker.entries() if "trial" in entry]


def test_a_failed_cell_is_measured_then_diagnosed_and_the_others_are_not(project):
    project.worker.behaviours = {"test_vit": "fail_accuracy"}
    printed = diagnosed(project, INDUCTOR | {"1 of lowerings (bisector)": "pass", "module": "blocks.0"})
    assert "lowerings inference/test_vit operators become loops" in printed
    assert "it takes application 1; passes with: without lowerings (bisector)" in printed
    assert "1 failed cell diagnosed: lowerings 1." in printed
    (row,) = project.table("diagnosis")
    assert (row["model"], row["layer"], row["application"]) == ("test_vit", "lowerings", "application 1")
    assert (row["module"], row["module_class"], row["direction"]) == ("blocks.0", "Block", "forward")
    assert row["trials"] == len(trials(project)) - 1
    assert len({entry["pid"] for entry in project.worker.entries() if "trial" in entry}) == len(trials(project))
    tried = project.table("trials")
    assert [each["variant"] for each in tried] == trials(project)
    assert all((project.folder / each["log"]).is_file() for each in tried)
    assert (project.folder / row["script"]).is_file()
    assert (project.folder / row["module_script"]).is_file()
    assert row["reason"] == next(each for each in project.table() if each["model"] == "test_vit")["accuracy_reason"]
    assert len(project.table()) == 2
    assert project.planned("diagnose", models="test_vit,test_resnet", modes="inference") == set()


def test_what_its_bisector_leaves_out_is_said_in_the_environment_of_the_trial(project):
    project.worker.behaviours = {"*": "fail_accuracy"}
    diagnosed(project, INDUCTOR, models="test_vit")
    told = {each["trial"]: each["variables"] for each in project.worker.entries() if "trial" in each}
    assert told["as it is"] == {}
    assert told["without lowerings (bisector)"]["TORCH_BISECT_MAX"] == "-1"
    assert told["2 of lowerings (bisector)"] == {
        "TORCH_BISECT_BACKEND": "inductor", "TORCH_BISECT_SUBSYSTEM": "lowerings", "TORCH_BISECT_MAX": "1"
    }  # fmt: skip


def test_a_crash_and_a_hang_are_diagnosed_in_the_same_way(project):
    project.worker.behaviours = {"test_vit": "signal:SIGSEGV@compile", "test_resnet": "hang@run"}
    printed = diagnosed(project, {"eager": "pass", "*": "signal:SIGSEGV"}, models="test_vit")
    assert "aot_autograd inference/test_vit" in printed
    (row,) = project.table("diagnosis")
    assert (row["status"], row["layer"]) == ("fail_to_run", "aot_autograd")
    assert [each["known"] for each in project.worker.entries() if each.get("trial") == "places"] == [
        {}, {"stem": "pass"}, {"stem": "pass", "blocks.0": "raised"}
    ]  # fmt: skip
    crashed = project.table("trials")[0]
    assert (crashed["status"], crashed["cause"], crashed["stage"]) == ("fail_to_run", "SIGSEGV", "compile")
    hangs = {"eager": "pass", "places": "pass", "*": "hang"}
    diagnosed(project, hangs, models="test_resnet", timeout=3)
    (row,) = project.table("diagnosis")
    assert (row["model"], row["status"], row["layer"]) == ("test_resnet", "timeout", "aot_autograd")
    assert "in diagnose" in project.table("trials")[0]["last_lines"]


def test_what_does_not_fail_again_is_flaky(project):
    project.worker.behaviours = {"test_vit": "fail_accuracy"}
    printed = diagnosed(project, {"*": "pass"}, models="test_vit")
    assert "flaky inference/test_vit it does not fail again" in printed
    assert trials(project) == ["as it is", "as it is, again"]


def test_cells_that_failed_for_another_reason_are_not_diagnosed(project):
    project.worker.behaviours = {"test_vit": "raise@load", "test_resnet": "raise@eager", "test_convnext": "_exit:3@import"}
    printed = diagnosed(project, {}, models="test_vit,test_resnet,test_convnext,test_nfnet")
    assert "No requested cell failed for a reason that may be the compiler's." in printed
    assert trials(project) == []
    assert project.table("diagnosis") == []


def test_trials_before_an_interruption_are_not_done_again(project):
    project.worker.behaviours = {"test_vit": "fail_accuracy"}
    project.environment["FAKE_DIAGNOSIS"] = json.dumps(INDUCTOR | {"loops interpreted": "hang"})
    process = project.start("diagnose", models="test_vit", modes="inference")
    wait_until(lambda: "loops interpreted" in trials(project))
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=project.patience_s)
    project.wait_for_end()
    before = trials(project)
    diagnosed(project, INDUCTOR, "--rerun-incomplete", models="test_vit")
    assert trials(project)[len(before)] == "loops interpreted"
    (row,) = project.table("diagnosis")
    assert row["trials"] == len(project.table("trials")) - 1
