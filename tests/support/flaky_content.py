"""A content store over HTTP that serves a folder, and on demand is slow, fails, lies about lengths, or hangs."""

import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TROUBLES = ("slow", "error", "busy", "cut", "reset", "hang")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A worker that was killed, or has waited long enough, breaks off: nothing to speak of."""


class FlakyContent:
    """`url` is a content URL for workers. While `share` is above 0 that share of requests meets a trouble.

    Args:
        seed: of the dice that choose them.
        hang_s: how long a request hangs that does; longer than the workers' fetch time-out.
        port: where it listens; any free one by default.
    """

    def __init__(self, folder: Path, seed: int, *, slow_s: float = 0.5, hang_s: float = 4.0, port: int = 0) -> None:
        self.share = 0.0
        self.met = dict.fromkeys(TROUBLES, 0)
        self._folder = folder
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._times = {"slow": slow_s, "hang": hang_s}
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                store._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """A line a picture would drown everything else."""

        self._server = _Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/{{content_id}}"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        with self._lock:
            trouble = self._dice.choice(TROUBLES) if self._dice.random() < self.share else ""
            if trouble:
                self.met[trouble] += 1
        if trouble in self._times:
            self._closing.wait(self._times[trouble])
        path = self._folder / Path(request.path).name
        if trouble in ("error", "busy"):
            self._say(request, {"error": 500, "busy": 503}[trouble], b"")
        elif trouble == "reset":
            request.close_connection = True
        elif not path.is_file():
            self._say(request, 404, b"")
        else:
            data = path.read_bytes()
            self._say(request, 200, data[: len(data) // 2] if trouble == "cut" else data, length=len(data))
            request.close_connection |= trouble == "cut"

    def _say(self, request: BaseHTTPRequestHandler, status: int, body: bytes, length: int | None = None) -> None:
        try:
            request.send_response(status)
            request.send_header("Content-Length", str(len(body) if length is None else length))
            request.end_headers()
            request.wfile.write(body)
        except OSError:  # whoever asked has gone
            request.close_connection = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
