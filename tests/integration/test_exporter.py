"""What the exporter says of a service of which everything is known: each figure under its own name."""

import json

import pytest

from tests.support.waiting import wait_until
from tests.support.worker import Broker
from worker import bus, connection, exporter
from worker.presence import PRESENCE_TTL_S, Presence, live_workers

HOUR_MS = 3_600_000


def test_every_figure_is_that_of_its_name(broker: Broker) -> None:
    """Numbers that are all different, so that none can stand in another's place."""
    raw, client = broker.client(), connection.connect(broker.url)
    now_ms = bus.now_ms(client)
    bus.ensure_groups(client, (bus.UPLOADS, bus.BACKFILL))
    for number, age_h in enumerate((9, 8, 7, 2, 1)):
        raw.xadd(bus.UPLOADS, {"content_id": f"u{number}"}, id=f"{now_ms - age_h * HOUR_MS}-0")
    raw.xreadgroup(bus.GROUP, "c1", {bus.UPLOADS: ">"}, count=3)
    raw.xadd(bus.BACKFILL, {"content_id": "b"}, id=f"{now_ms + HOUR_MS}-0")
    raw.zadd(bus.RETRY, {f"r{number}": now_ms for number in range(6)})
    for _ in range(7):
        raw.xadd(bus.DEAD_LETTER, {"content_id": "d"})
    raw.xadd(bus.VERDICTS, {"content_id": "v"}, id=f"{now_ms + 2 * HOUR_MS}-0")
    raw.hset(bus.WITHHELD, "#opened", json.dumps({"at": "2026-11-24T02:58:00.000Z", "bans": 140, "decided": 600}))
    raw.hset(bus.WITHHELD, mapping={f"w{number}": "{}" for number in range(8)})
    for number, weights in enumerate(("one", "one", "two")):
        Presence(client, f"c{number}", f"gpu{number}@ant", "x").announce(weights, "cuda-bf16", 0)
    read = exporter.registry(client).get_sample_value

    def of(stream: str) -> list[float | None]:
        return [read(f"moderation_{name}", {"stream": stream}) for name in ("waiting", "in_work")]

    assert (of("uploads"), of("backfill")) == ([2, 3], [1, 0])
    # Of what waits: the three that are in work have waited for longer.
    assert read("moderation_oldest_waiting_seconds", {"stream": "uploads"}) == pytest.approx(2 * 3600, abs=60)
    assert read("moderation_oldest_waiting_seconds", {"stream": "backfill"}) == 0
    assert read("moderation_intake_ahead_seconds", {"stream": "uploads"}) == 0
    assert read("moderation_intake_ahead_seconds", {"stream": "backfill"}) == pytest.approx(3600, abs=60)
    assert read("moderation_record_ahead_seconds", {"stream": "verdicts"}) == pytest.approx(7200, abs=60)
    assert read("moderation_record_ahead_seconds", {"stream": "dead-letter"}) == 0
    assert (read("moderation_retrying"), read("moderation_dead_letter")) == (6, 7)
    assert (read("moderation_circuit_breaker_open"), read("moderation_withheld")) == (1, 8)
    assert [read("moderation_workers", {"weights": weights}) for weights in ("one", "two")] == [2, 1]
    assert read("moderation_redis_memory_bytes") == pytest.approx(raw.info("memory")["used_memory"], rel=0.5)
    assert (read("moderation_redis_memory_max_bytes"), read("moderation_redis_writes_refused")) == (0, 0)


def test_a_server_that_may_lose_what_it_holds_is_told_by_the_reason(broker: Broker) -> None:
    """One that may throw keys away does so at a limit only; the other loses everything whenever it is restarted."""
    raw, client = broker.client(), connection.connect(broker.url)

    def unsafe() -> list[float | None]:
        read = exporter.registry(client).get_sample_value
        return [
            read("moderation_redis_unsafe", {"reason": reason}) for reason in ("evicts_keys", "no_append_only_file")
        ]

    raw.config_set("maxmemory-policy", "allkeys-lru")
    assert unsafe() == [0, 0]
    raw.config_set("maxmemory", 10**9)
    assert unsafe() == [1, 0]
    raw.config_set("maxmemory-policy", "noeviction")
    assert unsafe() == [0, 0]
    raw.config_set("appendonly", "no")
    assert unsafe() == [0, 1]


def test_a_worker_that_says_nothing_any_more_is_none(broker: Broker) -> None:
    """What it left has a time to live, its place in the list ends with the next that is announced, and one that ends
    by itself is gone at once."""
    raw, client = broker.client(), connection.connect(broker.url)
    dies, ends, lives = (Presence(client, name, name, "x") for name in ("dies", "ends", "lives"))
    for one in (dies, ends, lives):
        one.announce("v1", "cpu-fp32", 0)
    assert 0 < raw.ttl(bus.WORKER_PREFIX + "dies") <= PRESENCE_TTL_S
    assert 0 < raw.ttl(bus.WORKERS) <= PRESENCE_TTL_S
    until_ms = raw.zscore(bus.WORKERS, bus.WORKER_PREFIX + "dies")
    assert until_ms is not None and 0 < until_ms - bus.now_ms(client) <= PRESENCE_TTL_S * 1000
    ends.leave()
    assert not raw.exists(bus.WORKER_PREFIX + "ends") and raw.zcard(bus.WORKERS) == 2
    assert [worker.node for worker in live_workers(client)] == ["dies", "lives"]
    raw.delete(bus.WORKER_PREFIX + "dies")  # as its time runs out
    assert [worker.node for worker in live_workers(client)] == ["lives"]
    raw.zadd(bus.WORKERS, {bus.WORKER_PREFIX + "dies": 1})
    lives.announce("v1", "cpu-fp32", 0)
    assert raw.zrange(bus.WORKERS, 0, -1) == [(bus.WORKER_PREFIX + "lives").encode()]


def test_since_when_a_worker_serves_is_when_it_took_up_the_version(broker: Broker) -> None:
    client = connection.connect(broker.url)
    one = Presence(client, "c1", "gpu0@ant", "x")

    def since() -> int:
        one.announce(version, "cpu-fp32", 0)
        [worker] = live_workers(client)
        return worker.serving_since_ms

    version = "v1"
    first = since()
    wait_until(lambda: bus.now_ms(client) > first, "the server's clock to go on")
    assert since() == first
    version = "v2"
    assert since() > first
