"""`/metrics`, `/healthz` and `/readyz` over HTTP. Knows nothing of what it is asked about beyond three callables."""

import logging
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from worker.errors import UsageError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = 10.0  # an open connection that says nothing must not hold a thread

    def log_message(self, format: str, *args: Any) -> None:
        """A line a probe would drown the log."""


class HealthServer:
    """Listens on `host`:`port` in threads of its own.

    Args:
        healthy: None, or one sentence on what stands still (then `/healthz` is 503).
        ready: None, or one sentence on what is missing (then `/readyz` is 503).

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
    ) -> None:
        metrics: WSGIApplication = make_wsgi_app(registry)
        probes = {"/healthz": healthy, "/readyz": ready}

        def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if path == "/metrics":
                return metrics(environ, start_response)
            probe = probes.get(path)
            problem = "try /metrics, /healthz or /readyz" if probe is None else probe()
            status = "404 Not Found" if probe is None else "200 OK" if problem is None else "503 Service Unavailable"
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{problem or 'ok'}\n".encode()]

        try:
            self._server = make_server(host, port, application, server_class=_Server, handler_class=_Handler)
        except (OSError, OverflowError, TypeError, ValueError) as error:  # the last two: a host that can be no name
            raise UsageError(
                f"Metrics cannot listen on {host[:80]!r}, port {port} ({error}): set MODERATION_METRICS_HOST to an "
                "address of this machine, and MODERATION_METRICS_PORT to a free port, or to 0 for none."
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
