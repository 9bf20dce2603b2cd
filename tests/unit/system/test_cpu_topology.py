"""Which cores come first, on machines of several shapes."""

import os

import pytest

from timmgate.system import cpu_topology

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells which cores are ours")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes the kernel describe another machine: the siblings and the memory node of each core that we may use."""

    def make(described: dict[int, tuple[str, int]], silent: bool = False) -> None:
        for core, (siblings, node) in () if silent else described.items():
            folder = tmp_path / f"cpu{core}"
            (folder / "topology").mkdir(parents=True)
            (folder / "topology" / "thread_siblings_list").write_text(f"{siblings}\n")
            (folder / f"node{node}").mkdir()
        monkeypatch.setattr(cpu_topology, "SYSTEM", tmp_path)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(described))

    return make


def test_second_threads_of_physical_cores_come_last(machine):
    machine({0: ("0-1", 0), 1: ("0-1", 0), 2: ("2-3", 0), 3: ("2-3", 0)})
    assert cpu_topology.available() == [0, 2, 1, 3]


def test_cores_of_a_memory_node_are_neighbours(machine):
    machine({core: (f"{core % 4},{core % 4 + 4}", core % 2) for core in range(8)})
    assert cpu_topology.available() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_second_thread_is_a_first_one_where_the_first_is_not_ours(machine):
    machine({2: ("0,2", 0), 1: ("1,3", 0), 3: ("1,3", 0)})
    assert cpu_topology.available() == [1, 2, 3]


def test_cores_that_share_nothing_are_counted_of_those_that_are_ours(machine):
    machine({0: ("0-1", 0), 1: ("0-1", 0), 3: ("2-3", 0), 4: ("4", 0)})
    assert cpu_topology.physical() == 3


def test_a_kernel_that_tells_nothing_leaves_the_order_of_numbers(machine):
    machine({3: ("1,3", 0), 1: ("1,3", 0), 2: ("2", 0)}, silent=True)
    assert cpu_topology.available() == [1, 2, 3]
