"""The dead letters: what failed for good, kept with its reason until a person replays or drops it.

A Redis stream; the worker's own burials happen in the scripts that take an entry out of the intake. Knows no
pictures and no workers.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import redis

from worker import bus
from worker.errors import UsageError
from worker.intake import STREAMS
from worker.verdict import check_content_id

READ_CHUNK = 500
# Their content_id may be the beginning of what was sent only, and by that look like somebody else's ID.
MALFORMED = ("malformed_id", "malformed_task", "malformed_correction")
_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One of them. Times in ms on Redis's clock; `content_id` as far as it can be told."""

    id: str
    content_id: str
    reason: str
    detail: str
    stream: str
    rescan: bool
    enqueued_ms: int
    failed_ms: int


def bury(client: redis.Redis, content_id: str, reason: str, detail: str, rescan: bool) -> None:
    """Adds what never was in the intake."""
    with bus.translated():
        now_ms = bus.now_ms(client)
        client.xadd(
            bus.DEAD_LETTER,
            {
                "content_id": _bytes(content_id), "reason": reason, "detail": _bytes(detail), "stream": bus.UPLOADS,
                "rescan": int(rescan), "enqueued_ms": now_ms, "failed_ms": now_ms,
            },
        )  # fmt: skip


def letters(client: redis.Redis) -> Iterator[DeadLetter]:
    """All of them, oldest first."""
    after = "-"
    while True:
        entries = bus.range_stream(client, bus.DEAD_LETTER, after, count=READ_CHUNK)
        for entry_id, fields in entries:
            yield _parse(entry_id, fields)
        if not entries:
            return
        after = f"({entries[-1][0].decode()}"


def replay(client: redis.Redis, letter_id: str) -> DeadLetter:
    """Moves one back to the end of its stream. Raises UsageError where there is none, or its ID is malformed."""
    letter = _get(client, letter_id)
    if letter.reason in MALFORMED:
        raise UsageError(
            f"{letter.content_id[:80]!r} was refused as it came, it is no content ID: submit the right one, drop this."
        )
    check_content_id(letter.content_id)
    stream = letter.stream if letter.stream in STREAMS else bus.UPLOADS
    script = client.register_script(bus.script("replay"))
    with bus.translated():
        moved = script(keys=[bus.DEAD_LETTER, stream], args=[letter.id, letter.content_id, int(letter.rescan)])
    if not moved:
        raise _no_such(letter_id)
    return letter


def drop(client: redis.Redis, letter_id: str) -> DeadLetter:
    """Removes one for good. Raises UsageError where there is none."""
    letter = _get(client, letter_id)
    with bus.translated():
        client.xdel(bus.DEAD_LETTER, letter.id)
    return letter


def _get(client: redis.Redis, letter_id: str) -> DeadLetter:
    if _ID.fullmatch(letter_id) is None:
        raise UsageError(f"{letter_id[:80]!r} is no dead letter's id: `moderation dead-letter list` shows them.")
    found = bus.range_stream(client, bus.DEAD_LETTER, letter_id, letter_id)
    if not found:
        raise _no_such(letter_id)
    return _parse(*found[0])


def _no_such(letter_id: str) -> UsageError:
    return UsageError(f"There is no dead letter {letter_id}: `moderation dead-letter list` shows what there is.")


def _parse(entry_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    text = {_text(name): _text(value) for name, value in fields.items()}
    return DeadLetter(
        id=entry_id.decode(),
        content_id=text.get("content_id", ""),
        reason=text.get("reason", ""),
        detail=text.get("detail", ""),
        stream=text.get("stream", ""),
        rescan=text.get("rescan") == "1",
        enqueued_ms=_ms(text.get("enqueued_ms", "")),
        failed_ms=_ms(text.get("failed_ms", "")),
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # JSON can spell halves of characters, which UTF-8 cannot


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _ms(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,14}", text) else 0
