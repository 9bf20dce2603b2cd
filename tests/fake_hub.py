"""A stand-in for the model hub on this machine: it serves files, and fails as it is told to."""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

COMMIT = "c0ffee" + "0" * 34
STALL_S = 20.0


@dataclass
class FakeHub:
    """`files` maps a path, as in "timm/test_vit.r160_in1k/model.safetensors", to its content.

    `faults` maps a method to what happens to its next requests; those after them go well. A fault is `drop` and `stall`
    (half of the body, then the connection closes or nothing more comes), `close` (no answer at all), `corrupt` (other bytes,
    as many), a status, or a status with headers.
    """

    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    faults: dict[str, Iterable] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def __enter__(self) -> "FakeHub":
        self._faults: dict[str, Iterator] = {}
        self.released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        host, port = self._server.server_address
        return f"http://{host}:{port}"

    def next_fault(self, method: str) -> object:
        """The fault that the next request of this method meets, or None."""
        return next(self._faults.setdefault(method, iter(self.faults.get(method, ()))), None)

    def count(self, method: str) -> int:
        """How many requests of this method there were."""
        return sum(each == method for each, _, _ in self.requests)

    def ranges(self) -> list[str | None]:
        """The Range header of every GET."""
        return [wanted for method, _, wanted in self.requests if method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(None)

    def _answer(self, only: bytes | None) -> None:
        if self.path.startswith("/api/"):  # what the hub client asks on its own account
            self._head(404, {"Content-Length": "0"})
            return
        path, wanted = self.path.lstrip("/").replace("/resolve/main/", "/"), self.headers.get("Range")
        self.hub.requests.append((self.command, path, wanted))
        fault = self.hub.next_fault(self.command)
        if fault == "close":
            self.close_connection = True
            return
        if isinstance(fault, int | tuple):
            status, headers = fault if isinstance(fault, tuple) else (fault, {})
            self._head(status, {"Content-Length": "0", **headers})
            return
        content = self.hub.files.get(path)
        if content is None:
            known = any(name.startswith(f"{path.rpartition('/')[0]}/") for name in self.hub.files)
            self._head(404, {"Content-Length": "0", "X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})
            return
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        body = content[first:]
        self._head(206 if wanted else 200, {**headers, "Content-Length": str(len(body))})
        if only is not None:
            return
        if fault == "corrupt":
            body = bytes(255 - byte for byte in body[:8]) + body[8:]
        self.wfile.write(body[: len(body) // 2] if fault in ("drop", "stall") else body)
        self.wfile.flush()
        if fault == "stall":
            self.hub.released.wait(STALL_S)
        self.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
