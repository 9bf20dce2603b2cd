"""Which cores come first, on machines of several shapes."""

import os

import pytest

from timmgate.system import cpu_topology

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells which cores are ours")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes the kernel describe another machine: the siblings and the memory node of each core that we may use."""

    def make(described: dict[int, tuple[str, int]], silent: bool = False, caches: dict[int, str] | None = None) -> None:
        for core, (siblings, node) in () if silent else described.items():
            folder = tmp_path / f"cpu{core}"
            for level, sharing in enumerate((f"{core}", (caches or {}).get(core)), 1):
                if sharing is not None:
                    (folder / "cache" / f"index{level}").mkdir(parents=True)
                    (folder / "cache" / f"index{level}" / "level").write_text(f"{level}\n")
                    (folder / "cache" / f"index{level}" / "shared_cpu_list").write_text(f"{sharing}\n")
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


def two_sockets(cores=32, nodes_per_socket=1, caches_per_socket=1):
    """The siblings and nodes of a machine with two sockets of so many cores, and by core what shares its last cache."""
    described, caches = {}, {}
    for core in range(2 * cores):
        socket, place = divmod(core, cores)
        described[core] = (f"{core}", socket * nodes_per_socket + place * nodes_per_socket // cores)
        first = socket * cores + place * caches_per_socket // cores * (cores // caches_per_socket)
        caches[core] = f"{first}-{first + cores // caches_per_socket - 1}"
    return described, caches


@pytest.mark.parametrize("wanted", ["auto", 2, 8])
def test_each_socket_is_a_lane(machine, wanted):
    described, caches = two_sockets()
    machine(described, caches=caches)
    assert cpu_topology.lanes(wanted) == [tuple(range(32)), tuple(range(32, 64))]


def test_caches_that_share_a_memory_node_are_one_lane(machine):
    described, caches = two_sockets(caches_per_socket=8)
    machine(described, caches=caches)
    assert [len(lane) for lane in cpu_topology.lanes("auto")] == [32, 32]


def test_nodes_that_share_a_cache_are_one_lane(machine):
    described, caches = two_sockets(nodes_per_socket=4)
    machine(described, caches=caches)
    assert [len(lane) for lane in cpu_topology.lanes("auto")] == [32, 32]


def test_nodes_with_caches_of_their_own_are_lanes_and_fewer_may_be_asked_for(machine):
    described, caches = two_sockets(nodes_per_socket=4, caches_per_socket=8)
    machine(described, caches=caches)
    assert [len(lane) for lane in cpu_topology.lanes("auto")] == [8] * 8
    halves = cpu_topology.lanes(2)
    assert [len(lane) for lane in halves] == [32, 32]
    assert {*halves[0]}.isdisjoint(halves[1])


def test_one_lane_is_all_cores(machine):
    described, caches = two_sockets()
    machine(described, caches=caches)
    assert cpu_topology.lanes(1) == [tuple(range(64))]


def test_lanes_are_of_one_size(machine):
    described, caches = two_sockets(8)
    machine({core: each for core, each in described.items() if core not in (3, 4, 5)}, caches=caches)
    assert [len(lane) for lane in cpu_topology.lanes("auto")] == [5, 5]


def test_a_domain_of_few_cores_is_no_lane_as_all_lanes_would_be_as_small(machine):
    described, caches = two_sockets(8)
    machine({core: each for core, each in described.items() if each[1] == 0 or core == 8}, caches=caches)
    assert [len(lane) for lane in cpu_topology.lanes("auto")] == [9]


def test_a_kernel_that_tells_nothing_has_one_lane(machine):
    machine({core: (f"{core}", 0) for core in range(4)}, silent=True)
    assert cpu_topology.lanes("auto") == [(0, 1, 2, 3)]


def test_a_lane_begins_with_first_threads_of_physical_cores(machine):
    described = {core: (f"{core % 4},{core % 4 + 4}", core % 4 // 2) for core in range(8)}
    machine(described, caches={core: f"{core % 4 // 2}" for core in range(8)})
    assert cpu_topology.lanes("auto") == [(0, 1, 4, 5), (2, 3, 6, 7)]
