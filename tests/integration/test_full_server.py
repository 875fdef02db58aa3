"""A server without memory, disk or replicas refuses writes: it is told as that; a worker starts, and works later."""

import resource
from pathlib import Path

import pytest
import redis

from tests.support.guarded import GuardedServer, valkey
from tests.support.place import Place
from tests.support.waiting import wait_until
from tests.support.worker import Broker
from worker import bus, connection, exporter, status
from worker.errors import UnavailableError
from worker.intake import STREAMS
from worker.presence import Presence


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


def refused(client: redis.Redis) -> float | None:
    """The exporter's gauge, as this user may know it."""
    return exporter.registry(client).get_sample_value("moderation_redis_writes_refused")


def test_without_memory_workers_seem_gone_and_it_is_said_why(broker: Broker) -> None:
    """They cannot announce themselves: "start one" would be the wrong thing to do."""
    raw, client = broker.client(), connection.connect(broker.url)
    presence = Presence(client, "c1", "gpu0@ant", "x")
    presence.announce("v1", "cpu-fp32", 0)
    assert refused(client) == 0
    fill(raw)
    with pytest.raises(UnavailableError, match="out of memory"):
        presence.announce("v1", "cpu-fp32", 0)
    raw.delete(bus.WORKER_PREFIX + "c1", bus.WORKERS)  # as their time runs out
    figures = exporter.read(client)
    assert (refused(client), figures.workers) == (1, ())
    [first, *others] = status.problems(figures)
    assert first.startswith("Redis refuses writes (its memory limit is reached)")
    assert not any("No worker" in sentence for sentence in others)
    raw.config_set("maxmemory-policy", "allkeys-lru")  # it makes room by itself, with what it should keep
    assert refused(client) == 0
    raw.config_set("maxmemory-policy", "noeviction")
    raw.config_set("maxmemory", 0)
    assert refused(client) == 0


def test_without_disk_it_is_said_to_the_user_dashboard(tmp_path: Path) -> None:
    """deploy/redis, whose files may grow no further, and then may again."""
    program = tmp_path / "server"
    program.write_text(f"#!/bin/sh\ntrap '' XFSZ  # the signal's default would end it\nexec {valkey()} \"$@\"\n")
    program.chmod(0o755)
    with GuardedServer(tmp_path / "redis", str(program)) as server:
        raw, client = server.client(), connection.connect(server.url_of("dashboard"))
        assert refused(client) == 0
        _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, most))
        raw.set("one", "more")
        wait_until(lambda: refused(client) == 1, "the server to find its disk full")
        with pytest.raises(redis.exceptions.ResponseError, match="MISCONF"):
            raw.set("two", "more")
        assert next(status.problems(exporter.read(client))).startswith(
            "Redis refuses writes (its append-only file cannot be written)"
        )
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (most, most))
        wait_until(lambda: refused(client) == 0, "it to have written what it owed")


def test_a_failed_snapshot_is_told_where_it_stops_writes(tmp_path: Path) -> None:
    """A server with snapshots, which deploy/redis makes none of."""
    broker = Broker(tmp_path / "valkey", save="")
    try:
        raw, client = broker.client(), connection.connect(broker.url)
        (tmp_path / "valkey" / raw.config_get("dbfilename")["dbfilename"]).mkdir()
        raw.bgsave()
        wait_until(lambda: raw.info("persistence")["rdb_last_bgsave_status"] == "err", "the snapshot to fail")
        assert refused(client) == 0 and raw.set("one", "more")
        raw.config_set("save", "3600 1")
        with pytest.raises(redis.exceptions.ResponseError, match="MISCONF"):
            raw.set("two", "more")
        assert refused(client) == 1
        raw.config_set("stop-writes-on-bgsave-error", "no")
        assert refused(client) == 0 and raw.set("two", "more")
    finally:
        broker.stop()


def test_without_the_replicas_that_it_waits_for_it_is_said(tmp_path: Path) -> None:
    """One of two servers is away, and the other was told not to go on alone; to the user dashboard, too."""
    with GuardedServer(tmp_path / "redis", valkey()) as server:
        raw, client = server.client(), connection.connect(server.url_of("dashboard"))
        assert refused(client) == 0
        raw.config_set("min-replicas-to-write", 1)
        with pytest.raises(redis.exceptions.ResponseError, match="NOREPLICAS"):
            raw.set("one", "more")
        assert refused(client) == 1
        [first, *others] = status.problems(exporter.read(client))
        assert first.startswith("Redis refuses writes (replicas that it waits for are away)")
        assert not any("No worker" in sentence for sentence in others)
        raw.config_set("min-replicas-to-write", 0)
        assert refused(client) == 0 and raw.set("two", "more")


def test_with_one_replica_of_the_two_that_it_waits_for_it_is_said(tmp_path: Path, broker: Broker) -> None:
    """By a server of one's own, which says how many it asks for."""
    other = Broker(tmp_path / "other")
    try:
        raw, client = broker.client(), connection.connect(broker.url)
        raw.config_set("min-replicas-to-write", 1)
        other.client().replicaof("127.0.0.1", broker.port)
        wait_until(lambda: refused(client) == 0, "the replica to be there")
        raw.config_set("min-replicas-to-write", 2)
        with pytest.raises(redis.exceptions.ResponseError, match="NOREPLICAS"):
            raw.set("one", "more")
        assert refused(client) == 1
    finally:
        other.stop()


@pytest.mark.parametrize(
    ("option", "good", "bad", "reason"),
    [
        ("maxmemory-policy", "noeviction", "volatile-lru", "evicts_keys"),
        ("appendonly", "yes", "no", "no_append_only_file"),
    ],
)
def test_a_server_that_may_lose_what_it_holds_is_told(
    tmp_path: Path, option: str, good: str, bad: str, reason: str
) -> None:
    """deploy/redis does not; a managed server may have other defaults. To the user dashboard."""

    def unsafe() -> dict[str, float | None]:
        made = exporter.registry(client)
        return {name: made.get_sample_value("moderation_redis_unsafe", {"reason": name}) for name in exporter.UNSAFE}

    with GuardedServer(tmp_path / "redis", valkey()) as server:
        raw, client = server.client(), connection.connect(server.url_of("dashboard"))
        assert set(unsafe().values()) == {0}
        raw.config_set(option, bad)
        assert {name for name, value in unsafe().items() if value} == {reason}
        assert any(exporter.UNSAFE[reason] in sentence for sentence in status.problems(exporter.read(client)))
        raw.config_set(option, good)
        assert set(unsafe().values()) == {0}
        # A server does not end while it writes its first append-only file.
        wait_until(lambda: raw.info("persistence")["aof_rewrite_in_progress"] == 0, "the file to be written")


def test_a_master_that_became_a_replica_is_told(tmp_path: Path, broker: Broker) -> None:
    """Somebody failed over by hand, and MODERATION_REDIS_URL leads to the old one. A replica that shows workers, which
    write to its master, is looked at on purpose."""
    other = Broker(tmp_path / "other")
    try:
        raw, client = broker.client(), connection.connect(broker.url)
        assert refused(client) == 0
        raw.replicaof("127.0.0.1", other.port)
        with pytest.raises(redis.exceptions.ReadOnlyError):
            raw.set("one", "more")
        assert refused(client) == 1
        [first, *_] = status.problems(exporter.read(client))
        assert first.startswith("Redis refuses writes (it is a read-only replica)")
        Presence(connection.connect(other.url), "c1", "gpu0@ant", "x").announce("v1", "cpu-fp32", 0)
        wait_until(lambda: refused(client) == 0, "the worker to be copied")
    finally:
        other.stop()
