"""The doctor, in a folder where nothing was measured yet."""


def test_the_doctor_says_what_it_found_and_measures_nothing(project):
    printed = project.run("doctor")
    said = (project.folder / "logs" / "cpu" / "doctor.log").read_text()
    assert said
    assert said in printed
    assert "cpu/cells.parquet" not in " ".join(project.files())
    assert project.worker.starts() == []


def test_the_doctor_of_what_cannot_measure_says_why(project, monkeypatch):
    monkeypatch.setenv("FAKE_PREFLIGHT", "there is no device")
    assert "there is no device" in project.run("doctor", code=1)
    assert not (project.folder / "logs" / "cpu" / "doctor.log").exists()


def test_rows_say_what_kind_of_machine_it_was(finished):
    rows = finished.table()
    assert rows and all(row["machine_cores"] >= 1 for row in rows)
