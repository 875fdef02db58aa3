"""Figures of the whole service, read from Redis at each scrape; needs no worker.

Kept apart from the workers' own metrics so that they neither multiply by the number of workers nor vanish with
the last one. Also what `moderation status` shows.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from worker import breaker, bus
from worker.errors import ModerationError
from worker.intake import STREAMS
from worker.presence import WorkerInfo, live_workers

# Streams whose end nobody would notice at once: what is written there is refused, and nothing waits visibly.
RECORDS = (bus.VERDICTS, bus.CORRECTIONS, bus.DEAD_LETTER)

# How a server is set up that loses what it was given: by reason, in words.
UNSAFE: Final = {
    "evicts_keys": "at its memory limit it throws keys away (maxmemory-policy)",
    "no_append_only_file": "a restart of it loses everything (appendonly)",
}

MIN_REPLICAS = "min-replicas-to-write"

# Nothing comes after it, and Redis refuses to be asked for that.
LAST_ID = "18446744073709551615-18446744073709551615"


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """One intake stream: entries waiting, entries claimed, how long the oldest waiting one has waited, and how far
    the newest entry ID ever written lies ahead of Redis's clock (anyone may write an ID of their own)."""

    stream: str
    waiting: int
    in_work: int
    oldest_waiting_s: float
    ahead_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """The whole service at one moment. Redis refuses writes where it uses `memory_max_bytes`; 0: no limit.

    `writes_refused` says why it refuses them now; empty where it does not. Workers cannot announce themselves then.

    `unsafe` has the reasons of UNSAFE for which it may lose what it holds.

    `records_ahead_s` is, by stream, how far the newest ID of verdicts, corrections and dead letters is dated ahead.
    """

    streams: tuple[StreamFigures, ...]
    retrying: int
    dead_letters: int
    breaker: breaker.Status
    workers: tuple[WorkerInfo, ...]
    memory_bytes: int
    memory_max_bytes: int
    writes_refused: str = ""
    unsafe: tuple[str, ...] = ()
    records_ahead_s: dict[str, float] = field(default_factory=dict)


def read(client: redis.Redis) -> Figures:
    """Reads all figures. Raises UnavailableError."""
    with bus.translated():
        now_ms = bus.now_ms(client)
        streams = tuple(_stream(client, stream, now_ms) for stream in STREAMS)
        retrying, dead = client.zcard(bus.RETRY), client.xlen(bus.DEAD_LETTER)
        info: Any = client.info("memory", "persistence", "replication")
        workers = tuple(live_workers(client))
        writes_refused = _writes_refused(client, info, workers)
        records_ahead_s = dict(_records_ahead(client, now_ms))
    return Figures(
        streams, retrying, dead, breaker.status(client), workers,
        memory_bytes=info["used_memory"], memory_max_bytes=info["maxmemory"],
        writes_refused=writes_refused, unsafe=tuple(_unsafe(info)), records_ahead_s=records_ahead_s,
    )  # fmt: skip


def _writes_refused(client: redis.Redis, info: dict[str, Any], workers: Sequence[WorkerInfo]) -> str:
    """As the server itself reckons, without trying: this user may write nothing."""
    counted = info["used_memory"] - info.get("mem_not_counted_for_evict", 0)
    if 0 < info["maxmemory"] < counted and info["maxmemory_policy"] == "noeviction":
        return "its memory limit is reached"
    if info.get("aof_last_write_status", "ok") != "ok":
        return "its append-only file cannot be written"
    if info.get("slave_read_only") and not workers:  # with workers it is a replica that somebody looks at on purpose
        return "it is a read-only replica"
    replicas = info.get("min_slaves_good_slaves")  # told only where `min-replicas-to-write` asks for one at least
    if replicas is not None and replicas < int(_configured(client, MIN_REPLICAS).get(MIN_REPLICAS, 1)):
        return "replicas that it waits for are away"
    if info["rdb_last_bgsave_status"] != "ok" and _stops_without_snapshots(client):
        return "its last snapshot failed"
    return ""


def _unsafe(info: dict[str, Any]) -> Iterator[str]:
    if info["maxmemory"] > 0 and info["maxmemory_policy"] != "noeviction":
        yield "evicts_keys"
    if not info["aof_enabled"]:
        yield "no_append_only_file"


def _stops_without_snapshots(client: redis.Redis) -> bool:
    found = _configured(client, "save", "stop-writes-on-bgsave-error")
    return bool(found.get("save")) and found["stop-writes-on-bgsave-error"] == "yes"


def _configured(client: redis.Redis, *names: str) -> dict[str, str]:
    """Nothing with deploy/redis, where this user may not ask; others run servers of their own."""
    with contextlib.suppress(redis.exceptions.ResponseError):
        found: Any = client.config_get(*names)
        return dict(found)
    return {}


def _stream(client: redis.Redis, stream: str, now_ms: int) -> StreamFigures:
    """Waiting is the length minus what is claimed; the group's own `lag` is not reliable after deletions."""
    found = _info(client, stream)
    length = found["length"]
    groups: Any = client.xinfo_groups(stream) if length else []
    group = next((group for group in groups if group["name"] == bus.GROUP.encode()), None)
    in_work = group["pending"] if group else 0
    delivered = group["last-delivered-id"].decode() if group else ""
    oldest = []
    if length and delivered != LAST_ID:
        oldest = bus.range_stream(client, stream, f"({delivered}" if delivered else "-")
    age_s = (now_ms - int(oldest[0][0].partition(b"-")[0])) / 1000 if oldest else 0.0
    waiting = max(0, length - in_work)
    return StreamFigures(_name(stream), waiting, in_work, max(0.0, age_s), _ahead_s(found, now_ms))


def _info(client: redis.Redis, stream: str) -> dict[str, Any]:
    try:
        found: Any = client.xinfo_stream(stream)
    except redis.exceptions.ResponseError as error:
        if "no such key" not in str(error):
            raise
        return {"length": 0, "last-generated-id": b"0-0"}
    return dict(found)


def _records_ahead(client: redis.Redis, now_ms: int) -> Iterator[tuple[str, float]]:
    """All that this user may ask of: an ACL file of an older release must not cost all other figures."""
    for stream in RECORDS:
        with contextlib.suppress(redis.exceptions.NoPermissionError):
            yield _name(stream), _ahead_s(_info(client, stream), now_ms)


def _ahead_s(found: dict[str, Any], now_ms: int) -> float:
    return max(0.0, (int(found["last-generated-id"].partition(b"-")[0]) - now_ms) / 1000)


def _name(stream: str) -> str:
    return stream.rpartition(":")[2]


FAMILIES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "moderation_waiting": ("Content IDs that wait.", ("stream",)),
    "moderation_in_work": ("Content IDs claimed by a worker.", ("stream",)),
    "moderation_oldest_waiting_seconds": ("Age of the oldest waiting content ID; 0 where none waits.", ("stream",)),
    "moderation_intake_ahead_seconds": (
        "How far the newest intake entry is dated in the future; 0 where not.", ("stream",),
    ),
    "moderation_record_ahead_seconds": (
        "How far the newest verdict, correction or dead letter is dated in the future; 0 where not.", ("stream",),
    ),
    "moderation_retrying": ("Content IDs that wait for their next attempt.", ()),
    "moderation_dead_letter": ("Dead letters.", ()),
    "moderation_circuit_breaker_open": ("1 while the ban circuit breaker is open.", ()),
    "moderation_withheld": ("Bans that wait for a person to close the circuit breaker.", ()),
    "moderation_workers": ("Live worker processes by weights.", ("weights",)),
    "moderation_redis_memory_bytes": ("Memory that Redis uses.", ()),
    "moderation_redis_memory_max_bytes": ("Where Redis refuses writes; 0: no limit is set.", ()),
    "moderation_redis_writes_refused": (
        "1 while Redis refuses writes: no memory is left, its disk takes none, replicas are away, or it is one.", (),
    ),
    "moderation_redis_unsafe": (
        "1 where Redis is set up so that it may lose work, verdicts and people's decisions.", ("reason",),
    ),
}  # fmt: skip
"""Every gauge by name: what it is, and its labels."""


class _ServiceCollector(Collector):
    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is asked of Redis before the first scrape

    def collect(self) -> Iterator[Metric]:
        figures = read(self._redis)
        families = {name: GaugeMetricFamily(name, help_, labels=labels) for name, (help_, labels) in FAMILIES.items()}
        for name, labels, value in _samples(figures):
            families[name].add_metric(labels, value)
        yield from families.values()


def _samples(figures: Figures) -> Iterator[tuple[str, Sequence[str], float]]:
    """(name, label values, value) of all there is."""
    for stream in figures.streams:
        yield "moderation_waiting", [stream.stream], stream.waiting
        yield "moderation_in_work", [stream.stream], stream.in_work
        yield "moderation_oldest_waiting_seconds", [stream.stream], stream.oldest_waiting_s
        yield "moderation_intake_ahead_seconds", [stream.stream], stream.ahead_s
    for record, ahead_s in figures.records_ahead_s.items():
        yield "moderation_record_ahead_seconds", [record], ahead_s
    for weights, count in Counter(worker.weights for worker in figures.workers).items():
        yield "moderation_workers", [weights], count
    yield "moderation_retrying", [], figures.retrying
    yield "moderation_dead_letter", [], figures.dead_letters
    yield "moderation_circuit_breaker_open", [], figures.breaker.opened_at is not None
    yield "moderation_withheld", [], figures.breaker.withheld
    yield "moderation_redis_memory_bytes", [], figures.memory_bytes
    yield "moderation_redis_memory_max_bytes", [], figures.memory_max_bytes
    yield "moderation_redis_writes_refused", [], figures.writes_refused != ""
    for reason in UNSAFE:
        yield "moderation_redis_unsafe", [reason], reason in figures.unsafe


def registry(client: redis.Redis) -> CollectorRegistry:
    """A registry that reads the figures anew at each scrape."""
    made = CollectorRegistry()
    made.register(_ServiceCollector(client))
    return made


def problem(client: redis.Redis) -> str | None:
    """None, or one sentence on why no figures can be had."""
    try:
        bus.ping(client)
    except ModerationError as error:
        return str(error)
    return None
