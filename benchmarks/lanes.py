"""How long a run on a CPU takes with several timing lanes: a simulation, as few machines have many sockets.

    python benchmarks/lanes.py [--cores 64] [--cells 500] [--compile-s 30] [--timing-s 5]

Every cell compiles on one core, then is timed, alone in its lane: everything else in the lane stands still meanwhile.
"""

import argparse
from collections import deque


def wall_s(cores: int, cells: int, lanes: int, compile_s: float, timing_s: float) -> float:
    """Seconds until the last of the cells is done, which are dealt out to the lanes one by one."""
    per_lane, width = [cells // lanes + (lane < cells % lanes) for lane in range(lanes)], cores // lanes
    return max(lane_s(width, number, compile_s, timing_s) for number in per_lane)


def lane_s(cores: int, cells: int, compile_s: float, timing_s: float) -> float:
    """The same for one lane. Cells differ in their compile time by up to a half, so that they do not come in step."""
    left = deque(compile_s * (0.75 + 0.5 * (number * 0.618 % 1)) for number in range(cells))
    compiling, passed_s = [], 0.0
    while left or compiling:
        while left and len(compiling) < cores:
            compiling.append(left.popleft())
        first = min(compiling)
        compiling.remove(first)
        compiling = [seconds - first for seconds in compiling]
        passed_s += first + timing_s
    return passed_s


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, kind in (
        ("cores", 64, int),
        ("cells", 500, int),
        ("compile-s", 30.0, float),
        ("timing-s", 5.0, float),
    ):
        parser.add_argument(f"--{name}", default=default, type=kind)
    asked = parser.parse_args()
    one = wall_s(asked.cores, asked.cells, 1, asked.compile_s, asked.timing_s)
    for lanes in (1, 2, 4, 8):
        total_s = wall_s(asked.cores, asked.cells, lanes, asked.compile_s, asked.timing_s)
        print(f"{lanes} lanes: {total_s / 60:.1f} min, {one / total_s:.2f} times as fast as one")


if __name__ == "__main__":
    main()
