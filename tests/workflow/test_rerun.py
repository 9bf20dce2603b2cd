"""What is done again after a change, and what is not: identity redoes the cells that it touches, policy redoes nothing."""

import os
import shutil

from workflow.conftest import TABLES

CELLS = {"inference/test_vit", "inference/test_resnet", "special/test_vit", "special/test_resnet"}


def test_a_finished_run_plans_nothing(finished):
    assert finished.planned() == set()


def test_a_cell_that_lost_its_file_is_measured_again_and_only_the_tables_after_it(finished):
    lost = ["inference/test_resnet", "special/test_vit"]
    for cell in lost:
        finished.file(cell).unlink()
    before = {f"{row['mode']}/{row['model']}": row["accuracy_started_at"] for row in finished.table()}
    finished.run()
    after = {f"{row['mode']}/{row['model']}": row["accuracy_started_at"] for row in finished.table()}
    assert finished.worker.cells() == lost
    assert {cell for cell in CELLS if after[cell] > before[cell]} == set(lost)
    assert len(finished.table("evidence")) == 8


def test_lost_tables_are_made_again_from_the_rows_there_are(finished):
    for path in finished.folder.glob("results/cpu/*.*"):
        path.unlink()
    assert finished.planned() == TABLES


def test_rows_that_another_machine_measured_are_merged_and_not_measured(finished, new_project, tmp_path):
    shutil.copytree(finished.folder / "results", tmp_path / "gathered" / "results")
    for name in ("models.tsv", "mine.yaml"):
        shutil.copy2(finished.folder / name, tmp_path / "gathered")
    gathered = new_project(tmp_path / "gathered", configfile=finished.configfile)
    (gathered.folder / "results/cpu/cells.parquet").write_bytes(
        (finished.folder / "results/cpu/failures.parquet").read_bytes()  # of one machine's part
    )
    gathered.run("--forcerun", "merge")
    assert gathered.worker.starts() == []
    assert set(gathered.statuses()) == CELLS


def edit(project, file: str, old: str, new: str) -> None:
    text = (project.folder / file).read_text()
    assert old in text
    (project.folder / file).write_text(text.replace(old, new))


def test_a_changed_option_of_a_mode_redoes_the_cells_of_the_mode(finished):
    edit(finished, "mine.yaml", "channels_last: true", "channels_last: true, precision: amp")
    assert finished.planned() == {"special/test_vit", "special/test_resnet", *TABLES}


def test_a_value_that_moves_from_one_option_to_another_is_noticed(finished):
    edit(finished, "mine.yaml", "channels_last: true", "channels_last: false, dynamic: true")
    assert finished.planned() == {"special/test_vit", "special/test_resnet", *TABLES}


def test_an_option_that_is_set_to_its_default_changes_nothing(finished):
    edit(finished, "mine.yaml", "channels_last: true", "precision: float32, channels_last: true, batch_size: null")
    assert finished.planned() == set()


def test_a_changed_column_of_the_suite_redoes_the_cells_of_the_model(finished):
    edit(finished, "models.tsv", "test_resnet\t8", "test_resnet\t16")
    assert finished.planned() == {"inference/test_resnet", "special/test_resnet", *TABLES}


def test_two_values_of_the_suite_that_change_places_are_noticed(finished):
    edit(finished, "models.tsv", "0.02\t0.01", "0.01\t0.02")
    assert finished.planned() == {"inference/test_vit", "special/test_vit", *TABLES}


def test_another_reason_and_another_order_of_the_suite_redo_no_cell(finished):
    header, vit, resnet = (finished.folder / "models.tsv").read_text().splitlines()[1:]
    vit = vit.replace("to be changed", "another reason")
    (finished.folder / "models.tsv").write_text("\n".join((header, resnet, vit)))
    assert finished.planned() & CELLS == set()


def test_another_batch_size_redoes_every_cell(finished):
    assert finished.planned(batch_size=4) == CELLS | TABLES


def test_an_inductor_option_for_all_modes_redoes_every_cell(finished):
    assert finished.planned(inductor_config="{max_fusion_size: 8}") == CELLS | TABLES


def test_policy_redoes_nothing(finished):
    limits = ["--set-resources", "measure:runtime=77", "--set-threads", "measure=2"]
    assert finished.planned(*limits, timeout=99, timing_limit=5, attempts=5, jobs_per_gpu=5, compile_cache="shared") == set()


def test_a_model_that_is_added_is_measured_alone(finished):
    edit(finished, "models.tsv", "test_resnet", "test_nfnet\t\t\t\t\ntest_resnet")
    assert finished.planned() == {"inference/test_nfnet", "special/test_nfnet", *TABLES}


def test_a_mode_that_is_left_out_is_not_measured_and_stays_in_the_tables(finished):
    finished.run(modes="special")
    assert finished.worker.entries() == []
    assert set(finished.statuses()) == CELLS
    assert {row["mode"] for row in finished.table() if row["requested"]} == {"special"}


def test_jobs_are_of_the_checkout_whose_snakefile_it_is(project, checkout):
    """Though the environment has another one installed."""
    project.snakefile = checkout / "Snakefile"
    printed, _ = project.start(models="test_vit", modes="inference").communicate()
    (row,) = project.table()
    assert f"PYTHONPATH={checkout / 'workflow' / 'scripts'}" in row["command"], printed


def test_a_checkout_that_touches_or_edits_a_script_redoes_nothing(finished, checkout):
    finished.snakefile = checkout / "Snakefile"
    script = checkout / "workflow" / "scripts" / "measure.py"
    script.write_text(script.read_text() + "\n# edited\n")
    os.utime(script)
    assert finished.planned() == set()
    assert finished.planned("--rerun-triggers", "code", "--cores", "2") > CELLS, "Snakemake by itself would redo them"
