"""What people decided: the corrections stream, read and written.

A moderator's word goes in, `Correction`s come out; `overrule` puts them into force. Knows no pictures, models or
workers. The stream is kept whole: it is what the trainer learns from.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis

from worker import bus
from worker.errors import UsageError
from worker.model.labels import LABELS
from worker.verdict import Label, check_content_id

READ_CHUNK = 500
NAME_MAX = 128
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Correction:
    """One person's decision on one content ID.

    Attributes:
        id: its entry ID; of two decisions on one content ID the one with the greater ID holds.
        by: the person's name, as given.
        content_sha256: of the bytes that were judged, where a verdict named them when the person decided.
    """

    id: str
    content_id: str
    label: Label
    by: str
    content_sha256: str | None

    @property
    def at(self) -> datetime:
        """When it was made, on Redis's clock."""
        return datetime.fromtimestamp(bus.entry_ms(self.id) / 1000, UTC)


def check_label(label: object) -> Label:
    """Returns the label; raises UsageError where it is none."""
    for known in LABELS:
        if label == known:
            return known
    raise UsageError(f"{str(label)[:80]!r} is no label: use {', '.join(LABELS[:-1])} or {LABELS[-1]}.")


def check_name(name: object) -> str:
    """Returns the name; raises UsageError where it is empty, too long or not printable."""
    if not isinstance(name, str) or not 1 <= len(name.strip()) <= len(name) <= NAME_MAX or not name.isprintable():
        raise UsageError(f"`by` must name the person who decided, in 1 to {NAME_MAX} printable characters.")
    return name


def write(client: redis.Redis, content_id: str, label: Label, by: str, content_sha256: str | None) -> str:
    """Appends a correction and returns its entry ID."""
    fields: dict[Any, Any] = {"content_id": content_id, "label": label, "by": by}
    if content_sha256 is not None:
        fields["content_sha256"] = content_sha256
    with bus.translated():
        entry_id: Any = client.xadd(bus.CORRECTIONS, fields)
    return str(entry_id.decode())


def read(client: redis.Redis, after: str) -> Iterator[Correction]:
    """Every correction later than the entry ID `after`, oldest first; entries that are none are left out."""
    while entries := bus.read_stream(client, bus.CORRECTIONS, after, READ_CHUNK):
        for entry_id, fields in entries:
            after = entry_id.decode()
            try:
                yield parse(entry_id, fields)
            except UsageError:
                continue


def parse(entry_id: bytes, fields: dict[bytes, bytes]) -> Correction:
    """Reads a stream entry; raises UsageError, in one sentence, where it is no correction."""
    text = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in fields.items()}
    digest = text.get("content_sha256")
    if digest is not None and _SHA256.fullmatch(digest) is None:
        raise UsageError("content_sha256 must be 64 hex digits.")
    return Correction(
        id=entry_id.decode(),
        content_id=check_content_id(text.get("content_id")),
        label=check_label(text.get("label")),
        by=check_name(text.get("by")),
        content_sha256=digest,
    )
