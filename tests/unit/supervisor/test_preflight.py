"""What the builds have answered before the first cell."""

from timmgate.core.files import write_text
from timmgate.core.preflight import Answer
from timmgate.supervisor import preflight


def test_there_are_as_many_devices_as_any_build_has_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preflight.devices("xpu") == 1
    for build, number in (("old", 1), ("vendor", 4)):
        write_text(preflight.answer_file("xpu", build), Answer(devices=number).to_json())
    assert (preflight.devices("xpu"), preflight.devices("xpu", "old"), preflight.devices("xpu", "other")) == (4, 1, 1)
