"""The intake: which content IDs this process holds, and how each of them leaves again.

Redis streams, consumer group `moderation`. Entries come in by `read` and `take_over`; they leave by a verdict
(`publish`), or here: dropped as known, postponed, buried, given back. Knows no pictures, models or threads.
"""

import itertools
import logging
import time
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from typing import Any

import redis

from worker import bus
from worker.entry import LONGEST_PAUSE_MS, SUSPECT_DELIVERIES, Entry, Fates, Malformed, parse
from worker.errors import UnavailableError

logger = logging.getLogger(__name__)

STREAMS = (bus.UPLOADS, bus.BACKFILL)
ALONE_TTL_S = 86400
BROKEN_DEVICE = b"device:"
# A consumer without claims that has not been heard of for so long belongs to a process that is gone.
CONSUMER_IDLE_MS = 3_600_000
# What a clean stop gives back is idle enough at once for the others to take it.
GIVEN_BACK_IDLE_MS = 60_000
# More than a process can have.
MOST_CLAIMS = 10_000
# By each process each second; the server answers nobody else meanwhile, for some 5 ms.
DUE_AT_ONCE = 100
# Where more are due: so many of them are looked through for uploads each time, in two of these.
DUE_LOOKED_THROUGH = 500
# Far more than there can be of backfill that waits for another attempt, see MOST_POSTPONED_FOR_BACKFILL.
DUE_REACH = 50_000
# How long what its stream refuses is out of the way of the rest. A person mends a stream, which takes longer.
REFUSED_PAUSE_MS = 10_000

Raw = tuple[str, bytes, dict[bytes, bytes], int]
"""(stream, entry ID, fields, how often it was delivered)."""


class Intake:
    """One process's consumer in the group. Methods raise UnavailableError where Redis does not answer."""

    def __init__(self, client: redis.Redis, consumer: str, takeover_idle_s: float) -> None:
        self._redis = client
        self.consumer = consumer
        self._takeover_idle_ms = int(takeover_idle_s * 1000)
        self._looks = itertools.count()
        # Redis's clock and this process's at one moment; its own until Redis has been asked, which is before any work.
        self._clock = int(time.time() * 1000), time.monotonic()
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
        return self._parse(
            (stream.decode(), entry_id, fields, 1) for stream, entries in reply or [] for entry_id, fields in entries
        )

    def take_over(self, stream: str, count: int) -> list[Entry]:
        """Claims up to `count` entries that their process has not refreshed for the take-over time.

        Fewer where another process was faster.
        """
        if count <= 0:
            return []
        idle = self._pending(stream, count, idle=self._takeover_idle_ms)
        return self._parse(self._take(stream, idle, self._takeover_idle_ms))

    def regain(self, stream: str, known: Container[tuple[str, bytes]]) -> list[Entry]:
        """Claims of this process that are not among `known` keys of entries: they came with an answer that was lost.

        They stay delivered as often as they are, for no process has died of them.
        """
        by_count: dict[int, list[dict[str, Any]]] = {}
        for claim in self._pending(stream, MOST_CLAIMS, consumername=self.consumer):
            if (stream, claim["message_id"]) not in known:
                by_count.setdefault(claim["times_delivered"], []).append(claim)
        raw: list[Raw] = []
        for deliveries, claims in by_count.items():
            # What another has taken over since it was looked at is idle for less than any of these.
            idle_ms = min(claim["time_since_delivered"] for claim in claims)
            raw += self._take(stream, claims, idle_ms, deliveries)
        return self._parse(raw)

    def refresh(self, entries: Iterable[Entry]) -> None:
        """Keeps claims from being taken over; the delivery count stays."""
        self._claim(entries, idle=0)

    def give_back(self, entries: Sequence[Entry]) -> None:
        """Lets others take these at once, as if this delivery had never been; a suspect stays one."""
        for suspect, retrycount in ((False, 0), (True, SUSPECT_DELIVERIES - 1)):
            given = [entry for entry in entries if entry.suspect == suspect]
            self._claim(given, idle=GIVEN_BACK_IDLE_MS, retrycount=retrycount)

    def without_known(self, entries: Sequence[Entry]) -> list[Entry]:
        """Drops the entries whose ID has a decided verdict (rescans excepted) and returns the others."""
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
                        args=[bus.GROUP, entry.entry_id, entry.content_id],
                        client=pipeline,
                    )
                gone = {id(entry) for entry, done in zip(known, pipeline.execute(), strict=True) if done == 1}
        return [entry for entry in entries if id(entry) not in gone]

    def postpone(self, entry: Entry, reason: str, pause_ms: int, now_ms: int) -> bool:
        """Puts an entry aside for its next attempt; False where it is somebody else's by now."""
        member = entry.retry_member(reason, now_ms)
        with bus.translated():
            return bool(
                self._postpone(
                    keys=[entry.stream, bus.RETRY, entry.alone_key],
                    args=[bus.GROUP, entry.entry_id, pause_ms, member, entry.content_id],
                )
            )

    def wake_due(self) -> int:
        """Puts postponed entries whose time has come back into the streams, uploads first; returns how many.

        Raises UnavailableError also where a stream takes none: its entries wait on, the other's have gone back.
        """
        with bus.translated():
            woken, refusal = self._due(
                keys=[bus.RETRY, bus.UPLOADS, bus.BACKFILL],
                args=[
                    DUE_AT_ONCE, LONGEST_PAUSE_MS, DUE_LOOKED_THROUGH, next(self._looks), REFUSED_PAUSE_MS, DUE_REACH,
                ],
            )  # fmt: skip
        if refusal:
            raise bus.translate(refusal)
        return int(woken)

    def postponed(self) -> int:
        """How many wait for their next attempt, due or not."""
        with bus.translated():
            return int(self._redis.zcard(bus.RETRY))

    def mark_alone(self, entry: Entry) -> Fates:
        """Notes that this process is about to judge the entry alone; returns what others before it met with, in
        earlier attempts, too.

        A set of processes, so that asking twice counts once.
        """
        with bus.translated(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.sadd(entry.alone_key, self.consumer)
            pipeline.expire(entry.alone_key, ALONE_TTL_S)
            pipeline.smembers(entry.alone_key)
            marks: set[bytes] = pipeline.execute()[2] - {self.consumer.encode()}
        broken = sum(mark.startswith(BROKEN_DEVICE) for mark in marks)
        return Fates(entry.fates.deaths + len(marks) - broken, entry.fates.broken_devices + broken)

    def unmark_alone(self, entry: Entry) -> None:
        """Takes this process's mark back: it survived."""
        with bus.translated():
            self._redis.srem(entry.alone_key, self.consumer)

    def blame_device(self, entry: Entry) -> None:
        """Turns this process's mark into one that says: it ends because its device broke, whoever broke it."""
        with bus.translated(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.srem(entry.alone_key, self.consumer)
            pipeline.sadd(entry.alone_key, BROKEN_DEVICE + self.consumer.encode())
            pipeline.expire(entry.alone_key, ALONE_TTL_S)
            pipeline.execute()

    def prune_consumers(self) -> None:
        """Removes the consumers of processes long gone."""
        for stream in STREAMS:
            self._grouped(partial(self._prune, keys=[stream], args=[bus.GROUP, CONSUMER_IDLE_MS]))

    def now_ms(self) -> int:
        """Redis's clock, asked."""
        now_ms = bus.now_ms(self._redis)
        self._clock = now_ms, time.monotonic()
        return now_ms

    def clock_ms(self) -> int:
        """Redis's clock as it goes on from when it was last asked, which is about once a second; asks nobody."""
        asked_ms, asked = self._clock
        return asked_ms + int(1000 * (time.monotonic() - asked))

    def _grouped(self, command: Callable[[], Any]) -> Any:
        return bus.grouped(self._redis, STREAMS, command)

    def _pending(self, stream: str, count: int, **wanted: Any) -> list[dict[str, Any]]:
        """The oldest claims that are one consumer's, or idle for so long.

        XAUTOCLAIM is told how many to look at and not how many to find: with none to find it would take hundreds of
        calls to go through everybody's claims, for each process each second. This is one.
        """
        command = partial(self._redis.xpending_range, stream, bus.GROUP, min="-", max="+", count=count, **wanted)
        return list(self._grouped(command))

    def _take(
        self, stream: str, claims: Sequence[dict[str, Any]], idle_ms: int, deliveries: int | None = None
    ) -> list[Raw]:
        """What of these is idle for so long still, now this process's: delivered once more, or so often in all.

        What is not in the stream any more is nobody's then.
        """
        if not claims:
            return []
        counts = {claim["message_id"]: deliveries or claim["times_delivered"] + 1 for claim in claims}
        command = partial(
            self._redis.xclaim, stream, bus.GROUP, self.consumer, idle_ms, list(counts), retrycount=deliveries
        )
        return [(stream, entry_id, fields, counts[entry_id]) for entry_id, fields in self._grouped(command)]

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

    def _parse(self, raw: Iterable[Raw]) -> list[Entry]:
        entries = []
        malformed: list[tuple[str, Malformed]] = []
        for stream, entry_id, fields, deliveries in raw:
            entry = parse(stream, entry_id, fields, deliveries)
            if isinstance(entry, Entry):
                entries.append(entry)
            else:
                malformed.append((stream, entry))
        try:
            for stream, found in malformed:
                self._bury_malformed(stream, found)
        except UnavailableError as error:
            # Left to be taken over: no reason to leave the others, too, nor to wait for a time-out with each of them.
            logger.error("malformed entries cannot be put among the dead letters: %s", error)
        return entries

    def _bury_malformed(self, stream: str, entry: Malformed) -> None:
        with bus.translated():
            self._bury(
                keys=[stream, bus.DEAD_LETTER],
                args=[
                    bus.GROUP, entry.entry_id, entry.content_id, "malformed_id", entry.detail, int(entry.rescan),
                    entry.enqueued_ms,
                ],
            )  # fmt: skip


def _settled(document: bytes) -> bool:
    return b'"decided"' in document
