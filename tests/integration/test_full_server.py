"""A server at its memory limit refuses writes: a worker starts all the same, and works once there is memory."""

import pytest
import redis

from tests.support.place import Place
from tests.support.worker import Broker
from worker import bus, connection
from worker.errors import UnavailableError
from worker.intake import STREAMS


def fill(raw: redis.Redis) -> None:
    """As if all of its memory were in use."""
    raw.config_set("maxmemory-policy", "noeviction")
    raw.config_set("maxmemory", 1)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        raw.set("one", "more")


def test_groups_that_are_there_need_no_memory(broker: Broker) -> None:
    """They are asked for first, for a full server refuses to create even what exists; the missing is missed."""
    raw = broker.client()
    client = connection.connect(broker.url)
    bus.ensure_groups(client, STREAMS)
    fill(raw)
    bus.ensure_groups(client, STREAMS)
    with pytest.raises(UnavailableError, match="out of memory"):
        bus.ensure_groups(client, [*STREAMS, bus.CORRECTIONS])
    raw.config_set("maxmemory", 0)
    bus.ensure_groups(client, [bus.CORRECTIONS])
    assert [info["name"] for info in raw.xinfo_groups(bus.CORRECTIONS)] == [bus.GROUP.encode()]


def test_a_worker_starts_while_the_server_is_full(place: Place) -> None:
    """One that replaces another: it is ready, and judges what waits as soon as there is memory."""
    place.start_worker().wait_ready().stop()
    waiting = place.add()
    place.client.submit(waiting)
    raw = place.broker.client()
    fill(raw)
    place.start_worker().wait_ready()
    assert place.client.verdict(waiting) is None
    raw.config_set("maxmemory", 0)
    assert place.client.wait(waiting, 60)[waiting].label == "approved"
