"""The log of a cell, of limited size."""

from pathlib import Path

HALF_BYTES = 4 << 20
"""Of a log that grows too long the first and the last so many bytes are kept."""


class CappedLog:
    """A log file, as a context manager. What comes after the first half waits for the end, so that the last half is kept."""

    def __init__(self, path: Path, half_bytes: int = HALF_BYTES):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._half_bytes = path.open("wb"), half_bytes
        self._tail, self._left_out = bytearray(), 0

    def __enter__(self) -> "CappedLog":
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            if self._left_out:
                self._file.write(f"\n[{self._left_out} bytes are left out here]\n".encode())
            self._file.write(self._tail)

    def write(self, data: bytes) -> None:
        """Append what a process printed, whatever bytes it is."""
        room = max(self._half_bytes - self._file.tell(), 0)
        self._file.write(data[:room])
        self._file.flush()
        self._tail += data[room:]
        if (excess := len(self._tail) - self._half_bytes) > self._half_bytes // 4:  # not for every few bytes
            self._left_out += excess
            del self._tail[:excess]

    def line(self, text: str) -> None:
        """Append a line of our own."""
        self.write(f"{text}\n".encode(errors="replace"))
