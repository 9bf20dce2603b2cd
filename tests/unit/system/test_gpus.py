"""Which GPUs there are: from CUDA_VISIBLE_DEVICES, or from a stand-in for the driver's library."""

import os
import subprocess
import sys
import uuid

import pytest

from timmgate import module_environment
from timmgate.system import gpus

NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE (cuda.h)."""


class Driver:
    """Answers like libcuda: results are written where a pointer points, and 0 is success."""

    def __init__(self, devices: list[tuple[str, str]], results: dict[str, int] | None = None):
        self._devices, self._results, self.calls = devices, results or {}, []

    def __getattr__(self, function):
        def call(*arguments):
            self.calls.append(function)
            return self._results.get(function) or getattr(self, f"_{function}")(*arguments)

        return call

    def _cuInit(self, flags):
        assert flags == 0
        return 0

    def _cuDeviceGetCount(self, count):
        count._obj.value = len(self._devices)
        return 0

    def _cuDeviceGet(self, handle, ordinal):
        handle._obj.value = 70 + ordinal
        return 0

    def _cuDeviceGetUuid_v2(self, octets, handle):
        octets._obj.raw = uuid.UUID(self._devices[handle.value - 70][1]).bytes
        return 0

    def _cuDeviceGetName(self, name, length, handle):
        text = self._devices[handle.value - 70][0].encode()
        assert len(text) < length
        name.value = text
        return 0


FIRST, SECOND = "8a1f0c02-0000-1b00-9abc-00000000000a", "00000000-1111-2222-3333-444444444444"


def test_the_uuids_come_in_the_drivers_order_and_form():
    driver = Driver([("NVIDIA H100", FIRST), ("NVIDIA H100", SECOND)])
    assert gpus.uuids(driver) == [f"GPU-{FIRST}", f"GPU-{SECOND}"]
    assert driver.calls[:2] == ["cuInit", "cuDeviceGetCount"]


def test_a_part_of_a_gpu_is_named_as_one():
    assert gpus.uuids(Driver([("NVIDIA A100-SXM4-40GB MIG 1g.5gb", FIRST)])) == [f"MIG-{FIRST}"]


def test_a_driver_without_gpus_has_none():
    assert gpus.uuids(Driver([])) == []


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetUuid_v2", "cuDeviceGetName"])
def test_a_refused_call_is_named_with_its_number(function):
    with pytest.raises(gpus.DriverError, match=f"{function} returned {NO_DEVICE}"):
        gpus.uuids(Driver([("NVIDIA H100", FIRST)], {function: NO_DEVICE}))


@pytest.fixture
def driver_says(monkeypatch):
    """Replace the driver by one with these GPUs; the list says how often it was asked."""
    asked = []

    def install(*names):
        monkeypatch.setattr(gpus, "ask_driver", lambda: asked.append(1) or list(names))
        return asked

    return install


WHOLE, PART = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-46fa0d2c-6f5b-5a3e-9d5c-0f0b1b4b1c1d"


def test_a_short_uuid_is_taken_as_it_is_where_no_driver_answers(driver_says, monkeypatch):
    driver_says()
    monkeypatch.setenv(gpus.VISIBLE, "GPU-8932f937")
    assert gpus.names("cuda") == ["GPU-8932f937"]


@pytest.mark.parametrize(
    ("allowed", "expected", "questions"),
    [
        (None, ["GPU-from-driver"], 1),
        ("0,1", ["GPU-from-driver"], 1),
        ("GPU-a,1", ["GPU-from-driver"], 1),
        ("NoDevFiles", ["GPU-from-driver"], 1),
        (WHOLE, [WHOLE], 0),
        (f" {WHOLE}, {PART},{WHOLE}", [WHOLE, PART], 0),
        ("GPU-8932f937", ["GPU-from-driver"], 1),
        ("MIG-GPU-1234/5/0", ["GPU-from-driver"], 1),
        ("", ["cuda"], 0),
        (" ", ["cuda"], 0),
    ],
)
def test_the_gpus_are_those_that_the_environment_leaves(allowed, expected, questions, driver_says, monkeypatch):
    asked = driver_says("GPU-from-driver")
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    if allowed is not None:
        monkeypatch.setenv(gpus.VISIBLE, allowed)
    assert gpus.names("cuda") == expected
    assert len(asked) == questions


def test_cuda_without_a_gpu_is_one_device_named_by_its_type(driver_says, monkeypatch):
    driver_says()
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    assert gpus.names("cuda") == ["cuda"]


@pytest.mark.parametrize("device", ["cpu", "xpu", "mps"])
def test_another_device_is_one_named_by_its_type_and_no_driver_is_asked(device, driver_says, monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "GPU-a,GPU-b")
    assert gpus.names(device) == [device]
    assert (gpus.uuid_of(device), gpus.only(device)) == (None, {})


def test_a_process_is_shown_its_own_gpu_alone():
    assert gpus.only("GPU-a") == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    assert gpus.uuid_of("MIG-b") == "MIG-b"


@pytest.fixture
def as_driver(tmp_path, monkeypatch):
    """Let the child that asks the driver run some code instead."""

    def install(code):
        package = tmp_path / "timmgate" / "system"
        package.mkdir(parents=True)
        for folder in (package.parent, package):
            (folder / "__init__.py").touch()
        (package / "gpus.py").write_text(code)
        monkeypatch.setattr(gpus, "module_environment", lambda: {**os.environ, "PYTHONPATH": str(tmp_path)})

    return install


def test_the_drivers_answer_is_read_line_by_line(as_driver):
    as_driver("print('GPU-a\\nGPU-b')")
    assert gpus.ask_driver() == ["GPU-a", "GPU-b"]


def test_a_driver_that_fails_half_way_has_no_gpus(as_driver):
    as_driver("print('GPU-a'); raise SystemExit(1)")
    assert gpus.ask_driver() == []


def test_a_driver_that_hangs_is_given_up(as_driver, monkeypatch):
    as_driver("import time; time.sleep(600)")
    monkeypatch.setattr(gpus, "DRIVER_TIMEOUT_S", 0.3)
    assert gpus.ask_driver() == []


def test_the_command_says_why_there_are_none(tmp_path):
    code = f"from timmgate.system import gpus; gpus.DRIVER = {str(tmp_path / 'libcuda.so.1')!r}; gpus.main()"
    done = subprocess.run([sys.executable, "-c", code], env=module_environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "libcuda.so.1" in done.stderr


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Sat Feb 17 22:55:48 UTC 2024\nGCC version: 12",
            "535.161.08",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)\n", "580.65.06"),
        ("something else\n", None),
        (None, None),
    ],
)
def test_the_drivers_version_is_what_the_kernel_says(text, version, tmp_path, monkeypatch):
    file = tmp_path / "version"
    if text:
        file.write_text(text)
    ((_, pattern), *_) = gpus.DRIVER_FILES.items()
    monkeypatch.setattr(gpus, "DRIVER_FILES", {file: pattern})
    assert gpus.driver_version() == version


def test_without_uuids_several_gpus_are_numbered_as_torch_counts_them(driver_says, monkeypatch):
    driver_says()
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    assert gpus.names("cuda", 2) == ["cuda:0", "cuda:1"]
