"""The client: content IDs go in, verdicts come out. For upload pipelines, and for everything here that submits.

Needs neither torch nor Pillow, knows nothing of workers: it writes the intake streams and reads verdicts.
"""

import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import redis

from worker import bus, connection, corrections, settings
from worker.corrections import Correction
from worker.errors import IntakeFullError, UnavailableError, UsageError, WaitedError
from worker.verdict import Undecided, Verdict, check_content_id, read

logger = logging.getLogger(__name__)

# IDs added in one step of the server's; more makes no difference to speed and holds others up.
SUBMIT_CHUNK = 250
# Each waits for the disk, up to a second: the server may be another one, or restarted, at the next.
DURABLE_CHUNK = 2000
READ_CHUNK = 500
WAIT_BLOCK_MS = 1000
AOF_WAIT_MS = 4000
ROOM_PAUSES_S = (0.05, 0.1, 0.2, 0.5)


class Moderation:
    """A connection to the moderation service; may be shared by threads, not across a fork.

    Args:
        redis_url: as MODERATION_REDIS_URL; by default settings come from the environment and `.env`.
        intake_max: as MODERATION_INTAKE_MAX.

    Every method raises UnavailableError where Redis does not answer and UsageError where it refuses the user.
    """

    def __init__(self, redis_url: str | None = None, *, intake_max: int | None = None) -> None:
        if redis_url is None:
            configured = settings.load()
            self._redis = connection.connect(configured.redis_url, configured.sentinel_master)
            self._intake_max = configured.intake_max if intake_max is None else intake_max
        else:
            self._redis = connection.connect(redis_url)
            self._intake_max = settings.INTAKE_MAX if intake_max is None else intake_max
        self._enqueue = self._redis.register_script(bus.script("enqueue"))

    def submit(
        self,
        ids: str | Iterable[str],
        *,
        backfill: bool = False,
        rescan: bool = False,
        durable: bool = False,
        patience_s: float = 0.0,
    ) -> int:
        """Enqueues content IDs and returns how many.

        Submitting an ID again is harmless: what has a verdict keeps it.

        Args:
            ids: one content ID, or any number of them.
            backfill: let them wait until no upload waits.
            rescan: judge again what already has a verdict.
            durable: return only when the entries are on the server's disk (WAITAOF; Redis 7.2 or Valkey, with the
                append-only file on).
            patience_s: how long to wait for room where the intake is full.

        Raises:
            UsageError: an ID is malformed or there is none, `patience_s` is no number, or the server cannot do what
                `durable` asks for: nothing was enqueued.
            IntakeFullError: there is no room for all of them; `enqueued` says how many were taken, most often none.
            UnavailableError: Redis went away: a part may have been enqueued; submit all of them again.
        """
        wanted = [check_content_id(content_id) for content_id in ([ids] if isinstance(ids, str) else ids)]
        if not wanted:
            raise UsageError("There is no content ID to submit: give at least one.")
        _check_seconds("patience_s", patience_s)
        stream = bus.BACKFILL if backfill else bus.UPLOADS
        if not patience_s:
            self._check_room(stream, len(wanted))
        if durable:
            self._check_disk()
        deadline = time.monotonic() + patience_s
        most = min(DURABLE_CHUNK if durable else SUBMIT_CHUNK, self._intake_max or len(wanted))
        for start in range(0, len(wanted), most):
            for attempt in itertools.count():
                if self._add(stream, wanted[start : start + most], rescan, durable):
                    break
                if time.monotonic() >= deadline:
                    raise self._full(stream, start, len(wanted))
                time.sleep(ROOM_PAUSES_S[min(attempt, len(ROOM_PAUSES_S) - 1)])
        return len(wanted)

    def _check_room(self, stream: str, count: int) -> None:
        """So that what cannot be taken whole is refused whole, unless others submit at the same moment."""
        if self._intake_max:
            with bus.translated():
                if self._redis.xlen(stream) + count > self._intake_max:
                    raise self._full(stream, 0, count)

    def _check_disk(self) -> None:
        """So that a server which cannot wait for its disk refuses before anything is enqueued."""
        with bus.translated(), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.waitaof(num_local=1, num_replicas=0, timeout=1)
            replies = pipeline.execute(raise_on_error=False)
        _check_errors(replies, durable=True)

    def _add(self, stream: str, ids: list[str], rescan: bool, durable: bool) -> bool:
        with bus.translated(), self._redis.pipeline(transaction=False) as pipeline:
            self._enqueue(keys=[stream], args=[self._intake_max, int(rescan), *ids], client=pipeline)
            if durable:  # on the same connection, whose writes it waits for
                pipeline.waitaof(num_local=1, num_replicas=0, timeout=AOF_WAIT_MS)
            replies = pipeline.execute(raise_on_error=False)
        _check_errors(replies, durable)
        if durable and replies[0] and replies[-1][0] < 1:
            raise UnavailableError("The entries are enqueued but not on disk yet; submit them again, it costs nothing.")
        return bool(replies[0])

    def _full(self, stream: str, enqueued: int, count: int) -> IntakeFullError:
        advice = "submit them again when workers have caught up"
        if count > self._intake_max:
            advice = "they never fit in at once, so give time for room (patience_s, --patience)"
        return IntakeFullError(
            f"The intake is full: {stream} holds up to {self._intake_max} content IDs (MODERATION_INTAKE_MAX), and "
            f"{enqueued} of these {count} were enqueued; {advice}.",
            enqueued,
        )

    def verdict(self, content_id: str) -> Verdict | Undecided | None:
        """The verdict in force, or None where there is none (yet, or any more: see MODERATION_VERDICT_TTL_S)."""
        check_content_id(content_id)
        return read(bus.text_at(self._redis, bus.verdict_key(content_id)))

    def verdicts(self, after: str = "0", *, follow: bool = False) -> Iterator[tuple[str, Verdict | Undecided]]:
        """Every effective verdict in order, as (entry ID, verdict); entries that are none are left out.

        Keep the last entry ID and give it as `after` to go on from there; `0` starts as far back as the stream
        reaches, `$` at its end. With `follow` it never ends and waits for new ones. Where the stream begins later
        than `after`, a warning is logged: verdicts may have been missed.
        """
        if after == "$":
            after = self._newest().decode()
        bus.check_entry_id(after)
        behind = True
        while True:
            block_ms = WAIT_BLOCK_MS if follow else None
            entries = bus.read_stream(self._redis, bus.VERDICTS, after, READ_CHUNK, block_ms)
            if behind and bus.begins_after(self._redis, bus.VERDICTS, after):
                logger.warning(
                    "the stream of verdicts begins after %s: what came in between, if anything, has run out", after
                )
            behind = len(entries) == READ_CHUNK  # others run out while it reads
            for entry_id, fields in entries:
                after = entry_id.decode()
                document = read(fields.get(b"verdict"))
                if document is not None:
                    yield after, document
            if not entries and not follow:
                return

    def wait(self, ids: str | Iterable[str], timeout_s: float) -> dict[str, Verdict | Undecided]:
        """Waits until every ID has a verdict, and returns them by ID.

        An undecided one is a verdict, and is returned at once also where its ID was submitted again: to learn what
        becomes of that, follow `verdicts`.

        Raises:
            UsageError: an ID is malformed, or `timeout_s` no number.
            WaitedError: some had none after `timeout_s`; its `found` has the others' verdicts.
        """
        _check_seconds("timeout_s", timeout_s)
        given = [ids] if isinstance(ids, str) else ids
        wanted = list(dict.fromkeys(check_content_id(content_id) for content_id in given))
        deadline = time.monotonic() + timeout_s
        found: dict[str, Verdict | Undecided] = {}
        after = self._newest()
        with bus.translated():
            for start in range(0, len(wanted), READ_CHUNK):
                chunk = wanted[start : start + READ_CHUNK]
                documents = self._redis.mget([bus.verdict_key(content_id) for content_id in chunk])
                found |= {i: verdict for i, d in zip(chunk, documents, strict=True) if (verdict := read(d)) is not None}
        missing = set(wanted) - found.keys()
        while missing:
            left_ms = (deadline - time.monotonic()) * 1000
            if left_ms <= 0:
                raise WaitedError(
                    f"{len(missing)} of {len(wanted)} content IDs have no verdict after {timeout_s:g} s, "
                    f"{min(missing)} among them; is a worker running?",
                    {content_id: found[content_id] for content_id in wanted if content_id in found},
                )
            block_ms = max(1, int(min(left_ms, WAIT_BLOCK_MS)))
            for entry_id, fields in bus.read_stream(self._redis, bus.VERDICTS, after, READ_CHUNK, block_ms):
                after = entry_id
                named = fields.get(b"content_id", b"").decode(errors="replace")
                document = read(fields.get(b"verdict")) if named in missing else None  # others' are most of them
                if document is not None and document.content_id in missing:
                    found[document.content_id] = document
                    missing.discard(document.content_id)
        return {content_id: found[content_id] for content_id in wanted}

    def correct(self, content_id: str, label: str, *, by: str) -> str:
        """Records a person's decision and returns its entry ID in the corrections stream.

        A worker puts it into force at once: it stands against every model and rescan, for this content ID and for the
        same bytes under any other, until a later correction. What was never judged can be corrected too, for its own ID
        alone.

        Args:
            label: `approved`, `not_suitable` or `risked`; `risked` is a ban.
            by: who decided.

        Raises:
            UsageError: a malformed content ID, an unknown label, no name: nothing was recorded.
        """
        check_content_id(content_id)
        decided, name = corrections.check_label(label), corrections.check_name(by)
        standing = self.verdict(content_id)
        digest = None if standing is None else standing.content_sha256
        return corrections.write(self._redis, content_id, decided, name, digest)

    def corrections(self, after: str = "0") -> Iterator[Correction]:
        """Every correction later than the entry ID `after`, oldest first; the last one's `id` is the next `after`."""
        return corrections.read(self._redis, bus.check_entry_id(after))

    def _newest(self) -> bytes:
        with bus.translated():
            newest: Any = self._redis.xrevrange(bus.VERDICTS, count=1)
        return newest[0][0] if newest else b"0"

    @property
    def redis(self) -> redis.Redis:
        """The connection itself, for the rooms of this package that read other keys."""
        return self._redis

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()


def _check_seconds(name: str, seconds: float) -> None:
    if math.isnan(seconds):  # no time is ever after it
        raise UsageError(f"`{name}` is no number of seconds: give 0 or more.")


def _check_errors(replies: list[object], durable: bool) -> None:
    failed = next((reply for reply in replies if isinstance(reply, Exception)), None)
    if failed is not None:
        message = str(failed).lower()
        if durable and isinstance(failed, redis.exceptions.ResponseError):
            if "unknown command" in message:
                raise UsageError("This server has no WAITAOF: use Redis 7.2 or Valkey, or submit without durable.")
            if "appendonly is disabled" in message:
                raise UsageError(
                    "This server keeps no append-only file: set `appendonly yes`, or submit without durable."
                )
        raise bus.translate(failed)
