"""The probes' server under somebody who holds connections open."""

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from tests.support.waiting import wait_until
from tests.support.worker import free_port
from worker.health import MOST_CONNECTIONS, HealthServer


def _ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that is well."""
    made = free_port()
    server = HealthServer("127.0.0.1", made, CollectorRegistry(), healthy=lambda: None, ready=lambda: None)
    yield made
    server.close()


@pytest.mark.skipif(not _ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_it_listens_on_an_ipv6_address(host: str) -> None:
    """As pods of a cluster that has nothing else must."""
    made = free_port()
    server = HealthServer(host, made, CollectorRegistry(), healthy=lambda: None, ready=lambda: None)
    with urllib.request.urlopen(f"http://[::1]:{made}/healthz", timeout=5) as answer:
        assert answer.read() == b"ok\n"
    server.close()


def test_connections_that_say_nothing_take_no_threads_and_keep_no_probe_out(port: int) -> None:
    """Three hundred of them: the oldest are closed, and a probe is answered at once."""
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(300)]
        for connection in silent:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        for _ in range(20):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                assert answer.read() == b"ok\n"
        wait_until(lambda: threading.active_count() <= before + MOST_CONNECTIONS, "the oldest threads' end", 5)
        with contextlib.suppress(ConnectionResetError):
            assert silent[0].recv(1) == b"", "the oldest is still open"
