"""What a worker process says of itself while it lives, for the exporter and `moderation status`.

A hash with a short TTL a process, refreshed by its housekeeping: one that dies is gone with the TTL. A sorted set
of them by the time they end, so that nobody searches millions of keys for a few.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import redis

from worker import bus

# Several missed refreshes long, so that one slow second does not make a worker vanish.
PRESENCE_TTL_S = 15


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One live worker process: what it serves with what, in which release of this package, since when (ms, Redis's
    clock). An older release says nothing of the last three."""

    node: str
    weights: str
    engine: str
    in_work: int
    device: str = ""
    software: str = ""
    serving_since_ms: int = 0


class Presence:
    """One process's entry."""

    def __init__(self, client: redis.Redis, consumer: str, node: str, device: str) -> None:
        self._redis = client
        self._key = bus.WORKER_PREFIX + consumer
        self._is = {"node": node, "device": device, "software": _release()}
        self._serving: tuple[str, int] = ("", 0)

    def announce(self, weights: str, engine: str, in_work: int) -> None:
        """Says that this process lives and what it serves."""
        now_ms = bus.now_ms(self._redis)
        if weights != self._serving[0]:
            self._serving = (weights, now_ms)
        said: dict[Any, Any] = {"weights": weights, "engine": engine, "in_work": in_work, **self._is}
        said["serving_since_ms"] = self._serving[1]
        with bus.translated(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(self._key, mapping=said)
            pipeline.expire(self._key, PRESENCE_TTL_S)
            pipeline.zadd(bus.WORKERS, {self._key: now_ms + PRESENCE_TTL_S * 1000})
            pipeline.zremrangebyscore(bus.WORKERS, "-inf", now_ms)
            pipeline.expire(bus.WORKERS, PRESENCE_TTL_S)
            pipeline.execute()

    def leave(self) -> None:
        """Says that this process ends."""
        with bus.translated():
            self._redis.delete(self._key)
            self._redis.zrem(bus.WORKERS, self._key)


def _release() -> str:
    """Of this package; no worker dies of running from a tree that was never installed."""
    try:
        return version("moderation-worker")
    except PackageNotFoundError:
        return "unknown"


def live_workers(client: redis.Redis) -> Iterator[WorkerInfo]:
    """Every worker process that announced itself lately."""
    with bus.translated():
        keys: Any = client.zrange(bus.WORKERS, 0, -1)
        found: list[Any] = [client.hgetall(key) for key in sorted(keys)]
    for fields in found:
        if fields:
            text = {name.decode(): value.decode() for name, value in fields.items()}
            yield WorkerInfo(
                node=text["node"],
                weights=text["weights"],
                engine=text["engine"],
                in_work=int(text["in_work"]),
                device=text.get("device", ""),
                software=text.get("software", ""),
                serving_since_ms=int(text.get("serving_since_ms", 0)),
            )
