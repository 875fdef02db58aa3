"""The intake: which content IDs this process holds, and how each of them leaves again.

Redis streams, consumer group `moderation`. Entries come in by `read` and `take_over`; they leave by a verdict
(`publish`), or here: dropped as known, postponed, buried, given back. Knows no pictures, models or threads.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis

from worker import bus
from worker.errors import UnavailableError
from worker.verdict import CONTENT_ID_PATTERN

logger = logging.getLogger(__name__)

STREAMS = (bus.UPLOADS, bus.BACKFILL)
ALONE_TTL_S = 86400
SUSPECT_DELIVERIES = 2
# A consumer without claims that has not been heard of for so long belongs to a process that is gone.
CONSUMER_IDLE_MS = 3_600_000
# What a clean stop gives back is idle enough at once for the others to take it.
GIVEN_BACK_IDLE_MS = 60_000
DUE_AT_ONCE = 500
MALFORMED_CUT_BYTES = 128

_id_pattern = re.compile(CONTENT_ID_PATTERN.encode())


@dataclass(frozen=True, slots=True)
class Entry:
    """One content ID in work. Times are milliseconds on Redis's clock."""

    stream: str
    entry_id: bytes
    content_id: str
    rescan: bool
    enqueued_ms: int
    deliveries: int = 1
    attempt: int = 0
    failing_since_ms: int | None = None

    @property
    def backfill(self) -> bool:
        """Whether it waits in the stream that uploads go before."""
        return self.stream == bus.BACKFILL

    @property
    def suspect(self) -> bool:
        """Whether it was in a process that died or lost its claim; such an entry is judged alone."""
        return self.deliveries >= SUSPECT_DELIVERIES

    @property
    def alone_key(self) -> str:
        """Names the processes that judged nothing but this entry and have not said since that they live."""
        return f"{bus.ALONE_PREFIX}{self.stream.rpartition(':')[2]}:{self.entry_id.decode()}"


class Intake:
    """One process's consumer in the group. Methods raise UnavailableError where Redis does not answer."""

    def __init__(self, client: redis.Redis, consumer: str, takeover_idle_s: float) -> None:
        self._redis = client
        self.consumer = consumer
        self._takeover_idle_ms = int(takeover_idle_s * 1000)
        self._drop = client.register_script(bus.script("drop"))
        self._postpone = client.register_script(bus.script("postpone"))
        self._due = client.register_script(bus.script("due"))
        self._bury = client.register_script(bus.script("bury"))
        self._prune = client.register_script(bus.script("prune"))

    def ensure_groups(self) -> None:
        """Creates the streams' consumer groups where they are missing, from the first entry on."""
        bus.ensure_groups(self._redis, STREAMS)

    def read(self, streams: Sequence[str], count: int, block_ms: int | None = None) -> list[Entry]:
        """Claims up to `count` new entries of each stream; waits up to `block_ms` for the first."""
        reply = self._grouped(
            lambda: self._redis.xreadgroup(
                bus.GROUP, self.consumer, dict.fromkeys(streams, ">"), count=count, block=block_ms
            )
        )
        return [
            entry
            for stream, entries in reply or []
            for entry in self._parse(stream.decode(), [(entry_id, fields, 1) for entry_id, fields in entries])
        ]

    def take_over(self, count: int) -> list[Entry]:
        """Claims up to `count` entries that their process has not refreshed for the take-over time."""
        taken: list[Entry] = []
        for stream in STREAMS:
            cursor: Any = "0-0"
            while len(taken) < count:
                cursor, claimed = self._auto_claim(stream, cursor, count - len(taken))
                taken += claimed
                if cursor == b"0-0":
                    break
        return taken

    def refresh(self, entries: Iterable[Entry]) -> None:
        """Keeps claims from being taken over; the delivery count stays."""
        self._claim(entries, idle=0)

    def give_back(self, entries: Sequence[Entry]) -> None:
        """Lets others take these at once, as if this delivery had never been; a suspect stays one."""
        for suspect, retrycount in ((False, 0), (True, SUSPECT_DELIVERIES - 1)):
            given = [entry for entry in entries if entry.suspect == suspect]
            self._claim(given, idle=GIVEN_BACK_IDLE_MS, retrycount=retrycount)

    def without_known(self, entries: Sequence[Entry]) -> list[Entry]:
        """Drops the entries whose ID has a decided verdict (rescans excepted) and returns the others.

        A person may have decided before the bytes were seen; the first look at them is worth its time, for the same
        decision then holds for them under other IDs.
        """
        asked = [entry for entry in entries if not entry.rescan]
        if not asked:
            return list(entries)
        with bus.translated():
            documents: Any = self._redis.mget([bus.verdict_key(entry.content_id) for entry in asked])
            known = [e for e, d in zip(asked, documents, strict=True) if d is not None and _settled(d)]
            if not known:
                return list(entries)
            with self._redis.pipeline(transaction=False) as pipeline:
                for entry in known:
                    self._drop(
                        keys=[entry.stream, bus.verdict_key(entry.content_id)],
                        args=[bus.GROUP, entry.entry_id],
                        client=pipeline,
                    )
                gone = {id(entry) for entry, done in zip(known, pipeline.execute(), strict=True) if done == 1}
        return [entry for entry in entries if id(entry) not in gone]

    def postpone(self, entry: Entry, pause_ms: int, now_ms: int) -> bool:
        """Puts an entry aside for its next attempt; False where it is somebody else's by now."""
        member = {
            "content_id": entry.content_id,
            "backfill": int(entry.backfill),
            "rescan": int(entry.rescan),
            "enqueued_ms": entry.enqueued_ms,
            "failing_since_ms": entry.failing_since_ms or now_ms,
            "attempt": entry.attempt + 1,
        }
        with bus.translated():
            return bool(
                self._postpone(
                    keys=[entry.stream, bus.RETRY, entry.alone_key],
                    args=[bus.GROUP, entry.entry_id, pause_ms, json.dumps(member)],
                )
            )

    def wake_due(self) -> int:
        """Puts postponed entries whose time has come back into the streams; returns how many."""
        with bus.translated():
            return int(self._due(keys=[bus.RETRY, bus.UPLOADS, bus.BACKFILL], args=[DUE_AT_ONCE]))

    def mark_alone(self, entry: Entry) -> int:
        """Notes that this process is about to judge the entry alone; returns how many others died of that before.

        A set of processes, so that asking twice counts once.
        """
        with bus.translated(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.sadd(entry.alone_key, self.consumer)
            pipeline.expire(entry.alone_key, ALONE_TTL_S)
            pipeline.scard(entry.alone_key)
            return int(pipeline.execute()[2]) - 1

    def unmark_alone(self, entry: Entry) -> None:
        """Takes this process's mark back: it survived."""
        with bus.translated():
            self._redis.srem(entry.alone_key, self.consumer)

    def prune_consumers(self) -> None:
        """Removes the consumers of processes long gone."""
        for stream in STREAMS:
            self._grouped(partial(self._prune, keys=[stream], args=[bus.GROUP, CONSUMER_IDLE_MS]))

    def now_ms(self) -> int:
        """Redis's clock."""
        return bus.now_ms(self._redis)

    def _grouped(self, command: Callable[[], Any]) -> Any:
        return bus.grouped(self._redis, STREAMS, command)

    def _auto_claim(self, stream: str, cursor: Any, count: int) -> tuple[Any, list[Entry]]:
        reply = self._grouped(
            lambda: self._redis.xautoclaim(
                stream, bus.GROUP, self.consumer, self._takeover_idle_ms, start_id=cursor, count=count
            )
        )
        claimed = [(entry_id, fields) for entry_id, fields in reply[1] if fields]
        if not claimed:
            return reply[0], []
        deliveries = self._deliveries(stream, claimed[0][0], claimed[-1][0])
        return reply[0], self._parse(stream, [(i, fields, deliveries.get(i, 2)) for i, fields in claimed])

    def _claim(self, entries: Iterable[Entry], idle: int, retrycount: int | None = None) -> None:
        by_stream: dict[str, list[Any]] = {}
        for entry in entries:
            by_stream.setdefault(entry.stream, []).append(entry.entry_id)
        for stream, ids in by_stream.items():
            self._grouped(
                partial(
                    self._redis.xclaim, stream, bus.GROUP, self.consumer, min_idle_time=0, message_ids=ids, idle=idle,
                    retrycount=retrycount, justid=True,
                )
            )  # fmt: skip

    def _deliveries(self, stream: str, first: bytes, last: bytes) -> dict[bytes, int]:
        with bus.translated():
            pending: Any = self._redis.xpending_range(
                stream, bus.GROUP, min=first, max=last, count=10_000, consumername=self.consumer
            )
        return {info["message_id"]: info["times_delivered"] for info in pending}

    def _parse(self, stream: str, raw: Iterable[tuple[bytes, dict[bytes, bytes], int]]) -> list[Entry]:
        entries = []
        for entry_id, fields, deliveries in raw:
            content_id = fields.get(b"content_id")
            added_ms = bus.entry_ms(entry_id)
            enqueued_ms = min(_number(fields.get(b"enqueued_ms"), added_ms), added_ms)
            rescan = fields.get(b"rescan") == b"1"
            if content_id is None or _id_pattern.match(content_id) is None:
                try:
                    self._bury_malformed(stream, entry_id, content_id, rescan, enqueued_ms)
                except UnavailableError as error:  # left to be taken over, and no reason to leave the others, too
                    logger.error("%s cannot be put among the dead letters: %s", entry_id.decode(), error)
                continue
            since = min(_number(fields.get(b"failing_since_ms"), 0), added_ms)
            entries.append(
                Entry(
                    stream=stream,
                    entry_id=entry_id,
                    content_id=content_id.decode(),
                    rescan=rescan,
                    enqueued_ms=enqueued_ms,
                    deliveries=deliveries,
                    attempt=_number(fields.get(b"attempt"), 0),
                    failing_since_ms=since or None,
                )
            )
        return entries

    def _bury_malformed(
        self, stream: str, entry_id: bytes, content_id: bytes | None, rescan: bool, enqueued_ms: int
    ) -> None:
        detail = "no field content_id" if content_id is None else "not 1 to 128 characters of A-Z a-z 0-9 _ -"
        with bus.translated():
            self._bury(
                keys=[stream, bus.DEAD_LETTER],
                args=[
                    bus.GROUP, entry_id, (content_id or b"")[:MALFORMED_CUT_BYTES], "malformed_id", detail,
                    int(rescan), enqueued_ms,
                ],
            )  # fmt: skip


def _settled(document: bytes) -> bool:
    return b'"decided"' in document and b'"content_sha256":null' not in document


def _number(value: bytes | None, default: int) -> int:
    """A whole number of at most 15 digits from a stream entry, which anyone may have written."""
    return int(value) if value is not None and value.isdigit() and len(value) <= 15 else default


def pause_ms(attempt: int, first_ms: int = 1000, longest_ms: int = 60_000) -> int:
    """How long to wait before attempt number `attempt` + 1: doubling, with a ceiling."""
    return int(min(longest_ms, first_ms * 2 ** min(attempt, 16)))
