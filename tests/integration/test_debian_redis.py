"""Debian's Redis in Valkey's place: publishing and dead letters as on Valkey, and a worker through a restart."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_deadletter import *  # noqa: F403  pytest runs by name what a module holds: the same, on its `broker`
from tests.integration.test_publish import *  # noqa: F403  likewise
from tests.support.debian_redis import DebianRedis
from tests.support.place import Place
from tests.support.waiting import wait_until
from tests.support.worker import Broker
from worker.errors import UsageError


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A redis-server with an append-only file, for this test alone."""
    server = DebianRedis(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place on such a server."""
    with Place(tmp_path, DebianRedis(tmp_path / "redis")) as made:
        yield made


def test_it_is_redis_and_no_valkey(broker: Broker) -> None:
    """The release that Debian has; newer ones know what this one must do without."""
    said = broker.client().info("server")
    assert said["redis_version"].startswith("7.") and said.get("server_name", "redis") == "redis"


def test_a_worker_lives_through_its_restart(place: Place) -> None:
    """Uploads, backfill, a missing picture, and the server restarted in between; nothing is lost or there twice."""
    worker = place.start_worker(not_found_retry_s="1").wait_ready()
    ids, later = [place.add() for _ in range(150)], [place.add(label="risked") for _ in range(50)]
    place.client.submit([*ids, "absent"])
    place.client.submit(later, backfill=True)
    wait_until(lambda: worker.metric("moderation_verdicts_total") > 5, "the first verdicts")
    place.broker.stop()
    place.broker.start()
    found = place.client.wait([*ids, *later, "absent"], 90)
    assert found["absent"].reasons == ("not_found",) and all(found[content_id].ban for content_id in later)
    assert sorted(place.entries()) == sorted([*ids, *later, "absent"])
    assert worker.stop() == 0


def test_durable_is_refused_by_a_server_that_cannot_promise_it(place: Place) -> None:
    """WAITAOF came with 7.2: one sentence that says so, and nothing is enqueued."""
    version = place.broker.client().info("server")["redis_version"]
    if tuple(map(int, version.split(".")[:2])) >= (7, 2):
        pytest.skip(f"this Debian's Redis {version} has WAITAOF")
    with pytest.raises(UsageError, match=r"Redis 7\.2 or Valkey"):
        place.client.submit("one", durable=True)
    assert place.broker.client().xlen("moderation:uploads") == 0
