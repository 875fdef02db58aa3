"""One entry of the intake: what the fields of a stream entry say, and what is kept of it for its next attempt.

Bytes that anyone may have written go in, an `Entry` or a `Malformed` comes out. Knows no connection.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from worker import bus
from worker.verdict import CONTENT_ID_PATTERN

SUSPECT_DELIVERIES = 2
MOST_DEATHS_ALONE = 3
# A device breaks by itself far more often than by a picture, and then takes every picture's process with it: only
# so many processes, be it of one device, say that it is this picture.
MOST_BROKEN_DEVICES = 10
# What may pass by itself; how long each has lasted is kept with what waits for its next attempt.
PASSING_REASONS = ("not_found", "fetch_failed")
MALFORMED_CUT_BYTES = 128
# Of an entry without that field, for whoever is to find out what its producer meant.
SENT_CUT_BYTES = 512
LONGEST_PAUSE_MS = 60_000

_id_pattern = re.compile(CONTENT_ID_PATTERN.encode())


class Fates(NamedTuple):
    """Of the processes that judged nothing but one entry: how many died, and of how many the device broke."""

    deaths: int
    broken_devices: int


_NO_FATES = Fates(0, 0)


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
    failing_since_ms: Mapping[str, int] = field(default_factory=dict, hash=False)
    """By reason: the store may be away first, and the object not be there yet when it is back."""
    fates: Fates = _NO_FATES
    """Before its marks in Redis: in earlier attempts, and for what is judged alone, before this process."""

    @property
    def key(self) -> tuple[str, bytes]:
        """What tells it from every other: no two entries of a stream have the same ID."""
        return self.stream, self.entry_id

    @property
    def backfill(self) -> bool:
        """Whether it waits in the stream that uploads go before."""
        return self.stream == bus.BACKFILL

    @property
    def suspect(self) -> bool:
        """Whether it was in a process that died or lost its claim, or one died of it alone; it is judged alone."""
        return self.deliveries >= SUSPECT_DELIVERIES or any(self.fates)

    @property
    def alone_key(self) -> str:
        """Names the processes that judged nothing but this entry and have not said since that they live."""
        return f"{bus.ALONE_PREFIX}{self.stream.rpartition(':')[2]}:{self.entry_id.decode()}"

    def retry_member(self, reason: str, now_ms: int) -> str:
        """What waits in `moderation:retry`, as due.lua reads it.

        Of a suspect that nothing has died of alone no more is said: most were only beside a killer, and each attempt
        of one keeps all others waiting for its fetch, which has just failed.
        """
        since = {reason: now_ms} | dict(self.failing_since_ms)
        return json.dumps(
            {
                "content_id": self.content_id,
                "backfill": int(self.backfill),
                "rescan": int(self.rescan),
                "enqueued_ms": self.enqueued_ms,
                "attempt": self.attempt + 1,
                **{f"{name}_since_ms": ms for name, ms in since.items()},
                **(self.fates._asdict() if any(self.fates) else {}),
            }
        )


@dataclass(frozen=True, slots=True)
class Malformed:
    """An entry that names no content ID: the beginning of what it has instead, and what is wrong with it."""

    entry_id: bytes
    content_id: bytes
    detail: str
    rescan: bool
    enqueued_ms: int


def parse(stream: str, entry_id: bytes, fields: Mapping[bytes, bytes], deliveries: int) -> Entry | Malformed:
    """Reads a stream entry. A field that makes no sense is as if it were not there, but for the content ID."""
    content_id = fields.get(b"content_id")
    added_ms = bus.entry_ms(entry_id)
    enqueued_ms = min(_number(fields.get(b"enqueued_ms"), added_ms), added_ms)
    rescan = fields.get(b"rescan") == b"1"
    if content_id is None or _id_pattern.match(content_id) is None:
        detail = "not 1 to 128 characters of A-Z a-z 0-9 _ -"
        if content_id is None:
            sent = b" ".join(name + b"=" + value for name, value in fields.items())[:SENT_CUT_BYTES]
            detail = f"no field content_id. Sent: {sent.decode('utf-8', 'backslashreplace')}"
        return Malformed(entry_id, (content_id or b"")[:MALFORMED_CUT_BYTES], detail, rescan, enqueued_ms)
    since = {reason: _number(fields.get(f"{reason}_since_ms".encode()), 0) for reason in PASSING_REASONS}
    return Entry(
        stream=stream,
        entry_id=entry_id,
        content_id=content_id.decode(),
        rescan=rescan,
        enqueued_ms=enqueued_ms,
        deliveries=deliveries,
        attempt=_number(fields.get(b"attempt"), 0),
        failing_since_ms={reason: min(ms, added_ms) for reason, ms in since.items() if ms},
        # Fewer than condemn it: what anyone may have written does so only together with a mark.
        fates=Fates(
            deaths=min(_number(fields.get(b"deaths"), 0), MOST_DEATHS_ALONE - 1),
            broken_devices=min(_number(fields.get(b"broken_devices"), 0), MOST_BROKEN_DEVICES - 1),
        ),
    )


def pause_ms(attempt: int, first_ms: int = 1000, longest_ms: int = LONGEST_PAUSE_MS) -> int:
    """How long to wait before attempt number `attempt` + 1: doubling, with a ceiling."""
    return int(min(longest_ms, first_ms * 2 ** min(attempt, 16)))


def _number(value: bytes | None, default: int) -> int:
    """A whole number of at most 15 digits from a stream entry, which anyone may have written."""
    return int(value) if value is not None and value.isdigit() and len(value) <= 15 else default
