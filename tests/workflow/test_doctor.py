"""The doctor, in a folder where nothing was measured yet."""


def test_the_doctor_says_what_it_found_and_measures_nothing(project):
    printed = project.run("doctor")
    said = (project.folder / "logs" / "cpu" / "doctor.log").read_text()
    assert said
    assert said in printed
    assert project.files() == {"logs/cpu/doctor.log"}
    assert project.worker.entries() == []


def test_rows_say_what_kind_of_machine_it_was(finished):
    rows = finished.table()
    assert rows and all(row["machine_cores"] >= 1 for row in rows)
