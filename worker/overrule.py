"""Puts what people decided into force: reads the corrections as the workers' group, and applies each once.

Corrections go in; effective verdicts come out, and the decisions that every later publish must keep to. Knows no
pictures or models. All workers read as one consumer, and what one of them read and did not finish is read again:
lua/correct.lua applies a correction only where none as late is in force, so reading twice changes nothing.
"""

import json
import logging
import threading
import time
from typing import Any

import redis

from worker import bus, corrections, deadletter
from worker.corrections import Correction
from worker.errors import ModerationError, UnavailableError, UsageError
from worker.publish import flags
from worker.verdict import Undecided, by_person, read, unset_last_fields

logger = logging.getLogger(__name__)

CONSUMER = "workers"
READ_AT_ONCE = 100
BLOCK_MS = 1000
PAUSE_S = 1.0
# How often what was read and not finished, by a process that died since, is read again.
REREAD_S = 15.0
# The standing verdict can be replaced between the look at it and the correction, but hardly this often.
LOOKS = 20


class Overruler:
    """One thread.

    Args:
        verdict_ttl_s: how long the verdict of a correction can be looked up.
    """

    def __init__(self, client: redis.Redis, verdict_ttl_s: int) -> None:
        self._redis = client
        self._ttl_s = verdict_ttl_s
        self._correct = client.register_script(bus.script("correct"))
        self._reread_at = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="overruler", daemon=True)

    def start(self) -> None:
        """Starts applying."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; what it has not finished is another's, or a later one's."""
        self._stopping.set()
        self._thread.join()

    def apply_waiting(self, block_ms: int | None = None) -> int:
        """Applies what waits, at most a chunk of it; waits up to `block_ms` for the first. Returns how many were new.

        Raises UnavailableError where Redis does not answer: what was read and not finished is read again later.
        """
        if time.monotonic() >= self._reread_at:
            after = "0"
            while unfinished := self._read(after, None):
                self._apply_all(unfinished)
                after = unfinished[-1][0].decode()
            self._reread_at = time.monotonic() + REREAD_S
        entries = self._read(">", block_ms)
        self._apply_all(entries)
        return len(entries)

    def _run(self) -> None:
        failing = False
        while not self._stopping.is_set():
            try:
                self.apply_waiting(BLOCK_MS)
                failing = False
            except Exception as error:
                # Whatever it is, people's decisions must go on being applied.
                if not failing:
                    unknown = None if isinstance(error, ModerationError) else error
                    logger.error("corrections wait: %s", error, exc_info=unknown)
                failing = True
                self._reread_at = 0.0
                self._stopping.wait(PAUSE_S)

    def _read(self, after: str, block_ms: int | None) -> list[bus.StreamEntry]:
        reply: Any = bus.grouped(
            self._redis,
            [bus.CORRECTIONS],
            lambda: self._redis.xreadgroup(
                bus.GROUP, CONSUMER, {bus.CORRECTIONS: after}, count=READ_AT_ONCE, block=block_ms
            ),
        )
        return [(entry_id, fields or {}) for entry_id, fields in reply[0][1]] if reply else []

    def _apply_all(self, entries: list[bus.StreamEntry]) -> None:
        for entry_id, fields in entries:
            try:
                self._apply(entry_id, fields)
            except UnavailableError:
                raise
            except Exception:  # one that fails in an unforeseen way must not hold up the others
                logger.exception("the correction %s could not be applied; it is tried again", entry_id.decode())

    def _apply(self, entry_id: bytes, fields: dict[bytes, bytes]) -> None:
        try:
            correction = corrections.parse(entry_id, fields)
        except UsageError as error:
            logger.warning("an entry of the corrections is none: %s", error)
            self._bury(entry_id, fields, str(error))
            return
        for _ in range(LOOKS):
            outcome = self._overrule(correction)
            if outcome != "changed":
                logger.info("%s is %s, says %s: %s", correction.content_id, correction.label, correction.by, outcome)
                return
        raise UnavailableError(f"The verdict on {correction.content_id} changes faster than it can be corrected.")

    def _bury(self, entry_id: bytes, fields: dict[bytes, bytes], why: str) -> None:
        try:
            with bus.translated():
                if fields:  # else it was removed from the stream before it could be applied
                    said = fields.get(b"content_id", b"").decode("utf-8", "backslashreplace")[:128]
                    deadletter.bury(self._redis, said, "malformed_correction", why, False)
                self._redis.xack(bus.CORRECTIONS, bus.GROUP, entry_id)
        except ModerationError as error:  # it is read again later, and holds up no decision after it
            logger.error("%s cannot be put among the dead letters: %s", entry_id.decode(), error)

    def _overrule(self, correction: Correction) -> str:
        raw = bus.text_at(self._redis, bus.verdict_key(correction.content_id))
        standing = read(raw)
        document = by_person(standing or _never_judged(correction), correction.label, "human")
        # The bytes that the person saw, or none: what was looked at since is no part of the decision.
        digest = correction.content_sha256
        shown = digest or document.content_sha256
        document = document.model_copy(update={"content_sha256": shown, "decided_at": None, "supersedes": None})
        decision = {"entry": correction.id, "label": correction.label, "by": correction.by}
        with bus.translated():
            reply: Any = self._correct(
                keys=[
                    bus.CORRECTIONS, bus.verdict_key(correction.content_id), bus.VERDICTS, bus.OVERRIDES, bus.KNOWN,
                    bus.WITHHELD,
                ],
                args=[
                    bus.GROUP, correction.id, correction.content_id, unset_last_fields(document), self._ttl_s,
                    raw or b"", correction.label, flags(document), document.placement, json.dumps(decision),
                    digest or "",
                ],
            )  # fmt: skip
        return str(reply[0].decode())


def _never_judged(correction: Correction) -> Undecided:
    """What a correction replaces where nothing stands."""
    return Undecided(
        content_id=correction.content_id, placement="held", reasons=("not_found",), weights=None, engine=None,
        content_sha256=None, frames=0, enqueued_at=correction.at,
    )  # fmt: skip
