"""`/metrics`, `/healthz` and `/readyz` over HTTP. Knows nothing of what it is asked about beyond three callables."""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from worker.errors import ModerationError, UsageError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)


# Each has a thread. Probes and scrapes are few and done in milliseconds.
MOST_CONNECTIONS = 32


class _Server(ThreadingMixIn, WSGIServer):
    """Where too many are open, the one that has been for longest is closed.

    Whoever reaches the port could otherwise take all threads that a container may have, which decoders are started
    with, and keep probes out where the newest were refused.
    """

    daemon_threads = True
    request_queue_size = 128  # five may wait by default, and who finds no room tries again after a second

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._open: dict[Any, None] = {}  # sockets, oldest first
        self._lock = threading.Lock()
        host = arguments[0][0]
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__(*arguments, **named)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for it."""
        with self._lock:
            self._open[request] = None
            oldest = next(iter(self._open))
            if too_many := len(self._open) > MOST_CONNECTIONS:
                del self._open[oldest]
        if too_many:
            with contextlib.suppress(OSError):  # it has just ended by itself
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Called when its thread is done with it."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)


class _Handler(WSGIRequestHandler):
    timeout = 10.0  # an open connection that says nothing must not hold a thread

    def log_message(self, format: str, *args: Any) -> None:
        """A line a probe would drown the log."""


class HealthServer:
    """Listens on `host`:`port` in threads of its own.

    Args:
        healthy: None, or one sentence on what stands still (then `/healthz` is 503).
        ready: None, or one sentence on what is missing (then `/readyz` is 503).
        advice: what else to do where the port cannot be had.

    `/metrics` is 503 where what it reads raises a ModerationError.

    Raises:
        UsageError: the port cannot be had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        *,
        healthy: Callable[[], str | None],
        ready: Callable[[], str | None],
        advice: str = "MODERATION_METRICS_PORT to a free port, or to 0 for none",
    ) -> None:
        self._metrics: WSGIApplication = make_wsgi_app(registry)
        self._unreadable = False
        probes = {"/healthz": healthy, "/readyz": ready}

        def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if path == "/metrics":
                try:
                    return self._read(environ, start_response)
                except ModerationError as error:
                    return _say("503 Service Unavailable", str(error), start_response)
            probe = probes.get(path)
            if probe is None:
                return _say("404 Not Found", "try /metrics, /healthz or /readyz", start_response)
            problem = probe()
            return _say("200 OK" if problem is None else "503 Service Unavailable", problem or "ok", start_response)

        try:
            self._server = make_server(host, port, application, server_class=_Server, handler_class=_Handler)
        except (OSError, OverflowError, TypeError, ValueError) as error:  # the last two: a host that can be no name
            raise UsageError(
                f"Metrics cannot listen on {host[:80]!r}, port {port} ({error}): set MODERATION_METRICS_HOST to an "
                f"address of this machine, and {advice}."
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def _read(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """What the registry holds; a line in the log when it cannot be read any more, and one when it can again."""
        try:
            said = self._metrics(environ, start_response)
        except ModerationError as error:
            if not self._unreadable:
                logger.warning("/metrics cannot be read: %s", error)
            self._unreadable = True
            raise
        if self._unreadable:
            logger.warning("/metrics can be read again")
        self._unreadable = False
        return said

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()


def _say(status: str, text: str, start_response: "StartResponse") -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]
