"""`trace` and `repro`: what is kept beside the rows of a cell, in processes of their own that measure nothing again."""

import json

import pytest

CONFIG = {"models": "test_vit", "modes": "inference-nothing"}


@pytest.fixture(scope="module")
def traced(new_project, tmp_path_factory):
    """A cell that was measured, then traced."""
    project = new_project(tmp_path_factory.mktemp("traced"), config=CONFIG)
    project.run()
    project.run(trace="profiler,dynamo")
    return project


def folder(project):
    return project.file("inference-nothing/test_vit").parent


def test_a_trace_is_taken_of_a_cell_that_is_done_without_measuring_it_again(traced):
    assert len(traced.worker.starts()) == 1
    assert {path.name for path in (folder(traced) / "trace").iterdir()} == {"profiler", "dynamo"}
    for side in ("eager", "compiled"):
        events = json.loads((folder(traced) / "trace" / "profiler" / f"{side}.json").read_text())["traceEvents"]
        assert any("conv2d" in event.get("name", "") for event in events)


def test_what_is_there_is_not_taken_again_and_tables_do_not_see_it(traced):
    assert traced.planned(trace="profiler,dynamo") == set()
    assert traced.planned() == set()
    assert [row["model"] for row in traced.table()] == ["test_vit"]


def test_an_unknown_kind_of_trace_is_refused_with_those_that_there_are(project):
    assert "trace.0 is 'profile'; it must be one of profiler, dynamo, code" in project.run(trace="profile", code=1)


def test_the_script_of_any_cell_is_written_with_what_it_needs_and_how_to_run_it_is_printed(traced):
    printed = traced.run("repro")
    path = folder(traced) / "repro" / "repro.py"
    assert f"{path.relative_to(traced.folder)}\n" in printed
    compile(path.read_text(), str(path), "exec")
    assert {each.name for each in path.parent.iterdir()} == {"repro.py", "weights.safetensors", "inputs.safetensors"}
    assert len(traced.worker.starts()) == 1
    assert traced.planned("repro") == {"repro"}, "the scripts are there, and only told again"
