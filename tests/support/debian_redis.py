"""Debian's redis-server in Valkey's place: the oldest server that is promised to do."""

import subprocess

import redis

from tests.support.tools import tool
from tests.support.waiting import wait_until
from tests.support.worker import Broker


class DebianRedis(Broker):
    """The same options, port and life as `Broker`."""

    def start(self) -> None:
        """Starts it on the same port and data."""
        self._folder.mkdir(exist_ok=True)
        options = {**self._config, "port": str(self.port), "bind": "127.0.0.1", "dir": str(self._folder)}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (self._folder / "log").open("ab") as log:
            program = tool("redis-server", "apt-get install redis-server")
            self._process = subprocess.Popen([program, *words], stdout=log, stderr=log)
        wait_until(self._answers, "redis-server to answer")

    def _answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except redis.RedisError:
            return False

    def stop(self) -> None:
        """Shuts it down; its append-only file is whole then."""
        self._process.terminate()
        self._process.wait(30)
