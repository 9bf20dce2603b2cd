"""The log of a cell: all of it if it is short, both ends of it if it is long."""

import pytest

from timmgate.supervisor.capped_log import CappedLog


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "cell.log"


def test_a_short_log_is_whole(path):
    with CappedLog(path) as log:
        log.line("began: é \udcff")
        log.write(b"\xff\x00 bytes of any kind\n")
    assert path.read_bytes() == "began: é ?\n".encode() + b"\xff\x00 bytes of any kind\n"


def test_what_is_written_can_be_read_at_once(path):
    with CappedLog(path) as log:
        log.line("it hangs")
        assert path.read_text() == "it hangs\n"


@pytest.mark.parametrize("piece", [1, 7, 100, 100_000])
def test_of_a_long_log_both_ends_are_kept_and_it_says_so(piece, path):
    content = "".join(f"{number:6d}\n" for number in range(10_000)).encode()
    with CappedLog(path, half_bytes=1000) as log:
        for start in range(0, len(content), piece):
            log.write(content[start : start + piece])
    kept = path.read_bytes()
    assert kept.startswith(content[:1000])
    assert kept.endswith(content[-1000:])
    assert b"bytes are left out here" in kept
    assert len(kept) < 2500
    left_out = int(kept.split(b"[")[1].split()[0])
    assert left_out + len(kept) - len(f"\n[{left_out} bytes are left out here]\n") == len(content)
