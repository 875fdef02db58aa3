"""`submit(durable=True)`: it waits for the server's disk after every step, and only where it is asked to."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.debian_redis import DebianRedis
from tests.support.worker import Broker
from worker import bus
from worker.client import Moderation
from worker.errors import UnavailableError

STEP = 2000


@pytest.fixture(params=[Broker, DebianRedis], ids=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """Each kind of server that can wait for its disk, with an append-only file."""
    start: Callable[[Path], Broker] = request.param
    made = start(tmp_path / "server")
    try:
        raw = made.client()
        if not raw.command_list(pattern="waitaof"):
            pytest.skip(f"this server, Redis {raw.info('server')['redis_version']}, has no WAITAOF: 7.2 brought it")
        yield made
    finally:
        made.stop()


def waits(server: Broker) -> int:
    """How often the server was asked to wait for its disk."""
    return int(server.client().info("commandstats").get("cmdstat_waitaof", {"calls": 0})["calls"])


def names(count: int) -> list[str]:
    """So many content IDs."""
    return [f"id{number}" for number in range(count)]


@pytest.mark.parametrize("backfill", [False, True], ids=["uploads", "backfill"])
def test_each_step_waits_for_the_disk(server: Broker, backfill: bool) -> None:
    """Two whole steps and one more ID: three waits, and one before; all IDs are there, each once and in order."""
    wanted = names(2 * STEP + 1)
    client = Moderation(server.url)
    assert client.submit(wanted, durable=True, backfill=backfill) == len(wanted)
    assert waits(server) == 4
    entries = server.client().xrange(bus.BACKFILL if backfill else bus.UPLOADS)
    assert [fields[b"content_id"].decode() for _, fields in entries] == wanted


def test_without_durable_nothing_waits(server: Broker) -> None:
    """As many IDs, and the disk is not asked once."""
    Moderation(server.url).submit(names(2 * STEP + 1))
    assert waits(server) == 0
    assert server.client().xlen(bus.UPLOADS) == 2 * STEP + 1


def test_a_disk_that_does_not_follow_ends_the_submission_at_that_step(server: Broker) -> None:
    """A server that leaves its file to the system: refused after the first step, and no second step is sent."""
    server.client().config_set("appendfsync", "no")
    with pytest.raises(UnavailableError, match="not on disk yet; submit them again"):
        Moderation(server.url).submit(names(STEP + 1), durable=True)
    assert waits(server) == 2
    assert server.client().xlen(bus.UPLOADS) == STEP
