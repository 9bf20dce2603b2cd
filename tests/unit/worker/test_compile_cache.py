"""Folders of compile caches: new, filled, left half way, shared."""

import os

import pytest

from timmgate.worker import compile_cache
from timmgate.worker.compile_cache import Cache, OwnCache

COSTS = {"wall_s": 20.0, "cpu_s": 18.0}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(compile_cache, "clear_caches", lambda: None)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "as it was")


@pytest.fixture
def toolchain(tmp_path):
    folder = tmp_path / "toolchain"
    folder.mkdir()
    (folder / "probe.so").touch()
    return folder


def test_a_new_cache_starts_with_the_toolchain_and_is_cold_once(tmp_path, toolchain):
    cache = OwnCache(tmp_path / "program", toolchain)
    assert cache.open()
    assert (tmp_path / "program" / "probe.so").is_file()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "program")
    cache.keep_cold(COSTS)
    assert not cache.open()
    assert OwnCache(tmp_path / "program", toolchain).cold() == COSTS, "also for another process"


def test_a_cache_that_was_left_half_way_is_emptied_and_cold_again(tmp_path, toolchain):
    cache = OwnCache(tmp_path / "program", toolchain)
    cache.open()
    (tmp_path / "program" / "kernel.so").touch()
    assert OwnCache(tmp_path / "program", toolchain).open()
    assert not (tmp_path / "program" / "kernel.so").exists()


def test_a_cache_whose_costs_a_power_failure_cut_off_is_cold_again(tmp_path, toolchain):
    cache = OwnCache(tmp_path / "program", toolchain)
    cache.open()
    cache.keep_cold(COSTS)
    (tmp_path / "program" / "cold.json").write_text("")
    assert OwnCache(tmp_path / "program", toolchain).open()


def test_a_cache_without_a_toolchain_is_opened_too(tmp_path):
    assert OwnCache(tmp_path / "program", None).open()
    assert OwnCache(tmp_path / "other", tmp_path / "absent").open()


def test_what_a_shared_cache_compiles_is_never_known_to_be_cold(tmp_path):
    (tmp_path / "kernel.so").touch()
    cache = Cache(tmp_path)
    assert [cache.open(), cache.open()] == [True, False]
    cache.keep_cold(COSTS)
    assert cache.cold() == {}
    assert (tmp_path / "kernel.so").exists()
